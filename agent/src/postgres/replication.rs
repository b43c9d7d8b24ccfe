//! Promote, follow, slots, checkpoints.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::Signal;

use trunkline_shared::cluster::{Lsn, Timeline};
use trunkline_shared::service::clock;

use super::kill::has_ended;
use super::process::Watched;
use super::scan::ProcessId;
use super::sql::{Target, quote_literal};
use super::timelines::{self, TimelineStep};
use super::{
    Postgres, PostgresError, Receivers, ServerRole, ServerStatus, Upstream, UpstreamChange, files,
};

/// In the run directory: the postmaster to which promotion was signalled.
const PROMOTING_FILE: &str = "promoting";

/// Pause between two looks while a promotion or a first stream is awaited.
const WATCH_PAUSE: Duration = Duration::from_millis(3);

/// Limit of the small statements here.
const STATEMENT_LIMIT: Duration = Duration::from_secs(3);

/// How long a promotion may hang on a replay conflict before the sessions in its way are ended.
const CONFLICT_PATIENCE: Duration = Duration::from_millis(20);

/// Whether the instance is still in recovery, and whether its replay waits for a query of a client.
const PROMOTION_QUERY: &str = "\
SELECT pg_catalog.pg_is_in_recovery() || ' ' || EXISTS (
 SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup'
 AND (wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin')))";

/// Ends the client sessions that replay can wait for, those with a snapshot or a transaction, if it does wait.
const END_CONFLICTS: &str = "\
SELECT pg_catalog.pg_terminate_backend(pid)::text FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
 AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)
 AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup'
 AND (wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin')))";

/// How a promotion went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// From the signal to the end of recovery.
    pub took: Duration,
    /// The timeline it began.
    pub timeline: Timeline,
}

/// Whether a replica streams from its new upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// WAL arrives from it.
    Streaming,
    /// Not within the limit. The setting is in place; the receiver goes on trying.
    NotYet,
}

impl Postgres {
    /// Ends recovery and takes the step to a timeline whose number nobody has used.
    /// `may_promote` is asked in the same breath as the signal is sent; a no sends
    /// nothing. Returns when the instance accepts writes. After a timeout the promotion goes on; it
    /// cannot be taken back, only stopped with the instance.
    pub async fn promote(
        &self,
        step: TimelineStep,
        limit: Duration,
        may_promote: impl FnOnce() -> bool,
    ) -> Result<Promoted, PostgresError> {
        let config = self.config();
        let running = self.watched().ok_or_else(|| self.not_running())?;
        if !files::is_replica(&config.data_dir) {
            return Err(PostgresError::NotInRecovery);
        }
        // What `pg_ctl promote` and pg_promote() do: it needs no connection, so a server without a free
        // slot is promoted all the same.
        // The file gets its name only after the check: with it in place any SIGUSR1, and the server sends
        // itself many, would promote.
        timelines::reserve(&config.data_dir, step)?;
        let trigger = config.data_dir.join("promote");
        let prepared = config.data_dir.join("promote.trunkline-new");
        fs::write(&prepared, "").map_err(PostgresError::file("write", &prepared))?;
        if !may_promote() {
            files::remove_file(&prepared)?;
            timelines::settle(&config.data_dir)?;
            return Err(PostgresError::PromoteNotAllowed);
        }
        self.note_promotion(running.id)?;
        fs::rename(&prepared, &trigger).map_err(PostgresError::file("write", &trigger))?;
        running.signal(Signal::USR1);
        let began = clock::now();
        loop {
            let passed = clock::now().since(began);
            let Some(left) = limit.checked_sub(passed) else {
                return Err(PostgresError::Timeout {
                    what: "the promotion",
                    after: limit,
                });
            };
            // An instance below hot standby answers nothing until it is promoted; so errors only wait.
            let answer = self
                .query_text(PROMOTION_QUERY, left.min(STATEMENT_LIMIT))
                .await;
            match answer.as_deref() {
                Ok(text) if text.starts_with("false") => break,
                Ok("true true") if passed >= CONFLICT_PATIENCE => {
                    let _ = self.end_replay_conflicts().await;
                }
                _ => {}
            }
            if running.ended_within(WATCH_PAUSE).await {
                return Err(self.not_running());
            }
        }
        let took = clock::now().since(began);
        self.forget_proofs();
        let timeline = "SELECT pg_catalog.substr(pg_catalog.pg_walfile_name(\
                        pg_catalog.pg_current_wal_lsn()), 1, 8)";
        let text = self.query_text(timeline, STATEMENT_LIMIT).await?;
        let timeline = u32::from_str_radix(&text, 16).map_err(|_| PostgresError::Unreadable {
            what: "the name of a WAL file",
            text,
        })?;
        Ok(Promoted {
            took,
            timeline: Timeline(timeline),
        })
    }

