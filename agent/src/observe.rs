//! Fills an [`Observation`]: asks every source, each with a limit, and never judges.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{RwLock, watch};
use trunkline_shared::cluster::slots::SlotKind;
use trunkline_shared::cluster::{LeaderEpoch, Lsn, MemberName, Moment, SystemId, Topology};
use trunkline_shared::dcs::watch::View;
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::tls::Reloadable;

use crate::config::WatchdogConfig;
use crate::decide::Observation;
use crate::decide::observation::SyncNames;
use crate::decide::observation::{
    CommitsView, DcsView, FenceView, JobView, LeaseView, Local, LocalRequest, Me, Running,
    RunningRole, SenderView, SlotView, Stopped, SynchronizedSlots, WatchdogView,
};
use crate::fence::FenceHandle;
use crate::lease::LeaseStatus;
use crate::lease::arming::Arming;
use crate::lease::promise::Promises;
use crate::postgres::control_data::{ControlData, ControlState};
use crate::postgres::directory::{DirectoryState, directory_state};
use crate::postgres::health::HealthProbe;
use crate::postgres::sql::SqlError;
use crate::postgres::status::Slot;
use crate::postgres::{Postgres, Postmaster, Probe, ServerStatus, missing_wal, settings};
use crate::watchdog::{self, Readiness};

pub mod config_kept;
mod host;
mod known_store;
pub mod members_kept;
pub mod peers;
mod scheduled;
pub mod store_beside;
pub mod store_kept;

use config_kept::ConfigKept;
use members_kept::MembersKept;
use store_beside::StoreBeside;
use store_kept::StoreKept;

/// The longest wait for the answer of the local instance.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// The shortest such wait, near the end of a lease.
const LEAST_STATUS_LIMIT: Duration = Duration::from_millis(50);

/// How long before the end of a lease PostgreSQL is waited for no longer.
const STOP_MARGIN: Duration = Duration::from_millis(400);

/// The age given to a view of a store that went back: older than any setting allows to act on.
const NOT_BELIEVED: Duration = Duration::from_secs(365 * 86_400);

/// Everything that is looked at.
pub struct Observer {
    /// This member.
    pub me: Arc<Me>,
    /// The local instance.
    pub postgres: Arc<Postgres>,
    /// The cluster.
    pub cluster: watch::Receiver<Arc<View>>,
    /// The right to lead.
    pub lease: watch::Receiver<LeaseStatus>,
    /// The fence.
    pub fence: Arc<RwLock<FenceHandle>>,
    /// Its deadline.
    pub arming: Arc<Arming>,
    /// The watchdog that the fence keeps, and where that says how it stands.
    pub watchdog: (WatchdogConfig, PathBuf),
    /// Writes to the host's disks.
    pub health: HealthProbe,
    /// Asks the other members' agents.
    pub client: Arc<Reloadable<HttpClient>>,
    /// What this member promised to others.
    pub promises: Promises,
    /// What the local instance was before.
    pub before: Before,
    /// The configuration, should the DCS lose it.
    pub config: ConfigKept,
    /// The store, for an agent that is restarted.
    pub store: StoreKept,
    /// The same for one that is restarted after a boot.
    pub beside: StoreBeside,
    /// The members, for one that is restarted after a boot.
    pub members: MembersKept,
}

/// What is remembered of the local instance from look to look.
#[derive(Debug, Default)]
pub struct Before {
    /// The identity of the data, until the directory is replaced.
    system_id: Option<SystemId>,
    /// Since when it does not answer, and which postmaster that was.
    silent_since: Option<(i32, Moment)>,
    /// The postmaster that has answered, and its last answer.
    answered: Option<(i32, Box<ServerStatus>)>,
    /// The furthest position seen, for the instance that crashed.
    position: Option<Lsn>,
    /// When the postmaster ended without being told to.
    crashed_at: Option<Moment>,
    /// The end of the postmaster that was already taken into account.
    seen_end: Option<Moment>,
    /// The postmaster ended before it was ever ready.
    failed_start: Option<String>,
    /// How the watchdog stood.
    watchdog: Option<Readiness>,
    /// What the host does to it.
    host: host::Host,
}

impl Before {
    /// Why the last start failed after its postmaster had been started; told once.
    pub fn take_failed_start(&mut self) -> Option<String> {
        self.failed_start.take()
    }

