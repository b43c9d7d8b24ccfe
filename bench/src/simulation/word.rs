//! The word that a member leaves in a store which has lost the cluster: its record, so that nobody makes another one
//! there. It is the agent's `lease/keeper/word.rs`.

use std::sync::Arc;

use trunkline_shared::cluster::Member;
use trunkline_shared::cluster::topology::{Fact, FactKey, Initialize};
use trunkline_shared::dcs::belief::Belief;

use super::breaks::Break;
use super::event::{Event, MS, NodeId, SECOND, Time};
use super::network::Place;
use super::node::Node;
use super::requests::{Ask, Purpose, Reply};
use super::store::{Txn, Write};
use super::world::World;

/// So often it is left anew while its lease would last.
const TIMES_A_LEASE: Time = 3;
/// The pause after a renewal that failed.
const RETRY: Time = 200 * MS;
/// How often an operator looks whether the member that is to start last may.
pub(super) const ASKED_EVERY: Time = SECOND;

impl World {
    /// The store is not believed: the next renewal fails, and the lease task leaves word.
    pub(super) fn leave_word_soon(&mut self, node: NodeId) {
        let boot = self.node(node).agent.boot;
        self.put_in(RETRY, Event::Word { node, boot });
    }

    pub(super) fn on_word(&mut self, event: Event, node: NodeId, boot: u32) -> bool {
        let agent = &self.node(node).agent;
        let is_over = agent.boot != boot || !agent.is_alive || !agent.is_store_shut;
        if is_over || self.rule == Some(Break::NoWordLeft) {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        match self.node(node).agent.wanted.clone() {
            Some(record) => self.send(node, Ask::Word(record), Purpose::Word),
            None => self.put_in(RETRY, event),
        }
        true
    }

    /// The word that was left is left again before its lease ends; one that was not, soon.
    pub(super) fn word_answered(&mut self, node: NodeId, is_left: bool) {
        let boot = self.node(node).agent.boot;
        let pause = match is_left {
            true => self.plan.ttl.as_nanos() as Time / TIMES_A_LEASE,
            false => RETRY,
        };
        self.put_in(pause, Event::Word { node, boot });
    }

    /// Whether this member, which knows nothing, is alone with a store that has lost the cluster: all who know it are down or
    /// cut off, or their word, asked for while they were, is not there yet. Nothing tells that from a new cluster, so its
    /// operator starts it last, once the member's own host sees another listed (`deploy/README.md`), or had the time to.
    pub(super) fn is_to_start_last(&mut self, node: NodeId) -> bool {
        let is_lost = !self.store.is_vouched && self.store.head.initialize == Initialize::Absent;
        let knows = |node: &Node| {
            let data = node.postgres.data.as_ref();
            let is_beside = data.is_some_and(|data| data.store.is_some());
            is_beside || node.run_dir.store.belief != Belief::default()
        };
        let others = (0..self.plan.members).filter(|other| *other != node);
        let wise: Vec<NodeId> = others.filter(|other| knows(self.node(*other))).collect();
        if !is_lost || knows(self.node(node)) || wise.is_empty() {
            return false;
        }
        let mut speaking = wise.iter().filter(|other| self.speaks(**other, Place::Dcs));
        let sees =
            self.net.connects(Place::Node(node), Place::Dcs) && self.store.down_until <= self.now;
        let is_heard = sees && speaking.clone().next().is_some();
        let members = &self.store.head.members;
        let is_listed = sees && speaking.any(|other| members.contains_key(&self.node(*other).name));
        let limit = self.plan.retry_timeout.as_nanos() as Time + ASKED_EVERY;
        let waited = &mut self.node_mut(node).waits_for_word;
        *waited = if is_heard { *waited + ASKED_EVERY } else { 0 };
        !is_listed && *waited <= limit
    }

    pub(super) fn speaks(&self, node: NodeId, to: Place) -> bool {
        let this = self.node(node);
        let runs = this.is_powered && this.agent.is_alive && this.agent_sleeps_until() <= self.now;
        runs && self.net.connects(Place::Node(node), to)
    }

    /// Whether nobody who is heard and was there when this member asked, itself among them, has seen more of the store of
    /// before than the old copy that answers: nothing tells the two apart.
    pub(super) fn nobody_could_tell(&self, node: NodeId, asked: &[bool; 5]) -> bool {
        let knows = |other: &NodeId| {
            let this = self.node(*other);
            let store = &this.run_dir.store;
            let data = this.postgres.data.as_ref();
            let beside = data.and_then(|data| data.store.as_ref());
            let is_beside = beside.is_some_and(|kept| kept.saw_more);
            is_beside || store.saw_more || store.belief.doubt.is_some()
        };
        let met = |other: &NodeId| *other == node || asked[usize::from(*other)];
        let mut wise = (0..self.plan.members).filter(knows).filter(met);
        !self.store.is_vouched && !wise.any(|other| self.speaks(other, Place::Node(node)))
    }

    /// It reaches the store, and is written where no cluster is recorded.
    pub(super) fn word_arrives(&mut self, node: NodeId, record: Arc<Member>) -> Reply {
        if matches!(self.store.head.initialize, Initialize::Done(_)) {
            return Reply::Committed(None);
        }
        let before = self.store.leader().map(|(_, key)| key.revision);
        let ttl = self.plan.ttl.as_nanos() as Time;
        let lease = self.store.grant(ttl, self.now);
        let key = FactKey::Member(self.node(node).name.clone());
        let txn = Txn {
            when: Vec::new(),
            then: vec![Write::Put(key, Fact::Member(record), lease)],
        };
        let revision = self.store.commit(&txn);
        self.dcs_changed(Some(node), before);
        Reply::Committed(revision)
    }
}
