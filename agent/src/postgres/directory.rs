//! The data directory as a whole: what state it is in, and how a fresh copy takes its place.
//!
//! A copy is made in `<data_dir>.new`. When it is whole and on disk, `<data_dir>.new.complete` is written;
//! from then on the swap is decided and any agent that starts finishes it: an older `<data_dir>.aside` is
//! removed, the old directory is renamed to `.aside`, `.new` takes its place, the marker goes. A crash
//! between any two steps leaves a state from which the rest can be done, and never an empty place that
//! could be taken for a member without data.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Signal, pidfd_send_signal};

use super::PostgresError;
use super::config::PostgresConfig;
use super::files::{directory_major, remove_file, sync_directory, write_file};
use super::process::end_orphaned_script;
use super::scan::ProcessId;

/// The copy in the making.
pub const NEW: &str = ".new";
/// Says that the copy is whole.
pub const COMPLETE: &str = ".new.complete";
/// The directory it replaced; one is kept.
pub const ASIDE: &str = ".aside";
/// Stands while pg_rewind changes the directory in place.
pub const REWINDING: &str = ".rewinding";

/// In a data directory: its cluster is being made, and its identity was never recorded.
pub const UNFINISHED: &str = "trunkline.bootstrap";
/// The data of a bootstrap that failed; one is kept.
pub const FAILED: &str = ".failed";
/// Stands while data is made in its place, because that cannot be renamed.
const MAKING: &str = ".making";

/// Room asked for before a copy, in percent of its size.
const SPACE_PERCENT: u64 = 120;

/// Tools that change a directory and could outlive an agent that was killed.
const TOOLS: [&str; 3] = ["pg_basebackup", "pg_rewind", "initdb"];

/// What is found at the data directory's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryState {
    /// Nothing, or an empty directory, and nothing beside it: this member has no data.
    Empty,
    /// A data directory.
    Present,
    /// A data directory in which a pg_rewind was interrupted: only another one, or a copy, mends it.
    Rewinding,
    /// Files, but no data directory: an interrupted initdb or copy, or the wrong disk.
    Incomplete,
    /// Nothing, but a directory set aside stands beside it: an operator must say which to keep.
    Lost,
}

/// Whether the directory must not be started: an unfinished rewind left pages of two histories in it, or a
/// complete copy waits to take its place.
pub fn is_half_done(config: &PostgresConfig) -> bool {
    config.beside(REWINDING).exists() || config.beside(COMPLETE).exists()
}

/// Looks at the place.
pub fn directory_state(config: &PostgresConfig) -> DirectoryState {
    let is_empty = match fs::read_dir(&config.data_dir) {
        Ok(mut dir) => dir.all(|entry| entry.is_ok_and(|e| e.file_name() == "lost+found")),
        // A directory that cannot be read is not an empty one.
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if making_marker(config).exists() {
        return DirectoryState::Incomplete;
    }
    if is_empty {
        let beside = [ASIDE, COMPLETE].iter().any(|s| config.beside(s).exists());
        return if beside {
            DirectoryState::Lost
        } else {
            DirectoryState::Empty
        };
    }
    // pg_basebackup writes the control file last.
    let is_whole = directory_major(&config.data_dir).is_some()
        && config.data_dir.join("global/pg_control").exists();
    if !is_whole {
        DirectoryState::Incomplete
    } else if config.beside(REWINDING).exists() {
        DirectoryState::Rewinding
    } else {
        DirectoryState::Present
    }
}

/// To be called once when the agent starts, before anything else touches the directory: ends tools of an
/// agent that was killed, finishes a swap that was decided, and removes a copy that was not whole.
pub fn finish_interrupted(config: &PostgresConfig) -> Result<DirectoryState, PostgresError> {
    end_orphaned_tools(config);
    end_orphaned_script(&config.run_dir);
    set_unmade_aside(config)?;
    if config.beside(COMPLETE).exists() {
        swap_in(config)?;
    } else {
        remove_tree(&config.beside(NEW))?;
    }
    match directory_state(config) {
        DirectoryState::Lost => Err(PostgresError::Lost {
            data_dir: config.data_dir.clone(),
            beside: config.beside(ASIDE),
        }),
        other => Ok(other),
    }
}

/// Where a copy or a fresh cluster is to be made by a program that leaves tablespaces alone: not over data that has
/// some.
pub(crate) fn place_for_copy(config: &PostgresConfig) -> Result<PathBuf, PostgresError> {
    match tablespaces(&config.data_dir).first() {
        None => place_for_basebackup(config),
        Some(_) => Err(PostgresError::CannotSwap {
            path: config.data_dir.clone(),
            why: "it has tablespaces outside, and only basebackup replaces those".to_owned(),
        }),
    }
}

/// The same for a base backup: beside, if it can be swapped in; in place, if the place is empty and cannot be renamed
/// (a mount point).
pub(crate) fn place_for_basebackup(config: &PostgresConfig) -> Result<PathBuf, PostgresError> {
    match why_not_swappable(config) {
        None => {
            remove_tree(&config.beside(NEW))?;
            remove_file(&config.beside(COMPLETE))?;
            Ok(config.beside(NEW))
        }
        Some(_) if directory_state(config) == DirectoryState::Empty => {
            write_file(&making_marker(config), "")?;
            Ok(config.data_dir.clone())
        }
        Some(why) => Err(PostgresError::CannotSwap {
            path: config.data_dir.clone(),
            why,
        }),
    }
}

/// Beside the data directory where that can be written, else in memory: a reboot then loses it.
pub(crate) fn making_marker(config: &PostgresConfig) -> PathBuf {
    let parent = config.data_dir.parent().unwrap_or(Path::new("/"));
    match rustix::fs::access(parent, rustix::fs::Access::WRITE_OK) {
        Ok(()) => config.beside(MAKING),
        Err(_) => config.run_dir.join("making"),
    }
}

/// What an agent that was killed had begun to make in an empty place is renamed out of the way, where that
/// can be done; elsewhere the operator is told.
fn set_unmade_aside(config: &PostgresConfig) -> Result<(), PostgresError> {
    let marker = making_marker(config);
    if !marker.exists() || why_not_swappable(config).is_some() {
        return Ok(());
    }
    if config.data_dir.exists() {
        set_failed_aside(config)?;
    }
    remove_file(&marker)
}

/// Takes the data directory out of the way: renamed to `.failed`, or emptied where it cannot be renamed.
pub(crate) fn set_failed_aside(config: &PostgresConfig) -> Result<(), PostgresError> {
    if why_not_swappable(config).is_some() {
        return empty(&config.data_dir);
    }
    remove_tree(&config.beside(FAILED))?;
    rename(&config.data_dir, &config.beside(FAILED))?;
    sync_parent(config)
}

/// Removes what a directory holds, not itself: it may be a mount point.
pub(crate) fn empty(place: &Path) -> Result<(), PostgresError> {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&path)?;
        } else {
            remove_file(&path)?;
        }
    }
    Ok(())
}

