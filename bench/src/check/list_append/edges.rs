//! Which transaction must have come before which, and why.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_shared::cluster::Moment;

use super::observed::Observed;
use super::{History, Key, Value};

/// Why one comes before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It appended the first of these, the other the second, right behind it.
    Wrote { key: Key, values: [Value; 2] },
    /// The other read a list that ended with its value.
    Read { key: Key, value: Value },
    /// It read a list before the other appended this value to it.
    Missed { key: Key, value: Value },
    /// It had ended at this moment.
    Ended,
    /// One moment comes before the next.
    Clock,
    /// The other began after this moment.
    Began,
}

impl Why {
    /// Whether both appended.
    pub fn is_wrote(&self) -> bool {
        matches!(self, Why::Wrote { .. })
    }

    /// Whether the other read what the one appended.
    pub fn is_read(&self) -> bool {
        matches!(self, Why::Read { .. })
    }

    /// Whether it is an anti-dependency: the only kind that snapshots leave open.
    pub fn is_missed(&self) -> bool {
        matches!(self, Why::Missed { .. })
    }

    /// Whether the other stands on what the one left behind.
    pub fn is_flow(&self) -> bool {
        self.is_wrote() || self.is_read()
    }

    /// Whether lists alone tell it.
    pub fn is_untimed(&self) -> bool {
        self.is_flow() || self.is_missed()
    }

    /// Whether it leads from a moment to a transaction.
    pub fn is_began(&self) -> bool {
        matches!(self, Why::Began)
    }
}

/// One relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The earlier one.
    pub from: usize,
    /// The later one.
    pub to: usize,
    pub why: Why,
}

/// All relations. Places beyond those of the transactions are moments: a chain of them keeps the relations of real time
/// as few as there are transactions.
#[derive(Debug)]
pub struct Edges {
    pub transactions: usize,
    pub all: Vec<Edge>,
}

/// What the lists and the clock tell.
pub fn between(history: &History, observed: &Observed<'_>) -> Edges {
    let mut all = Vec::new();
    for (key, list) in &observed.order {
        all.extend(of_list(*key, list, observed));
    }
    for read in observed.reads.iter().filter(|read| read.is_in_order) {
        let (key, reader) = (read.key, read.transaction);
        let last = read.list.last();
        let last = last.and_then(|value| Some((*value, observed.committed_writer(key, *value)?)));
        // What a transaction appended itself hides where it stood before, which its append tells.
        if last.is_some_and(|(_, writer)| writer == reader) {
            continue;
        }
        if let Some((value, from)) = last {
            let why = Why::Read { key, value };
            all.push(Edge {
                from,
                to: reader,
                why,
            });
        }
        let rest = &observed.order[&key][read.list.len()..];
        let mut rest = rest.iter();
        let next = rest.find_map(|value| Some((*value, observed.committed_writer(key, *value)?)));
        if let Some((value, to)) = next
            && to != reader
        {
            let why = Why::Missed { key, value };
            all.push(Edge {
                from: reader,
                to,
                why,
            });
        }
    }
    all.extend(of_unplaced(observed));
    let transactions = history.transactions.len();
    all.extend(of_clock(history, &observed.known));
    Edges { transactions, all }
}

fn of_list(key: Key, list: &[Value], observed: &Observed<'_>) -> Vec<Edge> {
    let written = list
        .iter()
        .filter_map(|value| Some((*value, observed.committed_writer(key, *value)?)));
    let written: Vec<_> = written.collect();
    let pairs = written.windows(2).filter(|pair| pair[0].1 != pair[1].1);
    pairs
        .map(|pair| Edge {
            from: pair[0].1,
            to: pair[1].1,
            why: Why::Wrote {
                key,
                values: [pair[0].0, pair[1].0],
            },
        })
        .collect()
}

/// A value that no list shows comes behind the end of the longest one, so whoever read that has missed it.
fn of_unplaced(observed: &Observed<'_>) -> Vec<Edge> {
    let unplaced = observed.unplaced();
    let keys: BTreeSet<Key> = unplaced.iter().map(|(key, _)| *key).collect();
    let mut readers: BTreeMap<Key, BTreeSet<usize>> = BTreeMap::new();
    for read in observed
        .reads
        .iter()
        .filter(|read| keys.contains(&read.key))
    {
        if read.is_in_order && read.list.len() == observed.order[&read.key].len() {
            readers
                .entry(read.key)
                .or_default()
                .insert(read.transaction);
        }
    }
    let mut all = Vec::new();
    for (key, value) in unplaced {
        let Some(to) = observed.committed_writer(key, value) else {
            continue;
        };
        let others = readers.get(&key).into_iter().flatten();
        all.extend(others.filter(|from| **from != to).map(|from| Edge {
            from: *from,
            to,
            why: Why::Missed { key, value },
        }));
    }
    all
}

/// Who is known to have committed comes before whoever began later.
fn of_clock(history: &History, known: &[Option<Moment>]) -> Vec<Edge> {
    let first = history.transactions.len();
    let mut ends: Vec<(Moment, usize)> = known
        .iter()
        .enumerate()
        .filter_map(|(place, at)| Some(((*at)?, place)))
        .collect();
    ends.sort_unstable();
    let mut all = Vec::new();
    for (moment, (_, place)) in ends.iter().enumerate() {
        all.push(Edge {
            from: *place,
            to: first + moment,
            why: Why::Ended,
        });
        if moment > 0 {
            all.push(Edge {
                from: first + moment - 1,
                to: first + moment,
                why: Why::Clock,
            });
        }
    }
    for (place, one) in history.transactions.iter().enumerate() {
        let before = ends.partition_point(|(end, _)| *end < one.begin);
        if before > 0 && known[place].is_some() {
            all.push(Edge {
                from: first + before - 1,
                to: place,
                why: Why::Began,
            });
        }
    }
    all
}
