//! The DCS was never read, or not for `retry_timeout`, and no lease is held: nobody is promoted; reads go
//! on.

use trunkline_shared::cluster::topology::Initialize;

use super::Turn;
use super::decision::{Decision, Reason, StartAs};
use super::memory::Memory;
use super::observation::{DcsView, Local, Observation, RunningRole};

pub(super) fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory);
    if seen.dcs == DcsView::Unknown {
        return turn.routine(Reason::DcsUnknown);
    }
    let turn = turn.disarm_if_harmless();
    match &seen.local {
        Local::Stopped(stopped) if stopped.is_half_rewound => {
            turn.routine(Reason::WaitingForLeader)
        }
        // Started in recovery it would be a replica, of which nobody may make a cluster (`ha.md` 5.6).
        Local::Stopped(stopped) if stopped.was_primary && !is_made(seen) => {
            turn.routine(Reason::WaitingForLeader)
        }
        Local::Stopped(_) => {
            turn.start_unless_just_failed(StartAs::Replica(None), Reason::StartingInRecovery)
        }
        Local::Running(running) => match running.role {
            RunningRole::Primary { .. } => turn.routine(Reason::KeepingLeaseWithoutDcs),
            RunningRole::Replica { .. } => turn.routine(Reason::FollowingWithoutDcs),
        },
        Local::Starting { .. } => turn.routine(Reason::WaitingForStart),
        Local::Unresponsive { since, .. } => turn.wait_for_hung(*since),
        Local::Unknown(_) | Local::Empty | Local::Orphaned { .. } => {
            turn.routine(Reason::DcsUnknown)
        }
    }
}

/// Whether the last view names the cluster's system.
fn is_made(seen: &Observation) -> bool {
    let initialize = seen.topology().map(|topology| topology.initialize);
    matches!(initialize, Some(Initialize::Done(_)))
}
