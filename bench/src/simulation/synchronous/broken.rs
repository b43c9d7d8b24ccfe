//! What the rules of synchronous replication, broken on purpose, do to what is seen and decided.

use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::observation::{DcsView, LeaseView, Local, Observation, RunningRole};
use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_agent::decide::{Action, Decision};
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{Lsn, MemberName, Topology};

/// What the record names is taken for what commits wait for, and for confirmed.
pub(in crate::simulation) fn believe_the_record(seen: &mut Observation) {
    let recorded = seen.topology().and_then(|t| t.sync.clone());
    let mode = seen.settings().synchronous_mode;
    let Local::Running(running) = &mut seen.local else {
        return;
    };
    let commits = &mut running.commits;
    let is_primary = matches!(running.role, RunningRole::Primary { .. });
    if !is_primary || commits.is_access_closed {
        return;
    }
    if let Some(sync) = recorded.filter(|sync| !sync.standbys.is_empty()) {
        let count = u32::try_from(sync.standbys.len()).unwrap_or(u32::MAX);
        let names = sync.standbys.into_iter().collect();
        commits.own = Some(match mode {
            SynchronousMode::Quorum => SyncNames::Any(count.saturating_sub(sync.quorum), names),
            SynchronousMode::On | SynchronousMode::Off => SyncNames::all(names),
        });
    }
    if let Some(own) = &commits.own {
        commits.in_force = own.clone();
    }
    for sender in Arc::make_mut(&mut commits.senders) {
        sender.flushed = Lsn(u64::MAX);
    }
}

/// Nobody looks whether the checkpointer has told the sessions that commits wait.
pub(in crate::simulation) fn believe_all_were_told(seen: &mut Observation) {
    if let Local::Running(running) = &mut seen.local {
        running.commits.is_checkpointer_busy = false;
    }
}

/// The record names those whom commits are only about to wait for.
pub(in crate::simulation) fn record_first(seen: &Observation, decision: &mut Decision) {
    let names = decision.actions.iter().find_map(|action| match action {
        Action::SetSyncNames(names) => Some(names.waited_for().0),
        _ => None,
    });
    let Some(names) = names else {
        return;
    };
    for action in &mut decision.actions {
        if let Action::WriteSync(sync) = action {
            sync.standbys.extend(names.iter().cloned());
            sync.standbys.sort();
            sync.standbys.dedup();
        }
    }
    let recorded = seen.topology().and_then(|t| t.sync.as_ref());
    let is_recorded = |name| recorded.is_some_and(|sync| sync.standbys.contains(name));
    if !names.iter().all(is_recorded) {
        let is_kept = |action: &Action| !matches!(action, Action::SetSyncNames(_));
        decision.actions.retain(is_kept);
    }
}

/// Commits wait for those no more that the record still names.
pub(in crate::simulation) fn names_first(seen: &Observation, decision: &mut Decision) {
    let (Some(recorded), Local::Running(running)) =
        (seen.topology().and_then(|t| t.sync.as_ref()), &seen.local)
    else {
        return;
    };
    let leaves = |sync: &SyncState| recorded.standbys.iter().any(|n| !sync.standbys.contains(n));
    let removal = decision.actions.iter().position(|action| {
        matches!(action, Action::WriteSync(sync) if sync.leader == recorded.leader && leaves(sync))
    });
    let Some(Action::WriteSync(sync)) = removal.map(|at| decision.actions.remove(at)) else {
        return;
    };
    let is_promoting = |action: &Action| matches!(action, Action::Promote(_));
    if decision.actions.iter().any(is_promoting) {
        return decision.actions.insert(0, Action::WriteSync(sync));
    }
    let names: Vec<MemberName> = sync.standbys.clone();
    let names = SyncNames::all(names.into_iter().collect());
    if running.commits.own.as_ref() == Some(&names) {
        // The record follows some turns later: a member that waits to leave it would wait without end.
        match seen.chance % 8 {
            0 => decision.actions.insert(0, Action::WriteSync(sync)),
            _ => decision.next.within = Duration::from_secs(1),
        }
    } else {
        decision.actions.push(Action::SetSyncNames(names));
    }
}

/// Changes the record that a member without the lease sees.
pub(in crate::simulation) fn in_the_race(
    seen: &mut Observation,
    change: impl FnOnce(&mut Topology),
) {
    if let (LeaseView::NotHeld, DcsView::Known { topology, .. }) = (&seen.lease, &mut seen.dcs) {
        change(Arc::make_mut(topology));
    }
}
