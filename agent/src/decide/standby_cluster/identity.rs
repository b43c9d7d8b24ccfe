//! A standby cluster whose key `initialize` is gone. Nobody of it is a primary, so that none can be waited for to say
//! what the cluster is (`ha.md` 5.6): who leads it writes the key again once nothing else can be meant.

use std::sync::Arc;

use trunkline_shared::cluster::{MemberRole, SystemId, Topology};

use crate::decide::decision::{Action, Decision, Detail, Reason, StartAs};
use crate::decide::holding_lease;
use crate::decide::observation::{Local, Observation, PeerAnswer, Running, RunningRole};
use crate::decide::{RETRY_PAUSE, Turn, candidate};

/// Whether every registered member answers in recovery with the data of this one, or has none; what stands against it
/// otherwise. The peers must have been asked.
fn is_everybodys(seen: &Observation, topology: &Topology, own: SystemId) -> Result<(), Detail> {
    let against = |why: String| {
        let text = format!("initialize would be {}; {why}", own.0);
        Err(Detail::Text(Arc::from(text)))
    };
    let Some(answers) = candidate::answers(seen) else {
        return against("nobody was asked".to_owned());
    };
    let mut others = topology.members.values();
    let in_doubt = others.find(|member| {
        let id = member
            .trunkline
            .as_ref()
            .and_then(|fields| fields.system_id);
        let has_none = member.role == MemberRole::Uninitialized && id.is_none();
        let is_fit = match answers.get(&member.name) {
            Some(PeerAnswer::Answered(view)) => {
                !view.is_primary && (has_none || (view.is_running && id == Some(own)))
            }
            Some(PeerAnswer::Unreachable) | None => false,
        };
        member.name != seen.me.name && !is_fit
    });
    match in_doubt {
        Some(member) => against(format!(
            "{} does not answer in recovery with that data",
            member.name
        )),
        None => Ok(()),
    }
}

/// The leader writes it again, or gives the lease up to whoever knows better.
pub(super) fn as_leader<'a>(turn: Turn<'a>, topology: &Topology, running: &Running) -> Decision {
    let seen = turn.seen;
    if candidate::answers(seen).is_none() {
        return turn.ask_peers();
    }
    match is_everybodys(seen, topology, running.system_id) {
        Ok(()) => turn
            .act(Action::RecordSystemId(running.system_id))
            .now(Reason::RecordingIdentity),
        Err(detail) => {
            let turn = turn.detail(detail);
            holding_lease::give_up(turn, Reason::StandbyWithoutIdentity, None)
        }
    }
}

/// A replica's data while nobody leads: the best member leads, as in any race, if the key can mean nothing else.
pub(in crate::decide) fn as_replica<'a>(turn: Turn<'a>, topology: &Topology) -> Decision {
    let seen = turn.seen;
    let running = match &seen.local {
        Local::Running(running) if matches!(running.role, RunningRole::Replica { .. }) => running,
        Local::Stopped(stopped) if !stopped.was_primary && !stopped.is_half_rewound => {
            return turn.start_unless_just_failed(StartAs::Replica(None), Reason::StartingReplica);
        }
        Local::Running(_)
        | Local::Stopped(_)
        | Local::Starting { .. }
        | Local::Unknown(_)
        | Local::Empty
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => return turn.routine(Reason::StandbyWithoutIdentity),
    };
    let mut disarmed = topology.disarmed.iter();
    if let Some(other) = disarmed.find(|name| **name != seen.me.name) {
        let detail = Detail::Member(other.clone());
        return turn.detail(detail).routine(Reason::AnotherIsDisarmed);
    }
    let until = turn.decision.memory.stands_back_until;
    if let Some(until) = until.filter(|until| *until > seen.now) {
        return turn.within(Reason::StandingBack, seen.now.until(until));
    }
    let Some(answers) = candidate::answers(seen) else {
        return turn.ask_peers();
    };
    let turn = turn.remember(|memory| memory.wants_peers = true);
    if let Err(detail) = is_everybodys(seen, topology, running.system_id) {
        return turn.detail(detail).routine(Reason::StandbyWithoutIdentity);
    }
    if let Err((reason, detail)) = candidate::may_run(seen, topology, answers) {
        return turn.detail(detail).within(reason, RETRY_PAUSE);
    }
    if !seen.fence.is_live {
        return turn.within(Reason::FenceNotLive, RETRY_PAUSE);
    }
    turn.acquire().now(Reason::AdoptingStandby)
}
