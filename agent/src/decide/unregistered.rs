//! There is data here and the DCS knows no cluster of this scope.

use std::time::Duration;

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::topology::Initialize;

use super::decision::{Decision, Detail, Reason};
use super::memory::Memory;
use super::observation::{Local, Observation, RunningRole};
use super::{Turn, asking, candidate, standby_cluster};

/// How soon the others are asked again while one of them speaks against it.
const ASK_AGAIN: Duration = Duration::from_millis(500);

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
    adopt(turn, topology)
}

/// Whoever is registered may know the DCS of before, or be the cluster's primary.
fn adopt(turn: Turn<'_>, topology: &Topology) -> Decision {
    let seen = turn.seen;
    let is_alone = asking::whom(topology, &turn.decision.memory, &seen.me.name).is_empty();
    if !is_alone && candidate::answers(seen).is_none() {
        return turn.ask_peers();
    }
    let refusal = match candidate::living_primary(seen) {
        Some(peer) => Err((Reason::PeerIsPrimary, Detail::Member(peer))),
        None => candidate::peer_knows_more(seen),
    };
    match refusal {
        Ok(()) => turn.acquire().now(Reason::AdoptingPrimary),
        Err((reason, detail)) => turn
            .remember(|memory| memory.wants_peers = true)
            .detail(detail)
            .within(reason, ASK_AGAIN),
    }
}
