//! Commits that wait for standbys, on real servers: whom they wait for, what the record says meanwhile, and
//! how soon a dead standby is replaced.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use trunkline_bench::report::Progress;
use trunkline_bench::stack::member::{Door, Member, SCOPE, Synchronous, Timing};
use trunkline_bench::stack::process::{self, Launch};
use trunkline_bench::stack::{Layout, Plan, Stack};
use trunkline_shared::service::clock;

use super::WIDE;

/// How often something is looked at while it is awaited.
const LOOK: Duration = Duration::from_millis(20);

/// What was seen once: the setting, the record, and the setting again.
#[derive(Debug)]
struct Sample {
    before: BTreeSet<String>,
    record: Value,
    after: BTreeSet<String>,
}

/// The names of the parameter as PostgreSQL tells them.
async fn waited_for(leader: &Client) -> anyhow::Result<BTreeSet<String>> {
    let row = leader.query_one("SHOW synchronous_standby_names", &[]);
    let text: String = row.await?.get(0);
    let names = text
        .rsplit_once('(')
        .map_or(text.as_str(), |(_, names)| names);
    let names = names.trim_end_matches(')').split(',');
    let names = names.map(|name| name.trim().trim_matches('"').to_owned());
    Ok(names.filter(|name| !name.is_empty()).collect())
}

/// The command that prints the record.
fn question(stack: &Stack) -> Launch {
    let endpoint = format!("--endpoints=http://{}:2379", stack.etcd[0].address);
    let key = format!("/service/{SCOPE}/sync");
    let words = [endpoint.as_str(), "get", "--print-value-only", &key];
    let mut launch = process::tool(&stack.programs.etcdctl.to_string_lossy(), &words);
    launch.env.push(("ETCDCTL_API".to_owned(), "3".to_owned()));
    launch
}

async fn record(question: &Launch) -> anyhow::Result<Value> {
    let text = question.finish(WIDE).await?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_str(&text)?)
}

/// The standbys of a record, as Patroni writes them.
fn recorded(record: &Value) -> BTreeSet<String> {
    let names = record["sync_standby"].as_str().unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// Looks at the setting and the record of one leader, all the time.
async fn watch(door: Door, etcd: Launch, samples: Arc<Mutex<Vec<Sample>>>) {
    let Ok(leader) = door.open("postgres").await else {
        return;
    };
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let before = waited_for(&leader).await;
        let record = record(&etcd).await;
        let after = waited_for(&leader).await;
        if let (Ok(before), Ok(record), Ok(after)) = (before, record, after) {
            let sample = Sample {
                before,
                record,
                after,
            };
            let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
            samples.push(sample);
        }
    }
}

async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) -> Duration {
    let began = clock::now();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let is_done = is_true().await;
        let waited = clock::now().since(began);
        if is_done {
            return waited;
        }
        assert!(waited < WIDE, "in vain for {what}");
    }
}

/// The whole member ends at once: its agent, its server.
async fn kill(member: &mut Member) {
    member
        .end(Signal::KILL, WIDE)
        .await
        .expect("the agent ends");
    for server in member.servers() {
        server.signal(Signal::KILL);
    }
}

async fn has_sync_waiter(leader: &Client) -> bool {
    let waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    leader
        .query(waiting, &[])
        .await
        .is_ok_and(|rows| !rows.is_empty())
}

/// A client's session, which reads.
async fn as_guest(member: &Member) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(&member.address).port(5432).dbname("postgres");
    config.user("guest").password("guest");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    client.query("SELECT FROM kept", &[]).await?;
    Ok(client)
}

/// A stack, its one etcd member reachable beside it.
async fn start(mode: Synchronous) -> Stack {
    let plan = Plan {
        etcd_members: 1,
        timing: Timing {
            synchronous: Some(mode),
            ..Timing::default()
        },
        ..Plan::new(Layout::Loopback)
    };
    let stack = Stack::start(&plan, &Progress::hidden()).await;
    stack.expect("the cluster starts")
}

