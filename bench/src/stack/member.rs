//! One member: an agent as a child process, with the files it is given and the PostgreSQL it keeps.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::process::Signal;
use tokio_postgres::{Client, NoTls};

use super::http;
use super::place::Place;
use super::proc::{self, ProcessId};
use super::process::{Launch, Process, args};
use super::programs::Programs;
use super::wall_clock::WallClock;

/// The cluster's name in every stack.
pub const SCOPE: &str = "demo";
/// How long a statement of the harness itself may take.
const SQL_LIMIT: Duration = Duration::from_secs(10);

/// How long a killed agent may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// The superuser's password.
pub const SUPERUSER_PASSWORD: &str = "super-secret";
/// The most bytes of WAL that a candidate may lack.
pub const MAXIMUM_LAG: u64 = 1_048_576;

/// What keeps a member's PostgreSQL: both read the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `trunkline-agent`
    Trunkline,
    /// `patroni`
    Patroni,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Product::Trunkline => "Trunkline",
            Product::Patroni => "Patroni",
        })
    }
}

/// What the cluster is told at its bootstrap.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Seconds a lease lives.
    pub ttl: u32,
    /// Seconds between two looks at the most.
    pub loop_wait: u32,
    /// Seconds a DCS or PostgreSQL operation is retried.
    pub retry_timeout: u32,
    /// Whether commits wait for standbys, and how.
    pub synchronous: Option<Synchronous>,
    /// WAL holds what logical decoding needs.
    pub decodes: bool,
    /// Connections that PostgreSQL takes.
    pub max_connections: u32,
}

/// How commits wait for standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Synchronous {
    /// For a named one; without any they go on.
    On,
    /// For a named one; without any they block.
    Strict,
    /// For any of all.
    Quorum,
}

impl Synchronous {
    /// The lines of the dynamic configuration.
    fn lines(mode: Option<Synchronous>) -> &'static str {
        match mode {
            None => "",
            Some(Synchronous::On) => "    synchronous_mode: true\n",
            Some(Synchronous::Strict) => {
                "    synchronous_mode: true\n    synchronous_mode_strict: true\n"
            }
            Some(Synchronous::Quorum) => "    synchronous_mode: quorum\n",
        }
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            ttl: 5,
            loop_wait: 1,
            retry_timeout: 2,
            synchronous: None,
            decodes: false,
            max_connections: 100,
        }
    }
}

/// One member.
#[derive(Debug)]
pub struct Member {
    /// Its name: `n1` to `n3`.
    pub name: String,
    /// Its address, without port.
    pub address: String,
    /// The namespace it lives in, if any.
    pub namespace: Option<String>,
    /// The cgroup it lives in, if any.
    pub cgroup: Option<PathBuf>,
    /// The agent's file.
    pub config: PathBuf,
    /// PostgreSQL's data directory.
    pub data_dir: PathBuf,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// The wall clock it goes by, if it is not the machine's.
    pub wall_clock: Option<WallClock>,
    socket: PathBuf,
    product: Product,
    launch: Launch,
    process: Option<Process>,
}

/// Where a member is to live.
#[derive(Debug)]
pub struct Home {
    /// Its name.
    pub name: String,
    /// Its address, without port.
    pub address: String,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its cgroup.
    pub cgroup: Option<PathBuf>,
    /// A wall clock of its own, if it has one.
    pub wall_clock: Option<WallClock>,
}

