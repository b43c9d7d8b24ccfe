//! What a file says that a router's file cannot say, each with its place. Pure.

use std::fmt;
use std::sync::Arc;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// The line, from one.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Whether somebody has to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something is lost, or has to be done by hand.
    Attention,
    /// There is nothing that it could mean here.
    Moot,
}

/// One of them. The value is not kept: it may be a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where it stands; none is the whole file.
    pub place: Option<Place>,
    /// The setting.
    pub key: String,
    /// Whether it matters.
    pub weight: Weight,
    /// Why it has no equivalent, and what to do.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        match self.weight {
            Weight::Attention => write!(f, "{}", self.text),
            Weight::Moot => write!(f, "has no meaning here: {}", self.text),
        }
    }
}

/// All of them, in the order they were found.
#[derive(Debug, Default)]
pub struct Notes(Vec<Note>);

impl Notes {
    fn add(&mut self, place: Option<&Place>, key: &str, weight: Weight, text: &str) {
        self.0.push(Note {
            place: place.cloned(),
            key: key.to_owned(),
            weight,
            text: text.to_owned(),
        });
    }

    /// Something that is lost or has to be done.
    pub fn attention(&mut self, place: Option<&Place>, key: &str, text: &str) {
        self.add(place, key, Weight::Attention, text);
    }

    /// Something without a meaning here.
    pub fn moot(&mut self, place: &Place, key: &str, why: &str) {
        self.add(Some(place), key, Weight::Moot, why);
    }

    /// By place; what belongs to the whole file comes last.
    pub fn sorted(mut self) -> Vec<Note> {
        self.0
            .sort_by_key(|note| (note.place.is_none(), note.place.clone()));
        self.0
    }
}
