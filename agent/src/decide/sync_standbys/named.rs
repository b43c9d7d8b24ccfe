//! The resolver of `synchronous_mode: on`: named standbys, each of which has every acknowledged commit.
//!
//! **Invariant: a name stands in the record only while the primary certainly waits for it.** V ⊆ W, with V
//! the standbys of the record and W those whom commits wait for, whichever of the settings written last is
//! in force; and whoever enters V has everything from before it entered W. So whoever is in V has every
//! acknowledged commit, at whatever step the leader dies.
//!
//! A name enters W before V and leaves V before W.

use std::collections::BTreeSet;

use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::sync_state::SyncState;

use super::{SyncNames, SyncStep, SyncView};
use crate::decide::decision::Reason;

/// With what an elected standby goes on where another led: the former leader has all that it has and is acknowledged, and its
/// own commits wait for that one, and for the other standbys. The former leader may lead should this one die before it has
/// found a standby; the others may lack what was flushed here alone and can be seen from now on. Who is named as the leader
/// already waits for those whom it named. `None` where it is no standby itself, or votes are counted.
pub(super) fn taken_over(record: &SyncState, me: &MemberName) -> Option<(SyncState, SyncNames)> {
    let leader = record.leader.as_ref()?;
    let others = record.standbys.iter().filter(|name| *name != me).cloned();
    let others: BTreeSet<MemberName> = others.collect();
    if record.quorum != 0 {
        return None;
    }
    if leader == me {
        return (!others.is_empty()).then(|| (record.clone(), SyncNames::All(others)));
    }
    let claim = SyncState {
        leader: Some(me.clone()),
        standbys: vec![leader.clone()],
        ..record.clone()
    };
    let names = others.into_iter().chain([leader.clone()]).collect();
    let is_standby = record.standbys.contains(me);
    is_standby.then_some((claim, SyncNames::All(names)))
}

/// The next step towards the wanted standbys.
pub(super) fn resolve(view: &SyncView<'_>) -> SyncStep {
    let nobody = BTreeSet::new();
    let Some((recorded, quorum)) = view.own_record() else {
        return SyncStep::Write(nobody, 0);
    };
    let certain = certainly_waited_for(view);
    let kept: BTreeSet<MemberName> = recorded.intersection(&certain).cloned().collect();
    if quorum != 0 {
        // Written by the other mode: only who has everything from before counts without votes.
        if view.is_settled() && view.noted.is_none() {
            return SyncStep::Until(Reason::AddingSyncStandby);
        }
        return SyncStep::Write(view.confirmed(&kept), 0);
    }
    if kept != recorded {
        return SyncStep::Write(kept, 0);
    }
    let wanted: BTreeSet<MemberName> = view
        .standbys
        .iter()
        .filter(|standby| standby.is_eligible)
        .take(view.wanted)
        .map(|standby| standby.name.clone())
        .collect();
    let new: BTreeSet<MemberName> = wanted.difference(&recorded).cloned().collect();
    let confirmed = view.confirmed(&new.intersection(&certain).cloned().collect());
    if !confirmed.is_empty() {
        let recorded = recorded.union(&confirmed).cloned().collect();
        return SyncStep::Write(recorded, 0);
    }
    if wanted.is_empty() && !recorded.is_empty() && (view.is_strict || !view.may_degrade) {
        return SyncStep::Until(Reason::NoSyncStandby);
    }
    // One that still streams is kept until its successor has everything; for a dead one commits wait.
    let is_dropped = |name: &&MemberName| {
        !wanted.contains(*name) && (new.is_empty() || !view.is_streaming(name))
    };
    if recorded.iter().any(|name| is_dropped(&name)) {
        let stays = recorded.iter().filter(|name| !is_dropped(name));
        return SyncStep::Write(stays.cloned().collect(), 0);
    }
    let target = match SyncNames::all(recorded.union(&wanted).cloned().collect()) {
        SyncNames::Nobody => view.without_standby(),
        named @ (SyncNames::All(_)
        | SyncNames::Blocked
        | SyncNames::Any(..)
        | SyncNames::Other(_)) => named,
    };
    if view.own != Some(&target) {
        return SyncStep::Wait(target);
    }
    if !view.is_settled() || !new.is_empty() {
        return SyncStep::Until(Reason::AddingSyncStandby);
    }
    SyncStep::Done(match target {
        SyncNames::Blocked => Some(Reason::BlockingCommits),
        SyncNames::Nobody => Some(Reason::DegradedToAsynchronous),
        SyncNames::All(_) | SyncNames::Any(..) | SyncNames::Other(_) => None,
    })
}

/// The names that every commit waits for, whichever setting is in force.
fn certainly_waited_for(view: &SyncView<'_>) -> BTreeSet<MemberName> {
    let all = |names: &SyncNames| {
        let (names, needed) = names.waited_for();
        if names.len() == needed {
            names
        } else {
            BTreeSet::new()
        }
    };
    let in_force = all(view.in_force);
    match view.own {
        Some(own) if own != view.in_force => in_force.intersection(&all(own)).cloned().collect(),
        Some(_) | None => in_force,
    }
}
