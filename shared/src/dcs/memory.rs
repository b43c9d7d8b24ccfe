//! The in-memory store of the tests and the simulation.
//!
//! [`Store`] is pure: revisions, leases and a bounded history of changes, with the time as an argument. It
//! behaves as etcd does where callers can tell: one revision per writing transaction, one for all keys of an
//! expired lease, none for a transaction that changed nothing. [`MemoryDcs`] puts it behind [`Dcs`] with
//! the real clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Committed, Compare, Dcs, DcsError, Entry, Header, LeaseAnswer, LeaseId, Listing, Operation,
    Revision, Txn, Watch, WatchEvent,
};
use crate::cluster::Moment;
use crate::service::clock;

/// How many changes a store remembers for its watches unless told otherwise.
pub const DEFAULT_HISTORY: usize = 10_000;

/// How often an idle watch of [`MemoryDcs`] reports progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

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

/// A condition of a transaction; see [`Compare`].
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

/// A step of a transaction; see [`Operation`].
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

type Bytes = Store<String, Vec<u8>>;

/// The store behind [`Dcs`], with the real clock. Clones share it.
#[derive(Clone)]
pub struct MemoryDcs {
    shared: Arc<Shared>,
}

struct Shared {
    store: Mutex<Bytes>,
    /// The revision, for watches to wait on.
    revision: watch::Sender<Revision>,
    is_reachable: watch::Sender<bool>,
}

impl Default for MemoryDcs {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDcs {
    /// An empty store.
    pub fn new() -> Self {
        let store = Bytes::default();
        Self {
            shared: Arc::new(Shared {
                revision: watch::Sender::new(store.revision()),
                store: Mutex::new(store),
                is_reachable: watch::Sender::new(true),
            }),
        }
    }

    /// A fault: while false, every call fails as unreachable and watches end.
    pub fn set_reachable(&self, is_reachable: bool) {
        self.shared.is_reachable.send_replace(is_reachable);
    }

    /// Forgets the history up to `revision`.
    pub fn compact(&self, revision: Revision) {
        self.shared.lock().compact(revision);
    }

    /// Loses everything, as a DCS restored from nothing does; its revisions begin again.
    pub fn lose_memory(&self) {
        let mut store = self.shared.lock();
        *store = Bytes::default();
        self.shared.revision.send_replace(store.revision());
    }

    fn with<T>(&self, change: impl FnOnce(&mut Bytes, Moment) -> T) -> Result<T, DcsError> {
        self.shared.check_reachable()?;
        let now = clock::now();
        let mut store = self.shared.lock();
        store.expire(now);
        let result = change(&mut store, now);
        self.shared.publish(&store);
        Ok(result)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, store: &Bytes) {
        self.revision.send_if_modified(|revision| {
            let is_newer = *revision != store.revision();
            *revision = store.revision();
            is_newer
        });
    }

