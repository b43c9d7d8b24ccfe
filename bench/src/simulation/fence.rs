//! The fence process with its watchdog: it sleeps until the deadline, reads it again, and kills if it was not moved.

use trunkline_agent::decide::observation::WatchdogView;
use trunkline_agent::watchdog;

use super::breaks::Break;
use super::event::{Event, MS, NodeId, SECOND, Time};
use super::story::{Actor, tell};
use super::world::World;

/// How soon it looks again while the deadline stays passed.
const KILL_AGAIN: Time = 200 * MS;
/// How soon the agent looks again at a fence whose heartbeat is not old enough yet.
const LOOK_AGAIN: Time = 250 * MS;
/// How soon the agent sees the end of its fence.
const FENCE_END_SEEN: Time = 5 * MS;
/// A fence that was killed for longer is not replaced before that is over.
const REPLACED_WITHIN: Time = 5 * SECOND;
/// How long a new fence takes to live.
const FENCE_STARTS: Time = 50 * MS;
/// How long a machine that was reset takes to come back.
const REBOOT: Time = 5 * SECOND;

/// How a fence stops running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FenceEnd {
    Killed,
    Frozen,
}

impl World {
    pub(super) fn set_fence_timer(&mut self, node: NodeId) {
        let this = self.node(node);
        let Some(deadline) = this.run_dir.deadline.filter(|_| this.fence.is_alive) else {
            return;
        };
        let at = this.when(deadline).max(self.now);
        let fence = this.fence.number;
        self.queue.put(at, Event::Fence { node, fence });
    }

    pub(super) fn on_fence(&mut self, event: Event, node: NodeId, fence: u32) -> bool {
        let this = self.node(node);
        if this.fence.number != fence || !this.fence.is_alive || !this.is_powered {
            return false;
        }
        let Some(deadline) = this.run_dir.deadline else {
            return false;
        };
        if self.put_off(this.fence_sleeps_until(), event) {
            return true;
        }
        if self.clock(node) < deadline {
            let at = self.node(node).when(deadline);
            self.queue.put(at, event);
            return true;
        }
        if self.rule == Some(Break::NoFence) {
            return true;
        }
        if self.node(node).postgres.is_alive() {
            tell!(self, Actor::Fence(node), "the deadline has passed: kills");
            self.ledger.fence_fired(node);
            self.end_by_fence(node);
        }
        // While the deadline stays passed it goes on killing.
        self.put_in(KILL_AGAIN, event);
        true
    }

    /// A long one is of a host on which no other can be started before it is over.
    pub(super) fn kill_fence(&mut self, node: NodeId, lasts: Time) {
        self.watchdog_is_left(node, FenceEnd::Killed);
        let now = self.now;
        self.node_mut(node).note_live_fence(now);
        let fence = &mut self.node_mut(node).fence;
        if lasts > REPLACED_WITHIN {
            fence.missing_until = fence.missing_until.max(now + lasts);
        }
        fence.is_alive = false;
        fence.number += 1;
        fence.is_starting = false;
        self.look_at_fence(node, FENCE_END_SEEN);
    }

    pub(super) fn freeze_fence(&mut self, node: NodeId, until: Time) {
        let now = self.now;
        let fence = &mut self.node_mut(node).fence;
        if fence.frozen_until <= now {
            fence.frozen_since = now;
        }
        fence.frozen_until = until.max(fence.frozen_until);
        self.watchdog_is_left(node, FenceEnd::Frozen);
        self.look_at_fence(node, SECOND);
    }

    /// Beside its turns, the agent sees its fence end at once, and freeze when the heartbeat is old.
    pub(super) fn look_at_fence(&mut self, node: NodeId, delay: Time) {
        let boot = self.node(node).agent.boot;
        self.put_in(delay, Event::FenceLook { node, boot });
    }

