//! Which replication slots should exist, and how far they stand.
//!
//! Only slots made for members, and physical ones nobody has used for `member_slots_ttl`, are ever dropped.
//! A temporary, ignored, permanent, `failover` or logical slot is somebody's, whoever forgot it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_shared::cluster::slots::{ClusterType, SlotKind};
use trunkline_shared::cluster::topology::Status;
use trunkline_shared::cluster::{ClusterSettings, Lsn, Member, MemberName, Timeline, Topology};

pub(super) mod failover;
pub(super) mod logical;

use super::decision::{Action, Reason};
use super::memory::Memory;
use super::observation::{Observation, Running, RunningRole, SlotView};
use super::{Turn, upstream};

/// What is to be done to the slots of an instance, in this order: `max_replication_slots` counts a slot that
/// is to go beside one that is to come.
#[derive(Debug, Default)]
pub(super) struct SlotPlan {
    pub(super) drop: Vec<Arc<str>>,
    pub(super) create: Vec<Arc<str>>,
    pub(super) advance: Vec<(Arc<str>, Lsn)>,
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
        // It comes with every turn of a busy cluster: no reason of its own.
        if !self.advance.is_empty() {
            turn = turn.act(Action::AdvanceSlots(self.advance));
        }
        turn
    }
}

/// Names of slots.
type Names = BTreeSet<Arc<str>>;

/// The slots of the members that replicate from `from` while `leader` leads.
fn of_followers(
    seen: &Observation,
    topology: &Topology,
    from: &MemberName,
    leader: &MemberName,
) -> Names {
    let others = topology.members.values().filter(|member| {
        let is_other = member.name != seen.me.name && member.name != *leader;
        is_other && !member.tags.nostream
    });
    let follows = |member: &Member| {
        let up = upstream::cascade_of(topology, &member.name, &member.tags, leader);
        up.map_or(leader, |up| &up.name) == from
    };
    others
        .filter(|member| follows(member))
        .map(|member| member.name.slot_name().into())
        .collect()
}

/// The physical slots of the configuration that exist in this kind of cluster, but for this member's own.
fn permanent(seen: &Observation, settings: &ClusterSettings) -> Names {
    let kind = match settings.standby_cluster {
        Some(_) => ClusterType::Standby,
        None => ClusterType::Primary,
    };
    let own = seen.me.name.slot_name();
    let here = settings.slots.iter().filter(|(name, slot)| {
        let is_here = slot.only_in.is_none_or(|only| only == kind);
        slot.kind == SlotKind::Physical && is_here && **name != own
    });
    here.map(|(name, _)| name.as_str().into()).collect()
}

/// The slots that members and the configuration want on a leader.
fn wanted_on_leader(seen: &Observation, topology: &Topology) -> Names {
    let me = &seen.me.name;
    let members = of_followers(seen, topology, me, me);
    let settings = seen.settings();
    members
        .into_iter()
        .chain(permanent(seen, &settings))
        .collect()
}

/// Slots that were wanted or used of late. One met for the first time by this run of the agent may have been
/// used until just now, and so may one that was at the last look, which may be long ago where the DCS is slow.
fn note_needed(seen: &Observation, running: &Running, wanted: &Names, memory: &mut Memory) {
    let physical = || running.slots.iter().filter(|slot| is_physical(slot));
    let active = physical().filter(|slot| slot.is_active);
    let in_use: Names = wanted
        .iter()
        .cloned()
        .chain(active.map(|slot| slot.name.clone()))
        .collect();
    let needed = &mut memory.slot_needed;
    for name in in_use.union(&memory.slots_in_use) {
        needed.insert(name.clone(), seen.now);
    }
    for slot in physical() {
        needed.entry(slot.name.clone()).or_insert(seen.now);
    }
    let exists = |name: &Arc<str>| running.slots.iter().any(|slot| slot.name == *name);
    needed.retain(|name, _| wanted.contains(name) || exists(name));
    memory.slots_in_use = in_use;
}