    /// The data directory is about to be made anew or taken back: what was known of it is void.
    pub fn forget(&mut self) {
        *self = Before {
            seen_end: self.seen_end,
            watchdog: self.watchdog.take(),
            ..Before::default()
        };
    }
}

/// An observation with the instance's whole answer, which the API shows.
#[derive(Debug)]
pub struct Look {
    /// What may influence a decision.
    pub observation: Observation,
    /// The instance's answer.
    pub status: Option<Box<ServerStatus>>,
    /// When the store last answered.
    pub dcs_proven_at: Option<Moment>,
    /// Under which epoch the agent before led, while this one has not found out whether it still does.
    pub left_behind: Option<LeaderEpoch>,
}

/// What a look is to contain beside the sources.
#[derive(Debug)]
pub struct Circumstances {
    /// The long jobs.
    pub job: JobView,
    /// An operator's request of this member.
    pub request: Option<LocalRequest>,
    /// The agent was told to end.
    pub is_shutting_down: bool,
    /// Whom to ask, and where, if the other members' agents are to be asked.
    pub asked: Option<BTreeMap<MemberName, Arc<str>>>,
}

impl Observer {
    /// One look at everything.
    pub async fn look(&mut self, now: Circumstances) -> Look {
        let client = self.client.current();
        let is_stopping = now
            .job
            .running
            .as_ref()
            .is_some_and(|job| job.kind.is_stop());
        let postgres = self.postgres.clone();
        let limit = self.status_limit();
        // Only what runs is to be stopped; the deadline moves with each renewal.
        let left = || {
            let deadline = self.arming.deadline();
            let deadline = deadline.filter(|_| postgres.adopt().is_some());
            peers::stop_is_due_in(clock::now(), deadline)
        };
        let asking = peers::ask_in_time(&client, &mut self.cluster, now.asked, left);
        let local = look_at_instance(&postgres, &mut self.before, is_stopping, limit);
        let ((local, status), (view, peers)) = tokio::join!(local, asking);
        let fence = self.fence_view().await;
        let health = self.before.host.view(&self.health, postgres.adopt());
        let (lease, left_behind) = {
            let status = self.lease.borrow_and_update();
            (status.view.clone(), status.left_behind)
        };
        // After the lease: a promise that was given before it was shown as held is seen.
        let no_race = self.promises.no_race();
        let looked_at = clock::now();
        let (topology, lost_config) = self.config.lay_over(&view, &local, &now.job);
        self.store.keep(&view);
        let mut store = self.store.view(&view, &topology);
        store.is_unproved &= !self.beside.speaks(&view);
        let observation = Observation {
            now: looked_at,
            me: self.me.clone(),
            dcs: dcs_view(&view, topology, looked_at),
            store,
            lost_config,
            lease,
            local,
            peers,
            job: now.job,
            request: now.request,
            fence,
            health,
            no_race,
            is_shutting_down: now.is_shutting_down,
            is_bootstrap_unfinished: self.postgres.is_bootstrap_unfinished(),
            scheduled: scheduled::due(&view),
            chance: fastrand::u32(..),
        };
        Look {
            observation,
            status,
            dcs_proven_at: view.proven_at,
            left_behind,
        }
    }

    /// A hung instance must not be waited for into the time in which it has to be stopped.
    fn status_limit(&self) -> Duration {
        let held = match self.lease.borrow().view {
            LeaseView::Held(held) => Some(held.deadline),
            LeaseView::NotHeld | LeaseView::Lost => None,
        };
        // A restarted agent holds nothing yet, and the deadline it found armed stands all the same.
        let deadline = [held, self.arming.deadline()].into_iter().flatten().min();
        deadline.map_or(STATUS_LIMIT, |deadline| {
            let left = clock::now().until(deadline.before(STOP_MARGIN));
            left.clamp(LEAST_STATUS_LIMIT, STATUS_LIMIT)
        })
    }

    fn watchdog_view(&mut self) -> WatchdogView {
        let (config, run_dir) = &self.watchdog;
        let now = watchdog::readiness(config, run_dir);
        if let Readiness::Failed(why) = &now
            && self.before.watchdog.as_ref() != Some(&now)
        {
            tracing::warn!(why, "the watchdog is required and cannot be used");
        }
        let view = match &now {
            Readiness::NotRequired => WatchdogView::NotRequired,
            Readiness::Ready => WatchdogView::Ready,
            Readiness::Failed(_) => WatchdogView::Failed,
        };
        self.before.watchdog = Some(now);
        view
    }

