//! What happens to the leader in the middle of a run.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::replicas::Lagging;
use crate::fault::node;
use crate::stack::{APP, MEMBERS, Stack};

/// Another member must lead within this.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// A frozen node stays frozen for so long beside its successor, so that the lists go on without it before it thaws.
const BESIDE: Duration = Duration::from_secs(1);

/// So long may it take until the clients have written as much as a replica may lag, and until it has replayed that again.
const LAG_LIMIT: Duration = Duration::from_secs(90);
/// A replica lags on for so long once the router knows.
const LAGS: Duration = Duration::from_secs(3);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// SIGKILL to the leader's postmaster
    KillPostgres,
    /// SIGKILL to the leader's agent, fence and PostgreSQL; started again once another member leads
    KillNode,
    /// The leader stands still until another member leads, and then goes on
    FreezeNode,
    /// A planned change of leader
    Switchover,
    /// Replay on one replica is paused until the router knows that it lags too far, and a while longer
    LagReplica,
    /// Nothing
    None,
}

impl Fault {
    /// Its name, as on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether a namespace per node is of use: frozen by its cgroup, all of a node stands still at one moment.
    pub fn wants_namespaces(self) -> bool {
        match self {
            Fault::FreezeNode => rustix::process::geteuid().is_root(),
            Fault::KillPostgres
            | Fault::KillNode
            | Fault::Switchover
            | Fault::LagReplica
            | Fault::None => false,
        }
    }

    /// Does it to the leader, or to a replica, and ends it where it has an end; which replica lagged then.
    pub async fn inflict(self, stack: &mut Stack) -> Result<Option<Lagging>> {
        let leader = stack.leader().await?;
        let name = stack.members[leader].name.clone();
        match self {
            Fault::KillPostgres => {
                let postmaster = stack.members[leader].postmaster();
                let postmaster = postmaster.with_context(|| format!("{name} has no postmaster"))?;
                postmaster.signal(Signal::KILL);
            }
            Fault::KillNode => {
                stack.members[leader].kill().await?;
                until_another_leads(stack, leader).await?;
                stack.members[leader].start()?;
            }
            Fault::FreezeNode => {
                let frozen = node::freeze(&stack.members[leader]).await?;
                let led = until_another_leads(stack, leader).await;
                tokio::time::sleep(BESIDE).await;
                frozen.thaw()?;
                led?;
            }
            Fault::Switchover => {
                stack.trunkline(&["switchover", "--force"]).await?;
            }
            Fault::LagReplica => return lag(stack, (leader + 1) % MEMBERS).await.map(Some),
            Fault::None => {}
        }
        Ok(None)
    }
}

/// Holds a replica back by its replay, which no commit waits for.
async fn lag(stack: &mut Stack, replica: usize) -> Result<Lagging> {
    let (name, server) = {
        let member = &stack.members[replica];
        (member.name.clone(), member.address.clone())
    };
    let direct = stack.members[replica].sql(APP).await?;
    direct.batch_execute("SELECT pg_wal_replay_pause()").await?;
    let lags = async |stack: &Stack| {
        let why = stack.router.why_not_read(&name).await;
        why.is_ok_and(|why| why.is_some_and(|why| why.starts_with("lags by")))
    };
    stack.until("a replica that lags", LAG_LIMIT, lags).await?;
    let from = clock::now();
    tokio::time::sleep(LAGS).await;
    let until = clock::now();
    direct
        .batch_execute("SELECT pg_wal_replay_resume()")
        .await?;
    let is_fit = async |stack: &Stack| {
        let why = stack.router.why_not_read(&name).await;
        why.is_ok_and(|why| why.is_none())
    };
    let waited = stack.until("a replica that is fit again", LAG_LIMIT, is_fit);
    waited.await?;
    Ok(Lagging {
        server,
        known: (from, until),
    })
}

async fn until_another_leads(stack: &mut Stack, old: usize) -> Result<()> {
    let led = async |stack: &Stack| stack.leader().await.is_ok_and(|now| now != old);
    stack.until("another leader", LEADER_LIMIT, led).await
}
