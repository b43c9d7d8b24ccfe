//! `bootstrap:`: how a new cluster is made. Read only by the member that makes it.

use std::collections::BTreeMap;

use secrecy::SecretString;

use super::document::{Kind, Node, Value};
use super::section::Section;
use super::{Mistake, command, dynamic};
use crate::postgres::methods::CustomBootstrap;

/// How a new cluster is made.
#[derive(Clone, Debug, Default)]
pub struct BootstrapConfig {
    /// Becomes the `config` key: the dynamic configuration as JSON. `failsafe_mode` is true in it unless
    /// the file says otherwise (`ha.md` 6).
    pub dcs: serde_json::Map<String, serde_json::Value>,
    /// Options of initdb.
    pub initdb: Vec<InitdbOption>,
    /// Lines of `pg_hba.conf`, used where `postgresql.pg_hba` is silent.
    pub pg_hba: Vec<String>,
    /// How a new cluster is made, if not by initdb.
    pub custom: Option<CustomBootstrap>,
    /// Run once on a new cluster.
    pub post_bootstrap: Option<Vec<String>>,
    /// Users to make.
    pub users: BTreeMap<String, BootstrapUser>,
}

/// One option of initdb: `--name` or `--name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitdbOption {
    /// Without dashes.
    pub name: String,
    /// Its value, if it has one.
    pub value: Option<String>,
}

/// A user to make.
#[derive(Clone, Debug)]
pub struct BootstrapUser {
    /// The password, if any.
    pub password: Option<SecretString>,
    /// Words for CREATE ROLE such as `createrole`.
    pub options: Vec<String>,
}

/// The agent gives these itself.
const OWN_OPTIONS: [&str; 6] = ["pgdata", "D", "pwfile", "pwprompt", "username", "U"];

/// What CREATE ROLE takes without an argument.
const ROLE_OPTIONS: [&str; 14] = [
    "superuser",
    "nosuperuser",
    "createdb",
    "nocreatedb",
    "createrole",
    "nocreaterole",
    "inherit",
    "noinherit",
    "login",
    "nologin",
    "replication",
    "noreplication",
    "bypassrls",
    "nobypassrls",
];

/// Reads the section.
pub fn read(section: &Section<'_>) -> BootstrapConfig {
    let config = BootstrapConfig {
        dcs: dynamic::of_a_new_cluster(&section.section("dcs")),
        initdb: initdb(section),
        pg_hba: section.texts("pg_hba", false).unwrap_or_default(),
        users: users(&section.section("users")),
        custom: custom(section),
        post_bootstrap: command::read(section, "post_bootstrap")
            .or_else(|| command::read(section, "post_init")),
    };
    section.end();
    config
}

/// Keys of a custom bootstrap that are the agent's.
const CUSTOM_KEYS: [&str; 6] = [
    "command",
    "no_params",
    "keep_existing_recovery_conf",
    "recovery_conf",
    "scope",
    "datadir",
];

/// The way to make a cluster that `method` names, unless that is initdb.
fn custom(section: &Section<'_>) -> Option<CustomBootstrap> {
    let name = section.text("method").filter(|name| name != "initdb")?;
    let own = section.section(&name);
    if own.find("command").is_none() {
        own.missing("command", "write the command that makes the data directory");
        return None;
    }
    let is_set = |key| own.boolean(key).unwrap_or(false);
    let recovery = own.section("recovery_conf");
    Some(CustomBootstrap {
        command: command::read(&own, "command")?,
        no_params: is_set("no_params"),
        keep_existing_recovery_conf: is_set("keep_existing_recovery_conf"),
        recovery_conf: recovery
            .is_present()
            .then(|| super::sorted(own.parameters("recovery_conf"))),
        extra: command::extra(&own, &CUSTOM_KEYS),
        name,
    })
}

fn initdb(section: &Section<'_>) -> Vec<InitdbOption> {
    const EXPECTED: &str =
        "a list of options, such as \"- data-checksums\" and \"- encoding: UTF8\"";
    let Some(node) = section.find("initdb") else {
        return Vec::new();
    };
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        Value::Map(_) => std::slice::from_ref(node),
        Value::Scalar(_) => {
            section.unusable("initdb", node, EXPECTED);
            return Vec::new();
        }
    };
    let mut options = Vec::new();
    for item in items {
        match &item.value {
            Value::Scalar(s) => options.push((item, s.text.clone(), None)),
            Value::Map(entries) => {
                for entry in entries {
                    match &entry.node.value {
                        Value::Scalar(s) if s.kind == Kind::Boolean(true) => {
                            options.push((item, entry.key.clone(), None));
                        }
                        // Patroni leaves out what has no value.
                        Value::Scalar(s)
                            if s.text.is_empty()
                                || matches!(s.kind, Kind::Null | Kind::Boolean(false)) => {}
                        Value::Scalar(s) => {
                            let value = unquoted(&s.text);
                            options.push((&entry.node, entry.key.clone(), Some(value)));
                        }
                        Value::List(_) | Value::Map(_) => {
                            section.unusable("initdb", &entry.node, EXPECTED);
                        }
                    }
                }
            }
            Value::List(_) => section.unusable("initdb", item, EXPECTED),
        }
    }
    options
        .into_iter()
        .filter_map(|(item, name, value)| initdb_option(section, item, &name, value))
        .collect()
}

/// A value without the quotes around it, as Patroni takes it; one of several words stays as it is.
fn unquoted(text: &str) -> String {
    match command::split(text).as_deref() {
        Some([one]) => one.clone(),
        Some(_) | None => text.to_owned(),
    }
}

fn initdb_option(
    section: &Section<'_>,
    item: &Node,
    name: &str,
    value: Option<String>,
) -> Option<InitdbOption> {
    let name = name.trim_start_matches('-').to_owned();
    if OWN_OPTIONS.contains(&name.as_str()) {
        section.report().mistake(Mistake::Refused {
            origin: item.origin.clone(),
            key: "bootstrap.initdb".to_owned(),
            why: format!(
                "option \"{name}\" is given by the agent: the folder is postgresql.data_dir, the user \
                 postgresql.authentication.superuser; remove the line"
            ),
        });
        return None;
    }
    Some(InitdbOption { name, value })
}

fn users(section: &Section<'_>) -> BTreeMap<String, BootstrapUser> {
    let mut users = BTreeMap::new();
    for entry in section.entries() {
        let user = section.section(&entry.key);
        let options = user.texts("options", true).unwrap_or_default();
        for option in &options {
            if !ROLE_OPTIONS.contains(&option.to_ascii_lowercase().as_str())
                && let Some(node) = user.find("options")
            {
                user.report().mistake(Mistake::Unusable {
                    origin: node.origin.clone(),
                    key: user.path_of("options"),
                    value: format!("\"{option}\""),
                    expected: format!("words of: {}", ROLE_OPTIONS.join(", ")),
                });
            }
        }
        let made = BootstrapUser {
            password: user.secret("password"),
            options,
        };
        user.end();
        users.insert(entry.key.clone(), made);
    }
    users
}
