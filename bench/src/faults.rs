//! `trunkline-bench faults`: the fault matrix on real processes. Row after row on one cluster, under clients of both
//! routers that write in every way, each judged by the same checks and by its own bar.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use trunkline_shared::service::clock;

use crate::fault::{processor, synced};
use crate::report::{self, Progress, say};
use crate::stack::member::{Synchronous, Timing};
use crate::stack::wall_clock;
use at_random::Draw;
use judged::{Line, described};
use promise::{Conditions, Entrance};
use row::Row;
use site::{Settings, Site};
use table::Told;

pub mod at_random;
pub mod beside;
mod control;
pub mod inflict;
pub mod judged;
pub mod lists;
mod load;
pub mod promise;
pub mod row;
pub mod site;
pub mod table;

/// The options of `faults`.
#[derive(Args, Debug)]
pub struct FaultsOptions {
    /// Which rows, by the numbers of the matrix; all that can be run here, if none is named
    rows: Vec<Named>,
    /// Print every row, with what it promises or why it cannot be run here, and do nothing
    #[arg(long)]
    list: bool,
    /// Run rows at random for so long: hours, or minutes with an `m`. Unless they are named, --sync and --entrance are drawn,
    /// too. What is late is told, and only a broken guarantee counts
    #[arg(long, value_name = "HOURS|MINUTESm")]
    long: Option<Long>,
    /// Commits wait for standbys: nothing acknowledged may be lost then, whatever is done
    #[arg(long)]
    sync: Option<Synchronous>,
    /// The same clients on one PostgreSQL without agents, routers and faults instead: what is PostgreSQL's own
    #[arg(long, conflicts_with_all = ["rows", "long", "sync", "entrance", "list"])]
    control: bool,
    /// How the clients come in; by a listener in mode `transaction` if nothing is said
    #[arg(long, value_enum)]
    entrance: Option<Entrance>,
    /// Clients, half of them on each router
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(i32).range(8..=64))]
    clients: i32,
    /// Seconds under load before each row
    #[arg(long, default_value_t = 5)]
    quiet: u64,
    /// Seconds for which something is away, where its absence is the fault
    #[arg(long, default_value_t = 12)]
    outage: u64,
    /// Planned changes of row 1
    #[arg(long, default_value_t = 5)]
    changes: u32,
    /// The number by which rows, steps and moments are drawn, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
    /// Write the results to this file as JSON, anew after each row
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep the logs of the cluster after each row that was not as promised, in this folder
    #[arg(long)]
    keep_logs: Option<PathBuf>,
}

/// The rows that one word names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named(Vec<Row>);

impl FromStr for Named {
    type Err = String;

    fn from_str(word: &str) -> Result<Named, String> {
        Row::named(word).map(Named)
    }
}

/// A length of time as `2` (hours) or `30m` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Long(Duration);

impl FromStr for Long {
    type Err = String;

    fn from_str(word: &str) -> Result<Long, String> {
        let (number, unit) = match word.strip_suffix('m') {
            Some(minutes) => (minutes, 60),
            None => (word.strip_suffix('h').unwrap_or(word), 3600),
        };
        let number: u32 = number.parse().map_err(|_| {
            format!("{word:?} is no time: say 2 for two hours, 30m for thirty minutes")
        })?;
        if number == 0 {
            return Err("no time at all would prove nothing".to_owned());
        }
        Ok(Long(Duration::from_secs(u64::from(number) * unit)))
    }
}

/// Runs the rows; whether each was as promised, or in a long run, whether each kept the guarantees.
pub async fn run(options: &FaultsOptions) -> Result<bool> {
    if options.control {
        return control::run(options.clients, options.seed).await;
    }
    let conditions = Conditions {
        synchronous: options.sync,
        entrance: options.entrance.unwrap_or(Entrance::Transaction),
        ttl: Duration::from_secs(u64::from(Timing::default().ttl)),
        is_root: rustix::process::geteuid().is_root(),
        can_starve: processor::can_starve(),
        can_fail_calls: synced::can_fail(),
        can_set_clocks: wall_clock::can_be_set(),
    };
    let rows = wanted(&options.rows);
    if options.list {
        say(table::list(&rows, &conditions));
        return Ok(true);
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let draw = Draw::new(&rows, conditions, options.sync, options.entrance, seed);
    let (rows, cannot): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| match options.long {
        Some(_) => draw.can_come(*row),
        None => row.obstacle(&conditions).is_none(),
    });
    for row in cannot {
        let why = row.obstacle(&conditions).unwrap_or_default();
        say(format!("not run: {} {}: {why}", row.label(), row.fault()));
    }
    anyhow::ensure!(!rows.is_empty(), "none of these rows can be run here");
    let mode = match options.long {
        Some(_) => "rows at random, modes drawn unless asked for".to_owned(),
        None => conditions.mode(),
    };
    say(format!(
        "{} clients (simple, prepared, transaction, COPY), clients of lists and readers on two routers; {mode}; seed \
         {seed}; {}",
        options.clients,
        report::machine()
    ));
    let mut course = Course {
        options,
        settings: Settings {
            clients: options.clients,
            quiet: Duration::from_secs(options.quiet),
            outage: Duration::from_secs(options.outage),
            changes: options.changes,
            seed,
        },
        progress: Progress::new(),
        site: None,
        told: Told::summed(options.long.is_some()),
    };
    match options.long {
        None => course.in_turn(rows, &conditions).await?,
        Some(Long(long)) => course.at_random(draw, long).await?,
    }
    course.progress.done();
    let lines = course.told.lines();
    Ok(match options.long {
        None => lines.iter().all(|line| line.passed),
        Some(_) => table::violations(lines) == 0,
    })
}

