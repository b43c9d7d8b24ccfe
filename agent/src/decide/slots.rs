//! Which replication slots should exist.

use std::sync::Arc;

use trunkline_shared::cluster::Topology;

use super::memory::Memory;
use super::observation::{Observation, Running};

/// The slots that this leader's members need and those that nobody needs any more.
pub(super) fn of_members(
    seen: &Observation,
    topology: &Topology,
    running: &Running,
    memory: &mut Memory,
) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
    let settings = seen.settings();
    if !settings.use_slots {
        return (Vec::new(), Vec::new());
    }
    for name in topology
        .members
        .keys()
        .filter(|name| **name != seen.me.name)
    {
        memory.slot_owner_seen.insert(name.clone(), seen.now);
    }
    let ttl = settings.member_slots_ttl;
    memory
        .slot_owner_seen
        .retain(|_, at| seen.now.since(*at) <= ttl);
    let wanted: Vec<String> = memory
        .slot_owner_seen
        .keys()
        .map(|name| name.slot_name())
        .collect();
    let missing = wanted
        .iter()
        .filter(|name| !running.slots.iter().any(|slot| *slot.name == ***name))
        .map(|name| Arc::from(name.as_str()))
        .collect();
    let unneeded = running
        .slots
        .iter()
        .filter(|slot| !slot.is_active && !wanted.iter().any(|name| *slot.name == **name))
        .map(|slot| slot.name.clone())
        .collect();
    (missing, unneeded)
}
