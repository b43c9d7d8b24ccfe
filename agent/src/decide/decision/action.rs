//! The steps a decision may consist of, each with what is true of it wherever it is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_shared::cluster::store::Told;
use trunkline_shared::cluster::switchover::LeaderChange;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::timeline::TimelineEnd;
use trunkline_shared::cluster::topology::{ClaimedTimeline, Status, SwitchoverRecord};
use trunkline_shared::cluster::{Lsn, MemberName, SystemId, Timeline};

use crate::decide::callbacks::{Callback, CallbackRole};
use crate::decide::observation::JobKind;
use crate::decide::sync_standbys::SyncNames;

/// One step. Closed list; `act` performs it without judgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the leader key if it is absent, on this member's lease.
    AcquireLeader,
    /// The leader key names this member: prove it by a counted renewal, on the lease it hangs on.
    ConfirmLeader,
    /// Rewrite the own leader key, so that a hand-over still under way can no longer succeed.
    ReassertLeader,
    /// Delete the own leader key, and `initialize` while it is empty and on the own lease, writing the
    /// final position in the same transaction. Only with the instance dead or in recovery.
    ReleaseLeader {
        /// The final position, if known.
        position: Option<Lsn>,
    },
    /// Move the leader key to a candidate that is ready, by one transaction that compares the own key and
    /// the candidate's record.
    HandOver {
        /// The candidate.
        to: MemberName,
        /// The lease the key is to hang on: the candidate's.
        lease: i64,
        /// The revision of the candidate's record.
        record_revision: i64,
        /// The final position.
        position: Lsn,
    },
    /// In one transaction: create `initialize` (empty) and `leader`, both on the lease, and `config`.
    ClaimBootstrap,
    /// Write the system identifier into `initialize`, without a lease, and `config` if it is absent.
    RecordSystemId(SystemId),
    /// Write `status`: the last known position, and the slots'.
    PublishStatus(Arc<Status>),
    /// Write the ancestry of the own timeline into `history`.
    RecordHistory,
    /// Add this change of leader to `trunkline/history`, with the time.
    RecordChange(Arc<LeaderChange>),
    /// Delete the `failover` record of this revision.
    DropFailoverRequest {
        /// Its revision.
        revision: i64,
    },
    /// Ask for a switchover to this member, as an operator would, where none is asked for.
    RequestSwitchover(MemberName),
    /// Write `trunkline/switchover`.
    AnnounceSwitchover(Arc<SwitchoverRecord>),
    /// Delete `trunkline/switchover`.
    ClearSwitchover,
    /// Write `trunkline/disarmed/<me>`, comparing the own leader key.
    WriteDisarmed,
    /// Delete `trunkline/disarmed/<me>`.
    RemoveDisarmed,
    /// Delete `trunkline/disarmed` of this member, which Patroni runs now, comparing its record, which has this
    /// revision: it has no fence, and nobody would ever take the key back.
    RemoveDisarmedOf(MemberName, i64),
    /// Make the fence fire at the lease's deadline.
    ArmFence,
    /// The instance is dead or in recovery, or maintenance is on: the fence sleeps.
    DisarmFence,
    /// initdb.
    Initialize,
    /// Roles and settings of the new cluster.
    FinishBootstrap,
    /// Start the instance.
    Start(StartAs),
    /// Stop the instance.
    Stop(StopMode),
    /// Write down, comparing the own leader key, which timeline the next promotion begins.
    ClaimTimeline(ClaimedTimeline),
    /// End recovery, beginning this timeline. Arm first.
    Promote(Timeline),
    /// A checkpoint, so that others may rewind from here.
    Checkpoint,
    /// Take away, from the stopped instance, WAL of these timelines beyond these positions.
    CutWal(Arc<[TimelineEnd]>),
    /// Replicate from this address.
    Follow(Upstream),
    /// End the sessions of clients that replay waits for, if it does.
    EndReplayConflicts,
    /// Copy the data anew.
    Clone(Upstream),
    /// Take the own history back to where it left the leader's.
    Rewind(Upstream),
    /// End the job in progress.
    CancelJob,
    /// Create these physical slots.
    CreateSlots(Vec<Arc<str>>),
    /// Drop these physical slots.
    DropSlots(Vec<Arc<str>>),
    /// Move these physical slots forward, each to where its owner has confirmed to be.
    AdvanceSlots(Vec<(Arc<str>, Lsn)>),
    /// Set the data of a bootstrap that failed aside.
    DiscardBootstrap,
    /// Make a replica by a method that needs no leader.
    CloneWithoutLeader,
    /// Call the operator's script of this event.
    CallBack(Callback, CallbackRole),
    /// Run the operator's `pre_promote`.
    RunPrePromote,
    /// Write the `sync` record, comparing the own leader key and the record's revision, which is 0 where
    /// none was seen.
    WriteSync(SyncState),
    /// Write the `sync` record again as it was seen, whoever leads, comparing its revision: no write of it that is
    /// under way can be executed any more, and its leader counts anew.
    RenewSync(SyncState),
    /// Delete the `sync` record of this revision, comparing the own leader key.
    DeleteSync {
        /// Its revision.
        revision: i64,
    },
    /// Commits are to wait for these.
    SetSyncNames(SyncNames),
    /// The user's own `synchronous_standby_names` holds again.
    ClearSyncNames,
    /// Look whether the running instance's history has left that of this server.
    CompareHistory(Upstream),
    /// Let clients into a primary that was started without them.
    OpenClientAccess,
    /// Write the registered members into the failsafe list, or nobody where the mode is off.
    PublishFailsafe(Arc<BTreeMap<MemberName, Arc<str>>>),
    /// Write `failsafe_mode: true` into the cluster's settings.
    SwitchFailsafeOn,
    /// Write the `config` key as it was, comparing the own leader key, if there is still none.
    RestoreConfig,
    /// Make the cluster's keys anew, as they were known, with this generation and this member as leader on a
    /// new lease, in a store that is not believed; one transaction that compares its leader and generation.
    RecreateKeys {
        /// The new generation.
        generation: u64,
    },
    /// The store is not the one that this member's agent knows, or its data: nothing of it is believed before
    /// its generation is higher than what was told.
    DoubtStore {
        /// Whose agent or data speaks against it.
        name: MemberName,
        /// What it says.
        told: Told,
    },
    /// Nobody who could be reached speaks against the store.
    TrustStore,
    /// Copy these logical slots of the leader; the instance stops for it.
    CopyLogicalSlots {
        /// The leader.
        from: Upstream,
        /// The slots.
        names: Vec<Arc<str>>,
    },
    /// Make, move and prove logical slots, beside everything else.
    TendLogicalSlots(SlotCare),
    /// Let consumers of `failover` slots wait for the standbys behind these physical slots.
    SetSynchronizedSlots(BTreeSet<Arc<str>>),
    /// Renew the lease no more, so that it ends.
    LetLeaseLapse(Lapse),
}

