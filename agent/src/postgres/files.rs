//! Writes and checks the files of a data directory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use super::PostgresError;
use super::conf_copies;
use super::config::{PostgresConfig, Upstream};
use super::settings::{
    self, BASE_CONF, ConfRole, primary_conninfo, read_setting, render_conf, render_lines,
    render_pgpass, without_recovery_settings,
};
use super::synchronous;

/// What happens to the upstream of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamChange {
    /// It stays as the files say: an upstream is never removed before a new one is confirmed.
    Keep,
    /// It becomes this one.
    To(Upstream),
    /// There is none: WAL comes from an archive, or not at all.
    Nowhere,
}

/// The role a server is started in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerRole {
    /// Accepts writes.
    Primary,
    /// In the recovery of a custom bootstrap, at whose end it accepts writes.
    Recovering,
    /// In recovery.
    Replica(UpstreamChange),
}

pub(super) const STANDBY_SIGNAL: &str = "standby.signal";
const RECOVERY_SIGNAL: &str = "recovery.signal";

/// Whether the directory is that of a replica.
pub(crate) fn is_replica(data_dir: &Path) -> bool {
    data_dir.join(STANDBY_SIGNAL).exists()
}

/// Replaces a file whole: a crash leaves the old or the new one.
pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), PostgresError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".trunkline-new");
    let fresh = PathBuf::from(fresh);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(PostgresError::file("write", path))
}

/// Makes the renames and new names of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), PostgresError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(PostgresError::file("sync", path))
}

pub(crate) fn remove_file(path: &Path) -> Result<(), PostgresError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PostgresError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Reads a file of settings; a missing one is empty.
pub(super) fn read_text(path: &Path) -> Result<String, PostgresError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(PostgresError::file("read", path)(error)),
    }
}

/// Adds a line to a file of settings; the last one of a name wins.
pub(crate) fn append_line(path: &Path, line: &str) -> Result<(), PostgresError> {
    write_file(path, &format!("{}\n{line}\n", read_text(path)?.trim_end()))
}

/// Writes the password file of the agent's three roles.
pub(crate) fn write_pgpass(config: &PostgresConfig) -> Result<(), PostgresError> {
    let roles = [&config.superuser, &config.replication, &config.rewind];
    write_file(&config.pgpass, &render_pgpass(&roles))
}

/// Writes every file for a server in `role`.
pub(crate) fn write_all(
    config: &PostgresConfig,
    controlled: &BTreeMap<&'static str, String>,
    role: &ServerRole,
    is_paused: bool,
) -> Result<(), PostgresError> {
    write_pgpass(config)?;
    conf_copies::restore(config)?;
    let conf = config.config_dir().join("postgresql.conf");
    let auto_conf = config.data_dir.join("postgresql.auto.conf");
    let (old, old_auto) = (read_text(&conf)?, read_text(&auto_conf)?);
    keep_original(config, &conf, &old)?;
    if *role == ServerRole::Primary && settings::is_patronis(&old) {
        synchronous::keep_value_of(config, &old)?;
    }
    let (conninfo, slot) = upstream_of(config, role, &old, &old_auto);
    let conninfo = conninfo.map(|text| settings::with_database(config, text));
    let conf_role = match role {
        ServerRole::Primary => ConfRole::Primary,
        ServerRole::Recovering => ConfRole::Recovering,
        ServerRole::Replica(_) => ConfRole::Replica {
            conninfo: conninfo.as_deref(),
            slot: slot.as_deref(),
        },
    };
    write_file(
        &conf,
        &render_conf(config, controlled, conf_role, is_paused),
    )?;
    for (name, file, lines) in [
        ("pg_hba.conf", "hba_file", &config.pg_hba),
        ("pg_ident.conf", "ident_file", &config.pg_ident),
    ] {
        if settings::is_managed(config, file, lines) {
            write_file(&config.config_dir().join(name), &render_lines(lines))?;
        }
    }
    conf_copies::keep(config)?;
    if !keeps_recovery(config, role)
        && let Some(text) = without_recovery_settings(&old_auto)
    {
        write_file(&auto_conf, &text)?;
    }
    if keeps_recovery(config, role) {
        return Ok(());
    }
    write_signals(&config.data_dir, role)
}

/// Without the parameters of the agent's own that the directory's version does not know.
pub(super) fn as_known_here(config: &PostgresConfig) -> PostgresConfig {
    let mut config = config.clone();
    let mut names = config.parameters.keys();
    if !names.any(|name| settings::is_versioned(name)) {
        return config;
    }
    let major = directory_major(&config.data_dir).and_then(|major| major.parse().ok());
    if let Some(major) = major {
        let parameters = &mut config.parameters;
        parameters.retain(|name, _| settings::is_known_to(name, major));
    }
    config
}

/// Whether what a custom bootstrap left of recovery settings and signals stays.
fn keeps_recovery(config: &PostgresConfig, role: &ServerRole) -> bool {
    let custom = config.custom_bootstrap.as_ref();
    *role == ServerRole::Recovering && custom.is_some_and(|c| c.keep_existing_recovery_conf)
}

/// Before the first generated file is written, the original is renamed; it is included from then on.
fn keep_original(config: &PostgresConfig, conf: &Path, old: &str) -> Result<(), PostgresError> {
    let base = config.config_dir().join(BASE_CONF);
    if config.custom_conf.is_some() || base.exists() {
        return Ok(());
    }
    if old.is_empty() || settings::is_generated(old) {
        return write_file(&base, "");
    }
    fs::rename(conf, &base).map_err(PostgresError::file("rename", conf))
}

