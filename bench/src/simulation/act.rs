//! Actions turned into events, in their order; the first that fails ends the turn.

use trunkline_agent::decide::decision::{StartAs, StopMode, Upstream};
use trunkline_agent::decide::observation::{JobKind, WatchdogView};
use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_agent::decide::{Action, PROMOTE_NEEDS};
use trunkline_agent::watchdog::may_count;
use trunkline_shared::cluster::timeline::TimelineEnd;
use trunkline_shared::cluster::{LeaderEpoch, MemberName, Timeline};

use super::event::{NodeId, Time};
use super::fake_postgres::Phase;
use super::node::Trusted;
use super::requests::{Ask, Purpose, Reply};
use super::story::{Actor, tell};
use super::world::World;

/// How an action went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    Done,
    /// The answer of the DCS will tell.
    Waits,
    Failed,
}

fn went(is_done: bool) -> Went {
    if is_done { Went::Done } else { Went::Failed }
}

impl World {
    /// Performs actions until one has to wait, one fails, or the turn is over.
    pub(super) fn next_action(&mut self, node: NodeId) {
        loop {
            let agent = &mut self.node_mut(node).agent;
            let Some(action) = agent.actions.get(agent.step).cloned() else {
                return self.end_turn(node, false);
            };
            agent.step += 1;
            match self.perform(node, &action) {
                Went::Done => {}
                Went::Waits => return,
                Went::Failed => {
                    tell!(self, Actor::Agent(node), "failed: {}", action.word());
                    return self.end_turn(node, true);
                }
            }
        }
    }

    fn judge_store(&mut self, node: NodeId, action: &Action) -> Went {
        if let Action::DoubtStore { name, told } = action {
            let this = self.node(node);
            if this.run_dir.store.belief.generation <= this.agent.decided_at {
                let why = format!("{name} knows more").into();
                self.begin_doubt(node, why, Some(*told));
            }
        } else {
            let (at, incarnation) = (self.now, self.store.incarnation);
            let this = self.node_mut(node);
            this.run_dir.store.is_trusted = true;
            let met = this.agent.met;
            this.agent.trusted = Trusted {
                at,
                incarnation,
                met,
            };
        }
        Went::Done
    }

    fn perform(&mut self, node: NodeId, action: &Action) -> Went {
        match action {
            Action::AcquireLeader
            | Action::ConfirmLeader
            | Action::ReassertLeader
            | Action::ReleaseLeader { .. }
            | Action::HandOver { .. }
            | Action::ClaimBootstrap
            | Action::RecordSystemId(_)
            | Action::PublishStatus(_)
            | Action::RecordHistory
            | Action::RecordChange(_)
            | Action::DropFailoverRequest { .. }
            | Action::RequestSwitchover(_)
            | Action::AnnounceSwitchover(_)
            | Action::ClearSwitchover
            | Action::WriteDisarmed
            | Action::RemoveDisarmed
            | Action::RemoveDisarmedOf(..)
            | Action::WriteSync(_)
            | Action::RenewSync(_)
            | Action::DeleteSync { .. }
            | Action::PublishFailsafe(_)
            | Action::SwitchFailsafeOn
            | Action::RestoreConfig
            | Action::RecreateKeys { .. }
            | Action::ClaimTimeline(_) => self.ask_dcs(node, action),
            Action::DoubtStore { .. } | Action::TrustStore => self.judge_store(node, action),
            Action::SetSyncNames(names) => self.set_names(node, Some(names.clone())),
            Action::ClearSyncNames => self.set_names(node, None),
            Action::OpenClientAccess => {
                self.let_clients_in(node);
                Went::Done
            }
            Action::ArmFence => self.arm(node),
            Action::DisarmFence => self.disarm(node),
            Action::Initialize => self.begin_job(node, JobKind::Initialize, None),
            Action::FinishBootstrap => self.begin_job(node, JobKind::FinishBootstrap, None),
            Action::Start(start) => self.start(node, start),
            Action::Stop(mode) => self.stop(node, *mode),
            Action::Promote(timeline) => self.promote(node, *timeline),
            Action::Checkpoint => self.begin_job(node, JobKind::Checkpoint, None),
            Action::CutWal(ends) => self.cut_wal(node, ends),
            Action::Follow(upstream) => self.follow(node, upstream),
            Action::Clone(upstream) => self.begin_copy(node, JobKind::Clone, upstream),
            Action::Rewind(upstream) => self.begin_copy(node, JobKind::Rewind, upstream),
            Action::CancelJob => {
                self.cancel_job(node);
                Went::Done
            }
            Action::LetLeaseLapse(lapse) => self.let_lease_lapse(node, *lapse),
            Action::CloneWithoutLeader => self.begin_job(node, JobKind::Clone, None),
            // No client of the simulation holds replay up.
            Action::CallBack(..) | Action::EndReplayConflicts => Went::Done,
            Action::CompareHistory(_) => self.begin_job(node, JobKind::CompareHistory, None),
            Action::CopyLogicalSlots { from, .. } => {
                self.begin_copy(node, JobKind::CopySlots, from)
            }
            Action::TendLogicalSlots(care) => {
                self.node_mut(node).agent.slot_care = care.clone();
                self.begin_job(node, JobKind::TendSlots, None)
            }
            Action::RunPrePromote => self.begin_job(node, JobKind::PrePromote, None),
            Action::DiscardBootstrap => self.begin_job(node, JobKind::DiscardBootstrap, None),
            Action::CreateSlots(names) => went(self.create_slots(node, names)),
            Action::SetSynchronizedSlots(names) => went(self.set_synchronized_slots(node, names)),
            Action::DropSlots(names) => went(self.drop_slots(node, names)),
            Action::AdvanceSlots(slots) => went(self.advance_slots(node, slots)),
        }
    }