impl Member {
    /// Writes the agent's file and prepares everything but the start.
    pub fn new(
        place: &Place,
        programs: &Programs,
        home: Home,
        etcd_hosts: &str,
        timing: &Timing,
    ) -> Result<Member> {
        let folder = place.folder().join(&home.name);
        let run_dir = place.memory().join(&home.name);
        let socket = folder.join("s");
        for path in [&folder, &run_dir, &socket] {
            place.own(path)?;
        }
        let (data_dir, config) = (folder.join("data"), folder.join("agent.yml"));
        let clock = home.wall_clock.as_ref();
        let member = Member {
            launch: Launch {
                program: programs.agent.clone(),
                args: args([&config]),
                log: folder.join("agent.log"),
                folder: place.folder().to_owned(),
                namespace: home.namespace.clone(),
                user: place.owner().user(),
                cgroup: home.cgroup.clone(),
                own_env: clock.map(WallClock::environment).unwrap_or_default(),
                ..Launch::default()
            },
            name: home.name,
            address: home.address,
            namespace: home.namespace,
            cgroup: home.cgroup,
            config,
            data_dir,
            run_dir,
            wall_clock: home.wall_clock,
            socket,
            product: Product::Trunkline,
            process: None,
        };
        place.write(
            &member.config,
            &member.file(&folder, programs, etcd_hosts, timing),
        )?;
        Ok(member)
    }

    /// The agent's file, in Patroni's schema. Three servers share two cores and little memory here; what
    /// makes a commit durable stays as in production. Dynamic shared memory lies in the data directory, so that
    /// a killed server leaves none behind in /dev/shm once its directory is removed.
    fn file(&self, folder: &Path, programs: &Programs, etcd: &str, timing: &Timing) -> String {
        let Member {
            name,
            address,
            data_dir,
            run_dir,
            socket,
            ..
        } = self;
        let Timing {
            ttl,
            loop_wait,
            retry_timeout,
            synchronous,
            decodes,
            max_connections,
        } = timing;
        let wal_level = if *decodes { "logical" } else { "replica" };
        let synchronous = Synchronous::lines(*synchronous);
        format!(
            r#"scope: {SCOPE}
name: {name}
restapi: {{listen: "{address}:8008", connect_address: "{address}:8008"}}
etcd3: {{hosts: "{etcd}"}}
bootstrap:
  dcs:
    ttl: {ttl}
    loop_wait: {loop_wait}
    retry_timeout: {retry_timeout}
    maximum_lag_on_failover: 1048576
{synchronous}    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        max_connections: {max_connections}
        shared_buffers: 64MB
        max_wal_size: 512MB
        wal_level: {wal_level}
        wal_log_hints: "on"
        dynamic_shared_memory_type: mmap
      pg_hba:
      - local all all trust
      - host replication all 0.0.0.0/0 scram-sha-256
      - host all all 0.0.0.0/0 scram-sha-256
  initdb: [{{encoding: UTF8}}, {{locale: C}}, data-checksums]
postgresql:
  listen: "{address}:5432"
  connect_address: "{address}:5432"
  data_dir: {data_dir}
  bin_dir: {bin_dir}
  pgpass: {folder}/pgpass
  authentication:
    superuser: {{username: postgres, password: {SUPERUSER_PASSWORD}}}
    replication: {{username: replicator, password: repl-secret}}
    rewind: {{username: rewinder, password: rewind-secret}}
  parameters: {{unix_socket_directories: "{socket}"}}
trunkline: {{run_dir: {run_dir}}}
"#,
            bin_dir = programs.postgresql.display(),
            data_dir = data_dir.display(),
            folder = folder.display(),
            socket = socket.display(),
            run_dir = run_dir.display(),
        )
    }

    /// What keeps its PostgreSQL now, or did last.
    pub fn product(&self) -> Product {
        self.product
    }

    /// Starts this product on the member's file; the other one must have ended.
    pub fn start_as(&mut self, product: Product, program: &Path) -> Result<()> {
        if self.process.is_some() {
            bail!("{} is kept by {} still", self.name, self.product);
        }
        self.product = product;
        self.launch.program = program.to_owned();
        self.start()
    }

    /// Starts the agent, or starts it again.
    pub fn start(&mut self) -> Result<()> {
        self.process = Some(self.launch.start(&format!("the agent of {}", self.name))?);
        Ok(())
    }

