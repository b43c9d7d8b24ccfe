//! Which members may be promoted without losing acknowledged commits (Patroni's `sync` key).

use super::MemberName;

/// The `sync` record.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SyncState {
    /// The leader that wrote it.
    pub leader: Option<MemberName>,
    /// Members that hold every acknowledged commit, or the voters in quorum mode.
    pub standbys: Vec<MemberName>,
    /// Votes needed beside the candidate's own, in quorum mode.
    pub quorum: u32,
    /// The mod revision of the record.
    pub revision: i64,
}
