//! What an agent keeps beside the data of the DCS it believed, and what it takes up of that when it starts.

use std::sync::Arc;

use trunkline_agent::decide::observation::Observation;
use trunkline_agent::decide::store::PeerStore;
use trunkline_agent::decide::{Memory, asking};
use trunkline_shared::cluster::store::Authority;
use trunkline_shared::cluster::{Lsn, Topology};
use trunkline_shared::dcs::Header;
use trunkline_shared::dcs::belief::Belief;

use super::KeptStore;
use crate::simulation::breaks::Break;
use crate::simulation::event::{NodeId, Time};
use crate::simulation::node::Node;
use crate::simulation::world::World;

impl Node {
    /// It believes the store that answers so: what lies beside its data may still say otherwise.
    pub(super) fn saw_no_more_than(&mut self, header: Header) {
        self.run_dir.store.saw_more = false;
        let beside = self.postgres.data.as_mut();
        if let Some(beside) = beside.and_then(|data| data.store.as_mut()) {
            let seen = beside.belief.seen;
            let is_of_another = seen.cluster_id != header.cluster_id;
            beside.saw_more &= is_of_another || seen.revision > header.revision;
        }
    }
}

impl World {
    /// The agent starts with whom an earlier one knew.
    pub(in crate::simulation) fn take_up_members(&mut self, node: NodeId) {
        let now = self.clock(node);
        let this = self.node_mut(node);
        let data = this.postgres.data.as_ref();
        this.agent.knew_store = data.is_some_and(|data| data.store.is_some());
        let known = data.map(|data| data.members.clone());
        this.agent.memory = Memory::of_former(known.unwrap_or_default(), now);
    }

    /// After a boot only what lies beside the data says how far the store was seen.
    pub(in crate::simulation) fn take_up_store(&mut self, node: NodeId) {
        if self.rule == Some(Break::StoreForgotten) {
            return;
        }
        let this = self.node_mut(node);
        let kept = this
            .postgres
            .data
            .as_ref()
            .and_then(|data| data.store.clone());
        if let Some(kept) = kept.filter(|_| this.run_dir.store.belief == Belief::default()) {
            this.run_dir.store = KeptStore {
                belief: kept.belief,
                known: kept.known,
                saw_more: kept.saw_more,
                ..KeptStore::default()
            };
        }
    }

    /// Its own doubt is of what it has seen, in this boot or before, and so is what it knows of a store that it has not
    /// met again.
    pub(super) fn is_unproved(&self, node: NodeId) -> bool {
        let this = self.node(node);
        let kept = &this.run_dir.store;
        let beside = this.postgres.data.as_ref();
        let beside = beside.and_then(|data| Some(data.store.as_ref()?.belief.seen.cluster_id));
        let is_remembered =
            this.agent.view.is_none() && beside == Some(kept.belief.seen.cluster_id);
        let is_own = is_remembered || kept.belief.doubt.is_some();
        let speaks = this.agent.knew_store && is_own && !kept.belief.is_told;
        !kept.is_trusted && !speaks
    }

    /// Whom a turn has met that asks nobody: all of them, but for what it trusted a moment ago it goes by those of then.
    pub(in crate::simulation) fn met_without_asking(&self, node: NodeId) -> [bool; 5] {
        let this = self.node(node);
        let trusted = this.agent.trusted;
        let ttl = self.plan.ttl.as_nanos() as Time;
        let is_of_this = trusted.at > 0 && trusted.incarnation == self.store.incarnation;
        let is_just_now = this.run_dir.store.is_trusted && self.now <= trusted.at + ttl;
        match is_of_this && is_just_now {
            true => trusted.met,
            false => [true; 5],
        }
    }

    pub(super) fn authority(&self, node: NodeId) -> Authority {
        let known = self.node(node).known();
        known.map_or_else(Authority::default, |known| Authority::of(&known))
    }

    /// What an agent answers about the store.
    pub(in crate::simulation) fn peer_store(&self, node: NodeId) -> PeerStore {
        let this = self.node(node);
        let kept = &this.run_dir.store;
        let is_doubted = kept.belief.doubt.is_some();
        let age = self.clock(node).since(this.agent.proved);
        PeerStore {
            cluster_id: kept.belief.seen.cluster_id,
            revision: kept.belief.seen.revision,
            generation: kept.belief.generation,
            authority: self.authority(node),
            is_doubted,
            is_fresh: this.agent.view.is_some() && !is_doubted && age <= self.plan.retry_timeout,
            is_unproved: self.is_unproved(node),
        }
    }

    /// Whom the believed store names is kept beside the data, and how far it was seen when what decides changed last.
    pub(in crate::simulation) fn keep_members(&mut self, node: NodeId, seen: &Observation) {
        let Some(topology) = seen.topology().filter(|_| seen.has_believed_dcs()) else {
            return;
        };
        let whom = asking::whom(topology, &self.node(node).agent.memory, &seen.me.name);
        let is_idle = seen.job.running.is_none();
        let store = self.node(node).run_dir.store.clone();
        if let Some(data) = &mut self.node_mut(node).postgres.data
            && is_idle
            && !whom.is_empty()
        {
            data.members = whom;
            let decides = |store: &KeptStore| {
                let known = store.known.clone().unwrap_or_default();
                let sync = known.sync.as_ref().map_or(0, |sync| sync.revision);
                let seen = store.belief.seen;
                let writes = (sync, known.claim_revision(), known.failsafe_revision);
                (seen.cluster_id, seen.term, known.generation, writes)
            };
            let is_old = data.store.as_ref().map(decides) != Some(decides(&store));
            let kept = data.store.as_ref().and_then(|kept| kept.known.as_ref());
            let kept = kept.map_or(Lsn(0), |known| known.status.optime);
            let is_overtaken = seen.local.is_behind_unrecorded(topology, kept);
            let is_kept = seen.is_dcs_fresh() && store.belief.doubt.is_none();
            if (is_old || is_overtaken) && is_kept {
                data.store = Some(store);
            }
        }
    }
}

impl Node {
    /// The cluster as its agent believes it; one that was restarted has kept nothing of it that ends with a lease.
    pub(in crate::simulation) fn known(&self) -> Option<Arc<Topology>> {
        let lasting = |shown: &Arc<Topology>| {
            Arc::new(Topology {
                leader: None,
                members: Default::default(),
                failover: None,
                switchover: None,
                ..Topology::clone(shown)
            })
        };
        let kept = || self.run_dir.store.known.as_ref().map(lasting);
        self.agent.view.clone().or_else(kept)
    }
}
