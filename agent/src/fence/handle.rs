//! The agent's side of the fence: attach to the one that lives, or start one; move its deadline.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use rustix::process::{Flock, FlockType, Signal, fcntl_getlk, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::deadline::{self, Deadline, read_stamp};
use super::elsewhere;
use super::{DATA_DIR_FILE, FENCE_NAME, HEARTBEAT_FILE, HEARTBEAT_LIMIT, LOCK_FILE, LOG_FILE};
use crate::postgres::process::{spawn_detached, watch_descriptor};
use crate::postgres::scan::ProcessId;
use crate::watchdog::State;

/// How long a fresh fence may take to show its first heartbeat.
const START_LIMIT: Duration = Duration::from_secs(3);

/// How long a holder without a young heartbeat may take to show one: it may have been started a moment ago.
const FRESH_LIMIT: Duration = Duration::from_millis(300);

/// Pause between two looks at a starting fence.
const START_PAUSE: Duration = Duration::from_millis(5);

/// Why there is no live fence. Until there is one: no acquiring, renewing or promoting.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// A file of the run directory could not be read or written.
    #[error(
        "cannot {what} {path}: {source}; the run directory must be writable for the agent's user"
    )]
    File {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("cannot start the fence from {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was started and did not come to life.
    #[error("the fence gave no heartbeat within {after:?}; see {log}")]
    NotLive {
        /// How long was waited.
        after: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// The run directory was changed while the fence of the one before still guards the instance.
    #[error(
        "the fence (process {pid}) of {other} still guards this data directory and would kill what is renewed in {run_dir}; \
         set trunkline.run_dir back to {other} and start the agent, end it cleanly (that ends the fence), then change run_dir"
    )]
    OtherRunDir {
        /// The run directory that was to be used.
        run_dir: PathBuf,
        /// The one of the fence that lives.
        other: PathBuf,
        /// That fence.
        pid: i32,
    },
    /// The fence that holds the lock watches another data directory.
    #[error(
        "the fence of {run_dir} watches {other}, not {data_dir}; give each instance its own run_dir"
    )]
    OtherInstance {
        /// The run directory.
        run_dir: PathBuf,
        /// The directory it watches.
        other: PathBuf,
        /// The directory it was to watch.
        data_dir: PathBuf,
    },
}

/// The fence of one instance, alive or to be replaced.
#[derive(Debug)]
pub struct FenceHandle {
    run_dir: PathBuf,
    data_dir: PathBuf,
    program: PathBuf,
    /// Kept to reap the fence if it was started here and ends.
    child: Option<Child>,
}

impl FenceHandle {
    /// Attaches to the fence that holds the lock of `run_dir`, or starts `program` as one; replaces a
    /// frozen one. Blocks for a few milliseconds, at most 3 s. `program` is the agent's own file,
    /// `/proc/self/exe` in the agent.
    pub async fn attach_or_start(
        run_dir: &Path,
        data_dir: &Path,
        program: &Path,
    ) -> Result<Self, FenceError> {
        let mut handle = Self {
            run_dir: run_dir.to_owned(),
            data_dir: data_dir.to_owned(),
            program: program.to_owned(),
            child: None,
        };
        handle.check_instance()?;
        elsewhere::end_others(&handle.run_dir, &handle.data_dir)?;
        handle.ensure_live().await?;
        Ok(handle)
    }

    /// Makes sure that a live fence holds the lock: a dead one is replaced at once, a frozen one is killed
    /// and replaced. Returns whether a new one was started.
    pub async fn ensure_live(&mut self) -> Result<bool, FenceError> {
        if self.is_live(clock::now()) {
            return Ok(false);
        }
        let began = clock::now();
        if let Some(holder) = self.holder() {
            // It may have been started a moment ago by an agent that has ended since.
            if self.wait_live(began, FRESH_LIMIT).await {
                return Ok(false);
            }
            if let Some(pidfd) = holder.open() {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
            while self.holder() == Some(holder) && clock::now().since(began) < START_LIMIT {
                tokio::time::sleep(START_PAUSE).await;
            }
        }
        self.reap();
        self.start()?;
        if self.wait_live(clock::now(), START_LIMIT).await {
            return Ok(true);
        }
        // One that froze before it had the lock would be found by nobody.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
        }
        Err(FenceError::NotLive {
            after: START_LIMIT,
            log: self.run_dir.join(LOG_FILE),
        })
    }

    /// Whether a fence holds the lock and has stamped its heartbeat within the last second.
    pub fn is_live(&self, now: Moment) -> bool {
        self.holder().is_some() && self.has_stamped(now)
    }

    /// Whether a fence has stamped its heartbeat within the last second: all there is to ask while the process
    /// that is known to hold the lock lives.
    pub(super) fn has_stamped(&self, now: Moment) -> bool {
        self.heartbeat()
            .is_some_and(|stamp| now.since(stamp) <= HEARTBEAT_LIMIT)
    }

