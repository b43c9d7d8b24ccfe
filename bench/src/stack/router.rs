//! The router as a child process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::http;
use super::member::SCOPE;
use super::place::Place;
use super::proc::ProcessId;
use super::process::{Launch, Process, args};
use super::programs::Programs;
use super::{APP, APP_PASSWORD};

/// Where a router listens.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// Its address, without port.
    pub address: String,
    /// The port whose sessions go to the leader.
    pub write_port: u16,
    /// The port whose sessions go to a replica.
    pub read_port: u16,
    /// Listeners whose sessions share servers of the leader.
    pub pooled: Option<Pooled>,
    /// The most bytes by which a replica may lag that serves reads; none is no limit.
    pub max_lag: Option<u64>,
}

/// Pooled listeners, and what they share.
#[derive(Clone, Debug)]
pub struct Pooled {
    /// Each one's port, and its mode: `transaction`, `session`, `statement`.
    pub listeners: Vec<(u16, &'static str)>,
    /// How clients log in: `scram-sha-256`, `trust`.
    pub auth: &'static str,
    /// Servers of a pool.
    pub size: usize,
    /// Another name of the load's database, and how many servers its pool has.
    pub alias: Option<(&'static str, usize)>,
}

impl Pooled {
    /// One pool of servers for listeners on these ports in these modes, whose clients log in by a password.
    pub fn by_password(listeners: &[(u16, &'static str)]) -> Pooled {
        Pooled {
            listeners: listeners.to_vec(),
            auth: "scram-sha-256",
            size: POOL_SIZE,
            alias: None,
        }
    }
}

impl Entrance {
    /// One without pools.
    pub fn new(address: String, write_port: u16, read_port: u16) -> Self {
        Self {
            address,
            write_port,
            read_port,
            pooled: None,
            max_lag: None,
        }
    }
}

/// One router with a port for writes and a port for reads.
#[derive(Debug)]
pub struct Router {
    /// Its address, without port.
    pub address: String,
    /// The port whose sessions go to the leader.
    pub write_port: u16,
    /// The port whose sessions go to a replica.
    pub read_port: u16,
    /// Its file.
    pub config: PathBuf,
    /// The network namespace it lives in, if it has one of its own.
    pub namespace: Option<String>,
    http: String,
    launch: Launch,
    process: Option<Process>,
}

/// Servers that the sessions of a pooled listener share.
pub const POOL_SIZE: usize = 20;
/// The most clients of it.
pub const MAX_CLIENTS: usize = 15_000;

/// The router's own HTTP port.
const HTTP_PORT: u16 = 8010;

impl Router {
    /// Writes the router's file and prepares everything but the start.
    pub fn new(
        place: &Place,
        programs: &Programs,
        name: &str,
        entrance: Entrance,
        http_address: &str,
        namespace: Option<String>,
        etcd_hosts: &str,
    ) -> Result<Router> {
        let folder = place.folder().join(name);
        place.own(&folder)?;
        let config = folder.join("router.yml");
        let state = folder.join("state.json");
        let Entrance {
            address,
            write_port,
            read_port,
            pooled,
            max_lag,
        } = entrance;
        let http = format!("{http_address}:{HTTP_PORT}");
        let text = format!(
            r#"name: {name}
etcd3: {{hosts: "{etcd_hosts}"}}
state_file: {state}
http: {{listen: "{http}", advertise: "{http}"}}
listeners:
  - {{listen: "{address}:{write_port}", scope: {SCOPE}, target: primary}}
  - {{listen: "{address}:{read_port}", scope: {SCOPE}, target: replicas}}
"#,
            state = state.display(),
        );
        let pooled = match pooled {
            Some(pooled) => pooled_listeners(place, &folder, &address, &pooled)?,
            None => String::new(),
        };
        let replicas = max_lag.map_or_else(String::new, |bytes| {
            format!("replicas: {{max_lag: {bytes}}}\n")
        });
        place.write(&config, &(text + &pooled + &replicas))?;
        let launch = Launch {
            program: programs.router.clone(),
            args: args([&config]),
            // The socket and the pid file of a hand-over go with the stack.
            env: vec![("RUNTIME_DIRECTORY".to_owned(), folder.display().to_string())],
            log: folder.join("router.log"),
            folder: place.folder().to_owned(),
            namespace: namespace.clone(),
            user: place.owner().user(),
            ..Launch::default()
        };
        Ok(Router {
            address,
            http,
            write_port,
            read_port,
            config,
            namespace,
            launch,
            process: None,
        })
    }

    /// Starts it, or starts it again.
    pub fn start(&mut self) -> Result<()> {
        self.process = Some(self.launch.start("the router")?);
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub fn must_live(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::must_live)
    }

    /// Its process.
    pub fn id(&self) -> Result<ProcessId> {
        Ok(self.process.as_ref().context("the router is down")?.id())
    }

    /// Ends it by a signal and waits until it has ended.
    pub async fn end(&mut self, signal: Signal, limit: Duration) -> Result<()> {
        let mut process = self.process.take().context("the router is down")?;
        process.signal(signal);
        process.ended(limit).await.map(|_| ())
    }

    /// Can it route?
    pub async fn is_ready(&self) -> bool {
        let answer = http::get(&self.http, "/ready").await;
        answer.is_ok_and(|(code, _)| code == 200)
    }

    /// What Prometheus would be told.
    pub async fn metrics(&self) -> Result<String> {
        let (code, body) = http::get(&self.http, "/metrics").await?;
        ensure!(code == 200, "GET /metrics of the router answered {code}");
        Ok(body)
    }

    /// What it makes of a member as a server of reads: nothing if it is fit.
    pub async fn why_not_read(&self, member: &str) -> Result<Option<String>> {
        let page = http::get_json(&self.http, "/topology").await?;
        let readers = page["clusters"][0]["readers"].as_array();
        let mut readers = readers.into_iter().flatten();
        let reader = readers.find(|reader| reader["member"] == member);
        let reader = reader.with_context(|| format!("the router does not know {member}"))?;
        Ok(reader["why_not"].as_str().map(str::to_owned))
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }
}

/// The last lines of a router's file, for listeners whose sessions share servers.
fn pooled_listeners(
    place: &Place,
    folder: &Path,
    address: &str,
    pooled: &Pooled,
) -> Result<String> {
    let users = folder.join("userlist.txt");
    place.write(&users, &userlist())?;
    let mut text = String::new();
    for (port, mode) in &pooled.listeners {
        text += &format!(
            "  - {{listen: \"{address}:{port}\", scope: {SCOPE}, target: primary, mode: {mode}, max_client_conn: {MAX_CLIENTS}}}\n"
        );
    }
    text += &format!(
        "auth: {{type: {}, file: {}}}\nadmin: {{stats_users: {APP}}}\npool: {{default_pool_size: {}}}\n",
        pooled.auth,
        users.display(),
        pooled.size
    );
    if let Some((name, size)) = pooled.alias {
        text +=
            &format!("databases: {{{name}: {{dbname: {APP}, pool_size: {size}}}, \"*\": {{}}}}\n");
    }
    Ok(text)
}

/// The user of the load as PgBouncer's userlist has it.
pub fn userlist() -> String {
    format!("\"{APP}\" \"{APP_PASSWORD}\"\n")
}
