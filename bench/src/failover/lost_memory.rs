//! etcd loses its memory, or comes back with an old one: who leads goes on, and the keys are made anew (`ha.md` 8).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::etcd_gone::{
    END_LIMIT, READS_AGAIN, back_with_the_same, consents_are_possible, primaries,
};
use super::run::Run;
use crate::fault::store;
use crate::stack::Stack;
use crate::stack::member::SCOPE;

/// The keys must be anew within this after etcd serves again.
const ANEW_LIMIT: Duration = Duration::from_secs(30);
/// How long the new leader's writes are let go on before the store is lost.
const WRITES: Duration = Duration::from_secs(5);

/// All members of etcd are stopped, emptied and started at the same addresses.
pub async fn wiped(run: &mut Run<'_>) -> Result<()> {
    let before = run.stack.members[run.leader].postmaster();
    consents_are_possible(run).await?;
    run.began = clock::now();
    store::stop_all(run.stack).await?;
    store::wipe_all(run.stack)?;
    serves_again(run).await?;
    anew(run).await?;
    back_with_the_same(run, before).await
}

/// A backup is taken, leadership changes, more is written, and the backup comes back.
pub async fn restored(run: &mut Run<'_>) -> Result<()> {
    let backup = beyond_a_backup(run).await?;
    let before = run.stack.members[run.leader].postmaster();
    run.began = clock::now();
    store::stop_all(run.stack).await?;
    store::restore_all(run.stack, &backup).await?;
    serves_again(run).await?;
    anew(run).await?;
    back_with_the_same(run, before).await
}

/// A backup of etcd, and a cluster that has gone on since under another leader.
async fn beyond_a_backup(run: &mut Run<'_>) -> Result<PathBuf> {
    let backup = run.stack.folder().join("n1").join("etcd.backup");
    run.stack.etcd[0].back_up(&backup).await?;
    let old = run.leader;
    run.stack.trunkline(&["switchover", "--force"]).await?;
    let converged = run.stack.until_converged(ANEW_LIMIT).await?;
    run.leader = converged.leader;
    if run.leader == old {
        anyhow::bail!("the switchover has not changed the leader");
    }
    consents_are_possible(run).await?;
    tokio::time::sleep(WRITES).await;
    Ok(backup)
}

/// A replica's agent is lost and etcd emptied: nobody leads until the operator accepts the store.
pub async fn accepted(run: &mut Run<'_>) -> Result<()> {
    // The command reads the file of the first member, whose agent must live.
    let lost = if run.leader == 1 { 2 } else { 1 };
    consents_are_possible(run).await?;
    let before = generation(run.stack).await;
    run.began = clock::now();
    run.stack.members[lost].end(Signal::KILL, END_LIMIT).await?;
    store::stop_all(run.stack).await?;
    store::wipe_all(run.stack)?;
    serves_again(run).await?;
    nobody_leads(run).await?;
    an_operator_is_told(run).await;
    let said = accept(run).await?;
    let name = run.stack.members[lost].name.clone();
    if !said.contains(&format!("No answer: {name}")) {
        run.fault(format!(
            "the command did not name {name}, which does not answer"
        ));
    }
    let after = generation(run.stack).await;
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    if number(&after) <= number(&before) {
        run.fault(format!("the generation was {before:?} and is {after:?}"));
    }
    run.stack.members[lost].start()
}

/// What stands there is another cluster's, so that it is not overwritten by itself; everybody consents meanwhile.
pub async fn accepted_while_led(run: &mut Run<'_>) -> Result<()> {
    let before = run.stack.members[run.leader].postmaster();
    consents_are_possible(run).await?;
    let number = generation(run.stack).await;
    let initialize = format!("/service/{SCOPE}/initialize");
    run.began = clock::now();
    let etcd = run.stack.etcd.first().context("no etcd")?;
    let system = etcd.read(&initialize).await?;
    etcd.write(&initialize, "7000000000000000000").await?;
    all_disbelieve(run).await?;
    tokio::time::sleep(run.ttl() * 2).await;
    if generation(run.stack).await != number {
        run.fault("the keys of another cluster were overwritten without an operator");
    }
    an_operator_is_told(run).await;
    accept(run).await?;
    let etcd = run.stack.etcd.first().context("no etcd")?;
    let now = etcd.read(&initialize).await?;
    if now != system {
        run.fault(format!("initialize was {system:?} and is {now:?}"));
    }
    back_with_the_same(run, before).await
}

/// Emptied in a pause, when no consents are asked for and nothing is made anew by itself.
pub async fn accepted_in_pause(run: &mut Run<'_>) -> Result<()> {
    let (leader, name) = (run.leader, run.stack.members[run.leader].name.clone());
    let before = run.stack.members[leader].postmaster();
    run.stack.trunkline(&["pause", "--wait"]).await?;
    run.began = clock::now();
    store::stop_all(run.stack).await?;
    store::wipe_all(run.stack)?;
    serves_again(run).await?;
    all_disbelieve(run).await?;
    // Beyond a ttl no lease of the store before lives.
    tokio::time::sleep(run.ttl() + Duration::from_secs(1)).await;
    an_operator_is_told(run).await;
    accept(run).await?;
    if run.stack.leader().await.ok() != Some(leader) {
        run.fault("leadership moved");
    }
    let asleep = format!("/service/{SCOPE}/trunkline/disarmed/{name}");
    let etcd = run.stack.etcd.first().context("no etcd")?;
    if !etcd.exists(&asleep).await? {
        run.fault(format!(
            "nothing says any more that the fence of {name} sleeps"
        ));
    }
    run.stack.trunkline(&["resume", "--wait"]).await?;
    back_with_the_same(run, before).await
}

