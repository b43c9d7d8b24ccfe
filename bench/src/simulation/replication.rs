//! WAL on its way: receivers connect by timeline numbers as PostgreSQL does, and lose their upstream.

use super::event::{Event, MS, NodeId, SECOND, Time};
use super::fake_postgres::{Phase, StopStep};
use super::invariants::Invariant;
use super::network::Place;
use super::story::{Actor, tell};
use super::world::World;

/// How often a receiver tries to connect, or looks whether it still is.
const RECEIVER_LOOK: Time = 500 * MS;
/// A receiver that hears nothing for so long gives its connection up (`wal_receiver_timeout`).
const RECEIVER_TIMEOUT: Time = 5 * SECOND;

impl World {
    pub(super) fn receiver_soon(&mut self, node: NodeId, run: u32) {
        self.node_mut(node).postgres.receiver += 1;
        let receiver = self.node(node).postgres.receiver;
        let _ = run;
        self.put_in(
            5 * MS,
            Event::Receiver {
                node,
                run: receiver,
            },
        );
    }

    pub(super) fn on_receiver(&mut self, event: Event, node: NodeId, run: u32) -> bool {
        let this = self.node(node);
        if this.postgres.receiver != run
            || this.postgres.phase != (Phase::Replica { promotes: false })
        {
            return false;
        }
        let sleeps = this.frozen_until.max(this.postgres.hung_until);
        if self.put_off(sleeps, event) {
            return true;
        }
        self.put_in(RECEIVER_LOOK, event);
        if self.node(node).postgres.is_streaming {
            self.look_after_receiver(node);
        } else {
            self.connect_receiver(node);
        }
        true
    }

    /// A fault never shortens another of its kind.
    pub(super) fn stall_replication(&mut self, node: NodeId, until: Time) {
        let stalls = &mut self.node_mut(node).troubles.replication_stalls;
        *stalls = until.max(*stalls);
    }

    fn upstream(&self, node: NodeId) -> Option<NodeId> {
        self.node(node).postgres.data.as_ref()?.upstream
    }

    fn look_after_receiver(&mut self, node: NodeId) {
        let now = self.now;
        let Some(upstream) = self.upstream(node).filter(|up| *up != node) else {
            return;
        };
        let is_heard = self.net.connects(Place::Node(node), Place::Node(upstream))
            && self.node(upstream).frozen_until <= now
            && self.node(upstream).is_powered;
        let is_same = self.is_same_sender(node, upstream);
        let postgres = &mut self.node_mut(node).postgres;
        if is_heard && is_same {
            postgres.heard_at = now;
            self.tell_flushed(node, upstream);
        } else if is_heard || now > postgres.heard_at + RECEIVER_TIMEOUT {
            postgres.is_streaming = false;
            postgres.shipping = None;
            self.wake(upstream);
        }
        self.ship(upstream, node);
    }

    /// Whether the upstream's server is still the one that the receiver connected to: another knows nothing
    /// of the connection and ends it.
    fn is_same_sender(&self, node: NodeId, upstream: NodeId) -> bool {
        let there = &self.node(upstream).postgres;
        there.phase != Phase::Down && self.node(node).postgres.sender == there.starts
    }

    fn connect_receiver(&mut self, node: NodeId) {
        let now = self.now;
        let Some(up) = self.upstream(node).filter(|up| *up != node) else {
            return;
        };
        let there = self.node(up);
        let is_open = !self.node(node).postgres.is_wal_gone
            && there.is_powered
            && there.frozen_until <= now
            && there.postgres.hung_until <= now
            && there.postgres.phase == Phase::Primary
            && self.net.connects(Place::Node(node), Place::Node(up));
        let (Some(own), Some(theirs)) = (&self.node(node).postgres.data, &there.postgres.data)
        else {
            return;
        };
        if !is_open || own.system_id != theirs.system_id {
            return;
        }
        let (branch, end) = (own.branch, own.end);
        let (up_branch, up_end) = (theirs.branch, theirs.end);
        if !self.branches.would_stream(branch, end, up_branch, up_end) {
            return;
        }
        let shared = self.branches.parting((branch, end), (up_branch, up_end));
        if shared.is_none_or(|(_, at)| at < end) {
            return self.streams_another_history(node, up);
        }
        let sender = there.postgres.starts;
        let postgres = &mut self.node_mut(node).postgres;
        postgres.sender = sender;
        postgres.is_streaming = true;
        postgres.heard_at = now;
        postgres.shipping = None;
        if let Some(data) = &mut postgres.data {
            data.branch = up_branch;
        }
        tell!(
            self,
            Actor::Postgres(node),
            "streams from {}",
            self.node(up).name
        );
        self.standby_connects(node, up);
        self.ship(up, node);
        self.wake(node);
    }

