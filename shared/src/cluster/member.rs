//! A member: an agent with its PostgreSQL, registered in the DCS.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{LeaderEpoch, Lsn, SystemId, Timeline};

/// The name of a member, unique in its cluster (Patroni's `name`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(Arc<str>);

impl MemberName {
    /// Wraps a name that the configuration or the DCS already holds.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this member's replication slot, by Patroni's rule: lower case, `-` and `.` become
    /// `_`, any other character that a slot name may not hold becomes `u` and its code point in at
    /// least four digits, and the whole is cut to 63 bytes.
    pub fn slot_name(&self) -> String {
        let mut slot = String::with_capacity(self.0.len());
        for c in self.0.chars().flat_map(char::to_lowercase) {
            match c {
                'a'..='z' | '0'..='9' | '_' => slot.push(c),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", other as u32)),
            }
        }
        slot.truncate(63);
        slot
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a member says its PostgreSQL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberRole {
    /// Accepts writes.
    Primary,
    /// In recovery, following a leader.
    Replica,
    /// In recovery, leading a standby cluster.
    StandbyLeader,
    /// Was leader and has stopped being it; not yet a replica.
    Demoted,
    /// Has no data yet.
    Uninitialized,
    /// Promotion was signalled and is not finished.
    Promoted,
}

/// Patroni's state words, with the numbers of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MemberState {
    /// initdb runs.
    InitializingNewCluster = 0,
    /// initdb ended with an error.
    InitdbFailed = 1,
    /// A custom bootstrap command runs.
    RunningCustomBootstrap = 2,
    /// A custom bootstrap command failed.
    CustomBootstrapFailed = 3,
    /// A clone runs.
    CreatingReplica = 4,
    /// Answers queries.
    Running = 5,
    /// Started, does not answer yet.
    Starting = 6,
    /// Starting after a custom bootstrap.
    StartingAfterCustomBootstrap = 7,
    /// Could not be started.
    StartFailed = 8,
    /// Is being restarted.
    Restarting = 9,
    /// Could not be restarted.
    RestartFailed = 10,
    /// Is being stopped.
    Stopping = 11,
    /// Does not run.
    Stopped = 12,
    /// Could not be stopped.
    StopFailed = 13,
    /// Died without being told to.
    Crashed = 14,
}

/// A member's tags (Patroni's `tags:`).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tags {
    /// Never promoted (`nofailover`, or `failover_priority` 0).
    pub nofailover: bool,
    /// Preference among equally advanced candidates, higher first; 1 if unset.
    pub failover_priority: Option<u32>,
    /// Never used for reads.
    pub noloadbalance: bool,
    /// Preferred source of base backups.
    pub clonefrom: bool,
    /// Never a synchronous standby.
    pub nosync: bool,
    /// Preference among synchronous standbys, higher first; 0 is never one, 1 if unset.
    pub sync_priority: Option<u32>,
    /// Upstream of a cascading replica.
    pub replicatefrom: Option<MemberName>,
    /// WAL from the archive alone.
    pub nostream: bool,
    /// Every other tag, as its JSON text.
    pub custom: BTreeMap<String, String>,
}

impl Tags {
    /// Whether the member may be promoted at all. An explicit `nofailover` wins over a priority.
    pub fn may_lead(&self) -> bool {
        !self.nofailover && self.failover_priority != Some(0)
    }

    /// Whether the member may be a synchronous standby. An explicit `nosync` wins over a priority.
    pub fn may_be_synchronous(&self) -> bool {
        !self.nosync && self.sync_priority != Some(0) && !self.nostream
    }

    /// The preference among equals.
    pub fn priority(&self) -> u32 {
        self.failover_priority.unwrap_or(1)
    }
}

/// Readiness of a candidate in a switchover: its WAL holds the old leader's shutdown checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchoverReady {
    /// The switchover it is ready for.
    pub id: u64,
    /// How far it has replayed.
    pub replayed: Lsn,
}

