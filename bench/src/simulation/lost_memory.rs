//! A DCS that is emptied or restored from an old copy, whom it is believed by, and the operator who accepts it. What
//! is believed is the agent's and the router's own code ([`Belief`]); the connections are modelled here.

use std::sync::Arc;

use fastrand::Rng;
use trunkline_agent::decide::observation::{DcsView, Observation};
use trunkline_agent::decide::store::{Doubt, Shown, StoreView};
use trunkline_agent::recreation::Succession;
use trunkline_shared::cluster::store::Told;
use trunkline_shared::cluster::topology::{ClaimedTimeline, Fact, FactKey, Initialize, Status};
use trunkline_shared::cluster::{Lsn, MemberName, Moment, Timeline, Topology};
use trunkline_shared::dcs::Header;
use trunkline_shared::dcs::belief::{Belief, Verdict};

use super::breaks::Break;
use super::event::{MS, NodeId, SECOND, Time};
use super::node::Node;
use super::plan::{Fault, FaultKind, Plan};
use super::requests::{Ask, Reply};
use super::store::{Compare, Txn, Write};
use super::story::{Actor, tell};
use super::world::World;

mod kept;

/// What `run_dir` holds of the store.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptStore {
    pub(super) belief: Belief,
    /// Nobody speaks against it.
    pub(super) is_trusted: bool,
    /// It holds more of the store that was lost than the one that answers since shows.
    pub(super) saw_more: bool,
    /// The keys as they were believed last.
    known: Option<Arc<Topology>>,
    /// When the store proved last that what is seen of it is the newest, by this node's clock.
    pub(super) proved: Moment,
}

/// The age of a view that is not believed: older than any setting allows to act on.
const NOT_BELIEVED: std::time::Duration = std::time::Duration::from_secs(365 * 86_400);
/// How long automation has in a calm world before the operator comes.
const OPERATOR_WAITS: Time = 20 * SECOND;

impl Plan {
    /// In a few worlds the DCS loses its memory, in half of those as the only trouble but a change of leader. By a
    /// source of its own, so that what else strikes, and when, is the same with it and without.
    pub(super) fn draw_lost_memory(&mut self, rng: &Rng) {
        let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0x1057);
        if own.u8(..15) > 0 {
            return;
        }
        let kind = match own.bool() {
            true => FaultKind::DcsWiped,
            false => FaultKind::DcsRestored,
        };
        let at = own
            .u64(15 * SECOND..40 * SECOND)
            .min(self.ends - 5 * SECOND);
        let fault = |at, kind, lasts, node| Fault {
            at,
            lasts,
            kind,
            node,
            other: (node + 1) % self.members,
            hits_leader: false,
        };
        let lasts = [200 * MS, SECOND, 5 * SECOND, 12 * SECOND][own.usize(..4)];
        let node = own.u8(..self.members);
        let lost = fault(at, kind, lasts, node);
        let before = fault(
            at.saturating_sub(own.u64(SECOND..12 * SECOND)),
            [
                FaultKind::OperatorSwitchover,
                FaultKind::PostmasterKilled,
                FaultKind::NodePowerOff,
                FaultKind::OperatorPauses,
            ][own.usize(..4)],
            own.u64(SECOND..8 * SECOND),
            node,
        );
        if own.bool() {
            self.faults = vec![before];
        }
        self.faults.push(lost);
        if kind == FaultKind::DcsRestored && own.u8(..3) == 0 {
            self.draw_blackout(lost, &mut own);
        }
    }

    /// Everybody loses power while the store is down, and an old copy of it is what they come back to. A member that
    /// is cut off from the leader before has to be left out of the newest `/sync`.
    fn draw_blackout(&mut self, lost: Fault, own: &mut Rng) {
        let cut = own.u64(SECOND..9 * SECOND);
        let cut = Fault {
            at: lost.at.saturating_sub(cut),
            lasts: cut + SECOND,
            kind: FaultKind::NodeCutFromNode,
            hits_leader: true,
            ..lost
        };
        self.is_blackout = own.bool();
        self.faults = vec![cut, lost];
        for node in 0..self.members {
            self.faults.push(Fault {
                at: lost.at + own.u64(10 * MS..150 * MS),
                lasts: own.u64(300 * MS..8 * SECOND),
                kind: FaultKind::NodePowerOff,
                node,
                ..lost
            });
        }
    }
}

