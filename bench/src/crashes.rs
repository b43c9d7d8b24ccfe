//! `trunkline-bench crashes`: the leader's postmaster killed again and again, under clients of a pooled listener that
//! write in every way; each error is held against what that client may be told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::Signal;
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::check::convergence::Converged;
use crate::failover::drawn::Kind;
use crate::failover::losses::{self, FaultLine};
use crate::failover::sequence::{Inflicted, fork_since};
use crate::load::history::{History, Outcome, Write};
use crate::load::writers;
use crate::report::{self, Progress, ms, say};
use crate::stack::member::{MAXIMUM_LAG, Synchronous, Timing};
use crate::stack::proc::ProcessId;
use crate::stack::router::Pooled;
use crate::stack::{Layout, Plan, Stack};
use crate::switchover::clients::{self, Clients, Request, Told};
use crate::switchover::verdict::{self, Rows, Verdict};
use crate::switchover::{PORT, quantile, rows};
use deserved::{Loss, Undeserved};

pub mod deserved;

/// The cluster may take so long until everybody streams again.
const WHOLE: Duration = Duration::from_secs(60);
/// Every client must be told of a write within this, once the cluster is whole.
const FLOWS: Duration = Duration::from_secs(30);
/// Every process of a server whose postmaster was killed ends within this.
const ENDS: Duration = Duration::from_secs(30);
/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(1);
/// Of a hundred gaps one may be longer, where commits wait for nobody.
const NEARLY_ALL: Duration = Duration::from_secs(1);
/// How many undeserved errors are told in full.
const NAMED: usize = 20;

/// The options of `crashes`.
#[derive(Args, Debug)]
pub struct CrashesOptions {
    /// How often the postmaster is killed
    #[arg(long, default_value_t = 50)]
    times: usize,
    /// Clients
    #[arg(long, default_value_t = 16)]
    clients: i32,
    /// Commits wait for standbys: nothing acknowledged may be lost
    #[arg(long)]
    sync: Option<Synchronous>,
    /// Milliseconds between a whole cluster and the next kill
    #[arg(long, default_value_t = 500)]
    quiet: u64,
    /// Copy the logs of agents and router to this folder at the end
    #[arg(long)]
    keep_logs: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

impl CrashesOptions {
    /// A few kills for a test: nothing is held against a time then.
    pub fn short(sync: Option<Synchronous>) -> Self {
        Self {
            times: 3,
            clients: 8,
            sync,
            quiet: 300,
            keep_logs: None,
            json: None,
        }
    }
}

/// Errors of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Count {
    heard: usize,
    undeserved: usize,
}

/// An error that was not deserved, and what is known of it.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    client: i32,
    seq: i64,
    sqlstate: String,
    request: Request,
    why: String,
    words: String,
    /// From the last kill before it until it was asked for and until it came, in milliseconds.
    sent_ms: f64,
    told_ms: f64,
    /// From that kill until no process of the server lived any more.
    gone_ms: f64,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    clients: i32,
    synchronous: Option<String>,
    kills: Vec<FaultLine>,
    /// By SQLSTATE and what was asked for.
    errors: BTreeMap<String, BTreeMap<Request, Count>>,
    undeserved: Vec<Finding>,
    #[serde(flatten)]
    verdict: Verdict,
    quiet_ms: f64,
    /// What else was not as promised.
    faults: Vec<String>,
}

/// Runs it; whether everything was as promised.
pub async fn run(options: &CrashesOptions) -> Result<bool> {
    let results = measure(options).await?;
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    tell(&results);
    let (is_met, bar) = judge(&results, options.sync);
    say(format!("{}: {bar}", if is_met { "met" } else { "MISSED" }));
    Ok(is_met)
}

/// The same without its bar on time: what must hold on any machine, however slow.
pub async fn is_safe(options: &CrashesOptions) -> Result<bool> {
    let results = measure(options).await?;
    tell(&results);
    Ok(is_true(&results, options.sync))
}

