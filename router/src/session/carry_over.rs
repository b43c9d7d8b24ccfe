//! What must move with a client from server to server, and what cannot: prepared statements, and the state
//! that pins. Pure.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::session::carry_over::look::{Look, look};

pub mod executed;
pub mod look;

/// What every name of a statement on a server begins with.
pub const PREFIX: &str = "trunkline_";
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
#[derive(Debug)]
pub struct Shared {
    by_tail: BTreeSet<ByTail>,
    /// Of all texts, bytes.
    bytes: usize,
    /// After so many new ones those that no client holds any more are dropped.
    until_sweep: usize,
}

/// A statement, found by its text and types.
#[derive(Debug)]
struct ByTail(Arc<Statement>);

impl Borrow<[u8]> for ByTail {
    fn borrow(&self) -> &[u8] {
        self.0.tail()
    }
}

impl PartialEq for ByTail {
    fn eq(&self, other: &Self) -> bool {
        self.0.tail() == other.0.tail()
    }
}

impl Eq for ByTail {}

impl PartialOrd for ByTail {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByTail {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.tail().cmp(other.0.tail())
    }
}

/// The texts of all statements of the process take no more than this, bytes.
pub const MAX_SHARED_BYTES: usize = 256 << 20;
/// Texts that nobody holds any more are looked for after so many new ones, or as many as there are: a look costs each
/// new one the same, however many there are.
const SWEEP_FROM: usize = 1024;

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            by_tail: BTreeSet::new(),
            bytes: 0,
            until_sweep: SWEEP_FROM,
        }
    }

    /// The statement of this text and types; `number` gives new ones theirs. `None`: there is no room for one more.
    pub fn intern(&mut self, tail: &[u8], number: impl FnOnce() -> u32) -> Option<Arc<Statement>> {
        if let Some(ByTail(known)) = self.by_tail.get(tail) {
            return Some(known.clone());
        }
        self.until_sweep -= 1;
        if self.until_sweep == 0 {
            self.sweep();
        }
        if self.bytes + tail.len() > MAX_SHARED_BYTES {
            return None;
        }
        let text = tail.split(|b| *b == 0).next().unwrap_or_default();
        let statement = Arc::new(Statement {
            number: AtomicU32::new(number()),
            tail: tail.into(),
            look: look(text),
        });
        self.bytes += tail.len();
        self.by_tail.insert(ByTail(statement.clone()));
        Some(statement)
    }

    fn sweep(&mut self) {
        self.by_tail
            .retain(|ByTail(statement)| Arc::strong_count(statement) > 1);
        self.bytes = self.by_tail.iter().map(|ByTail(s)| s.tail().len()).sum();
        self.until_sweep = self.by_tail.len().max(SWEEP_FROM);
    }
}

/// The statements of one client, by the names it gave them.
#[derive(Debug, Default)]
pub struct Statements {
    by_name: BTreeMap<Box<[u8]>, Arc<Statement>>,
    /// Names and texts, bytes.
    bytes: usize,
    /// Text and types of the unnamed statement, where a later Bind may refer to it.
    pub unnamed: Option<Box<[u8]>>,
}

/// The most statements of one client that are kept for it.
pub const MAX_STATEMENTS: usize = 10_000;
/// Their names and texts are no longer than this, bytes, as if it alone had prepared them.
pub const MAX_STATEMENT_BYTES: usize = 16 << 20;

impl Statements {
    /// Names one; `false` if there is no room for it.
    pub fn name(&mut self, name: &[u8], statement: Arc<Statement>) -> bool {
        self.close(name);
        let bytes = self.bytes + name.len() + statement.tail().len();
        let is_room = self.by_name.len() < MAX_STATEMENTS && bytes <= MAX_STATEMENT_BYTES;
        if is_room {
            self.bytes = bytes;
            self.by_name.insert(name.into(), statement);
        }
        is_room
    }

    /// The one of this name.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.by_name.get(name)
    }

    /// Forgets the one of this name; whether it was there.
    pub fn close(&mut self, name: &[u8]) -> bool {
        let closed = self.by_name.remove(name);
        if let Some(closed) = &closed {
            self.bytes -= name.len() + closed.tail().len();
        }
        closed.is_some()
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
        let mut shared = Shared::new();
        let mut intern = |tail: &[u8], number| shared.intern(tail, || number).unwrap();
        let one = intern(b"select 1\0\0\0", 1);
        let same = intern(b"select 1\0\0\0", 2);
        let typed = intern(b"select 1\0\0\x01\0\0\0\x17", 3);
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &typed));
        let mut own = Statements::default();
        assert!(own.name(b"s1", one) && own.find(b"s1").is_some());
        assert!(own.close(b"s1") && !own.close(b"s1"));
        let mut name = Vec::new();
        server_name(&mut name, 12);
        assert!(name == b"trunkline_12" && is_reserved(&name));
    }

    #[test]
    fn what_one_client_and_all_of_them_keep_is_bounded_in_bytes() {
        let mut shared = Shared::new();
        let mut own = Statements::default();
        let long = |number: u32| format!("select {number} {}\0\0\0", "x".repeat(1 << 20));
        let mut named = 0;
        while own.name(
            named.to_string().as_bytes(),
            shared.intern(long(named).as_bytes(), || named).unwrap(),
        ) {
            named += 1;
        }
        assert_eq!(named, 15);
        // A name that is given again, or closed, makes room.
        assert!(
            own.close(b"3") && own.name(b"3", shared.intern(long(16).as_bytes(), || 16).unwrap())
        );
        // Texts that somebody holds fill the process; nobody's make room.
        let mut held = Vec::new();
        let mut number = 100;
        while let Some(statement) = shared.intern(long(number).as_bytes(), || number) {
            held.push(statement);
            number += 1;
        }
        let all: usize = held.iter().map(|s| s.tail().len()).sum();
        assert!(all < MAX_SHARED_BYTES && all > MAX_SHARED_BYTES - (18 << 20));
        held.truncate(10);
        let mut tries = 0..=SWEEP_FROM;
        assert!(tries.any(|_| shared.intern(long(number).as_bytes(), || number).is_some()));
    }
}
