//! Rules broken on purpose, to show that the invariants would notice.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::decision::{StartAs, StopMode, Upstream};
use trunkline_agent::decide::observation::{
    DcsView, LeaseView, Local, NoRace, Observation, RunningRole, SynchronizedSlots,
};
use trunkline_agent::decide::{Action, Decision, Reason, Situation};
use trunkline_shared::cluster::topology::ClaimedTimeline;
use trunkline_shared::cluster::{ClusterSettings, MemberName, Moment};

use super::invariants::Invariant;
use super::slots::all_at_the_leaders;
use super::standby::unread;
use super::synchronous::broken;

pub(super) mod bugs;

pub use bugs::Bug;

/// A rule that a run breaks on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The fence never fires and the agent does not stop PostgreSQL ahead of the deadline.
    NoFence,
    /// The deadline counts from the answer of a renewal instead of its sending.
    DeadlineFromAnswer,
    /// What peers say of being primary is not heard.
    NoPeerCheck,
    /// The leader key is released together with the order to stop, not after its end.
    ReleaseAlive,
    /// A router believes a view, and an epoch, older than one it has seen.
    StaleEpochRouter,
    /// Promotion does not look at the lease's deadline.
    PromoteUnlocked,
    /// `maximum_lag_on_failover` is not obeyed.
    LagLimitIgnored,
    /// A replica is pointed away from its upstream as soon as the leader key is gone.
    UpstreamDropped,
    /// A primary that nobody leads takes the free key at once, whatever timeline was claimed meanwhile: it
    /// neither compares the last claim nor asks anybody, and what it knows counts as new.
    ClaimIgnored,
    /// Nobody replaces a fence that died or froze, nor does the agent stop PostgreSQL ahead of the deadline.
    FenceLeftDead,
    /// The leader publishes its own position as that of every slot.
    SlotsFromLeader,
    /// `slots` of the configuration is not read.
    PermanentSlotsUnread,
    /// Agents act while the cluster is paused.
    PauseIgnored,
    /// The watchdog is pinged as long as the deadline lies ahead, not only while it resets the machine in time.
    PingedToTheEnd,
    /// A standby enters the `sync` record before commits wait for it.
    SyncRecordBeforeGuc,
    /// Commits wait for a standby no more while it still stands in the `sync` record.
    GucBeforeRecordOnRemoval,
    /// One vote less than the record demands is enough.
    VotesShortByOne,
    /// The `sync` record is not looked at in the race.
    PromoteOutsideSync,
    /// A setting that the sessions see counts as in force, whatever the checkpointer does.
    CheckpointerUnwatched,
    /// `standby_cluster` of the configuration is not read.
    StandbyUnread,
    /// A primary restarted in place lets clients in at once.
    OpenAtOnce,
    /// A leader goes on without the DCS although one of the listed members did not consent.
    FailsafeOneLess,
    /// That the upstream has removed what a replica needs is not read.
    WalGoneUnseen,
    /// A switchover for later is carried out at once.
    ScheduleUnread,
    /// What the host says of its disks is not heard.
    IllDiskUnseen,
    /// Nobody keeps the promise not to run, and what peers say of being primary is not heard.
    NoRaceIgnored,
    /// Logical `slots` of the configuration are not read.
    LogicalSlotsUnread,
    /// Consumers of `failover` slots wait for nobody.
    ConsumersUnheld,
    /// A former primary keeps its own `failover` slots.
    FormerSlotsKept,
    /// Nobody remembers the configuration when the DCS has lost it.
    ConfigForgotten,
    /// Whatever the DCS shows is believed, however much more was seen of it before.
    LostMemoryBelieved,
    /// Nothing beside the data says how far the DCS was seen.
    StoreForgotten,
    /// What a leader wrote into the failsafe list without an answer counts no more once its key is written again.
    ListForgotten,
    /// A leader that is to change waits for no router.
    RoutersUnheard,
    /// Members leave no word in a store that has lost the cluster.
    NoWordLeft,
    /// A historical bug that none of these breaks by itself.
    Historical(Bug),
}

