//! Keeps PostgreSQL from beginning a timeline whose number another promotion has taken, and its followers from
//! missing the number that was left out.
//!
//! At the end of recovery PostgreSQL takes the first number of which it finds no history file in `pg_wal` or
//! the archive (`findNewestTimeLine` in xlogarchive.c and timeline.c). A promotion that nobody followed left
//! its file only on the member that made it. So the numbers below the wanted one get placeholders.
//!
//! They stay on the new leader: before a standby streams from it, its receiver fetches the history file of every
//! number between its own timeline and the leader's (`WalRcvFetchTimeLineHistoryFiles`), and one that the leader
//! cannot open ends the connection, again and again. (A clone lacks them, and lacks as well the WAL of whoever
//! would ask.)
//!
//! A placeholder names no ancestor. A standby that has it without a newer file behind it takes it for no
//! child of its history: while it runs it asks its leader again, but it would not start. So placeholders above
//! every real file go before a start. With `archive_mode=always` a standby archives what its receiver fetched, placeholders
//! too.

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

/// Removes the placeholders above every real history file.
pub(super) fn settle(data_dir: &Path) -> Result<(), PostgresError> {
    let folder = data_dir.join("pg_wal");
    let entries = fs::read_dir(&folder).map_err(PostgresError::file("read", &folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "history"));
    // The names are numbers of eight digits.
    files.sort_unstable_by(|a, b| b.cmp(a));
    for path in files {
        let text = fs::read(&path).map_err(PostgresError::file("read", &path))?;
        // One that a loss of power left empty names no ancestor either; PostgreSQL's own always does.
        if text != MARK.as_bytes() && !text.iter().all(u8::is_ascii_whitespace) {
            break;
        }
        fs::remove_file(&path).map_err(PostgresError::file("remove", &path))?;
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
    fn placeholders_fill_the_gap_and_stay_below_a_real_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number| history_file(folder.path(), number);
        fs::create_dir(folder.path().join("pg_wal")).unwrap();
        fs::write(path(3), "1\t0/3000000\tno recovery target specified\n").unwrap();
        let step = TimelineStep {
            from: Timeline(2),
            to: Timeline(6),
        };
        let exist = || Vec::from_iter((1..8).filter(|number| path(*number).exists()));
        reserve(folder.path(), step).unwrap();
        assert_eq!(exist(), [3, 4, 5]);
        settle(folder.path()).unwrap();
        assert_eq!(exist(), [3], "nobody was promoted");

        reserve(folder.path(), step).unwrap();
        fs::write(path(6), "2\t0/4000000\tno recovery target specified\n").unwrap();
        settle(folder.path()).unwrap();
        assert_eq!(exist(), [3, 4, 5, 6]);
    }
}
