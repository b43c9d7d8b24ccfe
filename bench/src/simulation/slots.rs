//! Replication slots: whose position moves, what is dropped, and the two rules about that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_agent::decide::observation::{Local, SlotView, SynchronizedSlots};
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::slots::{PermanentSlot, SlotKind};
use trunkline_shared::cluster::topology::Status;
use trunkline_shared::cluster::{Lsn, MemberName};

use super::event::NodeId;
use super::fake_postgres::{FIRST_LSN, Phase};
use super::invariants::Invariant;
use super::plan::Plan;
use super::world::World;

/// The permanent slot of every world's configuration: an archiver's, which is never connected.
pub(super) const ARCHIVE: &str = "archive";

/// A permanent logical slot, which some worlds have. Its consumer is never behind.
pub(super) const DECODED: &str = "decoded";

/// `slots` of a world.
pub(super) fn configured(plan: &Plan) -> BTreeMap<String, PermanentSlot> {
    let mut slots = permanent();
    if plan.has_logical_slot {
        let slot = PermanentSlot {
            kind: decoded(),
            only_in: None,
            is_failover: plan.keeps_slots,
        };
        slots.insert(DECODED.to_owned(), slot);
    }
    slots
}

fn decoded() -> SlotKind {
    SlotKind::Logical {
        database: Arc::from("app"),
        plugin: Arc::from("pgoutput"),
    }
}

/// The furthest position that a primary's slot of each name was ever at.
pub(super) type Furthest = BTreeMap<Arc<str>, u64>;

/// The `slots` of every world's configuration.
fn permanent() -> BTreeMap<String, PermanentSlot> {
    let slot = PermanentSlot {
        kind: SlotKind::Physical,
        only_in: None,
        is_failover: false,
    };
    BTreeMap::from([(ARCHIVE.to_owned(), slot)])
}

/// The slot as the first primary of a running cluster has it.
pub(super) fn archives() -> SlotView {
    slot(Arc::from(ARCHIVE), FIRST_LSN)
}

fn slot(name: Arc<str>, position: u64) -> SlotView {
    SlotView {
        name,
        kind: SlotKind::Physical,
        position: Lsn(position),
        is_active: false,
        is_temporary: false,
        is_failover: false,
        is_synced: false,
        is_lost: false,
        has_xmin: false,
        is_ready: false,
    }
}

impl World {
    /// Before a look: each slot stands where its user has confirmed to be.
    pub(super) fn refresh_slots(&mut self, node: NodeId) {
        let mut slots = self.node(node).postgres.slots.clone();
        let postgres = &self.node(node).postgres;
        let is_primary = postgres.phase == Phase::Primary;
        let data = postgres.data.as_ref();
        let is_above = is_primary || data.is_some_and(|data| data.follows_remote);
        let end = data.map_or(0, |data| data.end);
        let confirmed_there = self.confirmed_by_standbys(node);
        for slot in Arc::make_mut(&mut slots) {
            let user = self.nodes.iter().find(|user| {
                let data = user.postgres.data.as_ref();
                user.postgres.is_streaming
                    && user.name.as_str() == &*slot.name
                    && data.is_some_and(|data| data.upstream == Some(node))
            });
            slot.is_active = user.is_some();
            let confirmed = user.and_then(|user| user.postgres.data.as_ref());
            if is_primary && slot.kind != SlotKind::Physical {
                slot.position = slot.position.max(Lsn(end.min(confirmed_there)));
            }
            let confirmed = confirmed.map_or(0, |data| data.end);
            slot.position = slot.position.max(Lsn(confirmed));
            if is_above {
                self.ledger.note_slot(&slot.name, slot.position.0);
            }
        }
        if is_above {
            // A leader publishes its own position as that of the slot it will need one day.
            let own = Arc::from(self.node(node).name.as_str());
            self.ledger.note_slot(&own, end);
        }
        self.node_mut(node).postgres.slots = slots;
        self.keep_slots_in_step(node);
    }

    /// A world in which PostgreSQL keeps slots in step by itself is one of version 17.
    pub(super) fn say_who_keeps_slots(&mut self, node: NodeId, local: &mut Local) {
        let postgres = &mut self.node_mut(node).postgres;
        if postgres.phase != Phase::Primary {
            // A replica starts without its file.
            postgres.synchronized = SynchronizedSlots::Unset;
        }
        let synchronized = postgres.synchronized.clone();
        if let Local::Running(running) = local
            && self.plan.keeps_slots
        {
            running.major = 17;
            running.synchronized = synchronized;
        }
    }

