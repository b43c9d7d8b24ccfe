//! `trunkline-bench cuts`: sessions of modes `tcp` and `session` while their leader goes, idle and in the middle of a
//! message: when each ends, what its last bytes were, and when its client is back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::failover::key_watch::{KeyChange, KeyWatch};
use crate::fault::node;
use crate::report::{self, Progress, say};
use crate::stack::router::Pooled;
use crate::stack::{Layout, Plan, Stack};
use crate::switchover::{PORT, clients, quantile};
use client::{Does, Ended, Place};

pub mod client;
pub mod wire;

/// The cluster may take so long until everybody streams again.
const WHOLE: Duration = Duration::from_secs(60);
/// All sessions must stand where they should within this.
const SETTLES: Duration = Duration::from_secs(30);
/// The leader key must change within this: a lease ends meanwhile.
const CHANGES: Duration = Duration::from_secs(30);
/// Slow readers read on slowly for so long after the event.
const STAYS_SLOW: Duration = Duration::from_millis(300);
/// A session ends within this after the watch event.
const BAR: Duration = Duration::from_millis(100);
/// All clients are back within this after the first of them: nobody waits for a time that is set somewhere.
const TOGETHER: Duration = Duration::from_secs(2);
/// Idle sessions of each mode, in each round.
const IDLE: usize = 10;
/// How many wrong streams are told in full.
const NAMED: usize = 10;

/// How a leader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Its node is frozen: only the watch tells
    FreezeNode,
    /// The operator moves leadership
    Switchover,
}