    /// Ends the client sessions of a replica whose replay waits for one of them. Until it goes on, PostgreSQL takes up no other
    /// upstream.
    pub async fn end_replay_conflicts(&self) -> Result<(), PostgresError> {
        self.query(END_CONFLICTS, STATEMENT_LIMIT).await.map(|_| ())
    }

    /// Written down before the signal, so that an agent that is started again knows of it.
    fn note_promotion(&self, id: ProcessId) -> Result<(), PostgresError> {
        let path = self.config().run_dir.join(PROMOTING_FILE);
        fs::write(&path, format!("{} {}", id.pid, id.start_ticks))
            .map_err(PostgresError::file("write", &path))
    }

    /// Whether promotion was signalled to the postmaster that runs now. It will accept writes by itself; only
    /// stopping the instance takes that back.
    pub fn is_promoting(&self) -> bool {
        let Some(id) = self.adopt() else { return false };
        fs::read_to_string(self.config().run_dir.join(PROMOTING_FILE))
            .is_ok_and(|text| text == format!("{} {}", id.pid, id.start_ticks))
    }

    /// Makes a running replica follow another server, or none: rewrites its settings and reloads. Whether it
    /// really streams shows in its status.
    pub async fn follow(&self, upstream: UpstreamChange) -> Result<(), PostgresError> {
        let config = self.config();
        if !files::is_replica(&config.data_dir) {
            return Err(PostgresError::NotInRecovery);
        }
        self.write_settings(ServerRole::Replica(upstream)).await?;
        self.reload()
    }

    /// Watches for `limit` whether WAL arrives from `upstream`.
    pub async fn wait_streaming(
        &self,
        upstream: &Upstream,
        limit: Duration,
    ) -> Result<Followed, PostgresError> {
        let began = clock::now();
        while clock::now().since(began) < limit {
            let running = self.watched().ok_or_else(|| self.not_running())?;
            let is_streaming = self
                .status(STATEMENT_LIMIT)
                .await
                .is_ok_and(|status| status.is_streaming_from(&upstream.host, upstream.port));
            if is_streaming {
                return Ok(Followed::Streaming);
            }
            running.ended_within(WATCH_PAUSE).await;
        }
        Ok(Followed::NotYet)
    }

    /// Writes a checkpoint. After a promotion this makes the instance a source for pg_rewind.
    pub async fn checkpoint(&self, limit: Duration) -> Result<(), PostgresError> {
        // Not through the session of the ticks: their questions would wait behind it.
        let target = Target::local(&self.config());
        target.query_once("CHECKPOINT", limit).await?;
        Ok(())
    }

    /// Creates a physical slot that reserves WAL at once; one that exists is left as it is.
    pub async fn create_slot(&self, name: &str) -> Result<(), PostgresError> {
        let name = quote_literal(name);
        let sql = format!(
            "SELECT pg_catalog.pg_create_physical_replication_slot({name}, true)::text \
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {name})"
        );
        self.query(&sql, STATEMENT_LIMIT).await.map(drop)
    }

