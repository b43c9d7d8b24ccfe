//! Permanent logical slots that PostgreSQL does not keep on standbys by itself: made on the primary, copied
//! to whoever may lead one day, and moved after their consumers.
//!
//! A copy is a file, so the instance stops for it; what a new consumer would lack was kept by the leader's
//! own slot until then, and is kept by the feedback of the copy from then on. Until that is proved a copy
//! is not known to be usable.

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::slots::{ClusterType, SlotKind};
use trunkline_shared::cluster::{ClusterSettings, Lsn, Member, Moment, Topology};

use super::failover;
use crate::decide::decision::{
    Action, Decision, Detail, LogicalSlot, Reason, SlotAdvance, SlotCare, Upstream,
};
use crate::decide::observation::{JobKind, Observation, Running, SlotView};
use crate::decide::{Turn, upstream};

/// The logical slots of the configuration.
pub(super) fn wanted(settings: &ClusterSettings) -> impl Iterator<Item = LogicalSlot> {
    let is_used = settings.use_slots && settings.standby_cluster.is_none();
    let slots = settings.slots.iter().filter(move |(name, slot)| {
        let is_ignored = settings
            .ignore_slots
            .iter()
            .any(|pattern| pattern.matches(name, &slot.kind));
        is_used && !is_ignored && slot.only_in != Some(ClusterType::Standby)
    });
    slots.filter_map(|(name, slot)| match &slot.kind {
        SlotKind::Physical => None,
        SlotKind::Logical { database, plugin } => Some(LogicalSlot {
            name: name.as_str().into(),
            database: database.clone(),
            plugin: plugin.clone(),
            is_failover: slot.is_failover,
        }),
    })
}

fn view<'a>(running: &'a Running, name: &str) -> Option<&'a SlotView> {
    running.slots.iter().find(|slot| &*slot.name == name)
}

fn is_same(copy: &SlotView, wanted: &LogicalSlot) -> bool {
    match &copy.kind {
        SlotKind::Physical => false,
        SlotKind::Logical { database, plugin } => {
            *database == wanted.database && *plugin == wanted.plugin
        }
    }
}

/// Whether the care of slots may begin: once in `loop_wait`, beside no other job.
fn may_tend(turn: &Turn<'_>) -> bool {
    let seen = turn.seen;
    let wait = seen.settings().loop_wait;
    let last = seen.job.finished.as_ref();
    let last = last.filter(|job| job.kind == JobKind::TendSlots);
    seen.job.running.is_none() && last.is_none_or(|job| seen.now.since(job.at) >= wait)
}

/// What a primary lacks is made beside everything else: it waits for transactions in progress.
pub(in crate::decide) fn on_primary<'a>(turn: Turn<'a>, running: &Running) -> Turn<'a> {
    let settings = turn.seen.settings();
    let missing = wanted(&settings).filter(|slot| view(running, &slot.name).is_none());
    let create: Vec<LogicalSlot> = missing
        .map(|slot| LogicalSlot {
            is_failover: slot.is_failover && running.major >= failover::SINCE,
            ..slot
        })
        .collect();
    if create.is_empty() || !may_tend(&turn) {
        return turn;
    }
    let care = SlotCare {
        create,
        ..SlotCare::default()
    };
    turn.act(Action::TendLogicalSlots(care))
        .because(Reason::MaintainingSlots)
}

/// Copies of which PostgreSQL says that what they need is gone: they are copied anew.
pub(super) fn lost(settings: &ClusterSettings, running: &Running) -> Vec<Arc<str>> {
    let is_wanted = |slot: &SlotView| wanted(settings).any(|wanted| wanted.name == slot.name);
    let is_ours = |slot: &&SlotView| {
        let is_somebodys = slot.is_active || slot.is_temporary || slot.is_failover;
        slot.is_lost && !is_somebodys && slot.kind != SlotKind::Physical && is_wanted(slot)
    };
    let lost = running.slots.iter().filter(is_ours);
    lost.map(|slot| slot.name.clone()).collect()
}

