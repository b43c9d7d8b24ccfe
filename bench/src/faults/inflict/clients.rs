//! What clients do: cancel commits that wait, wait for no standby, come ten times as many, come back all at once.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio_postgres::{CancelToken, Config, NoTls};
use trunkline_shared::service::clock;

use super::network::without_standbys;
use super::{LOOK, another_writes, leader_name, lose_leader};
use crate::fault::links;
use crate::faults::beside::{Beside, Word};
use crate::faults::judged::named;
use crate::faults::site::{BESIDE, Field};
use crate::load::history::{Cut, Outcome};
use crate::load::writers;
use crate::stack::APP;
use crate::switchover::clients::Clients;

/// Clients whose commits are cancelled, and for how long.
const CANCELLED: i32 = 8;
const STORM: Duration = Duration::from_secs(4);
/// Between two cancels of one client.
const CANCELS: Duration = Duration::from_millis(50);
/// Between two writes of who waits for nothing.
const PACE: Duration = Duration::from_millis(5);
/// How long those write before the leader dies.
const WRITE: Duration = Duration::from_secs(2);
/// So many times the clients of every row.
const TIMES: i32 = 10;
/// What a router's memory may grow by under them, in kB.
const GROWTH: u64 = 64 * 1024;
/// Sessions with a server of their own that come back at once.
const HERD: i32 = 80;
/// All of them write within this of the first one.
const HERD_LIMIT: Duration = Duration::from_secs(1);
/// How long one statement may take.
const STATEMENT: Duration = Duration::from_secs(20);

/// One client that writes numbers of its own.
struct Writer {
    config: Config,
    number: i32,
    /// What it says first in each session.
    begin: &'static str,
    /// Whether it cancels each statement again and again until that has ended.
    cancels: bool,
    seq: i64,
    /// What it was told is committed.
    told: Vec<i64>,
}

impl Writer {
    fn start(config: Config, number: i32, begin: &'static str, cancels: bool) -> Beside<Vec<i64>> {
        let mut writer = Writer {
            config,
            number,
            begin,
            cancels,
            seq: 0,
            told: Vec::new(),
        };
        Beside::start(|word| async move {
            // A session that ended is followed by another one.
            while !word.is_given() {
                writer.session(&word).await.ok();
                tokio::time::sleep(PACE).await;
            }
            writer.told
        })
    }

