//! Whether transactions that append to lists and read them saw what their isolation level promises. Pure.
//!
//! The approach is that of Jepsen's Elle (Kingsbury and Alvaro, VLDB 2020): every value is appended once, so a list that was
//! read tells the order in which its values came. From these orders follows which transaction must have come before which,
//! and a circle of such relations is an anomaly, named as Adya does. Of the levels the meaning of PostgreSQL is taken, on
//! one leader: a transaction that begins after another was acknowledged sees it, at each of them.
//!
//! Time and memory grow with the length of the history, lists that were read included; only the search for a short circle
//! among transactions that are caught in one is bounded by a number of tries instead. Values must not be appended twice to
//! one key.

use std::fmt;

use clap::ValueEnum;
use trunkline_shared::cluster::Moment;

mod cycles;
mod edges;
pub mod elle;
mod observed;
pub mod parted;
#[cfg(test)]
mod tests;

/// The number of a list.
pub type Key = i32;
/// What is appended.
pub type Value = i64;

/// What the clients of one run did and were told, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// All of their transactions; those whose end was not asked for are failed ones.
    pub transactions: Vec<Transaction>,
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Whose it was.
    pub client: i32,
    /// When its begin was asked for.
    pub begin: Moment,
    /// When its outcome was told, or given up.
    pub end: Moment,
    /// What the client knows of it.
    pub status: Status,
    /// What it did, in its order: appends that were asked for, reads that were answered.
    pub operations: Vec<Operation>,
}

/// What a client knows of the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is committed.
    Ok,
    /// It is not, and never will be.
    Failed,
    /// Either.
    Unknown,
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A value was put at the end of a list.
    Append(Key, Value),
    /// A list was read; one that is not there is empty.
    Read(Key, Vec<Value>),
}

/// The isolation level that was asked for, as PostgreSQL keeps it; a later one forbids all that an earlier one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// Each statement sees what was committed before it
    ReadCommitted,
    /// Snapshot isolation
    RepeatableRead,
    /// As one after another, in the order of real time
    Serializable,
}

/// What may be wrong with a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Write cycle: transactions appended each behind the other.
    G0,
    /// Aborted read: a value of a transaction that failed.
    G1a,
    /// Intermediate read: a value that its transaction had not finished with.
    G1b,
    /// Circular flow: a circle of appends and reads of what was appended.
    G1c,
    /// Read skew: a circle of which one step is a read that missed a value.
    GSingle,
    /// A circle with several such reads, none right behind another: no snapshot allows it either.
    GNonadjacent,
    /// Write skew: a circle with two such reads one behind the other.
    G2Item,
    /// A transaction did not read what it had appended itself.
    Internal,
    /// A value that nobody appended.
    GarbageRead,
    /// A value that was acknowledged and is not there later.
    LostAppend,
    /// A value that was appended once and is there twice.
    DuplicateAppend,
    /// Two reads of one list of which neither begins with the other.
    IncompatibleOrder,
    /// A read that missed what was acknowledged before its transaction began.
    StaleRead,
}

impl Kind {
    /// The weakest level that forbids it.
    pub fn forbidden_from(self) -> Level {
        match self {
            Kind::G0
            | Kind::G1a
            | Kind::G1b
            | Kind::G1c
            | Kind::Internal
            | Kind::GarbageRead
            | Kind::LostAppend
            | Kind::DuplicateAppend
            | Kind::IncompatibleOrder
            | Kind::StaleRead => Level::ReadCommitted,
            Kind::GSingle | Kind::GNonadjacent => Level::RepeatableRead,
            Kind::G2Item => Level::Serializable,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::G0 => "G0",
            Kind::G1a => "G1a",
            Kind::G1b => "G1b",
            Kind::G1c => "G1c",
            Kind::GSingle => "G-single",
            Kind::GNonadjacent => "G-nonadjacent",
            Kind::G2Item => "G2-item",
            Kind::Internal => "internal",
            Kind::GarbageRead => "garbage read",
            Kind::LostAppend => "lost append",
            Kind::DuplicateAppend => "duplicate append",
            Kind::IncompatibleOrder => "incompatible order",
            Kind::StaleRead => "stale read",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// What it is.
    pub kind: Kind,
    /// Whether it is a circle only because a transaction had ended before another began.
    pub is_realtime: bool,
    /// How it is known: a line per step.
    pub story: Vec<String>,
}

impl Anomaly {
    /// Its name as Elle gives it.
    pub fn name(&self) -> String {
        match self.is_realtime {
            true => format!("{}-realtime", self.kind),
            false => self.kind.to_string(),
        }
    }

    /// Whether this level forbids it.
    pub fn is_forbidden(&self, level: Level) -> bool {
        self.kind.forbidden_from() <= level
    }
}

/// What in a history this level forbids. None if nothing does; otherwise not every one, but of each set of transactions
/// that are caught in one circle at least one, and a short one.
pub fn anomalies(history: &History, level: Level) -> Vec<Anomaly> {
    let (observed, mut found) = observed::look(history);
    let edges = edges::between(history, &observed);
    found.extend(cycles::find(history, &edges, level));
    found.retain(|anomaly| anomaly.is_forbidden(level));
    found.sort_by_key(|anomaly| (anomaly.kind, anomaly.is_realtime, anomaly.story.len()));
    found
}

/// How stories name a transaction: by its place, its client, and its times since the first began.
fn name(history: &History, place: usize) -> String {
    let first = history.transactions.iter().map(|one| one.begin).min();
    let Some(one) = history.transactions.get(place) else {
        return format!("T{place}");
    };
    let since = |moment: Moment| moment.since(first.unwrap_or_default()).as_secs_f64();
    let status = match one.status {
        Status::Ok => "",
        Status::Failed => ", failed",
        Status::Unknown => ", unknown",
    };
    let (client, begin, end) = (one.client, since(one.begin), since(one.end));
    format!("T{place} (client {client}, {begin:.3} s to {end:.3} s{status})")
}

/// A list in a story: its end, since that is where lists differ.
fn tail(list: &[Value]) -> String {
    const SHOWN: usize = 6;
    let left_off = list.len().saturating_sub(SHOWN);
    let shown: Vec<_> = list[left_off..].iter().map(Value::to_string).collect();
    let before = if left_off > 0 { "... " } else { "" };
    format!("[{before}{}]", shown.join(" "))
}
