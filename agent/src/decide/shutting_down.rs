//! The agent was told to end: leadership is handed over where somebody can take it, PostgreSQL stops.

use super::decision::{Action, Decision, Reason, StopMode};
use super::memory::Memory;
use super::observation::{Held, LeaseView, Local, Observation, RunningRole};
use super::{Turn, requests};
use trunkline_shared::cluster::Topology;

pub(super) fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory);
    if seen.settings().is_paused {
        // Maintenance: the agent may come and go, PostgreSQL stays.
        return turn.routine(Reason::ShutDown);
    }
    match (&seen.lease, seen.topology()) {
        (LeaseView::Held(held), Some(topology)) => as_leader(turn, held, topology),
        (LeaseView::Held(_) | LeaseView::NotHeld | LeaseView::Lost, _) => stop(turn),
    }
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
    match &seen.local {
        Local::Running(running) => match running.role {
            RunningRole::Primary { .. } if seen.is_dcs_fresh() => {
                let id = u64::try_from(held.epoch.revision).unwrap_or(0);
                requests::hand_over(turn, topology, id, None, None)
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

fn release(turn: Turn<'_>, position: Option<trunkline_shared::cluster::Lsn>) -> Decision {
    turn.act(Action::DisarmFence)
        .act(Action::ReleaseLeader { position })
        .now(Reason::ReleasingForShutdown)
}
