//! `trunkline-bench switchover`: planned changes of leader back to back, under clients of a pooled listener that write
//! in every way.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::load::history::{Cut, History};
use crate::load::writers;
use crate::report::{self, Progress, ms, say};
use crate::stack::router::{POOL_SIZE, Pooled};
use crate::stack::{APP, Layout, Plan, Stack};
use clients::Clients;
use verdict::{Rows, Verdict};

mod clients;
mod verdict;

/// The pooled listener.
const PORT: u16 = 5434;
/// The cluster may take so long until everybody streams again.
const WHOLE: Duration = Duration::from_secs(60);
/// Half of the stalls are no longer than this.
const MEDIAN: Duration = Duration::from_millis(250);
/// Of a hundred stalls one may be longer.
const NEARLY_ALL: Duration = Duration::from_millis(500);

/// The options of `switchover`.
#[derive(Args, Debug)]
pub struct SwitchoverOptions {
    /// Changes of leader
    #[arg(long, default_value_t = 100)]
    times: usize,
    /// Clients
    #[arg(long, default_value_t = 16)]
    clients: i32,
    /// Milliseconds between a whole cluster and the next change
    #[arg(long, default_value_t = 500)]
    quiet: u64,
    /// Copy the logs of agents and router to this folder at the end
    #[arg(long)]
    keep_logs: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One change.
#[derive(Clone, Debug, Serialize)]
struct Change {
    from: String,
    to: String,
    #[serde(skip)]
    asked: Moment,
    /// When the next one began, or the run ended.
    #[serde(skip)]
    over: Moment,
    command_ms: f64,
    /// The longest time without an acknowledged write of anybody.
    stall_ms: f64,
    /// The same of the client that waited longest.
    one_client_ms: f64,
    /// Errors of clients, by SQLSTATE.
    errors: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    clients: i32,
    changes: Vec<Change>,
    #[serde(flatten)]
    verdict: Verdict,
    quiet_ms: f64,
}

/// Runs it; whether it met its bar.
pub async fn run(options: &SwitchoverOptions) -> Result<bool> {
    let progress = Progress::new();
    let plan = Plan {
        pooled: Some(Pooled {
            listeners: vec![(PORT, "transaction")],
            auth: "scram-sha-256",
            size: POOL_SIZE,
            alias: None,
        }),
        ..Plan::new(Layout::Loopback)
    };
    let mut stack = Stack::start(&plan, &progress).await?;
    let leader = stack.leader().await?;
    writers::prepare(&stack, leader).await?;
    let direct = stack.members[leader].sql(APP).await?;
    direct.batch_execute(clients::TABLE).await?;
    stack.until_converged(WHOLE).await?;
    let config = writers::client_config(&stack.router.address, PORT);
    let load = Clients::start(&config, options.clients);
    let began = clock::now();
    let changes = change_all(options, &mut stack, &progress).await;
    let history = load.finish().await?;
    progress.done();
    if let Some(folder) = &options.keep_logs {
        stack.keep_logs(folder)?;
    }
    let mut changes = changes?;
    let rows = rows(&mut stack).await?;
    let verdict = verdict::judge(&history, &rows);
    let first = changes.first().context("no change was made")?.asked;
    let quiet = history.gaps(began, first).anybody;
    for change in &mut changes {
        measure(change, &history);
    }
    let results = Results {
        machine: report::machine(),
        clients: options.clients,
        changes,
        verdict,
        quiet_ms: quiet.as_secs_f64() * 1e3,
    };
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(tell(&results, &history.cuts))
}

/// Makes the changes, each once the cluster is whole.
async fn change_all(
    options: &SwitchoverOptions,
    stack: &mut Stack,
    progress: &Progress,
) -> Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    for number in 1..=options.times {
        progress.step(format!("change {number} of {}", options.times));
        tokio::time::sleep(Duration::from_millis(options.quiet)).await;
        let from = stack.leader().await?;
        let from = stack.members[from].name.clone();
        let asked = clock::now();
        if let Some(last) = changes.last_mut() {
            last.over = asked;
        }
        let said = stack.trunkline(&["switchover", "--force"]).await?;
        let command_ms = clock::now().since(asked).as_secs_f64() * 1e3;
        let whole = stack.until_converged(WHOLE).await?;
        let to = stack.members[whole.leader].name.clone();
        if to == from {
            bail!("{from} leads as before; the command said:\n{said}");
        }
        changes.push(Change {
            from,
            to,
            asked,
            over: clock::now(),
            command_ms,
            stall_ms: 0.0,
            one_client_ms: 0.0,
            errors: BTreeMap::new(),
        });
    }
    Ok(changes)
}

