//! What `pg_controldata` says of a data directory (pure).

use trunkline_shared::cluster::{Lsn, SystemId, Timeline};

/// The state recorded in the control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlState {
    /// Made by initdb, never started.
    StartingUp,
    /// Stopped cleanly as a primary.
    ShutDown,
    /// Stopped cleanly in recovery.
    ShutDownInRecovery,
    /// Was stopping.
    ShuttingDown,
    /// Was recovering from a crash.
    InCrashRecovery,
    /// In recovery as a replica; if nothing runs, it was not stopped cleanly.
    InArchiveRecovery,
    /// Accepts writes; if nothing runs, it was not stopped cleanly.
    InProduction,
}

impl ControlState {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "starting up" => Self::StartingUp,
            "shut down" => Self::ShutDown,
            "shut down in recovery" => Self::ShutDownInRecovery,
            "shutting down" => Self::ShuttingDown,
            "in crash recovery" => Self::InCrashRecovery,
            "in archive recovery" => Self::InArchiveRecovery,
            "in production" => Self::InProduction,
            _ => return None,
        })
    }

    /// Whether the instance stopped, or would stop, as a replica.
    pub fn is_in_recovery(self) -> bool {
        match self {
            Self::ShutDownInRecovery | Self::InArchiveRecovery => true,
            Self::StartingUp
            | Self::ShutDown
            | Self::ShuttingDown
            | Self::InCrashRecovery
            | Self::InProduction => false,
        }
    }
}

/// The lower bounds a replica's shared memory settings must keep, as its primary wrote them last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SharedMemorySettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// The parts of the control file that anything depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlData {
    /// State.
    pub state: ControlState,
    /// System identifier.
    pub system_id: SystemId,
    /// Where the latest checkpoint's record begins.
    pub checkpoint: Lsn,
    /// Where recovery from it begins.
    pub redo: Lsn,
    /// The checkpoint's timeline.
    pub timeline: Timeline,
    /// The timeline before it, if the checkpoint ended a recovery; else equal to it.
    pub previous_timeline: Timeline,
    /// How far a replica must replay to be consistent; zero on a primary.
    pub min_recovery_end: Lsn,
    /// The timeline of that position; zero on a primary.
    pub min_recovery_timeline: Timeline,
    /// Whether an interrupted base backup must be replayed to its end first.
    pub is_end_of_backup_required: bool,
    /// `wal_log_hints` as last used.
    pub has_wal_log_hints: bool,
    /// Whether pages have checksums.
    pub has_checksums: bool,
    /// Bytes of a WAL segment.
    pub wal_segment_bytes: u64,
    /// Settings of the primary that a replica must not undercut.
    pub shared_memory: SharedMemorySettings,
}

/// A line that must be there is missing or unreadable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pg_controldata printed no readable \"{0}\"")]
pub struct NotControlData(pub &'static str);

impl ControlData {
    /// Reads the output of `LC_ALL=C pg_controldata`.
    pub fn parse(text: &str) -> Result<Self, NotControlData> {
        let field = |name: &'static str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.trim())
                .ok_or(NotControlData(name))
        };
        let lsn = |name| {
            field(name)?
                .parse::<Lsn>()
                .map_err(|_| NotControlData(name))
        };
        let number = |name| {
            field(name)?
                .parse::<u64>()
                .map_err(|_| NotControlData(name))
        };
        let timeline = |name| number(name).map(|n| Timeline(u32::try_from(n).unwrap_or(u32::MAX)));
        let setting = |name| number(name).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let state = "Database cluster state";
        Ok(Self {
            state: ControlState::parse(field(state)?).ok_or(NotControlData(state))?,
            system_id: SystemId(number("Database system identifier")?),
            checkpoint: lsn("Latest checkpoint location")?,
            redo: lsn("Latest checkpoint's REDO location")?,
            timeline: timeline("Latest checkpoint's TimeLineID")?,
            previous_timeline: timeline("Latest checkpoint's PrevTimeLineID")?,
            min_recovery_end: lsn("Minimum recovery ending location")?,
            min_recovery_timeline: timeline("Min recovery ending loc's timeline")?,
            is_end_of_backup_required: field("End-of-backup record required")? == "yes",
            has_wal_log_hints: field("wal_log_hints setting")? == "on",
            has_checksums: number("Data page checksum version")? != 0,
            wal_segment_bytes: number("Bytes per WAL segment")?,
            shared_memory: SharedMemorySettings {
                max_connections: setting("max_connections setting")?,
                max_worker_processes: setting("max_worker_processes setting")?,
                max_wal_senders: setting("max_wal_senders setting")?,
                max_prepared_transactions: setting("max_prepared_xacts setting")?,
                max_locks_per_transaction: setting("max_locks_per_xact setting")?,
            },
        })
    }

    /// The newest timeline the directory has reached for certain.
    pub fn newest_timeline(&self) -> Timeline {
        self.timeline.max(self.min_recovery_timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
pg_control version number:            1300
Database system identifier:           7300000000000000001
Database cluster state:               in archive recovery
pg_control last modified:             Thu 01 Jan 2026 10:00:00 AM UTC
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       1
Latest checkpoint's PrevTimeLineID:   1
Minimum recovery ending location:     0/5000148
Min recovery ending loc's timeline:   2
Backup start location:                0/0
Backup end location:                  0/0
End-of-backup record required:        no
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn reads_what_pg_controldata_prints() {
        let data = ControlData::parse(SAMPLE).unwrap();
        assert_eq!(data.state, ControlState::InArchiveRecovery);
        assert_eq!(data.system_id, SystemId(7_300_000_000_000_000_001));
        assert_eq!(data.min_recovery_end, Lsn(0x500_0148));
        assert_eq!(data.newest_timeline(), Timeline(2));
        assert!(data.has_checksums && data.has_wal_log_hints && !data.is_end_of_backup_required);
        assert_eq!(data.shared_memory.max_locks_per_transaction, 64);
    }

    #[test]
    fn a_missing_line_is_named() {
        let cut = SAMPLE.replace("Latest checkpoint location", "Something else");
        assert_eq!(
            ControlData::parse(&cut),
            Err(NotControlData("Latest checkpoint location"))
        );
    }
}
