//! Failsafe mode: who is listed, and who may not run because a leader goes on without the DCS (`ha.md` 6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::topology::{SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{MemberName, Topology};

use super::Turn;
use super::candidate::Refusal;
use super::decision::{Action, Detail, Reason};
use super::observation::Observation;

/// For so long only members of ours must have been registered before the mode is switched on where the
/// cluster's settings do not speak of it.
const ALONE_FOR: Duration = Duration::from_secs(600);

/// The list as it is to stand: every registered member with its agent's URL; nobody where the mode is off.
/// The key is never deleted: what a leader wrote without learning the outcome must not fit a later state.
pub fn wanted(topology: &Topology) -> BTreeMap<MemberName, Arc<str>> {
    if topology.settings_or_default().failsafe_mode != Some(true) {
        return BTreeMap::new();
    }
    let members = topology.members.values();
    members
        .map(|member| (member.name.clone(), member.api_url.clone()))
        .collect()
}

/// The leader keeps the list. It goes first in its own, or not at all: a list without it would let it go on
/// with nobody's knowledge.
pub(super) fn keep_list<'a>(turn: Turn<'a>, topology: &Topology) -> Turn<'a> {
    let wanted = wanted(topology);
    let is_listed = wanted.is_empty() || wanted.contains_key(&turn.seen.me.name);
    if is_listed && wanted != *topology.failsafe {
        return turn.act(Action::PublishFailsafe(Arc::new(wanted)));
    }
    turn
}

/// Switches the mode on where nobody has decided and every member has been of ours for long enough: a
/// Patroni member would not keep a promise it does not know.
pub(super) fn switch_on<'a>(turn: Turn<'a>, topology: &Topology) -> Turn<'a> {
    let settings = topology.settings_or_default();
    let is_ours = topology.members.values().all(|m| m.is_trunkline());
    if settings.failsafe_mode.is_some() || !is_ours || topology.members.is_empty() {
        return turn.remember(|memory| memory.alone_since = None);
    }
    let now = turn.seen.now;
    let since = turn.decision.memory.alone_since.unwrap_or(now);
    let turn = turn.remember(|memory| memory.alone_since = Some(since));
    if now.since(since) < ALONE_FOR {
        return turn;
    }
    turn.act(Action::SwitchFailsafeOn)
}

/// Why this member must not begin to lead now.
fn promised(seen: &Observation) -> Result<(), Refusal> {
    match seen.no_race.promise {
        Some(promise) if promise.until > seen.now => Err((Reason::NoRaceUntil, Detail::None)),
        Some(_) | None => Ok(()),
    }
}

/// The change by which a leader that has stopped moved the key here.
fn moved_here<'a>(seen: &Observation, topology: &'a Topology) -> Option<&'a SwitchoverRecord> {
    let record = topology.switchover.as_deref()?;
    let has_stopped = match record.stage {
        SwitchoverStage::Stopped { .. } => true,
        SwitchoverStage::HoldTransactions | SwitchoverStage::HoldAll | SwitchoverStage::Resume => {
            false
        }
    };
    (record.to == seen.me.name && has_stopped).then_some(record)
}

/// Whether the key is held because the leader before moved it here.
pub(super) fn is_moved_here(seen: &Observation, topology: &Topology) -> bool {
    moved_here(seen, topology).is_some()
}

/// Whether a member that leads by the key may become a primary. The key may have been moved to it: the leader
/// that got the promise gives it back by handing over, which it does only once it has stopped. A key taken in a
/// race is none of that.
pub(super) fn lets_begin(seen: &Observation, topology: &Topology) -> Result<(), Refusal> {
    let epoch = seen.no_race.promise.and_then(|promise| promise.epoch);
    let is_its = |record: &SwitchoverRecord| epoch.is_none_or(|epoch| epoch <= record.epoch);
    if moved_here(seen, topology).is_some_and(is_its) {
        return Ok(());
    }
    promised(seen)
}

/// Whether this member may run as far as its promises and the failsafe list go, and what was promised before
/// this boot. Nobody goes on by a list that never stood in the DCS, so without one there is nothing to obey.
pub(super) fn lets_run(seen: &Observation, topology: &Topology) -> Result<(), Refusal> {
    promised(seen)?;
    if !may_be_chosen(topology, &seen.me.name) {
        return Err((Reason::NotInFailsafe, Detail::None));
    }
    match unknown_promises_end(seen, topology) {
        Some(_) => Err((Reason::WaitingAfterBoot, Detail::None)),
        None => Ok(()),
    }
}

/// How long what was promised before this boot may still hold.
pub(super) fn unknown_promises_end(seen: &Observation, topology: &Topology) -> Option<Duration> {
    let booted = seen.no_race.booted?;
    let left = topology
        .settings_or_default()
        .ttl
        .saturating_sub(seen.now.since(booted));
    (!topology.failsafe.is_empty() && !left.is_zero()).then_some(left)
}

/// Whoever goes on without the DCS asks those who are listed and nobody else.
pub(super) fn may_be_chosen(topology: &Topology, name: &MemberName) -> bool {
    topology.failsafe.is_empty() || topology.failsafe.contains_key(name)
}
