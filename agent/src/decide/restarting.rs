//! What an operator asked of a leader alone, most of all the restart of its PostgreSQL. Routers hold their clients for that, by
//! the steps of a planned change whose candidate is the leader itself (`handing_over.rs`): the record is announced, and removed
//! once PostgreSQL runs again. Where no router is registered there is nobody who could hold anything.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::switchover::Drain;

use super::decision::{Action, Decision, Detail, Reason, StopMode};
use super::handing_over::{self, Plan};
use super::memory::{Memory, PlannedChange, RestartSpan};
use super::observation::{Due, LeaseView, LocalRequest, Observation};
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
    let turn = note_progress(turn);
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

/// The restart whose steps this member has begun, while it is asked for.
pub(super) fn begun<'t>(turn: &'t Turn<'_>) -> Option<&'t PlannedChange> {
    let remembered = turn.decision.memory.switchover.as_ref();
    remembered.filter(|change| change.is_restart)
}

/// Whether clients are held for a restart that is still asked for.
pub(super) fn is_announced(turn: &Turn<'_>, topology: &Topology) -> bool {
    let begun = begun(turn).map(|change| change.id);
    requests::own_record(turn.seen, topology).is_some_and(|record| begun == Some(record.id))
}

fn note_progress(turn: Turn<'_>) -> Turn<'_> {
    let now = turn.seen.now;
    let goes_on = begun(&turn).is_some();
    turn.remember(|memory| {
        let known = memory.last_restart.filter(|_| goes_on);
        let began = known.map_or(now, |restart| restart.began);
        memory.last_restart = Some(RestartSpan { began, seen: now });
    })
}

/// Whether what is scheduled fell due while a restart went on that is just over.
pub(super) fn has_held_up(turn: &Turn<'_>) -> bool {
    let fell_due_since = |late: Duration| {
        let last = turn.decision.memory.last_restart;
        last.is_some_and(|restart| late <= turn.seen.now.since(restart.began))
    };
    match turn.seen.scheduled {
        Some(Due::Ago(late)) => is_just_over(turn) && fell_due_since(late),
        Some(Due::In(_) | Due::Unreadable) | None => false,
    }
}

/// Whether a restart ended no longer ago than what is scheduled may be late.
pub(super) fn is_just_over(turn: &Turn<'_>) -> bool {
    let limit = requests::lateness(turn.seen);
    let last = turn.decision.memory.last_restart;
    last.is_some_and(|restart| turn.seen.now.since(restart.seen) <= limit)
}

/// Whether the steps of a restart were begun under a leadership that is over. Its end has stopped PostgreSQL, so what
/// was asked for then would come as a second restart.
pub(super) fn is_lost(seen: &Observation, memory: &Memory) -> bool {
    let is_asked = matches!(seen.request, Some(LocalRequest::Restart(_)));
    let planned = memory.switchover.as_ref();
    let leads = matches!(seen.lease, LeaseView::Held(_));
    is_asked && !leads && planned.is_some_and(|change| change.is_restart)
}

pub(super) fn lost(seen: &Observation, memory: &Memory) -> Decision {
    let why = "this member ceased to lead in the middle of the restart, which is called off; ask again if it is still \
               needed";
    let turn = handing_over::forget(Turn::new(seen, memory)).request_taken();
    turn.detail(Detail::Text(why.into()))
        .now(Reason::RequestRefused)
}

/// PostgreSQL ended by itself before it was stopped: its start is the restart that was asked for.
pub(super) fn end_if_anticipated(turn: Turn<'_>) -> Turn<'_> {
    match begun(&turn) {
        Some(_) => handing_over::forget(turn).request_taken(),
        None => turn,
    }
}

/// The number of the restart that was announced before this member wrote its leader key again.
pub(super) fn outlived_by_key(turn: &Turn<'_>, topology: &Topology) -> Option<u64> {
    let (record, change) = (topology.switchover.as_ref()?, begun(turn)?);
    let is_this = record.is_restart() && record.id == change.id;
    let is_outlived = is_this && requests::own_record(turn.seen, topology).is_none();
    is_outlived.then_some(change.id)
}
