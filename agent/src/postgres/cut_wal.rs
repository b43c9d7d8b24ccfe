//! WAL that a replica received beyond the point where the leader's history left its timeline.
//!
//! PostgreSQL compares a new timeline's beginning with what it has *replayed*, and then reads on in the segments that
//! it has, whatever part of them that timeline shares (`rescanLatestTimeLine`, `XLogFileReadAnyTLI`). Whole records beyond
//! the fork would be replayed, and the server would call itself one of the new timeline. pg_rewind sees nothing to do, for
//! the control file says how far the data goes. So the rest is taken away before the start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use trunkline_shared::cluster::timeline::TimelineEnd;

use super::files::sync_directory;
use super::rewind::{WAL_ASIDE, copy_wal_aside, segment_number};
use super::{Postgres, PostgresError};

/// Bytes read or written at once.
const CHUNK: usize = 64 * 1024;

impl Postgres {
    /// Takes WAL of these timelines beyond their ends away from the stopped instance; a copy of it is set aside, as before
    /// a rewind. Nothing is written where there is none.
    ///
    /// # Errors
    ///
    /// A postmaster works on the directory, or a file cannot be read or written.
    pub async fn cut_wal(&self, ends: &[TimelineEnd]) -> Result<(), PostgresError> {
        self.must_be_stopped()?;
        let config = self.config();
        let segment_bytes = self.control_data().await?.wal_segment_bytes;
        let (from, to) = (config.data_dir.join("pg_wal"), config.beside(WAL_ASIDE));
        let ends = ends.to_vec();
        let cutting = move || {
            ends.iter()
                .try_for_each(|end| cut(&from, &to, end, segment_bytes))
        };
        match tokio::task::spawn_blocking(cutting).await {
            Ok(result) => result,
            // Nothing is started on what may be cut in part.
            Err(error) => Err(PostgresError::Unreadable {
                what: "the WAL that is to be taken away",
                text: error.to_string(),
            }),
        }
    }
}

fn cut(from: &Path, to: &Path, end: &TimelineEnd, segment_bytes: u64) -> Result<(), PostgresError> {
    let first = end.end.0 / segment_bytes;
    let within = end.end.0 % segment_bytes;
    let entries = fs::read_dir(from).map_err(PostgresError::file("read", from))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let number = |name: &String| segment_number(name, end.timeline, segment_bytes);
    let beyond = names.filter(|name| number(name).is_some_and(|n| n >= first));
    let (parted, later): (Vec<_>, Vec<_>) =
        beyond.partition(|name| within > 0 && number(name) == Some(first));
    let parted: Vec<PathBuf> = parted.iter().map(|name| from.join(name)).collect();
    let mut is_cut = !later.is_empty();
    for path in &parted {
        is_cut |= has_bytes(path, within).map_err(PostgresError::file("read", path))?;
    }
    if !is_cut {
        return Ok(());
    }
    copy_wal_aside(from, to, end.timeline, first, segment_bytes)?;
    for path in &parted {
        clear(path, within).map_err(PostgresError::file("write", path))?;
    }
    for name in &later {
        let path = from.join(name);
        fs::remove_file(&path).map_err(PostgresError::file("remove", &path))?;
    }
    sync_directory(from)?;
    tracing::info!(
        timeline = %end.timeline,
        beyond = %end.end,
        segments = parted.len() + later.len(),
        "took away WAL that the leader's history does not have; a copy is beside the data directory"
    );
    Ok(())
}

/// Whether anything but zeros stands from `offset` on.
fn has_bytes(path: &Path, offset: u64) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(false),
            read if chunk[..read].iter().any(|byte| *byte != 0) => return Ok(true),
            _ => {}
        }
    }
}

/// Zeros from `offset` to the end, as PostgreSQL leaves them in the first segment of a new timeline.
fn clear(path: &Path, offset: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let mut left = file.metadata()?.len().saturating_sub(offset);
    file.seek(SeekFrom::Start(offset))?;
    let zeros = vec![0; CHUNK];
    while left > 0 {
        let part = left.min(CHUNK as u64) as usize;
        file.write_all(&zeros[..part])?;
        left -= part as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::{Lsn, Timeline};

    use super::*;

    const SEGMENT: u64 = 1 << 20;

    fn end(lsn: u64) -> TimelineEnd {
        TimelineEnd {
            timeline: Timeline(1),
            end: Lsn(lsn),
        }
    }

    fn segments(dir: &Path) -> Vec<(String, usize)> {
        let entries = fs::read_dir(dir).expect("a folder").flatten();
        let used = |path: PathBuf| {
            let bytes = fs::read(path).expect("a file");
            bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |at| at + 1)
        };
        let mut all: Vec<_> = entries
            .map(|e| (e.file_name().to_string_lossy().into_owned(), used(e.path())))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn what_lies_beyond_the_end_is_gone_and_a_copy_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let (wal, aside) = (dir.path().join("pg_wal"), dir.path().join("aside"));
        fs::create_dir(&wal).expect("a folder");
        let names = [
            "000000010000000000000002",
            "000000010000000000000003",
            "000000010000000000000004",
            "000000020000000000000003",
            "00000002.history",
        ];
        for name in names {
            fs::write(wal.join(name), vec![7; SEGMENT as usize]).expect("a file");
        }
        cut(&wal, &aside, &end(3 * SEGMENT + 100), SEGMENT).expect("cut");
        let full = SEGMENT as usize;
        let left = [
            (names[0], full),
            (names[1], 100),
            (names[4], full),
            (names[3], full),
        ];
        let left = left.map(|(name, used)| (name.to_owned(), used));
        assert_eq!(segments(&wal), left);
        let kept = [(names[1].to_owned(), full), (names[2].to_owned(), full)];
        assert_eq!(segments(&aside), kept);
        // Nothing is beyond it any more, and the copy is not replaced by one of nothing.
        cut(&wal, &aside, &end(3 * SEGMENT + 100), SEGMENT).expect("cut");
        assert_eq!(segments(&aside), kept);
        // An end between two segments leaves nothing of the second.
        cut(&wal, &aside, &end(3 * SEGMENT), SEGMENT).expect("cut");
        assert_eq!(segments(&wal).len(), 3);
    }
}
