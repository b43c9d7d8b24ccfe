//! All that may influence a decision, as plain data. `observe` writes it, `decide` reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::callbacks::Callback;
use trunkline_shared::cluster::slots::SlotKind;
use trunkline_shared::cluster::switchover::Drain;
use trunkline_shared::cluster::{
    LeaderEpoch, Lsn, MemberName, Moment, SystemId, Tags, Timeline, Topology,
};

pub use super::store::{Doubt, PeerStore, Shown, StoreView};
pub use super::sync_standbys::SyncNames;
pub use job::{FinishedJob, JobKind, JobView, RunningJob, SourceTrouble};

mod job;

/// One look at the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When the look was complete.
    pub now: Moment,
    /// This member.
    pub me: Arc<Me>,
    /// The cluster, as the DCS shows it.
    pub dcs: DcsView,
    /// Whether the DCS is the one that was known.
    pub store: StoreView,
    /// The text of the `config` key, if the DCS has lost that: the settings shown are those of before.
    pub lost_config: Option<Arc<str>>,
    /// The right to lead.
    pub lease: LeaseView,
    /// The local instance.
    pub local: Local,
    /// What the other members' agents answered.
    pub peers: Peers,
    /// The long job in progress, and the last one that ended.
    pub job: JobView,
    /// What an operator asked of this member alone.
    pub request: Option<LocalRequest>,
    /// The fence.
    pub fence: FenceView,
    /// Whether the host lets PostgreSQL work.
    pub health: HealthView,
    /// What this member promised to others.
    pub no_race: NoRace,
    /// The agent was told to end.
    pub is_shutting_down: bool,
    /// The data here was made for a new cluster whose identity was never recorded: nobody's yet.
    pub is_bootstrap_unfinished: bool,
    /// When the switchover that the DCS shows is to happen, where it is scheduled.
    pub scheduled: Option<Due>,
    /// Drawn anew for every look, for choices among equals.
    pub chance: u32,
}

/// A time of the wall clock as seen from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It comes.
    In(Duration),
    /// It has come.
    Ago(Duration),
    /// It cannot be read.
    Unreadable,
}

/// What does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// This member's name.
    pub name: MemberName,
    /// Its PostgreSQL's host and port, as the others reach it.
    pub address: Arc<str>,
    /// Its tags.
    pub tags: Tags,
    /// What to do when PostgreSQL crashes.
    pub crash_policy: CrashPolicy,
    /// Whether a diverged data directory that is not rewound may be replaced by a new clone: Patroni's
    /// `remove_data_directory_on_diverged_timelines`; true where the file is silent (`ha.md` 5.8).
    pub may_replace_data: bool,
    /// The same after a rewind that failed: `remove_data_directory_on_rewind_failure`.
    pub may_replace_unrewound: bool,
    /// `postgresql.use_pg_rewind` of this member's file, over the cluster's.
    pub use_pg_rewind: Option<bool>,
    /// The events for which the operator has a script.
    pub callbacks: BTreeSet<Callback>,
    /// A replica can be made while nobody leads.
    pub can_clone_without_leader: bool,
    /// How this member makes a cluster.
    pub bootstrap: BootstrapKind,
    /// The operator has a script that must allow a promotion.
    pub has_pre_promote: bool,
}

/// How a member makes a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BootstrapKind {
    /// By initdb.
    #[default]
    Initdb,
    /// By a command of the operator's, ready to start as primary.
    Custom,
    /// The same, and PostgreSQL first recovers to a target; then it accepts writes by itself.
    CustomRecovering,
}

/// `trunkline.crash_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CrashPolicy {
    /// Restart in place when little is to be replayed, else fail over.
    #[default]
    Auto,
    /// Always restart in place.
    Restart,
    /// Fail over whenever somebody can take over.
    Failover,
}

/// The cluster, as the DCS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DcsView {
    /// Never read since the agent started.
    Unknown,
    /// The last view.
    Known {
        /// The cluster.
        topology: Arc<Topology>,
        /// How long ago the store last proved that this is the newest: an answer, or a sign of life of
        /// the watch.
        age: Duration,
    },
}

/// The right to lead, as the lease task knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseView {
    /// This member's name is not known to stand in the leader key.
    NotHeld,
    /// It stands there, confirmed by a counted renewal.
    Held(Held),
    /// It was held, and the key is somebody else's now: a definite no.
    Lost,
}

/// A held lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The epoch of this leadership.
    pub epoch: LeaderEpoch,
    /// Until when this member may act as leader (`ha.md` 3).
    pub deadline: Moment,
    /// The last renewal found no leader key at all; it may be created again while the deadline lies ahead.
    pub is_key_missing: bool,
    /// A hand-over or a release was sent and its outcome is not known. It may still be executed, so the
    /// deadline protects nothing: only writing the key again makes it impossible.
    pub has_unresolved_hand_over: bool,
    /// The deadline was last moved by the consent of every member of the failsafe list, not by the DCS.
    pub is_by_failsafe: bool,
}

