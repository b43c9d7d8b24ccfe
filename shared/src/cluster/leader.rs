//! Who leads, and since which epoch.

use std::fmt;

use super::MemberName;

/// The ever-growing number of a leadership. Ordered by generation first: a DCS that lost its memory
/// starts its revisions again, and only a higher generation makes the new ones count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LeaderEpoch {
    /// The value of `trunkline/generation`, 0 if absent.
    pub generation: u64,
    /// The mod revision of the `leader` key. The key is written only when the leader, or the lease it
    /// hangs on, changes; renewals never write it.
    pub revision: i64,
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.revision)
    }
}

impl fmt::Debug for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The holder of the leader key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The member named by the key.
    pub member: MemberName,
    /// The epoch of this leadership.
    pub epoch: LeaderEpoch,
    /// The lease the key hangs on; 0 if it hangs on none.
    pub lease: i64,
}
