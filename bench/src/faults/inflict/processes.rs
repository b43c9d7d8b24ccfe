//! Processes and whole machines: killed, stopped, powered off, starved; what comes back afterwards.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::{END_LIMIT, LEADER_LIMIT, LOOK, another_writes, leader_name, lose_leader};
use crate::check::convergence;
use crate::check::leftovers::all_ended;
use crate::check::one_writer::Helpless;
use crate::crashes::deserved::Loss;
use crate::crashes::until_gone;
use crate::failover::drawn;
use crate::failover::etcd_gone::primaries;
use crate::failover::inflict::old_servers_end;
use crate::failover::run::KILL_GRANT;
use crate::failover::sequence::{self, kill_postmaster};
use crate::fault::processor;
use crate::fault::{node, store};
use crate::faults::promise::{Entrance, TAKES_OVER};
use crate::faults::site::Field;
use crate::stack::member::SCOPE;
use crate::stack::proc::ProcessId;
use crate::stack::process::args;
use crate::stack::{APP, Layout, Stack};

/// A stopped postmaster is let go after this.
const STOPPED: Duration = Duration::from_secs(60);
/// How long a CPU is taken away.
const STARVES: Duration = Duration::from_secs(20);
/// Of one core.
const HUNDREDTHS: u32 = 2;
/// How often an agent is killed, how long it is away, and how long it lives.
const CRASHES: usize = 8;
const AWAY: Duration = Duration::from_millis(500);
const LIVES: Duration = Duration::from_millis(1500);
/// Between two looks for a process that lives shortly.
const CLOSELY: Duration = Duration::from_millis(2);
/// A rewind must begin within this.
const REWIND_LIMIT: Duration = Duration::from_secs(60);

/// One server process of a client dies by a fault of its own, which takes all others along.
pub async fn backend_crashed(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let member = &field.run.stack.members[field.run.leader];
    let query = "SELECT pid FROM pg_stat_activity WHERE usename = $1 LIMIT 1";
    let row = member.sql(APP).await?.query_one(query, &[&APP]).await?;
    let backend = ProcessId::now(row.get(0)).context("the server of a client has ended")?;
    let servers = member.servers();
    field.run.began = clock::now();
    backend.signal(Signal::SEGV);
    let began = field.run.began;
    old_servers_end(&mut field.run, &servers, began, Duration::from_secs(2)).await;
    field.whole("SIGSEGV backend", &on).await?;
    Ok(())
}

/// It takes no new sessions, and those that are open go on.
pub async fn postmaster_stopped(field: &mut Field<'_>) -> Result<()> {
    let on = leader_name(field);
    let postmaster = field.run.stack.members[field.run.leader].postmaster();
    let postmaster = postmaster.context("the leader has no postmaster")?;
    field.run.began = clock::now();
    postmaster.signal(Signal::STOP);
    let one = std::collections::BTreeSet::from([postmaster]);
    let limit = field.run.ttl() + TAKES_OVER;
    match all_ended(&one, field.run.began, STOPPED).await {
        Some(took) => {
            field.run.note(format!(
                "the stopped postmaster was killed after {:.1} s",
                took.as_secs_f64()
            ));
            if took > limit {
                field.late(format!("allowed are {limit:?}"));
            }
        }
        None => {
            postmaster.signal(Signal::CONT);
            field.run.fault(format!(
                "a postmaster that was stopped lived for {STOPPED:?}"
            ));
        }
    }
    field.whole("SIGSTOP postmaster", &on).await?;
    Ok(())
}

/// An agent that dies as soon as it has begun: PostgreSQL and leadership stay.
pub async fn agent_crash_loop(field: &mut Field<'_>) -> Result<()> {
    let (leader, on) = (field.run.leader, leader_name(field));
    let postmaster = field.run.stack.members[leader].postmaster();
    field.run.began = clock::now();
    for _ in 0..CRASHES {
        let member = &mut field.run.stack.members[leader];
        member.end(Signal::KILL, END_LIMIT).await?;
        tokio::time::sleep(AWAY).await;
        member.start()?;
        tokio::time::sleep(LIVES).await;
    }
    let now = field.whole("agent killed 8 times", &on).await?;
    if now.leader != leader || field.run.stack.members[leader].postmaster() != postmaster {
        field.missed("leadership moved, or PostgreSQL did not live on");
    }
    Ok(())
}

/// The machine is gone without a word: its links first, then everything that ran on it, its member of etcd too.
pub async fn power_off(field: &mut Field<'_>, with_store: bool) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let count = field.run.stack.etcd.len();
    let leads = match with_store {
        true => old,
        false => (old + 1) % count,
    };
    store::lead_from(field.run.stack, leads).await?;
    field.run.began = clock::now();
    node::cut_off(&field.run.stack.members[old]).await?;
    field.run.stack.etcd[old].end(Signal::KILL).await?;
    field.run.stack.members[old].kill().await?;
    another_writes(field, old).await?;
    node::reconnect(&field.run.stack.members[old]).await?;
    field.run.stack.etcd[old].start()?;
    field.run.stack.members[old].start()?;
    let what = match with_store {
        true => "power off with etcd's leader",
        false => "power off",
    };
    field.whole(what, &on).await?;
    Ok(())
}

