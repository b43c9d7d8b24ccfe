//! The data here belongs to another cluster: nothing is done with it, and nothing is held because of it.

use super::Turn;
use super::decision::{Action, Decision, Reason, StopMode};
use super::memory::Memory;
use super::observation::{LeaseView, Observation};

/// A lease that is held was taken over other data. Who holds it must let others lead, and until then its
/// PostgreSQL must not look like this cluster's primary; without a lease the other cluster is none of ours.
pub(super) fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory);
    // Paused, only what an operator asks for is done.
    let turn = match seen.is_dcs_fresh() && !seen.is_automation_off() {
        true => turn.withdraw_announcement(),
        false => turn,
    };
    let is_held = matches!(seen.lease, LeaseView::Held(_));
    // Paused, PostgreSQL is not touched, and what is not dead is not released.
    if !is_held || seen.is_left_alone() && seen.local.may_accept_writes() {
        return turn.routine(Reason::ForeignSystemId);
    }
    if seen.local.may_accept_writes() {
        return turn
            .act(Action::Stop(StopMode::Immediate))
            .now(Reason::ForeignSystemId);
    }
    let back = seen.now + seen.settings().ttl;
    turn.remember(|memory| memory.stands_back_until = Some(back))
        .act(Action::DisarmFence)
        .act(Action::ReleaseLeader { position: None })
        .now(Reason::ForeignSystemId)
}
