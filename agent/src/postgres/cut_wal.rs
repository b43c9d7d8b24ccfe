//! WAL that a replica received beyond the point where the leader's history left its timeline.
//!
//! PostgreSQL compares a new timeline's beginning with what it has *replayed*, and then reads on in the segments that
//! it has, whatever part of them that timeline shares (`rescanLatestTimeLine`, `XLogFileReadAnyTLI`). Whole records beyond
//! the fork would be replayed, and the server would call itself one of the new timeline. pg_rewind sees nothing to do, for
//! the control file says how far the data goes. So the rest is taken away before the start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use trunkline_shared::cluster::timeline::TimelineEnd;

use super::control_data::ControlState;
use super::files::{remove_file, sync_directory, write_file};
use super::rewind::{
    WAL_ASIDE, WAL_PAGE_BYTES, copy_wal_aside, page_address, segment_number, segments_from,
};
use super::{ControlData, Postgres, PostgresConfig, PostgresError, ServerStatus};

/// Bytes read or written at once.
const CHUNK: usize = 64 * 1024;

/// In a data directory: its pages may be newer than its control file says, for it was a primary's that crashed when it was
/// started as a replica, and has not read all its WAL since. PostgreSQL then needs all that lies there. Until it has, it is
/// pointed at nobody and at no archive: it may reach beyond the point where a new leader began, and its receiver would call
/// flushed to that one what is of the history before, by which commits would be released (seen on 15).
const UNPROVED: &str = "trunkline.wal-needed";

impl Postgres {
    /// Takes WAL of these timelines beyond their ends away from the stopped instance; a copy of it is set aside, as before
    /// a rewind. Nothing is written where there is none, nor where PostgreSQL may need it: pages of what a crashed primary
    /// had reach as far as its WAL, and a base backup is whole only with what was written during it.
    ///
    /// # Errors
    ///
    /// A postmaster works on the directory, or a file cannot be read or written.
    pub async fn cut_wal(&self, ends: &[TimelineEnd]) -> Result<(), PostgresError> {
        self.must_be_stopped()?;
        let config = self.config();
        let data = self.control_data().await?;
        if let Some(why) = why_it_is_needed(&config, &data) {
            tracing::info!(why, "WAL that the leader's history does not have is left");
            return Ok(());
        }
        let segment_bytes = data.wal_segment_bytes;
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

    /// Before the files of a replica are written: what a primary left that did not stop cleanly is marked until it has read all.
    /// Returns whether it is.
    pub(super) fn mark_unproved(
        &self,
        config: &PostgresConfig,
        data: &ControlData,
    ) -> Result<bool, PostgresError> {
        let mark = config.data_dir.join(UNPROVED);
        let is_clean = data.state == ControlState::ShutDown;
        let is_backup = config.data_dir.join("backup_label").exists();
        let is_marked = mark.exists();
        let needs_mark = !data.state.is_in_recovery() && !is_clean && !is_backup;
        if needs_mark && !is_marked {
            write_file(&mark, "")?;
            sync_directory(&config.data_dir)?;
        }
        // One may also have come with a copy of another member's data.
        self.may_be_unproved.store(true, Ordering::Relaxed);
        Ok(needs_mark || is_marked)
    }

    /// A replica that asks for WAL, or waits for more, has read all that lay there: its control file says how far its pages
    /// go from then on, and its agent compares how far it reaches before it points it at anybody.
    pub(super) async fn note_proved(&self, status: &ServerStatus) {
        let has_read = !status.is_in_recovery || status.received.is_some_and(|lsn| lsn.0 > 0);
        if !has_read || !self.may_be_unproved.load(Ordering::Relaxed) {
            return;
        }
        let mark = self.config().data_dir.join(UNPROVED);
        let was_marked = mark.exists();
        let removed = match remove_file(&mark) {
            Ok(()) if was_marked => {
                self.apply_settings(self.is_paused.load(Ordering::Relaxed))
                    .await
            }
            other => other,
        };
        match removed {
            Ok(()) => self.may_be_unproved.store(false, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "the mark of unread WAL stays, or its settings"),
        }
    }
}

fn why_it_is_needed(config: &PostgresConfig, data: &ControlData) -> Option<&'static str> {
    let is_there = |name: &str| config.data_dir.join(name).exists();
    if is_there("backup_label") || data.is_end_of_backup_required {
        Some("a base backup is not replayed to its end")
    } else if !data.state.is_in_recovery() || is_there(UNPROVED) {
        Some("a primary's, which has not read all of it")
    } else {
        None
    }
}

