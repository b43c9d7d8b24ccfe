//! The fence: a process of its own that ends every server process of the instance when the deadline passes.
//!
//! It is the agent's program started again under the name `trunkline-fence`: own session, one thread, no
//! async runtime, no configuration. It asks nobody. It reads the deadline from a file, and if the time
//! comes and the file has not moved, it kills ([`crate::postgres::kill`]). The agent may be frozen, killed or
//! replaced meanwhile; a fence that outlives its agent is attached to by the next one
//! ([`handle::FenceHandle`]). While the deadline stays passed it goes on killing: whatever starts the
//! instance in that time has no right to.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::postgres::kill::{kill_instance, kill_known};
use crate::watchdog::Watchdog;

pub mod deadline;
mod elsewhere;
pub mod handle;
pub mod known;
pub mod run_dir;
pub mod supervision;

pub use deadline::Deadline;
pub use handle::{FenceError, FenceHandle};
use known::Known;

/// The name, in argv[0], by which the program knows that it is to be the fence.
pub const FENCE_NAME: &str = "trunkline-fence";

/// Longest sleep: the heartbeat is stamped and the deadline read this often. A deadline must be armed at
/// least this long ahead to be kept on time.
pub const HEARTBEAT: Duration = Duration::from_millis(200);

/// A fence whose heartbeat is older than this is not live.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_secs(1);

/// How long one Kill may go on before the heartbeat is stamped again; it is then repeated.
const KILL_LIMIT: Duration = Duration::from_millis(500);

/// Size at which the fence's log is begun anew, so that it cannot fill the memory it lies in.
const LOG_LIMIT_BYTES: u64 = 64 * 1024;

pub(crate) const LOCK_FILE: &str = "fence.lock";
pub(crate) const HEARTBEAT_FILE: &str = "fence.heartbeat";
pub(crate) const DATA_DIR_FILE: &str = "fence.data_dir";
pub(crate) const DEADLINE_FILE: &str = "deadline";
/// The fence's log in the run directory.
pub const LOG_FILE: &str = "fence.log";

/// Runs the fence if this process was started as one; to be called first in `main`. `None`: go on as the
/// agent.
pub fn main_if_fence() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    if Path::new(&name).file_name()? != FENCE_NAME {
        return None;
    }
    // Its working directory is the run directory: nothing needs to be said in argv or environment.
    let outcome = Fence::take_over(Path::new(".")).map(Fence::run);
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

struct Fence {
    data_dir: PathBuf,
    run_dir: PathBuf,
    heartbeat: File,
    timer: std::os::fd::OwnedFd,
    last_known: Deadline,
    watchdog: Watchdog,
    /// Held for life; a POSIX lock ends with the process, however it ends.
    lock: File,
}

impl Fence {
    /// Takes the lock and prepares everything the loop needs, so that the loop allocates little and
    /// opens only the deadline and `/proc`.
    fn take_over(run_dir: &Path) -> io::Result<Self> {
        let lock = open(run_dir, LOCK_FILE)?;
        rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        // All of these improve the odds under memory or processor pressure; none is needed.
        let _ = rustix::process::setsid();
        let _ = rustix::thread::set_name(c"trunkline-fence");
        let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT);
        let _ = rustix::process::setpriority_process(None, -20);
        let _ = fs::write("/proc/self/oom_score_adj", "-1000");
        let data_dir = OsString::from_vec(fs::read(run_dir.join(DATA_DIR_FILE))?);
        let fence = Self {
            data_dir: PathBuf::from(data_dir),
            run_dir: run_dir.to_owned(),
            heartbeat: open(run_dir, HEARTBEAT_FILE)?,
            timer: timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?,
            last_known: Deadline::Disarmed,
            watchdog: Watchdog::new(run_dir),
            lock,
        };
        fence.heartbeat.set_len(deadline::STAMP_BYTES as u64)?;
        fence.log("watches");
        Ok(fence)
    }

    /// Ends only when its run directory is gone and nothing is left to guard: whoever removed it has no
    /// agent here any more, and a later instance in the same place has a fence of its own.
    fn run(mut self) {
        loop {
            let now = clock::now();
            let _ = self.heartbeat.write_all_at(&deadline::stamp(now), 0);
            // A file that cannot be read has not moved.
            if let Some(read) = deadline::read(&self.run_dir) {
                self.last_known = read;
            }
            let mut wake = now + HEARTBEAT;
            let has_ended = match self.last_known {
                Deadline::Disarmed => true,
                Deadline::Armed(at) if at > now => {
                    wake = wake.min(at);
                    false
                }
                Deadline::Armed(at) => self.fire(at, now),
            };
            // With nothing to guard the machine must not be reset; else it is, unless this is alive in time.
            let news = match self.last_known {
                Deadline::Armed(at) if !has_ended => self.watchdog.keep(at, now),
                Deadline::Armed(_) | Deadline::Disarmed => self.watchdog.close(),
            };
            if let Some(news) = news {
                self.log(&news);
            }
            if has_ended && self.is_abandoned() {
                return;
            }
            self.sleep_until(wake);
        }
    }

    /// Whether the lock file it holds is no longer the one in the run directory.
    fn is_abandoned(&self) -> bool {
        let here = fs::metadata(self.run_dir.join(LOCK_FILE));
        let held = self.lock.metadata();
        match (here, held) {
            (Ok(here), Ok(held)) => (here.dev(), here.ino()) != (held.dev(), held.ino()),
            (Err(error), _) => error.kind() == io::ErrorKind::NotFound,
            (Ok(_), Err(_)) => false,
        }
    }

    /// Kills; returns whether the instance is dead.
    fn fire(&self, at: Moment, now: Moment) -> bool {
        let report = match Known::read(&self.run_dir) {
            Some(known) => kill_known(&known.directory, known.segment, KILL_LIMIT),
            None => kill_instance(&self.data_dir, KILL_LIMIT),
        };
        if report.killed.is_empty() && report.is_dead {
            return true;
        }
        self.log(&format!(
            "deadline {at:?} passed {:?} ago: killed {:?}, survivors {:?}, dead: {}, took {:?}",
            now.since(at),
            report.killed,
            report.survivors,
            report.is_dead,
            report.took
        ));
        report.is_dead
    }

    fn sleep_until(&self, wake: Moment) {
        let at = Timespec {
            tv_sec: i64::try_from(wake.0 / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(wake.0 % 1_000_000_000).unwrap_or(0),
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: at,
        };
        let armed = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once);
        // Should the timer ever fail, poll's own timeout still bounds the sleep.
        let longest = Timespec {
            tv_sec: 0,
            tv_nsec: if armed.is_ok() {
                300_000_000
            } else {
                10_000_000
            },
        };
        let _ = poll(
            &mut [PollFd::new(&self.timer, PollFlags::IN)],
            Some(&longest),
        );
    }

    fn log(&self, line: &str) {
        let path = self.run_dir.join(LOG_FILE);
        if fs::metadata(&path).is_ok_and(|m| m.len() > LOG_LIMIT_BYTES) {
            let _ = fs::remove_file(&path);
        }
        if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
            let _ = writeln!(
                file,
                "boottime {:?} fence {} of {}: {line}",
                clock::now(),
                std::process::id(),
                self.data_dir.display()
            );
        }
    }
}

fn open(run_dir: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(run_dir.join(name))
}
