//! The words of a line, split and asked for by name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use super::{Line, ScriptError};

/// The words of a line, asked for by name.
pub(super) struct Words<'a, 'b> {
    line: &'a Line<'b>,
    /// What was asked for: keys, and plain words.
    asked: RefCell<BTreeSet<(bool, String)>>,
}

/// In what was asked for.
const KEY: bool = true;
const PLAIN: bool = false;

impl<'a, 'b> Words<'a, 'b> {
    pub(super) fn new(line: &'a Line<'b>) -> Self {
        Self {
            line,
            asked: RefCell::default(),
        }
    }

    /// A word that nobody has asked for would say nothing, and the script would not say what it seems to.
    pub(super) fn finish(&self) -> Result<(), ScriptError> {
        let asked = self.asked.borrow();
        let mut words = self.line.words.iter();
        let unknown = words.find_map(|(key, word)| {
            let word = key.unwrap_or(word);
            let is_asked = asked.contains(&(key.is_some(), word.to_owned()));
            (!is_asked).then_some(word)
        });
        match unknown {
            Some(word) => Err(ScriptError::UnknownWord {
                command: self.line.name.to_owned(),
                word: word.to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn asks(&self, kind: bool, word: &str) {
        self.asked.borrow_mut().insert((kind, word.to_owned()));
    }

    fn plain_words(&self) -> impl Iterator<Item = &'b str> + '_ {
        let words = self.line.words.iter();
        words
            .filter(|(key, _)| key.is_none())
            .map(|(_, word)| *word)
    }

    fn keyed_words(&self) -> impl Iterator<Item = (&'b str, &'b str)> + '_ {
        let words = self.line.words.iter();
        words.filter_map(|(key, word)| key.map(|k| (k, *word)))
    }

    /// All plain words, where each may be anything.
    pub(super) fn plain(&self) -> impl Iterator<Item = &'b str> + '_ {
        self.plain_words().for_each(|word| self.asks(PLAIN, word));
        self.plain_words()
    }

    /// All keys with their values, where each may be anything.
    pub(super) fn keyed(&self) -> impl Iterator<Item = (&'b str, &'b str)> + '_ {
        self.keyed_words().for_each(|(key, _)| self.asks(KEY, key));
        self.keyed_words()
    }

    pub(super) fn first(&self) -> Option<&'b str> {
        let first = self.plain_words().next();
        first.inspect(|word| self.asks(PLAIN, word))
    }

    pub(super) fn has(&self, word: &str) -> bool {
        self.asks(PLAIN, word);
        self.plain_words().any(|w| w == word)
    }

    /// A word for what is so where its opposite does not stand.
    pub(super) fn may_say(&self, word: &str) {
        self.asks(PLAIN, word);
    }

    /// Every value of a key that may be repeated.
    pub(super) fn all(&self, key: &str) -> impl Iterator<Item = &'b str> {
        self.asks(KEY, key);
        let values = self.keyed_words().filter(|(k, _)| *k == key);
        let values: Vec<_> = values.map(|(_, value)| value).collect();
        values.into_iter()
    }

    pub(super) fn text(&self, key: &str) -> Option<&'b str> {
        self.all(key).next()
    }

    pub(super) fn value<T: FromStr>(&self, key: &str) -> Result<Option<T>, ScriptError> {
        self.text(key)
            .map(|text| self.parse(text, "of the form this word needs"))
            .transpose()
    }

    pub(super) fn seconds(&self, key: &str) -> Result<Option<Duration>, ScriptError> {
        self.text(key)
            .map(|text| self.parse_seconds(text))
            .transpose()
    }

    pub(super) fn parse_seconds(&self, text: &str) -> Result<Duration, ScriptError> {
        let number: f64 = self.parse(text.trim_end_matches('s'), "a number of seconds")?;
        Duration::try_from_secs_f64(number).map_err(|_| self.wrong(text, "a number of seconds"))
    }

    pub(super) fn parse<T: FromStr>(
        &self,
        text: &str,
        expected: &'static str,
    ) -> Result<T, ScriptError> {
        text.parse().map_err(|_| self.wrong(text, expected))
    }

    pub(super) fn wrong(&self, value: &str, expected: &'static str) -> ScriptError {
        let command = self.line.name.to_owned();
        ScriptError::WrongValue {
            command,
            value: value.to_owned(),
            expected,
        }
    }
}

/// The words of a line of text; quotes hold spaces together.
pub(super) fn split_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}