    /// What PostgreSQL does by itself on a standby: it makes and moves copies of the slots with `failover`, unless
    /// one that it did not make has their name.
    fn keep_slots_in_step(&mut self, node: NodeId) {
        let postgres = &self.node(node).postgres;
        let data = postgres.data.as_ref();
        let from = data.and_then(|data| data.upstream).filter(|_| {
            let is_replica = matches!(postgres.phase, Phase::Replica { .. });
            self.plan.keeps_slots && is_replica && postgres.is_streaming
        });
        let (Some(from), Some(data)) = (from, data) else {
            return;
        };
        let there = self
            .nodes
            .get(usize::from(from))
            .map(|there| &there.postgres);
        let theirs = there.map(|there| there.slots.clone()).unwrap_or_default();
        let end = Lsn(data.end);
        let slots = Arc::make_mut(&mut self.node_mut(node).postgres.slots);
        // Nothing is kept of which this server lacks WAL.
        for slot in theirs
            .iter()
            .filter(|slot| slot.is_failover && slot.position <= end)
        {
            match slots.iter_mut().find(|own| own.name == slot.name) {
                None => slots.push(SlotView {
                    is_synced: true,
                    ..slot.clone()
                }),
                Some(own) if own.is_synced => own.position = own.position.max(slot.position),
                Some(_) => {}
            }
        }
    }

    /// How far a consumer of a `failover` slot of this primary may be.
    fn confirmed_by_standbys(&self, node: NodeId) -> u64 {
        let postgres = &self.node(node).postgres;
        let end = postgres.data.as_ref().map_or(0, |data| data.end);
        let SynchronizedSlots::Set(names) = &postgres.synchronized else {
            return end;
        };
        let waited_for = postgres
            .slots
            .iter()
            .filter(|slot| names.contains(&slot.name));
        waited_for.map(|slot| slot.position.0).fold(end, u64::min)
    }

    pub(super) fn set_synchronized_slots(
        &mut self,
        node: NodeId,
        names: &BTreeSet<Arc<str>>,
    ) -> bool {
        let names = SynchronizedSlots::Set(Arc::new(names.clone()));
        self.node_mut(node).postgres.synchronized = names;
        true
    }

    /// `logical_slots_are_everywhere`, `consumers_wait_for_standbys`
    pub(super) fn slots_are_in_place(&self, leader: NodeId) -> Result<(), (Invariant, String)> {
        for node in 0..self.plan.members {
            if self.lacks_logical_slots(node) {
                let detail = format!("{} lacks the logical slot", self.node(node).name);
                return Err((Invariant::LogicalSlotsAreEverywhere, detail));
            }
        }
        if !self.waits_for_others(leader) {
            let detail = format!("consumers of {} wait for nobody", self.node(leader).name);
            return Err((Invariant::ConsumersWaitForStandbys, detail));
        }
        Ok(())
    }

    fn waits_for_others(&self, leader: NodeId) -> bool {
        let members = self.nodes.iter().take(usize::from(self.plan.members));
        let others = members.filter(|other| other.name != self.node(leader).name);
        let streaming = others.filter(|other| {
            let data = other.postgres.data.as_ref();
            let may_lead = other.agent.me.tags.may_lead();
            may_lead
                && other.postgres.is_streaming
                && data.is_some_and(|data| data.upstream == Some(leader))
        });
        let wanted: BTreeSet<Arc<str>> = streaming
            .map(|other| other.name.slot_name().into())
            .collect();
        match &self.node(leader).postgres.synchronized {
            SynchronizedSlots::Set(names) => {
                names.is_superset(&wanted) || self.settings.synchronous_mode != SynchronousMode::Off
            }
            SynchronizedSlots::NotOurs | SynchronizedSlots::Unset => !self.plan.keeps_slots,
        }
    }

    /// Whether the server answers statements.
    fn takes_statements(&self, node: NodeId) -> bool {
        matches!(
            self.node(node).postgres.phase,
            Phase::Primary | Phase::Replica { .. }
        )
    }

    pub(super) fn create_slots(&mut self, node: NodeId, names: &[Arc<str>]) -> bool {
        if !self.takes_statements(node) {
            return false;
        }
        let postgres = &mut self.node_mut(node).postgres;
        let from = postgres
            .data
            .as_ref()
            .map_or(0, |data| data.redo.min(data.end));
        let slots = Arc::make_mut(&mut postgres.slots);
        slots.retain(|slot| !names.contains(&slot.name));
        slots.extend(names.iter().map(|name| slot(name.clone(), from)));
        true
    }

