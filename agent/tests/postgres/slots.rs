//! Replication slots of real servers: a replica's copies move with what their owners confirmed.

use trunkline_shared::cluster::Lsn;

use super::servers::on_every_major;
use super::{answer, follow_from_start, primary, wait_for};

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
