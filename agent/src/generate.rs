//! `--generate-config`: a configuration for an instance that runs, by what it says of itself. What it cannot say
//! (where etcd is, passwords) is marked [`FILL_IN`], and the agent refuses a file that still has such a mark where
//! it matters.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::config::Environment;
use crate::postgres::controlled::{DERIVED, is_of_the_cluster};

/// What stands where somebody has to write something.
pub const FILL_IN: &str = "#FILL_IN";

/// Longest wait for the instance.
const LIMIT: Duration = Duration::from_secs(10);

/// Where packages put the socket.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Commands, and files of this machine: they stay in the member's own file.
const OF_THE_MEMBER: [&str; 8] = [
    "archive_command",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "ssl_passphrase_command",
    "hba_file",
    "ident_file",
    "unix_socket_directories",
];

/// Set by the agent, or of this instance alone.
const LEFT_OUT: [&str; 8] = [
    "data_directory",
    "config_file",
    "external_pid_file",
    "primary_conninfo",
    "primary_slot_name",
    "restart_after_crash",
    "synchronous_standby_names",
    "synchronized_standby_slots",
];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The connection string cannot be read.
    #[error(
        "--dsn cannot be read: {0}; write it as libpq does, such as \"host=/var/run/postgresql user=postgres\""
    )]
    Dsn(String),
    /// The instance does not answer.
    #[error("the instance does not answer: {0}; start it, or say where it is with --dsn")]
    Instance(String),
    /// Only a superuser is told where the files are.
    #[error("{0} is no superuser; use one in --dsn")]
    NoSuperuser(String),
    /// A file of the instance cannot be read.
    #[error("{path} cannot be read: {source}; run this as the user that owns the instance")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file to be written is there.
    #[error("{0} exists, and is not overwritten; remove it, or give another name")]
    Exists(PathBuf),
    /// It cannot be written.
    #[error("{path} cannot be written: {source}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Writes `text` into a new file that only its owner reads: it may hold passwords.
///
/// # Errors
/// The file is there already, or cannot be written.
pub fn write(path: &Path, text: &str) -> Result<(), GenerateError> {
    let unwritable = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => GenerateError::Exists(path.to_owned()),
        _ => GenerateError::Unwritable {
            path: path.to_owned(),
            source,
        },
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(unwritable)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(unwritable)?;
    file.write_all(text.as_bytes()).map_err(unwritable)
}

/// The configuration of the instance at `dsn`, or where the environment says, as YAML.
///
/// # Errors
/// The instance does not answer, or not to a superuser.
pub async fn of_a_running_instance(
    dsn: Option<&str>,
    env: &Environment,
) -> Result<String, GenerateError> {
    let config = connection(dsn, env)?;
    let instance = Instance::ask(&config).await?;
    let mut text = String::from(
        "# Made by trunkline-agent --generate-config from a running instance. Every #FILL_IN needs a value.\n",
    );
    for (section, value) in document(&config, &instance)? {
        let mut one = Map::new();
        one.insert(section.clone(), value);
        let one = Value::Object(one);
        let yaml = serde_saphyr::to_string(&one).unwrap_or_else(|_| one.to_string());
        if section == "bootstrap" {
            text.push_str("\n# Read once, by the member that makes the cluster; later: trunkline edit-config.");
        }
        text.push_str(&format!("\n{}\n", yaml.trim_end()));
    }
    Ok(text)
}

/// The connection string, with libpq's variables for what it does not say.
fn connection(dsn: Option<&str>, env: &Environment) -> Result<Config, GenerateError> {
    let wrong = |error: tokio_postgres::Error| {
        // The text of the source names the word; the string itself may hold a password.
        let source = std::error::Error::source(&error);
        GenerateError::Dsn(source.map_or_else(|| error.to_string(), ToString::to_string))
    };
    let mut config: Config = dsn.unwrap_or_default().parse().map_err(wrong)?;
    let variable = |name: &str| env.get(name).filter(|value| !value.is_empty());
    if config.get_hosts().is_empty() {
        let found = || {
            let mut dirs = SOCKET_DIRS.iter();
            let found = dirs.find(|dir| Path::new(dir).is_dir());
            (*found.unwrap_or(&SOCKET_DIRS[1])).to_owned()
        };
        config.host(variable("PGHOST").cloned().unwrap_or_else(found));
    }
    if config.get_ports().is_empty() {
        let port = variable("PGPORT").and_then(|port| port.parse().ok());
        config.port(port.unwrap_or(5432));
    }
    if config.get_user().is_none() {
        let user = variable("PGUSER").or_else(|| variable("USER"));
        config.user(user.map_or("postgres", String::as_str));
    }
    if config.get_dbname().is_none() {
        config.dbname(variable("PGDATABASE").map_or("postgres", String::as_str));
    }
    if config.get_password().is_none()
        && let Some(password) = variable("PGPASSWORD")
    {
        config.password(password);
    }
    Ok(config)
}

