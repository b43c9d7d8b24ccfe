//! The etcd v3 client behind the trait.
//!
//! etcd-client balances over its endpoints without noticing silent ones, so there is one client per endpoint
//! here, a current endpoint that is kept while it answers, and a race: when an answer is late, the next
//! endpoint is asked beside it. A write is sent again too when that can only repeat, never double, its
//! effect; [`evidence`] tells then what became of the first copy. One frozen or dead member out of three
//! costs no operation.
//!
//! The channels belong to the runtime that made them: make an [`Etcd`] inside the runtime that uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, PutOptions, TxnOp, TxnOpResponse,
};

use super::{
    Committed, Compare, Dcs, DcsError, Entry, Header, LeaseAnswer, LeaseId, Listing, Operation,
    Revision, Txn, Watch,
};

mod config;
mod endpoint;
mod evidence;
mod failure;
mod race;
mod route;
mod watch;

pub use config::{EtcdConfig, EtcdConfigError, Protocol};
use endpoint::{Endpoint, Endpoints};
use failure::Failure;
use race::{Attempt, Plan};

/// How long operations may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// For reads, transactions, grants and the opening of watches (Patroni's `retry_timeout`).
    pub operation: Duration,
    /// For the renewal of a lease; shorter, since the lease runs out meanwhile.
    pub renewal: Duration,
}

/// The client. Clones share the channels; the last one to go closes them.
#[derive(Clone)]
pub struct Etcd {
    endpoints: Arc<Endpoints>,
    memory: Arc<Mutex<Header>>,
    budgets: Budgets,
}

impl Etcd {
    /// A client for these endpoints. Connects when first used.
    ///
    /// # Errors
    /// If there is no endpoint, or a certificate or key cannot be read.
    pub fn new(config: &EtcdConfig, budgets: Budgets) -> Result<Self, EtcdConfigError> {
        let endpoints = Arc::new(Endpoints::new(config)?);
        tokio::spawn(endpoint::probe(Arc::downgrade(&endpoints)));
        Ok(Self {
            endpoints,
            memory: Arc::default(),
            budgets,
        })
    }

    /// The address of the endpoint asked first at present.
    pub fn current_endpoint(&self) -> String {
        self.endpoints.current().url.clone()
    }

    fn remembered(&self) -> Header {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a linearizable answer against what was seen when the request was sent, and remembers it.
    fn believe(memory: &Mutex<Header>, before: Header, header: Header) -> Result<(), Failure> {
        same_cluster(memory, header)?;
        if header.revision < before.revision || header.term < before.term {
            return Err(Failure::WentBack(format!(
                "it answers with revision {} and term {}, but revision {} and term {} were seen",
                header.revision, header.term, before.revision, before.term
            )));
        }
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.revision = memory.revision.max(header.revision);
        memory.term = memory.term.max(header.term);
        Ok(())
    }

    async fn list(&self, prefix: &str, is_checked: bool) -> Result<Listing, DcsError> {
        let prefix = prefix.to_owned();
        let memory = self.memory.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<Listing> {
            let (prefix, memory) = (prefix.clone(), memory.clone());
            Box::pin(async move {
                let before = *memory.lock().unwrap_or_else(PoisonError::into_inner);
                let options = GetOptions::new().with_prefix();
                let mut answer = endpoint
                    .client()
                    .await?
                    .kv_client()
                    .get(prefix, Some(options))
                    .await
                    .map_err(|error| failure::classify(&endpoint.url, error))?;
                let header = header(answer.header());
                if is_checked {
                    Self::believe(&memory, before, header)?;
                }
                let entries = answer.take_kvs().into_iter().map(entry).collect();
                Ok(Listing { header, entries })
            })
        };
        let plan = Plan::repeatable(self.budgets.operation);
        Ok(race::race(&self.endpoints, plan, &request).await?.answer)
    }
}

#[async_trait]
impl Dcs for Etcd {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.list(prefix, true).await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        let plan = Plan::of_txn(self.budgets.operation, txn);
        let sent = Arc::new(evidence::with_evidence(txn));
        let memory = self.memory.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<Committed> {
            let (sent, memory) = (sent.clone(), memory.clone());
            Box::pin(async move {
                let before = *memory.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = endpoint
                    .client()
                    .await?
                    .kv_client()
                    .txn(etcd_txn(&sent))
                    .await
                    .map_err(|error| failure::classify(&endpoint.url, error))?;
                let header = header(answer.header());
                Self::believe(&memory, before, header)?;
                let entries = answer
                    .op_responses()
                    .into_iter()
                    .filter_map(|response| match response {
                        TxnOpResponse::Get(mut got) => Some(got.take_kvs()),
                        TxnOpResponse::Put(_)
                        | TxnOpResponse::Delete(_)
                        | TxnOpResponse::Txn(_) => None,
                    })
                    .flatten()
                    .map(entry)
                    .collect();
                Ok(Committed {
                    header,
                    succeeded: answer.succeeded(),
                    entries,
                })
            })
        };
        let finish = race::race(&self.endpoints, plan, &request)
            .await
            .map_err(|error| name_lease(error, txn))?;
        evidence::judge(txn, finish)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        let prefix = prefix.to_owned();
        let memory = self.memory.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<watch::EtcdWatch> {
            let (prefix, memory) = (prefix.clone(), memory.clone());
            Box::pin(async move { watch::open(&endpoint, &prefix, from, &memory).await })
        };
        let plan = Plan::repeatable(self.budgets.operation);
        let finish = race::race(&self.endpoints, plan, &request).await?;
        Ok(Box::new(finish.answer))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let memory = self.memory.clone();
        // A lease granted twice costs nothing: nobody knows the first one, and it runs out.
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<LeaseAnswer> {
            let memory = memory.clone();
            Box::pin(async move {
                let answer = endpoint
                    .client()
                    .await?
                    .lease_client()
                    .grant(seconds, None)
                    .await
                    .map_err(|error| failure::classify(&endpoint.url, error))?;
                let header = header(answer.header());
                same_cluster(&memory, header)?;
                Ok(LeaseAnswer {
                    header,
                    lease: answer.id(),
                    ttl: seconds_of(answer.ttl()),
                })
            })
        };
        let plan = Plan::repeatable(self.budgets.operation);
        Ok(race::race(&self.endpoints, plan, &request).await?.answer)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        let memory = self.memory.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<LeaseAnswer> {
            let memory = memory.clone();
            Box::pin(async move {
                let answer = endpoint.keep_alive(lease).await?;
                same_cluster(&memory, answer.header)?;
                Ok(answer)
            })
        };
        let plan = Plan::repeatable(self.budgets.renewal);
        Ok(race::race(&self.endpoints, plan, &request).await?.answer)
    }

