//! The steps of a running primary towards its successor, none of which touches a client's work before it is known
//! that the change can succeed (`ha.md` 11, `router.md` 4): look at the candidate and the routers, a checkpoint,
//! look again, let routers hold new transactions until those that run have ended, let them hold everything, stop. A
//! restart of its PostgreSQL takes the same steps, and has no candidate (`restarting.rs`).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::router::HoldStage;
use trunkline_shared::cluster::switchover::{ChangeParts, Drain, OnTimeout};
use trunkline_shared::cluster::topology::{FailoverRequest, SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{MemberName, Topology};

use super::candidate::{self, Succession};
use super::decision::{Action, Decision, Detail, Reason, StopMode};
use super::memory::PlannedChange;
use super::observation::{JobKind, LeaseView, Local, Observation};
use super::requests::{drop_request, own_record};
use super::routers::{awaited, not_in_time, unacknowledged};
use super::{Turn, restarting};

/// How long routers hold new transactions until those that run have ended, where nobody says it.
const DRAIN: Duration = Duration::from_secs(5);

/// The same for an agent that ends: whoever ended it does not wait for long.
const DRAIN_FOR_SHUTDOWN: Duration = Duration::from_secs(2);

/// How long everything may be held until the last statements have ended: nobody's work goes on meanwhile. A router
/// that dies then is gone within a lease of two seconds, and up to half a second until etcd looks.
const HOLD_ALL_LIMIT: Duration = Duration::from_millis(2500);

/// The same where what has not ended is ended by the stop: only routers that are late to hold are waited for.
const HOLD_ALL_TO_TERMINATE: Duration = Duration::from_millis(500);

/// What follows the drain at the most before the key moves: [`HOLD_ALL_LIMIT`], and the stop with the candidate's
/// confirmation. Together with the drain it must fit in the time for which routers hold clients.
const AFTER_DRAIN: Duration = Duration::from_secs(4);

/// An agent that looks later than this beyond a limit was held up itself, and what routers said may be over: they let
/// their clients go at a time of their own.
const LATE: Duration = Duration::from_millis(500);

/// How long the checkpoint ahead is waited for. Without it the stop takes longer, and nothing else is different.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(60);
/// How long candidates have to catch up, from the first look at what they lack.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The longest that a change takes from its request to its end, by what its drain is asked to be: the checkpoint ahead, the
/// drain, and what follows.
pub fn longest(drain: Option<Duration>) -> Duration {
    CHECKPOINT_PATIENCE + drain.unwrap_or(DRAIN) + AFTER_DRAIN
}

/// A change that is asked for.
pub(super) struct Plan<'a> {
    /// What identifies it.
    id: u64,
    goal: Goal<'a>,
    drain: Duration,
    on_timeout: OnTimeout,
}

/// What is to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal<'a> {
    /// Another member leads, as an operator asked for it.
    Successor {
        /// Who, where that is said.
        named: Option<&'a MemberName>,
        how: Succession,
    },
    /// The agent ends, which nobody can refuse; another member leads if one can.
    End,
    /// This member leads on once its PostgreSQL was restarted.
    Restart,
}

/// What the steps towards a goal are called.
struct Words {
    checkpoint: Reason,
    announced: Reason,
    draining: Reason,
    holding: Reason,
    stopping: Reason,
}

impl Goal<'_> {
    fn words(self) -> Words {
        match self {
            Goal::Successor { .. } | Goal::End => Words {
                checkpoint: Reason::SwitchoverCheckpoint,
                announced: Reason::SwitchoverAnnounced,
                draining: Reason::SwitchoverDraining,
                holding: Reason::SwitchoverHolding,
                stopping: Reason::SwitchoverStopping,
            },
            Goal::Restart => Words {
                checkpoint: Reason::RestartCheckpoint,
                announced: Reason::RestartDraining,
                draining: Reason::RestartDraining,
                holding: Reason::RestartHolding,
                stopping: Reason::RestartRequested,
            },
        }
    }
}

