//! The `config` key is there, cannot be read, and nobody here knows what it said before: the cluster may be paused, be
//! a standby cluster or be synchronous. Nothing is changed until somebody mends the key; a primary that holds the
//! leader key goes on holding it.

use std::sync::Arc;

use trunkline_shared::cluster::Topology;

use super::decision::{Action, Decision, Detail, Reason};
use super::memory::Memory;
use super::observation::{Held, LeaseView, Local, Observation};
use super::{RETRY_PAUSE, Turn, following, maintenance};

pub(super) fn decide(seen: &Observation, memory: &Memory, topology: &Topology) -> Decision {
    let turn = Turn::new(seen, memory);
    if seen.request.is_some() {
        let why = Arc::from("the dynamic configuration cannot be read; mend it first");
        let turn = turn.request_taken().detail(Detail::Text(why));
        return turn.routine(Reason::RequestRefused);
    }
    if !seen.is_dcs_fresh() {
        return turn.routine(Reason::ConfigUnreadable);
    }
    match (seen.local.may_accept_writes(), &seen.lease) {
        (true, LeaseView::Held(held)) => as_primary(turn, held, topology),
        (true, LeaseView::NotHeld | LeaseView::Lost) if is_mine(seen, topology) => {
            following::confirm(turn)
        }
        (false, LeaseView::Held(_)) => without_primary(turn),
        // A key of an earlier run over a replica ends by itself: whoever knows the configuration may lead.
        (_, LeaseView::NotHeld | LeaseView::Lost) => turn.routine(Reason::ConfigUnreadable),
    }
}

fn is_mine(seen: &Observation, topology: &Topology) -> bool {
    let leader = topology.leader.as_ref();
    leader.is_some_and(|leader| leader.member == seen.me.name)
}

/// The lease is kept, and guarded unless this member has said that it is paused without a fence: others may know that
/// the cluster is not paused, and lead once the lease has ended.
fn as_primary<'a>(turn: Turn<'a>, held: &Held, topology: &Topology) -> Decision {
    let seen = turn.seen;
    if held.is_key_missing {
        return match maintenance::another_disarmed(seen, topology) {
            Some(other) => turn.detail(other).routine(Reason::AnotherIsDisarmed),
            None => turn
                .act(Action::AcquireLeader)
                .now(Reason::LeaderKeyMissing),
        };
    }
    if held.has_unresolved_hand_over {
        return maintenance::write_again(turn);
    }
    if topology.disarmed.contains(&seen.me.name) || seen.fence.is_armed() {
        return turn.routine(Reason::ConfigUnreadable);
    }
    match seen.fence.is_live {
        true => turn.act(Action::ArmFence).now(Reason::ArmingFence),
        false => turn.within(Reason::FenceNotLive, RETRY_PAUSE),
    }
}

/// Who holds the lease over a dead PostgreSQL lets those lead who know more.
fn without_primary(turn: Turn<'_>) -> Decision {
    match &turn.seen.local {
        Local::Stopped(stopped) => {
            let position = stopped.is_clean.then_some(stopped.checkpoint);
            turn.act(Action::DisarmFence)
                .act(Action::ReleaseLeader { position })
                .now(Reason::ConfigUnreadable)
        }
        Local::Unknown(_)
        | Local::Empty
        | Local::Starting { .. }
        | Local::Running(_)
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => turn.routine(Reason::ConfigUnreadable),
    }
}
