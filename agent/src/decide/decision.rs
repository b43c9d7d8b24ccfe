//! What a turn decided, and the rules every decision keeps.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{MemberName, Moment, Timeline};

use super::memory::Memory;
use super::observation::{Local, Observation};
use super::situation::Situation;
use super::sync_standbys;

mod action;
mod reason;

pub use action::{
    Action, ActionTraits, Lapse, LogicalSlot, SlotAdvance, SlotCare, StartAs, StopMode, Upstream,
};
pub use reason::Reason;

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
    /// How long the stop among the actions may take before it becomes immediate; `None` is PostgreSQL's own
    /// `pg_ctl_timeout`.
    pub stop_limit: Option<Duration>,
    /// How long each action may hold the loop up at the most, where clients wait meanwhile; `None` is the loop's own limit.
    pub act_limit: Option<Duration>,
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
    /// A member that commits did not wait for.
    NotSynchronous(MemberName),
    /// Text of an error.
    Text(Arc<str>),
    /// The own timeline and the newest one.
    Timelines(Timeline, Timeline),
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Detail::None => Ok(()),
            Detail::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Detail::Member(member) => member.fmt(f),
            Detail::Lacks(member, bytes) => write!(f, "{member} lacks {bytes} bytes"),
            Detail::NotSynchronous(member) => write!(f, "{member} is no synchronous standby"),
            Detail::Text(text) => f.write_str(text),
            Detail::Timelines(own, newest) => {
                write!(f, "on timeline {own}, the newest is {newest}")
            }
        }
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
    /// A promotion in a synchronous mode while the `sync` record lets others lead as well.
    PromotesWithoutSync,
}

impl Decision {
    /// Checks the rules every decision keeps, whatever it decides.
    pub fn broken_rule(
        &self,
        seen: &Observation,
        lease_left: Option<Duration>,
    ) -> Option<BrokenRule> {
        if self
            .actions
            .iter()
            .filter(|a| a.traits().is_disruptive)
            .count()
            > 1
        {
            return Some(BrokenRule::TwoDisruptiveActions);
        }
        let writable = |a: &Action| {
            matches!(
                a,
                Action::Promote(_)
                    | Action::Start(
                        StartAs::Primary | StartAs::PrimaryClosed | StartAs::Recovering,
                    )
            )
        };
        let at = self.actions.iter().position(writable)?;
        if lease_left.is_none_or(|left| left <= super::PROMOTE_NEEDS) {
            return Some(BrokenRule::PromotesWithoutLease);
        }
        if !self.actions[..at].contains(&Action::ArmFence) {
            return Some(BrokenRule::PromotesUnarmed);
        }
        let is_promotion = matches!(self.actions[at], Action::Promote(_));
        if is_promotion && !is_sync_claimed(seen, &self.actions[..at]) {
            return Some(BrokenRule::PromotesWithoutSync);
        }
        None
    }
}

/// Whether each commit of this member is found by whoever may lead once these actions are done, where commits
/// wait for standbys: nobody else may, or commits already wait for enough of them.
fn is_sync_claimed(seen: &Observation, actions: &[Action]) -> bool {
    if seen.settings().synchronous_mode == SynchronousMode::Off {
        return true;
    }
    let known = seen.topology().and_then(|t| t.sync.as_ref());
    let written = actions.iter().rev().find_map(|action| {
        if let Action::WriteSync(sync) = action {
            return Some(sync);
        }
        None
    });
    let changes = |action: &Action| matches!(action, Action::SetSyncNames(_));
    let is_claim = |sync: &SyncState| {
        if sync.leader.as_ref() != Some(&seen.me.name) {
            return false;
        }
        if sync.standbys.is_empty() {
            return sync.quorum == 0;
        }
        let Local::Running(running) = &seen.local else {
            return false;
        };
        let commits = &running.commits;
        let is_settled = commits.own.as_ref() == Some(&commits.in_force);
        let is_kept = is_settled && !actions.iter().any(changes);
        is_kept && sync_standbys::finds_all(sync, &commits.in_force)
    };
    written.or(known).is_some_and(is_claim)
}

/// When a turn may be late: the moment `next` names.
pub fn next_at(now: Moment, next: NextTick) -> Moment {
    now + next.within
}
