//! The instance's phases: start, promotion, stop, crash, kill.

use trunkline_agent::decide::decision::StopMode;
use trunkline_agent::decide::observation::JobKind;

use trunkline_shared::cluster::Timeline;

use super::event::{Event, MS, NodeId, SECOND, Time};
use super::fake_postgres::{CHECKPOINT_BYTES, Phase, StopStep};
use super::story::{Actor, tell};
use super::world::World;

/// How often a stopping primary looks whether the replicas have its last record.
const DRAIN_LOOK: Time = 20 * MS;
/// How long it waits for a replica that does not take it (`wal_sender_timeout` of the members).
const DRAIN_LIMIT: Time = 5 * SECOND;

impl World {
    pub(super) fn begin_start(&mut self, node: NodeId, as_primary: bool) {
        self.coverage.job(JobKind::Start);
        self.start_job(node, JobKind::Start, None);
        self.node_mut(node).postgres.starts_as_primary = as_primary;
    }

    /// The postmaster is started; whether it lives.
    pub(super) fn postmaster_starts(&mut self, node: NodeId) -> bool {
        let now = self.now;
        let recovery = self.plan.recovery_takes;
        let hangs = self.node(node).troubles.disk_hangs > now;
        let as_primary = self.node(node).postgres.starts_as_primary;
        if as_primary && !self.may_become_writable(node) {
            return false;
        }
        let postgres = &mut self.node_mut(node).postgres;
        let Some(data) = &mut postgres.data else {
            return false;
        };
        let is_free = postgres.phase == Phase::Down && !postgres.has_orphans;
        if !is_free || hangs || data.is_broken || now < postgres.unreadable_until {
            return false;
        }
        let takes = if data.is_clean { 40 * MS } else { recovery };
        data.crashed_at = None;
        postgres.replay_goes_on(now);
        postgres.phase = Phase::Starting { as_primary };
        postgres.since = now;
        postgres.run += 1;
        postgres.starts += 1;
        let run = postgres.run;
        self.node_mut(node).agent.seen_running = false;
        let takes = self.around(takes);
        self.put_in(takes, Event::Phase { node, run });
        tell!(
            self,
            Actor::Postgres(node),
            "starts as {}",
            if as_primary { "primary" } else { "replica" }
        );
        true
    }

    pub(super) fn begin_promotion(&mut self, node: NodeId, timeline: Timeline) {
        self.coverage.job(JobKind::Promote);
        self.start_job(node, JobKind::Promote, None);
        let now = self.now;
        let takes = self.plan.promote_takes;
        let takes = self.around(takes);
        let postgres = &mut self.node_mut(node).postgres;
        // A promotion waits for no query, and ends a pause.
        postgres.replay_goes_on(now);
        postgres.promotes_to = timeline.0;
        postgres.phase = Phase::Replica { promotes: true };
        postgres.is_streaming = false;
        postgres.shipping = None;
        postgres.since = now;
        let replay = postgres
            .data
            .as_ref()
            .map_or(0, |data| data.replays_at.saturating_sub(now));
        let run = postgres.run;
        self.put_in(takes + replay, Event::Phase { node, run });
    }

    pub(super) fn begin_stop(&mut self, node: NodeId, mode: StopMode) {
        let kind = match mode {
            StopMode::Planned | StopMode::HandOver | StopMode::Fast => JobKind::Stop,
            StopMode::Immediate => JobKind::StopNow,
        };
        self.coverage.job(kind);
        self.cancel_job(node);
        self.start_job(node, kind, None);
        if !self.node(node).postgres.is_alive() {
            self.finish_stop(node);
            return;
        }
        match mode {
            StopMode::Immediate => self.begin_kill(node),
            StopMode::Planned | StopMode::HandOver | StopMode::Fast => self.shut_down(node),
        }
    }

    /// The postmaster is told to end its sessions, and itself.
    pub(super) fn shut_down(&mut self, node: NodeId) {
        let now = self.now;
        let is_slow = self.node(node).troubles.stop_is_slow > now;
        let takes = self.plan.stop_takes;
        let takes = self.around(takes) + if is_slow { self.soon(20 * SECOND) } else { 0 };
        let postgres = &mut self.node_mut(node).postgres;
        let was_primary = match postgres.phase {
            Phase::Primary => true,
            Phase::Down | Phase::Starting { .. } => return self.begin_kill(node),
            Phase::Replica { .. } => false,
            Phase::Stopping { .. } => return,
        };
        postgres.phase = Phase::Stopping {
            was_primary,
            step: StopStep::Sessions,
        };
        postgres.since = now;
        postgres.is_streaming = false;
        postgres.shipping = None;
        postgres.run += 1;
        let run = postgres.run;
        self.put_in(takes, Event::Phase { node, run });
    }

