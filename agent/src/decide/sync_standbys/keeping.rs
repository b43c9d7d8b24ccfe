//! A leader's duty: keeps whom commits wait for, and the record, in line with who streams.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{Lsn, Member, MemberName, MemberRole, MemberState, Topology};

use super::{Standby, SyncNames, SyncStep, SyncView, count, election, named, quorum};
use crate::decide::decision::{Action, Decision, Detail, Reason};
use crate::decide::memory::{SyncNote, SyncReady};
use crate::decide::observation::{JobKind, LeaseView, Observation, Running};
use crate::decide::{Turn, holding_lease, past_changes};

/// How long a setting must have been seen in force before a position is taken to lie behind it. The session
/// that sees it is told by the same signal as the processes that release commits; each takes it up before it
/// looks at what the standbys answer.
const RELOAD_SETTLES: Duration = Duration::from_millis(100);

/// How soon the next look comes while a setting, or a standby's position, is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a promotion waits for that in `synchronous_mode: on`.
const PREPARES_FOR: Duration = Duration::from_secs(1);

/// The record names this leader before a cluster that is being made can have a second member, and before
/// anything else where another led.
pub(in crate::decide) fn claim<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let is_on = turn.seen.settings().synchronous_mode != SynchronousMode::Off;
    let mine = |sync: &SyncState| sync.leader.as_ref() == Some(&turn.seen.me.name);
    if !is_on || topology.sync.as_ref().is_some_and(mine) {
        return ControlFlow::Continue(turn);
    }
    let claim = Action::WriteSync(nobody_but(turn.seen, topology));
    ControlFlow::Break(turn.act(claim).now(Reason::ClaimingSync))
}

/// A record after the one that was seen, with which only this member may lead.
fn nobody_but(seen: &Observation, topology: &Topology) -> SyncState {
    SyncState {
        leader: Some(seen.me.name.clone()),
        standbys: Vec::new(),
        quorum: 0,
        revision: topology.sync.as_ref().map_or(0, |sync| sync.revision),
    }
}

/// Before the first commit of a new leader whoever else may lead would find it: nobody else may, or commits
/// already wait for so many that an election finds each.
pub(in crate::decide) fn before_promotion<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    let settings = seen.settings();
    if settings.synchronous_mode == SynchronousMode::Off {
        // What the record says of its standbys is not so from the first commit on that waits for nobody.
        let revision = topology.sync.as_ref().map(|sync| sync.revision);
        let record = revision.map(|revision| Action::DeleteSync { revision });
        let names = running.commits.own.iter().map(|_| Action::ClearSyncNames);
        return ControlFlow::Continue(record.into_iter().chain(names).fold(turn, Turn::act));
    }
    if let Some((wanted, names)) = taken_over(&turn, topology) {
        let mut turn = prepare(turn, topology, running);
        let ready = turn.decision.memory.sync_ready.as_ref();
        let is_ready = |ready: &SyncReady| {
            ready.names == names && seen.now.since(ready.since) >= RELOAD_SETTLES
        };
        let is_ready = ready.is_some_and(is_ready);
        if !is_ready && !is_late(&turn) {
            return ControlFlow::Break(turn.within(Reason::PreparingCommits, LOOK_AGAIN));
        }
        if !is_ready {
            return alone(turn, topology, running);
        }
        if topology.sync.as_ref() != Some(&wanted) {
            turn = turn.act(Action::WriteSync(wanted));
        }
        return ControlFlow::Continue(turn.remember(|memory| memory.sync_note = None));
    }
    alone(turn, topology, running)
}

/// Whether a named standby has waited long enough for whom its commits are to wait for: nobody else may lead then, which needs
/// nothing to be in force. A checkpointer that syncs files on a slow disk tells nobody.
fn is_late(turn: &Turn<'_>) -> bool {
    let (seen, memory) = (turn.seen, &turn.decision.memory);
    let since = memory.not_primary_since.map_or(seen.now, |(_, at)| at);
    let is_named = seen.settings().synchronous_mode == SynchronousMode::On;
    is_named && seen.now.since(since) >= PREPARES_FOR
}

