//! Planned changes of leader: what is asked for, and the steps of the old leader once it has stopped (`ha.md` 11).
//! Its steps before that are in [`super::handing_over`].
//!
//! The steps stand in `trunkline/switchover`, so that whoever looks knows how far it has come, and an agent that begins anew in
//! the middle calls it off, or finishes what the candidate has confirmed:
//! announced → everything held → stopped (with the last record's position) → the candidate confirms it in its own record →
//! the key moves by one transaction. Before the move everything rolls back, and PostgreSQL starts first, which needs no
//! answer of the DCS; after it nothing does. A candidate
//! run by Patroni confirms nothing and takes no key that is moved to it: it is asked for its position, and the
//! key is deleted beside the operator's request, which it takes up by its own rules.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::member::SwitchoverReady;
use trunkline_shared::cluster::switchover::{ChangeParts, Drain};
use trunkline_shared::cluster::topology::{FailoverRequest, SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{Lsn, MemberName, Moment, Topology};

use super::decision::{Action, Decision, Detail, Reason};
use super::handing_over::{self, Plan};
use super::memory::{Memory, PlannedChange};
use super::observation::{
    Due, Held, JobKind, LeaseView, Local, Observation, Stopped, WatchdogView,
};
use super::{PROMOTE_NEEDS, RETRY_PAUSE, Turn, candidate, holding_lease, restarting, slots};

/// How long the stop, the write of the last position and the candidate's confirmation may take together before this
/// member goes on as leader. With its start, after that, clients wait for two seconds at the most.
const STOP_AND_CONFIRM: Duration = Duration::from_millis(1200);

/// The same where the change is forced: a crash, or a member that cannot go on, would cost more than that.
const FORCED_STOP_AND_CONFIRM: Duration = Duration::from_secs(4);

/// How long the candidate has at the least, however long the stop took. One whose receiver hung has cost the stop its
/// patience already.
const LEAST_CONFIRM: Duration = Duration::from_millis(400);

/// Both of an agent that ends: no client is held for it to go on.
const LAST_STOP_AND_CONFIRM: Duration = Duration::from_millis(1500);
const LAST_LEAST_CONFIRM: Duration = Duration::from_millis(700);

/// How long each action of a rollback may take. Where the DCS does not answer, the traces of the change stand for a
/// while, and nothing else is worse for that.
const ROLL_BACK_ACTION: Duration = Duration::from_secs(1);

/// How soon a candidate that Patroni runs is asked again for its position.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The switchover that this member, as old leader, has announced.
pub(super) fn own_switchover<'a>(
    seen: &Observation,
    topology: &'a Topology,
) -> Option<&'a Arc<SwitchoverRecord>> {
    own_record(seen, topology).filter(|record| !record.is_restart())
}

/// What this member has announced in the epoch in which it leads: a switchover, or a restart of its PostgreSQL.
pub(super) fn own_record<'a>(
    seen: &Observation,
    topology: &'a Topology,
) -> Option<&'a Arc<SwitchoverRecord>> {
    let LeaseView::Held(held) = &seen.lease else {
        return None;
    };
    topology
        .switchover
        .as_ref()
        .filter(|record| record.from == seen.me.name && record.epoch == held.epoch)
}

/// Whether a planned change in which this member, `me`, takes part is between its first step and its end: an agent that
/// begins anew in the middle calls it off.
pub fn is_change_under_way(me: &MemberName, topology: &Topology, memory: &Memory) -> bool {
    let takes_part = |record: &SwitchoverRecord| record.from == *me || record.to == *me;
    // What a leader has left that is gone is nobody's to end.
    let is_of_leader = |record: &SwitchoverRecord| {
        let leader = topology.leader.as_ref();
        leader.is_some_and(|leader| leader.epoch == record.epoch || leader.member == record.to)
    };
    let record = topology.switchover.as_deref();
    let is_asked = |change: &PlannedChange| {
        let request = topology.failover.as_ref();
        request.is_some_and(|request| Plan::id_of(request) == change.id)
    };
    record.is_some_and(|record| takes_part(record) && is_of_leader(record))
        || memory.switchover.as_ref().is_some_and(is_asked)
}