impl Break {
    /// Every one, with its word.
    pub const ALL: [(Break, &'static str); 54] = [
        (Break::PingedToTheEnd, "pinged-to-the-end"),
        (Break::NoFence, "no-fence"),
        (Break::DeadlineFromAnswer, "deadline-from-answer"),
        (Break::NoPeerCheck, "no-peer-check"),
        (Break::ReleaseAlive, "release-alive"),
        (Break::StaleEpochRouter, "stale-epoch-router"),
        (Break::PromoteUnlocked, "promote-unlocked"),
        (Break::LagLimitIgnored, "lag-limit-ignored"),
        (Break::UpstreamDropped, "upstream-dropped"),
        (Break::ClaimIgnored, "claim-ignored"),
        (Break::FenceLeftDead, "fence-left-dead"),
        (Break::PauseIgnored, "pause-ignored"),
        (Break::SlotsFromLeader, "slots-from-leader"),
        (Break::PermanentSlotsUnread, "permanent-slots-unread"),
        (Break::SyncRecordBeforeGuc, "sync-record-before-guc"),
        (
            Break::GucBeforeRecordOnRemoval,
            "guc-before-record-on-removal",
        ),
        (Break::VotesShortByOne, "votes-short-by-one"),
        (Break::PromoteOutsideSync, "promote-outside-sync"),
        (Break::CheckpointerUnwatched, "checkpointer-unwatched"),
        (Break::StandbyUnread, "standby-unread"),
        (Break::OpenAtOnce, "open-at-once"),
        (Break::FailsafeOneLess, "failsafe-one-less"),
        (Break::WalGoneUnseen, "wal-gone-unseen"),
        (Break::ScheduleUnread, "schedule-unread"),
        (Break::IllDiskUnseen, "ill-disk-unseen"),
        (Break::NoRaceIgnored, "no-race-until-ignored"),
        (Break::LogicalSlotsUnread, "logical-slots-unread"),
        (Break::ConsumersUnheld, "consumers-unheld"),
        (Break::FormerSlotsKept, "former-slots-kept"),
        (Break::ConfigForgotten, "config-forgotten"),
        (Break::LostMemoryBelieved, "lost-memory-believed"),
        (Break::StoreForgotten, "store-forgotten-in-a-blackout"),
        (Break::ListForgotten, "failsafe-list-forgotten"),
        (Break::RoutersUnheard, "routers-unheard"),
        (Break::NoWordLeft, "no-word-left"),
        (
            Break::Historical(Bug::StaleReadTrusted),
            "stale-read-trusted",
        ),
        (Break::Historical(Bug::DisarmedEarly), "disarmed-early"),
        (Break::Historical(Bug::FencedGently), "fenced-gently"),
        (Break::Historical(Bug::CancelUnheard), "cancel-unheard"),
        (
            Break::Historical(Bug::StaleMemberBelieved),
            "stale-member-believed",
        ),
        (
            Break::Historical(Bug::OutageUnrecognized),
            "outage-unrecognized",
        ),
        (Break::Historical(Bug::AnybodyConfirms), "anybody-confirms"),
        (
            Break::Historical(Bug::PositionsFromBefore),
            "positions-from-before",
        ),
        (Break::Historical(Bug::ReplayCompared), "replay-compared"),
        (Break::Historical(Bug::RewoundTooEarly), "rewound-too-early"),
        (Break::Historical(Bug::HistoryUnread), "history-unread"),
        (
            Break::Historical(Bug::LeaderNameCompared),
            "leader-name-compared",
        ),
        (
            Break::Historical(Bug::SlotsOfTheLiving),
            "slots-of-the-living",
        ),
        (Break::Historical(Bug::IdentityUnread), "identity-unread"),
        (
            Break::Historical(Bug::KeepAliveTrusted),
            "keep-alive-trusted",
        ),
        (
            Break::Historical(Bug::LeaseNeverGivenUp),
            "lease-never-given-up",
        ),
        (Break::Historical(Bug::NoPatience), "no-patience"),
        (
            Break::Historical(Bug::PromotingWritten),
            "promoting-written",
        ),
        (
            Break::Historical(Bug::CancelledWaitRelayed),
            "cancelled-wait-relayed",
        ),
    ];

    /// The word of the command line.
    pub fn word(self) -> &'static str {
        Break::ALL
            .iter()
            .find(|(rule, _)| *rule == self)
            .map_or("", |(_, word)| *word)
    }