    /// The fence's process number, if one holds the lock.
    pub fn pid(&self) -> Option<i32> {
        self.holder().map(|holder| holder.pid)
    }

    /// Readable once the fence that holds the lock has ended; `None` if there is none. To be called within a
    /// tokio runtime.
    pub(super) fn end(&self) -> Option<AsyncFd<OwnedFd>> {
        watch_descriptor(self.holder()?.open()?).ok()
    }

    /// Sets the moment at which the fence kills. To be called before the instance may accept writes, at
    /// least [`super::HEARTBEAT`] ahead; an error means the earlier deadline still holds.
    pub fn arm(&self, deadline: Moment) -> Result<(), FenceError> {
        self.write(Deadline::Armed(deadline))
    }

    /// Only when the instance is dead or in recovery, or in maintenance.
    pub fn disarm(&self) -> Result<(), FenceError> {
        self.write(Deadline::Disarmed)
    }

    /// Whether the fence has read the deadline since `written`. From then on nothing older is acted upon;
    /// a start right after a deadline that passed waits for this, or may be killed once more.
    pub fn has_read_since(&self, written: Moment) -> bool {
        self.heartbeat().is_some_and(|stamp| stamp > written)
    }

    /// Whether the disarmed fence has closed the watchdog, waited for until `limit`. One that has died will not:
    /// then there is nothing to wait for.
    pub async fn watchdog_closed(&self, limit: Duration) -> bool {
        let began = clock::now();
        while let State::Open(..) = State::read(&self.run_dir) {
            if self.holder().is_none() || clock::now().since(began) >= limit {
                return false;
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        true
    }

    /// The deadline as it stands; `None` if none was ever written.
    pub fn deadline(&self) -> Option<Deadline> {
        deadline::read(&self.run_dir)
    }

    fn write(&self, to: Deadline) -> Result<(), FenceError> {
        deadline::write(&self.run_dir, to).map_err(self.file("write", super::DEADLINE_FILE))
    }

    fn file(&self, what: &'static str, name: &str) -> impl FnOnce(io::Error) -> FenceError + use<> {
        let path = self.run_dir.join(name);
        move |source| FenceError::File { what, path, source }
    }

    /// Who holds the lock; asked of the kernel, so a number left in a file cannot mislead.
    fn holder(&self) -> Option<ProcessId> {
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.run_dir.join(LOCK_FILE))
            .ok()?;
        let wanted = Flock::from(FlockType::WriteLock);
        let held = fcntl_getlk(&lock, &wanted).ok()??;
        ProcessId::of(held.pid?.as_raw_pid())
    }

    fn heartbeat(&self) -> Option<Moment> {
        // A read may meet the fence's write; a second one a moment later does not.
        (0..3).find_map(|_| read_stamp(&fs::read(self.run_dir.join(HEARTBEAT_FILE)).ok()?))
    }

    async fn wait_live(&self, began: Moment, limit: Duration) -> bool {
        while clock::now().since(began) < limit {
            // The heartbeat of a predecessor, still young, must not be taken for the new one's.
            if self.holder().is_some() && self.heartbeat().is_some_and(|stamp| stamp > began) {
                return true;
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        false
    }

    fn check_instance(&self) -> Result<(), FenceError> {
        let path = self.run_dir.join(DATA_DIR_FILE);
        let wanted = self.data_dir.as_os_str().as_bytes();
        if self.holder().is_some()
            && let Ok(watched) = fs::read(&path)
            && watched != wanted
        {
            return Err(FenceError::OtherInstance {
                run_dir: self.run_dir.clone(),
                other: PathBuf::from(std::ffi::OsStr::from_bytes(&watched)),
                data_dir: self.data_dir.clone(),
            });
        }
        fs::write(&path, wanted).map_err(self.file("write", DATA_DIR_FILE))
    }

    fn start(&mut self) -> Result<(), FenceError> {
        let log = self.run_dir.join(LOG_FILE);
        let child = spawn_detached(&self.program, FENCE_NAME, &self.run_dir, &log);
        self.child = Some(child.map_err(|source| FenceError::Start {
            program: self.program.clone(),
            source,
        })?);
        Ok(())
    }

    /// Takes the exit status of a fence that was started here and has ended, so that it is no zombie.
    fn reap(&mut self) {
        if let Some(child) = &mut self.child
            && !matches!(child.try_wait(), Ok(None))
        {
            self.child = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[tokio::test]
    async fn a_fence_that_never_comes_to_life_is_not_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut handle = FenceHandle {
            run_dir: dir.path().to_owned(),
            data_dir: dir.path().join("data"),
            // It runs until it is killed and takes no lock.
            program: "/usr/bin/yes".into(),
            child: None,
        };
        let told = handle.ensure_live().await;
        assert!(matches!(told, Err(FenceError::NotLive { .. })), "{told:?}");
        let ended = handle.child.as_mut().unwrap().wait().unwrap();
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
    }
}
