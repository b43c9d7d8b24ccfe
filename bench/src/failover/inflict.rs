//! What each scenario does to the cluster, and what only that scenario must show.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::key_watch::KeyWatch;
use super::median_ms;
use super::run::{KILL_GRANT, Run};
use super::scenario::Scenario;
use super::{decoding, drawn, etcd_gone, sequence};
use crate::check::leftovers;
use crate::check::one_writer::Helpless;
use crate::fault::{node, store};
use crate::load::readers::IdleSessions;
use crate::report::Progress;
use crate::stack::{APP, Layout};

/// Idle sessions whose end is timed.
const TIMED_SESSIONS: usize = 20;
/// Sessions end at the latest this long after the watch event.
const SESSION_BAR: Duration = Duration::from_millis(100);
/// A new leader must show within this, whatever the fault.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// Bounds an agent's clean end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// What is granted to a look at processes, beyond the deadline itself.
const LOOK_GRANT: Duration = Duration::from_millis(500);

/// Inflicts the fault, waits until its direct consequence shows, and ends it.
pub async fn inflict(scenario: Scenario, run: &mut Run<'_>, progress: &Progress) -> Result<()> {
    match scenario {
        Scenario::Switchover => switchover(run).await,
        Scenario::NodeFrozen => node_frozen(run).await,
        Scenario::PostmasterKilled => postmaster_killed(run).await,
        Scenario::AgentKilled => agent_killed(run).await,
        Scenario::AgentTerminated => agent_terminated(run).await,
        Scenario::RouterKilled => router_killed(run).await,
        Scenario::AgentStopped => agent_stopped(run).await,
        Scenario::AgentAndFenceStopped => agent_and_fence_stopped(run).await,
        Scenario::Partition => partition(run, false).await,
        Scenario::PartitionEtcdLeader => partition(run, true).await,
        Scenario::EtcdFrozenKilled => etcd_frozen_killed(run).await,
        Scenario::EtcdRolling => store::rolling_restart(run.stack).await,
        Scenario::EtcdGone => etcd_gone::for_all(run).await,
        Scenario::EtcdGoneFromLeader => etcd_gone::from_leader(run).await,
        Scenario::EtcdGoneAgentKilled => etcd_gone::agent_killed(run).await,
        Scenario::EtcdGoneReplicaLost => etcd_gone::replica_lost(run).await,
        Scenario::EtcdWiped => super::lost_memory::wiped(run).await,
        Scenario::EtcdRestored => super::lost_memory::restored(run).await,
        Scenario::EtcdAccepted => super::lost_memory::accepted(run).await,
        Scenario::EtcdAcceptedLed => super::lost_memory::accepted_while_led(run).await,
        Scenario::EtcdAcceptedInPause => super::lost_memory::accepted_in_pause(run).await,
        Scenario::EtcdAcceptedAfterBlackout => {
            super::lost_memory::accepted_after_blackout(run).await
        }
        Scenario::EtcdRestoredAfterBlackout => {
            super::lost_memory::restored_after_blackout(run).await
        }
        Scenario::Mixed => super::mixed::mixed(run).await,
        Scenario::RandomFaults => {
            let can_cut = run.stack.layout == Layout::Namespaces;
            let list = drawn::random(run.seed, run.count.unwrap_or(100), run.longest, can_cut);
            sequence::inflict_all(run, &list, progress).await
        }
        Scenario::Rejoin => {
            let can_cut = run.stack.layout == Layout::Namespaces;
            let list = drawn::failovers(run.seed, run.count.unwrap_or(30), can_cut);
            sequence::inflict_all(run, &list, progress).await
        }
        Scenario::PauseCut => super::pause_cut::pause_cut(run).await,
        Scenario::LogicalDecoding => decoding::logical_decoding(run, progress).await,
    }
}

async fn switchover(run: &mut Run<'_>) -> Result<()> {
    let old = run.stack.members[run.leader].name.clone();
    run.began = clock::now();
    let said = run.stack.trunkline(&["switchover", "--force"]).await?;
    let took = clock::now().since(run.began);
    run.note(format!(
        "the command took {:.2} s and said:",
        took.as_secs_f64()
    ));
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        run.note(format!("  {line}"));
    }
    let new = run.stack.leader().await?;
    let new = run.stack.members[new].name.clone();
    if new == old {
        run.fault(format!("{old} leads as before"));
    }
    if !said.contains(&new) {
        run.fault(format!("the command did not name the new leader {new}"));
    }
    Ok(())
}

