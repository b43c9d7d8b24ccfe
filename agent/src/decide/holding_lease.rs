//! Rules while this member is leader: stay, promote, mend after a crash, give up.

use std::ops::ControlFlow;
use std::time::Duration;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::topology::{ClaimedTimeline, Initialize};
use trunkline_shared::cluster::{Lsn, MemberName, Moment, Timeline, Topology};

use super::decision::{Action, Decision, Detail, Reason, StartAs, StopMode};
use super::memory::Memory;
use super::observation::{
    BootstrapKind, CrashPolicy, Held, JobKind, LeaseView, Local, Observation, Running, RunningRole,
    Stopped, WatchdogView,
};
use super::sync_standbys::keeping;
use super::{
    PROMOTE_NEEDS, RETRY_PAUSE, Turn, bootstrap, candidate, failsafe, host_health, leading,
    requests, restarting, slots, stalled_promotion, standby_cluster,
};

/// More than this to replay, and another member takes over sooner than a restart ends (`ha.md` 9).
const REDO_LIMIT: u64 = 128 * 1024 * 1024;

/// How soon a replica that holds the key is started again after its start failed: what a killed server left may have been
/// in its way, and nobody leads meanwhile.
const START_AGAIN: Duration = Duration::from_millis(500);

/// A second crash within this time fails over (`ha.md` 9).
const CRASH_WINDOW: Duration = Duration::from_secs(60);

pub(super) fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory);
    let (LeaseView::Held(held), Some(topology)) = (&seen.lease, seen.topology()) else {
        // A restarted agent goes on by what the agent before it knew.
        let is_by_failsafe = matches!(&seen.lease, LeaseView::Held(held) if held.is_by_failsafe);
        return turn.disarm_if_harmless().routine(match is_by_failsafe {
            true => Reason::HoldingByFailsafe,
            false => Reason::DcsUnknown,
        });
    };
    if held.deadline <= seen.now {
        return turn.routine(Reason::LeaseExpired);
    }
    if held.has_unresolved_hand_over && !seen.local.may_accept_writes() {
        // Nobody is asked to stand back for what must not start: without an armed fence no round is made.
        let turn = match held.is_by_failsafe {
            true => turn.disarm_if_harmless(),
            false => turn,
        };
        return turn
            .act(Action::ReassertLeader)
            .now(Reason::HandOverUnresolved);
    }
    if held.is_key_missing {
        return turn
            .act(Action::AcquireLeader)
            .now(Reason::LeaderKeyMissing);
    }
    let turn = match &seen.settings().standby_cluster {
        None => turn,
        Some(section) => match standby_cluster::decide(turn, topology, section) {
            ControlFlow::Break(decision) => return decision,
            ControlFlow::Continue(turn) => turn,
        },
    };
    match &seen.local {
        Local::Running(running) => match &running.role {
            RunningRole::Primary {
                position,
                is_checkpointed,
            } => leading::decide(turn, topology, running, *position, *is_checkpointed),
            RunningRole::Replica { .. } => promote(turn, held, topology, running),
        },
        Local::Stopped(stopped) => when_stopped(turn, held, topology, stopped),
        Local::Starting {
            since,
            as_primary: true,
            ..
        } => starting(turn, *since),
        Local::Starting {
            as_primary: false, ..
        } => not_primary_yet(turn, held),
        Local::Unresponsive { since, .. } => {
            host_health::when_silent(turn, *since).wait_for_hung(*since)
        }
        Local::Unknown(why) => {
            let detail = Detail::Text(why.clone());
            if is_stopped(&turn) {
                return give_up(turn.detail(detail), Reason::DataUnreadable, None);
            }
            turn.detail(detail)
                .act(Action::Stop(StopMode::Immediate))
                .now(Reason::DataUnreadable)
        }
        // Situations of their own.
        Local::Empty | Local::Orphaned { .. } => turn.routine(Reason::LeaderWithoutData),
    }
}

/// Whether the last job stopped the instance by force and found it dead.
fn is_stopped(turn: &Turn<'_>) -> bool {
    let finished = turn.seen.job.finished.as_ref();
    finished.is_some_and(|job| job.kind == JobKind::StopNow && job.error.is_none())
}

/// Gives the lease up and lets the others run first.
pub(super) fn give_up(turn: Turn<'_>, reason: Reason, position: Option<Lsn>) -> Decision {
    let back = turn.seen.now + turn.seen.settings().ttl;
    turn.remember(|memory| {
        memory.stands_back_until = Some(back);
        memory.not_primary_since = None;
    })
    .act(Action::DisarmFence)
    .act(Action::ReleaseLeader { position })
    .now(reason)
}

