//! Builds every component, wires their channels, owns the tasks and the order in which they end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::{Notify, RwLock, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trunkline_shared::cluster::{ClusterSettings, LeaderEpoch};
use trunkline_shared::dcs::belief::Belief;
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfigError};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::{Refresh, Remembered, View};
use trunkline_shared::dcs::{Dcs, StoreMemory, records, watch as cluster_watch};
use trunkline_shared::service::clock;
use trunkline_shared::service::logging::Log;
use trunkline_shared::service::metrics::Metrics;
use trunkline_shared::service::shutdown::Signals;
use trunkline_shared::service::tls::TlsError;

use crate::act::{Actor, jobs::Jobs};
use crate::api::{Api, Consent, LocalRequest, Lookup, Published, ScheduledRestart};
use crate::config::{AgentConfig, reload::Part};
use crate::decide::Memory;
use crate::decide::callbacks::Callback;
use crate::decide::observation::{BootstrapKind, LeaseView, Me};
use crate::fence::deadline::{self, Deadline};
use crate::fence::run_dir::{RunDir, RunDirError};
use crate::fence::supervision::{self, Pulse};
use crate::fence::{FenceError, FenceHandle};
use crate::journal::Journal;
use crate::lease::arming::Arming;
use crate::lease::promise::{Acceptor, Promises};
use crate::lease::{LeaseHandle, state};
use crate::observe::config_kept::ConfigKept;
use crate::observe::members_kept::{self, MembersKept};
use crate::observe::store_beside::StoreBeside;
use crate::observe::store_kept::{Beside, StoreKept};
use crate::observe::{Before, Observer};
use crate::postgres::directory::{DirectoryState, directory_state, finish_interrupted};
use crate::postgres::health::HealthProbe;
use crate::postgres::hooks::Callbacks;
use crate::postgres::methods::ReplicaMethod;
use crate::postgres::scan::ProcessId;
use crate::postgres::{Postgres, PostgresConfig, PostgresError};
use crate::tick::record::deadline_by;
use crate::tick::{End, Inbox, Recorder, SettingsKeeper, Tick};
use crate::watchdog::Teller;

mod host;
pub mod instance;
mod lease;
mod orphans;
mod reexecute;
mod rest;
mod service_manager;
mod signals;
mod standbys;
mod unique_name;

pub use reexecute::Inherited;
use reexecute::Successor;
use rest::Rest;
pub use unique_name::NameTaken;

/// Requests of operators that may wait for the loop.
const REQUESTS: usize = 8;

/// The longest the last writes of an ending agent may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Longest wait of an ending agent for the callbacks of its last stop.
const LAST_CALLBACKS: Duration = Duration::from_secs(10);

/// Longest wait for one start of PostgreSQL to become ready; a recovery may take hours.
const READY_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Pause before a postmaster without a lock file is looked at again.
const READY_PAUSE: Duration = Duration::from_millis(10);