/// Nobody whom commits wait for lives: they wait, a restart hides them, and a standby lets clients in again.
async fn unconfirmed_stays_hidden(stack: &mut Stack, at: usize, other: usize) {
    let leader = stack.members[at].sql("postgres").await.expect("a session");
    let writer = stack.members[at].sql("postgres").await.expect("a session");
    let insert = async move { writer.execute("INSERT INTO kept VALUES (1)", &[]).await };
    let insert = tokio::spawn(insert);
    until("a commit that waits", async || {
        has_sync_waiter(&leader).await
    })
    .await;
    // Without strict they would go on after loop_wait.
    let (began, longer) = (clock::now(), u64::from(stack.timing.loop_wait) + 1);
    until("more than loop_wait", async || {
        assert!(!insert.is_finished(), "strict commits do not go on alone");
        clock::now().since(began) > Duration::from_secs(longer)
    })
    .await;

    // Restarted in place, the primary hides what nobody confirmed.
    let postmaster = stack.members[at].postmaster().expect("a postmaster");
    postmaster.signal(Signal::KILL);
    until("the primary after its crash", async || {
        let own = stack.members[at].sql("postgres").await;
        match own {
            Ok(own) => own
                .query("SELECT FROM kept", &[])
                .await
                .is_ok_and(|rows| rows.len() == 1),
            Err(_) => false,
        }
    })
    .await;
    assert!(
        insert.await.expect("no panic").is_err(),
        "nobody confirmed it"
    );
    let refused = as_guest(&stack.members[at]).await;
    let code = refused.err().and_then(|error| error.code().cloned());
    assert_eq!(code, Some(SqlState::INVALID_AUTHORIZATION_SPECIFICATION));
    assert!(!stack.members[at].ask_primary().await.expect("asked"));
    stack.members[other].start().expect("its agent starts");
    until("clients to be let in", async || {
        as_guest(&stack.members[at]).await.is_ok()
    })
    .await;
    let copy = stack.members[other]
        .sql("postgres")
        .await
        .expect("a session");
    until("the row on the standby", async || {
        let rows = copy.query("SELECT FROM kept", &[]).await;
        rows.is_ok_and(|rows| rows.len() == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_commits_wait_and_the_record_names_only_whom_they_wait_for() {
    let mut stack = start(Synchronous::Strict).await;
    let at = stack.leader().await.expect("a leader");
    let name = stack.members[at].name.clone();
    let leader = stack.members[at].sql("postgres").await.expect("a session");
    let etcd = question(&stack);
    until("a standby in the record", async || {
        record(&etcd)
            .await
            .is_ok_and(|now| now["leader"] == name.as_str() && recorded(&now).len() == 1)
    })
    .await;
    let samples = Arc::new(Mutex::new(Vec::new()));
    let watching = watch(stack.members[at].door(), etcd.clone(), samples.clone());
    let watching = tokio::spawn(watching);
    let first = recorded(&record(&etcd).await.expect("the record"));
    assert_eq!(waited_for(&leader).await.expect("the setting"), first);
    let change = "CREATE TABLE kept (id int); CREATE ROLE guest LOGIN PASSWORD 'guest'; \
                  GRANT SELECT ON kept TO guest";
    let made = leader.batch_execute(change).await;
    made.expect("a commit is confirmed");

    // The one that is waited for dies; the other takes its place.
    let others: Vec<usize> = (0..stack.members.len()).filter(|i| *i != at).collect();
    let is_first = |index: &usize| first.contains(&stack.members[*index].name);
    let (dead, other) = match others.iter().position(is_first) {
        Some(0) => (others[0], others[1]),
        _ => (others[1], others[0]),
    };
    kill(&mut stack.members[dead]).await;
    let second = BTreeSet::from([stack.members[other].name.clone()]);
    let replaced = until("its replacement", async || {
        waited_for(&leader).await.is_ok_and(|names| names == second)
    })
    .await;
    println!("the dead standby was replaced after {replaced:?}");
    until("the replacement in the record", async || {
        record(&etcd)
            .await
            .is_ok_and(|now| recorded(&now) == second)
    })
    .await;

    // Nobody is left: strict commits wait.
    kill(&mut stack.members[other]).await;
    unconfirmed_stays_hidden(&mut stack, at, other).await;

    watching.abort();
    let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(samples.len() > 20, "{} samples", samples.len());
    for sample in samples.iter() {
        let waited: BTreeSet<_> = sample.before.union(&sample.after).cloned().collect();
        let recorded = recorded(&sample.record);
        assert!(
            recorded.is_subset(&waited),
            "the record is ahead: {sample:?}"
        );
    }
}
