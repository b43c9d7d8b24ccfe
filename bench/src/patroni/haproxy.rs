//! HAProxy in the router's place, with the files that people run in front of Patroni.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use trunkline_shared::service::clock;

use crate::stack::namespaces;
use crate::stack::process::{Launch, Process, args, find};
use crate::stack::{Layout, Stack};

/// It must take connections within this.
const READY_LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The one of Patroni's documentation: two ports, each checked by its own path.
    Documentation,
    /// The same, checked as often and as trustingly as people dare: each second, one answer is enough.
    Tuned,
    /// As people publish it: slow checks, the write port by `GET /`, reads from whatever takes connections.
    Field,
}

impl File {
    /// From the change of a server's answer to HAProxy's acting on it: so many checks in a row, each late by up to
    /// one interval.
    pub fn slowest_turn(self) -> Duration {
        match self {
            File::Documentation => Duration::from_secs(3 * 3 + 3),
            File::Tuned => Duration::from_secs(1 + 1),
            File::Field => Duration::from_secs(10 * 3 + 10),
        }
    }

    /// The time between two checks.
    pub fn interval(self) -> Duration {
        match self {
            File::Documentation => Duration::from_secs(3),
            File::Tuned => Duration::from_secs(1),
            File::Field => Duration::from_secs(10),
        }
    }

    fn text(self, stack: &Stack) -> String {
        let router = &stack.router;
        let (address, write, read) = (&router.address, router.write_port, router.read_port);
        let servers = |check: &str| -> String {
            let each = stack.members.iter();
            each.map(|member| {
                let (name, address) = (&member.name, &member.address);
                format!("    server {name} {address}:5432{check}\n")
            })
            .collect()
        };
        let checked = servers(" check port 8008");
        let (connect, check) = match self {
            File::Documentation | File::Field => ("4s", "5s"),
            File::Tuned => ("1s", "1s"),
        };
        let head = format!(
            "defaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout connect {connect}\n    \
             timeout server 30m\n    timeout check {check}\n"
        );
        let common = "on-marked-down shutdown-sessions";
        let checked_by_path = |often: &str| {
            format!(
                "{head}listen write\n    bind {address}:{write}\n    option httpchk OPTIONS /primary\n    \
                 http-check expect status 200\n    default-server {often} {common}\n{checked}\
                 listen read\n    bind {address}:{read}\n    option httpchk OPTIONS /replica\n    \
                 http-check expect status 200\n    default-server {often} {common}\n{checked}"
            )
        };
        match self {
            File::Documentation => checked_by_path("inter 3s fall 3 rise 2"),
            File::Tuned => checked_by_path("inter 1s fall 1 rise 1"),
            File::Field => format!(
                "{head}listen postgres_write\n    bind {address}:{write}\n    mode tcp\n    option httpchk\n    \
                 http-check expect status 200\n    default-server inter 10s fall 3 rise 3 {common}\n{checked}\
                 listen postgres_read\n    bind {address}:{read}\n    mode tcp\n    balance leastconn\n    \
                 option pgsql-check user admin\n    default-server inter 10s fall 3 rise 3 {common}\n{}",
                servers("")
            ),
        }
    }
}

/// A running HAProxy; it ends when dropped.
#[derive(Debug)]
pub struct Haproxy {
    /// Whose file it runs on.
    pub file: File,
    process: Process,
}

impl Haproxy {
    /// Starts it on the router's address and ports, and waits until it takes connections: this program, or that of
    /// the system.
    pub async fn start(stack: &Stack, file: File, program: Option<&Path>) -> Result<Haproxy> {
        let named = program.map(Path::to_owned);
        let program = named.or_else(|| find("haproxy"));
        let program = program.context("haproxy is missing: apt-get install haproxy")?;
        let config = stack.write("haproxy.cfg", &file.text(stack))?;
        let namespace = match stack.layout {
            Layout::Loopback => None,
            Layout::Namespaces => Some(namespaces::name(stack.number(), "r1")),
        };
        let launch = Launch {
            namespace,
            args: args(["-db", "-f", &config.to_string_lossy()]),
            ..stack.tool(&program, &[])
        };
        let mut process = launch.start("haproxy")?;
        let router = &stack.router;
        let deadline = clock::now() + READY_LIMIT;
        let at = (router.address.as_str(), router.write_port);
        while tokio::net::TcpStream::connect(at).await.is_err() {
            process.must_live()?;
            if clock::now() >= deadline {
                anyhow::bail!(
                    "HAProxy took no connection within {READY_LIMIT:?}: {}",
                    process.tail()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Haproxy { file, process })
    }

    /// Ends it.
    pub async fn end(mut self) -> Result<()> {
        self.process.kill().await
    }
}