impl World {
    /// Once a second, where the store is to be restored some day.
    pub(super) fn copy_store(&mut self) {
        let mut faults = self.plan.faults.iter();
        let is_wanted = faults.any(|fault| fault.kind == FaultKind::DcsRestored);
        if is_wanted && self.now / SECOND != (self.now - 500 * MS) / SECOND {
            self.store.copy();
        }
    }

    pub(super) fn store_header(&self) -> Header {
        Header {
            cluster_id: self.store.cluster_id,
            revision: self.store.revision(),
            term: self.store.term,
        }
    }

    /// Everybody's connections end with the store's processes; then another one answers in its place.
    pub(super) fn lose_memory(&mut self, fault: Fault) -> bool {
        let before = self.store.leader().map(|(_, key)| key.revision);
        let is_new_cluster = self.rng.bool();
        let is_done = match fault.kind {
            FaultKind::DcsRestored => {
                let copies = self.store.copies();
                let drawn = self.rng.usize(..copies.max(1));
                self.store.restore(drawn, self.now)
            }
            _ => {
                self.store.wipe();
                true
            }
        };
        if !is_done {
            return false;
        }
        if is_new_cluster {
            self.store.cluster_id += 1;
        }
        let (cluster, revision) = (self.store.cluster_id, self.store.revision());
        for node in &mut self.nodes {
            let beside = node.postgres.data.as_mut();
            let beside = beside.and_then(|data| data.store.as_mut());
            for kept in beside.into_iter().chain([&mut node.run_dir.store]) {
                let seen = kept.belief.seen;
                let is_other = seen.cluster_id != cluster || seen.revision > revision;
                kept.saw_more |= seen != Header::default() && is_other;
            }
        }
        self.store.down_until = self.store.down_until.max(self.now + fault.lasts);
        for watch in &mut self.watches {
            watch.coming = None;
            watch.seen = -1;
        }
        tell!(
            self,
            Actor::Dcs,
            "shows cluster {} at revision {} from now on",
            self.store.cluster_id,
            self.store.revision()
        );
        self.dcs_changed(None, before);
        true
    }

    fn believes_anything(&self) -> bool {
        self.rule == Some(Break::LostMemoryBelieved)
    }

    /// A listing or an event reached an agent; whether it is believed.
    pub(super) fn agent_believes(
        &mut self,
        node: NodeId,
        header: Header,
        shown: &Arc<Topology>,
    ) -> bool {
        let anything = self.believes_anything();
        let this = self.node_mut(node);
        let known = this.agent.view.clone();
        let known = known.or_else(|| this.run_dir.store.known.clone());
        let kept = &mut this.run_dir.store;
        let verdict = match anything {
            true => Verdict::Believed,
            false => kept.belief.weigh(header, shown, &known.unwrap_or_default()),
        };
        match verdict {
            Verdict::Believed => {
                kept.belief.take(header, shown);
                // An old copy has grown past what this member has seen: nothing tells the two apart.
                if !anything {
                    this.saw_no_more_than(header);
                }
            }
            Verdict::Accepted => {
                kept.belief.accept(header, shown);
                this.saw_no_more_than(header);
                this.agent.doubted = None;
                this.agent.is_store_shut = false;
                this.agent.client_saw = header;
                if !std::mem::take(&mut this.agent.has_recreated) {
                    this.agent.acceptances += 1;
                }
                this.agent.view = None;
                this.agent.record = None;
                tell!(self, Actor::Agent(node), "believes the DCS again");
                self.wake(node);
            }
            Verdict::WentBack(why) => {
                let is_news = this.agent.doubted.as_ref() != Some(shown);
                this.agent.doubted = Some(shown.clone());
                self.begin_doubt(node, why, None);
                if is_news {
                    self.wake(node);
                }
                return false;
            }
        }
        self.node_mut(node).run_dir.store.known = Some(shown.clone());
        true
    }

    /// An event of the store that is believed.
    pub(super) fn take_event(&mut self, node: NodeId, header: Header, shown: &Arc<Topology>) {
        let kept = &mut self.node_mut(node).run_dir.store;
        if kept.belief.doubt.is_none() {
            kept.belief.take(header, shown);
            kept.known = Some(shown.clone());
        }
    }