    /// Drops a slot that nobody uses; one that is missing or in use is left alone, and so is a logical one of a
    /// primary.
    pub async fn drop_slot(&self, name: &str) -> Result<(), PostgresError> {
        let name = quote_literal(name);
        let sql = format!(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name)::text \
             FROM pg_catalog.pg_replication_slots \
             WHERE slot_name = {name} AND NOT active \
             AND (slot_type = 'physical' OR pg_catalog.pg_is_in_recovery())"
        );
        self.query(&sql, STATEMENT_LIMIT).await.map(drop)
    }

    /// Moves a physical slot forward to `to`, never beyond the instance's own WAL, never back.
    pub async fn advance_slot(&self, name: &str, to: Lsn) -> Result<(), PostgresError> {
        let name = quote_literal(name);
        let sql = format!(
            "SELECT pg_catalog.pg_replication_slot_advance(slot_name, least('{to}'::pg_lsn, \
             CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
             ELSE pg_catalog.pg_current_wal_flush_lsn() END))::text \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = {name} AND NOT active \
             AND slot_type = 'physical' AND restart_lsn < '{to}'::pg_lsn"
        );
        self.query(&sql, STATEMENT_LIMIT).await.map(drop)
    }

    /// The walsenders, opened while SQL can still name their receivers.
    pub(crate) async fn walsenders(&self, wanted: &Receivers) -> Walsenders {
        let sql = "SELECT pid::text || ' ' || application_name FROM pg_catalog.pg_stat_replication";
        let rows = self.query(sql, STATEMENT_LIMIT).await.unwrap_or_default();
        let mut senders = Walsenders::default();
        for row in &rows {
            let (pid, name) = row.split_once(' ').unwrap_or((row, ""));
            let opened = pid.parse().ok().and_then(ProcessId::of);
            let Some(pidfd) = opened.and_then(|id| id.open()) else {
                continue;
            };
            if wanted.successor.as_deref() == Some(name) {
                senders.successor.push(pidfd);
            } else if wanted.others.iter().any(|other| other == name) {
                senders.others.push(pidfd);
            } else {
                senders.cut.push(pidfd);
            }
        }
        senders
    }

    /// The status, without the memory of [`Postgres::probe`].
    pub async fn status_now(&self) -> Result<ServerStatus, PostgresError> {
        self.status(STATEMENT_LIMIT).await
    }
}

/// How long the sessions may take to end, and the walsenders to come to a halt, before the shutdown checkpoint begins. A
/// receiver that is frozen while much is under way to it keeps it from beginning.
const SESSIONS_PATIENCE: Duration = Duration::from_secs(4);

/// The same where the change is taken back if that takes longer: a walsender whose receiver is cut off with a full socket
/// between them comes to no halt, and clients are held.
const HELD_PATIENCE: Duration = Duration::from_secs(1);

impl Receivers {
    /// How long to wait before the shutdown checkpoint begins.
    pub(crate) fn patience(&self) -> Duration {
        match self.is_taken_back {
            true => HELD_PATIENCE,
            false => SESSIONS_PATIENCE,
        }
    }
}

/// The processes that send WAL, by what they are to a stop.
#[derive(Debug, Default)]
pub(crate) struct Walsenders {
    /// To the one that is to lead next.
    pub(crate) successor: Vec<OwnedFd>,
    /// To the others that are waited for.
    pub(crate) others: Vec<OwnedFd>,
    /// To nobody that is waited for.
    pub(crate) cut: Vec<OwnedFd>,
}

impl Walsenders {
    pub(crate) fn is_anybody_awaited(&self) -> bool {
        !self.successor.is_empty() || !self.others.is_empty()
    }

    /// Whether the next leader has confirmed everything: its walsender ends then. False where none is connected.
    pub(crate) fn has_successor_everything(&self) -> bool {
        !self.successor.is_empty() && self.successor.iter().all(has_ended)
    }
}

/// How often a walsender is told to end.
const END_AGAIN: Duration = Duration::from_millis(100);

/// Waits until a postmaster that stops has ended, and tells these walsenders to end until then. Once does not do: told to
/// end, one sends its receiver a last message, and where that is cut off, with a full socket between them, waits for it
/// (`wal_sender_timeout` does not count any more). Told again, it ends without (`ProcessClientWriteInterrupt`).
pub(crate) async fn ended_without(
    running: &Watched,
    senders: &[&[OwnedFd]],
    limit: Duration,
) -> bool {
    let began = clock::now();
    loop {
        senders.iter().for_each(|some| end_all(some));
        let left = limit.saturating_sub(clock::now().since(began));
        if running.ended_within(END_AGAIN.min(left)).await {
            return true;
        }
        if left <= END_AGAIN {
            return false;
        }
    }
}

/// Tells processes to end; those that have are nobody any more.
pub(crate) fn end_all(processes: &[OwnedFd]) {
    for process in processes {
        let _ = rustix::process::pidfd_send_signal(process, Signal::TERM);
    }
}
