//! What a turn decided, and the rules every decision keeps.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::topology::{ClaimedTimeline, SwitchoverRecord};
use trunkline_shared::cluster::{Lsn, MemberName, Moment, SystemId, Timeline};

use super::memory::Memory;
use super::situation::Situation;

/// The outcome of one turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which situation this member is in.
    pub situation: Situation,
    /// Why this was decided; the word of the log, the metric, the API and the scripts.
    pub reason: Reason,
    /// The number or name that belongs to the reason.
    pub detail: Detail,
    /// To be done in this order; the first failure ends the turn.
    pub actions: Vec<Action>,
    /// When to look again at the latest.
    pub next: NextTick,
    /// What the next turn is to remember.
    pub memory: Memory,
    /// The operator's request of this member was taken up, or refused: it is not to be shown again.
    pub is_request_taken: bool,
}

/// When to look again at the latest, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextTick {
    /// From now.
    pub within: Duration,
    /// What is waited for.
    pub why: NextWhy,
}

/// What the next look is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextWhy {
    /// The action asked for shows its result at once.
    SeeResult,
    /// A deadline of the lease.
    LeaseDeadline,
    /// A limit of waiting that a rule set.
    Limit,
    /// `loop_wait`.
    Routine,
}

/// A number or name that belongs to a reason.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Detail {
    /// Nothing to add.
    #[default]
    None,
    /// Bytes of WAL.
    Bytes(u64),
    /// Another member.
    Member(MemberName),
    /// A member and how many bytes it lacks.
    Lacks(MemberName, u64),
    /// Text of an error.
    Text(Arc<str>),
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Detail::None => Ok(()),
            Detail::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Detail::Member(member) => member.fmt(f),
            Detail::Lacks(member, bytes) => write!(f, "{member} lacks {bytes} bytes"),
            Detail::Text(text) => f.write_str(text),
        }
    }
}

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
    /// Write the last known position into `status`.
    PublishStatus {
        /// The position.
        optime: Lsn,
    },
    /// Write the ancestry of the own timeline into `history`.
    RecordHistory,
    /// Delete the `failover` record of this revision.
    DropFailoverRequest {
        /// Its revision.
        revision: i64,
    },
    /// Write `trunkline/switchover`.
    AnnounceSwitchover(Arc<SwitchoverRecord>),
    /// Delete `trunkline/switchover`.
    ClearSwitchover,
    /// Write `trunkline/disarmed/<me>`, comparing the own leader key.
    WriteDisarmed,
    /// Delete `trunkline/disarmed/<me>`.
    RemoveDisarmed,
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
    /// Replicate from this address.
    Follow(Upstream),
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
}

/// As what the instance starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAs {
    /// Accepting writes. Arm first.
    Primary,
    /// In recovery; without an upstream the one configured last is kept.
    Replica(Option<Upstream>),
}

/// Whom to replicate from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The member.
    pub member: MemberName,
    /// Its host and port.
    pub address: Arc<str>,
}

/// How the instance stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// A checkpoint first, then fast; walsenders that are not needed are cut.
    Planned,
    /// Fast.
    Fast,
    /// Immediate, then by force: authority is uncertain or gone.
    Immediate,
}

impl Action {
    /// The names of all actions, for coverage counts.
    pub const NAMES: [&'static str; 29] = [
        "acquire_leader",
        "confirm_leader",
        "reassert_leader",
        "release_leader",
        "hand_over",
        "claim_bootstrap",
        "record_system_id",
        "publish_status",
        "record_history",
        "drop_failover_request",
        "announce_switchover",
        "clear_switchover",
        "write_disarmed",
        "remove_disarmed",
        "arm_fence",
        "disarm_fence",
        "initialize",
        "finish_bootstrap",
        "start",
        "stop",
        "promote",
        "checkpoint",
        "follow",
        "clone",
        "rewind",
        "cancel_job",
        "create_slots",
        "drop_slots",
        "claim_timeline",
    ];

    /// Its place in [`Action::NAMES`].
    pub fn index(&self) -> usize {
        match self {
            Action::AcquireLeader => 0,
            Action::ConfirmLeader => 1,
            Action::ReassertLeader => 2,
            Action::ReleaseLeader { .. } => 3,
            Action::HandOver { .. } => 4,
            Action::ClaimBootstrap => 5,
            Action::RecordSystemId(_) => 6,
            Action::PublishStatus { .. } => 7,
            Action::RecordHistory => 8,
            Action::DropFailoverRequest { .. } => 9,
            Action::AnnounceSwitchover(_) => 10,
            Action::ClearSwitchover => 11,
            Action::WriteDisarmed => 12,
            Action::RemoveDisarmed => 13,
            Action::ArmFence => 14,
            Action::DisarmFence => 15,
            Action::Initialize => 16,
            Action::FinishBootstrap => 17,
            Action::Start(_) => 18,
            Action::Stop(_) => 19,
            Action::Promote(_) => 20,
            Action::Checkpoint => 21,
            Action::Follow(_) => 22,
            Action::Clone(_) => 23,
            Action::Rewind(_) => 24,
            Action::CancelJob => 25,
            Action::CreateSlots(_) => 26,
            Action::DropSlots(_) => 27,
            Action::ClaimTimeline(_) => 28,
        }
    }