/// Nobody else may lead until a standby has everything.
fn alone<'a>(
    mut turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
) -> ControlFlow<Decision, Turn<'a>> {
    let (seen, settings) = (turn.seen, turn.seen.settings());
    let wanted = nobody_but(seen, topology);
    if topology.sync.as_ref() != Some(&wanted) {
        turn = turn.act(Action::WriteSync(wanted));
    }
    let names = if settings.is_synchronous_mode_strict {
        SyncNames::Blocked
    } else {
        SyncNames::Nobody
    };
    if running.commits.own.as_ref() != Some(&names) {
        turn = turn.act(Action::SetSyncNames(names));
    }
    ControlFlow::Continue(turn.remember(|memory| memory.sync_note = None))
}

/// What this member would begin to lead with, where others may be elected after it as well.
fn taken_over(turn: &Turn<'_>, topology: &Topology) -> Option<(SyncState, SyncNames)> {
    let (settings, me) = (turn.seen.settings(), &turn.seen.me.name);
    let record = topology.sync.as_ref()?;
    match settings.synchronous_mode {
        SynchronousMode::Quorum => {
            let giver = past_changes::handed_over_by(turn, topology);
            let is_its = giver.is_some() && giver == record.leader.as_ref();
            quorum::taken_over(record, me, is_its)
        }
        // Where commits may go on without a standby, they would wait for one that may be gone for good. Nor for one of which
        // nobody knows that its agent tells when it gives its data up: Patroni's does not.
        SynchronousMode::On if settings.is_synchronous_mode_strict => {
            let leader = record.leader.as_ref()?;
            let is_ours = |member: &Arc<Member>| member.trunkline.is_some();
            let is_known = leader == me || topology.members.get(leader).is_some_and(is_ours);
            named::taken_over(record, me).filter(|_| is_known)
        }
        SynchronousMode::On | SynchronousMode::Off => None,
    }
}

/// A standby that may be elected has whom its commits would wait for in force before it is: a promotion need
/// not wait for that then.
pub(in crate::decide) fn prepare<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
) -> Turn<'a> {
    let Some((_, names)) = taken_over(&turn, topology) else {
        return turn.remember(|memory| memory.sync_ready = None);
    };
    let (commits, now) = (&running.commits, turn.seen.now);
    if commits.own.as_ref() != Some(&names) {
        return turn
            .remember(|memory| memory.sync_ready = None)
            .act(Action::SetSyncNames(names))
            .soon(LOOK_AGAIN);
    }
    if commits.in_force != names {
        let turn = turn.remember(|memory| memory.sync_ready = None);
        return turn.soon(LOOK_AGAIN);
    }
    let is_busy = commits.is_checkpointer_busy;
    turn.remember(|memory| match &memory.sync_ready {
        Some(ready) if ready.names == names => {}
        // Sessions do not wait before the checkpointer has told them.
        Some(_) | None if is_busy => memory.sync_ready = None,
        Some(_) | None => memory.sync_ready = Some(SyncReady { names, since: now }),
    })
}

/// The next step, if one is due.
pub(in crate::decide) fn keep<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
    position: Lsn,
) -> Turn<'a> {
    let settings = turn.seen.settings();
    if settings.synchronous_mode == SynchronousMode::Off {
        return give_back(turn, topology, running);
    }
    let turn = note(turn, topology, running, position);
    let standbys = standbys(topology, running, position);
    let recorded = topology.sync.as_ref().map(|sync| sync.standbys.as_slice());
    let (turn, may_degrade) = weigh_loss(turn, recorded.unwrap_or_default(), &standbys);
    let commits = &running.commits;
    let view = SyncView {
        me: &turn.seen.me.name,
        is_strict: settings.is_synchronous_mode_strict,
        wanted: usize::try_from(settings.synchronous_node_count).unwrap_or(usize::MAX),
        may_degrade,
        in_force: &commits.in_force,
        own: commits.own.as_ref(),
        noted: turn.decision.memory.sync_note.as_ref().and_then(|n| n.at),
        record: topology.sync.as_ref(),
        standbys: &standbys,
    };
    let leaving = without_leaving(&view, |name| gives_up(topology, name));
    let step = match (leaving, settings.synchronous_mode) {
        (Some(step), _) => step,
        (None, SynchronousMode::Quorum) => quorum::resolve(&view),
        (None, SynchronousMode::On | SynchronousMode::Off) => named::resolve(&view),
    };
    take(turn, topology, running, step)
}

