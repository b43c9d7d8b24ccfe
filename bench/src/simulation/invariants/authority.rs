//! Who may lead, what a fence that was disarmed too early should have kept, and that nobody loses the lead for nothing.

use std::time::Duration;

use trunkline_agent::decide::{Action, Decision, Reason, STOP_AHEAD};
use trunkline_agent::lease::state::margin;
use trunkline_shared::cluster::{LeaderEpoch, Moment};

use super::belongings::Registered;
use super::{Invariant, NodeId, Phase, SECOND, Time, World};
use crate::simulation::coverage::Ending;
use crate::simulation::node::Node;
use crate::simulation::plan::Fault;

/// What is remembered of it.
#[derive(Default)]
pub(in crate::simulation) struct Authority {
    /// The deadline of an instance that could write when its fence was disarmed and nobody was told.
    disarmed: [Option<Moment>; 5],
    /// To whom the last leader gave the key, and its revision now.
    moved: Option<(NodeId, i64)>,
    /// Who made all keys anew last, its own on which lease, in which run of its agent.
    pub(in crate::simulation) recreated: Option<(NodeId, i64, u32)>,
    /// Until when the last fault lasts that is more than an outage of the DCS, or less.
    disturbed_until: Time,
    /// When each member was registered.
    pub(super) registered: [Registered; 5],
}

impl Authority {
    /// The instance cannot commit any more.
    pub(super) fn is_harmless(&mut self, index: usize) {
        self.disarmed[index] = None;
    }
}

/// For so long, beside three ttl, nothing else may have happened for an outage to be judged alone.
const CALM_BEFORE: Time = 10 * SECOND;

/// What a round of questions may take.
const ASKING: Duration = Duration::from_millis(100);

impl World {
    /// Called when a fence was disarmed.
    pub(in crate::simulation) fn note_disarmed(&mut self, node: NodeId, deadline: Option<Moment>) {
        let this = self.node(node);
        let view = this.agent.view.as_ref();
        let is_announced = self.store.head.disarmed.contains(&this.name)
            || view.is_some_and(|view| view.disarmed.contains(&this.name));
        let matters = this.postgres.can_commit() && !is_announced;
        self.ledger.authority.disarmed[usize::from(node)] = deadline.filter(|_| matters);
    }

    /// Until when an instance that can commit may live.
    pub(super) fn deadline_of(&self, index: usize) -> Option<Moment> {
        let node = &self.nodes[index];
        node.run_dir.deadline.or_else(|| {
            let disarmed = self.ledger.authority.disarmed[index]?;
            let held = node.agent.lease.state.held();
            Some(held.map_or(disarmed, |held| held.deadline.max(disarmed)))
        })
    }

    /// Whether this member's epochs only grew.
    pub(super) fn note_owner(&mut self, node: NodeId, epoch: LeaderEpoch) -> bool {
        let lease = &self.node(node).agent.lease;
        let held = lease.state.held();
        let is_unresolved = held.is_some_and(|held| held.has_unresolved_hand_over);
        if is_unresolved && epoch < lease.highest && self.store.incarnation > 0 {
            // Found in an old copy that has caught up: it is written again, under a new revision, and routers go by none that
            // is lower than what they have seen.
            return true;
        }
        let owners = self.ledger.owners.iter();
        let mut owners = owners.filter(|(owned, ..)| *owned == epoch);
        let is_others = |(_, owner, since): &&(LeaderEpoch, NodeId, Time)| {
            *owner != node && !self.led_nothing(*owner, *since)
        };
        let other = owners.clone().find(is_others);
        let owner = other.or_else(|| owners.find(|(_, owner, _)| *owner == node));
        let owner = owner.map(|(_, owner, _)| *owner);
        let highest = self.node(node).agent.lease.highest;
        let is_given = owner.is_some_and(|owner| owner != node);
        let agent = &mut self.node_mut(node).agent;
        let met = agent.met;
        // A renewal of what it holds asks nobody.
        if owner != Some(node) {
            agent.met_before = met;
        }
        if (is_given || epoch < highest) && self.nobody_could_tell(node, &met) {
            self.ending = Some(Ending::OldCopyUntold);
            return false;
        }
        if is_given {
            let detail = format!("epoch {epoch} has two owners");
            self.fail(Invariant::EpochsOnlyGrow, detail);
        } else if owner.is_none() {
            self.ledger.owners.push((epoch, node, self.now));
        }
        if epoch < highest {
            let name = &self.node(node).name;
            let detail = format!("{name} holds epoch {epoch} after {highest}");
            self.fail(Invariant::EpochsOnlyGrow, detail);
            return false;
        }
        self.node_mut(node).agent.lease.highest = epoch;
        true
    }