/// The local instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// It cannot be said: the data directory is unreadable or not what it was.
    Unknown(Arc<str>),
    /// The data directory is empty or absent, and nothing stands beside it.
    Empty,
    /// There is data, and no server process of it.
    Stopped(Stopped),
    /// The postmaster lives and does not accept connections yet.
    Starting {
        /// Since when.
        since: Moment,
        /// Whether it will accept writes when it has started.
        as_primary: bool,
        /// The system identifier of its data, where it could be read.
        system_id: Option<SystemId>,
    },
    /// It answers.
    Running(Running),
    /// The postmaster lives and did answer before, but does not now.
    Unresponsive {
        /// Since when.
        since: Moment,
        /// Whether it accepted writes when it last answered.
        was_primary: bool,
        /// The system identifier of its data, where it could be read.
        system_id: Option<SystemId>,
    },
    /// The postmaster is dead and server processes of it still live: a busy backend survives its
    /// postmaster's SIGKILL and can still commit.
    Orphaned {
        /// Whether it accepted writes; true where that is not known.
        was_primary: bool,
        /// The system identifier of its data, where it is known: its directory may be gone or unreadable.
        system_id: Option<SystemId>,
    },
}

/// A stopped instance, by its control data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The identity of its data.
    pub system_id: SystemId,
    /// The timeline of its last checkpoint.
    pub timeline: Timeline,
    /// Where its last checkpoint record begins.
    pub checkpoint: Lsn,
    /// Where the replay of a restart would begin.
    pub redo: Lsn,
    /// The furthest position known to be in its WAL: for a replica the minimum recovery point.
    pub position: Lsn,
    /// It was shut down, as a primary or in recovery.
    pub is_clean: bool,
    /// It last ran as a primary.
    pub was_primary: bool,
    /// A rewind of it began and did not end: its pages are of two histories, and only a copy mends it.
    pub is_half_rewound: bool,
    /// It ended without being told to, at this time.
    pub crashed_at: Option<Moment>,
}

/// A running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The identity of its data.
    pub system_id: SystemId,
    /// Its timeline.
    pub timeline: Timeline,
    /// What it is.
    pub role: RunningRole,
    /// Its replication slots.
    pub slots: Arc<Vec<SlotView>>,
    /// Parameters were changed that need a restart.
    pub has_pending_restart: bool,
    /// Its major version.
    pub major: u32,
    /// Whom consumers of `failover` slots wait for.
    pub synchronized: SynchronizedSlots,
    /// The upstream has removed the WAL that this replica needs next, as it said when it was asked last.
    pub is_wal_gone: bool,
    /// A replica has replayed every whole record that it has, and waits for more.
    pub has_read_all: bool,
    /// Promotion was signalled to this very postmaster: it will accept writes by itself, and only a stop
    /// of the instance takes that back.
    pub is_promoting: bool,
    /// Whom its commits wait for, and who could be waited for.
    pub commits: CommitsView,
}

/// Whom commits wait for, and who could be waited for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CommitsView {
    /// Who receives WAL from this instance.
    pub senders: Arc<Vec<SenderView>>,
    /// `synchronous_standby_names`, as it is in force.
    pub in_force: SyncNames,
    /// The checkpointer does something else than to wait for its next turn: it may not have told the
    /// sessions yet that commits wait for somebody.
    pub is_checkpointer_busy: bool,
    /// What the agent's own file says; `None` if there is no such file.
    pub own: Option<SyncNames>,
    /// The server was started without access for clients, and they are not let in yet.
    pub is_access_closed: bool,
}

/// A connected receiver of WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderView {
    /// The name it gave itself: a member's.
    pub name: MemberName,
    /// It has caught up and streams.
    pub is_streaming: bool,
    /// Flushed there up to here.
    pub flushed: Lsn,
}

/// `synchronized_standby_slots`, as far as it is the agent's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SynchronizedSlots {
    /// The version does not know it, or the user has set it.
    #[default]
    NotOurs,
    /// The agent has no file of it.
    Unset,
    /// What the agent's own file says.
    Set(Arc<BTreeSet<Arc<str>>>),
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Its name.
    pub name: Arc<str>,
    /// What it is for.
    pub kind: SlotKind,
    /// Where it stands: WAL is kept from here for a physical one, and sent from here by a logical one; zero
    /// while it reserves none.
    pub position: Lsn,
    /// Somebody streams through it.
    pub is_active: bool,
    /// It ends with its session.
    pub is_temporary: bool,
    /// PostgreSQL itself keeps it on standbys (17 and later).
    pub is_failover: bool,
    /// PostgreSQL itself made it here after the leader's.
    pub is_synced: bool,
    /// What it should have kept is gone.
    pub is_lost: bool,
    /// It holds back vacuum.
    pub has_xmin: bool,
    /// A copy of the leader's logical slot that a consumer may go on with; true of a primary's own.
    pub is_ready: bool,
}

