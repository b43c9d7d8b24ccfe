//! One run of one scenario: quiet load, the fault, recovery, and every check that holds for all of them.

use std::time::Duration;

use anyhow::{Context, Result};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::inflict;
use super::losses::{self, FaultLine};
use super::scenario::{Bar, Scenario};
use super::sequence::Inflicted;
use crate::check::one_writer::Helpless;
use crate::check::{convergence, ledger, one_writer, pages};
use crate::load::history::{Gaps, History};
use crate::load::last_write::LastWrite;
use crate::load::readers::{Readers, Reads};
use crate::load::writers::{self, Writers};
use crate::report::Progress;
use crate::stack::Stack;
use crate::stack::member::MAXIMUM_LAG;

/// How long a fence that runs again may take to kill: its own target is 200 ms.
pub const KILL_GRANT: Duration = Duration::from_millis(500);
/// After the last fault everyone must stream again within this.
const CONVERGE_LIMIT: Duration = Duration::from_secs(30);
/// How long the load goes on after the cluster has converged: a late cut would show here.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// The SQLSTATE of a row that is there already: no writer sends the same row twice.
const DOUBLED: &str = "23505";
/// How many lost rows are named.
const NAMED: usize = 20;
/// Readers on the read port.
const READERS: i32 = 4;

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The time in which the quiet gap is measured.
    pub quiet: Duration,
    /// Writers through the router.
    pub writers: i32,
    /// The number a list of faults is drawn by.
    pub seed: u64,
    /// How many faults are drawn, if not as many as the scenario would.
    pub count: Option<usize>,
    /// How long a drawn fault lasts at the most.
    pub longest: Duration,
    /// For how long etcd is away, where a scenario takes it away.
    pub outage: Duration,
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The longest gaps from the fault on.
    pub gaps: Gaps,
    /// The longest gaps of the quiet time.
    pub quiet: Gaps,
    /// The longest time without an answer on the read port, from the fault on.
    pub read_gap: Duration,
    /// What the gap is judged by.
    pub bar: Bar,
    /// What was missed of the bar on the gap.
    pub missed: Option<String>,
    /// What else was not as promised; empty means that all of it held.
    pub faults: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// What each fault of a list cost.
    pub list: Vec<FaultLine>,
}

/// What a scenario works with and reports to.
#[derive(Debug)]
pub struct Run<'a> {
    /// The cluster.
    pub stack: &'a mut Stack,
    /// The leader's index before the fault.
    pub leader: usize,
    /// Since when the fault counts.
    pub began: Moment,
    /// When the load was told last that a write is committed.
    pub writes: LastWrite,
    /// What was missed.
    pub faults: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// While one of these stood, nothing on that member's node could end PostgreSQL: what it then committed
    /// past the router is told and not judged.
    pub helpless: Vec<Helpless>,
    /// Tables that must be equal everywhere at the end, that of the load first.
    pub tables: Vec<&'static str>,
    /// The number a list of faults is drawn by.
    pub seed: u64,
    /// How many faults are drawn, if not as many as the scenario would.
    pub count: Option<usize>,
    /// How long a drawn fault lasts at the most.
    pub longest: Duration,
    /// For how long etcd is away.
    pub outage: Duration,
    /// The faults of the list, as they were inflicted.
    pub inflicted: Vec<Inflicted>,
}

impl Run<'_> {
    /// The cluster's TTL.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(u64::from(self.stack.timing.ttl))
    }

    /// Notes what is worth knowing.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Notes what was missed.
    pub fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }
}

/// Runs one scenario once.
pub async fn once(
    stack: &mut Stack,
    scenario: Scenario,
    settings: &Settings,
    progress: &Progress,
) -> Result<Measured> {
    stack
        .until_converged(CONVERGE_LIMIT * 2)
        .await
        .context("before the run")?;
    let leader = stack.leader().await?;
    writers::prepare(stack, leader).await?;
    // Readers must find the database on every replica.
    ledger::same_everywhere(stack, leader, &["ledger"]).await?;
    let watchers = one_writer::Watchers::start(stack, leader).await?;
    let writers = Writers::start(stack, settings.writers);
    let readers = Readers::start(stack, READERS);
    let quiet_from = warm(&writers).await?;
    progress.step(format!("{scenario}: quiet load for {:?}", settings.quiet));
    tokio::time::sleep(settings.quiet).await;

    progress.step(format!("{scenario}: the fault"));
    let began = clock::now();
    let mut run = Run {
        stack,
        leader,
        began,
        writes: writers.shared().last_write().clone(),
        faults: Vec::new(),
        notes: Vec::new(),
        helpless: Vec::new(),
        tables: vec!["ledger"],
        seed: settings.seed,
        count: settings.count,
        longest: settings.longest,
        outage: settings.outage,
        inflicted: Vec::new(),
    };
    if let Err(error) = inflict::inflict(scenario, &mut run, progress).await {
        if run.inflicted.is_empty() {
            return Err(error.context(scenario.to_string()));
        }
        // What a list has shown up to here is worth telling.
        run.fault(format!("broke off: {error:#}"));
    }
    progress.step(format!("{scenario}: recovery"));
    let healed = clock::now();
    match run.stack.until_converged(CONVERGE_LIMIT).await {
        Ok(_) => run.note(format!(
            "one leader and two streaming {:.1} s after the end of the fault",
            clock::now().since(healed).as_secs_f64()
        )),
        Err(error) => run.fault(format!("{error:#}")),
    }
    tokio::time::sleep(AFTERWARDS).await;
    let until = clock::now();
    let history = writers.finish().await?;
    let reads = readers.finish().await?;
    let commits = watchers.finish().await?;
    let bar = scenario.bar(run.ttl());
    let gaps = history.gaps(run.began, until);
    // What a scenario does before the fault counts is not quiet.
    let quiet = history.gaps(quiet_from, began);
    let missed = bar.missed(gaps, quiet);
    let list = judge(&mut run, scenario, &history, &reads, &commits).await?;
    let read_gap = reads.longest_gap(run.began, until);
    let Run { faults, notes, .. } = run;
    Ok(Measured {
        gaps,
        quiet,
        read_gap,
        bar,
        missed,
        faults,
        notes,
        list,
    })
}

