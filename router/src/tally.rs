//! What the sessions of one user in one database have done on one core: numbers that this core counts, without a lock
//! and without a fence, and that others read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use trunkline_shared::service::metrics::DEFAULT_BUCKETS;

/// Every bucket of a histogram, the last one without a bound.
pub const BUCKETS: usize = DEFAULT_BUCKETS.len() + 1;

/// Upper bounds in nanoseconds.
const BOUNDS: [u64; DEFAULT_BUCKETS.len()] = {
    let mut bounds = [0; DEFAULT_BUCKETS.len()];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = (DEFAULT_BUCKETS[at] * 1e9 + 0.5) as u64;
        at += 1;
    }
    bounds
};

/// A number that one thread counts.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds. Of several threads that do so at once some would be lost: one does.
    pub fn add(&self, more: u64) {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(more), Ordering::Relaxed);
    }

    /// Adds a length.
    pub fn add_length(&self, more: usize) {
        self.add(u64::try_from(more).unwrap_or(u64::MAX));
    }

    /// What it came to.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, each time.
#[derive(Debug, Default)]
pub struct Times {
    buckets: [Count; BUCKETS],
    nanos: Count,
}

impl Times {
    /// Notes one.
    pub fn note(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let at = BOUNDS.partition_point(|bound| *bound < nanos);
        self.buckets[at].add(1);
        self.nanos.add(nanos);
    }

    fn take_over(&self, more: &TimesRead) {
        for (own, more) in self.buckets.iter().zip(more.buckets) {
            own.add(more);
        }
        self.nanos.add(more.nanos);
    }

    fn read(&self) -> TimesRead {
        TimesRead {
            buckets: std::array::from_fn(|at| self.buckets[at].get()),
            nanos: self.nanos.get(),
        }
    }
}

/// The numbers.
#[derive(Debug, Default)]
pub struct Tally {
    /// Servers given to clients.
    pub assignments: Count,
    /// Transactions that ended.
    pub transactions: Count,
    /// Requests that were answered to their ReadyForQuery.
    pub queries: Count,
    /// Bytes that came from clients.
    pub received: Count,
    /// Bytes of servers that went on to clients.
    pub sent: Count,
    /// Parse messages of clients.
    pub client_parses: Count,
    /// Parse messages that servers were sent.
    pub server_parses: Count,
    /// Bind messages of clients.
    pub binds: Count,
    /// Log-ins.
    pub logins: Count,
    /// How long clients waited for a server; nothing where one was at hand.
    pub wait: Times,
    /// How long a server was a client's at a time.
    pub checkout: Times,
    /// From a request to the last ReadyForQuery that was outstanding.
    pub query: Times,
    /// From the first request to the end of its transaction.
    pub transaction: Times,
    ended: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    /// Counts a session that ended by an error, by its short name.
    pub fn ended(&self, reason: &'static str) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended.entry(reason).or_default() += 1;
    }

    /// Counts what was counted elsewhere, and is not any more.
    pub fn take_over(&self, more: &Totals) {
        for (own, more) in [
            (&self.assignments, more.assignments),
            (&self.transactions, more.transactions),
            (&self.queries, more.queries),
            (&self.received, more.received),
            (&self.sent, more.sent),
            (&self.client_parses, more.client_parses),
            (&self.server_parses, more.server_parses),
            (&self.binds, more.binds),
            (&self.logins, more.logins),
        ] {
            own.add(more);
        }
        self.wait.take_over(&more.wait);
        self.checkout.take_over(&more.checkout);
        self.query.take_over(&more.query);
        self.transaction.take_over(&more.transaction);
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in &more.ended {
            *ended.entry(reason).or_default() += count;
        }
    }