/// Nobody tends slots while nobody leads, in a pause, or without the DCS: before a primary begins, and for as long as that
/// lasts, each of its slots counts as needed until now, those of members that are gone among them.
pub(super) fn count_anew(turn: Turn<'_>) -> Turn<'_> {
    turn.remember(|memory| {
        memory.slot_needed.clear();
        memory.slots_in_use.clear();
    })
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
    let wanted = wanted_on_leader(seen, topology);
    note_needed(seen, running, &wanted, memory);
    plan(seen, &settings, running, &wanted, memory)
}

/// What a replica's instance lacks and has too much: slots of those that replicate from it, and, where it
/// may lead one day, a copy of every slot the leader publishes, so that nobody's WAL is gone then.
pub(super) fn on_replica(
    seen: &Observation,
    topology: &Topology,
    running: &Running,
    leader: &MemberName,
    replayed: Lsn,
    memory: &mut Memory,
) -> SlotPlan {
    let settings = seen.settings();
    if !settings.use_slots {
        return SlotPlan::default();
    }
    let cascading = of_followers(seen, topology, &seen.me.name, leader);
    let copied = copied(seen, topology, &settings, leader);
    let wanted = cascading.union(&copied).cloned().collect();
    note_needed(seen, running, &wanted, memory);
    let mut plan = plan(seen, &settings, running, &wanted, memory);
    plan.drop.extend(logical::lost(&settings, running));
    plan.drop
        .extend(failover::in_the_way(&settings, topology, running));
    let idle = running
        .slots
        .iter()
        .filter(|slot| is_physical(slot) && !slot.is_active && copied.contains(&slot.name));
    for slot in idle.filter(|slot| !cascading.contains(&slot.name)) {
        let published = topology.status.slots.get(&*slot.name);
        // Neither past the owner's position nor past what is here.
        let to = published.map_or(Lsn(0), |at| (*at).min(replayed));
        if slot.position != Lsn(0) && slot.position < to && !plan.drop.contains(&slot.name) {
            plan.advance.push((slot.name.clone(), to));
        }
    }
    plan
}

/// The leader's slots of which a replica keeps copies. One whose position nobody publishes would hold WAL
/// back for ever.
fn copied(
    seen: &Observation,
    topology: &Topology,
    settings: &ClusterSettings,
    leader: &MemberName,
) -> Names {
    let tags = &seen.me.tags;
    if !tags.may_lead() || tags.nostream {
        return Names::new();
    }
    let own = seen.me.name.slot_name();
    let kept = topology.status.retain_slots.iter();
    let kept = kept
        .filter(|name| **name != own)
        .map(|name| name.as_str().into());
    let mut names = of_followers(seen, topology, leader, leader);
    names.extend(kept);
    names.extend(permanent(seen, settings));
    names.insert(leader.slot_name().into());
    names.retain(|name| topology.status.slots.contains_key(&**name) && **name != *own);
    names
}

fn plan(
    seen: &Observation,
    settings: &ClusterSettings,
    running: &Running,
    wanted: &Names,
    memory: &Memory,
) -> SlotPlan {
    let is_forgotten = |slot: &SlotView| {
        let needed = memory.slot_needed.get(&slot.name);
        let is_old = needed.is_none_or(|at| seen.now.since(*at) >= settings.member_slots_ttl);
        is_old && !wanted.contains(&slot.name) && !settings.slots.contains_key(&*slot.name)
    };
    let is_replica = match running.role {
        RunningRole::Primary { .. } => false,
        RunningRole::Replica { .. } => true,
    };
    // A lost slot serves nobody and is in the way of its new one; a copy left by a former primary holds the
    // primary's vacuum back by what its user once said.
    let is_harmful = |slot: &SlotView| slot.is_lost || (slot.has_xmin && is_replica);
    let drop = running
        .slots
        .iter()
        .filter(|slot| is_ours(settings, slot))
        .filter(|slot| is_forgotten(slot) || is_harmful(slot))
        .map(|slot| slot.name.clone())
        .collect();
    let create = wanted
        .iter()
        .filter(|name| !running.slots.iter().any(|slot| slot.name == **name))
        .cloned()
        .collect();
    SlotPlan {
        drop,
        create,
        advance: Vec::new(),
    }
}

/// Whether it is an idle physical slot that only members or the configuration can want.
fn is_ours(settings: &ClusterSettings, slot: &SlotView) -> bool {
    let is_somebodys = slot.is_active || slot.is_temporary || slot.is_failover;
    let is_ignored = settings
        .ignore_slots
        .iter()
        .any(|pattern| pattern.matches(&slot.name, &slot.kind));
    is_physical(slot) && !is_somebodys && !is_ignored
}

fn is_physical(slot: &SlotView) -> bool {
    slot.kind == SlotKind::Physical
}

/// What the leader publishes: its position and its slots', and the members' slots that everybody keeps.
pub(super) fn status(
    seen: &Observation,
    topology: &Topology,
    running: &Running,
    position: Lsn,
    memory: &Memory,
) -> Status {
    let settings = seen.settings();
    // A primary's position is the cluster's, also where an operator accepted that it lacks what was published
    // before: nobody could be near enough to succeed it otherwise.
    let is_remotes = running.timeline > topology.claimed.timeline.max(Timeline(1));
    let optime = match &running.role {
        RunningRole::Primary { .. } => position,
        // A standby cluster's own line ended where the remote's began.
        RunningRole::Replica { .. } if settings.standby_cluster.is_some() && is_remotes => position,
        RunningRole::Replica { .. } => position.max(topology.status.optime),
    };
    if !settings.use_slots {
        return Status {
            optime,
            ..Status::default()
        };
    }
    let wanted = wanted_on_leader(seen, topology);
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
        .filter(|slot| retained.contains(&slot.name) && is_physical(slot))
        .filter(|slot| slot.position > Lsn(0) && !slot.is_temporary)
        .map(|slot| (slot.name.to_string(), slot.position))
        .collect();
    slots.insert(seen.me.name.slot_name(), position);
    let wanted: Names = logical::wanted(&settings).map(|slot| slot.name).collect();
    let is_kept = |slot: &SlotView| slot.is_failover || wanted.contains(&slot.name);
    let is_usable = |slot: &SlotView| slot.position > Lsn(0) && !slot.is_lost && !slot.is_temporary;
    for slot in running.slots.iter().filter(|slot| !is_physical(slot)) {
        if is_kept(slot) && is_usable(slot) {
            slots.insert(slot.name.to_string(), slot.position);
        }
    }
    let permanent = permanent(seen, &settings);
    Status {
        optime,
        slots,
        retain_slots: retained
            .iter()
            .filter(|name| !permanent.contains(*name))
            .map(ToString::to_string)
            .collect(),
    }
}
