//! The agent's file and the cluster's settings to the configuration of the local instance: Patroni's
//! layers, in one place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trunkline_shared::cluster::ClusterSettings;

use crate::config::{self, AgentConfig};
use crate::postgres::PostgresConfig;
use crate::postgres::config::{BootstrapRole, Credentials};

/// The configuration in force: what the file says wins over what the cluster says.
pub fn postgres_config(
    config: &AgentConfig,
    settings: &ClusterSettings,
    run_dir: &Path,
) -> PostgresConfig {
    let local = &config.postgresql;
    let parameters = config::layers::parameters(&settings.parameters, &local.parameters);
    let bootstrap = &config.bootstrap;
    let first_hba = || {
        let cluster = settings.pg_hba.clone();
        cluster.unwrap_or_else(|| bootstrap.pg_hba.clone())
    };
    PostgresConfig {
        cluster_name: config.cluster.to_string(),
        member_name: config.name.to_string(),
        data_dir: local.data_dir.clone(),
        config_dir: (local.config_dir != local.data_dir).then(|| local.config_dir.clone()),
        bin_dir: local.bin_dir.clone(),
        listen_addresses: local.listen.host.clone(),
        port: local.listen.port,
        connect_host: local.connect_address.host.clone(),
        connect_port: local.connect_address.port,
        socket_dirs: socket_dirs(&parameters),
        use_unix_socket: local.use_unix_socket,
        database: local.database.clone(),
        superuser: credentials(&local.superuser),
        replication: credentials(&local.replication),
        rewind: credentials(local.rewind.as_ref().unwrap_or(&local.superuser)),
        pgpass: local
            .pgpass
            .clone()
            .unwrap_or_else(|| run_dir.join("pgpass")),
        recovery: layered(&settings.recovery_conf, &local.recovery),
        pg_hba: local.pg_hba.clone().unwrap_or_else(first_hba),
        pg_ident: local
            .pg_ident
            .clone()
            .or_else(|| settings.pg_ident.clone())
            .unwrap_or_default(),
        custom_conf: local.custom_conf.clone(),
        pg_ctl_timeout: local.pg_ctl_timeout,
        initdb: bootstrap
            .initdb
            .iter()
            .map(|option| (option.name.clone(), option.value.clone()))
            .collect(),
        bootstrap_roles: bootstrap.users.iter().map(role).collect(),
        hooks: local.hooks.clone(),
        custom_bootstrap: bootstrap.custom.clone(),
        post_bootstrap: bootstrap.post_bootstrap.clone(),
        replica_methods: local.replica_methods.clone(),
        basebackup: local.basebackup.clone(),
        use_pg_rewind: local.use_pg_rewind.unwrap_or(settings.use_pg_rewind),
        run_dir: run_dir.to_owned(),
        log_file: log_file(&local.data_dir, run_dir),
        remove_data_directory_on_rewind_failure: local.remove_data_directory_on_rewind_failure,
        remove_data_directory_on_diverged_timelines: local
            .remove_data_directory_on_diverged_timelines,
        parameters,
    }
}

fn layered(
    cluster: &BTreeMap<String, String>,
    local: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut all = cluster.clone();
    all.extend(local.clone());
    all
}

fn credentials(of: &config::Credentials) -> Credentials {
    Credentials {
        username: of.username.clone(),
        password: of.password.clone(),
        connection: of.connection.clone(),
    }
}

fn role((name, user): (&String, &config::BootstrapUser)) -> BootstrapRole {
    BootstrapRole {
        credentials: Credentials {
            username: name.clone(),
            password: user.password.clone(),
            connection: BTreeMap::new(),
        },
        options: user.options.clone(),
    }
}

fn socket_dirs(parameters: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let dirs = parameters.get("unix_socket_directories");
    let dirs = dirs.map(String::as_str).unwrap_or_default().split(',');
    dirs.map(str::trim)
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .collect()
}

/// The postmaster's output stands beside the data directory, where a base backup does not copy it; in
/// memory where nothing may be written there.
fn log_file(data_dir: &Path, run_dir: &Path) -> PathBuf {
    let parent = data_dir.parent().unwrap_or(Path::new("/"));
    if rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_ok() {
        let mut name = data_dir.as_os_str().to_owned();
        name.push(".log");
        return PathBuf::from(name);
    }
    run_dir.join("postgres.log")
}