    /// `no_permanent_slot_dropped`
    pub(super) fn drop_slots(&mut self, node: NodeId, names: &[Arc<str>]) -> bool {
        if !self.takes_statements(node) {
            return false;
        }
        // A standby's own slot in the way of the copy that PostgreSQL keeps there serves nobody.
        let is_replica = self.node(node).postgres.phase != Phase::Primary;
        let own = self.node(node).postgres.slots.clone();
        let is_in_the_way = |name: &Arc<str>| {
            let mut own = own.iter();
            let is_one = |slot: &SlotView| slot.is_failover && !slot.is_synced;
            is_replica && own.any(|slot| slot.name == *name && is_one(slot))
        };
        if names
            .iter()
            .any(|name| self.settings.slots.contains_key(&**name) && !is_in_the_way(name))
        {
            let detail = format!("{} drops {names:?}", self.node(node).name);
            self.fail(Invariant::NoPermanentSlotDropped, detail);
        }
        if !is_replica {
            self.check_slots_of_members(node, names);
        }
        let slots = Arc::make_mut(&mut self.node_mut(node).postgres.slots);
        slots.retain(|slot| slot.is_active || !names.contains(&slot.name));
        true
    }

    /// The leader's logical slots as they are now, and the end of the instance that takes them.
    pub(super) fn copy_logical_slots(&mut self, node: NodeId, source: Option<&MemberName>) -> bool {
        let Some((id, _)) = self.source(node, source) else {
            return false;
        };
        if !self.takes_statements(node) || self.node(id).postgres.phase != Phase::Primary {
            return false;
        }
        // What the slot reads from may never have been here, until its consumer has gone on: in a calm world it has.
        if self.rng.u8(..4) == 0 && !self.is_calm {
            return false;
        }
        let theirs = self.node(id).postgres.slots.clone();
        let logical = theirs.iter().filter(|slot| slot.kind != SlotKind::Physical);
        let copies: Vec<SlotView> = logical
            .map(|slot| SlotView {
                is_ready: false,
                ..slot.clone()
            })
            .collect();
        self.postmaster_ends(node);
        let postgres = &mut self.node_mut(node).postgres;
        if let Some(data) = &mut postgres.data {
            data.is_clean = true;
        }
        let slots = Arc::make_mut(&mut postgres.slots);
        slots.retain(|slot| slot.kind == SlotKind::Physical);
        slots.extend(copies);
        true
    }

    pub(super) fn tend_logical_slots(&mut self, node: NodeId) -> bool {
        if !self.takes_statements(node) {
            return false;
        }
        let care = self.node(node).agent.slot_care.clone();
        let end = self.node(node).postgres.data.as_ref().map_or(0, |d| d.end);
        let is_primary = self.node(node).postgres.phase == Phase::Primary;
        for new in care.create.iter().filter(|_| is_primary) {
            let made = SlotView {
                kind: decoded(),
                is_ready: true,
                is_failover: new.is_failover,
                ..slot(new.name.clone(), end)
            };
            Arc::make_mut(&mut self.node_mut(node).postgres.slots).push(made);
        }
        let to: Vec<_> = care
            .advance
            .iter()
            .map(|to| (to.slot.name.clone(), to.to))
            .collect();
        self.advance_slots(node, &to);
        let of = care.of.and_then(|of| of.member);
        let is_reached = self.source(node, of.as_ref()).is_some();
        let slots = Arc::make_mut(&mut self.node_mut(node).postgres.slots);
        for slot in slots.iter_mut().filter(|_| is_reached) {
            slot.is_ready |= care.prove.contains(&slot.name);
        }
        is_reached || care.prove.is_empty()
    }

    fn lacks_logical_slots(&self, node: NodeId) -> bool {
        let postgres = &self.node(node).postgres;
        let is_kept = |slot: &SlotView| {
            let is_primary = postgres.phase == Phase::Primary;
            is_primary || slot.is_synced || !self.plan.keeps_slots
        };
        let mut slots = postgres.slots.iter();
        let is_there = slots.any(|slot| &*slot.name == DECODED && is_kept(slot));
        self.settings.slots.contains_key(DECODED) && !is_there
    }

    /// `a_slot_never_passes_its_primary`
    pub(super) fn advance_slots(&mut self, node: NodeId, to: &[(Arc<str>, Lsn)]) -> bool {
        if !self.takes_statements(node) {
            return false;
        }
        for (name, Lsn(to)) in to {
            let furthest = self.ledger.slots.get(name).copied().unwrap_or(0);
            if *to > furthest {
                let who = &self.node(node).name;
                let detail =
                    format!("{who} moves the slot {name} to {to}, its primary's is at {furthest}");
                self.fail(Invariant::ASlotNeverPassesItsPrimary, detail);
            }
            let slots = Arc::make_mut(&mut self.node_mut(node).postgres.slots);
            if let Some(slot) = slots.iter_mut().find(|slot| slot.name == *name) {
                slot.position = slot.position.max(Lsn(*to));
            }
        }
        true
    }
}

/// A status whose slots all stand where the leader does.
pub(super) fn all_at_the_leaders(status: &Status) -> Status {
    let slots = status.slots.keys();
    Status {
        slots: slots.map(|name| (name.clone(), status.optime)).collect(),
        ..status.clone()
    }
}