/// What an operator asked of the cluster, as the leader that is a running primary takes it up.
pub(super) fn as_leader<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let me = &turn.seen.me.name;
    if let Some(id) = restarting::outlived_by_key(&turn, topology) {
        // What routers said of it was said of a leadership that is over.
        let plan = Plan::restart(id, Drain::default());
        let decision = handing_over::begun_by_another_agent(turn, topology, &plan);
        return ControlFlow::Break(decision);
    }
    if restarting::is_announced(&turn, topology) {
        // Clients are held for it, and it ends soon.
        return ControlFlow::Continue(turn);
    }
    let Some(request) = &topology.failover else {
        return match restarting::begun(&turn) {
            Some(_) => clear(turn, topology),
            None => clear_leftover(turn, topology),
        };
    };
    let drop = Action::DropFailoverRequest {
        revision: request.revision,
    };
    let id = Plan::id_of(request);
    if topology.switchover.as_ref().is_some_and(|r| r.id != id) {
        // Routers hold clients for a change that this request has replaced, and it may take its time.
        return clear(turn, topology);
    }
    let is_done = topology
        .switchover
        .as_ref()
        .is_some_and(|r| r.id == id && r.to == *me);
    if is_done || request.candidate.as_ref() == Some(me) {
        // The change has brought this member here, or it was asked for where it leads already.
        return ControlFlow::Break(turn.act(drop).now(Reason::Leading));
    }
    let is_own = |record: &Arc<SwitchoverRecord>| record.id == id && record.from == *me;
    let plan = Plan::asked(request);
    if topology.switchover.as_ref().is_some_and(is_own) && own_record(turn.seen, topology).is_none()
    {
        // It was announced before this member wrote its key again. What routers said to it would count for the next one.
        let decision = handing_over::begun_by_another_agent(turn, topology, &plan);
        return ControlFlow::Break(decision);
    }
    match waits_for(turn.seen, request, is_begun(&turn, topology, request)) {
        None => {}
        Some(Ok(left)) => return ControlFlow::Continue(turn.soon(left)),
        Some(Err(why)) => {
            let turn = turn.detail(Detail::Text(why.into())).act(drop);
            return ControlFlow::Break(turn.now(Reason::SwitchoverRefused));
        }
    }
    if let Some(why) = refusal(turn.seen, request) {
        return ControlFlow::Break(turn.detail(why).act(drop).now(Reason::SwitchoverRefused));
    }
    if restarting::begun(&turn).is_some() {
        // Only its checkpoint was made, nobody holds anything for it: it would come behind the change, where nobody asked
        // for it.
        let why = "a change of leader goes first; ask again after it";
        let turn = handing_over::forget(turn)
            .request_taken()
            .detail(Detail::Text(why.into()));
        return ControlFlow::Break(turn.now(Reason::RequestRefused));
    }
    handing_over::step(turn, topology, &plan)
}

/// Why a change whose time has come is not made by this member, which leads.
fn refusal(seen: &Observation, request: &FailoverRequest) -> Option<Detail> {
    let other = request.leader.as_ref();
    if let Some(other) = other.filter(|leader| **leader != seen.me.name) {
        return Some(Detail::Member(other.clone()));
    }
    // Paused, this primary goes on until the pause ends. Nobody would be promoted behind it, and it could not come back.
    let is_demoted = seen.settings().standby_cluster.is_some();
    let why = "the cluster is to become a standby cluster once the pause ends; ask again after it";
    is_demoted.then(|| Detail::Text(why.into()))
}

/// Whether the steps of a change were begun, or would have been but for a restart. Neither that nor the checkpoint ahead,
/// which may outlast the time in which a change has to begin, makes it late.
fn is_begun(turn: &Turn<'_>, topology: &Topology, request: &FailoverRequest) -> bool {
    let remembered = turn.decision.memory.switchover.as_ref();
    remembered.is_some_and(|change| change.id == Plan::id_of(request))
        || own_switchover(turn.seen, topology).is_some()
        || restarting::has_held_up(turn)
}

/// Whether a change of leader that is asked for goes first: it has begun, or its time has come.
pub(super) fn goes_first(turn: &Turn<'_>, topology: &Topology) -> bool {
    let is_due = |request: &FailoverRequest| {
        let is_begun = is_begun(turn, topology, request);
        !matches!(waits_for(turn.seen, request, is_begun), Some(Ok(_)))
    };
    own_switchover(turn.seen, topology).is_some() || topology.failover.as_ref().is_some_and(is_due)
}

/// How late what is scheduled may begin, as in Patroni.
pub(super) fn lateness(seen: &Observation) -> Duration {
    seen.settings().loop_wait * 3 / 2
}