/// Why a lease is let lapse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// PostgreSQL was killed and does not die: for a ttl, whatever becomes of it.
    KillHangs,
    /// No fence can be had: until a turn does not say so any more.
    NoFence,
}

/// A logical slot of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalSlot {
    /// Its name.
    pub name: Arc<str>,
    /// The database whose changes it decodes.
    pub database: Arc<str>,
    /// The output plugin.
    pub plugin: Arc<str>,
    /// PostgreSQL keeps it on standbys.
    pub is_failover: bool,
}

/// A logical slot to be moved forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotAdvance {
    /// The slot.
    pub slot: LogicalSlot,
    /// Where its consumer has confirmed to be.
    pub to: Lsn,
}

/// What is done for logical slots beside everything else.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SlotCare {
    /// Slots that a primary lacks.
    pub create: Vec<LogicalSlot>,
    /// Copies whose consumers have gone on.
    pub advance: Vec<SlotAdvance>,
    /// Copies that are not known to be usable.
    pub prove: Vec<Arc<str>>,
    /// The leader, with the slot there through which the feedback of this member arrives.
    pub of: Option<Upstream>,
}

/// As what the instance starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAs {
    /// Accepting writes. Arm first.
    Primary,
    /// The same, with access for the agent and for receivers of WAL only, until that is opened.
    PrimaryClosed,
    /// Recovering to the target of a custom bootstrap; accepting writes by itself after that. Arm first.
    Recovering,
    /// In recovery; without an upstream the one configured last is kept.
    Replica(Option<Upstream>),
}

