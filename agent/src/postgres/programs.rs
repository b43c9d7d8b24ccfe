//! PostgreSQL's own programs: where they are, and of which version.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::PostgresError;
use super::config::PostgresConfig;
use super::files::directory_major;
use super::process::Tool;

/// Longest run of a program that only says its version.
const LIMIT: Duration = Duration::from_secs(10);

/// Every program that the agent runs.
pub const PROGRAMS: [&str; 7] = [
    "postgres",
    "initdb",
    "pg_controldata",
    "pg_basebackup",
    "pg_rewind",
    "pg_waldump",
    "psql",
];

/// The oldest and the newest major version that the agent knows.
pub const MAJORS: std::ops::RangeInclusive<u32> = 13..=18;

/// The path of one of the programs, under its own name if it has one (`bin_name`): `bin_dir`, else the packages'
/// folders for the directory's major version (without a directory: for the newest), else PATH.
pub fn path(config: &PostgresConfig, name: &str) -> PathBuf {
    let name = config.bin_names.get(name).map_or(name, String::as_str);
    if let Some(bin_dir) = &config.bin_dir {
        return bin_dir.join(name);
    }
    let major = directory_major(&config.data_dir);
    packaged(major.as_deref()).map_or_else(|| PathBuf::from(name), |bin_dir| bin_dir.join(name))
}

/// Where Debian's and PGDG's packages put the programs of a major version, or of the newest.
pub fn packaged(major: Option<&str>) -> Option<PathBuf> {
    let debian = Path::new("/usr/lib/postgresql");
    if let Some(major) = major {
        let folders = [
            debian.join(major).join("bin"),
            format!("/usr/pgsql-{major}/bin").into(),
        ];
        return folders
            .into_iter()
            .find(|dir| dir.join("postgres").exists());
    }
    let newest = fs::read_dir(debian)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|major| debian.join(major.to_string()).join("bin/initdb").exists())
        .max()?;
    Some(debian.join(newest.to_string()).join("bin"))
}

/// The major version that `program` (`postgres`) says it is, such as `15`.
///
/// # Errors
/// It cannot be run.
pub async fn major(program: &Path) -> Result<String, PostgresError> {
    let tool = Tool {
        program: program.to_owned(),
        arguments: vec!["--version".to_owned()],
        passfile: None,
        limit: LIMIT,
        what: "postgres --version",
    };
    let said = tool.run().await?.stdout;
    Ok(major_of(said.rsplit(") ").next().unwrap_or("")))
}

/// `15` of `15.18 (Debian ...)`, `19` of `19beta1`.
fn major_of(version: &str) -> String {
    version.chars().take_while(char::is_ascii_digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_what_a_version_begins_with() {
        for (text, major) in [
            ("15.18 (Debian 15.18-0)\n", "15"),
            ("19beta1", "19"),
            ("", ""),
        ] {
            assert_eq!(major_of(text), major);
        }
    }
}
