//! A command line in a file, split as a shell splits words, without a shell's other powers.

use super::document::{Kind, Value};
use super::section::Section;

/// The words of the command at `key`; `None` if there is none, or one that cannot be used.
pub fn read(section: &Section<'_>, key: &str) -> Option<Vec<String>> {
    let text = section.text(key)?;
    let words = split(&text).filter(|words| !words.is_empty());
    if words.is_none()
        && let Some(node) = section.find(key)
    {
        section.unusable(
            key,
            node,
            "a command with its arguments, every quote closed",
        );
    }
    words
}

/// Every key but those of `own` with its value, booleans as Patroni prints them, in the file's order.
pub fn extra(section: &Section<'_>, own: &[&str]) -> Vec<(String, String)> {
    let entries = section.entries().iter();
    let mut extra = Vec::new();
    for entry in entries.filter(|entry| !own.contains(&entry.key.as_str())) {
        match &entry.node.value {
            Value::Scalar(scalar) => {
                let text = match scalar.kind {
                    Kind::Boolean(true) => "True".to_owned(),
                    Kind::Boolean(false) => "False".to_owned(),
                    _ => scalar.text.to_string(),
                };
                extra.push((entry.key.clone(), text));
            }
            Value::List(_) | Value::Map(_) => {
                section.unusable(&entry.key, &entry.node, "one value");
            }
        }
    }
    extra
}

/// Words apart by blanks; quotes and backslashes as POSIX says. `None` if a quote is not closed.
pub fn split(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => loop {
                match characters.next()? {
                    '\'' => {
                        word.get_or_insert_default();
                        break;
                    }
                    other => word.get_or_insert_default().push(other),
                }
            },
            '"' => {
                word.get_or_insert_default();
                quoted(&mut characters, word.get_or_insert_default())?;
            }
            '\\' => word.get_or_insert_default().push(characters.next()?),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Some(words)
}

/// Up to the closing double quote.
fn quoted(characters: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match characters.next()? {
            '"' => return Some(()),
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                other => word.extend(['\\', other]),
            },
            other => word.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        let words = |text| split(text).map(|words| words.join("|"));
        assert_eq!(words("a  b\tc"), Some("a|b|c".to_owned()));
        assert_eq!(
            words("/x 'a b'c \"d 'e\" ''"),
            Some("/x|a bc|d 'e|".to_owned())
        );
        assert_eq!(words(r#"a\ b "c\"d\e""#), Some(r#"a b|c"d\e"#.to_owned()));
        assert_eq!(words("a 'b"), None);
        assert_eq!(words(r"a \"), None);
    }
}
