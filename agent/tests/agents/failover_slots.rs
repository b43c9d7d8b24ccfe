//! Slots that PostgreSQL 17 and later keeps on standbys by itself; below that version nothing of it is set.

use trunkline_agent::postgres::Postgres;

use super::agents::Agents;
use super::logical_slots::consume;
use super::servers::on_every_major;
use super::{answer, leads, wait_for};

/// The first major version that has them.
const SINCE: u32 = 17;

/// A setting in force on a member; empty where the version does not know it.
async fn setting(client: &tokio_postgres::Client, name: &str) -> String {
    let sql = "SELECT coalesce(current_setting($1, true), '')";
    client.query_one(sql, &[&name]).await.unwrap().get(0)
}

/// Waits until PostgreSQL has a copy of the slot on this standby that outlives a failover, while the consumer on
/// the leader goes on.
async fn kept(
    agents: &Agents<'_>,
    leader: &tokio_postgres::Client,
    standby: &Postgres,
    seen: &mut Vec<i32>,
) {
    let told = || agents.told();
    let config = standby.config();
    let socket = config.socket_dirs[0].join(format!(".s.PGSQL.{}", config.port));
    wait_for("PostgreSQL's own copy of the slot", told, async || {
        // A postmaster looks after its slot sync worker when somebody connects, else once in a minute.
        let _ = tokio::net::UnixStream::connect(&socket).await;
        leader.batch_execute("CHECKPOINT").await.unwrap();
        seen.extend(consume(leader).await);
        let status = answer(standby).await.filter(|s| s.is_in_recovery)?;
        let mut slots = status.slots.iter().filter(|slot| slot.name == "decoded");
        let is_kept = slots.any(|slot| slot.is_synced && !slot.is_temporary && !slot.is_invalid);
        is_kept.then_some(())
    })
    .await;
}

/// Waits until consumers on this leader wait for the standby behind this slot.
async fn waits_for(agents: &Agents<'_>, leader: &tokio_postgres::Client, slot: &str) {
    let told = || agents.told();
    wait_for("synchronized_standby_slots", told, async || {
        let now = setting(leader, "synchronized_standby_slots").await;
        (now == slot).then_some(())
    })
    .await;
}

#[test]
fn failover_slots_are_left_to_postgresql_and_their_consumers_wait_for_the_standbys() {
    on_every_major(
        "failover_slots::failover_slots_are_left_to_postgresql_and_their_consumers_wait_for_the_standbys",
        async |servers| {
            let mut agents = Agents::new(servers);
            let slots = "    slots: {decoded: {type: logical, database: postgres, \
                         plugin: test_decoding, failover: true}}\n";
            agents.start_in("test", 1, 5, slots);
            let doors = [1, 2].map(|index| Postgres::new(agents.config(index)).unwrap());
            leads(&agents, &doors[0], 1).await;
            let first = servers.client(1).await;
            first.batch_execute("CREATE TABLE t (i int)").await.unwrap();
            let told = || agents.said(1);
            let version = wait_for("the slot", told, async || {
                let status = answer(&doors[0]).await?;
                let mut slots = status.slots.iter();
                slots
                    .any(|slot| slot.name == "decoded")
                    .then_some(status.version)
            })
            .await;
            agents.start(2, 5);
            if version / 10_000 < SINCE {
                nothing_is_set(&agents, &first).await;
                return;
            }
            let insert = "INSERT INTO t SELECT generate_series";
            first
                .batch_execute(&format!("{insert}(1, 10)"))
                .await
                .unwrap();
            let mut seen = Vec::new();
            waits_for(&agents, &first, "member_2").await;
            kept(&agents, &first, &doors[1], &mut seen).await;
            let second = servers.client(2).await;
            assert!(
                setting(&second, "primary_conninfo")
                    .await
                    .contains("dbname=")
            );
            first
                .batch_execute(&format!("{insert}(11, 20)"))
                .await
                .unwrap();
            drop(first);

            let change = ["switchover", "--candidate", "member-2", "--force"];
            agents.operate(1, &change).unwrap();
            leads(&agents, &doors[1], 2).await;
            waits_for(&agents, &second, "member_1").await;
            // What the former primary had made itself has gone, or PostgreSQL would not keep a copy there.
            kept(&agents, &second, &doors[0], &mut seen).await;
            second
                .batch_execute(&format!("{insert}(21, 30)"))
                .await
                .unwrap();
            drop(second);
            let back = ["switchover", "--candidate", "member-1", "--force"];
            agents.operate(1, &back).unwrap();
            leads(&agents, &doors[0], 1).await;
            let first = servers.client(1).await;
            waits_for(&agents, &first, "member_2").await;
            seen.extend(consume(&first).await);
            let again = seen.len();
            seen.sort_unstable();
            seen.dedup();
            println!(
                "measured: {} of {again} changes came again",
                again - seen.len()
            );
            assert_eq!(seen, (1..=30).collect::<Vec<i32>>());
        },
    );
}

/// The servers run, so that nothing they do not know stands in their files; and the agent has set nothing.
async fn nothing_is_set(agents: &Agents<'_>, leader: &tokio_postgres::Client) {
    for name in ["sync_replication_slots", "synchronized_standby_slots"] {
        assert_eq!(setting(leader, name).await, "", "{name}");
    }
    assert_eq!(setting(leader, "hot_standby_feedback").await, "on");
    for index in [1, 2] {
        let config = agents.config(index);
        let door = Postgres::new(config.clone()).unwrap();
        wait_for("the server", || agents.told(), async || answer(&door).await).await;
        let text = std::fs::read_to_string(config.config_dir().join("postgresql.conf")).unwrap();
        assert!(!text.contains("sync_replication_slots"), "{text}");
        assert!(!text.contains("dbname="), "{text}");
        assert!(!config.config_dir().join("trunkline.slots.conf").exists());
    }
}
