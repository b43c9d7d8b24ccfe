//! The word that a member leaves in a store which has lost the cluster: its record, so that nobody makes another one
//! there. It is the agent's `lease/keeper/word.rs`.

use std::sync::Arc;

use trunkline_shared::cluster::Member;
use trunkline_shared::cluster::topology::{Fact, FactKey, Initialize};
use trunkline_shared::dcs::belief::Belief;

use super::breaks::Break;
use super::event::{NodeId, Time};
use super::network::Place;
use super::node::Node;
use super::requests::{Ask, Purpose, Reply};
use super::store::{Txn, Write};
use super::world::World;

/// So often it is left anew while its lease would last.
const TIMES_A_LEASE: Time = 3;

impl World {
    /// The member would write its record, and does not believe the store.
    pub(super) fn leave_word(&mut self, node: NodeId, record: Member) {
        let every = self.plan.ttl.as_nanos() as Time / TIMES_A_LEASE;
        let now = self.now;
        let is_left = self.rule == Some(Break::NoWordLeft);
        let agent = &mut self.node_mut(node).agent;
        if is_left || agent.word_at > 0 && now < agent.word_at + every {
            return;
        }
        agent.word_at = now;
        self.send(node, Ask::Word(Arc::new(record)), Purpose::Word);
    }

    /// Whether this member, which knows nothing, is alone with a store that has lost the cluster: all who know it are down or
    /// cut off. Nothing tells that from a new cluster, so its operator starts it last (`deploy/README.md`).
    pub(super) fn is_to_start_last(&self, node: NodeId) -> bool {
        let is_lost = !self.store.is_vouched && self.store.head.initialize == Initialize::Absent;
        let knows = |node: &Node| {
            let data = node.postgres.data.as_ref();
            let is_beside = data.is_some_and(|data| data.store.is_some());
            is_beside || node.run_dir.store.belief != Belief::default()
        };
        let others = (0..self.plan.members).filter(|other| *other != node);
        let mut wise = others.filter(|other| knows(self.node(*other))).peekable();
        let speaks = |other: NodeId| {
            let this = self.node(other);
            let runs =
                this.is_powered && this.agent.is_alive && this.agent_sleeps_until() <= self.now;
            runs && self.net.connects(Place::Node(other), Place::Dcs)
        };
        is_lost && !knows(self.node(node)) && wise.peek().is_some() && !wise.any(speaks)
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
