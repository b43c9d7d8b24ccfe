//! etcd is gone, for all or for the leader alone: what failsafe mode promises (`ha.md` 6), and what it does when a
//! member is lost as well.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::run::Run;
use crate::fault::{node, store};
use crate::stack::proc::ProcessId;

/// A leader must show again within this after etcd is back.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// Bounds the end of a killed agent.
pub(super) const END_LIMIT: Duration = Duration::from_secs(10);
/// What is granted beyond the deadline for PostgreSQL to stop and serve reads again.
pub(super) const READS_AGAIN: Duration = Duration::from_secs(15);

/// All of etcd is stopped: nothing may be noticed.
pub async fn for_all(run: &mut Run<'_>) -> Result<()> {
    let before = run.stack.members[run.leader].postmaster();
    consents_are_possible(run).await?;
    run.began = clock::now();
    store::stop_all(run.stack).await?;
    tokio::time::sleep(run.outage).await;
    goes_on_by_consent(run).await?;
    store::start_all(run.stack).await?;
    back_with_the_same(run, before).await
}

/// The leader's node alone does not reach it: the others see the key end, and must not run.
pub async fn from_leader(run: &mut Run<'_>) -> Result<()> {
    let (leader, before) = (run.leader, run.stack.members[run.leader].postmaster());
    let elsewhere = (leader + 1) % run.stack.etcd.len();
    store::lead_from(run.stack, elsewhere).await?;
    consents_are_possible(run).await?;
    run.began = clock::now();
    node::cut_off_from_store(&run.stack.members[leader]).await?;
    tokio::time::sleep(run.outage).await;
    let outcome = goes_on_by_consent(run).await;
    let key = run.stack.leader_key().await;
    run.note(format!(
        "the leader key at the end of the outage: {key:?}; the leader's node reached no etcd"
    ));
    node::reconnect_to_store(&run.stack.members[leader]).await?;
    outcome?;
    back_with_the_same(run, before).await
}

/// The agent that is started again goes on by what its predecessor kept.
pub async fn agent_killed(run: &mut Run<'_>) -> Result<()> {
    let leader = run.leader;
    let before = run.stack.members[leader].postmaster();
    consents_are_possible(run).await?;
    run.began = clock::now();
    store::stop_all(run.stack).await?;
    tokio::time::sleep(run.outage / 2).await;
    run.stack.members[leader]
        .end(Signal::KILL, END_LIMIT)
        .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    run.stack.members[leader].start()?;
    tokio::time::sleep(run.outage / 2).await;
    goes_on_by_consent(run).await?;
    store::start_all(run.stack).await?;
    back_with_the_same(run, before).await
}

/// One consent is missing: the leader is read-only from its deadline on, and nobody else is a primary.
pub async fn replica_lost(run: &mut Run<'_>) -> Result<()> {
    let lost = (run.leader + 1) % run.stack.members.len();
    consents_are_possible(run).await?;
    run.began = clock::now();
    store::stop_all(run.stack).await?;
    run.stack.members[lost].end(Signal::KILL, END_LIMIT).await?;
    tokio::time::sleep(run.ttl()).await;
    let deadline = clock::now() + READS_AGAIN;
    loop {
        match primaries(run).await {
            Some(primaries) if primaries.is_empty() => break,
            Some(_) | None if clock::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            found => {
                run.fault(format!(
                    "a ttl and {READS_AGAIN:?} after etcd went, primaries: {found:?}"
                ));
                break;
            }
        }
    }
    run.note(format!(
        "nobody was a primary and all served reads {:.1} s after etcd went",
        clock::now().since(run.began).as_secs_f64()
    ));
    tokio::time::sleep(run.outage.saturating_sub(clock::now().since(run.began))).await;
    if let Some(primaries) = primaries(run).await
        && !primaries.is_empty()
    {
        run.fault(format!(
            "primaries without etcd and without consent: {primaries:?}"
        ));
    }
    run.stack.members[lost].start()?;
    store::start_all(run.stack).await?;
    led_again(run).await
}

/// Whose PostgreSQL is not in recovery; `None` while one does not answer.
pub async fn primaries(run: &Run<'_>) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for member in &run.stack.members {
        let client = member.sql("postgres").await.ok()?;
        let row = client
            .query_one("SELECT pg_is_in_recovery()", &[])
            .await
            .ok()?;
        let is_in_recovery: bool = row.get(0);
        if !is_in_recovery {
            found.push(member.name.clone());
        }
    }
    Some(found)
}

/// Every member sees the list with every member.
pub async fn consents_are_possible(run: &mut Run<'_>) -> Result<()> {
    let count = run.stack.members.len();
    run.stack
        .until("every member to be listed", LEADER_LIMIT, async |stack| {
            let mut listed = true;
            for member in &stack.members {
                let list = member.rest("/failsafe").await.ok();
                let names = list.and_then(|list| list.as_object().map(|names| names.len()));
                listed &= names == Some(count);
            }
            listed
        })
        .await
}

/// The leader says that it goes on by consent, and says yes to those who ask for the primary.
async fn goes_on_by_consent(run: &mut Run<'_>) -> Result<()> {
    let leader = run.leader;
    let status = run.stack.members[leader].rest("/patroni").await;
    let status = status.context("the leader's agent does not answer")?;
    if status.get("failsafe_mode_is_active") != Some(&serde_json::Value::Bool(true)) {
        run.fault(format!(
            "the leader does not say that it goes on by consent: {status}"
        ));
    }
    if run.stack.members[leader].rest("/primary").await.is_err() {
        run.fault("the leader does not answer /primary with 200");
    }
    Ok(())
}

pub(super) async fn back_with_the_same(run: &mut Run<'_>, before: Option<ProcessId>) -> Result<()> {
    let leader = run.leader;
    led_again(run).await?;
    // Beyond one TTL a lease that nobody renews would have ended.
    tokio::time::sleep(run.ttl() + Duration::from_secs(1)).await;
    let now = run.stack.members[leader].postmaster();
    if before.is_none() || now != before {
        run.fault(format!("the postmaster was {before:?} and is {now:?}"));
    }
    if run.stack.leader().await.ok() != Some(leader) {
        run.fault("leadership moved");
    }
    Ok(())
}

async fn led_again(run: &mut Run<'_>) -> Result<()> {
    run.stack
        .until("a leader", LEADER_LIMIT, async |stack| {
            stack.leader().await.is_ok()
        })
        .await
}
