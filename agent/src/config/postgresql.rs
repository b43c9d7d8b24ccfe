//! `postgresql:`: the local instance, as far as this file and not the DCS says it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::document::{Entry, Kind, Value};
use super::section::{Address, Section};
use super::{Warning, command, layers, sorted};
use crate::decide::callbacks::Callback;
use crate::postgres::clone::REFUSED_BASEBACKUP;
use crate::postgres::controlled::{DERIVED, is_of_the_cluster};
use crate::postgres::hooks::Hooks;
use crate::postgres::methods::{CustomMethod, ReplicaMethod};
use crate::postgres::programs::PROGRAMS;
use crate::postgres::settings::RECOVERY_SETTINGS;

/// PostgreSQL's port.
pub const DEFAULT_PORT: u16 = 5432;

/// The local instance.
#[derive(Clone, Debug)]
pub struct PostgresqlConfig {
    /// Where it listens; the host may be a list such as `127.0.0.1,10.0.0.1`.
    pub listen: Address,
    /// How others reach it; written into the member's record.
    pub connect_address: Address,
    /// How clients behind a proxy reach it, if so.
    pub proxy_address: Option<Address>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where the configuration files are; `data_dir` unless set.
    pub config_dir: PathBuf,
    /// Where the programs are; searched in `PATH` if absent.
    pub bin_dir: Option<PathBuf>,
    /// Own names of programs (`bin_name`).
    pub bin_names: BTreeMap<String, String>,
    /// Where the password file is kept, if named.
    pub pgpass: Option<PathBuf>,
    /// The database to connect to for administration.
    pub database: String,
    /// Administration.
    pub superuser: Credentials,
    /// Replication.
    pub replication: Credentials,
    /// pg_rewind; the superuser if absent.
    pub rewind: Option<Credentials>,
    /// Parameters that this file sets over those of the cluster.
    pub parameters: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf`, if managed from here.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of `pg_ident.conf`, if managed from here.
    pub pg_ident: Option<Vec<String>>,
    /// A file to include in place of `postgresql.base.conf`.
    pub custom_conf: Option<PathBuf>,
    /// Parameters of recovery, such as `restore_command`.
    pub recovery: BTreeMap<String, String>,
    /// Connect by the socket for administration.
    pub use_unix_socket: bool,
    /// Rewind a diverged member; overrides the cluster's setting.
    pub use_pg_rewind: Option<bool>,
    /// An explicit false is obeyed (`ha.md` 5.8).
    pub remove_data_directory_on_rewind_failure: Option<bool>,
    /// An explicit false is obeyed (`ha.md` 5.8).
    pub remove_data_directory_on_diverged_timelines: Option<bool>,
    /// How long a start or stop by `pg_ctl` may take.
    pub pg_ctl_timeout: Duration,
    /// Ways to make a replica, in order.
    pub replica_methods: Vec<ReplicaMethod>,
    /// Ways described in the file that are not in that order: `standby_cluster` may name them.
    pub other_methods: Vec<CustomMethod>,
    /// Options of pg_basebackup: `--name` or `--name=value`.
    pub basebackup: Vec<(String, Option<String>)>,
    /// Operator's scripts.
    pub hooks: Hooks,
}

impl PostgresqlConfig {
    /// The commands that make a replica, whether they are in the order or only described.
    pub fn methods(&self) -> impl Iterator<Item = &CustomMethod> {
        let listed = self
            .replica_methods
            .iter()
            .filter_map(|method| match method {
                ReplicaMethod::Basebackup => None,
                ReplicaMethod::Custom(method) => Some(method),
            });
        listed.chain(&self.other_methods)
    }
}

/// How one of the three roles connects.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password; absent where `pg_hba.conf` asks for none.
    pub password: Option<SecretString>,
    /// `sslmode`, `sslcert`, ... as libpq names them.
    pub connection: BTreeMap<String, String>,
}

/// Settings of a role's connection, as libpq names them.
const CONNECTION: [&str; 9] = [
    "sslmode",
    "sslkey",
    "sslcert",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslnegotiation",
    "gssencmode",
    "channel_binding",
];

/// Keys that change nothing here.
const WITHOUT_EFFECT: [(&str, &str); 2] = [
    (
        "use_slots",
        "replication slots are switched on or off for the whole cluster, as in Patroni: \"trunkline edit-config\"",
    ),
    (
        "use_unix_socket_repl",
        "the agent opens no replication connection to its own server",
    ),
];

/// Where Patroni's configuration of before 1.0 had its roles.
const OLD_ROLES: [(&str, &str); 3] = [
    (
        "superuser",
        "move it to postgresql.authentication.superuser",
    ),
    (
        "replication",
        "move it to postgresql.authentication.replication",
    ),
    (
        "pg_rewind",
        "move it to postgresql.authentication.rewind and write \"use_pg_rewind: true\" below bootstrap.dcs.postgresql",
    ),
];

/// Programs of Patroni's that the agent does not run.
const NOT_RUN: [(&str, &str); 2] = [
    ("pg_ctl", "the agent starts and stops the server itself"),
    ("pg_isready", "the agent asks the server itself"),
];

/// Reads the section.
pub fn read(section: &Section<'_>) -> Option<PostgresqlConfig> {
    let (listen, connect_address) = addresses(section);
    let data_dir = section.file("data_dir");
    if section.find("data_dir").is_none() {
        section.missing(
            "data_dir",
            "write the data directory, such as \"data_dir: /var/lib/postgresql/15/main\"",
        );
    }
    let [superuser, replication, rewind] = roles(section);
    let names = method_names(section);
    let methods = methods(section, &names);
    let proxy_address = section.address("proxy_address", DEFAULT_PORT);
    let is_complete = listen.is_some()
        && connect_address.is_some()
        && data_dir.is_some()
        && superuser.is_some()
        && replication.is_some();
    let data_dir = data_dir.unwrap_or_default();
    let config = PostgresqlConfig {
        listen: listen.unwrap_or_default(),
        connect_address: connect_address.unwrap_or_default(),
        proxy_address,
        config_dir: section
            .file("config_dir")
            .unwrap_or_else(|| data_dir.clone()),
        data_dir,
        bin_dir: section.file("bin_dir"),
        bin_names: program_names(section),
        pgpass: section.file("pgpass"),
        database: section
            .text("database")
            .unwrap_or_else(|| "postgres".to_owned()),
        superuser: superuser.unwrap_or_default(),
        replication: replication.unwrap_or_default(),
        rewind,
        parameters: parameters(section),
        pg_hba: section.texts("pg_hba", false),
        pg_ident: section.texts("pg_ident", false),
        custom_conf: section.file("custom_conf"),
        recovery: recovery(section),
        use_unix_socket: section.boolean("use_unix_socket").unwrap_or(false),
        use_pg_rewind: section.boolean("use_pg_rewind"),
        remove_data_directory_on_rewind_failure: section
            .boolean("remove_data_directory_on_rewind_failure"),
        remove_data_directory_on_diverged_timelines: section
            .boolean("remove_data_directory_on_diverged_timelines"),
        pg_ctl_timeout: section
            .seconds("pg_ctl_timeout", 1)
            .unwrap_or(Duration::from_secs(60)),
        other_methods: other_methods(section, &names),
        replica_methods: methods,
        basebackup: basebackup(section),
        hooks: hooks(section),
    };
    section.without_effect(&WITHOUT_EFFECT);
    for (key, remedy) in OLD_ROLES {
        section.refuse(key, &format!("this form is not read any more; {remedy}"));
    }
    section.end();
    is_complete.then_some(config)
}

/// The names of the ways to make a replica, in order.
fn method_names(section: &Section<'_>) -> Vec<String> {
    section
        .texts("create_replica_methods", true)
        .or_else(|| section.texts("create_replica_method", true))
        .unwrap_or_else(|| vec!["basebackup".to_owned()])
}

fn methods(section: &Section<'_>, names: &[String]) -> Vec<ReplicaMethod> {
    names
        .iter()
        .filter_map(|name| match name.as_str() {
            "basebackup" => Some(ReplicaMethod::Basebackup),
            _ => method(section, name.clone()).map(ReplicaMethod::Custom),
        })
        .collect()
}

/// Sections with a command that the list does not name.
fn other_methods(section: &Section<'_>, listed: &[String]) -> Vec<CustomMethod> {
    let is_method = |entry: &Entry| match &entry.node.value {
        Value::Map(own) => own.iter().any(|entry| entry.key == "command"),
        Value::Scalar(_) | Value::List(_) => false,
    };
    let described = section.values().iter();
    described
        .filter(|entry| is_method(entry) && !listed.contains(&entry.key))
        .filter_map(|entry| method(section, entry.key.clone()))
        .collect()
}

fn method(section: &Section<'_>, name: String) -> Option<CustomMethod> {
    let own = section.section(&name);
    let command = match own.find("command") {
        Some(_) => command::read(&own, "command")?,
        None => vec![name.clone()],
    };
    let is_set = |key| own.boolean(key).unwrap_or(false);
    let no_params = is_set("no_params");
    Some(CustomMethod {
        keep_data: is_set("keep_data"),
        no_params,
        no_leader: is_set("no_leader"),
        extra: command::extra(&own, if no_params { &OWN_KEYS } else { &OWN_KEYS[..1] }),
        name,
        command,
    })
}

/// Keys of a method that a command without the usual arguments is not given either.
const OWN_KEYS: [&str; 4] = ["command", "no_params", "no_leader", "keep_data"];

fn addresses(section: &Section<'_>) -> (Option<Address>, Option<Address>) {
    let listen = section.listen("listen", DEFAULT_PORT, true);
    if section.find("listen").is_none() {
        section.missing(
            "listen",
            "write where PostgreSQL listens, such as \"listen: 0.0.0.0:5432\"",
        );
    }
    let connect = section.address("connect_address", DEFAULT_PORT);
    if section.find("connect_address").is_some() {
        return (listen, connect);
    }
    let first = listen.as_ref().map(Address::first);
    if first.as_ref().is_some_and(Address::is_wildcard) {
        section.missing(
            "connect_address",
            "postgresql.listen is every address; write the one that other members and clients can \
             reach, such as \"connect_address: 10.0.0.1:5432\"",
        );
    }
    (listen, first)
}

/// Superuser, replication, and the role of pg_rewind.
fn roles(section: &Section<'_>) -> [Option<Credentials>; 3] {
    let authentication = section.section("authentication");
    let kerberos = section.text("krbsrvname");
    let roles = [
        ("superuser", Some("postgres")),
        ("replication", Some("replicator")),
        ("rewind", None),
    ];
    let roles = roles.map(|(name, default)| {
        let mut role = credentials(&authentication.section(name), default)?;
        let service = kerberos.iter();
        let service = service.map(|name| ("krbsrvname".to_owned(), name.clone()));
        role.connection.extend(service);
        Some(role)
    });
    authentication.end();
    roles
}

fn credentials(section: &Section<'_>, default: Option<&str>) -> Option<Credentials> {
    if !section.is_present() && default.is_none() {
        return None;
    }
    let username = section
        .text("username")
        .or_else(|| default.map(str::to_owned));
    if username.is_none() {
        section.missing("username", "write the role's name");
    }
    let connection = CONNECTION
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), section.text(key)?)))
        .collect();
    let password = section.secret("password");
    let credentials = username.map(|username| Credentials {
        username,
        password,
        connection,
    });
    section.without_effect(&[(
        "sslpassword",
        "keys with a password are not used: it would stand on command lines; take a key without one",
    )]);
    section.end();
    credentials
}

/// Own names of programs. `bin_dir` says where they are.
fn program_names(section: &Section<'_>) -> BTreeMap<String, String> {
    let own = section.section("bin_name");
    let names = PROGRAMS.iter().filter_map(|program| {
        let name = own.text(program)?;
        if (name.is_empty() || name.contains('/'))
            && let Some(node) = own.find(program)
        {
            own.unusable(program, node, "the name of a program, without a folder");
        }
        Some(((*program).to_owned(), name))
    });
    let names = names.collect();
    own.without_effect(&NOT_RUN);
    own.end();
    names
}

/// The parameters of this file without those that it may not set: each of them is named.
fn parameters(section: &Section<'_>) -> BTreeMap<String, String> {
    let own = section.section("parameters");
    let mut parameters = sorted(section.parameters("parameters"));
    parameters.retain(|name, _| {
        let why = if DERIVED.contains(&name.as_str()) {
            layers::derived(name)
        } else if is_of_the_cluster(name) {
            layers::ONLY_OF_THE_CLUSTER
        } else {
            return true;
        };
        if let Some(node) = own.find(name) {
            section.report().warn(Warning::Contradiction {
                origin: node.origin.clone(),
                key: own.path_of(name),
                done: why.to_owned(),
            });
        }
        false
    });
    parameters
}

/// Parameters of recovery. What else stands there is no such parameter, and would be written nowhere.
fn recovery(section: &Section<'_>) -> BTreeMap<String, String> {
    let mut all = sorted(section.parameters("recovery_conf"));
    all.retain(|name, _| RECOVERY_SETTINGS.contains(&name.as_str()));
    let own = section.section("recovery_conf");
    own.acknowledge(&RECOVERY_SETTINGS);
    own.end();
    all
}

fn basebackup(section: &Section<'_>) -> Vec<(String, Option<String>)> {
    const EXPECTED: &str = "options of pg_basebackup, such as \"max-rate: 100M\" or \"- verbose\"";
    let mut options = Vec::new();
    let Some(node) = section.find("basebackup") else {
        return options;
    };
    let mut maps = Vec::new();
    match &node.value {
        Value::Map(entries) => maps.push(entries),
        Value::List(items) => {
            for item in items {
                match &item.value {
                    Value::Scalar(s) => options.push((s.text.clone(), None)),
                    Value::Map(entries) => maps.push(entries),
                    Value::List(_) => section.unusable("basebackup", item, EXPECTED),
                }
            }
        }
        Value::Scalar(_) => section.unusable("basebackup", node, EXPECTED),
    }
    for entry in maps.into_iter().flatten() {
        match &entry.node.value {
            Value::Scalar(s) if s.kind == Kind::Null || s.kind == Kind::Boolean(true) => {
                options.push((entry.key.clone(), None));
            }
            Value::Scalar(s) if s.kind == Kind::Boolean(false) => {}
            Value::Scalar(s) => options.push((entry.key.clone(), Some(s.text.clone()))),
            Value::List(_) | Value::Map(_) => section.unusable("basebackup", &entry.node, EXPECTED),
        }
    }
    for (name, value) in &mut options {
        *name = name.trim_start_matches('-').to_owned();
        // A list may hold "name=value" in one word.
        if let Some((key, given)) = name.clone().split_once('=') {
            (*name, *value) = (key.to_owned(), Some(given.to_owned()));
        }
    }
    for (name, _) in &options {
        if REFUSED_BASEBACKUP.contains(&name.as_str()) {
            section.report().warn(Warning::Contradiction {
                origin: node.origin.clone(),
                key: format!("postgresql.basebackup.{name}"),
                done: "ignored: the agent gives this option itself, or it would make no replica"
                    .to_owned(),
            });
        }
    }
    options
}

fn hooks(section: &Section<'_>) -> Hooks {
    let callbacks = section.section("callbacks");
    let hooks = Hooks {
        callbacks: Callback::ALL
            .into_iter()
            .map(Callback::word)
            .filter_map(|event| Some((event, command::read(&callbacks, event)?)))
            .collect(),
        pre_promote: command::read(section, "pre_promote"),
        before_stop: command::read(section, "before_stop"),
    };
    callbacks.end();
    hooks
}