/// The options of `cuts`.
#[derive(Args, Debug)]
pub struct CutsOptions {
    /// Rounds; how the leader goes alternates
    #[arg(long, default_value_t = 26)]
    times: usize,
    /// Slow readers of each mode, in each round
    #[arg(long, default_value_t = 20)]
    readers: usize,
    /// How the leader goes, in turn
    #[arg(long, value_delimiter = ',', default_values = ["freeze-node", "switchover"])]
    losses: Vec<Loss>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

impl CutsOptions {
    /// A round of each for a test: nothing is held against a time then.
    pub fn short() -> Self {
        Self {
            times: 2,
            readers: 8,
            losses: vec![Loss::FreezeNode, Loss::Switchover],
            json: None,
        }
    }
}

/// Sessions of one kind, over all rounds.
#[derive(Debug, Default, Serialize)]
struct Line {
    mode: &'static str,
    does: Option<Does>,
    loss: Option<Loss>,
    sessions: usize,
    /// By SQLSTATE; `-` for a stream that ended without a word.
    told: BTreeMap<String, usize>,
    wrong: Vec<String>,
    /// From the watch event to the end, in milliseconds; a session may end before it.
    cut_ms: Vec<f64>,
    /// From its end, and the first client that is back, until this one is, in milliseconds.
    behind_ms: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    lines: Vec<Line>,
    /// Cuts that the router itself counted, and how many of them took [`BAR`] at most.
    counted: (u64, u64),
}

/// Runs it; whether every stream was right and every bar met.
pub async fn run(options: &CutsOptions) -> Result<bool> {
    let results = measure(options).await?;
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    tell(&results);
    let is_met = is_right(&results) && is_in_time(&results);
    let verdict = if is_met { "met" } else { "MISSED" };
    say(format!(
        "{verdict}: no FATAL within a message, idle sessions of a frozen leader cut within {} ms of the watch event, all clients \
         back within {} ms of the first",
        BAR.as_millis(),
        TOGETHER.as_millis()
    ));
    Ok(is_met)
}

/// The same without its bars on time: what must hold on any machine, however slow.
pub async fn is_safe(options: &CutsOptions) -> Result<bool> {
    let results = measure(options).await?;
    tell(&results);
    Ok(is_right(&results))
}

async fn measure(options: &CutsOptions) -> Result<Results> {
    let progress = Progress::new();
    let plan = Plan {
        pooled: Some(Pooled {
            listeners: vec![(PORT, "session")],
            auth: "scram-sha-256",
            size: options.readers + IDLE,
            alias: None,
        }),
        ..Plan::new(match rustix::process::geteuid().is_root() {
            true => Layout::Namespaces,
            false => Layout::Loopback,
        })
    };
    let mut stack = Stack::start(&plan, &progress).await?;
    clients::prepare(&stack, stack.leader().await?).await?;
    let mut lines = BTreeMap::new();
    let losses = options.losses.iter().cycle().take(options.times);
    for (number, loss) in losses.enumerate() {
        progress.step(format!("{loss:?}, {} of {}", number + 1, options.times));
        let went = round(&mut stack, *loss, options.readers, &mut lines).await;
        went.with_context(|| format!("round {}", number + 1))?;
    }
    progress.done();
    Ok(Results {
        machine: report::machine(),
        lines: lines.into_values().collect(),
        counted: counted(&stack.router.metrics().await?),
    })
}

type Lines = BTreeMap<(&'static str, Does, Loss), Line>;

async fn round(stack: &mut Stack, loss: Loss, readers: usize, lines: &mut Lines) -> Result<()> {
    let before = stack.until_converged(WHOLE).await?;
    let key = KeyWatch::start(&stack.etcd[(before.leader + 1) % stack.etcd.len()])?;
    let (over, is_over) = watch::channel(false);
    let (settled, mut settling) = mpsc::channel(2 * (readers + IDLE));
    let mut sessions = JoinSet::new();
    for (mode, port) in [("tcp", stack.router.write_port), ("session", PORT)] {
        let place = Place {
            address: stack.router.address.clone(),
            port,
            settled: settled.clone(),
            is_over: is_over.clone(),
        };
        for number in 0..readers + IDLE {
            let does = if number < readers {
                Does::Reads
            } else {
                Does::Idles
            };
            let one = client::live(does, place.clone());
            sessions.spawn(async move { (mode, one.await) });
        }
    }
    drop(settled);
    for _ in 0..2 * (readers + IDLE) {
        tokio::select! {
            told = tokio::time::timeout(SETTLES, settling.recv()) => {
                told.context("not every session began in time")?;
            }
            Some(one) = sessions.join_next() => {
                let (mode, ended) = one?;
                let told = ended.map(|ended| ended.told);
                bail!("a session of mode {mode} ended before its leader: {told:?}");
            }
        }
    }
    let began = clock::now();
    let frozen = lose(stack, loss, before.leader).await?;
    let changed = |_: &KeyChange| true;
    let event = key.until("a change", began, CHANGES, changed).await?.at;
    tokio::time::sleep(STAYS_SLOW).await;
    over.send_replace(true);
    let mut ended = Vec::new();
    while let Some(one) = sessions.join_next().await {
        let (mode, one) = one?;
        ended.push((
            mode,
            one.with_context(|| format!("a session of mode {mode}"))?,
        ));
    }
    if let Some(frozen) = frozen {
        frozen.thaw()?;
    }
    note(lines, loss, event, &ended);
    Ok(())
}

async fn lose(stack: &mut Stack, loss: Loss, leader: usize) -> Result<Option<node::Frozen>> {
    match loss {
        Loss::FreezeNode => node::freeze(&stack.members[leader]).await.map(Some),
        Loss::Switchover => {
            let name = |index: usize| stack.members[index].name.as_str();
            let (from, to) = (name(leader), name(usize::from(leader == 0)));
            let words = ["switchover", "--leader", from, "--candidate", to, "--force"];
            stack.trunkline(&words).await.map(|_| None)
        }
    }
}

fn note(lines: &mut Lines, loss: Loss, event: Moment, ended: &[(&'static str, Ended)]) {
    let first = ended
        .iter()
        .map(|(_, one)| one.back)
        .min()
        .unwrap_or_default();
    for (mode, one) in ended {
        let line = lines.entry((*mode, one.does, loss)).or_default();
        (line.mode, line.does, line.loss) = (*mode, Some(one.does), Some(loss));
        line.sessions += 1;
        match &one.told {
            Ok(code) => {
                let code = code.clone().unwrap_or_else(|| "-".to_owned());
                *line.told.entry(code).or_default() += 1;
            }
            Err(wrong) => line.wrong.push(wrong.clone()),
        }
        line.cut_ms.push(one.at.since(event).as_secs_f64() * 1e3);
        let since = first.max(one.at);
        line.behind_ms
            .push(one.back.since(since).as_secs_f64() * 1e3);
    }
}

/// Of the router's own histogram: all cuts, and those within [`BAR`].
fn counted(metrics: &str) -> (u64, u64) {
    let sum = |start: &str, part: &str| -> u64 {
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with(start) && line.contains(part));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    };
    let within = format!("le=\"{}\"", BAR.as_secs_f64());
    (
        sum("trunkline_router_cut_seconds_count", ""),
        sum("trunkline_router_cut_seconds_bucket", &within),
    )
}

fn is_right(results: &Results) -> bool {
    let wanted = |line: &Line| match line.does {
        Some(Does::Idles) => line.told.keys().all(|code| code == "57P01"),
        // A planned stop lets the router hear the server's own word first.
        _ => line
            .told
            .keys()
            .all(|code| ["08007", "57P01", "-"].contains(&code.as_str())),
    };
    results
        .lines
        .iter()
        .all(|line| line.wrong.is_empty() && wanted(line))
}

fn is_in_time(results: &Results) -> bool {
    let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    let is_late = |line: &Line| {
        let must = (line.does, line.loss) == (Some(Does::Idles), Some(Loss::FreezeNode));
        must && most(&line.cut_ms) > BAR.as_secs_f64() * 1e3
    };
    let together = |line: &Line| most(&line.behind_ms) <= TOGETHER.as_secs_f64() * 1e3;
    results
        .lines
        .iter()
        .all(|line| !is_late(line) && together(line))
}

fn tell(results: &Results) {
    let head = [
        "leader",
        "mode",
        "session",
        "count",
        "told",
        "wrong",
        "cut p50 ms",
        "cut longest ms",
        "back p50 ms",
        "back longest ms",
    ];
    let rows: Vec<_> = results.lines.iter().map(row).collect();
    say(report::table(&head, &rows));
    let (all, within) = results.counted;
    say(format!(
        "the router's own count: {within} of {all} cuts within {} ms; {}",
        BAR.as_millis(),
        results.machine
    ));
    let wrong = results.lines.iter().flat_map(|line| &line.wrong);
    for one in wrong.take(NAMED) {
        say(format!("  wrong: {one}"));
    }
}

fn row(line: &Line) -> Vec<String> {
    let told: Vec<_> = line
        .told
        .iter()
        .map(|(code, count)| format!("{code} {count}"))
        .collect();
    let name = |value: Option<String>| value.unwrap_or_default();
    let at = |of: &[f64], part: f64| {
        let mut sorted = of.to_vec();
        sorted.sort_by(f64::total_cmp);
        format!("{:.1}", quantile(&sorted, part))
    };
    vec![
        name(line.loss.map(|loss| format!("{loss:?}"))),
        line.mode.to_owned(),
        name(line.does.map(|does| format!("{does:?}"))),
        line.sessions.to_string(),
        told.join(", "),
        line.wrong.len().to_string(),
        at(&line.cut_ms, 0.5),
        at(&line.cut_ms, 1.0),
        at(&line.behind_ms, 0.5),
        at(&line.behind_ms, 1.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routers_own_count_is_read_over_all_listeners() {
        let metrics = "# TYPE trunkline_router_cut_seconds histogram\n\
            trunkline_router_cut_seconds_bucket{listener=\"a\",le=\"0.1\"} 3\n\
            trunkline_router_cut_seconds_bucket{listener=\"a\",le=\"0.25\"} 4\n\
            trunkline_router_cut_seconds_count{listener=\"a\"} 4\n\
            trunkline_router_cut_seconds_bucket{listener=\"b\",le=\"0.1\"} 2\n\
            trunkline_router_cut_seconds_count{listener=\"b\"} 2\n";
        assert_eq!(counted(metrics), (6, 5));
    }
}
