//! Standbys whose replay is held or far behind when they are needed, and standbys that come and go.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use tokio_postgres::Client;
use trunkline_shared::service::clock;

use super::{LEADER_LIMIT, LOOK, another_writes, leader_name, lose_leader};
use crate::failover::sequence::kill_postmaster;
use crate::fault::{node, store};
use crate::faults::beside::{Beside, Word};
use crate::faults::site::Field;
use crate::stack::etcd::{Etcd, Reader};
use crate::stack::member::{Door, Member, SCOPE};
use crate::stack::proc::ProcessId;
use crate::stack::{APP, Stack};
use crate::switchover::candidate::harm;
use crate::switchover::until_caught_up;

/// Rows that a standby has to replay, of about one kilobyte each.
const ROWS: i32 = 128 * 1024;
/// How long the WAL of them may take to be everywhere.
const SENT: Duration = Duration::from_secs(60);
/// How often a standby leaves.
const EVERY: Duration = Duration::from_millis(200);
/// How long it does before and after each fault.
const CHURNS: Duration = Duration::from_secs(3);
/// How many bytes the replica that is furthest has not replayed.
const BEHIND: &str = "SELECT coalesce(min(pg_wal_lsn_diff(flush_lsn, replay_lsn)), 0)::bigint \
    FROM pg_stat_replication";
/// How many replicas have all that the leader wrote before this position.
const HAVE: &str = "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= $1::text::pg_lsn";

fn others(field: &Field<'_>) -> Vec<usize> {
    let leader = field.run.leader;
    let all = 0..field.run.stack.members.len();
    all.filter(|index| *index != leader).collect()
}

