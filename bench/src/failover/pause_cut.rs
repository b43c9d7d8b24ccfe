//! A leader that is cut off while the cluster is paused, and a resume before it is back: its fence sleeps and its
//! PostgreSQL accepts writes, so nobody may be promoted beside it, however long it is gone (`ha.md` 7).

use anyhow::{Context, Result};
use trunkline_shared::service::clock;

use super::run::Run;
use crate::fault::{node, store};
use crate::stack::Stack;

/// Pauses, cuts the leader off for several TTLs, resumes meanwhile, and connects it again.
pub async fn pause_cut(run: &mut Run<'_>) -> Result<()> {
    let (leader, name) = (run.leader, run.stack.members[run.leader].name.clone());
    store::lead_from(run.stack, (leader + 1) % run.stack.etcd.len()).await?;
    run.stack.trunkline(&["pause", "--wait"]).await?;
    let postmaster = run.stack.members[leader].postmaster();
    run.began = clock::now();
    node::cut_off(&run.stack.members[leader]).await?;
    let is_free = async |stack: &Stack| stack.leader_key().await.is_ok_and(|key| key.is_empty());
    run.stack
        .until("the end of the leader key", run.ttl() * 3, is_free)
        .await?;
    tokio::time::sleep(run.ttl() * 2).await;
    nobody_else(run, "while the cluster was paused").await?;
    let said = run.stack.trunkline(&["resume"]).await?;
    if !said.contains(&name) {
        run.fault(format!(
            "resume did not name {name}, whose fence sleeps: {said}"
        ));
    }
    tokio::time::sleep(run.ttl() * 3).await;
    nobody_else(run, "after the resume").await?;
    let lived = run.stack.members[leader].postmaster();
    if lived.is_none() || lived != postmaster {
        run.fault(format!(
            "PostgreSQL of {name} did not live through the pause"
        ));
    }
    node::reconnect(&run.stack.members[leader]).await?;
    run.note(format!(
        "{name} was cut off for {:.1} s, paused and then resumed; nobody was promoted beside it",
        clock::now().since(run.began).as_secs_f64()
    ));
    Ok(())
}

/// Everybody but the old leader is in recovery.
async fn nobody_else(run: &mut Run<'_>, when: &str) -> Result<()> {
    for index in 0..run.stack.members.len() {
        let member = &run.stack.members[index];
        let client = member.sql("postgres").await;
        let client = client.with_context(|| format!("{} does not answer", member.name))?;
        let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
        let name = member.name.clone();
        match (index == run.leader, row.get(0)) {
            (false, false) => run.fault(format!("{name} was promoted {when}")),
            (true, true) => run.fault(format!("{name} was demoted {when}")),
            (false, true) | (true, false) => {}
        }
    }
    Ok(())
}
