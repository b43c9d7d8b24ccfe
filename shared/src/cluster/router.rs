//! A router, as it registers itself for a cluster that it serves.

use std::sync::Arc;
use std::time::Duration;

use super::LeaderEpoch;

/// What one router process says of itself for one cluster (`routers/<name>/<instance>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterRecord {
    /// Its version; empty if the record names none.
    pub version: Arc<str>,
    /// Its HTTP endpoint, as agents and other routers reach it.
    pub http_url: Arc<str>,
    /// The shortest `hold_timeout` among its listeners of this cluster.
    pub hold_timeout: Duration,
    /// The epoch that its sessions are routed by; `None` before it knows one.
    pub epoch: Option<LeaderEpoch>,
    /// The stage of a planned change that it holds and has drained; `None` outside of one.
    pub acknowledged: Option<Acknowledged>,
    /// Open sessions on the writer. As old as the record's counts may be.
    pub writer_sessions: u64,
    /// Clients that are held for lack of a leader. As old as the record's counts may be.
    pub held_clients: u64,
    /// The number by which the cancel keys of its clients name it; not unique. `None` where it gives none out.
    pub cancel_number: Option<u16>,
}

impl RouterRecord {
    /// Whether the two differ in nothing but the counts, which nobody waits for.
    pub fn is_same_but_for_counts(&self, other: &RouterRecord) -> bool {
        let counted = RouterRecord {
            writer_sessions: other.writer_sessions,
            held_clients: other.held_clients,
            ..self.clone()
        };
        counted == *other
    }

    /// Whether nothing differs that anybody waits for. The epoch that a router applied is looked up and never waited for:
    /// after a change of leader each router of a fleet writes its own.
    pub fn is_same_to_who_waits(&self, other: &RouterRecord) -> bool {
        let applied = RouterRecord {
            epoch: other.epoch,
            ..self.clone()
        };
        applied.is_same_but_for_counts(other)
    }
}

/// A stage of a planned change, as a router acknowledges it: of one record, since a change that is announced again may have
/// the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The change ([`super::topology::SwitchoverRecord::id`]).
    pub switchover: u64,
    /// The epoch that it ends.
    pub epoch: LeaderEpoch,
    /// The mod revision of the record ([`super::Topology::switchover_revision`]).
    pub revision: i64,
    /// The stage.
    pub stage: HoldStage,
}

/// How much a router holds on the way to the leader that is to be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldStage {
    /// What may open a transaction block, and new sessions.
    Transactions,
    /// Everything new.
    All,
}

/// The name and the instance of the router that registers under `<name>/<instance>`.
pub fn name_and_instance(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or((key, ""))
}