async fn node_frozen(run: &mut Run<'_>) -> Result<()> {
    let sessions = IdleSessions::open(run.stack, TIMED_SESSIONS).await?;
    let witness = (run.leader + 1) % run.stack.etcd.len();
    let watch = KeyWatch::start(&run.stack.etcd[witness])?;
    let servers = run.stack.members[run.leader].servers();
    run.began = clock::now();
    let frozen = node::freeze(&run.stack.members[run.leader]).await?;
    let end = watch
        .until("its end", run.began, LEADER_LIMIT, |change| {
            change.leader.is_none()
        })
        .await?;
    run.note(format!(
        "the key ended {:.2} s after the freeze",
        secs(run.began, end.at)
    ));
    let (ended, alive) = sessions.ended(Duration::from_secs(5)).await;
    let after: Vec<_> = ended.iter().map(|at| at.since(end.at)).collect();
    let longest = after.iter().max().copied().unwrap_or_default();
    run.note(format!(
        "sessions ended after the watch event: median {} ms, longest {} ms of {}",
        median_ms(&after),
        crate::report::ms(longest),
        after.len()
    ));
    let median = crate::report::median(&after);
    if alive > 0 || median.is_none_or(|median| median > SESSION_BAR) {
        run.fault(format!(
            "{alive} of {TIMED_SESSIONS} sessions outlived the key by 5 s; median of the others {} ms",
            median_ms(&after)
        ));
    }
    new_leader(run, &watch, end.at).await?;
    // The node stays frozen for two TTLs in all, then it must find itself deposed before it serves anyone.
    tokio::time::sleep((run.ttl() * 2).saturating_sub(clock::now().since(run.began))).await;
    let thawed = clock::now();
    run.helpless.push(Helpless {
        member: run.leader,
        from: run.began,
        until: thawed + KILL_GRANT,
        why: "a thawed server runs until the fence, thawed with it, has killed it",
    });
    frozen.thaw()?;
    old_servers_end(run, &servers, thawed, Duration::from_secs(2)).await;
    Ok(())
}

async fn postmaster_killed(run: &mut Run<'_>) -> Result<()> {
    let member = &run.stack.members[run.leader];
    let (postmaster, servers) = (member.postmaster(), member.servers());
    run.began = clock::now();
    postmaster
        .context("the leader has no postmaster")?
        .signal(Signal::KILL);
    old_servers_end(run, &servers, run.began, Duration::from_secs(2)).await;
    // Whole, not merely led: for a moment after its server's end the old leader may still say that it leads.
    let now = run.stack.until_converged(LEADER_LIMIT).await?.leader;
    run.note(match now == run.leader {
        true => "restarted in place".to_owned(),
        false => format!("failed over to {}", run.stack.members[now].name),
    });
    Ok(())
}

async fn agent_killed(run: &mut Run<'_>) -> Result<()> {
    let before = run.stack.members[run.leader]
        .fence()
        .context("the leader has no fence")?;
    let postmaster = run.stack.members[run.leader].postmaster();
    run.began = clock::now();
    run.stack.members[run.leader]
        .end(Signal::KILL, END_LIMIT)
        .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    run.stack.members[run.leader].start()?;
    let leader = run.leader;
    let is_back =
        async |stack: &crate::stack::Stack| stack.leader().await.is_ok_and(|index| index == leader);
    run.stack
        .until("the agent to lead again", LEADER_LIMIT, is_back)
        .await?;
    // Beyond one TTL an unrenewed lease would have ended.
    tokio::time::sleep(run.ttl() + Duration::from_secs(1)).await;
    let member = &run.stack.members[run.leader];
    let (fence, postmaster_now) = (member.fence(), member.postmaster());
    if fence != Some(before) {
        run.fault(format!("the fence was {before:?} and is {fence:?}"));
    }
    if postmaster_now != postmaster {
        run.fault("the postmaster is another than before");
    }
    if run.stack.leader().await.ok() != Some(run.leader) {
        run.fault("leadership moved");
    }
    Ok(())
}

async fn agent_terminated(run: &mut Run<'_>) -> Result<()> {
    let (witness, leader) = ((run.leader + 1) % run.stack.etcd.len(), run.leader);
    let watch = KeyWatch::start(&run.stack.etcd[witness])?;
    let servers = run.stack.members[leader].servers();
    run.began = clock::now();
    run.stack.members[leader]
        .end(Signal::TERM, END_LIMIT)
        .await?;
    run.note(format!(
        "the agent ended after {:.2} s",
        secs(run.began, clock::now())
    ));
    old_servers_end(run, &servers, clock::now(), Duration::ZERO).await;
    new_leader(run, &watch, run.began).await?;
    run.stack.members[leader].start()
}

async fn router_killed(run: &mut Run<'_>) -> Result<()> {
    run.began = clock::now();
    run.stack.router.end(Signal::KILL, END_LIMIT).await?;
    run.stack.router.start()?;
    let is_ready = async |stack: &crate::stack::Stack| stack.router.is_ready().await;
    run.stack
        .until("the router to be ready", LEADER_LIMIT, is_ready)
        .await
}

async fn agent_stopped(run: &mut Run<'_>) -> Result<()> {
    let (witness, leader) = ((run.leader + 1) % run.stack.etcd.len(), run.leader);
    let watch = KeyWatch::start(&run.stack.etcd[witness])?;
    let servers = run.stack.members[leader].servers();
    let agent = run.stack.members[leader].agent()?;
    run.began = clock::now();
    agent.signal(Signal::STOP);
    old_servers_end(run, &servers, run.began, run.ttl()).await;
    let left = run.stack.members[leader].servers();
    if !left.is_empty() {
        run.fault(format!(
            "{} server processes are left after the deadline",
            left.len()
        ));
    }
    new_leader(run, &watch, run.began).await?;
    tokio::time::sleep((run.ttl() * 3).saturating_sub(clock::now().since(run.began))).await;
    agent.signal(Signal::CONT);
    Ok(())
}

