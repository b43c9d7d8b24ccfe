//! A permanent logical slot through three failovers and a switchover: a consumer that connects again through the
//! router gets every change, in order, and twice only what it had not confirmed before its session ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;
use trunkline_shared::service::clock;

use super::drawn::{Drawn, Kind, Until, Whom};
use super::run::Run;
use super::sequence;
use crate::report::Progress;
use crate::stack::member::{Member, SUPERUSER_PASSWORD};
use crate::stack::process::Launch;
use crate::stack::{APP, Stack};

/// The slot's name.
const SLOT: &str = "decoded";
/// The slot must be on every member within this after a change of leader, so that the next one may come. PostgreSQL
/// starts a slot sync worker that has ended again up to a minute later (50.6 s seen on 18).
const READY_LIMIT: Duration = Duration::from_secs(150);
/// The consumer must have caught up within this.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(30);
/// Three failovers and, the second of them, a switchover.
const CHANGES: u32 = 4;
/// Which of them is the switchover.
const SWITCHOVER: u32 = 2;
/// How far the consumer has confirmed on the leader.
const CONFIRMED: &str = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots \
                         WHERE slot_name = 'decoded' AND catalog_xmin IS NOT NULL";
/// How `trunkline list` tells of a member without a usable copy.
const UNREADY: &str = "Copies of the leader's logical slots";
/// The pause before a consumer connects again.
const AGAIN: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(100);

/// A row as the consumer got it: writer and number.
type Row = (i32, i64);

/// What each session of the consumer got, in order.
type Sessions = Arc<Mutex<Vec<Vec<Row>>>>;

/// The first version of PostgreSQL that keeps slots on standbys by itself.
const KEEPS_SLOTS: i32 = 170_000;

/// Runs it.
pub async fn logical_decoding(run: &mut Run<'_>, progress: &Progress) -> Result<()> {
    let leader = run.stack.members[run.leader].sql(APP).await?;
    let version = leader.query_one("SHOW server_version_num", &[]).await?;
    let version: i32 = version.get::<_, String>(0).parse()?;
    let is_kept = version >= KEEPS_SLOTS;
    configure(run.stack, is_kept).await?;
    // PostgreSQL keeps a copy only once the consumer has gone on.
    let consumer = Consumer::start(run.stack);
    until_ready(run, is_kept).await?;
    // What is written from now on is decoded.
    let since: String = leader
        .query_one("SELECT clock_timestamp()::text", &[])
        .await?
        .get(0);
    drop(leader);
    let leader_killed = Drawn {
        kind: Kind::MemberKilled,
        whom: Whom::Leader,
        until: Until::AnotherLeads(Duration::from_secs(1)),
    };
    run.began = clock::now();
    for change in 1..=CHANGES {
        if change == SWITCHOVER {
            run.stack.trunkline(&["switchover", "--force"]).await?;
        } else {
            sequence::inflict_all(run, &[leader_killed], progress).await?;
        }
        let began = clock::now();
        until_ready(run, is_kept).await?;
        let took = clock::now().since(began).as_secs_f64();
        run.note(format!(
            "change {change}: every copy is usable {took:.1} s after the cluster is whole"
        ));
    }
    judge(run, consumer, &since).await
}

