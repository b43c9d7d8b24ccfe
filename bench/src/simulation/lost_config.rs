//! A hand that deletes the configuration, and what every member keeps of it beside its data.

use std::sync::Arc;

use fastrand::Rng;
use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::topology::{Fact, FactKey, Initialize};

use super::breaks::Break;
use super::event::{NodeId, SECOND, Time};
use super::node::Node;
use super::plan::{Fault, FaultKind, Origin};
use super::store::{Txn, Write};
use super::world::World;

/// One in ten loses its configuration, and of those that follow another for a while every second, meanwhile. By a
/// source of its own, so that what else strikes, and when, is the same with it and without.
pub(super) fn draw(rng: &Rng, faults: &[Fault], ends: Time) -> Option<Fault> {
    let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0xC0F1);
    let demotion = faults.iter().find(|f| f.kind == FaultKind::OperatorDemotes);
    let share = if demotion.is_some() { 2 } else { 10 };
    if own.u8(..share) > 0 {
        return None;
    }
    let at = match demotion {
        // Before all faults end.
        Some(demotion) => (demotion.at + own.u64(SECOND..10 * SECOND)).min(ends - SECOND),
        None => own.u64(2 * SECOND..ends - 4 * SECOND),
    };
    Some(Fault {
        at,
        lasts: own.u64(SECOND / 4..5 * SECOND),
        kind: FaultKind::ConfigDeleted,
        node: 0,
        other: 1,
        hits_leader: false,
    })
}

impl World {
    /// The key is deleted while no agent runs: none of them remembers it. Not where nothing else says that there is a
    /// cluster: whoever starts first without data would rightly make another.
    pub(super) fn delete_config(&mut self) -> bool {
        let is_made = matches!(self.store.head.initialize, Initialize::Done(_));
        let is_all = self.plan.origin == Origin::AdoptedStandby && !is_made;
        let Some(settings) = self.store.head.settings.clone().filter(|_| !is_all) else {
            return false;
        };
        self.store.lost_config = Some(settings);
        self.write_freely(Write::Delete(FactKey::Settings));
        for node in 0..self.plan.members {
            self.kill_agent(node);
        }
        true
    }

    /// The agents start again.
    pub(super) fn config_is_missed(&mut self) {
        for node in 0..self.plan.members {
            self.start_agent(node);
        }
    }

    /// Whoever had no leader to write it again writes it by hand.
    pub(super) fn operator_writes_config(&mut self) {
        if self.store.head.settings.is_some() {
            return;
        }
        // An old copy of the store may show again what had been mended. In a pause that only members remember nobody leads who
        // would write it.
        let is_garbled = self.store.head.is_config_unreadable;
        let remembered = |node: &Node| {
            let view = node.agent.view.as_ref().filter(|_| node.agent.is_alive);
            view.and_then(|view| view.settings.clone())
        };
        let is_calm = self.now >= self.plan.ends;
        let is_leaderless = is_calm && self.store.head.leader.is_none();
        let mut remembered = self.nodes.iter().filter_map(remembered);
        let is_left = is_leaderless && remembered.clone().any(|settings| settings.is_paused);
        // Nor in a standby cluster that has not been made.
        let of_standby = remembered.find(|settings| settings.standby_cluster.is_some());
        let is_made = matches!(self.store.head.initialize, Initialize::Done(_));
        let of_standby = of_standby.filter(|_| is_leaderless && !is_made);
        // Nor does anybody in a store that has lost what was not mended yet.
        let is_forgotten = self.store.is_config_forgotten && self.store.is_vouched;
        let first = (is_garbled || is_left || is_forgotten).then(|| self.settings.clone());
        let settings = self.store.lost_config.clone().or(first).or(of_standby);
        if let Some(settings) = settings {
            let fact = Fact::Settings(settings);
            self.write_freely(Write::Put(FactKey::Settings, fact, 0));
        }
    }

    pub(super) fn write_freely(&mut self, write: Write) {
        let before = self.store.leader().map(|(_, key)| key.revision);
        let txn = Txn {
            when: Vec::new(),
            then: vec![write],
        };
        self.store.commit(&txn);
        self.dcs_changed(None, before);
    }

    /// Before every decision: what is known is kept beside the data, unless a job replaces it.
    pub(super) fn keep_config(&mut self, node: NodeId) {
        let this = self.node_mut(node);
        let known = this
            .agent
            .view
            .as_ref()
            .and_then(|view| view.settings.clone());
        let job = this.agent.job.running.as_ref();
        let is_job = job.is_some_and(|job| job.kind.replaces_data());
        if let (Some(data), Some(known), false) = (&mut this.postgres.data, known, is_job) {
            data.config = Some(known);
        }
    }

    /// What an agent makes of a view: the settings that hold.
    pub(super) fn with_config(&mut self, node: NodeId, view: Arc<Topology>) -> Arc<Topology> {
        if view.settings.is_some() {
            self.node_mut(node).agent.is_config_lost = false;
            return view;
        }
        let agent = &self.node(node).agent;
        let remembered = agent.view.as_ref().and_then(|view| view.settings.clone());
        let data = self.node(node).postgres.data.as_ref();
        let known = remembered.or_else(|| data.and_then(|data| data.config.clone()));
        let is_told = self.rule != Some(Break::ConfigForgotten);
        let Some(known) = known.filter(|_| data.is_some() && is_told) else {
            self.node_mut(node).agent.is_config_lost = false;
            return view;
        };
        // What cannot be read is there: whoever broke it mends it.
        self.node_mut(node).agent.is_config_lost = !view.is_config_unreadable;
        Arc::new(Topology {
            settings: Some(known),
            ..Topology::clone(&view)
        })
    }
}
