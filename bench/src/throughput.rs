//! `trunkline-bench throughput`: the router, its rivals and a null relay in turn before the same server, by the same
//! client.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::load::writers;
use crate::report::{self, Progress, say};
use crate::stack::member::Timing;
use crate::stack::router::{POOL_SIZE, Pooled};
use crate::stack::{APP, Layout, Plan, Stack, encryption};
use cell::{Cell, Kind, Measured, cells};
use ways::{POOLED_PORT, Way};

/// Every way keeps a full pool while another has a server for each of its clients.
const MAX_CONNECTIONS: u32 = 300;
mod cell;
mod idle;
pub mod relay;
pub(crate) mod ways;

const LIMIT: Duration = Duration::from_secs(60);

/// The options of `throughput`.
#[derive(Args, Debug)]
pub struct ThroughputOptions {
    /// Rounds; each measures every way once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per way and round
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Client connections
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    clients: Vec<usize>,
    /// What they do; all of it if not said
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Only the ways whose name holds one of these words
    #[arg(long, value_delimiter = ',')]
    ways: Vec<String>,
    /// TLS on both sides
    #[arg(long)]
    tls: bool,
    /// Idle clients whose memory is measured; 0: none
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// The folder of the rivals' programs (deploy/rivals), before those of this system; TRUNKLINE_RIVALS if not said
    #[arg(long)]
    rivals: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// PostgreSQL's programs, if not the newest installed
    #[arg(long)]
    pg_bin: Option<PathBuf>,
}

/// Of one cell and one way: medians.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    cell: Cell,
    way: String,
    tps: f64,
    ratio_to_first: f64,
    cpu_us_per_transaction: Option<f64>,
}

/// Of one way: bytes for each idle client.
#[derive(Debug, Serialize)]
struct Idle {
    way: String,
    bytes: f64,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    rounds: usize,
    seconds: u64,
    tls: bool,
    lines: Vec<Line>,
    idle: Vec<Idle>,
}

/// Measures and prints.
pub async fn run(options: &ThroughputOptions) -> Result<()> {
    let progress = Progress::new();
    let stack = start(options, &progress).await?;
    let leader = stack.leader().await?;
    writers::prepare(&stack, leader).await?;
    progress.step("filling the tables");
    let server = &stack.members[leader].address;
    let fill = ["-h", server, "-U", APP, "-i", "-q", "-s", "10", APP];
    stack.client_program("pgbench", &fill).finish(LIMIT).await?;
    progress.step("starting the rivals");
    let named = std::env::var_os("TRUNKLINE_RIVALS").map(PathBuf::from);
    let rivals = options.rivals.clone().or(named);
    let tls = match options.tls {
        true => Some(encryption::turn_on(&stack, leader).await?),
        false => None,
    };
    let mut ways = ways::start(&stack, leader, rivals.as_deref(), tls.as_ref()).await?;
    ways.retain(|way| is_wanted(&options.ways, &way.name));
    if ways.is_empty() {
        bail!("--ways {}: no way has such a name", options.ways.join(","));
    }
    let mut results = Results {
        machine: report::machine(),
        rounds: options.rounds,
        seconds: options.seconds,
        tls: options.tls,
        lines: Vec::new(),
        idle: Vec::new(),
    };
    say(format!(
        "pgbench{}, {} s a run, medians of {} rounds; {}",
        if options.tls { " under TLS" } else { "" },
        options.seconds,
        options.rounds,
        results.machine
    ));
    let kinds = match options.kinds[..] {
        [] => clap::ValueEnum::value_variants().to_vec(),
        _ => options.kinds.clone(),
    };
    for cell in cells(&kinds, &options.clients) {
        let measured = measure(&stack, options, cell, &ways, &progress).await?;
        let lines = lines(cell, &ways, &measured);
        progress.line(table(cell, &lines));
        results.lines.extend(lines);
    }
    for way in ways.iter().filter(|_| options.idle > 0) {
        progress.step(format!("{} idle clients: {}", options.idle, way.name));
        // Without a pool each has a server of its own, and PostgreSQL would have to hold them all.
        if is_pooler(&way.name)
            && let Some(bytes) =
                idle::bytes_per_client(&stack, way, options.idle, options.tls).await?
        {
            let way = way.name.clone();
            results.idle.push(Idle { way, bytes });
        }
    }
    progress.done();
    drop(ways);
    say(idle_table(&results.idle));
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}

