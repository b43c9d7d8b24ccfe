//! A wall clock of a node's own, which can be set: libfaketime, loaded into the agent and so into the PostgreSQL that it
//! starts, reads from a file by how much theirs differs.
//!
//! It reaches whoever asks the C library: all of PostgreSQL. The agent and the router ask the kernel past it, and only for
//! what people read.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::place::Place;

/// The variant for programs with threads: it holds signals back while it reads, and PostgreSQL asks for the time in their
/// handlers.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
/// Where distributions keep libraries, by machine or not.
const HOMES: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];
/// Where libfaketime keeps what programs share, by a name of its own.
const SHARED: &str = "/dev/shm";
/// More than what it shares.
const SHARED_BYTES: usize = 4096;
/// The bytes of a semaphore of the C library that nobody holds.
const FREE: [u8; 32] = {
    let mut bytes = [0; 32];
    bytes[0] = 1;
    bytes
};

/// The clock of one node.
#[derive(Clone, Debug)]
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
    shared: String,
}

/// Whether clocks can be set here.
pub fn can_be_set() -> bool {
    library().is_some() && Path::new(SHARED).is_dir()
}

fn library() -> Option<PathBuf> {
    let below = |home: &str| {
        let folders = fs::read_dir(home).into_iter().flatten().flatten();
        let by_machine = folders.map(|entry| entry.path().join(LIBRARY));
        by_machine
            .chain([Path::new(home).join(LIBRARY)])
            .find(|file| file.is_file())
    };
    HOMES.into_iter().find_map(below)
}

impl WallClock {
    /// The clock of this node, which is right at first.
    pub fn new(place: &Place, node: &str) -> Result<WallClock> {
        let library = library().context("libfaketime is missing: apt-get install faketime")?;
        // Made here: what libfaketime makes itself outlives a killed program, by a name that nobody knows.
        let shared = name_of(place.number());
        let [semaphore, memory] = files(place.number());
        fs::write(&semaphore, FREE)
            .with_context(|| format!("cannot write {}", semaphore.display()))?;
        fs::write(&memory, [0; SHARED_BYTES])
            .with_context(|| format!("cannot write {}", memory.display()))?;
        place.give(&semaphore)?;
        place.give(&memory)?;
        let clock = WallClock {
            library,
            file: place.folder().join(format!("{node}.clock")),
            shared: format!("/{shared} /{shared}"),
        };
        place.write(&clock.file, &difference(0))?;
        Ok(clock)
    }

    /// What a program's environment must have to go by it. Times of files and what only counts from now stay as they are.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_SHARED", self.shared.clone()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Sets it to so many seconds from the machine's.
    pub fn set(&self, seconds: i64) -> Result<()> {
        let file = File::options().write(true).open(&self.file);
        file.and_then(|mut file| file.write_all(difference(seconds).as_bytes()))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// Of one length always, so that nobody reads half of another one.
fn difference(seconds: i64) -> String {
    format!("{seconds:+06}s\n")
}

fn name_of(number: u8) -> String {
    format!("trunkline-{number}-clocks")
}

fn files(number: u8) -> [PathBuf; 2] {
    let name = name_of(number);
    [format!("sem.{name}"), name].map(|name| Path::new(SHARED).join(name))
}

/// Removes what the clocks of one stack shared.
pub fn forget(number: u8) {
    for file in files(number) {
        fs::remove_file(file).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_written_in_the_same_room() {
        let texts = [0, 3600, -3600].map(difference);
        assert_eq!(texts, ["+00000s\n", "+03600s\n", "-03600s\n"]);
    }
}