    // The DCS.

    fn ask_dcs(&mut self, node: NodeId, action: &Action) -> Went {
        let turn = self.node(node).agent.turn;
        if *action == Action::ConfirmLeader {
            let agent = &self.node(node).agent;
            let key = agent.view.as_ref().and_then(|view| view.leader.as_ref());
            let Some(lease) = key.map(|leader| leader.lease).filter(|lease| *lease != 0) else {
                return Went::Failed;
            };
            self.send(node, Ask::KeepAlive(lease), Purpose::Confirm { turn });
            return Went::Waits;
        }
        if matches!(
            action,
            Action::HandOver { .. } | Action::ReleaseLeader { .. }
        ) {
            self.node_mut(node).agent.lease.state.hand_over_sent();
        }
        if let (Action::RecordSystemId(_), Some(data)) =
            (action, &mut self.node_mut(node).postgres.data)
        {
            data.is_unfinished = false;
        }
        if matches!(action, Action::PublishFailsafe(_)) {
            self.list_is_pending(node);
        }
        if let Action::RecreateKeys { generation } = action {
            let Some(txn) = self.recreation(node, *generation) else {
                return Went::Failed;
            };
            self.node_mut(node).agent.lease.is_moving = true;
            self.send(node, Ask::Recreate(txn), Purpose::Action { turn });
            return Went::Waits;
        }
        match self.transaction(node, action) {
            Some(txn) => {
                let lease = &mut self.node_mut(node).agent.lease;
                lease.ordered = (lease.sent, lease.term);
                self.send(node, Ask::Commit(txn), Purpose::Action { turn });
                Went::Waits
            }
            None => Went::Failed,
        }
    }

    /// The DCS answered an action's transaction, or the time for it is over.
    pub(super) fn action_answered(&mut self, node: NodeId, at: usize, turn: u32) {
        let agent = &self.node(node).agent;
        if agent.turn != turn || !agent.is_in_turn {
            return;
        }
        let Some(action) = agent.actions.get(agent.step.wrapping_sub(1)).cloned() else {
            return;
        };
        let is_done = match self.requests[at].reply {
            Reply::Committed(Some(revision)) => {
                self.committed(node, &action, revision, at);
                true
            }
            Reply::Recreated(revision, lease) => {
                self.recreated(node, at, revision, lease);
                true
            }
            Reply::Committed(None) => {
                if matches!(
                    action,
                    Action::HandOver { .. } | Action::ReleaseLeader { .. }
                ) {
                    self.node_mut(node).agent.lease.changes += 1;
                    self.node_mut(node).agent.lease.state.hand_over_failed();
                }
                if matches!(action, Action::PublishFailsafe(_)) {
                    self.list_was_not_written(node, true);
                }
                false
            }
            Reply::None if matches!(action, Action::PublishFailsafe(_)) => {
                self.list_was_not_written(node, false);
                false
            }
            Reply::None | Reply::Granted(_) | Reply::Alive(_) | Reply::Leader(_) => false,
        };
        self.action_ends(node, turn, is_done);
    }

    /// The leader key is this node's.
    pub(super) fn count_taken(&mut self, node: NodeId, revision: i64, at: usize) {
        self.key_is_of(node, at);
        let term = self.requests[at].term;
        let epoch = LeaderEpoch {
            generation: self.store.head.generation,
            revision,
        };
        let ttl = self.plan.ttl;
        let may_move_on = self.node(node).may_move_on(self.now);
        let lease = &mut self.node_mut(node).agent.lease;
        lease.changes += 1;
        // A keep-alive answered by another term proves nothing about the lease's length, and without a fence it
        // counts for nothing: the next renewal will.
        let (sent, of_term) = lease.ordered;
        if of_term == term && may_move_on {
            lease.state.acquired(epoch, sent, ttl);
        } else {
            self.ask_for_lease(node);
        }
        self.move_deadline(node);
        self.note_epoch(node);
        tell!(
            self,
            Actor::Agent(node),
            "holds the leader key of revision {revision}"
        );
    }

