//! Nobody leads: run, wait or refuse.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use trunkline_shared::cluster::topology::FailoverRequest;
use trunkline_shared::cluster::{MemberName, Topology};

use super::decision::{Action, Decision, Detail, Reason, StartAs, StopMode};
use super::memory::Memory;
use super::observation::{Local, Observation, PeerAnswer, RunningRole};
use super::sync_standbys::keeping;
use super::{Turn, candidate, failsafe};

/// How soon the peers are asked again while somebody else should take the lease.
const ASK_AGAIN: Duration = Duration::from_millis(100);

pub(super) fn decide(seen: &Observation, memory: &Memory, topology: &Topology) -> Decision {
    let turn = Turn::new(seen, memory)
        .disarm_if_harmless()
        .withdraw_announcement();
    if let Some(other) = topology.disarmed.iter().find(|name| **name != seen.me.name) {
        return turn
            .detail(Detail::Member(other.clone()))
            .routine(Reason::AnotherIsDisarmed);
    }
    match &seen.local {
        Local::Unknown(why) => turn
            .detail(Detail::Text(why.clone()))
            .routine(Reason::DataUnreadable),
        Local::Stopped(stopped) if stopped.is_half_rewound => half_rewound(turn, topology),
        Local::Stopped(_) => {
            turn.start_unless_just_failed(StartAs::Replica(None), Reason::StartingToRace)
        }
        Local::Starting {
            as_primary: false, ..
        } => turn.routine(Reason::WaitingForStart),
        Local::Starting {
            as_primary: true, ..
        } => starting_as_primary(turn),
        Local::Unresponsive { since, .. } => turn.wait_for_hung(*since),
        Local::Running(running) => match running.role {
            RunningRole::Primary { .. } => retake(turn, topology),
            RunningRole::Replica { .. } if running.is_promoting => retake(turn, topology),
            RunningRole::Replica { .. } => run(turn, memory, topology),
        },
        // Empty and orphaned instances are situations of their own.
        Local::Empty | Local::Orphaned { .. } => turn.routine(Reason::WaitingForLeader),
    }
}

/// Only a copy helps it. In a standby cluster it needs no leader of its own for that, and leads where nobody else could.
fn half_rewound<'a>(turn: Turn<'a>, topology: &Topology) -> Decision {
    let seen = turn.seen;
    if seen.settings().standby_cluster.is_none() || !seen.me.may_replace_unrewound {
        return turn.routine(Reason::WaitingForLeader);
    }
    let until = turn.decision.memory.stands_back_until;
    if let Some(until) = until.filter(|until| *until > seen.now) {
        return turn.within(Reason::StandingBack, seen.now.until(until));
    }
    let Some(answers) = candidate::answers(seen) else {
        return turn.ask_peers();
    };
    let turn = turn.remember(|memory| memory.wants_peers = true);
    if candidate::somebody_could_lead(answers) || candidate::living_primary(seen).is_some() {
        return turn.routine(Reason::WaitingForLeader);
    }
    let turn = match keeping::before_replacing(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    match failsafe::lets_run(seen, topology) {
        Err((reason, detail)) => turn.detail(detail).within(reason, ASK_AGAIN),
        Ok(()) => take(turn, Reason::Racing),
    }
}

fn run(turn: Turn<'_>, memory: &Memory, topology: &Topology) -> Decision {
    let seen = turn.seen;
    if let Some(until) = memory.stands_back_until.filter(|until| *until > seen.now) {
        return turn.within(Reason::StandingBack, seen.now.until(until));
    }
    let Some(answers) = candidate::answers(seen) else {
        return turn.ask_peers();
    };
    if let Some(left) = wal_still_arrives(seen, memory, answers) {
        return turn
            .remember(|memory| memory.wants_peers = true)
            .within(Reason::WalStillArrives, left.min(ASK_AGAIN));
    }
    let request = topology.failover.as_ref();
    if let Some(request) = request.filter(|request| candidate::has_lapsed(topology, request)) {
        return drop_lapsed(turn, request);
    }
    match candidate::may_run(seen, topology, answers) {
        Ok(()) => {
            // Whoever is silent would have to be waited for: only where all answer do they cost nothing to
            // be asked again before the promotion.
            let all_answer = candidate::all_answer(answers);
            take(
                turn.remember(|memory| memory.wants_peers = all_answer),
                Reason::Racing,
            )
        }
        Err((reason, detail)) => turn
            .remember(|memory| memory.wants_peers = true)
            .detail(detail)
            .within(reason, ASK_AGAIN),
    }
}

/// Patroni's members would wait for its candidate, and nobody runs by answers that are older than this write.
fn drop_lapsed<'a>(turn: Turn<'a>, request: &FailoverRequest) -> Decision {
    let why = "somebody was promoted, or tried to be, after it was asked for; ask again";
    turn.act(Action::DropFailoverRequest {
        revision: request.revision,
    })
    .detail(Detail::Text(why.into()))
    .now(Reason::SwitchoverRefused)
}

