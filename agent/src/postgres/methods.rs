//! An operator's own ways to make a data directory: Patroni's custom replica methods and its custom
//! bootstrap, with the arguments Patroni gives them.
//!
//! A command that is told the directory, and need not find the old data there, works beside it. One that
//! works in place leaves a marker until it is done, so that an agent that starts in the middle knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trunkline_shared::cluster::SystemId;

use super::clone::mark_unfinished;
use super::directory::{
    DirectoryState, REWINDING, UNFINISHED, complete_and_swap, directory_state, empty,
    making_marker, place_for_copy, remove_tree,
};
use super::dynamic_config;
use super::files::{remove_file, write_file, write_pgpass};
use super::hooks::Command;
use super::process::Script;
use super::settings::conninfo;
use super::{Postgres, PostgresConfig, PostgresError, Upstream};

/// Longest run of a method: a week. It is ended earlier by dropping the call.
const METHOD_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often pg_basebackup is tried before the next method, as Patroni does.
const BASEBACKUP_TRIES: u8 = 2;

/// A way to make a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// pg_basebackup.
    Basebackup,
    /// A command of the operator's.
    Custom(CustomMethod),
}

/// A command that makes a replica's data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomMethod {
    /// Its name in `create_replica_methods`.
    pub name: String,
    /// The command; the method's name where the file gives none.
    pub command: Command,
    /// It wants to find the old data in its place, and changes it there.
    pub keep_data: bool,
    /// It is given no arguments.
    pub no_params: bool,
    /// It needs no running leader.
    pub no_leader: bool,
    /// Every other key, given as `--key=value`.
    pub extra: Vec<(String, String)>,
}

/// How a new cluster is made, if not by initdb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomBootstrap {
    /// `bootstrap.method`.
    pub name: String,
    /// The command.
    pub command: Command,
    /// It is given no arguments.
    pub no_params: bool,
    /// What it left of recovery settings stays in force.
    pub keep_existing_recovery_conf: bool,
    /// Recovery settings that the agent writes, if the data is to be recovered to a target.
    pub recovery_conf: Option<std::collections::BTreeMap<String, String>>,
    /// Every other key, given as `--key=value`.
    pub extra: Vec<(String, String)>,
}

impl CustomBootstrap {
    /// Whether PostgreSQL recovers before it accepts writes, and then does so by itself.
    pub fn recovers(&self) -> bool {
        self.keep_existing_recovery_conf || self.recovery_conf.is_some()
    }
}

/// The ways to copy this source.
fn ways<'a>(config: &'a PostgresConfig, source: Option<&Upstream>) -> &'a [ReplicaMethod] {
    let host = source.map(|source| source.host.as_str());
    let port = source.map(|source| source.port);
    match &config.remote {
        Some(remote) if !remote.replica_methods.is_empty() && remote.is_at(host, port) => {
            &remote.replica_methods
        }
        Some(_) | None => &config.replica_methods,
    }
}

fn pairs(extra: &[(String, String)]) -> impl Iterator<Item = String> + '_ {
    extra.iter().map(|(key, value)| format!("--{key}={value}"))
}

/// Where a method works, and what is to be done there before and after.
enum Place {
    /// Beside the data directory, swapped in when whole.
    Beside(PathBuf),
    /// In the empty data directory.
    Fresh,
    /// In the data directory, on the old data.
    OnOldData,
}

impl Place {
    fn for_method(config: &PostgresConfig, method: &CustomMethod) -> Result<Self, PostgresError> {
        let is_empty = directory_state(config) == DirectoryState::Empty;
        match (is_empty, method.keep_data) {
            (true, _) => {
                // A directory beside it is of no use to what works in place.
                write_file(&making_marker(config), "")?;
                Ok(Place::Fresh)
            }
            (false, true) => {
                write_file(&config.beside(REWINDING), "")?;
                Ok(Place::OnOldData)
            }
            (false, false) if method.no_params => Err(PostgresError::MethodNeedsEmpty {
                method: method.name.clone(),
                data_dir: config.data_dir.clone(),
            }),
            (false, false) => place_for_copy(config).map(Place::Beside),
        }
    }