/// A query on each standby holds a lock that replay needs; the leader dies.
pub async fn blocked(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let leader = field.run.stack.members[field.run.leader].sql(APP).await?;
    harm::prepare(&leader).await?;
    until_caught_up(field.run.stack, field.run.leader).await?;
    let mut readers: Vec<Client> = Vec::new();
    for index in others(field) {
        let reader = field.run.stack.members[index].sql(APP).await?;
        reader.batch_execute(harm::READ).await?;
        readers.push(reader);
    }
    leader.batch_execute(harm::BLOCK).await?;
    let deadline = clock::now() + LEADER_LIMIT;
    // What clients write meanwhile is received, and stays behind the lock.
    while leader.query_one(BEHIND, &[]).await?.get::<_, i64>(0) < 64 * 1024 {
        if clock::now() >= deadline {
            bail!("replay was not held on all standbys within {LEADER_LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    let old = lose_leader(field).await?;
    let cancelled = readers.iter().filter(|reader| reader.is_closed()).count();
    field.run.note(format!(
        "of {} queries {cancelled} were ended with their session",
        readers.len()
    ));
    drop(readers);
    field.run.stack.members[old].start()?;
    field.whole("replay held, then power off", &on).await?;
    Ok(())
}

/// The standbys have received much that they have not replayed; the leader dies.
pub async fn behind(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let leader = field.run.stack.members[field.run.leader].sql(APP).await?;
    until_caught_up(field.run.stack, field.run.leader).await?;
    leader
        .batch_execute("CREATE TABLE IF NOT EXISTS bulk (number int, filler text)")
        .await?;
    until_caught_up(field.run.stack, field.run.leader).await?;
    let mut paused = Vec::new();
    for index in others(field) {
        let direct = field.run.stack.members[index].sql(APP).await?;
        direct.batch_execute("SELECT pg_wal_replay_pause()").await?;
        paused.push(direct);
    }
    let fill = "INSERT INTO bulk SELECT number, repeat(md5(number::text), 28) FROM generate_series(1, $1) number";
    leader.execute(fill, &[&ROWS]).await?;
    let position: String = leader
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await?
        .get(0);
    let deadline = clock::now() + SENT;
    while leader.query_one(HAVE, &[&position]).await?.get::<_, i64>(0) < 2 {
        if clock::now() >= deadline {
            bail!("the standbys did not receive it within {SENT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    let backlog: i64 = leader.query_one(BEHIND, &[]).await?.get(0);
    drop(leader);
    let resuming = Beside::start(|word| resume_once_one_leads(paused, word));
    let old = lose_leader(field).await?;
    let took = clock::now().since(field.run.began).as_secs_f64();
    resuming.finish().await??;
    field.run.note(format!(
        "{} MB were to be replayed; another member wrote {took:.1} s after the end",
        backlog / 1_000_000
    ));
    field.run.stack.members[old].start()?;
    field.whole("replay behind, then power off", &on).await?;
    let leader = field.run.stack.members[field.run.leader].sql(APP).await?;
    leader.batch_execute("DROP TABLE bulk").await?;
    Ok(())
}

/// Whoever is not promoted stays paused until somebody ends that, and asks for no WAL before: commits may wait for it.
async fn resume_once_one_leads(paused: Vec<Client>, word: Word) -> Result<()> {
    while !word.is_given() {
        for one in &paused {
            let row = one.query_one("SELECT pg_is_in_recovery()", &[]).await?;
            if !row.get::<_, bool>(0) {
                return resume(&paused).await;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    resume(&paused).await
}

async fn resume(paused: &[Client]) -> Result<()> {
    for one in paused {
        let resume = "SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery()";
        one.batch_execute(resume).await?;
    }
    Ok(())
}

/// One standby's receiver ends again and again, while the postmaster dies and while the machine does.
pub async fn churn(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let count = field.run.stack.members.len();
    let churn = churning(field.run.stack, (field.run.leader + 1) % count);
    let watch = watching(field.run.stack);
    tokio::time::sleep(CHURNS).await;
    field.run.began = clock::now();
    kill_postmaster(&field.run.stack.members[field.run.leader]);
    tokio::time::sleep(CHURNS).await;
    let ended = churn.finish().await?;
    field.whole("postmaster killed", &on).await?;

    let (old, on) = (field.run.leader, leader_name(field));
    store::lead_from(field.run.stack, (old + 1) % count).await?;
    let churn = churning(field.run.stack, (old + 1) % count);
    tokio::time::sleep(CHURNS).await;
    field.run.began = clock::now();
    node::cut_off(&field.run.stack.members[old]).await?;
    another_writes(field, old).await?;
    let ended = ended + churn.finish().await?;
    node::reconnect(&field.run.stack.members[old]).await?;
    field.whole("node cut off", &on).await?;
    let (looks, broken) = watch.finish().await?;
    field.run.note(format!(
        "a receiver was ended {ended} times, /sync compared {looks} times"
    ));
    if ended == 0 || looks == 0 {
        field.missed("no receiver ended, or nothing was compared: nothing is shown");
    }
    field.run.faults.extend(broken);
    Ok(())
}

/// A standby leaves again and again; how often it did.
fn churning(stack: &Stack, standby: usize) -> Beside<usize> {
    let door = stack.members[standby].door();
    Beside::start(|word| leave(door, word))
}

async fn leave(door: Door, word: Word) -> usize {
    let mut times = 0;
    while !word.is_given() {
        tokio::time::sleep(EVERY).await;
        let Ok(client) = door.open("postgres").await else {
            continue;
        };
        let receiver = client
            .query_opt("SELECT pid FROM pg_stat_wal_receiver", &[])
            .await;
        let Ok(Some(row)) = receiver else { continue };
        let receiver = row.get::<_, Option<i32>>(0).and_then(ProcessId::now);
        // It ends as an administrator ends it; the standby connects again.
        times += usize::from(receiver.is_some_and(|id| id.signal(Signal::TERM)));
    }
    times
}

/// Whoever `/sync` names is waited for, at all times: how often both were compared, and where they did not fit.
fn watching(stack: &Stack) -> Beside<(usize, Vec<String>)> {
    let door = |member: &Member| (member.name.clone(), member.door());
    let doors = stack.members.iter().map(door).collect();
    let etcds = stack.etcd.iter().map(Etcd::reader).collect();
    Beside::start(|word| compare(doors, etcds, word))
}

async fn compare(
    doors: Vec<(String, Door)>,
    etcds: Vec<Reader>,
    word: Word,
) -> (usize, Vec<String>) {
    let key = format!("/service/{SCOPE}/sync");
    let (mut looks, mut broken) = (0, Vec::new());
    let read = async || {
        for etcd in &etcds {
            if let Ok(text) = etcd.read(&key).await {
                return Some(text);
            }
        }
        None
    };
    while !word.is_given() {
        tokio::time::sleep(LOOK).await;
        // Read before and after: only what stood all the while can be held against the server.
        let Some(before) = read().await else { continue };
        let sync: Value = serde_json::from_str(&before).unwrap_or_default();
        let leader = sync["leader"].as_str().unwrap_or_default();
        let Some((_, door)) = doors.iter().find(|(name, _)| name == leader) else {
            continue;
        };
        let Some(waits_for) = waited_for(door).await else {
            continue;
        };
        if read().await.as_deref() != Some(&before) {
            continue;
        }
        looks += 1;
        let named = sync["sync_standby"].as_str().unwrap_or_default();
        let quorum = sync["quorum"].as_u64().unwrap_or_default();
        if !is_safe(named, quorum, leader, &waits_for) {
            broken.push(format!(
                "/sync names {named:?} with quorum {quorum}, and {leader} waits for {waits_for:?}"
            ));
        }
    }
    (looks, broken)
}

/// What a primary waits for; nothing of a server that is none, or does not answer.
async fn waited_for(door: &Door) -> Option<String> {
    let client = door.open("postgres").await.ok()?;
    let query = "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')";
    let row = client.query_one(query, &[]).await.ok()?;
    (!row.get::<_, bool>(0)).then(|| row.get(1))
}

/// Whether everybody who may lead by the record has what the server acknowledges. By a quorum a member leads that so many
/// others of the record vote for: of them and those who confirm a commit at least one must be the same, whoever they are.
/// A list by priority waits for its first so many that are there, so each of it is waited for only if it has no more.
fn is_safe(named: &str, quorum: u64, leader: &str, setting: &str) -> bool {
    let named = named.split(',').filter(|name| !name.is_empty());
    let named: BTreeSet<_> = named.filter(|name| *name != leader).collect();
    let (is_quorum, of) = match setting.strip_prefix("ANY ") {
        Some(rest) => (true, rest),
        None => (false, setting.strip_prefix("FIRST ").unwrap_or(setting)),
    };
    let (count, of) = match of.split_once('(') {
        Some((count, of)) => (count.trim().parse().unwrap_or(0), of),
        None => (1, of),
    };
    let words =
        of.split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '*');
    let waited_for: BTreeSet<_> = words.filter(|word| !word.is_empty()).collect();
    if waited_for.contains("*") || named.is_empty() {
        return true;
    }
    let number = |of: usize| u64::try_from(of).unwrap_or(u64::MAX);
    match is_quorum {
        // Of any so many: the two groups cannot miss each other among all of them.
        true => {
            let all = number(named.union(&waited_for).count());
            u64::saturating_add(count, quorum) >= all
        }
        false => named.is_subset(&waited_for) && count >= number(waited_for.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_the_record_names_is_waited_for() {
        let safe = |setting| is_safe("n2,n3", 0, "n1", setting);
        assert!(safe("2 (\"n2\",\"n3\")") && safe("*"));
        assert!(!safe("\"n2\"") && !safe("") && !safe("ANY 1 (\"n2\",\"n3\")"));
        assert!(is_safe("n1,n2", 0, "n1", "n2") && is_safe("", 0, "n1", ""));
        // One of two, by priority, is not both.
        assert!(!safe("\"n2\",\"n3\"") && !safe("1 (n2, n3)") && !safe("FIRST 1 (n2, n3)"));
        assert!(safe("FIRST 2 (n2, n3)"));
    }

    #[test]
    fn those_who_vote_and_those_who_confirm_cannot_miss_each_other() {
        let safe = |named, quorum, setting| is_safe(named, quorum, "n1", setting);
        let (both, one) = ("ANY 1 (\"n2\",\"n3\")", "ANY 1 (\"n2\")");
        assert!(safe("n2,n3", 1, both) && !safe("n2,n3", 0, both));
        assert!(safe("n2,n3", 1, one) && safe("n2", 0, one));
        assert!(!safe("n3", 0, one) && !safe("n2", 0, both));
        assert!(safe("", 0, one));
    }
}
