//! `trunkline-bench throughput`: the router and HAProxy in turn before the same server, by the same client.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use trunkline_shared::service::clock;

use crate::load::writers;
use crate::report::{self, Progress, say};
use crate::stack::proc::ProcessId;
use crate::stack::process::{Launch, Process, args, find};
use crate::stack::{APP, Layout, Plan, Stack};

/// HAProxy's threads: as many as the router's on the two cores of the reference machine.
const THREADS: usize = 2;
/// HAProxy's port.
const HAPROXY_PORT: u16 = 5440;
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

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
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// pgbench's protocol: simple, extended, prepared
    #[arg(long, default_value = "simple")]
    mode: String,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// PostgreSQL's programs, if not the newest installed
    #[arg(long)]
    pg_bin: Option<PathBuf>,
}

/// One way to the server.
#[derive(Debug)]
struct Way {
    name: &'static str,
    host: String,
    port: u16,
    process: Option<ProcessId>,
    tps: Vec<f64>,
    cpu_us: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Line {
    way: &'static str,
    tps: f64,
    ratio_to_direct: f64,
    cpu_us_per_transaction: f64,
    ratio_to_haproxy: f64,
}

/// Measures and prints.
pub async fn run(options: &ThroughputOptions) -> Result<()> {
    let program = find("haproxy").context("haproxy is missing: apt-get install haproxy")?;
    let progress = Progress::new();
    let plan = Plan {
        postgresql: options.pg_bin.clone(),
        ..Plan::new(Layout::Loopback)
    };
    let stack = Stack::start(&plan, &progress).await?;
    let leader = stack.leader().await?;
    writers::prepare(&stack, leader).await?;
    let haproxy = start_haproxy(&stack, program).await?;
    let direct = stack.members[leader].address.clone();
    progress.step("filling the tables");
    let port = "5432";
    let fill = [
        "-h", &direct, "-p", port, "-U", APP, "-i", "-q", "-s", "10", APP,
    ];
    stack.client_program("pgbench", &fill).finish(LIMIT).await?;
    let way = |name, host: &str, port, process| Way {
        name,
        host: host.to_owned(),
        port,
        process,
        tps: Vec::new(),
        cpu_us: Vec::new(),
    };
    let router = &stack.router;
    let mut ways = [
        way("direct", &direct, 5432, None),
        way("haproxy", &router.address, HAPROXY_PORT, Some(haproxy.id())),
        way(
            "trunkline-router",
            &router.address,
            router.write_port,
            Some(router.id()?),
        ),
    ];
    for round in 1..=options.rounds {
        for way in &mut ways {
            progress.step(format!("round {round} of {}: {}", options.rounds, way.name));
            measure(&stack, options, way).await?;
        }
    }
    progress.done();
    drop(haproxy);
    print(options, &ways)
}

/// One run of pgbench and what it cost the process in the middle.
async fn measure(stack: &Stack, options: &ThroughputOptions, way: &mut Way) -> Result<()> {
    let (port, clients) = (way.port.to_string(), options.clients.to_string());
    let seconds = options.seconds.to_string();
    let words = [
        "-h",
        &way.host,
        "-p",
        &port,
        "-U",
        APP,
        "-n",
        "-S",
        "-c",
        &clients,
        "-j",
        "1",
        "-T",
        &seconds,
        "-M",
        &options.mode,
        APP,
    ];
    let cpu = |process: &Option<ProcessId>| process.and_then(ProcessId::cpu_us).unwrap_or(0);
    let before = cpu(&way.process);
    let limit = Duration::from_secs(options.seconds) + LIMIT;
    let said = stack
        .client_program("pgbench", &words)
        .finish(limit)
        .await?;
    let used = cpu(&way.process).saturating_sub(before);
    let number = |label: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(label));
        let word = line.and_then(|line| line.split([' ', '/']).find(|word| !word.is_empty()));
        word.and_then(|word| word.parse::<f64>().ok())
    };
    let tps = number("tps = ").with_context(|| format!("pgbench printed no tps: {said}"))?;
    let count = number("number of transactions actually processed: ")
        .with_context(|| format!("pgbench printed no count: {said}"))?;
    way.tps.push(tps);
    way.cpu_us.push(used as f64 / count.max(1.0));
    Ok(())
}

fn print(options: &ThroughputOptions, ways: &[Way]) -> Result<()> {
    let middle = |values: &[f64]| report::median(values).unwrap_or(f64::NAN);
    let direct = middle(&ways[0].tps);
    let haproxy = middle(&ways[1].cpu_us);
    let lines: Vec<_> = ways
        .iter()
        .map(|way| Line {
            way: way.name,
            tps: middle(&way.tps),
            ratio_to_direct: middle(&way.tps) / direct,
            cpu_us_per_transaction: middle(&way.cpu_us),
            ratio_to_haproxy: middle(&way.cpu_us) / haproxy,
        })
        .collect();
    let rows: Vec<_> = lines
        .iter()
        .zip(ways)
        .map(|(line, way)| {
            let is_proxy = way.process.is_some();
            let only = |text: String| if is_proxy { text } else { "-".to_owned() };
            vec![
                line.way.to_owned(),
                format!("{:.0}", line.tps),
                format!("{:.2}", line.ratio_to_direct),
                only(format!("{:.1}", line.cpu_us_per_transaction)),
                only(format!("{:.2}", line.ratio_to_haproxy)),
            ]
        })
        .collect();
    say(format!(
        "pgbench -S -M {}, {} clients, {} s, medians of {} rounds; {}",
        options.mode,
        options.clients,
        options.seconds,
        options.rounds,
        report::machine()
    ));
    let head = [
        "way",
        "tps",
        "to direct",
        "CPU us/transaction",
        "to HAProxy",
    ];
    say(report::table(&head, &rows));
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&lines)?)?;
    }
    Ok(())
}

/// HAProxy as it stands before a Patroni cluster, on the router's address.
async fn start_haproxy(stack: &Stack, program: PathBuf) -> Result<Process> {
    let address = &stack.router.address;
    let mut text = format!(
        "global\n  maxconn 5000\n  nbthread {THREADS}\ndefaults\n  mode tcp\n  timeout client 30m\n  \
         timeout connect 1s\n  timeout server 30m\n  timeout check 1s\nlisten postgres_write\n  \
         bind {address}:{HAPROXY_PORT}\n  option httpchk OPTIONS /primary\n  http-check expect status 200\n  \
         default-server inter 1s fall 1 rise 1 on-marked-down shutdown-sessions\n"
    );
    for member in &stack.members {
        text += &format!(
            "  server {0} {1}:5432 check port 8008\n",
            member.name, member.address
        );
    }
    let file = stack.folder().join("haproxy.cfg");
    std::fs::write(&file, text)?;
    let launch = Launch {
        program,
        args: args(["-db", "-f", &file.to_string_lossy()]),
        log: stack.folder().join("haproxy.log"),
        folder: stack.folder().to_owned(),
        ..Launch::default()
    };
    let mut process = launch.start("haproxy")?;
    let deadline = clock::now() + LIMIT;
    let config = writers::client_config(address, HAPROXY_PORT);
    loop {
        process.must_live()?;
        if config.connect(tokio_postgres::NoTls).await.is_ok() {
            return Ok(process);
        }
        if clock::now() >= deadline {
            bail!(
                "no session through HAProxy within {LIMIT:?}:\n{}",
                process.tail()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}
