//! `trunkline-bench simulate`.

use std::ops::Range;
use std::str::FromStr;

use clap::Args;

use super::{Break, Coverage, Options, Report, play, play_all};
use crate::report::{complain, say};

/// So many seeds are to reach everything; a few played again are not.
const SEEDS_TO_COVER: u64 = 5_000;

/// What to simulate.
#[derive(Args, Clone, Debug)]
pub struct SimulateOptions {
    /// Which seeds, as FROM..TO; the last is not played (FROM..FROM plays that one)
    #[arg(long, default_value = "0..5000", value_parser = seeds)]
    seeds: Range<u64>,
    /// Tell what happened in each seed
    #[arg(long)]
    story: bool,
    /// Break a rule on purpose; a word that is none is answered with all of them
    #[arg(long = "break", value_name = "RULE", value_parser = Break::from_str)]
    rule: Option<Break>,
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
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let from: u64 = from.parse().map_err(|_| wrong())?;
    let to: u64 = to.parse().map_err(|_| wrong())?;
    Ok(from..to.max(from + 1))
}

/// Plays and prints; whether all is well. A broken rule is well when it is noticed.
pub fn run(options: &SimulateOptions) -> bool {
    let shape = Options {
        members: (options.members != 0).then_some(options.members.clamp(2, 5)),
        seconds: options.seconds,
        rule: options.rule,
    };
    if options.story {
        return options.seeds.clone().all(|seed| tell(seed, shape, options));
    }
    let report = in_threads(options, shape);
    summary(&report);
    for (seed, failure) in report.failures.iter().skip(1) {
        say(format!(
            "seed {seed}: {:?}: {}",
            failure.invariant, failure.detail
        ));
    }
    if let Some((seed, _)) = report.failures.first() {
        tell(*seed, shape, options);
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

fn in_threads(options: &SimulateOptions, shape: Options) -> Report {
    let threads = options.threads.clamp(1, 64) as u64;
    let (from, to) = (options.seeds.start, options.seeds.end);
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
            {
                all.seeds += report.seeds;
                all.events += report.events;
                all.faults += report.faults;
                all.seconds = all.seconds.max(report.seconds);
                all.coverage.add(&report.coverage);
                all.failures.extend(report.failures);
            }
        }
    });
    all
}

fn summary(report: &Report) {
    let per = |count: u64, by: f64| count as f64 / by.max(f64::MIN_POSITIVE);
    say(report.coverage.to_string());
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
fn tell(seed: u64, shape: Options, options: &SimulateOptions) -> bool {
    let outcome = play(seed, shape, &mut Coverage::default(), true);
    say(outcome.story.unwrap_or_default());
    let Some(failure) = outcome.failure else {
        say(format!("seed {seed}: all is well"));
        return true;
    };
    let rule = options
        .rule
        .map_or(String::new(), |rule| format!(" --break {}", rule.word()));
    let seconds = failure.at as f64 / 1e9;
    say(format!(
        "seed {seed}: {:?} broken at {seconds:.3} s: {}\nplay it again: trunkline-bench simulate --seeds {seed}..{seed} --members {} --seconds {}{rule} --story",
        failure.invariant, failure.detail, options.members, options.seconds
    ));
    false
}
