//! Rules of the leader of a standby cluster: it stays in recovery and replicates from another cluster, the
//! others from it. It is never armed, for it never accepts writes (`ha.md` 3).

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::settings::StandbyCluster;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Lsn, Timeline, Topology};

use super::decision::{Action, Decision, Detail, Reason, StopMode, Upstream};
use super::observation::{JobKind, Local, Running, RunningRole};
use super::sync_standbys::keeping;
use super::{Turn, candidate, failsafe, following, holding_lease, leading, requests, slots};

pub(super) mod identity;
mod mending;

pub(super) use mending::copy;

/// Where the leader has its WAL from.
pub(super) fn remote(section: &StandbyCluster) -> Upstream {
    let port = section.port;
    let address = section.host.as_ref().map(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Arc::from(if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        })
    });
    let slot = section.primary_slot_name.as_deref();
    Upstream {
        member: None,
        slot: slot.filter(|_| address.is_some()).map(Arc::from),
        address,
    }
}

/// The instance of the leader, where it is none of those that any leader treats alike.
pub(super) fn decide<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    section: &StandbyCluster,
) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    let is_demoting = matches!(
        &seen.local,
        Local::Running(Running {
            role: RunningRole::Primary { .. },
            ..
        })
    );
    let turn = turn.remember(|memory| {
        memory.not_primary_since = None;
        memory.stands_back_until = None;
        memory.is_key_unchecked = true;
    });
    let is_made = matches!(topology.initialize, Initialize::Done(_));
    ControlFlow::Break(match &seen.local {
        // It was adopted as its cluster became one that follows. As a replica it could not say what the cluster is.
        Local::Running(running) if is_demoting && !is_made => turn
            .act(Action::RecordSystemId(running.system_id))
            .now(Reason::RecordingIdentity),
        // The same where it was stopped before it could be recorded.
        Local::Stopped(stopped)
            if stopped.was_primary && topology.initialize == Initialize::Absent =>
        {
            turn.act(Action::RecordSystemId(stopped.system_id))
                .now(Reason::RecordingIdentity)
        }
        Local::Running(_) if is_demoting => turn
            .act(Action::Stop(StopMode::Planned))
            .routine(Reason::DemotingCluster),
        // It would accept writes by itself; only a stop takes that back.
        Local::Running(running) if running.is_promoting => turn
            .act(Action::Stop(StopMode::Immediate))
            .now(Reason::DemotingCluster),
        Local::Running(running) => lead(turn.disarm_if_harmless(), topology, running, section),
        Local::Stopped(stopped) => {
            mending::start(turn.disarm_if_harmless(), topology, stopped, section)
        }
        Local::Starting {
            as_primary: false, ..
        } => turn.disarm_if_harmless().routine(Reason::WaitingForStart),
        Local::Starting { .. }
        | Local::Unknown(_)
        | Local::Empty
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => return ControlFlow::Continue(turn),
    })
}

/// Maintenance: what others need to know is told, nothing is done to PostgreSQL.
pub(super) fn in_maintenance<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
) -> Decision {
    let (reached, ..) = position(running);
    let counts = candidate::shared_position(topology, running.timeline, reached);
    leading::publish(turn, topology, running, counts).routine(Reason::Paused)
}

/// How far a replica's WAL reaches, and whether it comes.
fn position(running: &Running) -> (Lsn, Option<&Arc<str>>, bool) {
    match &running.role {
        RunningRole::Primary { position, .. } => (*position, None, true),
        RunningRole::Replica {
            received,
            replayed,
            upstream,
            is_streaming,
        } => (*received.max(replayed), upstream.as_ref(), *is_streaming),
    }
}

