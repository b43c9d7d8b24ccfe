//! A cluster that becomes another one's standby for a while.

use std::sync::Arc;

use trunkline_agent::decide::observation::{DcsView, Observation, SourceTrouble, WatchdogView};
use trunkline_shared::cluster::settings::StandbyCluster;
use trunkline_shared::cluster::topology::{Fact, FactKey, Initialize};
use trunkline_shared::cluster::{ClusterSettings, MemberName};

use super::event::{NodeId, SECOND, Time};
use super::fake_postgres::{Data, Phase, Postgres};
use super::invariants::Invariant;
use super::node::Node;
use super::plan::{FaultKind, Origin};
use super::store::Write;
use super::world::{SYSTEM_ID, World};

/// Where the remote is.
pub(super) const REMOTE: &str = "remote:5432";

/// How long the remote can be reached, and how long not.
const REMOTE_SPELL: Time = 7 * SECOND;

/// How long nobody leads until an operator says who is to, and how soon he comes again: who was named to lead a standby
/// cluster may lose the key when that becomes a cluster of its own, and a configuration that had been lost may only
/// then say that it is one.
const OPERATOR_COMES: Time = 30 * SECOND;
const OPERATOR_COMES_AGAIN: Time = 15 * SECOND;

/// Whether a stream from the remote stands. It never brings anything.
pub(super) fn remote_sends(now: Time) -> bool {
    (now / REMOTE_SPELL).is_multiple_of(2)
}

/// A remote that never brings anything.
pub(super) fn section() -> Arc<StandbyCluster> {
    Arc::new(StandbyCluster {
        host: Some("remote".to_owned()),
        port: 5432,
        primary_slot_name: None,
        restore_command: None,
        archive_cleanup_command: None,
        recovery_min_apply_delay: None,
        create_replica_methods: Vec::new(),
    })
}

/// What an agent would see that does not read `standby_cluster`.
pub(super) fn unread(seen: &mut Observation) {
    if let DcsView::Known { topology, .. } = &mut seen.dcs {
        let mut settings = (*topology.settings_or_default()).clone();
        settings.standby_cluster = None;
        Arc::make_mut(topology).settings = Some(Arc::new(settings));
    }
}

impl World {
    /// Members that follow the remote, of a cluster that the store does not know: only its configuration is there.
    pub(super) fn begin_with_a_standby(&mut self) {
        let root = self.branches.root();
        let mut settings = ClusterSettings::clone(&self.settings);
        settings.standby_cluster = Some(section());
        let settings = Fact::Settings(Arc::new(settings));
        self.write_freely(Write::Put(FactKey::Settings, settings, 0));
        let are_running = self.rng.bool();
        let was_promoted = self.rng.u8(..4) == 0;
        for node in 0..self.rng.u8(1..=self.plan.members) {
            let mut data = Data::new(SYSTEM_ID, root);
            data.was_primary = was_promoted && node == 0;
            data.follows_remote = !data.was_primary;
            let phase = match data.was_primary {
                true => Phase::Primary,
                false => Phase::Replica { promotes: false },
            };
            let postgres = &mut self.node_mut(node).postgres;
            *postgres = Postgres::new(Some(data));
            if are_running {
                postgres.phase = phase;
            }
        }
    }

    /// The cluster stands on its own from now on. One that is adopted not before it is one: replicas without a cluster wait
    /// for their primary.
    pub(super) fn end_standby(&mut self) {
        let is_made = matches!(self.store.head.initialize, Initialize::Done(_));
        let mut nodes = self.nodes.iter();
        let has_primary = nodes.any(|node| {
            let data = node.postgres.data.as_ref();
            data.is_some_and(|data| data.was_primary)
        });
        if self.plan.origin != Origin::AdoptedStandby || is_made || has_primary {
            self.set_standby(false);
        }
    }

    /// A rewind against the remote, which shares the history of whoever led last: while it cannot be reached, or is not
    /// fit yet, nothing is touched; else it may still break off and leave pages of two histories.
    pub(super) fn rewind_from_remote(&mut self, node: NodeId) -> Result<(), Option<SourceTrouble>> {
        let fails = self.node(node).troubles.rewind_fails > self.now;
        let outcome = match self.rng.u8(..8) {
            _ if self.node(node).postgres.is_alive() => return Err(None),
            _ if !remote_sends(self.now) => Err(Some(SourceTrouble::Silent)),
            0 | 1 => Err(Some(SourceTrouble::NotReady)),
            2 => return Err(None),
            _ if fails => return Err(None),
            _ => Ok(()),
        };
        if let Some(data) = &mut self.node_mut(node).postgres.data {
            data.is_broken = false;
        }
        outcome
    }

