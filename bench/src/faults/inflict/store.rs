//! The store: its leader killed again and again, all of it gone while the leader dies, the leader key tampered with.

use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::{LEADER_LIMIT, LOOK, another_writes, leader_name};
use crate::fault::store;
use crate::faults::promise::WITH_STORE;
use crate::faults::site::Field;
use crate::stack::leader_key;

/// How often the leader of the store is killed, and how often in time.
const KILLS: usize = 3;
const EVERY: Duration = Duration::from_secs(8);
/// How long a killed member of the store is away.
const AWAY: Duration = Duration::from_secs(2);
/// How long a leader key that names another member stands.
const FOREIGN: Duration = Duration::from_secs(1);

/// Each time another member of it leads.
pub async fn leader_killed_again_and_again(field: &mut Field<'_>) -> Result<()> {
    let leader = field.run.leader;
    field.run.began = clock::now();
    for number in 1..=KILLS {
        let began = clock::now();
        let index = store::leader(field.run.stack).await?;
        let etcd = &mut field.run.stack.etcd[index];
        let on = etcd.name.clone();
        etcd.end(Signal::KILL).await?;
        tokio::time::sleep(AWAY).await;
        field.run.stack.etcd[index].start()?;
        tokio::time::sleep(clock::now().until(began + EVERY)).await;
        let now = field
            .whole(&format!("etcd leader killed, {number}"), &on)
            .await?;
        if now.leader != leader {
            field.missed("leadership moved");
        }
    }
    Ok(())
}

/// Nobody may be promoted while nobody knows who leads, however dead the leader is.
pub async fn gone_then_leader(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    field.run.began = clock::now();
    store::stop_all(field.run.stack).await?;
    tokio::time::sleep(AWAY).await;
    field.run.stack.members[old].kill().await?;
    let deadline = clock::now() + field.run.outage;
    while clock::now() < deadline {
        for index in (0..field.run.stack.members.len()).filter(|index| *index != old) {
            let member = &field.run.stack.members[index];
            let client = member.sql("postgres").await?;
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
            if !row.get::<_, bool>(0) {
                bail!("{} was promoted without etcd", member.name);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    let back = clock::now();
    store::start_all(field.run.stack).await?;
    another_writes(field, old).await?;
    let took = clock::now().since(back);
    field.run.note(format!(
        "another member led and clients wrote {:.1} s after etcd was started",
        took.as_secs_f64()
    ));
    let limit = field.run.ttl() + WITH_STORE;
    if took > limit {
        field.late(format!("allowed are {limit:?}"));
    }
    field.run.stack.members[old].start()?;
    field.whole("etcd gone, then P", &on).await?;
    Ok(())
}

/// An operator deletes it, revokes its lease, writes another member's name into it.
pub async fn leader_key_tampered(field: &mut Field<'_>) -> Result<()> {
    let key = leader_key();
    let on = leader_name(field);
    field.run.began = clock::now();
    field.run.stack.etcd[0].delete(&key).await?;
    until_led(field, &on).await?;
    field.whole("leader key deleted", &on).await?;

    let on = leader_name(field);
    field.run.began = clock::now();
    field.run.stack.etcd[0].revoke_lease_of(&key).await?;
    until_led(field, &on).await?;
    field.whole("lease revoked", &on).await?;

    let on = leader_name(field);
    let other = (field.run.leader + 1) % field.run.stack.members.len();
    let other = field.run.stack.members[other].name.clone();
    field.run.began = clock::now();
    field.run.stack.etcd[0].write(&key, &other).await?;
    tokio::time::sleep(FOREIGN).await;
    // The name stands there without a lease: nobody but who wrote it can take it away, unless that member took it.
    if field.run.stack.etcd[0].read(&key).await? == other
        && !field
            .run
            .stack
            .leader()
            .await
            .is_ok_and(|now| field.run.stack.members[now].name == other)
    {
        field.run.stack.etcd[0].delete(&key).await?;
        field.run.note(format!(
            "the key with the name of {other} was removed by hand"
        ));
    }
    until_led(field, &on).await?;
    field.whole("leader key overwritten", &on).await?;
    Ok(())
}

/// Waits until somebody leads and clients write by that: the key was gone when this began.
async fn until_led(field: &mut Field<'_>, before: &str) -> Result<()> {
    let began = clock::now();
    let is_led = async |stack: &crate::stack::Stack| stack.leader().await.is_ok();
    field
        .run
        .stack
        .until("a leader", LEADER_LIMIT, is_led)
        .await?;
    let now = field.run.stack.leader().await?;
    let now = field.run.stack.members[now].name.clone();
    field.run.note(format!(
        "{before} led, {now} leads {:.2} s later",
        clock::now().since(began).as_secs_f64()
    ));
    Ok(())
}
