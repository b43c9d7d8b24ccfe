//! Two clusters, one of them the other's standby, and their change of places.

use trunkline_agent::postgres::{Postgres, ServerStatus};
use trunkline_shared::cluster::Timeline;
use trunkline_shared::service::clock;

use super::agents::Agents;
use super::servers::{Servers, on_every_major};
use super::{answer, deadline, leads, wait_for};

/// The status of an instance that is in recovery and receives WAL from `from`.
async fn follows(agents: &Agents<'_>, door: &Postgres, from: u8) -> Box<ServerStatus> {
    let host = agents.config(from).connect_host;
    wait_for(
        "a stream from the right server",
        || agents.told(),
        async || {
            let status = answer(door).await.filter(|s| s.is_in_recovery)?;
            status.is_streaming_from(&host, 5432).then_some(status)
        },
    )
    .await
}

/// Waits for as many rows in the table `t` of instance `index`.
async fn has_rows(agents: &Agents<'_>, client: &tokio_postgres::Client, rows: i64) {
    wait_for(
        "rows",
        || agents.told(),
        async || {
            let row = client.query_one("SELECT count(*) FROM t", &[]).await.ok()?;
            (row.get::<_, i64>(0) == rows).then_some(())
        },
    )
    .await;
}

#[test]
fn two_clusters_change_places_and_only_one_writes() {
    on_every_major(
        "standby_cluster::two_clusters_change_places_and_only_one_writes",
        async |servers| {
            let mut agents = Agents::new(servers);
            let writer = make_both(servers, &mut agents).await;
            change_leader(&agents).await;
            change_places(servers, &agents, &writer).await;
        },
    );
}

fn door(agents: &Agents<'_>, index: u8) -> Postgres {
    Postgres::new(agents.config(index)).unwrap()
}

async fn run(client: &tokio_postgres::Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

/// A cluster, and another that is made as its standby with two members; the client writes to the first.
async fn make_both(servers: &Servers, agents: &mut Agents<'_>) -> tokio_postgres::Client {
    agents.start(1, 5);
    leads(agents, &door(agents, 1), 1).await;
    let writer = servers.client(1).await;
    let made = "SELECT pg_create_physical_replication_slot('site_b', true)";
    run(&writer, made).await;
    run(&writer, "CREATE TABLE t AS SELECT 1 AS i").await;

    // Its leader is copied from the other cluster and streams through the slot made for it there.
    let host = servers.config(1).connect_host;
    let section = format!("    standby_cluster: {{host: {host}, primary_slot_name: site_b}}\n");
    agents.start_in("site-b", 2, 5, &section);
    follows(agents, &door(agents, 2), 1).await;
    copy_anew(agents).await;
    agents.start_in("site-b", 3, 5, &section);
    follows(agents, &door(agents, 3), 2).await;
    let uses = "SELECT active FROM pg_replication_slots WHERE slot_name = 'site_b'";
    let is_used = async || {
        let row = writer.query_one(uses, &[]).await.ok()?;
        row.get::<_, bool>(0).then_some(())
    };
    wait_for("the slot in use", || agents.told(), is_used).await;
    assert_eq!(deadline(agents, 2), None, "a standby leader is never armed");
    let listed = agents.operate(2, &["list"]).unwrap();
    assert!(listed.contains("Standby Leader"), "{listed}");
    writer
}

/// The standby cluster's leader changes and changes back; each command ends by saying that it is done.
async fn change_leader(agents: &Agents<'_>) {
    for (from, to) in [(2, 3), (3, 2)] {
        let candidate = format!("member-{to}");
        let began = clock::now();
        let change = ["switchover", "--candidate", &candidate, "--force"];
        // Refused, nothing is asked for, until the candidate's record says that it runs.
        let asked = async || agents.operate(from, &change).ok();
        let told = wait_for("a switchover", || agents.told(), asked).await;
        let took = clock::now().since(began);
        println!("measured: a switchover of a standby cluster took {took:?}");
        assert!(told.contains("Switched over"), "{told}");
        follows(agents, &door(agents, to), 1).await;
        follows(agents, &door(agents, from), to).await;
    }
}

/// Its leader has nobody of its own to be copied from.
async fn copy_anew(agents: &Agents<'_>) {
    let before = agents.config(2).data_dir.join("of_before");
    std::fs::write(&before, "").unwrap();
    let words = ["reinit", "site-b", "member-2", "--force"];
    let copy = async || agents.operate(2, &words).ok();
    wait_for("a copy", || agents.told(), copy).await;
    let is_gone = async || (!before.exists()).then_some(());
    wait_for("another directory", || agents.told(), is_gone).await;
    follows(agents, &door(agents, 2), 1).await;
}

async fn change_places(servers: &Servers, agents: &Agents<'_>, writer: &tokio_postgres::Client) {
    run(writer, "INSERT INTO t VALUES (2)").await;
    let (second, last) = (servers.client(2).await, servers.client(3).await);
    has_rows(agents, &last, 2).await;

    // Promoted, it writes on a timeline of its own, and its replica goes with it.
    let began = clock::now();
    agents.operate(2, &["promote-cluster", "--force"]).unwrap();
    leads(agents, &door(agents, 2), 2).await;
    let took = clock::now().since(began);
    println!("measured: promote-cluster took {took:?}");
    run(&second, "INSERT INTO t VALUES (3)").await;
    has_rows(agents, &last, 3).await;
    let status = follows(agents, &door(agents, 3), 2).await;
    assert_eq!(status.timeline, Timeline(2));

    // What the old one wrote meanwhile is nobody's: it is taken back, and it follows.
    run(writer, "INSERT INTO t VALUES (4), (5)").await;
    let host = servers.config(2).connect_host;
    let demote = ["demote-cluster", "--host", &host, "--force"];
    let began = clock::now();
    agents.operate(1, &demote).unwrap();
    let status = follows(agents, &door(agents, 1), 2).await;
    let took = clock::now().since(began);
    println!("measured: demote-cluster took {took:?}");
    assert_eq!(status.timeline, Timeline(2));
    assert_eq!(deadline(agents, 1), None, "its fence sleeps");
    let first = servers.client(1).await;
    has_rows(agents, &first, 3).await;
    let refused = first.batch_execute("INSERT INTO t VALUES (6)").await;
    assert!(refused.is_err());
}
