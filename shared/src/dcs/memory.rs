//! The in-memory store of the tests and the simulation.
//!
//! [`Store`] is pure: revisions, leases and a bounded history of changes, with the time as an argument. It
//! behaves as etcd does where callers can tell: one revision per writing transaction, one for all keys of an
//! expired lease, none for a transaction that changed nothing. [`MemoryDcs`] puts it behind the
//! [`super::Dcs`] trait with the real clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{LeaseId, Revision};
use crate::cluster::Moment;

mod served;

pub use served::MemoryDcs;

/// How many changes a store remembers for its watches unless told otherwise.
pub const DEFAULT_HISTORY: usize = 10_000;

/// A value with what the store knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<V> {
    /// The value.
    pub value: V,
    /// The revision of its last write.
    pub mod_revision: Revision,
    /// The lease it hangs on, 0 if none.
    pub lease: LeaseId,
}

/// A condition of a transaction; see [`super::Compare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition<K, V> {
    /// The key does not exist.
    Absent(K),
    /// The key exists and was last written at this revision.
    ModRevision(K, Revision),
    /// The key exists and holds this value.
    Value(K, V),
    /// The key exists and hangs on this lease.
    Lease(K, LeaseId),
}

/// A step of a transaction; see [`super::Operation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<K, V> {
    /// Write the key, hanging it on a lease (0: on none).
    Put(K, V, LeaseId),
    /// Remove the key if it exists.
    Delete(K),
    /// Read the key.
    Get(K),
}

/// A change that the history remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreChange<K, V> {
    /// When: several changes of one transaction share a revision.
    pub revision: Revision,
    /// The key.
    pub key: K,
    /// What it holds now; `None` if it was deleted.
    pub held: Option<Held<V>>,
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<K, V> {
    /// The store's revision after it.
    pub revision: Revision,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// What its `Get`s read; absent keys are left out.
    pub read: Vec<(K, Held<V>)>,
}

/// Why a store refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The lease does not exist.
    #[error("no such lease: {0:x}")]
    LeaseGone(LeaseId),
    /// The history before this revision is gone.
    #[error("history up to revision {0} is compacted away")]
    Compacted(Revision),
    /// One transaction writes one key twice.
    #[error("a transaction may write a key only once")]
    DuplicateKey,
}

#[derive(Clone, Debug)]
struct Lease<K> {
    ttl: Duration,
    deadline: Moment,
    keys: BTreeSet<K>,
}

/// Keys with revisions and leases. No clock, no I/O.
#[derive(Clone, Debug)]
pub struct Store<K, V> {
    revision: Revision,
    last_lease: LeaseId,
    entries: BTreeMap<K, Held<V>>,
    leases: BTreeMap<LeaseId, Lease<K>>,
    /// No lease ends before this.
    earliest_deadline: Option<Moment>,
    history: VecDeque<StoreChange<K, V>>,
    history_limit: usize,
    compacted: Revision,
}

