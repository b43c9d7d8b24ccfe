//! One leader, and everyone else streaming from it on its timeline: by REST and by SQL.

use anyhow::{Context, Result, bail};

use crate::stack::Stack;
use crate::stack::member::Member;

/// The cluster as it is when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converged {
    /// The leader's index among the members.
    pub leader: usize,
    /// Its timeline.
    pub timeline: u64,
}

/// Is it converged at this moment? The error says what is missing.
pub async fn now(stack: &Stack) -> Result<Converged> {
    let leader = stack.leader().await?;
    let key = stack.leader_key().await?;
    if key != stack.members[leader].name {
        bail!(
            "{} says it leads, the leader key says {key:?}",
            stack.members[leader].name
        );
    }
    let timeline = timeline_by_rest(&stack.members[leader]).await?;
    for (index, member) in stack.members.iter().enumerate() {
        if index != leader {
            let own = timeline_by_rest(member).await?;
            if own != timeline {
                bail!(
                    "{} is on timeline {own}, the leader on {timeline}",
                    member.name
                );
            }
        }
    }
    let names = senders(&stack.members[leader]).await?;
    for (index, member) in stack.members.iter().enumerate() {
        if index == leader {
            continue;
        }
        if !names.contains(&member.name) {
            bail!(
                "{} is not among those that stream from the leader: {names:?}",
                member.name
            );
        }
        receives(member, timeline).await?;
    }
    Ok(Converged { leader, timeline })
}

async fn timeline_by_rest(member: &Member) -> Result<u64> {
    let status = member.rest("/patroni").await?;
    let timeline = status["timeline"].as_u64();
    timeline.with_context(|| format!("{} names no timeline: {status}", member.name))
}

/// The application names of everyone who streams from the leader.
async fn senders(leader: &Member) -> Result<Vec<String>> {
    let client = leader.sql("postgres").await?;
    let rows = client
        .query(
            "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Is this member in recovery, its receiver streaming on this timeline?
async fn receives(member: &Member, timeline: u64) -> Result<()> {
    let client = member.sql("postgres").await?;
    let row = client
        .query_opt(
            "SELECT pg_is_in_recovery(), status, received_tli FROM pg_stat_wal_receiver",
            &[],
        )
        .await?
        .with_context(|| format!("{} has no WAL receiver", member.name))?;
    let (in_recovery, status, received): (bool, String, i32) = (row.get(0), row.get(1), row.get(2));
    if !in_recovery || status != "streaming" || u64::try_from(received) != Ok(timeline) {
        bail!(
            "{}: in recovery {in_recovery}, receiver {status} on timeline {received}, leader on {timeline}",
            member.name
        );
    }
    Ok(())
}
