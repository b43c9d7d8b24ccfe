//! Whether the host lets PostgreSQL write: a small transaction whose WAL is flushed, a file that is synced on each
//! volume, and the room left there. A disk that hangs still answers what is cached, so nothing else notices it.
//!
//! Both attempts run beside the loop, each at most once at a time, and may hang for ever: what is reported is
//! since when.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use trunkline_shared::cluster::{Lsn, Moment};
use trunkline_shared::service::clock;

use super::sql::{LocalSession, SqlError, Target};
use super::{Postgres, PostgresError};

/// A transactional message where WAL has grown since `last`: an empty commit would flush nothing, and on a server
/// that nobody writes to messages would only fill the archive. Answered with its position.
fn write_since(last: Lsn) -> String {
    format!(
        "SELECT CASE WHEN pg_current_wal_insert_lsn() > '{last}'::pg_lsn \
         THEN pg_logical_emit_message(true, 'trunkline', '') END"
    )
}

/// So much WAL follows a message by itself: its own commit, and a snapshot of what runs.
const OWN_WAL: u64 = 1024;

/// How long one session is waited for before another is tried; the hang counts from the first all the same.
const SESSION_LIMIT: Duration = Duration::from_secs(3600);

/// PostgreSQL's tools copy nothing whose name begins so, and its own start removes it.
const PROBE_FILE: &str = "pgsql_tmp_trunkline_probe";

/// Less room than this is nearly full: two WAL segments, or one hundredth of the volume.
const LOW_BYTES: u64 = 2 * 16 * 1024 * 1024;
const LOW_SHARE: u64 = 100;

/// Twice as much ends it, so that what a checkpoint frees for a moment does not.
const ENOUGH: u64 = 2;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Health {
    /// When the write in progress began, be it of WAL or of a file.
    pub writes_since: Option<Moment>,
    /// A volume of the instance is nearly full.
    pub is_nearly_full: bool,
}

#[derive(Debug, Default)]
struct Found {
    wal_since: Option<Moment>,
    file_since: Option<Moment>,
    is_nearly_full: bool,
}

/// Asks again and again; its findings are read without waiting.
#[derive(Debug, Clone, Default)]
pub struct HealthProbe(Arc<Mutex<Found>>);

impl HealthProbe {
    /// What was found last.
    pub fn view(&self) -> Health {
        let found = self.found();
        let since = [found.wal_since, found.file_since];
        Health {
            writes_since: since.into_iter().flatten().min(),
            is_nearly_full: found.is_nearly_full,
        }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes while `pace` says how often: nothing is written where it is `None`.
    pub async fn write_wal(&self, door: &Postgres, pace: impl Fn() -> Option<Duration>) {
        let session = LocalSession::default();
        let mut last = Lsn(0);
        loop {
            let Some(pause) = pace() else {
                self.found().wal_since = None;
                last = Lsn(0);
                session.close().await;
                tokio::time::sleep(IDLE).await;
                continue;
            };
            tokio::time::sleep(pause).await;
            let began = clock::now();
            self.found().wal_since.get_or_insert(began);
            let target = Target::local(&door.config()).named(PROBE_NAME);
            let target = target.without_log();
            match session
                .query(&target, &write_since(last), SESSION_LIMIT)
                .await
            {
                // It hangs on, and so does what was begun.
                Err(SqlError::Unresponsive { .. }) => {}
                Ok(answer) => {
                    let at = answer.first().and_then(|at| at.parse::<Lsn>().ok());
                    last = at.map_or(last, |at| Lsn(at.0 + OWN_WAL));
                    self.found().wal_since = None;
                }
                // None because PostgreSQL ends, is in recovery or full of sessions.
                Err(
                    SqlError::NotListening { .. }
                    | SqlError::NotAccepting { .. }
                    | SqlError::Refused { .. }
                    | SqlError::Broken { .. },
                ) => {
                    // After a rewind or a clone WAL may stand before it.
                    last = Lsn(0);
                    self.found().wal_since = None;
                }
            }
        }
    }

    /// Syncs a file on each volume and looks for room, on a thread of its own: nothing else may hang with it.
    pub async fn write_files(
        &self,
        door: &Postgres,
        pace: impl Fn() -> Duration,
    ) -> Result<(), PostgresError> {
        let (orders, taken) = mpsc::sync_channel::<PathBuf>(1);
        let found = self.clone();
        let thread = thread::Builder::new().name("disk-probe".to_owned());
        let spawned = thread.spawn(move || {
            while let Ok(data_dir) = taken.recv() {
                found.look_at_disk(&data_dir);
            }
        });
        spawned.map_err(|source| PostgresError::File {
            what: "start the thread that writes to",
            path: door.config().data_dir.clone(),
            source,
        })?;
        loop {
            tokio::time::sleep(pace()).await;
            // While one look hangs none is added.
            let is_idle = self.found().file_since.is_none();
            let is_up = door.watch_postmaster().borrow().running().is_some();
            if is_idle && is_up {
                let _ = orders.try_send(door.config().data_dir.clone());
            }
        }
    }

    fn look_at_disk(&self, data_dir: &Path) {
        self.found().file_since = Some(clock::now());
        let volumes = volumes(data_dir);
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        let was_full = self.found().is_nearly_full;
        let is_nearly_full = volumes.iter().any(|volume| {
            let written = write_synced(volume);
            written.as_ref().is_err_and(is_full) || is_low(volume, was_full)
        });
        let mut found = self.found();
        found.file_since = None;
        found.is_nearly_full = is_nearly_full;
    }
}

/// Under which name the session appears in `pg_stat_activity`.
pub const PROBE_NAME: &str = "Trunkline write probe";

/// How often it is looked whether there is something to write to.
const IDLE: Duration = Duration::from_millis(500);

/// The data directory, and that of the WAL where it lies on another volume.
fn volumes(data_dir: &Path) -> Vec<PathBuf> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let wal = data_dir.join("pg_wal");
    let is_apart = device(&wal).is_some_and(|wal| Some(wal) != device(data_dir));
    let mut volumes = vec![data_dir.to_owned()];
    volumes.extend(is_apart.then_some(wal));
    volumes
}

fn write_synced(volume: &Path) -> io::Result<()> {
    let path = volume.join(PROBE_FILE);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    file.write_all(b"probe\n")?;
    file.sync_all()
}

/// What cannot be looked at is not full.
fn is_low(volume: &Path, was_low: bool) -> bool {
    let Ok(space) = rustix::fs::statvfs(volume) else {
        return false;
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let all = space.f_blocks.saturating_mul(space.f_frsize);
    is_little(free, all, was_low)
}

fn is_little(free: u64, all: u64, was_low: bool) -> bool {
    let low = LOW_BYTES.max(all / LOW_SHARE);
    free < if was_low { low * ENOUGH } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_full_begins_at_a_hundredth_or_two_segments_and_ends_at_twice_that() {
        let mib = |number: u64| number << 20;
        assert!(is_little(mib(31), mib(300), false));
        assert!(!is_little(mib(33), mib(300), false));
        assert!(is_little(mib(33), mib(300), true));
        assert!(!is_little(mib(64), mib(300), true));
        assert!(is_little(mib(99), mib(10_000), false));
        assert!(!is_little(mib(101), mib(10_000), false));
    }

    #[test]
    fn a_volume_is_written_to_and_its_room_found() {
        let folder = tempfile::tempdir().unwrap();
        let probe = HealthProbe::default();
        probe.look_at_disk(folder.path());
        assert_eq!(probe.view().writes_since, None);
        assert!(folder.path().join(PROBE_FILE).exists());
    }
}
