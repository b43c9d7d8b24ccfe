//! A course of steps on one cluster under writers that never stop: what each step cost them, and what must hold
//! for all of it.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::rig::Rig;
use super::{Scenario, Setup};
use crate::check::{ledger, one_writer};
use crate::load::history::{History, Outcome};
use crate::load::writers::{self, Writers};
use crate::report;

/// How long the cluster is left alone after each step: a late cut would show here.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Writes must flow within this, once one leads and the others stream.
const FLOW_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// How many lost rows are named.
const NAMED: usize = 20;

/// How long writes may pause in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// It is told only.
    Told,
    /// This is Patroni's own: what others are measured by.
    Yardstick,
    /// Not longer than the longest yardstick of the course, and one interval of HAProxy's checks: where in it a
    /// change falls is chance.
    AsPatronis,
    /// At most this long.
    AtMost(Duration),
}

/// May acknowledged rows be lost?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Never.
    None,
    /// Replication is asynchronous and the leader's end sudden: it is told.
    Asynchronous,
}

/// A step that was taken.
#[derive(Debug)]
struct Step {
    what: String,
    limit: Limit,
    loss: Loss,
    began: Moment,
    ended: Moment,
    notes: Vec<String>,
    faults: Vec<String>,
}

/// One line of the result.
#[derive(Debug, Serialize)]
pub struct Line {
    /// What was done, and by whom.
    pub what: String,
    /// The longest time without an acknowledged write of anybody; nothing where no writer ran.
    pub gap_ms: Option<f64>,
    /// The same of the writer that waited longest.
    pub writer_gap_ms: Option<f64>,
    /// What the gap was judged by.
    pub bar: String,
    /// Sessions that ended or were refused.
    pub ended_sessions: Option<usize>,
    /// Acknowledged rows that the cluster lost.
    pub lost: Option<usize>,
    /// What did not hold.
    pub faults: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

impl Line {
    /// A check without writers.
    pub fn check(what: impl Into<String>, outcome: Result<String>) -> Line {
        let (notes, faults) = match outcome {
            Ok(note) if note.is_empty() => (Vec::new(), Vec::new()),
            Ok(note) => (vec![note], Vec::new()),
            Err(error) => (Vec::new(), vec![format!("{error:#}")]),
        };
        Line {
            what: what.into(),
            gap_ms: None,
            writer_gap_ms: None,
            bar: String::new(),
            ended_sessions: None,
            lost: None,
            faults,
            notes,
        }
    }

    /// A scenario that could not be carried through.
    pub fn broke_off(scenario: Scenario, error: &anyhow::Error) -> Line {
        let name = scenario.to_possible_value();
        let name = name.map(|value| value.get_name().to_owned());
        let why = anyhow::anyhow!("broke off: {error:#}");
        Line::check(name.unwrap_or_default(), Err(why))
    }
}

/// A cluster, its writers, and the steps taken so far.
#[derive(Debug)]
pub struct Course<'a> {
    /// The cluster.
    pub rig: Rig,
    setup: &'a Setup<'a>,
    watchers: one_writer::Watchers,
    writers: Writers,
    steps: Vec<Step>,
}

