//! Volumes of a limited size, so that a disk can be full: in memory, or in a file, so that it can stand still, too.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::process::run_now;

/// The file that takes the room.
const FILLER: &str = "filler";
/// How often its growth is tried while others take room, too.
const TRIES: usize = 100;
/// By how much it grows at once: memory takes back all of a step for which there is no room.
const STEP: u64 = 8 * 1024 * 1024;

/// A volume of its own for the files of each member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// How much it holds.
    pub megabytes: u32,
    /// Whether it lies in a file, as a file system that can be frozen, and not in memory.
    pub can_freeze: bool,
}

/// Mounts an empty volume at this folder, which is made.
pub fn mount(folder: &Path, volume: Volume) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let megabytes = volume.megabytes;
    let target = folder.to_string_lossy();
    if !volume.can_freeze {
        let size = format!("size={megabytes}m");
        return run_now("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &target])
            .context("a volume of its own needs root");
    }
    let image = folder.with_extension("img");
    let file = fs::File::create(&image);
    let sized = file.and_then(|file| file.set_len(u64::from(megabytes) << 20));
    sized.with_context(|| format!("cannot make {}", image.display()))?;
    let image = image.to_string_lossy();
    run_now("mkfs.ext4", &["-q", "-m", "0", &image]).context("cannot make a file system")?;
    run_now("mount", &["-o", "loop", &image, &target])
        .context("a volume in a file needs root and a loop device")
}

/// A volume that stands still: whoever writes to it waits, and no signal ends that. It goes on when this is dropped.
#[derive(Debug)]
pub struct Frozen(PathBuf);

/// Lets a volume stand still.
pub fn freeze(folder: &Path) -> Result<Frozen> {
    let target = folder.to_string_lossy();
    run_now("fsfreeze", &["-f", &target]).context("cannot freeze the volume")?;
    Ok(Frozen(folder.to_owned()))
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run_now("fsfreeze", &["-u", &self.0.to_string_lossy()]).ok();
    }
}

/// Unmounts everything below a folder, what a killed run left there too.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    for target in targets.filter(|target| Path::new(target).starts_with(folder)) {
        // One that stands still would keep whoever writes to it.
        run_now("fsfreeze", &["-u", target]).ok();
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
    let mut tries = TRIES;
    while tries > 0 {
        let taken = free(folder)?.saturating_sub(left).min(STEP);
        if taken == 0 {
            return Ok(());
        }
        let begin = file.metadata()?.len();
        match fallocate(file.as_fd(), FallocateFlags::empty(), begin, taken) {
            // Somebody else took some of it meanwhile.
            Err(Errno::NOSPC) => tries -= 1,
            done => {
                done.with_context(|| format!("cannot take {taken} bytes on {}", folder.display()))?;
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