fn cut(from: &Path, to: &Path, end: &TimelineEnd, segment_bytes: u64) -> Result<(), PostgresError> {
    let first = end.end.0 / segment_bytes;
    let within = end.end.0 % segment_bytes;
    let mut beyond = segments_from(from, end.timeline, first, segment_bytes)?;
    let number = |name: &String| segment_number(name, end.timeline, segment_bytes);
    let is_parted = within > 0 && beyond.first().and_then(number) == Some(first);
    if is_parted {
        let path = from.join(&beyond[0]);
        let begin = first * segment_bytes;
        let goes_on = goes_on(&path, begin, within).map_err(PostgresError::file("read", &path))?;
        if !goes_on && beyond.len() == 1 {
            return Ok(());
        }
    }
    if beyond.is_empty() {
        return Ok(());
    }
    if let Err(error) = copy_wal_aside(from, to, &beyond, segment_bytes) {
        // Without the start the member would stay away for want of a copy that nobody may ever look at.
        tracing::warn!(%error, "WAL that the leader's history does not have is taken away without a copy");
    }
    let segments = beyond.len();
    if is_parted {
        let path = from.join(beyond.remove(0));
        clear(&path, within).map_err(PostgresError::file("write", &path))?;
    }
    for name in &beyond {
        let path = from.join(name);
        fs::remove_file(&path).map_err(PostgresError::file("remove", &path))?;
    }
    sync_directory(from)?;
    tracing::info!(
        timeline = %end.timeline,
        beyond = %end.end,
        segments,
        "took away WAL that the leader's history does not have; its copy is beside the data directory"
    );
    Ok(())
}

/// Whether WAL stands in a segment, which begins with the byte `begin` of it, from `offset` on: in the rest of that page, which
/// was written whole, or in the next page.
fn goes_on(segment: &Path, begin: u64, offset: u64) -> io::Result<bool> {
    let next = offset.next_multiple_of(WAL_PAGE_BYTES);
    let mut file = File::open(segment)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut rest = Vec::new();
    file.take(next - offset).read_to_end(&mut rest)?;
    let has_bytes = rest.iter().any(|byte| *byte != 0);
    Ok(has_bytes || page_address(segment, next)? == Some(begin + next))
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
    use std::path::PathBuf;

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

    /// Written to its end, as the segment of that number.
    fn full(number: u64) -> Vec<u8> {
        let mut bytes = vec![7; SEGMENT as usize];
        for page in 0..SEGMENT / WAL_PAGE_BYTES {
            let at = (page * WAL_PAGE_BYTES) as usize;
            let address = number * SEGMENT + page * WAL_PAGE_BYTES;
            bytes[at + 8..at + 16].copy_from_slice(&address.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn what_lies_beyond_the_end_is_gone_and_a_copy_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let (wal, aside) = (dir.path().join("pg_wal"), dir.path().join("aside"));
        fs::create_dir(&wal).expect("a folder");
        let names = [
            ("000000010000000000000002", 2),
            ("000000010000000000000003", 3),
            ("000000010000000000000004", 4),
            // Recycled: it holds what it held as another one.
            ("000000010000000000000005", 1),
            ("000000020000000000000003", 3),
        ];
        for (name, number) in names {
            fs::write(wal.join(name), full(number)).expect("a file");
        }
        fs::write(wal.join("00000002.history"), "1").expect("a file");
        cut(&wal, &aside, &end(3 * SEGMENT + 100), SEGMENT).expect("cut");
        let whole = SEGMENT as usize;
        let left = [
            (names[0].0, whole),
            (names[1].0, 100),
            (names[3].0, whole),
            ("00000002.history", 1),
            (names[4].0, whole),
        ];
        let left = left.map(|(name, used)| (name.to_owned(), used));
        assert_eq!(segments(&wal), left);
        let kept = [
            (names[1].0.to_owned(), whole),
            (names[2].0.to_owned(), whole),
        ];
        assert_eq!(segments(&aside), kept);
        // Nothing is beyond it any more, and the copy is not replaced by one of nothing.
        cut(&wal, &aside, &end(3 * SEGMENT + 100), SEGMENT).expect("cut");
        assert_eq!(segments(&aside), kept);
        // Cut short, it is done again: what was cleared already does not take the copy's place.
        fs::write(wal.join(names[2].0), full(4)).expect("a file");
        cut(&wal, &aside, &end(3 * SEGMENT + 100), SEGMENT).expect("cut");
        assert_eq!(segments(&aside), kept);
        assert_eq!(segments(&wal), left);
        // An end between two segments leaves nothing of the second.
        cut(&wal, &aside, &end(3 * SEGMENT), SEGMENT).expect("cut");
        assert_eq!(segments(&wal).len(), 4);
    }

    #[test]
    fn a_page_says_whether_wal_goes_on_in_it_or_behind_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("segment");
        let (page, mut bytes) = (WAL_PAGE_BYTES as usize, full(3));
        // The page of the end was written alone; what follows is of another segment.
        bytes[100..page].fill(0);
        for at in (page..bytes.len()).step_by(page) {
            bytes[at + 8..at + 16].copy_from_slice(&1_u64.to_ne_bytes());
        }
        let goes_on = |bytes: &[u8], offset| {
            fs::write(&path, bytes).expect("a file");
            super::goes_on(&path, 3 * SEGMENT, offset).expect("an answer")
        };
        assert!(!goes_on(&bytes, 100));
        assert!(goes_on(&bytes, 99));
        assert!(!goes_on(&bytes, WAL_PAGE_BYTES));
        bytes[page + 8..page + 16].copy_from_slice(&(3 * SEGMENT + WAL_PAGE_BYTES).to_ne_bytes());
        assert!(goes_on(&bytes, 100) && goes_on(&bytes, WAL_PAGE_BYTES));
    }
}
