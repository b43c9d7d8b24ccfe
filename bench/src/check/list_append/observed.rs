//! What reads tell by themselves: the order of each list, who is known to have committed and since when, and everything
//! that is wrong without a circle.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_shared::cluster::Moment;

use super::{Anomaly, History, Key, Kind, Operation, Status, Transaction, Value, name, tail};

/// Where a value comes from.
#[derive(Clone, Copy, Debug)]
struct Source {
    transaction: usize,
    /// The place of the step in its transaction.
    step: usize,
    /// Whether its transaction appended nothing to the list after it.
    is_last: bool,
}

/// One read of a transaction that is known to have committed.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Whose.
    pub transaction: usize,
    pub key: Key,
    pub list: &'a [Value],
    /// Whether its list begins the longest one of the key.
    pub is_in_order: bool,
}

/// What was observed.
#[derive(Debug, Default)]
pub struct Observed<'a> {
    /// Since when each transaction is known to have committed, if it is.
    pub known: Vec<Option<Moment>>,
    /// The longest list of each key.
    pub order: BTreeMap<Key, &'a [Value]>,
    /// Every read that counts.
    pub reads: Vec<Read<'a>>,
    sources: BTreeMap<(Key, Value), Source>,
}

impl Observed<'_> {
    /// Who appended a value, if that is known to have committed.
    pub fn committed_writer(&self, key: Key, value: Value) -> Option<usize> {
        let writer = self.sources.get(&(key, value))?.transaction;
        self.known[writer].map(|_| writer)
    }

    /// Values of transactions that are known to have committed which no list in order shows: they come behind the end of
    /// the longest one.
    pub fn unplaced(&self) -> Vec<(Key, Value)> {
        let placed = self.order.iter();
        let placed = placed.flat_map(|(key, list)| list.iter().map(|value| (*key, *value)));
        let placed: BTreeSet<_> = placed.collect();
        let all = self.sources.iter();
        let known = all.filter(|(_, source)| self.known[source.transaction].is_some());
        let left = known.filter(|(at, _)| !placed.contains(*at));
        left.map(|(at, _)| *at).collect()
    }

    fn known_at(&self, key: Key, value: Value) -> Option<Moment> {
        self.known[self.committed_writer(key, value)?]
    }
}

/// Looks at every read once or twice.
pub fn look(history: &History) -> (Observed<'_>, Vec<Anomaly>) {
    let sources = sources(history);
    let known = known(history, &sources);
    let mut observed = Observed {
        known,
        sources,
        ..Observed::default()
    };
    observed.reads = committed_reads(history, &observed.known);
    for read in &observed.reads {
        let longest = observed.order.entry(read.key).or_insert(read.list);
        if read.list.len() > longest.len() {
            *longest = read.list;
        }
    }
    for read in &mut observed.reads {
        read.is_in_order = observed.order[&read.key].starts_with(read.list);
    }
    let mut found = internal(history, &observed);
    found.extend(values(history, &observed));
    found.extend(orders(history, &observed));
    found.extend(steps(history, &observed));
    found.extend(missed(history, &observed));
    found.extend(lost(history, &observed));
    (observed, found)
}

fn sources(history: &History) -> BTreeMap<(Key, Value), Source> {
    let mut sources = BTreeMap::new();
    for (transaction, one) in history.transactions.iter().enumerate() {
        let mut later = BTreeSet::new();
        for (step, operation) in one.operations.iter().enumerate().rev() {
            if let Operation::Append(key, value) = *operation {
                let is_last = later.insert(key);
                let source = Source {
                    transaction,
                    step,
                    is_last,
                };
                sources.insert((key, value), source);
            }
        }
    }
    sources
}

/// A transaction of unknown outcome has committed once somebody who has committed saw a value of it. The readers are asked
/// in the order in which they are known, so that the first to have seen it says since when.
fn known(history: &History, sources: &BTreeMap<(Key, Value), Source>) -> Vec<Option<Moment>> {
    let all = &history.transactions;
    let told = |one: &Transaction| (one.status == Status::Ok).then_some(one.end);
    let mut known: Vec<_> = all.iter().map(told).collect();
    let mut readers: Vec<_> = (0..all.len()).filter(|it| known[*it].is_some()).collect();
    readers.sort_by_key(|reader| all[*reader].end);
    for reader in readers {
        let mut waiting = vec![reader];
        while let Some(place) = waiting.pop() {
            let seen = reads(&all[place])
                .flat_map(|(key, list)| list.iter().map(move |value| (key, *value)))
                .filter_map(|at| sources.get(&at));
            for source in seen {
                let writer = source.transaction;
                if all[writer].status == Status::Unknown && known[writer].is_none() {
                    known[writer] = Some(all[reader].end);
                    waiting.push(writer);
                }
            }
        }
    }
    known
}

