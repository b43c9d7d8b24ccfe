//! `synchronous_standby_names`, in a file of its own that the settings include last: it wins over the user's
//! value while it exists, and whatever else is written never races with it.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use super::config::PostgresConfig;
use super::files::{remove_file, sync_directory, write_file};
use super::settings::{HEADER, SYNC_CONF, quote, read_setting};
use super::sql::Target;
use super::{Postgres, PostgresError};

/// The parameter.
const NAME: &str = "synchronous_standby_names";

/// Limit of the question who is connected.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Who is connected, in one text that changes with it.
const WHO_STREAMS: &str = "\
SELECT coalesce(string_agg(concat_ws(' ', pid, application_name, state), ',' ORDER BY pid), '') \
FROM pg_catalog.pg_stat_replication";

/// Writes a record of WAL that changes nothing (a lock of a row that nobody changes) and flushes it.
const WRITE_WAL: &str = "\
SELECT count(*) FROM (SELECT FROM pg_catalog.pg_am LIMIT 1 FOR KEY SHARE SKIP LOCKED) AS one";

/// When it is written, after the names were set. Each walsender takes them up by its own signal, in milliseconds, or later
/// where the processors are busy; the last one is for that.
const WRITES_AFTER: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(150),
    Duration::from_millis(600),
];

/// The file.
pub(super) fn path(config: &PostgresConfig) -> PathBuf {
    config.config_dir().join(SYNC_CONF)
}

/// Takes the value over that stood in a generated file of another program, before that file is replaced: the
/// others may rely on it.
pub(super) fn keep_value_of(config: &PostgresConfig, old_conf: &str) -> Result<(), PostgresError> {
    match read_setting(old_conf, NAME) {
        Some(value) if !path(config).exists() => write(config, &value),
        Some(_) | None => Ok(()),
    }
}

/// A replica waits for nobody, and one that is promoted later begins anew.
pub(super) fn forget(config: &PostgresConfig) -> Result<(), PostgresError> {
    remove_file(&path(config))
}

fn write(config: &PostgresConfig, value: &str) -> Result<(), PostgresError> {
    let path = path(config);
    write_file(&path, &format!("{HEADER}{NAME} = {}\n", quote(value)))?;
    sync_directory(config.config_dir())
}

impl Postgres {
    /// Sets the parameter, or with `None` lets the user's own value hold again, and reloads. It comes into
    /// force a moment later.
    pub async fn set_sync_names(&self, value: Option<String>) -> Result<(), PostgresError> {
        let (config, turn) = (self.config(), self.sync_conf.clone());
        let writing = move || {
            // One that hung on a slow disk must not overtake a later one.
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            match value {
                Some(value) => write(&config, &value),
                None => forget(&config),
            }
        };
        match tokio::task::spawn_blocking(writing).await {
            Ok(written) => written?,
            Err(_) => {
                return Err(PostgresError::Timeout {
                    what: "writing synchronous_standby_names, which was cut off by the end of the agent",
                    after: Duration::ZERO,
                });
            }
        }
        if self.adopt().is_some() {
            self.reload()?;
        }
        Ok(())
    }

    /// Lets the standbys of a primary answer, once they have been set anew. A commit is released by an answer that comes
    /// after its walsender has taken the names up; where all clients wait already nothing is written that a standby could
    /// answer, and they would wait until it is asked: for half of `wal_sender_timeout`, 2.5 s by what the agent sets; 10 s
    /// (`wal_receiver_status_interval`) by PostgreSQL's own settings.
    pub async fn let_standbys_answer(&self) {
        let mut waited = Duration::ZERO;
        for after in WRITES_AFTER {
            tokio::time::sleep(after.saturating_sub(waited)).await;
            waited = after;
            // Not through the session of the ticks: their questions would wait behind a disk that is slow.
            let target = Target::local(&self.config());
            if let Err(error) = target.query_once(WRITE_WAL, LOOK_LIMIT).await {
                tracing::debug!(%error, "no WAL is written for the standbys to answer");
            }
        }
    }

    /// What [`Self::set_sync_names`] set last; `None` where the user's own value holds.
    pub fn sync_names(&self) -> Option<String> {
        let text = std::fs::read_to_string(path(&self.config())).ok()?;
        read_setting(&text, NAME)
    }

    /// A text that changes when somebody begins or ceases to stream from here.
    pub async fn who_streams(&self) -> Result<String, PostgresError> {
        self.query_text(WHO_STREAMS, LOOK_LIMIT).await
    }
}
