//! A number, the addresses that belong to it, and the folders of one stack.
//!
//! Each stack locks a number N in a folder shared by all runs on the machine, uses 127.77.N.1 to .9 (or
//! 10.77.N.0/24 inside namespaces) and keeps its files below `trunkline-N`. Whoever holds the lock of N owns
//! everything that bears N: a run that was killed leaves it to the next holder, which cleans it first.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::{namespaces, proc, process, volume, wall_clock};

/// The folder of the lock files, below the machine's temporary folder.
const LOCKS: &str = "trunkline-numbers";
/// How many stacks one machine may hold.
const NUMBERS: u8 = 250;
/// How long processes that were told to end are waited for before they are killed.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Who everything of a stack runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This process's own, ordinary user.
    Myself,
    /// Root started the harness: PostgreSQL refuses root, so everything runs as this user.
    User(String),
}

impl Owner {
    /// `postgres` when started by root, else the user it is.
    pub fn of_this_process() -> Owner {
        if rustix::process::geteuid().is_root() {
            Owner::User("postgres".to_owned())
        } else {
            Owner::Myself
        }
    }

    /// The user to become, if any.
    pub fn user(&self) -> Option<String> {
        match self {
            Owner::Myself => None,
            Owner::User(user) => Some(user.clone()),
        }
    }
}

/// A locked number with its folders; cleaned when dropped.
#[derive(Debug)]
pub struct Place {
    number: u8,
    folder: PathBuf,
    memory: PathBuf,
    owner: Owner,
    _lock: File,
}

impl Place {
    /// Locks the first free number and cleans what a killed run left there.
    pub fn take() -> Result<Place> {
        let temporary = std::env::temp_dir();
        let locks = temporary.join(LOCKS);
        if fs::create_dir(&locks).is_ok() {
            fs::set_permissions(&locks, fs::Permissions::from_mode(0o1777))?;
        }
        for number in 1..=NUMBERS {
            let Some(lock) = lock(&locks.join(format!("{number}.lock"))) else {
                continue;
            };
            let name = format!("trunkline-{number}");
            let memory = match Path::new("/dev/shm").is_dir() {
                true => Path::new("/dev/shm").join(&name),
                false => temporary.join(format!("{name}-memory")),
            };
            let owner = Owner::of_this_process();
            let place = Place {
                number,
                folder: temporary.join(name),
                memory,
                owner,
                _lock: lock,
            };
            place.clean();
            if place.folder.exists() || !place.addresses_are_free() {
                // Another user's leftover, or a stranger on the address: not ours to touch.
                continue;
            }
            place.own(&place.folder)?;
            place.own(&place.memory)?;
            return Ok(place);
        }
        bail!(
            "all {NUMBERS} numbers in {} are taken by running clusters",
            locks.display()
        );
    }

    /// The number, 1 to 250.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Where everything of this stack is kept.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder in memory: for the agents' run directories.
    pub fn memory(&self) -> &Path {
        &self.memory
    }

    /// Who the programs run as.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Makes a folder that the stack's user owns.
    pub fn own(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        self.give(folder)
    }

    /// Gives a file or folder to the stack's user.
    pub fn give(&self, path: &Path) -> Result<()> {
        let Owner::User(user) = &self.owner else {
            return Ok(());
        };
        let (uid, gid) = user_ids(user)?;
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to {user}", path.display()))
    }

    /// Writes a file that the stack's user owns.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        self.give(path)
    }

    /// Ends every process of this number and removes its namespaces, cgroups and folders.
    fn clean(&self) {
        namespaces::thaw(self.number);
        end_all(&self.folder, &self.memory);
        namespaces::remove(self.number);
        volume::unmount_below(&self.folder);
        wall_clock::forget(self.number);
        fs::remove_dir_all(&self.folder).ok();
        fs::remove_dir_all(&self.memory).ok();
    }

    fn addresses_are_free(&self) -> bool {
        [5432, 2379, 8008].iter().all(|port| {
            std::net::TcpListener::bind((format!("127.77.{}.1", self.number), *port)).is_ok()
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clean();
    }
}

/// Agents, fences and all else first, then the servers by an immediate stop, which frees their shared memory;
/// whatever is left after that is killed.
fn end_all(folder: &Path, memory: &Path) {
    let mark = folder.to_string_lossy().into_owned();
    let marked = || proc::marked(process::MARK, &mark, &[folder, memory]);
    let is_postmaster = |id: &proc::ProcessId| {
        let arguments = id.arguments();
        arguments
            .first()
            .is_some_and(|word| word.ends_with("/postgres"))
            && arguments.iter().any(|word| word == "-D")
    };
    let found = marked();
    let (servers, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|id| is_postmaster(id));
    for id in others
        .iter()
        .filter(|id| !id.arguments().iter().any(|w| w.starts_with("postgres:")))
    {
        id.signal(Signal::KILL);
    }
    for id in &servers {
        id.signal(Signal::QUIT);
        id.signal(Signal::CONT);
    }
    let deadline = clock::now() + END_LIMIT;
    while servers.iter().any(|id| id.is_alive()) && clock::now() < deadline {
        pause();
    }
    // Twice, since a process may have had a child between the look and the signal.
    for _ in 0..2 {
        let left = marked();
        left.iter().for_each(|id| {
            id.signal(Signal::KILL);
        });
        let deadline = clock::now() + END_LIMIT;
        while left.iter().any(|id| id.is_alive()) && clock::now() < deadline {
            pause();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "clean-up runs in a drop, where no runtime is"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// The lock of one number, or nothing if it is held, or its file belongs to someone who does not share it.
fn lock(path: &Path) -> Option<File> {
    // Reading is enough to lock it: so users share the files that any of them made.
    let file = match File::open(path) {
        Ok(file) => file,
        Err(_) => {
            let file = File::options()
                .write(true)
                .create_new(true)
                .open(path)
                .ok()?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).ok()?;
            file
        }
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// User and group number of a name in `/etc/passwd`.
fn user_ids(user: &str) -> Result<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    for line in text.lines() {
        let fields: Vec<_> = line.split(':').collect();
        if fields.first() == Some(&user) && fields.len() > 3 {
            return Ok((fields[2].parse()?, fields[3].parse()?));
        }
    }
    bail!("this machine has no user {user}: install PostgreSQL (apt-get install postgresql)")
}
