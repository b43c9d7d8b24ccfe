//! The router as a child process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::http;
use super::member::SCOPE;
use super::place::Place;
use super::proc::ProcessId;
use super::process::{Launch, Process, args};
use super::programs::Programs;

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
    http: String,
    launch: Launch,
    process: Option<Process>,
}

/// The router's own HTTP port.
const HTTP_PORT: u16 = 8010;

impl Router {
    /// Writes the router's file and prepares everything but the start.
    pub fn new(
        place: &Place,
        programs: &Programs,
        (address, write_port, read_port): (String, u16, u16),
        http_address: &str,
        namespace: Option<String>,
        etcd_hosts: &str,
    ) -> Result<Router> {
        let folder = place.folder().join("r1");
        place.own(&folder)?;
        let config = folder.join("router.yml");
        let state = folder.join("state.json");
        let http = format!("{http_address}:{HTTP_PORT}");
        let text = format!(
            r#"name: r1
etcd3: {{hosts: "{etcd_hosts}"}}
state_file: {state}
http: {{listen: "{http}", advertise: "{http}"}}
listeners:
  - {{listen: "{address}:{write_port}", scope: {SCOPE}, target: primary}}
  - {{listen: "{address}:{read_port}", scope: {SCOPE}, target: replicas}}
"#,
            state = state.display(),
        );
        place.write(&config, &text)?;
        let launch = Launch {
            program: programs.router.clone(),
            args: args([&config]),
            // The socket and the pid file of a hand-over go with the stack.
            env: vec![("RUNTIME_DIRECTORY".to_owned(), folder.display().to_string())],
            log: folder.join("router.log"),
            folder: place.folder().to_owned(),
            namespace,
            user: place.owner().user(),
            ..Launch::default()
        };
        Ok(Router {
            address,
            http,
            write_port,
            read_port,
            config,
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

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }
}
