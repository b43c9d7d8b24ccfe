//! The stopped leader of a standby cluster: what may have left the remote's history is taken back to where it did, or
//! copied anew.

use std::ops::ControlFlow;

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::settings::StandbyCluster;

use crate::decide::decision::{Action, Decision, Detail, Reason, StartAs, Upstream};
use crate::decide::observation::{JobKind, LocalRequest, SourceTrouble, Stopped};
use crate::decide::sync_standbys::keeping;
use crate::decide::{Turn, candidate, following, holding_lease};

pub(super) fn start<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    stopped: &Stopped,
    section: &StandbyCluster,
) -> Decision {
    let from = super::remote(section);
    let me = turn.seen.me.clone();
    if turn.seen.request == Some(LocalRequest::Reinitialize) {
        return replace(turn, topology, from, Reason::ReinitializeRequested);
    }
    if stopped.is_half_rewound {
        return copy_anew(turn, topology, from, me.may_replace_unrewound);
    }
    if following::needs_copy(&turn) && !stopped.was_primary {
        return copy_anew(turn, topology, from, me.may_replace_data);
    }
    let turn = turn.remember(following::forget_wal_gone);
    let finished = turn.seen.job.finished.as_ref();
    let rewound = finished.filter(|job| job.kind == JobKind::Rewind);
    let is_rewound = rewound.is_some_and(|job| job.error.is_none());
    let may_have_left = stopped.was_primary || turn.decision.memory.has_left_remote;
    // An archive cannot be asked; PostgreSQL refuses to follow it where it leads elsewhere.
    if may_have_left && !is_rewound && from.address.is_some() {
        return take_back(turn, topology, from);
    }
    turn.remember(|memory| memory.has_left_remote = false)
        .start_unless_just_failed(StartAs::Replica(Some(from)), Reason::StartingReplica)
}

/// A remote that cannot be asked, or is not fit yet, is asked again: only a rewind that failed says that a copy is
/// needed.
fn take_back(turn: Turn<'_>, topology: &Topology, from: Upstream) -> Decision {
    if turn.failed_lately(JobKind::Start) {
        return turn.after_failure(JobKind::Start);
    }
    let seen = turn.seen;
    let rewinds = seen.me.use_pg_rewind;
    let may_replace = match rewinds.unwrap_or_else(|| seen.settings().use_pg_rewind) {
        true => seen.me.may_replace_unrewound,
        false => seen.me.may_replace_data,
    };
    if turn.failure_of(JobKind::Clone).is_some() {
        return copy_anew(turn, topology, from, may_replace);
    }
    let Some(why) = turn.failure_of(JobKind::Rewind) else {
        return turn.act(Action::Rewind(from)).routine(Reason::Rewinding);
    };
    let trouble = seen.job.finished.as_ref().and_then(|job| job.trouble);
    let reason = match trouble {
        Some(SourceTrouble::Silent) => Reason::RemoteSilent,
        Some(SourceTrouble::NotReady) => Reason::RemoteNotReady,
        None => {
            let turn = turn.detail(Detail::Text(why));
            return copy_anew(turn, topology, from, may_replace);
        }
    };
    match turn.failed_lately(JobKind::Rewind) {
        true => turn.after_failure_because(JobKind::Rewind, reason),
        false => turn.act(Action::Rewind(from)).routine(Reason::Rewinding),
    }
}

/// After a copy that failed another member is to lead, if one can: who is alone tries again.
fn copy_anew<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    from: Upstream,
    may_replace: bool,
) -> Decision {
    if !may_replace {
        return turn.routine(Reason::ReplaceForbidden);
    }
    let Some(why) = turn.failure_of(JobKind::Clone) else {
        return replace(turn, topology, from, Reason::Recloning);
    };
    let Some(answers) = candidate::answers(turn.seen) else {
        return turn.ask_peers();
    };
    if candidate::somebody_could_lead(answers) {
        let turn = turn.detail(Detail::Text(why));
        return holding_lease::give_up(turn, Reason::RemoteUnusable, None);
    }
    if turn.failed_lately(JobKind::Clone) {
        return turn.after_failure(JobKind::Clone);
    }
    replace(turn, topology, from, Reason::Recloning)
}

/// Puts a copy of the remote in the place of what is here, once nobody counts on that.
fn replace(turn: Turn<'_>, topology: &Topology, from: Upstream, why: Reason) -> Decision {
    let turn = match keeping::before_leader_replaces(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = if turn.seen.request == Some(LocalRequest::Reinitialize) {
        match keeping::order_copy(turn, topology) {
            ControlFlow::Break(decision) => return decision,
            ControlFlow::Continue(turn) => turn,
        }
    } else {
        turn
    };
    copy(turn, topology, from, why)
}

/// Copies the remote, or what its archive has.
pub(in crate::decide) fn copy<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    from: Upstream,
    why: Reason,
) -> Decision {
    let how = match from.address {
        Some(_) => Action::Clone(from),
        None => Action::CloneWithoutLeader,
    };
    let turn = turn.remember(|memory| memory.has_left_remote = false);
    keeping::replace(turn, topology, how).routine(why)
}
