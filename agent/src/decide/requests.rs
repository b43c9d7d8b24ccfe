//! Planned changes of leader: preconditions and steps (`ha.md` 11).
//!
//! The steps stand in `trunkline/switchover`, so that an agent that restarts in the middle goes on:
//! announced → stopped (with the last record's position) → the candidate confirms it in its own record →
//! the key moves by one transaction. Before the move everything rolls back; after it nothing does. A candidate
//! run by Patroni confirms nothing and takes no key that is moved to it: it is asked for its position, and the
//! key is deleted beside the operator's request, which it takes up by its own rules.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::member::SwitchoverReady;
use trunkline_shared::cluster::topology::{FailoverRequest, SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{Lsn, MemberName, Moment, Topology};

use super::candidate::{self, Succession};
use super::decision::{Action, Decision, Detail, Reason, StopMode};
use super::observation::{Due, Held, LeaseView, Observation, Stopped};
use super::{PROMOTE_NEEDS, RETRY_PAUSE, Turn, holding_lease};

/// How long the stopped leader waits for the candidate to confirm before it goes on as leader. Within the
/// ten seconds that routers hold clients.
const CONFIRM_LIMIT: Duration = Duration::from_secs(4);

/// How soon a candidate that Patroni runs is asked again for its position.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The switchover that this member, as old leader, has announced.
pub(super) fn own_switchover<'a>(
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

/// What an operator asked of the cluster, as the leader that is a running primary takes it up.
pub(super) fn as_leader<'a>(
    turn: Turn<'a>,
    topology: &Topology,
) -> ControlFlow<Decision, Turn<'a>> {
    let me = &turn.seen.me.name;
    let Some(request) = &topology.failover else {
        return clear_leftover(turn, topology);
    };
    let drop = Action::DropFailoverRequest {
        revision: request.revision,
    };
    let id = u64::try_from(request.revision).unwrap_or(0);
    let is_done = topology
        .switchover
        .as_ref()
        .is_some_and(|r| r.id == id && r.to == *me);
    if is_done || request.candidate.as_ref() == Some(me) {
        // The change has brought this member here, or it was asked for where it leads already.
        return ControlFlow::Break(turn.act(drop).now(Reason::Leading));
    }
    let is_begun = own_switchover(turn.seen, topology).is_some_and(|record| record.id == id);
    match waits_for(turn.seen, request, is_begun) {
        None => {}
        Some(Ok(left)) => return ControlFlow::Continue(turn.soon(left)),
        Some(Err(why)) => {
            let turn = turn.detail(Detail::Text(why.into())).act(drop);
            return ControlFlow::Break(turn.now(Reason::SwitchoverRefused));
        }
    }
    if let Some(other) = request.leader.as_ref().filter(|leader| *leader != me) {
        let detail = Detail::Member(other.clone());
        return ControlFlow::Break(turn.detail(detail).act(drop).now(Reason::SwitchoverRefused));
    }
    let named = request.candidate.as_ref();
    ControlFlow::Break(hand_over(turn, topology, id, named, Some(drop)))
}

/// A scheduled change waits for its time; one that nobody could begin in time is dropped, as Patroni does: what
/// was meant for the quiet hour must not happen in the busy one.
pub(super) fn waits_for(
    seen: &Observation,
    request: &FailoverRequest,
    is_begun: bool,
) -> Option<Result<Duration, String>> {
    let at = request.scheduled_at.as_ref().filter(|_| !is_begun)?;
    let limit = seen.settings().loop_wait * 3 / 2;
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

/// A record that nobody's request stands behind any more is removed.
fn clear_leftover<'a>(turn: Turn<'a>, topology: &Topology) -> ControlFlow<Decision, Turn<'a>> {
    match &topology.switchover {
        Some(record) if !turn.seen.is_shutting_down => {
            let detail = Detail::Member(record.to.clone());
            let turn = turn.detail(detail).act(Action::ClearSwitchover);
            ControlFlow::Break(turn.now(Reason::Leading))
        }
        Some(_) | None => ControlFlow::Continue(turn),
    }
}

/// The steps of a running primary towards its successor: ask, announce, stop.
pub(super) fn hand_over(
    turn: Turn<'_>,
    topology: &Topology,
    id: u64,
    named: Option<&MemberName>,
    on_refusal: Option<Action>,
) -> Decision {
    let seen = turn.seen;
    let LeaseView::Held(held) = seen.lease else {
        return turn.routine(Reason::ConfirmingLease);
    };
    let announced = own_switchover(seen, topology).filter(|record| record.id == id);
    match announced.map(|record| record.stage) {
        Some(SwitchoverStage::HoldTransactions | SwitchoverStage::HoldAll) => turn
            .act(Action::Stop(StopMode::Planned))
            .routine(Reason::SwitchoverStopping),
        Some(SwitchoverStage::Stopped { .. } | SwitchoverStage::Resume) => {
            // This leader runs again: the change was rolled back before its traces were removed.
            let turn = on_refusal.into_iter().fold(turn, Turn::act);
            turn.act(Action::ClearSwitchover)
                .now(Reason::SwitchoverRolledBack)
        }
        None => {
            if candidate::answers(seen).is_none() {
                return turn.ask_peers();
            }
            let is_failover = topology
                .failover
                .as_ref()
                .is_some_and(|request| named.is_some() && request.leader.is_none());
            let how = if is_failover {
                Succession::ByOperator
            } else {
                Succession::Planned
            };
            match candidate::successor(seen, topology, &seen.settings(), named, how) {
                Err(detail) => refuse(turn.detail(detail), on_refusal),
                Ok(to) => {
                    let record = SwitchoverRecord {
                        id,
                        epoch: held.epoch,
                        from: seen.me.name.clone(),
                        to: to.clone(),
                        stage: SwitchoverStage::HoldAll,
                    };
                    turn.detail(Detail::Member(to))
                        .act(Action::AnnounceSwitchover(Arc::new(record)))
                        .now(Reason::SwitchoverAnnounced)
                }
            }
        }
    }
}

