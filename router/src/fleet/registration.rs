//! The tasks that keep this process's keys: one holds the lease, one per cluster writes the record. Routing depends on
//! neither: without rights in the DCS, or without a DCS, the router goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{ClusterName, RouterRecord};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::records::router_to_json;
use trunkline_shared::dcs::{Compare, Dcs, DcsError, LeaseId, Operation, Revision, Txn};
use trunkline_shared::service::clock;

use crate::clusters::Clusters;
use crate::fleet::beside::Beside;
use crate::fleet::cancels::Carrier;
use crate::fleet::record::{Own, Written, pause_after, record, wait};
use crate::fleet::{Leaving, standing};
use crate::listener::Listening;
use crate::topology::Cluster;

/// How long a process that says nothing still counts as one of the fleet: the shortest that etcd grants as it is
/// delivered. A change of leader waits for the end of the last statements for 2.5 s, and so survives the death of a router.
pub const LEASE: Duration = Duration::from_secs(2);
/// How often the lease is renewed; also the pause after a failure.
pub const RENEW_EVERY: Duration = Duration::from_millis(500);
/// The pause after the DCS refused the right to write, and the longest after it refused what was to be written.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// How often a write is tried whose key stands otherwise than it was seen.
const ATTEMPTS: usize = 3;

/// What a process registers with.
#[derive(Clone)]
pub struct Registration {
    /// What it says of itself.
    pub own: Arc<Own>,
    /// Its listeners.
    pub listenings: Vec<Arc<Listening>>,
    /// Ends it.
    pub leaving: Leaving,
    /// Its place among the processes of a hand-over, if any listener is pooled.
    pub beside: Option<(Beside, Carrier)>,
}

impl Registration {
    /// Takes the lease, and the place among the processes of a hand-over. The receiver shows the lease, or none.
    pub fn begin(&self, dcs: Arc<dyn Dcs>) -> watch::Receiver<Option<LeaseId>> {
        if let Some((beside, carrier)) = self.beside.clone() {
            let token = self.leaving.token.clone();
            self.leaving.tasks.spawn(async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = beside.serve(carrier) => {}
                }
            });
        }
        let (sender, lease) = watch::channel(None);
        let token = self.leaving.token.clone();
        self.leaving.tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = renew(&*dcs, sender) => {}
            }
        });
        lease
    }

    /// Keeps a key in every cluster that is followed, for as long as it is.
    pub fn keep(&self, dcs: Arc<dyn Dcs>, namespace: String, clusters: Arc<Clusters>) {
        let (own, token) = (self.clone(), self.leaving.token.clone());
        let lease = self.begin(dcs.clone());
        self.leaving.tasks.spawn(async move {
            let mut kept: BTreeMap<ClusterName, Kept> = BTreeMap::new();
            let mut changes = clusters.changes();
            loop {
                changes.mark_unchanged();
                let all = clusters.all();
                kept.retain(|name, key| {
                    let is_same = |other: &Arc<Cluster>| other.number == key.cluster;
                    if !all.iter().any(is_same) {
                        key.over.cancel();
                    }
                    // One that comes back waits for the end of what was.
                    all.iter().any(|own| own.name == *name) || !key.task.is_finished()
                });
                for cluster in all {
                    let known = kept.get(&cluster.name).map(|key| key.cluster);
                    if known != Some(cluster.number) {
                        let earlier = kept.remove(&cluster.name).map(|key| key.task);
                        let keys = Keys::new(&namespace, &cluster.name);
                        let name = cluster.name.clone();
                        let key = own.after(earlier, dcs.clone(), &keys, cluster, lease.clone());
                        kept.insert(name, key);
                    }
                }
                tokio::select! {
                    () = token.cancelled() => return,
                    _ = changes.changed() => {}
                }
            }
        });
    }

    /// Keeps the key of one cluster for as long as the process is in the fleet.
    pub fn register(
        &self,
        dcs: Arc<dyn Dcs>,
        keys: &Keys,
        cluster: Arc<Cluster>,
        lease: watch::Receiver<Option<LeaseId>>,
    ) {
        // The task goes on without its handle.
        drop(self.after(None, dcs, keys, cluster, lease));
    }

    /// The same until it is told that it is over, and not before an earlier task for the same key has ended.
    fn after(
        &self,
        earlier: Option<JoinHandle<()>>,
        dcs: Arc<dyn Dcs>,
        keys: &Keys,
        cluster: Arc<Cluster>,
        lease: watch::Receiver<Option<LeaseId>>,
    ) -> Kept {
        let path = keys.path(&FactKey::Router(self.own.key.clone()));
        // It ends with the fleet, too.
        let over = self.leaving.token.child_token();
        let (number, told) = (cluster.number, over.clone());
        let registrar = Registrar {
            dcs,
            path,
            cluster,
            lease,
            part: self.clone(),
            written: None,
            revision: 0,
            failures: 0,
            over: told,
        };
        let task = self.leaving.tasks.spawn(async move {
            if let Some(earlier) = earlier {
                // However it ended.
                let _ = earlier.await;
            }
            registrar.run().await;
        });
        Kept {
            cluster: number,
            over,
            task,
        }
    }
}

