//! The only door to the local instance: its processes, its files, its answers.
//!
//! Nothing here knows a cluster, a DCS or a leader. A caller says what it wants ("start as a replica of
//! that address"); whether it may want that is decided elsewhere. Every method has a limit of time.
//!
//! * [`process`]: start, stop, exit detection, tools; the only process spawner.
//! * [`scan`], [`kill`]: which server processes exist, and ending all of them (the fence uses these alone).
//! * [`sql`], [`status`]: the local connection and the one query of a tick.
//! * [`control_data`], [`settings`], [`postmaster_pid`]: pure parsers and renderers.
//! * [`replication`], [`clone`], [`rewind`], [`directory`]: promote and follow; make, copy and mend a data
//!   directory.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::process::Signal;
use tokio::sync::watch;

use trunkline_shared::cluster::Timeline;
use trunkline_shared::service::clock;

pub mod accepted;
mod access;
mod apply;
mod archive;
pub mod clone;
mod conf_copies;
pub mod config;
pub mod control_data;
pub mod controlled;
mod cut_wal;
pub mod directory;
pub mod dynamic_config;
mod error;
mod files;
pub mod health;
pub mod hooks;
pub mod kill;
pub mod logical_slots;
pub mod methods;
pub mod missing_wal;
pub mod postmaster_pid;
pub mod process;
pub mod programs;
pub mod replication;
pub mod rewind;
pub mod scan;
pub mod settings;
pub mod sql;
pub mod status;
mod synchronized;
mod synchronous;
pub mod timelines;

pub use config::{Credentials, PostgresConfig, Upstream};
pub use control_data::ControlData;
pub use error::PostgresError;
pub use files::{ServerRole, UpstreamChange};
pub use kill::KillReport;
pub use process::{Postmaster, StopMode};
pub use scan::ProcessId;
pub use status::ServerStatus;

use control_data::ControlState;
use postmaster_pid::PostmasterStatus;
use process::{Tool, Watched};
use replication::Walsenders;
use sql::{LocalSession, SqlError, Target};

/// Longest wait for an immediate stop before the Kill: PostgreSQL itself gives its children 5 s, which is
/// longer than any lease leaves.
const IMMEDIATE_LIMIT: Duration = Duration::from_millis(500);

/// Longest the Kill may take; its target is 200 ms.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two looks at the status line of `postmaster.pid`.
const STATUS_PAUSE: Duration = Duration::from_millis(5);

/// Longest a CHECKPOINT before a planned stop may take; the stop goes on without it.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(60);

/// Longest run of a tool that only reads a few files.
const TOOL_LIMIT: Duration = Duration::from_secs(10);

/// What is found when the instance is looked at.
#[derive(Clone, Debug)]
pub enum Probe {
    /// No postmaster.
    NotRunning {
        /// Whether no other server process is left either.
        is_dead: bool,
    },
    /// A postmaster that does not accept connections yet.
    Starting,
    /// A postmaster that is stopping.
    Stopping,
    /// One that ought to answer and does not.
    Unresponsive(SqlError),
    /// Its answer.
    Answer(Box<ServerStatus>),
}

/// Pause between two looks at the control file of an instance that stops.
const CONTROL_PAUSE: Duration = Duration::from_millis(50);
/// How long a stop waits, once the last record is written, for a receiver that everything is to be sent to. One that is
/// frozen, or cut off, would hold it up until `wal_sender_timeout`; without it the stop is as clean. Of the two seconds that
/// clients wait for at the most where a change is rolled back.
const RECEIVER_PATIENCE: Duration = Duration::from_millis(600);

/// The same for whoever does not lead next, once the one who does has everything: one that streams gets it in the same
/// moment, and one that is frozen would hold up every client.
const OTHERS_PATIENCE: Duration = Duration::from_millis(100);

/// Receivers of WAL, by their `application_name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receivers {
    /// The one that is to lead next; `None` where that is not known.
    pub successor: Option<String>,
    /// Those that are good to have everything as well.
    pub others: Vec<String>,
    /// Whether the server goes on where the successor does not take over: clients are held meanwhile.
    pub is_taken_back: bool,
}