/// What the instance says.
struct Instance {
    version: u32,
    /// Name, value as `SHOW` prints it.
    settings: Vec<(String, String)>,
    has_checksums: bool,
}

impl Instance {
    async fn ask(config: &Config) -> Result<Self, GenerateError> {
        let failed = |error: tokio_postgres::Error| {
            let told = error
                .as_db_error()
                .map(|answer| answer.message().to_owned());
            let source = std::error::Error::source(&error).map(ToString::to_string);
            GenerateError::Instance(told.or(source).unwrap_or_else(|| error.to_string()))
        };
        let late = |_| GenerateError::Instance(format!("no answer within {LIMIT:?}"));
        let connecting = tokio::time::timeout(LIMIT, config.connect(NoTls));
        let (client, connection) = connecting.await.map_err(late)?.map_err(failed)?;
        // Ends with the client.
        tokio::spawn(connection);
        let user = rows(
            &client,
            "SELECT current_user, current_setting('is_superuser'), current_setting('server_version_num'), \
             current_setting('data_checksums')",
        );
        let user = user.await.map_err(failed)?;
        let word = |at: usize| {
            let row = user.first();
            row.and_then(|row| row.get(at)).cloned().unwrap_or_default()
        };
        if word(1) != "on" {
            return Err(GenerateError::NoSuperuser(word(0)));
        }
        let settings = rows(
            &client,
            "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings \
             WHERE context <> 'internal' AND category <> 'Write-Ahead Log / Recovery Target' \
             AND setting <> '(disabled)' \
             AND source IN ('configuration file', 'command line', 'environment variable') \
             OR name IN ('data_directory', 'config_file', 'hba_file', 'ident_file', 'listen_addresses', 'port', \
             'cluster_name', 'max_connections', 'max_locks_per_transaction', 'max_worker_processes', \
             'max_prepared_transactions', 'wal_level', 'track_commit_timestamp', 'max_wal_senders', \
             'max_replication_slots', 'wal_log_hints', 'wal_keep_size') ORDER BY name",
        );
        let settings = settings.await.map_err(failed)?;
        Ok(Self {
            version: word(2).parse().unwrap_or(0),
            has_checksums: word(3) == "on",
            settings: settings
                .into_iter()
                .filter_map(|row| {
                    let mut words = row.into_iter();
                    Some((words.next()?, words.next()?))
                })
                .collect(),
        })
    }

    fn setting(&self, name: &str) -> &str {
        let found = self.settings.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }
}

async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|at| row.get(at).unwrap_or_default().to_owned())
                .collect(),
        ),
        _ => None,
    };
    Ok(messages.iter().filter_map(row).collect())
}

