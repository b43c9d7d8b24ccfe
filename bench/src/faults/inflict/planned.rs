//! Planned changes of leader: back to back, beside a transaction, to a member that lags, with a candidate that is hurt.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::leader_name;
use crate::faults::site::{BESIDE, Field};
use crate::stack::APP;
use crate::stack::member::{MAXIMUM_LAG, Synchronous};
use crate::stack::proc::ProcessId;
use crate::switchover::candidate::bars::Outcome;
use crate::switchover::candidate::harm::Harm;
use crate::switchover::candidate::hurt_one;
use crate::switchover::until_caught_up;

/// Between a whole cluster and the next change.
const BETWEEN: Duration = Duration::from_millis(500);
/// Who hurts the candidate in turn.
const HARMS: [Harm; 4] = [
    Harm::KillNode,
    Harm::KillPostgres,
    Harm::FreezeNode,
    Harm::PauseReplay,
];

/// Changes, each once the cluster is whole.
pub async fn back_to_back(field: &mut Field<'_>) -> Result<()> {
    for number in 1..=field.settings.changes {
        tokio::time::sleep(BETWEEN).await;
        let old = field.run.leader;
        until_caught_up(field.run.stack, old).await?;
        field.run.began = clock::now();
        let said = field
            .run
            .stack
            .trunkline(&["switchover", "--force"])
            .await?;
        let on = leader_name(field);
        field.whole(&format!("change {number}"), &on).await?;
        if field.run.leader == old {
            let text = format!("change {number} was made and {on} leads as before: {said}");
            field.evidence.faults.push(text);
        }
    }
    Ok(())
}

/// One client's transaction does not end: either the change is given up and it goes on, or it hears that it was undone.
pub async fn beside_transaction(field: &mut Field<'_>) -> Result<()> {
    let old = field.run.leader;
    until_caught_up(field.run.stack, old).await?;
    let (client, connection) = field.entrance().connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let begin = format!(
        "BEGIN; INSERT INTO moved VALUES ({}, 1, 1)",
        field.first + BESIDE
    );
    client.batch_execute(&begin).await?;
    let on = leader_name(field);
    field.run.began = clock::now();
    let said = field.run.stack.trunkline(&["switchover", "--force"]).await;
    let took = clock::now().since(field.run.began).as_secs_f64();
    let ended = client.batch_execute("COMMIT").await;
    let text = match (&said, &ended) {
        (Err(_), Ok(())) => format!("given up after {took:.1} s; the transaction was committed"),
        (Ok(_), Err(error)) => format!("made after {took:.1} s; the transaction heard: {error}"),
        (Ok(_), Ok(())) => format!("made after {took:.1} s; the transaction was committed"),
        (Err(refused), Err(error)) => {
            let text =
                format!("the change was refused ({refused:#}), the transaction too: {error}");
            field.evidence.faults.push(text.clone());
            text
        }
    };
    field.evidence.notes.push(text);
    drop(client);
    field.whole("change beside a transaction", &on).await?;
    if said.is_err() && field.run.leader != old {
        let text = format!("the change was refused, and {on} does not lead any more");
        field.evidence.faults.push(text);
    }
    let count = "SELECT count(*) FROM moved WHERE client = $1";
    let direct = field.run.stack.members[field.run.leader].sql(APP).await?;
    let number = field.first + BESIDE;
    let rows: i64 = direct.query_one(count, &[&number]).await?.get(0);
    if ended.is_ok() != (rows == 1) {
        let text = format!("the transaction ended with {ended:?}, and {rows} rows of it are there");
        field.evidence.faults.push(text);
    }
    Ok(())
}

/// A candidate that does not replay, and one that does not receive.
pub async fn to_lagging(field: &mut Field<'_>) -> Result<()> {
    let candidate = (field.run.leader + 1) % field.run.stack.members.len();
    let on = field.run.stack.members[candidate].name.clone();
    let direct = field.run.stack.members[candidate].sql(APP).await?;

    until_caught_up(field.run.stack, field.run.leader).await?;
    field.run.began = clock::now();
    direct.batch_execute("SELECT pg_wal_replay_pause()").await?;
    is_refused(field, &on, "does not replay").await?;
    direct
        .batch_execute("SELECT pg_wal_replay_resume()")
        .await?;
    field.whole("to who does not replay", &on).await?;

    until_caught_up(field.run.stack, field.run.leader).await?;
    let receiver = direct
        .query_one("SELECT pid FROM pg_stat_wal_receiver", &[])
        .await?;
    let receiver = ProcessId::now(receiver.get(0)).context("the candidate has no WAL receiver")?;
    field.run.began = clock::now();
    receiver.signal(Signal::STOP);
    let leader = field.run.stack.members[field.run.leader].sql(APP).await?;
    let bytes = i32::try_from(2 * MAXIMUM_LAG)?;
    let grow = "SELECT pg_logical_emit_message(false, 'trunkline-bench', repeat('x', $1))";
    leader.execute(grow, &[&bytes]).await?;
    is_refused(field, &on, "does not receive").await?;
    receiver.signal(Signal::CONT);
    field.whole("to who does not receive", &on).await?;
    Ok(())
}

async fn is_refused(field: &mut Field<'_>, candidate: &str, why: &str) -> Result<()> {
    // The change is asked for at a moment when the record of the candidate shows it.
    let shown = field.run.stack.timing.loop_wait * 2;
    tokio::time::sleep(Duration::from_secs(u64::from(shown))).await;
    let words = ["switchover", "--candidate", candidate, "--force"];
    match field.run.stack.trunkline(&words).await {
        Err(error) => {
            let text = error.to_string();
            let last = text.lines().rfind(|line| !line.trim().is_empty());
            let text = format!("{candidate} {why}: {}", last.unwrap_or_default());
            field.evidence.notes.push(text);
        }
        Ok(said) => {
            let text = format!("a change to {candidate}, which {why}, was made: {said}");
            field.evidence.faults.push(text);
        }
    }
    Ok(())
}

/// The candidate dies, hangs or lags at a step that is drawn.
pub async fn candidate_hurt(field: &mut Field<'_>) -> Result<()> {
    let writes = field.run.writes.clone();
    for (number, harm) in (0..).zip(HARMS) {
        tokio::time::sleep(BETWEEN).await;
        let on = leader_name(field);
        field.run.began = clock::now();
        let seed = field.settings.seed.wrapping_add(number);
        let (outcome, step) = hurt_one(field.run.stack, harm, seed, &writes).await?;
        let step = step.map_or("too late", |step| step.name());
        let what = format!("{} ({step}): {}", harm.name(), outcome.name());
        // Commits of a new leader that has no standby yet wait for nobody in this mode, and it alone has them.
        let is_on = field.conditions.synchronous == Some(Synchronous::On);
        let is_met = match outcome {
            Outcome::Nobody => false,
            Outcome::OnlyIt => is_on,
            Outcome::RolledBack | Outcome::MovedToIt | Outcome::Another | Outcome::PassedOn => true,
        };
        if !is_met {
            field.missed(format!(
                "{what}: nobody led before the candidate was healed"
            ));
        }
        field.whole(&what, &on).await?;
    }
    Ok(())
}
