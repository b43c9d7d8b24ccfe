//! What the host does to PostgreSQL: a write that does not come back, a volume that is nearly full, a postmaster that is
//! stopped. A disk that hangs answers what is cached, so PostgreSQL looks well while nobody can commit; a stopped
//! postmaster leaves the agent's own session alone, so it looks well while no session can begin.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::Duration;

use trunkline_shared::cluster::{MemberName, Moment, Topology};

use super::candidate::{self, Succession};
use super::decision::{Action, Decision, Detail, Lapse, NextWhy, Reason, StopMode};
use super::observation::{JobKind, LeaseView, Local, Observation, PeerAnswer};
use super::{Turn, holding_lease};

/// After a change of leader was asked for because of a full volume, none is asked for again for so many `ttl`: the
/// first may have been called off, or refused because the other lagged at that moment.
const ASK_AGAIN_TTLS: u32 = 2;

/// A kill ends in milliseconds and gives up after five seconds; one that lasts longer waits for a disk itself.
const KILL_PATIENCE: Duration = Duration::from_secs(6);

/// A kill that takes so long while a write of the agent's hangs for as long waits for their disk; alone it may have much
/// memory to give back.
const KILL_IS_LONG: Duration = Duration::from_secs(1);

/// For how long the postmaster has been stopped. A pause means hands off.
fn stopped_for(seen: &Observation) -> Option<Duration> {
    let is_running = matches!(seen.local, Local::Running(_));
    let since = seen.health.postmaster_stopped_since;
    let since = since.filter(|_| is_running && !seen.is_automation_off());
    since.map(|since| seen.now.since(since))
}

/// An instance whose postmaster was stopped for a ttl does not answer, whatever those who came before it may still ask.
/// Only that state of the process counts: a server that is slow, or full of sessions, is never in it.
pub(super) fn as_it_is_to_clients(seen: &Observation) -> Cow<'_, Observation> {
    match (&seen.local, stopped_for(seen)) {
        (Local::Running(running), Some(stopped)) if stopped >= seen.settings().ttl => {
            let local = Local::Unresponsive {
                since: seen.now.before(stopped),
                was_primary: seen.local.may_accept_writes(),
                system_id: Some(running.system_id),
            };
            Cow::Owned(Observation {
                local,
                ..seen.clone()
            })
        }
        _ => Cow::Borrowed(seen),
    }
}

/// Completes a decision: the next look comes by the moment from which a stopped postmaster counts as silence.
pub(super) fn look_in_time(seen: &Observation, mut decision: Decision) -> Decision {
    let left = stopped_for(seen).map(|stopped| seen.settings().ttl.saturating_sub(stopped));
    if let Some(left) = left
        && left < decision.next.within
    {
        decision.next.within = left;
        decision.next.why = NextWhy::Limit;
    }
    decision
}

/// Completes a decision: a leader whose killed PostgreSQL does not die lets its lease end. What was sent SIGKILL
/// runs no instruction any more and answers nobody, also while the kernel keeps it for the sake of a disk; the
/// lease ends after the fence's deadline as ever, and a watchdog resets the machine. One that dies late was held by the
/// disk on which it would be started again: that counts as a crash before the one that follows.
pub(super) fn note(seen: &Observation, mut decision: Decision) -> Decision {
    let running = seen.job.running.as_ref();
    let killing = running.filter(|job| job.kind == JobKind::StopNow);
    let waited = killing.map(|job| seen.now.since(job.since));
    let memory = &mut decision.memory;
    if has_survivors(seen) || waited.is_some_and(|waited| waited >= KILL_PATIENCE) {
        memory.kill_hangs_since.get_or_insert(seen.now);
    } else if waited.is_none() {
        memory.kill_hangs_since = None;
    }
    let leads = matches!(seen.lease, LeaseView::Held(_));
    if !leads || seen.is_automation_off() {
        return decision;
    }
    if memory.kill_hangs_since.is_some() {
        decision
            .actions
            .push(Action::LetLeaseLapse(Lapse::KillHangs));
        decision.reason = Reason::KillHangs;
        return decision;
    }
    let Some(waited) = waited else {
        return decision;
    };
    let is_long = waited >= KILL_IS_LONG;
    if is_long && hangs_for(seen) >= KILL_IS_LONG {
        memory.crashed_at = Some(seen.now);
    }
    let limit = if is_long { KILL_PATIENCE } else { KILL_IS_LONG };
    if limit.saturating_sub(waited) < decision.next.within {
        decision.next.within = limit.saturating_sub(waited);
        decision.next.why = NextWhy::Limit;
    }
    decision
}

