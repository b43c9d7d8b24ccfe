//! Replication slots of real servers: a replica's copies move with what their owners confirmed.

use trunkline_agent::postgres::missing_wal::is_missing;
use trunkline_agent::postgres::process::StopMode;
use trunkline_agent::postgres::{ServerRole, Upstream, UpstreamChange};
use trunkline_shared::cluster::Lsn;

use super::servers::{PATIENCE, on_every_major};
use super::{answer, follow_from_start, plan, primary, replica, wait_for, wait_replayed};

#[test]
fn a_replicas_copy_of_a_slot_moves_no_further_than_its_replay_and_never_back() {
    on_every_major(
        "slots::a_replicas_copy_of_a_slot_moves_no_further_than_its_replay_and_never_back",
        async |servers| {
            let first = primary(servers).await;
            let second = servers.door(2);
            second.copy_from(&servers.upstream(1), None).await.unwrap();
            follow_from_start(&second, servers, 1).await;
            first.create_slot("c").await.unwrap();
            second.create_slot("c").await.unwrap();
            let client = servers.client(1).await;
            let sql = "CREATE TABLE t AS SELECT generate_series(1, 10000)";
            client.batch_execute(sql).await.unwrap();

            let confirmed = answer(&first).await.position();
            first.advance_slot("c", confirmed).await.unwrap();
            wait_for(
                "the replay of what was confirmed",
                String::new,
                async || (answer(&second).await.replayed >= Some(confirmed)).then_some(()),
            )
            .await;
            second.advance_slot("c", confirmed).await.unwrap();
            let at = async |door| {
                let slots = answer(door).await.slots;
                slots.iter().find(|slot| slot.name == "c").unwrap().restart
            };
            assert_eq!(at(&second).await, at(&first).await);

            second.advance_slot("c", Lsn(1)).await.unwrap();
            assert_eq!(at(&second).await, Some(confirmed));
            second.advance_slot("c", Lsn(u64::MAX >> 1)).await.unwrap();
            assert!(at(&second).await <= answer(&second).await.replayed);
        },
    );
}

#[test]
fn a_replica_knows_from_the_log_that_the_wal_it_needs_is_gone() {
    on_every_major(
        "slots::a_replica_knows_from_the_log_that_the_wal_it_needs_is_gone",
        async |servers| {
            let first = primary(servers).await;
            let second = replica(servers, 2, 1).await;
            wait_replayed(&first, &second).await;
            second.stop(&plan(StopMode::Fast)).await.unwrap();
            let client = servers.client(1).await;
            for statement in [
                "ALTER SYSTEM SET wal_keep_size = 0",
                "SELECT pg_reload_conf()",
            ] {
                client.batch_execute(statement).await.unwrap();
            }
            for _ in 0..3 {
                client
                    .batch_execute("SELECT pg_switch_wal(); CREATE TABLE w (i int); DROP TABLE w")
                    .await
                    .unwrap();
                first.checkpoint(PATIENCE).await.unwrap();
            }
            let role = ServerRole::Replica(UpstreamChange::To(Upstream {
                slot: None,
                ..servers.upstream(1)
            }));
            second.start(role).await.unwrap();
            second.wait_ready(PATIENCE).await.unwrap();
            wait_for("the word of the log", String::new, async || {
                let status = answer(&second).await;
                let at = status.received.max(status.replayed)?;
                is_missing(&second.config(), at).then_some(())
            })
            .await;
        },
    );
}
