//! Disks without room: the leader's nearly full, then all of them full. Disks that stand still, or fail.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use trunkline_shared::service::clock;

use super::{LEADER_LIMIT, LOOK, another_writes, leader_name};
use crate::failover::sequence::another_leads;
use crate::fault::synced;
use crate::faults::beside::Beside;
use crate::faults::site::Field;
use crate::stack::volume;

/// Less than two segments of WAL, which is what an agent takes for nearly full.
const NEARLY: u64 = 24 * 1024 * 1024;
/// By how much a write takes longer than a ttl.
const SLOWER: Duration = Duration::from_millis(500);
/// How long all disks stay full.
const FULL: Duration = Duration::from_secs(15);

fn home(field: &Field<'_>, member: usize) -> Result<PathBuf> {
    let data = &field.run.stack.members[member].data_dir;
    let home = data.parent().context("the data directory has no folder")?;
    Ok(home.to_owned())
}

/// There is room elsewhere: leadership moves there as an operator would move it.
pub async fn nearly_full(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let home = home(field, old)?;
    field.run.began = clock::now();
    volume::fill(&home, NEARLY)?;
    another_writes(field, old).await?;
    field.run.note(format!(
        "another member led {:.1} s after the disk was nearly full, {} bytes were left",
        clock::now().since(field.run.began).as_secs_f64(),
        volume::free(&home)?
    ));
    volume::empty(&home)?;
    field.whole("disk nearly full", &on).await?;
    Ok(())
}

/// There is no room anywhere: nothing can be written, and once there is room everything goes on.
pub async fn all_full(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let homes: Result<Vec<_>> = (0..field.run.stack.members.len())
        .map(|member| home(field, member))
        .collect();
    let homes = homes?;
    field.run.began = clock::now();
    for home in &homes {
        volume::fill(home, 0)?;
    }
    stands_still(field).await?;
    tokio::time::sleep(FULL).await;
    for home in &homes {
        volume::empty(home)?;
    }
    let room = clock::now();
    field.whole("all disks full", &on).await?;
    field.run.note(format!(
        "the cluster was whole {:.1} s after there was room again",
        clock::now().since(room).as_secs_f64()
    ));
    Ok(())
}

/// No write comes back for more than a ttl, again and again, until another member leads.
pub async fn slow(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let home = home(field, old)?;
    let lasts = field.run.ttl() + SLOWER;
    field.run.began = clock::now();
    let deadline = field.run.began + LEADER_LIMIT;
    while !another_leads(field.run.stack, old).await {
        if clock::now() >= deadline {
            bail!("nobody took over within {LEADER_LIMIT:?} from who writes once in {lasts:?}");
        }
        let frozen = volume::freeze(&home)?;
        tokio::time::sleep(lasts).await;
        drop(frozen);
        tokio::time::sleep(LOOK).await;
    }
    another_writes(field, old).await?;
    field.whole("slow disk", &on).await?;
    Ok(())
}

/// No write comes back, and whoever waits for one cannot be killed.
pub async fn hangs(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let home = home(field, old)?;
    field.run.began = clock::now();
    let frozen = volume::freeze(&home)?;
    another_writes(field, old).await?;
    field.run.note(format!(
        "another member led and clients wrote {:.1} s after the disk stood still",
        clock::now().since(field.run.began).as_secs_f64()
    ));
    drop(frozen);
    field.whole("disk hangs", &on).await?;
    Ok(())
}

/// What is written is not kept, and PostgreSQL is told so: that one, and whatever is started on that disk until another
/// member leads.
pub async fn fsync_fails(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let data_dir = field.run.stack.members[old].data_dir.clone();
    let folder = field.run.stack.folder().to_owned();
    field.run.began = clock::now();
    let began = field.run.began;
    let failing =
        Beside::start(
            |word| async move { synced::fail(&data_dir, &folder, || word.is_given()).await },
        );
    let written = another_writes(field, old).await;
    let took = clock::now().since(began).as_secs_f64();
    // If strace itself failed, that says more.
    let failed = failing.finish().await??;
    written?;
    if failed.calls == 0 {
        field.missed("no fsync failed: nothing is shown");
    }
    let again = failed.found.iter().skip(1);
    let again: Vec<_> = again
        .map(|at| format!("{:.2} s", at.since(began).as_secs_f64()))
        .collect();
    field.run.note(format!(
        "{} calls failed; on the broken disk PostgreSQL was started again {} times ({}); another member led and clients \
         wrote {took:.1} s after the first",
        failed.calls,
        again.len(),
        again.join(", ")
    ));
    field.whole("fsync fails", &on).await?;
    Ok(())
}

/// Writes need more WAL than there is room for: a segment more, each time the one before is given up.
async fn stands_still(field: &mut Field<'_>) -> Result<()> {
    let deadline = clock::now() + LEADER_LIMIT;
    let still = Duration::from_secs(2);
    while clock::now().since(field.run.writes.done()) < still {
        if let Ok(leader) = field.run.stack.leader().await
            && let Ok(direct) = field.run.stack.members[leader].sql("postgres").await
        {
            direct.batch_execute("SELECT pg_switch_wal()").await.ok();
        }
        if clock::now() >= deadline {
            bail!("with all disks full clients wrote on for {LEADER_LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