/// One that is gone keeps its place in the record, since it has what was acknowledged, unless it says that it
/// gives that up. Fewer voters with the same quorum can elect nobody whom more of them could not.
pub(super) fn without_leaving(
    view: &SyncView<'_>,
    gives_up: impl Fn(&MemberName) -> bool,
) -> Option<SyncStep> {
    let (voters, quorum) = view.own_record()?;
    let stays = |name: &&MemberName| view.is_streaming(name) || !gives_up(name);
    let stays: BTreeSet<MemberName> = voters.iter().filter(stays).cloned().collect();
    (stays != voters).then(|| SyncStep::Write(stays, count(quorum)))
}

/// Whether a member's record says that it is not to be counted on.
fn gives_up(topology: &Topology, name: &MemberName) -> bool {
    let member = topology.members.get(name);
    member.is_some_and(|member| member.tags.nosync)
}

/// The record of a standby cluster, which nobody's commits depend on, without those that give their data up; `me`
/// leads it.
pub(in crate::decide) fn released(topology: &Topology, me: &MemberName) -> Option<SyncState> {
    let sync = topology
        .sync
        .as_ref()
        .filter(|sync| sync.leader.is_some())?;
    let streams = |name: &MemberName| {
        let member = topology.members.get(name);
        member.is_some_and(|member| member.is_streaming == Some(true))
    };
    let goes = |name: &MemberName| name != me && !streams(name) && gives_up(topology, name);
    let is_standby = |name: &MemberName| sync.leader.as_ref() != Some(name);
    let rest = without(sync, goes).or_else(|| without(sync, |name| is_standby(name) && goes(name)));
    rest.filter(|rest| rest != sync)
}

/// The record without those members; `None` where it cannot be said: nobody is left, or the leader is one of them and
/// votes are counted, so that nobody can stand in its place. Without votes each standby has everything, and can.
fn without(sync: &SyncState, goes: impl Fn(&MemberName) -> bool) -> Option<SyncState> {
    let standbys = sync.standbys.iter().filter(|name| !goes(name)).cloned();
    let mut standbys: Vec<MemberName> = standbys.collect();
    let leader = match sync.leader.clone().filter(|leader| !goes(leader)) {
        Some(leader) => leader,
        None if sync.quorum == 0 && !standbys.is_empty() => standbys.remove(0),
        None => return None,
    };
    Some(SyncState {
        leader: Some(leader),
        standbys,
        ..sync.clone()
    })
}

/// What one lets people do where nobody leads who could change the record.
const NOBODY_RELEASES: &str = "if no leader does it: trunkline failover to another member, or synchronous_mode off, \
     accepts that commits may be lost";

/// What a synchronous standby, or the recorded leader, has is what acknowledged commits rely on, and a copy of
/// another member's data, or a backup, may lack some of them: before it is replaced nobody may elect this member
/// for what it had.
pub(in crate::decide) fn before_replacing<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let me = &turn.seen.me.name;
    let is_counted_on =
        |sync: &SyncState| sync.leader.as_ref() == Some(me) || sync.standbys.contains(me);
    if election::record_in_force(topology).is_some_and(is_counted_on) {
        let is_standby = turn.seen.settings().standby_cluster.is_some();
        let turn = match topology.leader.is_some() && !is_standby {
            true => turn,
            false => turn.detail(Detail::Text(NOBODY_RELEASES.into())),
        };
        return ControlFlow::Break(turn.routine(Reason::LeavingSync));
    }
    ControlFlow::Continue(turn)
}