async fn measure(options: &CrashesOptions) -> Result<Results> {
    let progress = Progress::new();
    let mut stack = Stack::start(&plan(options), &progress).await?;
    let leader = stack.leader().await?;
    clients::prepare(&stack, leader).await?;
    stack.until_converged(WHOLE).await?;
    let config = writers::client_config(&stack.router.address, PORT);
    let load = Clients::start(&config, None, options.clients);
    load.until_all_write(clock::now(), FLOWS).await?;
    let began = clock::now();
    let mut killed = Killed::default();
    let went = kill_all(options, &mut stack, &load, &mut killed, &progress).await;
    let [mut seen, _] = load.seen().await?;
    progress.done();
    if let Some(folder) = &options.keep_logs {
        stack.keep_logs(folder)?;
    }
    let Some(first) = killed.whole.first() else {
        went?;
        bail!("nothing was killed");
    };
    let quiet = seen.history.gaps(began, first.began).anybody;
    let rows = rows(&mut stack).await?;
    place(&mut seen.history);
    let lost_writes = verdict::lost(&seen.history, &rows);
    let lost: Vec<_> = lost_writes.iter().map(|it| (it.writer, it.seq)).collect();
    let (kills, mut faults) = losses::assess(&killed.whole, &seen.history, &lost, MAXIMUM_LAG);
    if options.sync.is_some() {
        let told = lost_writes.iter().take(NAMED);
        faults.extend(told.map(|write| gone_missing(write, &killed.ends)));
    }
    let is_torn = |key: &&(i32, i64)| rows.get(*key).is_some_and(|found| found.parts > 0);
    let torn = lost.iter().filter(is_torn).count();
    if torn > 0 {
        faults.push(format!("{torn} acknowledged writes are there in part"));
    }
    // What was shown up to here is worth telling.
    faults.extend(went.err().map(|error| format!("broke off: {error:#}")));
    let (errors, undeserved) = count(&seen.told, &rows, &killed.ends);
    Ok(Results {
        machine: report::machine(),
        clients: options.clients,
        synchronous: options.sync.map(|mode| format!("{mode:?}").to_lowercase()),
        kills,
        errors,
        undeserved,
        verdict: verdict::judge(&seen.history, &rows),
        quiet_ms: quiet.as_secs_f64() * 1e3,
        faults,
    })
}

fn plan(options: &CrashesOptions) -> Plan {
    Plan {
        pooled: Some(Pooled::by_password(&[(PORT, "transaction")])),
        timing: Timing {
            synchronous: options.sync,
            ..Timing::default()
        },
        ..Plan::new(Layout::Loopback)
    }
}

/// The kills so far.
#[derive(Debug, Default)]
struct Killed {
    /// Those after which the cluster was whole again.
    whole: Vec<Inflicted>,
    /// All of them.
    ends: Vec<Loss>,
}

/// Kills, each time once the cluster is whole and every client writes.
async fn kill_all(
    options: &CrashesOptions,
    stack: &mut Stack,
    load: &Clients,
    killed: &mut Killed,
    progress: &Progress,
) -> Result<()> {
    for number in 1..=options.times {
        progress.step(format!("kill {number} of {}", options.times));
        tokio::time::sleep(Duration::from_millis(options.quiet)).await;
        let before = stack.until_converged(WHOLE).await?;
        let one = kill(stack, before, load, &mut killed.ends).await;
        let one = one.with_context(|| format!("kill {number}"))?;
        killed.whole.push(one);
    }
    Ok(())
}

async fn kill(
    stack: &mut Stack,
    before: Converged,
    load: &Clients,
    ends: &mut Vec<Loss>,
) -> Result<Inflicted> {
    let member = &stack.members[before.leader];
    let on = member.name.clone();
    let postmaster = member.postmaster();
    let postmaster = postmaster.with_context(|| format!("{on} has no postmaster"))?;
    // Each client has written through this server: none is forked for it between the look and the signal.
    let servers = member.servers();
    let killed = clock::now();
    postmaster.signal(Signal::KILL);
    let gone = until_gone(servers, killed)
        .await
        .with_context(|| format!("the server of {on}"))?;
    ends.push(Loss { killed, gone });
    let after = stack.until_converged(WHOLE).await?;
    load.until_all_write(clock::now(), FLOWS).await?;
    let whole = clock::now();
    let leader = &stack.members[after.leader];
    let fork = fork_since(stack, before.timeline, after).await?;
    Ok(Inflicted {
        what: Kind::PostmasterKilled.to_string(),
        on: on.clone(),
        on_leader: true,
        began: killed,
        healed: gone,
        whole: Some(whole),
        before: (on, before.timeline),
        after: Some((leader.name.clone(), after.timeline)),
        fork,
    })
}

