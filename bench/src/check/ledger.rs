//! The rows that were acknowledged are there, those that were refused are not, and every member has the same.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use trunkline_shared::service::clock;

use crate::load::history::{History, Outcome};
use crate::stack::member::Member;
use crate::stack::{APP, Stack};

/// How long a replica may take to replay what the leader had when the load ended.
const REPLAY_LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// What became of the writes.
#[derive(Clone, Debug, Default)]
pub struct LedgerVerdict {
    /// Writes whose client was told that they are committed.
    pub acknowledged: usize,
    /// Writes whose client could not know.
    pub unknown: usize,
    /// Writes whose client was told that they are not committed.
    pub failed: usize,
    /// Acknowledged, but not there at the end: the asynchronous limit, or a fault.
    pub lost: Vec<(i32, i64)>,
    /// Refused, but there at the end: never allowed.
    pub risen: Vec<(i32, i64)>,
}

/// Compares what the clients saw with what the leader has.
pub async fn verify(leader: &Member, history: &History) -> Result<LedgerVerdict> {
    let client = leader.sql(APP).await?;
    let rows = client.query("SELECT writer, seq FROM ledger", &[]).await?;
    let kept: BTreeSet<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut verdict = LedgerVerdict::default();
    for write in &history.writes {
        let row = (write.writer, write.seq);
        match write.outcome {
            Outcome::Acknowledged => {
                verdict.acknowledged += 1;
                if !kept.contains(&row) {
                    verdict.lost.push(row);
                }
            }
            Outcome::Unknown => verdict.unknown += 1,
            Outcome::Failed => {
                verdict.failed += 1;
                if kept.contains(&row) {
                    verdict.risen.push(row);
                }
            }
        }
    }
    Ok(verdict)
}

/// Fails unless every member has the same rows in these tables once it has replayed what the leader has now.
pub async fn same_everywhere(stack: &Stack, leader: usize, tables: &[&str]) -> Result<()> {
    let source = stack.members[leader].sql(APP).await?;
    let position: String = source
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await?
        .get(0);
    let expected = checksums(&source, tables).await?;
    for (index, member) in stack.members.iter().enumerate() {
        if index == leader {
            continue;
        }
        replayed(member, &position).await?;
        let client = member.sql(APP).await?;
        let own = checksums(&client, tables).await?;
        if own != expected {
            bail!(
                "{} differs from the leader: {own:?}, leader {expected:?}",
                member.name
            );
        }
    }
    Ok(())
}

/// Waits until the member has replayed this position; asked in a database that every member has from the start.
async fn replayed(member: &Member, position: &str) -> Result<()> {
    let client = member.sql("postgres").await?;
    let deadline = clock::now() + REPLAY_LIMIT;
    let query = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
    while !client.query_one(&query, &[]).await?.get::<_, bool>(0) {
        if clock::now() >= deadline {
            bail!(
                "{} did not replay {position} within {REPLAY_LIMIT:?}",
                member.name
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Per table the number of rows and a sum over their contents that no order changes.
async fn checksums(client: &tokio_postgres::Client, tables: &[&str]) -> Result<Vec<String>> {
    let mut sums = Vec::new();
    for table in tables {
        let query = format!(
            "SELECT '{table} ' || count(*) || ' ' || \
             coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
        );
        sums.push(client.query_one(&query, &[]).await?.get(0));
    }
    Ok(sums)
}