/// Two of three are gone. Where commits wait for the second of them, the third lacks what was acknowledged.
pub async fn power_off_with_standby(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let standby = synchronous_standby(field.run.stack, old).await?;
    let is_synchronous = field.conditions.synchronous.is_some();
    field.run.began = clock::now();
    field.run.stack.members[old].kill().await?;
    field.run.stack.members[standby].kill().await?;
    if is_synchronous {
        let third = field.run.stack.members.len() - old - standby;
        nobody_leads(field, third).await?;
    } else {
        another_writes(field, old).await?;
    }
    field.run.stack.members[standby].start()?;
    if is_synchronous {
        another_writes(field, old).await?;
    }
    field.run.stack.members[old].start()?;
    field.whole("power off with a standby", &on).await?;
    Ok(())
}

/// The standby that `/sync` names first; without any the first that does not lead.
async fn synchronous_standby(stack: &Stack, leader: usize) -> Result<usize> {
    let key = format!("/service/{SCOPE}/sync");
    let text = stack.etcd[0].read(&key).await?;
    let sync: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let names = sync["sync_standby"].as_str().unwrap_or_default();
    let mut named = names
        .split(',')
        .filter_map(|name| stack.index_of(name).ok());
    Ok(named
        .find(|index| *index != leader)
        .unwrap_or((leader + 1) % stack.members.len()))
}

/// For two ttl the one that is left is no primary, and the operator is told why.
async fn nobody_leads(field: &mut Field<'_>, left: usize) -> Result<()> {
    let deadline = clock::now() + field.run.ttl() * 2;
    while clock::now() < deadline {
        let client = field.run.stack.members[left].sql("postgres").await?;
        let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
        if !row.get::<_, bool>(0) {
            bail!("the member that lacks acknowledged commits was promoted");
        }
        tokio::time::sleep(LOOK).await;
    }
    let list = field.run.stack.tool(
        &field.run.stack.programs.trunkline,
        &[
            "-c",
            &field.run.stack.members[left].config.to_string_lossy(),
            "list",
        ],
    );
    let said = list.output(END_LIMIT).await?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let why = said.lines().filter(|line| !line.starts_with(['+', '|']));
    let why: Vec<_> = why.map(str::trim).filter(|line| !line.is_empty()).collect();
    match why.is_empty() {
        true => field.missed("nobody leads, and `trunkline list` does not say why"),
        false => field
            .run
            .note(format!("`trunkline list`: {}", why.join("; "))),
    }
    Ok(())
}

/// The postmaster dies under statements of every kind: what each client hears is held against the server's end.
pub async fn statements_in_flight(field: &mut Field<'_>) -> Result<()> {
    for number in 1..=3 {
        let on = leader_name(field);
        let member = &field.run.stack.members[field.run.leader];
        let (postmaster, servers) = (member.postmaster(), member.servers());
        let killed = clock::now();
        field.run.began = killed;
        postmaster
            .context("the leader has no postmaster")?
            .signal(Signal::KILL);
        let gone = until_gone(servers, killed).await?;
        if field.conditions.entrance == Entrance::Transaction {
            field.evidence.ends.push(Loss { killed, gone });
        }
        field.whole(&format!("kill {number}"), &on).await?;
    }
    Ok(())
}

/// Failovers of every kind, after each of which the old leader follows again.
pub async fn old_leader_returns(field: &mut Field<'_>) -> Result<()> {
    let can_cut = field.run.stack.layout == Layout::Namespaces;
    let list = drawn::failovers(field.settings.seed, 2, can_cut);
    sequence::inflict_all(&mut field.run, &list, field.progress).await?;
    field
        .load
        .until_all_write(clock::now(), LEADER_LIMIT)
        .await?;
    let now = convergence::now(field.run.stack).await?;
    field.begins(now);
    Ok(())
}

/// A rewind that dies half-way, and one whose source dies.
pub async fn rewind_killed(field: &mut Field<'_>) -> Result<()> {
    for is_source in [false, true] {
        let on = leader_name(field);
        let old = lose_leader(field).await?;
        let source = field.run.stack.leader().await?;
        field.run.stack.members[old].start()?;
        let rewind = until_rewinds(field, old).await?;
        let what = match (rewind, is_source) {
            (Some(rewind), false) => {
                rewind.signal(Signal::KILL);
                "pg_rewind killed"
            }
            (Some(_), true) => {
                kill_postmaster(&field.run.stack.members[source]);
                "pg_rewind's source killed"
            }
            (None, _) => {
                field.missed("no pg_rewind was seen to be killed: nothing is shown");
                "no rewind"
            }
        };
        field.whole(what, &on).await?;
    }
    Ok(())
}

