//! A promotion that never ends: the process that replays WAL is frozen once it has replayed everything.

use rustix::process::Signal;
use trunkline_agent::postgres::Postgres;
use trunkline_agent::postgres::kill::kill_instance;
use trunkline_shared::cluster::Timeline;

use super::agents::{Agents, signal};
use super::servers::{PATIENCE, on_every_major, wait_for};
use super::{answer, leads, startup_process};

/// Waits until the replica streams, or until it has nothing left to replay and nobody sends it anything.
async fn replica(agents: &Agents<'_>, door: &Postgres, streams: bool) {
    wait_for(
        "a replica",
        || agents.told(),
        async || {
            let status = answer(door).await.filter(|s| s.is_in_recovery)?;
            let is_streaming = status.receiver.as_ref().is_some_and(|r| r.is_streaming());
            let has_all = status.received.is_some() && status.replayed >= status.received;
            (has_all && is_streaming == streams).then_some(())
        },
    )
    .await;
}

#[test]
fn a_promotion_that_hangs_gives_way_to_a_member_that_has_the_same() {
    on_every_major(
        "hung_promotion::a_promotion_that_hangs_gives_way_to_a_member_that_has_the_same",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 10);
            let doors = [1, 2, 3].map(|index| Postgres::new(agents.config(index)).unwrap());
            leads(&agents, &doors[0], 1).await;
            for index in [2_u8, 3] {
                agents.start(index, 10);
                replica(&agents, &doors[usize::from(index) - 1], true).await;
            }

            // Until the lease has ended nobody runs, and of two equals the first by name wins.
            let fence = agents.fence(1).expect("a fence");
            agents.kill(1);
            signal(fence, Signal::KILL);
            kill_instance(&agents.config(1).data_dir, PATIENCE);
            replica(&agents, &doors[1], false).await;
            let replays =
                startup_process(doors[1].adopt().unwrap().pid).expect("a startup process");
            signal(replays, Signal::STOP);
            wait_for(
                "a promotion",
                || agents.told(),
                async || doors[1].is_promoting().then_some(()),
            )
            .await;

            let status = wait_for(
                "another primary",
                || agents.said(3),
                async || answer(&doors[2]).await.filter(|s| !s.is_in_recovery),
            )
            .await;
            assert_eq!(status.timeline, Timeline(3), "the second number claimed");
            leads(&agents, &doors[2], 3).await;
            assert!(
                agents.said(2).contains("promotion_failed"),
                "{}",
                agents.said(2)
            );
            // Who gave way follows.
            replica(&agents, &doors[1], true).await;
        },
    );
}
