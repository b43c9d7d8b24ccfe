//! Chooses and prepares the run directory: memory, private to this user, of this boot.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use trunkline_shared::cluster::SystemId;

/// Locked by the agent that runs on the directory.
pub(super) const AGENT_LOCK_FILE: &str = "agent.lock";

/// Holds the boot id, and the system identifier once it is known.
const STAMP_FILE: &str = "stamp";

/// Why there is no usable run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It could not be made or read.
    #[error("cannot use {path} as run directory: {source}; set trunkline.run_dir")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another user owns it, or others may write there.
    #[error("{path} is not a private directory of this user; remove it or set trunkline.run_dir")]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
    /// It lies in the data directory, where a base backup would copy it.
    #[error("{path} lies below the data directory; set trunkline.run_dir to a folder in memory")]
    BelowDataDir {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent runs on it. Two agents of one instance would undo each other's work.
    #[error("another agent runs on {path}; end it first, or give this instance its own run_dir")]
    OtherAgent {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another instance that was seen in this boot.
    #[error(
        "{path} was used for system identifier {other} in this boot; give each instance its own run_dir, or remove it"
    )]
    OtherSystem {
        /// The directory.
        path: PathBuf,
        /// The identifier in its stamp.
        other: SystemId,
    },
}

/// The directory in which agent and fence keep what must survive a restart of the agent, but no reboot.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    boot_id: String,
    /// Whether the directory already held this boot's files: false after a reboot or in a new container.
    pub is_of_this_boot: bool,
    /// Held for the agent's life.
    _lock: Arc<fs::File>,
}

impl RunDir {
    /// `configured`, else `/run/trunkline/<cluster>-<member>` where that can be made, else a private folder
    /// in `/dev/shm`. What an earlier boot left there is removed.
    pub fn open(
        configured: Option<&Path>,
        cluster: &str,
        member: &str,
        data_dir: &Path,
    ) -> Result<Self, RunDirError> {
        let name = format!("{cluster}-{member}").replace('/', "_");
        let uid = rustix::process::geteuid().as_raw();
        let path = match configured {
            Some(path) => path.to_owned(),
            None => {
                let usual = Path::new("/run/trunkline").join(&name);
                if make(&usual).is_ok() {
                    usual
                } else {
                    PathBuf::from(format!("/dev/shm/trunkline-{uid}-{name}"))
                }
            }
        };
        let io = |source| RunDirError::Io {
            path: path.clone(),
            source,
        };
        make(&path).map_err(io)?;
        let metadata = fs::symlink_metadata(&path).map_err(io)?;
        if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
            return Err(RunDirError::NotPrivate { path });
        }
        let real = fs::canonicalize(&path).map_err(io)?;
        if fs::canonicalize(data_dir).is_ok_and(|data| real.starts_with(data)) {
            return Err(RunDirError::BelowDataDir { path });
        }
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(real.join(AGENT_LOCK_FILE))
            .map_err(io)?;
        if rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(RunDirError::OtherAgent { path });
        }
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(io)?;
        let boot_id = boot_id.trim().to_owned();
        let is_of_this_boot = read_stamp(&real).is_some_and(|(boot, _)| boot == boot_id);
        let dir = Self {
            path: real,
            boot_id,
            is_of_this_boot,
            _lock: Arc::new(lock),
        };
        if !is_of_this_boot {
            dir.empty().map_err(io)?;
            dir.write_stamp(None).map_err(io)?;
        }
        Ok(dir)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ties the directory to an instance: refuses another than the one already seen in this boot.
    pub fn bind(&self, system_id: SystemId) -> Result<(), RunDirError> {
        match read_stamp(&self.path).and_then(|(_, system)| system) {
            Some(other) if other != system_id => Err(RunDirError::OtherSystem {
                path: self.path.clone(),
                other,
            }),
            Some(_) => Ok(()),
            None => self
                .write_stamp(Some(system_id))
                .map_err(|source| RunDirError::Io {
                    path: self.path.clone(),
                    source,
                }),
        }
    }

    /// Forgets the instance, before another one is put in its place by an operator's request.
    pub fn unbind(&self) -> io::Result<()> {
        self.write_stamp(None)
    }

    fn write_stamp(&self, system: Option<SystemId>) -> io::Result<()> {
        let system = system.map_or_else(String::new, |s| s.to_string());
        let fresh = self.path.join("stamp.new");
        fs::write(&fresh, format!("{}\n{system}\n", self.boot_id))?;
        fs::rename(&fresh, self.path.join(STAMP_FILE))
    }

    fn empty(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }?;
    // Only a directory of ours can be made private; the caller's check refuses the others.
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    Ok(())
}

fn read_stamp(path: &Path) -> Option<(String, Option<SystemId>)> {
    let text = fs::read_to_string(path.join(STAMP_FILE)).ok()?;
    let mut lines = text.lines();
    let boot = lines.next()?.to_owned();
    let system = lines.next().and_then(|l| l.parse().ok()).map(SystemId);
    Some((boot, system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_private_of_this_boot_and_bound_to_one_instance() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        fs::create_dir(&data).unwrap();
        let at = base.path().join("run");
        let first = RunDir::open(Some(&at), "c", "m", &data).unwrap();
        assert!(!first.is_of_this_boot);
        first.bind(SystemId(1)).unwrap();
        fs::write(at.join("lease"), "x").unwrap();
        let second = RunDir::open(Some(&at), "c", "m", &data).unwrap();
        assert!(second.is_of_this_boot && at.join("lease").exists());
        assert!(matches!(
            second.bind(SystemId(2)),
            Err(RunDirError::OtherSystem {
                other: SystemId(1),
                ..
            })
        ));
        fs::write(at.join(STAMP_FILE), "another-boot\n1\n").unwrap();
        let rebooted = RunDir::open(Some(&at), "c", "m", &data).unwrap();
        assert!(!rebooted.is_of_this_boot && !at.join("lease").exists());
    }

    #[test]
    fn is_refused_below_the_data_directory() {
        let base = tempfile::tempdir().unwrap();
        let at = base.path().join("run");
        let refused = RunDir::open(Some(&at), "c", "m", base.path());
        assert!(matches!(refused, Err(RunDirError::BelowDataDir { .. })));
    }
}