    /// Whether it changes what the instance is: a decision holds at most one of these.
    pub fn is_disruptive(&self) -> bool {
        match self {
            Action::Initialize
            | Action::Start(_)
            | Action::Stop(_)
            | Action::Promote(_)
            | Action::Clone(_)
            | Action::Rewind(_) => true,
            Action::AcquireLeader
            | Action::ConfirmLeader
            | Action::ReassertLeader
            | Action::ReleaseLeader { .. }
            | Action::HandOver { .. }
            | Action::ClaimBootstrap
            | Action::RecordSystemId(_)
            | Action::PublishStatus { .. }
            | Action::RecordHistory
            | Action::DropFailoverRequest { .. }
            | Action::AnnounceSwitchover(_)
            | Action::ClearSwitchover
            | Action::WriteDisarmed
            | Action::RemoveDisarmed
            | Action::ArmFence
            | Action::DisarmFence
            | Action::FinishBootstrap
            | Action::Checkpoint
            | Action::Follow(_)
            | Action::CancelJob
            | Action::CreateSlots(_)
            | Action::DropSlots(_)
            | Action::ClaimTimeline(_) => false,
        }
    }

    /// The job that the action starts, if it takes long.
    pub fn job(&self) -> Option<super::observation::JobKind> {
        use super::observation::JobKind;
        match self {
            Action::Initialize => Some(JobKind::Initialize),
            Action::FinishBootstrap => Some(JobKind::FinishBootstrap),
            Action::Start(_) => Some(JobKind::Start),
            Action::Stop(StopMode::Planned | StopMode::Fast) => Some(JobKind::Stop),
            Action::Stop(StopMode::Immediate) => Some(JobKind::StopNow),
            Action::Promote(_) => Some(JobKind::Promote),
            Action::Checkpoint => Some(JobKind::Checkpoint),
            Action::Clone(_) => Some(JobKind::Clone),
            Action::Rewind(_) => Some(JobKind::Rewind),
            Action::AcquireLeader
            | Action::ConfirmLeader
            | Action::ReassertLeader
            | Action::ReleaseLeader { .. }
            | Action::HandOver { .. }
            | Action::ClaimBootstrap
            | Action::RecordSystemId(_)
            | Action::PublishStatus { .. }
            | Action::RecordHistory
            | Action::DropFailoverRequest { .. }
            | Action::AnnounceSwitchover(_)
            | Action::ClearSwitchover
            | Action::WriteDisarmed
            | Action::RemoveDisarmed
            | Action::ArmFence
            | Action::DisarmFence
            | Action::Follow(_)
            | Action::CancelJob
            | Action::CreateSlots(_)
            | Action::DropSlots(_)
            | Action::ClaimTimeline(_) => None,
        }
    }
}

