//! Clients come, ask a little, are cancelled and die in every way, without a pause: nothing of them may stay behind.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::task::JoinSet;
use trunkline_shared::service::clock;

use super::{Ground, LIMIT, identity};
use crate::report::{self, Progress, say};

/// Memory grows by no more than this part from the end of the first tenth to the end.
const GROWTH: f64 = 0.10;
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// Servers whose clients died in the middle may take so long to end.
const SETTLED: Duration = Duration::from_secs(30);
/// Steps of one session at the most.
const STEPS: usize = 4;

#[derive(Args, Debug)]
pub(super) struct ChurnOptions {
    /// How long
    #[arg(long, default_value_t = 1800)]
    seconds: u64,
    /// Clients
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Servers that they share
    #[arg(long, default_value_t = 8)]
    servers: usize,
    /// The number their lives are drawn by, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
}

pub(super) async fn run(options: &ChurnOptions) -> Result<bool> {
    let progress = Progress::new();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let ground = Arc::new(Ground::prepare(options.servers, &progress).await?);
    progress.step(format!("{} s of churn, seed {seed}", options.seconds));
    let time = Duration::from_secs(options.seconds);
    let mut clients = JoinSet::new();
    for number in 0..options.clients {
        let ground = ground.clone();
        clients.spawn(async move { identity::client(&ground, number, (seed, STEPS), time).await });
    }
    let until = clock::now() + time;
    let mut memory = Vec::new();
    let mut looks = tokio::time::interval(LOOK);
    while clock::now() < until {
        tokio::select! {
            _ = looks.tick() => memory.push(ground.router_kb()?),
            Some(ended) = clients.join_next() => {
                ended?.with_context(|| ground.story(seed))?;
            }
        }
    }
    let mut done = Vec::new();
    let rest = async {
        while let Some(client) = clients.join_next().await {
            done.push(client??);
        }
        Ok::<(), anyhow::Error>(())
    };
    let ended = tokio::time::timeout(LIMIT, rest).await;
    ended
        .context("a client hangs")?
        .with_context(|| ground.story(seed))?;
    memory.push(ground.router_kb()?);
    let servers = settled(&ground, options.servers).await?;
    progress.done();
    let sessions: u64 = done.iter().map(|done| done.sessions).sum();
    judge(options, seed, &memory, sessions, servers)
}

/// Waits until no server is busy and no more are open than the pool holds.
async fn settled(ground: &Ground, servers: usize) -> Result<i64> {
    let deadline = clock::now() + SETTLED;
    loop {
        let counted = ground
            .direct
            .query_one(
                "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity \
                 WHERE usename = $1",
                &[&ground.user],
            )
            .await?;
        let (open, busy): (i64, i64) = (counted.get(0), counted.get(1));
        if busy == 0 && usize::try_from(open).is_ok_and(|open| open <= servers) {
            return Ok(open);
        }
        if clock::now() >= deadline {
            bail!(
                "{open} servers are open and {busy} of them busy {SETTLED:?} after the last client left"
            );
        }
        tokio::time::sleep(LOOK / 10).await;
    }
}

fn judge(
    options: &ChurnOptions,
    seed: u64,
    memory: &[u64],
    sessions: u64,
    servers: i64,
) -> Result<bool> {
    let tenth = memory.get(memory.len() / 10).copied().unwrap_or(0);
    let last = memory.last().copied().unwrap_or(0);
    let most = memory.iter().copied().max().unwrap_or(0);
    let growth = last as f64 / tenth.max(1) as f64 - 1.0;
    say(format!(
        "{} clients on {} servers, {} s, seed {seed}: {sessions} sessions ({:.0} a second); {}",
        options.clients,
        options.servers,
        options.seconds,
        sessions as f64 / options.seconds.max(1) as f64,
        report::machine()
    ));
    let row = vec![
        tenth.to_string(),
        last.to_string(),
        most.to_string(),
        format!("{:.1}", growth * 100.0),
        servers.to_string(),
    ];
    let head = [
        "kB after a tenth",
        "kB at the end",
        "kB at most",
        "growth %",
        "servers left open",
    ];
    say(report::table(&head, &[row]));
    let is_met = growth <= GROWTH;
    say(if is_met { "met" } else { "MISSED" });
    Ok(is_met)
}