    /// The same for a router.
    pub(super) fn router_believes(
        &mut self,
        router: u8,
        header: Header,
        shown: &Arc<Topology>,
    ) -> bool {
        let anything = self.believes_anything();
        let this = &mut self.routers[usize::from(router)];
        let known = this.view.clone().unwrap_or_default();
        let verdict = match anything {
            true => Verdict::Believed,
            false => this.belief.weigh(header, shown, &known),
        };
        match verdict {
            Verdict::Believed => this.belief.take(header, shown),
            Verdict::Accepted => this.belief.accept(header, shown),
            Verdict::WentBack(why) => {
                this.belief.doubt.get_or_insert(why);
            }
        }
        this.belief.doubt.is_none()
    }

    pub(super) fn begin_doubt(&mut self, node: NodeId, why: Arc<str>, told: Option<Told>) {
        let this = self.node_mut(node);
        let belief = &mut this.run_dir.store.belief;
        let is_new = belief.doubt.is_none();
        if let Some(told) = told {
            belief.hear(told);
        }
        belief.doubt.get_or_insert(why.clone());
        this.agent.is_store_shut = true;
        self.watches[usize::from(node)].seen = -1;
        if is_new {
            tell!(self, Actor::Agent(node), "does not believe the DCS: {why}");
            self.wake(node);
            self.leave_word_soon(node);
        }
    }

    /// An answer reached the agent's client: whether it counts.
    pub(super) fn client_believes(&mut self, node: NodeId, at: usize) -> bool {
        let request = &self.requests[at];
        let is_checked = match request.ask {
            Ask::Commit(_) | Ask::ReadLeader => true,
            Ask::Grant | Ask::KeepAlive(_) => false,
            Ask::Recreate(_) | Ask::Word(_) => return true,
        };
        if matches!(request.reply, Reply::None) || self.believes_anything() {
            return true;
        }
        let (before, header) = (request.before, request.header);
        let is_other = before.cluster_id != 0 && header.cluster_id != before.cluster_id;
        let is_less = header.revision < before.revision || header.term < before.term;
        if is_other || is_checked && is_less {
            let text = format!("{header:?} answers after {before:?}");
            self.begin_doubt(node, text.into(), None);
            return false;
        }
        let saw = &mut self.node_mut(node).agent.client_saw;
        saw.cluster_id = header.cluster_id;
        if is_checked {
            saw.revision = saw.revision.max(header.revision);
            saw.term = saw.term.max(header.term);
        }
        true
    }

    /// What decisions see of the store.
    pub(super) fn store_view(&self, node: NodeId) -> StoreView {
        let this = self.node(node);
        let kept = &this.run_dir.store;
        let doubted = this.agent.doubted.as_ref();
        StoreView {
            cluster_id: kept.belief.seen.cluster_id,
            revision: kept.belief.seen.revision,
            generation: kept.belief.generation,
            authority: self.authority(node),
            knew_others: this
                .postgres
                .data
                .as_ref()
                .is_some_and(|data| !data.members.is_empty()),
            is_unproved: self.is_unproved(node),
            doubt: kept.belief.doubt.as_ref().map(|why| Doubt {
                why: why.clone(),
                before: this.known().unwrap_or_default(),
                shown: doubted.map(|shown| Shown {
                    generation: shown.generation,
                    leader: shown.leader.as_ref().map(|leader| leader.member.clone()),
                    initialize: shown.initialize,
                }),
            }),
        }
    }

    pub(super) fn with_doubt(&self, mut seen: Observation) -> Observation {
        if let (Some(_), DcsView::Known { age, .. }) = (&seen.store.doubt, &mut seen.dcs) {
            *age = NOT_BELIEVED;
        }
        seen
    }

    fn believes(&self, name: &MemberName) -> bool {
        let node = self.id_of(name).map(|id| self.node(id));
        node.is_some_and(|node| node.agent.is_alive && node.run_dir.store.belief.doubt.is_none())
    }

