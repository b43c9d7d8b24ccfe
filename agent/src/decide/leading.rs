//! Rules of a leader whose PostgreSQL is a running primary: identity, requests, history, checkpoint,
//! slots, position.

use std::ops::ControlFlow;

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Lsn, Topology};

use super::decision::{Action, Decision, Detail, Reason};
use super::observation::{JobKind, LeaseView, Running};
use super::{RETRY_PAUSE, Turn, holding_lease, requests};

pub(super) fn decide(
    turn: Turn<'_>,
    topology: &Topology,
    running: &Running,
    position: Lsn,
    is_checkpointed: bool,
) -> Decision {
    let seen = turn.seen;
    let turn = turn.remember(|memory| {
        memory.not_primary_since = None;
        memory.stands_back_until = None;
    });
    if !seen.fence.is_live {
        return turn.within(Reason::FenceNotLive, RETRY_PAUSE);
    }
    if !seen.fence.is_armed {
        return turn.act(Action::ArmFence).now(Reason::ArmingFence);
    }
    if !seen.is_dcs_fresh() {
        return turn.routine(Reason::KeepingLeaseWithoutDcs);
    }
    if matches!(&seen.lease, LeaseView::Held(held) if held.has_unresolved_hand_over) {
        // Now rather than in the middle of a switchover, which is announced under this epoch.
        return turn
            .act(Action::ReassertLeader)
            .now(Reason::HandOverUnresolved);
    }
    let turn = match identity(turn, topology, running) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match requests::as_leader(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match holding_lease::local_request(turn) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    duties(turn, topology, running, position, is_checkpointed)
}

/// A cluster that is being made, or adopted, gets its roles and its identity first.
fn identity<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
) -> ControlFlow<Decision, Turn<'a>> {
    let record = Action::RecordSystemId(running.system_id);
    match topology.initialize {
        Initialize::Done(_) => ControlFlow::Continue(turn),
        Initialize::Absent => ControlFlow::Break(turn.act(record).now(Reason::RecordingIdentity)),
        Initialize::Running => {
            let done = turn
                .seen
                .job
                .finished
                .as_ref()
                .is_some_and(|job| job.kind == JobKind::FinishBootstrap && job.error.is_none());
            if done {
                return ControlFlow::Break(turn.act(record).now(Reason::RecordingIdentity));
            }
            if turn.failed_lately(JobKind::FinishBootstrap) {
                return ControlFlow::Break(turn.after_failure(JobKind::FinishBootstrap));
            }
            let turn = turn.act(Action::FinishBootstrap);
            ControlFlow::Break(turn.routine(Reason::FinishingBootstrap))
        }
    }
}

/// The first action that fails ends the turn, so what others depend on most comes first: the published
/// position bounds their loss, the checkpoint lets them rewind, and a slot is dropped before one is made.
fn duties(
    mut turn: Turn<'_>,
    topology: &Topology,
    running: &Running,
    position: Lsn,
    is_checkpointed: bool,
) -> Decision {
    let seen = turn.seen;
    let mut reason = Reason::Leading;
    if topology.disarmed.contains(&seen.me.name) {
        turn = turn.act(Action::RemoveDisarmed);
    }
    let settings = seen.settings();
    let due = turn
        .decision
        .memory
        .status_at
        .is_none_or(|at| seen.now.since(at) >= settings.loop_wait);
    if due && position > topology.status.optime {
        turn = turn
            .remember(|memory| memory.status_at = Some(seen.now))
            .act(Action::PublishStatus { optime: position });
    }
    let is_idle = seen.job.running.is_none();
    if !is_checkpointed && is_idle && !turn.failed_lately(JobKind::Checkpoint) {
        turn = turn.act(Action::Checkpoint);
        reason = Reason::CheckpointAfterPromote;
    }
    let (missing, unneeded) =
        holding_lease::slots(seen, topology, running, &mut turn.decision.memory);
    if !missing.is_empty() || !unneeded.is_empty() {
        reason = Reason::MaintainingSlots;
    }
    if !unneeded.is_empty() {
        turn = turn.act(Action::DropSlots(unneeded));
    }
    if !missing.is_empty() {
        turn = turn.act(Action::CreateSlots(missing));
    }
    if !topology.has_history_of(running.timeline) {
        turn = turn.act(Action::RecordHistory);
        reason = Reason::RecordingHistory;
    }
    turn.detail(Detail::None).routine(reason)
}
