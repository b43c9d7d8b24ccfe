//! HAProxy's file: sections of lines of words. As HAProxy 3.2 reads them, without its variables and conditions
//! (`.if`), which are named. Pure.

use std::sync::Arc;

use super::super::notes::Place;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it stands.
    pub place: Place,
    /// Its words; at least one.
    pub words: Vec<String>,
}

impl Line {
    /// A word; empty where there are fewer.
    pub fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    /// Whether a word stands behind the first one.
    pub fn has(&self, word: &str) -> bool {
        self.words.iter().skip(1).any(|own| own == word)
    }

    /// The word behind a word.
    pub fn after(&self, word: &str) -> Option<&str> {
        let at = self.words.iter().skip(1).position(|own| own == word)?;
        self.words.get(at + 2).map(String::as_str)
    }

    /// The first two words, to name the line by.
    pub fn key(&self) -> String {
        let words: Vec<&str> = self.words.iter().take(2).map(String::as_str).collect();
        words.join(" ")
    }
}

/// A section: its first line, and those below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `listen`, `backend` and so on, with its name.
    pub head: Line,
    /// What stands in it.
    pub lines: Vec<Line>,
}

/// What begins a section.
const SECTIONS: [&str; 22] = [
    "acme",
    "backend",
    "cache",
    "crt-store",
    "defaults",
    "dynamic-update",
    "fcgi-app",
    "frontend",
    "global",
    "http-errors",
    "listen",
    "log-forward",
    "log-profile",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
    "server-state",
    "healthcheck",
];

/// Reads a file. Lines before the first section are a section without a name.
pub fn read(file: &str, text: &str) -> Vec<Section> {
    let file: Arc<str> = file.into();
    let mut sections: Vec<Section> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let words = words(line);
        if words.is_empty() {
            continue;
        }
        let place = Place {
            file: file.clone(),
            line: at + 1,
        };
        let line = Line { place, words };
        match sections.last_mut() {
            Some(section) if !SECTIONS.contains(&line.word(0)) => section.lines.push(line),
            _ => sections.push(Section {
                head: line,
                lines: Vec::new(),
            }),
        }
    }
    sections
}

/// The words of a line: `\` takes the next character as it is, quotes hold blanks together, `#` begins a comment.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            ('#', None) => break,
            (blank, None) if blank.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_words_with_quotes_and_escapes() {
        for (line, expected) in [
            ("  bind *:5432 # write", vec!["bind", "*:5432"]),
            (
                "a 'b # c' \"d\\\"e\" f\\ g",
                vec!["a", "b # c", "d\"e", "f g"],
            ),
            ("# only this", vec![]),
            ("x ''", vec!["x", ""]),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }
}
