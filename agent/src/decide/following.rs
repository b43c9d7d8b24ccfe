//! Another member leads, or the key names this one without proof: follow, rewind, re-clone, confirm.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::timeline::Ancestry;
use trunkline_shared::cluster::topology::SwitchoverStage;
use trunkline_shared::cluster::{Lsn, Member, MemberRole, MemberState, Moment, Timeline, Topology};

use super::decision::{Action, Decision, Detail, Reason, StartAs, StopMode, Upstream};
use super::memory::Memory;
use super::observation::{
    JobKind, Local, LocalRequest, Observation, Running, RunningRole, Stopped,
};
use super::sync_standbys::keeping;
use super::{RETRY_PAUSE, Turn, no_data, past_changes, slots, upstream};

/// How often a candidate looks whether it has the old leader's last record, and whether the new leader is
/// ready: PostgreSQL tells nobody when replay gets there.
const WATCH_REPLAY: Duration = Duration::from_millis(10);

/// How long a replica that commits wait for may lack its upstream before queries that replay waits for are ended.
const QUERIES_END: Duration = Duration::from_secs(1);

pub(super) fn decide(seen: &Observation, memory: &Memory, topology: &Topology) -> Decision {
    let turn = Turn::new(seen, memory);
    if topology
        .leader
        .as_ref()
        .is_some_and(|leader| leader.member == seen.me.name)
    {
        return confirm(turn);
    }
    let turn = let_run_again(turn, topology)
        .disarm_if_harmless()
        .withdraw_announcement();
    match &seen.local {
        Local::Unknown(why) => turn
            .detail(Detail::Text(why.clone()))
            .routine(Reason::DataUnreadable),
        Local::Stopped(stopped) => start(turn, topology, stopped),
        Local::Starting { since, .. } => wait_for_start(turn, topology, *since),
        Local::Unresponsive { since, .. } => turn.wait_for_hung(*since),
        Local::Running(running) => match &running.role {
            RunningRole::Replica {
                received,
                replayed,
                upstream,
                is_streaming,
            } => {
                let at = At {
                    end: *received.max(replayed),
                    replayed: *replayed,
                    upstream,
                    is_streaming: *is_streaming,
                };
                follow(turn, topology, running, at)
            }
            // A primary under another leader is the situation AuthorityGone.
            RunningRole::Primary { .. } => turn.routine(Reason::AnotherLeads),
        },
        Local::Empty | Local::Orphaned { .. } => turn.routine(Reason::WaitingForLeader),
    }
}

/// The leader key names this member without proof: an earlier run of this agent, or a hand-over.
pub(super) fn confirm(turn: Turn<'_>) -> Decision {
    if !turn.seen.fence.is_live {
        return turn.within(Reason::FenceNotLive, RETRY_PAUSE);
    }
    turn.act(Action::ConfirmLeader).now(Reason::ConfirmingLease)
}

/// The leader's record, if it says that its PostgreSQL is a running primary. One that tells its position runs,
/// though it may not let clients in yet.
pub(super) fn confirmed_leader(topology: &Topology) -> Option<&Arc<Member>> {
    let is_standby = topology.settings_or_default().standby_cluster.is_some();
    topology.leader_member().filter(|member| {
        let leads = match member.role {
            MemberRole::Primary => true,
            MemberRole::StandbyLeader => is_standby,
            MemberRole::Replica
            | MemberRole::Demoted
            | MemberRole::Uninitialized
            | MemberRole::Promoted => false,
        };
        let runs = member.state == MemberState::Running
            || (member.state == MemberState::Starting && member.position.is_some());
        leads && runs
    })
}

/// Who gave the lease up lets the others run first: once one of them leads, that is done.
pub(super) fn let_run_again<'a>(turn: Turn<'a>, topology: &Topology) -> Turn<'a> {
    match confirmed_leader(topology) {
        Some(_) => turn.remember(|memory| memory.stands_back_until = None),
        None => turn,
    }
}

