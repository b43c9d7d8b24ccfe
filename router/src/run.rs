//! Builds every component, wires them, and owns the order of start and stop.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use tokio::sync::{mpsc, watch};
use tracing::info;
use trunkline_shared::dcs::etcd::{Budgets, EtcdConfigError};
use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::logging::{self, Log, LogSettings, LoggingError, Style};
use trunkline_shared::service::metrics::{Metrics, MetricsError};
use trunkline_shared::service::tls::TlsError;

use crate::admin::desk::{MAX_ORDERS, Order};
use crate::clusters::Clusters;
use crate::config::databases::Scopes;
use crate::config::{ListenerConfig, RouterConfig};
use crate::cores::Cores;
use crate::fleet;
use crate::http::Shown;
use crate::in_force::InForce;
use crate::listener::limits::Limits;
use crate::listener::{CannotListen, Listening, Ports};
use crate::metrics::shared::Shared;
use crate::pool::registry::{NoRandomness, Registry};
use crate::run::conductor::{Conductor, Live, Origin, Switches};
use crate::run::hand_over::{Meeting, READY_WITHIN};
use crate::run::services::{Certificates, Http, Samples, Topologies};
use crate::topology::state_file::StateFile;
use crate::topology::transition::Rules;

mod conductor;
mod hand_over;
mod services;

/// How long an operation of the DCS is tried.
const DCS_BUDGETS: Budgets = Budgets {
    operation: Duration::from_secs(2),
    renewal: Duration::from_secs(1),
};

/// How many events of the start may wait to be heard.
const EVENTS: usize = 8;

/// The runtime folder's mode: who can write there could take our ports.
const FOLDER_MODE: u32 = 0o700;

