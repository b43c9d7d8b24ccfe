//! Maintenance (`pause`): nothing is done to PostgreSQL but what an operator asks for by name; the lease is
//! kept, and the fence is disarmed only once everybody can see it (`ha.md` 7).

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::topology::Initialize;

use super::decision::{Action, Decision, Detail, Reason};
use super::memory::{Memory, PlannedChange};
use super::observation::{Held, LeaseView, Local, Observation, RunningRole};
use super::sync_standbys::keeping;
use super::{
    Turn, authority_gone, bootstrap, candidate, following, holding_lease, leading, no_leader,
    requests, slots, standby_cluster,
};

pub(super) fn decide(seen: &Observation, memory: &Memory, topology: &Topology) -> Decision {
    let turn = Turn::new(seen, memory);
    if seen.request.is_some() {
        let why = Arc::from("the cluster is paused; trunkline resume first");
        let turn = turn.request_taken().detail(Detail::Text(why));
        return turn.routine(Reason::RequestRefused);
    }
    match (seen.local.may_accept_writes(), &seen.lease) {
        (true, LeaseView::Held(held)) => as_leader(turn, held, topology),
        (true, LeaseView::NotHeld | LeaseView::Lost) => hold_again(turn, topology),
        (false, LeaseView::Held(held)) => no_primary(turn, held, memory, topology),
        (false, LeaseView::NotHeld | LeaseView::Lost) => as_member(turn, memory, topology),
    }
}

/// The lease is held by who runs as primary: announced first, disarmed then, and led on.
fn as_leader<'a>(turn: Turn<'a>, held: &Held, topology: &Topology) -> Decision {
    let seen = turn.seen;
    if !seen.is_dcs_fresh() {
        return turn.routine(Reason::Paused);
    }
    if held.is_key_missing {
        return match another_disarmed(seen, topology) {
            Some(other) => turn.detail(other).routine(Reason::AnotherIsDisarmed),
            None => turn
                .act(Action::AcquireLeader)
                .now(Reason::LeaderKeyMissing),
        };
    }
    if held.has_unresolved_hand_over {
        return write_again(turn);
    }
    if bootstrap::is_being_made(seen, topology) {
        return bootstrap::in_maintenance(turn, topology);
    }
    if !topology.disarmed.contains(&seen.me.name) {
        return turn
            .act(Action::WriteDisarmed)
            .now(Reason::DisarmingForPause);
    }
    if seen.fence.is_armed() {
        return turn.act(Action::DisarmFence).now(Reason::DisarmingForPause);
    }
    let Local::Running(running) = &seen.local else {
        return turn.routine(Reason::Paused);
    };
    let is_primary = matches!(running.role, RunningRole::Primary { .. });
    if is_primary && topology.initialize == Initialize::Absent {
        // It was adopted just before the pause, and others would make a cluster beside it once nobody leads.
        return turn
            .act(Action::RecordSystemId(running.system_id))
            .now(Reason::RecordingIdentity);
    }
    let turn = match requests::as_leader(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    match running.role {
        RunningRole::Primary { position, .. } => {
            let turn = slots::count_anew(turn);
            let turn = keeping::let_clients_in(turn, running, position);
            leading::publish(turn, topology, running, position).collected(Reason::Paused)
        }
        RunningRole::Replica { .. } => turn.routine(Reason::Paused),
    }
}

/// What was to give the key away may still be executed. A paused primary has no fence that would end it then, and
/// one that was stopped for the change may not start again before that is impossible.
pub(super) fn write_again(turn: Turn<'_>) -> Decision {
    turn.act(Action::ReassertLeader)
        .now(Reason::HandOverUnresolved)
}

/// PostgreSQL runs as primary without the lease: the agent was restarted, or the DCS was away for longer
/// than a ttl. Its own key is proved, and an absent one taken as anybody else would take it.
fn hold_again<'a>(turn: Turn<'a>, topology: &Topology) -> Decision {
    let seen = turn.seen;
    let is_running = matches!(seen.local, Local::Running(_));
    if !seen.is_dcs_fresh() || !is_running {
        return turn.routine(Reason::Paused);
    }
    match &topology.leader {
        Some(leader) if leader.member == seen.me.name => following::confirm(turn),
        // Whoever it is, this primary is not demoted before the operator says so.
        Some(_) => turn.routine(Reason::Paused),
        None if authority_gone::is_stale(&seen.local, topology) => turn.routine(Reason::Paused),
        None => match (another_disarmed(seen, topology), topology.initialize) {
            (Some(other), _) => turn.detail(other).routine(Reason::AnotherIsDisarmed),
            (None, Initialize::Done(_)) => no_leader::retake(turn, topology),
            (None, Initialize::Absent | Initialize::Running) => turn.routine(Reason::Paused),
        },
    }
}

