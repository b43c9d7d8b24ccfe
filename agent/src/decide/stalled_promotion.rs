//! A promotion that was signalled, has nothing left to replay and does not end: a `restore_command` that hangs, say, or a
//! frozen process. It is broken off for a member that can have the same without what it hangs on.
//!
//! Once only for each history: the next one may hang on the same thing, and whoever breaks off again and again is promoted
//! never. That a second number was claimed for the timeline after the present one tells it to everybody.

use std::ops::ControlFlow;

use trunkline_shared::cluster::{Lsn, MemberName, Moment, Topology};

use super::decision::{Action, Decision, Detail, Reason, StopMode};
use super::observation::{LeaseView, Local, Observation, PeerAnswer, RunningRole};
use super::{Turn, candidate, holding_lease};

/// Stops the instance that was told to promote itself at `since`, if that is so. The lease is given up once it is known to
/// have stopped: until then it may yet become a primary.
pub(super) fn break_off(turn: Turn<'_>, since: Moment) -> ControlFlow<Decision, Turn<'_>> {
    let seen = turn.seen;
    let Some(topology) = seen
        .topology()
        .filter(|topology| may_give_way(seen, topology))
    else {
        return ControlFlow::Continue(turn);
    };
    // As long as any other member is waited for that got the key and does not become primary.
    if seen.now.since(since) < seen.settings().ttl * 2 {
        return ControlFlow::Continue(turn);
    }
    if candidate::answers(seen).is_none() {
        return ControlFlow::Break(turn.ask_peers());
    }
    let Some(other) = has_the_same(seen, topology) else {
        return ControlFlow::Continue(turn.remember(|memory| memory.wants_peers = true));
    };
    let turn = match seen.job.running.is_some() {
        true => turn.act(Action::CancelJob),
        false => turn,
    };
    let turn = turn.detail(Detail::Member(other));
    ControlFlow::Break(
        turn.act(Action::Stop(StopMode::Immediate))
            .now(Reason::PromotionFailed),
    )
}

fn may_give_way(seen: &Observation, topology: &Topology) -> bool {
    let Local::Running(running) = &seen.local else {
        return false;
    };
    let is_replayed = match running.role {
        RunningRole::Replica {
            received, replayed, ..
        } => received > Lsn(0) && replayed >= received,
        RunningRole::Primary { .. } => false,
    };
    // Without the DCS the key can be given to nobody.
    let leads = matches!(&seen.lease, LeaseView::Held(held) if !held.is_by_failsafe);
    let is_first = topology.claimed.timeline.0 <= running.timeline.0.saturating_add(1);
    let may_act = seen.is_dcs_fresh() && !seen.settings().is_paused;
    is_replayed && leads && is_first && may_act
}

/// Who could be promoted with nothing less.
fn has_the_same(seen: &Observation, topology: &Topology) -> Option<MemberName> {
    let other = holding_lease::successor_after_crash(seen, topology).ok()?;
    let own = seen.local.position()?;
    match candidate::answers(seen)?.get(&other)? {
        PeerAnswer::Answered(view) => (view.position >= own).then_some(other),
        PeerAnswer::Unreachable => None,
    }
}
