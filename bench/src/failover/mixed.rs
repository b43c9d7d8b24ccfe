//! A minute of pgbench with a random fault every ten seconds.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::run::Run;
use crate::fault::{node, store};
use crate::stack::{APP, Stack};

/// How long the pgbench load lasts.
const LENGTH: Duration = Duration::from_secs(60);
/// From one fault to the next.
const BETWEEN: Duration = Duration::from_secs(10);
/// How long a frozen node stays frozen: beyond the TTL, so that another member leads.
const FROZEN: Duration = Duration::from_secs(7);
const LIMIT: Duration = Duration::from_secs(30);

/// The faults it draws from.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Switchover,
    PostmasterKilled,
    ReplicaKilled,
    AgentKilled,
    NodeFrozen,
    EtcdKilled,
}

const KINDS: [Kind; 6] = [
    Kind::Switchover,
    Kind::PostmasterKilled,
    Kind::ReplicaKilled,
    Kind::AgentKilled,
    Kind::NodeFrozen,
    Kind::EtcdKilled,
];

/// Runs it; the tables of pgbench join those compared at the end.
pub async fn mixed(run: &mut Run<'_>) -> Result<()> {
    let router = &run.stack.router;
    let (host, port) = (router.address.clone(), router.write_port.to_string());
    let base = ["-h", host.as_str(), "-p", port.as_str(), "-U", APP];
    let fill: Vec<_> = base
        .iter()
        .copied()
        .chain(["-i", "-q", "-s", "1", APP])
        .collect();
    run.stack
        .client_program("pgbench", &fill)
        .finish(LIMIT)
        .await
        .context("pgbench -i")?;
    run.tables.extend([
        "pgbench_accounts",
        "pgbench_branches",
        "pgbench_tellers",
        "pgbench_history",
    ]);
    let deadline = clock::now() + LENGTH;
    let words: Vec<_> = base
        .iter()
        .copied()
        .chain(["-N", "-n", "-c", "4", "-j", "1", "-T", "60", APP])
        .collect();
    let pgbench = run.stack.client_program("pgbench", &words);
    // A pgbench whose sessions were cut ends; the next one takes over until the minute is over.
    let load = tokio::spawn(async move {
        let mut rounds = 0;
        while clock::now() < deadline {
            pgbench.output(LENGTH + LIMIT).await.ok();
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rounds
    });
    let mut next = clock::now();
    while next + BETWEEN <= deadline {
        next = next + BETWEEN;
        tokio::time::sleep(clock::now().until(next)).await;
        let kind = KINDS[fastrand::usize(..KINDS.len())];
        // A fault that came before the last one had passed may find no leader: that is noted and skipped.
        match inflict(run.stack, kind).await {
            Ok(()) => run.note(format!("fault: {kind:?}")),
            Err(error) => run.note(format!("fault: {kind:?}, not applied: {error:#}")),
        }
    }
    let rounds = load.await?;
    run.note(format!("pgbench was started {rounds} times in {LENGTH:?}"));
    Ok(())
}

async fn inflict(stack: &mut Stack, kind: Kind) -> Result<()> {
    let leader = stack.leader().await?;
    let replica = (leader + 1) % stack.members.len();
    match kind {
        Kind::Switchover => stack
            .trunkline(&["switchover", "--force"])
            .await
            .map(|_| ()),
        Kind::PostmasterKilled => kill_postmaster(stack, leader),
        Kind::ReplicaKilled => kill_postmaster(stack, replica),
        Kind::AgentKilled => {
            stack.members[leader].end(Signal::KILL, LIMIT).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            stack.members[leader].start()
        }
        Kind::NodeFrozen => {
            let frozen = node::freeze(&stack.members[leader]).await?;
            tokio::time::sleep(FROZEN).await;
            frozen.thaw()
        }
        Kind::EtcdKilled => {
            let index = store::leader(stack).await?;
            stack.etcd[index].end(Signal::KILL).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            stack.etcd[index].start()
        }
    }
}

fn kill_postmaster(stack: &Stack, index: usize) -> Result<()> {
    let member = &stack.members[index];
    let postmaster = member.postmaster();
    postmaster
        .with_context(|| format!("{} has no postmaster", member.name))?
        .signal(Signal::KILL);
    Ok(())
}
