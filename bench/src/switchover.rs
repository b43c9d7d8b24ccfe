//! `trunkline-bench switchover`: planned changes of leader, restarts of its PostgreSQL or rolling restarts, back to back, under
//! clients of a pooled listener that write in every way.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::load::history::{Cut, History};
use crate::load::writers;
use crate::report::{self, Progress, ms, say};
use crate::stack::member::{SCOPE, Synchronous, Timing};
use crate::stack::router::Pooled;
use crate::stack::{APP, Layout, Plan, Stack};
use candidate::harm::Harm;
use clients::Clients;
use disturbance::{Disturbance, WITHIN};
use verdict::{Rows, Verdict};

pub(crate) mod candidate;
pub mod clients;
mod disturbance;
pub mod verdict;

/// The pooled listener.
pub const PORT: u16 = 5434;
/// The cluster may take so long until everybody streams again.
const WHOLE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// How many replicas have replayed all but 256 kB.
const CLOSE_BEHIND: &str = "SELECT count(*) FROM pg_stat_replication \
    WHERE pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) < 262144";
/// Half of the stalls are no longer than this.
const MEDIAN: Duration = Duration::from_millis(250);
/// Of a hundred stalls one may be longer.
const NEARLY_ALL: Duration = Duration::from_millis(500);
/// By this the short run draws the same steps every time.
const SHORT_SEED: u64 = 7;

/// The options of `switchover`.
#[derive(Args, Debug)]
pub struct SwitchoverOptions {
    /// Changes of leader
    #[arg(long, default_value_t = 100)]
    times: usize,
    /// What is asked for each time
    #[arg(long, value_enum, default_value_t = Way::Switchover)]
    way: Way,
    /// Clients
    #[arg(long, default_value_t = 16)]
    clients: i32,
    /// Milliseconds between a whole cluster and the next change
    #[arg(long, default_value_t = 500)]
    quiet: u64,
    /// What happens to a second router in the middle of each change, in turn; clients are then on both
    #[arg(long, value_delimiter = ',')]
    second_router: Vec<Disturbance>,
    /// What happens to the candidate in the middle of each change, in turn: at a step that is drawn, and until the change
    /// has come to an end
    #[arg(long, value_delimiter = ',', conflicts_with = "second_router")]
    candidate: Vec<Harm>,
    /// Commits wait for standbys
    #[arg(long)]
    sync: Option<Synchronous>,
    /// The number by which steps and moments are drawn, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
    /// Copy the logs of agents and router to this folder at the end
    #[arg(long)]
    keep_logs: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Whether stalls of changes whose candidate is hurt are held against their bars.
    #[arg(skip = true)]
    judges_times: bool,
}

impl SwitchoverOptions {
    /// A few changes, with each disturbance that needs no root: nothing is held against a time then.
    pub fn short() -> Self {
        Self {
            times: 4,
            way: Way::Switchover,
            clients: 8,
            quiet: 300,
            second_router: vec![Disturbance::Kill, Disturbance::Freeze],
            candidate: Vec::new(),
            sync: None,
            seed: None,
            keep_logs: None,
            json: None,
            judges_times: false,
        }
    }

    /// A few whose candidate is hurt, in ways that need no root.
    pub fn short_with_candidate() -> Self {
        Self {
            times: 3,
            second_router: Vec::new(),
            candidate: vec![Harm::KillAgent, Harm::PauseReplay, Harm::KillPostgres],
            seed: Some(SHORT_SEED),
            ..Self::short()
        }
    }