/// For how long a replica that holds more than the leader's history shares is looked at before it is stopped for that: the
/// process that reads may only have been between two waits, or in `restore_command`, 2 s of which are not rare.
const LOOKED_AT: Duration = Duration::from_secs(2);

/// How often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Where a running replica stands.
struct At<'a> {
    end: Lsn,
    replayed: Lsn,
    upstream: &'a Option<Arc<str>>,
    is_streaming: bool,
}

/// What an operator asked of a running instance in recovery, whoever it follows.
pub(super) fn local_request(turn: Turn<'_>) -> ControlFlow<Decision, Turn<'_>> {
    ControlFlow::Break(match &turn.seen.request {
        Some(LocalRequest::Restart(_)) => turn
            .request_taken()
            .act(Action::Stop(StopMode::Fast))
            .routine(Reason::RestartRequested),
        Some(LocalRequest::Reinitialize) => turn
            .act(Action::Stop(StopMode::Fast))
            .routine(Reason::ReinitializeRequested),
        None => return ControlFlow::Continue(turn),
    })
}

fn follow(turn: Turn<'_>, topology: &Topology, running: &Running, at: At<'_>) -> Decision {
    let seen = turn.seen;
    let turn = match local_request(turn) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let Some((leader, timeline)) =
        confirmed_leader(topology).and_then(|leader| Some((leader, leader.timeline?)))
    else {
        return wait_for_leader(turn, topology);
    };
    let upstream = upstream::own(seen, topology, leader);
    let streams = at.is_streaming && *at.upstream == upstream.address;
    match topology.ancestry(running.timeline, at.end, timeline) {
        Ancestry::Ancestor => {}
        // What it received and did not replay is a piece of a record: WAL is sent in chunks, and the last before a leader's
        // end often does not end with a record, before which its successor's timeline therefore begins. PostgreSQL replays
        // no piece, and takes up a timeline that forked behind what it has replayed. Whole records it would replay on its
        // way to that timeline, and show the new one as its own: such a replica is stopped, and they are cut off.
        Ancestry::Diverged { .. }
            if running.has_read_all
                && topology.ancestry(running.timeline, at.replayed, timeline)
                    == Ancestry::Ancestor => {}
        Ancestry::Unknown => return turn.routine(Reason::WaitingForHistory),
        // PostgreSQL streams nothing from a server whose history is another: the leader's record is told late.
        Ancestry::Diverged { .. } if running.timeline > timeline && streams => {
            return turn.routine(Reason::WaitingForHistory);
        }
        Ancestry::Diverged { .. } => return leave(turn, topology, running, &at, timeline),
    }
    let turn = turn.remember(|memory| memory.reads_since = None);
    let whom = whom(seen, topology, &upstream);
    if *at.upstream != upstream.address {
        return turn
            .remember(|memory| memory.not_streaming_since = None)
            .detail(whom)
            .act(Action::Follow(upstream))
            .routine(Reason::ChangingUpstream);
    }
    if !at.is_streaming && upstream.address.is_some() {
        if running.is_wal_gone {
            return without_wal(turn, upstream, at.end);
        }
        return repair(turn, topology, upstream);
    }
    let mut turn = turn
        .remember(|memory| {
            memory.not_streaming_since = None;
            forget_wal_gone(memory);
        })
        .detail(whom);
    let memory = &mut turn.decision.memory;
    let turn = slots::on_replica(seen, topology, running, &leader.name, at.replayed, memory)
        .carry_out(turn);
    let turn = keeping::prepare(turn, topology, running);
    let turn = match slots::logical::on_replica(turn, topology, running, leader, at.replayed) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let reason = turn.why.unwrap_or(Reason::Following);
    match turn.soon {
        Some(within) => turn.within(reason, within),
        None => turn.routine(reason),
    }
}

/// What it holds the leader's history does not. It is stopped, and mended before it starts; but where it has replayed nothing
/// of that and stands still, only once it is sure that it has not read all. Its upstream is the old one meanwhile.
fn leave<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
    at: &At<'_>,
    leads: Timeline,
) -> Decision {
    let now = turn.seen.now;
    let is_shared = topology.ancestry(running.timeline, at.replayed, leads) == Ancestry::Ancestor;
    let before = turn.decision.memory.reads_since;
    let (since, replayed) = before.unwrap_or((now, at.replayed));
    if is_shared && replayed == at.replayed && now.since(since) < LOOKED_AT {
        return turn
            .remember(|memory| memory.reads_since = Some((since, replayed)))
            .within(Reason::Diverged, LOOK_AGAIN);
    }
    turn.remember(|memory| memory.reads_since = None)
        .act(Action::Stop(StopMode::Fast))
        .routine(Reason::Diverged)
}

