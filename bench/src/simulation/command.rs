//! `trunkline-bench simulate`.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::bank::{self, Search};
use super::shrink::{FaultSet, again};
use super::{BANK, Break, Coverage, Options, Report, Searched, play, play_all, shrink};
use crate::report::{self, Progress, complain, say};

/// So many seeds are to reach everything; a few played again are not.
const SEEDS_TO_COVER: u64 = 5_000;
/// So many seeds are played by default for each bug of the bank, from each starting point, if none is caught before.
const SEEDS_TO_CATCH: u64 = 20_000;

/// What to simulate.
#[derive(Args, Clone, Debug)]
pub struct SimulateOptions {
    /// Which seeds, as FROM..TO; the last is not played (FROM..FROM plays that one). N alone means 0..N
    #[arg(long, value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// Tell what happened in each seed
    #[arg(long)]
    story: bool,
    /// Play this seed again and tell its story
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    replay: Option<u64>,
    /// With --replay: leave these faults out, by their numbers in the story, as 1,4
    #[arg(long, value_name = "FAULTS", requires = "replay", value_parser = FaultSet::from_str)]
    without: Option<FaultSet>,
    /// Break a rule on purpose; a word that is none is answered with all of them
    #[arg(long = "break", value_name = "RULE", value_parser = Break::from_str)]
    rule: Option<Break>,
    /// With --break: play on past what other invariants notice, until the rule's own does
    #[arg(long, requires = "rule")]
    patient: bool,
    /// Plant the bugs that the tools of this field have had, one after another, and count the seeds until each is caught
    #[arg(long, conflicts_with_all = ["rule", "replay", "story"])]
    bank: bool,
    /// With --bank: from how many starting points each bug is looked for
    #[arg(long, default_value_t = 5)]
    starts: u64,
    /// With --bank: write the outcome into this file
    #[arg(long, value_name = "FILE", requires = "bank")]
    json: Option<PathBuf>,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Members of every cluster; 0 lets each seed draw 2 to 5
    #[arg(long, default_value_t = 3)]
    members: u8,
    /// How long faults strike, virtual seconds, at least 20
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Do not demand that every situation, action, reason and fault was reached
    #[arg(long)]
    no_coverage: bool,
    /// Stop after so many failing seeds
    #[arg(long, default_value_t = 1)]
    failures: usize,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("\"{text}\" is no range of seeds; write it as 0..5000");
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    match text.split_once("..") {
        Some((from, to)) => {
            let from = number(from)?;
            Ok(from..number(to)?.max(from + 1))
        }
        None => Ok(0..number(text)?.max(1)),
    }
}

/// Plays and prints; whether all is well. A broken rule is well when it is noticed.
pub fn run(options: &SimulateOptions) -> Result<bool> {
    let shape = Options {
        members: (options.members != 0).then_some(options.members.clamp(2, 5)),
        seconds: options.seconds,
        rule: options.rule,
        is_patient: options.patient,
        without: options.without.unwrap_or_default(),
    };
    if options.bank {
        return run_bank(options, shape);
    }
    if let Some(seed) = options.replay {
        return Ok(tell(seed, shape));
    }
    let seeds = options.seeds.clone().unwrap_or(0..SEEDS_TO_COVER);
    if options.story {
        let mut seeds = seeds;
        return Ok(seeds.all(|seed| tell(seed, shape)));
    }
    Ok(play_many(options, seeds, shape))
}

fn play_many(options: &SimulateOptions, seeds: Range<u64>, shape: Options) -> bool {
    let report = in_threads(options, seeds, shape);
    summary(&report);
    for (seed, failure) in report.failures.iter().skip(1) {
        let (invariant, detail) = (failure.invariant, &failure.detail);
        say(format!("seed {seed}: {invariant:?}: {detail}"));
    }
    if let Some((seed, _)) = report.failures.first()
        && let Some(shrunk) = shrink(*seed, shape)
    {
        say(shrunk.story());
    }
    let missing = report.coverage.missing();
    let is_covered = options.no_coverage
        || report.seeds < SEEDS_TO_COVER
        || missing.is_empty()
        || !report.failures.is_empty();
    if !is_covered {
        for (list, name) in &missing {
            complain(format!("never reached: {list} {name}"));
        }
    }
    let well = report.failures.is_empty() && is_covered;
    say(if well { "all is well" } else { "FAILED" });
    well
}

