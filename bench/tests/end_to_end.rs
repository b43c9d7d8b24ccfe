//! Real runs: real PostgreSQL, real etcd, the built programs. The bounds on time are wide, since a test must
//! not depend on the machine; the bounds on safety are exact.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test tells and fails so"
)]

#[path = "end_to_end/crashes.rs"]
mod crashes;
#[path = "end_to_end/planned.rs"]
mod planned;
#[path = "end_to_end/serial.rs"]
mod serial;
#[path = "end_to_end/synchronous.rs"]
mod synchronous;
#[path = "end_to_end/wire.rs"]
mod wire;

use std::time::Duration;

use trunkline_bench::check::convergence;
use trunkline_bench::failover::key_watch::KeyWatch;
use trunkline_bench::failover::run::{Settings, once};
use trunkline_bench::failover::scenario::Scenario;
use trunkline_bench::report::Progress;
use trunkline_bench::stack::etcd::Etcd;
use trunkline_bench::stack::place::Place;
use trunkline_bench::stack::programs::Programs;
use trunkline_bench::stack::{Layout, Plan, Stack, leader_key, namespaces, process};
use trunkline_shared::service::clock;

/// No write gap of any scenario here is as long, on a machine however slow.
const WIDE: Duration = Duration::from_secs(30);

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs the scenarios one after another on one cluster and fails on the first that breaks a promise.
async fn live_through(layout: Layout, scenarios: &[Scenario]) {
    let progress = Progress::hidden();
    let mut stack = Stack::start(&Plan::new(layout), &progress)
        .await
        .expect("the cluster starts");
    let settings = Settings {
        quiet: Duration::from_secs(2),
        writers: 4,
        seed: 0,
        count: None,
        longest: Duration::ZERO,
        // Longer than the lease of a test's cluster, so that nothing but consent keeps the leader.
        outage: Duration::from_secs(8),
    };
    for scenario in scenarios {
        let measured = once(&mut stack, *scenario, &settings, &progress).await;
        let measured = measured.unwrap_or_else(|error| panic!("{scenario}: {error:#}"));
        println!(
            "{scenario}: gap {:?}, quiet {:?}",
            measured.gaps.anybody, measured.quiet.anybody
        );
        measured
            .notes
            .iter()
            .for_each(|note| println!("    {note}"));
        assert_eq!(measured.faults, Vec::<String>::new(), "{scenario}");
        assert!(
            measured.gaps.anybody < WIDE,
            "{scenario}: {:?}",
            measured.gaps
        );
    }
    convergence::now(&stack)
        .await
        .expect("one leader and two streaming at the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_lives_through_switchover_crashes_and_restarts() {
    let scenarios = [
        Scenario::Switchover,
        Scenario::PostmasterKilled,
        Scenario::AgentKilled,
        Scenario::RouterKilled,
        Scenario::AgentTerminated,
        Scenario::AgentStopped,
    ];
    live_through(Layout::Loopback, &scenarios).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_outlives_its_etcd() {
    let scenarios = [
        Scenario::EtcdGone,
        Scenario::EtcdGoneAgentKilled,
        Scenario::EtcdGoneReplicaLost,
    ];
    live_through(Layout::Loopback, &scenarios).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_lives_through_a_partition_and_a_frozen_node() {
    if !is_root() {
        println!("not run: network namespaces need root");
        return;
    }
    live_through(
        Layout::Namespaces,
        &[Scenario::Partition, Scenario::NodeFrozen],
    )
    .await;
}

/// The harness's own parts, before anything is judged by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_key_is_seen_from_outside_as_it_changes() {
    let place = Place::take().expect("a number");
    let programs = Programs::find(&place, None).expect("programs");
    let stores = [("e1".to_owned(), format!("127.77.{}.1", place.number()))];
    let mut etcd = Etcd::new(&place, &programs, "e1", None, &stores).expect("etcd");
    etcd.start().expect("etcd starts");
    let deadline = clock::now() + WIDE;
    while !etcd.is_healthy().await {
        assert!(clock::now() < deadline, "etcd is not healthy");
    }
    let watch = KeyWatch::start(&etcd).expect("watch");
    let endpoint = format!("--endpoints=http://{}:2379", stores[0].1);
    let etcdctl = programs.etcdctl.to_string_lossy().into_owned();
    let change = async |words: &[&str]| {
        let mut launch = process::tool(&etcdctl, &[&[endpoint.as_str()], words].concat());
        launch.env.push(("ETCDCTL_API".to_owned(), "3".to_owned()));
        launch.finish(WIDE).await.expect("etcdctl");
    };
    // The watch may begin after the first changes: they are made until it has seen one.
    let began = clock::now();
    while watch.changes().is_empty() {
        assert!(clock::now() < deadline, "the watch sees nothing");
        change(&["put", &leader_key(), "n1"]).await;
    }
    assert_eq!(etcd.read(&leader_key()).await.expect("read"), "n1");
    let gone = clock::now();
    change(&["del", &leader_key()]).await;
    let named = |name: &str| {
        watch
            .changes()
            .iter()
            .any(|one| one.leader.as_deref() == Some(name))
    };
    assert!(named("n1"));
    let end = watch
        .until("its end", gone, WIDE, |change| change.leader.is_none())
        .await;
    assert!(end.expect("the end is seen").at > began);
}

/// A cut node hears nobody and is heard by nobody; healed it is as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_hears_nobody() {
    if !is_root() {
        println!("not run: network namespaces need root");
        return;
    }
    let place = Place::take().expect("a number");
    let number = place.number();
    let programs = Programs::find(&place, None).expect("programs");
    namespaces::make_bridge(number).expect("bridge");
    let address = format!("10.77.{number}.11");
    namespaces::make(number, "n1", &address).expect("namespace");
    let namespace = namespaces::name(number, "n1");
    let stores = [("e1".to_owned(), address)];
    let mut etcd =
        Etcd::new(&place, &programs, "e1", Some(namespace.clone()), &stores).expect("etcd");
    etcd.start().expect("etcd starts");
    let deadline = clock::now() + WIDE;
    while !etcd.is_healthy().await {
        assert!(clock::now() < deadline, "etcd is not healthy");
    }
    namespaces::cut(&namespace).await.expect("cut");
    assert!(!etcd.is_healthy().await);
    namespaces::heal(&namespace).await.expect("heal");
    while !etcd.is_healthy().await {
        assert!(clock::now() < deadline, "etcd is not healthy again");
    }
    drop(etcd);
    drop(place);
    let folder = std::env::temp_dir().join(format!("trunkline-{number}"));
    assert!(!folder.exists(), "the folder is left");
    assert!(
        !std::path::Path::new("/run/netns").join(namespace).exists(),
        "a namespace is left"
    );
}