fn reads(one: &Transaction) -> impl Iterator<Item = (Key, &[Value])> {
    one.operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Read(key, list) => Some((*key, list.as_slice())),
            Operation::Append(..) => None,
        })
}

fn committed_reads<'a>(history: &'a History, known: &[Option<Moment>]) -> Vec<Read<'a>> {
    let committed = history.transactions.iter().enumerate();
    let committed = committed.filter(|(place, _)| known[*place].is_some());
    let all = committed.flat_map(|(transaction, one)| {
        reads(one).map(move |(key, list)| Read {
            transaction,
            key,
            list,
            is_in_order: true,
        })
    });
    all.collect()
}

fn anomaly(kind: Kind, line: String) -> Anomaly {
    Anomaly {
        kind,
        is_realtime: false,
        story: vec![line],
    }
}

/// Reads that do not end with what their own transaction had appended until then, or show what it appended only later.
fn internal(history: &History, observed: &Observed<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for (place, one) in history.transactions.iter().enumerate() {
        let mut own: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
        let is_known = observed.known[place].is_some();
        for operation in one.operations.iter().filter(|_| is_known) {
            match operation {
                Operation::Append(key, value) => own.entry(*key).or_default().push(*value),
                Operation::Read(key, list) => {
                    let appended = own.get(key).map_or(&[][..], Vec::as_slice);
                    let before = list.strip_suffix(appended);
                    let is_own = |value: &Value| {
                        let source = observed.sources.get(&(*key, *value));
                        source.is_some_and(|source| source.transaction == place)
                    };
                    if before.is_none_or(|before| before.iter().any(is_own)) {
                        let (who, own) = (name(history, place), tail(appended));
                        let line = format!(
                            "{who} had appended {own} to key {key} and read {}",
                            tail(list)
                        );
                        found.push(anomaly(Kind::Internal, line));
                    }
                }
            }
        }
    }
    found
}

/// Values that ought not to be there: each told once.
fn values(history: &History, observed: &Observed<'_>) -> Vec<Anomaly> {
    let mut found = BTreeMap::new();
    for read in &observed.reads {
        let mut seen = BTreeSet::new();
        for value in read.list {
            if !seen.insert(*value) {
                let what = || format!("{} twice", saw(history, read, *value));
                tell(&mut found, Kind::DuplicateAppend, (read.key, *value), what);
            }
            let Some(source) = observed.sources.get(&(read.key, *value)) else {
                let what = || format!("{}, which nobody appended", saw(history, read, *value));
                tell(&mut found, Kind::GarbageRead, (read.key, *value), what);
                continue;
            };
            if history.transactions[source.transaction].status == Status::Failed {
                let writer = || name(history, source.transaction);
                let saw = || saw(history, read, *value);
                let what = || format!("{}, which {} appended", saw(), writer());
                tell(&mut found, Kind::G1a, (read.key, *value), what);
            }
        }
        let of_others = read.list.iter().rev().find_map(|value| {
            let source = observed.sources.get(&(read.key, *value))?;
            (source.transaction != read.transaction).then_some((*value, *source))
        });
        if let Some((value, source)) = of_others
            && !source.is_last
        {
            let writer = || name(history, source.transaction);
            let saw = || saw(history, read, value);
            let what = || format!("{} as the last, and {} appended more", saw(), writer());
            tell(&mut found, Kind::G1b, (read.key, value), what);
        }
    }
    found.into_values().collect()
}

/// Each value once: a list that is read a thousand times bears its fault a thousand times.
fn tell(
    found: &mut BTreeMap<(Kind, (Key, Value)), Anomaly>,
    kind: Kind,
    what: (Key, Value),
    line: impl FnOnce() -> String,
) {
    let told = found.entry((kind, what));
    told.or_insert_with(|| anomaly(kind, line()));
}

fn saw(history: &History, read: &Read<'_>, value: Value) -> String {
    let reader = name(history, read.transaction);
    format!("{reader} read {value} in key {}", read.key)
}

