//! Fences of the same data directory in another run directory: what is left when `trunkline.run_dir` was
//! changed while one lived.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Flock, FlockType, Signal, fcntl_getlk, pidfd_send_signal};

use super::deadline::{self, Deadline};
use super::handle::FenceError;
use super::run_dir::AGENT_LOCK_FILE;
use super::{DATA_DIR_FILE, FENCE_NAME};
use crate::postgres::scan::ProcessId;
use crate::watchdog::State;

/// Ends the fences that guard `data_dir` from another directory than `run_dir` and have nothing to guard.
///
/// # Errors
/// One of them is armed, or an agent runs beside it: it would kill what a newer agent renews elsewhere.
pub(super) fn end_others(run_dir: &Path, data_dir: &Path) -> Result<(), FenceError> {
    for (fence, other) in others(run_dir, data_dir) {
        let is_armed = matches!(deadline::read(&other), Some(Deadline::Armed(_)));
        // One that has not closed its watchdog yet would have the machine reset by its end.
        let counts = matches!(State::read(&other), State::Open(..));
        if is_armed || counts || has_agent(&other) {
            return Err(FenceError::OtherRunDir {
                run_dir: run_dir.to_owned(),
                other,
                pid: fence.pid,
            });
        }
        tracing::warn!(
            run_dir = %other.display(), pid = fence.pid,
            "a disarmed fence of this instance watches from another run_dir: it is ended"
        );
        if let Some(pidfd) = fence.open() {
            // It may have ended by itself; then there is nothing to end.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    Ok(())
}

fn others(run_dir: &Path, data_dir: &Path) -> Vec<(ProcessId, PathBuf)> {
    let uid = rustix::process::geteuid().as_raw();
    let mine = fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|m| m.uid() == uid))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_fence(*pid))
        .filter_map(|pid| {
            Some((
                ProcessId::of(pid)?,
                fs::read_link(format!("/proc/{pid}/cwd")).ok()?,
            ))
        })
        .filter(|(_, other)| *other != mine && watches(other, data_dir))
        .collect()
}

fn is_fence(pid: i32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = arguments.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Path::new(OsStr::from_bytes(name)).file_name() == Some(OsStr::new(FENCE_NAME))
}

fn watches(run_dir: &Path, data_dir: &Path) -> bool {
    let Ok(watched) = fs::read(run_dir.join(DATA_DIR_FILE)) else {
        return false;
    };
    let watched = Path::new(OsStr::from_bytes(&watched));
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(watched) == real(data_dir)
}

fn has_agent(run_dir: &Path) -> bool {
    let lock = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(run_dir.join(AGENT_LOCK_FILE));
    let wanted = Flock::from(FlockType::WriteLock);
    lock.is_ok_and(|lock| matches!(fcntl_getlk(&lock, &wanted), Ok(Some(_))))
}
