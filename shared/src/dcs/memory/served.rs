//! The in-memory store behind the trait, with the real clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Condition, Held, Step, Store, StoreError};
use crate::cluster::Moment;
use crate::dcs::{
    Committed, Compare, Dcs, DcsError, Entry, Header, LeaseAnswer, LeaseId, Listing, Operation,
    Revision, Txn, Watch, WatchEvent,
};
use crate::service::clock;

/// How often an idle watch of [`MemoryDcs`] reports progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

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

    /// Ends a lease before its time, with the keys that hang on it.
    pub fn end_lease(&self, lease: LeaseId) {
        let mut store = self.shared.lock();
        store.revoke(lease);
        self.shared.revision.send_replace(store.revision());
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
            let asked = clock::now();
            let (event, wait) = self.poll()?;
            if let Some(event) = event {
                return Ok(event);
            }
            if clock::now().since(started) >= PROGRESS_INTERVAL {
                let revision = self.seen;
                return Ok(WatchEvent::Progress { revision, asked });
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