fn measure(change: &mut Change, history: &History) {
    let gaps = history.gaps(change.asked, change.over);
    change.stall_ms = gaps.anybody.as_secs_f64() * 1e3;
    change.one_client_ms = gaps.one_writer.as_secs_f64() * 1e3;
    for cut in &history.cuts {
        if cut.at >= change.asked && cut.at < change.over {
            *change.errors.entry(cut.code.clone()).or_default() += 1;
        }
    }
}

/// What the last leader has.
async fn rows(stack: &mut Stack) -> Result<BTreeMap<(i32, i64), Rows>> {
    let leader = stack.until_converged(WHOLE).await?.leader;
    let direct = stack.members[leader].sql(APP).await?;
    let rows = direct.query(clients::ROWS, &[]).await?;
    let rows = rows.iter().map(|row| {
        let found = Rows {
            count: row.get(2),
            parts: row.get(3),
        };
        ((row.get(0), row.get(1)), found)
    });
    Ok(rows.collect())
}

/// Prints the results; whether they are within the bars.
fn tell(results: &Results, cuts: &[Cut]) -> bool {
    let mut stalls: Vec<f64> = results.changes.iter().map(|c| c.stall_ms).collect();
    stalls.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = (part * stalls.len() as f64).ceil() as usize;
        stalls
            .get(place.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    };
    let (median, nearly_all, longest) = (at(0.5), at(0.99), at(1.0));
    let client = results.changes.iter().map(|c| c.one_client_ms);
    let client = client.fold(0.0, f64::max);
    let mut errors: BTreeMap<&str, usize> = BTreeMap::new();
    for cut in cuts {
        *errors.entry(&cut.code).or_default() += 1;
    }
    let verdict = &results.verdict;
    let head = [
        "changes",
        "p50 ms",
        "p99 ms",
        "longest ms",
        "one client ms",
        "quiet ms",
        "errors",
        "acknowledged",
        "lost",
        "doubled",
        "torn",
    ];
    let row = vec![
        results.changes.len().to_string(),
        format!("{median:.1}"),
        format!("{nearly_all:.1}"),
        format!("{longest:.1}"),
        format!("{client:.1}"),
        format!("{:.1}", results.quiet_ms),
        cuts.len().to_string(),
        verdict.acknowledged.to_string(),
        verdict.lost.to_string(),
        (verdict.doubled + verdict.undead).to_string(),
        verdict.torn.to_string(),
    ];
    say(report::table(&head, &[row]));
    if !errors.is_empty() {
        say(format!("errors by SQLSTATE: {errors:?}"));
    }
    say(format!("{} clients; {}", results.clients, results.machine));
    let is_met = cuts.is_empty()
        && verdict.is_true()
        && median <= MEDIAN.as_secs_f64() * 1e3
        && nearly_all <= NEARLY_ALL.as_secs_f64() * 1e3;
    let bar = format!(
        "no error, nothing lost or doubled, p50 {} ms, p99 {} ms",
        ms(MEDIAN),
        ms(NEARLY_ALL)
    );
    say(if is_met {
        format!("met: {bar}")
    } else {
        format!("MISSED: {bar}")
    });
    is_met
}
