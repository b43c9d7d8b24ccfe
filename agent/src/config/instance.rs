//! From the two configurations, this file's and the cluster's, to what the door to PostgreSQL needs. The
//! layering rule of parameters lives here and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;
use trunkline_shared::cluster::ClusterSettings;

use super::{AgentConfig, Credentials};
use crate::postgres::config::{BootstrapRole, PostgresConfig};

/// Parameters that must be equal, or at least ordered, on all members: a replica refuses to start with less
/// than its primary had. They come from the cluster's configuration only, as in Patroni.
const OF_THE_CLUSTER: [&str; 10] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_worker_processes",
    "max_prepared_transactions",
    "wal_level",
    "track_commit_timestamp",
    "max_wal_senders",
    "max_replication_slots",
    "wal_log_hints",
    "hot_standby",
];

/// Parameters that follow from other settings and nobody sets.
const DERIVED: [&str; 3] = ["listen_addresses", "port", "cluster_name"];

/// The server parameters in force: the cluster's, with this file's laid over them, except where members
/// must agree.
pub fn parameters(
    of_the_cluster: &BTreeMap<String, String>,
    local: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let may_differ = |name: &str| !OF_THE_CLUSTER.contains(&name);
    let mut parameters = of_the_cluster.clone();
    parameters.extend(
        local
            .iter()
            .filter(|(name, _)| may_differ(name))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    parameters.retain(|name, _| !DERIVED.contains(&name.as_str()));
    parameters
}

impl AgentConfig {
    /// What the door to PostgreSQL needs. Made anew when either configuration changes.
    pub fn instance(&self, settings: &ClusterSettings, run_dir: PathBuf) -> PostgresConfig {
        let local = &self.postgresql;
        let parameters = parameters(&settings.parameters, &local.parameters);
        let socket_dirs = parameters
            .get("unix_socket_directories")
            .map(|dirs| {
                dirs.split(',')
                    .map(|dir| PathBuf::from(dir.trim()))
                    .collect()
            })
            .unwrap_or_default();
        let mut recovery = settings.recovery_conf.clone();
        recovery.extend(local.recovery.clone());
        let pg_hba = match (&local.pg_hba, &settings.pg_hba) {
            (Some(lines), _) | (None, Some(lines)) => lines.clone(),
            (None, None) => self.bootstrap.pg_hba.clone(),
        };
        let superuser = credentials(&local.superuser);
        PostgresConfig {
            cluster_name: self.cluster.to_string(),
            member_name: self.name.to_string(),
            data_dir: local.data_dir.clone(),
            config_dir: Some(local.config_dir.clone()).filter(|dir| *dir != local.data_dir),
            bin_dir: local.bin_dir.clone(),
            listen_addresses: local.listen.host.clone(),
            port: local.listen.port,
            connect_host: local.connect_address.host.clone(),
            connect_port: local.connect_address.port,
            socket_dirs,
            use_unix_socket: local.use_unix_socket,
            database: local.database.clone(),
            replication: credentials(&local.replication),
            rewind: local
                .rewind
                .as_ref()
                .map_or_else(|| superuser.clone(), credentials),
            superuser,
            pgpass: local
                .pgpass
                .clone()
                .unwrap_or_else(|| run_dir.join("pgpass")),
            parameters,
            recovery,
            pg_hba,
            pg_ident: local.pg_ident.clone().unwrap_or_default(),
            custom_conf: local.custom_conf.clone(),
            pg_ctl_timeout: local.pg_ctl_timeout,
            initdb: self
                .bootstrap
                .initdb
                .iter()
                .map(|option| (option.name.clone(), option.value.clone()))
                .collect(),
            bootstrap_roles: self.bootstrap_roles(),
            basebackup: local.basebackup.clone(),
            use_pg_rewind: local.use_pg_rewind.unwrap_or(settings.use_pg_rewind),
            log_file: run_dir.join("postgresql.log"),
            run_dir,
            remove_data_directory_on_rewind_failure: local.remove_data_directory_on_rewind_failure,
            remove_data_directory_on_diverged_timelines: local
                .remove_data_directory_on_diverged_timelines,
        }
    }

    fn bootstrap_roles(&self) -> Vec<BootstrapRole> {
        self.bootstrap
            .users
            .iter()
            .map(|(name, user)| BootstrapRole {
                credentials: login(name, user.password.as_ref()),
                options: user.options.clone(),
            })
            .collect()
    }
}

fn credentials(role: &Credentials) -> crate::postgres::config::Credentials {
    login(&role.username, role.password.as_ref())
}

fn login(username: &str, password: Option<&SecretString>) -> crate::postgres::config::Credentials {
    crate::postgres::config::Credentials {
        username: username.to_owned(),
        password: password.cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn local_parameters_win_except_where_members_must_agree() {
        let cluster = map(&[
            ("max_connections", "100"),
            ("work_mem", "4MB"),
            ("port", "1"),
        ]);
        let local = map(&[
            ("max_connections", "5"),
            ("work_mem", "8MB"),
            ("jit", "off"),
        ]);
        assert_eq!(
            parameters(&cluster, &local),
            map(&[
                ("max_connections", "100"),
                ("work_mem", "8MB"),
                ("jit", "off")
            ])
        );
    }
}