    pub(super) fn believes_old_views(self) -> bool {
        self == Break::StaleEpochRouter
    }

    /// Changes what `decide` sees.
    pub(super) fn perturb(self, seen: &mut Observation, now: Moment) {
        match self {
            Break::PromoteUnlocked => {
                if let LeaseView::Held(held) = &mut seen.lease {
                    held.deadline = now + Duration::from_secs(3600);
                }
            }
            Break::LagLimitIgnored => {
                change_settings(seen, |settings| {
                    settings.maximum_lag_on_failover = u64::MAX;
                });
            }
            Break::ClaimIgnored => forget_claims(seen),
            Break::PauseIgnored => change_settings(seen, |settings| settings.is_paused = false),
            Break::StandbyUnread => unread(seen),
            Break::LogicalSlotsUnread => {
                if let DcsView::Known { topology, .. } = &mut seen.dcs {
                    let mut settings = (*topology.settings_or_default()).clone();
                    settings.slots.remove(super::slots::DECODED);
                    Arc::make_mut(topology).settings = Some(Arc::new(settings));
                }
            }
            Break::ConsumersUnheld => {
                if let Local::Running(running) = &mut seen.local {
                    running.synchronized = SynchronizedSlots::NotOurs;
                }
            }
            Break::FormerSlotsKept => {
                if let Local::Running(running) = &mut seen.local {
                    let slots = Arc::make_mut(&mut running.slots).iter_mut();
                    slots.for_each(|slot| slot.is_synced = slot.is_failover);
                }
            }
            Break::PermanentSlotsUnread => {
                change_settings(seen, |settings| settings.slots.clear());
            }
            Break::SyncRecordBeforeGuc => broken::believe_the_record(seen),
            Break::VotesShortByOne => broken::in_the_race(seen, |topology| {
                if let Some(sync) = &mut topology.sync {
                    sync.quorum = sync.quorum.saturating_sub(1);
                }
            }),
            Break::PromoteOutsideSync => broken::in_the_race(seen, |topology| topology.sync = None),
            Break::CheckpointerUnwatched => broken::believe_all_were_told(seen),
            Break::NoRaceIgnored => seen.no_race = NoRace::default(),
            Break::Historical(bug) => bug.perturb(seen),
            Break::RoutersUnheard => super::fleet::forget_routers(seen),
            Break::IllDiskUnseen | Break::WalGoneUnseen | Break::ScheduleUnread => {
                self.leave_unread(seen);
            }
            Break::NoFence
            | Break::PingedToTheEnd
            | Break::SlotsFromLeader
            | Break::DeadlineFromAnswer
            | Break::NoPeerCheck
            | Break::FailsafeOneLess
            | Break::ReleaseAlive
            | Break::StaleEpochRouter
            | Break::UpstreamDropped
            | Break::GucBeforeRecordOnRemoval
            | Break::OpenAtOnce
            | Break::ConfigForgotten
            | Break::LostMemoryBelieved
            | Break::StoreForgotten
            | Break::ListForgotten
            | Break::NoWordLeft
            | Break::FenceLeftDead => {}
        }
    }

