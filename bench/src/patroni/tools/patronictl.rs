//! What patronictl does, and what must be true after it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use trunkline_shared::service::clock;

use super::super::rig::Rig;
use crate::stack::Stack;
use crate::stack::member::{Member, SCOPE};

/// What was asked for must show within this.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);

/// One command, or a few that belong together.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    List,
    Topology,
    Switchover,
    Failover,
    History,
    EditConfig,
    PendingRestart,
    PauseAndResume,
    Reinit,
    Restart,
    Reload,
    Version,
    QueryAndDsn,
    ScheduleAndFlush,
}

/// All of them, in their order.
pub const CHECKS: [(&str, Check); 14] = [
    ("list", Check::List),
    ("topology", Check::Topology),
    ("switchover", Check::Switchover),
    ("failover", Check::Failover),
    ("history", Check::History),
    ("edit-config, show-config", Check::EditConfig),
    (
        "edit-config of max_connections, restart --pending",
        Check::PendingRestart,
    ),
    ("pause, resume", Check::PauseAndResume),
    ("reinit", Check::Reinit),
    ("restart", Check::Restart),
    ("reload", Check::Reload),
    ("version", Check::Version),
    ("query, dsn", Check::QueryAndDsn),
    ("switchover --scheduled, flush", Check::ScheduleAndFlush),
];

impl Check {
    /// Does it and looks; says what was seen.
    pub async fn run(self, rig: &mut Rig) -> Result<String> {
        match self {
            Check::List => list(rig).await,
            Check::Topology => topology(rig).await,
            Check::Switchover => switchover(rig).await,
            Check::Failover => failover(rig).await,
            Check::History => history(rig).await,
            Check::EditConfig => edit_config(rig).await,
            Check::PendingRestart => pending_restart(rig).await,
            Check::PauseAndResume => pause_and_resume(rig).await,
            Check::Reinit => reinit(rig).await,
            Check::Restart => restart(rig).await,
            Check::Reload => reload(rig).await,
            Check::Version => version(rig).await,
            Check::QueryAndDsn => query_and_dsn(rig).await,
            Check::ScheduleAndFlush => schedule_and_flush(rig).await,
        }
    }
}

/// A member tells its position once in `loop_wait`: what is told must be true soon.
async fn list(rig: &mut Rig) -> Result<String> {
    let deadline = clock::now() + LIMIT;
    loop {
        match is_listed(rig).await {
            Err(_) if clock::now() < deadline => tokio::time::sleep(LOOK).await,
            outcome => return outcome,
        }
    }
}

/// One leader that runs, the others stream from it on its timeline without lag, and nothing else is told.
async fn is_listed(rig: &Rig) -> Result<String> {
    let rows = rig.list().await?;
    ensure!(rows.len() == rig.stack.members.len(), "{rows:?}");
    let leader = rig.leader().await?;
    let timeline = rows[0]["TL"].as_u64();
    for row in &rows {
        let is_leader = row["Member"] == leader.as_str();
        let (role, state) = match is_leader {
            true => ("Leader", "running"),
            false => ("Replica", "streaming"),
        };
        ensure!(row["Role"] == role && row["State"] == state, "{row}");
        ensure!(
            row["TL"].as_u64() == timeline && timeline.is_some(),
            "{row}"
        );
        ensure!(row["Cluster"] == SCOPE, "{row}");
        ensure!(is_leader || row["Replay Lag"] == 0, "{row}");
        ensure!(row["Pending restart"].is_null(), "{row}");
    }
    Ok(String::new())
}

async fn topology(rig: &mut Rig) -> Result<String> {
    let said = rig.patronictl(&["topology"]).await?;
    let leader = rig.leader().await?;
    for member in &rig.stack.members {
        let shown = match member.name == leader {
            true => format!("| {} ", member.name),
            false => format!("| + {} ", member.name),
        };
        ensure!(said.contains(&shown), "{shown:?} is not in {said}");
    }
    Ok(String::new())
}

async fn switchover(rig: &mut Rig) -> Result<String> {
    let (leader, candidate) = two(rig).await?;
    rig.switchover_by_patronictl(&candidate).await?;
    ensure!(
        rig.leader().await? == candidate,
        "{candidate} does not lead"
    );
    let said = format!("{leader} to {candidate}");
    rig.whole().await?;
    // What a promoted member is told to do is what it does already.
    list(rig).await?;
    Ok(said)
}