impl<'a> Plan<'a> {
    /// As an operator asked for it.
    pub(super) fn asked(request: &'a FailoverRequest) -> Self {
        let named = request.candidate.as_ref();
        let is_failover = named.is_some() && request.leader.is_none();
        // Who asks for a failover, or to end what does not end, wants it to happen.
        let on_timeout = request.drain.on_timeout.unwrap_or(match is_failover {
            true => OnTimeout::Terminate,
            false => OnTimeout::GiveUp,
        });
        let how = match (is_failover, on_timeout) {
            (true, OnTimeout::GiveUp | OnTimeout::Terminate) => Succession::ByOperator,
            (false, OnTimeout::Terminate) => Succession::Urgent,
            (false, OnTimeout::GiveUp) => Succession::Planned,
        };
        Self {
            id: Self::id_of(request),
            goal: Goal::Successor { named, how },
            drain: request.drain.timeout.unwrap_or(DRAIN),
            on_timeout,
        }
    }

    /// A restart that an operator asked for.
    pub(super) fn restart(id: u64, asked: Drain) -> Self {
        Self {
            id,
            goal: Goal::Restart,
            drain: asked.timeout.unwrap_or(DRAIN),
            on_timeout: asked.on_timeout.unwrap_or(OnTimeout::GiveUp),
        }
    }

    fn is_restart(&self) -> bool {
        self.goal == Goal::Restart
    }

    /// What identifies the plan of a request.
    pub(super) fn id_of(request: &FailoverRequest) -> u64 {
        u64::try_from(request.revision).unwrap_or(0)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether what is in the way is ended rather than the change given up.
    pub(super) fn is_forced(&self) -> bool {
        self.on_timeout == OnTimeout::Terminate
    }

    /// Of an agent that ends, in the epoch of this revision. What it has announced already it goes on with.
    pub(super) fn for_shutdown(revision: i64, announced: Option<&SwitchoverRecord>) -> Self {
        let new = u64::try_from(revision).unwrap_or(0);
        Self {
            id: announced.map_or(new, |record| record.id),
            goal: Goal::End,
            drain: DRAIN_FOR_SHUTDOWN,
            on_timeout: OnTimeout::Terminate,
        }
    }
}

/// The next step: a decision, or nothing but to wait, while the leader goes on with everything else.
pub(super) fn step<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    plan: &Plan<'_>,
) -> ControlFlow<Decision, Turn<'a>> {
    let known = turn.decision.memory.switchover.as_ref();
    if known.is_some_and(|change| change.id == plan.id && change.is_rolled_back) {
        return ControlFlow::Break(remove_traces(turn, topology, plan));
    }
    let announced = own_record(turn.seen, topology)
        .filter(|record| record.id == plan.id && record.is_restart() == plan.is_restart());
    let Some(record) = announced else {
        return before_announcing(turn, topology, plan);
    };
    let (turn, change) = follow(turn, record);
    let Some(change) = change else {
        return ControlFlow::Break(begun_by_another_agent(turn, topology, plan));
    };
    match record.stage {
        SwitchoverStage::HoldTransactions => drain(turn, topology, plan, record, &change),
        SwitchoverStage::HoldAll => ControlFlow::Break(hold(turn, topology, plan, record, &change)),
        SwitchoverStage::Stopped { .. } | SwitchoverStage::Resume => {
            ControlFlow::Break(remove_traces(turn, topology, plan))
        }
    }
}

/// This leader runs again: the change was rolled back before its traces were removed.
fn remove_traces(turn: Turn<'_>, topology: &Topology, plan: &Plan<'_>) -> Decision {
    let turn = drop_request(turn, topology, plan.id).act(Action::ClearSwitchover);
    turn.now(Reason::SwitchoverRolledBack)
}

/// How far the change has come as this member remembers it; `None` where the agent that announced it is gone: since
/// when clients are held is known to nobody then.
pub(super) fn follow<'a>(
    turn: Turn<'a>,
    record: &SwitchoverRecord,
) -> (Turn<'a>, Option<PlannedChange>) {
    let known = turn.decision.memory.switchover.as_ref();
    let Some(known) = known.filter(|change| change.id == record.id) else {
        return (turn, None);
    };
    let since = match record.stage {
        _ if known.stage == Some(record.stage) => known.since,
        // The write that was to end the drain has not come through: what was held before it counts.
        SwitchoverStage::HoldTransactions => known
            .since
            .before(known.parts.hold_transactions.unwrap_or_default()),
        SwitchoverStage::HoldAll => known.since,
        SwitchoverStage::Stopped { .. } | SwitchoverStage::Resume => turn.seen.now,
    };
    let change = PlannedChange {
        stage: Some(record.stage),
        since,
        ..known.clone()
    };
    let kept = change.clone();
    let turn = turn.remember(|memory| memory.switchover = Some(kept));
    (turn, Some(change))
}