    async fn read_anew(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.list(prefix, false).await
    }

    fn accept(&self, header: &Header) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if *memory != *header {
            tracing::warn!(
                before = ?*memory, now = ?header,
                "this DCS is taken for the true one from now on"
            );
        }
        *memory = *header;
    }
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("current", &self.current_endpoint())
            .field("seen", &self.remembered())
            .finish_non_exhaustive()
    }
}

/// Learns the cluster's identity from its first answer; any other identity later is another store's.
fn same_cluster(memory: &Mutex<Header>, header: Header) -> Result<(), Failure> {
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    if memory.cluster_id == 0 {
        memory.cluster_id = header.cluster_id;
    }
    if header.cluster_id != 0 && header.cluster_id != memory.cluster_id {
        return Err(Failure::WentBack(format!(
            "it belongs to cluster {:x}, but {:x} was seen",
            header.cluster_id, memory.cluster_id
        )));
    }
    Ok(())
}

/// etcd does not say which lease of a transaction is gone; it is the one that the transaction names.
fn name_lease(error: DcsError, txn: &Txn) -> DcsError {
    let named = txn
        .then
        .iter()
        .chain(&txn.otherwise)
        .find_map(|step| match step {
            Operation::Put { lease, .. } if *lease != 0 => Some(*lease),
            Operation::Put { .. } | Operation::Delete(_) | Operation::Get(_) => None,
        });
    match (error, named) {
        (DcsError::LeaseGone(0), Some(lease)) => DcsError::LeaseGone(lease),
        (other, _) => other,
    }
}

fn header(header: Option<&etcd_client::ResponseHeader>) -> Header {
    header.map_or_else(Header::default, |header| Header {
        cluster_id: header.cluster_id(),
        revision: header.revision(),
        term: header.raft_term(),
    })
}

/// An entry as etcd sends it. Keys of ours are text; any other is nobody's business, its text does not matter.
fn entry(found: etcd_client::KeyValue) -> Entry {
    let (mod_revision, lease) = (found.mod_revision(), found.lease());
    let (key, value) = found.into_key_value();
    Entry {
        key: String::from_utf8_lossy(&key).into_owned(),
        value,
        mod_revision,
        lease,
    }
}

fn seconds_of(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

fn etcd_txn(txn: &Txn) -> etcd_client::Txn {
    let when: Vec<_> = txn.when.iter().flat_map(compares).collect();
    let then: Vec<_> = txn.then.iter().map(operation).collect();
    let otherwise: Vec<_> = txn.otherwise.iter().map(operation).collect();
    etcd_client::Txn::new()
        .when(when)
        .and_then(then)
        .or_else(otherwise)
}

/// etcd compares an absent key as revision 0, lease 0 and, for values, never as equal; ours say "exists".
fn compares(compare: &Compare) -> Vec<EtcdCompare> {
    let exists = |key: &str| EtcdCompare::create_revision(key, CompareOp::Greater, 0);
    match compare {
        Compare::Absent(key) => {
            vec![EtcdCompare::create_revision(
                key.as_str(),
                CompareOp::Equal,
                0,
            )]
        }
        Compare::ModRevision(key, revision) => vec![
            exists(key),
            EtcdCompare::mod_revision(key.as_str(), CompareOp::Equal, *revision),
        ],
        Compare::Value(key, value) => vec![
            exists(key),
            EtcdCompare::value(key.as_str(), CompareOp::Equal, value.clone()),
        ],
        Compare::Lease(key, lease) => vec![
            exists(key),
            EtcdCompare::lease(key.as_str(), CompareOp::Equal, *lease),
        ],
    }
}

fn operation(operation: &Operation) -> TxnOp {
    match operation {
        Operation::Put { key, value, lease } => TxnOp::put(
            key.as_str(),
            value.clone(),
            Some(PutOptions::new().with_lease(*lease)),
        ),
        Operation::Delete(key) => TxnOp::delete(key.as_str(), None),
        Operation::Get(key) => TxnOp::get(key.as_str(), None),
    }
}