    /// The keys as they were known, with the leader's key left out.
    fn keys_anew(
        &self,
        known: &Topology,
        shown: &Topology,
        succession: &Succession,
        keeps: impl Fn(&MemberName) -> bool,
    ) -> Txn {
        let put = |key, fact| Write::Put(key, fact, 0);
        let Txn { mut when, mut then } = vouched(shown, succession);
        let sync = shown.sync.as_ref().map_or(0, |sync| sync.revision);
        when.extend([
            as_seen(FactKey::Sync, sync),
            as_seen(FactKey::Timeline, shown.claim_revision()),
            as_seen(FactKey::Failsafe, shown.failsafe_revision),
        ]);
        if let Initialize::Done(id) = known.initialize {
            then.push(put(FactKey::Initialize, Fact::Initialize(Some(id))));
        }
        let mut keep = |key: FactKey, fact: Option<Fact>| match fact {
            Some(fact) => then.push(put(key, fact)),
            None => then.push(Write::Delete(key)),
        };
        keep(
            FactKey::Settings,
            known.settings.clone().map(Fact::Settings),
        );
        keep(FactKey::Sync, known.sync.clone().map(Fact::Sync));
        let is_listed = known.failsafe_revision > 0;
        keep(
            FactKey::Failsafe,
            is_listed.then(|| Fact::Failsafe(known.failsafe.clone())),
        );
        let is_claimed = known.claimed != ClaimedTimeline::default();
        keep(
            FactKey::Timeline,
            is_claimed.then_some(Fact::Timeline(known.claimed)),
        );
        keep(
            FactKey::History,
            (!known.is_history_behind).then(|| Fact::History(known.history.clone())),
        );
        keep(FactKey::Status, Some(Fact::Status(known.status.clone())));
        then.extend([FactKey::Failover, FactKey::Switchover].map(Write::Delete));
        let still = known.disarmed.iter().cloned();
        then.extend(still.map(|name| put(FactKey::Disarmed(name), Fact::Disarmed)));
        let disarmed = shown.disarmed.difference(&known.disarmed).cloned();
        let disarmed = disarmed.map(FactKey::Disarmed);
        let members = shown.members.keys().filter(|name| !keeps(name));
        let members = members.cloned().map(FactKey::Member);
        then.extend(disarmed.chain(members).map(Write::Delete));
        Txn { when, then }
    }

    /// The transaction of `RecreateKeys`, but for the leader's key.
    pub(super) fn recreation(&self, node: NodeId, generation: u64) -> Option<Txn> {
        let this = self.node(node);
        let kept = &this.run_dir.store;
        let known = this.agent.view.clone().or_else(|| kept.known.clone())?;
        let shown = this.agent.doubted.clone()?;
        let mut known = Topology::clone(&known);
        let end = this.postgres.data.as_ref().map_or(0, |data| data.end);
        known.status = Arc::new(Status {
            optime: known.status.optime.max(Lsn(end)),
            ..Status::clone(&known.status)
        });
        let before = shown.succeeds.iter().chain(known.succeeds.iter()).copied();
        let own = kept.belief.seen.cluster_id;
        let succession = Succession::new(generation, before.chain([own]));
        Some(self.keys_anew(&known, &shown, &succession, |_| false))
    }

    /// The keys were made anew by this agent, its leader key on `lease`.
    pub(super) fn recreated(&mut self, node: NodeId, at: usize, revision: i64, lease: i64) {
        let (sent, term, header) = {
            let request = &self.requests[at];
            (request.sent, request.term, request.header)
        };
        let this = self.node_mut(node);
        this.agent.is_store_shut = false;
        this.agent.lease.is_moving = false;
        this.agent.lease.id = lease;
        this.agent.lease.sent = sent;
        this.agent.lease.term = term;
        this.agent.lease.ordered = (sent, term);
        this.run_dir.lease = lease;
        this.agent.client_saw = header;
        this.agent.acceptances += 1;
        this.agent.has_recreated = true;
        self.count_taken(node, revision, at);
    }

    /// The number, and all stores that anybody has known.
    fn succession(&self, shown: &Topology, generation: u64) -> Succession {
        let of_agents = self.nodes.iter().flat_map(|node| {
            let kept = &node.run_dir.store;
            let known = kept.known.clone().unwrap_or_default();
            let own = kept.belief.seen.cluster_id;
            known
                .succeeds
                .iter()
                .copied()
                .chain([own])
                .collect::<Vec<u64>>()
        });
        let before = shown.succeeds.iter().copied().chain(of_agents);
        Succession::new(generation, before)
    }

    /// A router that outlived the others saw more than anybody remembers: started again, it sees what all see.
    fn start_wiser_routers_again(&mut self) {
        let shown = self.store.head.clone();
        for router in 0..self.plan.routers {
            let this = &mut self.routers[usize::from(router)];
            if this.saw_more(&shown) {
                this.start_again();
                self.start_watch(self.plan.members + router);
            }
        }
    }