    /// `streams_only_its_own_history`: PostgreSQL cannot tell two timelines of one number apart.
    fn streams_another_history(&mut self, node: NodeId, up: NodeId) {
        let detail = format!(
            "{} streams from {} although their histories parted",
            self.node(node).name,
            self.node(up).name
        );
        self.fail(Invariant::StreamsOnlyItsOwnHistory, detail);
    }

    /// Sends what a replica lacks, unless something is already on its way.
    fn ship(&mut self, from: NodeId, to: NodeId) {
        let there = &self.node(from).postgres;
        let sends = matches!(
            there.phase,
            Phase::Primary
                | Phase::Stopping {
                    was_primary: true,
                    step: StopStep::Sessions | StopStep::Draining
                }
        );
        let Some(end) = there.data.as_ref().filter(|_| sends).map(|data| data.end) else {
            return;
        };
        let here = &self.node(to).postgres;
        let has = here.data.as_ref().map_or(0, |data| data.end);
        if !here.is_streaming || here.shipping.is_some() || end <= has {
            return;
        }
        let stall = self
            .node(to)
            .troubles
            .replication_stalls
            .saturating_sub(self.now);
        let run = here.run;
        self.node_mut(to).postgres.shipping = Some(end);
        let way = self.hop() + stall;
        self.put_in(way, Event::Ship { node: to, run });
    }

    pub(super) fn ship_to_all(&mut self, from: NodeId) {
        for to in 0..self.plan.members {
            if to != from && self.upstream(to) == Some(from) {
                self.ship(from, to);
            }
        }
    }

    pub(super) fn on_ship(&mut self, event: Event, node: NodeId, run: u32) -> bool {
        let this = self.node(node);
        if this.postgres.run != run || !this.postgres.is_streaming {
            return false;
        }
        let Some(end) = this.postgres.shipping else {
            return false;
        };
        if self.put_off(this.frozen_until.max(this.postgres.hung_until), event) {
            return true;
        }
        let Some(up) = self.upstream(node) else {
            return false;
        };
        if !self.is_same_sender(node, up) {
            return false;
        }
        if !self.net.reaches(Place::Node(up), Place::Node(node)) {
            // TCP sends it again while the connection lives.
            self.put_in(200 * MS, event);
            return true;
        }
        let now = self.now;
        let lag = self.plan.replay_lag;
        let postgres = &mut self.node_mut(node).postgres;
        postgres.shipping = None;
        postgres.heard_at = now;
        let replays_at = postgres.will_have_replayed(now, lag);
        if let Some(data) = &mut postgres.data
            && end > data.end
        {
            data.replayed = data.replayed(now);
            data.end = end;
            data.replays_at = replays_at;
        }
        self.tell_flushed(node, up);
        self.ship(up, node);
        true
    }

    /// A server is gone: its receivers notice where the network lets them.
    pub(super) fn cut_receivers(&mut self, gone: NodeId) {
        for node in 0..self.plan.members {
            let is_told = self.upstream(node) == Some(gone)
                && self.net.reaches(Place::Node(gone), Place::Node(node));
            let postgres = &mut self.node_mut(node).postgres;
            if is_told && postgres.is_streaming {
                postgres.is_streaming = false;
                postgres.shipping = None;
                let run = postgres.run;
                self.receiver_soon(node, run);
                self.wake(node);
            }
        }
    }

    /// Whether a replica that is reached lacks something.
    pub(super) fn has_behind_receivers(&self, from: NodeId) -> bool {
        let end = self
            .node(from)
            .postgres
            .data
            .as_ref()
            .map_or(0, |data| data.end);
        (0..self.plan.members).any(|to| {
            let there = &self.node(to).postgres;
            to != from
                && self.upstream(to) == Some(from)
                && there.is_streaming
                && there.data.as_ref().is_some_and(|data| data.end < end)
        })
    }
}