fn lead<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
    section: &StandbyCluster,
) -> Decision {
    let from = remote(section);
    let (reached, upstream, is_streaming) = position(running);
    let turn = match following::local_request(turn) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    match topology.initialize {
        Initialize::Done(_) => {}
        Initialize::Running => {
            return turn
                .act(Action::RecordSystemId(running.system_id))
                .now(Reason::RecordingIdentity);
        }
        Initialize::Absent => return identity::as_leader(turn, topology, running),
    }
    let turn = match change_leader(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    if upstream != from.address.as_ref() {
        return turn
            .detail(whom(&from))
            .act(Action::Follow(from))
            .routine(Reason::ChangingUpstream);
    }
    // What lies beyond the cluster's own history counts for nobody who may lead after this member.
    let counts = candidate::shared_position(topology, running.timeline, reached);
    let turn = duties(turn, topology, running, counts).detail(whom(&from));
    if is_streaming || from.address.is_none() {
        let turn = turn.remember(|memory| {
            memory.not_streaming_since = None;
            following::forget_wal_gone(memory);
        });
        return finish(turn, Reason::LeadingStandby);
    }
    if running.is_wal_gone {
        return following::without_wal(turn, from, reached);
    }
    repair(turn, from)
}

/// The first reason that a duty gave stands before this one.
fn finish(turn: Turn<'_>, reason: Reason) -> Decision {
    let reason = turn.why.unwrap_or(reason);
    match turn.soon {
        Some(within) => turn.within(reason, within),
        None => turn.routine(reason),
    }
}

/// Nothing streams: either the remote is silent, or it went on where this history does not lead.
fn repair(turn: Turn<'_>, from: Upstream) -> Decision {
    let seen = turn.seen;
    let ttl = seen.settings().ttl;
    let since = turn.decision.memory.not_streaming_since.unwrap_or(seen.now);
    let waited = seen.now.since(since);
    if waited < ttl {
        let left = ttl - waited;
        let left = turn.soon.map_or(left, |soon| soon.min(left));
        return turn
            .remember(|memory| memory.not_streaming_since = Some(since))
            .within(Reason::NotStreaming, left);
    }
    let compared = seen.job.finished.as_ref();
    let compared = compared.filter(|job| job.kind == JobKind::CompareHistory && job.at >= since);
    match compared.map(|job| &job.error) {
        None => turn
            .act(Action::CompareHistory(from))
            .routine(Reason::NotStreaming),
        Some(None) => turn
            .remember(|memory| memory.has_left_remote = true)
            .act(Action::Stop(StopMode::Fast))
            .routine(Reason::Diverged),
        Some(Some(_)) => turn
            .remember(|memory| memory.not_streaming_since = Some(seen.now))
            .act(Action::Follow(from))
            .routine(Reason::RepairingReplication),
    }
}

fn whom(from: &Upstream) -> Detail {
    match &from.address {
        Some(address) => Detail::Text(address.clone()),
        None => Detail::Text("the archive".into()),
    }
}

/// What the others need of their leader.
fn duties<'a>(
    mut turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
    reached: Lsn,
) -> Turn<'a> {
    let seen = turn.seen;
    turn = leading::publish(turn, topology, running, reached);
    // Nobody goes on by it here; whoever it does not name could not lead after this member.
    turn = failsafe::keep_list(turn, topology);
    let memory = &mut turn.decision.memory;
    let plan = slots::on_leader(seen, topology, running, memory);
    let mut turn = plan.carry_out(turn);
    // The remote has gone on to a timeline that this cluster did not begin: what was acknowledged here before
    // is there or nowhere.
    let own = topology.claimed.timeline.max(Timeline(1));
    if let Some(sync) = topology.sync.as_ref().filter(|_| running.timeline > own) {
        turn = turn.act(Action::DeleteSync {
            revision: sync.revision,
        });
    } else if let Some(record) = keeping::released(topology, &seen.me.name) {
        turn = turn.act(Action::WriteSync(record));
    }
    if !topology.has_history_of(running.timeline) {
        turn = turn.act(Action::RecordHistory);
    }
    if topology.switchover.is_some() {
        // Whoever is promoted later was not moved here by it.
        turn = turn.act(Action::ClearSwitchover);
    }
    turn
}

/// A change of leader is a release here: nothing is written that the next leader could lack.
fn change_leader<'a>(turn: Turn<'a>, topology: &Topology) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    let me = &seen.me.name;
    let Some(request) = &topology.failover else {
        return ControlFlow::Continue(turn);
    };
    let drop = Action::DropFailoverRequest {
        revision: request.revision,
    };
    if request.candidate.as_ref() == Some(me) {
        return ControlFlow::Break(turn.act(drop).now(Reason::LeadingStandby));
    }
    match requests::waits_for(seen, request, false) {
        None => {}
        Some(Ok(left)) => return ControlFlow::Continue(turn.soon(left)),
        Some(Err(why)) => {
            let turn = turn.detail(Detail::Text(why.into())).act(drop);
            return ControlFlow::Break(turn.now(Reason::SwitchoverRefused));
        }
    }
    if request.leader.as_ref().is_some_and(|leader| leader != me) {
        return ControlFlow::Break(turn.act(drop).now(Reason::LeadingStandby));
    }
    if candidate::answers(seen).is_none() {
        return ControlFlow::Break(turn.ask_peers());
    }
    let named = request.candidate.as_ref();
    let how = candidate::Succession::ByOperator;
    ControlFlow::Break(
        match candidate::successor(seen, topology, &seen.settings(), named, how) {
            Ok(_) => holding_lease::give_up(turn, Reason::HandingOver, None),
            Err(detail) => turn.detail(detail).act(drop).now(Reason::SwitchoverRefused),
        },
    )
}

/// The key `config` of what was a standby cluster is gone: whether it is still one nobody knows.
pub(super) fn unless_config_gone<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    if topology.settings.is_none() && turn.decision.memory.is_standby_cluster {
        return ControlFlow::Break(turn.routine(Reason::StandbyConfigGone));
    }
    ControlFlow::Continue(turn)
}

/// A key that was not come by in a race, such as that of a standby cluster whose section was removed, promotes only
/// who would win one. What was known of that before the agent started is not known any more.
pub(super) fn may_be_promoted<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    if !turn.decision.memory.is_key_unchecked || failsafe::is_moved_here(seen, topology) {
        return ControlFlow::Continue(turn);
    }
    if let Some(left) = failsafe::unknown_promises_end(seen, topology) {
        // Nobody else may run while the key is kept, and this member may in a moment.
        return ControlFlow::Break(turn.within(Reason::WaitingAfterBoot, left));
    }
    let Some(answers) = candidate::answers(seen) else {
        return ControlFlow::Break(turn.ask_peers());
    };
    match candidate::may_run(seen, topology, answers) {
        Ok(()) => ControlFlow::Continue(turn.remember(|memory| memory.is_key_unchecked = false)),
        Err((reason, detail)) => {
            ControlFlow::Break(holding_lease::give_up(turn.detail(detail), reason, None))
        }
    }
}
