//! A cluster that is being made: from its first start to its recorded identity, and what becomes of data
//! whose bootstrap failed or was cut short.

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::topology::Initialize;

use super::decision::{Action, Decision, Detail, Reason, StopMode};
use super::memory::Memory;
use super::observation::{JobKind, Local, Observation, Running, RunningRole};
use super::{Turn, no_data};

/// Whether this member's data is of a cluster that is being made. The claim to that may have been deleted since.
pub(super) fn is_being_made(seen: &Observation, topology: &Topology) -> bool {
    match topology.initialize {
        Initialize::Running => true,
        Initialize::Absent => seen.is_bootstrap_unfinished,
        Initialize::Done(_) => false,
    }
}

/// A running primary whose cluster is being made, or adopted, gets its roles and its identity first.
pub(super) fn identity<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
) -> ControlFlow<Decision, Turn<'a>> {
    let record = Action::RecordSystemId(running.system_id);
    match topology.initialize {
        Initialize::Done(_) => return ControlFlow::Continue(turn),
        Initialize::Absent if !turn.seen.is_bootstrap_unfinished => {
            return ControlFlow::Break(turn.act(record).now(Reason::RecordingIdentity));
        }
        Initialize::Absent | Initialize::Running => {}
    }
    let failure = turn.failure_of(JobKind::FinishBootstrap);
    let is_own = turn.seen.is_bootstrap_unfinished;
    if let Some(why) = failure.or_else(|| beside(turn.seen).filter(|_| is_own)) {
        return ControlFlow::Break(fail(turn, why));
    }
    let finished = turn.seen.job.finished.as_ref();
    let is_done = finished.is_some_and(|job| job.kind == JobKind::FinishBootstrap);
    if is_done || !turn.seen.is_bootstrap_unfinished {
        return ControlFlow::Break(turn.act(record).now(Reason::RecordingIdentity));
    }
    let turn = turn.act(Action::FinishBootstrap);
    ControlFlow::Break(turn.routine(Reason::FinishingBootstrap))
}

/// A pause has met the cluster that is being made. It gets its identity, and no pause disarms it before: nobody would
/// know of what an instance without a fence is. What has failed is stopped when the pause is over.
pub(super) fn in_maintenance(turn: Turn<'_>, topology: &Topology) -> Decision {
    let Local::Running(running) = &turn.seen.local else {
        return turn.routine(Reason::Paused);
    };
    let is_primary = matches!(running.role, RunningRole::Primary { .. });
    let is_beside = turn.seen.is_bootstrap_unfinished && beside(turn.seen).is_some();
    let has_failed = turn.failure_of(JobKind::FinishBootstrap).is_some() || is_beside;
    if !is_primary || has_failed {
        return turn.routine(Reason::Paused);
    }
    if !turn.seen.fence.is_armed() {
        return turn.act(Action::ArmFence).now(Reason::ArmingFence);
    }
    match identity(turn, topology, running) {
        ControlFlow::Break(decision) => decision,
        ControlFlow::Continue(turn) => turn.routine(Reason::Paused),
    }
}

fn fail(turn: Turn<'_>, why: Arc<str>) -> Decision {
    turn.remember(|memory| memory.bootstrap_failed = Some(why.clone()))
        .detail(Detail::Text(why))
        .act(Action::Stop(StopMode::Fast))
        .routine(Reason::BootstrapFailed)
}

/// The stopped instance of a cluster that is being made has failed for good: its data is set aside, and the
/// claim is given up once nothing is left of it. `Continue` while it may still become a cluster.
pub(super) fn when_stopped<'a>(turn: Turn<'a>, failed: bool) -> ControlFlow<Decision, Turn<'a>> {
    if !turn.seen.is_bootstrap_unfinished {
        return ControlFlow::Continue(turn);
    }
    let earlier = turn.decision.memory.bootstrap_failed.clone();
    let why = earlier.or_else(|| turn.failure_of(JobKind::Start).filter(|_| failed));
    let why = why.or_else(|| beside(turn.seen));
    let Some(why) = why else {
        return ControlFlow::Continue(turn);
    };
    let turn = turn.remember(|memory| memory.bootstrap_failed = Some(why.clone()));
    ControlFlow::Break(set_aside(turn.detail(Detail::Text(why))))
}

/// Why the cluster that is being made must not begin: a member has registered that has data of another one, which the DCS
/// may have lost.
fn beside(seen: &Observation) -> Option<Arc<str>> {
    let topology = seen.topology()?;
    let member = no_data::who_has_data(seen, topology)?;
    is_being_made(seen, topology).then(|| format!("{member} has data of a cluster").into())
}

/// Whether the data here is of a bootstrap that this member no longer has the claim for: the agent died in
/// the middle of it, or lost the lease. It is nobody's, and as it is it has no roles.
pub(super) fn is_abandoned(seen: &Observation) -> bool {
    let is_named = seen
        .topology()
        .and_then(|topology| topology.leader.as_ref())
        .is_some_and(|leader| leader.member == seen.me.name);
    seen.is_bootstrap_unfinished && !is_named
}

/// Sets abandoned data aside; what follows is what follows for every member without data.
pub(super) fn abandoned(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory).disarm_if_harmless();
    match &seen.local {
        Local::Stopped(_) => set_aside(turn),
        Local::Starting { .. } | Local::Running(_) => turn
            .act(Action::Stop(StopMode::Fast))
            .routine(Reason::DiscardingBootstrap),
        Local::Unresponsive { since, .. } => turn.wait_for_hung(*since),
        Local::Unknown(why) => turn
            .detail(Detail::Text(why.clone()))
            .routine(Reason::DataUnreadable),
        // Situations of their own.
        Local::Empty | Local::Orphaned { .. } => turn.routine(Reason::DataUnreadable),
    }
}

fn set_aside(turn: Turn<'_>) -> Decision {
    if turn.failed_lately(JobKind::DiscardBootstrap) {
        return turn.after_failure(JobKind::DiscardBootstrap);
    }
    turn.act(Action::DiscardBootstrap)
        .routine(Reason::DiscardingBootstrap)
}
