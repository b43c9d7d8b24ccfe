//! What stands side by side: a cluster of one kind, and what its clients come through.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use super::Setup;
use crate::patroni;
use crate::patroni::haproxy::File;
use crate::patroni::rig::Rig;
use crate::stack::member::Product;
use crate::stack::process::{Launch, Process, args};
use crate::stack::router::{POOL_SIZE, Pooled, userlist};
use crate::stack::{Layout, Plan, Stack, encryption, namespaces};
use crate::switchover::{PORT, clients};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Agents and router
    Trunkline,
    /// Patroni, HAProxy with the file of its documentation, PgBouncer with its defaults
    Patroni,
    /// The same with HAProxy's and PgBouncer's shortest times
    PatroniTuned,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            System::Trunkline => "Trunkline",
            System::Patroni => "Patroni + HAProxy + PgBouncer",
            System::PatroniTuned => "the same, tuned",
        })
    }
}

/// A running one; its clients write through [`PORT`] of the router's address.
#[derive(Debug)]
pub enum Site {
    /// The router stands in the middle.
    Trunkline(Box<Stack>),
    /// PgBouncer stands before HAProxy, on the router's address.
    Patroni(Box<Rig>, Process),
}

impl Site {
    /// Starts it, with the load's tables, and waits until a client gets through.
    pub async fn start(system: System, setup: &Setup<'_>) -> Result<Site> {
        let site = match system {
            System::Trunkline => Site::of_trunkline(setup).await?,
            System::Patroni => Site::of_patroni(setup, File::Documentation, "").await?,
            System::PatroniTuned => {
                let short = "server_login_retry = 1\nserver_connect_timeout = 2\n";
                Site::of_patroni(setup, File::Tuned, short).await?
            }
        };
        let (stack, address) = (site.stack(), &site.stack().router.address);
        let open = encryption::until_open(stack, address, PORT, false).await;
        open.with_context(|| format!("no session through {system}"))?;
        Ok(site)
    }

    async fn of_trunkline(setup: &Setup<'_>) -> Result<Site> {
        let layout = match rustix::process::geteuid().is_root() {
            true => Layout::Namespaces,
            false => Layout::Loopback,
        };
        let plan = Plan {
            timing: setup.timing.clone(),
            pooled: Some(Pooled {
                listeners: vec![(PORT, "transaction")],
                auth: "scram-sha-256",
                size: POOL_SIZE,
                alias: None,
            }),
            ..Plan::new(layout)
        };
        let stack = Stack::start(&plan, setup.progress).await?;
        clients::prepare(&stack, stack.leader().await?).await?;
        Ok(Site::Trunkline(Box::new(stack)))
    }

    async fn of_patroni(setup: &Setup<'_>, checks: File, times: &str) -> Result<Site> {
        let rivals = setup.rivals.context("the programs of others are missing")?;
        let own = patroni::Setup {
            outside: &rivals.outside,
            writers: 0,
            keep_logs: None,
            progress: setup.progress,
        };
        let products = [Product::Patroni; 3];
        let rig = Rig::start(&own, products, setup.timing.clone(), checks).await?;
        let stack = &rig.stack;
        clients::prepare(stack, stack.leader().await?).await?;
        let pgbouncer = pgbouncer(stack, &rivals.pgbouncer, times)?;
        Ok(Site::Patroni(Box::new(rig), pgbouncer))
    }

    /// The cluster.
    pub fn stack(&self) -> &Stack {
        match self {
            Site::Trunkline(stack) => stack,
            Site::Patroni(rig, _) => &rig.stack,
        }
    }

    /// The cluster, to do something to it.
    pub fn stack_mut(&mut self) -> &mut Stack {
        match self {
            Site::Trunkline(stack) => stack,
            Site::Patroni(rig, _) => &mut rig.stack,
        }
    }

    /// Moves leadership as its operator would, to the first member that does not lead.
    pub async fn switch_over(&self) -> Result<()> {
        match self {
            Site::Trunkline(stack) => {
                let leader = stack.leader().await?;
                let name = |index: usize| stack.members[index].name.as_str();
                let (from, to) = (name(leader), name(usize::from(leader == 0)));
                let words = ["switchover", "--leader", from, "--candidate", to, "--force"];
                stack.trunkline(&words).await.map(|_| ())
            }
            Site::Patroni(rig, _) => {
                let to = rig.other(Product::Patroni).await?;
                rig.switchover_by_patronictl(&to).await.map(|_| ())
            }
        }
    }

    /// Fails if what clients come through has ended by itself.
    pub fn must_live(&mut self) -> Result<()> {
        match self {
            Site::Trunkline(stack) => stack.router.must_live(),
            Site::Patroni(_, pgbouncer) => pgbouncer.must_live(),
        }
    }
}

/// PgBouncer before HAProxy's write port, on the same node.
fn pgbouncer(stack: &Stack, program: &Path, times: &str) -> Result<Process> {
    let users = stack.write("userlist.txt", &userlist())?;
    let router = &stack.router;
    let (address, port) = (&router.address, router.write_port);
    let text = format!(
        "[databases]\n* = host={address} port={port}\n[pgbouncer]\nlisten_addr = {address}\nlisten_port = {PORT}\n\
         unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\n\
         default_pool_size = {POOL_SIZE}\n{times}",
        users = users.display(),
    );
    let file = stack.write("pgbouncer.ini", &text)?;
    let namespace = match stack.layout {
        Layout::Loopback => None,
        Layout::Namespaces => Some(namespaces::name(stack.number(), "r1")),
    };
    let launch = Launch {
        namespace,
        args: args([&file]),
        ..stack.tool(program, &[])
    };
    launch.start("PgBouncer")
}