    async fn session(&mut self, word: &Word) -> Result<()> {
        let (session, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(connection);
        session.batch_execute(self.begin).await?;
        while !word.is_given() && !session.is_closed() {
            self.seq += 1;
            let insert = format!(
                "INSERT INTO moved VALUES ({}, {}, 1)",
                self.number, self.seq
            );
            let write = tokio::time::timeout(STATEMENT, session.batch_execute(&insert));
            let answer = tokio::select! {
                answer = write => answer.context("no answer")?,
                () = storm(session.cancel_token(), self.cancels) => continue,
            };
            if answer.is_ok() {
                self.told.push(self.seq);
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }
}

/// Cancels again and again, if it is to; it never ends by itself.
async fn storm(token: CancelToken, cancels: bool) {
    loop {
        tokio::time::sleep(CANCELS).await;
        if cancels {
            token.cancel_query(NoTls).await.ok();
        }
    }
}

/// Which of these are not there.
async fn missing(field: &Field<'_>, client: i32, told: &[i64]) -> Result<usize> {
    let direct = field.run.stack.members[field.run.leader].sql(APP).await?;
    let query = "SELECT count(DISTINCT seq) FROM moved WHERE client = $1 AND seq = ANY($2)";
    let there: i64 = direct.query_one(query, &[&client, &told]).await?.get(0);
    Ok(told.len().saturating_sub(usize::try_from(there)?))
}

/// No standby confirms anything, and clients cancel what waits for that. Then the leader dies.
pub async fn cancel_storm(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let rules = without_standbys(field.run.stack, field.run.leader)?;
    field.run.began = clock::now();
    let cut = links::cut(rules).await?;
    let numbers = (0..CANCELLED).map(|number| field.first + BESIDE + number);
    let start = |number| (number, Writer::start(field.entrance(), number, "", true));
    let writers: Vec<_> = numbers.map(start).collect();
    tokio::time::sleep(STORM).await;
    let mut told = Vec::new();
    for (number, writer) in writers {
        told.push((number, writer.finish().await?));
    }
    let old = lose_leader(field).await?;
    cut.heal().await?;
    field.run.stack.members[old].start()?;
    field.whole("cancels, then power off", &on).await?;
    let (mut acknowledged, mut lost) = (0, 0);
    for (number, seqs) in told {
        acknowledged += seqs.len();
        lost += missing(field, number, &seqs).await?;
    }
    field.run.note(format!(
        "{CANCELLED} clients that cancelled what waited were told of {acknowledged} commits; {lost} are lost"
    ));
    if lost > 0 {
        let text = "commits that no standby had were acknowledged after a cancel, and are lost";
        field.run.fault(format!("{lost} {text}"));
    }
    Ok(())
}

/// Clients that ask for commits that wait for nothing, in every way in which one can ask.
pub async fn commits_not_awaited(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let mut at_start = field.entrance();
    at_start.options("-c synchronous_commit=off");
    let ways = [
        (field.entrance(), "SET synchronous_commit = off", "SET off"),
        (
            field.entrance(),
            "SET synchronous_commit = local",
            "SET local",
        ),
        (at_start, "", "options"),
    ];
    let mut writers = Vec::new();
    for (number, (config, begin, name)) in (field.first + BESIDE..).zip(ways) {
        writers.push((number, name, Writer::start(config, number, begin, false)));
    }
    tokio::time::sleep(WRITE).await;
    let old = lose_leader(field).await?;
    field.run.stack.members[old].start()?;
    field
        .whole("synchronous_commit=off, then power off", &on)
        .await?;
    for (number, name, writer) in writers {
        let told = writer.finish().await?;
        let lost = missing(field, number, &told).await?;
        field.run.note(format!(
            "{name}: {lost} lost of {} acknowledged",
            told.len()
        ));
    }
    Ok(())
}

/// Nobody leads, everybody is held, and ten times as many come.
pub async fn ten_times(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let router = field.run.stack.router.id()?;
    let memory = router.memory_kb().context("the router has ended")?;
    field.run.began = clock::now();
    field.run.stack.members[old].kill().await?;
    let first = field.first + BESIDE;
    let numbers = first..first + TIMES * field.settings.clients;
    let more = Clients::numbered(&field.entrance(), None, numbers);
    let looking = Beside::start(|word| async move {
        let mut highest = memory;
        while !word.is_given() {
            highest = highest.max(router.memory_kb().unwrap_or_default());
            tokio::time::sleep(LOOK).await;
        }
        highest
    });
    another_writes(field, old).await?;
    let highest = looking.finish().await?;
    field.run.stack.members[old].start()?;
    field.whole("power off, ten times the clients", &on).await?;
    more.until_all_write(clock::now(), STATEMENT).await?;
    let [seen, _] = more.finish().await?;
    let unheard_of = told(field, &seen.cuts);
    field.run.note(format!(
        "{} more clients: {} acknowledged, {} errors; the router had {} kB more at the most",
        TIMES * field.settings.clients,
        seen.writes
            .iter()
            .filter(|write| write.outcome == Outcome::Acknowledged)
            .count(),
        seen.cuts.len(),
        highest.saturating_sub(memory)
    ));
    field.evidence.faults.extend(unheard_of);
    if highest > memory + GROWTH {
        field.run.fault(format!(
            "the router's memory grew from {memory} kB to {highest} kB"
        ));
    }
    Ok(())
}

/// Errors of those beside the clients of every row that they may not hear.
fn told(field: &Field<'_>, cuts: &[Cut]) -> Option<String> {
    // They had not come in before the leader died: nothing was lost under them, and they may only be refused.
    let may_hear = |cut: &&Cut| ["57P03", "53300", "57014"].contains(&cut.code.as_str());
    let first = cuts.iter().find(|cut| !may_hear(cut))?;
    let count = cuts.iter().filter(|cut| !may_hear(cut)).count();
    let code = named(&first.code);
    Some(format!(
        "{count} times one of the additional clients of {} heard {code} or the like",
        leader_name(field)
    ))
}

/// Sessions that each have a server of their own lose it at one moment, and want another one at once.
pub async fn thundering_herd(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let router = &field.run.stack.router;
    let config = writers::client_config(&router.address, router.write_port);
    let first = field.first + BESIDE;
    let herd = Clients::numbered(&config, None, first..first + HERD);
    herd.until_all_write(clock::now(), STATEMENT).await?;
    let old = field.run.leader;
    field.run.began = clock::now();
    field.run.stack.members[old].kill().await?;
    let led = another_writes(field, old).await?;
    let written = clock::now();
    herd.until_all_write(led, STATEMENT).await?;
    let late = clock::now().since(written);
    field.run.note(format!(
        "{HERD} sessions wrote again {:.2} s after the first client did",
        late.as_secs_f64()
    ));
    field.run.stack.members[old].start()?;
    field.whole("power off under a herd", &on).await?;
    herd.finish().await?;
    if late > HERD_LIMIT {
        field.late(format!(
            "the last of {HERD} sessions wrote {late:?} after the first one"
        ));
    }
    Ok(())
}