/// Where WAL comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The member; `None` is a server of another cluster, or an archive.
    pub member: Option<MemberName>,
    /// Its host and port; `None` is the archive alone.
    pub address: Option<Arc<str>>,
    /// The slot there; `None` streams without one.
    pub slot: Option<Arc<str>>,
}

/// How the instance stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// A checkpoint first, then fast; walsenders that are not needed are cut.
    Planned,
    /// The same for a hand-over, whose checkpoint was made before anybody was held up.
    HandOver,
    /// Fast.
    Fast,
    /// Immediate, then by force: authority is uncertain or gone.
    Immediate,
}

/// What is true of an action wherever it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionTraits {
    /// The word of the journal and the scripts.
    pub word: &'static str,
    /// It changes what the instance is: a decision holds at most one of these.
    pub is_disruptive: bool,
    /// The job that it starts, if it takes long.
    pub job: Option<JobKind>,
    /// What was known of the local data is void after it.
    pub replaces_data: bool,
}

/// Done within the turn.
fn brief(word: &'static str) -> ActionTraits {
    ActionTraits {
        word,
        is_disruptive: false,
        job: None,
        replaces_data: false,
    }
}

/// A job that leaves the instance what it is.
fn long(word: &'static str, job: JobKind) -> ActionTraits {
    ActionTraits {
        job: Some(job),
        ..brief(word)
    }
}

/// A job that changes what the instance is.
fn changes(word: &'static str, job: JobKind) -> ActionTraits {
    ActionTraits {
        is_disruptive: true,
        ..long(word, job)
    }
}

/// A job that makes the data anew, or takes it back.
fn replaces(word: &'static str, job: JobKind) -> ActionTraits {
    ActionTraits {
        replaces_data: true,
        ..changes(word, job)
    }
}