/// How to stop.
#[derive(Clone, Debug)]
pub struct StopPlan {
    /// Mode to begin with. What has not stopped by `limit` is stopped immediately, then killed.
    pub mode: StopMode,
    /// A CHECKPOINT first, so that the one of the shutdown is short.
    pub is_checkpoint_first: bool,
    /// Receivers to which everything must be sent before the end; the other walsenders are cut, so that none of them
    /// holds up the stop. `None`: wait for all.
    pub wait_for: Option<Receivers>,
    /// Limit for the mode, from the signal on.
    pub limit: Duration,
}

/// How it stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopReport {
    /// Whether it ended in the mode asked for: a fast or smart stop then was clean.
    pub is_as_planned: bool,
    /// Time of the CHECKPOINT before.
    pub checkpoint: Duration,
    /// Time from the signal to the last process's end.
    pub took: Duration,
    /// The titles of the processes that still ran when it was not waited any longer.
    pub lingered: Vec<String>,
}

/// The local instance.
#[derive(Debug)]
pub struct Postgres {
    config: ArcSwap<PostgresConfig>,
    session: LocalSession,
    postmaster: watch::Sender<Postmaster>,
    watched: Mutex<Option<Watched>>,
    /// Newest timeline this postmaster was seen to receive. Its own view forgets it when the WAL receiver
    /// ends, just when the race is run.
    reached: Mutex<Option<(ProcessId, Timeline)>>,
    /// In maintenance the server restarts itself after a crash.
    is_paused: AtomicBool,
    /// Held while the file of `synchronous_standby_names` is written.
    sync_conf: Arc<Mutex<()>>,
    /// The data directory may be marked as one whose WAL is needed.
    may_be_unproved: AtomicBool,
    /// What the server's program says of parameters.
    answers: Arc<accepted::Answers>,
    /// What is known of the copies of logical slots.
    proofs: Mutex<BTreeMap<String, logical_slots::Proof>>,
}

impl Postgres {
    /// Opens the door; adopts a postmaster that already runs. To be called within a tokio runtime. Refuses
    /// to run as root.
    pub fn new(config: PostgresConfig) -> Result<Self, PostgresError> {
        process::refuse_root()?;
        let door = Self {
            config: ArcSwap::from_pointee(config),
            session: LocalSession::default(),
            postmaster: watch::Sender::new(Postmaster::Absent),
            watched: Mutex::new(None),
            reached: Mutex::new(None),
            is_paused: AtomicBool::new(false),
            sync_conf: Arc::default(),
            may_be_unproved: AtomicBool::new(true),
            answers: Arc::default(),
            proofs: Mutex::default(),
        };
        door.adopt();
        Ok(door)
    }

    /// The configuration in use.
    pub fn config(&self) -> Arc<PostgresConfig> {
        self.config.load_full()
    }

    /// Uses another configuration from now on. Files and running server follow with
    /// [`Self::apply_settings`].
    pub async fn reconfigure(&self, config: PostgresConfig) {
        self.config.store(Arc::new(config));
        self.session.close().await;
    }

    /// Shows start and end of the postmaster within milliseconds.
    pub fn watch_postmaster(&self) -> watch::Receiver<Postmaster> {
        self.postmaster.subscribe()
    }

    /// The running postmaster, if there is one: one started by others is found and watched from then on.
    pub fn adopt(&self) -> Option<ProcessId> {
        self.watched().map(|watched| watched.id)
    }

    fn watched(&self) -> Option<Watched> {
        let found = scan::find_postmaster(&self.config().data_dir);
        let mut kept = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.as_ref().map(|w| w.id);
        if let Some(known) = known
            && found.is_none()
            && ProcessId::of(known.pid) == Some(known)
        {
            // Started a moment ago and has not written its file yet.
            return kept.clone();
        }
        if found != known {
            *kept = found.and_then(|id| Watched::new(id, &self.postmaster));
        }
        kept.clone()
    }