/// Waits until none of these processes lives, closely enough to tell a request before it from one after it.
pub async fn until_gone(mut servers: BTreeSet<ProcessId>, killed: Moment) -> Result<Moment> {
    loop {
        servers.retain(|id| id.is_alive());
        let now = clock::now();
        if servers.is_empty() {
            return Ok(now);
        }
        if now >= killed + ENDS {
            bail!("{} processes live on after {ENDS:?}", servers.len());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Gives the writes of which no server has named the WAL position (COPY) that of the last one before them.
pub fn place(history: &mut History) {
    history.writes.sort_by_key(|write| write.done);
    let mut last = 0;
    for write in &mut history.writes {
        if write.outcome == Outcome::Acknowledged {
            last = last.max(write.position);
            write.position = match write.position {
                0 => last,
                named => named,
            };
        }
    }
}

/// One that no server may forget.
fn gone_missing(write: &Write, losses: &[Loss]) -> String {
    let last = losses.iter().rev().find(|loss| loss.killed <= write.done);
    let since = |moment: Moment| {
        last.map_or(f64::NAN, |loss| {
            (moment.0 as f64 - loss.killed.0 as f64) / 1e6
        })
    };
    format!(
        "client {} ({:?}) was told that its write {} is committed, and it is not there: asked {:.1} ms and told {:.1} ms \
         after a kill, the server gone after {:.1} ms, at WAL byte {}",
        write.writer,
        clients::Kind::of(write.writer),
        write.seq,
        since(write.sent),
        since(write.done),
        last.map_or(f64::NAN, |loss| since(loss.gone)),
        write.position,
    )
}

type Errors = BTreeMap<String, BTreeMap<Request, Count>>;

fn count(
    told: &[Told],
    rows: &BTreeMap<(i32, i64), Rows>,
    losses: &[Loss],
) -> (Errors, Vec<Finding>) {
    let (mut errors, mut findings) = (Errors::new(), Vec::new());
    for one in told {
        let none = Rows { count: 0, parts: 0 };
        let found = *rows.get(&(one.client, one.seq)).unwrap_or(&none);
        let of_code = errors.entry(one.code.clone()).or_default();
        let count = of_code.entry(one.request).or_default();
        count.heard += 1;
        if let Err(why) = deserved::judge(one, found, losses) {
            count.undeserved += 1;
            findings.push(finding(one, why, losses));
        }
    }
    (errors, findings)
}

fn finding(told: &Told, why: Undeserved, losses: &[Loss]) -> Finding {
    let last = losses.iter().rev().find(|loss| loss.killed <= told.at);
    let since = |moment: Moment| {
        last.map_or(f64::NAN, |loss| {
            (moment.0 as f64 - loss.killed.0 as f64) / 1e6
        })
    };
    Finding {
        client: told.client,
        seq: told.seq,
        sqlstate: told.code.clone(),
        request: told.request,
        why: why.to_string(),
        words: told.words.clone(),
        sent_ms: since(told.sent),
        told_ms: since(told.at),
        gone_ms: last.map_or(f64::NAN, |loss| since(loss.gone)),
    }
}

fn gaps(results: &Results) -> Vec<f64> {
    let mut gaps: Vec<f64> = results
        .kills
        .iter()
        .map(|kill| kill.gap_ms as f64)
        .collect();
    gaps.sort_by(f64::total_cmp);
    gaps
}

fn is_true(results: &Results, sync: Option<Synchronous>) -> bool {
    let Verdict {
        lost,
        doubled,
        torn,
        undead,
        ..
    } = results.verdict;
    let is_kept = lost == 0 || sync.is_none();
    is_kept
        && doubled + torn + undead == 0
        && results.undeserved.is_empty()
        && results.faults.is_empty()
}

/// Whether the bar was met, and what it is.
fn judge(results: &Results, sync: Option<Synchronous>) -> (bool, String) {
    let rest = "nothing doubled or torn, every error deserved";
    let is_true = is_true(results, sync);
    match sync {
        Some(_) => (is_true, format!("nothing lost, {rest}")),
        None => {
            let longest = quantile(&gaps(results), 0.99);
            let is_short = longest <= NEARLY_ALL.as_secs_f64() * 1e3;
            (
                is_true && is_short,
                format!("gap p99 {} ms, {rest}", ms(NEARLY_ALL)),
            )
        }
    }
}

fn tell(results: &Results) {
    say(losses::table(&results.kills));
    tell_errors(results);
    for fault in &results.faults {
        say(format!("FAULT {fault}"));
    }
    let (gaps, verdict) = (gaps(results), &results.verdict);
    let [median, nearly_all, longest] = [0.5, 0.99, 1.0].map(|part| quantile(&gaps, part));
    let heard = results.errors.values().flat_map(BTreeMap::values);
    let heard: usize = heard.map(|count| count.heard).sum();
    let moved = results
        .kills
        .iter()
        .filter(|kill| kill.before != kill.after);
    let cells = [
        ("kills", results.kills.len().to_string()),
        ("led on elsewhere", moved.count().to_string()),
        ("p50 ms", format!("{median:.0}")),
        ("p99 ms", format!("{nearly_all:.0}")),
        ("longest ms", format!("{longest:.0}")),
        ("quiet ms", format!("{:.0}", results.quiet_ms)),
        ("errors", heard.to_string()),
        ("undeserved", results.undeserved.len().to_string()),
        ("acknowledged", verdict.acknowledged.to_string()),
        ("lost", verdict.lost.to_string()),
        ("doubled", (verdict.doubled + verdict.undead).to_string()),
        ("torn", verdict.torn.to_string()),
    ];
    let head = cells.each_ref().map(|(name, _)| *name);
    let row = cells.map(|(_, cell)| cell).to_vec();
    say(report::table(&head, &[row]));
    let mode = results.synchronous.as_deref().unwrap_or("none");
    say(format!(
        "{} clients, standbys that commits wait for: {mode}; {}",
        results.clients, results.machine
    ));
}

fn tell_errors(results: &Results) {
    let mut rows = Vec::new();
    for (code, requests) in &results.errors {
        for (request, count) in requests {
            let code = if code.is_empty() {
                "none"
            } else {
                code.as_str()
            };
            rows.push(vec![
                code.to_owned(),
                format!("{request:?}"),
                count.heard.to_string(),
                (count.heard - count.undeserved).to_string(),
            ]);
        }
    }
    if !rows.is_empty() {
        let head = ["SQLSTATE", "answer to", "errors", "deserved"];
        say(report::table(&head, &rows));
    }
    for finding in results.undeserved.iter().take(NAMED) {
        say(format!(
            "FAULT client {} write {}: {:?} was answered {}: {} (asked {:.1} ms and told {:.1} ms after the kill, the server \
             gone after {:.1} ms)",
            finding.client,
            finding.seq,
            finding.request,
            finding.words,
            finding.why,
            finding.sent_ms,
            finding.told_ms,
            finding.gone_ms
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::history::Write;

    fn write(seq: i64, done: u64, outcome: Outcome, position: u64) -> Write {
        Write {
            writer: 3,
            seq,
            sent: Moment(0),
            done: Moment(done),
            outcome,
            position,
        }
    }

    #[test]
    fn a_copy_stands_where_the_last_write_before_it_stood() {
        let mut history = History {
            writes: vec![
                write(2, 20, Outcome::Acknowledged, 0),
                write(1, 10, Outcome::Acknowledged, 700),
                write(3, 30, Outcome::Unknown, 0),
                write(4, 40, Outcome::Acknowledged, 650),
            ],
            cuts: Vec::new(),
        };
        place(&mut history);
        let positions: Vec<_> = history.writes.iter().map(|write| write.position).collect();
        assert_eq!(positions, [700, 700, 0, 650]);
    }

    #[test]
    fn errors_are_counted_by_what_they_answered_and_found_out_by_their_losses() {
        let told = |seq, sent, request, code: &str| Told {
            client: 2,
            seq,
            request,
            began: Moment(sent),
            sent: Moment(sent),
            at: Moment(2_000_000),
            code: code.to_owned(),
            words: String::new(),
            is_fatal: false,
        };
        let list = [
            told(1, 500_000, Request::Inside, "40001"),
            told(2, 500_000, Request::Commit, "08007"),
            told(3, 1_900_000, Request::Commit, "08007"),
        ];
        let loss = Loss {
            killed: Moment(1_000_000),
            gone: Moment(1_500_000),
        };
        let (errors, findings) = count(&list, &BTreeMap::new(), &[loss]);
        let commits = Count {
            heard: 2,
            undeserved: 1,
        };
        assert_eq!(errors["08007"][&Request::Commit], commits);
        assert_eq!(errors["40001"][&Request::Inside].undeserved, 0);
        assert_eq!(findings.len(), 1);
        let found = (findings[0].seq, findings[0].sent_ms, findings[0].gone_ms);
        assert_eq!(found, (3, 0.9, 0.5));
    }
}