impl Action {
    /// The words of all actions, for coverage counts.
    pub const WORDS: &'static [&'static str] = &[
        "acquire_leader",
        "confirm_leader",
        "reassert_leader",
        "release_leader",
        "hand_over",
        "claim_bootstrap",
        "record_system_id",
        "publish_status",
        "record_history",
        "record_change",
        "drop_failover_request",
        "request_switchover",
        "announce_switchover",
        "clear_switchover",
        "write_disarmed",
        "remove_disarmed",
        "remove_disarmed_of",
        "arm_fence",
        "disarm_fence",
        "initialize",
        "finish_bootstrap",
        "start",
        "stop",
        "promote",
        "checkpoint",
        "cut_wal",
        "follow",
        "end_replay_conflicts",
        "clone",
        "rewind",
        "cancel_job",
        "create_slots",
        "drop_slots",
        "advance_slots",
        "claim_timeline",
        "discard_bootstrap",
        "clone_without_leader",
        "call_back",
        "run_pre_promote",
        "write_sync",
        "renew_sync",
        "delete_sync",
        "set_sync_names",
        "clear_sync_names",
        "compare_history",
        "open_client_access",
        "publish_failsafe",
        "switch_failsafe_on",
        "copy_logical_slots",
        "tend_logical_slots",
        "set_synchronized_slots",
        "let_lease_lapse",
        "restore_config",
        "recreate_keys",
        "doubt_store",
        "trust_store",
    ];

    /// What is true of it wherever it is decided.
    pub fn traits(&self) -> ActionTraits {
        match self {
            Action::AcquireLeader => brief("acquire_leader"),
            Action::ConfirmLeader => brief("confirm_leader"),
            Action::ReassertLeader => brief("reassert_leader"),
            Action::ReleaseLeader { .. } => brief("release_leader"),
            Action::HandOver { .. } => brief("hand_over"),
            Action::ClaimBootstrap => brief("claim_bootstrap"),
            Action::RecordSystemId(_) => brief("record_system_id"),
            Action::PublishStatus(_) => brief("publish_status"),
            Action::RecordHistory => brief("record_history"),
            Action::RecordChange(_) => brief("record_change"),
            Action::DropFailoverRequest { .. } => brief("drop_failover_request"),
            Action::RequestSwitchover(_) => brief("request_switchover"),
            Action::AnnounceSwitchover(_) => brief("announce_switchover"),
            Action::ClearSwitchover => brief("clear_switchover"),
            Action::WriteDisarmed => brief("write_disarmed"),
            Action::RemoveDisarmed => brief("remove_disarmed"),
            Action::RemoveDisarmedOf(..) => brief("remove_disarmed_of"),
            Action::ArmFence => brief("arm_fence"),
            Action::DisarmFence => brief("disarm_fence"),
            Action::Initialize => replaces("initialize", JobKind::Initialize),
            Action::FinishBootstrap => long("finish_bootstrap", JobKind::FinishBootstrap),
            Action::Start(_) => changes("start", JobKind::Start),
            Action::Stop(StopMode::Planned | StopMode::HandOver | StopMode::Fast) => {
                changes("stop", JobKind::Stop)
            }
            Action::Stop(StopMode::Immediate) => changes("stop", JobKind::StopNow),
            Action::Promote(_) => changes("promote", JobKind::Promote),
            Action::Checkpoint => long("checkpoint", JobKind::Checkpoint),
            Action::CutWal(_) => brief("cut_wal"),
            Action::Follow(_) => brief("follow"),
            Action::EndReplayConflicts => brief("end_replay_conflicts"),
            Action::Clone(_) => replaces("clone", JobKind::Clone),
            Action::Rewind(_) => replaces("rewind", JobKind::Rewind),
            Action::CancelJob => brief("cancel_job"),
            Action::CreateSlots(_) => brief("create_slots"),
            Action::DropSlots(_) => brief("drop_slots"),
            Action::AdvanceSlots(_) => brief("advance_slots"),
            Action::ClaimTimeline(_) => brief("claim_timeline"),
            Action::CloneWithoutLeader => replaces("clone_without_leader", JobKind::Clone),
            Action::CallBack(..) => brief("call_back"),
            Action::RunPrePromote => long("run_pre_promote", JobKind::PrePromote),
            Action::CompareHistory(_) => long("compare_history", JobKind::CompareHistory),
            Action::CopyLogicalSlots { .. } => changes("copy_logical_slots", JobKind::CopySlots),
            Action::TendLogicalSlots(_) => long("tend_logical_slots", JobKind::TendSlots),
            Action::SetSynchronizedSlots(_) => brief("set_synchronized_slots"),
            Action::DiscardBootstrap => replaces("discard_bootstrap", JobKind::DiscardBootstrap),
            Action::WriteSync(_) => brief("write_sync"),
            Action::RenewSync(_) => brief("renew_sync"),
            Action::DeleteSync { .. } => brief("delete_sync"),
            Action::SetSyncNames(_) => brief("set_sync_names"),
            Action::ClearSyncNames => brief("clear_sync_names"),
            Action::OpenClientAccess => brief("open_client_access"),
            Action::PublishFailsafe(_) => brief("publish_failsafe"),
            Action::SwitchFailsafeOn => brief("switch_failsafe_on"),
            Action::LetLeaseLapse(_) => brief("let_lease_lapse"),
            Action::RestoreConfig => brief("restore_config"),
            Action::RecreateKeys { .. } => brief("recreate_keys"),
            Action::DoubtStore { .. } => brief("doubt_store"),
            Action::TrustStore => brief("trust_store"),
        }
    }

    /// The word of the journal and the scripts.
    pub fn word(&self) -> &'static str {
        self.traits().word
    }
}
