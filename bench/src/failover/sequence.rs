//! A list of faults inflicted one after another, each healed and the cluster whole again before the next.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::drawn::{Drawn, Kind, Until, Whom};
use super::run::{KILL_GRANT, Run};
use crate::check::convergence::{self, Converged};
use crate::check::one_writer::Helpless;
use crate::fault::node::{self, Frozen};
use crate::fault::store;
use crate::report::Progress;
use crate::stack::Stack;
use crate::stack::member::Member;
use crate::stack::proc::ProcessId;

/// From the end of a fault the cluster must be whole again within this: one leader, everyone streaming.
pub const WHOLE_LIMIT: Duration = Duration::from_secs(30);
/// A cluster that missed [`WHOLE_LIMIT`] is waited for this much longer, so that the list can go on.
const MENDING_LIMIT: Duration = Duration::from_secs(120);
/// Another member must lead within this.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long a cluster must stay whole to count: writes flow before the next fault.
const BREATH: Duration = Duration::from_millis(1000);
const LOOK: Duration = Duration::from_millis(20);

/// One fault as it was inflicted.
#[derive(Clone, Debug)]
pub struct Inflicted {
    /// What was done, in words.
    pub what: String,
    /// To whom: the name of a member or of an etcd member.
    pub on: String,
    /// Did that one lead?
    pub on_leader: bool,
    /// When it began.
    pub began: Moment,
    /// When it was ended.
    pub healed: Moment,
    /// When the cluster was whole again; nothing if it was not in time.
    pub whole: Option<Moment>,
    /// The leader and its timeline before.
    pub before: (String, u64),
    /// The same once it was whole again.
    pub after: Option<(String, u64)>,
    /// Where the history of the new leader left that of the old one, if its timeline is another.
    pub fork: Option<u64>,
}

/// What ends the fault.
enum Cure {
    Nothing,
    StartAgent(usize),
    Thaw(usize, Frozen),
    Continue(ProcessId),
    Reconnect(usize),
    StartEtcd(usize),
    ContinueEtcd(usize),
}

/// Inflicts all of them. An error breaks the list off: a cluster that does not become whole, say.
pub async fn inflict_all(run: &mut Run<'_>, list: &[Drawn], progress: &Progress) -> Result<()> {
    for (index, drawn) in list.iter().enumerate() {
        let before = match convergence::now(run.stack).await {
            Ok(now) => now,
            Err(_) => until_whole(run.stack, WHOLE_LIMIT).await?.1,
        };
        let one = inflict_one(run, drawn, before)
            .await
            .with_context(|| format!("fault {}: {}", index + 1, drawn.kind))?;
        progress.step(format!(
            "{} of {}: {} on {}{}, {:.1} s, whole {}",
            index + 1,
            list.len(),
            one.what,
            one.on,
            if one.on_leader { " (leads)" } else { "" },
            secs(one.began, one.healed),
            match one.whole {
                Some(whole) => format!("{:.1} s after it", secs(one.healed, whole)),
                None => "not in time".to_owned(),
            }
        ));
        let is_whole = one.whole.is_some();
        run.inflicted.push(one);
        if !is_whole {
            mended(run).await?;
        }
    }
    Ok(())
}