    /// The Kill: every process of the instance by force.
    pub(super) fn begin_kill(&mut self, node: NodeId) {
        let takes = self.plan.kill_takes;
        let takes = takes / 2 + self.rng.u64(..takes / 2 + 1);
        let postgres = &mut self.node_mut(node).postgres;
        if !postgres.is_alive() || postgres.kill_pending {
            return;
        }
        postgres.kill_pending = true;
        let run = postgres.run;
        if let Phase::Stopping { step, .. } = &mut postgres.phase {
            *step = StopStep::Immediate;
        }
        self.put_in(takes, Event::Killed { node, run });
    }

    pub(super) fn on_killed(&mut self, event: Event, node: NodeId, run: u32) -> bool {
        // What waits for a disk that hangs does not die before that answers.
        let frozen = self.node(node).frozen_until;
        let sleeps = frozen.max(self.node(node).troubles.disk_hangs);
        if self.put_off(sleeps, event) {
            return true;
        }
        let postgres = &mut self.node_mut(node).postgres;
        if !postgres.kill_pending {
            return false;
        }
        postgres.kill_pending = false;
        let _ = run;
        self.die(node);
        tell!(self, Actor::Postgres(node), "killed: no process is left");
        self.finish_stop(node);
        self.wake(node);
        true
    }

    fn finish_stop(&mut self, node: NodeId) {
        self.finish_job_of(node, JobKind::Stop, false);
        self.finish_job_of(node, JobKind::StopNow, false);
    }

    /// No server process is left, and there was no clean end.
    pub(super) fn die(&mut self, node: NodeId) {
        let at = self.clock(node);
        let was_told = self
            .node(node)
            .agent
            .job
            .running
            .as_ref()
            .is_some_and(|job| matches!(job.kind, JobKind::Stop | JobKind::StopNow));
        self.postmaster_ends(node);
        let postgres = &mut self.node_mut(node).postgres;
        postgres.has_orphans = false;
        postgres.kill_pending = false;
        if let Some(data) = &mut postgres.data {
            data.is_clean = false;
            if !was_told && data.crashed_at.is_none() {
                data.crashed_at = Some(at);
            }
        }
        self.finish_job_of(node, JobKind::Promote, true);
        self.finish_stop(node);
    }

    /// The postmaster is gone: whoever streams from it loses it.
    pub(super) fn postmaster_ends(&mut self, node: NodeId) {
        let now = self.now;
        let postgres = &mut self.node_mut(node).postgres;
        if postgres.can_commit() {
            postgres.was_primary_until = now;
        }
        if let (Phase::Primary, Some(data)) = (postgres.phase, &mut postgres.data) {
            data.was_primary = true;
        }
        let was_replica = matches!(postgres.phase, Phase::Replica { .. });
        if let Some(data) = postgres
            .data
            .as_mut()
            .filter(|data| !data.was_primary || was_replica)
        {
            data.replayed = data.replayed(now);
            data.replays_at = Time::MAX;
        }
        postgres.phase = Phase::Down;
        postgres.run += 1;
        postgres.since = now;
        postgres.is_streaming = false;
        postgres.shipping = None;
        postgres.hung_until = 0;
        let upstream = postgres.data.as_ref().and_then(|data| data.upstream);
        self.forget_waiting(node);
        upstream.into_iter().for_each(|up| self.wake(up));
        self.cut_receivers(node);
    }

    /// The postmaster is killed from outside; its backends live on for a while. Whether there was one.
    pub(super) fn crash(&mut self, node: NodeId) -> bool {
        let was_primary = self.node(node).postgres.phase == Phase::Primary;
        if self.node(node).postgres.phase == Phase::Down {
            return false;
        }
        let at = self.clock(node);
        self.postmaster_ends(node);
        let has_orphans = was_primary && self.rng.bool();
        let lives = self.plan.orphans_live;
        let postgres = &mut self.node_mut(node).postgres;
        postgres.has_orphans = has_orphans;
        let run = postgres.run;
        if let Some(data) = &mut postgres.data {
            data.is_clean = false;
            data.crashed_at = Some(at);
        }
        if has_orphans {
            self.put_in(lives, Event::OrphansEnd { node, run });
        }
        self.finish_job_of(node, JobKind::Promote, true);
        self.finish_stop(node);
        self.see_exit_soon(node);
        true
    }

    /// The agent's pidfd tells it of the postmaster's end.
    pub(super) fn see_exit_soon(&mut self, node: NodeId) {
        let boot = self.node(node).agent.boot;
        self.put_in(MS, Event::SeesExit { node, boot });
    }

