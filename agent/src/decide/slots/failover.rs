//! Slots that PostgreSQL 17 and later keeps on standbys by itself (`failover`): nothing of them is copied or moved
//! here. What is left to an agent: whom their consumers wait for on the primary, and the slot that a former
//! primary would keep in the way of the one which PostgreSQL makes.

use std::collections::BTreeSet;
use std::sync::Arc;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::slots::SlotKind;
use trunkline_shared::cluster::{ClusterSettings, MemberName, Topology};

use super::{logical, of_followers};
use crate::decide::Turn;
use crate::decide::decision::{Action, Reason};
use crate::decide::observation::{Running, SlotView, SynchronizedSlots};

/// The first major version that has them.
pub(super) const SINCE: u32 = 17;

/// Whether anybody relies on such slots: the configuration, or whoever made one on this server.
fn is_used(settings: &ClusterSettings, running: &Running) -> bool {
    let is_one = |slot: &SlotView| slot.is_failover && slot.kind != SlotKind::Physical;
    logical::wanted(settings).any(|slot| slot.is_failover) || running.slots.iter().any(is_one)
}

/// A consumer gets nothing that a member which may lead next could lack: `synchronized_standby_slots`.
pub(in crate::decide) fn on_primary<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
) -> Turn<'a> {
    let settings = turn.seen.settings();
    let is_used = settings.use_slots && is_used(&settings, running);
    let own = match &running.synchronized {
        SynchronizedSlots::NotOurs => return turn,
        SynchronizedSlots::Unset if !is_used => return turn,
        SynchronizedSlots::Unset => None,
        SynchronizedSlots::Set(own) => Some(own),
    };
    let wanted = if is_used {
        confirming(&turn, topology, running)
    } else {
        BTreeSet::new()
    };
    if own.is_some_and(|own| **own == wanted) {
        return turn;
    }
    turn.act(Action::SetSynchronizedSlots(wanted))
        .because(Reason::MaintainingSlots)
}

/// The slots here of the members that may lead next: whom commits wait for where they do, else whoever streams.
/// One that is down would hold every consumer up, and one whose slot is elsewhere cannot be waited for.
fn confirming(turn: &Turn<'_>, topology: &Topology, running: &Running) -> BTreeSet<Arc<str>> {
    let seen = turn.seen;
    let me = &seen.me.name;
    let here = of_followers(seen, topology, me, me);
    let is_here = |name: &MemberName| {
        let slot = name.slot_name();
        let named = |view: &SlotView| view.name.as_ref() == slot && !view.is_lost;
        let exists = |view: &SlotView| named(view) && view.kind == SlotKind::Physical;
        here.contains(slot.as_str()) && running.slots.iter().any(exists)
    };
    let streams = |name: &MemberName| {
        let mut senders = running.commits.senders.iter();
        senders.any(|sender| sender.name == *name && sender.is_streaming)
    };
    let (in_force, _) = running.commits.in_force.waited_for();
    let recorded = topology.sync.as_ref().map(|sync| sync.standbys.as_slice());
    let waited_for = match seen.settings().synchronous_mode {
        SynchronousMode::Off => None,
        SynchronousMode::On | SynchronousMode::Quorum => recorded.filter(|names| !names.is_empty()),
    };
    let may_lead_next = topology.members.values().filter(|member| match waited_for {
        Some(names) => names.contains(&member.name) || in_force.contains(&member.name),
        None => member.tags.may_lead() && streams(&member.name),
    });
    may_lead_next
        .filter(|member| is_here(&member.name))
        .map(|member| member.name.slot_name().into())
        .collect()
}

/// What a former primary kept of its own slots: PostgreSQL makes no copy beside one of the same name. The leader
/// has the slot, so nothing is lost with it.
pub(super) fn in_the_way(
    settings: &ClusterSettings,
    topology: &Topology,
    running: &Running,
) -> Vec<Arc<str>> {
    let is_ignored = |slot: &SlotView| {
        let mut patterns = settings.ignore_slots.iter();
        patterns.any(|pattern| pattern.matches(&slot.name, &slot.kind))
    };
    let is_one = |slot: &&SlotView| {
        let is_own = slot.is_failover && !slot.is_synced && slot.kind != SlotKind::Physical;
        let is_free = !slot.is_active && !slot.is_temporary && !is_ignored(slot);
        is_own && is_free && topology.status.slots.contains_key(&*slot.name)
    };
    let slots = running.slots.iter().filter(is_one);
    slots.map(|slot| slot.name.clone()).collect()
}

/// Whether PostgreSQL has made a copy of this slot here that a consumer may go on with.
pub(super) fn is_kept(slot: Option<&SlotView>) -> bool {
    slot.is_some_and(|slot| slot.is_synced && !slot.is_temporary && !slot.is_lost)
}
