//! Faults of a whole node: frozen as a stopped virtual machine is, or cut off from the network.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use crate::stack::member::Member;
use crate::stack::namespaces;
use crate::stack::proc::ProcessId;

/// How long the kernel may take to freeze a cgroup.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

/// A frozen node; [`Frozen::thaw`] ends it.
#[derive(Debug)]
pub struct Frozen {
    how: How,
}

#[derive(Debug)]
enum How {
    Cgroup(std::path::PathBuf),
    Signals(Vec<ProcessId>),
}

/// Freezes agent, fence and PostgreSQL: at one moment by the member's cgroup where it has one, else by
/// SIGSTOP to each, repeated until no process is found that was not stopped.
pub async fn freeze(member: &Member) -> Result<Frozen> {
    if let Some(cgroup) = &member.cgroup {
        fs::write(cgroup.join("cgroup.freeze"), "1").context("cannot freeze the cgroup")?;
        let deadline = clock::now() + FREEZE_LIMIT;
        while !fs::read_to_string(cgroup.join("cgroup.events"))?.contains("frozen 1") {
            if clock::now() >= deadline {
                bail!(
                    "the cgroup of {} did not freeze within {FREEZE_LIMIT:?}",
                    member.name
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        return Ok(Frozen {
            how: How::Cgroup(cgroup.clone()),
        });
    }
    let mut stopped: Vec<ProcessId> = Vec::new();
    loop {
        let fresh: Vec<_> = member
            .everything()
            .into_iter()
            .filter(|id| !stopped.contains(id))
            .collect();
        if fresh.is_empty() {
            return Ok(Frozen {
                how: How::Signals(stopped),
            });
        }
        for id in fresh {
            id.signal(Signal::STOP);
            stopped.push(id);
        }
    }
}

impl Frozen {
    /// Lets everything run again.
    pub fn thaw(self) -> Result<()> {
        match self.how {
            How::Cgroup(cgroup) => fs::write(cgroup.join("cgroup.freeze"), "0")?,
            How::Signals(stopped) => {
                for id in stopped {
                    id.signal(Signal::CONT);
                }
            }
        }
        Ok(())
    }
}

/// Where etcd's members serve clients.
const ETCD_CLIENT_PORT: &str = "2379";

/// Drops every packet from and to the member's node, its etcd member's too.
pub async fn cut_off(member: &Member) -> Result<()> {
    namespaces::cut(namespace(member)?).await
}

/// Connects the node again.
pub async fn reconnect(member: &Member) -> Result<()> {
    namespaces::heal(namespace(member)?).await
}

/// Drops every packet of the member's node to a client port of etcd, that of its own node included; members
/// of the store go on reaching each other.
pub async fn cut_off_from_store(member: &Member) -> Result<()> {
    namespaces::cut_from_port(namespace(member)?, ETCD_CLIENT_PORT).await
}

/// Ends what [`cut_off_from_store`] did.
pub async fn reconnect_to_store(member: &Member) -> Result<()> {
    namespaces::heal_port(namespace(member)?, ETCD_CLIENT_PORT).await
}

fn namespace(member: &Member) -> Result<&str> {
    let namespace = member.namespace.as_deref();
    namespace.with_context(|| {
        format!(
            "{} has no namespace of its own: this needs root",
            member.name
        )
    })
}
