//! Keeps PostgreSQL from beginning a timeline whose number another promotion has taken.
//!
//! At the end of recovery PostgreSQL takes the first number of which it finds no history file in `pg_wal` or
//! the archive (`findNewestTimeLine` in xlogarchive.c and timeline.c). A promotion that nobody followed left
//! its file only on the member that made it. So the numbers below the wanted one get placeholders, for the
//! moment of the promotion only: their text names no ancestor, and a recovery that found one would refuse
//! it as no child of its own history.

use std::fs;
use std::path::{Path, PathBuf};

use trunkline_shared::cluster::Timeline;

use super::PostgresError;

/// First line of a placeholder: a comment to PostgreSQL, the mark by which it is found again here.
const MARK: &str = "# placeholder of trunkline-agent: this timeline was claimed elsewhere\n";

/// More numbers than this are never reserved: a wrong record must not fill the disk.
const RESERVE_LIMIT: u32 = 1000;

/// The step from one timeline to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineStep {
    /// The timeline the instance is on.
    pub from: Timeline,
    /// The timeline it is to begin.
    pub to: Timeline,
}

/// Makes placeholders for the numbers between the two, so that the next promotion begins the second.
pub(super) fn reserve(data_dir: &Path, step: TimelineStep) -> Result<(), PostgresError> {
    let lowest = (step.from.0 + 1).max(step.to.0.saturating_sub(RESERVE_LIMIT));
    for number in lowest..step.to.0 {
        let path = history_file(data_dir, number);
        if path.exists() {
            continue;
        }
        fs::write(&path, MARK).map_err(PostgresError::file("write", &path))?;
    }
    Ok(())
}

/// Removes every placeholder.
pub(super) fn release(data_dir: &Path) -> Result<(), PostgresError> {
    let folder = data_dir.join("pg_wal");
    let entries = fs::read_dir(&folder).map_err(PostgresError::file("read", &folder))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_history = path
            .extension()
            .is_some_and(|extension| extension == "history");
        if is_history && fs::read(&path).is_ok_and(|text| text == MARK.as_bytes()) {
            fs::remove_file(&path).map_err(PostgresError::file("remove", &path))?;
        }
    }
    Ok(())
}

fn history_file(data_dir: &Path, number: u32) -> PathBuf {
    data_dir
        .join("pg_wal")
        .join(format!("{number:08X}.history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_fill_the_gap_below_and_go_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pg_wal")).unwrap();
        let real = history_file(folder.path(), 3);
        fs::write(&real, "1\t0/3000000\tno recovery target specified\n").unwrap();
        let step = TimelineStep {
            from: Timeline(2),
            to: Timeline(6),
        };
        reserve(folder.path(), step).unwrap();
        let exists = |number| history_file(folder.path(), number).exists();
        assert!(!exists(2) && exists(3) && exists(4) && exists(5) && !exists(6));
        release(folder.path()).unwrap();
        assert!(exists(3) && !exists(4) && !exists(5));
    }
}