/// One that was started while the DCS was silent, after a rewind say, may have no upstream, or one that is
/// gone, and then waits for WAL without an end. It takes a new one up while it starts, so it is pointed at its
/// upstream after each ttl; that changes nothing where it replays what it has.
fn wait_for_start(turn: Turn<'_>, topology: &Topology, since: Moment) -> Decision {
    let seen = turn.seen;
    let Some(leader) = confirmed_leader(topology) else {
        return turn.routine(Reason::WaitingForStart);
    };
    let told = turn.decision.memory.not_streaming_since;
    let since = told.map_or(since, |told| told.max(since));
    let (ttl, waited) = (seen.settings().ttl, seen.now.since(since));
    if waited < ttl {
        return turn.within(Reason::WaitingForStart, ttl - waited);
    }
    let upstream = upstream::own(seen, topology, leader);
    turn.remember(|memory| memory.not_streaming_since = Some(seen.now))
        .act(Action::Follow(upstream))
        .routine(Reason::RepairingReplication)
}

fn wait_for_leader(turn: Turn<'_>, topology: &Topology) -> Decision {
    let is_candidate = topology.switchover.as_ref().is_some_and(|record| {
        record.to == turn.seen.me.name && matches!(record.stage, SwitchoverStage::Stopped { .. })
    });
    if is_candidate {
        let turn = past_changes::note_candidacy(turn, topology);
        return turn.within(Reason::WaitingForLeader, WATCH_REPLAY);
    }
    turn.routine(Reason::WaitingForLeader)
}

/// The upstream is right and nothing streams: PostgreSQL retries by itself, and after a ttl its receiver
/// is made to connect anew. While replay waits for queries no receiver is started at all: where commits wait for this
/// member the queries are ended.
fn repair(turn: Turn<'_>, topology: &Topology, upstream: Upstream) -> Decision {
    let seen = turn.seen;
    let ttl = seen.settings().ttl;
    let since = turn.decision.memory.not_streaming_since.unwrap_or(seen.now);
    let waited = seen.now.since(since);
    let is_waited_for = commits_wait_for(seen, topology);
    let turn = match is_waited_for && waited >= QUERIES_END {
        true => turn.act(Action::EndReplayConflicts),
        false => turn,
    };
    if waited < ttl {
        let next = match is_waited_for && waited < QUERIES_END {
            true => QUERIES_END - waited,
            false => ttl - waited,
        };
        return turn
            .remember(|memory| memory.not_streaming_since = Some(since))
            .within(Reason::NotStreaming, next);
    }
    turn.remember(|memory| memory.not_streaming_since = Some(seen.now))
        .act(Action::Follow(upstream))
        .routine(Reason::RepairingReplication)
}

/// Whether commits wait however long they must, and no other member streams that they could wait for.
fn commits_wait_for(seen: &Observation, topology: &Topology) -> bool {
    let settings = seen.settings();
    let is_without_end = match settings.synchronous_mode {
        SynchronousMode::Off => false,
        SynchronousMode::On => settings.is_synchronous_mode_strict,
        SynchronousMode::Quorum => true,
    };
    let mut others = topology.members.values();
    let has_another =
        others.any(|member| member.name != seen.me.name && member.is_streaming == Some(true));
    is_without_end && !seen.me.tags.nosync && !has_another
}