async fn configure(stack: &mut Stack, is_failover: bool) -> Result<()> {
    let mut words = vec!["edit-config".to_owned(), "--force".to_owned()];
    for (key, value) in [
        ("type", "logical"),
        ("database", APP),
        ("plugin", "test_decoding"),
        ("failover", if is_failover { "true" } else { "false" }),
    ] {
        words.extend(["-s".to_owned(), format!("slots.{SLOT}.{key}={value}")]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    stack.trunkline(&words).await.map(drop)
}

/// Waits until the cluster is whole, and every replica has a copy that stands where the consumer stands now and
/// that its agent knows to be usable.
async fn until_ready(run: &mut Run<'_>, is_kept: bool) -> Result<()> {
    run.stack.until_converged(READY_LIMIT).await?;
    let leader = run.stack.leader().await?;
    let client = run.stack.members[leader].sql(APP).await?;
    let mut confirmed = None;
    let deadline = clock::now() + READY_LIMIT;
    while confirmed.is_none() && clock::now() < deadline {
        let row = client.query_opt(CONFIRMED, &[]).await?;
        confirmed = row.and_then(|row| row.get::<_, Option<String>>(0));
        tokio::time::sleep(LOOK).await;
    }
    let confirmed =
        confirmed.with_context(|| format!("no slot on the leader in {READY_LIMIT:?}"))?;
    let kept = if is_kept {
        "AND synced AND NOT temporary"
    } else {
        ""
    };
    let copy = format!(
        "SELECT 1 FROM pg_replication_slots WHERE slot_name = '{SLOT}' {kept} \
         AND confirmed_flush_lsn >= '{confirmed}' AND catalog_xmin IS NOT NULL"
    );
    let is_ready = async |stack: &Stack| {
        for (index, member) in stack.members.iter().enumerate() {
            if index != leader && !answers(member, &copy).await {
                return false;
            }
        }
        let list = stack.trunkline(&["list"]).await;
        list.is_ok_and(|list| !list.contains(UNREADY))
    };
    run.stack
        .until(
            "a usable copy of the logical slot everywhere",
            READY_LIMIT,
            is_ready,
        )
        .await
}

async fn answers(member: &Member, query: &str) -> bool {
    let Ok(client) = member.sql("postgres").await else {
        return false;
    };
    client
        .query_opt(query, &[])
        .await
        .is_ok_and(|row| row.is_some())
}

/// Every row the leader has now must come; the order within a session must be that of the writers.
async fn judge(run: &mut Run<'_>, consumer: Consumer, since: &str) -> Result<()> {
    let leader = run.stack.leader().await?;
    let client = run.stack.members[leader].sql(APP).await?;
    let sql = format!("SELECT writer, seq FROM ledger WHERE at > '{since}'");
    let rows = client.query(&sql, &[]).await?;
    let wanted: BTreeSet<Row> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let deadline = clock::now() + CATCH_UP_LIMIT;
    let mut missing = consumer.missing(&wanted);
    while !missing.is_empty() && clock::now() < deadline {
        tokio::time::sleep(LOOK).await;
        missing = consumer.missing(&wanted);
    }
    let sessions = consumer.finish().await?;
    // The writers went on; what came and is not there now was lost with a leader.
    let rows = client.query("SELECT writer, seq FROM ledger", &[]).await?;
    let kept: BTreeSet<Row> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    if let Some(first) = missing.first() {
        let count = missing.len();
        run.fault(format!("{count} changes did not come, {first:?} first"));
    }
    let seen = Seen::of(&sessions);
    if seen.out_of_order > 0 {
        let count = seen.out_of_order;
        run.fault(format!(
            "{count} changes came again or out of order within one session"
        ));
    }
    run.note(format!(
        "{} changes wanted, {} got in {} sessions of the consumer, {} of them again after a new connection; \
         {} that a failover lost",
        wanted.len(),
        seen.all.len(),
        sessions.iter().filter(|rows| !rows.is_empty()).count(),
        seen.again,
        seen.all.difference(&kept).count(),
    ));
    Ok(())
}

/// What the sessions got.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    all: BTreeSet<Row>,
    /// Rows that an earlier session had got.
    again: usize,
    /// Rows at or below one of the same writer in the same session.
    out_of_order: usize,
}

impl Seen {
    fn of(sessions: &[Vec<Row>]) -> Seen {
        let mut seen = Seen::default();
        for rows in sessions {
            let mut last: BTreeMap<i32, i64> = BTreeMap::new();
            for (writer, seq) in rows {
                if last
                    .insert(*writer, *seq)
                    .is_some_and(|before| before >= *seq)
                {
                    seen.out_of_order += 1;
                } else if !seen.all.insert((*writer, *seq)) {
                    seen.again += 1;
                }
            }
        }
        seen
    }
}

/// `pg_recvlogical` through the write port, started again whenever it ends.
struct Consumer {
    sessions: Sessions,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Consumer {
    fn start(stack: &Stack) -> Consumer {
        let port = stack.router.write_port.to_string();
        let mut launch = stack.client_program(
            "pg_recvlogical",
            &[
                "-h",
                &stack.router.address,
                "-p",
                &port,
                "-U",
                "postgres",
                "-d",
                APP,
                "--slot",
                SLOT,
                "--start",
                "--no-loop",
                "--status-interval",
                "1",
                "-o",
                "include-xids=0",
                "-f",
                "-",
            ],
        );
        launch.env = vec![("PGPASSWORD".to_owned(), SUPERUSER_PASSWORD.to_owned())];
        let (sessions, stop) = (Sessions::default(), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(consume(launch, sessions.clone(), stop.clone()));
        Consumer {
            sessions,
            stop,
            task,
        }
    }

    fn missing(&self, wanted: &BTreeSet<Row>) -> Vec<Row> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let got: BTreeSet<Row> = sessions.iter().flatten().copied().collect();
        wanted.difference(&got).copied().collect()
    }

    async fn finish(self) -> Result<Vec<Vec<Row>>> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(sessions.clone())
    }
}

async fn consume(launch: Launch, sessions: Sessions, stop: Arc<AtomicBool>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let mut child = launch.stream()?;
        let output = child
            .stdout
            .take()
            .context("pg_recvlogical has no output")?;
        let mut lines = BufReader::new(output).lines();
        let lock = || sessions.lock().unwrap_or_else(PoisonError::into_inner);
        lock().push(Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let Ok(next) = tokio::time::timeout(LOOK, lines.next_line()).await else {
                continue;
            };
            let Some(line) = next? else { break };
            if let Some(row) = row(&line)?
                && let Some(rows) = lock().last_mut()
            {
                rows.push(row);
            }
        }
        child.kill().await.ok();
        tokio::time::sleep(AGAIN).await;
    }
    Ok(())
}

/// The row of a line of `test_decoding`, if it is one of the ledger.
fn row(line: &str) -> Result<Option<Row>> {
    let Some(values) = line.strip_prefix("table public.ledger: INSERT: ") else {
        return Ok(None);
    };
    let value = |name: &str| {
        let text = values.split_once(name)?.1;
        text.split(' ').next()?.parse::<i64>().ok()
    };
    match (value("writer[integer]:"), value("seq[bigint]:")) {
        (Some(writer), Some(seq)) => Ok(Some((i32::try_from(writer)?, seq))),
        _ => bail!("not a row of the ledger: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_test_decoding_prints_it() {
        let line = "table public.ledger: INSERT: writer[integer]:3 seq[bigint]:12 at[timestamp with time zone]:'x'";
        assert_eq!(row(line).unwrap(), Some((3, 12)));
        assert_eq!(row("BEGIN").unwrap(), None);
        assert!(row("table public.ledger: INSERT: writer[integer]:3").is_err());
    }

    #[test]
    fn what_comes_again_in_a_new_session_is_no_fault_and_in_the_same_one_is() {
        let seen = Seen::of(&[vec![(0, 1), (0, 2), (1, 1)], vec![(0, 2), (0, 3)]]);
        assert_eq!((seen.all.len(), seen.again, seen.out_of_order), (4, 1, 0));
        assert_eq!(Seen::of(&[vec![(0, 2), (0, 1)]]).out_of_order, 1);
    }
}
