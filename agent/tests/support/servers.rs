//! Real servers for a test: a locked number with its addresses, instances below one folder, and their end.

#[path = "as_postgres.rs"]
mod as_postgres;
#[path = "waiting.rs"]
mod waiting;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, pidfd_send_signal};
use trunkline_agent::postgres::kill::kill_instance;
use trunkline_agent::postgres::methods::ReplicaMethod;
use trunkline_agent::postgres::scan::ProcessId;
use trunkline_agent::postgres::{Credentials, Postgres, PostgresConfig, Upstream};
use trunkline_shared::service::clock;

pub use waiting::{PATIENCE, wait_for};

/// How many test clusters one machine may hold.
const NUMBERS: u8 = 250;

/// Runs `body` once for every installed major version, as an ordinary user. `name` is the test's own name.
pub fn on_every_major(name: &str, body: impl AsyncFn(&Servers)) {
    if rustix::process::geteuid().is_root() {
        let programs = [
            ("trunkline-agent", env!("CARGO_BIN_EXE_trunkline-agent")),
            ("trunkline", env!("CARGO_BIN_EXE_trunkline")),
        ];
        as_postgres::run_again(name, &programs);
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let majors = installed();
    assert!(
        !majors.is_empty(),
        "no PostgreSQL below /usr/lib/postgresql: install it (apt-get install postgresql)"
    );
    for bin_dir in majors {
        let servers = Servers::new(bin_dir);
        runtime.block_on(body(&servers));
    }
}

/// The folders of programs that `TRUNKLINE_POSTGRESQL` names, with colons between; without it, everything
/// below /usr/lib/postgresql.
fn installed() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("TRUNKLINE_POSTGRESQL") {
        let named: Vec<_> = std::env::split_paths(&named).collect();
        for bin in &named {
            assert!(
                bin.join("initdb").exists() && bin.join("pg_rewind").exists(),
                "TRUNKLINE_POSTGRESQL names {}, which holds no programs of PostgreSQL",
                bin.display()
            );
        }
        return named;
    }
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists() && bin.join("pg_rewind").exists())
        .collect();
    found.sort();
    found
}

/// A locked number and a folder; everything ends with it.
pub struct Servers {
    number: u8,
    folder: tempfile::TempDir,
    bin_dir: PathBuf,
    _lock: File,
}