/// Nothing stands of it any more. Until then what is remembered lets a write that failed be tried again at once.
pub(super) fn forget(turn: Turn<'_>) -> Turn<'_> {
    turn.remember(|memory| memory.switchover = None)
}

/// Whatever speaks against the change is found here, while nobody is touched.
fn before_announcing<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    plan: &Plan<'_>,
) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    let LeaseView::Held(held) = seen.lease else {
        return ControlFlow::Break(turn.routine(Reason::ConfirmingLease));
    };
    let known = turn.decision.memory.switchover.clone();
    let begun = known.filter(|change| change.id == plan.id && change.stage.is_none());
    let waited = begun.as_ref().map(|change| seen.now.since(change.since));
    let runs = is_checkpoint_running(seen);
    if let Some(left) = waited.and_then(|waited| CHECKPOINT_PATIENCE.checked_sub(waited))
        && runs
    {
        let turn = turn.because_of(plan.goal.words().checkpoint, Detail::None);
        return ControlFlow::Continue(turn.soon(left));
    }
    if !plan.is_restart() && candidate::answers(seen).is_none() {
        return ControlFlow::Break(turn.ask_peers());
    }
    let to = match (
        chosen(seen, topology, plan),
        holds_too_shortly(topology, plan),
    ) {
        (Err(why), None) if may_catch_up(&turn, &why, waited, plan) => {
            return match begun {
                None => ControlFlow::Break(checkpoint_ahead(turn, plan, runs)),
                Some(_) => {
                    let turn = turn.because_of(plan.goal.words().checkpoint, why);
                    ControlFlow::Continue(turn.soon(LOOK_AGAIN))
                }
            };
        }
        (Err(why), _) | (Ok(_), Some(why)) => {
            return ControlFlow::Break(refuse(turn.detail(why), topology, plan));
        }
        (Ok(to), None) => to,
    };
    if begun.is_none() {
        return ControlFlow::Break(checkpoint_ahead(turn, plan, runs));
    }
    let parts = ChangeParts {
        checkpoint: waited,
        ..ChangeParts::default()
    };
    let record = SwitchoverRecord {
        id: plan.id,
        epoch: held.epoch,
        from: seen.me.name.clone(),
        to,
        // Where no router is registered there is nothing to drain.
        stage: match topology.routers.is_empty() {
            true => SwitchoverStage::HoldAll,
            false => SwitchoverStage::HoldTransactions,
        },
        parts: ChangeParts::default(),
    };
    let was_streaming = streams_from_here(seen, &record.to);
    let turn = match plan.is_restart() {
        true => turn,
        false => turn.detail(Detail::Member(record.to.clone())),
    };
    let turn = announce(turn, record, was_streaming, parts);
    ControlFlow::Break(turn.now(plan.goal.words().announced))
}

/// Whether it is too early to refuse a change for what its candidates lack. They show what they had in their last turn,
/// and the request for the change has woken them; after a restart of their leader they connect to it anew.
fn may_catch_up(
    turn: &Turn<'_>,
    lacking: &Detail,
    waited: Option<Duration>,
    plan: &Plan<'_>,
) -> bool {
    let may = matches!(lacking, Detail::Lacks(..)) || restarting::is_just_over(turn);
    match plan.goal {
        Goal::Successor { .. } => may && waited.is_none_or(|waited| waited < CATCH_UP),
        Goal::End | Goal::Restart => false,
    }
}

/// Who is to lead then, or who lacks what.
fn chosen(seen: &Observation, topology: &Topology, plan: &Plan<'_>) -> Result<MemberName, Detail> {
    let (named, how) = match plan.goal {
        Goal::Successor { named, how } => (named, how),
        Goal::End => (None, Succession::Planned),
        Goal::Restart => return Ok(seen.me.name.clone()),
    };
    candidate::successor(seen, topology, &seen.settings(), named, how)
}

