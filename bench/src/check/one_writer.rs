//! At most one writable primary at any time, tried on every member by writing to it past the router.
//!
//! A watcher per member asks over the local socket whether it is in recovery and, if not, commits a row that
//! carries the timeline it was written on. Promotion alone makes a timeline, so timelines order the reigns:
//! a row committed on an older one, sent after a row on a newer one was committed elsewhere, is a second
//! primary; so are two members that commit on the same one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::stack::Stack;
use crate::stack::member::Door;

/// The pause between two tries on one member.
const PAUSE: Duration = Duration::from_millis(50);
/// A try that takes longer is given up: its member is frozen or gone.
const LIMIT: Duration = Duration::from_secs(2);

/// One write that a member committed for the watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The member's index.
    pub member: usize,
    /// The timeline it was written on.
    pub timeline: u32,
    /// When the write was sent.
    pub sent: Moment,
    /// When its commit was known.
    pub done: Moment,
}

/// A time in which nothing on a member's node could end PostgreSQL, and why: what it then committed past the router is
/// told and not judged.
#[derive(Clone, Debug)]
pub struct Helpless {
    /// The member's index.
    pub member: usize,
    /// Its beginning.
    pub from: Moment,
    /// Its end: the fence ran again, and had its time to kill.
    pub until: Moment,
    /// Why.
    pub why: &'static str,
}

/// The watchers of all members.
#[derive(Debug)]
pub struct Watchers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Committed>>>,
}

impl Watchers {
    /// Makes the table and starts one watcher per member.
    pub async fn start(stack: &Stack, leader: usize) -> Result<Watchers> {
        let client = stack.members[leader].sql("postgres").await?;
        client
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS witness \
                 (member int PRIMARY KEY, timeline text, at timestamptz)",
            )
            .await?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for index in 0..stack.members.len() {
            tasks.push(tokio::spawn(watch(
                stack.members[index].door(),
                index,
                stop.clone(),
            )));
        }
        Ok(Watchers { stop, tasks })
    }

    /// Ends them and returns everything that was committed.
    pub async fn finish(mut self) -> Result<Vec<Committed>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in std::mem::take(&mut self.tasks) {
            all.extend(task.await?);
        }
        Ok(all)
    }
}

impl Drop for Watchers {
    /// Nobody goes on beside the next run.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What is worth telling of the commits of helpless members, and what the other ones prove. Pure.
pub fn judge(commits: &[Committed], helpless: &[Helpless]) -> (Option<String>, Option<String>) {
    let why = |commit: &Committed| {
        let stands = |one: &&Helpless| {
            one.member == commit.member && one.from <= commit.sent && commit.sent <= one.until
        };
        helpless.iter().find(stands).map(|one| one.why)
    };
    let (excused, judged): (Vec<_>, Vec<_>) = commits
        .iter()
        .cloned()
        .partition(|commit| why(commit).is_some());
    let is_beside = |commit: &&Committed| {
        judged.iter().any(|other| {
            other.member != commit.member
                && other.timeline > commit.timeline
                && other.done < commit.sent
        })
    };
    let beside: Vec<_> = excused.iter().filter(is_beside).collect();
    let why = beside.first().and_then(|commit| why(commit));
    let told = why.map(|why| {
        let count = beside.len();
        format!("past the router the old leader committed {count} writes beside the new one: {why}")
    });
    let missed = second_primary(&judged)
        .map(|(first, second)| format!("two writable primaries: {first:?} and {second:?}"));
    (told, missed)
}

/// The first pair that proves two writable primaries at one time.
pub fn second_primary(commits: &[Committed]) -> Option<(Committed, Committed)> {
    let mut by_sent: Vec<_> = commits.iter().collect();
    by_sent.sort_by_key(|commit| commit.sent);
    let mut by_done: Vec<_> = commits.iter().collect();
    by_done.sort_by_key(|commit| commit.done);
    let mut newest: Option<&Committed> = None;
    let mut done = by_done.into_iter().peekable();
    for commit in by_sent {
        while let Some(earlier) = done.next_if(|earlier| earlier.done <= commit.sent) {
            if newest.is_none_or(|newest| earlier.timeline > newest.timeline) {
                newest = Some(earlier);
            }
        }
        let Some(newest) = newest else {
            continue;
        };
        let is_second = newest.timeline > commit.timeline
            || (newest.timeline == commit.timeline && newest.member != commit.member);
        if is_second {
            return Some((newest.clone(), commit.clone()));
        }
    }
    None
}

async fn watch(door: Door, index: usize, stop: Arc<AtomicBool>) -> Vec<Committed> {
    let mut commits = Vec::new();
    let mut session: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let client = match session.take() {
            Some(client) => Some(client),
            None => tokio::time::timeout(LIMIT, door.open("postgres"))
                .await
                .ok()
                .and_then(Result::ok),
        };
        if let Some(client) = client {
            let sent = clock::now();
            if let Ok(Ok(timeline)) = tokio::time::timeout(LIMIT, try_write(&client, index)).await {
                if let Some(timeline) = timeline {
                    commits.push(Committed {
                        member: index,
                        timeline,
                        sent,
                        done: clock::now(),
                    });
                }
                session = Some(client);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    commits
}

/// The timeline of a committed row; nothing while the member is in recovery.
async fn try_write(client: &Client, index: usize) -> Result<Option<u32>> {
    let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
    if row.get(0) {
        return Ok(None);
    }
    let row = client
        .query_one(
            &format!(
                "INSERT INTO witness VALUES ({index}, \
                 left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), clock_timestamp()) \
                 ON CONFLICT (member) DO UPDATE SET timeline = excluded.timeline, at = excluded.at \
                 RETURNING timeline"
            ),
            &[],
        )
        .await?;
    Ok(Some(u32::from_str_radix(row.get(0), 16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(member: usize, timeline: u32, sent: u64, done: u64) -> Committed {
        Committed {
            member,
            timeline,
            sent: Moment(sent),
            done: Moment(done),
        }
    }

    #[test]
    fn a_change_of_leader_is_no_second_primary() {
        let history = [
            commit(0, 1, 0, 5),
            commit(0, 1, 10, 15),
            commit(1, 2, 20, 25),
            commit(0, 3, 30, 35),
        ];
        assert_eq!(second_primary(&history), None);
    }

    #[test]
    fn a_commit_on_the_old_timeline_after_one_on_the_new_is_a_second_primary() {
        let history = [
            commit(0, 1, 0, 5),
            commit(1, 2, 10, 15),
            commit(0, 1, 20, 25),
        ];
        assert!(second_primary(&history).is_some());
    }

    #[test]
    fn two_members_on_one_timeline_are_two_primaries() {
        let history = [commit(0, 2, 0, 5), commit(1, 2, 10, 15)];
        assert!(second_primary(&history).is_some());
    }

    #[test]
    fn a_commit_that_was_under_way_when_the_new_leader_wrote_proves_nothing() {
        let history = [commit(0, 1, 0, 20), commit(1, 2, 10, 15)];
        assert_eq!(second_primary(&history), None);
    }
}