/// Reads the agent's file again.
pub type ReadConfig = crate::tick::ReadConfig;

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store's section of the file cannot be used. Mend the file.
    #[error(transparent)]
    Etcd(#[from] EtcdConfigError),
    /// There is no place in memory for lease, deadline and fence.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// There is no live fence.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The local instance cannot be used.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// A certificate, its key or its CA cannot be used. Mend the file that is named.
    #[error("restapi, ctl: {0}")]
    Tls(#[from] TlsError),
    /// Another agent has this member's name.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// The system refused something every process gets.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// What the process has beside its configuration.
#[derive(Debug)]
pub struct Kept {
    /// The log.
    pub log: Log,
    /// What it has from the program before.
    pub inherited: Inherited,
}

/// Reads the files that a configuration names, as a start does.
///
/// # Errors
/// The first that cannot be used.
pub fn check_files(config: &AgentConfig) -> Result<(), RunError> {
    Rest::new(config)?;
    Ok(())
}

/// Runs the agent until it is told to end.
pub async fn run(
    config: AgentConfig,
    read: ReadConfig,
    metrics: Metrics,
    kept: Kept,
) -> Result<(), RunError> {
    let signals = Signals::new().map_err(system("taking over the signals"))?;
    let Kept { log, mut inherited } = kept;
    let scheduled = inherited.scheduled_restart.take();
    let parts = Parts::build(&config, inherited).await?;
    let stop = CancellationToken::new();
    let ready = Arc::new(Notify::new());
    let (requests, inbox) = mpsc::channel(REQUESTS);
    let published = Arc::new(ArcSwap::from_pointee(Published::before_the_first_tick(
        config.cluster.clone(),
        config.name.clone(),
        clock::now(),
    )));
    let journal = Arc::new(Journal::default());
    let api = api(&parts, &published, &requests, &journal, &metrics, &log);
    tokio::spawn(metrics.upkeep());
    let rest = parts.rest.clone();
    let mut serving = rest.clone().serve(api.clone());
    rest::resume_restart(&api, scheduled);
    let fence_stop = CancellationToken::new();
    supervision::keep(parts.fence.clone(), parts.pulse.clone(), fence_stop.clone())
        .map_err(system("starting the supervision of the fence"))?;
    let callbacks = parts.callbacks.clone();
    watch(&parts, ready.clone());
    let successor = Arc::new(Successor::new(&config, read.clone()));
    let taking = signals::take(signals, requests, stop.clone(), successor.clone());
    let mut told_twice = tokio::spawn(taking);

    let inbox = Inbox {
        shutdown: stop,
        postmaster: parts.postgres.watch_postmaster(),
        pause: successor.wanted(),
        ready,
        standbys: standbys::watched(&parts.postgres, parts.lease.status(), &parts.cluster),
        lease: parts.lease.status(),
        cluster: parts.cluster.clone(),
        requests: inbox,
    };
    let (lease, postgres, fence) = (
        parts.lease.clone(),
        parts.postgres.clone(),
        parts.fence.clone(),
    );
    let told = (published, (journal, api.scheduled_restart.clone()));
    let mut tick = parts.wire(config, read, inbox, told, log.clone());
    tracing::info!("started");
    service_manager::ready();
    loop {
        let end = tokio::select! {
            end = tick.run() => Some(end),
            _ = &mut told_twice => None,
        };
        match end {
            Some(End::Paused) => {
                serving.end().await;
                give_way(&successor, &rest, &lease, (&api, &log));
                serving = rest.clone().serve(api.clone());
                continue;
            }
            Some(End::Over) => {
                // Nobody is to replace the fence that is about to end.
                callbacks.drained(LAST_CALLBACKS).await;
                fence_stop.cancel();
                farewell(&lease, &postgres, &fence).await;
            }
            None => tracing::warn!("told twice to end: ending without waiting for PostgreSQL"),
        }
        serving.stop();
        return Ok(());
    }
}

/// Executes the program on disk; returns only if the system refuses.
fn give_way(successor: &Successor, rest: &Rest, lease: &LeaseHandle, (api, log): (&Api, &Log)) {
    let scheduled = api.scheduled_restart.handed_on();
    log.flush();
    let listener = rest.listener();
    let socket = (listener.as_deref(), rest.address());
    let error = successor.execute(settled(lease), socket, scheduled);
    tracing::error!(%error, "the program on disk was not executed, this one goes on");
}

/// Begins what goes on beside the loop until the agent ends.
fn watch(parts: &Parts, ready: Arc<Notify>) {
    tokio::spawn(parts.rest.clone().watch_files());
    tokio::spawn(orphans::reap());
    tokio::spawn(call_scripts(
        parts.callbacks.clone(),
        parts.postgres.clone(),
    ));
    tokio::spawn(say_when_ready(parts.postgres.clone(), ready));
    host::watch_disks(parts);
}

/// The epoch of the held key, if everything that could give it away has come to its end.
fn settled(lease: &LeaseHandle) -> Option<LeaderEpoch> {
    match lease.status().borrow().view {
        LeaseView::Held(held) => (!held.has_unresolved_hand_over).then_some(held.epoch),
        LeaseView::NotHeld | LeaseView::Lost => None,
    }
}

/// The API over the parts.
fn api(
    parts: &Parts,
    published: &Arc<ArcSwap<Published>>,
    requests: &mpsc::Sender<LocalRequest>,
    journal: &Arc<Journal>,
    metrics: &Metrics,
    log: &Log,
) -> Api {
    let registry = metrics.clone();
    Api {
        published: published.clone(),
        deadline: deadline_by(parts.lease.status()),
        dcs: parts.dcs.clone(),
        keys: parts.keys.clone(),
        cluster: parts.cluster.clone(),
        requests: requests.clone(),
        access: parts.rest.access(),
        lookup: Arc::new(Lookup::default()),
        journal: journal.clone(),
        scheduled_restart: ScheduledRestart::default(),
        consent: consent(parts),
        render_metrics: {
            let queue = log.queue();
            Arc::new(move || {
                metrics::counter!(crate::metrics::LOG_LINES_LOST).absolute(queue.lost());
                registry.render()
            })
        },
        log: log.queue(),
        seen: {
            let views = parts.cluster.clone();
            Arc::new(move |key| Some(views.borrow().raw.get(key)?.text.clone()))
        },
    }
}

/// How the API consents to another's going on without the DCS.
fn consent(parts: &Parts) -> Arc<Consent> {
    let acceptor = Acceptor {
        promises: parts.promises.clone(),
        lease: parts.lease.status(),
    };
    Arc::new(move |asker, asked, may_write| {
        let given = acceptor.consent(asker, asked, may_write);
        given.map_err(|refusal| refusal.to_string())
    })
}

/// The components that others share.
struct Parts {
    run_dir: RunDir,
    jobs: Jobs,
    fence: Arc<RwLock<FenceHandle>>,
    pulse: Arc<Pulse>,
    arming: Arc<Arming>,
    postgres: Arc<Postgres>,
    callbacks: Callbacks,
    keys: Keys,
    dcs: Arc<dyn Dcs>,
    lease: LeaseHandle,
    health: HealthProbe,
    cluster: watch::Receiver<Arc<View>>,
    refresh: Refresh,
    promises: Promises,
    config: ConfigKept,
    rest: Arc<Rest>,
    store: StoreKept,
    beside: StoreBeside,
}

impl Parts {
    /// The order matters: nothing is begun under a name that another agent has, the fence lives before PostgreSQL is touched, and what an earlier agent left half
    /// done is finished before anybody looks at the directory.
    async fn build(config: &AgentConfig, inherited: Inherited) -> Result<Self, RunError> {
        let data_dir = &config.postgresql.data_dir;
        let (is_successor, settled) = (inherited.is_successor, inherited.settled);
        let rest = Arc::new(Rest::new(config)?.taking_over(inherited));
        let kept = ConfigKept::read(data_dir);
        let settings = assumed_settings(config, &kept);
        let run_dir = RunDir::open(
            config.own.run_dir.as_deref(),
            config.cluster.as_str(),
            config.name.as_str(),
            data_dir,
        )?;
        let keys = Keys::new(&config.namespace, &config.cluster);
        let budgets = Budgets {
            operation: settings.retry_timeout,
            renewal: state::renew_interval(settings.ttl).max(Duration::from_secs(1)),
        };
        let (in_force, _) = config.over(&settings);
        let instance = instance::postgres_config(&in_force, &settings, run_dir.path());
        let found = found_beside(data_dir, &instance);
        let (store, remembered) = StoreKept::open(&run_dir.path().join("store"), &keys, found);
        let (beside, of_data) = StoreBeside::open(data_dir, &keys, &config.name);
        let remembered = newest(remembered, of_data);
        let belief = &remembered.belief;
        let memory = StoreMemory::remembering(belief.seen, belief.doubt.clone());
        let dcs: Arc<dyn Dcs> = Arc::new(Etcd::sharing(&config.etcd, budgets, memory.clone())?);
        let mut followed = cluster_watch::follow_from(dcs.clone(), keys.clone(), remembered);
        let client = rest.client();
        let (cluster, name) = (&config.cluster, &config.name);
        // Whoever has this member's name is then this process itself.
        if !is_successor {
            unique_name::check(cluster, name, &mut followed.views, &client.current()).await?;
        }
        let jobs = finish_earlier_work(&instance);
        let program = Path::new("/proc/self/exe");
        let fence = FenceHandle::attach_or_start(run_dir.path(), data_dir, program).await?;
        let pulse = Arc::new(Pulse::new());
        let arming = Arc::new(arming(run_dir.path(), &fence, pulse.clone()));
        let postgres = Arc::new(Postgres::new(instance)?);
        let lease = lease::start(
            config,
            &settings,
            lease::OwnDcs { budgets, memory },
            &keys,
            run_dir.path(),
            &arming,
            (&rest, settled),
        )?;
        let promises = Promises::open(&run_dir.path().join("no_race"), clock::now())
            .map_err(system("keeping promises in the run directory"))?;
        Ok(Self {
            run_dir,
            jobs,
            fence: Arc::new(RwLock::new(fence)),
            pulse,
            arming,
            postgres,
            callbacks: Callbacks::default(),
            keys,
            dcs,
            lease,
            health: HealthProbe::default(),
            cluster: followed.views,
            refresh: followed.refresh,
            promises,
            config: kept,
            rest,
            store,
            beside,
        })
    }

    /// The loop over these parts.
    fn wire(
        self,
        config: AgentConfig,
        read: ReadConfig,
        inbox: Inbox,
        (published, told): (Arc<ArcSwap<Published>>, (Arc<Journal>, ScheduledRestart)),
        log: Log,
    ) -> Tick {
        let run_dir = self.run_dir.path().to_owned();
        let mut known = members_kept::read(&config.postgresql.data_dir);
        known.extend(self.store.listed().clone());
        let memory = Memory::of_former(known, clock::now());
        let me = Arc::new(me(&config));
        let observer = Observer {
            me: me.clone(),
            postgres: self.postgres.clone(),
            cluster: self.cluster.clone(),
            lease: self.lease.status(),
            fence: self.fence.clone(),
            arming: self.arming.clone(),
            watchdog: (config.watchdog.clone(), run_dir.clone()),
            health: self.health,
            client: self.rest.client(),
            promises: self.promises,
            before: Before::default(),
            config: self.config,
            store: self.store,
            beside: self.beside,
            members: MembersKept::default(),
        };
        let actor = Actor {
            me,
            is_store_trusted: observer.store.trust(),
            postgres: self.postgres,
            lease_status: self.lease.status(),
            lease: self.lease,
            dcs: self.dcs,
            keys: self.keys,
            cluster: self.cluster,
            refresh: self.refresh,
            fence: self.fence,
            arming: self.arming,
            jobs: self.jobs,
            run_dir: self.run_dir,
            watchdog: Teller::new(config.watchdog.clone(), &run_dir),
            callbacks: self.callbacks,
            wal_to_cut: Arc::default(),
            bootstrap_config: serde_json::Value::Object(config.bootstrap.dcs.clone()).to_string(),
        };
        let recorder = Recorder::new(
            config.cluster.clone(),
            &config.restapi.api_url(),
            published,
            told,
        );
        let rest = self.rest;
        let elsewhere = Box::new(move |config: &AgentConfig| {
            let log = log.tell(config.log.clone());
            let log = log.map_err(|error| (Part::Log, error.to_string()));
            let rest = rest.take_up(config).map_err(|why| (Part::Rest, why));
            log.err().into_iter().chain(rest.err()).collect()
        });
        let settings = SettingsKeeper::new(config, run_dir, read, elsewhere);
        Tick::new(inbox, observer, actor, recorder, settings, memory)
    }
}

fn found_beside(data_dir: &Path, instance: &PostgresConfig) -> Beside {
    Beside {
        has_data: directory_state(instance) != DirectoryState::Empty,
        knew_others: !members_kept::read(data_dir).is_empty(),
    }
}

/// Of the store: what is of this boot, if there is anything.
fn newest(of_boot: Remembered, of_data: Remembered) -> Remembered {
    match of_boot.belief == Belief::default() {
        true => of_data,
        false => of_boot,
    }
}

/// What the agent assumes until the store has spoken.
fn assumed_settings(config: &AgentConfig, kept: &ConfigKept) -> ClusterSettings {
    if let Some(settings) = kept.settings() {
        return settings.clone();
    }
    let dcs = serde_json::Value::Object(config.bootstrap.dcs.clone());
    let read = records::read_value(&dcs).map(|read| read.settings);
    read.unwrap_or_default()
}

/// Finishes what an agent that was killed left half done. A rewind that it interrupted counts as failed.
fn finish_earlier_work(instance: &PostgresConfig) -> Jobs {
    match finish_interrupted(instance) {
        Ok(DirectoryState::Rewinding) => Jobs::after_interrupted_rewind(),
        Ok(_) => Jobs::default(),
        Err(error) => {
            // The first look finds the same and says it; an operator's mending is noticed there, too.
            tracing::error!(%error, "the data directory needs attention");
            Jobs::default()
        }
    }
}

fn arming(run_dir: &Path, fence: &FenceHandle, pulse: Arc<Pulse>) -> Arming {
    let found = match fence.deadline() {
        Some(Deadline::Armed(at)) => Some(at),
        Some(Deadline::Disarmed) | None => None,
    };
    let run_dir = run_dir.to_owned();
    let write = move |at: Option<_>| {
        let deadline = at.map_or(Deadline::Disarmed, Deadline::Armed);
        deadline::write(&run_dir, deadline)
    };
    Arming::new(found, Box::new(write), Box::new(move || pulse.is_young()))
}

/// This member as its file describes it.
pub(crate) fn me(config: &AgentConfig) -> Me {
    let local = &config.postgresql;
    let forbids = |setting: Option<bool>| setting == Some(false);
    Me {
        name: config.name.clone(),
        address: Arc::from(local.connect_address.to_string().as_str()),
        tags: config.tags.clone(),
        crash_policy: config.own.crash_policy,
        may_replace_data: !forbids(local.remove_data_directory_on_diverged_timelines),
        may_replace_unrewound: !forbids(local.remove_data_directory_on_rewind_failure),
        use_pg_rewind: local.use_pg_rewind,
        callbacks: Callback::ALL
            .into_iter()
            .filter(|event| local.hooks.callbacks.contains_key(event.word()))
            .collect(),
        can_clone_without_leader: local.replica_methods.iter().any(|method| match method {
            ReplicaMethod::Basebackup => false,
            ReplicaMethod::Custom(method) => method.no_leader,
        }),
        bootstrap: match &config.bootstrap.custom {
            None => BootstrapKind::Initdb,
            Some(custom) if custom.recovers() => BootstrapKind::CustomRecovering,
            Some(_) => BootstrapKind::Custom,
        },
        has_pre_promote: local.hooks.pre_promote.is_some(),
    }
}

async fn call_scripts(callbacks: Callbacks, postgres: Arc<Postgres>) {
    callbacks.serve(&postgres).await;
}

/// PostgreSQL tells nobody when it accepts connections: its lock file is watched while it starts.
async fn say_when_ready(postgres: Arc<Postgres>, ready: Arc<Notify>) {
    let mut postmaster = postgres.watch_postmaster();
    loop {
        let running = postmaster.borrow_and_update().running();
        let became = async {
            // A postmaster that has just been started may not have its lock file yet.
            while running.is_some() && postgres.wait_ready(READY_LIMIT).await.is_err() {
                tokio::time::sleep(READY_PAUSE).await;
            }
        };
        tokio::select! {
            () = became => {
                if running.is_some() {
                    ready.notify_one();
                }
                if postmaster.changed().await.is_err() {
                    return;
                }
            }
            changed = postmaster.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// The record of a stopped member is removed, and the fence, with nothing left to watch, ends.
async fn farewell(lease: &LeaseHandle, postgres: &Postgres, fence: &RwLock<FenceHandle>) {
    match timeout(FAREWELL, lease.remove_member()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the member record ends with its lease"),
        Err(_) => tracing::warn!("the DCS does not answer: the member record ends with its lease"),
    }
    if !postgres.is_dead().await {
        return;
    }
    let fence = fence.read().await;
    // A device that still counts when the fence ends would reset the machine.
    if !fence.watchdog_closed(FAREWELL).await {
        tracing::error!("the watchdog was not closed; the fence goes on beside it");
        return;
    }
    if let Some(pidfd) = fence
        .pid()
        .and_then(ProcessId::of)
        .and_then(ProcessId::open)
    {
        // It may have ended by itself; then there is nothing to end.
        let _ = pidfd_send_signal(&pidfd, Signal::TERM);
    }
    tracing::info!("ended");
}
