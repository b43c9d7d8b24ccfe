//! What `/proc` tells about processes: the only reader of it in the harness.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process for as long as it lives: a pid may be given to another, a pid with its start time not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// The process number.
    pub pid: i32,
    /// Its start, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now, if there is one.
    pub fn now(pid: i32) -> Option<ProcessId> {
        let started = stat_field(pid, 22)?;
        Some(ProcessId { pid, started })
    }

    /// Is it still there, and not merely waiting to be reaped?
    pub fn is_alive(self) -> bool {
        stat_field(self.pid, 22) == Some(self.started) && !is_zombie(self.pid)
    }

    /// Does another process trace it?
    pub fn is_traced(self) -> bool {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let tracer = text
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    }

    /// Sends a signal to this very process; false if it has ended.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return false;
        };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        // Looked at after the handle was opened: the handle is of this process or of nobody.
        self.is_alive() && pidfd_send_signal(handle, signal).is_ok()
    }

    /// CPU time of all its threads so far, in microseconds, from `/proc/PID/stat` (ticks of 10 ms).
    pub fn cpu_us(self) -> Option<u64> {
        let ticks = stat_field(self.pid, 14)? + stat_field(self.pid, 15)?;
        Some(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
    }

    /// The same with that of the children it has waited for.
    pub fn cpu_us_with_children(self) -> Option<u64> {
        let ticks = stat_field(self.pid, 16)? + stat_field(self.pid, 17)?;
        let of_children = ticks * 1_000_000 / rustix::param::clock_ticks_per_second();
        Some(self.cpu_us()? + of_children)
    }

    /// Memory that it has resident, in kB.
    pub fn memory_kb(self) -> Option<u64> {
        let pages = stat_field(self.pid, 24)?;
        let page = u64::try_from(rustix::param::page_size()).ok()?;
        self.is_alive().then_some(pages * page / 1024)
    }

    /// Memory that is its own, and its part of what it shares, in kB: `Pss` of `smaps_rollup`.
    pub fn proportional_kb(self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The program and arguments it was started with.
    pub fn arguments(self) -> Vec<String> {
        let raw = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        raw.split(|byte| *byte == 0)
            .filter(|part| !part.is_empty())
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect()
    }
}

/// Every process of the machine.
pub fn all() -> Vec<ProcessId> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(ProcessId::now)
        .collect()
}

/// The processes that this one has started, and those that they have.
pub fn descendants(of: ProcessId) -> Vec<ProcessId> {
    let parents: Vec<_> = all()
        .into_iter()
        .filter_map(|id| Some((id, stat_field(id.pid, 4)?)))
        .collect();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let is_child = |(_, of): &&(ProcessId, u64)| i32::try_from(*of) == Ok(parent.pid);
        found.extend(parents.iter().filter(is_child).map(|(id, _)| *id));
        next += 1;
    }
    found.split_off(1)
}

/// The server processes of one instance: those that work in its data directory.
pub fn of_data_dir(data_dir: &Path) -> BTreeSet<ProcessId> {
    all()
        .into_iter()
        .filter(|id| cwd(id.pid).as_deref() == Some(data_dir))
        .collect()
}

/// The processes that hold `file` open.
pub fn holding(file: &Path) -> Vec<ProcessId> {
    all()
        .into_iter()
        .filter(|id| open_files(id.pid).iter().any(|open| open == file))
        .collect()
}

/// The processes that were started with `NAME=VALUE` in their environment, that work below one of the folders,
/// or that hold a file below one open. The mark alone is not enough: PostgreSQL overwrites its environment to
/// show a title, and a fence starts with an empty one.
pub fn marked(name: &str, value: &str, folders: &[&Path]) -> Vec<ProcessId> {
    let wanted = format!("{name}={value}").into_bytes();
    let is_below = |path: PathBuf| folders.iter().any(|folder| path.starts_with(folder));
    let is_ours = |id: &ProcessId| {
        let environment = fs::read(format!("/proc/{}/environ", id.pid)).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == wanted)
            || cwd(id.pid).is_some_and(is_below)
            || open_files(id.pid).into_iter().any(is_below)
    };
    all()
        .into_iter()
        .filter(|id| id.pid != own_pid() && is_ours(id))
        .collect()
}

/// The pid in the first line of a `postmaster.pid`, if that process lives.
pub fn postmaster(data_dir: &Path) -> Option<ProcessId> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let id = ProcessId::now(text.lines().next()?.trim().parse().ok()?)?;
    (id.is_alive() && cwd(id.pid).as_deref() == Some(data_dir)).then_some(id)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_pid()
}

fn cwd(pid: i32) -> Option<PathBuf> {
    let link = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    // A directory that was renamed aside keeps its processes; one that was removed says so.
    let bytes = link.as_os_str().as_bytes();
    let kept = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Some(PathBuf::from(OsStr::from_bytes(kept)))
}

/// The files a process holds open; none if it is another user's.
fn open_files(pid: i32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect()
}

fn is_zombie(pid: i32) -> bool {
    stat_text(pid)
        .and_then(|text| text.split(' ').next().map(|state| state == "Z"))
        .unwrap_or(true)
}

/// The part of `/proc/PID/stat` after the program's name, which itself may hold spaces and brackets.
fn stat_text(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.to_owned())
}

/// A numeric field of `/proc/PID/stat` by its number in proc(5), from 4 on.
fn stat_field(pid: i32, number: usize) -> Option<u64> {
    stat_text(pid)?
        .split(' ')
        .nth(number.checked_sub(3)?)?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not_it() {
        let me = ProcessId::now(own_pid()).unwrap();
        assert!(me.is_alive() && !me.is_traced());
        assert!(
            !ProcessId {
                started: me.started + 1,
                ..me
            }
            .is_alive()
        );
        assert!(me.cpu_us().is_some());
        assert!(me.memory_kb().is_some_and(|kb| kb > 500));
        assert!(all().contains(&me));
        assert!(me.cpu_us_with_children() >= me.cpu_us());
    }

    #[test]
    fn whoever_was_started_by_this_process_is_among_its_descendants() {
        let parent = ProcessId::now(stat_field(own_pid(), 4).unwrap().try_into().unwrap());
        let me = ProcessId::now(own_pid()).unwrap();
        assert!(parent.is_none_or(|parent| descendants(parent).contains(&me)));
        assert!(!descendants(me).contains(&me));
    }
}