/// The same of a standby cluster's leader, which writes the record itself. Where nobody can stand in its place there,
/// whoever has the votes is to lead, or whom an operator names.
pub(in crate::decide) fn before_leader_replaces<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let me = &turn.seen.me.name;
    let is_counted_on =
        |sync: &&SyncState| sync.leader.as_ref() == Some(me) || sync.standbys.contains(me);
    let Some(sync) = election::record_in_force(topology).filter(is_counted_on) else {
        return ControlFlow::Continue(turn);
    };
    ControlFlow::Break(match without(sync, |name| name == me) {
        Some(rest) => turn.act(Action::WriteSync(rest)).now(Reason::LeavingSync),
        None => {
            let turn = turn.detail(Detail::Text(NOBODY_RELEASES.into()));
            holding_lease::give_up(turn, Reason::LeavingSync, None)
        }
    })
}

/// The copy that an operator asked for: the request is taken at once, or, where the record is written first, which
/// may fail, stands until a copy runs or has run.
pub(in crate::decide) fn order_copy<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    if election::record_in_force(topology).is_none() {
        return ControlFlow::Continue(turn.request_taken());
    }
    let now = turn.seen.now;
    let finished = turn.seen.job.finished.as_ref();
    let copied = finished.filter(|job| job.kind == JobKind::Clone);
    let ordered = turn.decision.memory.copy_ordered_at;
    if ordered.is_some_and(|at| copied.is_some_and(|job| job.at >= at)) {
        // It was over before a turn saw it run.
        return ControlFlow::Break(turn.request_taken().now(Reason::ReinitializeRequested));
    }
    ControlFlow::Continue(turn.remember(|memory| memory.copy_ordered_at = Some(now)))
}

/// Puts other data in the place of its own. A write of the record that is under way may name this member, which
/// streamed when that was made, and what the leader has noted of it was true of what it had: both end with a record
/// that is newer than either.
pub(in crate::decide) fn replace<'a>(turn: Turn<'a>, topology: &Topology, how: Action) -> Turn<'a> {
    let turn = match election::record_in_force(topology) {
        Some(sync) => turn.act(Action::RenewSync(sync.clone())),
        None => turn,
    };
    turn.act(how)
}

/// After a restart clients come in once those whom commits wait for have what it made visible, as a commit
/// after it would be acknowledged (`ha.md` 9).
pub(in crate::decide) fn let_clients_in<'a>(
    turn: Turn<'a>,
    running: &Running,
    position: Lsn,
) -> Turn<'a> {
    let commits = &running.commits;
    if !commits.is_access_closed {
        return turn.remember(|memory| memory.closed_until = None);
    }
    let until = turn.decision.memory.closed_until.unwrap_or(position);
    let (names, needed) = commits.in_force.waited_for();
    let has_all = |name: &&MemberName| {
        let mut senders = commits.senders.iter();
        senders.any(|s| s.is_streaming && s.name == **name && s.flushed >= until)
    };
    let have_all = names.iter().filter(has_all).count();
    let is_confirmed = match &commits.in_force {
        SyncNames::Nobody => true,
        SyncNames::All(_) | SyncNames::Any(..) => have_all >= needed,
        SyncNames::Blocked | SyncNames::Other(_) => false,
    };
    if is_confirmed || turn.seen.settings().synchronous_mode == SynchronousMode::Off {
        return turn.act(Action::OpenClientAccess);
    }
    turn.remember(|memory| memory.closed_until = Some(until))
        .because(Reason::AccessClosedUntilSynchronous)
        .soon(LOOK_AGAIN)
}

/// The mode is off: nobody may rely on the record before commits stop to wait, and then the user's own
/// setting holds again.
fn give_back<'a>(turn: Turn<'a>, topology: &Topology, running: &Running) -> Turn<'a> {
    if let Some(sync) = &topology.sync {
        let revision = sync.revision;
        return turn
            .act(Action::DeleteSync { revision })
            .because(Reason::RemovingSyncStandby)
            .soon(Duration::ZERO);
    }
    if running.commits.own.is_some() {
        return turn
            .act(Action::ClearSyncNames)
            .because(Reason::RemovingSyncStandby)
            .soon(LOOK_AGAIN);
    }
    turn
}