fn promote(turn: Turn<'_>, held: &Held, topology: &Topology, running: &Running) -> Decision {
    if running.is_promoting {
        return promoting(turn, held);
    }
    let seen = turn.seen;
    if topology.initialize == Initialize::Absent && !seen.is_bootstrap_unfinished {
        // Whoever makes a cluster of a replica splits it from its primary (`ha.md` 5.6).
        return give_up(turn, Reason::ReplicaWithoutCluster, None);
    }
    let turn = match standby_cluster::unless_config_gone(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    if seen.now.until(held.deadline) <= PROMOTE_NEEDS || !seen.fence.is_live {
        return not_primary_yet(turn, held);
    }
    if turn.failed_lately(JobKind::Promote) {
        return not_primary_yet(turn, held);
    }
    if let Some(peer) = candidate::living_primary(seen) {
        return not_while_primary(turn, peer);
    }
    if seen.fence.watchdog == WatchdogView::Failed {
        return give_up(turn, Reason::WatchdogNotReady, None);
    }
    if held.is_by_failsafe {
        // A promotion is written down first, and nobody is asked to stand back for a replica.
        return turn
            .disarm_if_harmless()
            .within(Reason::WaitingToPromote, RETRY_PAUSE);
    }
    if let Err((reason, detail)) = failsafe::lets_begin(seen, topology) {
        // The key was taken while the promise was given: who got it may still lead.
        return give_up(turn.detail(detail), reason, None);
    }
    let (turn, waited) = not_primary_for(turn, held);
    if waited >= turn.seen.settings().ttl * 2 {
        // The claim or the signal fails every time: another member is to try.
        return give_up(turn, Reason::PromotionFailed, None);
    }
    let turn = match standby_cluster::may_be_promoted(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match allowed_by_operator(turn, held) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let turn = match keeping::before_promotion(turn, topology, running) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let next = next_timeline(topology, running.timeline);
    slots::count_anew(turn)
        .act(Action::ClaimTimeline(ClaimedTimeline {
            timeline: next,
            parent: running.timeline,
        }))
        .act(Action::ArmFence)
        .act(Action::Promote(next))
        .routine(Reason::Promoting)
}

/// `pre_promote` is run once for every promotion, under the lease; a no gives the lease up.
fn allowed_by_operator<'a>(turn: Turn<'a>, held: &Held) -> ControlFlow<Decision, Turn<'a>> {
    if !turn.seen.me.has_pre_promote {
        return ControlFlow::Continue(turn);
    }
    let finished = turn.seen.job.finished.as_ref();
    let outcome = finished.filter(|job| job.kind == JobKind::PrePromote);
    if let Some(job) = outcome.filter(|_| turn.decision.memory.pre_promoted == Some(held.epoch)) {
        let Some(why) = job.error.clone() else {
            return ControlFlow::Continue(turn);
        };
        let turn = turn.detail(Detail::Text(why));
        return ControlFlow::Break(give_up(turn, Reason::PrePromoteFailed, None));
    }
    let epoch = held.epoch;
    let turn = note_not_primary(turn, held)
        .remember(|memory| memory.pre_promoted = Some(epoch))
        .act(Action::RunPrePromote);
    ControlFlow::Break(turn.routine(Reason::RunningPrePromote))
}

/// Promotion was signalled and is not over. It cannot be taken back, so nothing is given up before the
/// instance has stopped.
fn promoting(turn: Turn<'_>, held: &Held) -> Decision {
    let (turn, waited) = not_primary_for(turn, held);
    let settings = turn.seen.settings();
    let limit = settings.primary_start_timeout.max(settings.ttl * 2);
    if waited >= limit {
        return turn
            .act(Action::Stop(StopMode::Immediate))
            .now(Reason::PromotionFailed);
    }
    let since = turn.seen.now.before(waited);
    match stalled_promotion::break_off(turn, since) {
        ControlFlow::Break(decision) => decision,
        ControlFlow::Continue(turn) => turn.within(Reason::WaitingToPromote, RETRY_PAUSE),
    }
}