impl<'a> Course<'a> {
    /// Starts the writers and whoever watches that one member at a time accepts writes.
    pub async fn start(setup: &'a Setup<'a>, rig: Rig) -> Result<Course<'a>> {
        let leader = rig.stack.leader().await?;
        writers::prepare(&rig.stack, leader).await?;
        ledger::same_everywhere(&rig.stack, leader, &["ledger"]).await?;
        let watchers = one_writer::Watchers::start(&rig.stack, leader).await?;
        let writers = Writers::start(&rig.stack, setup.writers);
        let mut course = Course {
            rig,
            setup,
            watchers,
            writers,
            steps: Vec::new(),
        };
        course.flows(clock::now()).await?;
        Ok(course)
    }

    /// Takes a step: does it, waits until the cluster is whole and writes flow, and leaves it alone for a moment.
    /// What it says is noted.
    pub async fn step(
        &mut self,
        what: impl Into<String>,
        limit: Limit,
        loss: Loss,
        work: impl AsyncFnOnce(&mut Rig) -> Result<String>,
    ) -> Result<()> {
        let what = what.into();
        self.setup.progress.step(&what);
        let began = clock::now();
        let said = work(&mut self.rig).await.with_context(|| what.clone())?;
        let worked = clock::now();
        self.rig.whole().await.with_context(|| what.clone())?;
        let whole = clock::now();
        self.flows(whole).await.with_context(|| what.clone())?;
        tokio::time::sleep(AFTERWARDS).await;
        let mut notes = Vec::new();
        if !said.is_empty() {
            notes.push(said);
        }
        notes.push(format!(
            "took {:.1} s, whole {:.1} s later",
            worked.since(began).as_secs_f64(),
            whole.since(worked).as_secs_f64()
        ));
        self.steps.push(Step {
            what,
            limit,
            loss,
            began,
            ended: clock::now(),
            notes,
            faults: Vec::new(),
        });
        Ok(())
    }

    /// Tells what did not hold in the step taken last.
    pub fn fault(&mut self, text: impl Into<String>) {
        if let Some(step) = self.steps.last_mut() {
            step.faults.push(text.into());
        }
    }

    async fn flows(&mut self, since: Moment) -> Result<()> {
        let shared = self.writers.shared().clone();
        let deadline = clock::now() + FLOW_LIMIT;
        while shared.last_write().done() <= since {
            if clock::now() >= deadline {
                anyhow::bail!("no write through HAProxy within {FLOW_LIMIT:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends the writers and judges: `went` is how the course went.
    pub async fn finish(mut self, name: &str, went: Result<()>) -> Result<Vec<Line>> {
        let history = self.writers.finish().await?;
        let commits = self.watchers.finish().await?;
        self.rig.keep_logs(self.setup, name, self.setup.progress);
        let interval = self.rig.haproxy.file.interval();
        let mut whole = Line::check(
            format!("{name}: the whole course"),
            went.map(|()| String::new()),
        );
        let mut lost = Vec::new();
        match self.rig.whole().await {
            Ok(converged) => {
                let leader = &self.rig.stack.members[converged.leader];
                let verdict = ledger::verify(leader, &history).await?;
                whole.notes.push(format!(
                    "{} writes acknowledged, {} unknown, {} refused; lost {}",
                    verdict.acknowledged,
                    verdict.unknown,
                    verdict.failed,
                    verdict.lost.len()
                ));
                if !verdict.risen.is_empty() {
                    let text = format!("rows that were refused are there: {:?}", verdict.risen);
                    whole.faults.push(text);
                }
                lost = verdict.lost;
                let same = ledger::same_everywhere(&self.rig.stack, converged.leader, &["ledger"]);
                if let Err(error) = same.await {
                    whole.faults.push(format!("{error:#}"));
                }
            }
            Err(error) => whole.faults.push(format!("{error:#}")),
        }
        if let Some((first, second)) = one_writer::second_primary(&commits) {
            let text = format!("two writable primaries: {first:?} and {second:?}");
            whole.faults.push(text);
        }
        let mut lines = judge(self.steps, &history, &lost, interval);
        let told: usize = lines.iter().filter_map(|line| line.lost).sum();
        if told < lost.len() {
            let text = format!("{} rows were lost outside of every step", lost.len() - told);
            whole.faults.push(text);
        }
        whole.lost = Some(lost.len());
        lines.push(whole);
        Ok(lines)
    }
}

fn judge(
    steps: Vec<Step>,
    history: &History,
    lost: &[(i32, i64)],
    interval: Duration,
) -> Vec<Line> {
    let gap_of = |step: &Step| history.gaps(step.began, step.ended).anybody;
    let yardsticks = steps.iter().filter(|step| step.limit == Limit::Yardstick);
    let longest = yardsticks.map(gap_of).max();
    let each = steps.into_iter();
    each.map(|step| line(step, history, lost, longest.map(|gap| gap + interval)))
        .collect()
}

fn line(step: Step, history: &History, lost: &[(i32, i64)], as_patronis: Option<Duration>) -> Line {
    let gaps = history.gaps(step.began, step.ended);
    let is_inside = |at: Moment| at >= step.began && at < step.ended;
    let cuts = history.cuts.iter().filter(|cut| is_inside(cut.at)).count();
    let lost: Vec<_> = history
        .writes
        .iter()
        .filter(|write| write.outcome == Outcome::Acknowledged && is_inside(write.done))
        .map(|write| (write.writer, write.seq))
        .filter(|row| lost.contains(row))
        .collect();
    let mut faults = step.faults;
    let mut notes = step.notes;
    let limit = match step.limit {
        Limit::Told | Limit::Yardstick => None,
        Limit::AsPatronis => as_patronis,
        Limit::AtMost(limit) => Some(limit),
    };
    if let Some(limit) = limit.filter(|limit| gaps.anybody > *limit) {
        faults.push(format!(
            "nobody could write for {:?}, allowed are {limit:?}",
            gaps.anybody
        ));
    }
    if !lost.is_empty() {
        let text = format!("lost rows {:?}", &lost[..lost.len().min(NAMED)]);
        match step.loss {
            Loss::None => faults.push(text),
            Loss::Asynchronous => notes.push(text),
        }
    }
    Line {
        what: step.what,
        gap_ms: Some(gaps.anybody.as_secs_f64() * 1000.0),
        writer_gap_ms: Some(gaps.one_writer.as_secs_f64() * 1000.0),
        bar: match (step.limit, limit) {
            (Limit::Told, _) => "told".to_owned(),
            (Limit::Yardstick, _) => "yardstick".to_owned(),
            (Limit::AsPatronis, Some(limit)) => format!("Patroni's: {:.1} s", limit.as_secs_f64()),
            (Limit::AsPatronis, None) => "none measured".to_owned(),
            (Limit::AtMost(limit), _) => format!("{:.1} s", limit.as_secs_f64()),
        },
        ended_sessions: Some(cuts),
        lost: Some(lost.len()),
        faults,
        notes,
    }
}

/// All lines as an aligned table.
pub fn table(lines: &[Line]) -> String {
    let head = [
        "what",
        "gap ms",
        "one writer ms",
        "bar",
        "sessions",
        "lost",
        "verdict",
    ];
    let millis = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.0}"));
    let count = |value: Option<usize>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.what.clone(),
                millis(line.gap_ms),
                millis(line.writer_gap_ms),
                line.bar.clone(),
                count(line.ended_sessions),
                count(line.lost),
                if line.faults.is_empty() {
                    "held"
                } else {
                    "FAULT"
                }
                .to_owned(),
            ]
        })
        .collect();
    report::table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::history::Write;

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    fn write(seq: i64, ms: u64) -> Write {
        Write {
            writer: 1,
            seq,
            sent: at(ms),
            done: at(ms),
            outcome: Outcome::Acknowledged,
            position: 0,
        }
    }

    fn step(limit: Limit, loss: Loss, began: u64, ended: u64) -> Step {
        Step {
            what: String::new(),
            limit,
            loss,
            began: at(began),
            ended: at(ended),
            notes: Vec::new(),
            faults: Vec::new(),
        }
    }

    #[test]
    fn a_step_is_held_against_patronis_own_of_the_same_course() {
        let history = History {
            writes: [0, 100, 400, 500, 900, 1000]
                .map(|ms| write(ms, ms as u64))
                .into(),
            cuts: Vec::new(),
        };
        let steps = |ended| {
            vec![
                step(Limit::Yardstick, Loss::None, 0, 450),
                step(Limit::AsPatronis, Loss::None, 450, ended),
            ]
        };
        let verdict = |interval| {
            let lines = judge(steps(1000), &history, &[], Duration::from_millis(interval));
            lines[1].faults.is_empty()
        };
        // 300 ms were Patroni's, 400 ms are ours.
        assert!(!verdict(99));
        assert!(verdict(100));
    }

    #[test]
    fn a_lost_row_belongs_to_the_step_in_which_it_was_acknowledged() {
        let history = History {
            writes: vec![write(1, 10), write(2, 60)],
            cuts: Vec::new(),
        };
        let steps = vec![
            step(Limit::Told, Loss::None, 0, 50),
            step(Limit::Told, Loss::Asynchronous, 50, 100),
        ];
        let lines = judge(steps, &history, &[(1, 2)], Duration::ZERO);
        assert!(lines.iter().all(|line| line.faults.is_empty()));
        assert_eq!((lines[0].lost, lines[1].lost), (Some(0), Some(1)));
        let steps = vec![step(Limit::Told, Loss::None, 0, 100)];
        let lines = judge(steps, &history, &[(1, 2)], Duration::ZERO);
        assert_eq!(lines[0].faults.len(), 1);
    }
}
