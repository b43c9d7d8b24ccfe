//! The agent's file and the cluster's settings to the configuration of the local instance: Patroni's
//! layers, in one place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trunkline_shared::cluster::ClusterSettings;
use trunkline_shared::cluster::slots::SlotKind;

use crate::config::{self, AgentConfig};
use crate::postgres::PostgresConfig;
use crate::postgres::config::{BootstrapRole, Credentials, Remote};
use crate::postgres::methods::{CustomMethod, ReplicaMethod};

/// The configuration in force: what the file says wins over what the cluster says.
pub fn postgres_config(
    config: &AgentConfig,
    settings: &ClusterSettings,
    run_dir: &Path,
) -> PostgresConfig {
    let local = &config.postgresql;
    let mut parameters = config::layers::parameters(&settings.parameters, &local.parameters);
    if needs_feedback(settings) {
        parameters.insert("hot_standby_feedback".to_owned(), "on".to_owned());
    }
    if keeps_failover_slots(settings) {
        // A server below 17 does not get it.
        parameters.insert("sync_replication_slots".to_owned(), "on".to_owned());
    }
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
        bin_names: local.bin_names.clone(),
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
        recovery: recovery(settings, &local.recovery),
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
        remote: remote(settings, local),
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

/// Whether copies of logical slots depend on what this member tells its primary, whatever the file says.
fn needs_feedback(settings: &ClusterSettings) -> bool {
    let mut slots = settings.slots.values();
    settings.use_slots && slots.any(|slot| slot.kind != SlotKind::Physical)
}

/// Whether PostgreSQL itself is to keep slots on standbys, where it can.
fn keeps_failover_slots(settings: &ClusterSettings) -> bool {
    let mut slots = settings.slots.values();
    needs_feedback(settings) && slots.any(|slot| slot.is_failover)
}

/// The settings of recovery: what `standby_cluster` says of fetching WAL stands over the cluster's own, and
/// the member's file over both.
fn recovery(
    settings: &ClusterSettings,
    local: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut cluster = settings.recovery_conf.clone();
    let section = settings.standby_cluster.as_ref();
    if let Some(command) = section.and_then(|section| section.restore_command.clone()) {
        cluster.insert("restore_command".to_owned(), command);
    }
    layered(&cluster, local)
}

/// The server of another cluster. What clears the archive and what delays replay is for the leader alone,
/// as Patroni has it.
fn remote(settings: &ClusterSettings, local: &config::PostgresqlConfig) -> Option<Remote> {
    let section = settings.standby_cluster.as_ref()?;
    let own = [
        ("archive_cleanup_command", &section.archive_cleanup_command),
        (
            "recovery_min_apply_delay",
            &section.recovery_min_apply_delay,
        ),
    ];
    let host = section.host.as_ref().map(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.to_owned()
    });
    Some(Remote {
        host,
        port: section.port,
        recovery: own
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
            .collect(),
        replica_methods: section
            .create_replica_methods
            .iter()
            .map(|name| replica_method(name, local))
            .collect(),
    })
}

/// The method of this name; one that the file does not describe is a command of that name, as Patroni has it.
fn replica_method(name: &str, local: &config::PostgresqlConfig) -> ReplicaMethod {
    if name == "basebackup" {
        return ReplicaMethod::Basebackup;
    }
    let found = local.methods().find(|method| method.name == name);
    ReplicaMethod::Custom(found.cloned().unwrap_or_else(|| CustomMethod {
        name: name.to_owned(),
        command: vec![name.to_owned()],
        keep_data: false,
        no_params: false,
        no_leader: false,
        extra: Vec::new(),
    }))
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