impl Servers {
    fn new(bin_dir: PathBuf) -> Self {
        let locks = std::env::temp_dir().join("trunkline-numbers");
        if fs::create_dir(&locks).is_ok() {
            fs::set_permissions(&locks, fs::Permissions::from_mode(0o1777)).unwrap();
        }
        // From the top, so that whole stacks, which count from the bottom, are seldom met.
        let (number, lock) = (1..=NUMBERS)
            .rev()
            .find_map(|number| Some((number, lock(&locks.join(format!("{number}.lock")))?)))
            .expect("a free number");
        Self {
            number,
            folder: tempfile::tempdir().unwrap(),
            bin_dir,
            _lock: lock,
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration of instance `index`, 1 to 9.
    pub fn config(&self, index: u8) -> PostgresConfig {
        let base = self.folder.path().join(index.to_string());
        fs::create_dir_all(&base).unwrap();
        let role = |name: &str, password: &str| Credentials {
            username: name.to_owned(),
            password: Some(password.into()),
            connection: [("gssencmode".to_owned(), "disable".to_owned())].into(),
        };
        let text = |pair: (&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
        let hba = [
            "local all all trust",
            "host all all 127.0.0.0/8 scram-sha-256",
            "host replication all 127.0.0.0/8 scram-sha-256",
        ];
        let host = format!("127.77.{}.{index}", self.number);
        PostgresConfig {
            cluster_name: "test".into(),
            member_name: format!("member-{index}"),
            data_dir: base.join("data"),
            config_dir: None,
            bin_dir: Some(self.bin_dir.clone()),
            bin_names: std::collections::BTreeMap::new(),
            listen_addresses: host.clone(),
            port: 5432,
            connect_host: host,
            connect_port: 5432,
            socket_dirs: vec![base.clone()],
            use_unix_socket: true,
            database: "postgres".into(),
            superuser: role("postgres", "super:\\'secret"),
            replication: role("replicator", "replicated"),
            rewind: role("rewind_user", "rewound"),
            pgpass: base.join("pgpass"),
            parameters: [
                ("shared_buffers", "16MB"),
                ("max_connections", "60"),
                ("password_encryption", "scram-sha-256"),
                ("log_statement", "all"),
            ]
            .map(text)
            .into(),
            recovery: std::collections::BTreeMap::new(),
            pg_hba: hba.map(str::to_owned).into(),
            pg_ident: Vec::new(),
            custom_conf: None,
            pg_ctl_timeout: PATIENCE,
            initdb: vec![
                ("data-checksums".into(), None),
                ("encoding".into(), Some("UTF8".into())),
                ("auth-host".into(), Some("scram-sha-256".into())),
                ("auth-local".into(), Some("trust".into())),
            ],
            bootstrap_roles: Vec::new(),
            hooks: Default::default(),
            custom_bootstrap: None,
            post_bootstrap: None,
            replica_methods: vec![ReplicaMethod::Basebackup],
            remote: None,
            basebackup: Vec::new(),
            use_pg_rewind: true,
            run_dir: base.clone(),
            log_file: base.join("postgres.log"),
            remove_data_directory_on_rewind_failure: None,
            remove_data_directory_on_diverged_timelines: None,
        }
    }

    /// A door to instance `index`.
    pub fn door(&self, index: u8) -> Postgres {
        Postgres::new(self.config(index)).unwrap()
    }

    /// Instance `index` as others replicate from it.
    pub fn upstream(&self, index: u8) -> Upstream {
        let config = self.config(index);
        Upstream {
            host: config.connect_host,
            port: config.connect_port,
            slot: None,
        }
    }

    /// The agent's program: beside this one when it was copied, else where Cargo built it.
    pub fn agent(&self) -> PathBuf {
        let beside = std::env::current_exe()
            .unwrap()
            .with_file_name("trunkline-agent");
        if beside.exists() {
            beside
        } else {
            env!("CARGO_BIN_EXE_trunkline-agent").into()
        }
    }

    /// A client session of instance `index`.
    pub async fn client(&self, index: u8) -> tokio_postgres::Client {
        let config = self.config(index);
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(&config.socket_dirs[0])
            .port(config.port)
            .user("postgres")
            .dbname("postgres")
            .connect(tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for index in 1..=9_u8 {
            let data = self.folder.path().join(index.to_string()).join("data");
            if data.exists() {
                kill_instance(&data, Duration::from_secs(5));
            }
        }
        // A member that was making or replacing its data has programs in other folders, and their addresses with them.
        let began = clock::now();
        while kill_below(self.folder.path()) && clock::now().since(began) < PATIENCE {
            std::thread::yield_now();
        }
    }
}

/// Kills whatever works in a folder below `folder`, or was called with one: a postmaster that an agent started in the
/// moment of its own end has not changed to its folder yet. Whether there was anything.
fn kill_below(folder: &Path) -> bool {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_inside = |pid: &i32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_called = String::from_utf8_lossy(&words).contains(&*folder.to_string_lossy());
        is_called || cwd.is_ok_and(|cwd| cwd.starts_with(folder))
    };
    let found: Vec<_> = pids.filter(is_inside).filter_map(ProcessId::of).collect();
    for pidfd in found.iter().filter_map(|process| process.open()) {
        // One that has ended meanwhile is what is wanted.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    !found.is_empty()
}

fn lock(path: &Path) -> Option<File> {
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(_) => {
            let file = File::options()
                .write(true)
                .create_new(true)
                .open(path)
                .ok()?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).ok()?;
            file
        }
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}