/// Declares the reasons with their words and sentences once.
macro_rules! reasons {
    ($($variant:ident $word:literal $sentence:literal)*) => {
        /// Why a turn decided as it did. Closed list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $sentence] $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The word of the log, the metric label, the API and the scripts.
            pub fn word(self) -> &'static str {
                match self { $(Reason::$variant => $word,)* }
            }

            /// The sentence for people: what is so and, where something is to be done, what.
            pub fn sentence(self) -> &'static str {
                match self { $(Reason::$variant => $sentence,)* }
            }

            /// The reason of that word.
            pub fn from_word(word: &str) -> Option<Reason> {
                match word { $($word => Some(Reason::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    Leading "leading" "This member leads."
    LeaseAboutToExpire "lease_about_to_expire" "The lease could not be renewed and ends now: PostgreSQL is stopped before the deadline."
    LeaseExpired "lease_expired" "The lease's deadline has passed; this member does not act as leader until it is renewed."
    LeaderKeyMissing "leader_key_missing" "The leader key vanished while the lease still holds; it is created again."
    FenceNotLive "fence_not_live" "The fence process does not answer; it is replaced before anything that needs it."
    ArmingFence "arming_fence" "PostgreSQL accepts writes under a held lease; the fence is armed."
    DisarmingFence "disarming_fence" "PostgreSQL cannot accept writes; the fence is put to sleep."
    Promoting "promoting" "This member holds the lease and its PostgreSQL leaves recovery."
    PromotionFailed "promotion_failed" "Promotion did not succeed in time; the lease is given up so that another member can run."
    KillingOrphans "killing_orphans" "The postmaster is dead and some of its processes live on: they are killed."
    WaitingToPromote "waiting_to_promote" "This member holds the lease and waits for its PostgreSQL to be ready for promotion."
    CheckpointAfterPromote "checkpoint_after_promote" "A checkpoint on the new timeline lets the others rewind from here."
    RecordingHistory "recording_history" "The new timeline is written into the history."
    MaintainingSlots "maintaining_slots" "Replication slots are brought in line with the members."
    StartingPrimary "starting_primary" "This member leads and its PostgreSQL starts as primary."
    WaitingForPrimaryStart "waiting_for_primary_start" "PostgreSQL starts as primary; primary_start_timeout limits the wait."
    RestartingAfterCrash "restarting_after_crash" "PostgreSQL crashed and little is to be replayed: it starts again in place."
    FailingOverAfterCrash "failing_over_after_crash" "PostgreSQL crashed and another member can take over: the lease is released."
    NobodyCanTakeOver "nobody_can_take_over" "PostgreSQL crashed and no other member can take over: it starts again in place."
    AskingPeers "asking_peers" "The other members' agents are asked before a leader is chosen."
    PostgresUnresponsive "postgres_unresponsive" "PostgreSQL does not answer; if it stays so for a ttl it is stopped by force."
    StoppingHungPostgres "stopping_hung_postgres" "PostgreSQL has not answered for a ttl: it is stopped by force."
    DataUnreadable "data_unreadable" "The data directory cannot be read. Check that its volume is mounted and belongs to this user."
    LeaderWithoutData "leader_without_data" "This member holds the lease without data; it gives the lease up."
    SwitchoverRefused "switchover_refused" "No member fits the request for a change of leader; it is dropped."
    SwitchoverAnnounced "switchover_announced" "A change of leader is announced; nobody is touched yet."
    SwitchoverStopping "switchover_stopping" "PostgreSQL stops for the change of leader."
    SwitchoverStopped "switchover_stopped" "PostgreSQL has stopped; its last position is announced to the candidate."
    SwitchoverWaitingForCandidate "switchover_waiting_for_candidate" "The candidate has not confirmed the last position yet."
    HandingOver "handing_over" "The candidate has everything; the leader key moves to it."
    SwitchoverRolledBack "switchover_rolled_back" "The candidate did not confirm in time; this member goes on as leader."
    HandOverUnresolved "hand_over_unresolved" "Whether the leader key was given away is unknown; it is written again before PostgreSQL may start."
    Following "following" "This member follows the leader."
    WaitingForLeader "waiting_for_leader" "The leader is not a running primary yet."
    ChangingUpstream "changing_upstream" "PostgreSQL is pointed at the leader."
    NotStreaming "not_streaming" "PostgreSQL has the right upstream and does not stream from it."
    RepairingReplication "repairing_replication" "PostgreSQL has not streamed for a ttl: its WAL receiver is made to connect anew."
    AnotherLeads "another_leads" "PostgreSQL runs as primary while another member leads: it is stopped at once."
    Diverged "diverged" "The WAL here went on beyond the point where the leader's history forked: PostgreSQL stops to be rewound."
    WaitingForLeaderCheckpoint "waiting_for_leader_checkpoint" "A rewind waits for the leader's first checkpoint on its timeline."
    WaitingForHistory "waiting_for_history" "The leader's timeline is not in the history yet."
    Rewinding "rewinding" "The WAL here is taken back to where it left the leader's history."
    Recloning "recloning" "The data cannot be rewound: it is copied anew beside the old directory."
    ReplaceForbidden "replace_forbidden" "The data has diverged and remove_data_directory_on_diverged_timelines or _on_rewind_failure forbids to replace it. Rewind or re-clone this member by hand, or run trunkline reinit."
    StartingReplica "starting_replica" "PostgreSQL starts as replica."
    WaitingForStart "waiting_for_start" "PostgreSQL starts and does not accept connections yet."
    WaitingAfterFailure "waiting_after_failure" "The last attempt failed; the next follows after loop_wait."
    NotEligible "not_eligible" "This member's tags forbid it to lead."
    TooFarBehind "too_far_behind" "This member would lose more than maximum_lag_on_failover. trunkline failover overrides this limit."
    PeerIsPrimary "peer_is_primary" "A reachable member's PostgreSQL still runs as primary: nobody is promoted."
    BetterCandidate "better_candidate" "Another reachable member is further ahead or preferred."
    CandidateNamed "candidate_named" "The operator named another member to lead."
    Racing "racing" "This member is the best candidate and takes the lease."
    RetakingLease "retaking_lease" "PostgreSQL runs as primary and nobody leads: this member takes the lease."
    StalePrimary "stale_primary" "PostgreSQL runs as primary on a timeline that the cluster has left: it is stopped at once."
    StandingBack "standing_back" "This member just gave the lease up and lets others run first."
    AnotherIsDisarmed "another_is_disarmed" "A member paused with its fence disarmed and may still be primary: nobody runs. trunkline resume --without MEMBER if it is dead."
    StartingToRace "starting_to_race" "Nobody leads; PostgreSQL starts in recovery so that this member can run."
    ConfirmingLease "confirming_lease" "The leader key names this member; the lease is renewed to prove it."
    Bootstrapping "bootstrapping" "A new cluster is made."
    ClaimingBootstrap "claiming_bootstrap" "No cluster exists under this scope; this member offers to make it."
    FinishingBootstrap "finishing_bootstrap" "The new cluster's roles and settings are made."
    RecordingIdentity "recording_identity" "The system identifier is written to the DCS."
    BootstrapFailed "bootstrap_failed" "Making the cluster failed; the claim is given up."
    WaitingForBootstrap "waiting_for_bootstrap" "Another member makes the cluster."
    WaitingForPrimaryToClone "waiting_for_primary_to_clone" "There is no data here and no running leader to copy it from."
    Cloning "cloning" "The data is copied from another member."
    ReplicaWithoutCluster "replica_without_cluster" "The data here is a replica's and the DCS knows no cluster of this scope. Start the agent on the primary first."
    AdoptingPrimary "adopting_primary" "The data here is a primary's and the DCS knows no cluster of this scope: it becomes the cluster."
    ForeignSystemId "foreign_system_id" "The data here belongs to another cluster (its system identifier is not the one in the DCS). Check scope and data_dir, or remove the data."
    DcsUnknown "dcs_unknown" "The DCS has not been read since the agent started; PostgreSQL is left as it is."
    KeepingLeaseWithoutDcs "keeping_lease_without_dcs" "The DCS does not answer; the lease still holds."
    FollowingWithoutDcs "following_without_dcs" "The DCS does not answer; the replica goes on with the upstream it has."
    PrimaryWithoutLease "primary_without_lease" "PostgreSQL runs as primary without a lease and the DCS does not answer: it is stopped at once."
    StartingInRecovery "starting_in_recovery" "The DCS does not answer; PostgreSQL starts in recovery and serves reads."
    JobInProgress "job_in_progress" "A long job is in progress."
    JobCancelled "job_cancelled" "What the job in progress was for has changed: it is ended."
    Paused "paused" "Maintenance: automation is off."
    DisarmingForPause "disarming_for_pause" "Maintenance: the disarmed fence is announced, then the fence sleeps."
    RestartRequested "restart_requested" "The operator asked for a restart of PostgreSQL."
    ReinitializeRequested "reinitialize_requested" "The operator asked for a new copy of the data."
    RequestRefused "request_refused" "The request does not fit this member's situation now."
    StoppingForShutdown "stopping_for_shutdown" "The agent ends and stops PostgreSQL."
    ReleasingForShutdown "releasing_for_shutdown" "The agent ends; PostgreSQL has stopped and the lease is released."
    ShutDown "shut_down" "The agent may end: PostgreSQL has stopped and nothing is held."
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A rule that a decision broke. A defect: `act` refuses such a decision and the turn is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenRule {
    /// More than one action that changes what the instance is.
    TwoDisruptiveActions,
    /// A promotion or a start as primary without a lease that holds for more than the margin.
    PromotesWithoutLease,
    /// A promotion or a start as primary without arming the fence first.
    PromotesUnarmed,
}

impl Decision {
    /// Checks the rules every decision keeps, whatever it decides.
    pub fn broken_rule(&self, lease_left: Option<Duration>) -> Option<BrokenRule> {
        if self.actions.iter().filter(|a| a.is_disruptive()).count() > 1 {
            return Some(BrokenRule::TwoDisruptiveActions);
        }
        let writable =
            |a: &Action| matches!(a, Action::Promote(_) | Action::Start(StartAs::Primary));
        let at = self.actions.iter().position(writable)?;
        if lease_left.is_none_or(|left| left <= super::PROMOTE_NEEDS) {
            return Some(BrokenRule::PromotesWithoutLease);
        }
        if !self.actions[..at].contains(&Action::ArmFence) {
            return Some(BrokenRule::PromotesUnarmed);
        }
        None
    }
}

/// When a turn may be late: the moment `next` names.
pub fn next_at(now: Moment, next: NextTick) -> Moment {
    now + next.within
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_word_and_parses_back() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(Reason::from_word(reason.word()), Some(*reason));
            assert!(reason.sentence().ends_with('.'), "{reason}");
        }
    }
}