    fn check_reachable(&self) -> Result<(), DcsError> {
        if *self.is_reachable.borrow() {
            return Ok(());
        }
        Err(DcsError::Unreachable {
            tried: "memory".to_owned(),
            why: "made unreachable".to_owned(),
        })
    }
}

fn header(store: &Bytes) -> Header {
    Header {
        cluster_id: 1,
        revision: store.revision(),
        term: 1,
    }
}

fn entry(key: &str, held: &Held<Vec<u8>>) -> Entry {
    Entry {
        key: key.to_owned(),
        value: held.value.clone(),
        mod_revision: held.mod_revision,
        lease: held.lease,
    }
}

fn condition(compare: &Compare) -> Condition<String, Vec<u8>> {
    match compare {
        Compare::Absent(key) => Condition::Absent(key.clone()),
        Compare::ModRevision(key, revision) => Condition::ModRevision(key.clone(), *revision),
        Compare::Value(key, value) => Condition::Value(key.clone(), value.clone()),
        Compare::Lease(key, lease) => Condition::Lease(key.clone(), *lease),
    }
}

fn step(operation: &Operation) -> Step<String, Vec<u8>> {
    match operation {
        Operation::Put { key, value, lease } => Step::Put(key.clone(), value.clone(), *lease),
        Operation::Delete(key) => Step::Delete(key.clone()),
        Operation::Get(key) => Step::Get(key.clone()),
    }
}

fn dcs_error(error: StoreError) -> DcsError {
    match error {
        StoreError::LeaseGone(lease) => DcsError::LeaseGone(lease),
        StoreError::Compacted(revision) => DcsError::Compacted(revision),
        StoreError::DuplicateKey => DcsError::Rejected(error.to_string()),
    }
}

#[async_trait]
impl Dcs for MemoryDcs {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.with(|store, _| Listing {
            header: header(store),
            entries: store
                .entries()
                .range(prefix.to_owned()..)
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, held)| entry(key, held))
                .collect(),
        })
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        let when: Vec<_> = txn.when.iter().map(condition).collect();
        let then: Vec<_> = txn.then.iter().map(step).collect();
        let otherwise: Vec<_> = txn.otherwise.iter().map(step).collect();
        let (outcome, header) = self.with(|store, now| {
            let outcome = store.commit(now, &when, &then, &otherwise);
            (outcome, header(store))
        })?;
        let outcome = outcome.map_err(dcs_error)?;
        Ok(Committed {
            header,
            succeeded: outcome.succeeded,
            entries: outcome.read.iter().map(|(k, h)| entry(k, h)).collect(),
        })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        self.shared.check_reachable()?;
        Ok(Box::new(MemoryWatch {
            prefix: prefix.to_owned(),
            seen: from - 1,
            revision: self.shared.revision.subscribe(),
            is_reachable: self.shared.is_reachable.subscribe(),
            shared: self.shared.clone(),
        }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        let ttl = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        self.with(|store, now| LeaseAnswer {
            lease: store.grant(now, ttl),
            header: header(store),
            ttl,
        })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        let (ttl, header) =
            self.with(|store, now| (store.keep_alive(now, lease), header(store)))?;
        Ok(LeaseAnswer {
            header,
            lease,
            ttl: ttl.map_err(dcs_error)?,
        })
    }
}

struct MemoryWatch {
    prefix: String,
    seen: Revision,
    revision: watch::Receiver<Revision>,
    is_reachable: watch::Receiver<bool>,
    shared: Arc<Shared>,
}

impl MemoryWatch {
    /// The changes not yet seen, and until when nothing can change without a commit.
    fn poll(&mut self) -> Result<(Option<WatchEvent>, Duration), DcsError> {
        self.shared.check_reachable()?;
        let now = clock::now();
        let mut store = self.shared.lock();
        store.expire(now);
        self.shared.publish(&store);
        self.revision.mark_unchanged();
        let changes: Vec<_> = store
            .changes_after(self.seen)
            .map_err(dcs_error)?
            .filter(|change| change.key.starts_with(&self.prefix))
            .map(|change| {
                let held = change.held.as_ref();
                (
                    change.key.clone(),
                    held.map(|held| entry(&change.key, held)),
                )
            })
            .collect();
        self.seen = self.seen.max(store.revision());
        let event = (!changes.is_empty()).then(|| WatchEvent::Changes {
            revision: store.revision(),
            changes,
        });
        let wait = store
            .next_deadline()
            .map_or(PROGRESS_INTERVAL, |deadline| now.until(deadline));
        Ok((event, wait.min(PROGRESS_INTERVAL)))
    }
}

#[async_trait]
impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<WatchEvent, DcsError> {
        let started = clock::now();
        loop {
            let (event, wait) = self.poll()?;
            if let Some(event) = event {
                return Ok(event);
            }
            if clock::now().since(started) >= PROGRESS_INTERVAL {
                return Ok(WatchEvent::Progress(self.seen));
            }
            tokio::select! {
                _ = self.revision.changed() => {}
                _ = self.is_reachable.changed() => {}
                // A timer may fire a moment before the clock agrees.
                () = tokio::time::sleep(wait + Duration::from_millis(1)) => {}
            }
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