    fn path<'a>(&'a self, config: &'a PostgresConfig) -> &'a Path {
        match self {
            Place::Beside(path) => path,
            Place::Fresh | Place::OnOldData => &config.data_dir,
        }
    }

    fn keep(&self, config: &PostgresConfig) -> Result<(), PostgresError> {
        dynamic_config::forget(self.path(config))?;
        match self {
            Place::Beside(_) => complete_and_swap(config),
            Place::Fresh => remove_file(&making_marker(config)),
            Place::OnOldData => remove_file(&config.beside(REWINDING)),
        }
    }

    /// What was made on old data stays as it is, marked: only another copy mends it.
    fn give_up(&self, config: &PostgresConfig) -> Result<(), PostgresError> {
        match self {
            Place::Beside(path) => remove_tree(path),
            Place::Fresh => {
                empty(&config.data_dir)?;
                remove_file(&making_marker(config))
            }
            Place::OnOldData => Ok(()),
        }
    }
}

impl Postgres {
    /// Makes a replica's data by the first of the configured methods that succeeds. Without a source, only
    /// methods that need no leader are tried. What [`Postgres::copy_from`] says holds for each.
    pub async fn make_replica(
        &self,
        source: Option<&Upstream>,
        expected: Option<SystemId>,
    ) -> Result<(), PostgresError> {
        let config = self.config();
        self.must_be_stopped()?;
        let mut tried = Vec::new();
        for method in ways(&config, source) {
            let (name, outcome) = match (method, source) {
                (ReplicaMethod::Basebackup, None) => continue,
                (ReplicaMethod::Basebackup, Some(source)) => {
                    ("basebackup", self.copy_twice(source, expected).await)
                }
                (ReplicaMethod::Custom(method), None) if !method.no_leader => continue,
                (ReplicaMethod::Custom(method), source) => (
                    method.name.as_str(),
                    self.copy_by(method, source, expected).await,
                ),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(method = name, %error, "making a replica failed");
                    tried.push(format!("{name}: {error}"));
                }
            }
        }
        Err(PostgresError::NoMethodWorked {
            tried: tried.join("; "),
        })
    }

    async fn copy_twice(
        &self,
        source: &Upstream,
        expected: Option<SystemId>,
    ) -> Result<(), PostgresError> {
        let mut outcome = self.copy_from(source, expected).await;
        for _ in 1..BASEBACKUP_TRIES {
            match &outcome {
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "the base backup failed and is tried again");
                    outcome = self.copy_from(source, expected).await;
                }
                Err(_) | Ok(()) => {}
            }
        }
        outcome
    }

    async fn copy_by(
        &self,
        method: &CustomMethod,
        source: Option<&Upstream>,
        expected: Option<SystemId>,
    ) -> Result<(), PostgresError> {
        let config = self.config();
        let place = Place::for_method(&config, method)?;
        let path = place.path(&config).to_owned();
        let mut arguments: Vec<String> = pairs(&method.extra).collect();
        if !method.no_params {
            arguments.extend([
                format!("--scope={}", config.cluster_name),
                "--role=replica".to_owned(),
                format!("--datadir={}", path.display()),
                format!("--connstring={}", connstring(&config, source)),
            ]);
        }
        let made = self.run_method(&method.command, arguments).await;
        let made = match made {
            Ok(()) => self.check_made(&path, &method.name, source, expected).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(()) => place.keep(&config),
            Err(error) => {
                place.give_up(&config)?;
                Err(error)
            }
        }
    }

    async fn check_made(
        &self,
        path: &Path,
        method: &str,
        source: Option<&Upstream>,
        expected: Option<SystemId>,
    ) -> Result<(), PostgresError> {
        if !path.join("PG_VERSION").exists() || !path.join("global/pg_control").exists() {
            return Err(PostgresError::NothingMade {
                method: method.to_owned(),
                data_dir: path.to_owned(),
            });
        }
        // Of a backup taken while a cluster was made; and PostgreSQL would promote at once.
        remove_file(&path.join(UNFINISHED))?;
        remove_file(&path.join("promote"))?;
        let found = self.control_data_of(path).await?.system_id;
        match expected {
            Some(expected) if expected != found => Err(PostgresError::ForeignSystem {
                source_address: source.map_or_else(
                    || method.to_owned(),
                    |source| format!("{}:{}", source.host, source.port),
                ),
                found,
                expected,
            }),
            Some(_) | None => Ok(()),
        }
    }

    async fn run_method(
        &self,
        command: &Command,
        arguments: Vec<String>,
    ) -> Result<(), PostgresError> {
        let config = self.config();
        write_pgpass(&config)?;
        let mut script = Script::new(command, METHOD_LIMIT, "the operator's method");
        script.arguments.extend(arguments);
        let pgpass = config.pgpass.display().to_string();
        script.environment.push(("PGPASSFILE".to_owned(), pgpass));
        script.note = Some(config.run_dir.join(super::process::SCRIPT_FILE));
        script.run().await
    }

    /// Makes the data of a new cluster by the operator's command. After an error nothing is left of it.
    pub(crate) async fn bootstrap_by(&self, method: &CustomBootstrap) -> Result<(), PostgresError> {
        let config = self.config();
        write_file(&making_marker(&config), "")?;
        let mut arguments = Vec::new();
        if !method.no_params {
            arguments.extend([
                format!("--scope={}", config.cluster_name),
                format!("--datadir={}", config.data_dir.display()),
            ]);
        }
        arguments.extend(pairs(&method.extra));
        let made = self.run_method(&method.command, arguments).await;
        let made = match made {
            Ok(()) => {
                self.check_made(&config.data_dir, &method.name, None, None)
                    .await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            Place::Fresh.give_up(&config)?;
            return Err(error);
        }
        fs::set_permissions(
            &config.data_dir,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .map_err(PostgresError::file("change the mode of", &config.data_dir))?;
        mark_unfinished(&config.data_dir)?;
        Place::Fresh.keep(&config)
    }

    /// Runs `bootstrap.post_bootstrap`, if there is one, with the new cluster's address.
    pub(crate) async fn post_bootstrap(&self) -> Result<(), PostgresError> {
        let config = self.config();
        let Some(command) = &config.post_bootstrap else {
            return Ok(());
        };
        write_pgpass(&config)?;
        let mut script = Script::new(command, METHOD_LIMIT, "post_bootstrap");
        script.arguments.push(own_dsn(&config));
        let pgpass = config.pgpass.display().to_string();
        script.environment.push(("PGPASSFILE".to_owned(), pgpass));
        script.run().await
    }
}

/// How a method reaches its source; empty without one.
fn connstring(config: &PostgresConfig, source: Option<&Upstream>) -> String {
    let Some(source) = source else {
        return String::new();
    };
    let port = source.port.to_string();
    let mut fields = vec![
        ("dbname", config.database.as_str()),
        ("user", config.replication.username.as_str()),
        ("host", source.host.as_str()),
        ("port", port.as_str()),
    ];
    fields.extend(config.replication.connection_fields());
    conninfo(&fields)
}

/// How the superuser reaches the local instance.
fn own_dsn(config: &PostgresConfig) -> String {
    let port = config.port.to_string();
    let socket = config
        .socket_dirs
        .first()
        .filter(|_| config.use_unix_socket);
    let host = match socket {
        Some(dir) => config.data_dir.join(dir).display().to_string(),
        None => config.local_host().to_owned(),
    };
    conninfo(&[
        ("dbname", &config.database),
        ("user", &config.superuser.username),
        ("host", &host),
        ("port", &port),
    ])
}