fn document(config: &Config, instance: &Instance) -> Result<Map<String, Value>, GenerateError> {
    let data_dir = PathBuf::from(instance.setting("data_directory"));
    let (of_the_cluster, mut of_the_member) = parameters(instance);
    let (host, name) = (own_address(), host_name());
    let port = instance.setting("port");
    let has_hints = instance.setting("wal_log_hints") == "on" || instance.has_checksums;
    let mut postgresql = Map::new();
    let mut put = |key: &str, value: Value| postgresql.insert(key.to_owned(), value);
    put("listen", json!(format!("{}:{port}", listens(instance))));
    put("connect_address", json!(format!("{host}:{port}")));
    put("data_dir", json!(data_dir));
    put("bin_dir", json!(bin_dir(&data_dir)?));
    put("authentication", authentication(config));
    // Named files are the operator's; those in the data directory become lines.
    for (file, parameter, key) in [
        ("pg_hba.conf", "hba_file", "pg_hba"),
        ("pg_ident.conf", "ident_file", "pg_ident"),
    ] {
        let path = data_dir.join(file);
        if Path::new(instance.setting(parameter)) == path {
            of_the_member.shift_remove(parameter);
            let lines = lines(&path, instance.version / 10_000, key == "pg_hba")?;
            if !lines.is_empty() {
                put(key, json!(lines));
            }
        }
    }
    put("parameters", Value::Object(of_the_member));
    let scope = Some(instance.setting("cluster_name")).filter(|name| !name.is_empty());
    let dcs = json!({
        "loop_wait": 10,
        "retry_timeout": 10,
        "ttl": 30,
        "postgresql": {
            "use_slots": true,
            "use_pg_rewind": has_hints,
            "parameters": of_the_cluster,
        },
    });
    let document = json!({
        "scope": scope.unwrap_or(FILL_IN),
        "name": name,
        "restapi": { "listen": format!("{host}:8008"), "connect_address": format!("{host}:8008") },
        "etcd3": { "hosts": FILL_IN },
        "bootstrap": { "dcs": dcs },
        "postgresql": postgresql,
        "tags": {
            "failover_priority": 1,
            "sync_priority": 1,
            "noloadbalance": false,
            "clonefrom": true,
            "nosync": false,
            "nostream": false,
        },
    });
    match document {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// Parameters of the cluster, and of the member.
fn parameters(instance: &Instance) -> (Map<String, Value>, Map<String, Value>) {
    let (mut cluster, mut member) = (Map::new(), Map::new());
    for (name, value) in &instance.settings {
        let is_owned = DERIVED.contains(&name.as_str()) || LEFT_OUT.contains(&name.as_str());
        if is_owned && !is_of_the_cluster(name) {
            continue;
        }
        let target = match OF_THE_MEMBER.contains(&name.as_str()) {
            true => &mut member,
            false => &mut cluster,
        };
        target.insert(name.clone(), json!(value));
    }
    (cluster, member)
}

fn listens(instance: &Instance) -> String {
    match instance.setting("listen_addresses") {
        "" => FILL_IN.to_owned(),
        addresses => addresses.replace(' ', ""),
    }
}

fn authentication(config: &Config) -> Value {
    let password = config.get_password().map(String::from_utf8_lossy);
    json!({
        "superuser": {
            "username": config.get_user().unwrap_or("postgres"),
            "password": password.as_deref().unwrap_or(FILL_IN),
        },
        "replication": { "username": FILL_IN, "password": FILL_IN },
    })
}

/// Where the running server's program is.
fn bin_dir(data_dir: &Path) -> Result<PathBuf, GenerateError> {
    let path = data_dir.join("postmaster.pid");
    let unreadable = |path: PathBuf| move |source| GenerateError::Unreadable { path, source };
    let text = std::fs::read_to_string(&path).map_err(unreadable(path))?;
    let exe = PathBuf::from(format!("/proc/{}/exe", text.lines().next().unwrap_or("")));
    let program = std::fs::read_link(&exe).map_err(unreadable(exe))?;
    Ok(program.parent().unwrap_or(Path::new("/")).to_owned())
}

/// The lines that say something. `pg_hba.conf` may include files since version 16.
fn lines(path: &Path, major: u32, is_hba: bool) -> Result<Vec<String>, GenerateError> {
    const KINDS: [&str; 6] = [
        "local",
        "host",
        "hostssl",
        "hostnossl",
        "hostgssenc",
        "hostnogssenc",
    ];
    const SINCE_16: [&str; 3] = ["include", "include_if_exists", "include_dir"];
    let text = std::fs::read_to_string(path).map_err(|source| GenerateError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let is_kept = |line: &&str| match line.split_whitespace().next() {
        None => false,
        Some(first) if is_hba => {
            KINDS.contains(&first) || (major >= 16 && SINCE_16.contains(&first))
        }
        Some(first) => !first.starts_with('#'),
    };
    let kept = text.lines().map(str::trim).filter(is_kept);
    Ok(kept.map(str::to_owned).collect())
}

fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    match name.as_str() {
        "" => FILL_IN.to_owned(),
        _ => name,
    }
}

/// The address under which this machine goes out, without a packet being sent.
fn own_address() -> String {
    let found = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        // An address set aside for documentation: nobody is there, and nothing is sent.
        socket.connect("192.0.2.1:9").ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let address = found().filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    address.map_or_else(|| FILL_IN.to_owned(), |ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::Host;

    use super::*;

    #[test]
    fn the_environment_fills_in_what_the_dsn_does_not_say() {
        let env: Environment = [("PGPORT", "5433"), ("PGUSER", "admin"), ("PGHOST", "h")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let config = connection(Some("host=/run/x user=me"), &env).unwrap();
        assert_eq!(config.get_hosts(), [Host::Unix("/run/x".into())]);
        assert_eq!(config.get_ports(), [5433]);
        assert_eq!(config.get_user(), Some("me"));
        assert_eq!(config.get_dbname(), Some("postgres"));
        let config = connection(None, &env).unwrap();
        assert_eq!(config.get_hosts(), [Host::Tcp("h".to_owned())]);
        assert_eq!(config.get_user(), Some("admin"));
        let error = connection(Some("hots=x password=hidden"), &env).unwrap_err();
        assert!(error.to_string().contains("hots"), "{error}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
}