    fn stands_as(&mut self, node: NodeId, revision: i64) {
        let generation = self.store.head.generation;
        let state = &mut self.node_mut(node).agent.lease.state;
        if let Some(held) = state.held() {
            let epoch = LeaderEpoch {
                generation,
                revision,
            };
            state.written_again(held.epoch, epoch);
        }
    }

    fn committed(&mut self, node: NodeId, action: &Action, revision: i64, at: usize) {
        match action {
            Action::AcquireLeader | Action::ReassertLeader | Action::ClaimBootstrap => {
                if *action == Action::ReassertLeader {
                    self.stands_as(node, revision);
                }
                self.key_was_written(node, action, revision);
                self.count_taken(node, revision, at);
            }
            Action::ReleaseLeader { .. } | Action::HandOver { .. } => {
                self.node_mut(node).agent.lease.changes += 1;
                self.node_mut(node).agent.lease.state.given_up();
                self.forget_authority(node);
                tell!(self, Actor::Agent(node), "has given the leader key up");
            }
            Action::WriteSync(_)
            | Action::RenewSync(_)
            | Action::DeleteSync { .. }
            | Action::SetSyncNames(_)
            | Action::ClearSyncNames
            | Action::OpenClientAccess
            | Action::ConfirmLeader
            | Action::RecordSystemId(_)
            | Action::PublishStatus(_)
            | Action::RecordHistory
            | Action::RecordChange(_)
            | Action::DropFailoverRequest { .. }
            | Action::RequestSwitchover(_)
            | Action::AnnounceSwitchover(_)
            | Action::ClearSwitchover
            | Action::WriteDisarmed
            | Action::RemoveDisarmed
            | Action::RemoveDisarmedOf(..)
            | Action::ClaimTimeline(_)
            | Action::ArmFence
            | Action::DisarmFence
            | Action::Initialize
            | Action::FinishBootstrap
            | Action::Start(_)
            | Action::Stop(_)
            | Action::Promote(_)
            | Action::Checkpoint
            | Action::CutWal(_)
            | Action::Follow(_)
            | Action::EndReplayConflicts
            | Action::Clone(_)
            | Action::Rewind(_)
            | Action::CancelJob
            | Action::DiscardBootstrap
            | Action::CloneWithoutLeader
            | Action::CallBack(..)
            | Action::RunPrePromote
            | Action::CompareHistory(_)
            | Action::CopyLogicalSlots { .. }
            | Action::TendLogicalSlots(_)
            | Action::SetSynchronizedSlots(_)
            | Action::CreateSlots(_)
            | Action::DropSlots(_)
            | Action::PublishFailsafe(_)
            | Action::LetLeaseLapse(_)
            | Action::SwitchFailsafeOn
            | Action::RestoreConfig
            | Action::RecreateKeys { .. }
            | Action::DoubtStore { .. }
            | Action::TrustStore
            | Action::AdvanceSlots(_) => {}
        }
    }

    /// The action that waited for the DCS is over.
    pub(super) fn action_ends(&mut self, node: NodeId, turn: u32, is_done: bool) {
        let agent = &self.node(node).agent;
        if agent.turn != turn || !agent.is_in_turn {
            return;
        }
        if is_done {
            self.next_action(node);
        } else {
            tell!(self, Actor::Agent(node), "the DCS did not do it");
            self.end_turn(node, true);
        }
    }

    // The instance.

    fn start(&mut self, node: NodeId, start: &StartAs) -> Went {
        let as_primary = match start {
            StartAs::Primary | StartAs::PrimaryClosed | StartAs::Recovering => {
                if !self.may_become_writable(node) {
                    return Went::Failed;
                }
                true
            }
            StartAs::Replica(upstream) => {
                self.check_upstream(node, upstream.as_ref());
                if let Some(upstream) = upstream {
                    self.point_at(node, upstream);
                }
                false
            }
        };
        let is_unawaited = !self.commits_are_to_wait();
        let postgres = &mut self.node_mut(node).postgres;
        postgres.starts_closed = *start == StartAs::PrimaryClosed;
        postgres.starts_unawaited = is_unawaited;
        self.begin_start(node, as_primary);
        Went::Done
    }

    fn cut_wal(&mut self, node: NodeId, ends: &[TimelineEnd]) -> Went {
        let branch = self
            .node(node)
            .postgres
            .data
            .as_ref()
            .map(|data| data.branch);
        let timeline = branch.map(|branch| self.branches.timeline(branch));
        let postgres = &mut self.node_mut(node).postgres;
        let end = ends.iter().find(|end| Some(end.timeline) == timeline);
        let (Some(data), Some(end)) = (&mut postgres.data, end) else {
            return Went::Done;
        };
        data.end = data.end.min(end.end.0);
        data.replayed = data.replayed.min(data.end);
        Went::Done
    }