async fn inflict_one(run: &mut Run<'_>, drawn: &Drawn, before: Converged) -> Result<Inflicted> {
    let of_store = matches!(
        drawn.kind,
        Kind::EtcdLeaderCut | Kind::EtcdKilled | Kind::EtcdFrozen
    );
    let lead = match of_store {
        true => store::leader(run.stack).await?,
        false => before.leader,
    };
    let target = match (drawn.kind, drawn.whom) {
        (Kind::EtcdLeaderCut, _) | (_, Whom::Leader) => lead,
        (_, Whom::Other(step)) => (lead + step) % run.stack.members.len(),
    };
    let on = match of_store {
        true => run.stack.etcd[target].name.clone(),
        false => run.stack.members[target].name.clone(),
    };
    let began = clock::now();
    let cure = begin(run.stack, drawn.kind, target).await?;
    hold(run, drawn, began, before.leader).await?;
    let healed = clock::now();
    if let Cure::Thaw(member, _) = cure {
        run.helpless.push(Helpless {
            member,
            from: began,
            until: healed + KILL_GRANT,
            why: "a thawed server runs until the fence, thawed with it, has killed it",
        });
    }
    heal(run.stack, cure).await?;
    let whole = match until_whole(run.stack, WHOLE_LIMIT).await {
        Ok(whole) => Some(whole),
        Err(error) => {
            run.fault(format!("after {} on {on}: {error:#}", drawn.kind));
            None
        }
    };
    let before = (
        run.stack.members[before.leader].name.clone(),
        before.timeline,
    );
    let after = match whole {
        Some((_, now)) => Some(now),
        None => convergence::now(run.stack).await.ok(),
    };
    let fork = match after {
        Some(now) => fork_since(run.stack, before.1, now).await?,
        None => None,
    };
    Ok(Inflicted {
        what: drawn.kind.to_string(),
        on_leader: of_store || on == before.0,
        on,
        began,
        healed,
        whole: whole.map(|(at, _)| at),
        before,
        after: after.map(|now| (run.stack.members[now.leader].name.clone(), now.timeline)),
        fork,
    })
}

async fn begin(stack: &mut Stack, kind: Kind, target: usize) -> Result<Cure> {
    Ok(match kind {
        Kind::AgentKilled => {
            stack.members[target].end(Signal::KILL, END_LIMIT).await?;
            Cure::StartAgent(target)
        }
        Kind::PostmasterKilled | Kind::PostmasterHeldDown => {
            kill_postmaster(&stack.members[target]);
            Cure::Nothing
        }
        Kind::AgentAndPostmasterKilled => {
            let agent = stack.members[target].agent()?;
            kill_postmaster(&stack.members[target]);
            agent.signal(Signal::KILL);
            stack.members[target].end(Signal::KILL, END_LIMIT).await?;
            Cure::StartAgent(target)
        }
        Kind::MemberKilled => {
            for id in stack.members[target].everything() {
                id.signal(Signal::KILL);
            }
            stack.members[target].end(Signal::KILL, END_LIMIT).await?;
            // A child that was made between the look and the signal.
            for id in stack.members[target].everything() {
                id.signal(Signal::KILL);
            }
            Cure::StartAgent(target)
        }
        Kind::MemberFrozen => Cure::Thaw(target, node::freeze(&stack.members[target]).await?),
        Kind::AgentFrozen => {
            let agent = stack.members[target].agent()?;
            agent.signal(Signal::STOP);
            Cure::Continue(agent)
        }
        Kind::MemberCut | Kind::EtcdLeaderCut => {
            node::cut_off(&stack.members[target]).await?;
            Cure::Reconnect(target)
        }
        Kind::EtcdKilled => {
            stack.etcd[target].end(Signal::KILL).await?;
            Cure::StartEtcd(target)
        }
        Kind::EtcdFrozen => {
            stack.etcd[target].signal(Signal::STOP);
            Cure::ContinueEtcd(target)
        }
    })
}