    /// Whether what it acquired then was lost with the store that is restored, before it promoted anything by it: a revision
    /// is given out once more, and it was nobody's.
    fn led_nothing(&self, owner: NodeId, since: Time) -> bool {
        let postgres = &self.node(owner).postgres;
        let is_lost = self.store.incarnation > 0 && !self.store.is_vouched;
        is_lost && !postgres.can_commit() && postgres.was_primary_until < since
    }

    /// The same among the claims of one store.
    pub(super) fn note_claim(&mut self, claim: (u32, LeaderEpoch, NodeId)) -> bool {
        let (of_store, epoch, node) = claim;
        if self.ledger.claims.contains(&claim) {
            return true;
        }
        let mut claims = self.ledger.claims.iter();
        let before = claims.find(|(store, claimed, by)| {
            let is_taken = *claimed == epoch;
            *store == of_store && (is_taken || *by == node && *claimed > epoch)
        });
        if let Some((_, claimed, by)) = before {
            let (name, by) = (&self.node(node).name, &self.node(*by).name);
            let detail = format!("{name} claims by epoch {epoch} after {by} by {claimed}");
            self.fail(Invariant::EpochsOnlyGrow, detail);
            return false;
        }
        self.ledger.claims.push(claim);
        true
    }

    /// Whoever an operator let lead has written `/sync`, or somebody else has since.
    pub(super) fn note_record(&mut self, by: Option<NodeId>) {
        let record = self.store.head.sync.as_ref();
        let recorded = record.and_then(|record| self.id_of(record.leader.as_ref()?));
        let revision = record.map_or(0, |record| record.revision);
        let is_new = std::mem::replace(&mut self.ledger.recorded_at, revision) != revision;
        let leader = self.store.leader().and_then(|(name, _)| self.id_of(name));
        let by = by.filter(|by| is_new && recorded == Some(*by) && leader == Some(*by));
        let by = by.filter(|by| self.is_chosen(*by) && !self.node(*by).postgres.can_commit());
        if by.is_some() && self.ledger.loss_accepted {
            self.ledger.recorded_by_choice = by;
        } else if recorded != self.ledger.recorded_by_choice {
            self.ledger.recorded_by_choice = None;
        }
    }

    /// The leader key has changed: was it given to somebody, or written again by whom it was given to?
    pub(super) fn note_move(&mut self, by: Option<NodeId>, before: Option<i64>) {
        let stands = self.store.leader();
        let stands = stands.and_then(|(name, key)| Some((self.id_of(name)?, key.revision)));
        let moved = self.ledger.authority.moved;
        // Whoever an operator's choice let lead does so by the key that it writes again.
        let chosen = before.map(|before| (self.store.incarnation, before));
        if let (Some(by), Some((to, revision))) = (by, stands)
            && by == to
            && chosen.is_some()
            && self.ledger.led_by_choice == chosen
        {
            self.ledger.led_by_choice = Some((self.store.incarnation, revision));
        }
        self.ledger.authority.moved = match (by, stands) {
            (Some(by), Some((to, revision))) if by != to => Some((to, revision)),
            (Some(by), Some((to, revision))) => moved
                .filter(|(whom, was)| *whom == by && before == Some(*was))
                .map(|_| (to, revision)),
            (None, _) | (_, None) => None,
        };
    }

    /// Whether it leads by an old copy of the store of which nobody whom it met could tell: the history ends then.
    pub(super) fn is_by_an_old_copy(&mut self, node: NodeId) -> bool {
        let is_untold = self.nobody_could_tell(node, &self.node(node).agent.met_before);
        if is_untold {
            self.ending = Some(Ending::OldCopyUntold);
        }
        is_untold
    }

    /// `no_acknowledged_commit_lost`, where synchronous commits are missing: an old copy of the store, of which nobody who is
    /// heard knows that it is old, names standbys that were none any more. Whom the newest record names has no such excuse.
    pub(super) fn check_synchronous_loss(&mut self, node: NodeId, lost: u64) {
        let name = &self.node(node).name;
        let truth = self.store.cluster().sync.as_ref();
        let is_named = truth.is_some_and(|sync| {
            sync.quorum == 0 && (sync.leader.as_ref() == Some(name) || sync.standbys.contains(name))
        });
        if !is_named && self.is_by_an_old_copy(node) {
            return;
        }
        let name = &self.node(node).name;
        let detail = format!(
            "{name} was promoted and lost {lost} bytes of acknowledged synchronous commits"
        );
        self.fail(Invariant::NoAcknowledgedCommitLost, detail);
    }

    /// An operator accepts the store: who leads by it goes on, whatever others had beyond that.
    pub(in crate::simulation) fn note_accepted(&mut self) {
        self.accepted_at = self.now;
        let primary = self.nodes.iter().find(|node| node.postgres.can_commit());
        let data = primary.and_then(|node| node.postgres.data.as_ref());
        self.ledger.line = data.map_or(self.ledger.line, |data| data.branch);
    }

