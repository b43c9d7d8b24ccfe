//! What must move with a client from server to server, and what cannot: prepared statements, and the state
//! that pins. Pure.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::protocol::exchange::Heard;
use crate::session::carry_over::look::{Look, look};

pub mod deallocate;
pub mod executed;
pub mod look;
pub mod opening;

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

/// In the place of a name that the client has given already: prepared just before, so that the server finds it taken.
pub const TAKEN: &str = "trunkline_taken";

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
    /// So many bytes were to be kept since they were looked for.
    since_sweep: usize,
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
            since_sweep: 0,
        }
    }

    /// The statement of this text and types; `number` gives new ones theirs. `None`: there is no room for one more.
    pub fn intern(&mut self, tail: &[u8], number: impl FnOnce() -> u32) -> Option<Arc<Statement>> {
        if let Some(ByTail(known)) = self.by_tail.get(tail) {
            return Some(known.clone());
        }
        self.until_sweep -= 1;
        self.since_sweep += tail.len();
        let is_full = |own: &Self| own.bytes + tail.len() > MAX_SHARED_BYTES;
        // A look at all of them is worth it once so much has come to them.
        if self.until_sweep == 0 || is_full(self) && self.since_sweep > MAX_SHARED_BYTES / 16 {
            self.sweep();
        }
        if is_full(self) {
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
        self.since_sweep = 0;
    }
}

/// The statements of one client, by the names it gave them.
#[derive(Debug, Default)]
pub struct Statements {
    by_name: BTreeMap<Box<[u8]>, Arc<Statement>>,
    /// Of the texts, bytes.
    bytes: usize,
    /// Changes that the server has not come to, the oldest first.
    uncertain: VecDeque<Change>,
    /// Text and types of the unnamed statement, where a later Bind may refer to it.
    pub unnamed: Option<Box<[u8]>>,
}

/// A name means another statement.
#[derive(Debug)]
struct Change {
    name: Box<[u8]>,
    before: Option<Arc<Statement>>,
}

/// The most statements of one client that are kept for it.
pub const MAX_STATEMENTS: usize = 10_000;
/// Their texts are no longer than this, bytes, as if it alone had prepared them.
pub const MAX_STATEMENT_BYTES: usize = 16 << 20;
/// Longer names are not kept, bytes: PostgreSQL's NAMEDATALEN without the end of the text.
pub const MAX_NAME: usize = 63;

impl Statements {
    /// How many have a name.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// Whether another one can be kept under this name.
    pub fn has_room_for(&self, name: &[u8], statement: &Statement) -> bool {
        name.len() <= MAX_NAME
            && self.by_name.len() < MAX_STATEMENTS
            && self.bytes + statement.tail().len() <= MAX_STATEMENT_BYTES
    }

    /// Names one, or with `None` takes a name away; for certain. Returns what it meant before.
    pub fn name(
        &mut self,
        name: &[u8],
        statement: Option<Arc<Statement>>,
    ) -> Option<Arc<Statement>> {
        let length = |it: &Option<Arc<Statement>>| it.as_ref().map_or(0, |it| it.tail().len());
        self.bytes += length(&statement);
        let before = match statement {
            Some(statement) => self.by_name.insert(name.into(), statement),
            None => self.by_name.remove(name),
        };
        self.bytes -= length(&before);
        before
    }

    /// The same, if the server does not skip what asks for it.
    pub fn rename(&mut self, name: &[u8], statement: Option<Arc<Statement>>) {
        let before = self.name(name, statement);
        let name = name.into();
        self.uncertain.push_back(Change { name, before });
    }

    /// So many of the oldest changes are certain.
    pub fn confirm(&mut self, count: usize) {
        self.uncertain.drain(..count.min(self.uncertain.len()));
    }

    /// So many of the oldest changes do not happen.
    pub fn take_back(&mut self, count: usize) {
        let later = self.uncertain.split_off(count.min(self.uncertain.len()));
        let skipped = std::mem::replace(&mut self.uncertain, later);
        for Change { name, before } in skipped.into_iter().rev() {
            // What a later batch does to the name goes on to hold.
            match self.uncertain.iter_mut().find(|later| later.name == name) {
                Some(later) => later.before = before,
                None => {
                    self.name(&name, before);
                }
            }
        }
    }

    /// Hears what has become of changes.
    pub fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Renamed => self.confirm(1),
            Heard::NotRenamed(count) => self.take_back(count),
            Heard::NotPrepared(_) | Heard::NotClosed(_) => {}
        }
    }

    /// The one of this name.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.by_name.get(name)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Nothing that is uncertain happens any more.
    pub fn take_back_all(&mut self) {
        self.take_back(self.uncertain.len());
    }

    /// So many of the newest changes are certain, and no other one happens any more.
    pub fn confirm_last(&mut self, count: usize) {
        self.take_back(self.uncertain.len().saturating_sub(count));
        self.confirm(count);
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
        assert!(own.name(b"s1", Some(one)).is_none() && own.find(b"s1").is_some());
        assert!(own.name(b"s1", None).is_some() && own.find(b"s1").is_none());
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
        loop {
            let statement = shared.intern(long(named).as_bytes(), || named).unwrap();
            if !own.has_room_for(b"s", &statement) {
                break;
            }
            own.name(named.to_string().as_bytes(), Some(statement));
            named += 1;
        }
        assert_eq!(named, 15);
        // A name that is closed makes room; a long one is not kept.
        own.name(b"3", None);
        let another = shared.intern(b"select 1\0\0\0", || 100).unwrap();
        assert!(own.has_room_for(b"s", &another) && !own.has_room_for(&[b's'; 64], &another));
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
        let mut tries = 0..=17;
        assert!(tries.any(|_| shared.intern(long(number).as_bytes(), || number).is_some()));
    }

    #[test]
    fn a_name_means_what_the_server_has_come_to() {
        let mut shared = Shared::new();
        let mut statement = |n: u32| shared.intern(format!("select {n}\0\0\0").as_bytes(), || n);
        let numbers = |own: &Statements| own.find(b"s").map(|it| it.number());
        let mut own = Statements::default();
        own.rename(b"s", statement(1));
        own.confirm(1);
        // Closed and prepared anew in a batch that fails, and prepared once more in the next one.
        own.rename(b"s", None);
        own.rename(b"s", statement(2));
        own.take_back(2);
        assert_eq!(numbers(&own), Some(1));
        own.rename(b"s", None);
        own.rename(b"s", statement(2));
        own.rename(b"s", statement(3));
        own.take_back(2);
        assert_eq!(numbers(&own), Some(3));
        own.take_back_all();
        assert_eq!(numbers(&own), Some(1));
        // Of two batches the first one is lost.
        own.rename(b"s", None);
        own.rename(b"t", statement(2));
        own.confirm_last(1);
        assert!(numbers(&own) == Some(1) && own.find(b"t").is_some());
        own.take_back_all();
        assert!(own.find(b"t").is_some());
    }
}
