//! WAL and its archive around a rewind: what waits to be archived goes there first, what is missing comes
//! from there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::process::{Script, Tool};
use super::{PostgresConfig, PostgresError};

/// Longest run of `archive_command` or `restore_command` for one segment.
const SEGMENT_LIMIT: Duration = Duration::from_secs(300);

/// Most segments that a rewind fetches by itself.
const MOST_MISSING: usize = 10_000;

/// The command that fetches a segment, whichever section of the configuration names it.
pub(crate) fn restore_command(config: &PostgresConfig) -> Option<String> {
    let name = "restore_command";
    let given = config.recovery.get(name).or(config.parameters.get(name))?;
    Some(given.clone()).filter(|command| !command.trim().is_empty())
}

/// `%f`, `%p` and `%%` of a command as PostgreSQL fills them in (pure). `%r` becomes the segment itself:
/// nothing before it is needed here.
fn filled(command: &str, file: &str, path: &str) -> String {
    let (mut text, mut characters) = (String::new(), command.chars());
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match characters.next() {
            Some('f' | 'r') => text.push_str(file),
            Some('p') => text.push_str(path),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

async fn run(
    config: &PostgresConfig,
    command: &str,
    file: &str,
    what: &'static str,
) -> Result<(), PostgresError> {
    let line = filled(command, file, &format!("pg_wal/{file}"));
    // Paths are below the data directory, as PostgreSQL gives them.
    let words = [
        "/bin/sh",
        "-c",
        "cd \"$0\" && eval \"$1\"",
        &config.data_dir.display().to_string(),
        &line,
    ];
    let script = Script::new(&words.map(str::to_owned), SEGMENT_LIMIT, what);
    script.run().await
}

/// The name of a segment, whole or the last of a timeline that ended.
fn is_segment(name: &str) -> bool {
    let name = name.strip_suffix(".partial").unwrap_or(name);
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The segments that PostgreSQL has not archived yet, oldest first.
fn pending(data_dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(data_dir.join("pg_wal/archive_status"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".ready").map(str::to_owned))
        .filter(|name| is_segment(name))
        .collect();
    names.sort();
    names
}

/// Archives what a crashed primary had not archived: a rewind takes it away, and its own history may be
/// wanted for a recovery to a point in time. The first failure ends it and forbids nothing.
pub(crate) async fn archive_pending(config: &PostgresConfig) {
    let value = |name: &str| config.parameters.get(name).map(String::as_str);
    let is_on = matches!(value("archive_mode"), Some("on" | "always"));
    let Some(command) = value("archive_command").filter(|c| is_on && !c.trim().is_empty()) else {
        return;
    };
    let status = config.data_dir.join("pg_wal/archive_status");
    for segment in pending(&config.data_dir) {
        if let Err(error) = run(config, command, &segment, "archive_command").await {
            tracing::warn!(segment, %error, "WAL that waits to be archived is not");
            return;
        }
        let (ready, done) = (format!("{segment}.ready"), format!("{segment}.done"));
        if let Err(error) = fs::rename(status.join(ready), status.join(done)) {
            tracing::warn!(segment, %error, "WAL is archived and cannot be marked so");
            return;
        }
        tracing::info!(segment, "WAL is archived before the rewind");
    }
}

/// The segment that pg_rewind did not find, by its own words (pure).
fn missing_segment(said: &str) -> Option<&str> {
    let names = said.lines().filter_map(|line| {
        let path = line
            .split("could not open file \"")
            .nth(1)?
            .split('"')
            .next()?;
        let (folder, name) = path.rsplit_once('/')?;
        folder.ends_with("pg_wal").then_some(name)
    });
    names.into_iter().find(|name| is_segment(name))
}

/// Runs pg_rewind; a segment that it does not find is fetched, each once, and it is run again.
pub(crate) async fn with_missing_wal(
    config: &PostgresConfig,
    restore: Option<&str>,
    tool: &Tool<'_>,
) -> Result<(), PostgresError> {
    let mut fetched = BTreeSet::new();
    loop {
        let output = tool.output().await?;
        let outcome = tool.checked(&output);
        let (Err(error), Some(restore)) = (&outcome, restore) else {
            return outcome;
        };
        let said = format!("{}\n{}", output.stderr, output.stdout);
        let Some(segment) = missing_segment(&said) else {
            return outcome;
        };
        if fetched.len() >= MOST_MISSING || !fetched.insert(segment.to_owned()) {
            return outcome;
        }
        tracing::info!(segment, %error, "the rewind misses a segment: it is fetched");
        run(config, restore, segment, "restore_command").await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_filled_in_as_postgresql_does() {
        let filled = |command| filled(command, "0A", "pg_wal/0A");
        assert_eq!(
            filled("cp /a/%f \"%p\" %% %x %"),
            "cp /a/0A \"pg_wal/0A\" % %x %"
        );
    }

    #[test]
    fn the_missing_segment_is_read_from_what_pg_rewind_says() {
        let said = "pg_rewind: servers diverged\npg_rewind: error: could not open file \
            \"/data/pg_wal/000000010000000000000003\": No such file or directory\n";
        assert_eq!(missing_segment(said), Some("000000010000000000000003"));
        let other = "could not open file \"/data/global/pg_control\": Permission denied";
        assert_eq!(missing_segment(other), None);
        assert_eq!(
            missing_segment("could not open file \"/data/pg_wal/x\""),
            None
        );
    }
}