/// One member's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// Host and port of its PostgreSQL, without the URL around them; IPv6 in brackets.
    pub address: Arc<str>,
    /// Host and port where clients behind a proxy reach its PostgreSQL, if it names one.
    pub proxy_address: Option<Arc<str>>,
    /// Its REST API, such as `http://10.0.0.1:8008/patroni`; empty if it has none.
    pub api_url: Arc<str>,
    /// What its PostgreSQL is.
    pub role: MemberRole,
    /// What its PostgreSQL does.
    pub state: MemberState,
    /// Its timeline; absent while unknown.
    pub timeline: Option<Timeline>,
    /// Its position: current for a primary, the furthest of received and replayed for a replica.
    pub position: Option<Lsn>,
    /// How far a replica has received.
    pub received: Option<Lsn>,
    /// How far a replica has replayed.
    pub replayed: Option<Lsn>,
    /// Whether a replica streams: `Some(false)` is in archive recovery; `None` if the record has no such
    /// field (an older Patroni's).
    pub is_streaming: Option<bool>,
    /// Tags.
    pub tags: Tags,
    /// `false` from promotion until the first checkpoint on the new timeline.
    pub is_checkpointed_after_promote: bool,
    /// Parameters changed that need a restart.
    pub has_pending_restart: bool,
    /// Those parameters, as far as the record names them.
    pub pending_restart: BTreeMap<Arc<str>, ParameterChange>,
    /// The restart that this member was asked to make later.
    pub scheduled_restart: Option<RestartSchedule>,
    /// Paused, as the member sees it.
    pub is_paused: bool,
    /// Version of the software that wrote the record.
    pub version: Arc<str>,
    /// The lease the record hangs on; 0 if none.
    pub lease: i64,
    /// The mod revision of the record.
    pub revision: i64,
    /// What only Trunkline's records carry.
    pub trunkline: Option<TrunklineFields>,
}

/// A restart for later, as the record writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartSchedule {
    /// When: ISO 8601.
    pub schedule: Arc<str>,
    /// Only if PostgreSQL is older than this.
    pub postgres_version: Option<Arc<str>>,
    /// The start of the postmaster for which it was asked: after another one it has happened.
    pub postmaster_start_time: Option<Arc<str>>,
}

/// A parameter's value in use, and the one that a restart brings (Patroni's `pending_restart_reason`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterChange {
    /// In use.
    pub old: Arc<str>,
    /// After a restart.
    pub new: Arc<str>,
}

/// The fields under `trunkline` in a member's record.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TrunklineFields {
    /// The epoch under which the record was written; the router confirms a leader by it.
    pub epoch: Option<LeaderEpoch>,
    /// The system identifier of its data directory; of the cluster that it knows where the DCS lost that and the data
    /// cannot be read.
    pub system_id: Option<SystemId>,
    /// Readiness for a switchover.
    pub ready: Option<SwitchoverReady>,
    /// Why this member does not lead or does not run, as a `Reason`'s name.
    pub reason: Option<Arc<str>>,
    /// What belongs to the reason: a number of bytes, another member, an error.
    pub detail: Option<Arc<str>>,
    /// It is to have a watchdog and cannot use it, so it does not lead.
    pub has_watchdog_failed: bool,
}

impl Member {
    /// Whether it may be promoted, as far as its record tells.
    pub fn may_lead(&self) -> bool {
        let fields = self.trunkline.as_ref();
        self.tags.may_lead() && !fields.is_some_and(|fields| fields.has_watchdog_failed)
    }

    /// Whether Trunkline, and not Patroni, wrote the record.
    pub fn is_trunkline(&self) -> bool {
        self.trunkline.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_follow_patronis_rule() {
        for (name, slot) in [
            ("pg-1.example", "pg_1_example"),
            ("UPPER", "upper"),
            ("a b", "au0032b"),
            ("ü", "u0252"),
        ] {
            assert_eq!(MemberName::new(name).slot_name(), slot);
        }
        assert_eq!(MemberName::new(&"x".repeat(80)).slot_name().len(), 63);
    }

    #[test]
    fn an_explicit_nofailover_wins_over_a_priority() {
        let tags = Tags {
            nofailover: true,
            failover_priority: Some(5),
            ..Tags::default()
        };
        assert!(!tags.may_lead());
        assert!(
            !Tags {
                failover_priority: Some(0),
                ..Tags::default()
            }
            .may_lead()
        );
        assert!(Tags::default().may_lead());
    }
}