    /// A fence that is being replaced is not live.
    async fn fence_view(&mut self) -> FenceView {
        let is_live = match self.fence.try_read() {
            Ok(fence) => fence.is_live(clock::now()),
            Err(_) => false,
        };
        FenceView {
            is_live,
            armed_until: self.arming.deadline(),
            watchdog: self.watchdog_view(),
        }
    }
}

fn dcs_view(view: &View, topology: Arc<Topology>, now: Moment) -> DcsView {
    if !view.is_complete {
        return DcsView::Unknown;
    }
    let age = match (&view.went_back, view.proven_at) {
        (None, Some(at)) => now.since(at),
        (Some(_), _) | (None, None) => NOT_BELIEVED,
    };
    DcsView::Known { topology, age }
}

type Seen = (Local, Option<Box<ServerStatus>>);

async fn look_at_instance(
    postgres: &Postgres,
    before: &mut Before,
    is_stopping: bool,
    limit: Duration,
) -> Seen {
    match postgres.probe(limit).await {
        Probe::Answer(mut status) => {
            let known = before.answered.iter();
            known.for_each(|(_, known)| status.goes_on_from(known));
            before.silent_since = None;
            before.crashed_at = None;
            before.system_id = Some(status.system_id);
            before.position = Some(status.position());
            let pid = postgres.adopt().map_or(0, |id| id.pid);
            before.answered = Some((pid, status.clone()));
            (Local::Running(running(postgres, &status)), Some(status))
        }
        Probe::Starting | Probe::Unresponsive(SqlError::NotAccepting { .. }) => {
            (silent(postgres, before, true).await, None)
        }
        // It answers; that it lets this session in no more says nothing about its role.
        Probe::Unresponsive(SqlError::Refused { message, .. }) => match &before.answered {
            Some((_, status)) if is_still_true(postgres, before) => {
                // Also the one question that met the very end of recovery.
                tracing::debug!(message, "PostgreSQL refused to answer");
                let status = Box::new(status.of_before());
                (Local::Running(running(postgres, &status)), Some(status))
            }
            Some(_) | None => {
                tracing::warn!(message, "PostgreSQL refuses the agent's session");
                (silent(postgres, before, true).await, None)
            }
        },
        Probe::Unresponsive(error) => {
            tracing::warn!(%error, "PostgreSQL does not answer");
            (silent(postgres, before, false).await, None)
        }
        Probe::Stopping => (silent(postgres, before, false).await, None),
        Probe::NotRunning { is_dead } => {
            note_end(postgres, before, is_stopping);
            let local = if is_dead {
                not_running(postgres, before).await
            } else {
                orphaned(postgres, before).await
            };
            (local, None)
        }
    }
}

/// Whether the last answer can still be so: from the same postmaster, and, if it was in recovery, with the
/// file in place that PostgreSQL removes before it opens for writes.
fn is_still_true(postgres: &Postgres, before: &Before) -> bool {
    let pid = postgres.adopt().map_or(0, |id| id.pid);
    before.answered.as_ref().is_some_and(|(of, status)| {
        let stays = !status.is_in_recovery || is_set_to_recover(&postgres.config().data_dir);
        *of == pid && stays
    })
}

/// An end that no stop job asked for is a crash.
fn note_end(postgres: &Postgres, before: &mut Before, is_stopping: bool) {
    before.silent_since = None;
    let Postmaster::Exited { id, at, .. } = *postgres.watch_postmaster().borrow() else {
        return;
    };
    if before.seen_end == Some(at) {
        return;
    }
    before.seen_end = Some(at);
    let mut answered = before.answered.iter();
    let has_answered = answered.any(|(pid, _)| *pid == id.pid);
    if is_stopping {
        before.crashed_at = None;
    } else if has_answered {
        before.crashed_at = Some(at);
    } else {
        let log = &postgres.config().log_file;
        let said = crate::postgres::process::last_lines_of(log);
        before.failed_start = Some(format!("PostgreSQL ended while starting: {said}"));
    }
}

/// The identity of the data, if it can be read. That a live instance's cannot must not make it harmless.
async fn system_id(postgres: &Postgres, before: &mut Before) -> Option<SystemId> {
    if before.system_id.is_none() {
        match tokio::time::timeout(STATUS_LIMIT, postgres.control_data()).await {
            Ok(Ok(data)) => before.system_id = Some(data.system_id),
            Ok(Err(error)) => tracing::warn!(%error, "the data directory's identity is unreadable"),
            Err(_) => {
                tracing::warn!("the data directory's identity was not read in {STATUS_LIMIT:?}")
            }
        }
    }
    before.system_id
}