    /// `a_switchover_loses_nothing`: whether it leads by a key that the leader before gave to it.
    pub(super) fn was_moved_to(&self, node: NodeId) -> bool {
        let stands = self.store.leader().map(|(_, key)| key.revision);
        let moved = self.ledger.authority.moved;
        let is_its = moved.is_some_and(|(to, revision)| to == node && stands == Some(revision));
        is_its && self.store.incarnation == 0 && !self.was_standby()
    }

    /// `nobody_is_deposed_for_nothing`: called with every decision.
    pub(super) fn check_deposed(&mut self, node: NodeId, decision: &Decision) {
        let is_stop = |action: &Action| matches!(action, Action::Stop(_));
        if decision.reason != Reason::AnotherLeads || !decision.actions.iter().any(is_stop) {
            return;
        }
        // A store that was restored may name whom a newer one had deposed; who made its keys anew and never heard that it
        // did knows nothing of their lease once its agent is started again.
        let name = &self.node(node).name;
        let own = self.store.leader().filter(|(leader, _)| *leader == name);
        let boot = self.node(node).agent.boot;
        let recreated = self.ledger.authority.recreated;
        let is_unheard = recreated.is_some_and(|(by, lease, then)| {
            by == node && then != boot && own.is_some_and(|(_, key)| key.lease == lease)
        });
        if !self.store.is_vouched || is_unheard {
            return;
        }
        let ends = own.and_then(|(_, key)| self.store.lease_ends(key.lease));
        let needed = margin(self.plan.ttl).as_nanos() as Time;
        if ends.is_some_and(|ends| ends > self.now + needed) {
            let detail = format!("{name} stops as deposed while its key stands on a live lease");
            self.fail(Invariant::NobodyIsDeposedForNothing, detail);
        }
    }

    /// Called when a fault begins.
    pub(in crate::simulation) fn note_disturbance(&mut self, fault: Fault) {
        if !fault.kind.leaves_members_alone() {
            let until = self.now + fault.lasts;
            let disturbed = &mut self.ledger.authority.disturbed_until;
            *disturbed = until.max(*disturbed);
        }
    }

    /// `an_outage_alone_deposes_nobody`: called with every decision.
    pub(super) fn check_outage(&mut self, node: NodeId, decision: &Decision) {
        if decision.reason == Reason::LeaseAboutToExpire && self.should_lead_on(node) {
            let detail = format!(
                "{} loses its lease, and everybody whom it lists could have consented",
                self.node(node).name
            );
            self.fail(Invariant::AnOutageAloneDeposesNobody, detail);
        }
    }

    /// Whether a lease is long enough for consent to come before PostgreSQL must be stopped: a renewal is missed, the
    /// silence has lasted for 2/5 of the lease, and everybody is asked. With two seconds it is not, nor with three
    /// where a watchdog's time is left unused.
    fn has_time_to_ask(&self, node: NodeId) -> bool {
        let ttl = self.plan.ttl;
        let unused = margin(ttl) + self.node(node).reserve().min(ttl * 3 / 10) + STOP_AHEAD;
        ttl.saturating_sub(unused) > ttl * 3 / 5 + ASKING
    }

    fn should_lead_on(&self, node: NodeId) -> bool {
        let calm = CALM_BEFORE + 3 * self.plan.ttl.as_nanos() as Time;
        let is_long_ago = |at: Time| at + calm <= self.now;
        let head = &self.store.head;
        let is_on = head.settings.as_ref().is_some_and(|settings| {
            let is_plain = !settings.is_paused && settings.standby_cluster.is_none();
            settings.failsafe_mode == Some(true) && is_plain
        });
        let owners = self.ledger.owners.iter().rev();
        let led_since = owners.clone().find(|(_, owner, _)| *owner == node);
        let leads = led_since.is_some_and(|(.., since)| is_long_ago(*since));
        let this = self.node(node);
        let runs = this.postgres.phase == Phase::Primary
            && this.run_dir.deadline.is_some()
            && this.fence_looks_live(self.now);
        let could_consent = |other: &Node| {
            other.is_powered
                && other.agent.is_alive
                && other.agent_sleeps_until() <= self.now
                && is_long_ago(other.agent.started_at)
                && head.failsafe.contains_key(&other.name)
        };
        let is_undisturbed = is_long_ago(self.ledger.authority.disturbed_until);
        is_on
            && is_undisturbed
            && self.has_time_to_ask(node)
            && self.store.is_vouched
            && leads
            && runs
            && self.nodes.iter().all(could_consent)
    }
}
