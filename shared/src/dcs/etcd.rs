//! The etcd v3 client behind the trait.
//!
//! etcd-client balances over its endpoints without noticing silent ones, so there is one client per endpoint
//! here, a current endpoint that is kept while it answers, and a race: when an answer is late, the next
//! endpoint is asked beside it. A write is sent again too when that can only repeat, never double, its
//! effect; [`evidence`] tells then what became of the first copy. One frozen or dead member out of three
//! costs no operation.
//!
//! The channels belong to the runtime that made them: make an [`Etcd`] inside the runtime that uses it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, PutOptions, TxnOp, TxnOpResponse,
};

use super::store_memory::{Before, StoreMemory};
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
    memory: StoreMemory,
    budgets: Budgets,
}

impl Etcd {
    /// A client for these endpoints, with a memory of its own. Connects when first used.
    ///
    /// # Errors
    /// If there is no endpoint, or a certificate or key cannot be read.
    pub fn new(config: &EtcdConfig, budgets: Budgets) -> Result<Self, EtcdConfigError> {
        Self::sharing(config, budgets, StoreMemory::default())
    }

    /// The same, with what other clients of this process have seen.
    ///
    /// # Errors
    /// As [`Etcd::new`].
    pub fn sharing(
        config: &EtcdConfig,
        budgets: Budgets,
        memory: StoreMemory,
    ) -> Result<Self, EtcdConfigError> {
        let endpoints = Arc::new(Endpoints::new(config)?);
        tokio::spawn(endpoint::probe(Arc::downgrade(&endpoints)));
        Ok(Self {
            endpoints,
            memory,
            budgets,
        })
    }

    /// The address of the endpoint asked first at present.
    pub fn current_endpoint(&self) -> String {
        self.endpoints.current().url.clone()
    }