fn is_checkpoint_running(seen: &Observation) -> bool {
    let running = seen.job.running.as_ref();
    running.is_some_and(|job| job.kind == JobKind::Checkpoint)
}

/// What would otherwise be written while everybody waits.
fn checkpoint_ahead(turn: Turn<'_>, plan: &Plan<'_>, runs: bool) -> Decision {
    let change = PlannedChange {
        id: plan.id,
        is_restart: plan.is_restart(),
        stage: None,
        since: turn.seen.now,
        was_streaming: false,
        parts: ChangeParts::default(),
        is_rolled_back: false,
    };
    let turn = turn.remember(|memory| memory.switchover = Some(change));
    match runs {
        true => turn.routine(plan.goal.words().checkpoint),
        false => turn
            .act(Action::Checkpoint)
            .routine(plan.goal.words().checkpoint),
    }
}

fn announce<'a>(
    turn: Turn<'a>,
    record: SwitchoverRecord,
    was_streaming: bool,
    parts: ChangeParts,
) -> Turn<'a> {
    let change = PlannedChange {
        id: record.id,
        is_restart: record.is_restart(),
        stage: Some(record.stage),
        since: turn.seen.now,
        was_streaming,
        parts,
        is_rolled_back: false,
    };
    turn.remember(|memory| memory.switchover = Some(change))
        .act(Action::AnnounceSwitchover(Arc::new(record)))
}

fn refuse(turn: Turn<'_>, topology: &Topology, plan: &Plan<'_>) -> Decision {
    match plan.goal {
        Goal::Successor { .. } => {
            drop_request(turn, topology, plan.id).now(Reason::SwitchoverRefused)
        }
        // The agent ends and nobody can take over: the stop goes on without a successor.
        Goal::End => turn
            .act(Action::Stop(StopMode::Planned))
            .routine(Reason::StoppingForShutdown),
        Goal::Restart => forget(turn).request_taken().now(Reason::RequestRefused),
    }
}

/// Clients that are held longer than their router holds them would get an error, which a planned change spares them.
/// Neither a change that ends what is in its way nor the end of an agent is refused for that.
fn holds_too_shortly(topology: &Topology, plan: &Plan<'_>) -> Option<Detail> {
    let may_be_refused = match plan.goal {
        Goal::Successor { how, .. } => how != Succession::ByOperator,
        Goal::End => false,
        Goal::Restart => true,
    };
    if !may_be_refused || plan.is_forced() {
        return None;
    }
    let needed = plan.drain + AFTER_DRAIN;
    let shortest = topology.routers.iter().min_by_key(|(_, r)| r.hold_timeout);
    let (name, router) = shortest.filter(|(_, router)| router.hold_timeout < needed)?;
    Some(Detail::Text(Arc::from(format!(
        "router {name} holds clients for {:?} at the most and the change may take {needed:?}: ask for a drain_timeout \
         that is shorter by that, or raise the router's switchover.hold_timeout",
        router.hold_timeout
    ))))
}

/// New transactions are held; single statements go on.
fn drain<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    plan: &Plan<'_>,
    record: &SwitchoverRecord,
    change: &PlannedChange,
) -> ControlFlow<Decision, Turn<'a>> {
    if let Some(why) = candidate_is_lost(turn.seen, topology, record, change) {
        return ControlFlow::Break(give_up(turn.detail(why), topology, plan));
    }
    let waited = turn.seen.now.since(change.since);
    let missing = unacknowledged(topology, record, HoldStage::Transactions);
    let is_over = waited >= plan.drain;
    if !missing.is_empty() && !is_over {
        let turn = turn.because_of(plan.goal.words().draining, awaited(&missing));
        return ControlFlow::Continue(turn.soon(plan.drain - waited));
    }
    let is_late = waited >= plan.drain + LATE;
    if (!missing.is_empty() || is_late) && plan.on_timeout == OnTimeout::GiveUp {
        let why = not_in_time(&missing, plan.drain);
        return ControlFlow::Break(give_up(turn.detail(why), topology, plan));
    }
    let parts = ChangeParts {
        hold_transactions: Some(waited),
        ..change.parts
    };
    let next = SwitchoverRecord {
        stage: SwitchoverStage::HoldAll,
        ..record.clone()
    };
    let turn = turn.detail(awaited(&missing));
    let turn = announce(turn, next, change.was_streaming, parts);
    ControlFlow::Break(turn.now(plan.goal.words().holding))
}

