//! `trunkline-bench failover`: each scenario on a real cluster under load, judged against its bar.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::report::{self, Progress, ms, say};
use crate::stack::member::{Synchronous, Timing};
use crate::stack::{Layout, Plan, Stack};
use losses::FaultLine;
use run::{Measured, Settings};
use scenario::Scenario;

pub mod decoding;
pub mod drawn;
pub mod etcd_gone;
pub mod inflict;
pub mod key_watch;
pub mod losses;
pub mod lost_memory;
pub mod mixed;
pub mod pause_cut;
pub mod run;
pub mod scenario;
pub mod sequence;

/// The options of `failover`.
#[derive(Args, Debug)]
pub struct FailoverOptions {
    /// Which scenarios; all that this user may run, if none is named
    scenarios: Vec<Scenario>,
    /// How often each
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Seconds of load before the fault, in which the quiet gap is measured
    #[arg(long, default_value_t = 30)]
    quiet: u64,
    /// Writers through the router
    #[arg(long, default_value_t = 8)]
    writers: i32,
    /// How many faults are drawn, where a scenario draws them: 100 of random-faults, 30 of rejoin if not said
    #[arg(long)]
    faults: Option<usize>,
    /// Seconds a drawn fault lasts at the most
    #[arg(long, default_value_t = drawn::LONGEST.as_secs())]
    longest: u64,
    /// The number they are drawn by, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds without etcd, where a scenario takes it away
    #[arg(long, default_value_t = 120)]
    outage: u64,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Commits wait for standbys: nothing acknowledged may be lost, whatever is done
    #[arg(long)]
    sync: Option<Synchronous>,
    /// PostgreSQL's programs, if not the newest installed
    #[arg(long)]
    pg_bin: Option<PathBuf>,
    /// Keep the logs of the cluster in this folder
    #[arg(long)]
    keep_logs: Option<PathBuf>,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Line {
    scenario: String,
    run: u32,
    gap_ms: f64,
    writer_gap_ms: f64,
    quiet_gap_ms: f64,
    quiet_writer_gap_ms: f64,
    read_gap_ms: f64,
    bar: String,
    passed: bool,
    faults: Vec<String>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    list: Vec<FaultLine>,
}

/// Runs the scenarios; true if every bar was met.
pub async fn run(options: &FailoverOptions) -> Result<bool> {
    let progress = Progress::new();
    let is_root = rustix::process::geteuid().is_root();
    let (wanted, skipped) = select(&options.scenarios, is_root);
    for scenario in skipped {
        say(format!(
            "not run: {scenario} needs network namespaces, and those need root"
        ));
    }
    let layout = if is_root {
        Layout::Namespaces
    } else {
        Layout::Loopback
    };
    let plan = Plan {
        postgresql: options.pg_bin.clone(),
        timing: Timing {
            synchronous: options.sync,
            decodes: wanted.contains(&Scenario::LogicalDecoding),
            ..Timing::default()
        },
        ..Plan::new(layout)
    };
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    say(format!(
        "machine: {}; writers: {}; layout: {layout:?}; synchronous: {:?}; seed: {seed}",
        report::machine(),
        options.writers,
        options.sync
    ));
    let mut lines = Vec::new();
    let mut stack: Option<Stack> = None;
    let settings = settings(options, seed);
    for scenario in wanted {
        for number in 1..=options.repeat {
            let mut running = match stack.take() {
                Some(running) => running,
                None => Stack::start(&plan, &progress)
                    .await
                    .context("the cluster did not start")?,
            };
            progress.step(format!("{scenario}, run {number}"));
            let outcome = run::once(&mut running, scenario, &settings, &progress).await;
            if let Some(folder) = &options.keep_logs {
                running.keep_logs(&folder.join(format!("{scenario}-{number}")))?;
            }
            let line = line(scenario, number, &outcome);
            if !line.list.is_empty() {
                progress.line(losses::table(&line.list));
                progress.line(losses::summary(&line.list));
            }
            progress.line(format!("{}: {}", scenario, verdict_line(&line)));
            lines.push(line);
            // A run that broke off says nothing about the next: that gets a cluster of its own.
            stack = outcome.is_ok().then_some(running);
        }
    }
    progress.done();
    drop(stack);
    print_table(&lines);
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&lines)?)?;
    }
    Ok(lines.iter().all(|line| line.passed))
}

