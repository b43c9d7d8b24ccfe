//! `trunkline-bench side-by-side`: Trunkline, and what it replaces, under the same clients and the same faults in turn.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::load::history::History;
use crate::load::writers;
use crate::patroni::rig::Outside;
use crate::report::{self, Progress, say};
use crate::stack::member::Timing;
use crate::switchover::clients::Clients;
use crate::switchover::{PORT, rows, verdict};
use crate::throughput::ways;
use event::Event;
use site::{Site, System};
use summary::{Line, Summary, missed, sum_up, table};

pub mod event;
pub mod site;
pub mod summary;

/// One must lead, the others stream and every client write within this.
const WHOLE: Duration = Duration::from_secs(180);

/// The options of `side-by-side`.
#[derive(Args, Debug)]
pub struct SideBySideOptions {
    /// Which systems; all of them if none is named
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Which faults; all that this user may cause if none is named
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Event>,
    /// How often each fault
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Clients
    #[arg(long, default_value_t = 16)]
    clients: i32,
    /// Seconds between a whole cluster and the next fault
    #[arg(long, default_value_t = 5)]
    quiet: u64,
    /// Seconds without etcd
    #[arg(long, default_value_t = 30)]
    outage: u64,
    /// Of all clusters; 20 is the least that Patroni takes
    #[arg(long, default_value_t = crate::patroni::TIMING.0)]
    ttl: u32,
    /// Of all clusters
    #[arg(long, default_value_t = crate::patroni::TIMING.1)]
    loop_wait: u32,
    /// Of all clusters
    #[arg(long, default_value_t = crate::patroni::TIMING.2)]
    retry_timeout: u32,
    /// The folder of the programs `patroni` and `patronictl` (4.1): `deploy/outside-tools` fetches them
    #[arg(long, env = "TRUNKLINE_PATRONI")]
    patroni: Option<PathBuf>,
    /// The folder of HAProxy and PgBouncer (`deploy/rivals`), if not those of this system
    #[arg(long, env = "TRUNKLINE_RIVALS")]
    rivals: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep the logs of the clusters in this folder
    #[arg(long)]
    keep_logs: Option<PathBuf>,
}

/// The programs of others.
#[derive(Debug)]
pub struct Rivals {
    outside: Outside,
    pgbouncer: PathBuf,
    versions: String,
}

impl Rivals {
    async fn find(options: &SideBySideOptions) -> Result<Rivals> {
        let mut outside = Outside::find(options.patroni.as_deref(), None, None).await?;
        let folder = options.rivals.as_deref();
        let haproxy = ways::program(folder, "haproxy")?;
        let pgbouncer = ways::program(folder, "pgbouncer")?;
        let versions = format!(
            "{}, HAProxy {}, PgBouncer {}",
            outside.versions(),
            ways::version(&haproxy, "-v").await?,
            ways::version(&pgbouncer, "--version").await?
        );
        outside.haproxy = Some(haproxy);
        Ok(Rivals {
            outside,
            pgbouncer,
            versions,
        })
    }
}

/// What every system is started with.
#[derive(Debug)]
pub struct Setup<'a> {
    timing: Timing,
    /// Nothing where only Trunkline is measured.
    rivals: Option<&'a Rivals>,
    progress: &'a Progress,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    versions: String,
    clients: i32,
    ttl: u32,
    loop_wait: u32,
    retry_timeout: u32,
    outage_s: u64,
    summaries: Vec<Summary>,
    lines: Vec<Line>,
    /// What did not hold of Trunkline's, and systems that were not carried through.
    faults: Vec<String>,
}

/// Runs it; whether Trunkline kept what it promises and stood behind nobody.
pub async fn run(options: &SideBySideOptions) -> Result<bool> {
    let progress = Progress::new();
    let systems = match options.systems[..] {
        [] => System::value_variants().to_vec(),
        _ => options.systems.clone(),
    };
    let events = wanted(&options.faults, rustix::process::geteuid().is_root());
    let is_alone = systems.iter().all(|system| *system == System::Trunkline);
    let rivals = match is_alone {
        true => None,
        false => Some(Rivals::find(options).await?),
    };
    let setup = Setup {
        timing: Timing {
            ttl: options.ttl,
            loop_wait: options.loop_wait,
            retry_timeout: options.retry_timeout,
            ..Timing::default()
        },
        rivals: rivals.as_ref(),
        progress: &progress,
    };
    let (mut lines, mut faults) = (Vec::new(), Vec::new());
    for system in systems {
        match measure(system, &events, options, &setup).await {
            Ok((of_system, went)) => {
                lines.extend(of_system);
                faults.extend(
                    went.err()
                        .map(|error| format!("{system} broke off: {error:#}")),
                );
            }
            Err(error) => faults.push(format!("{system} broke off: {error:#}")),
        }
    }
    progress.done();
    let summaries = sum_up(&lines);
    faults.extend(missed(&summaries));
    let versions = rivals.map_or_else(String::new, |rivals| rivals.versions);
    let results = Results {
        machine: report::machine(),
        versions,
        clients: options.clients,
        ttl: options.ttl,
        loop_wait: options.loop_wait,
        retry_timeout: options.retry_timeout,
        outage_s: options.outage,
        summaries,
        lines,
        faults,
    };
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    tell(&results);
    Ok(results.faults.is_empty())
}