fn take<'a>(turn: Turn<'a>, topology: &Topology, running: &Running, step: SyncStep) -> Turn<'a> {
    let seen = turn.seen;
    let Some(record) = &topology.sync else {
        return turn;
    };
    match step {
        SyncStep::Wait(names) => {
            let (before, _) = running.commits.in_force.waited_for();
            let (after, _) = names.waited_for();
            let reason = match &names {
                SyncNames::Blocked => Reason::BlockingCommits,
                SyncNames::Nobody => Reason::DegradedToAsynchronous,
                SyncNames::All(_) | SyncNames::Any(..) | SyncNames::Other(_) => {
                    if before.is_subset(&after) {
                        Reason::AddingSyncStandby
                    } else {
                        Reason::RemovingSyncStandby
                    }
                }
            };
            // Written again, so that an earlier write whose outcome is unknown can no longer be executed.
            turn.act(Action::WriteSync(record.clone()))
                .act(Action::SetSyncNames(names))
                .remember(|memory| memory.sync_note = None)
                .because(reason)
                .soon(LOOK_AGAIN)
        }
        SyncStep::Write(standbys, quorum) => {
            let is_leaving = |name: &MemberName| !standbys.contains(name);
            let reason = if record.standbys.iter().any(is_leaving) {
                Reason::RemovingSyncStandby
            } else {
                Reason::AddingSyncStandby
            };
            let record = SyncState {
                leader: Some(seen.me.name.clone()),
                standbys: standbys.into_iter().collect(),
                quorum,
                revision: record.revision,
            };
            turn.act(Action::WriteSync(record))
                .because(reason)
                .soon(Duration::ZERO)
        }
        SyncStep::Until(Reason::NoSyncStandby) => {
            // One that comes back wakes the agent.
            let since = turn.decision.memory.sync_lost_since.unwrap_or(seen.now);
            let left = seen
                .settings()
                .loop_wait
                .saturating_sub(seen.now.since(since));
            let turn = turn.because(Reason::NoSyncStandby);
            if left.is_zero() {
                turn
            } else {
                turn.soon(left)
            }
        }
        SyncStep::Until(reason) => turn.because(reason).soon(LOOK_AGAIN),
        SyncStep::Done(reason) => reason.into_iter().fold(turn, Turn::because),
    }
}

/// Keeps a position that was reached when the setting in force had surely been taken up by every process. What the
/// standbys have from then on they have while the record stands: one that replaces its data writes it again.
fn note<'a>(turn: Turn<'a>, topology: &Topology, running: &Running, position: Lsn) -> Turn<'a> {
    let commits = &running.commits;
    let now = turn.seen.now;
    let LeaseView::Held(held) = &turn.seen.lease else {
        return turn;
    };
    let epoch = held.epoch;
    let record = topology.sync.as_ref().map_or(0, |sync| sync.revision);
    let is_nobody = |names: &SyncNames| *names == SyncNames::Nobody;
    // With nothing set none will wait, though it may not be in force yet.
    let may_be_nobody = is_nobody(&commits.in_force) || commits.own.as_ref().is_none_or(is_nobody);
    let turn = turn.remember(|memory| {
        let is_still = memory.commits_wait_since_in == Some(epoch) && !may_be_nobody;
        memory.commits_wait_since_in = is_still.then_some(epoch);
    });
    if commits.own.as_ref() != Some(&commits.in_force) {
        return turn.remember(|memory| memory.sync_note = None);
    }
    let is_same = |note: &SyncNote| {
        note.epoch == epoch && note.record == record && note.names == commits.in_force
    };
    turn.remember(|memory| match &mut memory.sync_note {
        Some(note) if is_same(note) => {
            if note.at.is_some() {
                return;
            }
            // That they wait at all sessions learn from the checkpointer, which may be syncing files; for whom, the
            // processes that release them take up by themselves.
            if commits.is_checkpointer_busy && memory.commits_wait_since_in.is_none() {
                note.since = now;
            } else if now.since(note.since) >= RELOAD_SETTLES {
                note.at = Some(position);
                memory.commits_wait_since_in = (!may_be_nobody).then_some(epoch);
            }
        }
        note => {
            *note = Some(SyncNote {
                epoch,
                record,
                names: commits.in_force.clone(),
                since: now,
                at: None,
            });
        }
    })
}

