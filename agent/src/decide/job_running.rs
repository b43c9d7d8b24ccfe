//! A long job is in progress: leave it, or end it when what it was for has changed.

use std::ops::ControlFlow;

use trunkline_shared::cluster::Topology;

use super::decision::{Action, Decision, Detail, Reason};
use super::memory::Memory;
use super::observation::{JobKind, LeaseView, Local, LocalRequest, Observation, RunningJob};
use super::{Turn, stalled_promotion};

pub(super) fn decide(seen: &Observation, memory: &Memory, job: &RunningJob) -> Decision {
    let turn = Turn::new(seen, memory).detail(Detail::Text(job.kind.name().into()));
    // A copy that ran already is none that was asked for.
    let ordered = turn.decision.memory.copy_ordered_at;
    let is_ordered = job.kind == JobKind::Clone && ordered.is_some_and(|at| job.since >= at);
    let turn = match seen.request == Some(LocalRequest::Reinitialize) && is_ordered {
        true => turn.request_taken(),
        false => turn,
    };
    let is_held = matches!(seen.lease, LeaseView::Held(_));
    let is_pointless = match job.kind {
        JobKind::Promote | JobKind::PrePromote => !is_held,
        JobKind::Initialize | JobKind::FinishBootstrap => !is_held || seen.is_shutting_down,
        // A rewind that is ended half-way leaves data that only a clone can mend, and says so on disk. Whoever
        // ends the agent does not wait for hours, and would kill it. Starts and stops end by themselves.
        JobKind::Clone | JobKind::Rewind => seen.is_shutting_down,
        JobKind::Start
        | JobKind::Stop
        | JobKind::StopNow
        | JobKind::Checkpoint
        | JobKind::DiscardBootstrap
        | JobKind::CompareHistory
        | JobKind::TendSlots => false,
        // The leader that is asked for them is gone, and whoever may take over is needed.
        JobKind::CopySlots => {
            let is_running = matches!(seen.local, Local::Running(_));
            is_running && seen.topology().is_some_and(|now| leads_no_more(now, job))
        }
    };
    if is_pointless {
        return turn.act(Action::CancelJob).now(Reason::JobCancelled);
    }
    let turn = match job.kind == JobKind::Promote {
        true => match stalled_promotion::break_off(turn, job.since) {
            ControlFlow::Break(decision) => return decision,
            ControlFlow::Continue(turn) => turn,
        },
        false => turn,
    };
    turn.routine(Reason::JobInProgress)
}

/// Whether the member that data is copied from has ceased to lead.
fn leads_no_more(topology: &Topology, job: &RunningJob) -> bool {
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    leader != job.source.as_ref()
}