/// Lets the fault last as long as it is to.
async fn hold(run: &mut Run<'_>, drawn: &Drawn, began: Moment, leader: usize) -> Result<()> {
    let (least, until_another) = match drawn.until {
        Until::After(time) => (time, false),
        Until::AnotherLeads(time) => (time, true),
    };
    while until_another && !another_leads(run.stack, leader).await {
        if drawn.kind == Kind::PostmasterHeldDown {
            kill_postmaster(&run.stack.members[leader]);
        }
        if clock::now() >= began + LEADER_LIMIT {
            bail!("no other member led within {LEADER_LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(clock::now().until(began + least)).await;
    Ok(())
}

/// Whether one leads, and it is another than this one.
pub async fn another_leads(stack: &Stack, old: usize) -> bool {
    stack.leader().await.is_ok_and(|now| now != old)
}

async fn heal(stack: &mut Stack, cure: Cure) -> Result<()> {
    match cure {
        Cure::Nothing => Ok(()),
        Cure::StartAgent(member) => stack.members[member].start(),
        Cure::Thaw(_, frozen) => frozen.thaw(),
        Cure::Continue(agent) => {
            agent.signal(Signal::CONT);
            Ok(())
        }
        Cure::Reconnect(member) => node::reconnect(&stack.members[member]).await,
        Cure::StartEtcd(etcd) => stack.etcd[etcd].start(),
        Cure::ContinueEtcd(etcd) => {
            stack.etcd[etcd].signal(Signal::CONT);
            Ok(())
        }
    }
}

/// Waits until every etcd member serves, one leads and everyone streams, and that stands for a while; says since
/// when, and who leads.
pub async fn until_whole(stack: &mut Stack, limit: Duration) -> Result<(Moment, Converged)> {
    let deadline = clock::now() + limit;
    loop {
        let left = clock::now().until(deadline);
        let found = stack.until_converged(left).await?;
        let since = clock::now();
        for etcd in &stack.etcd {
            while !etcd.is_healthy().await {
                if clock::now() >= deadline {
                    bail!("etcd member {} does not serve after {limit:?}", etcd.name);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        tokio::time::sleep(BREATH).await;
        match convergence::now(stack).await {
            Ok(now) if now == found => return Ok((since, found)),
            Ok(_) | Err(_) if clock::now() < deadline => {}
            Ok(now) => bail!("the leader changed once more, to timeline {}", now.timeline),
            Err(error) => return Err(error.context("whole for a moment, and then not any more")),
        }
    }
}

/// A cluster that was late is given more time; its lateness is told already.
async fn mended(run: &mut Run<'_>) -> Result<()> {
    let since = clock::now();
    until_whole(run.stack, MENDING_LIMIT)
        .await
        .context("the cluster does not become whole again")?;
    run.note(format!(
        "the cluster that was late was whole {:.1} s later",
        secs(since, clock::now())
    ));
    Ok(())
}

/// Where the history of who leads now left the timeline of before; nothing if it is on that one still.
pub async fn fork_since(stack: &Stack, old: u64, now: Converged) -> Result<Option<u64>> {
    match now.timeline == old {
        true => Ok(None),
        false => fork_of(&stack.members[now.leader], now.timeline, old)
            .await
            .map(Some),
    }
}

/// Where the leader's history left the old timeline, by PostgreSQL's own history file.
async fn fork_of(leader: &Member, timeline: u64, old: u64) -> Result<u64> {
    let client = leader.sql("postgres").await?;
    let query = format!("SELECT pg_read_file('pg_wal/{timeline:08X}.history')");
    let text: String = client.query_one(&query, &[]).await?.get(0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(of), Some(at)) = (words.next(), words.next()) else {
            continue;
        };
        if of.parse() == Ok(old) {
            return position(at).with_context(|| format!("{at} is no WAL position"));
        }
    }
    bail!("the history of timeline {timeline} does not name timeline {old}: {text}")
}

fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let high = u64::from_str_radix(high, 16).ok()?;
    Some((high << 32) | u64::from_str_radix(low, 16).ok()?)
}

/// SIGKILL to a member's postmaster, if it has one.
pub fn kill_postmaster(member: &Member) {
    if let Some(postmaster) = member.postmaster() {
        postmaster.signal(Signal::KILL);
    }
}

fn secs(from: Moment, to: Moment) -> f64 {
    to.since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_postgresql_prints_it() {
        assert_eq!(position("2/0A000060"), Some(0x2_0A00_0060));
        assert_eq!(position("nonsense"), None);
    }
}
