//! `show-config` and `edit-config`: the configuration of the cluster, changed by compare-and-swap.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Map, Value};
use trunkline_shared::dcs::records::merge_patch;
use trunkline_shared::service::clock;

use super::arguments::EditConfig;
use super::yaml::block;
use super::{CtlError, Session, difference};
use crate::api::settings::{read, write};
use crate::config::Environment;

/// `trunkline show-config`
pub(super) async fn show(session: &Session) -> Result<(), CtlError> {
    let (value, _) = read(session.dcs.as_ref(), &session.keys).await?;
    session.terminal.print(&block(&value))
}

/// `trunkline edit-config`
pub(super) async fn edit(
    session: &Session,
    asked: &EditConfig,
    env: &Environment,
) -> Result<(), CtlError> {
    let (old, revision) = read(session.dcs.as_ref(), &session.keys).await?;
    let new = changed(asked, &old, session, env)?;
    if new == old {
        return match asked.quiet {
            true => Ok(()),
            false => session.terminal.line("Not changed"),
        };
    }
    if !asked.quiet {
        let text = difference::unified(&block(&old), &block(&new), &session.terminal);
        session.terminal.print(&text)?;
    }
    if !asked.force {
        // Standard input has been read to its end: nobody can answer there any more.
        let from_input = [&asked.apply, &asked.replace].into_iter().flatten();
        if from_input.into_iter().any(|path| path.as_os_str() == "-") {
            let why = "Use --force option to apply changes; nothing was changed";
            return Err(CtlError::Failed(why.to_owned()));
        }
        let refused = "Aborted edit-config";
        session
            .terminal
            .confirm("Apply these changes?", refused)
            .await?;
    }
    let replaces = Some((&old, revision));
    write(session.dcs.as_ref(), &session.keys, &new, replaces).await?;
    session.terminal.success("Configuration changed")
}

/// The configuration as the options, or the operator's editor, make it.
fn changed(
    asked: &EditConfig,
    old: &Value,
    session: &Session,
    env: &Environment,
) -> Result<Value, CtlError> {
    let is_by_hand = asked.replace.is_none()
        && asked.apply.is_none()
        && asked.set.is_empty()
        && asked.pg.is_empty();
    if is_by_hand {
        return by_hand(&block(old), session.cluster.as_str(), env);
    }
    let mut new = match &asked.replace {
        Some(path) => document(path)?,
        None => old.clone(),
    };
    if let Some(path) = &asked.apply {
        merge_patch(&mut new, &document(path)?);
    }
    let parameters = asked
        .pg
        .iter()
        .map(|pair| format!("postgresql.parameters.{}", pair.trim_start()));
    for pair in asked.set.iter().cloned().chain(parameters) {
        let (path, value) = setting(&pair)?;
        set(&mut new, &path, value);
    }
    Ok(new)
}

/// `a.b.c=value` as the way to a value, and the value; null removes it.
fn setting(pair: &str) -> Result<(Vec<&str>, Value), CtlError> {
    let (path, text) = pair
        .split_once('=')
        .filter(|(path, _)| !path.trim().is_empty())
        .ok_or_else(|| {
            CtlError::Usage(format!(
                "Invalid parameter setting \"{pair}\": it is not of the form key=value"
            ))
        })?;
    let value = match text.trim() {
        "" => Value::Null,
        text => parsed(text, pair)?,
    };
    // Names of parameters may hold dots themselves: those of extensions do.
    let path = path.trim();
    let path = match path.strip_prefix("postgresql.parameters.") {
        Some(name) => vec!["postgresql", "parameters", name],
        None => path.split('.').collect(),
    };
    match path.iter().any(|key| key.is_empty()) {
        true => Err(CtlError::Usage(format!("\"{pair}\" names an empty key"))),
        false => Ok((path, value)),
    }
}

/// Sets or removes a value. What held nothing else goes with it, as with patronictl.
fn set(target: &mut Value, path: &[&str], value: Value) {
    let [key, below @ ..] = path else {
        *target = value;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else {
        return;
    };
    if below.is_empty() && value.is_null() {
        map.shift_remove(*key);
        return;
    }
    let child = map.entry((*key).to_owned()).or_insert(Value::Null);
    set(child, below, value);
    if !below.is_empty() && child.as_object().is_some_and(Map::is_empty) {
        map.shift_remove(*key);
    }
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
    mapping(&text, &path.display().to_string())
}

fn mapping(text: &str, place: &str) -> Result<Value, CtlError> {
    match parsed(text, place)? {
        value @ Value::Object(_) => Ok(value),
        other => Err(CtlError::Usage(format!(
            "{place}: a mapping is expected, found {other}"
        ))),
    }
}

/// The operator's editor, or the first of those that are usual.
fn editor(env: &Environment) -> Result<String, CtlError> {
    let named = env.get("VISUAL").or_else(|| env.get("EDITOR"));
    if let Some(named) = named.filter(|named| !named.trim().is_empty()) {
        return Ok(named.clone());
    }
    let folders = env.get("PATH").map_or("/usr/bin:/bin", String::as_str);
    let is_there = |name: &&str| std::env::split_paths(folders).any(|dir| dir.join(name).is_file());
    let usual = ["editor", "vi"].into_iter().find(is_there);
    usual.map(str::to_owned).ok_or_else(|| {
        let why = "EDITOR environment variable is not set, and neither editor nor vi is there; set it, or use \
                   -s KEY=VALUE";
        CtlError::Failed(why.to_owned())
    })
}

/// In the operator's editor.
fn by_hand(text: &str, cluster: &str, env: &Environment) -> Result<Value, CtlError> {
    let editor = editor(env)?;
    let failed = |error: std::io::Error| {
        CtlError::Failed(format!(
            "{editor} could not be used: {error}; set EDITOR, or use -s KEY=VALUE"
        ))
    };
    let path = std::env::temp_dir().join(format!(
        "{cluster}-config-{}-{}.yaml",
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
    let status = status.map_err(failed)?;
    if !status.success() {
        let why = format!("Editor {editor} ended with {status}");
        return Err(CtlError::Aborted(why));
    }
    mapping(&edited.map_err(failed)?, "the edited text")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(pairs: &[&str]) -> Value {
        let mut value =
            json!({ "ttl": 30, "postgresql": { "parameters": { "max_connections": 100 } } });
        for pair in pairs {
            let (path, new) = setting(pair).unwrap();
            set(&mut value, &path, new);
        }
        value
    }

    #[test]
    fn settings_are_set_by_their_way_and_null_removes() {
        let parameters =
            |parameters: Value| json!({ "ttl": 30, "postgresql": { "parameters": parameters } });
        assert_eq!(after(&["ttl=20"])["ttl"], 20);
        assert_eq!(
            after(&["postgresql.use_pg_rewind=on"])["postgresql"]["use_pg_rewind"],
            true
        );
        assert_eq!(
            after(&["postgresql.parameters.pg_stat_statements.max=5"]),
            parameters(json!({ "max_connections": 100, "pg_stat_statements.max": 5 }))
        );
        assert_eq!(
            after(&["postgresql.parameters.max_connections=null"]),
            json!({ "ttl": 30 })
        );
        assert_eq!(
            after(&["standby_cluster.host=null", "ttl=null"]),
            json!({ "postgresql": { "parameters": { "max_connections": 100 } } })
        );
        assert_eq!(after(&["standby_cluster={}"])["standby_cluster"], json!({}));
        for wrong in ["ttl", "=1", "a..b=1", " = 1", "a=[1"] {
            assert!(setting(wrong).is_err(), "{wrong}");
        }
    }
}
