//! Many idle clients, many busy ones, few servers: who waits longest waits not much longer than the others, on whichever
//! core of the router it is.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use hdrhistogram::Histogram;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;
use trunkline_shared::service::clock;

use super::wire::{Wire, query};
use super::{Ground, LIMIT};
use crate::report::{self, Progress, say};

/// The bar: the 99th percentile of the wait, in medians of it.
const BAR: f64 = 1.5;
/// No client gets less than this part of what the middle one gets.
const SHARE: f64 = 0.5;
/// So many connect at a time: each is a newcomer of one address.
const AT_ONCE: usize = 32;
/// Sockets beside those of the clients.
const SPARE_FILES: u64 = 200;

#[derive(Args, Debug)]
pub(super) struct FairnessOptions {
    /// Clients that have asked once and wait
    #[arg(long, default_value_t = 5000)]
    idle: usize,
    /// Clients that ask without a pause
    #[arg(long, default_value_t = 500)]
    busy: usize,
    /// Servers that they share
    #[arg(long, default_value_t = 20)]
    servers: usize,
    /// What one transaction takes a server, milliseconds
    #[arg(long, default_value_t = 10)]
    work: u64,
    /// How long
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// What one busy client saw.
struct Seen {
    waits: Histogram<u64>,
}

pub(super) async fn run(options: &FairnessOptions) -> Result<bool> {
    let progress = Progress::new();
    allow_files((options.idle + options.busy) as u64 + SPARE_FILES)?;
    let ground = Ground::prepare(options.servers, &progress).await?;
    progress.step(format!("{} idle clients", options.idle));
    let idle = connect(&ground, options.idle).await?;
    let busy = connect(&ground, options.busy).await?;
    progress.step(format!(
        "{} busy clients, {} s",
        options.busy, options.seconds
    ));
    let until = clock::now() + Duration::from_secs(options.seconds);
    let sql = query(&format!(
        "SELECT pg_sleep({})",
        options.work as f64 / 1000.0
    ));
    let mut clients = JoinSet::new();
    for mut wire in busy {
        let sql = sql.clone();
        clients.spawn(async move {
            let mut waits = Histogram::new(3)?;
            while clock::now() < until {
                let began = clock::now();
                if let Some(error) = wire.ask(&sql).await?.iter().find(|m| m.kind == b'E') {
                    bail!("{} {}", error.field(b'C'), error.field(b'M'));
                }
                waits.record(u64::try_from(clock::now().since(began).as_micros())?)?;
            }
            Ok(Seen { waits })
        });
    }
    let mut seen = Vec::new();
    let all = async {
        while let Some(client) = clients.join_next().await {
            seen.push(client??);
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(options.seconds) + LIMIT, all)
        .await
        .context("a client hangs")??;
    progress.done();
    drop(idle);
    judge(options, &seen)
}

async fn connect(ground: &Ground, count: usize) -> Result<Vec<Wire>> {
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        let mut some = JoinSet::new();
        for _ in 0..AT_ONCE.min(count - open.len()) {
            let (address, user) = (ground.address.clone(), ground.user.clone());
            let database = ground.database.clone();
            some.spawn(async move {
                let parameters = [("user", user.as_str()), ("database", database.as_str())];
                let mut wire = Wire::connect(&address, &parameters).await?;
                wire.ask(&query("SELECT 1")).await?;
                Ok::<Wire, anyhow::Error>(wire)
            });
        }
        while let Some(wire) = some.join_next().await {
            open.push(wire??);
        }
    }
    Ok(open)
}

fn judge(options: &FairnessOptions, seen: &[Seen]) -> Result<bool> {
    let mut all: Histogram<u64> = Histogram::new(3)?;
    for one in seen {
        all.add(&one.waits)?;
    }
    let mut counts: Vec<u64> = seen.iter().map(|one| one.waits.len()).collect();
    counts.sort_unstable();
    let least = counts.first().copied().unwrap_or(0) as f64;
    let middle = report::median(&counts).unwrap_or(0) as f64;
    let ms = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
    let (p50, p99) = (ms(0.5), ms(0.99));
    say(format!(
        "{} idle and {} busy clients on {} servers, {} ms of work, {} s; {}",
        options.idle,
        options.busy,
        options.servers,
        options.work,
        options.seconds,
        report::machine()
    ));
    let row = vec![
        all.len().to_string(),
        format!("{p50:.1}"),
        format!("{p99:.1}"),
        format!("{:.1}", ms(1.0)),
        format!("{:.2}", p99 / p50),
        format!("{:.2}", least / middle),
    ];
    let head = [
        "transactions",
        "p50 ms",
        "p99 ms",
        "longest ms",
        "p99 / p50",
        "least / middle client",
    ];
    say(report::table(&head, &[row]));
    let is_met = p99 <= BAR * p50 && least >= SHARE * middle;
    say(if is_met { "met" } else { "MISSED" });
    Ok(is_met)
}

/// As many open files as the system allows this process, which must be enough.
fn allow_files(needed: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        bail!(
            "{needed} open files are needed, {:?} are allowed: ulimit -n",
            limit.maximum
        );
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).context("the limit of open files cannot be raised")
}
