//! Where lines go: standard error, or files of a limited size and number.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Standard error.
    #[default]
    StandardError,
    /// A file, begun anew when it is full.
    Files(LogFiles),
}

/// The newest file and the ones before it: `NAME`, `NAME.1`, `NAME.2` and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFiles {
    /// The newest.
    pub path: PathBuf,
    /// Bytes after which another one is begun; 0 for never.
    pub size: u64,
    /// How many older ones are kept; with 0 the newest grows without end, as Python's loggers have it.
    pub kept: u32,
    /// Their permissions; by the umask if absent.
    pub mode: Option<u32>,
}

/// An open output.
#[derive(Debug)]
pub(super) enum Open {
    StandardError,
    Files {
        told: LogFiles,
        file: File,
        written: u64,
    },
}

impl Open {
    /// Opens it; what is there is continued.
    pub(super) fn new(output: &Output) -> io::Result<Self> {
        match output {
            Output::StandardError => Ok(Self::StandardError),
            Output::Files(told) => {
                let file = open(told)?;
                Ok(Self::Files {
                    told: told.clone(),
                    written: file.metadata()?.len(),
                    file,
                })
            }
        }
    }

    #[cfg(test)]
    pub(super) fn of_pipe(pipe: io::PipeWriter) -> Self {
        Self::Files {
            told: LogFiles {
                path: PathBuf::new(),
                size: 0,
                kept: 0,
                mode: None,
            },
            file: File::from(std::os::fd::OwnedFd::from(pipe)),
            written: 0,
        }
    }

    /// Writes a line with its end.
    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::StandardError => io::stderr().write_all(line.as_bytes()),
            Self::Files {
                told,
                file,
                written,
            } => {
                let length = line.len() as u64;
                let is_full = told.size > 0 && told.kept > 0 && *written + length > told.size;
                if is_full && *written > 0 {
                    shift(told)?;
                    *file = open(told)?;
                    *written = 0;
                }
                file.write_all(line.as_bytes())?;
                *written += length;
                Ok(())
            }
        }
    }
}

fn open(told: &LogFiles) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&told.path)?;
    if let Some(mode) = told.mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

/// Each becomes the next older one; the oldest is replaced.
fn shift(told: &LogFiles) -> io::Result<()> {
    for age in (1..told.kept).rev() {
        rename(&aged(&told.path, age), &aged(&told.path, age + 1))?;
    }
    rename(&told.path, &aged(&told.path, 1))
}

/// One that is not there yet is none that could be lost.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn aged(path: &Path, age: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn a_full_file_is_kept_and_the_oldest_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("patroni.log");
        let told = LogFiles {
            path: path.clone(),
            size: 8,
            kept: 2,
            mode: Some(0o640),
        };
        let output = Output::Files(told.clone());
        let mut open = Open::new(&output).unwrap();
        for line in [
            "one\n",
            "two\n",
            "three\n",
            "four\n",
            "longer than a file\n",
            "end\n",
        ] {
            open.write(line).unwrap();
        }
        assert_eq!(read(&path), "end\n");
        assert_eq!(read(&aged(&path, 1)), "longer than a file\n");
        assert_eq!(read(&aged(&path, 2)), "four\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        // Another start continues it.
        drop(open);
        let mut open = Open::new(&output).unwrap();
        open.write("go\n").unwrap();
        assert_eq!(read(&path), "end\ngo\n");
        // Without older ones it grows.
        let forever = Output::Files(LogFiles { kept: 0, ..told });
        let mut open = Open::new(&forever).unwrap();
        open.write("another line\n").unwrap();
        assert_eq!(read(&path), "end\ngo\nanother line\n");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let output = Output::Files(LogFiles {
            path: PathBuf::from("/nowhere/patroni.log"),
            size: 0,
            kept: 0,
            mode: None,
        });
        assert!(Open::new(&output).is_err());
    }
}
