//! The agent's lease task: it grants, keeps alive and checks; [`LeaseState`] does the arithmetic.
//!
//! [`LeaseState`]: trunkline_agent::lease::state::LeaseState

use trunkline_agent::lease::state::{KeyCheck, Renewal, margin};
use trunkline_shared::cluster::{LeaderEpoch, Moment};

use super::breaks::Break;
use super::event::{Event, NodeId, Time};
use super::requests::{Ask, Purpose, Reply};
use super::story::{Actor, tell};
use super::world::World;

impl World {
    pub(super) fn on_renew(&mut self, event: Event, node: NodeId, boot: u32) -> bool {
        let agent = &self.node(node).agent;
        if agent.boot != boot || !agent.is_alive {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        let every = self.plan.ttl.as_nanos() as Time / 5;
        self.put_in(every, event);
        self.lapse(node);
        let lease = &self.node(node).agent.lease;
        if self.clock(node) < lease.lapses_until || lease.is_without_fence {
            return true;
        }
        self.ask_for_lease(node);
        self.ask_for_consent(node);
        true
    }

    pub(super) fn ask_for_lease(&mut self, node: NodeId) {
        let lease = &mut self.node_mut(node).agent.lease;
        if lease.id == 0 {
            if !lease.is_granting {
                lease.is_granting = true;
                self.send(node, Ask::Grant, Purpose::Lease);
            }
        } else {
            let id = lease.id;
            self.send(node, Ask::KeepAlive(id), Purpose::Lease);
        }
    }

    /// The deadline passed: nothing is held any more.
    pub(super) fn lapse(&mut self, node: NodeId) {
        let now = self.clock(node);
        let lease = &mut self.node_mut(node).agent.lease.state;
        let held = lease.held().is_some();
        lease.lapsed(now);
        if held && lease.held().is_none() {
            tell!(
                self,
                Actor::Agent(node),
                "the deadline has passed: the lease has lapsed"
            );
            self.wake(node);
        }
    }

    pub(super) fn lease_answered(&mut self, node: NodeId, at: usize) {
        let (sent, term) = (self.requests[at].sent, self.requests[at].term);
        let ask = self.requests[at].ask.clone();
        match (self.requests[at].reply, ask) {
            (Reply::Granted(id), _) => {
                self.granted(node, id, sent, term);
            }
            (Reply::Alive(true), Ask::KeepAlive(id)) => {
                if self.kept_alive(node, id, sent, term)
                    && !self.trusts_keep_alive(node, sent, term)
                {
                    self.check_key(node, sent, term, None);
                }
            }
            (Reply::Alive(false), Ask::KeepAlive(id)) => {
                let lease = &mut self.node_mut(node).agent.lease;
                if lease.id == id {
                    lease.id = 0;
                    self.ask_for_lease(node);
                    self.check_key(node, sent, term, None);
                    tell!(self, Actor::Agent(node), "lease {id:x} is gone");
                }
            }
            (_, Ask::Grant) => self.node_mut(node).agent.lease.is_granting = false,
            (_, Ask::KeepAlive(_)) => self.renewal_failed(node),
            (_, Ask::ReadLeader | Ask::Commit(_) | Ask::Recreate(_) | Ask::Word(_)) => {}
        }
    }

    /// In which store its key was found, or written.
    pub(super) fn key_is_of(&mut self, node: NodeId, at: usize) {
        self.node_mut(node).agent.lease.of_store = self.requests[at].incarnation;
    }

    fn renewal_failed(&mut self, node: NodeId) {
        if self.mistakes_silence(node) {
            return;
        }
        let rounds = &mut self.node_mut(node).agent.consent.rounds;
        if rounds.store_is_silent() {
            self.ask_for_consent(node);
        }
    }

    fn granted(&mut self, node: NodeId, id: i64, sent: Moment, term: u64) {
        let lease = &mut self.node_mut(node).agent.lease;
        lease.is_granting = false;
        if lease.id != 0 {
            return;
        }
        lease.id = id;
        lease.sent = sent;
        lease.term = term;
        self.node_mut(node).run_dir.lease = id;
        self.wake(node);
    }

    /// Notes an answered keep-alive; whether the answer is this lease's.
    fn kept_alive(&mut self, node: NodeId, id: i64, sent: Moment, term: u64) -> bool {
        let lease = &mut self.node_mut(node).agent.lease;
        if lease.id != id {
            return false;
        }
        if sent >= lease.sent {
            lease.sent = sent;
            lease.term = term;
        }
        let is_held = lease.state.held().is_some();
        if !is_held {
            self.store_spoke(node, sent, true);
        }
        is_held
    }

    fn check_key(&mut self, node: NodeId, sent: Moment, term: u64, turn: Option<u32>) {
        let changes = self.node(node).agent.lease.changes;
        let check = Purpose::Check {
            sent,
            term,
            changes,
            turn,
        };
        self.send(node, Ask::ReadLeader, check);
    }

    /// The keep-alive of the action `ConfirmLeader` was answered.
    pub(super) fn confirm_answered(&mut self, node: NodeId, at: usize, turn: u32) {
        let (sent, term) = (self.requests[at].sent, self.requests[at].term);
        let Ask::KeepAlive(id) = self.requests[at].ask else {
            return;
        };
        match self.requests[at].reply {
            Reply::Alive(true) => {
                let lease = &mut self.node_mut(node).agent.lease;
                lease.id = id;
                lease.sent = sent;
                lease.term = term;
                self.node_mut(node).run_dir.lease = id;
                self.check_key(node, sent, term, Some(turn));
            }
            Reply::None
            | Reply::Granted(_)
            | Reply::Alive(false)
            | Reply::Leader(_)
            | Reply::Recreated(..)
            | Reply::Committed(_) => {
                self.action_ends(node, turn, false);
            }
        }
    }

    pub(super) fn check_answered(
        &mut self,
        node: NodeId,
        at: usize,
        keep_alive: (Moment, u64),
        changes: u32,
        turn: Option<u32>,
    ) {
        let (sent, term) = keep_alive;
        if self.has_moved(node, at) {
            if let Some(turn) = turn {
                self.action_ends(node, turn, false);
            }
            return;
        }
        let counts = self.node(node).agent.lease.changes == changes;
        if let (Reply::Leader(found), true) = (self.requests[at].reply, counts) {
            let lease = self.node(node).agent.lease.id;
            let generation = self.store.head.generation;
            let found = match found {
                None => KeyCheck::Missing,
                Some((true, key)) if key.lease == lease => KeyCheck::Mine(LeaderEpoch {
                    generation,
                    revision: key.revision,
                }),
                Some(_) => KeyCheck::Other,
            };
            let check_term = self.requests[at].term;
            let found = self.found_by(node, found);
            let is_yes = matches!(found, KeyCheck::Mine(_));
            if is_yes {
                self.key_is_of(node, at);
            }
            if !is_yes || self.node(node).may_move_on(self.now) {
                self.renewed(node, sent, term, check_term, found);
            }
        } else if matches!(self.requests[at].reply, Reply::None) {
            self.renewal_failed(node);
        }
        if let Some(turn) = turn {
            let is_held = self.node(node).agent.lease.state.held().is_some();
            self.action_ends(node, turn, is_held);
        }
    }

    /// The key stands on the lease on which the keys were made anew, and nobody had said so: that one is renewed now.
    fn has_moved(&mut self, node: NodeId, at: usize) -> bool {
        let lease = &self.node(node).agent.lease;
        let Reply::Leader(Some((true, key))) = self.requests[at].reply else {
            return false;
        };
        if !lease.is_moving || key.lease == lease.id {
            return false;
        }
        let lease = &mut self.node_mut(node).agent.lease;
        (lease.id, lease.is_moving) = (key.lease, false);
        // What was asked of the other one says nothing of this.
        lease.changes += 1;
        self.node_mut(node).run_dir.lease = key.lease;
        self.ask_for_lease(node);
        true
    }

    pub(super) fn renewed(
        &mut self,
        node: NodeId,
        sent: Moment,
        term: u64,
        check_term: u64,
        found: KeyCheck,
    ) {
        let ttl = self.plan.ttl;
        let now = self.clock(node);
        let sent = match self.rule {
            Some(Break::DeadlineFromAnswer) => now,
            _ => sent,
        };
        let lease = &mut self.node_mut(node).agent.lease.state;
        let before = lease.view().clone();
        lease.renewed(Renewal {
            sent,
            ttl,
            keep_alive_term: term,
            check_term,
            found,
        });
        let after = lease.view().clone();
        let is_definite = !matches!(found, KeyCheck::Mine(_)) || term == check_term;
        self.store_spoke(node, sent, is_definite);
        self.move_deadline(node);
        self.note_epoch(node);
        if std::mem::discriminant(&before) != std::mem::discriminant(&after)
            || found == KeyCheck::Missing
        {
            tell!(self, Actor::Agent(node), "lease {after:?}");
            self.wake(node);
        }
        debug_assert!(margin(ttl) < ttl);
    }

    /// Writes the lease's deadline for the fence while it is armed.
    pub(super) fn move_deadline(&mut self, node: NodeId) {
        let Some(held) = self.node(node).agent.lease.state.held() else {
            return;
        };
        let run_dir = &mut self.node_mut(node).run_dir;
        let Some(before) = run_dir.deadline else {
            return;
        };
        run_dir.deadline = Some(held.deadline);
        // By a renewed lease it may be earlier than by the others' consent: the fence reads that with its next heartbeat.
        if held.deadline < before {
            self.set_fence_timer(node);
        }
    }
}
