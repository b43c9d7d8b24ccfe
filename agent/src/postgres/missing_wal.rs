//! Whether the upstream has removed the WAL that a replica needs: what its log says last.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use trunkline_shared::cluster::Lsn;

use super::PostgresConfig;

/// What the upstream says of a segment; the name follows.
const REQUESTED: &str = "requested WAL segment ";
const REMOVED: &str = " has already been removed";

/// So much of the log's end is looked at. The receiver says it every few seconds.
const TAIL_BYTES: u64 = 256 * 1024;

/// Sizes that a WAL segment can have: powers of two from 1 MB to 1 GB.
const SEGMENT_SHIFTS: std::ops::RangeInclusive<u32> = 20..=30;

/// Whether the log says of the segment that holds `at`, or begins there, that it is gone.
pub fn is_missing(config: &PostgresConfig, at: Lsn) -> bool {
    tail(&log_of(config)).is_some_and(|text| says(&text, at))
}

/// PostgreSQL's own collector may have taken the log over.
fn log_of(config: &PostgresConfig) -> PathBuf {
    let listed = std::fs::read_to_string(config.data_dir.join("current_logfiles"));
    let path = listed.ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("stderr "))?;
        Some(config.data_dir.join(line.trim()))
    });
    path.unwrap_or_else(|| config.log_file.clone())
}

fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let end = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn says(text: &str, at: Lsn) -> bool {
    let last = text
        .rsplit(REQUESTED)
        .next()
        .filter(|rest| rest.len() < text.len());
    let Some((name, rest)) = last.and_then(|rest| rest.split_at_checked(24)) else {
        return false;
    };
    rest.starts_with(REMOVED)
        && SEGMENT_SHIFTS
            .into_iter()
            .any(|shift| is_at(name, at, shift))
}

/// Whether segments of that size put `at` into the file of this name.
fn is_at(name: &str, at: Lsn, shift: u32) -> bool {
    let part = |range| u64::from_str_radix(name.get(range).unwrap_or_default(), 16).ok();
    let (Some(high), Some(low)) = (part(8..16), part(16..24)) else {
        return false;
    };
    let (high_of, low_of) = (at.0 >> 32, (at.0 & 0xffff_ffff) >> shift);
    (high, low) == (high_of, low_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment \
        000000010000000000000003 has already been removed\n";

    #[test]
    fn only_the_segment_that_is_needed_now_counts() {
        assert!(says(SAID, Lsn(0x0300_0060)));
        assert!(says(SAID, Lsn(0x0300_0000)));
        assert!(!says(
            "LOG:  started streaming WAL from primary at 0/3000000 on timeline 1\n",
            Lsn(0x0300_0000)
        ));
        let later =
            format!("{SAID}LOG:  restored log file \"000000010000000000000003\" from archive\n");
        assert!(!says(&later, Lsn(0x0900_0000)), "the archive had it");
    }
}
