//! Whom commits wait for, changed while they wait.

use rustix::process::Signal;

use trunkline_agent::postgres::process::StopMode;
use trunkline_agent::postgres::timelines::TimelineStep;
use trunkline_agent::postgres::{Postgres, ServerRole, UpstreamChange};
use trunkline_shared::cluster::Timeline;

use super::servers::{PATIENCE, Servers, on_every_major, wait_for};
use super::{answer, plan, primary, replica, signal, wait_replayed};

#[test]
fn commits_that_wait_are_released_once_they_are_to_wait_for_somebody_else() {
    on_every_major(
        "synchronous::commits_that_wait_are_released_once_they_are_to_wait_for_somebody_else",
        async |servers| {
            let (first, second) = with_table(servers).await;
            answer_for_wal_alone(servers).await;
            let gone = Some("\"nobody\"".to_owned());
            first.set_sync_names(gone).await.unwrap();
            let waits = async || {
                let status = answer(&first).await;
                let is_set = status.synchronous_standby_names.contains("nobody");
                (is_set && !status.is_checkpointer_busy).then_some(())
            };
            wait_for("the names to be in force", String::new, waits).await;

            let committing = servers.client(1).await;
            let write = "SET default_transaction_read_only = off";
            committing.batch_execute(write).await.unwrap();
            let insert = "INSERT INTO t VALUES (1)";
            let commit = tokio::spawn(async move { committing.batch_execute(insert).await });
            let watching = servers.client(1).await;
            // It writes WAL now and then, which would do as well.
            let who = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'";
            let writer = watching.query_one(who, &[]).await.unwrap().get(0);
            signal(writer, Signal::STOP);
            let waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            let waits =
                async || (watching.query(waiting, &[]).await.unwrap().len() == 1).then_some(());
            wait_for("the commit to wait", String::new, waits).await;
            // It is on the second, which has said so.
            wait_replayed(&first, &second).await;
            let all = Some("\"member-2\"".to_owned());
            first.set_sync_names(all).await.unwrap();
            first.let_standbys_answer().await;
            let released = tokio::time::timeout(PATIENCE, commit).await;
            released
                .expect("the commit waits for ever")
                .unwrap()
                .unwrap();
        },
    );
}

#[test]
fn queries_are_ended_where_replay_waits_for_them_and_nowhere_else() {
    on_every_major(
        "synchronous::queries_are_ended_where_replay_waits_for_them_and_nowhere_else",
        async |servers| {
            let (first, second) = with_table(servers).await;
            let watching = servers.client(2).await;
            for sql in [
                "ALTER SYSTEM SET max_standby_streaming_delay = -1",
                "SELECT pg_reload_conf()",
            ] {
                watching.batch_execute(sql).await.unwrap();
            }
            let reading = servers.client(2).await;
            reading.batch_execute("BEGIN; SELECT FROM t").await.unwrap();
            second.end_replay_conflicts().await.unwrap();
            reading.batch_execute("SELECT FROM t").await.unwrap();

            let changing = servers.client(1).await;
            let change = "SET default_transaction_read_only = off; ALTER TABLE t ADD held int";
            changing.batch_execute(change).await.unwrap();
            let held = "SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event_type = 'Lock'";
            let waits =
                async || (watching.query(held, &[]).await.unwrap().len() == 1).then_some(());
            wait_for("replay to wait for the query", String::new, waits).await;
            second.end_replay_conflicts().await.unwrap();
            wait_replayed(&first, &second).await;
            assert!(reading.batch_execute("SELECT 1").await.is_err());
        },
    );
}