fn in_threads(options: &SimulateOptions, seeds: Range<u64>, shape: Options) -> Report {
    let threads = options.threads.clamp(1, 64) as u64;
    let (from, to) = (seeds.start, seeds.end);
    let share = (to - from).div_ceil(threads);
    let parts: Vec<Range<u64>> = (0..threads)
        .map(|t| (from + t * share).min(to)..(from + (t + 1) * share).min(to))
        .collect();
    let stop_after = options.failures.max(1);
    let mut all = Report::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .into_iter()
            .map(|part| scope.spawn(move || play_all(part, shape, stop_after)))
            .collect();
        for worker in workers {
            let report = match worker.join() {
                Ok(report) => report,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            all.seeds += report.seeds;
            all.events += report.events;
            all.faults += report.faults;
            all.seconds = all.seconds.max(report.seconds);
            all.coverage.add(&report.coverage);
            all.failures.extend(report.failures);
        }
    });
    all
}

fn summary(report: &Report) {
    let per = |count: u64, by: f64| count as f64 / by.max(f64::MIN_POSITIVE);
    say(report.coverage.to_string());
    say(report.coverage.summary());
    say(format!(
        "{} seeds in {:.1} s: {:.0} seeds/s, {:.0} events/s, mean {:.0} events and {:.1} faults a seed",
        report.seeds,
        report.seconds,
        per(report.seeds, report.seconds),
        per(report.events, report.seconds),
        per(report.events, report.seeds as f64),
        per(report.faults, report.seeds as f64),
    ));
}

/// Plays one seed again and tells its story; whether it was well.
fn tell(seed: u64, shape: Options) -> bool {
    let outcome = play(seed, shape, &mut Coverage::default(), true);
    say(outcome.story.unwrap_or_default());
    let Some(failure) = outcome.failure else {
        say(format!("seed {seed}: all is well"));
        return true;
    };
    let seconds = failure.at as f64 / 1e9;
    say(format!(
        "seed {seed}: {:?} broken at {seconds:.3} s: {}\nplay it again: {}",
        failure.invariant,
        failure.detail,
        again(seed, shape)
    ));
    false
}

/// What is written for machines.
#[derive(Serialize)]
struct Score<'a> {
    caught: usize,
    counted: usize,
    seeds_at_most: u64,
    bugs: &'a [Searched],
}

fn run_bank(options: &SimulateOptions, shape: Options) -> Result<bool> {
    let seeds = options.seeds.clone().unwrap_or(0..SEEDS_TO_CATCH);
    let search = Search {
        from: seeds.start,
        seeds: seeds.end - seeds.start,
        starts: options.starts.clamp(1, 100),
        threads: options.threads as u64,
    };
    let progress = Progress::new();
    let searched: Vec<Searched> = BANK
        .iter()
        .map(|known| {
            progress.step(format!("{} of {}: {}", known.number, BANK.len(), known.bug));
            let searched = known.search(search, shape);
            progress.step(searched.row().join(", "));
            searched
        })
        .collect();
    progress.done();
    let rows: Vec<_> = searched.iter().map(Searched::row).collect();
    say(report::table(&bank::HEAD, &rows));
    for bug in &searched {
        if let Some(why) = bug.nowhere {
            say(format!("{} is not counted: {why}", bug.number));
        }
    }
    let counted = searched.iter().filter(|bug| bug.counts()).count();
    let caught = searched.iter().filter(|bug| bug.is_caught()).count();
    say(format!(
        "{caught} of {counted} bugs caught, each from {} starting points and by {} seeds at the most",
        search.starts, search.seeds
    ));
    if let Some(file) = &options.json {
        let score = Score {
            caught,
            counted,
            seeds_at_most: search.seeds,
            bugs: &searched,
        };
        let text = serde_json::to_string_pretty(&score)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(caught == counted)
}