async fn failover(rig: &mut Rig) -> Result<String> {
    let (leader, candidate) = two(rig).await?;
    let said = rig
        .patronictl(&["failover", "--candidate", &candidate, "--force"])
        .await?;
    let done = format!("Successfully failed over to \"{candidate}\"");
    ensure!(said.contains(&done), "{said}");
    ensure!(
        rig.leader().await? == candidate,
        "{candidate} does not lead"
    );
    Ok(format!("{leader} to {candidate}"))
}

/// Every change of timeline has a row, the last with whoever leads.
async fn history(rig: &mut Rig) -> Result<String> {
    let text = rig.patronictl(&["history", "-f", "json"]).await?;
    let rows: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
    let last = rows.last().context("no history is told")?;
    let leader = rig.leader().await?;
    ensure!(
        last["New Leader"] == leader.as_str(),
        "{last}, {leader} leads"
    );
    let listed = rig.list().await?;
    let timeline = listed.first().and_then(|row| row["TL"].as_u64());
    let ended = last["TL"].as_u64();
    ensure!(
        ended.map(|ended| ended + 1) == timeline,
        "{last}, timeline {timeline:?}"
    );
    Ok(format!("{} rows", rows.len()))
}

async fn edit_config(rig: &mut Rig) -> Result<String> {
    let words = [
        "edit-config",
        "-s",
        "maximum_lag_on_failover=2097152",
        "-p",
        "work_mem=8MB",
    ];
    let all: Vec<_> = words.into_iter().chain(["--force"]).collect();
    rig.patronictl(&all).await?;
    let said = rig.patronictl(&["show-config"]).await?;
    for line in ["maximum_lag_on_failover: 2097152", "work_mem: 8MB"] {
        ensure!(said.contains(line), "{line} is not in {said}");
    }
    everywhere(rig, "work_mem", "8MB").await?;
    // Nobody is told to restart for what a reload has taken up.
    list(rig).await
}

async fn pending_restart(rig: &mut Rig) -> Result<String> {
    rig.patronictl(&["edit-config", "-p", "max_connections=120", "--force"])
        .await?;
    let pending = async |rig: &Rig| -> Result<usize> {
        let rows = rig.list().await?;
        Ok(rows
            .iter()
            .filter(|row| row["Pending restart"] == "*")
            .count())
    };
    until_told(rig, 3, &pending).await?;
    // Patroni's order: the primary first, or its replicas would not start with less than it has.
    for role in ["primary", "replica"] {
        let words = ["restart", SCOPE, "--pending", "--role", role, "--force"];
        let said = rig.patronictl(&words).await?;
        ensure!(said.contains("Success: restart on member"), "{said}");
        rig.whole().await?;
    }
    everywhere(rig, "max_connections", "120").await?;
    until_told(rig, 0, &pending).await?;
    Ok(String::new())
}