/// The first number that no promotion known to anybody has taken.
fn next_timeline(topology: &Topology, own: Timeline) -> Timeline {
    let recorded = topology
        .history
        .last_ended()
        .map_or(Timeline(0), |t| Timeline(t.0 + 1));
    let of_members = topology
        .members
        .values()
        .filter_map(|member| member.timeline);
    let last = of_members.fold(
        own.max(recorded).max(topology.claimed.timeline),
        Timeline::max,
    );
    Timeline(last.0 + 1)
}

/// Two primaries would be worse than none (`ha.md` 5.2).
fn not_while_primary(turn: Turn<'_>, peer: MemberName) -> Decision {
    turn.remember(|memory| memory.wants_peers = true)
        .detail(Detail::Member(peer))
        .within(Reason::PeerIsPrimary, RETRY_PAUSE)
}

fn note_not_primary<'a>(turn: Turn<'a>, held: &Held) -> Turn<'a> {
    let now = turn.seen.now;
    turn.remember(|memory| {
        if memory
            .not_primary_since
            .is_none_or(|(epoch, _)| epoch != held.epoch)
        {
            memory.not_primary_since = Some((held.epoch, now));
        }
    })
}

/// Notes it, and says for how long it has been so.
fn not_primary_for<'a>(turn: Turn<'a>, held: &Held) -> (Turn<'a>, Duration) {
    let turn = note_not_primary(turn, held);
    let since = turn.decision.memory.not_primary_since;
    let waited = since.map_or(Duration::ZERO, |(_, at)| turn.seen.now.since(at));
    (turn, waited)
}

/// What was neither made here nor a primary's is a copy, of another cluster where this one is being made: it leads by
/// a promotion only, which begins a timeline of its own.
fn start_copy(turn: Turn<'_>, held: &Held, topology: &Topology) -> Decision {
    match standby_cluster::unless_config_gone(turn, topology) {
        ControlFlow::Break(decision) => decision,
        ControlFlow::Continue(turn) => start_to_promote(turn, held),
    }
}

/// A replica must run before it can be promoted; after two ttl another member is to try.
fn start_to_promote(turn: Turn<'_>, held: &Held) -> Decision {
    let (turn, waited) = not_primary_for(turn, held);
    if waited >= turn.seen.settings().ttl * 2 {
        return give_up(turn, Reason::PromotionFailed, None);
    }
    let finished = turn.seen.job.finished.as_ref();
    let passed = finished.map_or(START_AGAIN, |job| turn.seen.now.since(job.at));
    match turn.failure_of(JobKind::Start) {
        Some(why) if passed < START_AGAIN => turn
            .detail(Detail::Text(why))
            .within(Reason::WaitingAfterFailure, START_AGAIN - passed),
        Some(_) | None => turn
            .act(Action::Start(StartAs::Replica(None)))
            .routine(Reason::WaitingToPromote),
    }
}

/// Waits for the instance to be ready for promotion; after two ttl another member is to try.
fn not_primary_yet(turn: Turn<'_>, held: &Held) -> Decision {
    let (turn, waited) = not_primary_for(turn, held);
    let limit = turn.seen.settings().ttl * 2;
    if waited < limit {
        return turn.within(Reason::WaitingToPromote, RETRY_PAUSE);
    }
    match &turn.seen.local {
        // One that does not answer may have been told to promote itself by the agent before.
        Local::Starting { .. } | Local::Unresponsive { .. } => turn
            .act(Action::Stop(StopMode::Immediate))
            .now(Reason::PromotionFailed),
        Local::Running(_)
        | Local::Stopped(_)
        | Local::Orphaned { .. }
        | Local::Unknown(_)
        | Local::Empty => give_up(turn, Reason::PromotionFailed, None),
    }
}

