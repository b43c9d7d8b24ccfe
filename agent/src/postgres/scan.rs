//! Finds the server processes of a data directory in `/proc`. Plain synchronous code: the fence uses it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::postmaster_pid::{PostmasterPid, Segment};

/// A process, named so that its number's reuse by another cannot be mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// Its start in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that now has the number `pid`; `None` if there is none or it is a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let entry = read_stat(pid)?;
        (!entry.is_zombie).then_some(Self {
            pid,
            start_ticks: entry.start_ticks,
        })
    }

    /// A child of this process, which has its number until it is waited for, even if it has ended.
    pub(crate) fn of_child(pid: i32) -> Option<Self> {
        let start_ticks = read_stat(pid)?.start_ticks;
        Some(Self { pid, start_ticks })
    }

    /// Whether it stands still by a signal or a debugger; not one that has ended.
    pub fn is_stopped(self) -> bool {
        read_stat(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks && now.is_stopped)
    }

    /// A file descriptor of exactly this process. `None` if it has ended.
    pub fn open(self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The descriptor is of whoever has the number now; the second look proves that it is still ours.
        (read_stat(self.pid)?.start_ticks == self.start_ticks).then_some(pidfd)
    }
}

struct Stat {
    parent: i32,
    start_ticks: u64,
    is_zombie: bool,
    is_stopped: bool,
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses and may hold anything.
    let after_name = &text[text.rfind(')')? + 1..];
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    Some(Stat {
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        is_stopped: matches!(*fields.first()?, "T" | "t"),
        parent: fields.get(1)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// The data directory as the kernel sees it: enough to tell its server processes by `/proc` alone, also
/// while its disk hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its real path.
    pub path: PathBuf,
    /// Device and inode; `None` if it does not exist.
    pub identity: Option<(u64, u64)>,
}

impl Directory {
    /// Looks at the disk.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            path: fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned()),
            identity: fs::metadata(data_dir).ok().map(|m| (m.dev(), m.ino())),
        }
    }

    fn is_cwd_of(&self, pid: i32) -> bool {
        let link = format!("/proc/{pid}/cwd");
        // The link's text is the kernel's own; only where it is another path is the directory looked at.
        fs::read_link(&link).is_ok_and(|cwd| without_deleted(&cwd) == self.path)
            || self.identity.is_some() && identity_behind(&link) == self.identity
    }
}

/// Device and inode of an open directory, as the kernel has them in memory: no disk is asked.
fn identity_behind(link: &str) -> Option<(u64, u64)> {
    let found = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    let device = makedev(found.stx_dev_major, found.stx_dev_minor);
    Some((device, found.stx_ino))
}

/// The kernel adds this to the target of a link whose file was removed, as an upgrade of the package does.
fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let kept = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    PathBuf::from(std::ffi::OsStr::from_bytes(kept))
}

/// Names under which the server program is installed.
const SERVER_PROGRAMS: [&str; 3] = ["postgres", "postmaster", "edb-postgres"];

fn executable(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe"))
        .ok()
        .map(|exe| without_deleted(&exe))
}

fn is_server_program(exe: &Path) -> bool {
    exe.file_name()
        .is_some_and(|name| SERVER_PROGRAMS.iter().any(|p| name == *p))
}

/// Reads `postmaster.pid`; `None` if it is missing or still empty.
pub fn read_postmaster_pid(data_dir: &Path) -> Option<PostmasterPid> {
    PostmasterPid::parse(&fs::read_to_string(data_dir.join("postmaster.pid")).ok()?)
}

/// The living postmaster of `data_dir`, checked by its working directory and program; `None` if the file is
/// missing, stale, or names a single-user server.
pub fn find_postmaster(data_dir: &Path) -> Option<ProcessId> {
    let file = read_postmaster_pid(data_dir)?;
    let id = ProcessId::of(file.pid)?;
    let is_server = executable(id.pid).is_some_and(|exe| is_server_program(&exe));
    (is_server && Directory::new(data_dir).is_cwd_of(id.pid)).then_some(id)
}

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Servers, the postmaster first.
    pub servers: Vec<ProcessId>,
    /// Their children that are other programs, such as a shell of `archive_command`.
    pub descendants: Vec<ProcessId>,
}

impl Found {
    /// Whether the scan found nothing.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.descendants.is_empty()
    }
}

/// Every server process of this user whose working directory is `data_dir`, with its descendants. A
/// process is a server by the name of its program, so that a shell standing in the directory is left
/// alone. An error means that nothing can be said.
pub fn scan(data_dir: &Path) -> io::Result<Found> {
    scan_known(&Directory::new(data_dir))
}