async fn start(options: &ThroughputOptions, progress: &Progress) -> Result<Stack> {
    let plan = Plan {
        postgresql: options.pg_bin.clone(),
        pooled: Some(Pooled {
            listeners: vec![(POOLED_PORT, "transaction")],
            auth: "scram-sha-256",
            size: POOL_SIZE,
            alias: None,
        }),
        timing: Timing {
            max_connections: MAX_CONNECTIONS,
            ..Timing::default()
        },
        ..Plan::new(Layout::Loopback)
    };
    Stack::start(&plan, progress).await
}

fn is_wanted(words: &[String], name: &str) -> bool {
    let name = name.to_lowercase();
    words.is_empty() || words.iter().any(|word| name.contains(&word.to_lowercase()))
}

fn is_pooler(name: &str) -> bool {
    let others = ["direct", "router tcp", "null relay", "HAProxy"];
    !others.iter().any(|other| name.starts_with(other))
}

/// Every way in turn, round by round, so that what else the machine does meets all of them.
async fn measure(
    stack: &Stack,
    options: &ThroughputOptions,
    cell: Cell,
    ways: &[Way],
    progress: &Progress,
) -> Result<Vec<Vec<Measured>>> {
    let mut measured = vec![Vec::new(); ways.len()];
    for round in 1..=options.rounds {
        for (way, measured) in ways.iter().zip(&mut measured) {
            let name = cell.name();
            progress.step(format!(
                "{name}, round {round} of {}: {}",
                options.rounds, way.name
            ));
            match cell.measure(stack, way, options.seconds, options.tls).await {
                Ok(one) => measured.push(one),
                Err(error) if way.is_ours => return Err(error),
                // PgBouncer before 1.21 knows no prepared statements, say.
                Err(error) => complain(progress, &error),
            }
        }
    }
    Ok(measured)
}

/// What a rival said when it could not do it: the first line.
fn complain(progress: &Progress, error: &anyhow::Error) {
    let text = format!("{error:#}");
    progress.line(text.lines().next().unwrap_or_default());
}

fn lines(cell: Cell, ways: &[Way], measured: &[Vec<Measured>]) -> Vec<Line> {
    let middle = |of: &[Measured], value: fn(&Measured) -> f64| {
        let values: Vec<f64> = of.iter().map(value).collect();
        report::median(&values).unwrap_or(f64::NAN)
    };
    let first = middle(&measured[0], |m| m.tps);
    let line = |(way, measured): (&Way, &Vec<Measured>)| {
        let tps = middle(measured, |m| m.tps);
        Line {
            cell,
            way: way.name.clone(),
            tps,
            ratio_to_first: tps / first,
            cpu_us_per_transaction: way.process.map(|_| middle(measured, |m| m.cpu_us)),
        }
    };
    ways.iter().zip(measured).map(line).collect()
}

fn table(cell: Cell, lines: &[Line]) -> String {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let cpu = line.cpu_us_per_transaction;
            vec![
                line.way.clone(),
                number(Some(line.tps), 0),
                number(Some(line.ratio_to_first), 2),
                number(cpu, 1),
            ]
        })
        .collect();
    let name = cell.name();
    let head = [name.as_str(), "tps", "to the first", "CPU us a transaction"];
    report::table(&head, &rows)
}

/// With so many decimals; what was not measured is a dash.
fn number(value: Option<f64>, decimals: usize) -> String {
    let value = value.filter(|value| value.is_finite());
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn idle_table(idle: &[Idle]) -> String {
    let row = |idle: &Idle| vec![idle.way.clone(), format!("{:.0}", idle.bytes)];
    let rows: Vec<_> = idle.iter().map(row).collect();
    report::table(&["idle", "bytes a client"], &rows)
}