impl<K: Ord + Clone, V: Clone + PartialEq> Default for Store<K, V> {
    fn default() -> Self {
        Self::new(DEFAULT_HISTORY)
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Store<K, V> {
    /// An empty store that remembers at least the last `history_limit` changes.
    pub fn new(history_limit: usize) -> Self {
        Self {
            revision: 1,
            last_lease: 0,
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            earliest_deadline: None,
            history: VecDeque::new(),
            history_limit,
            compacted: 0,
        }
    }

    /// The revision of the last write.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Everything, in order of the keys.
    pub fn entries(&self) -> &BTreeMap<K, Held<V>> {
        &self.entries
    }

    /// One key.
    pub fn read(&self, key: &K) -> Option<&Held<V>> {
        self.entries.get(key)
    }

    /// A new lease.
    pub fn grant(&mut self, now: Moment, ttl: Duration) -> LeaseId {
        self.last_lease += 1;
        let deadline = now + ttl;
        self.leases.insert(
            self.last_lease,
            Lease {
                ttl,
                deadline,
                keys: BTreeSet::new(),
            },
        );
        self.earliest_deadline = Some(self.earliest_deadline.map_or(deadline, |e| e.min(deadline)));
        self.last_lease
    }

    /// Renews a lease for its whole TTL, which is returned.
    ///
    /// # Errors
    /// If it has ended.
    pub fn keep_alive(&mut self, now: Moment, lease: LeaseId) -> Result<Duration, StoreError> {
        self.expire(now);
        match self.leases.get_mut(&lease) {
            None => Err(StoreError::LeaseGone(lease)),
            Some(found) => {
                found.deadline = now + found.ttl;
                Ok(found.ttl)
            }
        }
    }

    /// Ends a lease and deletes its keys.
    pub fn revoke(&mut self, lease: LeaseId) {
        if let Some(ended) = self.leases.remove(&lease)
            && !ended.keys.is_empty()
        {
            self.revision += 1;
            for key in ended.keys {
                self.entries.remove(&key);
                self.remember(key, None);
            }
        }
    }

    /// Ends the leases whose time has passed; how many changes that made.
    pub fn expire(&mut self, now: Moment) -> usize {
        if self.earliest_deadline.is_none_or(|earliest| now < earliest) {
            return 0;
        }
        let ended: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline <= now)
            .map(|(id, lease)| (*id, lease.keys.len()))
            .collect();
        for (id, _) in &ended {
            self.revoke(*id);
        }
        self.earliest_deadline = self.leases.values().map(|lease| lease.deadline).min();
        ended.iter().map(|(_, keys)| keys).sum()
    }

    /// A moment before which no lease ends; `None` without leases. Exact after [`Store::expire`].
    pub fn next_deadline(&self) -> Option<Moment> {
        self.earliest_deadline
    }

    /// One transaction.
    ///
    /// # Errors
    /// If a put names a lease that has ended, or a key is written twice; nothing is done then.
    pub fn commit(
        &mut self,
        now: Moment,
        when: &[Condition<K, V>],
        then: &[Step<K, V>],
        otherwise: &[Step<K, V>],
    ) -> Result<Outcome<K, V>, StoreError> {
        self.expire(now);
        let succeeded = when.iter().all(|condition| self.holds(condition));
        let steps = if succeeded { then } else { otherwise };
        self.check(steps)?;
        let before = self.revision;
        let mut read = Vec::new();
        for step in steps {
            match step {
                Step::Get(key) => {
                    if let Some(held) = self.entries.get(key) {
                        read.push((key.clone(), held.clone()));
                    }
                }
                Step::Delete(key) => {
                    if let Some(held) = self.entries.remove(key) {
                        self.revision = before + 1;
                        self.unhang(held.lease, key);
                        self.remember(key.clone(), None);
                    }
                }
                Step::Put(key, value, lease) => {
                    self.revision = before + 1;
                    self.put(key, value, *lease);
                }
            }
        }
        Ok(Outcome {
            revision: self.revision,
            succeeded,
            read,
        })
    }

    /// The changes after `revision`, oldest first.
    ///
    /// # Errors
    /// If some of them are forgotten.
    pub fn changes_after(
        &self,
        revision: Revision,
    ) -> Result<impl Iterator<Item = &StoreChange<K, V>>, StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let start = self.history.partition_point(|c| c.revision <= revision);
        Ok(self.history.range(start..))
    }