/// Whether the checkpoint after a promotion has to wait: in its haste the checkpointer tells nobody that commits
/// are to wait, and for so long no standby could enter the record. For `loop_wait` at most.
pub(in crate::decide) fn puts_checkpoint_off(turn: Turn<'_>) -> (Turn<'_>, bool) {
    let (settings, now) = (turn.seen.settings(), turn.seen.now);
    let memory = &turn.decision.memory;
    let since = memory.checkpoint_put_off_since.unwrap_or(now);
    let is_off = settings.synchronous_mode == SynchronousMode::Off;
    if is_off || memory.commits_wait_since_in.is_some() || now.since(since) >= settings.loop_wait {
        return (turn, false);
    }
    let turn = turn.remember(|memory| memory.checkpoint_put_off_since = Some(since));
    (turn, true)
}

/// Whether commits may go on without a standby: after `loop_wait` without one, for a blip must not make the
/// cluster asynchronous; at once where those waited for stream and may not be waited for any more.
fn weigh_loss<'a>(
    turn: Turn<'a>,
    recorded: &[MemberName],
    standbys: &[Standby],
) -> (Turn<'a>, bool) {
    let now = turn.seen.now;
    if recorded.is_empty() || standbys.iter().any(|standby| standby.is_eligible) {
        return (turn.remember(|memory| memory.sync_lost_since = None), true);
    }
    let streams = |name: &MemberName| standbys.iter().any(|standby| standby.name == *name);
    let since = turn.decision.memory.sync_lost_since.unwrap_or(now);
    let is_over = now.since(since) >= turn.seen.settings().loop_wait;
    let may = is_over || recorded.iter().all(streams);
    (
        turn.remember(|memory| memory.sync_lost_since = Some(since)),
        may,
    )
}

/// The members that stream from here, the preferred first: those that may lead, by `sync_priority`, those
/// already waited for, the furthest.
fn standbys(topology: &Topology, running: &Running, position: Lsn) -> Vec<Standby> {
    let commits = &running.commits;
    let recorded: BTreeSet<&MemberName> = topology
        .sync
        .iter()
        .flat_map(|sync| &sync.standbys)
        .collect();
    let (waited_for, _) = commits.own.clone().unwrap_or_default().waited_for();
    let streaming: Vec<&MemberName> = commits
        .senders
        .iter()
        .filter(|sender| sender.is_streaming)
        .map(|sender| &sender.name)
        .collect();
    let flushed = |name: &MemberName| {
        let senders = commits
            .senders
            .iter()
            .filter(|s| s.is_streaming && s.name == *name);
        senders.map(|s| s.flushed).max().unwrap_or_default()
    };
    let may_be_waited_for = |name: &MemberName| match topology.members.get(name) {
        Some(member) => {
            member.role == MemberRole::Replica
                && member.state == MemberState::Running
                && member.tags.may_be_synchronous()
        }
        // Its agent is gone; its server still keeps commits.
        None => recorded.contains(name),
    };
    let names: BTreeSet<&MemberName> = streaming.into_iter().collect();
    let eligible = names.iter().filter(|name| may_be_waited_for(name));
    let furthest = match eligible.clone().count() {
        0 | 1 => position,
        _ => eligible.map(|name| flushed(name)).max().unwrap_or(position),
    };
    let limit = topology.settings_or_default().maximum_lag_on_syncnode;
    let is_near = |at: Lsn| limit.is_none_or(|limit| at.bytes_behind(furthest) <= limit);
    let mut standbys: Vec<Standby> = names
        .into_iter()
        .map(|name| Standby {
            name: name.clone(),
            flushed: flushed(name),
            is_eligible: may_be_waited_for(name) && is_near(flushed(name)),
        })
        .collect();
    standbys.sort_by_cached_key(|standby| {
        let member = topology.members.get(&standby.name);
        let may_lead = member.is_none_or(|member| member.may_lead());
        let priority = member.and_then(|member| member.tags.sync_priority);
        let priority = priority.unwrap_or(1);
        (
            Reverse(may_lead),
            Reverse(priority),
            Reverse(recorded.contains(&standby.name)),
            Reverse(waited_for.contains(&standby.name)),
            Reverse(standby.flushed),
            standby.name.clone(),
        )
    });
    standbys
}