/// Nobody knows anything but what lies in the data directories.
pub async fn accepted_after_blackout(run: &mut Run<'_>) -> Result<()> {
    consents_are_possible(run).await?;
    run.began = clock::now();
    power_off(run).await?;
    store::stop_all(run.stack).await?;
    store::wipe_all(run.stack)?;
    nobody_leads_before_it_is_accepted(run).await
}

/// The same with an old copy: what lies beside the data says that more was known.
pub async fn restored_after_blackout(run: &mut Run<'_>) -> Result<()> {
    let backup = beyond_a_backup(run).await?;
    run.began = clock::now();
    power_off(run).await?;
    store::stop_all(run.stack).await?;
    store::restore_all(run.stack, &backup).await?;
    nobody_leads_before_it_is_accepted(run).await
}

async fn nobody_leads_before_it_is_accepted(run: &mut Run<'_>) -> Result<()> {
    serves_again(run).await?;
    for member in &mut run.stack.members {
        member.start()?;
    }
    all_disbelieve(run).await?;
    // The old leader's server stays down: nothing says yet that it would be the cluster's.
    tokio::time::sleep(run.ttl() * 2).await;
    for index in 0..run.stack.members.len() {
        if run.stack.members[index].ask_primary().await? {
            let name = run.stack.members[index].name.clone();
            run.fault(format!("{name} leads in a store that nobody accepted"));
        }
    }
    an_operator_is_told(run).await;
    accept(run).await?;
    Ok(())
}

/// Ends everything of every member at once, and takes away what is kept in memory.
async fn power_off(run: &mut Run<'_>) -> Result<()> {
    for member in &run.stack.members {
        for process in member.everything() {
            process.signal(Signal::KILL);
        }
    }
    for member in &mut run.stack.members {
        member.end(Signal::KILL, END_LIMIT).await?;
        member.forget_memory()?;
    }
    run.stack
        .until(
            "the end of every server process",
            END_LIMIT,
            async |stack| {
                let mut members = stack.members.iter();
                members.all(|member| member.servers().is_empty())
            },
        )
        .await
}

/// Every agent that runs says that it does not believe the store.
async fn all_disbelieve(run: &mut Run<'_>) -> Result<()> {
    run.stack
        .until("nobody to believe etcd", ANEW_LIMIT, async |stack| {
            for member in &stack.members {
                let status = member.rest("/patroni").await.ok();
                let says = status
                    .as_ref()
                    .and_then(|s| s.pointer("/trunkline/dcs/went_back"));
                if says.and_then(serde_json::Value::as_bool) != Some(true) {
                    return false;
                }
            }
            true
        })
        .await
}

/// Who looks at the cluster reads what to do.
async fn an_operator_is_told(run: &mut Run<'_>) {
    let said = match run.stack.trunkline(&["list"]).await {
        Ok(said) => said,
        Err(error) => format!("{error:#}"),
    };
    if !said.contains("accept-dcs") {
        run.fault(format!("trunkline list names no way out: {said}"));
    }
}

async fn accept(run: &mut Run<'_>) -> Result<String> {
    let began = clock::now();
    let said = run.stack.trunkline(&["accept-dcs", "--force"]).await?;
    run.note(format!(
        "accept-dcs took {:.2} s and said:",
        clock::now().since(began).as_secs_f64()
    ));
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        run.note(format!("  {line}"));
    }
    Ok(said)
}

async fn serves_again(run: &mut Run<'_>) -> Result<()> {
    store::start_all(run.stack).await?;
    run.note(format!("etcd served again after {:.1} s", since(run.began)));
    Ok(())
}

fn since(began: Moment) -> f64 {
    clock::now().since(began).as_secs_f64()
}

async fn generation(stack: &Stack) -> String {
    let key = format!("/service/{SCOPE}/trunkline/generation");
    match stack.etcd.first() {
        Some(etcd) => etcd.read(&key).await.unwrap_or_default(),
        None => String::new(),
    }
}

/// The leader has made the keys anew, and the key names it.
async fn anew(run: &mut Run<'_>) -> Result<()> {
    let name = run.stack.members[run.leader].name.clone();
    run.stack
        .until("the keys to be made anew", ANEW_LIMIT, async |stack| {
            !generation(stack).await.is_empty()
                && stack.leader_key().await.is_ok_and(|leader| leader == name)
        })
        .await?;
    run.note(format!(
        "the keys were anew after {:.1} s",
        since(run.began)
    ));
    let number = generation(run.stack).await;
    run.note(format!("the generation is {number}"));
    Ok(())
}

/// A ttl after the last consent nobody is a primary, and nobody becomes one.
async fn nobody_leads(run: &mut Run<'_>) -> Result<()> {
    let deadline = clock::now() + run.ttl() + READS_AGAIN;
    loop {
        match primaries(run).await {
            Some(primaries) if primaries.is_empty() => break,
            Some(_) | None if clock::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            found => {
                let found = found.context("a member does not answer")?;
                run.fault(format!("primaries without consent: {found:?}"));
                return Ok(());
            }
        }
    }
    run.note(format!(
        "nobody was a primary {:.1} s after the fault",
        since(run.began)
    ));
    tokio::time::sleep(run.ttl() * 2).await;
    if let Some(found) = primaries(run).await
        && !found.is_empty()
    {
        run.fault(format!(
            "primaries in a store that nobody accepted: {found:?}"
        ));
    }
    Ok(())
}