    /// Looks at the instance. `limit` bounds the query.
    pub async fn probe(&self, limit: Duration) -> Probe {
        let config = self.config();
        let Some(id) = self.adopt() else {
            let is_dead = self.is_dead().await;
            // A postmaster that was started between the two looks has no orphans.
            return match !is_dead && self.adopt().is_some() {
                true => Probe::Starting,
                false => Probe::NotRunning { is_dead },
            };
        };
        let status = scan::read_postmaster_pid(&config.data_dir)
            .map_or(PostmasterStatus::Unknown, |file| file.status);
        match status {
            PostmasterStatus::Starting | PostmasterStatus::Unknown | PostmasterStatus::Standby => {
                Probe::Starting
            }
            PostmasterStatus::Stopping => Probe::Stopping,
            PostmasterStatus::Ready => match self.status(limit).await {
                Ok(mut answer) => {
                    self.remember_timeline(id, &mut answer);
                    self.note_proved(&answer).await;
                    Probe::Answer(Box::new(answer))
                }
                Err(error) if self.adopt() == Some(id) => {
                    Probe::Unresponsive(error.of_the_living())
                }
                Err(_) => Probe::NotRunning {
                    is_dead: self.is_dead().await,
                },
            },
        }
    }

    async fn status(&self, limit: Duration) -> Result<ServerStatus, PostgresError> {
        let text = self.query_text(status::STATUS_QUERY, limit).await?;
        ServerStatus::parse(&text).map_err(|error| PostgresError::Unreadable {
            what: "the answer of the status query",
            text: error.to_string(),
        })
    }