    /// A few times another way, under clients that nothing disturbs.
    pub fn short_by(way: Way) -> Self {
        Self {
            times: 2,
            way,
            second_router: Vec::new(),
            ..Self::short()
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A planned change of leader.
    Switchover,
    /// A restart of the leader's PostgreSQL.
    Restart,
    /// A parameter that waits for a restart put into force on every member.
    Apply,
}

impl Way {
    fn command(self) -> &'static [&'static str] {
        match self {
            Way::Switchover => &["switchover", "--force"],
            Way::Restart => &["restart", SCOPE, "--role", "leader", "--force"],
            Way::Apply => &["apply", "--force"],
        }
    }

    /// Whether another member leads then.
    fn moves(self) -> bool {
        match self {
            Way::Switchover | Way::Apply => true,
            Way::Restart => false,
        }
    }
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
    /// What happened to the second router, and how long after the command began.
    second_router: Option<(Disturbance, f64)>,
    /// Errors of clients, by SQLSTATE; of the first router alone where there are two.
    errors: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    clients: i32,
    way: Way,
    changes: Vec<Change>,
    #[serde(flatten)]
    verdict: Verdict,
    quiet_ms: f64,
    /// Errors of the clients of a router that was disturbed.
    second_router_errors: usize,
    seed: u64,
}

/// Runs it; whether it met its bar.
pub async fn run(options: &SwitchoverOptions) -> Result<bool> {
    if !options.candidate.is_empty() {
        return candidate::run(options).await;
    }
    let progress = Progress::new();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut stack = start(options, &progress).await?;
    let config = writers::client_config(&stack.router.address, PORT);
    let second = stack.second_router.as_ref();
    let second = second.map(|router| writers::client_config(&router.address, PORT));
    let load = Clients::start(&config, second.as_ref(), options.clients);
    let began = clock::now();
    let changes = change_all(options, seed, &mut stack, &progress).await;
    let [history, of_second] = load.finish().await?;
    progress.done();
    if let Some(folder) = &options.keep_logs {
        stack.keep_logs(folder)?;
    }
    let mut changes = changes?;
    let rows = rows(&mut stack).await?;
    let verdict = verdict::judge(&history, &rows).and(verdict::judge(&of_second, &rows));
    let first = changes.first().context("no change was made")?.asked;
    let quiet = history.gaps(began, first).anybody;
    for change in &mut changes {
        measure(change, &history);
    }
    let results = Results {
        machine: report::machine(),
        clients: options.clients,
        way: options.way,
        changes,
        verdict,
        quiet_ms: quiet.as_secs_f64() * 1e3,
        second_router_errors: of_second.cuts.len(),
        seed,
    };
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(tell(&results, &history.cuts))
}

async fn start(options: &SwitchoverOptions, progress: &Progress) -> Result<Stack> {
    let is_apart = options.second_router.contains(&Disturbance::Cut)
        || options.candidate.iter().any(|harm| harm.wants_namespaces());
    let layout = match is_apart {
        true => Layout::Namespaces,
        false => Layout::Loopback,
    };
    let plan = Plan {
        pooled: Some(Pooled::by_password(&[(PORT, "transaction")])),
        has_second_router: !options.second_router.is_empty(),
        timing: Timing {
            synchronous: options.sync,
            ..Timing::default()
        },
        ..Plan::new(layout)
    };
    let mut stack = Stack::start(&plan, progress).await?;
    let leader = stack.leader().await?;
    clients::prepare(&stack, leader).await?;
    stack.until_converged(WHOLE).await?;
    Ok(stack)
}

/// Makes the changes, each once the cluster is whole.
async fn change_all(
    options: &SwitchoverOptions,
    seed: u64,
    stack: &mut Stack,
    progress: &Progress,
) -> Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 0..options.times {
        progress.step(format!("change {} of {}", number + 1, options.times));
        tokio::time::sleep(Duration::from_millis(options.quiet)).await;
        let from = stack.leader().await?;
        until_caught_up(stack, from).await?;
        let before = stack.members[from].postmaster();
        let from = stack.members[from].name.clone();
        if options.way == Way::Apply {
            let wanted = raise_connections(stack).await?;
            until_all_wait(stack, &wanted).await?;
        }
        let kinds = options.second_router.len();
        let disturbance = (kinds > 0).then(|| options.second_router[number % kinds]);
        let after = WITHIN.mul_f64(random.f64());
        let asked = clock::now();
        if let Some(last) = changes.last_mut() {
            last.over = asked;
        }
        let mut second = stack.second_router.take();
        let disturbing = async {
            match (disturbance, &mut second) {
                (Some(disturbance), Some(router)) => disturbance.inflict(router, after).await,
                (_, _) => Ok(()),
            }
        };
        let switching = async {
            let said = stack.trunkline(options.way.command()).await;
            (said, clock::now())
        };
        let (disturbed, (said, answered)) = tokio::join!(disturbing, switching);
        stack.second_router = second;
        disturbed?;
        let said = said?;
        let whole = stack.until_converged(WHOLE).await?;
        let to = stack.members[whole.leader].name.clone();
        let is_anew = stack.members[whole.leader].postmaster() != before;
        if !is_anew || (to != from) != options.way.moves() {
            bail!("{from} led before and {to} leads now; the command said:\n{said}");
        }
        changes.push(Change {
            from,
            to,
            asked,
            over: clock::now(),
            command_ms: answered.since(asked).as_secs_f64() * 1e3,
            stall_ms: 0.0,
            one_client_ms: 0.0,
            second_router: disturbance.map(|it| (it, after.as_secs_f64() * 1e3)),
            errors: BTreeMap::new(),
        });
    }
    Ok(changes)
}

/// Sets a parameter that only a restart puts into force; how the command tells of it.
async fn raise_connections(stack: &Stack) -> Result<String> {
    let leader = stack.leader().await?;
    let direct = stack.members[leader].sql(APP).await?;
    let row = direct.query_one("SHOW max_connections", &[]).await?;
    let old: i32 = row.get::<_, &str>(0).parse()?;
    let new = old + 10;
    let set = format!("max_connections={new}");
    let words = ["edit-config", "--quiet", "--force", "--pg", &set];
    stack.trunkline(&words).await?;
    Ok(format!("max_connections: {old}->{new}"))
}

