//! The task that follows the clusters: a keeper for each, begun and ended as clusters come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::Dcs;
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::follow;
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;

use super::{Clusters, Retired, namespace};
use crate::drain;
use crate::metrics::ClusterMetrics;
use crate::pool::registry::Registry;
use crate::topology::state_file::StateFile;
use crate::topology::transition::Rules;
use crate::topology::{Cluster, Keeper};
use crate::warm;

/// How often it is looked for clusters that nobody needs any more.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What it takes to follow clusters.
pub struct Following {
    /// Where their keys are.
    pub dcs: Arc<dyn Dcs>,
    /// What all keys begin with.
    pub namespace: String,
    /// Which clusters.
    pub clusters: Arc<Clusters>,
    /// What decides over readers.
    pub rules: watch::Receiver<Rules>,
    /// The last leaders.
    pub state_file: Arc<StateFile>,
    /// Asks the agents.
    pub client: HttpClient,
    /// Forgets what it knows of a cluster that is gone.
    pub registry: Option<Arc<Registry>>,
    /// Those whose sessions a planned change of leader waits for.
    pub cores: Arc<[Handle]>,
}

/// How a keeper ended.
enum Ended {
    /// By itself, which it must not.
    Defect(ClusterName),
    /// As it was told.
    Retired(Retired),
}

impl Following {
    /// Follows them for as long as the process lives. Returns what is wrong if one of the tasks has ended: without
    /// its table a cluster's sessions would never be cut.
    pub async fn run(self) -> String {
        let mut changes = self.clusters.changes();
        let mut keepers: JoinSet<Ended> = JoinSet::new();
        let mut orders: BTreeMap<u64, Order> = BTreeMap::new();
        let mut looking: Option<Looking> = None;
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            changes.mark_unchanged();
            let all = self.clusters.all();
            crate::metrics::clusters(all.len());
            for cluster in all {
                let number = cluster.number;
                orders
                    .entry(number)
                    .or_insert_with(|| self.keep(cluster, &mut keepers));
            }
            let beginning = self.clusters.beginning();
            // One that has ended by a defect is begun anew.
            let lives = looking.as_ref().filter(|own| !own.task.is_finished());
            if lives.map(|own| &own.beginning) != beginning.as_ref() {
                looking = beginning.map(|beginning| self.look(beginning));
            }
            tokio::select! {
                Some(ended) = keepers.join_next() => {
                    if let Some(defect) = self.ended(ended) {
                        return defect;
                    }
                }
                _ = changes.changed() => {}
                _ = sweep.tick() => for retired in self.clusters.sweep(clock::now()) {
                    if let Some(order) = orders.remove(&retired.cluster.number) {
                        // A keeper that has ended by itself is heard of above.
                        let _ = order.send(retired);
                    }
                }
            }
        }
    }

    fn keep(&self, cluster: Arc<Cluster>, keepers: &mut JoinSet<Ended>) -> Order {
        let keys = Keys::new(&self.namespace, &cluster.name);
        let draining = drain::follow(cluster.clone(), self.cores.clone());
        let draining = AbortOnDropHandle::new(tokio::spawn(draining));
        let warming = self.registry.clone().map(|registry| {
            let warming = warm::follow(cluster.clone(), self.cores.clone(), registry);
            AbortOnDropHandle::new(tokio::spawn(warming))
        });
        let keeper = Keeper::new(
            cluster,
            follow(self.dcs.clone(), keys),
            self.rules.clone(),
            self.state_file.clone(),
            self.client.clone(),
        );
        let (order, given) = oneshot::channel();
        keepers.spawn(async move {
            let _besides = (draining, warming);
            tokio::select! {
                name = keeper.run() => Ended::Defect(name),
                Ok(retired) = given => Ended::Retired(retired),
            }
        });
        order
    }

    fn look(&self, beginning: String) -> Looking {
        let (dcs, clusters) = (self.dcs.clone(), self.clusters.clone());
        let task = namespace::look(dcs, self.namespace.clone(), beginning.clone(), clusters);
        Looking {
            beginning,
            task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// What is wrong, if the end of a keeper is a defect.
    fn ended(&self, ended: Result<Ended, JoinError>) -> Option<String> {
        let Retired { cluster, is_gone } = match ended {
            Ok(Ended::Retired(retired)) => retired,
            Ok(Ended::Defect(name)) => {
                return Some(format!("nobody follows cluster {name} any more"));
            }
            Err(defect) => return Some(defect.to_string()),
        };
        // The keeper opens no lane any more: what is left are servers that nobody uses.
        cluster.lanes.close(clock::now());
        ClusterMetrics::new(cluster.name.as_str()).retire();
        if let Some(registry) = &self.registry {
            registry.forget_cluster(cluster.name.as_str());
        }
        if is_gone {
            self.state_file.forget(&cluster.name);
        }
        None
    }
}

/// The order to end, for one keeper.
type Order = oneshot::Sender<Retired>;

/// The task that looks for new clusters; ends when dropped.
struct Looking {
    beginning: String,
    task: AbortOnDropHandle<()>,
}