    /// `trunkline accept-dcs`: once everybody is back and no agent could.
    pub(super) fn operator_accepts(&mut self, waited: Time) {
        // A lease of the store before may live for a ttl.
        let lease = self.plan.ttl.as_nanos() as Time;
        if waited < OPERATOR_WAITS + lease {
            return;
        }
        let doubts = |node: &Node| node.run_dir.store.belief.doubt.is_some();
        if !self.nodes.iter().any(doubts) {
            // What was paused or made a standby when the memory was lost is so again with it.
            self.set_pause(false);
            self.end_standby();
            self.empty_foreign(0);
            self.operator_writes_config();
            self.start_wiser_routers_again();
            return;
        }
        let is_again = self.accepted_at > 0 && self.now < self.accepted_at + lease + OPERATOR_WAITS;
        if is_again {
            return;
        }
        let wiser = self
            .nodes
            .iter()
            .filter(|node| node.run_dir.store.known.is_some());
        let Some(best) = wiser.max_by_key(|node| {
            let belief = &node.run_dir.store.belief;
            let doubts_by_itself = belief.doubt.is_some() && !belief.is_told;
            (belief.generation, doubts_by_itself, belief.seen.revision)
        }) else {
            return;
        };
        let mut known = Topology::clone(&best.run_dir.store.known.clone().unwrap_or_default());
        let of_data = (0..self.plan.members).filter_map(|node| self.local(node).timeline());
        let newest = of_data.max().unwrap_or_default();
        if newest > known.claimed.timeline && newest > Timeline(1) {
            known.claimed = ClaimedTimeline {
                timeline: newest,
                parent: Timeline(newest.0 - 1),
            };
        }
        let shown = self.store.head.clone();
        let generation = |node: &Node| node.run_dir.store.belief.generation;
        let doubting = self.nodes.iter().filter(|node| doubts(node));
        if doubting.map(generation).max() < Some(shown.generation) {
            // They are about to see it.
            return;
        }
        let highest = self.nodes.iter().map(generation).max().unwrap_or(0);
        let generation = highest.max(shown.generation) + 1;
        let succession = self.succession(&shown, generation);
        let txn = match &shown.leader {
            // Somebody leads by it: every other key is as it has written it.
            Some(leader) if self.believes(&leader.member) => vouched(&shown, &succession),
            // It ends by itself unless somebody renews it.
            Some(leader) if self.store.lease_ends(leader.lease).is_some() => return,
            Some(_) | None => {
                let keeps = |name: &MemberName| self.believes(name);
                self.keys_anew(&known, &shown, &succession, keeps)
            }
        };
        tell!(
            self,
            Actor::World,
            "the operator accepts the DCS as generation {generation}"
        );
        self.note_accepted();
        let before = self.store.leader().map(|(_, key)| key.revision);
        if self.store.commit(&txn).is_some() {
            self.dcs_changed(None, before);
        }
    }

    /// The store proved then that what this agent sees of it is the newest.
    pub(super) fn store_proved(&mut self, node: NodeId, at: Moment) {
        let ttl = self.plan.ttl;
        let this = self.node_mut(node);
        this.agent.proved = this.agent.proved.max(at);
        let kept = &mut this.run_dir.store;
        if kept.proved > Moment(0) && at.since(kept.proved) > ttl {
            kept.is_trusted = false;
        }
        kept.proved = kept.proved.max(at);
    }

    /// Whether a write or a leader key is of the store that answers now.
    pub(super) fn holds_by_an_earlier_store(&self, node: NodeId) -> bool {
        self.node(node).agent.lease.of_store != self.store.incarnation
    }
}

/// Only says that this store is the one.
fn vouched(shown: &Topology, succession: &Succession) -> Txn {
    let leader = shown.leader.as_ref();
    let leader = leader.map_or(0, |leader| leader.epoch.revision);
    let generation = Fact::Generation(succession.generation);
    let stores = Fact::Succeeds(succession.stores.as_slice().into());
    Txn {
        when: vec![
            as_seen(FactKey::Leader, leader),
            Compare::Generation(shown.generation),
        ],
        then: vec![
            Write::Put(FactKey::Generation, generation, 0),
            Write::Put(FactKey::Succeeds, stores, 0),
        ],
    }
}

fn as_seen(key: FactKey, revision: i64) -> Compare {
    match revision {
        0 => Compare::Absent(key),
        revision => Compare::Revision(key, revision),
    }
}