/// The WAL it needs is gone from its upstream. PostgreSQL goes on asking its `restore_command` meanwhile; if the
/// archive has not brought it on after three ttl only a copy can (`patroni.md` 5, 27).
pub(super) fn without_wal(turn: Turn<'_>, upstream: Upstream, end: Lsn) -> Decision {
    let seen = turn.seen;
    let limit = seen.settings().ttl * 3;
    let known = turn.decision.memory.wal_gone_since;
    let since = known
        .filter(|(_, from)| *from == end)
        .map_or(seen.now, |(at, _)| at);
    let waited = seen.now.since(since);
    let turn = turn.from(&upstream).remember(|memory| {
        memory.wal_gone_since = Some((since, end));
        memory.is_stopped_for_copy = false;
    });
    if !seen.me.may_replace_data {
        return turn.routine(Reason::ReplaceForbidden);
    }
    if waited < limit {
        return turn.within(Reason::WalGone, limit - waited);
    }
    turn.remember(|memory| memory.is_stopped_for_copy = true)
        .act(Action::Stop(StopMode::Fast))
        .routine(Reason::WalGoneCopying)
}

/// Whether it was stopped because only a copy helps. What ended otherwise is started: the WAL may have come back.
pub(super) fn needs_copy(turn: &Turn<'_>) -> bool {
    if !turn.decision.memory.is_stopped_for_copy {
        return false;
    }
    let limit = turn.seen.settings().ttl * 3;
    let Some((since, _)) = turn.decision.memory.wal_gone_since else {
        return false;
    };
    let finished = turn.seen.job.finished.as_ref();
    let is_copied = finished.is_some_and(|job| {
        job.kind == JobKind::Clone && job.error.is_none() && job.at >= since + limit
    });
    turn.seen.now.since(since) >= limit && !is_copied
}

pub(super) fn forget_wal_gone(memory: &mut Memory) {
    memory.wal_gone_since = None;
    memory.is_stopped_for_copy = false;
}

/// Whom it replicates from, for people.
fn whom(seen: &Observation, topology: &Topology, upstream: &Upstream) -> Detail {
    if let Some(other) = upstream::name_taken_by(seen, topology) {
        let text =
            format!("without a slot: the name of {other} makes the same slot name; rename one");
        return Detail::Text(text.into());
    }
    match &upstream.member {
        Some(member) => Detail::Member(member.clone()),
        None => Detail::None,
    }
}

fn start(turn: Turn<'_>, topology: &Topology, stopped: &Stopped) -> Decision {
    let Some((leader, timeline)) =
        confirmed_leader(topology).and_then(|leader| Some((leader, leader.timeline?)))
    else {
        // A replica serves reads and keeps the upstream it has; a former primary may have diverged and
        // waits to be compared.
        if stopped.was_primary || stopped.is_half_rewound {
            return turn.routine(Reason::WaitingForLeader);
        }
        return turn.start_unless_just_failed(StartAs::Replica(None), Reason::StartingReplica);
    };
    if turn.seen.request == Some(LocalRequest::Reinitialize) {
        let turn = match keeping::before_replacing(turn, topology) {
            ControlFlow::Break(decision) => return decision,
            ControlFlow::Continue(turn) => turn,
        };
        // A replica may lack what is given away here.
        let from = upstream::source(turn.seen, topology, leader, leader);
        let turn = match keeping::order_copy(turn, topology) {
            ControlFlow::Break(decision) => return decision,
            ControlFlow::Continue(turn) => turn,
        };
        let turn = keeping::replace(turn, topology, Action::Clone(from));
        return turn.routine(Reason::ReinitializeRequested);
    }
    if stopped.is_half_rewound {
        return copy_anew(turn, topology, leader, true);
    }
    if needs_copy(&turn) && !stopped.was_primary {
        return copy_anew(turn, topology, leader, false);
    }
    let turn = turn.remember(forget_wal_gone);
    match ancestry(topology, stopped, timeline) {
        Ancestry::Unknown => turn.routine(Reason::WaitingForHistory),
        Ancestry::Ancestor => {
            let from = upstream::own(turn.seen, topology, leader);
            cut_off(turn, topology, stopped, timeline)
                .start_unless_just_failed(StartAs::Replica(Some(from)), Reason::StartingReplica)
        }
        Ancestry::Diverged { .. } => mend(turn, topology, leader),
    }
}