    /// Changes what was decided.
    pub(super) fn perturb_decision(self, seen: &Observation, decision: &mut Decision) {
        match self {
            Break::Historical(bug) => bug.perturb_decision(decision),
            Break::SyncRecordBeforeGuc => broken::record_first(seen, decision),
            Break::GucBeforeRecordOnRemoval => broken::names_first(seen, decision),
            Break::OpenAtOnce => {
                for action in &mut decision.actions {
                    if *action == Action::Start(StartAs::PrimaryClosed) {
                        *action = Action::Start(StartAs::Primary);
                    }
                }
            }
            Break::NoFence | Break::FenceLeftDead => {
                if decision.situation == Situation::AuthorityGone {
                    decision.actions.clear();
                }
            }
            Break::ReleaseAlive => release_alive(decision),
            Break::ClaimIgnored => {
                if decision.reason == Reason::AskingPeers && decision.actions.is_empty() {
                    decision.actions.push(Action::AcquireLeader);
                }
            }
            Break::UpstreamDropped => {
                if decision.situation == Situation::NoLeader && decision.actions.is_empty() {
                    decision.actions.push(Action::Follow(nobody()));
                }
            }
            Break::SlotsFromLeader => {
                for action in &mut decision.actions {
                    if let Action::PublishStatus(status) = action {
                        *status = Arc::new(all_at_the_leaders(status));
                    }
                }
            }
            Break::DeadlineFromAnswer
            | Break::PingedToTheEnd
            | Break::NoPeerCheck
            | Break::StaleEpochRouter
            | Break::PromoteUnlocked
            | Break::PermanentSlotsUnread
            | Break::PauseIgnored
            | Break::VotesShortByOne
            | Break::PromoteOutsideSync
            | Break::CheckpointerUnwatched
            | Break::StandbyUnread
            | Break::FailsafeOneLess
            | Break::WalGoneUnseen
            | Break::ScheduleUnread
            | Break::IllDiskUnseen
            | Break::NoRaceIgnored
            | Break::LogicalSlotsUnread
            | Break::ConsumersUnheld
            | Break::FormerSlotsKept
            | Break::ConfigForgotten
            | Break::LostMemoryBelieved
            | Break::StoreForgotten
            | Break::ListForgotten
            | Break::RoutersUnheard
            | Break::NoWordLeft
            | Break::LagLimitIgnored => {}
        }
    }
}

/// The key goes with the order to stop.
fn release_alive(decision: &mut Decision) {
    let is_stop = |action: &Action| {
        let Action::Stop(mode) = action else {
            return false;
        };
        *mode != StopMode::Immediate
    };
    if let Some(at) = decision.actions.iter().position(is_stop) {
        let release = Action::ReleaseLeader { position: None };
        decision.actions.insert(at + 1, release);
    }
}

/// An upstream at which nobody answers.
fn nobody() -> Upstream {
    Upstream {
        member: Some(MemberName::new("")),
        address: Some("".into()),
        slot: None,
    }
}