    /// What it came to.
    pub fn read(&self) -> Totals {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        Totals {
            assignments: self.assignments.get(),
            transactions: self.transactions.get(),
            queries: self.queries.get(),
            received: self.received.get(),
            sent: self.sent.get(),
            client_parses: self.client_parses.get(),
            server_parses: self.server_parses.get(),
            binds: self.binds.get(),
            logins: self.logins.get(),
            wait: self.wait.read(),
            checkout: self.checkout.read(),
            query: self.query.read(),
            transaction: self.transaction.read(),
            ended: ended.clone(),
        }
    }
}

/// Times as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimesRead {
    /// How many there were in each bucket.
    pub buckets: [u64; BUCKETS],
    /// All of them together, nanoseconds.
    pub nanos: u64,
}

impl TimesRead {
    fn add(&mut self, other: &TimesRead) {
        for (own, more) in self.buckets.iter_mut().zip(other.buckets) {
            *own += more;
        }
        self.nanos += other.nanos;
    }

    /// All of them together, microseconds.
    pub fn micros(&self) -> u64 {
        self.nanos / 1000
    }
}

/// The numbers of a tally as they were read, or of several together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// As in [`Tally`].
    pub assignments: u64,
    /// As in [`Tally`].
    pub transactions: u64,
    /// As in [`Tally`].
    pub queries: u64,
    /// As in [`Tally`].
    pub received: u64,
    /// As in [`Tally`].
    pub sent: u64,
    /// As in [`Tally`].
    pub client_parses: u64,
    /// As in [`Tally`].
    pub server_parses: u64,
    /// As in [`Tally`].
    pub binds: u64,
    /// As in [`Tally`].
    pub logins: u64,
    /// As in [`Tally`].
    pub wait: TimesRead,
    /// As in [`Tally`].
    pub checkout: TimesRead,
    /// As in [`Tally`].
    pub query: TimesRead,
    /// As in [`Tally`].
    pub transaction: TimesRead,
    /// Sessions ended by errors, by the short names of those.
    pub ended: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// Adds others.
    pub fn add(&mut self, other: &Totals) {
        self.assignments += other.assignments;
        self.transactions += other.transactions;
        self.queries += other.queries;
        self.received += other.received;
        self.sent += other.sent;
        self.client_parses += other.client_parses;
        self.server_parses += other.server_parses;
        self.binds += other.binds;
        self.logins += other.logins;
        self.wait.add(&other.wait);
        self.checkout.add(&other.checkout);
        self.query.add(&other.query);
        self.transaction.add(&other.transaction);
        for (reason, count) in &other.ended {
            *self.ended.entry(reason).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_the_first_bucket_that_holds_it() {
        let times = Times::default();
        for micros in [0, 50, 51, 60_000_000, 60_000_001] {
            times.note(Duration::from_micros(micros));
        }
        let read = times.read();
        assert_eq!(read.buckets[..2], [2, 1]);
        assert_eq!(read.buckets[BUCKETS - 2..], [1, 1]);
        assert_eq!(read.micros(), 120_000_102);
    }

    #[test]
    fn totals_of_cores_add_up() {
        let tally = Tally::default();
        tally.queries.add(2);
        tally.ended("too_much");
        let mut all = tally.read();
        all.add(&tally.read());
        assert_eq!((all.queries, all.ended["too_much"]), (4, 2));
    }

    #[test]
    fn a_tally_that_takes_another_over_has_all_of_it() {
        let tally = Tally::default();
        for (own, count) in [
            (&tally.assignments, 1),
            (&tally.transactions, 2),
            (&tally.queries, 3),
            (&tally.received, 4),
            (&tally.sent, 5),
            (&tally.client_parses, 6),
            (&tally.server_parses, 7),
            (&tally.binds, 8),
            (&tally.logins, 9),
        ] {
            own.add(count);
        }
        let times = [
            &tally.wait,
            &tally.checkout,
            &tally.query,
            &tally.transaction,
        ];
        for (millis, times) in (1..).zip(times) {
            times.note(Duration::from_millis(millis));
        }
        tally.ended("too_much");
        let other = Tally::default();
        other.take_over(&tally.read());
        assert_eq!(other.read(), tally.read());
    }
}
