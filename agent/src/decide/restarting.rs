//! What an operator asked of a leader alone, most of all the restart of its PostgreSQL. Routers hold their clients for that, by
//! the steps of a planned change whose candidate is the leader itself (`handing_over.rs`): the record is announced, and removed
//! once PostgreSQL runs again. Where no router is registered there is nobody who could hold anything.

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::switchover::Drain;

use super::decision::{Action, Decision, Detail, Reason, StopMode};
use super::handing_over::{self, Plan};
use super::memory::PlannedChange;
use super::observation::LocalRequest;
use super::{Turn, requests};

/// Restarts are told apart by numbers that no revision reaches, by which changes of leader are; they are exact in JSON.
const FIRST_ID: u64 = 1 << 52;

/// What an operator asked of a leader alone.
pub(super) fn local_request<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    if !is_announced(&turn, topology) && requests::goes_first(&turn, topology) {
        // Clients are held for a change of leader, or will be: first that, whatever comes of it.
        return ControlFlow::Continue(turn);
    }
    match turn.seen.request {
        Some(LocalRequest::Restart(drain)) => restart(turn, topology, drain),
        Some(LocalRequest::Reinitialize) => {
            let why = Arc::from("the leader has the newest data; switch over first");
            let turn = turn.request_taken().detail(Detail::Text(why));
            ControlFlow::Break(turn.routine(Reason::RequestRefused))
        }
        None => ControlFlow::Continue(turn),
    }
}

fn restart<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    drain: Drain,
) -> ControlFlow<Decision, Turn<'a>> {
    // One whose announcement is not seen was not begun, or is told by nobody any more.
    let is_shown = is_announced(&turn, topology);
    let known = begun(&turn).filter(|change| is_shown || change.stage.is_none());
    let known = known.map(|change| change.id);
    if known.is_none() && topology.routers.is_empty() {
        return ControlFlow::Break(
            turn.request_taken()
                .act(Action::Stop(StopMode::Planned))
                .routine(Reason::RestartRequested),
        );
    }
    // What routers said to an earlier one counts for nothing: since it was announced the store has a later revision.
    let revision = u64::try_from(topology.revision).unwrap_or(0);
    let id = known.unwrap_or(FIRST_ID.saturating_add(revision));
    handing_over::step(turn, topology, &Plan::restart(id, drain))
}

/// The restart whose steps this member has begun.
pub(super) fn begun<'t>(turn: &'t Turn<'_>) -> Option<&'t PlannedChange> {
    let remembered = turn.decision.memory.switchover.as_ref();
    remembered.filter(|change| change.is_restart)
}

/// Whether clients are held for a restart that is still asked for.
pub(super) fn is_announced(turn: &Turn<'_>, topology: &Topology) -> bool {
    let begun = begun(turn).map(|change| change.id);
    requests::own_record(turn.seen, topology).is_some_and(|record| begun == Some(record.id))
}

/// What is remembered of a restart ends with the request for it.
pub(super) fn forget_if_over(turn: Turn<'_>) -> Turn<'_> {
    let is_asked = matches!(turn.seen.request, Some(LocalRequest::Restart(_)));
    match begun(&turn) {
        Some(_) if !is_asked => handing_over::forget(turn),
        Some(_) | None => turn,
    }
}