/// Waits until every writer has written, so that the quiet time holds no start of a session.
async fn warm(writers: &Writers) -> Result<Moment> {
    let shared = writers.shared();
    let deadline = clock::now() + CONVERGE_LIMIT;
    while shared.acknowledged() < 100 {
        if clock::now() >= deadline {
            anyhow::bail!(
                "the writers got {} rows and {} ended sessions in {CONVERGE_LIMIT:?} through the router",
                shared.acknowledged(),
                shared.cuts()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(clock::now())
}

/// The checks that hold for every scenario.
async fn judge(
    run: &mut Run<'_>,
    scenario: Scenario,
    history: &History,
    reads: &Reads,
    commits: &[one_writer::Committed],
) -> Result<Vec<FaultLine>> {
    judge_one_writer(run, commits);
    if reads.by_primary > 0 {
        run.note(format!(
            "{} reads on the read port were answered by a primary",
            reads.by_primary
        ));
    }
    run.note(format!(
        "sessions ended or refused: {} of writers ({}), {} of readers ({})",
        history.cuts.len(),
        codes(history.cuts.iter().map(|cut| cut.code.as_str())),
        reads.cuts.len(),
        codes(reads.cuts.iter().map(|cut| cut.code.as_str())),
    ));
    // A cluster without a leader has nothing to compare; that it has none is already told.
    let doubled = history
        .cuts
        .iter()
        .filter(|cut| cut.code == DOUBLED)
        .count();
    if doubled > 0 {
        run.fault(format!(
            "{doubled} writes met a row of their own: they were done twice"
        ));
    }
    let Ok(converged) = convergence::now(run.stack).await else {
        return Ok(losses::assess(&run.inflicted, history, &[], MAXIMUM_LAG).0);
    };
    let verdict = ledger::verify(&run.stack.members[converged.leader], history).await?;
    run.note(format!(
        "{} writes acknowledged, {} unknown, {} refused; lost {}",
        verdict.acknowledged,
        verdict.unknown,
        verdict.failed,
        verdict.lost.len()
    ));
    let (list, beyond) = losses::assess(&run.inflicted, history, &verdict.lost, MAXIMUM_LAG);
    run.faults.extend(beyond);
    let may_lose = scenario.may_lose() && run.stack.timing.synchronous.is_none();
    match (verdict.lost.is_empty(), may_lose) {
        (true, _) => {}
        (false, true) => run.note(format!(
            "lost rows {:?}: replication is asynchronous and the leader's end was sudden",
            &verdict.lost[..verdict.lost.len().min(NAMED)]
        )),
        (false, false) => run.fault(format!("acknowledged rows are lost: {:?}", verdict.lost)),
    }
    if !verdict.risen.is_empty() {
        run.fault(format!(
            "rows that were refused are there: {:?}",
            verdict.risen
        ));
    }
    if let Err(error) =
        ledger::same_everywhere(run.stack, converged.leader, &run.tables.clone()).await
    {
        run.fault(format!("{error:#}"));
    }
    if scenario == Scenario::Rejoin {
        match pages::check(run.stack, converged.leader).await {
            Ok(what) => run.note(what),
            Err(error) => run.fault(format!("{error:#}")),
        }
    }
    Ok(list)
}

/// No second primary, but for what a helpless member committed for those who bypass the router.
fn judge_one_writer(run: &mut Run<'_>, commits: &[one_writer::Committed]) {
    let (told, missed) = one_writer::judge(commits, &run.helpless);
    run.notes.extend(told);
    run.faults.extend(missed);
}

/// How often each SQLSTATE came.
fn codes<'a>(codes: impl Iterator<Item = &'a str>) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for code in codes {
        *counts
            .entry(if code.is_empty() { "closed" } else { code })
            .or_insert(0) += 1;
    }
    let each: Vec<_> = counts
        .iter()
        .map(|(code, count)| format!("{count} {code}"))
        .collect();
    if each.is_empty() {
        "none".to_owned()
    } else {
        each.join(", ")
    }
}