/// A scheduled change waits for its time; one that nobody could begin in time is dropped, as Patroni does: what
/// was meant for the quiet hour must not happen in the busy one.
pub(super) fn waits_for(
    seen: &Observation,
    request: &FailoverRequest,
    is_begun: bool,
) -> Option<Result<Duration, String>> {
    let at = request.scheduled_at.as_ref().filter(|_| !is_begun)?;
    let limit = lateness(seen);
    match seen.scheduled {
        Some(Due::In(left)) => Some(left).filter(|left| !left.is_zero()).map(Ok),
        Some(Due::Ago(late)) if late <= limit => None,
        Some(Due::Ago(late)) => {
            let late = late.as_secs();
            Some(Err(format!("scheduled for {at}, {late} s late")))
        }
        Some(Due::Unreadable) | None => Some(Err(format!("\"{at}\" is no time that can be read"))),
    }
}

/// A record that nobody's request stands behind any more is removed. Until it is gone, what is known of the change stays
/// known: a crash meanwhile is no part of it.
fn clear_leftover<'a>(turn: Turn<'a>, topology: &Topology) -> ControlFlow<Decision, Turn<'a>> {
    match topology.switchover {
        Some(_) => clear(turn, topology),
        None => ControlFlow::Continue(handing_over::forget(turn)),
    }
}

fn clear<'a>(turn: Turn<'a>, topology: &Topology) -> ControlFlow<Decision, Turn<'a>> {
    match &topology.switchover {
        Some(record) if !turn.seen.is_shutting_down => {
            let detail = Detail::Member(record.to.clone());
            let turn = turn.detail(detail).act(Action::ClearSwitchover);
            ControlFlow::Break(turn.now(Reason::Leading))
        }
        Some(_) | None => ControlFlow::Continue(turn),
    }
}

/// The steps of the stopped old leader: announce the last position, move the key, or roll back.
pub(super) fn when_stopped(
    turn: Turn<'_>,
    held: &Held,
    topology: &Topology,
    record: &Arc<SwitchoverRecord>,
    stopped: &Stopped,
) -> Decision {
    let (turn, change) = handing_over::follow(turn, record);
    let seen = turn.seen;
    let is_crash = stopped.crashed_at.is_some() && !stopped.is_clean;
    if is_crash || !stopped.was_primary {
        // Nothing of the change is left to wait for: whatever a crash, or data that came from elsewhere, asks for is next.
        return call_off(turn, topology, record.id);
    }
    let turn = turn.detail(Detail::Member(record.to.clone()));
    let is_rolled_back = change.as_ref().is_some_and(|change| change.is_rolled_back);
    if !stopped.is_clean || is_rolled_back {
        return roll_back(turn, held, topology, record.id);
    }
    match record.stage {
        SwitchoverStage::HoldTransactions | SwitchoverStage::HoldAll => {
            let Some(change) = change else {
                return roll_back(turn, held, topology, record.id);
            };
            announce_stopped(turn, held, topology, (record, &change), stopped)
        }
        SwitchoverStage::Stopped {
            shutdown_checkpoint,
        } => {
            if stopped.checkpoint != shutdown_checkpoint {
                // It ran again since: what the candidate has confirmed is not its end.
                return roll_back(turn, held, topology, record.id);
            }
            let stop = record.parts.stop.unwrap_or_default();
            let limit = confirm_limit(topology, record.id, stop, seen.is_shutting_down);
            // An agent that does not know for how long it has been waited waits no longer.
            let left = change.map_or(Duration::ZERO, |change| {
                limit.saturating_sub(seen.now.since(change.since))
            });
            confirm_or_wait(turn, held, topology, record, shutdown_checkpoint, left)
        }
        SwitchoverStage::Resume => roll_back(turn, held, topology, record.id),
    }
}

/// Nothing comes of the change, and PostgreSQL is left as it is.
pub(super) fn call_off(turn: Turn<'_>, topology: &Topology, id: u64) -> Decision {
    let turn = note_rolled_back(turn, id);
    drop_request(turn, topology, id)
        .act(Action::ClearSwitchover)
        .act_within(ROLL_BACK_ACTION)
        .now(Reason::SwitchoverRolledBack)
}