/// Nothing on the node can end PostgreSQL now: only a watchdog could. What must hold is the router's part.
async fn agent_and_fence_stopped(run: &mut Run<'_>) -> Result<()> {
    let (witness, leader) = ((run.leader + 1) % run.stack.etcd.len(), run.leader);
    let watch = KeyWatch::start(&run.stack.etcd[witness])?;
    let servers = run.stack.members[leader].servers();
    let agent = run.stack.members[leader].agent()?;
    let fence = run.stack.members[leader]
        .fence()
        .context("the leader has no fence")?;
    run.began = clock::now();
    agent.signal(Signal::STOP);
    fence.signal(Signal::STOP);
    let elected = new_leader(run, &watch, run.began).await?;
    // Everything the old leader still commits is the watcher's own; a row of the load would have come by
    // the router.
    let old = run.stack.members[leader].sql(APP).await;
    let old = old.context("the old leader's server does not answer")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let table = run.tables.first().context("the load has no table")?;
    let rows = format!("SELECT count(*) FROM {table}");
    let before: i64 = old.query_one(&rows, &[]).await?.get(0);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after: i64 = old.query_one(&rows, &[]).await?.get(0);
    drop(old);
    run.note(format!(
        "with agent and fence stopped PostgreSQL of the old leader lives on ({} processes) and would take \
         writes from whoever bypasses the router: the watchdog's case; another member led {:.2} s after the stop",
        servers.iter().filter(|id| id.is_alive()).count(),
        secs(run.began, elected)
    ));
    if after > before {
        run.fault("the router still sent writes to the old leader after another one led");
    }
    fence.signal(Signal::CONT);
    let fired = clock::now();
    run.helpless.push(Helpless {
        member: run.leader,
        from: run.began,
        until: fired + KILL_GRANT,
        why: "agent and fence stood still, only a watchdog could have ended it",
    });
    old_servers_end(run, &servers, fired, Duration::from_secs(2)).await;
    agent.signal(Signal::CONT);
    Ok(())
}

async fn partition(run: &mut Run<'_>, with_etcd_leader: bool) -> Result<()> {
    let elsewhere = (run.leader + 1) % run.stack.etcd.len();
    let place = if with_etcd_leader {
        run.leader
    } else {
        elsewhere
    };
    store::lead_from(run.stack, place).await?;
    let watch = KeyWatch::start(&run.stack.etcd[elsewhere])?;
    let servers = run.stack.members[run.leader].servers();
    run.began = clock::now();
    node::cut_off(&run.stack.members[run.leader]).await?;
    old_servers_end(run, &servers, run.began, run.ttl()).await;
    let elected = new_leader(run, &watch, run.began).await?;
    let writes = run.writes.clone();
    let flows = async |_: &crate::stack::Stack| writes.done() > elected;
    run.stack
        .until("writes on the new leader", LEADER_LIMIT, flows)
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    node::reconnect(&run.stack.members[run.leader]).await
}

async fn etcd_frozen_killed(run: &mut Run<'_>) -> Result<()> {
    let index = store::leader(run.stack).await?;
    let each = run.ttl() * 2;
    run.note(format!(
        "etcd member {} (the leader of the store)",
        run.stack.etcd[index].name
    ));
    run.began = clock::now();
    let leader = run.leader;
    store::freeze_then_kill(run.stack, index, each).await?;
    if run.stack.leader().await.ok() != Some(leader) {
        run.fault("leadership moved");
    }
    Ok(())
}

/// Waits until the key names another member than before; returns when.
pub async fn new_leader(run: &mut Run<'_>, watch: &KeyWatch, since: Moment) -> Result<Moment> {
    let old = run.stack.members[run.leader].name.clone();
    let is_other = |leader: &Option<String>| leader.as_ref().is_some_and(|name| *name != old);
    let change = watch
        .until("a new leader", since, LEADER_LIMIT, |change| {
            is_other(&change.leader)
        })
        .await?;
    run.note(format!(
        "{} took the key {:.2} s after the fault",
        change.leader.clone().unwrap_or_default(),
        secs(run.began, change.at)
    ));
    Ok(change.at)
}

/// The servers of before must have ended by the deadline.
pub async fn old_servers_end(
    run: &mut Run<'_>,
    servers: &std::collections::BTreeSet<crate::stack::proc::ProcessId>,
    since: Moment,
    deadline: Duration,
) {
    match leftovers::all_ended(servers, since, deadline + LOOK_GRANT).await {
        Some(took) => run.note(format!(
            "all {} server processes of before had ended after {:.2} s",
            servers.len(),
            took.as_secs_f64()
        )),
        None => run.fault(format!(
            "{} of {} server processes of before still live after {:?}",
            servers.iter().filter(|id| id.is_alive()).count(),
            servers.len(),
            deadline + LOOK_GRANT
        )),
    }
}

fn secs(from: Moment, to: Moment) -> f64 {
    to.since(from).as_secs_f64()
}