/// Why the process could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port is not to be had.
    #[error(transparent)]
    CannotListen(#[from] CannotListen),
    /// The `etcd3` section is wrong.
    #[error(transparent)]
    Etcd(#[from] EtcdConfigError),
    /// The folder for the pid file and the upgrade socket.
    #[error("the runtime folder {} cannot be used: {why}", .folder.display())]
    RuntimeFolder {
        /// Which.
        folder: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// It was started to replace a router, and cannot: that one goes on.
    #[error("not taking over from the running router, which goes on: not able to route within {} s: {why}", READY_WITHIN.as_secs())]
    CannotTakeOver {
        /// What is missing.
        why: String,
    },
    /// The log.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// A file of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The system gives no randomness: pooled listeners cannot authenticate anybody.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// A task that must not end has ended: without it sessions would not be cut.
    #[error("a task ended that must not: {0}; this is a defect")]
    Defect(String),
    /// The system refuses threads, signals or sockets.
    #[error("the system refuses what the router needs: {0}")]
    System(#[from] io::Error),
}

/// Runs the router until it is told to stop.
///
/// # Errors
/// It cannot start.
pub fn run(config: RouterConfig, file: PathBuf, is_upgrade: bool) -> Result<(), RunError> {
    let (log, metrics) = start_telling(&config)?;
    let _flushed = log.flushed_at_end();
    let folder = runtime_folder(config.http.listen)?;
    let cores = Arc::new(Cores::start(std::thread::available_parallelism()?.get())?);
    let rules = watch::Sender::new(rules_of(&config));
    let state_file = Arc::new(StateFile::open(config.state_file.as_deref()));
    let clusters = clusters_of(&config, &state_file);
    let registry = registry_of(&config)?;
    let listenings = listenings_of(&config, &clusters, registry.as_ref());
    let hear_orders = equip_console(registry.as_ref(), &listenings);
    let shown = Arc::new(Shown {
        name: config.name.clone(),
        clusters: clusters.clone(),
        listenings: listenings.iter().map(|(_, l)| l.clone()).collect(),
        is_draining: false.into(),
        metrics,
        pooled: registry.as_ref().map(|_| Shared::new(cores.handles())),
    });
    let (events, hear) = mpsc::channel(EVENTS);
    let (http_socket, take_socket) = mpsc::channel(1);
    let (switches, hear_switches) = Switches::new();
    let meeting = Meeting::new(&folder);
    let origin = origin_of(&meeting, &folder, is_upgrade)?;
    let mut server = pingora_server(&folder, &meeting.socket, is_upgrade);
    server.add_service(Ports::new(
        listenings,
        cores.clone(),
        hear_switches,
        events.clone(),
        (config.http.listen, http_socket),
    ));
    let client = HttpClient::trusting(&config.ctl.files, config.ctl.is_insecure)?;
    let own = fleet::own(&config.name, &config.http.advertise)?;
    let joining = (own, folder.as_path(), &switches.fleet);
    let (registration, cancels) = fleet::join(joining, &clusters, &shown.listenings, &client);
    let topologies = Topologies::new(
        &config,
        (clusters, registry.clone()),
        rules.subscribe(),
        state_file,
        client,
        events,
        (cores.handles(), registration),
    );
    server.add_service(background_service("topology", topologies));
    add_pooled_services(&mut server, registry.as_ref(), &cores);
    let http = Http::new(shown.clone(), take_socket, switches.http.clone(), cancels);
    server.add_service(background_service("http", http));

    let failure: Arc<Mutex<Option<RunError>>> = Arc::default();
    let live = Live {
        file,
        config,
        rules,
        shown,
        registry,
        log,
    };
    let conductor = Conductor::new(
        live,
        cores,
        switches,
        (hear, hear_orders),
        meeting,
        origin,
        failure.clone(),
    );
    let shutdown_signal = Box::new(conductor);
    server.run(RunArgs { shutdown_signal });
    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
    failure.take().map_or(Ok(()), Err)
}

fn rules_of(config: &RouterConfig) -> Rules {
    Rules {
        max_lag: config.max_lag,
        hold_timeout: Some(config.hold_timeout),
    }
}

/// Gives the console what it acts upon. Returns where its orders are heard.
fn equip_console(
    registry: Option<&Arc<Registry>>,
    listenings: &[(SocketAddr, Arc<Listening>)],
) -> mpsc::Receiver<Order> {
    let (orders, hear) = mpsc::channel(MAX_ORDERS);
    if let Some(registry) = registry {
        let ports = listenings.iter().map(|(_, port)| port.clone());
        registry.desk.equip(orders, ports.collect());
    }
    hear
}

/// What pooled listeners have done for them from time to time.
fn add_pooled_services(server: &mut Server, registry: Option<&Arc<Registry>>, cores: &Cores) {
    let certificates = Certificates::new(registry.cloned());
    server.add_service(background_service("certificates", certificates));
    let samples = Samples::new(registry.cloned(), cores.handles());
    server.add_service(background_service("samples", samples));
}

/// How this process comes to its ports. Said before it asks for them.
fn origin_of(meeting: &Meeting, folder: &Path, is_upgrade: bool) -> Result<Origin, RunError> {
    if !is_upgrade {
        return Ok(Origin::Fresh);
    }
    let predecessor = meeting.come().map_err(|why| RunError::RuntimeFolder {
        folder: folder.to_owned(),
        why,
    })?;
    Ok(Origin::Upgrade(predecessor))
}

/// Starts the log and the metrics.
fn start_telling(config: &RouterConfig) -> Result<(Log, Metrics), RunError> {
    let style = if config.log.is_json {
        Style::json()
    } else {
        Style::plain()
    };
    let log = logging::start(LogSettings::new(&filter_of(&config.log.level), style))?;
    let metrics = Metrics::install()?;
    crate::metrics::describe();
    info!(version = env!("CARGO_PKG_VERSION"), ?config, "starting");
    Ok((log, metrics))
}

/// The log's filter: pingora tells of its own start and stop in words that would mislead here.
fn filter_of(level: &str) -> String {
    match level {
        "debug" | "trace" => {
            format!("info,pingora_core=warn,trunkline_router={level},trunkline_shared={level}")
        }
        "info" => "info,pingora_core=warn".to_owned(),
        other => other.to_owned(),
    }
}

/// The process skeleton. It takes inherited ports over here, before anything else starts.
fn pingora_server(folder: &Path, upgrade_socket: &str, is_upgrade: bool) -> Server {
    let options = Opt {
        upgrade: is_upgrade,
        ..Opt::default()
    };
    let settings = ServerConf {
        pid_file: folder.join("pingora.pid").to_string_lossy().into_owned(),
        upgrade_sock: upgrade_socket.to_owned(),
        threads: 1,
        // The conductor has waited for the sessions already when pingora hears of the end.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(Some(options), settings);
    server.bootstrap();
    server
}

/// What pooled listeners share, if there are any.
fn registry_of(config: &RouterConfig) -> Result<Option<Arc<Registry>>, RunError> {
    let Some(pooling) = config.pooling.clone() else {
        return Ok(None);
    };
    let in_force = InForce::load(pooling, &config.listeners)?;
    Ok(Some(Arc::new(Registry::new(in_force)?)))
}

fn clusters_of(config: &RouterConfig, state_file: &StateFile) -> Arc<Clusters> {
    let databases = config.pooling.as_ref().and_then(|p| p.databases.as_ref());
    let of_ports = Scopes::of(&config.listeners, None).named;
    let scopes = Scopes::of(&config.listeners, databases);
    Arc::new(Clusters::new(scopes, of_ports, state_file.clusters()))
}

fn listenings_of(
    config: &RouterConfig,
    clusters: &Arc<Clusters>,
    registry: Option<&Arc<Registry>>,
) -> Vec<(SocketAddr, Arc<Listening>)> {
    let limits = Arc::new(Limits::default());
    let own = |listener: &ListenerConfig| {
        let (hold, limits) = (config.hold_timeout, limits.clone());
        let listening = Listening::new(listener, hold, clusters, limits, registry.cloned());
        (listener.listen, Arc::new(listening))
    };
    config.listeners.iter().map(own).collect()
}

/// The folder for the pid file and the upgrade socket: systemd's, or one of this user's own. Its name holds
/// the HTTP address, which no other router of this machine can have.
fn runtime_folder(http: SocketAddr) -> Result<PathBuf, RunError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "systemd and the session manager hand the folder over in the environment"
    )]
    let base = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|folder| !folder.is_empty())
        .map_or_else(
            || {
                let uid = rustix::process::getuid().as_raw();
                PathBuf::from(format!("/tmp/trunkline-router-{uid}"))
            },
            PathBuf::from,
        );
    private_folder(&base)?;
    let folder = base.join(format!("router-{http}"));
    private_folder(&folder)?;
    Ok(folder)
}

/// Makes the folder, or checks that it is ours and nobody else's.
fn private_folder(folder: &Path) -> Result<(), RunError> {
    let failed = |why: io::Error| RunError::RuntimeFolder {
        folder: folder.to_owned(),
        why,
    };
    match std::fs::DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let found = std::fs::symlink_metadata(folder).map_err(failed)?;
    if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() {
        let text = "it exists and is not a folder of this user";
        return Err(failed(io::Error::other(text)));
    }
    if found.permissions().mode() & 0o077 != 0 {
        let private = std::fs::Permissions::from_mode(FOLDER_MODE);
        std::fs::set_permissions(folder, private).map_err(failed)?;
    }
    Ok(())
}
