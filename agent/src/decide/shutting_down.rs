//! The agent was told to end: leadership is handed over where somebody can take it, PostgreSQL stops.

use std::ops::ControlFlow;

use super::decision::{Action, Decision, Reason, StopMode};
use super::handing_over::Plan;
use super::memory::Memory;
use super::observation::{Held, LeaseView, Local, Observation, Running, RunningRole};
use super::sync_standbys::election;
use super::{PROMOTE_NEEDS, Turn, handing_over, requests};
use trunkline_shared::cluster::Topology;

pub(super) fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory);
    if seen.is_left_alone() {
        // Maintenance: the agent may come and go, PostgreSQL stays.
        return turn.routine(Reason::ShutDown);
    }
    match (&seen.lease, seen.topology()) {
        (LeaseView::Held(held), Some(topology)) => as_leader(turn, held, topology),
        (LeaseView::NotHeld | LeaseView::Lost, Some(topology)) => as_replica(turn, topology),
        (LeaseView::Held(_) | LeaseView::NotHeld | LeaseView::Lost, _) => stop(turn),
    }
}

/// A standby that commits wait for says in its record that it leaves, and ends once they do not: else they
/// would be blocked (`patroni.md` 2.9).
fn as_replica<'a>(turn: Turn<'a>, topology: &Topology) -> Decision {
    let seen = turn.seen;
    let me = &seen.me.name;
    let is_waited_for = election::record_in_force(topology)
        .is_some_and(|sync| sync.standbys.contains(me))
        && topology.leader.is_some();
    let streams = matches!(
        &seen.local,
        Local::Running(Running {
            role: RunningRole::Replica {
                is_streaming: true,
                ..
            },
            ..
        })
    );
    if !is_waited_for || !streams || !seen.is_dcs_fresh() {
        return stop(turn);
    }
    let since = turn.decision.memory.leaving_since.unwrap_or(seen.now);
    let limit = seen.settings().loop_wait * 2;
    let waited = seen.now.since(since);
    if waited >= limit {
        return stop(turn);
    }
    turn.remember(|memory| memory.leaving_since = Some(since))
        .within(Reason::LeavingSync, limit - waited)
}

fn stop(turn: Turn<'_>) -> Decision {
    match &turn.seen.local {
        Local::Stopped(_) | Local::Empty | Local::Unknown(_) => {
            turn.disarm_if_harmless().routine(Reason::ShutDown)
        }
        Local::Starting { .. } | Local::Running(_) => turn
            .act(Action::Stop(StopMode::Fast))
            .routine(Reason::StoppingForShutdown),
        Local::Unresponsive { .. } | Local::Orphaned { .. } => turn
            .act(Action::Stop(StopMode::Immediate))
            .routine(Reason::StoppingForShutdown),
    }
}

fn as_leader(turn: Turn<'_>, held: &Held, topology: &Topology) -> Decision {
    let seen = turn.seen;
    if held.is_key_missing {
        return without_key(turn, held);
    }
    match &seen.local {
        Local::Running(running) => match running.role {
            RunningRole::Primary { .. } if is_announced_to_restart(seen, topology) => {
                handing_over::forget(turn)
                    .act(Action::ClearSwitchover)
                    .now(Reason::StoppingForShutdown)
            }
            RunningRole::Primary { .. } if seen.is_dcs_fresh() => {
                let announced = requests::own_switchover(seen, topology);
                let plan = Plan::for_shutdown(held.epoch.revision, announced.map(|r| &**r));
                match handing_over::step(turn, topology, &plan) {
                    ControlFlow::Break(decision) => decision,
                    ControlFlow::Continue(turn) => turn.collected(Reason::StoppingForShutdown),
                }
            }
            RunningRole::Primary { .. } => stop(turn),
            RunningRole::Replica { .. } if running.is_promoting => stop(turn),
            RunningRole::Replica { .. } => release(turn, None),
        },
        Local::Stopped(stopped) => match requests::own_switchover(seen, topology) {
            Some(record) => requests::when_stopped(turn, held, topology, record, stopped),
            // After an unclean end the last checkpoint may lie far behind what was acknowledged.
            None => release(turn, stopped.is_clean.then_some(stopped.checkpoint)),
        },
        Local::Empty => release(turn, None),
        Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. }
        | Local::Unknown(_) => stop(turn),
    }
}

/// Whoever goes on by everybody's consent after an outage has no key to hand over until it has made it anew. Where the
/// DCS does not let it, it ends without: everybody would go on to consent for ever.
fn without_key(turn: Turn<'_>, held: &Held) -> Decision {
    let seen = turn.seen;
    let since = turn.decision.memory.leaving_since.unwrap_or(seen.now);
    let has_time = seen.now.since(since) < seen.settings().loop_wait * 2
        && seen.now.until(held.deadline) > PROMOTE_NEEDS;
    let is_primary = matches!(&seen.local, Local::Running(running) if matches!(running.role, RunningRole::Primary { .. }));
    if !has_time || !is_primary || !seen.is_dcs_fresh() {
        return stop(turn);
    }
    turn.remember(|memory| memory.leaving_since = Some(since))
        .act(Action::AcquireLeader)
        .now(Reason::LeaderKeyMissing)
}

/// Whether clients are held for a restart, which will not be.
fn is_announced_to_restart(seen: &Observation, topology: &Topology) -> bool {
    let record = requests::own_record(seen, topology);
    seen.is_dcs_fresh() && record.is_some_and(|record| record.is_restart())
}

fn release(turn: Turn<'_>, position: Option<trunkline_shared::cluster::Lsn>) -> Decision {
    turn.act(Action::DisarmFence)
        .act(Action::ReleaseLeader { position })
        .now(Reason::ReleasingForShutdown)
}