/// The lease is held and PostgreSQL is no primary. Unless an operator asked for that, others are to see
/// that nobody leads.
fn no_primary(turn: Turn<'_>, held: &Held, memory: &Memory, topology: &Topology) -> Decision {
    let seen = turn.seen;
    if !seen.is_dcs_fresh() || bootstrap::is_being_made(seen, topology) {
        return turn.routine(Reason::Paused);
    }
    if held.has_unresolved_hand_over && !held.is_key_missing {
        return write_again(turn);
    }
    let position = match &seen.local {
        Local::Stopped(stopped) => {
            let own = requests::own_record(seen, topology);
            if own.is_some_and(|record| record.is_restart()) {
                // The pause came between its stop and its start, and clients are held.
                return holding_lease::decide(seen, memory);
            }
            let is_demoted = seen.settings().standby_cluster.is_some();
            if let Some(record) = own.filter(|_| is_demoted) {
                // The cluster is to be a standby since, and what was stopped is not to write again.
                return requests::call_off(turn, topology, record.id);
            }
            if let Some(record) = own {
                return requests::when_stopped(turn, held, topology, record, stopped);
            }
            stopped.is_clean.then_some(stopped.checkpoint)
        }
        Local::Running(running) if seen.settings().standby_cluster.is_some() => {
            return standby_cluster::in_maintenance(turn.disarm_if_harmless(), topology, running);
        }
        Local::Running(_) if is_named(seen, topology) => {
            return holding_lease::decide(seen, memory);
        }
        Local::Running(_) | Local::Starting { .. } | Local::Empty => None,
        // Not known to be dead.
        Local::Unknown(_) | Local::Unresponsive { .. } | Local::Orphaned { .. } => {
            return turn.routine(Reason::Paused);
        }
    };
    turn.withdraw_announcement()
        .act(Action::DisarmFence)
        .act(Action::ReleaseLeader { position })
        .now(Reason::PausedGivingUp)
}

fn as_member(turn: Turn<'_>, memory: &Memory, topology: &Topology) -> Decision {
    let seen = turn.seen;
    let turn = turn.disarm_if_harmless().withdraw_announcement();
    if !seen.is_dcs_fresh() {
        return turn.routine(Reason::Paused);
    }
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    if leader == Some(&seen.me.name) {
        // The key was moved here, or is an earlier run's: proved, it is used or given up.
        return following::confirm(turn);
    }
    let turn = following::let_run_again(turn, topology);
    let is_stopped_for_switchover = match &seen.local {
        Local::Stopped(stopped) => {
            let change = memory.switchover.as_ref();
            let has_stopped = change.is_some_and(PlannedChange::has_stopped);
            has_stopped && stopped.is_clean && stopped.was_primary
        }
        Local::Running(_)
        | Local::Unknown(_)
        | Local::Empty
        | Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => false,
    };
    match (leader, &seen.local) {
        (Some(_), Local::Stopped(_)) if is_stopped_for_switchover => {
            following::decide(seen, memory, topology)
        }
        (Some(_), Local::Running(_)) if is_named(seen, topology) => {
            following::decide(seen, memory, topology)
        }
        (None, Local::Running(_)) if is_named(seen, topology) => {
            no_leader::decide(seen, memory, topology)
        }
        (Some(_) | None, _) => turn.routine(Reason::Paused),
    }
}

/// Whether an operator asked for this member to lead now.
fn is_named(seen: &Observation, topology: &Topology) -> bool {
    let me = &seen.me.name;
    let is_asked = topology.failover.as_ref().is_some_and(|request| {
        // What it claimed itself, by a key that it took for this request, is no other's promotion.
        let is_held = match &seen.lease {
            LeaseView::Held(held) => held.epoch.revision > request.revision,
            LeaseView::NotHeld | LeaseView::Lost => false,
        };
        let stands = is_held || !candidate::has_lapsed(topology, request);
        let is_due = request.scheduled_at.is_none() && stands;
        is_due && request.candidate.as_ref() == Some(me)
    });
    let record = topology.switchover.as_ref();
    is_asked || record.is_some_and(|record| record.to == *me && !record.is_restart())
}

pub(super) fn another_disarmed(seen: &Observation, topology: &Topology) -> Option<Detail> {
    let mut disarmed = topology.disarmed.iter();
    let other = disarmed.find(|name| **name != seen.me.name)?;
    Some(Detail::Member(other.clone()))
}
