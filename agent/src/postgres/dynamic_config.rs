//! Patroni's `patroni.dynamic.json`: the cluster's configuration as this member saw it last, beside its data.

use std::io;
use std::path::{Path, PathBuf};

use super::PostgresError;
use super::files::{read_text, remove_file, write_file};

const FILE: &str = "patroni.dynamic.json";

/// The file of this data directory.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// What is kept there; `None` if nothing is.
pub fn read(data_dir: &Path) -> Result<Option<String>, PostgresError> {
    let text = read_text(&path(data_dir))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Keeps this text. Only where there is a data directory: one that is to be made must be empty.
pub fn write(data_dir: &Path, text: &str) -> Result<(), PostgresError> {
    if !data_dir.join("PG_VERSION").exists() {
        let absent = io::Error::from(io::ErrorKind::NotFound);
        return Err(PostgresError::file("write", &path(data_dir))(absent));
    }
    write_file(&path(data_dir), text)
}

/// What came with data of another server is that server's.
pub(crate) fn forget(data_dir: &Path) -> Result<(), PostgresError> {
    remove_file(&path(data_dir))
}