    /// Forgets the history up to and including `revision`.
    pub fn compact(&mut self, revision: Revision) {
        let end = self.history.partition_point(|c| c.revision <= revision);
        self.history.drain(..end);
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    fn holds(&self, condition: &Condition<K, V>) -> bool {
        match condition {
            Condition::Absent(key) => !self.entries.contains_key(key),
            Condition::ModRevision(key, revision) => self
                .entries
                .get(key)
                .is_some_and(|held| held.mod_revision == *revision),
            Condition::Value(key, value) => self
                .entries
                .get(key)
                .is_some_and(|held| held.value == *value),
            Condition::Lease(key, lease) => self
                .entries
                .get(key)
                .is_some_and(|held| held.lease == *lease),
        }
    }

    fn check(&self, steps: &[Step<K, V>]) -> Result<(), StoreError> {
        for (at, step) in steps.iter().enumerate() {
            let key = match step {
                Step::Get(_) => continue,
                Step::Delete(key) => key,
                Step::Put(key, _, lease) => {
                    if *lease != 0 && !self.leases.contains_key(lease) {
                        return Err(StoreError::LeaseGone(*lease));
                    }
                    key
                }
            };
            let is_repeated = steps.iter().take(at).any(|earlier| match earlier {
                Step::Get(_) => false,
                Step::Delete(other) | Step::Put(other, _, _) => other == key,
            });
            if is_repeated {
                return Err(StoreError::DuplicateKey);
            }
        }
        Ok(())
    }

    fn put(&mut self, key: &K, value: &V, lease: LeaseId) {
        let held = Held {
            value: value.clone(),
            mod_revision: self.revision,
            lease,
        };
        if let Some(old) = self.entries.insert(key.clone(), held.clone())
            && old.lease != lease
        {
            self.unhang(old.lease, key);
        }
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.insert(key.clone());
        }
        self.remember(key.clone(), Some(held));
    }

    fn unhang(&mut self, lease: LeaseId, key: &K) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }

    fn remember(&mut self, key: K, held: Option<Held<V>>) {
        self.history.push_back(StoreChange {
            revision: self.revision,
            key,
            held,
        });
        // Only whole revisions are forgotten: a watch that resumes must not get half a transaction.
        if self.history.len() > self.history_limit.saturating_mul(2)
            && let Some(last) = self.history.get(self.history_limit)
        {
            let forget = last.revision.min(self.revision - 1);
            self.compact(forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000_000)
    }

    fn store() -> Store<u32, u32> {
        Store::new(4)
    }

    #[test]
    fn a_transaction_that_changes_nothing_takes_no_revision() {
        let mut store = store();
        let before = store.revision();
        let out = store.commit(at(0), &[], &[Step::Delete(1), Step::Get(2)], &[]);
        assert_eq!(out.unwrap().revision, before);
        let out = store.commit(at(0), &[], &[Step::Put(1, 1, 0), Step::Put(2, 2, 0)], &[]);
        assert_eq!(out.unwrap().revision, before + 1);
        assert_eq!(store.read(&2).unwrap().mod_revision, before + 1);
        let twice = store.commit(at(0), &[], &[Step::Put(1, 1, 0), Step::Delete(1)], &[]);
        assert_eq!(twice, Err(StoreError::DuplicateKey));
    }

    #[test]
    fn the_keys_of_an_ended_lease_go_in_one_revision_and_only_theirs() {
        let mut store = store();
        let lease = store.grant(at(0), Duration::from_millis(100));
        let steps = [
            Step::Put(1, 1, lease),
            Step::Put(2, 2, lease),
            Step::Put(3, 3, 0),
        ];
        let revision = store.commit(at(0), &[], &steps, &[]).unwrap().revision;
        // A key written again without the lease no longer hangs on it.
        store
            .commit(at(0), &[], &[Step::Put(2, 9, 0)], &[])
            .unwrap();
        store.keep_alive(at(90), lease).unwrap();
        assert_eq!(store.expire(at(189)), 0);
        assert_eq!(store.expire(at(190)), 1);
        assert_eq!(store.entries().keys().copied().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(store.revision(), revision + 2);
        assert_eq!(
            store.keep_alive(at(190), lease),
            Err(StoreError::LeaseGone(lease))
        );
        let late = store.commit(at(190), &[], &[Step::Put(1, 1, lease)], &[]);
        assert_eq!(late, Err(StoreError::LeaseGone(lease)));
    }

    #[test]
    fn history_is_bounded_and_says_what_it_forgot() {
        let mut store = store();
        for n in 0..20 {
            store
                .commit(at(0), &[], &[Step::Put(1, n, 0)], &[])
                .unwrap();
        }
        assert!(matches!(
            store.changes_after(1).map(Iterator::count),
            Err(StoreError::Compacted(_))
        ));
        let last = store.revision();
        assert_eq!(store.changes_after(last - 3).unwrap().count(), 3);
        store.compact(last);
        assert_eq!(store.changes_after(last).unwrap().count(), 0);
        assert!(store.changes_after(last - 1).is_err());
    }
}