/// Whether the last kill ended with processes that live.
fn has_survivors(seen: &Observation) -> bool {
    let may_live = match &seen.local {
        Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. }
        | Local::Unknown(_) => true,
        Local::Running(_) | Local::Stopped(_) | Local::Empty => false,
    };
    let finished = seen.job.finished.as_ref();
    let failed = finished.is_some_and(|job| job.kind == JobKind::StopNow && job.error.is_some());
    may_live && failed
}

/// For how long a write has not come back.
fn hangs_for(seen: &Observation) -> Duration {
    let since = seen.health.writes_since;
    since.map_or(Duration::ZERO, |since| seen.now.since(since))
}

/// A leader's running primary whose host fails it hands over where somebody can take over; else it says so and goes
/// on, for a member that serves reads is better than none.
pub(super) fn as_leader<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    let (ttl, waited) = (seen.settings().ttl, hangs_for(seen));
    if waited >= ttl {
        return leave_hung_disk(turn, topology);
    }
    if waited >= seen.settings().loop_wait {
        return ControlFlow::Continue(turn.because(Reason::WriteHangs).soon(ttl - waited));
    }
    if seen.health.is_nearly_full {
        return leave_full_disk(turn, topology);
    }
    ControlFlow::Continue(turn)
}

/// Nothing that is still written can be acknowledged, and a planned stop would wait for the disk.
fn leave_hung_disk<'a>(turn: Turn<'a>, topology: &Topology) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    if candidate::answers(seen).is_none() {
        return ControlFlow::Break(turn.ask_peers());
    }
    match holding_lease::successor_after_crash(seen, topology) {
        Ok(member) => ControlFlow::Break(
            remember_failure(turn)
                .detail(Detail::Member(member))
                .act(Action::Stop(StopMode::Immediate))
                .now(Reason::HandingOverForHang),
        ),
        Err(detail) => ControlFlow::Continue(turn.detail(detail).because(Reason::WriteHangs)),
    }
}

/// What follows the stop counts as a second crash: it fails over instead of starting on the same disk.
fn remember_failure(turn: Turn<'_>) -> Turn<'_> {
    let now = turn.seen.now;
    turn.remember(|memory| memory.crashed_at = Some(now))
}

/// The same where PostgreSQL does not answer either, in the turn that stops it. A write is tried once a `loop_wait`, so
/// the one that hangs may have begun that much after the silence.
pub(super) fn when_silent<'a>(turn: Turn<'a>, since: Moment) -> Turn<'a> {
    let settings = turn.seen.settings();
    let is_stopped_now = turn.seen.now.since(since) >= settings.ttl;
    if is_stopped_now && hangs_for(turn.seen) >= settings.loop_wait {
        return remember_failure(turn);
    }
    turn
}

/// A planned change of leader to a member with room, as an operator would ask for it, before PostgreSQL crashes for
/// want of it.
fn leave_full_disk<'a>(turn: Turn<'a>, topology: &Topology) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    let Some(answers) = candidate::answers(seen) else {
        return ControlFlow::Break(turn.ask_peers());
    };
    let asked = turn.decision.memory.asked_for_room;
    let ask_again = seen.settings().ttl * ASK_AGAIN_TTLS;
    let was_asked = asked.is_some_and(|at| seen.now.since(at) < ask_again);
    let has_room = |(name, answer): (&MemberName, &PeerAnswer)| match answer {
        PeerAnswer::Answered(view) if !view.is_nearly_full => Some(name.clone()),
        PeerAnswer::Answered(_) | PeerAnswer::Unreachable => None,
    };
    let fitting = |how| {
        let fits = |name: &MemberName| {
            candidate::successor(seen, topology, &seen.settings(), Some(name), how).is_ok()
        };
        answers.iter().filter_map(has_room).find(fits)
    };
    let to = fitting(Succession::Planned).or_else(|| fitting(Succession::Urgent));
    match to.filter(|_| !was_asked && topology.failover.is_none()) {
        Some(to) => {
            let now = seen.now;
            let turn = turn.remember(|memory| memory.asked_for_room = Some(now));
            let turn = turn.detail(Detail::Member(to.clone()));
            let turn = turn.act(Action::RequestSwitchover(to));
            ControlFlow::Break(turn.now(Reason::HandingOverForRoom))
        }
        None => ControlFlow::Continue(turn.because(Reason::DiskNearlyFull)),
    }
}
