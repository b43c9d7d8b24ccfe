//! Replication slots: whose position moves, what is dropped, and the two rules about that.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_agent::decide::observation::SlotView;
use trunkline_shared::cluster::Lsn;
use trunkline_shared::cluster::slots::{PermanentSlot, SlotKind};
use trunkline_shared::cluster::topology::Status;

use super::event::NodeId;
use super::fake_postgres::{FIRST_LSN, Phase};
use super::invariants::Invariant;
use super::world::World;

/// The permanent slot of every world's configuration: an archiver's, which is never connected.
pub(super) const ARCHIVE: &str = "archive";

/// The furthest position that a primary's slot of each name was ever at.
pub(super) type Furthest = BTreeMap<Arc<str>, u64>;

/// The `slots` of every world's configuration.
pub(super) fn permanent() -> BTreeMap<String, PermanentSlot> {
    let slot = PermanentSlot {
        kind: SlotKind::Physical,
        only_in: None,
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
    }
}

impl World {
    /// Before a look: each slot stands where its user has confirmed to be.
    pub(super) fn refresh_slots(&mut self, node: NodeId) {
        let mut slots = self.node(node).postgres.slots.clone();
        let data = self.node(node).postgres.data.as_ref();
        let is_above = self.node(node).postgres.phase == Phase::Primary
            || data.is_some_and(|data| data.follows_remote);
        for slot in Arc::make_mut(&mut slots) {
            let user = self.nodes.iter().find(|user| {
                let data = user.postgres.data.as_ref();
                user.postgres.is_streaming
                    && user.name.as_str() == &*slot.name
                    && data.is_some_and(|data| data.upstream == Some(node))
            });
            slot.is_active = user.is_some();
            let confirmed = user.and_then(|user| user.postgres.data.as_ref());
            let confirmed = confirmed.map_or(0, |data| data.end);
            slot.position = slot.position.max(Lsn(confirmed));
            if is_above {
                self.ledger.note_slot(&slot.name, slot.position.0);
            }
        }
        if is_above {
            // A leader publishes its own position as that of the slot it will need one day.
            let end = self.node(node).postgres.data.as_ref().map_or(0, |d| d.end);
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
