//! PostgreSQL can accept writes and the right to let it is gone or ends now: it is stopped at once.
//!
//! This is checked before every other situation, long jobs and shutdown included, and only maintenance
//! holds it back ("pause means pause"), but not from the deadline of a fence that is gone.

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{LeaderEpoch, MemberName, Moment, Timeline, Topology};

use super::decision::{Action, Decision, Detail, Reason, StopMode};
use super::memory::Memory;
use super::observation::{JobKind, LeaseView, Local, Observation, RunningRole};
use super::{STOP_AHEAD, Turn};

/// Why PostgreSQL may not go on, if so.
pub(super) fn verdict(seen: &Observation) -> Option<(Reason, Detail)> {
    if seen.is_left_alone() {
        return in_place_of_the_fence(seen).then_some((Reason::LeaseAboutToExpire, Detail::None));
    }
    if matches!(seen.local, Local::Orphaned { .. }) {
        // A rewind begins where nothing lives. What lives then is the single-user server by which pg_rewind recovers
        // from a crash: it lets nobody in, and without it only a clone would mend the data.
        let running = seen.job.running.as_ref();
        let is_of_rewind = running.is_some_and(|job| job.kind == JobKind::Rewind);
        return (!is_of_rewind).then_some((Reason::KillingOrphans, Detail::None));
    }
    if !seen.local.may_accept_writes() {
        return None;
    }
    match &seen.lease {
        LeaseView::Held(held) if has_come(Some(held.deadline), seen) => {
            Some((Reason::LeaseAboutToExpire, Detail::None))
        }
        LeaseView::Held(held) if held.is_by_failsafe => led_by_another(seen, held.epoch),
        LeaseView::Held(_) => None,
        LeaseView::Lost => Some((Reason::AnotherLeads, leader_of(seen.topology()))),
        LeaseView::NotHeld => without_lease(seen).or_else(|| {
            // An earlier agent armed the fence, or the lease has lapsed: the deadline still stands.
            has_come(seen.fence.armed_until, seen)
                .then_some((Reason::LeaseAboutToExpire, Detail::None))
        }),
    }
}

/// The pause came before it could be announced that no fence is armed: others lead once the pause is over, and the fence
/// that would end this primary by then is gone.
fn in_place_of_the_fence(seen: &Observation) -> bool {
    let topology = seen.topology();
    let is_announced = topology.is_some_and(|topology| topology.disarmed.contains(&seen.me.name));
    // An agent that ends leaves nobody to come back to it.
    let until = seen.fence.armed_until;
    let is_due = has_come(until, seen) || until.is_some() && seen.is_shutting_down;
    is_due && !seen.fence.is_live && !is_announced && seen.local.may_accept_writes()
}

/// The lease task is not answered, and the view shows all the same that the key was taken later.
fn led_by_another(seen: &Observation, own: LeaderEpoch) -> Option<(Reason, Detail)> {
    let leader = seen.topology()?.leader.as_ref()?;
    let is_another = leader.member != seen.me.name && leader.epoch > own;
    is_another.then(|| (Reason::AnotherLeads, Detail::Member(leader.member.clone())))
}

fn has_come(deadline: Option<Moment>, seen: &Observation) -> bool {
    deadline.is_some_and(|deadline| seen.now + STOP_AHEAD >= deadline)
}

fn without_lease(seen: &Observation) -> Option<(Reason, Detail)> {
    let Some(topology) = seen.topology() else {
        // The agent has just started. A fence that an earlier agent armed keeps the deadline; an instance
        // that was never ours is adopted or stopped once the DCS has spoken.
        return None;
    };
    match &topology.leader {
        Some(leader) if leader.member != seen.me.name => {
            return Some((Reason::AnotherLeads, Detail::Member(leader.member.clone())));
        }
        Some(_) => return None,
        None => {}
    }
    if is_stale(&seen.local, topology) {
        return Some((Reason::StalePrimary, Detail::None));
    }
    // No agent of this boot has known a cluster here, so none has led it: as before the DCS has spoken, the instance
    // is left as it was found. A DCS that is not believed ends no primary (`ha.md` 8).
    if seen.store.doubt.is_some() && topology.initialize == Initialize::Absent {
        return None;
    }
    // With the fence armed an earlier deadline still stands and will be kept.
    (!seen.is_dcs_fresh() && !seen.fence.is_armed())
        .then_some((Reason::PrimaryWithoutLease, Detail::None))
}

/// Whether the cluster has already left the timeline this primary is on.
pub(super) fn is_stale(local: &Local, topology: &Topology) -> bool {
    match local {
        Local::Running(running) => {
            let ended = topology.history.last_ended();
            // Whoever claimed a newer one may have been promoted, and died before writing its history.
            let is_primary = matches!(running.role, RunningRole::Primary { .. });
            ended.is_some_and(|Timeline(ended)| running.timeline.0 <= ended)
                || is_primary && running.timeline < topology.claimed.timeline
        }
        Local::Unknown(_)
        | Local::Empty
        | Local::Stopped(_)
        | Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => false,
    }
}

fn leader_of(topology: Option<&Topology>) -> Detail {
    let name: Option<MemberName> = topology
        .and_then(|t| t.leader.as_ref())
        .map(|leader| leader.member.clone());
    name.map_or(Detail::None, Detail::Member)
}

/// Stops the instance at once. A job that would make it writable is ended with it.
pub(super) fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let (reason, detail) = verdict(seen).unwrap_or((Reason::AnotherLeads, Detail::None));
    let mut turn = Turn::new(seen, memory).detail(detail);
    if seen.job.running.is_some() {
        turn = turn.act(Action::CancelJob);
    }
    turn.act(Action::Stop(StopMode::Immediate)).now(reason)
}
