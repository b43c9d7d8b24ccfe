//! The control run: the clients of every row on one PostgreSQL that nothing of ours stands around. What is found there is
//! PostgreSQL's own, or the harness's.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::lists;
use super::load::Load;
use crate::load::append;
use crate::report::{self, Progress, say};
use crate::serial::control::{Control, DATABASE};
use crate::switchover::{clients, rows_of, verdict};

/// How long the clients run.
const RUNS: Duration = Duration::from_secs(30);

/// Runs it; whether everything was as PostgreSQL promises it.
pub async fn run(count: i32, seed: Option<u64>) -> Result<bool> {
    let progress = Progress::new();
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let server = Control::start(&progress).await?;
    let direct = append::connect(&server.config).await?;
    append::prepare(&direct, DATABASE).await?;
    direct.batch_execute(clients::TABLE).await?;
    progress.step(format!("{RUNS:?} on one server"));
    let load = Load::on_one_server(&server.config, 0..count, seed);
    tokio::time::sleep(RUNS).await;
    let ([seen, _], read) = load.finish().await?;
    let (counts, mut missed) = lists::judge(&read?, &[], false);
    let verdict = verdict::judge(&seen.history, &rows_of(&direct, 0).await?);
    if !verdict.is_true() || verdict.acknowledged == 0 {
        missed.push(format!("writes: {verdict:?}"));
    }
    let codes: BTreeSet<_> = seen.history.cuts.iter().map(|cut| &cut.code).collect();
    if !codes.is_empty() {
        missed.push(format!("clients heard {codes:?}"));
    }
    progress.done();
    say(format!(
        "one PostgreSQL, {count} clients and those of lists, {RUNS:?}, seed {seed}: {} writes acknowledged, {} lost; {} \
         transactions on lists; {}",
        verdict.acknowledged,
        verdict.lost,
        counts.transactions,
        report::machine()
    ));
    for missed in &missed {
        say(format!("    VIOLATION {missed}"));
    }
    say(if missed.is_empty() { "met" } else { "MISSED" });
    Ok(missed.is_empty())
}
