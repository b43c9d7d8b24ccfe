//! The effective configuration as lines for the log, without what must not be seen.

use super::document::{Entry, Node, Value};
use super::section::is_secret;

/// What stands in place of a secret.
const MASK: &str = "***";

/// One `key = value` in a line, in the order of the document.
pub fn lines(document: &Node) -> Vec<String> {
    let mut lines = Vec::new();
    collect("", document, &mut lines);
    lines
}

fn collect(path: &str, node: &Node, lines: &mut Vec<String>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                collect(&below(path, &entry.key), &entry.node, lines);
            }
        }
        Value::List(items) => {
            for (at, item) in items.iter().enumerate() {
                collect(&format!("{path}[{at}]"), item, lines);
            }
        }
        Value::Scalar(scalar) => lines.push(format!("{path} = {}", shown(path, &scalar.text))),
    }
}

/// The document as JSON.
pub fn json(document: &Node) -> serde_json::Value {
    fn masked(path: &str, node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Map(entries) => {
                let shown = |entry: &Entry| {
                    let value = masked(&below(path, &entry.key), &entry.node);
                    (entry.key.clone(), value)
                };
                let map: serde_json::Map<_, _> = entries.iter().map(shown).collect();
                map.into()
            }
            Value::List(items) => items.iter().map(|item| masked(path, item)).collect(),
            Value::Scalar(scalar) => match shown(path, &scalar.text) {
                text if text == scalar.text => node.to_json(),
                text => text.into(),
            },
        }
    }
    masked("", document)
}

pub fn below(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

/// A value as it may be seen.
pub fn shown(path: &str, text: &str) -> String {
    // Elements of a list have the name of the list.
    let name = path.split('[').next().unwrap_or(path);
    if is_secret(name) {
        return MASK.to_owned();
    }
    without_credentials(text)
}

/// How the names of secrets end: in a connection string, a line of `pg_hba.conf`, a command or its environment.
const SECRETS: [&str; 7] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "secrets",
    "_key",
    "token",
];

/// Masks passwords inside a connection string, a URL, a command or a line of `pg_hba.conf`.
pub fn without_credentials(text: &str) -> String {
    let mut text = text.to_owned();
    let mut from = 0;
    while let Some((start, end)) = secret_after(&text, from) {
        text.replace_range(start..end, MASK);
        from = start + MASK.len();
    }
    without_passwords_of_urls(text)
}

/// Where the next secret is: the word after `name=`, blanks around it or not, or after the option `--name`.
fn secret_after(text: &str, from: usize) -> Option<(usize, usize)> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let blanks = [' ', '\t'];
    let mut at = from;
    loop {
        let start = at + text[at..].find(is_of_a_name)?;
        let length = text[start..].find(|c| !is_of_a_name(c));
        at = length.map_or(text.len(), |length| start + length);
        let name = text[start..at].to_ascii_lowercase();
        if !SECRETS.iter().any(|secret| name.ends_with(secret)) {
            continue;
        }
        let after = text[at..].trim_start_matches(blanks);
        let is_option = name.starts_with("--") && text[at..].starts_with(blanks);
        let value = match after.strip_prefix('=') {
            Some(value) => value.trim_start_matches(blanks),
            None if is_option && !after.starts_with('-') => after,
            None => continue,
        };
        let begins = text.len() - value.len();
        return Some((begins, end_of_word(text, begins)));
    }
}

/// The same for `scheme://user:password@host`, each of several.
fn without_passwords_of_urls(mut text: String) -> String {
    let mut from = 0;
    while let Some(at) = text[from..].find("://") {
        let start = from + at + "://".len();
        let word = &text[start..];
        let word = &word[..word.find([' ', '\t', ',', '"', '\'']).unwrap_or(word.len())];
        from = start;
        if let Some(host) = word.rfind('@')
            && let Some(user) = word[..host].find(':')
        {
            text.replace_range(start + user + 1..start + host, MASK);
        }
    }
    text
}

/// Where the word that begins at `start` ends; quotes hold blanks together.
fn end_of_word(text: &str, start: usize) -> usize {
    let rest = &text[start..];
    let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let end = match quote {
        Some(quote) => rest[1..].find(quote).map(|at| at + 2),
        None => rest.find([' ', '&', '\t']),
    };
    start + end.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        for (text, shown) in [
            ("host=a password=b user=c", "host=a password=*** user=c"),
            (
                "host=a password='b c' user=d password=e",
                "host=a password=*** user=d password=***",
            ),
            (
                "host all all 0/0 ldap ldapserver=x ldapbindpasswd=\"a b\" ldaptls=1",
                "host all all 0/0 ldap ldapserver=x ldapbindpasswd=*** ldaptls=1",
            ),
            ("http://u:p@h:1", "http://u:***@h:1"),
            (
                "http://u:p@h:1,https://v:q@i:2/x",
                "http://u:***@h:1,https://v:***@i:2/x",
            ),
            ("PGPASSWORD=a psql -h b", "PGPASSWORD=*** psql -h b"),
            (
                "AWS_SECRET_ACCESS_KEY=a wal-g fetch",
                "AWS_SECRET_ACCESS_KEY=*** wal-g fetch",
            ),
            ("host=a password = b user=c", "host=a password = *** user=c"),
            ("curl --password a --url b", "curl --password *** --url b"),
            (
                "pg_basebackup --password --host a",
                "pg_basebackup --password --host a",
            ),
            (
                "run client_secret=a x_key='b c' d",
                "run client_secret=*** x_key=*** d",
            ),
            ("plain", "plain"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }
}