/// What a possible primary lacks of the leader's slots, and what it has to be told.
pub(in crate::decide) fn on_replica<'a>(
    turn: Turn<'a>,
    topology: &Topology,
    running: &Running,
    leader: &Arc<Member>,
    replayed: Lsn,
) -> ControlFlow<Decision, Turn<'a>> {
    let seen = turn.seen;
    let settings = seen.settings();
    if !seen.me.tags.may_lead() || seen.me.tags.nostream {
        return ControlFlow::Continue(turn);
    }
    let turn = note_failure(turn);
    let Lacks {
        copies,
        unkept,
        mut care,
    } = lacks(&settings, topology, running, replayed);
    let from = leaders(seen, topology, leader);
    if !copies.is_empty() && may_copy(&turn) {
        let turn = turn.remember(|memory| {
            memory.slots_copied_at = Some(seen.now);
            memory.slots_not_copied = None;
        });
        let names = copies;
        return ControlFlow::Break(
            turn.from(&from)
                .act(Action::CopyLogicalSlots { from, names })
                .routine(Reason::CopyingLogicalSlots),
        );
    }
    let turn = if copies.is_empty() {
        turn.remember(|memory| memory.slots_not_copied = None)
    } else {
        turn
    };
    let unready = copies.iter().chain(&unkept).chain(&care.prove);
    let unready: Vec<&str> = unready.map(AsRef::as_ref).collect();
    let turn = if unready.is_empty() {
        turn
    } else {
        let why = turn.decision.memory.slots_not_copied.clone();
        let why = why.unwrap_or_else(|| unready.join(", ").into());
        turn.detail(Detail::Text(why))
            .because(Reason::LogicalSlotNotReady)
    };
    if care == SlotCare::default() || !may_tend(&turn) {
        return ControlFlow::Continue(turn);
    }
    care.of = Some(from);
    ControlFlow::Continue(turn.act(Action::TendLogicalSlots(care)))
}

/// What a possible primary lacks of the leader's slots.
#[derive(Debug, Default)]
struct Lacks {
    /// Slots to be copied.
    copies: Vec<Arc<str>>,
    /// Slots of which PostgreSQL itself has not made a copy yet.
    unkept: Vec<Arc<str>>,
    /// What its copies have to be told.
    care: SlotCare,
}

fn lacks(
    settings: &ClusterSettings,
    topology: &Topology,
    running: &Running,
    replayed: Lsn,
) -> Lacks {
    let mut lacks = Lacks::default();
    for slot in wanted(settings) {
        // Only a published position tells where its consumer is.
        let Some(confirmed) = topology.status.slots.get(&*slot.name) else {
            continue;
        };
        let here = view(running, &slot.name);
        if slot.is_failover && running.major >= failover::SINCE {
            if !failover::is_kept(here) {
                lacks.unkept.push(slot.name);
            }
            continue;
        }
        match here {
            None => lacks.copies.push(slot.name),
            Some(copy) if copy.is_active || copy.is_lost || !is_same(copy, &slot) => {}
            Some(copy) => {
                if !copy.is_ready {
                    lacks.care.prove.push(slot.name.clone());
                }
                let to = (*confirmed).min(replayed);
                if copy.position < to {
                    lacks.care.advance.push(SlotAdvance { slot, to });
                }
            }
        }
    }
    lacks
}

/// Other jobs come after the one that failed, and the record says why until a copy is tried again.
fn note_failure(turn: Turn<'_>) -> Turn<'_> {
    match turn.failure_of(JobKind::CopySlots) {
        Some(why) => turn.remember(|memory| memory.slots_not_copied = Some(why)),
        None => turn,
    }
}

/// A copy costs a restart: not again before two ttl have passed, nor, where it was not made, before one.
fn may_copy(turn: &Turn<'_>) -> bool {
    let (seen, memory) = (turn.seen, &turn.decision.memory);
    let ttl = seen.settings().ttl;
    let wait = match memory.slots_not_copied {
        Some(_) => ttl,
        None => ttl * 2,
    };
    let is_due = |at: Moment| seen.now.since(at) >= wait;
    seen.job.running.is_none() && memory.slots_copied_at.is_none_or(is_due)
}

/// The leader, with the slot there through which the feedback of this member arrives.
fn leaders(seen: &Observation, topology: &Topology, leader: &Arc<Member>) -> Upstream {
    let mut from = upstream::to(seen, topology, leader);
    let tags = &seen.me.tags;
    if let Some(cascade) = upstream::cascade_of(topology, &seen.me.name, tags, &leader.name) {
        from.slot = Some(cascade.name.slot_name().into());
    }
    from
}