fn refuse(turn: Turn<'_>, on_refusal: Option<Action>) -> Decision {
    match on_refusal {
        Some(drop) => turn.act(drop).now(Reason::SwitchoverRefused),
        // The agent ends and nobody can take over: the stop goes on without a successor.
        None => turn
            .act(Action::Stop(StopMode::Planned))
            .routine(Reason::StoppingForShutdown),
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
    let seen = turn.seen;
    let since = match turn.decision.memory.switchover {
        Some((id, since)) if id == record.id => since,
        _ => seen.now,
    };
    let turn = turn
        .remember(|memory| memory.switchover = Some((record.id, since)))
        .detail(Detail::Member(record.to.clone()));
    if !stopped.is_clean || !stopped.was_primary {
        return roll_back(turn, held, topology);
    }
    match record.stage {
        SwitchoverStage::HoldTransactions | SwitchoverStage::HoldAll => {
            let stage = SwitchoverStage::Stopped {
                shutdown_checkpoint: stopped.checkpoint,
            };
            let stopped = SwitchoverRecord {
                stage,
                ..SwitchoverRecord::clone(record)
            };
            turn.act(Action::AnnounceSwitchover(Arc::new(stopped)))
                .now(Reason::SwitchoverStopped)
        }
        SwitchoverStage::Stopped {
            shutdown_checkpoint,
        } => confirm_or_wait(turn, held, topology, record, shutdown_checkpoint, since),
        SwitchoverStage::Resume => roll_back(turn, held, topology),
    }
}

fn confirm_or_wait(
    turn: Turn<'_>,
    held: &Held,
    topology: &Topology,
    record: &SwitchoverRecord,
    shutdown_checkpoint: Lsn,
    since: Moment,
) -> Decision {
    let seen = turn.seen;
    let Some(member) = topology.members.get(&record.to) else {
        return roll_back(turn, held, topology);
    };
    if !member.is_trunkline() {
        return leave_to_patroni(turn, held, topology, record, shutdown_checkpoint, since);
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
    let waited = seen.now.since(since);
    if waited >= CONFIRM_LIMIT {
        return roll_back(turn, held, topology);
    }
    turn.within(
        Reason::SwitchoverWaitingForCandidate,
        CONFIRM_LIMIT - waited,
    )
}

/// The key is deleted once the candidate says that it has the last record. Nothing was left in
/// `trunkline/switchover` that its leader would not know how to remove.
fn leave_to_patroni(
    turn: Turn<'_>,
    held: &Held,
    topology: &Topology,
    record: &SwitchoverRecord,
    shutdown_checkpoint: Lsn,
    since: Moment,
) -> Decision {
    let seen = turn.seen;
    if candidate::has_received(seen, &record.to, shutdown_checkpoint) {
        let turn = turn.act(Action::ClearSwitchover);
        return holding_lease::give_up(turn, Reason::HandingOver, Some(shutdown_checkpoint));
    }
    let waited = seen.now.since(since);
    if waited >= CONFIRM_LIMIT {
        return roll_back(turn, held, topology);
    }
    if candidate::answers(seen).is_none() {
        return turn.ask_peers();
    }
    turn.remember(|memory| memory.wants_peers = true).within(
        Reason::SwitchoverWaitingForCandidate,
        ASK_AGAIN.min(CONFIRM_LIMIT - waited),
    )
}

/// Goes on as leader. Only while no hand-over can still be executed, and with enough of the lease left.
fn roll_back(turn: Turn<'_>, held: &Held, topology: &Topology) -> Decision {
    let seen = turn.seen;
    if seen.is_shutting_down {
        return turn
            .act(Action::ClearSwitchover)
            .act(Action::DisarmFence)
            .act(Action::ReleaseLeader { position: None })
            .now(Reason::ReleasingForShutdown);
    }
    if seen.now.until(held.deadline) <= PROMOTE_NEEDS || !seen.fence.is_live {
        return turn.within(Reason::WaitingToPromote, RETRY_PAUSE);
    }
    let turn = match &topology.failover {
        Some(request) => turn.act(Action::DropFailoverRequest {
            revision: request.revision,
        }),
        None => turn,
    };
    turn.act(Action::ClearSwitchover)
        .act(Action::ArmFence)
        .act(Action::Start(holding_lease::start_as(seen)))
        .routine(Reason::SwitchoverRolledBack)
}
