//! Disks that are lost, and what is found in the place of one.

use fastrand::Rng;
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::topology::Initialize;

use super::event::{NodeId, SECOND};
use super::fake_postgres::{Data, Phase};
use super::plan::{Fault, FaultKind, Origin, Plan};
use super::world::World;

/// In one world in so many the leader loses its disk.
const LEADERS_DISK: u8 = 40;

impl Plan {
    /// By a source of its own, so that what else strikes, and when, is the same in the worlds without.
    pub(super) fn draw_lost_disk(&mut self, rng: &Rng) {
        if self.origin != Origin::Running || self.is_taken() {
            return;
        }
        let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0x105D);
        if own.u8(..LEADERS_DISK) > 0 {
            return;
        }
        self.faults.push(Fault {
            at: own.u64(5 * SECOND..20 * SECOND),
            lasts: SECOND,
            kind: FaultKind::LeaderDataLost,
            node: 0,
            other: 1,
            hits_leader: true,
        });
        self.faults.sort_by_key(|fault| fault.at);
    }
}

impl World {
    /// The leader loses its disk. Only where somebody who may take over has all of it: what is lost else no software
    /// brings back.
    pub(super) fn lose_leaders_disk(&mut self, node: NodeId) -> bool {
        let this = self.node(node);
        let leader = self.store.leader();
        let leads = leader.is_some_and(|(name, _)| *name == this.name);
        let is_primary = this.postgres.phase == Phase::Primary;
        let others = (0..self.plan.members).filter(|other| *other != node);
        let mut heirs =
            others.filter(|other| self.could_lead(*other) && self.has_all_of(*other, node));
        if !leads || !is_primary || heirs.next().is_none() {
            return false;
        }
        self.die(node);
        self.node_mut(node).postgres.data = None;
        self.wake(node);
        true
    }

    /// Whether that member has all that the other has written, and is synchronous in a cluster that ever was.
    fn has_all_of(&self, heir: NodeId, leader: NodeId) -> bool {
        let data = |node| self.node(node).postgres.data.as_ref();
        let (Some(its), Some(all)) = (data(heir), data(leader)) else {
            return false;
        };
        let shared = self.branches.shared_until(its.branch, its.end, all.branch);
        // Who is not listed does not race: somebody may lead by the consent of those who are.
        let listed = &self.store.head.failsafe;
        let may_race = listed.is_empty() || listed.contains_key(&self.node(heir).name);
        may_race
            && shared.is_some_and(|shared| shared >= all.end)
            && (self.plan.synchronous_mode == SynchronousMode::Off || self.is_elected(heir))
    }

    /// Whether the record lets it lead, by the votes that it needs.
    fn is_elected(&self, heir: NodeId) -> bool {
        let Some(record) = &self.store.head.sync else {
            return false;
        };
        let name = &self.node(heir).name;
        let voters = record.standbys.iter().filter(|voter| *voter != name);
        let voters = voters.filter_map(|voter| self.id_of(voter));
        let votes = voters.filter(|voter| self.could_lead(*voter)).count();
        record.standbys.contains(name)
            && u32::try_from(votes).is_ok_and(|votes| votes >= record.quorum)
    }

    /// A disk is lost, or another cluster's is found in its place. Never that of the leader, and never
    /// the newest: what is lost then no software brings back.
    pub(super) fn replace_disk(&mut self, fault: Fault) -> bool {
        let node = fault.other;
        let is_leader = self
            .store
            .leader()
            .is_some_and(|(name, _)| *name == self.node(node).name);
        let leads_elsewhere = self
            .store
            .leader()
            .and_then(|(name, _)| self.id_of(name))
            .is_some_and(|id| self.node(id).postgres.phase == Phase::Primary);
        // An old copy of the store names a former leader.
        let truth = &self.store.cluster().leader;
        let has_led = truth.as_ref().map(|led| &led.member) == Some(&self.node(node).name);
        let is_leader = is_leader || has_led;
        if is_leader || !leads_elsewhere || self.node(node).postgres.data.is_none() {
            return false;
        }
        self.die(node);
        let is_foreign = fault.kind == FaultKind::DataForeign;
        let root = self.branches.root();
        let system_id = self.rng.u64(1..1 << 62);
        let postgres = &mut self.node_mut(node).postgres;
        postgres.data = is_foreign.then(|| Data::new(system_id, root));
        self.wake(node);
        true
    }

    /// An operator empties directories that belong to another cluster.
    pub(super) fn empty_foreign(&mut self, _node: NodeId) {
        let Initialize::Done(id) = self.store.head.initialize else {
            return;
        };
        for node in 0..self.plan.members {
            let is_foreign = self
                .node(node)
                .postgres
                .data
                .as_ref()
                .is_some_and(|d| d.system_id != id.0);
            if is_foreign {
                self.die(node);
                self.node_mut(node).postgres.data = None;
                self.wake(node);
            }
        }
    }
}