fn wanted(asked: &[Event], is_root: bool) -> Vec<Event> {
    let all = match asked {
        [] => Event::value_variants(),
        _ => asked,
    };
    let (can, cannot): (Vec<_>, Vec<_>) = all
        .iter()
        .copied()
        .partition(|event: &Event| is_root || !event.needs_namespaces());
    for event in cannot {
        say(format!(
            "not run: {event} needs network namespaces, and those need root"
        ));
    }
    can
}

/// A fault, and how long it was felt.
struct Felt {
    event: Event,
    began: Moment,
    /// When one led, the others streamed and every client wrote.
    whole: Moment,
    /// When the next fault began, or the load ended.
    over: Moment,
}

/// Starts the system, does everything to it, and says what it cost: of a course that broke off, up to there.
async fn measure(
    system: System,
    events: &[Event],
    options: &SideBySideOptions,
    setup: &Setup<'_>,
) -> Result<(Vec<Line>, Result<()>)> {
    setup.progress.step(format!("{system}: starting"));
    let mut site = Site::start(system, setup).await?;
    site.stack_mut().until_converged(WHOLE).await?;
    let config = writers::client_config(&site.stack().router.address, PORT);
    let load = Clients::start(&config, None, options.clients);
    let mut felt = Vec::new();
    let went = suffer(system, events, options, setup, &mut site, &load, &mut felt).await;
    let [history, _] = load.finish().await?;
    if let Some(folder) = &options.keep_logs {
        let name = system.to_possible_value();
        let name = name.map_or_else(String::new, |value| value.get_name().to_owned());
        site.stack().keep_logs(&folder.join(name))?;
    }
    let rows = rows(site.stack_mut()).await;
    let rows = rows.context("what clients wrote cannot be judged")?;
    let each = felt.iter().map(|one| line(system, one, &history, &rows));
    Ok((each.collect(), went))
}

async fn suffer(
    system: System,
    events: &[Event],
    options: &SideBySideOptions,
    setup: &Setup<'_>,
    site: &mut Site,
    load: &Clients,
    felt: &mut Vec<Felt>,
) -> Result<()> {
    load.until_all_write(clock::now(), WHOLE).await?;
    for round in 1..=options.rounds {
        for event in events {
            let what = format!("{system}: {event}, {round} of {}", options.rounds);
            setup.progress.step(&what);
            tokio::time::sleep(Duration::from_secs(options.quiet)).await;
            if let Some(last) = felt.last_mut() {
                last.over = clock::now();
            }
            let outage = Duration::from_secs(options.outage);
            let began = event.inflict(site, load, outage).await;
            let began = began.with_context(|| what.clone())?;
            let converged = site.stack_mut().until_converged(WHOLE).await;
            converged.with_context(|| what.clone())?;
            site.must_live().with_context(|| what.clone())?;
            let flows = load.until_all_write(clock::now(), WHOLE).await;
            flows.with_context(|| what.clone())?;
            let whole = clock::now();
            felt.push(Felt {
                event: *event,
                began,
                whole,
                over: whole,
            });
        }
    }
    tokio::time::sleep(Duration::from_secs(options.quiet)).await;
    if let Some(last) = felt.last_mut() {
        last.over = clock::now();
    }
    Ok(())
}

type Found = BTreeMap<(i32, i64), verdict::Rows>;

fn line(system: System, felt: &Felt, history: &History, rows: &Found) -> Line {
    let is_inside = |at: Moment| at >= felt.began && at < felt.over;
    let gaps = history.gaps(felt.began, felt.whole);
    let writes = history.writes.iter().filter(|write| is_inside(write.done));
    let own = History {
        writes: writes.copied().collect(),
        cuts: Vec::new(),
    };
    let mut errors = BTreeMap::new();
    for cut in history.cuts.iter().filter(|cut| is_inside(cut.at)) {
        *errors.entry(cut.code.clone()).or_default() += 1;
    }
    Line {
        system,
        event: felt.event,
        stall_ms: gaps.anybody.as_secs_f64() * 1e3,
        one_client_ms: gaps.one_writer.as_secs_f64() * 1e3,
        whole_ms: felt.whole.since(felt.began).as_secs_f64() * 1e3,
        errors,
        verdict: verdict::judge(&own, rows),
    }
}

fn tell(results: &Results) {
    say(table(&results.summaries));
    say(format!(
        "{} clients in transaction mode, ttl {} loop_wait {} retry_timeout {}, {} s without etcd; {}; {}",
        results.clients,
        results.ttl,
        results.loop_wait,
        results.retry_timeout,
        results.outage_s,
        results.versions,
        results.machine
    ));
    for fault in &results.faults {
        say(format!("FAULT {fault}"));
    }
    let verdict = match results.faults.is_empty() {
        true => "met",
        false => "MISSED",
    };
    say(format!(
        "{verdict}: of Trunkline's nothing lost where nothing may be, nothing doubled, no error of a planned change, no \
         median stall longer than a rival's"
    ));
}
