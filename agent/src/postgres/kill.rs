//! The Kill: ends every server process of a data directory, and the test that tells whether any is left.
//!
//! A busy backend survives the SIGKILL of its postmaster and can still commit, so "the postmaster is gone"
//! never means "nobody writes". Dead means: two scans of `/proc` in a row found no server process, every
//! process signalled here has ended, and nothing is attached to the instance's shared memory segment. This
//! is plain synchronous code without allocation tricks or threads, because the fence runs it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::postmaster_pid::Segment;
use super::scan::{Directory, Found, ProcessId, attached, read_postmaster_pid, scan, scan_known};

/// Longest pause between two scans while processes are ending.
const SCAN_PAUSE: Duration = Duration::from_millis(2);

/// What the Kill did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KillReport {
    /// Every process that was sent SIGKILL.
    pub killed: Vec<i32>,
    /// Those of them that had not ended when the time was up.
    pub survivors: Vec<i32>,
    /// Whether the instance is dead by the test above.
    pub is_dead: bool,
    /// How long it took.
    pub took: Duration,
}

/// Ends every server process of `data_dir` and waits until it is dead, for `limit` at most.
pub fn kill_instance(data_dir: &Path, limit: Duration) -> KillReport {
    let scanning = || (scan(data_dir), segment_of(data_dir));
    kill_all(scanning, limit)
}

/// As [`kill_instance`], of an instance that was looked at before: reads nothing but `/proc`, so that a hung
/// disk holds nothing up.
pub fn kill_known(directory: &Directory, segment: Option<Segment>, limit: Duration) -> KillReport {
    kill_all(|| (scan_known(directory), segment), limit)
}

fn kill_all(
    look: impl Fn() -> (io::Result<Found>, Option<Segment>),
    limit: Duration,
) -> KillReport {
    let began = clock::now();
    let mut segment = None;
    let mut signalled: Vec<(ProcessId, Option<OwnedFd>)> = Vec::new();
    let mut empty_scans = 0;
    loop {
        let (found, named) = look();
        segment = segment.or(named);
        match found {
            Ok(found) if found.is_empty() => empty_scans += 1,
            Ok(found) => {
                empty_scans = 0;
                for id in found.servers.into_iter().chain(found.descendants) {
                    signal_kill(id, &mut signalled);
                }
            }
            Err(_) => empty_scans = 0,
        }
        for (_, pidfd) in &mut signalled {
            if pidfd.as_ref().is_some_and(has_ended) {
                *pidfd = None;
            }
        }
        let is_dead = empty_scans >= 2
            && signalled.iter().all(|(_, pidfd)| pidfd.is_none())
            && nobody_attached(segment);
        if is_dead || clock::now().since(began) >= limit {
            return report(&signalled, is_dead, began);
        }
        if empty_scans != 1 {
            wait_for_an_end(&signalled);
        }
    }
}

/// Whether no server process of `data_dir` is left: what "released means dead" means.
pub fn is_dead(data_dir: &Path) -> bool {
    let segment = segment_of(data_dir);
    let is_empty = || scan(data_dir).is_ok_and(|found| found.servers.is_empty());
    is_empty() && is_empty() && nobody_attached(segment)
}

fn segment_of(data_dir: &Path) -> Option<Segment> {
    read_postmaster_pid(data_dir)?.segment
}

fn nobody_attached(segment: Option<Segment>) -> bool {
    segment.is_none_or(|segment| attached(segment).is_ok_and(|count| count == 0))
}

fn signal_kill(id: ProcessId, signalled: &mut Vec<(ProcessId, Option<OwnedFd>)>) {
    let again = signalled.iter().any(|(known, _)| *known == id);
    let Some(pidfd) = id.open() else { return };
    // An error can only be "no such process": same user, valid signal.
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    if !again {
        signalled.push((id, Some(pidfd)));
    }
}

fn report(signalled: &[(ProcessId, Option<OwnedFd>)], is_dead: bool, began: Moment) -> KillReport {
    KillReport {
        killed: signalled.iter().map(|(id, _)| id.pid).collect(),
        survivors: signalled
            .iter()
            .filter(|(_, pidfd)| pidfd.is_some())
            .map(|(id, _)| id.pid)
            .collect(),
        is_dead,
        took: clock::now().since(began),
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Whether the process has ended, without waiting for it.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&timespec(Duration::ZERO))).is_ok_and(|ready| ready > 0)
}

/// Returns when one of the signalled processes has ended, or after [`SCAN_PAUSE`].
fn wait_for_an_end(signalled: &[(ProcessId, Option<OwnedFd>)]) {
    let mut fds: Vec<PollFd<'_>> = signalled
        .iter()
        .filter_map(|(_, pidfd)| pidfd.as_ref())
        .map(|pidfd| PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN))
        .collect();
    let _ = poll(&mut fds, Some(&timespec(SCAN_PAUSE)));
}
