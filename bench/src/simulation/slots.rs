//! Replication slots: whose position moves, what is dropped, and the two rules about that.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_agent::decide::observation::SlotView;
use trunkline_shared::cluster::slots::{PermanentSlot, SlotKind};
use trunkline_shared::cluster::topology::Status;
use trunkline_shared::cluster::{Lsn, MemberName};

use super::event::NodeId;
use super::fake_postgres::{FIRST_LSN, Phase};
use super::invariants::Invariant;
use super::world::World;

/// The permanent slot of every world's configuration: an archiver's, which is never connected.
pub(super) const ARCHIVE: &str = "archive";

/// A permanent logical slot, which some worlds have. Its consumer is never behind.
pub(super) const DECODED: &str = "decoded";

/// `slots` of a world that has it.
pub(super) fn with_logical(
    mut slots: BTreeMap<String, PermanentSlot>,
) -> BTreeMap<String, PermanentSlot> {
    let slot = PermanentSlot {
        kind: decoded(),
        only_in: None,
        is_failover: false,
    };
    slots.insert(DECODED.to_owned(), slot);
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
pub(super) fn permanent() -> BTreeMap<String, PermanentSlot> {
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
                slot.position = slot.position.max(Lsn(end));
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
        if names
            .iter()
            .any(|name| self.settings.slots.contains_key(&**name))
        {
            let detail = format!("{} drops {names:?}", self.node(node).name);
            self.fail(Invariant::NoPermanentSlotDropped, detail);
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
        // What the slot reads from may never have been here, until its consumer has gone on.
        if self.rng.u8(..4) == 0 {
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

    /// `logical_slots_are_everywhere`
    pub(super) fn lacks_logical_slots(&self, node: NodeId) -> bool {
        let slots = &self.node(node).postgres.slots;
        let is_there = slots.iter().any(|slot| &*slot.name == DECODED);
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
