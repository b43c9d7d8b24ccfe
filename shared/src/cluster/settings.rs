//! Settings that are equal on every node (Patroni's dynamic configuration, the `config` key).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::slots::{PermanentSlot, SlotPattern};

/// The validated dynamic configuration. Made by [`crate::dcs::records::read_settings`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Length of the lease, whole seconds; at least 2 s, the least etcd grants with its defaults.
    pub ttl: Duration,
    /// The longest time between two looks.
    pub loop_wait: Duration,
    /// How long a DCS or PostgreSQL operation is retried.
    pub retry_timeout: Duration,
    /// A replica that would lose more than this does not run for leader, bytes.
    pub maximum_lag_on_failover: u64,
    /// How long a crashed primary may take to start before another member leads; zero fails over at once.
    pub primary_start_timeout: Duration,
    /// How long a stop may take before it is made immediate; zero is without a limit of its own.
    pub primary_stop_timeout: Duration,
    /// Automation off.
    pub is_paused: bool,
    /// Refuse to promote below the cluster's last known timeline.
    pub check_timeline: bool,
    /// `None` where the record is silent (`ha.md` 6).
    pub failsafe_mode: Option<bool>,
    /// Synchronous replication.
    pub synchronous_mode: SynchronousMode,
    /// Commits wait rather than degrade to asynchronous when no standby is left.
    pub is_synchronous_mode_strict: bool,
    /// How many synchronous standbys are wanted; at least 1.
    pub synchronous_node_count: u32,
    /// A synchronous standby that lags more than this is replaced, bytes; `None` is without a limit.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// How long the slot of a vanished member is kept.
    pub member_slots_ttl: Duration,
    /// Rewind a diverged member instead of re-cloning it.
    pub use_pg_rewind: bool,
    /// Member replication slots.
    pub use_slots: bool,
    /// PostgreSQL parameters of the whole cluster.
    pub parameters: BTreeMap<String, String>,
    /// The lines of `pg_hba.conf`, if managed.
    pub pg_hba: Option<Vec<String>>,
    /// The lines of `pg_ident.conf`, if managed.
    pub pg_ident: Option<Vec<String>>,
    /// Recovery parameters of the whole cluster (Patroni's `recovery_conf`).
    pub recovery_conf: BTreeMap<String, String>,
    /// What else the section `postgresql` says: settings for members, which a member's own file may overrule.
    pub of_members: serde_json::Map<String, serde_json::Value>,
    /// The cluster replicates from another one, and nobody in it accepts writes.
    pub standby_cluster: Option<Arc<StandbyCluster>>,
    /// Slots that outlive their users.
    pub slots: BTreeMap<String, PermanentSlot>,
    /// Slots that nobody touches.
    pub ignore_slots: Vec<SlotPattern>,
    /// How many entries the `history` key keeps; 0 keeps all.
    pub max_timelines_history: usize,
}

/// `standby_cluster`: where a standby cluster's leader has its WAL from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyCluster {
    /// The host to stream from, or several with commas between, of which whoever answers counts; `None` replicates from
    /// the archive alone.
    pub host: Option<String>,
    /// Its port, the same on each.
    pub port: u16,
    /// The slot there.
    pub primary_slot_name: Option<String>,
    /// Fetches WAL from an archive.
    pub restore_command: Option<String>,
    /// Clears the archive of what is replayed.
    pub archive_cleanup_command: Option<String>,
    /// Replays so much later, PostgreSQL's words.
    pub recovery_min_apply_delay: Option<String>,
    /// How the leader's data is made, in order; empty: as every member's.
    pub create_replica_methods: Vec<String>,
}

/// `synchronous_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SynchronousMode {
    /// Asynchronous.
    #[default]
    Off,
    /// Named standbys hold every commit.
    On,
    /// Any `k` of the voters do.
    Quorum,
}

impl Default for ClusterSettings {
    /// Patroni's defaults.
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            maximum_lag_on_failover: 1_048_576,
            primary_start_timeout: Duration::from_secs(300),
            primary_stop_timeout: Duration::ZERO,
            is_paused: false,
            check_timeline: false,
            failsafe_mode: None,
            synchronous_mode: SynchronousMode::Off,
            is_synchronous_mode_strict: false,
            synchronous_node_count: 1,
            maximum_lag_on_syncnode: None,
            member_slots_ttl: Duration::from_secs(30 * 60),
            use_pg_rewind: false,
            use_slots: true,
            parameters: BTreeMap::new(),
            pg_hba: None,
            pg_ident: None,
            recovery_conf: BTreeMap::new(),
            of_members: serde_json::Map::new(),
            standby_cluster: None,
            slots: BTreeMap::new(),
            ignore_slots: Vec::new(),
            max_timelines_history: 0,
        }
    }
}