/// A leader without a fence may outlive its key by as much as its agent is late: while WAL comes from it, it
/// lives. For how long this is waited for (`ha.md` 5.2). One that answers is in recovery, or it is a living primary
/// and nobody runs at all: WAL comes from a standby, too. It may come to another standby alone.
fn wal_still_arrives(
    seen: &Observation,
    memory: &Memory,
    answers: &BTreeMap<MemberName, PeerAnswer>,
) -> Option<Duration> {
    let (leader, led_at) = memory.foreign_led.as_ref()?;
    if matches!(answers.get(leader), Some(PeerAnswer::Answered(_))) {
        return None;
    }
    let Local::Running(running) = &seen.local else {
        return None;
    };
    let arrives = match running.role {
        RunningRole::Replica { is_streaming, .. } => is_streaming || another_streams(answers),
        RunningRole::Primary { .. } => false,
    };
    let left = seen.now.until(*led_at + seen.settings().ttl);
    (arrives && !left.is_zero()).then_some(left)
}

fn another_streams(answers: &BTreeMap<MemberName, PeerAnswer>) -> bool {
    answers.values().any(|answer| match answer {
        PeerAnswer::Answered(view) => view.is_streaming == Some(true),
        PeerAnswer::Unreachable => false,
    })
}

/// An instance that accepts writes, or soon will, goes on leading unless a peer is primary. That the view
/// is the newest is proved by the transaction, which compares the last claimed timeline.
pub(super) fn retake(turn: Turn<'_>, topology: &Topology) -> Decision {
    if candidate::answers(turn.seen).is_none() {
        return turn.ask_peers();
    }
    match candidate::living_primary(turn.seen) {
        Some(peer) => turn
            .remember(|memory| memory.wants_peers = true)
            .detail(Detail::Member(peer))
            .within(Reason::PeerIsPrimary, ASK_AGAIN),
        None => match candidate::peer_knows_more(turn.seen)
            .and_then(|()| failsafe::lets_run(turn.seen, topology))
        {
            Err((reason, detail)) => turn.detail(detail).within(reason, ASK_AGAIN),
            Ok(()) => take(turn, Reason::RetakingLease),
        },
    }
}

/// On which timeline it stands shows only once it runs, so it does not take the lease before. One that no
/// fence watches was started by somebody else: it is stopped and runs in recovery like everybody.
fn starting_as_primary(turn: Turn<'_>) -> Decision {
    if turn.seen.fence.is_armed() {
        return turn.routine(Reason::WaitingForPrimaryStart);
    }
    turn.act(Action::Stop(StopMode::Immediate))
        .now(Reason::PrimaryWithoutLease)
}

/// Takes the lease, unless the fence could not keep its deadline.
fn take(turn: Turn<'_>, reason: Reason) -> Decision {
    if !turn.seen.fence.is_live {
        return turn.within(Reason::FenceNotLive, ASK_AGAIN);
    }
    turn.remember(|memory| memory.is_key_unchecked = false)
        .acquire()
        .now(reason)
}