/// The candidate confirms what it reads there. A store that does not take it gives no successor either, while every client
/// waits. Should it be written after all, nothing comes of it: the key moves by this member's word alone.
fn announce_stopped(
    turn: Turn<'_>,
    held: &Held,
    topology: &Topology,
    (record, change): (&SwitchoverRecord, &PlannedChange),
    stopped: &Stopped,
) -> Decision {
    let seen = turn.seen;
    let waited = seen.now.since(stopped_at(seen, stopped));
    let held_all = change.parts.hold_all.unwrap_or_default();
    let took = seen.now.since(change.since).saturating_sub(held_all);
    let stop = took.saturating_sub(waited);
    let limit = confirm_limit(topology, record.id, stop, seen.is_shutting_down);
    let left = limit.saturating_sub(waited);
    if left.is_zero() {
        return roll_back(turn, held, topology, record.id);
    }
    let stopped = SwitchoverRecord {
        stage: SwitchoverStage::Stopped {
            shutdown_checkpoint: stopped.checkpoint,
        },
        parts: ChangeParts {
            stop: Some(took),
            ..change.parts
        },
        ..record.clone()
    };
    turn.act(Action::AnnounceSwitchover(Arc::new(stopped)))
        .act_within(left)
        .now(Reason::SwitchoverStopped)
}

/// When PostgreSQL had stopped, as far as it is known: by this member's hand, or by itself.
fn stopped_at(seen: &Observation, stopped: &Stopped) -> Moment {
    let finished = seen.job.finished.as_ref();
    let by_job = finished.filter(|job| job.kind == JobKind::Stop);
    let known = stopped.crashed_at.or(by_job.map(|job| job.at));
    known.unwrap_or(seen.now)
}

/// An agent that ends does not wait for longer: it would not go on as leader.
fn confirm_limit(topology: &Topology, id: u64, stop: Duration, is_shutting_down: bool) -> Duration {
    let request = topology.failover.as_ref().map(Plan::asked);
    let is_forced = request.is_some_and(|plan| plan.id() == id && plan.is_forced());
    let (both, least) = match (is_shutting_down, is_forced) {
        // It does not go on as leader: who takes over without what is awaited here loses it.
        (true, _) => (LAST_STOP_AND_CONFIRM, LAST_LEAST_CONFIRM),
        (false, true) => (FORCED_STOP_AND_CONFIRM, LEAST_CONFIRM),
        (false, false) => (STOP_AND_CONFIRM, LEAST_CONFIRM),
    };
    both.saturating_sub(stop).max(least)
}

fn confirm_or_wait(
    turn: Turn<'_>,
    held: &Held,
    topology: &Topology,
    record: &SwitchoverRecord,
    shutdown_checkpoint: Lsn,
    left: Duration,
) -> Decision {
    let Some(member) = topology.members.get(&record.to) else {
        return roll_back(turn, held, topology, record.id);
    };
    if !member.is_trunkline() {
        return leave_to_patroni(turn, held, topology, record, shutdown_checkpoint, left);
    }
    let ready = member.trunkline.as_ref().and_then(|fields| fields.ready);
    let is_ready = ready.is_some_and(|SwitchoverReady { id, replayed }| {
        id == record.id && replayed > shutdown_checkpoint
    });
    if is_ready && member.lease != 0 {
        let action = Action::HandOver {
            to: record.to.clone(),
            lease: member.lease,
            record_revision: member.revision,
            position: shutdown_checkpoint,
        };
        return turn
            .act(Action::DisarmFence)
            .act(action)
            .now(Reason::HandingOver);
    }
    if left.is_zero() {
        return roll_back(turn, held, topology, record.id);
    }
    turn.within(Reason::SwitchoverWaitingForCandidate, left)
}

/// The key is deleted once the candidate says that it has the last record. Nothing was left in
/// `trunkline/switchover` that its leader would not know how to remove.
fn leave_to_patroni(
    turn: Turn<'_>,
    held: &Held,
    topology: &Topology,
    record: &SwitchoverRecord,
    shutdown_checkpoint: Lsn,
    left: Duration,
) -> Decision {
    let seen = turn.seen;
    if candidate::has_received(seen, &record.to, shutdown_checkpoint) {
        let turn = turn.act(Action::ClearSwitchover);
        return holding_lease::give_up(turn, Reason::HandingOver, Some(shutdown_checkpoint));
    }
    if left.is_zero() {
        return roll_back(turn, held, topology, record.id);
    }
    if candidate::answers(seen).is_none() {
        return turn.ask_peers();
    }
    turn.remember(|memory| memory.wants_peers = true)
        .within(Reason::SwitchoverWaitingForCandidate, ASK_AGAIN.min(left))
}

/// Whether the change is over for this member, though its record stands: it was rolled back, and PostgreSQL was started
/// since, or has crashed. What it does now is no part of it.
pub(super) fn is_over(turn: &Turn<'_>, record: &SwitchoverRecord, stopped: &Stopped) -> bool {
    let known = turn.decision.memory.switchover.as_ref();
    let finished = turn.seen.job.finished.as_ref();
    let was_started = finished.is_some_and(|job| job.kind == JobKind::Start);
    let has_crashed = stopped.crashed_at.is_some() && !stopped.is_clean;
    known.is_some_and(|change| change.id == record.id && change.is_rolled_back)
        && (was_started || has_crashed)
}