/// What was asked for, in that order.
fn wanted(asked: &[Named]) -> Vec<Row> {
    match asked {
        [] => Row::ALL.to_vec(),
        _ => asked.iter().flat_map(|Named(rows)| rows).copied().collect(),
    }
}

/// Rows one after another. What was seen is told when it is dropped, after an interrupt too.
struct Course<'a> {
    options: &'a FaultsOptions,
    settings: Settings,
    progress: Progress,
    site: Option<Site>,
    told: Told,
}

impl Course<'_> {
    async fn in_turn(&mut self, mut rows: Vec<Row>, conditions: &Conditions) -> Result<()> {
        // A cluster of another kind is started once.
        rows.sort_by_key(|row| row.nodes());
        for row in rows {
            self.next(row, conditions).await?;
        }
        Ok(())
    }

    async fn at_random(&mut self, mut draw: Draw, long: Duration) -> Result<()> {
        let began = clock::now();
        while clock::now().since(began) < long
            && let Some((row, conditions, seed)) = draw.row()
        {
            self.settings.seed = seed;
            self.next(row, &conditions).await?;
            let lines = self.told.lines();
            self.progress.line(format!(
                "--- {} of {} minutes: {} rows, {} with violations; the last was row {} in {}, by --seed {seed}",
                clock::now().since(began).as_secs() / 60,
                long.as_secs() / 60,
                lines.len(),
                table::violations(lines),
                row.label(),
                conditions.mode()
            ));
        }
        Ok(())
    }

    /// Runs one row, on the cluster of the one before where that is good for it.
    async fn next(&mut self, row: Row, conditions: &Conditions) -> Result<()> {
        let number = self.told.lines().len() + 1;
        let what = format!("{}: {}", row.label(), row.fault());
        self.progress.step(&what);
        let kept = self
            .site
            .take()
            .filter(|site| site.nodes == row.nodes() && site.synchronous == conditions.synchronous);
        let started = match kept {
            Some(site) => Ok(site),
            None => Site::start(conditions, row.nodes(), &self.progress).await,
        };
        let broke_off = |error: anyhow::Error| Line {
            missed: vec![format!("broke off: {error:#}")],
            ..described(row, conditions)
        };
        let line = match started.context("the cluster did not start") {
            Err(error) => broke_off(error),
            Ok(mut site) => {
                let (settings, progress) = (&self.settings, &self.progress);
                let went = site.suffer(row, conditions, settings, progress).await;
                let (line, is_good) = went.unwrap_or_else(|error| (broke_off(error), false));
                if let (Some(folder), false) = (&self.options.keep_logs, line.passed) {
                    let folder = folder.join(format!("{number}-row-{}", row.label()));
                    site.stack.keep_logs(&folder)?;
                }
                // A cluster that a row left broken says nothing about the next one.
                self.site = is_good.then_some(site);
                line
            }
        };
        self.progress.line(table::story(&line));
        self.told.take(line);
        if let Some(file) = &self.options.json {
            let text = serde_json::to_string_pretty(self.told.lines())?;
            std::fs::write(file, text)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_in_the_order_in_which_they_are_named() {
        let named = |words: &[&str]| -> Vec<Row> {
            let named = words.iter().map(|word| word.parse().unwrap());
            wanted(&named.collect::<Vec<_>>())
        };
        assert_eq!(
            named(&["13", "5", "30"]),
            [
                Row::PowerOff,
                Row::PostmasterKilled,
                Row::DiskNearlyFull,
                Row::DisksFull
            ]
        );
        assert_eq!(named(&[]).len(), Row::ALL.len());
    }

    #[test]
    fn a_long_run_is_told_in_hours_or_minutes() {
        let seconds = |word: &str| word.parse::<Long>().map(|Long(long)| long.as_secs());
        assert_eq!(seconds("2"), Ok(7200));
        assert_eq!(seconds("2h"), Ok(7200));
        assert_eq!(seconds("30m"), Ok(1800));
        assert!(seconds("soon").is_err() && seconds("-1").is_err());
    }
}
