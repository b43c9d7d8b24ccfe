//! `trunkline-bench pools`: the pooled modes under clients that share servers, judged from their side.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::load::writers;
use crate::report::{self, Progress, say};
use crate::stack::router::Pooled;
use crate::stack::{APP, Layout, Plan, Stack};
use identity::Done;
use life::Step;

mod churn;
mod drivers;
mod fairness;
mod identity;
mod life;
mod wire;
pub mod wire_fuzz;

/// The pooled listener.
const PORT: u16 = 5434;
/// What clients may take beyond their time: the last session of each, and its wait for a server.
const LIMIT: Duration = Duration::from_secs(180);

/// The options of `pools`.
#[derive(Args, Debug)]
pub struct PoolsOptions {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Clients with mixed lives share servers: each answer must be their own
    Identity(IdentityOptions),
    /// Thousands idle and hundreds busy on a few servers: nobody waits much longer than the others
    Fairness(fairness::FairnessOptions),
    /// Clients come, ask, are cancelled and die without a pause: memory stays flat, no server is left behind
    Churn(churn::ChurnOptions),
    /// Real drivers through every mode, step by step, and past the router for comparison
    Drivers(drivers::DriversOptions),
    /// Drawn sessions, valid and invalid, past the router and through each mode: every message must be the same
    WireFuzz(wire_fuzz::WireFuzzOptions),
}

#[derive(Args, Debug)]
struct IdentityOptions {
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Clients
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// Servers that they share
    #[arg(long, default_value_t = 1)]
    servers: usize,
    /// The number their lives are drawn by, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
}

/// Where clients connect.
pub struct Ground {
    address: String,
    user: String,
    database: String,
    /// Past the router.
    direct: tokio_postgres::Client,
    stack: Stack,
}

impl Ground {
    async fn prepare(servers: usize, progress: &Progress) -> Result<Self> {
        let pooled = Pooled {
            listeners: vec![(PORT, "transaction")],
            auth: "trust",
            size: servers,
            alias: None,
        };
        let plan = Plan {
            pooled: Some(pooled),
            etcd_members: 1,
            ..Plan::new(Layout::Loopback)
        };
        let stack = Stack::start(&plan, progress).await?;
        let leader = stack.leader().await?;
        writers::prepare(&stack, leader).await?;
        let direct = stack.members[leader].sql(APP).await?;
        let tables = "CREATE TABLE seen (who text, n bigint); GRANT ALL ON seen TO PUBLIC";
        direct.batch_execute(tables).await?;
        Ok(Self {
            address: format!("{}:{PORT}", stack.router.address),
            user: APP.to_owned(),
            database: APP.to_owned(),
            direct,
            stack,
        })
    }
}

impl Ground {
    /// For who looks into a failure.
    fn story(&self, seed: u64) -> String {
        let said = self.stack.router.tail();
        format!("the router said last:\n{said}\nseed {seed}")
    }

    /// Memory of the router, kB.
    fn router_kb(&self) -> Result<u64> {
        let kb = self.stack.router.id()?.memory_kb();
        kb.context("the router has ended")
    }
}

/// Runs one of them; whether it met its bar.
pub async fn run(options: &PoolsOptions) -> Result<bool> {
    match &options.what {
        What::Identity(options) => identity(options).await,
        What::Fairness(options) => fairness::run(options).await,
        What::Churn(options) => churn::run(options).await,
        What::Drivers(options) => drivers::run(options).await,
        What::WireFuzz(options) => wire_fuzz::run(options).await,
    }
}

async fn identity(options: &IdentityOptions) -> Result<bool> {
    let progress = Progress::new();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let ground = std::sync::Arc::new(Ground::prepare(options.servers, &progress).await?);
    progress.step(format!("{} s of mixed lives, seed {seed}", options.seconds));
    let time = Duration::from_secs(options.seconds);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..options.clients {
        let ground = ground.clone();
        clients.spawn(async move {
            identity::client(&ground, number, (seed, identity::STEPS), time).await
        });
    }
    let mut done = Vec::new();
    let all = async {
        while let Some(client) = clients.join_next().await {
            done.push(client??);
        }
        Ok::<(), anyhow::Error>(())
    };
    let lived = tokio::time::timeout(time + LIMIT, all).await;
    let lived = lived.context("a client hangs").and_then(|lived| lived);
    progress.done();
    lived.with_context(|| ground.story(seed))?;
    let rows = identity::count(&ground, &done).await?;
    print(options, seed, &done, rows)
}

fn print(options: &IdentityOptions, seed: u64, done: &[Done], rows: u64) -> Result<bool> {
    let mut steps: BTreeMap<Step, u64> = BTreeMap::new();
    for (step, count) in done.iter().flat_map(|done| &done.steps) {
        *steps.entry(*step).or_default() += count;
    }
    let lines: Vec<_> = steps
        .iter()
        .map(|(step, count)| vec![format!("{step:?}"), count.to_string()])
        .collect();
    say(report::table(&["step", "times"], &lines));
    let sessions: u64 = done.iter().map(|done| done.sessions).sum();
    say(format!(
        "{} clients on {} servers, {} s, seed {seed}: {sessions} sessions, {} steps, {rows} rows committed; \
         nothing of one was seen by another",
        options.clients,
        options.servers,
        options.seconds,
        steps.values().sum::<u64>()
    ));
    if steps.len() < Step::value_variants().len() {
        bail!("not every step was taken: more seconds are needed");
    }
    Ok(true)
}
