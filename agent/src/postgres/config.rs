//! What this component needs to know of its instance: a small value made by the program's configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::hooks::{Command, Hooks};
use super::methods::{CustomBootstrap, ReplicaMethod};

/// A PostgreSQL role and its password.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The role's name.
    pub username: String,
    /// Its password; absent where `pg_hba.conf` asks for none.
    pub password: Option<SecretString>,
    /// How it connects to other servers: `sslmode`, `sslcert`, ... as libpq names them.
    pub connection: BTreeMap<String, String>,
}

impl Credentials {
    /// `sslmode` and its kind as fields of a libpq connection string.
    pub fn connection_fields(&self) -> Vec<(&str, &str)> {
        let mut fields = Vec::new();
        if !self.connection.contains_key("sslmode") {
            fields.push(("sslmode", "prefer"));
        }
        let given = self.connection.iter();
        fields.extend(given.map(|(key, value)| (key.as_str(), value.as_str())));
        fields
    }
}

/// An extra role made once, after initdb (Patroni's `bootstrap.users`).
#[derive(Clone, Debug)]
pub struct BootstrapRole {
    /// The role.
    pub credentials: Credentials,
    /// Options of CREATE ROLE such as `CREATEDB`.
    pub options: Vec<String>,
}

/// Everything [`super::Postgres`] needs to know. Nothing in it names a cluster's other members.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// The `cluster_name` parameter (Patroni's `scope`).
    pub cluster_name: String,
    /// `application_name` of the WAL receiver: this member's name.
    pub member_name: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where `postgresql.conf` is kept, if not in the data directory.
    pub config_dir: Option<PathBuf>,
    /// Where the server programs are; absent: Debian's and PGDG's folders, then PATH.
    pub bin_dir: Option<PathBuf>,
    /// Names of programs that are not the usual ones.
    pub bin_names: BTreeMap<String, String>,
    /// The `listen_addresses` parameter.
    pub listen_addresses: String,
    /// The `port` parameter.
    pub port: u16,
    /// Host under which others reach this instance.
    pub connect_host: String,
    /// Port under which others reach this instance.
    pub connect_port: u16,
    /// The `unix_socket_directories` parameter; empty: PostgreSQL's own default.
    pub socket_dirs: Vec<PathBuf>,
    /// Whether the agent itself connects through the first of `socket_dirs`.
    pub use_unix_socket: bool,
    /// Database the agent connects to.
    pub database: String,
    /// The superuser.
    pub superuser: Credentials,
    /// The role of the WAL receiver and of base backups.
    pub replication: Credentials,
    /// The role of pg_rewind.
    pub rewind: Credentials,
    /// The password file written for libpq (Patroni's `pgpass`).
    pub pgpass: PathBuf,
    /// Server parameters, after all layers were merged.
    pub parameters: BTreeMap<String, String>,
    /// Recovery parameters (Patroni's `recovery_conf`), such as `restore_command`.
    pub recovery: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf`; empty: the file is left alone.
    pub pg_hba: Vec<String>,
    /// Lines of `pg_ident.conf`; empty: the file is left alone.
    pub pg_ident: Vec<String>,
    /// A file to include in place of `postgresql.base.conf`.
    pub custom_conf: Option<PathBuf>,
    /// How long a start, stop or reload may take before it is given up (Patroni's `pg_ctl_timeout`).
    pub pg_ctl_timeout: Duration,
    /// Options of initdb: name and, where it takes one, value.
    pub initdb: Vec<(String, Option<String>)>,
    /// Extra roles made after initdb.
    pub bootstrap_roles: Vec<BootstrapRole>,
    /// The operator's scripts.
    pub hooks: Hooks,
    /// How a new cluster is made, if not by initdb.
    pub custom_bootstrap: Option<CustomBootstrap>,
    /// Run once on a new cluster (Patroni's `post_bootstrap`).
    pub post_bootstrap: Option<Command>,
    /// Ways to make a replica, in order.
    pub replica_methods: Vec<ReplicaMethod>,
    /// The server of another cluster that a standby cluster's leader replicates from.
    pub remote: Option<Remote>,
    /// Extra options of pg_basebackup: name and, where it takes one, value.
    pub basebackup: Vec<(String, Option<String>)>,
    /// Whether pg_rewind is used, and with it `wal_log_hints` demanded.
    pub use_pg_rewind: bool,
    /// The agent's folder in memory.
    pub run_dir: PathBuf,
    /// Receives the postmaster's output.
    pub log_file: PathBuf,
    /// Patroni's `remove_data_directory_on_rewind_failure`; absent: re-clone beside and swap.
    pub remove_data_directory_on_rewind_failure: Option<bool>,
    /// Patroni's `remove_data_directory_on_diverged_timelines`; absent: re-clone beside and swap.
    pub remove_data_directory_on_diverged_timelines: Option<bool>,
}

/// What is different where the upstream belongs to another cluster (Patroni's `standby_cluster`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its host; absent: the archive alone.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// Parameters of recovery of whoever replicates from it.
    pub recovery: BTreeMap<String, String>,
    /// Ways to make a replica of it, in order; empty: the usual ones.
    pub replica_methods: Vec<ReplicaMethod>,
}

impl Remote {
    /// Whether this is where `host` and `port` lead; neither is the archive.
    pub fn is_at(&self, host: Option<&str>, port: Option<u16>) -> bool {
        self.host.as_deref() == host && (host.is_none() || Some(self.port) == port)
    }
}

impl PostgresConfig {
    /// The folder of `postgresql.conf`.
    pub fn config_dir(&self) -> &Path {
        self.config_dir.as_deref().unwrap_or(&self.data_dir)
    }

    /// The host the agent itself connects to when it does not use the socket: loopback where the server listens
    /// there, as Patroni prefers it, else the first listen address.
    pub fn local_host(&self) -> &str {
        local_host(&self.listen_addresses)
    }

    /// A sibling of the data directory: `<data_dir><suffix>`.
    pub fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.data_dir.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    }
}

/// Where to replicate from: one server's address, nothing about its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The physical slot reserved there for this member.
    pub slot: Option<String>,
}

fn local_host(listen_addresses: &str) -> &str {
    let mut hosts = listen_addresses.split(',').map(str::trim);
    let first = hosts.clone().next().unwrap_or_default();
    let loopback = |host: &str| match host.to_ascii_lowercase().as_str() {
        "" | "*" | "0.0.0.0" | "127.0.0.1" => Some("127.0.0.1"),
        "localhost" => Some("localhost"),
        "::" | "::1" => Some("::1"),
        _ => None,
    };
    hosts.find_map(loopback).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_connects_to_loopback_where_the_server_listens_there() {
        for (listen, host) in [
            ("", "127.0.0.1"),
            ("*", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1, 10.0.0.2", "10.0.0.1"),
            ("10.0.0.1,127.0.0.1", "127.0.0.1"),
            ("127.0.0.1,::1", "127.0.0.1"),
            ("10.0.0.1, ::1", "::1"),
            ("db1,LocalHost", "localhost"),
        ] {
            assert_eq!(local_host(listen), host, "{listen}");
        }
    }
}
