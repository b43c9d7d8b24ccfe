//! Faults of the store: its leader elsewhere, a member frozen or dead, a rolling restart.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use crate::stack::Stack;

/// How long etcd may take until one member leads, or until one that was started again serves.
const LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

/// Makes the etcd member on this node the leader of the store.
pub async fn lead_from(stack: &Stack, index: usize) -> Result<()> {
    let deadline = clock::now() + LIMIT;
    let wanted = stack.etcd[index].member_id().await?;
    loop {
        let leader = leader(stack).await?;
        if leader == index {
            return Ok(());
        }
        // Refused while a transfer is under way; asked again until the store says that it is so.
        stack.etcd[leader].move_leader(&wanted).await.ok();
        if clock::now() >= deadline {
            bail!(
                "etcd member {} did not become leader",
                stack.etcd[index].name
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The index of the etcd member that leads.
pub async fn leader(stack: &Stack) -> Result<usize> {
    let deadline = clock::now() + LIMIT;
    loop {
        for (index, etcd) in stack.etcd.iter().enumerate() {
            if etcd.is_leader().await.unwrap_or(false) {
                return Ok(index);
            }
        }
        if clock::now() >= deadline {
            bail!("no etcd member leads");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Restarts all members, each only once the one before serves again.
pub async fn rolling_restart(stack: &mut Stack) -> Result<()> {
    for etcd in &mut stack.etcd {
        etcd.end(Signal::TERM).await?;
        etcd.start()?;
        let deadline = clock::now() + LIMIT;
        while !etcd.is_healthy().await {
            etcd.must_live()?;
            if clock::now() >= deadline {
                bail!("etcd member {} does not serve after its restart", etcd.name);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Stops every member.
pub async fn stop_all(stack: &mut Stack) -> Result<()> {
    for etcd in &mut stack.etcd {
        etcd.end(Signal::TERM).await?;
    }
    Ok(())
}

/// Starts every member and waits until all serve.
pub async fn start_all(stack: &mut Stack) -> Result<()> {
    for etcd in &mut stack.etcd {
        etcd.start()?;
    }
    let deadline = clock::now() + LIMIT;
    for etcd in &mut stack.etcd {
        while !etcd.is_healthy().await {
            etcd.must_live()?;
            if clock::now() >= deadline {
                bail!("etcd member {} does not serve after its start", etcd.name);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Takes every stopped member's data away: each begins as a member of a new store at the same addresses.
pub fn wipe_all(stack: &Stack) -> Result<()> {
    stack.etcd.iter().try_for_each(|etcd| etcd.wipe())
}

/// Brings every stopped member's data back from a backup.
pub async fn restore_all(stack: &Stack, backup: &Path) -> Result<()> {
    for etcd in &stack.etcd {
        etcd.restore(backup).await?;
    }
    Ok(())
}

/// Freezes one member for a time, then kills it, then starts it again after as long.
pub async fn freeze_then_kill(stack: &mut Stack, index: usize, each: Duration) -> Result<()> {
    let etcd = stack.etcd.get_mut(index).context("no such etcd member")?;
    etcd.signal(Signal::STOP);
    tokio::time::sleep(each).await;
    etcd.end(Signal::KILL).await?;
    tokio::time::sleep(each).await;
    etcd.start()
}
