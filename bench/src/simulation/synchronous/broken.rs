//! What the rules of synchronous replication, broken on purpose, do to what is seen and decided.

use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::observation::{DcsView, LeaseView, Local, Observation};
use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_agent::decide::{Action, Decision};
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{Lsn, MemberName, Topology};

/// Nobody looks whether a setting is in force, or whether a standby has what came before it.
pub(in crate::simulation) fn believe_all_is_confirmed(seen: &mut Observation) {
    let Local::Running(running) = &mut seen.local else {
        return;
    };
    let commits = &mut running.commits;
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

/// The record names at once whom commits are only about to wait for.
pub(in crate::simulation) fn record_first(decision: &mut Decision) {
    let names = decision.actions.iter().find_map(|action| match action {
        Action::SetSyncNames(names) => Some(names.waited_for().0),
        _ => None,
    });
    for action in &mut decision.actions {
        if let (Action::WriteSync(sync), Some(names)) = (action, &names) {
            sync.standbys.extend(names.iter().cloned());
            sync.standbys.sort();
            sync.standbys.dedup();
        }
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
    let names: Vec<MemberName> = sync.standbys;
    let names = SyncNames::all(names.into_iter().collect());
    if running.commits.own.as_ref() == Some(&names) {
        decision.next.within = Duration::from_secs(1);
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