fn upstream_of(
    config: &PostgresConfig,
    role: &ServerRole,
    old: &str,
    old_auto: &str,
) -> (Option<String>, Option<String>) {
    match role {
        ServerRole::Primary
        | ServerRole::Recovering
        | ServerRole::Replica(UpstreamChange::Nowhere) => (None, None),
        ServerRole::Replica(UpstreamChange::To(upstream)) => (
            Some(primary_conninfo(config, upstream)),
            upstream.slot.clone(),
        ),
        // The automatic file is read last by the server, so its value is the one that was in use.
        ServerRole::Replica(UpstreamChange::Keep) => {
            let kept = |name| read_setting(old_auto, name).or_else(|| read_setting(old, name));
            (kept("primary_conninfo"), kept("primary_slot_name"))
        }
    }
}

fn write_signals(data_dir: &Path, role: &ServerRole) -> Result<(), PostgresError> {
    let standby = data_dir.join(STANDBY_SIGNAL);
    if *role != ServerRole::Recovering {
        remove_file(&data_dir.join(RECOVERY_SIGNAL))?;
    }
    remove_file(&data_dir.join("promote"))?;
    match role {
        ServerRole::Primary => remove_file(&standby)?,
        ServerRole::Recovering => {
            remove_file(&standby)?;
            write_file(&data_dir.join(RECOVERY_SIGNAL), "")?;
        }
        ServerRole::Replica(_) if standby.exists() => {}
        ServerRole::Replica(_) => write_file(&standby, "")?,
    }
    sync_directory(data_dir)
}

/// Removes `postmaster.pid` of a server that is proved dead. Left there, its number reused by any process
/// of this user (usual in a container) would keep PostgreSQL from starting.
pub(crate) fn remove_stale_lock(config: &PostgresConfig) -> Result<(), PostgresError> {
    // A killed postmaster that nobody has reaped yet keeps PostgreSQL itself from removing the lock of its
    // socket. The second line tells whose it is; one in the data directory is this instance's, or came from
    // another with a copy of its data.
    for dir in &config.socket_dirs {
        let dir = config.data_dir.join(dir);
        let lock = dir.join(format!(".s.PGSQL.{}.lock", config.port));
        let is_ours = fs::read_to_string(&lock)
            .is_ok_and(|text| text.lines().nth(1).map(Path::new) == Some(&config.data_dir));
        if is_ours || is_below(&dir, &config.data_dir) {
            remove_file(&lock)?;
        }
    }
    remove_file(&config.data_dir.join("postmaster.pid"))
}

/// Whether a path lies in a folder, by its words.
fn is_below(path: &Path, folder: &Path) -> bool {
    let goes_up = |part: Component<'_>| part == Component::ParentDir;
    path.starts_with(folder) && !path.components().any(goes_up)
}

/// Checks owner and mode as PostgreSQL does, to say it in one line before anything is started.
pub(crate) fn check_directory(data_dir: &Path) -> Result<(), PostgresError> {
    let wrong = |problem: String, remedy: String| PostgresError::Directory {
        path: data_dir.to_owned(),
        problem,
        remedy,
    };
    let metadata = fs::metadata(data_dir).map_err(PostgresError::file("read", data_dir))?;
    if !metadata.is_dir() {
        let remedy = "set postgresql.data_dir to the data directory";
        return Err(wrong("is not a directory".to_owned(), remedy.to_owned()));
    }
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != uid {
        return Err(wrong(
            format!(
                "belongs to user {}, the agent runs as {uid}",
                metadata.uid()
            ),
            format!("run the agent as its owner, or chown -R it to {uid}"),
        ));
    }
    if metadata.mode() & 0o027 != 0 {
        return Err(wrong(
            format!("has mode {:04o}", metadata.mode() & 0o7777),
            format!("chmod 0700 {}", data_dir.display()),
        ));
    }
    if directory_major(data_dir).is_none() {
        return Err(wrong(
            "holds no PG_VERSION".to_owned(),
            "it is not a data directory; check that the right disk is mounted".to_owned(),
        ));
    }
    Ok(())
}

/// The major version a directory was made by.
pub(crate) fn directory_major(data_dir: &Path) -> Option<String> {
    let text = fs::read_to_string(data_dir.join("PG_VERSION")).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::settings::tests::config;

    #[test]
    fn the_lock_of_a_socket_is_removed_where_it_is_this_instances_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let outside = dir.path().join("sockets");
        fs::create_dir_all(&data_dir).unwrap();
        fs::create_dir_all(&outside).unwrap();
        let lock = |folder: &Path| folder.join(".s.PGSQL.5432.lock");
        let others = "4711\n/another/data\n";
        fs::write(lock(&data_dir), others).unwrap();
        fs::write(lock(&outside), others).unwrap();
        let config = PostgresConfig {
            socket_dirs: vec![".".into(), outside.clone(), "../sockets".into()],
            data_dir: data_dir.clone(),
            ..config()
        };
        remove_stale_lock(&config).unwrap();
        // It came with a copy of another server's data.
        assert!(!lock(&data_dir).exists());
        assert!(lock(&outside).exists());
        fs::write(lock(&outside), format!("4711\n{}\n", data_dir.display())).unwrap();
        remove_stale_lock(&config).unwrap();
        assert!(!lock(&outside).exists());
    }
}
