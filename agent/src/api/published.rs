//! What the REST API may say: one immutable value, replaced by the tick, read without a lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::member::ParameterChange;
use trunkline_shared::cluster::{
    ClusterName, LeaderEpoch, Lsn, MemberName, MemberRole, MemberState, Moment, SystemId, Tags,
    Timeline, Topology,
};

use crate::decide::Reason;
use crate::decide::store::StoreView;

/// This member and the cluster as of the last tick.
#[derive(Clone, Debug)]
pub struct Published {
    /// The cluster.
    pub cluster: ClusterName,
    /// This member.
    pub name: MemberName,
    /// What the local PostgreSQL does.
    pub state: MemberState,
    /// What it is.
    pub role: MemberRole,
    /// `server_version_num`, such as 150008; absent while it does not answer.
    pub server_version: Option<u32>,
    /// `pg_postmaster_start_time()` as PostgreSQL prints it, and in seconds since 1970.
    pub postmaster_start_time: Option<WallTime>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// The timeline of the data, whether it runs or not.
    pub data_timeline: Option<Timeline>,
    /// A primary's current position.
    pub position: Option<Lsn>,
    /// A replica's received position.
    pub received: Option<Lsn>,
    /// A replica's replayed position.
    pub replayed: Option<Lsn>,
    /// `pg_last_xact_replay_timestamp()`.
    pub replayed_timestamp: Option<WallTime>,
    /// How far the WAL of whoever sends to this replica reached, as it said last.
    pub leader_end: Option<Lsn>,
    /// Whether replay is paused.
    pub is_replay_paused: bool,
    /// `streaming` or `in archive recovery` on a replica.
    pub replication_state: Option<Arc<str>>,
    /// Rows of `pg_stat_replication` on this member.
    pub replication: Vec<ReplicationRow>,
    /// Tags.
    pub tags: Tags,
    /// Parameters wait for a restart of PostgreSQL.
    pub has_pending_restart: bool,
    /// Those that PostgreSQL names itself; it knows nothing of those on its command line.
    pub pending_restart: BTreeMap<Arc<str>, ParameterChange>,
    /// The data directory's system identifier.
    pub system_id: Option<SystemId>,
    /// Automation is off.
    pub is_paused: bool,
    /// A required watchdog could not be armed.
    pub has_watchdog_failed: bool,
    /// Until when it lets others run first.
    pub stands_back_until: Option<Moment>,
    /// Leading by the consent of the members while the DCS is away.
    pub is_failsafe_active: bool,
    /// When the DCS last answered, seconds since 1970; 0 for never.
    pub dcs_last_seen: u64,
    /// The DCS as this member knows it, and whether it has answered lately.
    pub store: StoreView,
    /// It has answered lately.
    pub is_dcs_fresh: bool,
    /// Whom this member asks beside those that the DCS names, and where: whom it, or the agent before, knew.
    pub former: BTreeMap<MemberName, Arc<str>>,
    /// The cluster as this member sees it.
    pub topology: Arc<Topology>,
    /// What the last tick decided and why, in the one sentence that log and journal use; where there is
    /// no leader, why there is none.
    pub reason: Option<Arc<str>>,
    /// The same without what it is about.
    pub decided: Option<Reason>,
    /// The epoch under which this member leads.
    pub epoch: Option<LeaderEpoch>,
    /// Until when this member may lead without another word from the DCS or the members. Paths that say
    /// "leader" or "primary" are 200 only while this lies ahead.
    pub lease_deadline: Option<Moment>,
    /// A volume of the instance is nearly full.
    pub is_disk_nearly_full: bool,
    /// Since when a write of the agent to its disks has not come back.
    pub writes_since: Option<Moment>,
    /// Whether the local PostgreSQL accepts writes, and is the one that `initialize` names.
    pub is_writable: bool,
    /// When the last tick ended; `/liveness` goes by it.
    pub last_tick: Moment,
}

/// A wall-clock time in both forms that the API shows.
#[derive(Clone, Debug, PartialEq)]
pub struct WallTime {
    /// As PostgreSQL prints it.
    pub text: Arc<str>,
    /// Seconds since 1970.
    pub seconds: f64,
}

/// One row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationRow {
    /// The role.
    pub usename: String,
    /// Which standby says it is.
    pub application_name: String,
    /// Where it connects from.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, ...
    pub state: String,
    /// `async`, `sync`, `quorum`, `potential`.
    pub sync_state: String,
    /// Its priority for being synchronous.
    pub sync_priority: i32,
}

impl Published {
    /// What can be said before the first tick: nothing runs, nothing is known.
    pub fn before_the_first_tick(cluster: ClusterName, name: MemberName, now: Moment) -> Self {
        Self {
            cluster,
            name,
            state: MemberState::Stopped,
            role: MemberRole::Uninitialized,
            server_version: None,
            postmaster_start_time: None,
            timeline: None,
            data_timeline: None,
            position: None,
            received: None,
            replayed: None,
            replayed_timestamp: None,
            leader_end: None,
            is_replay_paused: false,
            replication_state: None,
            replication: Vec::new(),
            tags: Tags::default(),
            has_pending_restart: false,
            pending_restart: BTreeMap::new(),
            system_id: None,
            is_paused: false,
            has_watchdog_failed: false,
            stands_back_until: None,
            is_failsafe_active: false,
            dcs_last_seen: 0,
            store: StoreView::default(),
            is_dcs_fresh: false,
            former: BTreeMap::new(),
            topology: Arc::default(),
            reason: None,
            decided: None,
            epoch: None,
            lease_deadline: None,
            is_disk_nearly_full: false,
            writes_since: None,
            is_writable: false,
            last_tick: now,
        }
    }

    /// Whether this member may say "leader" at this moment.
    pub fn holds_lease(&self, now: Moment) -> bool {
        self.lease_deadline.is_some_and(|deadline| deadline > now)
    }

    /// Whether no turn has ended for a ttl: nothing that is said here can be believed.
    pub fn stands_still(&self, now: Moment) -> bool {
        now.since(self.last_tick) >= self.topology.settings_or_default().ttl
    }

    /// Whether it gave the lease up lately and lets others run first.
    pub fn stands_back(&self, now: Moment) -> bool {
        self.stands_back_until.is_some_and(|until| until > now)
    }

    /// For how long a write to the disks has not come back.
    pub fn write_waits(&self, now: Moment) -> Duration {
        self.writes_since
            .map_or(Duration::ZERO, |since| now.since(since))
    }

    /// How long it may say so, in milliseconds.
    pub fn lease_left_ms(&self, now: Moment) -> u64 {
        let left = self.lease_deadline.map(|d| now.until(d));
        left.map_or(0, |left| {
            u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
        })
    }
}
