//! The consistent store: what agent and router need of it, whichever product it is.

use std::time::Duration;

use async_trait::async_trait;

use crate::cluster::Moment;

pub mod belief;
pub mod etcd;
pub mod keys;
#[cfg(feature = "memory")]
pub mod memory;
pub mod records;
pub mod store_memory;
pub mod watch;

pub use store_memory::StoreMemory;

/// A revision of the store: grows with every committed write, 0 before the first.
pub type Revision = i64;

/// A lease's number; 0 means none.
pub type LeaseId = i64;

/// What came with an answer: who answered, and how new its knowledge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// The identity of the store; another number is another store.
    pub cluster_id: u64,
    /// The store's revision when it answered.
    pub revision: Revision,
    /// The raft term under which it answered.
    pub term: u64,
}

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision of the last write.
    pub mod_revision: Revision,
    /// The lease it hangs on, 0 if none.
    pub lease: LeaseId,
}

/// The answer to a read of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Listing {
    /// Who answered.
    pub header: Header,
    /// The keys in order.
    pub entries: Vec<Entry>,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    ModRevision(String, Revision),
    /// The key exists and holds this value.
    Value(String, Vec<u8>),
    /// The key exists and hangs on this lease.
    Lease(String, LeaseId),
}

impl Compare {
    /// The key stands as it was seen: last written at this revision, or absent (0).
    pub fn as_seen(key: String, revision: Revision) -> Self {
        match revision {
            0 => Compare::Absent(key),
            revision => Compare::ModRevision(key, revision),
        }
    }
}

/// One step of a transaction that was decided for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Write the key, hanging it on a lease (0: on none).
    Put {
        /// The whole key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// The lease, 0 for none.
        lease: LeaseId,
    },
    /// Remove the key if it exists.
    Delete(String),
    /// Read the key.
    Get(String),
}

/// A compare-and-write: if all of `when` holds, `then` is done, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Txn {
    /// The conditions.
    pub when: Vec<Compare>,
    /// Done if they all hold.
    pub then: Vec<Operation>,
    /// Done if one does not.
    pub otherwise: Vec<Operation>,
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Committed {
    /// Who answered; after a write, `revision` is the revision of that write.
    pub header: Header,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// What the `Get`s of the branch taken read, in order; absent keys are left out.
    pub entries: Vec<Entry>,
}

/// The answer to a keep-alive or a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// Who answered.
    pub header: Header,
    /// The lease.
    pub lease: LeaseId,
    /// What it is granted for from now on. May be longer than asked for.
    pub ttl: Duration,
}

/// Something a watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Keys changed, in the order of their revisions.
    Changes {
        /// The store's revision after them.
        revision: Revision,
        /// The changes; a deleted key has no value.
        changes: Vec<(String, Option<Entry>)>,
    },
    /// The answer to a question of the client's: everything up to this revision was told. It counts from
    /// the moment the question was sent, since an answer may wait in a socket for as long as its reader is
    /// frozen.
    Progress {
        /// The store's revision when it answered.
        revision: Revision,
        /// When the question was sent.
        asked: Moment,
    },
}

/// Why the store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DcsError {
    /// No member of the store took the request within its time; it was surely not executed. Retry.
    #[error("no DCS member could be reached ({tried}): {why}")]
    Unreachable {
        /// The endpoints that were tried.
        tried: String,
        /// The last one's error.
        why: String,
    },
    /// The request may or may not have been executed. Read before anything else is done.
    #[error(
        "the DCS did not answer in time ({endpoint}): {why}; the request may have been executed"
    )]
    UnknownOutcome {
        /// Who was asked.
        endpoint: String,
        /// What was seen.
        why: String,
    },
    /// The lease does not exist: it ran out or was revoked. Take a new one.
    #[error("lease {0:x} does not exist any more")]
    LeaseGone(LeaseId),
    /// The revision to watch from was compacted away. List again.
    #[error("revision {0} was compacted away; listing again")]
    Compacted(Revision),
    /// The store answered with less than it was known to hold, or is another store. Not believed.
    #[error("the DCS went back: {0}")]
    WentBack(String),
    /// User, password or certificate was refused. Mend the configuration.
    #[error(
        "the DCS refused the credentials ({endpoint}): {why}; check username, password and certificates in the etcd3 section"
    )]
    Refused {
        /// Who refused.
        endpoint: String,
        /// In its words.
        why: String,
    },
    /// The request itself is not acceptable. A defect or a limit; not retried.
    #[error("the DCS rejected the request: {0}")]
    Rejected(String),
}

impl DcsError {
    /// Whether the same request may be sent again without reading first.
    pub fn is_retryable(&self) -> bool {
        match self {
            DcsError::Unreachable { .. } | DcsError::WentBack(_) => true,
            DcsError::UnknownOutcome { .. }
            | DcsError::LeaseGone(_)
            | DcsError::Compacted(_)
            | DcsError::Refused { .. }
            | DcsError::Rejected(_) => false,
        }
    }
}

/// The consistent store. Two implementations: [`etcd::Etcd`] and the in-memory one of the tests; the
/// contract suite in `shared/tests/dcs_contract.rs` proves them alike.
#[async_trait]
pub trait Dcs: Send + Sync + 'static {
    /// All keys below `prefix`, linearizable.
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError>;

    /// The same without the values, which are empty.
    async fn read_keys(&self, prefix: &str) -> Result<Listing, DcsError> {
        let mut listing = self.read(prefix).await?;
        for entry in &mut listing.entries {
            entry.value.clear();
        }
        Ok(listing)
    }

    /// One transaction. On [`DcsError::UnknownOutcome`] it may have been executed.
    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError>;

    /// Watches `prefix` from `from` on (inclusive). Ends with an error rather than go stale unseen.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError>;

    /// A new lease of at least `ttl` (whole seconds).
    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError>;

    /// Renews a lease for its whole TTL.
    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError>;

    /// As [`Dcs::read`], but an answer that went back is returned too: what a store shows that is not
    /// believed.
    async fn read_anew(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.read(prefix).await
    }

    /// As [`Dcs::grant`], from a store that is not believed: only for who makes the cluster's keys anew in it.
    async fn grant_anew(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.grant(ttl).await
    }

    /// As [`Dcs::commit`], in a store that is not believed: only for who makes the cluster's keys anew in it.
    async fn commit_anew(&self, txn: &Txn) -> Result<Committed, DcsError> {
        self.commit(txn).await
    }

    /// From now on nothing is asked of the store but by the three calls above, until it is accepted.
    fn doubt(&self, _why: &str) {}

    /// Whether it is so.
    fn is_doubted(&self) -> bool {
        false
    }

    /// Takes the store that sent this header for the true one from now on, whatever was seen before. Only
    /// after a grown generation, or an operator, said so.
    fn accept(&self, _header: &Header) {}

    /// How often a store was accepted anew since this client was made: leases of before are of another store.
    fn acceptances(&self) -> u64 {
        0
    }
}

/// An open watch. Dropping it closes it.
#[async_trait]
pub trait Watch: Send {
    /// The next event. Cancel-safe. After an error the watch is over: list and open a new one.
    async fn next(&mut self) -> Result<WatchEvent, DcsError>;
}