/// Which invariant is to notice that a rule is broken.
pub fn noticed_by(rule: Break) -> &'static [Invariant] {
    match rule {
        Break::NoFence => &[
            Invariant::FenceKillsByTheDeadline,
            Invariant::AtMostOneWritablePrimary,
        ],
        Break::DeadlineFromAnswer => &[Invariant::DeadlineWithinTheLease],
        Break::NoPeerCheck => &[Invariant::NoPromotionBesideAReachablePrimary],
        Break::ReleaseAlive => &[Invariant::ReleasedMeansDead],
        Break::StaleEpochRouter => &[Invariant::RouterNeverSendsWritesToAnOldEpoch],
        Break::PromoteUnlocked => &[
            Invariant::PromotesOnlyWithALiveLease,
            Invariant::FenceKillsByTheDeadline,
        ],
        Break::LagLimitIgnored => &[Invariant::LossWithinLimit],
        Break::UpstreamDropped => &[Invariant::UpstreamKeptUntilNewLeader],
        // Which of them depends on whether the first world in which it matters replicates synchronously.
        Break::ClaimIgnored => &[
            Invariant::NoDataDestroyed,
            Invariant::LossWithinLimit,
            Invariant::NoAcknowledgedCommitLost,
        ],
        Break::FenceLeftDead => &[Invariant::FenceKillsByTheDeadline],
        Break::PauseIgnored => &[Invariant::PauseMeansPause],
        Break::PingedToTheEnd => &[
            Invariant::FenceKillsByTheDeadline,
            Invariant::AtMostOneWritablePrimary,
        ],
        Break::SlotsFromLeader => &[Invariant::ASlotNeverPassesItsPrimary],
        Break::PermanentSlotsUnread => &[Invariant::NoPermanentSlotDropped],
        Break::SyncRecordBeforeGuc | Break::GucBeforeRecordOnRemoval => &[
            Invariant::TheRecordFindsEveryCommit,
            Invariant::NoAcknowledgedCommitLost,
        ],
        Break::VotesShortByOne | Break::PromoteOutsideSync | Break::CheckpointerUnwatched => {
            &[Invariant::NoAcknowledgedCommitLost]
        }
        Break::WalGoneUnseen => &[Invariant::EveryoneConverges],
        Break::ScheduleUnread => &[Invariant::NothingBeforeItsTime],
        Break::IllDiskUnseen => &[Invariant::AnIllDiskIsLeft],
        Break::StandbyUnread | Break::ConfigForgotten => &[Invariant::AStandbyClusterNeverWrites],
        Break::LostMemoryBelieved => &[Invariant::EpochsOnlyGrow],
        Break::StoreForgotten => &[
            Invariant::NoAcknowledgedCommitLost,
            Invariant::LossWithinLimit,
            Invariant::NoDataDestroyed,
        ],
        Break::OpenAtOnce => &[Invariant::UnconfirmedStaysHidden],
        Break::FailsafeOneLess | Break::NoRaceIgnored | Break::ListForgotten => &[
            Invariant::AtMostOneWritablePrimary,
            Invariant::NoPromotionBesideAReachablePrimary,
        ],
        Break::LogicalSlotsUnread | Break::FormerSlotsKept => {
            &[Invariant::LogicalSlotsAreEverywhere]
        }
        Break::ConsumersUnheld => &[Invariant::ConsumersWaitForStandbys],
        Break::RoutersUnheard => &[Invariant::APlannedStopCutsNobody],
        Break::NoWordLeft => &[Invariant::AtMostOneWritablePrimary],
        Break::Historical(bug) => bug.noticed_by(),
    }
}

/// What a primary without a leader would see if it had slept through every promotion.
fn forget_claims(seen: &mut Observation) {
    let is_primary = matches!(&seen.local, Local::Running(running)
        if matches!(running.role, RunningRole::Primary { .. }));
    let DcsView::Known { topology, age } = &mut seen.dcs else {
        return;
    };
    if !is_primary || topology.leader.is_some() || seen.lease != LeaseView::NotHeld {
        return;
    }
    let topology = Arc::make_mut(topology);
    topology.claimed = ClaimedTimeline::default();
    topology.history = Arc::default();
    *age = Duration::ZERO;
    seen.fence.armed_until = None;
}

/// The word names no rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchRule(String);

impl std::fmt::Display for NoSuchRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<_> = Break::ALL.iter().map(|(_, word)| *word).collect();
        write!(f, "\"{}\" is no rule; one of {}", self.0, words.join(", "))
    }
}

impl std::error::Error for NoSuchRule {}

impl FromStr for Break {
    type Err = NoSuchRule;

    fn from_str(word: &str) -> Result<Self, NoSuchRule> {
        Break::ALL
            .iter()
            .find(|(_, known)| *known == word)
            .map(|(rule, _)| *rule)
            .ok_or_else(|| NoSuchRule(word.to_owned()))
    }
}

/// What an agent would see if the cluster's settings were other ones.
fn change_settings(seen: &mut Observation, change: impl FnOnce(&mut ClusterSettings)) {
    if let DcsView::Known { topology, .. } = &mut seen.dcs {
        let mut settings = (*topology.settings_or_default()).clone();
        change(&mut settings);
        Arc::make_mut(topology).settings = Some(Arc::new(settings));
    }
}
