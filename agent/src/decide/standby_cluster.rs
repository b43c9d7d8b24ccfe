//! Rules of the leader of a standby cluster: it stays in recovery and replicates from another cluster, the
//! others from it. It is never armed, for it never accepts writes (`ha.md` 3).

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::settings::StandbyCluster;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Lsn, Timeline, Topology};

use super::decision::{Action, Decision, Detail, Reason, StartAs, StopMode, Upstream};
use super::observation::{JobKind, Local, LocalRequest, Running, RunningRole, Stopped};
use super::sync_standbys::keeping;
use super::{Turn, candidate, failsafe, following, holding_lease, leading, slots};

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
        memory.leads_standby = true;
    });
    ControlFlow::Break(match &seen.local {
        Local::Running(_) if is_demoting => turn
            .act(Action::Stop(StopMode::Planned))
            .routine(Reason::DemotingCluster),
        // It would accept writes by itself; only a stop takes that back.
        Local::Running(running) if running.is_promoting => turn
            .act(Action::Stop(StopMode::Immediate))
            .now(Reason::DemotingCluster),
        Local::Running(running) => lead(turn.disarm_if_harmless(), topology, running, section),
        Local::Stopped(stopped) => start(turn.disarm_if_harmless(), stopped, section),
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
    if upstream != from.address.as_ref() {
        return turn
            .detail(whom(&from))
            .act(Action::Follow(from))
            .routine(Reason::ChangingUpstream);
    }
    match topology.initialize {
        Initialize::Done(_) => {}
        Initialize::Running => {
            return turn
                .act(Action::RecordSystemId(running.system_id))
                .now(Reason::RecordingIdentity);
        }
        // Whoever makes a cluster of a replica splits it from its primary (`ha.md` 5.6).
        Initialize::Absent => {
            return holding_lease::give_up(turn, Reason::ReplicaWithoutCluster, None);
        }
    }
    if topology.failover.is_some() {
        return change_leader(turn, topology);
    }
    // What lies beyond the cluster's own history counts for nobody who may lead after this member.
    let counts = candidate::shared_position(topology, running.timeline, reached);
    let turn = duties(turn, topology, running, counts).detail(whom(&from));
    if is_streaming || from.address.is_none() {
        let turn = turn.remember(|memory| memory.not_streaming_since = None);
        let reason = turn.why.unwrap_or(Reason::LeadingStandby);
        return turn.routine(reason);
    }
    repair(turn, from)
}

/// Nothing streams: either the remote is silent, or it went on where this history does not lead.
fn repair(turn: Turn<'_>, from: Upstream) -> Decision {
    let seen = turn.seen;
    let ttl = seen.settings().ttl;
    let since = turn.decision.memory.not_streaming_since.unwrap_or(seen.now);
    let waited = seen.now.since(since);
    if waited < ttl {
        return turn
            .remember(|memory| memory.not_streaming_since = Some(since))
            .within(Reason::NotStreaming, ttl - waited);
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
    } else if let Some(record) = keeping::released(topology) {
        turn = turn.act(Action::WriteSync(record));
    }
    if !topology.has_history_of(running.timeline) {
        turn = turn.act(Action::RecordHistory);
    }
    turn
}

/// A change of leader is a release here: nothing is written that the next leader could lack.
fn change_leader<'a>(turn: Turn<'a>, topology: &Topology) -> Decision {
    let seen = turn.seen;
    let me = &seen.me.name;
    let Some(request) = topology
        .failover
        .as_ref()
        .filter(|r| r.scheduled_at.is_none())
    else {
        return turn.routine(Reason::LeadingStandby);
    };
    let drop = Action::DropFailoverRequest {
        revision: request.revision,
    };
    let is_here = request.candidate.as_ref() == Some(me);
    let is_of_another = request.leader.as_ref().is_some_and(|leader| leader != me);
    if is_here || is_of_another {
        return turn.act(drop).now(Reason::LeadingStandby);
    }
    if candidate::answers(seen).is_none() {
        return turn.ask_peers();
    }
    let named = request.candidate.as_ref();
    let how = candidate::Succession::ByOperator;
    match candidate::successor(seen, topology, &seen.settings(), named, how) {
        Ok(_) => holding_lease::give_up(turn, Reason::HandingOver, None),
        Err(detail) => turn.detail(detail).act(drop).now(Reason::SwitchoverRefused),
    }
}

/// A stopped leader: what may have left the remote's history is first taken back to where it did.
fn start<'a>(turn: Turn<'a>, stopped: &Stopped, section: &StandbyCluster) -> Decision {
    let from = remote(section);
    if turn.seen.request == Some(LocalRequest::Reinitialize) {
        return copy(turn.request_taken(), from, Reason::ReinitializeRequested);
    }
    if stopped.is_half_rewound {
        return copy_anew(turn, from);
    }
    let finished = turn.seen.job.finished.as_ref();
    let rewound = finished.filter(|job| job.kind == JobKind::Rewind);
    let is_rewound = rewound.is_some_and(|job| job.error.is_none());
    let may_have_left = stopped.was_primary || turn.decision.memory.has_left_remote;
    // An archive cannot be asked; PostgreSQL refuses to follow it where it leads elsewhere.
    if may_have_left && !is_rewound && from.address.is_some() {
        if let Some(why) = turn.failure_of(JobKind::Rewind) {
            return copy_anew(turn.detail(Detail::Text(why)), from);
        }
        return turn.act(Action::Rewind(from)).routine(Reason::Rewinding);
    }
    turn.remember(|memory| memory.has_left_remote = false)
        .start_unless_just_failed(StartAs::Replica(Some(from)), Reason::StartingReplica)
}

fn copy_anew(turn: Turn<'_>, from: Upstream) -> Decision {
    if !turn.seen.me.may_replace_data {
        return turn.routine(Reason::ReplaceForbidden);
    }
    if let Some(why) = turn.failure_of(JobKind::Clone) {
        return holding_lease::give_up(
            turn.detail(Detail::Text(why)),
            Reason::RemoteUnusable,
            None,
        );
    }
    copy(turn, from, Reason::Recloning)
}

/// Copies the remote, or what its archive has.
pub(super) fn copy(turn: Turn<'_>, from: Upstream, why: Reason) -> Decision {
    let how = match from.address {
        Some(_) => Action::Clone(from),
        None => Action::CloneWithoutLeader,
    };
    turn.remember(|memory| memory.has_left_remote = false)
        .act(how)
        .routine(why)
}

/// The section was removed: this member is promoted as one that wins a race would be.
pub(super) fn may_be_promoted<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    if topology.settings.is_none() && turn.decision.memory.is_standby_cluster {
        return ControlFlow::Break(turn.routine(Reason::StandbyConfigGone));
    }
    if !turn.decision.memory.leads_standby {
        return ControlFlow::Continue(turn);
    }
    let Some(answers) = candidate::answers(seen) else {
        return ControlFlow::Break(turn.ask_peers());
    };
    match candidate::may_run(seen, topology, answers) {
        Ok(()) => ControlFlow::Continue(turn.remember(|memory| memory.leads_standby = false)),
        Err((reason, detail)) => {
            ControlFlow::Break(holding_lease::give_up(turn.detail(detail), reason, None))
        }
    }
}