async fn until_rewinds(field: &Field<'_>, old: usize) -> Result<Option<ProcessId>> {
    let deadline = clock::now() + REWIND_LIMIT;
    let is_rewind = |id: &ProcessId| {
        let first = id.arguments().into_iter().next().unwrap_or_default();
        first.ends_with("/pg_rewind")
    };
    let mut look = clock::now();
    while clock::now() < deadline {
        let beside = field.run.stack.members[old].beside_agent();
        if let Some(rewind) = beside.into_iter().find(is_rewind) {
            return Ok(Some(rewind));
        }
        // A rewind lasts some tenths of a second: one that was not seen by then does not come.
        if clock::now().since(look) > Duration::from_secs(1) {
            if convergence::now(field.run.stack).await.is_ok() {
                return Ok(None);
            }
            look = clock::now();
        }
        tokio::time::sleep(CLOSELY).await;
    }
    Ok(None)
}

/// A standby is promoted behind its agent's back.
pub async fn promoted_by_hand(field: &mut Field<'_>) -> Result<()> {
    let (leader, count) = (field.run.leader, field.run.stack.members.len());
    let standby = (leader + 1) % count;
    let member = &field.run.stack.members[standby];
    let (on, servers) = (member.name.clone(), member.servers());
    let direct = member.sql("postgres").await?;
    field.run.began = clock::now();
    let began = field.run.began;
    direct.batch_execute("SELECT pg_promote(false)").await?;
    let limit = field.run.ttl() * 2;
    match all_ended(&servers, began, limit).await {
        Some(took) => field.run.note(format!(
            "{on} was ended {:.2} s after it was promoted by hand",
            took.as_secs_f64()
        )),
        None => field.run.fault(format!(
            "{on}, promoted by hand, was not ended within {limit:?}"
        )),
    }
    field.run.helpless.push(Helpless {
        member: standby,
        from: began,
        until: clock::now() + KILL_GRANT,
        why: "it was promoted by hand, until its agent ended it",
    });
    let now = field.whole("pg_promote", &on).await?;
    if now.leader != leader {
        field.missed("leadership moved");
    }
    Ok(())
}

/// A second agent that bears the name of a member that lives, with data of its own.
pub async fn two_of_one_name(field: &mut Field<'_>) -> Result<()> {
    let leader = field.run.leader;
    let stack = &field.run.stack;
    let member = &stack.members[leader];
    let on = member.name.clone();
    let text = std::fs::read_to_string(&member.config)?;
    let beside = |path: &PathBuf| {
        (
            path.display().to_string(),
            format!("{}-twin", path.display()),
        )
    };
    let (data, other_data) = beside(&member.data_dir);
    let (run_dir, other_run_dir) = beside(&member.run_dir);
    let text = text
        .replace(":8008\"", ":8018\"")
        .replace(":5432\"", ":5442\"")
        .replace(
            &format!("data_dir: {data}"),
            &format!("data_dir: {other_data}"),
        )
        .replace(
            &format!("run_dir: {run_dir}"),
            &format!("run_dir: {other_run_dir}"),
        );
    let config = stack.write("twin.yml", &text)?;
    let mut twin = stack.tool(&stack.programs.agent, &[]);
    twin.args = args([&config]);
    twin.namespace = member.namespace.clone();
    field.run.began = clock::now();
    let said = twin.output(LEADER_LIMIT).await;
    match said {
        Ok(said) if !said.status.success() => {
            let text = [said.stderr, said.stdout].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            let last = text.lines().rfind(|line| !line.trim().is_empty());
            let last = last.unwrap_or_default();
            field.run.note(format!("the second {on} refused: {last}"));
        }
        Ok(_) => field.run.fault(format!("the second {on} ended with 0")),
        Err(error) => field
            .run
            .fault(format!("the second {on} did not refuse: {error:#}")),
    }
    let now = field.whole("second agent of one name", &on).await?;
    if now.leader != leader {
        field.missed("leadership moved");
    }
    Ok(())
}

/// Little CPU time for the leader's member, a standby's, a member of etcd and a router, in turn.
pub async fn starved(field: &mut Field<'_>) -> Result<()> {
    for whom in 0..4 {
        let (number, leader) = (field.run.stack.number(), field.run.leader);
        let stack = &field.run.stack;
        let standby = (leader + 1) % stack.members.len();
        let (on, processes) = match whom {
            0 => (
                stack.members[leader].name.clone(),
                stack.members[leader].everything(),
            ),
            1 => (
                stack.members[standby].name.clone(),
                stack.members[standby].everything(),
            ),
            2 => (
                stack.etcd[leader].name.clone(),
                vec![stack.etcd[leader].id()?],
            ),
            _ => ("r1".to_owned(), vec![stack.router.id()?]),
        };
        field.run.began = clock::now();
        let starved = processor::starve(number, &processes, HUNDREDTHS)?;
        tokio::time::sleep(STARVES).await;
        let found = primaries(&field.run).await.unwrap_or_default();
        starved.feed()?;
        if found.len() > 1 {
            field
                .run
                .fault(format!("{on} starved: primaries were {found:?}"));
        }
        field.whole(&format!("{on} starved"), &on).await?;
    }
    Ok(())
}
