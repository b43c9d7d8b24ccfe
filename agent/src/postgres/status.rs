//! What the instance says of itself: the one query of a tick, and its answer as plain data (pure).

use serde::Deserialize;

use trunkline_shared::cluster::{Lsn, SystemId, Timeline};

use super::rewind::parse_history;

/// One row and column of JSON: everything a tick needs in one round trip. Every column named here exists
/// in PostgreSQL 13 to 18. They are looked at in this order: what waits for more after `received` has replayed that, and
/// `replayed` after it says how far that is.
pub(crate) const STATUS_QUERY: &str = "\
SELECT pg_catalog.json_build_object(
 'version', pg_catalog.current_setting('server_version_num')::int,
 'started', (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint,
 'system_id', (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
 'in_recovery', r.r,
 'timeline', CASE WHEN NOT r.r THEN pg_catalog.substr(pg_catalog.pg_walfile_name(
    pg_catalog.pg_current_wal_lsn()), 1, 8) END,
 'control_timeline', (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),
 'recovery_timeline', (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),
 'current', CASE WHEN NOT r.r THEN pg_catalog.pg_current_wal_flush_lsn() END,
 'received', CASE WHEN r.r THEN pg_catalog.pg_last_wal_receive_lsn() END,
 'replay_waits_for', CASE WHEN r.r THEN (SELECT wait_event
    FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup') END,
 'replayed', CASE WHEN r.r THEN pg_catalog.pg_last_wal_replay_lsn() END,
 'replayed_at', CASE WHEN r.r THEN (extract(epoch from pg_catalog.pg_last_xact_replay_timestamp())
    * 1000000)::bigint END,
 'replay_paused', CASE WHEN r.r THEN pg_catalog.pg_is_wal_replay_paused() END,
 'conninfo', pg_catalog.current_setting('primary_conninfo', true),
 'slot', pg_catalog.current_setting('primary_slot_name', true),
 'synchronous_standby_names', pg_catalog.current_setting('synchronous_standby_names'),
 'checkpointer', CASE WHEN pg_catalog.current_setting('synchronous_standby_names') <> '' THEN (SELECT wait_event
    FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer') END,
 'receiver', (SELECT pg_catalog.json_build_object('status', status, 'timeline', received_tli,
    'slot', slot_name, 'host', sender_host, 'port', sender_port, 'latest_end', latest_end_lsn)
    FROM pg_catalog.pg_stat_wal_receiver WHERE pid IS NOT NULL),
 'replaying', CASE WHEN r.r AND pg_catalog.current_setting('restore_command') = ''
    AND pg_catalog.current_setting('recovery_target_timeline') = 'latest'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE received_tli IS NOT NULL)
    THEN (SELECT pg_catalog.json_build_object('newest', w.newest,
      'history', pg_catalog.encode(pg_catalog.pg_read_binary_file(
        'pg_wal/' || w.newest || '.history', 0, 1048576, true), 'escape'), 'segments', w.segments)
    FROM (SELECT max(pg_catalog.left(name, 8) COLLATE \"C\") FILTER (WHERE name LIKE '________.history') AS newest,
      pg_catalog.json_agg(pg_catalog.left(name, 8)) FILTER (WHERE pg_catalog.substr(name, 9) = pg_catalog.upper(
        pg_catalog.lpad(pg_catalog.to_hex(p.at >> 32), 8, '0')
        || pg_catalog.lpad(pg_catalog.to_hex((p.at & 4294967295) / p.size), 8, '0'))) AS segments
      FROM pg_catalog.pg_ls_dir('pg_wal') AS l(name), (SELECT (pg_catalog.pg_last_wal_replay_lsn() - '0/0')::bigint - 1 AS at,
        pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')) AS size) AS p) AS w) END,
 'senders', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('pid', pid,
    'usename', usename, 'sync_priority', sync_priority, 'application_name', application_name, 'client_addr', client_addr, 'state', state,
    'sync_state', sync_state, 'sent', sent_lsn, 'flushed', flush_lsn, 'replayed', replay_lsn)), '[]')
    FROM pg_catalog.pg_stat_replication),
 'slots', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('name', slot_name,
    'kind', slot_type, 'plugin', plugin, 'database', database, 'is_active', active,
    'is_temporary', temporary, 'restart', restart_lsn, 'confirmed', confirmed_flush_lsn,
    'xmin', xmin::text, 'wal_status', wal_status,
    'is_invalid', coalesce((pg_catalog.to_jsonb(s) ->> 'conflicting')::bool, false)
      OR (pg_catalog.to_jsonb(s) ->> 'invalidation_reason') IS NOT NULL,
    'is_failover', coalesce((pg_catalog.to_jsonb(s) ->> 'failover')::bool, false)
      OR coalesce((pg_catalog.to_jsonb(s) ->> 'synced')::bool, false),
    'is_synced', coalesce((pg_catalog.to_jsonb(s) ->> 'synced')::bool, false))), '[]')
    FROM pg_catalog.pg_replication_slots AS s),
 'pending_restart', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('name', name,
    'in_use', pg_catalog.current_setting(name), 'default', coalesce(CASE WHEN unit IS NULL OR vartype NOT IN
    ('integer', 'real') THEN boot_val WHEN unit ~ '^[0-9]' THEN boot_val || ' * ' || unit ELSE boot_val || unit END,
    ''))), '[]')
    FROM pg_catalog.pg_settings WHERE pending_restart
    -- What only recovery reads and a promotion has removed waits for nothing.
    AND (pg_catalog.pg_is_in_recovery() OR name !~ '^(recovery_target|restore_command)')),
 'controlled', (SELECT pg_catalog.json_object_agg(name, setting) FROM pg_catalog.pg_settings
    WHERE name IN ('max_connections', 'max_locks_per_transaction', 'max_worker_processes',
    'max_prepared_transactions', 'wal_level', 'track_commit_timestamp', 'max_wal_senders',
    'max_replication_slots', 'wal_log_hints'))
)::text FROM (SELECT pg_catalog.pg_is_in_recovery() AS r) AS r";