/// Where the WAL of a stopped instance stands towards the leader's history.
fn ancestry(topology: &Topology, stopped: &Stopped, leads: Timeline) -> Ancestry {
    if !stopped.was_primary {
        return topology.ancestry(stopped.timeline, stopped.position, leads);
    }
    if stopped.timeline == leads {
        // A leader that is another member was promoted, and its record or the history lags behind that.
        return Ancestry::Unknown;
    }
    if stopped.is_clean {
        // The last record begins at the checkpoint: it is shared only if the fork lies past its beginning.
        let past = Lsn(stopped.checkpoint.0 + 1);
        return topology.ancestry(stopped.timeline, past, leads);
    }
    // How far it wrote before it died is not in its control data.
    let beyond_all = Lsn(u64::MAX);
    topology.ancestry(stopped.timeline, beyond_all, leads)
}

/// Takes away what a replica may have received beyond the points where the leader's history left its timelines. A former
/// primary on that history has nothing there.
fn cut_off<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    stopped: &Stopped,
    leads: Timeline,
) -> Turn<'a> {
    if stopped.was_primary || turn.failed_lately(JobKind::Start) {
        return turn;
    }
    let ends = topology.history.shared_ends(stopped.timeline, leads);
    if ends.is_empty() {
        return turn;
    }
    turn.act(Action::CutWal(ends.into()))
}

fn mend(turn: Turn<'_>, topology: &Topology, leader: &Member) -> Decision {
    let seen = turn.seen;
    let of_file = seen.me.use_pg_rewind;
    let rewinds = of_file.unwrap_or_else(|| seen.settings().use_pg_rewind);
    if rewinds && turn.failure_of(JobKind::Rewind).is_none() {
        if !leader.is_checkpointed_after_promote {
            return turn.routine(Reason::WaitingForLeaderCheckpoint);
        }
        // A clone that failed is not a reason to rewind again at once.
        if turn.failed_lately(JobKind::Clone) {
            return copy_anew(turn, topology, leader, true);
        }
        // The leader's own history was asked and nothing was to be taken back: what the DCS shows differs from it.
        let done = seen.job.finished.as_ref().filter(|job| {
            job.kind == JobKind::Rewind
                && job.error.is_none()
                && job.source.as_ref() == Some(&leader.name)
        });
        let left = done.map_or(Duration::ZERO, |job| {
            seen.settings()
                .loop_wait
                .saturating_sub(seen.now.since(job.at))
        });
        if !left.is_zero() {
            return turn.within(Reason::WaitingForHistory, left);
        }
        let from = upstream::source(seen, topology, leader, leader);
        return turn.act(Action::Rewind(from)).routine(Reason::Rewinding);
    }
    copy_anew(turn, topology, leader, rewinds)
}

/// `is_unrewound`: after a rewind that failed, else because it has diverged.
fn copy_anew(turn: Turn<'_>, topology: &Topology, leader: &Member, is_unrewound: bool) -> Decision {
    let me = &turn.seen.me;
    let may_replace = if is_unrewound {
        me.may_replace_unrewound
    } else {
        me.may_replace_data
    };
    if !may_replace {
        return turn.routine(Reason::ReplaceForbidden);
    }
    let turn = match keeping::before_replacing(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let Some(from) = no_data::clone_source(&turn, topology, leader) else {
        return turn.after_failure(JobKind::Clone);
    };
    let turn = turn.from(&from);
    keeping::replace(turn, topology, Action::Clone(from)).routine(Reason::Recloning)
}
