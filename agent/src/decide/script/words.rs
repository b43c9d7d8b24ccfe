//! The words of a line, split and asked for by name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use super::{Line, ScriptError};

/// The words of a line, asked for by name.
pub(super) struct Words<'a, 'b> {
    line: &'a Line<'b>,
    /// The keys that were asked for.
    asked: RefCell<BTreeSet<String>>,
}

impl<'a, 'b> Words<'a, 'b> {
    pub(super) fn new(line: &'a Line<'b>) -> Self {
        Self {
            line,
            asked: RefCell::default(),
        }
    }

    /// A key that nobody has asked for would say nothing, and the script would not say what it seems to.
    pub(super) fn finish(&self) -> Result<(), ScriptError> {
        let asked = self.asked.borrow();
        let mut keys = self.line.words.iter().filter_map(|(key, _)| *key);
        match keys.find(|key| !asked.contains(*key)) {
            Some(key) => Err(ScriptError::UnknownWord {
                command: self.line.name.to_owned(),
                word: key.to_owned(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn plain(&self) -> impl Iterator<Item = &'b str> + '_ {
        self.line
            .words
            .iter()
            .filter(|(key, _)| key.is_none())
            .map(|(_, word)| *word)
    }

    /// All of them; each is asked for by that.
    pub(super) fn keyed(&self) -> impl Iterator<Item = (&'b str, &'b str)> + '_ {
        let keyed = self.line.words.iter();
        let keyed = keyed.filter_map(|(key, word)| key.map(|k| (k, *word)));
        let keys = keyed.clone().map(|(key, _)| key.to_owned());
        self.asked.borrow_mut().extend(keys);
        keyed
    }

    pub(super) fn first(&self) -> Option<&'b str> {
        self.plain().next()
    }

    pub(super) fn has(&self, word: &str) -> bool {
        self.plain().any(|w| w == word)
    }

    pub(super) fn text(&self, key: &str) -> Option<&'b str> {
        self.asked.borrow_mut().insert(key.to_owned());
        let mut words = self.line.words.iter();
        words
            .find(|(k, _)| *k == Some(key))
            .map(|(_, value)| *value)
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
