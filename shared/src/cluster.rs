//! The model of a cluster that agent and router share. Plain data: no I/O, no clock, not serialisable
//! (what goes over the wire is in [`crate::dcs::records`]).

use std::fmt;
use std::sync::Arc;

pub mod leader;
pub mod lsn;
pub mod member;
pub mod moment;
pub mod quantity;
pub mod router;
pub mod settings;
pub mod slots;
pub mod store;
pub mod switchover;
pub mod sync_state;
pub mod timeline;
pub mod topology;

pub use leader::{Leader, LeaderEpoch};
pub use lsn::Lsn;
pub use member::{Member, MemberName, MemberRole, MemberState, Tags};
pub use moment::Moment;
pub use router::RouterRecord;
pub use settings::ClusterSettings;
pub use timeline::{Timeline, TimelineHistory};
pub use topology::Topology;

/// The name of one HA group (Patroni's `scope`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// Wraps a name that the configuration has already checked to be non-empty and without `/`.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// PostgreSQL's system identifier: made by initdb, shared by every copy of the same cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