/// A start as primary that takes longer than `primary_start_timeout` ends, and what follows counts as a
/// second crash, if anybody can take over.
fn starting(turn: Turn<'_>, since: Moment) -> Decision {
    let seen = turn.seen;
    if !seen.fence.is_armed() {
        return turn.act(Action::ArmFence).now(Reason::ArmingFence);
    }
    if seen.is_bootstrap_unfinished {
        // Nobody else has this data: it takes as long as it takes.
        return turn.routine(Reason::RecoveringToTarget);
    }
    let limit = seen.settings().primary_start_timeout;
    let waited = seen.now.since(since);
    let is_kept =
        turn.decision.memory.kept_after_crash.is_some_and(
            |epoch| matches!(&seen.lease, LeaseView::Held(held) if held.epoch == epoch),
        );
    // Without the DCS the key can be given to nobody.
    let is_by_failsafe = matches!(&seen.lease, LeaseView::Held(held) if held.is_by_failsafe);
    let never_fails_over =
        is_kept || is_by_failsafe || seen.me.crash_policy == CrashPolicy::Restart;
    let Some(topology) = seen.topology() else {
        return turn.routine(Reason::DcsUnknown);
    };
    // Nobody takes over before the cluster has an identity: replicas without one never run.
    let is_unmade = match topology.initialize {
        Initialize::Absent | Initialize::Running => true,
        Initialize::Done(_) => false,
    };
    if limit.is_zero() || waited < limit || never_fails_over || is_unmade {
        return turn.routine(Reason::WaitingForPrimaryStart);
    }
    if candidate::answers(seen).is_none() {
        return turn.ask_peers();
    }
    match successor_after_crash(seen, topology) {
        Ok(_) => turn
            .remember(|memory| memory.crashed_at = Some(seen.now))
            .act(Action::Stop(StopMode::Immediate))
            .now(Reason::FailingOverAfterCrash),
        Err(_) => turn.routine(Reason::WaitingForPrimaryStart),
    }
}

fn when_stopped(turn: Turn<'_>, held: &Held, topology: &Topology, stopped: &Stopped) -> Decision {
    let seen = turn.seen;
    if stopped.is_half_rewound {
        // It was to follow another cluster, and stands on its own now: who is whole leads.
        return give_up(turn, Reason::RemoteUnusable, None);
    }
    if let Some(record) = requests::own_switchover(seen, topology)
        && !requests::is_over(&turn, record, stopped)
    {
        return requests::when_stopped(turn, held, topology, record, stopped);
    }
    let turn = restarting::end_if_anticipated(turn);
    let turn = match unfinished(turn, held, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let is_being_made = bootstrap::is_being_made(seen, topology);
    let is_made_here = is_being_made && seen.is_bootstrap_unfinished;
    if !stopped.was_primary && !is_made_here {
        return start_copy(turn, held, topology);
    }
    if seen.now.until(held.deadline) <= PROMOTE_NEEDS {
        return turn.within(Reason::WaitingToPromote, RETRY_PAUSE);
    }
    if !seen.fence.is_live {
        return turn.within(Reason::FenceNotLive, RETRY_PAUSE);
    }
    if is_being_made {
        let recovers = seen.me.bootstrap == BootstrapKind::CustomRecovering;
        // After its recovery it is a primary's like any other.
        if recovers && seen.is_bootstrap_unfinished && !stopped.was_primary {
            return turn
                .act(Action::ArmFence)
                .act(Action::Start(StartAs::Recovering))
                .routine(Reason::RecoveringToTarget);
        }
        return start_primary(turn, Reason::Bootstrapping);
    }
    if topology.initialize == Initialize::Absent {
        // Nobody takes over before the cluster has an identity: replicas without one never run.
        if turn.failed_lately(JobKind::Start) {
            return turn.after_failure(JobKind::Start);
        }
        return start_primary(turn, Reason::AdoptingPrimary);
    }
    if turn.failure_of(JobKind::Start).is_some() {
        return crashed(turn, topology, stopped, true);
    }
    let is_crash = stopped.crashed_at.is_some() || !stopped.is_clean;
    if !is_crash {
        return start_primary(turn, Reason::StartingPrimary);
    }
    if prefers_failover(&turn, held, topology, stopped) {
        return crashed(turn, topology, stopped, false);
    }
    restart(turn, stopped, Reason::RestartingAfterCrash)
}

/// Whether another member is to lead rather than this one after its crash, if one can.
fn prefers_failover(turn: &Turn<'_>, held: &Held, topology: &Topology, stopped: &Stopped) -> bool {
    let seen = turn.seen;
    let second = turn.decision.memory.crashed_at.is_some_and(|earlier| {
        let crashed = stopped.crashed_at.unwrap_or(seen.now);
        earlier != crashed && crashed.since(earlier) < CRASH_WINDOW
    });
    let redo = topology
        .status
        .optime
        .max(stopped.position)
        .0
        .saturating_sub(stopped.redo.0);
    let prefers_failover = match seen.me.crash_policy {
        CrashPolicy::Failover => true,
        CrashPolicy::Restart => false,
        // After a restart commits that nobody confirmed are visible.
        CrashPolicy::Auto => {
            let mode = seen.settings().synchronous_mode;
            second || redo > REDO_LIMIT || mode != SynchronousMode::Off
        }
    };
    // Without the DCS the key can be given to nobody.
    (prefers_failover || seen.settings().primary_start_timeout.is_zero()) && !held.is_by_failsafe
}

pub(super) fn successor_after_crash(
    seen: &Observation,
    topology: &Topology,
) -> Result<MemberName, Detail> {
    let how = candidate::Succession::AfterCrash;
    candidate::successor(seen, topology, &seen.settings(), None, how)
}

/// A cluster that is being made and does not start is given up after two ttl.
fn unfinished<'a>(
    turn: Turn<'a>,
    held: &Held,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    if !bootstrap::is_being_made(turn.seen, topology) {
        return ControlFlow::Continue(turn);
    }
    if turn.failure_of(JobKind::Start).is_none() {
        return bootstrap::when_stopped(turn, false);
    }
    let (turn, waited) = not_primary_for(turn, held);
    let is_hopeless = waited >= turn.seen.settings().ttl * 2;
    let turn = match bootstrap::when_stopped(turn, is_hopeless) {
        ControlFlow::Break(decision) => return ControlFlow::Break(decision),
        ControlFlow::Continue(turn) => turn,
    };
    if turn.failed_lately(JobKind::Start) {
        return ControlFlow::Break(turn.after_failure(JobKind::Start));
    }
    ControlFlow::Continue(turn)
}