    fn remember_timeline(&self, id: ProcessId, answer: &mut ServerStatus) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.is_in_recovery
            && let Some((of, timeline)) = *reached
            && of == id
        {
            answer.timeline = answer.timeline.max(timeline);
        }
        *reached = Some((id, answer.timeline));
    }

    pub(crate) async fn query(
        &self,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<String>, PostgresError> {
        let target = Target::local(&self.config());
        Ok(self.session.query(&target, sql, limit).await?)
    }

    pub(crate) async fn query_text(
        &self,
        sql: &str,
        limit: Duration,
    ) -> Result<String, PostgresError> {
        let first = self.query(sql, limit).await?.into_iter().next();
        first.ok_or_else(|| PostgresError::Unreadable {
            what: "an answer without a row",
            text: sql.chars().take(60).collect(),
        })
    }

    /// Starts the postmaster in `role`: writes the files, ends leftovers of an earlier one, and returns as
    /// soon as the process exists. A primary must be armed before this is called.
    pub async fn start(&self, role: ServerRole) -> Result<ProcessId, PostgresError> {
        self.start_if(role, false, || true).await
    }

    /// The same, closed to clients until [`Self::open_access`] where a primary is to be, unless `may_start`
    /// says no in the same breath as the process is made: what comes before may wait for a disk.
    pub async fn start_if(
        &self,
        role: ServerRole,
        is_closed: bool,
        may_start: impl FnOnce() -> bool,
    ) -> Result<ProcessId, PostgresError> {
        let config = self.config();
        self.must_be_stopped()?;
        files::check_directory(&config.data_dir)?;
        if directory::is_half_done(&config) {
            return Err(PostgresError::HalfDone {
                data_dir: config.data_dir.clone(),
            });
        }
        let major = self.check_major().await?;
        let report = self.kill(KILL_LIMIT).await;
        if !report.is_dead {
            return Err(PostgresError::NotDead {
                survivors: report.survivors,
            });
        }
        let recovers = role == ServerRole::Recovering;
        if role != ServerRole::Primary {
            synchronous::forget(&config)?;
            synchronized::forget(&config)?;
        }
        let controlled = self.write_settings(role).await?;
        files::remove_stale_lock(&config)?;
        timelines::settle(&config.data_dir)?;
        let mut arguments = settings::command_line(&config, &controlled);
        arguments.extend(settings::recovery_sync(&config, &major));
        access::forget(&config)?;
        if is_closed {
            arguments.extend(access::close(&config)?);
        }
        if recovers {
            // Parameters of the restored cluster may be higher than ours; only a standby minds.
            arguments.push("--hot_standby=off".to_owned());
        }
        if !may_start() {
            return Err(PostgresError::StartNotAllowed);
        }
        let id =
            process::spawn_postmaster(&self.program("postgres"), &arguments, &config.log_file)?;
        let watched = Watched::new(id, &self.postmaster);
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = watched;
        Ok(id)
    }

    /// Waits until the instance accepts connections; an error as soon as the postmaster ends.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), PostgresError> {
        let config = self.config();
        let began = clock::now();
        loop {
            let Some(running) = self.watched() else {
                return Err(PostgresError::StartFailed {
                    data_dir: config.data_dir.clone(),
                    last_lines: process::last_lines_of(&config.log_file),
                });
            };
            let is_ready = scan::read_postmaster_pid(&config.data_dir).is_some_and(|file| {
                file.pid == running.id.pid && file.status == PostmasterStatus::Ready
            });
            if is_ready {
                return Ok(());
            }
            if clock::now().since(began) >= limit {
                return Err(PostgresError::Timeout {
                    what: "the start of PostgreSQL",
                    after: limit,
                });
            }
            running.ended_within(STATUS_PAUSE).await;
        }
    }

    /// Stops the instance and waits until no server process is left. A stop that does not end in time
    /// becomes immediate, and then the Kill.
    pub async fn stop(&self, plan: &StopPlan) -> Result<StopReport, PostgresError> {
        let began = clock::now();
        if plan.is_checkpoint_first {
            // Only to make the stop short; without it the shutdown writes the same pages.
            let _ = self.checkpoint(CHECKPOINT_LIMIT).await;
        }
        let senders = match &plan.wait_for {
            Some(receivers) => self.walsenders(receivers).await,
            None => Walsenders::default(),
        };
        self.session.close().await;
        let checkpoint = clock::now().since(began);
        let began = clock::now();
        let (mut is_as_planned, mut lingered) = (true, Vec::new());
        if let Some(running) = self.watched() {
            running.stop(plan.mode);
            is_as_planned = match senders.is_anybody_awaited() {
                true => {
                    let receivers = plan.wait_for.as_ref();
                    let patience = receivers.map_or(Duration::ZERO, Receivers::patience);
                    self.ended_with(&running, &senders, (patience, plan.limit))
                        .await
                }
                false => replication::ended_without(&running, &[&senders.cut], plan.limit).await,
            };
            if !is_as_planned && plan.mode != StopMode::Immediate {
                lingered = scan::titles(&self.config().data_dir);
                running.stop(StopMode::Immediate);
                running.ended_within(IMMEDIATE_LIMIT).await;
            }
        }
        let report = self.kill(KILL_LIMIT).await;
        if !report.is_dead {
            return Err(PostgresError::NotDead {
                survivors: report.survivors,
            });
        }
        Ok(StopReport {
            is_as_planned: is_as_planned && report.killed.is_empty(),
            checkpoint,
            took: clock::now().since(began),
            lingered,
        })
    }

    /// Waits for the end of a postmaster that stops, and for these walsenders' receivers only as long as they may take
    /// once the last record is written: a checkpoint that lasts keeps nobody from receiving it.
    async fn ended_with(
        &self,
        running: &Watched,
        senders: &Walsenders,
        (for_sessions, limit): (Duration, Duration),
    ) -> bool {
        let began = clock::now();
        let (mut written_at, mut handed_on_at) = (None, None);
        loop {
            let now = clock::now();
            let left = limit.saturating_sub(now.since(began));
            let patience = match self.control_data().await.map(|data| data.state) {
                Ok(ControlState::ShutDown | ControlState::ShutDownInRecovery) => {
                    let written = now.since(*written_at.get_or_insert(now));
                    if senders.has_successor_everything() {
                        handed_on_at.get_or_insert(now);
                    }
                    receivers_have(written, handed_on_at.map(|at| now.since(at)))
                }
                Ok(ControlState::ShuttingDown) => left,
                // One that is just being rewritten cannot be read.
                Ok(
                    ControlState::StartingUp
                    | ControlState::InCrashRecovery
                    | ControlState::InArchiveRecovery
                    | ControlState::InProduction,
                )
                | Err(_) => for_sessions.saturating_sub(now.since(began)),
            };
            let pause = CONTROL_PAUSE.min(patience).min(left);
            if replication::ended_without(running, &[&senders.cut], pause).await {
                return true;
            }
            if pause < CONTROL_PAUSE {
                break;
            }
        }
        let left = limit.saturating_sub(clock::now().since(began));
        let all: [&[OwnedFd]; 3] = [&senders.cut, &senders.successor, &senders.others];
        replication::ended_without(running, &all, left).await
    }

    /// Ends every server process of the instance with SIGKILL.
    pub async fn kill(&self, limit: Duration) -> KillReport {
        let data_dir = self.config().data_dir.clone();
        let killing = move || kill::kill_instance(&data_dir, limit);
        tokio::task::spawn_blocking(killing)
            .await
            .unwrap_or(KillReport {
                killed: Vec::new(),
                survivors: Vec::new(),
                is_dead: false,
                took: limit,
            })
    }

    /// Whether no server process is left: what must hold before the right to lead is released.
    pub async fn is_dead(&self) -> bool {
        let data_dir = self.config().data_dir.clone();
        tokio::task::spawn_blocking(move || kill::is_dead(&data_dir))
            .await
            .unwrap_or(false)
    }

    /// Makes the running server read its files again.
    pub fn reload(&self) -> Result<(), PostgresError> {
        let running = self.watched().ok_or_else(|| self.not_running())?;
        running.signal(Signal::HUP);
        Ok(())
    }

    /// Reads the control file through pg_controldata.
    pub async fn control_data(&self) -> Result<ControlData, PostgresError> {
        self.control_data_of(&self.config().data_dir).await
    }

    pub(crate) async fn control_data_of(&self, dir: &Path) -> Result<ControlData, PostgresError> {
        let arguments = vec!["-D".to_owned(), dir.display().to_string()];
        let output = self
            .tool("pg_controldata", arguments, TOOL_LIMIT, "pg_controldata")
            .run()
            .await?;
        ControlData::parse(&output.stdout).map_err(|error| PostgresError::Unreadable {
            what: "the output of pg_controldata",
            text: error.to_string(),
        })
    }

    /// Refuses what must not be done to a directory that a postmaster works on.
    pub(crate) fn must_be_stopped(&self) -> Result<(), PostgresError> {
        self.adopt().map_or(Ok(()), |id| Err(self.running(id.pid)))
    }

    fn running(&self, pid: i32) -> PostgresError {
        PostgresError::Running {
            data_dir: self.config().data_dir.clone(),
            pid,
        }
    }

    fn not_running(&self) -> PostgresError {
        PostgresError::NotRunning(self.config().data_dir.clone())
    }

    pub(crate) fn tool(
        &self,
        program: &str,
        arguments: Vec<String>,
        limit: Duration,
        what: &'static str,
    ) -> Tool<'static> {
        Tool {
            program: self.program(program),
            arguments,
            passfile: None,
            limit,
            what,
        }
    }

    /// The path of one of PostgreSQL's programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        programs::path(&self.config(), name)
    }

    /// The major version of the programs, by the folder that packages put them in; unknown elsewhere.
    pub(crate) fn program_major(&self) -> Option<u32> {
        let program = self.program("pg_basebackup");
        let version = program.parent()?.parent()?.file_name()?.to_str()?;
        version.trim_start_matches("pgsql-").parse().ok()
    }

    /// The major version of the directory; refuses one that is not the programs'.
    async fn check_major(&self) -> Result<String, PostgresError> {
        let config = self.config();
        let program = programs::major(&self.program("postgres")).await?;
        let directory = files::directory_major(&config.data_dir).unwrap_or_default();
        if program == directory {
            return Ok(directory);
        }
        Err(PostgresError::WrongMajor {
            data_dir: config.data_dir.clone(),
            directory,
            program,
        })
    }
}

/// How long receivers still have: since the last record was written, and since the next leader has confirmed it.
fn receivers_have(written: Duration, handed_on: Option<Duration>) -> Duration {
    let left = RECEIVER_PATIENCE.saturating_sub(written);
    handed_on.map_or(left, |ago| left.min(OTHERS_PATIENCE.saturating_sub(ago)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_lead_next_is_waited_for_no_longer_once_the_next_leader_has_everything() {
        let ms = Duration::from_millis;
        assert_eq!(receivers_have(ms(0), None), RECEIVER_PATIENCE);
        assert_eq!(receivers_have(ms(50), Some(ms(0))), OTHERS_PATIENCE);
        assert_eq!(receivers_have(ms(590), Some(ms(0))), ms(10));
        assert_eq!(receivers_have(ms(150), Some(OTHERS_PATIENCE)), ms(0));
    }
}
