//! A consumer of a permanent logical slot goes on after a switchover.

use trunkline_agent::postgres::Postgres;

use super::agents::Agents;
use super::servers::{Servers, on_every_major};
use super::{answer, leads, wait_for};

/// Takes what the slot has to give, and confirms it: the numbers inserted into `t`.
pub(super) async fn consume(client: &tokio_postgres::Client) -> Vec<i32> {
    let sql = "SELECT data FROM pg_logical_slot_get_changes('decoded', NULL, NULL)";
    // While it is made or moved it is in use.
    let in_use = tokio_postgres::error::SqlState::OBJECT_IN_USE;
    let told = || "the slot is in use".to_owned();
    let rows = wait_for("the slot", told, async || {
        match client.query(sql, &[]).await {
            Err(error) if error.code() == Some(&in_use) => None,
            answer => Some(answer.unwrap()),
        }
    });
    let rows = rows.await;
    let number = |row: &tokio_postgres::Row| {
        let data: String = row.get(0);
        let number = data.strip_prefix("table public.t: INSERT: i[integer]:")?;
        number.parse().ok()
    };
    rows.iter().filter_map(number).collect()
}

/// Waits until the record of member 2 says why it has no copy.
async fn says_why(agents: &Agents<'_>) {
    let told = || agents.told();
    wait_for("the reason in the record", told, async || {
        let list = agents.operate(1, &["list"]).ok()?;
        list.contains("reads WAL from").then_some(())
    })
    .await;
}

/// Waits until member 2 has a copy of the slot, while its consumer goes on.
async fn copied(door: &Postgres, agents: &Agents<'_>, mut go_on: impl AsyncFnMut()) {
    let told = || agents.told();
    wait_for("a copy of the slot", told, async || {
        go_on().await;
        let status = answer(door).await?;
        let has_it = status.slots.iter().any(|slot| slot.name == "decoded");
        has_it.then_some(())
    })
    .await;
}

/// Waits until the copy on a standby stands where the slot of the leader stands now.
async fn caught_up(
    agents: &Agents<'_>,
    leader: &tokio_postgres::Client,
    door: &Postgres,
    standby: u8,
) {
    let confirmed = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots \
                     WHERE slot_name = 'decoded'";
    let told = || agents.said(standby);
    wait_for("the copy of the slot", told, async || {
        let row = leader.query_one(confirmed, &[]).await.ok()?;
        let wanted = row.get::<_, String>(0).parse().ok()?;
        let status = answer(door).await.filter(|s| s.is_in_recovery)?;
        let copy = status.slots.iter().find(|slot| slot.name == "decoded")?;
        (copy.confirmed >= Some(wanted)).then_some(())
    })
    .await;
}

async fn insert(client: &tokio_postgres::Client, first: i32, last: i32) {
    let sql = format!("INSERT INTO t SELECT generate_series({first}, {last})");
    client.batch_execute(&sql).await.unwrap();
}

/// A primary with the table and the slot.
async fn first_leader(
    agents: &Agents<'_>,
    servers: &Servers,
    door: &Postgres,
) -> tokio_postgres::Client {
    leads(agents, door, 1).await;
    let client = servers.client(1).await;
    client
        .batch_execute("CREATE TABLE t (i int)")
        .await
        .unwrap();
    wait_for(
        "the slot",
        || agents.told(),
        async || {
            let status = answer(door).await?;
            let mut slots = status.slots.iter();
            slots.any(|slot| slot.name == "decoded").then_some(())
        },
    )
    .await;
    client
}

/// A member cloned after the slot was made: the slot reads from WAL that stands before the copy of the data, so that
/// the member says why it has none, and takes its copy later. Returns what was consumed meanwhile.
async fn cloned_too_late(
    agents: &mut Agents<'_>,
    first: &tokio_postgres::Client,
    door: &Postgres,
) -> Vec<i32> {
    first.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    agents.start(2, 5);
    says_why(agents).await;
    let mut seen = Vec::new();
    let go_on = async || {
        // What lets the slot go on is written by a checkpoint, and taken up by whoever decodes past it.
        first.batch_execute("CHECKPOINT").await.unwrap();
        seen.extend(consume(first).await);
    };
    copied(door, agents, go_on).await;
    caught_up(agents, first, door, 2).await;
    seen
}

/// What comes on the new leader: nothing confirmed long before, in order, up to the end.
fn comes_in_order(after: &[i32], seen: &[i32]) {
    println!(
        "measured: {} of {} changes came again",
        after.iter().filter(|i| seen.contains(i)).count(),
        after.len()
    );
    assert!(after.iter().all(|i| *i > 10), "long confirmed: {after:?}");
    let mut pairs = after.windows(2);
    assert!(pairs.all(|pair| pair[0] < pair[1]), "in order: {after:?}");
    assert!(after.ends_with(&[16, 17, 18, 19, 20]), "{after:?}");
}

#[test]
fn a_consumer_of_a_logical_slot_misses_nothing_through_switchovers() {
    on_every_major(
        "logical_slots::a_consumer_of_a_logical_slot_misses_nothing_through_switchovers",
        async |servers| {
            let mut agents = Agents::new(servers);
            let slots = "    slots: {decoded: {type: logical, database: postgres, \
                         plugin: test_decoding}}\n";
            agents.start_in("test", 1, 5, slots);
            let doors = [1, 2].map(|index| Postgres::new(agents.config(index)).unwrap());
            let first = first_leader(&agents, servers, &doors[0]).await;
            insert(&first, 1, 10).await;
            let mut seen = cloned_too_late(&mut agents, &first, &doors[1]).await;

            // What nobody has consumed yet, and what is consumed after the copy last heard of it.
            insert(&first, 11, 15).await;
            seen.extend(consume(&first).await);
            insert(&first, 16, 20).await;
            drop(first);
            let change = ["switchover", "--candidate", "member-2", "--force"];
            agents.operate(1, &change).unwrap();
            leads(&agents, &doors[1], 2).await;
            let second = servers.client(2).await;
            let after = consume(&second).await;
            comes_in_order(&after, &seen);
            seen.extend(after);

            // The former leader's slot is now the copy.
            insert(&second, 21, 25).await;
            seen.extend(consume(&second).await);
            caught_up(&agents, &second, &doors[0], 1).await;
            drop(second);
            let back = ["switchover", "--candidate", "member-1", "--force"];
            agents.operate(1, &back).unwrap();
            leads(&agents, &doors[0], 1).await;
            let first = servers.client(1).await;
            insert(&first, 26, 30).await;
            seen.extend(consume(&first).await);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, (1..=30).collect::<Vec<i32>>());
        },
    );
}