    /// The pair assertion right before the instance becomes writable.
    pub(super) fn may_become_writable(&mut self, node: NodeId) -> bool {
        let skips = self.rule == Some(super::breaks::Break::PromoteUnlocked);
        let left = self.lease_left(node);
        let is_armed = self.node(node).run_dir.deadline.is_some();
        let is_live = self.node(node).fence_looks_live(self.now);
        let is_resolved =
            |held: trunkline_agent::decide::observation::Held| !held.has_unresolved_hand_over;
        let is_resolved = self
            .node(node)
            .agent
            .lease
            .state
            .held()
            .is_some_and(is_resolved);
        let this = self.node(node);
        let is_watched = this.is_watched(self.now);
        let has_time = left.is_some_and(|left| left > PROMOTE_NEEDS);
        let may = is_resolved && has_time && is_armed && is_live && is_watched;
        if may || skips {
            self.check_promotion(node);
        }
        may || skips
    }

    fn promote(&mut self, node: NodeId, timeline: Timeline) -> Went {
        if !self.may_become_writable(node) {
            return Went::Failed;
        }
        if !matches!(
            self.node(node).postgres.phase,
            Phase::Replica { promotes: false }
        ) {
            return Went::Failed;
        }
        self.begin_promotion(node, timeline);
        Went::Done
    }

    fn stop(&mut self, node: NodeId, mode: StopMode) -> Went {
        self.check_planned_stop(node, mode);
        self.begin_stop(node, mode);
        Went::Done
    }

    fn follow(&mut self, node: NodeId, upstream: &Upstream) -> Went {
        self.check_upstream(node, Some(upstream));
        let phase = self.node(node).postgres.phase;
        let takes_it_up = matches!(
            phase,
            Phase::Replica { .. } | Phase::Starting { as_primary: false }
        );
        if !takes_it_up {
            return Went::Failed;
        }
        self.point_at(node, upstream);
        Went::Done
    }

    fn point_at(&mut self, node: NodeId, upstream: &Upstream) {
        let id = upstream.member.as_ref().and_then(|name| self.id_of(name));
        let run = self.node(node).postgres.run;
        let postgres = &mut self.node_mut(node).postgres;
        postgres.is_streaming = false;
        postgres.shipping = None;
        if let Some(data) = &mut postgres.data {
            data.upstream = id;
            data.follows_remote = upstream.member.is_none() && upstream.address.is_some();
        }
        if matches!(postgres.phase, Phase::Replica { .. }) {
            self.receiver_soon(node, run);
        }
    }

    fn begin_copy(&mut self, node: NodeId, kind: JobKind, upstream: &Upstream) -> Went {
        self.begin_job(node, kind, upstream.member.clone())
    }

    fn begin_job(&mut self, node: NodeId, kind: JobKind, source: Option<MemberName>) -> Went {
        let running = self.node(node).agent.job.running.as_ref();
        if running.is_some_and(|job| !job.kind.holds_nothing_up()) {
            return Went::Failed;
        }
        self.coverage.job(kind);
        self.start_job(node, kind, source);
        Went::Done
    }

    fn set_names(&mut self, node: NodeId, names: Option<SyncNames>) -> Went {
        if self.set_sync_names(node, names) {
            Went::Done
        } else {
            Went::Failed
        }
    }

    // The fence.

    fn arm(&mut self, node: NodeId) -> Went {
        let now = self.now;
        let this = self.node_mut(node);
        let Some(held) = this.agent.lease.state.held() else {
            return Went::Failed;
        };
        if !this.fence_looks_live(now) {
            return Went::Failed;
        }
        // The fence opens the device only while a second of it fits, and without it nobody is promoted.
        let fits = may_count(held.deadline, this.clock(now), 1).is_some();
        if this.watchdog == WatchdogView::Ready && !fits {
            return Went::Failed;
        }
        let was_armed = this.run_dir.deadline.is_some();
        this.run_dir.deadline = Some(held.deadline);
        if !was_armed {
            this.run_dir.armed_at = now;
            self.set_fence_timer(node);
        }
        let this = self.node(node);
        if this.is_watched(now) {
            Went::Done
        } else {
            Went::Failed
        }
    }

    fn disarm(&mut self, node: NodeId) -> Went {
        let deadline = self.node_mut(node).run_dir.deadline.take();
        self.note_disarmed(node, deadline);
        Went::Done
    }

    /// Milliseconds of true time as nanoseconds, for jobs.
    pub(super) fn around(&mut self, takes: Time) -> Time {
        takes / 2 + self.rng.u64(..takes.max(1))
    }
}