#[test]
fn what_a_crashed_primary_alone_wrote_confirms_no_commit_of_the_next() {
    on_every_major(
        "synchronous::what_a_crashed_primary_alone_wrote_confirms_no_commit_of_the_next",
        async |servers| {
            let (first, second) = with_table(servers).await;
            second.stop(&plan(StopMode::Fast)).await.unwrap();
            let alone = "INSERT INTO t SELECT generate_series(1, 10000)";
            let client = servers.client(1).await;
            client.batch_execute(alone).await.unwrap();
            first.stop(&plan(StopMode::Immediate)).await.unwrap();
            second
                .start(ServerRole::Replica(UpstreamChange::Keep))
                .await
                .unwrap();
            second.wait_ready(PATIENCE).await.unwrap();
            second
                .set_sync_names(Some("\"member-1\"".to_owned()))
                .await
                .unwrap();
            wait_for("the names to be in force", String::new, async || {
                let status = answer(&second).await;
                (!status.is_checkpointer_busy).then_some(())
            })
            .await;
            let step = TimelineStep {
                from: Timeline(1),
                to: Timeline(2),
            };
            second.promote(step, PATIENCE, || true).await.unwrap();
            let committing = servers.client(2).await;
            let commit =
                tokio::spawn(
                    async move { committing.batch_execute("INSERT INTO t VALUES (-1)").await },
                );

            // It reaches further than the second, and is to follow it before anybody can have compared them.
            let to = UpstreamChange::To(servers.upstream(2));
            first.start(ServerRole::Replica(to)).await.unwrap();
            first.wait_ready(PATIENCE).await.unwrap();
            wait_for("the first to have read all", String::new, async || {
                answer(&first).await.has_read_all.then_some(())
            })
            .await;
            let (ahead, behind) = (answer(&first).await, answer(&second).await);
            assert!(ahead.replayed > behind.current);
            assert!(!commit.is_finished(), "the commit is nowhere else");
            assert!(ahead.conninfo.is_empty() && behind.senders.is_empty());
            commit.abort();
        },
    );
}

#[test]
fn a_former_primary_does_not_go_back_to_whom_it_followed_before_it_led() {
    on_every_major(
        "synchronous::a_former_primary_does_not_go_back_to_whom_it_followed_before_it_led",
        async |servers| {
            let (_first, second) = with_table(servers).await;
            let step = TimelineStep {
                from: Timeline(1),
                to: Timeline(2),
            };
            second.promote(step, PATIENCE, || true).await.unwrap();
            second.stop(&plan(StopMode::Fast)).await.unwrap();
            let kept = ServerRole::Replica(UpstreamChange::Keep);
            second.start(kept).await.unwrap();
            second.wait_ready(PATIENCE).await.unwrap();
            assert_eq!(answer(&second).await.conninfo, "");
        },
    );
}

/// A primary with a table, and a replica that has it.
async fn with_table(servers: &Servers) -> (Postgres, Postgres) {
    let first = primary(servers).await;
    let second = replica(servers, 2, 1).await;
    let make = "CREATE TABLE t (i int)";
    servers.client(1).await.batch_execute(make).await.unwrap();
    wait_replayed(&first, &second).await;
    (first, second)
}

/// What waits would wait for ever: by the agent's settings both sides ask after 2.5 s, and the standby answers each 10 s.
async fn answer_for_wal_alone(servers: &Servers) {
    let standby = servers.client(2).await;
    let shown = standby.query_one("SHOW primary_conninfo", &[]).await;
    let conninfo: String = shown.unwrap().get(0);
    let unasked = conninfo.replace("wal_sender_timeout=5s", "wal_sender_timeout=0");
    assert_ne!(unasked, conninfo);
    let unasked = unasked.replace('\'', "''");
    let conninfo = format!("ALTER SYSTEM SET primary_conninfo = '{unasked}'");
    for (index, sql) in [
        (1, "ALTER SYSTEM SET default_transaction_read_only = on"),
        (1, "SELECT pg_reload_conf()"),
        (2, "ALTER SYSTEM SET wal_receiver_status_interval = 0"),
        (2, "ALTER SYSTEM SET wal_receiver_timeout = 0"),
        (2, &conninfo),
        (2, "SELECT pg_reload_conf()"),
    ] {
        servers
            .client(index)
            .await
            .batch_execute(sql)
            .await
            .unwrap();
    }
    wait_for("the receiver to stream unasked", String::new, async || {
        let asks = "SELECT FROM pg_stat_wal_receiver WHERE conninfo LIKE '%timeout=0%' AND status = 'streaming'";
        let receivers = standby.query(asks, &[]).await;
        (receivers.unwrap().len() == 1).then_some(())
    })
    .await;
}
