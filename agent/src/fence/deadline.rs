//! The deadline as bytes: what the agent writes and the fence reads (pure but for the two functions that
//! touch the file).
//!
//! The file is replaced by a rename, so a reader sees the old or the new one and never a mixture. If it
//! cannot be written (memory full), the old, earlier deadline stays: that errs on the safe side.

use std::fs;
use std::io;
use std::path::Path;

use trunkline_shared::cluster::Moment;

use super::DEADLINE_FILE;

/// Until when the instance may accept writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The instance is dead, in recovery, or in maintenance: nothing to fence.
    Disarmed,
    /// Every server process is killed at this moment unless it moves.
    Armed(Moment),
}

/// Length of a heartbeat stamp.
pub(crate) const STAMP_BYTES: usize = 38;

/// FNV-1a: enough to tell a whole line from garbage; nobody attacks a file only this user can write.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn with_checksum(text: &str) -> String {
    format!("{text} {:016x}\n", checksum(text))
}

fn checked(line: &str) -> Option<&str> {
    let (text, sum) = line.strip_suffix('\n')?.rsplit_once(' ')?;
    (u64::from_str_radix(sum, 16) == Ok(checksum(text))).then_some(text)
}

impl Deadline {
    fn encode(self) -> String {
        match self {
            Self::Disarmed => with_checksum("disarmed"),
            Self::Armed(at) => with_checksum(&format!("armed {}", at.0)),
        }
    }

    fn decode(line: &str) -> Option<Self> {
        match checked(line)?.split_once(' ') {
            None => checked(line)
                .filter(|t| *t == "disarmed")
                .map(|_| Self::Disarmed),
            Some(("armed", nanos)) => nanos.parse().ok().map(|n| Self::Armed(Moment(n))),
            Some(_) => None,
        }
    }
}

/// Reads the deadline; `None` if there is no readable one.
pub(crate) fn read(run_dir: &Path) -> Option<Deadline> {
    Deadline::decode(&fs::read_to_string(run_dir.join(DEADLINE_FILE)).ok()?)
}

/// Replaces the deadline.
pub(crate) fn write(run_dir: &Path, deadline: Deadline) -> io::Result<()> {
    let fresh = run_dir.join("deadline.new");
    fs::write(&fresh, deadline.encode())?;
    fs::rename(&fresh, run_dir.join(DEADLINE_FILE))
}

/// A heartbeat: fixed length, written in place by one call.
pub(crate) fn stamp(now: Moment) -> [u8; STAMP_BYTES] {
    let mut bytes = [b' '; STAMP_BYTES];
    let line = with_checksum(&format!("{:020}", now.0));
    for (to, from) in bytes.iter_mut().zip(line.bytes()) {
        *to = from;
    }
    bytes
}

/// Reads a heartbeat; `None` if it is torn or missing.
pub(crate) fn read_stamp(bytes: &[u8]) -> Option<Moment> {
    let line = std::str::from_utf8(bytes).ok()?;
    checked(line)?.parse().ok().map(Moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_reads_back_and_a_damaged_one_does_not() {
        for deadline in [Deadline::Disarmed, Deadline::Armed(Moment(123_456_789))] {
            let line = deadline.encode();
            assert_eq!(Deadline::decode(&line), Some(deadline));
            for cut in 0..line.len() {
                assert_eq!(Deadline::decode(&line[..cut]), None, "cut at {cut}");
            }
            assert_eq!(Deadline::decode(&line.replace('a', "b")), None);
        }
    }

    #[test]
    fn a_stamp_has_its_fixed_length_and_reads_back() {
        for nanos in [0, 1, u64::MAX] {
            let bytes = stamp(Moment(nanos));
            assert_eq!(bytes.last(), Some(&b'\n'));
            assert_eq!(read_stamp(&bytes), Some(Moment(nanos)));
        }
    }
}