/// The postmaster lives and gave no answer.
async fn silent(postgres: &Postgres, before: &mut Before, may_be_starting: bool) -> Local {
    let system_id = system_id(postgres, before).await;
    let pid = postgres.adopt().map_or(0, |id| id.pid);
    let since = match before.silent_since {
        Some((of, since)) if of == pid => since,
        Some(_) | None => clock::now(),
    };
    before.silent_since = Some((pid, since));
    // Who hangs carries a promotion out as soon as it goes on.
    let recovers = is_set_to_recover(&postgres.config().data_dir) && !postgres.is_promoting();
    match &before.answered {
        Some((of, status)) if *of == pid || !may_be_starting => Local::Unresponsive {
            since,
            was_primary: !status.is_in_recovery || !recovers,
            system_id,
        },
        Some(_) | None => Local::Starting {
            since,
            as_primary: !recovers,
            system_id,
        },
    }
}

/// Whether the directory holds the file that makes PostgreSQL stay in recovery; with the other alone it leaves it by itself.
fn is_set_to_recover(data_dir: &Path) -> bool {
    data_dir.join("standby.signal").exists()
}

/// Whether PostgreSQL recovers to a target, and then accepts writes by itself.
fn recovers_to_target(data_dir: &Path) -> bool {
    data_dir.join("recovery.signal").exists() && !is_set_to_recover(data_dir)
}

/// Server processes live without a postmaster. Whatever has become of the directory, they may still commit:
/// where nothing says otherwise they count as a primary's.
async fn orphaned(postgres: &Postgres, before: &mut Before) -> Local {
    let is_set = is_set_to_recover(&postgres.config().data_dir);
    let was_primary = match &before.answered {
        Some((_, status)) => !status.is_in_recovery || !is_set,
        None => match tokio::time::timeout(STATUS_LIMIT, postgres.control_data()).await {
            Ok(Ok(data)) => {
                before.system_id = Some(data.system_id);
                !data.state.is_in_recovery() && !is_set
            }
            Ok(Err(_)) | Err(_) => true,
        },
    };
    Local::Orphaned {
        was_primary,
        system_id: before.system_id,
    }
}

async fn not_running(postgres: &Postgres, before: &mut Before) -> Local {
    let config = postgres.config();
    let data_dir = &config.data_dir;
    let state = directory_state(&config);
    match state {
        DirectoryState::Empty => return Local::Empty,
        DirectoryState::Present | DirectoryState::Rewinding => {}
        DirectoryState::Incomplete => {
            let why = format!(
                "{} holds files and is no whole data directory; mount the right disk, or empty it",
                data_dir.display()
            );
            return Local::Unknown(Arc::from(why.as_str()));
        }
        DirectoryState::Lost => {
            let why = format!(
                "{} is missing while a directory set aside stands beside it; rename the one to keep",
                data_dir.display()
            );
            return Local::Unknown(Arc::from(why.as_str()));
        }
    }
    let data = match postgres.control_data().await {
        Ok(data) => data,
        Err(error) => return Local::Unknown(Arc::from(error.to_string().as_str())),
    };
    before.system_id = Some(data.system_id);
    // A base backup of a primary looks like a crashed primary, but for its label.
    let is_copy = data_dir.join("backup_label").exists() || recovers_to_target(data_dir);
    let was_primary = !data.state.is_in_recovery() && !is_set_to_recover(data_dir) && !is_copy;
    let is_half_rewound = state == DirectoryState::Rewinding;
    Local::Stopped(stopped(&data, before, was_primary, is_half_rewound))
}

fn stopped(
    data: &ControlData,
    before: &Before,
    was_primary: bool,
    is_half_rewound: bool,
) -> Stopped {
    let is_clean = matches!(
        data.state,
        ControlState::ShutDown | ControlState::ShutDownInRecovery
    );
    let known = data.checkpoint.max(data.min_recovery_end);
    // What a replica received and never replayed is none of its data, and is taken away where the history left it.
    let position = match before.position {
        Some(seen) if !is_clean && was_primary => known.max(seen),
        Some(_) | None => known,
    };
    Stopped {
        system_id: data.system_id,
        timeline: data.newest_timeline(),
        checkpoint: data.checkpoint,
        redo: data.redo,
        position,
        is_clean,
        was_primary,
        is_half_rewound,
        crashed_at: before.crashed_at,
    }
}