/// What a running instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunningRole {
    /// It accepts writes.
    Primary {
        /// Its current position.
        position: Lsn,
        /// The first checkpoint on its timeline is done: others may rewind from it.
        is_checkpointed: bool,
    },
    /// It is in recovery.
    Replica {
        /// How far it has received.
        received: Lsn,
        /// How far it has replayed.
        replayed: Lsn,
        /// Host and port of its `primary_conninfo`.
        upstream: Option<Arc<str>>,
        /// Its WAL receiver streams.
        is_streaming: bool,
    },
}

/// What the other members' agents answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// The last decision did not want them asked.
    NotAsked,
    /// All other members were asked in parallel.
    Asked(Arc<BTreeMap<MemberName, PeerAnswer>>),
}

/// One peer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAnswer {
    /// No answer within the time.
    Unreachable,
    /// Its agent answered.
    Answered(PeerView),
}

/// A peer, by its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Its PostgreSQL answers queries.
    pub is_running: bool,
    /// Its PostgreSQL runs and is not in recovery.
    pub is_primary: bool,
    /// Its timeline, if known.
    pub timeline: Option<Timeline>,
    /// The furthest of received and replayed, or the current position of a primary.
    pub position: Lsn,
    /// How far it has replayed.
    pub replayed: Lsn,
    /// WAL streams to it, as it says; `None` where it does not.
    pub is_streaming: Option<bool>,
    /// An operator has paused its replay.
    pub is_replay_paused: bool,
    /// It may be promoted by its tags, its watchdog and what it has promised, and has not just given the lease up.
    pub may_lead: bool,
    /// Its preference among equals.
    pub priority: u32,
    /// Its volumes are nearly full.
    pub is_nearly_full: bool,
    /// The DCS as it knows it; a Patroni member does not say.
    pub store: Option<PeerStore>,
    /// It has read all WAL that lies there. After a restart `position` is only how far it has replayed, until it has.
    pub has_read_all: bool,
    /// Of when the answer is.
    pub looked: Looked,
}

/// When a peer looked at its PostgreSQL for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// When it was asked: Patroni.
    Asked,
    /// In its last turn, up to a `loop_wait` before, which saw this leader, or nobody.
    InTurn(Option<MemberName>),
}

/// What an operator asked of this member alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalRequest {
    /// Restart PostgreSQL; on a leader clients are held for it as this says.
    Restart(Drain),
    /// Replace the data by a new clone.
    Reinitialize,
}

/// What keeps this member from beginning to lead although nobody leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NoRace {
    /// What was promised in this boot.
    pub promise: Option<Promise>,
    /// When the first agent of this boot started: what was promised before is not known.
    pub booted: Option<Moment>,
}

/// A promise not to run for leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Until when.
    pub until: Moment,
    /// Under which epoch the asker led; a Patroni leader does not say.
    pub epoch: Option<LeaderEpoch>,
    /// How far it had written then, where it said so: it could not publish that.
    pub reached: Option<Reached>,
}

/// A position, and the timeline on which it lies.
pub type Reached = (Timeline, Lsn);

/// What a leader asks that the DCS does not answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Under which epoch it leads; Patroni does not say.
    pub epoch: Option<LeaderEpoch>,
    /// For how long nobody is to run.
    pub ttl: Duration,
    /// How far it has written, where it says so.
    pub reached: Option<Reached>,
}

/// Whether the host lets PostgreSQL work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HealthView {
    /// When the write in progress began: of WAL, or of a file beside the data. Each is short on a sound host.
    pub writes_since: Option<Moment>,
    /// A volume of the instance is nearly full.
    pub is_nearly_full: bool,
    /// Since when the postmaster was found stopped, by a signal or a debugger, at every look: sessions that are open go
    /// on, and none can begin.
    pub postmaster_stopped_since: Option<Moment>,
}

/// The fence process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceView {
    /// It holds its lock and stamped its heartbeat within a second.
    pub is_live: bool,
    /// When it fires unless that moment is moved; `None` while it sleeps. It outlives the agent, so it may
    /// stand where no lease is held yet.
    pub armed_until: Option<Moment>,
    /// The watchdog that the fence keeps.
    pub watchdog: WatchdogView,
}

/// The watchdog, as far as rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WatchdogView {
    /// This member may lead without one.
    #[default]
    NotRequired,
    /// It counts, or could.
    Ready,
    /// It is required and cannot be used.
    Failed,
}

impl FenceView {
    /// Whether it will fire when its deadline passes.
    pub fn is_armed(&self) -> bool {
        self.armed_until.is_some()
    }
}