/// Fails over if somebody can take over, else starts again in place.
fn crashed(turn: Turn<'_>, topology: &Topology, stopped: &Stopped, start_failed: bool) -> Decision {
    let seen = turn.seen;
    if matches!(&seen.lease, LeaseView::Held(held) if held.is_by_failsafe) {
        return match turn.failed_lately(JobKind::Start) {
            true => turn.after_failure(JobKind::Start),
            false => restart(turn, stopped, Reason::RestartingAfterCrash),
        };
    }
    if candidate::answers(seen).is_none() {
        return turn.ask_peers();
    }
    match successor_after_crash(seen, topology) {
        Ok(member) => {
            let turn = turn.detail(Detail::Member(member));
            give_up(turn, Reason::FailingOverAfterCrash, None)
        }
        Err(_) if start_failed && turn.failed_lately(JobKind::Start) => turn
            .remember(|memory| memory.wants_peers = true)
            .after_failure(JobKind::Start),
        Err(detail) => {
            let epoch = match &seen.lease {
                LeaseView::Held(held) => Some(held.epoch),
                LeaseView::NotHeld | LeaseView::Lost => None,
            };
            let turn = turn
                .detail(detail)
                .remember(|memory| memory.kept_after_crash = epoch);
            restart(turn, stopped, Reason::NobodyCanTakeOver)
        }
    }
}

fn restart(turn: Turn<'_>, stopped: &Stopped, reason: Reason) -> Decision {
    let crashed_at = stopped.crashed_at.unwrap_or(turn.seen.now);
    start_primary(
        turn.remember(|memory| memory.crashed_at = Some(crashed_at)),
        reason,
    )
}

fn start_primary(turn: Turn<'_>, reason: Reason) -> Decision {
    if let Some(peer) = candidate::living_primary(turn.seen) {
        return not_while_primary(turn, peer);
    }
    if turn.seen.fence.watchdog == WatchdogView::Failed {
        return give_up(turn, Reason::WatchdogNotReady, None);
    }
    let start = start_as(turn.seen);
    let topology = turn.seen.topology();
    if let Some(Err((reason, detail))) = topology.map(|t| failsafe::lets_begin(turn.seen, t)) {
        return give_up(turn.detail(detail), reason, None);
    }
    slots::count_anew(turn)
        .act(Action::ArmFence)
        .act(Action::Start(start))
        .routine(reason)
}

/// How a primary starts again: without clients where commits may have waited that nobody confirmed, which are
/// visible after the restart.
pub(super) fn start_as(seen: &Observation) -> StartAs {
    let settings = seen.settings();
    let is_on = settings.synchronous_mode != SynchronousMode::Off;
    let waits = |topology: &Topology| {
        let recorded = topology.sync.as_ref();
        let has_standby = recorded.is_some_and(|sync| !sync.standbys.is_empty());
        let is_made = matches!(topology.initialize, Initialize::Done(_));
        is_made && (has_standby || settings.is_synchronous_mode_strict)
    };
    if is_on && seen.topology().is_some_and(waits) {
        StartAs::PrimaryClosed
    } else {
        StartAs::Primary
    }
}