/// Waits until every member tells that it waits for this.
async fn until_all_wait(stack: &Stack, change: &str) -> Result<()> {
    let deadline = clock::now() + WHOLE;
    loop {
        let list = stack.trunkline(&["list", "-f", "tsv"]).await?;
        if list.matches(change).count() == stack.members.len() {
            return Ok(());
        }
        if clock::now() >= deadline {
            bail!("not every member waits for {change} within {WHOLE:?}:\n{list}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the replicas are close behind: one that is not is no successor, and the command would say so.
pub async fn until_caught_up(stack: &Stack, leader: usize) -> Result<()> {
    let direct = stack.members[leader].sql(APP).await?;
    let deadline = clock::now() + WHOLE;
    loop {
        let close = direct.query_one(CLOSE_BEHIND, &[]).await?;
        if close.get::<_, i64>(0) + 1 >= i64::try_from(stack.members.len())? {
            return Ok(());
        }
        if clock::now() >= deadline {
            bail!("the replicas were not close behind within {WHOLE:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
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
pub async fn rows(stack: &mut Stack) -> Result<BTreeMap<(i32, i64), Rows>> {
    rows_from(stack, 0).await
}

/// The same of clients from this number on.
pub async fn rows_from(stack: &mut Stack, first: i32) -> Result<BTreeMap<(i32, i64), Rows>> {
    let leader = stack.until_converged(WHOLE).await?.leader;
    rows_of(&stack.members[leader].sql(APP).await?, first).await
}

/// The same of one server.
pub async fn rows_of(
    direct: &tokio_postgres::Client,
    first: i32,
) -> Result<BTreeMap<(i32, i64), Rows>> {
    let rows = direct.query(clients::ROWS, &[&first]).await?;
    let rows = rows.iter().map(|row| {
        let found = Rows {
            count: row.get(2),
            parts: row.get(3),
        };
        ((row.get(0), row.get(1)), found)
    });
    Ok(rows.collect())
}

/// The stall that this part of all does not go beyond.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = (part * sorted.len() as f64).ceil() as usize;
    let found = sorted.get(place.saturating_sub(1)).copied();
    found.unwrap_or_default()
}

/// Prints the results; whether they are within the bars.
fn tell(results: &Results, cuts: &[Cut]) -> bool {
    let mut stalls: Vec<f64> = results.changes.iter().map(|c| c.stall_ms).collect();
    stalls.sort_by(f64::total_cmp);
    let [median, nearly_all, longest] = [0.5, 0.99, 1.0].map(|part| quantile(&stalls, part));
    let client = results.changes.iter().map(|c| c.one_client_ms);
    let client = client.fold(0.0, f64::max);
    let verdict = &results.verdict;
    let cells = [
        ("changes", results.changes.len().to_string()),
        ("p50 ms", format!("{median:.1}")),
        ("p99 ms", format!("{nearly_all:.1}")),
        ("longest ms", format!("{longest:.1}")),
        ("one client ms", format!("{client:.1}")),
        ("quiet ms", format!("{:.1}", results.quiet_ms)),
        ("errors", cuts.len().to_string()),
        ("acknowledged", verdict.acknowledged.to_string()),
        ("lost", verdict.lost.to_string()),
        ("doubled", (verdict.doubled + verdict.undead).to_string()),
        ("torn", verdict.torn.to_string()),
    ];
    let head = cells.each_ref().map(|(name, _)| *name);
    say(report::table(
        &head,
        &[cells.map(|(_, cell)| cell).to_vec()],
    ));
    let mut errors: BTreeMap<&str, usize> = BTreeMap::new();
    for cut in cuts {
        *errors.entry(&cut.code).or_default() += 1;
    }
    if !errors.is_empty() {
        say(format!("errors by SQLSTATE: {errors:?}"));
    }
    say(format!(
        "{} clients, seed {}; {}",
        results.clients, results.seed, results.machine
    ));
    let is_true = cuts.is_empty() && verdict.is_true();
    let is_disturbed = results.changes.iter().any(|it| it.second_router.is_some());
    let (is_met, bar) = if results.way != Way::Switchover {
        (is_true, "no error, nothing lost or doubled".to_owned())
    } else if is_disturbed {
        let errors = results.second_router_errors;
        say(format!(
            "half of the clients were on a router that was disturbed: {errors} errors"
        ));
        let bar = "no error on the other router, nothing lost or doubled".to_owned();
        (is_true, bar)
    } else {
        let (half, most) = (ms(MEDIAN), ms(NEARLY_ALL));
        let is_short =
            median <= MEDIAN.as_secs_f64() * 1e3 && nearly_all <= NEARLY_ALL.as_secs_f64() * 1e3;
        let bar = format!("no error, nothing lost or doubled, p50 {half} ms, p99 {most} ms");
        (is_true && is_short, bar)
    };
    say(format!("{}: {bar}", if is_met { "met" } else { "MISSED" }));
    is_met
}
