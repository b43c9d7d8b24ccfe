//! What must move with a client from server to server, and what cannot: prepared statements, and the state
//! that pins. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::session::carry_over::look::{Look, look};

pub mod executed;
pub mod look;

/// What every name of a statement on a server begins with.
const PREFIX: &str = "trunkline_";
/// In the place of an unnamed statement that the client does not have: no server knows this name.
pub const NO_UNNAMED: &str = "trunkline_unnamed";
/// In the place of a name that could be mistaken for one of the router's.
pub const UNKNOWN: &str = "trunkline_unknown";

/// A statement that clients have prepared: one for all who prepare the same text with the same types.
#[derive(Debug)]
pub struct Statement {
    number: AtomicU32,
    /// The text and what follows it in a Parse.
    tail: Box<[u8]>,
    /// What its text does.
    pub look: Look,
}

impl Statement {
    /// Its number, by which servers know it.
    pub fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    /// Gives it another number: what servers have prepared under the old one is not used any more.
    pub fn renumber(&self, number: u32) {
        self.number.store(number, Ordering::Relaxed);
    }

    /// The text and what follows it in a Parse.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }
}

/// Appends the name of a statement on servers.
pub fn server_name(out: &mut Vec<u8>, number: u32) {
    let mut name = PREFIX.to_owned();
    // Writing to a string does not fail.
    let _ = write!(name, "{number}");
    out.extend_from_slice(name.as_bytes());
}

/// Whether a client's own name could be mistaken for one of the router's.
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// Statements that several clients share.
#[derive(Debug, Default)]
pub struct Shared {
    by_tail: BTreeMap<Box<[u8]>, Arc<Statement>>,
}

/// Above this many statements those that no client holds any more are dropped.
const SWEEP_FROM: usize = 1024;

impl Shared {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            by_tail: BTreeMap::new(),
        }
    }

    /// The statement of this text and types; `number` gives new ones theirs.
    pub fn intern(&mut self, tail: &[u8], number: impl FnOnce() -> u32) -> Arc<Statement> {
        if let Some(known) = self.by_tail.get(tail) {
            return known.clone();
        }
        if self.by_tail.len() >= SWEEP_FROM && self.by_tail.len().is_power_of_two() {
            self.by_tail
                .retain(|_, statement| Arc::strong_count(statement) > 1);
        }
        let text = tail.split(|b| *b == 0).next().unwrap_or_default();
        let statement = Arc::new(Statement {
            number: AtomicU32::new(number()),
            tail: tail.into(),
            look: look(text),
        });
        self.by_tail.insert(tail.into(), statement.clone());
        statement
    }
}

/// The statements of one client, by the names it gave them.
#[derive(Debug, Default)]
pub struct Statements {
    by_name: BTreeMap<Box<[u8]>, Arc<Statement>>,
    /// Text and types of the unnamed statement, where a later Bind may refer to it.
    pub unnamed: Option<Box<[u8]>>,
}

/// The most statements that one client may have prepared.
pub const MAX_STATEMENTS: usize = 10_000;

impl Statements {
    /// Names one; whether there is room for it.
    pub fn name(&mut self, name: &[u8], statement: Arc<Statement>) -> bool {
        self.by_name.insert(name.into(), statement);
        self.by_name.len() <= MAX_STATEMENTS
    }

    /// The one of this name.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.by_name.get(name)
    }

    /// Forgets the one of this name; whether it was there.
    pub fn close(&mut self, name: &[u8]) -> bool {
        self.by_name.remove(name).is_some()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Statement>> {
        self.by_name.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_one_statement_for_all() {
        let mut shared = Shared::default();
        let one = shared.intern(b"select 1\0\0\0", || 1);
        let same = shared.intern(b"select 1\0\0\0", || 2);
        let typed = shared.intern(b"select 1\0\0\x01\0\0\0\x17", || 3);
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &typed));
        let mut own = Statements::default();
        assert!(own.name(b"s1", one) && own.find(b"s1").is_some());
        assert!(own.close(b"s1") && !own.close(b"s1"));
        let mut name = Vec::new();
        server_name(&mut name, 12);
        assert!(name == b"trunkline_12" && is_reserved(&name));
    }
}
