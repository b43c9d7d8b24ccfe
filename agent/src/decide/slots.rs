//! Which replication slots should exist, and how far they stand.
//!
//! Only slots made for members, and physical ones nobody has used for `member_slots_ttl`, are ever dropped.
//! A temporary, ignored, permanent, `failover` or logical slot is somebody's, whoever forgot it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_shared::cluster::slots::SlotKind;
use trunkline_shared::cluster::topology::Status;
use trunkline_shared::cluster::{ClusterSettings, Lsn, Member, Topology};

use super::Turn;
use super::decision::{Action, Reason};
use super::memory::Memory;
use super::observation::{Observation, Running, SlotView};

/// What is to be done to the slots of an instance, in this order: `max_replication_slots` counts a slot that
/// is to go beside one that is to come.
#[derive(Debug, Default)]
pub(super) struct SlotPlan {
    pub(super) drop: Vec<Arc<str>>,
    pub(super) create: Vec<Arc<str>>,
}

impl SlotPlan {
    /// Adds what there is to do.
    pub(super) fn carry_out(self, mut turn: Turn<'_>) -> Turn<'_> {
        if !self.drop.is_empty() {
            turn = turn
                .act(Action::DropSlots(self.drop))
                .because(Reason::MaintainingSlots);
        }
        if !self.create.is_empty() {
            turn = turn
                .act(Action::CreateSlots(self.create))
                .because(Reason::MaintainingSlots);
        }
        turn
    }
}

/// Names of slots wanted on an instance.
type Names = BTreeSet<Arc<str>>;

/// The slots of the members that replicate from this leader.
fn of_members(seen: &Observation, topology: &Topology) -> Names {
    let others = topology
        .members
        .values()
        .filter(|member| member.name != seen.me.name);
    others.map(|member| slot_of(member)).collect()
}

fn slot_of(member: &Member) -> Arc<str> {
    member.name.slot_name().into()
}

/// Slots that were wanted of late: those wanted now, those the leader published as kept, and those used.
fn note_needed(
    seen: &Observation,
    topology: &Topology,
    running: &Running,
    wanted: &Names,
    memory: &mut Memory,
) {
    let needed = &mut memory.slot_needed;
    for name in wanted {
        needed.insert(name.clone(), seen.now);
    }
    for slot in running.slots.iter().filter(|slot| is_physical(slot)) {
        if slot.is_active {
            needed.insert(slot.name.clone(), seen.now);
        }
        // A slot met for the first time, by this run of the agent, may have been used until just now.
        needed.entry(slot.name.clone()).or_insert(seen.now);
    }
    let published = &topology.status.retain_slots;
    needed.retain(|name, _| {
        let exists = running.slots.iter().any(|slot| slot.name == *name);
        exists || wanted.contains(name) || published.iter().any(|kept| **kept == **name)
    });
}

/// What this leader's instance lacks and what it has too much.
pub(super) fn on_leader(
    seen: &Observation,
    topology: &Topology,
    running: &Running,
    memory: &mut Memory,
) -> SlotPlan {
    let settings = seen.settings();
    if !settings.use_slots {
        return SlotPlan::default();
    }
    let wanted = of_members(seen, topology);
    note_needed(seen, topology, running, &wanted, memory);
    plan(seen, &settings, running, &wanted, memory)
}

/// A replica drops only what it has had no use for.
pub(super) fn on_replica(
    seen: &Observation,
    topology: &Topology,
    running: &Running,
    memory: &mut Memory,
) -> SlotPlan {
    let settings = seen.settings();
    if !settings.use_slots {
        return SlotPlan::default();
    }
    let wanted = Names::new();
    note_needed(seen, topology, running, &wanted, memory);
    plan(seen, &settings, running, &wanted, memory)
}

fn plan(
    seen: &Observation,
    settings: &ClusterSettings,
    running: &Running,
    wanted: &Names,
    memory: &Memory,
) -> SlotPlan {
    let drop: Vec<_> = running
        .slots
        .iter()
        .filter(|slot| may_be_dropped(settings, slot))
        .filter(|slot| !wanted.contains(&slot.name))
        .filter(|slot| {
            let needed = memory.slot_needed.get(&slot.name);
            needed.is_none_or(|at| seen.now.since(*at) >= settings.member_slots_ttl)
        })
        .map(|slot| slot.name.clone())
        .collect();
    let create = wanted
        .iter()
        .filter(|name| !running.slots.iter().any(|slot| slot.name == **name))
        .cloned()
        .collect();
    SlotPlan { drop, create }
}

/// Whether it may be a forgotten slot of a member, and nobody else's.
fn may_be_dropped(settings: &ClusterSettings, slot: &SlotView) -> bool {
    let is_somebodys = slot.is_active || slot.is_temporary || slot.is_failover;
    let is_ignored = settings
        .ignore_slots
        .iter()
        .any(|pattern| pattern.matches(&slot.name, &slot.kind));
    is_physical(slot) && !is_somebodys && !is_ignored && !settings.slots.contains_key(&*slot.name)
}

fn is_physical(slot: &SlotView) -> bool {
    slot.kind == SlotKind::Physical
}

/// What the leader publishes: its position and its slots', and the slots that everybody keeps.
pub(super) fn status(
    seen: &Observation,
    topology: &Topology,
    running: &Running,
    position: Lsn,
    memory: &Memory,
) -> Status {
    let settings = seen.settings();
    let optime = position.max(topology.status.optime);
    if !settings.use_slots {
        return Status {
            optime,
            ..Status::default()
        };
    }
    let wanted = of_members(seen, topology);
    let was_kept = |name: &str| topology.status.retain_slots.iter().any(|kept| kept == name);
    let is_recent = |name: &str| {
        let needed = memory.slot_needed.get(name);
        needed.is_none_or(|at| seen.now.since(*at) < settings.member_slots_ttl)
    };
    let kept = running
        .slots
        .iter()
        .filter(|slot| is_physical(slot) && was_kept(&slot.name) && is_recent(&slot.name))
        .map(|slot| slot.name.clone());
    let retained: Names = wanted.into_iter().chain(kept).collect();
    let mut slots: BTreeMap<String, Lsn> = running
        .slots
        .iter()
        .filter(|slot| retained.contains(&slot.name) || settings.slots.contains_key(&*slot.name))
        .filter(|slot| slot.position > Lsn(0) && !slot.is_temporary)
        .map(|slot| (slot.name.to_string(), slot.position))
        .collect();
    slots.insert(seen.me.name.slot_name(), position);
    Status {
        optime,
        slots,
        retain_slots: retained.iter().map(ToString::to_string).collect(),
    }
}