async fn until_told(
    rig: &mut Rig,
    wanted: usize,
    told: &impl AsyncFn(&Rig) -> Result<usize>,
) -> Result<()> {
    let deadline = clock::now() + LIMIT;
    loop {
        let count = told(rig).await?;
        if count == wanted {
            return Ok(());
        }
        if clock::now() >= deadline {
            bail!(
                "{count} members are told to restart, not {wanted}: {:?}",
                rig.list().await?
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn pause_and_resume(rig: &mut Rig) -> Result<String> {
    let said = rig.patronictl(&["pause", "--wait"]).await?;
    ensure!(
        said.contains("Success: cluster management is paused"),
        "{said}"
    );
    ensure!(
        rig.patronictl(&["list"])
            .await?
            .contains("Maintenance mode: on"),
        "list"
    );
    let said = rig.patronictl(&["resume", "--wait"]).await?;
    ensure!(
        said.contains("Success: cluster management is resumed"),
        "{said}"
    );
    ensure!(
        !rig.patronictl(&["list"])
            .await?
            .contains("Maintenance mode"),
        "list"
    );
    Ok(String::new())
}

async fn reinit(rig: &mut Rig) -> Result<String> {
    let (_, replica) = two(rig).await?;
    let member = &rig.stack.members[rig.stack.index_of(&replica)?];
    let (data, before) = (member.data_dir.clone(), member.postmaster());
    let marked = data.join("marked-by-the-harness");
    std::fs::write(&marked, "").with_context(|| marked.display().to_string())?;
    let said = rig
        .patronictl(&["reinit", SCOPE, &replica, "--force", "--wait"])
        .await?;
    let done = format!("Reinitialize is completed on: {replica}");
    ensure!(said.contains(&done), "{said}");
    ensure!(
        !marked.exists(),
        "the data of {replica} is the same as before"
    );
    rig.whole().await?;
    let member = &rig.stack.members[rig.stack.index_of(&replica)?];
    ensure!(
        member.postmaster() != before,
        "{replica} was not started anew"
    );
    Ok(replica)
}

/// A replica, then the leader, which goes on to lead.
async fn restart(rig: &mut Rig) -> Result<String> {
    let (leader, replica) = two(rig).await?;
    for name in [&replica, &leader] {
        let before = rig.stack.members[rig.stack.index_of(name)?].postmaster();
        let said = rig.patronictl(&["restart", SCOPE, name, "--force"]).await?;
        ensure!(
            said.contains(&format!("Success: restart on member {name}")),
            "{said}"
        );
        let now = rig.stack.members[rig.stack.index_of(name)?].postmaster();
        ensure!(now.is_some() && now != before, "{name} was not restarted");
        rig.whole().await?;
    }
    ensure!(rig.leader().await? == leader, "leadership moved");
    Ok(format!("{replica}, {leader}"))
}

async fn reload(rig: &mut Rig) -> Result<String> {
    let said = rig.patronictl(&["reload", SCOPE, "--force"]).await?;
    for member in &rig.stack.members {
        let told = format!("Reload request received for member {}", member.name);
        ensure!(said.contains(&told), "{said}");
    }
    Ok(String::new())
}

async fn version(rig: &mut Rig) -> Result<String> {
    let said = rig.patronictl(&["version", SCOPE]).await?;
    for member in &rig.stack.members {
        ensure!(
            said.contains(&format!("{}: Patroni ", member.name)),
            "{said}"
        );
    }
    ensure!(
        said.matches(" PostgreSQL ").count() == rig.stack.members.len(),
        "{said}"
    );
    Ok(String::new())
}

async fn query_and_dsn(rig: &mut Rig) -> Result<String> {
    let leader = rig.leader().await?;
    let address = address(&rig.stack, &leader)?;
    let said = rig.patronictl(&["dsn", "-r", "leader"]).await?;
    ensure!(
        said.contains(&format!("host={address} port=5432")),
        "{said}"
    );
    for (role, answer) in [("leader", "false"), ("replica", "true")] {
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN 'true' ELSE 'false' END AS recovers";
        let words = [
            "query", "-r", role, "-c", sql, "-U", "postgres", "-d", "postgres",
        ];
        let said = rig.patronictl(&words).await?;
        ensure!(said.contains(answer), "{role}: {said}");
    }
    Ok(String::new())
}

async fn schedule_and_flush(rig: &mut Rig) -> Result<String> {
    let (leader, candidate) = two(rig).await?;
    let words = ["switchover", "--leader", &leader, "--candidate", &candidate];
    let at = ["--scheduled", "2099-01-01T00:00:00+00:00", "--force"];
    let all: Vec<_> = words.into_iter().chain(at).collect();
    rig.patronictl(&all).await?;
    let told = rig.patronictl(&["list"]).await?;
    ensure!(
        told.contains("Switchover scheduled at: 2099-01-01T00:00:00+00:00"),
        "{told}"
    );
    let said = rig
        .patronictl(&["flush", SCOPE, "switchover", "--force"])
        .await?;
    ensure!(said.contains("Success"), "{said}");
    let told = rig.patronictl(&["list"]).await?;
    ensure!(!told.contains("Switchover scheduled"), "{told}");
    ensure!(rig.leader().await? == leader, "leadership moved");
    Ok(String::new())
}

/// Who leads, and a replica.
async fn two(rig: &Rig) -> Result<(String, String)> {
    let leader = rig.leader().await?;
    let mut others = rig.stack.members.iter().filter(|m| m.name != leader);
    let other = others.next().context("there is no replica")?;
    Ok((leader, other.name.clone()))
}

fn address(stack: &Stack, name: &str) -> Result<String> {
    Ok(stack.members[stack.index_of(name)?].address.clone())
}

/// Waits until every member has the value in use.
async fn everywhere(rig: &mut Rig, parameter: &str, value: &str) -> Result<()> {
    let shown = async |member: &Member| -> Result<String> {
        let client = member.sql("postgres").await?;
        let row = client.query_one(&format!("SHOW {parameter}"), &[]).await?;
        Ok(row.get(0))
    };
    let is_so = async |stack: &Stack| {
        for member in &stack.members {
            if shown(member).await.ok().as_deref() != Some(value) {
                return false;
            }
        }
        true
    };
    rig.stack
        .until(&format!("{parameter} = {value} everywhere"), LIMIT, is_so)
        .await
}