fn why_not_swappable(config: &PostgresConfig) -> Option<String> {
    let parent = config.data_dir.parent().unwrap_or(Path::new("/"));
    let device = |path: &Path| fs::symlink_metadata(path).ok().map(|m| m.dev());
    if let (Some(here), Some(above)) = (device(&config.data_dir), device(parent))
        && here != above
    {
        return Some("it is a mount point".to_owned());
    }
    if fs::symlink_metadata(&config.data_dir).is_ok_and(|m| m.is_symlink()) {
        return Some("it is a symbolic link".to_owned());
    }
    if rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_err() {
        return Some(format!("{} is not writable", parent.display()));
    }
    None
}

/// Where the tablespaces of a directory lie: the targets of its links.
pub(crate) fn tablespaces(data_dir: &Path) -> Vec<PathBuf> {
    let links = fs::read_dir(data_dir.join("pg_tblspc"));
    let links = links.into_iter().flatten().flatten();
    links
        .filter_map(|link| fs::canonicalize(fs::read_link(link.path()).ok()?).ok())
        .filter(|target| !target.starts_with(data_dir))
        .collect()
}

/// Removes what this major version keeps in the tablespaces of the data directory, since a base backup wants to
/// find them empty. What is left in the directory must not be started from the first on: it is marked as half
/// rewound, which only a copy mends.
pub(crate) fn empty_tablespaces(config: &PostgresConfig) -> Result<(), PostgresError> {
    let targets = tablespaces(&config.data_dir);
    let major = directory_major(&config.data_dir).filter(|_| !targets.is_empty());
    let Some(major) = major else {
        return Ok(());
    };
    write_file(&config.beside(REWINDING), "")?;
    sync_parent(config)?;
    let own = format!("PG_{major}_");
    for target in targets {
        for entry in fs::read_dir(&target).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&own) {
                remove_tree(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Declares the copy whole and swaps it in. The copy's files must be on disk already.
pub(crate) fn complete_and_swap(config: &PostgresConfig) -> Result<(), PostgresError> {
    write_file(&config.beside(COMPLETE), "")?;
    sync_parent(config)?;
    swap_in(config)
}

fn sync_parent(config: &PostgresConfig) -> Result<(), PostgresError> {
    sync_directory(config.data_dir.parent().unwrap_or(Path::new("/")))
}

/// The swap, from whichever step it was left at.
fn swap_in(config: &PostgresConfig) -> Result<(), PostgresError> {
    let (new, aside) = (config.beside(NEW), config.beside(ASIDE));
    if new.exists() {
        if config.data_dir.exists() && fs::remove_dir(&config.data_dir).is_err() {
            // Not empty, so the old directory is still in place and what is aside is older.
            remove_tree(&aside)?;
            rename(&config.data_dir, &aside)?;
            sync_parent(config)?;
        }
        rename(&new, &config.data_dir)?;
        sync_parent(config)?;
    }
    remove_file(&config.beside(REWINDING))?;
    remove_file(&config.beside(COMPLETE))?;
    sync_parent(config)
}

fn rename(from: &Path, to: &Path) -> Result<(), PostgresError> {
    fs::rename(from, to).map_err(PostgresError::file("rename", from))
}

pub(crate) fn remove_tree(path: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PostgresError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Refuses a copy of `bytes` for which there is no room; of 0 bytes, nothing is known and nothing refused.
pub(crate) fn check_space(config: &PostgresConfig, bytes: u64) -> Result<(), PostgresError> {
    let parent = config.data_dir.parent().unwrap_or(Path::new("/"));
    let Ok(space) = rustix::fs::statvfs(parent) else {
        return Ok(());
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let needed = bytes / 100 * SPACE_PERCENT;
    if needed <= free {
        return Ok(());
    }
    Err(PostgresError::NoSpace {
        path: config.data_dir.clone(),
        needed,
        free,
    })
}

/// Bytes a tree takes up on disk; what cannot be read counts as nothing.
pub(crate) fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => tree_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Ends pg_basebackup, pg_rewind and initdb processes of this user that name this directory: they were
/// started by an agent that was killed, and would go on changing what the new one looks at.
fn end_orphaned_tools(config: &PostgresConfig) {
    let places = [config.data_dir.clone(), config.beside(NEW)];
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    for pid in entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
        let Some(id) = ProcessId::of(pid) else {
            continue;
        };
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line);
        let mut arguments = line.split('\0');
        let program = arguments
            .next()
            .map_or("", |a| a.rsplit('/').next().unwrap_or(a));
        let is_ours = arguments.any(|argument| {
            places
                .iter()
                .any(|place| argument.split('=').next_back() == place.to_str())
        });
        if TOOLS.contains(&program)
            && is_ours
            && let Some(pidfd) = id.open()
        {
            // Of another user it fails, and is none of ours.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::settings::tests::config;

    fn place(base: &Path) -> PostgresConfig {
        PostgresConfig {
            data_dir: base.join("data"),
            ..config()
        }
    }

    fn fill(dir: &Path, mark: &str) {
        fs::create_dir_all(dir.join("global")).unwrap();
        fs::write(dir.join("PG_VERSION"), "15\n").unwrap();
        fs::write(dir.join("global/pg_control"), mark).unwrap();
    }

    fn mark(dir: &Path) -> String {
        fs::read_to_string(dir.join("global/pg_control")).unwrap()
    }

    #[test]
    fn a_swap_interrupted_after_any_step_is_finished() {
        for steps in 0..4 {
            let base = tempfile::tempdir().unwrap();
            let config = place(base.path());
            fill(&config.data_dir, "old");
            fill(&config.beside(NEW), "new");
            fill(&config.beside(ASIDE), "older");
            fs::write(config.beside(COMPLETE), "").unwrap();
            if steps >= 1 {
                remove_tree(&config.beside(ASIDE)).unwrap();
            }
            if steps >= 2 {
                rename(&config.data_dir, &config.beside(ASIDE)).unwrap();
            }
            if steps >= 3 {
                rename(&config.beside(NEW), &config.data_dir).unwrap();
            }
            assert_eq!(
                finish_interrupted(&config).unwrap(),
                DirectoryState::Present
            );
            assert_eq!(mark(&config.data_dir), "new", "after {steps} steps");
            assert_eq!(mark(&config.beside(ASIDE)), "old", "after {steps} steps");
            assert!(!config.beside(NEW).exists() && !config.beside(COMPLETE).exists());
        }
    }

    #[test]
    fn a_copy_that_is_not_whole_is_removed_and_the_old_directory_stays() {
        let base = tempfile::tempdir().unwrap();
        let config = place(base.path());
        fill(&config.data_dir, "old");
        fill(&config.beside(NEW), "half");
        assert_eq!(
            finish_interrupted(&config).unwrap(),
            DirectoryState::Present
        );
        assert_eq!(mark(&config.data_dir), "old");
        assert!(!config.beside(NEW).exists());
    }

    #[test]
    fn a_missing_directory_beside_one_set_aside_is_not_an_empty_one() {
        let base = tempfile::tempdir().unwrap();
        let config = place(base.path());
        assert_eq!(directory_state(&config), DirectoryState::Empty);
        fill(&config.beside(ASIDE), "old");
        assert!(matches!(
            finish_interrupted(&config),
            Err(PostgresError::Lost { .. })
        ));
        fs::create_dir(&config.data_dir).unwrap();
        fs::write(config.data_dir.join("PG_VERSION"), "15").unwrap();
        assert_eq!(directory_state(&config), DirectoryState::Incomplete);
    }
}