    /// Fails if the agent has ended by itself.
    pub fn must_live(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::must_live)
    }

    /// The agent's process.
    pub fn agent(&self) -> Result<ProcessId> {
        let process = self.process.as_ref();
        Ok(process
            .with_context(|| format!("the agent of {} is down", self.name))?
            .id())
    }

    /// Ends the agent by a signal and waits until it has ended.
    pub async fn end(&mut self, signal: Signal, limit: Duration) -> Result<()> {
        let process = self.process.take();
        let mut process = process.with_context(|| format!("the agent of {} is down", self.name))?;
        process.signal(signal);
        process.ended(limit).await.map(|_| ())
    }

    /// Kills the agent, its fence and every server process.
    pub async fn kill(&mut self) -> Result<()> {
        for id in self.everything() {
            id.signal(Signal::KILL);
        }
        self.end(Signal::KILL, KILL_LIMIT).await?;
        // A child that was made between the look and the signal.
        for id in self.everything() {
            id.signal(Signal::KILL);
        }
        Ok(())
    }

    /// The fence: whoever, beside the agent, holds the lock in the run directory.
    pub fn fence(&self) -> Option<ProcessId> {
        let agent = self.process.as_ref().map(Process::id);
        let is_fence = |id: &ProcessId| {
            let first = id.arguments().into_iter().next().unwrap_or_default();
            first.ends_with("trunkline-fence") && Some(*id) != agent
        };
        proc::holding(&self.run_dir.join("fence.lock"))
            .into_iter()
            .find(is_fence)
    }

    /// What keeps the member beside the agent's own process: the fence, and what the agent has started and is no
    /// server of the instance.
    pub fn beside_agent(&self) -> Vec<ProcessId> {
        let agent = self.process.as_ref().map(Process::id);
        let servers = self.servers();
        let children = agent.map(proc::descendants).unwrap_or_default();
        let kept = children.into_iter().filter(|id| !servers.contains(id));
        let mut all: Vec<_> = kept.chain(self.fence()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The postmaster, if it lives.
    pub fn postmaster(&self) -> Option<ProcessId> {
        proc::postmaster(&self.data_dir)
    }

    /// Every server process of the instance.
    pub fn servers(&self) -> std::collections::BTreeSet<ProcessId> {
        proc::of_data_dir(&self.data_dir)
    }

    /// Takes away what a boot of the machine takes; nothing of the member may run.
    pub fn forget_memory(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.run_dir)? {
            let path = entry?.path();
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Everything a freeze of the node stops: agent, fence, server processes.
    pub fn everything(&self) -> Vec<ProcessId> {
        let agent = self.process.as_ref().map(Process::id);
        agent
            .into_iter()
            .chain(self.fence())
            .chain(self.servers())
            .collect()
    }

    /// A page of the agent's REST API.
    pub async fn rest(&self, path: &str) -> Result<serde_json::Value> {
        http::get_json(&format!("{}:8008", self.address), path).await
    }

    /// Asks, in a task of its own, whether it says that it leads; no answer is a no.
    pub fn ask_primary(&self) -> tokio::task::JoinHandle<bool> {
        let address = format!("{}:8008", self.address);
        tokio::spawn(async move {
            http::get(&address, "/primary")
                .await
                .is_ok_and(|(code, _)| code == 200)
        })
    }

    /// A superuser's session over the local socket: it works whatever the network does.
    pub async fn sql(&self, database: &str) -> Result<Client> {
        self.door().open(database).await
    }

    /// The way to the instance's local socket.
    pub fn door(&self) -> Door {
        Door {
            socket: self.socket.clone(),
        }
    }

    /// The folder of the instance's local socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The agent's log.
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// The agent is to write its log there.
    pub fn log_to(&mut self, file: PathBuf) {
        self.launch.log = file;
    }

    /// The last lines of the agent's log.
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }
}

/// The way to one instance's local socket.
#[derive(Clone, Debug)]
pub struct Door {
    socket: PathBuf,
}

impl Door {
    /// A superuser's session.
    pub async fn open(&self, database: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.socket)
            .port(5432)
            .user("postgres")
            .dbname(database);
        config.application_name("trunkline-bench");
        let connect = tokio::time::timeout(SQL_LIMIT, config.connect(NoTls));
        let (client, connection) = connect.await??;
        tokio::spawn(connection);
        Ok(client)
    }
}