fn settings(options: &FailoverOptions, seed: u64) -> Settings {
    Settings {
        quiet: Duration::from_secs(options.quiet),
        writers: options.writers,
        seed,
        count: options.faults,
        longest: Duration::from_secs(options.longest),
        outage: Duration::from_secs(options.outage),
    }
}

/// What was asked for, apart by whether this user may run it.
fn select(asked: &[Scenario], is_root: bool) -> (Vec<Scenario>, Vec<Scenario>) {
    let all = if asked.is_empty() {
        Scenario::ALL
            .into_iter()
            .filter(|scenario| !scenario.is_long())
            .collect()
    } else {
        asked.to_vec()
    };
    all.into_iter()
        .partition(|scenario| is_root || !scenario.needs_namespaces())
}

fn line(scenario: Scenario, run: u32, outcome: &Result<Measured>) -> Line {
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    match outcome {
        Ok(measured) => Line {
            scenario: scenario.to_string(),
            run,
            gap_ms: millis(measured.gaps.anybody),
            writer_gap_ms: millis(measured.gaps.one_writer),
            quiet_gap_ms: millis(measured.quiet.anybody),
            quiet_writer_gap_ms: millis(measured.quiet.one_writer),
            read_gap_ms: millis(measured.read_gap),
            bar: measured.bar.to_string(),
            passed: measured.faults.is_empty() && measured.missed.is_none(),
            faults: measured
                .missed
                .iter()
                .chain(&measured.faults)
                .cloned()
                .collect(),
            notes: measured.notes.clone(),
            list: measured.list.clone(),
        },
        Err(error) => Line {
            scenario: scenario.to_string(),
            run,
            gap_ms: f64::NAN,
            writer_gap_ms: f64::NAN,
            quiet_gap_ms: f64::NAN,
            quiet_writer_gap_ms: f64::NAN,
            read_gap_ms: f64::NAN,
            bar: String::new(),
            passed: false,
            faults: vec![format!("broke off: {error:#}")],
            notes: Vec::new(),
            list: Vec::new(),
        },
    }
}

fn verdict_line(line: &Line) -> String {
    let mut text = format!(
        "run {}: gap {:.0} ms (one writer {:.0} ms), quiet {:.0} ms, bar {}: {}",
        line.run,
        line.gap_ms,
        line.writer_gap_ms,
        line.quiet_gap_ms,
        line.bar,
        if line.passed { "met" } else { "MISSED" }
    );
    for fault in &line.faults {
        text += &format!("\n    FAULT {fault}");
    }
    for note in &line.notes {
        text += &format!("\n    {note}");
    }
    text
}

fn print_table(lines: &[Line]) {
    let head = [
        "scenario",
        "run",
        "gap ms",
        "one writer ms",
        "quiet ms",
        "quiet writer ms",
        "read gap ms",
        "bar",
        "verdict",
    ];
    let round = |value: f64| format!("{value:.0}");
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.scenario.clone(),
                line.run.to_string(),
                round(line.gap_ms),
                round(line.writer_gap_ms),
                round(line.quiet_gap_ms),
                round(line.quiet_writer_gap_ms),
                round(line.read_gap_ms),
                line.bar.clone(),
                if line.passed { "met" } else { "MISSED" }.to_owned(),
            ]
        })
        .collect();
    say(report::table(&head, &rows));
    let met = lines.iter().filter(|line| line.passed).count();
    say(format!("{met} of {} runs met their bar", lines.len()));
}

/// Milliseconds of a median, or a dash.
pub fn median_ms(durations: &[Duration]) -> String {
    report::median(durations).map_or_else(|| "-".to_owned(), ms)
}
