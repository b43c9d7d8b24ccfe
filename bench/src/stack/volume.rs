//! Volumes of a limited size in memory, so that a disk can be full.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::process::run_now;

/// The file that takes the room.
const FILLER: &str = "filler";
/// How often its growth is tried while others take room, too.
const TRIES: usize = 100;

/// Mounts an empty volume at this folder, which is made.
pub fn mount(folder: &Path, megabytes: u32) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let size = format!("size={megabytes}m");
    let target = folder.to_string_lossy();
    run_now("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &target])
        .context("a volume of its own needs root")
}

/// Unmounts everything below a folder, what a killed run left there too.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    for target in targets.filter(|target| Path::new(target).starts_with(folder)) {
        // Lazily: a process that is ending may hold a file for a moment yet.
        run_now("umount", &["-l", target]).ok();
    }
}

/// Bytes that are free on the volume of this folder.
pub fn free(folder: &Path) -> Result<u64> {
    let found = statvfs(folder).with_context(|| format!("cannot ask {}", folder.display()))?;
    Ok(found.f_bavail * found.f_frsize)
}

/// Takes room until so many bytes are free.
pub fn fill(folder: &Path, left: u64) -> Result<()> {
    let path = folder.join(FILLER);
    let file = fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    for _ in 0..TRIES {
        let taken = free(folder)?.saturating_sub(left);
        if taken == 0 {
            return Ok(());
        }
        let begin = file.metadata()?.len();
        match fallocate(file.as_fd(), FallocateFlags::empty(), begin, taken) {
            // Somebody else took some of it meanwhile.
            Err(Errno::NOSPC) => {}
            done => {
                return done
                    .with_context(|| format!("cannot take {taken} bytes on {}", folder.display()));
            }
        }
    }
    bail!("others take the room on {} too fast", folder.display())
}

/// Gives the room back.
pub fn empty(folder: &Path) -> Result<()> {
    match fs::remove_file(folder.join(FILLER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot empty {}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
