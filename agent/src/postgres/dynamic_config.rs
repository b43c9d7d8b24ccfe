//! Patroni's `patroni.dynamic.json`: the cluster's configuration as this member saw it last, beside its data; and
//! `trunkline.members.json` and `trunkline.dcs.json`: whom it knew, and how far it saw the DCS.

use std::io;
use std::path::{Path, PathBuf};

use super::PostgresError;
use super::files::{read_text, remove_file, write_file};

const FILE: &str = "patroni.dynamic.json";

const MEMBERS: &str = "trunkline.members.json";

const STORE: &str = "trunkline.dcs.json";

/// The file of this data directory.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// What is kept there; `None` if nothing is.
pub fn read(data_dir: &Path) -> Result<Option<String>, PostgresError> {
    let text = read_text(&path(data_dir))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// The members that are kept there, as text; `None` if none are.
pub fn read_members(data_dir: &Path) -> Result<Option<String>, PostgresError> {
    let text = read_text(&data_dir.join(MEMBERS))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Keeps these members.
pub fn write_members(data_dir: &Path, text: &str) -> Result<(), PostgresError> {
    keep(data_dir, &data_dir.join(MEMBERS), text)
}

/// What is kept there of the DCS, as text; `None` if nothing is.
pub fn read_store(data_dir: &Path) -> Result<Option<String>, PostgresError> {
    let text = read_text(&data_dir.join(STORE))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Keeps this of the DCS.
pub fn write_store(data_dir: &Path, text: &str) -> Result<(), PostgresError> {
    keep(data_dir, &data_dir.join(STORE), text)
}

/// Keeps this text. Only where there is a data directory: one that is to be made must be empty.
pub fn write(data_dir: &Path, text: &str) -> Result<(), PostgresError> {
    keep(data_dir, &path(data_dir), text)
}

fn keep(data_dir: &Path, file: &Path, text: &str) -> Result<(), PostgresError> {
    if !data_dir.join("PG_VERSION").exists() {
        let absent = io::Error::from(io::ErrorKind::NotFound);
        return Err(PostgresError::file("write", file)(absent));
    }
    write_file(file, text)
}

/// What came with data of another server is that server's.
pub(crate) fn forget(data_dir: &Path) -> Result<(), PostgresError> {
    remove_file(&data_dir.join(MEMBERS))?;
    remove_file(&data_dir.join(STORE))?;
    remove_file(&path(data_dir))
}