/// The task that keeps the key of one cluster.
struct Kept {
    /// The number of the cluster.
    cluster: u64,
    /// Ends it.
    over: CancellationToken,
    task: JoinHandle<()>,
}

async fn renew(dcs: &dyn Dcs, sender: watch::Sender<Option<LeaseId>>) {
    loop {
        let held = *sender.borrow();
        let answer = match held {
            Some(lease) => dcs.keep_alive(lease).await,
            None => dcs.grant(LEASE).await,
        };
        match answer {
            Ok(answer) => {
                let lease = Some(answer.lease);
                sender.send_if_modified(|own| std::mem::replace(own, lease) != lease);
            }
            Err(DcsError::LeaseGone(_)) => {
                // The next one is taken at once: until then this router is waited for by nobody.
                sender.send_replace(None);
                continue;
            }
            // Whether it still lives the next renewal tells. The topology's tasks say that the DCS is away.
            Err(_) => {}
        }
        sleep(RENEW_EVERY).await;
    }
}

/// The task of one cluster.
struct Registrar {
    dcs: Arc<dyn Dcs>,
    path: String,
    cluster: Arc<Cluster>,
    lease: watch::Receiver<Option<LeaseId>>,
    part: Registration,
    written: Option<Written>,
    /// Of the key, as it was seen last; 0: there was none.
    revision: Revision,
    /// Writes that failed since the last that did not.
    failures: u32,
    /// The key is to go.
    over: CancellationToken,
}

impl Registrar {
    async fn run(mut self) {
        let mut changes = self.cluster.changes();
        let mut progress = self.cluster.progress.subscribe();
        loop {
            changes.mark_unchanged();
            progress.mark_unchanged();
            let pause = self.step().await;
            tokio::select! {
                () = self.over.cancelled() => break,
                () = sleep(pause) => {}
                _ = changes.changed(), if self.failures == 0 => {}
                _ = progress.changed(), if self.failures == 0 => {}
                Ok(()) = self.lease.changed() => {}
            }
        }
        self.remove().await;
    }

    /// Writes what is due; how long nothing else is.
    async fn step(&mut self) -> Duration {
        let Some(lease) = *self.lease.borrow_and_update() else {
            return RENEW_EVERY;
        };
        let standing = standing(&self.cluster, &self.part.listenings);
        let before = self.written.as_ref().and_then(|own| own.record.epoch);
        let wanted = record(&self.part.own, &standing, before);
        let now = clock::now();
        let pause = wait(self.written.as_ref(), lease, &wanted, now);
        if !pause.is_zero() {
            return pause;
        }
        match self.write(lease, &wanted).await {
            Ok(()) => {
                if std::mem::take(&mut self.failures) > 0 {
                    info!(cluster = %self.cluster.name, key = %self.path, "this router is registered");
                }
                self.written = Some(Written {
                    record: wanted,
                    lease,
                    at: now,
                });
                // What changed meanwhile has woken this task, but for the counts.
                Duration::from_millis(1)
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &DcsError) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            let (cluster, key) = (&self.cluster.name, &self.path);
            warn!(
                %cluster, %key,
                "this router is not registered: {error}; it routes on, a planned change of leader does not wait for it, \
                 and a cancel finds its sessions only through itself; it tries again"
            );
        }
        match error {
            DcsError::Refused { .. } => REFUSED_PAUSE,
            DcsError::Rejected(_) => pause_after(self.failures, REFUSED_PAUSE),
            DcsError::Unreachable { .. }
            | DcsError::UnknownOutcome { .. }
            | DcsError::LeaseGone(_)
            | DcsError::Compacted(_)
            | DcsError::WentBack(_) => pause_after(self.failures, RENEW_EVERY),
        }
    }

    /// Writes over what this process wrote last, and over nothing newer: a write of before that was stuck on its way never
    /// comes after this one.
    async fn write(&mut self, lease: LeaseId, record: &RouterRecord) -> Result<(), DcsError> {
        let value = router_to_json(record).into_bytes();
        for _ in 0..ATTEMPTS {
            let key = self.path.clone();
            let value = value.clone();
            let txn = Txn {
                when: vec![Compare::as_seen(self.path.clone(), self.revision)],
                then: vec![Operation::Put { key, value, lease }],
                otherwise: vec![Operation::Get(self.path.clone())],
            };
            let committed = self.dcs.commit(&txn).await?;
            if committed.succeeded {
                self.revision = committed.header.revision;
                return Ok(());
            }
            // An earlier write whose outcome was unknown, or the end of an earlier lease.
            let standing = committed.entries.first();
            self.revision = standing.map_or(0, |entry| entry.mod_revision);
        }
        Err(DcsError::Rejected(format!(
            "{} does not stay as it was read",
            self.path
        )))
    }

    /// Where that fails the lease ends by itself.
    async fn remove(&self) {
        if self.written.is_some() {
            let delete = Txn {
                then: vec![Operation::Delete(self.path.clone())],
                ..Txn::default()
            };
            let _ = self.dcs.commit(&delete).await;
        }
    }
}