/// The WAL receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// PostgreSQL's word: `starting`, `streaming`, `waiting`, `restarting`, `stopping`.
    pub status: String,
    /// Timeline of the last WAL received.
    pub timeline: Option<Timeline>,
    /// Slot in use.
    pub slot: Option<String>,
    /// Host it is connected to.
    pub host: Option<String>,
    /// Port it is connected to.
    pub port: Option<u16>,
    /// How far the sender's own WAL reached when it said so last.
    pub latest_end: Option<Lsn>,
}

impl Receiver {
    /// Whether WAL arrives.
    pub fn is_streaming(&self) -> bool {
        self.status == "streaming"
    }
}

/// One replica, or another receiver of WAL, connected to this instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The walsender process.
    pub pid: i32,
    /// The role it logged in as.
    pub usename: String,
    /// Its place among the synchronous standbys, 0 for none.
    pub sync_priority: i32,
    /// The name the receiver gave itself: a member's name.
    pub application_name: String,
    /// Its address; absent over a Unix socket.
    pub client_addr: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup`, `stopping`.
    pub state: String,
    /// `async`, `potential`, `sync`, `quorum`.
    pub sync_state: String,
    /// Sent up to here.
    pub sent: Option<Lsn>,
    /// Flushed there up to here.
    pub flushed: Option<Lsn>,
    /// Replayed there up to here.
    pub replayed: Option<Lsn>,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Whether it is physical.
    pub is_physical: bool,
    /// Output plugin of a logical slot.
    pub plugin: Option<String>,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Whether somebody uses it.
    pub is_active: bool,
    /// Whether it ends with its session.
    pub is_temporary: bool,
    /// WAL is kept from here on.
    pub restart: Option<Lsn>,
    /// Confirmed by a logical consumer.
    pub confirmed: Option<Lsn>,
    /// Whether it holds back vacuum, which no replica's slot may.
    pub has_xmin: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Whether PostgreSQL gave it up (16 and later).
    pub is_invalid: bool,
    /// Whether PostgreSQL itself keeps it on standbys, or made it there (17 and later).
    pub is_failover: bool,
    /// Whether PostgreSQL itself made it on this standby.
    pub is_synced: bool,
}

/// A parameter that waits for a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Waiting {
    /// Its name.
    pub name: String,
    /// The value in use.
    pub in_use: String,
    /// The value where no file has one, in the parameter's own unit; empty where the server makes one up as it starts.
    #[serde(default)]
    pub default: String,
}

/// The answer of a running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// `server_version_num`, such as 150018.
    pub version: u32,
    /// Start of the postmaster in microseconds since 1970.
    pub started_us: i64,
    /// System identifier.
    pub system_id: SystemId,
    /// Whether it is in recovery: writes are refused.
    pub is_in_recovery: bool,
    /// Timeline: of the WAL written by a primary; of a replica the newest it is known to have reached.
    pub timeline: Timeline,
    /// Timeline of the latest checkpoint: equals `timeline` after the first checkpoint of a promotion.
    pub checkpoint_timeline: Timeline,
    /// Flushed by a primary up to here.
    pub current: Option<Lsn>,
    /// Received by a replica up to here since it asked for WAL; of one that asks nobody what it has replayed, once that is
    /// all that lies there. Absent while it may hold more than it has replayed.
    pub received: Option<Lsn>,
    /// Replayed by a replica up to here.
    pub replayed: Option<Lsn>,
    /// A replica has replayed every whole record that it has: it waits for more.
    pub has_read_all: bool,
    /// When the last transaction that a replica has replayed was committed, microseconds since 1970.
    pub replayed_at_us: Option<i64>,
    /// Whether replay is paused by request.
    pub is_replay_paused: bool,
    /// `primary_conninfo` in use.
    pub conninfo: String,
    /// `primary_slot_name` in use.
    pub slot: String,
    /// `synchronous_standby_names` in use.
    pub synchronous_standby_names: String,
    /// The checkpointer may not have taken a changed `synchronous_standby_names` up yet. Sessions look at
    /// what it took up, not at the setting: until then commits wait for nobody (tried on 15).
    pub is_checkpointer_busy: bool,
    /// The WAL receiver, if one runs.
    pub receiver: Option<Receiver>,
    /// Who receives from this instance.
    pub senders: Vec<Sender>,
    /// Replication slots.
    pub slots: Vec<Slot>,
    /// Parameters changed in the files that wait for a restart.
    pub pending_restart: Vec<Waiting>,
    /// The parameters given on the command line, with the values in use.
    pub controlled: Vec<(String, String)>,
}

impl ServerStatus {
    /// The same where it says nothing more: it goes on receiving, and how far is unknown.
    pub fn of_before(&self) -> Self {
        Self {
            received: None,
            has_read_all: false,
            ..self.clone()
        }
    }

    /// One postmaster recovers along timelines that only rise, and once its receiver is gone nothing else may tell that it has
    /// taken up a newer one: what it said before, `known`, still holds.
    pub fn goes_on_from(&mut self, known: &Self) {
        let is_same = self.started_us == known.started_us;
        if is_same && self.is_in_recovery && known.is_in_recovery {
            self.timeline = self.timeline.max(known.timeline);
        }
    }

    /// How far the WAL of this instance reaches: flushed by a primary, received or replayed by a replica.
    pub fn position(&self) -> Lsn {
        let of = |lsn: Option<Lsn>| lsn.unwrap_or_default();
        of(self.current)
            .max(of(self.received))
            .max(of(self.replayed))
    }

    /// Whether WAL arrives from exactly this server, or one of several with commas between.
    pub fn is_streaming_from(&self, hosts: &str, port: u16) -> bool {
        self.receiver.as_ref().is_some_and(|r| {
            let is_one = hosts.split(',').any(|host| r.host.as_deref() == Some(host));
            r.is_streaming() && is_one && r.port == Some(port)
        })
    }

    /// Reads the one value of [`STATUS_QUERY`].
    pub(crate) fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<RawStatus>(json).map(Self::from)
    }
}

#[derive(Deserialize)]
struct RawStatus {
    version: u32,
    started: i64,
    system_id: String,
    in_recovery: bool,
    timeline: Option<String>,
    control_timeline: u32,
    recovery_timeline: Option<u32>,
    current: Option<String>,
    received: Option<String>,
    replayed: Option<String>,
    replay_waits_for: Option<String>,
    replayed_at: Option<i64>,
    replay_paused: Option<bool>,
    conninfo: Option<String>,
    slot: Option<String>,
    synchronous_standby_names: String,
    checkpointer: Option<String>,
    receiver: Option<RawReceiver>,
    replaying: Option<RawReplaying>,
    senders: Vec<RawSender>,
    slots: Vec<RawSlot>,
    pending_restart: Vec<Waiting>,
    controlled: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawReceiver {
    status: Option<String>,
    timeline: Option<u32>,
    slot: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    latest_end: Option<String>,
}

/// What lies in `pg_wal` for who asks which timeline replay is on.
#[derive(Deserialize)]
struct RawReplaying {
    /// The newest history file's timeline, and what it says.
    newest: Option<String>,
    history: Option<String>,
    /// The timelines that have a file of the segment in which replay stands.
    segments: Option<Vec<String>>,
}

impl RawReplaying {
    /// The timeline of the WAL that ends at `replayed`. The control file names one that replay has left, until the next
    /// restartpoint or page written, and no function does; but replay goes along the newest history, and reads a
    /// segment from the newest timeline that has a file of it (`XLogFileReadAnyTLI`). Without such a file it has left
    /// that history. With an archive nothing is asked: from there a file can come that replay has passed already.
    fn timeline(&self, replayed: Lsn) -> Option<Timeline> {
        let number = |hex: &String| u32::from_str_radix(hex, 16).ok().map(Timeline);
        let newest = number(self.newest.as_ref()?)?;
        let history = parse_history(self.history.as_ref()?);
        let ends = history.shared_ends(Timeline(0), newest);
        // A number that was passed over has a file without a line.
        ends.last()?;
        let ended = ends.iter().find(|end| replayed <= end.end);
        let timeline = ended.map_or(newest, |end| end.timeline);
        let is_of_it =
            |read: Timeline| read == newest || (read >= timeline && history.end_of(read).is_some());
        let mut segments = self.segments.iter().flatten();
        segments
            .any(|segment| number(segment).is_some_and(is_of_it))
            .then_some(timeline)
    }
}

#[derive(Deserialize)]
struct RawSender {
    pid: i32,
    usename: Option<String>,
    sync_priority: Option<i32>,
    application_name: Option<String>,
    client_addr: Option<String>,
    state: Option<String>,
    sync_state: Option<String>,
    sent: Option<String>,
    flushed: Option<String>,
    replayed: Option<String>,
}

#[derive(Deserialize)]
struct RawSlot {
    name: String,
    kind: String,
    plugin: Option<String>,
    database: Option<String>,
    is_active: bool,
    is_temporary: bool,
    restart: Option<String>,
    confirmed: Option<String>,
    xmin: Option<String>,
    wal_status: Option<String>,
    #[serde(default)]
    is_invalid: bool,
    #[serde(default)]
    is_failover: bool,
    #[serde(default)]
    is_synced: bool,
}

/// Whether the startup process waits for what comes after all that lies there: it sleeps so only after archive and `pg_wal` had
/// no more (`WaitForWALToBecomeAvailable`).
fn waits_for_more(event: &str) -> bool {
    matches!(event, "RecoveryRetrieveRetryInterval" | "RecoveryWalStream")
}

fn lsn(text: Option<String>) -> Option<Lsn> {
    text.and_then(|t| t.parse().ok())
}

impl From<RawStatus> for ServerStatus {
    fn from(raw: RawStatus) -> Self {
        let written = raw.timeline.and_then(|t| u32::from_str_radix(&t, 16).ok());
        let receiver = raw.receiver.map(|r| Receiver {
            status: r.status.unwrap_or_default(),
            timeline: r.timeline.map(Timeline),
            slot: r.slot,
            host: r.host,
            port: r.port,
            latest_end: lsn(r.latest_end),
        });
        let received = receiver
            .as_ref()
            .and_then(|r| r.timeline)
            .map_or(0, |t| t.0);
        let recovered = raw.recovery_timeline.unwrap_or(0);
        let replayed = lsn(raw.replayed);
        let has_read_all = raw.replay_waits_for.as_deref().is_some_and(waits_for_more);
        let replaying = raw.replaying.zip(replayed);
        let replaying = replaying.and_then(|(found, replayed)| found.timeline(replayed));
        let reached = raw.control_timeline.max(recovered).max(received);
        let reached = reached.max(replaying.map_or(0, |timeline| timeline.0));
        Self {
            version: raw.version,
            started_us: raw.started,
            system_id: SystemId(raw.system_id.parse::<i64>().unwrap_or(0) as u64),
            is_in_recovery: raw.in_recovery,
            timeline: Timeline(written.unwrap_or(reached)),
            checkpoint_timeline: Timeline(raw.control_timeline),
            current: lsn(raw.current),
            received: lsn(raw.received).or(replayed.filter(|_| has_read_all)),
            replayed,
            has_read_all,
            replayed_at_us: raw.replayed_at,
            is_replay_paused: raw.replay_paused.unwrap_or(false),
            conninfo: raw.conninfo.unwrap_or_default(),
            slot: raw.slot.unwrap_or_default(),
            is_checkpointer_busy: !raw.synchronous_standby_names.is_empty()
                && !matches!(
                    raw.checkpointer.as_deref(),
                    Some("CheckpointerMain" | "CheckpointWriteDelay")
                ),
            synchronous_standby_names: raw.synchronous_standby_names,
            receiver,
            senders: raw.senders.into_iter().map(Sender::from).collect(),
            slots: raw.slots.into_iter().map(Slot::from).collect(),
            pending_restart: raw.pending_restart,
            controlled: raw.controlled.into_iter().collect(),
        }
    }
}

impl From<RawSender> for Sender {
    fn from(raw: RawSender) -> Self {
        Self {
            pid: raw.pid,
            usename: raw.usename.unwrap_or_default(),
            sync_priority: raw.sync_priority.unwrap_or(0),
            application_name: raw.application_name.unwrap_or_default(),
            client_addr: raw.client_addr,
            state: raw.state.unwrap_or_default(),
            sync_state: raw.sync_state.unwrap_or_default(),
            sent: lsn(raw.sent),
            flushed: lsn(raw.flushed),
            replayed: lsn(raw.replayed),
        }
    }
}

impl From<RawSlot> for Slot {
    fn from(raw: RawSlot) -> Self {
        Self {
            name: raw.name,
            is_physical: raw.kind == "physical",
            plugin: raw.plugin,
            database: raw.database,
            is_active: raw.is_active,
            is_temporary: raw.is_temporary,
            restart: lsn(raw.restart),
            confirmed: lsn(raw.confirmed),
            has_xmin: raw.xmin.is_some(),
            wal_status: raw.wal_status,
            is_invalid: raw.is_invalid,
            is_failover: raw.is_failover,
            is_synced: raw.is_synced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_that_was_received_once_is_not_left_with_the_receiver() {
        let status = |started: i64, in_recovery: bool, control: u32, received: Option<u32>| {
            let receiver = received.map(|timeline| {
                serde_json::json!({"status": "streaming", "timeline": timeline, "slot": null, "host": null,
                    "port": null, "latest_end": null})
            });
            let json = serde_json::json!({"version": 150_018, "started": started, "system_id": "7",
                "in_recovery": in_recovery, "control_timeline": control, "receiver": receiver,
                "timeline": (!in_recovery).then(|| format!("{control:08X}")),
                "synchronous_standby_names": "", "senders": [], "slots": [], "pending_restart": [],
                "controlled": {}});
            ServerStatus::parse(&json.to_string()).unwrap()
        };
        let after = |mut now: ServerStatus, known: &ServerStatus| {
            now.goes_on_from(known);
            now.timeline
        };
        let received = status(1, true, 1, Some(2));
        assert_eq!(received.timeline, Timeline(2));
        assert_eq!(after(status(1, true, 1, None), &received), Timeline(2));
        assert_eq!(after(status(1, true, 3, None), &received), Timeline(3));
        // Another postmaster may have other data, and a primary knows its own.
        assert_eq!(after(status(2, true, 1, None), &received), Timeline(1));
        assert_eq!(after(status(1, false, 1, None), &received), Timeline(1));
    }

    #[test]
    fn replay_is_on_the_newest_history_only_where_a_file_of_it_is_read() {
        // Timeline 3 left 2 at 0/5000100, in the segment that begins at 0/5000000.
        let history = "1\t0/3000000\tno recovery target specified\n2\t0/5000100\t-\n";
        let timeline = |history: &str, segments: &[&str], replayed: u64| {
            let found = RawReplaying {
                newest: Some("00000003".to_owned()),
                history: Some(history.to_owned()),
                segments: Some(segments.iter().map(|s| (*s).to_owned()).collect()),
            };
            found.timeline(Lsn(replayed)).map(|timeline| timeline.0)
        };
        let both = ["00000002", "00000003"];
        assert_eq!(timeline(history, &both, 0x500_0200), Some(3));
        // The segment's first part is a copy of what the earlier timeline had.
        assert_eq!(timeline(history, &both, 0x500_0080), Some(2));
        assert_eq!(timeline(history, &["00000003"], 0x500_0080), Some(2));
        assert_eq!(timeline(history, &["00000001"], 0x200_0080), Some(1));
        // It went on beyond the fork: what it is on, the control file says.
        assert_eq!(timeline(history, &["00000002"], 0x500_0200), None);
        assert_eq!(timeline(history, &[], 0x500_0200), None);
        // A number that was passed over.
        assert_eq!(timeline("# placeholder\n", &both, 0x500_0200), None);
    }
}