    /// A cluster that followed another for a while may have left acknowledged commits behind with its own
    /// history, or what its former leader had: nobody is promoted then until an operator accepts that.
    pub(super) fn operator_names_a_leader(&mut self, waited: Time) {
        let since = waited.checked_sub(OPERATOR_COMES);
        let comes = since.is_some_and(|since| since % OPERATOR_COMES_AGAIN < SECOND);
        if !comes || !self.was_standby() || self.store.leader().is_some() {
            return;
        }
        let running = self.nodes.iter().filter(|node| {
            matches!(node.postgres.phase, Phase::Replica { promotes: false })
                && node.watchdog != WatchdogView::Failed
        });
        // Who is not listed answers an operator that it is not.
        let is_listed = |node: &Node| self.store.head.failsafe.contains_key(&node.name);
        let furthest = running.max_by_key(|node| {
            let end = node.postgres.data.as_ref().map(|data| data.end);
            (is_listed(node), end)
        });
        if let Some(node) = furthest {
            let name = node.name.clone();
            self.ledger.loss_accepted = true;
            self.ledger.named = Some(name.clone());
            // Nobody leads, which is what whoever is not in the list cannot know.
            let is_listed = self.store.head.failsafe.contains_key(&name);
            let leads = |node: &Node| node.postgres.phase == Phase::Primary;
            if !is_listed && !self.store.head.failsafe.is_empty() && !self.nodes.iter().any(leads) {
                self.write_freely(Write::Delete(FactKey::Failsafe));
            }
            self.request_change(None, Some(name));
        }
    }

    /// A cluster told to follow another left its own history, the last copy of it half rewound, before there
    /// was another: what remains is the remote, a backup, or a member whose required watchdog cannot be used.
    pub(super) fn has_given_itself_up(&self) -> bool {
        let mut guarded = self
            .nodes
            .iter()
            .filter(|node| node.watchdog != WatchdogView::Failed);
        let is_whole = |data: &Data| !data.is_broken;
        let has_followed = self.was_standby() || self.plan.origin == Origin::AdoptedStandby;
        has_followed && !guarded.any(|node| node.postgres.data.as_ref().is_some_and(is_whole))
    }

    /// Bytes that a standby cluster's leader may lack when the others follow it: nothing marks its election in
    /// the history, so that what an asynchronous failover may lose is counted here.
    pub(super) fn standby_may_lose(&self, node: NodeId) -> u64 {
        // A copy that was begun while it was one may end after that.
        let ended = self.ledger.standby_ended;
        let was_begun = ended > 0 && self.now < ended + self.plan.clone_takes + SECOND;
        // Synchronous mode is not in force there, as in Patroni: whom its list names has no right before others.
        if self.follows_another(node) || was_begun {
            self.may_lose(self.written_at_last(self.ledger.line, u64::MAX))
        } else {
            0
        }
    }

    /// Whether the cluster is a standby cluster as far as that member knows.
    pub(super) fn follows_another(&self, node: NodeId) -> bool {
        let view = self.node(node).agent.view.as_ref();
        view.is_some_and(|v| v.settings_or_default().standby_cluster.is_some())
    }

    /// Whether an operator named this source, which leads the standby cluster: nothing is promoted there by which the loss
    /// would show.
    pub(super) fn follows_operators_leader(
        &self,
        node: NodeId,
        source: Option<&MemberName>,
    ) -> bool {
        let leader = self.store.leader().map(|(leader, _)| leader);
        let is_named = source.is_some() && leader == source && leader == self.ledger.named.as_ref();
        is_named && self.follows_another(node)
    }

    pub(super) fn was_standby(&self) -> bool {
        let mut faults = self.plan.faults.iter();
        faults.any(|fault| fault.kind == FaultKind::OperatorDemotes)
    }

    /// `a_standby_cluster_never_writes`: called at the signal that makes an instance writable.
    pub(super) fn check_standby(&mut self, node: NodeId) {
        // A section written while the decision is being carried out is seen by the next one.
        let view = self.node(node).agent.made_writable_by.as_ref();
        let is_standby = view.is_some_and(|view| {
            // Deleted, it still says what the cluster is, but not to whoever has copied its data since: none of it is kept
            // beside that.
            let is_being_made = self.store.head.initialize == Initialize::Running;
            let data = self.node(node).postgres.data.as_ref();
            let is_kept = data.is_some_and(|data| data.config.is_some());
            let lost = self.store.lost_config.as_ref();
            let lost = lost.filter(|_| is_being_made || is_kept);
            let settings = view.settings.as_ref().or(lost);
            settings.is_some_and(|settings| settings.standby_cluster.is_some())
        });
        if is_standby {
            let detail = format!(
                "{} becomes writable in a standby cluster",
                self.node(node).name
            );
            self.fail(Invariant::AStandbyClusterNeverWrites, detail);
        }
    }
}
