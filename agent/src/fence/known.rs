//! What the fence is to know of its instance before it fires: a file in `run_dir`, written by the agent.
//!
//! A disk that hangs would hold up a fence that looks for the data directory only then. So the agent looks,
//! when it arms and whenever another postmaster runs, and the fence reads memory and `/proc` alone. Without
//! the file, or with a damaged one, the fence looks for itself.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::postgres::postmaster_pid::Segment;
use crate::postgres::scan::{Directory, read_postmaster_pid};

/// The file.
const KNOWN_FILE: &str = "fence.known";

/// An instance as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its data directory.
    pub directory: Directory,
    /// The shared memory of its postmaster; `None` before one has written it down.
    pub segment: Option<Segment>,
}

impl Known {
    /// Looks at the disk; `None` if the directory is not there, so that nothing is known of it.
    pub fn look(data_dir: &Path) -> Option<Self> {
        let directory = Directory::new(data_dir);
        directory.identity?;
        Some(Self {
            directory,
            segment: read_postmaster_pid(data_dir).and_then(|file| file.segment),
        })
    }

    /// Writes it for the fence.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let fresh = run_dir.join("fence.known.new");
        fs::write(&fresh, self.encode())?;
        fs::rename(&fresh, run_dir.join(KNOWN_FILE))
    }

    /// Reads it; `None` if there is none or it is damaged.
    pub(super) fn read(run_dir: &Path) -> Option<Self> {
        Self::decode(&fs::read(run_dir.join(KNOWN_FILE)).ok()?)
    }

    /// One line of numbers, then the path to the end.
    fn encode(&self) -> Vec<u8> {
        let (device, inode) = self.directory.identity.unwrap_or_default();
        let mut line = format!("{device} {inode}");
        if let Some(segment) = self.segment {
            line.push_str(&format!(" {} {}", segment.key, segment.id));
        }
        let mut bytes = line.into_bytes();
        bytes.push(b'\n');
        bytes.extend(self.directory.path.as_os_str().as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, path) = bytes.split_at(end);
        let line = std::str::from_utf8(line).ok()?;
        let numbers: Option<Vec<u64>> = line.split(' ').map(|n| n.parse().ok()).collect();
        let (identity, segment) = match numbers?.as_slice() {
            [device, inode] => ((*device, *inode), None),
            [device, inode, key, id] => ((*device, *inode), Some(Segment { key: *key, id: *id })),
            _ => return None,
        };
        let path = PathBuf::from(OsString::from_vec(path.get(1..)?.to_owned()));
        path.is_absolute().then_some(Self {
            directory: Directory {
                path,
                identity: Some(identity),
            },
            segment,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_with_and_without_a_segment_and_a_damaged_one_does_not() {
        let data = tempfile::tempdir().unwrap();
        let run = tempfile::tempdir().unwrap();
        assert_eq!(Known::read(run.path()), None);
        assert_eq!(Known::look(&data.path().join("none")), None);
        let mut known = Known::look(data.path()).unwrap();
        assert_eq!(known.segment, None);
        for segment in [None, Some(Segment { key: 7, id: 9 })] {
            known.segment = segment;
            known.write(run.path()).unwrap();
            assert_eq!(Known::read(run.path()).as_ref(), Some(&known));
        }
        for damaged in [&b""[..], b"1 2", b"1 2 3\n/x", b"a b\n/x", b"1 2\nx"] {
            assert_eq!(Known::decode(damaged), None);
        }
    }
}