fn note_rolled_back(turn: Turn<'_>, id: u64) -> Turn<'_> {
    turn.remember(|memory| {
        if let Some(change) = memory.switchover.as_mut().filter(|change| change.id == id) {
            change.is_rolled_back = true;
        }
    })
}

/// Goes on as leader. Only while no hand-over can still be executed, and with enough of the lease left.
fn roll_back(turn: Turn<'_>, held: &Held, topology: &Topology, id: u64) -> Decision {
    let seen = turn.seen;
    let cannot_start = seen.fence.watchdog == WatchdogView::Failed;
    if seen.is_shutting_down || cannot_start {
        // Whoever leads next is measured by what was acknowledged here.
        let position = match &seen.local {
            Local::Stopped(stopped) if stopped.is_clean && stopped.was_primary => {
                Some(stopped.checkpoint)
            }
            Local::Stopped(_)
            | Local::Unknown(_)
            | Local::Empty
            | Local::Starting { .. }
            | Local::Running(_)
            | Local::Unresponsive { .. }
            | Local::Orphaned { .. } => None,
        };
        let back = seen.now + seen.settings().ttl;
        let (reason, stands_back_until) = match seen.is_shutting_down {
            true => (Reason::ReleasingForShutdown, None),
            false => (Reason::WatchdogNotReady, Some(back)),
        };
        return turn
            .remember(|memory| memory.stands_back_until = stands_back_until)
            .act(Action::DisarmFence)
            .act(Action::ClearSwitchover)
            .act(Action::ReleaseLeader { position })
            .now(reason);
    }
    let turn = note_rolled_back(turn, id);
    if seen.now.until(held.deadline) <= PROMOTE_NEEDS || !seen.fence.is_live {
        return turn.within(Reason::WaitingToPromote, RETRY_PAUSE);
    }
    // The start comes first: it needs no answer of the DCS, and clients wait for it.
    let turn = slots::count_anew(turn)
        .act(Action::ArmFence)
        .act(Action::Start(holding_lease::start_as(seen)));
    drop_request(turn, topology, id)
        .act(Action::ClearSwitchover)
        .act_within(ROLL_BACK_ACTION)
        .routine(Reason::SwitchoverRolledBack)
}

/// Nothing comes of the change of this id: the request that it comes of, if one does and stands, is not to begin it again.
pub(super) fn drop_request<'a>(turn: Turn<'a>, topology: &Topology, id: u64) -> Turn<'a> {
    let request = topology.failover.as_ref();
    match request.filter(|request| Plan::id_of(request) == id) {
        Some(request) => turn.act(Action::DropFailoverRequest {
            revision: request.revision,
        }),
        None => turn,
    }
}

#[cfg(test)]
mod tests {
    use super::is_change_under_way;
    use crate::decide::script::Scene;

    fn is_under_way(lines: &[&str]) -> bool {
        let mut scene = Scene::default();
        for line in lines {
            scene.take_text(line).unwrap();
        }
        let topology = scene.seen.topology().unwrap();
        is_change_under_way(&scene.seen.me.name, topology, &scene.memory)
    }

    #[test]
    fn a_change_is_under_way_from_its_first_step_to_its_end_for_both_who_take_part() {
        let asked = "failover leader=a candidate=b revision=20";
        // The checkpoint ahead, and everything that is announced.
        assert!(is_under_way(&["leader a", asked, "planned 20"]));
        assert!(is_under_way(&["leader a", "switchover from=a to=b"]));
        assert!(is_under_way(&["leader a", "switchover from=a to=a"]));
        let to_me = "switchover from=b to=a epoch=30 stage=stopped@0/1";
        assert!(is_under_way(&["leader b revision=30", to_me]));
        assert!(is_under_way(&["leader a revision=40", to_me]));
        // What waits for its time, is another's, or was left by a leader that is gone.
        assert!(!is_under_way(&["leader a", asked]));
        assert!(!is_under_way(&[
            "leader a",
            asked,
            "planned 7 stage=hold_all"
        ]));
        assert!(!is_under_way(&["leader a", "planned 20 stage=hold_all"]));
        assert!(!is_under_way(&["leader b", "switchover from=b to=c"]));
        let left = "switchover from=a to=c epoch=10";
        assert!(!is_under_way(&["leader b revision=30", left]));
        assert!(!is_under_way(&["leader none", left]));
    }
}
