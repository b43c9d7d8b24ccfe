//! Maintenance (`pause`): nothing is done to PostgreSQL; the fence is disarmed only once everybody can
//! see it (`ha.md` 7).

use trunkline_shared::cluster::Topology;

use super::Turn;
use super::decision::{Action, Decision, Reason};
use super::memory::Memory;
use super::observation::{LeaseView, Observation};

pub(super) fn decide(seen: &Observation, memory: &Memory, topology: &Topology) -> Decision {
    let turn = Turn::new(seen, memory);
    let is_announced = topology.disarmed.contains(&seen.me.name);
    let is_held = matches!(seen.lease, LeaseView::Held(_));
    if !seen.local.may_accept_writes() {
        let turn = turn.disarm_if_harmless();
        return if is_announced {
            turn.act(Action::RemoveDisarmed).routine(Reason::Paused)
        } else {
            turn.routine(Reason::Paused)
        };
    }
    if is_held && seen.fence.is_armed() {
        return if is_announced {
            turn.act(Action::DisarmFence).now(Reason::DisarmingForPause)
        } else {
            turn.act(Action::WriteDisarmed)
                .now(Reason::DisarmingForPause)
        };
    }
    turn.routine(Reason::Paused)
}