/// What the server processes call themselves (`update_process_title`), for a message.
pub(crate) fn titles(data_dir: &Path) -> Vec<String> {
    let found = scan(data_dir).map(|found| found.servers);
    let title = |id: ProcessId| fs::read(format!("/proc/{}/cmdline", id.pid)).ok();
    let titles = found.unwrap_or_default().into_iter().filter_map(title);
    let text = titles.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    text.map(|text| text.trim_end().to_owned()).collect()
}

/// As [`scan`], of a directory that was looked at before: reads nothing but `/proc`.
pub fn scan_known(directory: &Directory) -> io::Result<Found> {
    let uid = rustix::process::geteuid().as_raw();
    let mut all: Vec<(ProcessId, i32)> = Vec::new();
    let mut servers = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // A process may end between the steps; then it is not there and need not be found.
        if entry.metadata().map_or(true, |m| m.uid() != uid) {
            continue;
        }
        let Some(stat) = read_stat(pid).filter(|s| !s.is_zombie) else {
            continue;
        };
        let id = ProcessId {
            pid,
            start_ticks: stat.start_ticks,
        };
        all.push((id, stat.parent));
        let is_server = executable(pid).is_some_and(|exe| is_server_program(&exe));
        if is_server && directory.is_cwd_of(pid) {
            servers.push((id, stat.parent));
        }
    }
    // The postmaster, whose parent is no server, first: it starts no more of them then.
    let pids: BTreeSet<i32> = servers.iter().map(|(id, _)| id.pid).collect();
    servers.sort_by_key(|(id, parent)| (pids.contains(parent), *id));
    let servers: Vec<ProcessId> = servers.into_iter().map(|(id, _)| id).collect();
    let descendants = descendants(&all, &servers);
    Ok(Found {
        servers,
        descendants,
    })
}

fn descendants(all: &[(ProcessId, i32)], servers: &[ProcessId]) -> Vec<ProcessId> {
    let mut family: BTreeSet<i32> = servers.iter().map(|s| s.pid).collect();
    let mut found = Vec::new();
    // Each pass adds one generation; there are no more generations than processes.
    for _ in 0..all.len() {
        let before = family.len();
        for (id, parent) in all {
            if family.contains(parent) && family.insert(id.pid) {
                found.push(*id);
            }
        }
        if family.len() == before {
            break;
        }
    }
    found
}

/// How many processes are attached to `segment`; 0 if it does not exist.
pub fn attached(segment: Segment) -> io::Result<u64> {
    Ok(parse_attached(
        &fs::read_to_string("/proc/sysvipc/shm")?,
        segment,
    ))
}

fn parse_attached(table: &str, segment: Segment) -> u64 {
    table
        .lines()
        .skip(1)
        .find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Keys are printed signed, and kept unsigned in postmaster.pid.
            let key = fields.first()?.parse::<i64>().ok()? as u32;
            let id = fields.get(1)?.parse::<u64>().ok()?;
            (u64::from(key) == segment.key && id == segment.id)
                .then(|| fields.get(6)?.parse().ok())
                .flatten()
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_and_spaces_does_not_confuse_the_fields() {
        let text = "12 (a) b) R 7 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 99887 1 2";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.parent, stat.start_ticks), (7, 99_887));
        assert!(!stat.is_zombie && !stat.is_stopped);
        let stopped = |state| {
            parse_stat(&text.replacen(" R ", state, 1))
                .unwrap()
                .is_stopped
        };
        assert!(stopped(" T ") && stopped(" t ") && !stopped(" D ") && !stopped(" S "));
    }

    #[test]
    fn attached_reads_the_row_of_key_and_identifier() {
        let table = "       key      shmid perms                  size  cpid  lpid nattch   uid\n\
                     1717  32768   600  56 18790 19066  6  113\n\
                     -2 5   600  56 1 1  3  113\n";
        assert_eq!(
            parse_attached(
                table,
                Segment {
                    key: 1717,
                    id: 32768
                }
            ),
            6
        );
        assert_eq!(parse_attached(table, Segment { key: 1717, id: 1 }), 0);
        assert_eq!(
            parse_attached(
                table,
                Segment {
                    key: 0xFFFF_FFFE,
                    id: 5
                }
            ),
            3
        );
    }

    #[test]
    fn this_process_is_itself_and_no_server_of_any_directory() {
        let me = i32::try_from(std::process::id()).unwrap();
        let id = ProcessId::of(me).unwrap();
        assert!(id.open().is_some());
        let other = ProcessId {
            start_ticks: id.start_ticks + 1,
            ..id
        };
        assert!(other.open().is_none());
        assert!(scan(Path::new(".")).unwrap().is_empty());
    }
}
