//! The resolver of `synchronous_mode: quorum`: any `k` of the names have each acknowledged commit, and a
//! candidate needs the votes of `q` others of the voters, none of them ahead of it.
//!
//! **Invariant: `|V ∪ S ∪ L| ≤ q + k + 1`**, with V the voters and q the quorum of the record, S the names
//! and k the number in `synchronous_standby_names`, and L the leader: any k of S and any q + 1 of V then
//! have a member in common, so that one of the voters has each acknowledged commit, at whatever step the
//! leader dies. It holds with every setting that may be in force; and commits from before the setting in
//! force are on so many of V that q + 1 of them cannot miss all of those.
//!
//! What makes the sum greater comes first, what makes it smaller last; V and S grow into each other before
//! either shrinks.

use std::collections::BTreeSet;

use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::sync_state::SyncState;

use super::{SyncNames, SyncStep, SyncView, count};
use crate::decide::decision::Reason;

type Names = BTreeSet<MemberName>;

/// With what an elected member goes on where another led: the voters and the quorum stay, so that whoever
/// could be elected before still finds each commit from before; and so many of the others have each commit
/// of the new leader that the same election finds those as well. `None` if no other voter is left: then
/// nothing depends on what it waits for.
///
/// Who has handed the key over has each commit from before and nothing else: it votes in this member's place, so that the
/// others can elect one of them should this one end before it has written another record. One that was not asked may have
/// more than was acknowledged, and would be elected for that by who has taken up this one's timeline and cannot tell.
pub(super) fn taken_over(
    record: &SyncState,
    me: &MemberName,
    is_handed_over: bool,
) -> Option<(SyncState, SyncNames)> {
    let voters = record.standbys.iter().filter(|name| *name != me).cloned();
    let voters: Names = voters.collect();
    let quorum = usize::try_from(record.quorum).unwrap_or(usize::MAX);
    let former = record.leader.iter().filter(|name| *name != me).cloned();
    let others: Names = voters.iter().cloned().chain(former).collect();
    let needed = others.len().saturating_sub(quorum);
    if voters.is_empty() || needed == 0 {
        return None;
    }
    let voters = if is_handed_over { &others } else { &voters };
    let claim = SyncState {
        leader: Some(me.clone()),
        standbys: voters.iter().cloned().collect(),
        ..record.clone()
    };
    Some((claim, SyncNames::Any(count(needed), others)))
}

/// Whether an election by this record finds every commit that a leader acknowledges which waits for `names`.
pub(in crate::decide) fn finds_all(record: &SyncState, names: &SyncNames) -> bool {
    let voters: Names = record.standbys.iter().cloned().collect();
    let quorum = usize::try_from(record.quorum).unwrap_or(usize::MAX);
    least_quorum(&voters, names) <= quorum
}

/// The next step towards all eligible standbys as voters and names.
pub(super) fn resolve(view: &SyncView<'_>) -> SyncStep {
    let Some((voters, quorum)) = view.own_record() else {
        return SyncStep::Write(Names::new(), 0);
    };
    let least = settings(view)
        .map(|names| least_quorum(&voters, names))
        .max()
        .unwrap_or(0);
    if quorum < least {
        return SyncStep::Write(voters, count(least));
    }
    if view.own.is_some() && !view.is_settled() {
        return SyncStep::Until(Reason::AddingSyncStandby);
    }
    let active: Names = view
        .standbys
        .iter()
        .filter(|standby| standby.is_eligible)
        .map(|standby| standby.name.clone())
        .collect();
    let is_blocked = view.is_strict || !view.may_degrade;
    if active.is_empty() && !voters.is_empty() && is_blocked {
        return SyncStep::Until(Reason::NoSyncStandby);
    }
    let needed = view.wanted.min(active.len());
    let target = match needed {
        0 => view.without_standby(),
        needed => SyncNames::Any(count(needed), active.clone()),
    };
    if view.own == Some(&target) {
        return shrink_voters(view, &voters, quorum, active, needed);
    }
    if least_quorum(&voters, &target) <= quorum {
        return SyncStep::Wait(target);
    }
    grow_voters(view, voters, quorum, &active, &target)
}

/// Both settings that may be in force.
fn settings<'a>(view: &SyncView<'a>) -> impl Iterator<Item = &'a SyncNames> {
    [Some(view.in_force), view.own].into_iter().flatten()
}

/// The smallest quorum with which an election of `voters` finds every commit that `names` acknowledge.
fn least_quorum(voters: &Names, names: &SyncNames) -> usize {
    if *names == SyncNames::Blocked {
        return 0;
    }
    let (waited_for, needed) = names.waited_for();
    voters.union(&waited_for).count() - needed
}

/// The names are as they should be: the record follows as soon as enough of them have what came before.
fn shrink_voters(
    view: &SyncView<'_>,
    voters: &Names,
    quorum: usize,
    active: Names,
    needed: usize,
) -> SyncStep {
    let wanted = active.len() - needed;
    if *voters == active && quorum == wanted {
        return SyncStep::Done(match (active.is_empty(), view.is_strict) {
            (true, true) => Some(Reason::BlockingCommits),
            (true, false) => Some(Reason::DegradedToAsynchronous),
            (false, _) => None,
        });
    }
    if view.confirmed(&active).len() < needed {
        return SyncStep::Until(Reason::AddingSyncStandby);
    }
    SyncStep::Write(active, count(wanted))
}

/// The names cannot change yet: first the record makes room for them, with the new ones as voters if their
/// election finds everything, else by a greater quorum alone, which is always safe.
fn grow_voters(
    view: &SyncView<'_>,
    voters: Names,
    quorum: usize,
    active: &Names,
    target: &SyncNames,
) -> SyncStep {
    let all: Names = voters.union(active).cloned().collect();
    if all != voters {
        if view.noted.is_none() && view.is_settled() {
            return SyncStep::Until(Reason::AddingSyncStandby);
        }
        let having_all = view.confirmed(&all).len();
        let least = least_quorum(&all, target)
            .max(least_quorum(&all, view.in_force))
            .max(all.len() - having_all);
        if least < all.len() {
            return SyncStep::Write(all, count(least));
        }
    }
    let least = least_quorum(&voters, target).max(quorum);
    SyncStep::Write(voters, count(least))
}
