//! `show-config` and `edit-config`: the configuration of the cluster, changed by compare-and-swap.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Map, Value};
use trunkline_shared::dcs::records::merge_patch;
use trunkline_shared::service::clock;

use super::arguments::EditConfig;
use super::table::yaml;
use super::{CtlError, Session};
use crate::api::settings::{read, write};
use crate::config::Environment;

/// Lines shown around a change.
const CONTEXT: usize = 3;

/// `trunkline show-config`
pub async fn show(session: &Session) -> Result<(), CtlError> {
    let (value, _) = read(session.dcs.as_ref(), &session.keys).await?;
    session.terminal.print(&yaml(&value))
}

/// `trunkline edit-config`
pub async fn edit(
    session: &Session,
    asked: &EditConfig,
    env: &Environment,
) -> Result<(), CtlError> {
    let (old, revision) = read(session.dcs.as_ref(), &session.keys).await?;
    let mut new = old.clone();
    if let Some(path) = &asked.replace {
        new = document(path)?;
    }
    if let Some(path) = &asked.apply {
        merge_patch(&mut new, &document(path)?);
    }
    let parameters = asked
        .pg
        .iter()
        .map(|pair| format!("postgresql.parameters.{pair}"));
    for pair in asked.set.iter().cloned().chain(parameters) {
        merge_patch(&mut new, &patch_of(&pair)?);
    }
    let is_by_hand = asked.replace.is_none()
        && asked.apply.is_none()
        && asked.set.is_empty()
        && asked.pg.is_empty();
    if is_by_hand {
        new = by_hand(&yaml(&old), env)?;
    }
    if new == old {
        return session.terminal.line("Not changed");
    }
    if !asked.quiet {
        session
            .terminal
            .print(&difference(&yaml(&old), &yaml(&new)))?;
    }
    if !asked.force {
        session.terminal.confirm("Apply these changes?")?;
    }
    write(session.dcs.as_ref(), &session.keys, &new, Some(revision)).await?;
    session.terminal.success("Configuration changed")
}

/// `a.b.c=value` as a merge patch.
fn patch_of(pair: &str) -> Result<Value, CtlError> {
    let (path, text) = pair
        .split_once('=')
        .filter(|(path, _)| !path.is_empty())
        .ok_or_else(|| CtlError::Usage(format!("\"{pair}\" is not of the form key=value")))?;
    let value = match text {
        "" => Value::Null,
        text => parsed(text, pair)?,
    };
    // Names of parameters may hold dots themselves: those of extensions do.
    let parts: Vec<&str> = match path.strip_prefix("postgresql.parameters.") {
        Some(name) => vec!["postgresql", "parameters", name],
        None => path.split('.').collect(),
    };
    Ok(parts.iter().rev().fold(value, |value, part| {
        Value::Object(Map::from_iter([((*part).to_owned(), value)]))
    }))
}

fn parsed(text: &str, place: &str) -> Result<Value, CtlError> {
    serde_saphyr::from_str(text)
        .map_err(|error| CtlError::Usage(format!("{place}: not YAML: {}", error.without_snippet())))
}

fn document(path: &Path) -> Result<Value, CtlError> {
    let unreadable = |error: std::io::Error| {
        CtlError::Usage(format!("{} cannot be read: {error}", path.display()))
    };
    let text = match path.to_str() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(unreadable)?;
            text
        }
        _ => std::fs::read_to_string(path).map_err(unreadable)?,
    };
    match parsed(&text, &path.display().to_string())? {
        value @ Value::Object(_) => Ok(value),
        other => Err(CtlError::Usage(format!(
            "{}: a mapping is expected, found {other}",
            path.display()
        ))),
    }
}

/// In the operator's editor.
fn by_hand(text: &str, env: &Environment) -> Result<Value, CtlError> {
    let editor = env
        .get("VISUAL")
        .or_else(|| env.get("EDITOR"))
        .map_or("vi", String::as_str);
    let failed = |error: std::io::Error| {
        CtlError::Failed(format!(
            "{editor} could not be used: {error}; set EDITOR, or use -s key=value"
        ))
    };
    let path = std::env::temp_dir().join(format!(
        "trunkline-{}-{}.yml",
        rustix::process::getpid().as_raw_nonzero(),
        clock::now().0
    ));
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(failed)?;
    let mut words = editor.split_whitespace();
    #[expect(
        clippy::disallowed_methods,
        reason = "the operator's editor is the only process that the command starts"
    )]
    let status = std::process::Command::new(words.next().unwrap_or("vi"))
        .args(words)
        .arg(&path)
        .status();
    let edited = std::fs::read_to_string(&path);
    // A file left in the temporary folder is the smaller evil than hiding the editor's own error.
    let _ = std::fs::remove_file(&path);
    match status.map_err(failed)?.success() {
        true => parsed(&edited.map_err(failed)?, "the edited text"),
        false => Err(CtlError::Aborted),
    }
}

/// The lines that differ, with some around them.
fn difference(old: &str, new: &str) -> String {
    let old: Vec<&str> = old.lines().collect();
    let new: Vec<&str> = new.lines().collect();
    let lines = aligned(&old, &new);
    let is_near = |at: usize| {
        let from = at.saturating_sub(CONTEXT);
        let to = (at + CONTEXT + 1).min(lines.len());
        lines[from..to].iter().any(|(sign, _)| *sign != ' ')
    };
    let mut text = String::from("--- \n+++ \n");
    let mut has_gap = false;
    for (at, (sign, line)) in lines.iter().enumerate() {
        if is_near(at) {
            if has_gap {
                text.push_str("@@\n");
            }
            has_gap = false;
            text.push_str(&format!("{sign}{line}\n"));
        } else {
            has_gap = true;
        }
    }
    text
}

/// Every line of both, marked by where it stands; a longest common subsequence stays unmarked.
fn aligned<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<(char, &'t str)> {
    let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = match old[i] == new[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            i += 1;
            j += 1;
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_set_makes_a_patch_and_null_removes() {
        for (pair, patch) in [
            ("ttl=20", json!({ "ttl": 20 })),
            (
                "postgresql.use_pg_rewind=on",
                json!({ "postgresql": { "use_pg_rewind": true } }),
            ),
            ("pause=null", json!({ "pause": null })),
            (
                "postgresql.parameters.pg_stat_statements.max=5",
                json!({ "postgresql": { "parameters": { "pg_stat_statements.max": 5 } } }),
            ),
        ] {
            assert_eq!(patch_of(pair).unwrap(), patch, "{pair}");
        }
        assert!(patch_of("ttl").is_err());
    }

    #[test]
    fn a_difference_shows_what_changes_and_its_neighbours() {
        let old = "a: 1\nb: 2\nc: 3\nd: 4\ne: 5\nf: 6\n";
        let new = "a: 1\nb: 2\nc: 3\nd: 4\ne: 50\nf: 6\n";
        assert_eq!(
            difference(old, new),
            "--- \n+++ \n@@\n b: 2\n c: 3\n d: 4\n-e: 5\n+e: 50\n f: 6\n"
        );
    }
}
