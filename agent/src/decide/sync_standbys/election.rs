//! Whether a member certainly has every acknowledged commit, by the `sync` record and the others' words.

use std::sync::Arc;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::timeline::Ancestry;
use trunkline_shared::cluster::{Lsn, MemberName, Timeline, Topology};

use crate::decide::decision::{Detail, Reason};

/// How far a member stands: what it has, in the order in which history is preferred.
pub(in crate::decide) type Reach = (Timeline, Lsn);

/// The `sync` record, where the mode is on and a leader has ever written one. Without it nobody knows of a
/// standby that was waited for, and the cluster is as an asynchronous one.
pub(in crate::decide) fn record_in_force(topology: &Topology) -> Option<&SyncState> {
    match topology.settings_or_default().synchronous_mode {
        SynchronousMode::Off => None,
        SynchronousMode::On | SynchronousMode::Quorum => {
            topology.sync.as_ref().filter(|sync| sync.leader.is_some())
        }
    }
}

/// Whether `candidate`, which reaches `own`, has every acknowledged commit. `voters` are the other running
/// members that answered, with how far they reach.
///
/// Every acknowledged commit is on so many of the voters that any `quorum + 1` of them have it: a candidate
/// that none of them is ahead of has it, too. A voter on a timeline that the candidate's left earlier, or whose history is
/// not written yet, says nothing of what is on that one.
pub(in crate::decide) fn allows<'a>(
    topology: &Topology,
    candidate: &MemberName,
    own: Reach,
    voters: impl Iterator<Item = (&'a MemberName, Reach)>,
) -> Result<(), (Reason, Detail)> {
    let Some(sync) = record_in_force(topology) else {
        return Ok(());
    };
    if sync.leader.as_ref() == Some(candidate) {
        return Ok(());
    }
    let is_voter = sync.standbys.contains(candidate);
    let mode = topology.settings_or_default().synchronous_mode;
    if sync.standbys.is_empty() || (!is_voter && mode != SynchronousMode::Quorum) {
        return Err((Reason::NotSynchronous, Detail::None));
    }
    let needed = usize::try_from(sync.quorum)
        .unwrap_or(usize::MAX)
        .saturating_add(usize::from(!is_voter));
    let votes = voters
        .filter(|(name, reach)| {
            let is_shared = topology.ancestry(reach.0, reach.1, own.0) == Ancestry::Ancestor;
            *name != candidate
                && sync.standbys.contains(*name)
                && *reach <= own
                && reach.1.0 > 0
                && is_shared
        })
        .count();
    if votes >= needed {
        return Ok(());
    }
    let said = format!("{votes} of {needed} votes");
    Err((
        Reason::NotEnoughVotes,
        Detail::Text(Arc::from(said.as_str())),
    ))
}
