//! Rules of a leader whose PostgreSQL is a running primary: identity, requests, history, checkpoint,
//! slots, position.

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::{Lsn, Topology};

use super::decision::{Action, Decision, Reason, StopMode};
use super::observation::{JobKind, LeaseView, Running, WatchdogView};
use super::sync_standbys::keeping;
use super::{
    RETRY_PAUSE, Turn, authority_gone, bootstrap, failsafe, host_health, past_changes, requests,
    restarting, slots, small_moves,
};

pub(super) fn decide(
    turn: Turn<'_>,
    topology: &Topology,
    running: &Running,
    position: Lsn,
    is_checkpointed: bool,
) -> Decision {
    let seen = turn.seen;
    let turn = past_changes::note_promotion(turn, topology).remember(|memory| {
        memory.not_primary_since = None;
        memory.stands_back_until = None;
    });
    if !seen.fence.is_live {
        return turn.within(Reason::FenceNotLive, RETRY_PAUSE);
    }
    if !seen.fence.is_armed() {
        return turn.act(Action::ArmFence).now(Reason::ArmingFence);
    }
    if matches!(&seen.lease, LeaseView::Held(held) if held.is_by_failsafe) {
        return go_on(turn, running, position, Reason::HoldingByFailsafe);
    }
    if !seen.is_dcs_fresh() {
        return go_on(turn, running, position, Reason::KeepingLeaseWithoutDcs);
    }
    if authority_gone::is_stale(&seen.local, topology) {
        // Nobody can have let it lead on; whoever was promoted beyond it comes back to a newer history.
        return turn
            .act(Action::Stop(StopMode::Immediate))
            .now(Reason::StalePrimary);
    }
    // The key it writes by is its own whatever comes; only what was held without writing has to be checked.
    let turn = turn.remember(|memory| memory.is_key_unchecked = false);
    if matches!(&seen.lease, LeaseView::Held(held) if held.has_unresolved_hand_over) {
        // Now rather than in the middle of a switchover, which is announced under this epoch.
        return turn
            .act(Action::ReassertLeader)
            .now(Reason::HandOverUnresolved);
    }
    let turn = match keeping::claim(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match bootstrap::identity(turn, topology, running) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match requests::as_leader(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match restarting::local_request(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match host_health::as_leader(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let leading = Leading {
        topology,
        running,
        position,
        is_checkpointed,
    };
    duties(turn, &leading)
}

/// Without the DCS: after a restart clients are let in all the same, by what the standbys say. Who is registered is not
/// known, so nobody's slot is forgotten by that time.
fn go_on(turn: Turn<'_>, running: &Running, position: Lsn, reason: Reason) -> Decision {
    let turn = keeping::let_clients_in(slots::count_anew(turn), running, position);
    let reason = turn.why.unwrap_or(reason);
    match turn.soon {
        Some(within) => turn.within(reason, within),
        None => turn.routine(reason),
    }
}

/// A leader's running primary.
struct Leading<'a> {
    topology: &'a Topology,
    running: &'a Running,
    position: Lsn,
    is_checkpointed: bool,
}

/// Adds what it has to do, and says why where that is worth a word: the first such word is the turn's.
type Duty = for<'a> fn(Turn<'a>, &Leading<'_>) -> Turn<'a>;

/// The first action that fails ends the turn, so what others depend on most comes first: the published
/// position bounds their loss, the checkpoint lets them rewind.
const DUTIES: &[Duty] = &[
    withdraw_announcement,
    name_watchdog,
    let_clients_in,
    keep_sync_standbys,
    publish_position,
    keep_failsafe_list,
    checkpoint,
    keep_slots,
    keep_logical_slots,
    keep_failover_slots,
    record_history,
    record_change,
];

fn duties(turn: Turn<'_>, leading: &Leading<'_>) -> Decision {
    let turn = DUTIES.iter().fold(turn, |turn, duty| duty(turn, leading));
    turn.collected(Reason::Leading)
}

fn withdraw_announcement<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    let turn = turn.withdraw_of_patroni();
    if leading.topology.disarmed.contains(&turn.seen.me.name) {
        // Arming may have failed half-way: the deadline stands, and a fence that froze has not opened its watchdog. One
        // that says it cannot runs, and kills; the other duties are not to wait for a device that is broken.
        let turn = match turn.seen.fence.watchdog {
            WatchdogView::NotRequired | WatchdogView::Ready => turn.act(Action::ArmFence),
            WatchdogView::Failed => turn,
        };
        return turn.act(Action::RemoveDisarmed);
    }
    turn
}

fn let_clients_in<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    keeping::let_clients_in(turn, leading.running, leading.position)
}

/// Whom commits wait for decides who may lead after this member.
fn keep_sync_standbys<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    keeping::keep(turn, leading.topology, leading.running, leading.position)
}

/// What stopped working while this member leads is said; giving up would only move the outage forward.
fn name_watchdog<'a>(turn: Turn<'a>, _leading: &Leading<'_>) -> Turn<'a> {
    match turn.seen.fence.watchdog {
        WatchdogView::NotRequired | WatchdogView::Ready => turn,
        WatchdogView::Failed => turn.because(Reason::WatchdogNotReady),
    }
}

fn publish_position<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    publish(turn, leading.topology, leading.running, leading.position)
}

fn keep_failsafe_list<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    let turn = failsafe::switch_on(turn, leading.topology);
    failsafe::keep_list(turn, leading.topology)
}

/// Writes the position down, once in `loop_wait`; one that hardly moved less often.
pub(super) fn publish<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
    position: Lsn,
) -> Turn<'a> {
    let now = turn.seen.now;
    let last = turn.decision.memory.status_at;
    let status = slots::status(
        turn.seen,
        topology,
        running,
        position,
        &turn.decision.memory,
    );
    let stands = small_moves::status_stands(&topology.status, &status, &turn.seen.settings());
    let is_due = stands.is_some_and(|stands| last.is_none_or(|at| now.since(at) >= stands));
    if !is_due {
        return turn;
    }
    turn.remember(|memory| memory.status_at = Some(now))
        .act(Action::PublishStatus(Arc::new(status)))
}

fn checkpoint<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    let is_idle = turn.seen.job.running.is_none();
    if leading.is_checkpointed {
        return turn.remember(|memory| memory.checkpoint_put_off_since = None);
    }
    if !is_idle || turn.failed_lately(JobKind::Checkpoint) {
        return turn;
    }
    let (turn, is_put_off) = keeping::puts_checkpoint_off(turn);
    if is_put_off {
        return turn;
    }
    turn.act(Action::Checkpoint)
        .because(Reason::CheckpointAfterPromote)
}

fn keep_logical_slots<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    slots::logical::on_primary(turn, leading.running)
}

fn keep_failover_slots<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    slots::failover::on_primary(turn, leading.topology, leading.running)
}

fn keep_slots<'a>(mut turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    let memory = &mut turn.decision.memory;
    let plan = slots::on_leader(turn.seen, leading.topology, leading.running, memory);
    plan.carry_out(turn)
}

fn record_history<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    if leading.topology.has_history_of(leading.running.timeline) {
        return turn;
    }
    turn.act(Action::RecordHistory)
        .because(Reason::RecordingHistory)
}

fn record_change<'a>(turn: Turn<'a>, leading: &Leading<'_>) -> Turn<'a> {
    past_changes::record(turn, leading.topology)
}