    pub(super) fn on_fence_look(&mut self, event: Event, node: NodeId, boot: u32) -> bool {
        let agent = &self.node(node).agent;
        if agent.boot != boot || !agent.is_alive || self.rule == Some(Break::FenceLeftDead) {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        if !self.node(node).fence_looks_live(self.now) {
            self.replace_fence(node);
        } else if self.node(node).fence.frozen_until > self.now {
            self.put_in(LOOK_AGAIN, event);
        }
        true
    }

    /// The agent kills a fence that does not live and starts another.
    pub(super) fn replace_fence(&mut self, node: NodeId) {
        let fence = &mut self.node_mut(node).fence;
        if fence.is_starting {
            return;
        }
        self.watchdog_is_left(node, FenceEnd::Killed);
        let now = self.now;
        self.node_mut(node).note_live_fence(now);
        let fence = &mut self.node_mut(node).fence;
        fence.is_alive = false;
        fence.is_starting = true;
        fence.number += 1;
        let number = fence.number;
        let at = (self.now + FENCE_STARTS).max(self.node(node).fence.missing_until);
        self.queue.put(
            at,
            Event::FenceStarted {
                node,
                fence: number,
            },
        );
    }

    pub(super) fn on_fence_started(&mut self, event: Event, node: NodeId, fence: u32) -> bool {
        if self.put_off(self.node(node).frozen_until, event) {
            return true;
        }
        let now = self.now;
        let is_started = self.node(node).agent.is_alive;
        let this = &mut self.node_mut(node).fence;
        if this.number != fence {
            return false;
        }
        this.is_starting = false;
        if !is_started {
            return true;
        }
        this.is_alive = true;
        this.is_pinged_late = false;
        this.frozen_until = 0;
        this.started = now;
        tell!(self, Actor::Fence(node), "starts");
        self.set_fence_timer(node);
        self.wake(node);
        true
    }

    /// The fence stops running, and with it the pings: the machine is reset once the device has counted to its
    /// end, unless a fence runs again by then. One that is killed closes the device, which pings it a last time.
    fn watchdog_is_left(&mut self, node: NodeId, end: FenceEnd) {
        let now = self.now;
        let seconds = self.plan.watchdog_counts();
        let is_pinged_to_the_end = self.rule == Some(Break::PingedToTheEnd);
        let this = self.node_mut(node);
        let Some(deadline) = this.run_dir.deadline else {
            return;
        };
        let is_held = this.fence.is_alive && this.holds_watchdog(now);
        if this.watchdog != WatchdogView::Ready || !is_held {
            return;
        }
        this.fence.left += 1;
        let left = this.fence.left;
        let is_frozen = this.fence.frozen_until > now;
        let is_late = is_frozen && this.clock(now) > deadline;
        this.fence.is_pinged_late = end == FenceEnd::Killed && is_late;
        let ran = match this.fence.frozen_until > now {
            true => this.fence.frozen_since,
            false => now,
        };
        let counts = watchdog::may_count(deadline, this.clock(ran), seconds);
        let at = match (end, counts) {
            _ if is_pinged_to_the_end => now + u64::from(seconds) * SECOND,
            (FenceEnd::Killed, counts) => now + u64::from(counts.unwrap_or(1)) * SECOND,
            (FenceEnd::Frozen, Some(counts)) => ran + u64::from(counts) * SECOND,
            // It was told to count its last second when that began.
            (FenceEnd::Frozen, None) => this.when(deadline + watchdog::PAST_DEADLINE),
        };
        self.queue
            .put(at.max(now), Event::WatchdogEnds { node, left });
    }

    pub(super) fn on_watchdog_ends(&mut self, event: Event, node: NodeId, left: u32) -> bool {
        let this = self.node(node);
        if this.fence.left != left || !this.is_powered {
            return false;
        }
        let frozen_until = this.frozen_until;
        if self.put_off(frozen_until, event) {
            return true;
        }
        let this = self.node(node);
        let is_awake = this.fence.is_alive && this.fence.frozen_until <= self.now;
        let is_late = this
            .run_dir
            .deadline
            .is_some_and(|at| this.clock(self.now) >= at);
        // One that runs again has pinged it, or closed it once nothing was left to kill.
        if is_awake && !(is_late && this.postgres.is_alive()) {
            return true;
        }
        tell!(self, Actor::Fence(node), "the watchdog resets the machine");
        self.power_off(node);
        self.put_in(REBOOT, Event::PowerReturns { node });
        true
    }

    pub(super) fn on_power_returns(&mut self, node: NodeId) -> bool {
        let was_off = !self.node(node).is_powered;
        self.power_on(node);
        was_off
    }
}