    pub(super) fn on_sees_exit(&mut self, event: Event, node: NodeId, boot: u32) -> bool {
        let agent = &self.node(node).agent;
        if agent.boot != boot || !agent.is_alive {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        self.wake(node);
        true
    }

    pub(super) fn on_orphans_end(&mut self, event: Event, node: NodeId, run: u32) -> bool {
        if self.put_off(self.node(node).frozen_until, event) {
            return true;
        }
        let now = self.now;
        let postgres = &mut self.node_mut(node).postgres;
        if postgres.run != run || !postgres.has_orphans {
            return false;
        }
        postgres.has_orphans = false;
        postgres.was_primary_until = now;
        self.wake(node);
        true
    }

    pub(super) fn on_phase(&mut self, event: Event, node: NodeId, run: u32) -> bool {
        if self.node(node).postgres.run != run {
            return false;
        }
        let sleeps = self
            .node(node)
            .frozen_until
            .max(self.node(node).postgres.hung_until)
            .max(self.node(node).troubles.disk_hangs);
        if self.put_off(sleeps, event) {
            return true;
        }
        match self.node(node).postgres.phase {
            Phase::Starting { as_primary } => self.has_started(node, as_primary),
            Phase::Replica { promotes: true } => self.has_promoted(node),
            Phase::Stopping { was_primary, step } => self.stops(node, was_primary, step),
            Phase::Down | Phase::Primary | Phase::Replica { promotes: false } => return false,
        }
        true
    }

    fn has_started(&mut self, node: NodeId, as_primary: bool) {
        let postgres = &mut self.node_mut(node).postgres;
        let run = postgres.run;
        let Some(data) = &mut postgres.data else {
            return;
        };
        data.is_clean = false;
        if !as_primary {
            data.sync_names = None;
        }
        if as_primary {
            postgres.phase = Phase::Primary;
            let (branch, end, was_primary) = (data.branch, data.end, data.was_primary);
            data.is_checkpointed = true;
            data.was_primary = true;
            if !was_primary {
                // Started writable without a promotion: the timeline keeps its number.
                let timeline = self.branches.timeline(branch).0;
                let branch = self.branches.fork(branch, end, timeline);
                if let Some(data) = &mut self.node_mut(node).postgres.data {
                    data.branch = branch;
                }
            }
            self.ship_to_all(node);
        } else {
            data.was_primary = false;
            postgres.phase = Phase::Replica { promotes: false };
            self.receiver_soon(node, run);
        }
        self.forget_waiting(node);
        self.take_up_names(node);
        if as_primary {
            let is_closed = self.node(node).postgres.starts_closed;
            self.recovered_in_place(node, is_closed);
        } else {
            self.is_not_in_place(node);
        }
        tell!(
            self,
            Actor::Postgres(node),
            "runs as {}",
            if as_primary { "primary" } else { "replica" }
        );
        self.wake(node);
    }

    fn has_promoted(&mut self, node: NodeId) {
        let Some(data) = &self.node(node).postgres.data else {
            return;
        };
        let (parent, end) = (data.branch, data.end);
        let timeline = self.node(node).postgres.promotes_to;
        let branch = self.branches.fork(parent, end, timeline);
        self.branches.0[branch as usize].writer = Some(node);
        let postgres = &mut self.node_mut(node).postgres;
        postgres.phase = Phase::Primary;
        postgres.is_wal_gone = false;
        if let Some(data) = &mut postgres.data {
            data.branch = branch;
            data.end = end + CHECKPOINT_BYTES;
            data.replays_at = 0;
            data.was_primary = true;
            data.is_checkpointed = false;
            data.upstream = None;
            data.follows_remote = false;
        }
        tell!(
            self,
            Actor::Postgres(node),
            "promoted to timeline {} at {}",
            self.branches.timeline(branch),
            trunkline_shared::cluster::Lsn(end)
        );
        self.forget_waiting(node);
        self.is_not_in_place(node);
        self.take_up_names(node);
        self.check_loss(node, branch);
        self.ship_to_all(node);
        self.finish_job_of(node, JobKind::Promote, false);
        self.wake(node);
    }

    fn stops(&mut self, node: NodeId, was_primary: bool, step: StopStep) {
        let now = self.now;
        match step {
            StopStep::Immediate => {}
            StopStep::Sessions => {
                let postgres = &mut self.node_mut(node).postgres;
                if was_primary {
                    postgres.was_primary_until = now;
                }
                if let Some(data) = &mut postgres.data {
                    if was_primary {
                        data.checkpoint = data.end;
                        data.redo = data.end;
                        data.end += CHECKPOINT_BYTES;
                    }
                    data.was_primary = was_primary;
                }
                postgres.phase = Phase::Stopping {
                    was_primary,
                    step: StopStep::Draining,
                };
                postgres.since = now;
                let run = postgres.run;
                self.ship_to_all(node);
                self.put_in(DRAIN_LOOK, Event::Phase { node, run });
            }
            StopStep::Draining => {
                let is_waiting = was_primary
                    && self.has_behind_receivers(node)
                    && now < self.node(node).postgres.since + DRAIN_LIMIT;
                if is_waiting {
                    let run = self.node(node).postgres.run;
                    self.put_in(DRAIN_LOOK, Event::Phase { node, run });
                    return;
                }
                self.postmaster_ends(node);
                let postgres = &mut self.node_mut(node).postgres;
                postgres.kill_pending = false;
                if let Some(data) = &mut postgres.data {
                    data.is_clean = true;
                    data.crashed_at = None;
                }
                tell!(self, Actor::Postgres(node), "has stopped");
                self.finish_stop(node);
                self.wake(node);
            }
        }
    }
}
