//! Which timeline a replica says that it has come to.

use trunkline_agent::postgres::process::StopMode;
use trunkline_agent::postgres::timelines::TimelineStep;
use trunkline_agent::postgres::{ServerRole, UpstreamChange};
use trunkline_shared::cluster::Timeline;

use super::servers::{PATIENCE, on_every_major, wait_for};
use super::{answer, follow_from_start, plan, primary, replica, wait_replayed};

#[test]
fn a_crashed_replica_whose_upstream_is_gone_says_what_it_has_replayed() {
    on_every_major(
        "timeline_of_replay::a_crashed_replica_whose_upstream_is_gone_says_what_it_has_replayed",
        async |servers| {
            let first = primary(servers).await;
            let second = replica(servers, 2, 1).await;
            first.stop(&plan(StopMode::Fast)).await.unwrap();
            let step = TimelineStep {
                from: Timeline(1),
                to: Timeline(2),
            };
            second.promote(step, PATIENCE, || true).await.unwrap();
            follow_from_start(&first, servers, 2).await;
            let make = "CREATE TABLE t (i int); INSERT INTO t VALUES (1)";
            servers.client(2).await.batch_execute(make).await.unwrap();
            wait_replayed(&second, &first).await;

            // A loss of power of both, and one comes back.
            first.stop(&plan(StopMode::Immediate)).await.unwrap();
            second.stop(&plan(StopMode::Immediate)).await.unwrap();
            let alone = ServerRole::Replica(UpstreamChange::Keep);
            first.start(alone).await.unwrap();
            first.wait_ready(PATIENCE).await.unwrap();
            let status = wait_for("the end of what lies there", String::new, async || {
                Some(answer(&first).await).filter(|status| status.has_read_all)
            })
            .await;
            assert_eq!(status.checkpoint_timeline, Timeline(1), "no restartpoint");
            assert_eq!(status.timeline, Timeline(2));
        },
    );
}
