//! A node whose wall clock jumps.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio_postgres::Client;
use trunkline_shared::service::clock;

use super::LOOK;
use crate::faults::site::Field;

/// By how many seconds.
const HOUR: i64 = 3600;
/// What comes so near to it is it.
const NEARLY: f64 = 60.0;
/// A server that runs must see it within this.
const SEEN: Duration = Duration::from_secs(5);

/// An hour back and an hour ahead, on the leader's node and then on a standby's. In this order, since libfaketime tells a
/// signal handler that interrupts a wait the machine's time: by a clock that is ahead of it each timer of PostgreSQL would
/// seem to have come an hour early, and deadlocks would stay.
pub async fn wall_clock_jumps(field: &mut Field<'_>) -> Result<()> {
    let (leader, count) = (field.run.leader, field.run.stack.members.len());
    for member in [leader, (leader + 1) % count] {
        jumps(field, member, -HOUR, "an hour back").await?;
        jumps(field, member, 0, "an hour ahead").await?;
    }
    Ok(())
}

async fn jumps(field: &mut Field<'_>, member: usize, seconds: i64, what: &str) -> Result<()> {
    let leader = field.run.leader;
    let members = &field.run.stack.members;
    let on = members[member].name.clone();
    let wall_clock = members[member].wall_clock.clone();
    let wall_clock = wall_clock.context("the node has no wall clock of its own")?;
    let postmasters: Vec<_> = members.iter().map(|member| member.postmaster()).collect();
    let since_before = members[member].sql("postgres").await?;
    field.run.began = clock::now();
    wall_clock.set(seconds)?;
    if !is_seen(&since_before, seconds).await? {
        field.missed(format!(
            "PostgreSQL on {on} does not see that its clock jumped {what}: nothing is shown"
        ));
    }
    // Longer than a lease lives, and than replication may be silent.
    tokio::time::sleep(field.run.ttl() * 2).await;
    let now = field.whole(&format!("clock {what}"), &on).await?;
    let members = field.run.stack.members.iter();
    let live: Vec<_> = members.map(|member| member.postmaster()).collect();
    if now.leader != leader || live != postmasters {
        field.missed(format!(
            "leadership moved, or a PostgreSQL did not live on, as the clock of {on} jumped {what}"
        ));
    }
    Ok(())
}

/// Whether a session's server, which was there before, comes to go by a clock so far from this machine's.
async fn is_seen(client: &Client, seconds: i64) -> Result<bool> {
    let query = "SELECT extract(epoch FROM clock_timestamp())::float8";
    let deadline = clock::now() + SEEN;
    loop {
        let theirs: f64 = client.query_one(query, &[]).await?.get(0);
        let ours = clock::wall_clock().0 as f64 / 1e6;
        if (theirs - ours - seconds as f64).abs() < NEARLY {
            return Ok(true);
        }
        if clock::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}
