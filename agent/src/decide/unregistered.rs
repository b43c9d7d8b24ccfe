//! There is data here and the DCS knows no cluster of this scope.

use super::decision::{Decision, Reason};
use super::memory::Memory;
use super::observation::{Local, Observation, RunningRole};
use super::{Turn, standby_cluster};
use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::topology::Initialize;

/// A primary's data becomes the cluster; a replica's waits for its primary's agent, for whoever makes a
/// cluster of it would split it from its primary (`ha.md` 5.6). A standby cluster has no primary to wait for.
pub(super) fn decide(seen: &Observation, memory: &Memory, topology: &Topology) -> Decision {
    let turn = Turn::new(seen, memory);
    if topology.initialize == Initialize::Running {
        return turn.routine(Reason::WaitingForBootstrap);
    }
    let is_primarys = match &seen.local {
        Local::Stopped(stopped) => stopped.was_primary,
        Local::Running(running) => match running.role {
            RunningRole::Primary { .. } => true,
            RunningRole::Replica { .. } => false,
        },
        Local::Starting { as_primary, .. } => *as_primary,
        Local::Unresponsive { since, .. } => return turn.wait_for_hung(*since),
        Local::Unknown(_) | Local::Empty | Local::Orphaned { .. } => {
            return turn.routine(Reason::DataUnreadable);
        }
    };
    if !is_primarys && seen.settings().standby_cluster.is_some() {
        return standby_cluster::identity::as_replica(turn, topology);
    }
    if !is_primarys {
        return turn.routine(Reason::ReplicaWithoutCluster);
    }
    if seen.settings().standby_cluster.is_some() {
        return turn.routine(Reason::StandbyCluster);
    }
    if !seen.fence.is_live {
        return turn.routine(Reason::FenceNotLive);
    }
    turn.acquire().now(Reason::AdoptingPrimary)
}
