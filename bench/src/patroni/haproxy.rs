//! HAProxy in the router's place, with the files that people run in front of Patroni.

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
    /// As people publish it: slow checks, the write port by `GET /`, reads from whatever takes connections.
    Field,
}

impl File {
    /// From the change of a server's answer to HAProxy's acting on it: so many checks in a row, each late by up to
    /// one interval.
    pub fn slowest_turn(self) -> Duration {
        match self {
            File::Documentation => Duration::from_secs(3 * 3 + 3),
            File::Field => Duration::from_secs(10 * 3 + 10),
        }
    }

    /// The time between two checks.
    pub fn interval(self) -> Duration {
        match self {
            File::Documentation => Duration::from_secs(3),
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
        let head = "defaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout connect 4s\n    \
                    timeout server 30m\n    timeout check 5s\n";
        let common = "on-marked-down shutdown-sessions";
        match self {
            File::Documentation => format!(
                "{head}listen write\n    bind {address}:{write}\n    option httpchk OPTIONS /primary\n    \
                 http-check expect status 200\n    default-server inter 3s fall 3 rise 2 {common}\n{checked}\
                 listen read\n    bind {address}:{read}\n    option httpchk OPTIONS /replica\n    \
                 http-check expect status 200\n    default-server inter 3s fall 3 rise 2 {common}\n{checked}"
            ),
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
    /// Starts it on the router's address and ports, and waits until it takes connections.
    pub async fn start(stack: &Stack, file: File) -> Result<Haproxy> {
        let program = find("haproxy").context("haproxy is missing: apt-get install haproxy")?;
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
