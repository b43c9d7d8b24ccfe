//! Synchronous replication: whom commits wait for, and who may therefore lead without losing one.
//!
//! Two things must agree at every moment, whoever dies then: what the primary waits for
//! (`synchronous_standby_names`) and whom the others would promote (the `sync` record). They cannot be
//! changed together, so they are changed in an order in which they always agree; [`named`] and [`quorum`]
//! find the next step from whatever state is found. The rules of `patroni.md` 2.2 (8, 11) and 2.9, `ha.md` 10.

use std::collections::BTreeSet;

use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{Lsn, MemberName};

use super::decision::Reason;

pub(super) mod election;
pub(super) mod keeping;
mod named;
pub mod names;
mod quorum;
#[cfg(test)]
mod tests;

pub use names::SyncNames;
pub(super) use quorum::finds_all;

/// A standby that could be waited for: connected, and a member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standby {
    name: MemberName,
    /// Flushed there up to here.
    flushed: Lsn,
    /// It streams, and neither its tags nor its lag forbid to wait for it.
    is_eligible: bool,
}

/// What the next step is found from.
#[derive(Clone, Debug)]
struct SyncView<'a> {
    me: &'a MemberName,
    /// Commits are to block rather than go on without a standby.
    is_strict: bool,
    /// How many standbys are to have each commit.
    wanted: usize,
    /// Nobody was eligible for long enough to go on without.
    may_degrade: bool,
    /// Whom commits wait for now.
    in_force: &'a SyncNames,
    /// What the agent's own file says; it comes into force a moment after it was written.
    own: Option<&'a SyncNames>,
    /// A position reached after `in_force` was certainly in force everywhere.
    noted: Option<Lsn>,
    record: Option<&'a SyncState>,
    /// Those that stream, the preferred first.
    standbys: &'a [Standby],
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SyncStep {
    /// Commits are to wait for these from now on.
    Wait(SyncNames),
    /// The record is to say this.
    Write(BTreeSet<MemberName>, u32),
    /// Something must come true first.
    Until(Reason),
    /// All is as it should be; commits may be blocked on purpose or for want of a standby.
    Done(Option<Reason>),
}

impl SyncView<'_> {
    /// The voters and the quorum of the record, if it is this leader's.
    fn own_record(&self) -> Option<(BTreeSet<MemberName>, usize)> {
        let record = self.record?;
        let voters = record.standbys.iter().cloned().collect();
        let quorum = usize::try_from(record.quorum).unwrap_or(usize::MAX);
        (record.leader.as_ref() == Some(self.me)).then_some((voters, quorum))
    }

    fn is_streaming(&self, name: &MemberName) -> bool {
        self.standbys.iter().any(|s| s.name == *name)
    }

    /// Whether what was set last is in force; until then either may be.
    fn is_settled(&self) -> bool {
        self.own == Some(self.in_force)
    }

    /// Those of `names` that are waited for and have everything from before they certainly were.
    fn confirmed(&self, names: &BTreeSet<MemberName>) -> BTreeSet<MemberName> {
        let (waited_for, _) = self.in_force.waited_for();
        let has_all = |name: &MemberName| {
            let mut standbys = self.standbys.iter().filter(|s| s.name == *name);
            let noted = self.noted.filter(|_| self.is_settled());
            noted.is_some_and(|noted| standbys.any(|s| s.flushed >= noted))
        };
        names
            .iter()
            .filter(|name| waited_for.contains(*name) && has_all(name))
            .cloned()
            .collect()
    }

    /// What commits wait for while there is nobody to wait for.
    fn without_standby(&self) -> SyncNames {
        if self.is_strict {
            SyncNames::Blocked
        } else {
            SyncNames::Nobody
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
