//! The fence process: it sleeps until the deadline, reads it again, and kills if it was not moved.

use super::breaks::Break;
use super::event::{Event, MS, NodeId, Time};
use super::story::{Actor, tell};
use super::world::World;

/// How soon it looks again while the deadline stays passed.
const KILL_AGAIN: Time = 200 * MS;
/// How soon the agent looks again at a fence whose heartbeat is not old enough yet.
const LOOK_AGAIN: Time = 250 * MS;
/// How long a new fence takes to live.
const FENCE_STARTS: Time = 50 * MS;

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
            self.begin_kill(node);
        }
        // While the deadline stays passed it goes on killing.
        self.put_in(KILL_AGAIN, event);
        true
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
        fence.is_alive = false;
        fence.is_starting = true;
        fence.number += 1;
        let number = fence.number;
        self.put_in(
            FENCE_STARTS,
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
        let this = &mut self.node_mut(node).fence;
        if this.number != fence {
            return false;
        }
        this.is_starting = false;
        this.is_alive = true;
        this.frozen_until = 0;
        tell!(self, Actor::Fence(node), "starts");
        self.set_fence_timer(node);
        self.wake(node);
        true
    }
}