fn running(postgres: &Postgres, status: &ServerStatus) -> Running {
    let slots = status.slots.iter().map(|slot| {
        let is_own = slot.is_physical || !status.is_in_recovery;
        slot_view(slot, is_own || postgres.is_proved(&slot.name))
    });
    Running {
        system_id: status.system_id,
        timeline: status.timeline,
        role: role(status),
        slots: Arc::new(slots.collect()),
        has_pending_restart: !postgres.pending_restart(status).is_empty(),
        is_wal_gone: status.is_in_recovery && is_wal_gone(postgres, status),
        has_read_all: status.has_read_all,
        is_promoting: status.is_in_recovery
            && (postgres.is_promoting() || recovers_to_target(&postgres.config().data_dir)),
        major: status.version / 10_000,
        synchronized: synchronized(postgres, status.version / 10_000),
        commits: commits(postgres, status),
    }
}

fn synchronized(postgres: &Postgres, major: u32) -> SynchronizedSlots {
    if !postgres.may_synchronize_slots(major) {
        return SynchronizedSlots::NotOurs;
    }
    match postgres.synchronized_slots() {
        None => SynchronizedSlots::Unset,
        Some(names) => SynchronizedSlots::Set(Arc::new(names.into_iter().map(Arc::from).collect())),
    }
}

fn commits(postgres: &Postgres, status: &ServerStatus) -> CommitsView {
    let senders = status.senders.iter().map(|sender| SenderView {
        name: MemberName::new(&sender.application_name),
        is_streaming: sender.state == "streaming",
        flushed: sender.flushed.unwrap_or_default(),
    });
    CommitsView {
        senders: Arc::new(senders.collect()),
        in_force: SyncNames::from(status.synchronous_standby_names.as_str()),
        is_checkpointer_busy: status.is_checkpointer_busy,
        own: postgres
            .sync_names()
            .map(|text| SyncNames::from(text.as_str())),
        is_access_closed: !status.is_in_recovery && postgres.is_access_closed(),
    }
}

/// PostgreSQL says only in its log why its receiver ends. What is said of WAL that has come since counts no more.
fn is_wal_gone(postgres: &Postgres, status: &ServerStatus) -> bool {
    let streams = status.receiver.as_ref().is_some_and(|r| r.is_streaming());
    let at = status.received.max(status.replayed);
    !streams && at.is_some_and(|at| missing_wal::is_missing(&postgres.config(), at))
}

fn slot_view(slot: &Slot, is_ready: bool) -> SlotView {
    let text = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
    let (kind, position) = if slot.is_physical {
        (SlotKind::Physical, slot.restart)
    } else {
        let kind = SlotKind::Logical {
            database: text(&slot.database),
            plugin: text(&slot.plugin),
        };
        (kind, slot.confirmed)
    };
    SlotView {
        name: Arc::from(slot.name.as_str()),
        kind,
        position: position.unwrap_or_default(),
        is_active: slot.is_active,
        is_temporary: slot.is_temporary,
        is_failover: slot.is_failover,
        is_synced: slot.is_synced,
        is_lost: slot.wal_status.as_deref() == Some("lost") || slot.is_invalid,
        has_xmin: slot.has_xmin,
        is_ready,
    }
}

fn role(status: &ServerStatus) -> RunningRole {
    if status.is_in_recovery {
        RunningRole::Replica {
            received: status.received.unwrap_or_default(),
            replayed: status.replayed.unwrap_or_default(),
            upstream: upstream(&status.conninfo),
            is_streaming: status.receiver.as_ref().is_some_and(|r| r.is_streaming()),
        }
    } else {
        RunningRole::Primary {
            position: status.current.unwrap_or_default(),
            is_checkpointed: status.checkpoint_timeline == status.timeline,
        }
    }
}

/// Host and port of a `primary_conninfo`, IPv6 in brackets as in a member's record.
fn upstream(conninfo: &str) -> Option<Arc<str>> {
    let host = settings::conninfo_field(conninfo, "host")?;
    let port = settings::conninfo_field(conninfo, "port").unwrap_or_else(|| "5432".to_owned());
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    Some(Arc::from(address.as_str()))
}