    /// Asks the endpoints, and remembers it if all of them are of a store that is not the one that was known.
    async fn race<T: Send + 'static>(
        &self,
        plan: Plan,
        checks: &Checks,
        request: &(dyn Fn(Arc<Endpoint>) -> Attempt<T> + Sync),
    ) -> Result<race::Finish<T>, DcsError> {
        let outcome = race::race(&self.endpoints, plan, request).await;
        if let (Err(DcsError::WentBack(why)), Checks::Against(memory, first)) = (&outcome, checks) {
            memory.doubt_as_of(*first, why);
        }
        outcome
    }

    async fn list(
        &self,
        prefix: &str,
        options: GetOptions,
        checks: Checks,
    ) -> Result<Listing, DcsError> {
        let prefix = prefix.to_owned();
        let options = options.with_prefix();
        let all = checks.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<Listing> {
            let (prefix, checks) = (prefix.clone(), checks.clone());
            let options = options.clone();
            Box::pin(async move {
                let before = checks.before()?;
                let mut answer = endpoint
                    .client()
                    .await?
                    .kv_client()
                    .get(prefix, Some(options))
                    .await
                    .map_err(|error| failure::classify(&endpoint.url, error))?;
                let header = header(answer.header());
                checks.believe(before, header)?;
                let entries = answer.take_kvs().into_iter().map(entry).collect();
                Ok(Listing { header, entries })
            })
        };
        let plan = Plan::repeatable(self.budgets.operation);
        Ok(self.race(plan, &all, &request).await?.answer)
    }

    async fn transact(&self, txn: &Txn, checks: Checks) -> Result<Committed, DcsError> {
        let plan = Plan::of_txn(self.budgets.operation, txn);
        let sent = Arc::new(evidence::with_evidence(txn));
        let all = checks.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<Committed> {
            let (sent, checks) = (sent.clone(), checks.clone());
            Box::pin(async move {
                let before = checks.before()?;
                let answer = endpoint
                    .client()
                    .await?
                    .kv_client()
                    .txn(etcd_txn(&sent))
                    .await
                    .map_err(|error| failure::classify(&endpoint.url, error))?;
                let header = header(answer.header());
                checks.believe(before, header)?;
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
        let finish = self
            .race(plan, &all, &request)
            .await
            .map_err(|error| name_lease(error, txn))?;
        evidence::judge(txn, finish)
    }

    async fn lease(&self, ttl: Duration, checks: Checks) -> Result<LeaseAnswer, DcsError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let all = checks.clone();
        // A lease granted twice costs nothing: nobody knows the first one, and it runs out.
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<LeaseAnswer> {
            let checks = checks.clone();
            Box::pin(async move {
                checks.before()?;
                let answer = endpoint
                    .client()
                    .await?
                    .lease_client()
                    .grant(seconds, None)
                    .await
                    .map_err(|error| failure::classify(&endpoint.url, error))?;
                let header = header(answer.header());
                checks.same_cluster(header)?;
                Ok(LeaseAnswer {
                    header,
                    lease: answer.id(),
                    ttl: seconds_of(answer.ttl()),
                })
            })
        };
        let plan = Plan::repeatable(self.budgets.operation);
        Ok(self.race(plan, &all, &request).await?.answer)
    }

    fn checks(&self) -> Result<Checks, DcsError> {
        let first = self.memory.ask()?;
        Ok(Checks::Against(self.memory.clone(), first))
    }
}

/// What an answer is held against.
#[derive(Clone)]
enum Checks {
    /// What was seen; with what was known when the operation began.
    Against(StoreMemory, Before),
    /// Nothing: the store went back, and it is looked at, or made anew, all the same.
    Nothing,
}

impl Checks {
    /// Before a copy of the request is sent.
    fn before(&self) -> Result<Option<Before>, Failure> {
        match self {
            Checks::Against(memory, first) => {
                memory.ask_again(*first).map(Some).map_err(Failure::Final)
            }
            Checks::Nothing => Ok(None),
        }
    }

    fn believe(&self, before: Option<Before>, header: Header) -> Result<(), Failure> {
        match (self, before) {
            (Checks::Against(memory, _), Some(before)) => {
                memory.believe(before, header).map_err(Failure::WentBack)
            }
            (Checks::Against(..) | Checks::Nothing, _) => Ok(()),
        }
    }

    fn same_cluster(&self, header: Header) -> Result<(), Failure> {
        match self {
            Checks::Against(memory, _) => memory.same_cluster(header).map_err(Failure::WentBack),
            Checks::Nothing => Ok(()),
        }
    }
}

#[async_trait]
impl Dcs for Etcd {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.list(prefix, GetOptions::new(), self.checks()?).await
    }

    async fn read_keys(&self, prefix: &str) -> Result<Listing, DcsError> {
        let options = GetOptions::new().with_keys_only();
        self.list(prefix, options, self.checks()?).await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        self.transact(txn, self.checks()?).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        let prefix = prefix.to_owned();
        let checks = self.checks()?;
        let all = checks.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<watch::EtcdWatch> {
            let (prefix, checks) = (prefix.clone(), checks.clone());
            Box::pin(async move {
                checks.before()?;
                watch::open(&endpoint, &prefix, from, &checks).await
            })
        };
        let plan = Plan::repeatable(self.budgets.operation);
        let finish = self.race(plan, &all, &request).await?;
        Ok(Box::new(finish.answer))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.lease(ttl, self.checks()?).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        let checks = self.checks()?;
        let all = checks.clone();
        let request = move |endpoint: Arc<Endpoint>| -> Attempt<LeaseAnswer> {
            let checks = checks.clone();
            Box::pin(async move {
                checks.before()?;
                let answer = endpoint.keep_alive(lease).await?;
                checks.same_cluster(answer.header)?;
                Ok(answer)
            })
        };
        let plan = Plan::repeatable(self.budgets.renewal);
        Ok(self.race(plan, &all, &request).await?.answer)
    }

    async fn read_anew(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.list(prefix, GetOptions::new(), Checks::Nothing).await
    }

    async fn grant_anew(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.lease(ttl, Checks::Nothing).await
    }

    async fn commit_anew(&self, txn: &Txn) -> Result<Committed, DcsError> {
        self.transact(txn, Checks::Nothing).await
    }

    fn doubt(&self, why: &str) {
        self.memory.doubt(why);
    }

    fn is_doubted(&self) -> bool {
        self.memory.ask().is_err()
    }

    fn accept(&self, header: &Header) {
        self.memory.accept(header);
    }

    fn acceptances(&self) -> u64 {
        self.memory.acceptances()
    }
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("current", &self.current_endpoint())
            .field("seen", &self.memory.header())
            .finish_non_exhaustive()
    }
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
