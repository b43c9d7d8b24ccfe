//! The background services of the process: the topologies, the certificates and the HTTP endpoint.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use trunkline_shared::dcs::Dcs;
use trunkline_shared::dcs::etcd::{Etcd, EtcdConfig};
use trunkline_shared::service::http::{HttpClient, serve};
use trunkline_shared::service::tls::FILES_LOOK;

use super::DCS_BUDGETS;
use crate::clusters::Clusters;
use crate::clusters::following::Following;
use crate::config::RouterConfig;
use crate::fleet::registration::Registration;
use crate::http::{self, Shown};
use crate::in_force::InForce;
use crate::listener::Event;
use crate::pool::registry::Registry;
use crate::topology::state_file::StateFile;
use crate::topology::transition::Rules;

/// One watch and one table per cluster.
pub(super) struct Topologies {
    etcd: EtcdConfig,
    namespace: String,
    clusters: Arc<Clusters>,
    rules: watch::Receiver<Rules>,
    state_file: Arc<StateFile>,
    /// Asks the agents.
    client: HttpClient,
    registry: Option<Arc<Registry>>,
    events: mpsc::Sender<Event>,
    cores: Arc<[Handle]>,
    registration: Registration,
}

impl Topologies {
    pub(super) fn new(
        config: &RouterConfig,
        (clusters, registry): (Arc<Clusters>, Option<Arc<Registry>>),
        rules: watch::Receiver<Rules>,
        state_file: Arc<StateFile>,
        client: HttpClient,
        events: mpsc::Sender<Event>,
        (cores, registration): (Arc<[Handle]>, Registration),
    ) -> Self {
        Self {
            cores,
            registration,
            client,
            etcd: config.etcd3.config.clone(),
            namespace: config.namespace.clone(),
            clusters,
            rules,
            state_file,
            registry,
            events,
        }
    }
}

#[async_trait]
impl BackgroundService for Topologies {
    // Goes on while the process drains: sessions that still run must still be cut when the leader changes.
    async fn start(&self, _shutdown: ShutdownWatch) {
        // The client belongs to the runtime that it was made in.
        let dcs: Arc<dyn Dcs> = match Etcd::new(&self.etcd, DCS_BUDGETS) {
            Ok(etcd) => Arc::new(etcd),
            Err(error) => {
                let _ = self.events.send(Event::Failed(error.into())).await;
                return;
            }
        };
        let following = Following {
            dcs: dcs.clone(),
            namespace: self.namespace.clone(),
            clusters: self.clusters.clone(),
            rules: self.rules.clone(),
            state_file: self.state_file.clone(),
            client: self.client.clone(),
            registry: self.registry.clone(),
            cores: self.cores.clone(),
        };
        // Its tasks end when the process leaves the fleet.
        self.registration
            .keep(dcs, self.namespace.clone(), self.clusters.clone());
        // Better no router than one that cuts nothing.
        let defect = following.run().await;
        let _ = self.events.send(Event::Defect(defect)).await;
    }
}

/// Looks at the files of TLS, and takes up those that have changed.
pub(super) struct Certificates {
    registry: Option<Arc<Registry>>,
}

impl Certificates {
    pub(super) fn new(registry: Option<Arc<Registry>>) -> Self {
        Self { registry }
    }
}

#[async_trait]
impl BackgroundService for Certificates {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(registry) = &self.registry else {
            return;
        };
        let mut look = interval(FILES_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = Troubles::new();
        loop {
            tokio::select! {
                _ = look.tick() => {}
                _ = shutdown.changed() => return,
            }
            let registry = registry.clone();
            // A disk that hangs holds up nothing else.
            let looked = tokio::task::spawn_blocking(move || renew(&registry));
            match looked.await {
                Ok(troubles) => known = told_once(known, troubles),
                Err(defect) => error!("the certificates were not looked at: {defect}"),
            }
        }
    }
}

/// Sections whose files cannot be used, and why.
type Troubles = BTreeMap<String, String>;

/// Tells what was not known already: what lasts is not said at each look.
fn told_once(known: Troubles, now: Troubles) -> Troubles {
    for (section, why) in &now {
        if known.get(section) != Some(why) {
            error!(%section, "the certificates from before stay in force until this is mended: {why}");
        }
    }
    now
}

/// Takes up what has changed. A reload that came meanwhile has read the files itself, and stays.
fn renew(registry: &Registry) -> Troubles {
    let seen = registry.in_force.current();
    let mut next = InForce::clone(&seen);
    let looked = next.renew();
    if looked.is_empty() || !registry.in_force.exchange(&seen, next) {
        return Troubles::new();
    }
    let mut troubles = Troubles::new();
    for (section, taken) in looked {
        match taken {
            Ok(()) => info!(%section, "changed certificates are in force"),
            Err(why) => drop(troubles.insert(section, why.to_string())),
        }
    }
    troubles
}

/// Takes the samples that averages of `SHOW STATS` begin with.
pub(super) struct Samples {
    registry: Option<Arc<Registry>>,
    cores: Arc<[Handle]>,
}

impl Samples {
    pub(super) fn new(registry: Option<Arc<Registry>>, cores: Arc<[Handle]>) -> Self {
        Self { registry, cores }
    }
}

#[async_trait]
impl BackgroundService for Samples {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(registry) = &self.registry else {
            return;
        };
        tokio::select! {
            () = registry.desk.take_samples(&self.cores) => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// The HTTP endpoint.
pub(super) struct Http {
    shown: Arc<Shown>,
    socket: Mutex<mpsc::Receiver<TcpListener>>,
    /// Set when another process serves it.
    stop: CancellationToken,
    /// What takes cancels of other routers.
    cancels: Option<Router>,
}

impl Http {
    pub(super) fn new(
        shown: Arc<Shown>,
        socket: mpsc::Receiver<TcpListener>,
        stop: CancellationToken,
        cancels: Option<Router>,
    ) -> Self {
        Self {
            cancels,
            shown,
            socket: Mutex::new(socket),
            stop,
        }
    }
}

#[async_trait]
impl BackgroundService for Http {
    // Goes on while the process drains: that is when it says that it does.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let Some(socket) = self.socket.lock().await.recv().await else {
            return;
        };
        let registered = socket
            .set_nonblocking(true)
            .and_then(|()| tokio::net::TcpListener::from_std(socket));
        match registered {
            Ok(listener) => {
                let cancels = self.cancels.clone().unwrap_or_default();
                let routes = http::routes(self.shown.clone()).merge(cancels);
                tokio::join!(
                    serve(listener, routes, None, self.stop.clone()),
                    self.shown.metrics.clone().upkeep()
                );
            }
            Err(failure) => error!("the HTTP endpoint cannot be served: {failure}"),
        }
    }
}
