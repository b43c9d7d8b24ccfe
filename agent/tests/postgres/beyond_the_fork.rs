//! WAL that a replica received of a history that ended before it.

use trunkline_agent::postgres::process::StopMode;
use trunkline_agent::postgres::rewind::WAL_ASIDE;
use trunkline_agent::postgres::timelines::TimelineStep;
use trunkline_agent::postgres::{ServerRole, UpstreamChange};
use trunkline_shared::cluster::Timeline;

use super::servers::{PATIENCE, on_every_major, wait_for};
use super::{answer, follow_from_start, plan, primary, replica, rows, wait_replayed};

#[test]
fn what_was_received_beyond_the_fork_and_not_replayed_is_never_replayed() {
    on_every_major(
        "beyond_the_fork::what_was_received_beyond_the_fork_and_not_replayed_is_never_replayed",
        async |servers| {
            let first = primary(servers).await;
            let second = replica(servers, 2, 1).await;
            let third = replica(servers, 3, 1).await;
            let client = servers.client(1).await;
            let make = "CREATE TABLE t (i int); INSERT INTO t VALUES (1)";
            client.batch_execute(make).await.unwrap();
            wait_replayed(&first, &second).await;
            wait_replayed(&first, &third).await;
            wait_for("the third to have read all", String::new, async || {
                answer(&third).await.has_read_all.then_some(())
            })
            .await;

            // The third receives what the second, which leads next, does not.
            second.stop(&plan(StopMode::Fast)).await.unwrap();
            let pause = "SELECT pg_wal_replay_pause()";
            servers.client(3).await.batch_execute(pause).await.unwrap();
            let more = "INSERT INTO t VALUES (-1)";
            client.batch_execute(more).await.unwrap();
            let written = answer(&first).await.current;
            wait_for("the third to receive it", String::new, async || {
                let third = answer(&third).await;
                (third.received >= written && third.replayed < written).then_some(())
            })
            .await;
            assert!(!answer(&third).await.has_read_all, "its replay is paused");
            first.stop(&plan(StopMode::Immediate)).await.unwrap();
            let alone = ServerRole::Replica(UpstreamChange::Keep);
            second.start(alone).await.unwrap();
            second.wait_ready(PATIENCE).await.unwrap();
            let step = TimelineStep {
                from: Timeline(1),
                to: Timeline(2),
            };
            second.promote(step, PATIENCE, || true).await.unwrap();
            let after = "INSERT INTO t VALUES (2)";
            servers.client(2).await.batch_execute(after).await.unwrap();

            third.stop(&plan(StopMode::Fast)).await.unwrap();
            let facts = third.source_facts(&servers.upstream(2)).await.unwrap();
            third.cut_wal(facts.history.ends()).await.unwrap();
            let aside = std::fs::read_dir(servers.config(3).beside(WAL_ASIDE)).unwrap();
            assert!(aside.count() > 0, "a copy was set aside");
            follow_from_start(&third, servers, 2).await;
            wait_replayed(&second, &third).await;
            assert_eq!(rows(servers, 3).await, [1, 2]);
        },
    );
}
