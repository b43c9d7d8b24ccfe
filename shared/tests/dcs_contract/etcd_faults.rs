//! What one frozen or dead etcd member out of three costs: nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};
use trunkline_shared::dcs::etcd::Etcd;
use trunkline_shared::dcs::{Compare, Dcs, DcsError, Operation, Txn, WatchEvent};

use super::etcd_cluster::EtcdCluster;

/// What an operation may take: an etcd election, twice.
const OPERATION: Duration = Duration::from_secs(10);

/// What a renewal may take; less than the lease lasts.
const RENEWAL: Duration = Duration::from_secs(4);

/// The lease that must survive everything.
const TTL: Duration = Duration::from_secs(5);

const PREFIX: &str = "/service/demo/";
const COUNTER: &str = "/service/demo/counter";

/// What one loop saw.
#[derive(Debug, Default)]
struct Score {
    done: u64,
    failed: Vec<String>,
    slowest: Duration,
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} done, slowest {:?}", self.done, self.slowest)
    }
}

impl Score {
    fn note<T>(&mut self, started: Instant, result: Result<T, DcsError>) -> Option<T> {
        self.slowest = self.slowest.max(started.elapsed());
        match result {
            Ok(value) => {
                self.done += 1;
                Some(value)
            }
            Err(error) => {
                self.failed.push(error.to_string());
                None
            }
        }
    }
}

/// Counts up under a lease by compare-and-write; ends with the last number written.
async fn write(dcs: Etcd, lease: i64, stop: Arc<AtomicBool>) -> (Score, u64) {
    let mut score = Score::default();
    let (mut number, mut revision) = (0u64, 0);
    while !stop.load(Ordering::Relaxed) {
        let when = match revision {
            0 => Compare::Absent(COUNTER.to_owned()),
            _ => Compare::ModRevision(COUNTER.to_owned(), revision),
        };
        let txn = Txn {
            when: vec![when],
            then: vec![Operation::Put {
                key: COUNTER.to_owned(),
                value: (number + 1).to_string().into_bytes(),
                lease,
            }],
            otherwise: vec![Operation::Get(COUNTER.to_owned())],
        };
        let started = Instant::now();
        if let Some(done) = score.note(started, dcs.commit(&txn).await) {
            assert!(done.succeeded, "nobody else writes the counter: {done:?}");
            number += 1;
            revision = done.header.revision;
        }
        sleep(Duration::from_millis(5)).await;
    }
    (score, number)
}

async fn read(dcs: Etcd, stop: Arc<AtomicBool>) -> Score {
    let mut score = Score::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        score.note(started, dcs.read(PREFIX).await);
        sleep(Duration::from_millis(10)).await;
    }
    score
}

async fn renew(dcs: Etcd, lease: i64, stop: Arc<AtomicBool>) -> Score {
    let mut score = Score::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        score.note(started, dcs.keep_alive(lease).await);
        sleep(TTL / 10).await;
    }
    score
}

/// Every number the counter had, in order, through as many watches as it takes.
async fn watch(dcs: Etcd, from: i64, last: Arc<AtomicBool>) -> Vec<u64> {
    let mut seen = Vec::new();
    let mut next = from;
    while !last.load(Ordering::Relaxed) {
        let Ok(mut watch) = dcs.watch(PREFIX, next).await else {
            continue;
        };
        while !last.load(Ordering::Relaxed) {
            match timeout(Duration::from_millis(500), watch.next()).await {
                Err(_) | Ok(Ok(WatchEvent::Progress { .. })) => {}
                Ok(Ok(WatchEvent::Changes { revision, changes })) => {
                    for (_, entry) in changes {
                        let entry = entry.expect("the counter is never deleted: its lease lives");
                        seen.push(String::from_utf8(entry.value).unwrap().parse().unwrap());
                        next = entry.mod_revision + 1;
                    }
                    next = next.max(revision + 1);
                }
                Ok(Err(DcsError::Unreachable { .. })) => break,
                Ok(Err(other)) => panic!("the watch ended with {other}"),
            }
        }
    }
    seen
}

/// Runs the four loops while `faults` happen, and checks that nobody noticed.
async fn nobody_notices(mut cluster: EtcdCluster, faults: impl AsyncFnOnce(&mut EtcdCluster)) {
    cluster.wait_until_whole().await;
    let dcs = cluster.client(OPERATION, RENEWAL);
    let lease = dcs.grant(TTL).await.unwrap().lease;
    let from = dcs.read(PREFIX).await.unwrap().header.revision + 1;
    let (stop, last) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let writer = tokio::spawn(write(dcs.clone(), lease, stop.clone()));
    let reader = tokio::spawn(read(dcs.clone(), stop.clone()));
    let renewer = tokio::spawn(renew(
        cluster.client(OPERATION, RENEWAL),
        lease,
        last.clone(),
    ));
    let watcher = tokio::spawn(watch(dcs.clone(), from, last.clone()));

    faults(&mut cluster).await;
    cluster.wait_until_whole().await;
    sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (writes, number) = writer.await.unwrap();
    let reads = reader.await.unwrap();
    let counter = dcs.read(COUNTER).await.unwrap().entries;
    assert_eq!(counter[0].value, number.to_string().into_bytes());
    assert_eq!(counter[0].lease, lease);
    // The watch may lag behind a little; it has as long as an operation.
    sleep(Duration::from_secs(3)).await;
    last.store(true, Ordering::Relaxed);
    let renewals = renewer.await.unwrap();
    let seen = watcher.await.unwrap();

    eprintln!("writes: {writes}; reads: {reads}; renewals: {renewals}");
    for (what, score) in [("writes", writes), ("reads", reads), ("renewals", renewals)] {
        assert!(score.failed.is_empty(), "{what}: {:?}", score.failed);
    }
    let expected: Vec<u64> = (1..=number).collect();
    assert_eq!(
        seen, expected,
        "the watch delivers everything, once, in order"
    );
}

/// Freezes one member, kills it, starts it again.
async fn freeze_then_kill(cluster: &mut EtcdCluster, index: usize) {
    sleep(Duration::from_secs(1)).await;
    cluster.signal(index, Signal::STOP);
    sleep(Duration::from_secs(4)).await;
    cluster.kill(index);
    sleep(Duration::from_secs(2)).await;
    cluster.start_member(index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_etcd_leader_freezes_and_dies_unnoticed() {
    let cluster = EtcdCluster::start(3);
    nobody_notices(cluster, async |cluster| {
        let leader = cluster.leader().await;
        freeze_then_kill(cluster, leader).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_current_follower_freezes_and_thaws_unnoticed() {
    let cluster = EtcdCluster::start(3);
    nobody_notices(cluster, async |cluster| {
        // The first endpoint is the current one at the start, so it is made the frozen one.
        freeze_then_kill(cluster, 0).await;
        cluster.wait_until_whole().await;
        cluster.signal(1, Signal::STOP);
        sleep(Duration::from_secs(3)).await;
        cluster.signal(1, Signal::CONT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_etcd_is_unnoticed() {
    let cluster = EtcdCluster::start(3);
    nobody_notices(cluster, async |cluster| {
        for index in 0..3 {
            cluster.kill(index);
            sleep(Duration::from_millis(500)).await;
            cluster.start_member(index);
            cluster.wait_until_whole().await;
        }
    })
    .await;
}