/// Lists of which neither begins with the other: one pair for each key.
fn orders(history: &History, observed: &Observed<'_>) -> Vec<Anomaly> {
    let mut first: BTreeMap<Key, &Read<'_>> = BTreeMap::new();
    for read in observed.reads.iter().filter(|read| !read.is_in_order) {
        first.entry(read.key).or_insert(read);
    }
    let pair = |(key, read): (&Key, &&Read<'_>)| {
        let longest = observed.order[key];
        let mut others = observed.reads.iter();
        let other = others.find(|other| other.key == *key && other.list == longest);
        let other = other.map_or(read.transaction, |other| other.transaction);
        let same = read.list.iter().zip(longest);
        let same = same.take_while(|(one, other)| one == other).count();
        let line = format!(
            "{} read key {key} from its place {same} on as {}, and {} as {}",
            name(history, read.transaction),
            tail(&read.list[same..]),
            name(history, other),
            tail(&longest[same..]),
        );
        anomaly(Kind::IncompatibleOrder, line)
    };
    first.iter().map(pair).collect()
}

/// Values of one transaction that stand in another order than it appended them.
fn steps(history: &History, observed: &Observed<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for (key, list) in &observed.order {
        for pair in list.windows(2) {
            let of = |value: Value| observed.sources.get(&(*key, value));
            if let (Some(first), Some(next)) = (of(pair[0]), of(pair[1]))
                && first.transaction == next.transaction
                && first.step > next.step
            {
                let (who, shown) = (name(history, first.transaction), tail(pair));
                let line = format!("{who} appended to key {key} what is read there as {shown}");
                found.push(anomaly(Kind::IncompatibleOrder, line));
            }
        }
    }
    found
}

/// Reads without a value of the list that was acknowledged before their transaction began: one for each key.
fn missed(history: &History, observed: &Observed<'_>) -> Vec<Anomaly> {
    let mut found = BTreeMap::new();
    let earliest: BTreeMap<Key, Vec<Option<(Moment, Value)>>> = observed
        .order
        .iter()
        .map(|(key, list)| (*key, earliest_behind(*key, list, observed)))
        .collect();
    for read in observed.reads.iter().filter(|read| read.is_in_order) {
        let begin = history.transactions[read.transaction].begin;
        let Some((at, value)) = earliest[&read.key].get(read.list.len()).copied().flatten() else {
            continue;
        };
        if at < begin && !found.contains_key(&read.key) {
            let (reader, key) = (name(history, read.transaction), read.key);
            let writer = observed.committed_writer(key, value);
            let writer = writer.map_or(String::new(), |writer| name(history, writer));
            let line = format!(
                "{reader} read key {key} without {value}, which was committed before: {writer}"
            );
            found.insert(key, anomaly(Kind::StaleRead, line));
        }
    }
    found.into_values().collect()
}

/// For each place of a list, which value from there on was known earliest to be committed.
fn earliest_behind(
    key: Key,
    list: &[Value],
    observed: &Observed<'_>,
) -> Vec<Option<(Moment, Value)>> {
    let mut earliest = None;
    let mut all: Vec<_> = list
        .iter()
        .rev()
        .map(|value| {
            let own = observed.known_at(key, *value).map(|at| (at, *value));
            earliest = [earliest, own].into_iter().flatten().min();
            earliest
        })
        .collect();
    all.reverse();
    all
}

/// Acknowledged values that a later read does not show: those that are in no list, and those that are not in a list out
/// of order.
fn lost(history: &History, observed: &Observed<'_>) -> Vec<Anomaly> {
    let begin = |read: &Read<'_>| history.transactions[read.transaction].begin;
    let mut last: BTreeMap<Key, Read<'_>> = BTreeMap::new();
    for read in &observed.reads {
        let latest = last.entry(read.key).or_insert(*read);
        if begin(read) > begin(latest) {
            *latest = *read;
        }
    }
    let within =
        |key: &Key, list: &[Value]| -> Vec<_> { list.iter().map(|value| (*key, *value)).collect() };
    let shown = last.iter().flat_map(|(key, read)| within(key, read.list));
    let shown: BTreeSet<_> = shown.collect();
    let ordered = observed
        .order
        .iter()
        .flat_map(|(key, list)| within(key, list));
    let ordered: BTreeSet<_> = ordered.collect();
    let mut found = BTreeMap::new();
    for (at, source) in observed
        .sources
        .iter()
        .filter(|(at, _)| !shown.contains(*at))
    {
        let Some(read) = last.get(&at.0) else {
            continue;
        };
        let known = observed.known[source.transaction];
        let is_told_as_stale = read.is_in_order && ordered.contains(at);
        if known.is_some_and(|known| known < begin(read)) && !is_told_as_stale {
            let line = format!(
                "{} appended {} to key {}, and {} read {} without it",
                name(history, source.transaction),
                at.1,
                at.0,
                name(history, read.transaction),
                tail(read.list),
            );
            found.insert(*at, anomaly(Kind::LostAppend, line));
        }
    }
    found.into_values().collect()
}