/// Everything new is held; the last statements end. Nothing else is done meanwhile: each moment counts.
fn hold(
    turn: Turn<'_>,
    topology: &Topology,
    plan: &Plan<'_>,
    record: &SwitchoverRecord,
    change: &PlannedChange,
) -> Decision {
    if let Some(why) = candidate_is_lost(turn.seen, topology, record, change) {
        return give_up(turn.detail(why), topology, plan);
    }
    let waited = turn.seen.now.since(change.since);
    let missing = unacknowledged(topology, record, HoldStage::All);
    let limit = match plan.on_timeout {
        OnTimeout::GiveUp => HOLD_ALL_LIMIT,
        OnTimeout::Terminate => HOLD_ALL_TO_TERMINATE,
    };
    if !missing.is_empty() && waited < limit {
        let turn = turn.detail(awaited(&missing));
        return turn.within(plan.goal.words().holding, limit - waited);
    }
    if waited >= limit && plan.on_timeout == OnTimeout::GiveUp {
        return give_up(turn.detail(not_in_time(&missing, limit)), topology, plan);
    }
    if plan.is_restart() {
        // What routers hold is in the record until PostgreSQL runs again; nothing else is left to be decided.
        let turn = forget(turn).request_taken();
        return turn
            .act(Action::Stop(StopMode::HandOver))
            .routine(plan.goal.words().stopping);
    }
    let parts = ChangeParts {
        hold_all: Some(waited),
        ..change.parts
    };
    let change = PlannedChange {
        parts,
        ..change.clone()
    };
    turn.remember(|memory| memory.switchover = Some(change))
        .act(Action::Stop(StopMode::HandOver))
        .routine(plan.goal.words().stopping)
}

/// Called off before PostgreSQL was touched: clients go on at once.
fn give_up(turn: Turn<'_>, topology: &Topology, plan: &Plan<'_>) -> Decision {
    let turn = drop_request(turn, topology, plan.id).act(Action::ClearSwitchover);
    match plan.goal {
        Goal::Successor { .. } => turn.now(Reason::SwitchoverGivenUp),
        Goal::End => turn
            .act(Action::Stop(StopMode::Planned))
            .routine(Reason::StoppingForShutdown),
        Goal::Restart => forget(turn).request_taken().now(Reason::RestartGivenUp),
    }
}

/// The limits count from what only the agent before knew, and what routers said then may be over.
pub(super) fn begun_by_another_agent(
    turn: Turn<'_>,
    topology: &Topology,
    plan: &Plan<'_>,
) -> Decision {
    if matches!(plan.goal, Goal::End) {
        // It ends by a change of its own, which the next turn begins.
        let turn = forget(turn).act(Action::ClearSwitchover);
        return turn.now(Reason::StoppingForShutdown);
    }
    let why = "this member began anew, or had to write its leader key again, in the middle of it; ask again";
    give_up(turn.detail(Detail::Text(why.into())), topology, plan)
}

/// What happened to the candidate since the change was announced, as far as it can be seen from here.
fn candidate_is_lost(
    seen: &Observation,
    topology: &Topology,
    record: &SwitchoverRecord,
    change: &PlannedChange,
) -> Option<Detail> {
    if record.is_restart() {
        return None;
    }
    let to = &record.to;
    if !topology.members.contains_key(to) {
        let why = format!("{to} is not registered any more");
        return Some(Detail::Text(why.into()));
    }
    if change.was_streaming && !streams_from_here(seen, to) {
        let why = format!("{to} does not stream from here any more");
        return Some(Detail::Text(why.into()));
    }
    None
}

fn streams_from_here(seen: &Observation, name: &MemberName) -> bool {
    let Local::Running(running) = &seen.local else {
        return false;
    };
    let mut senders = running.commits.senders.iter();
    senders.any(|sender| sender.is_streaming && sender.name == *name)
}
