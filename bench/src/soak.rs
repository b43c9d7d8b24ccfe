//! `trunkline-bench soak`: what an idle agent costs as leader, quiet and under the health checks of load balancers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::report::{self, Progress, say};
use crate::stack::member::Timing;
use crate::stack::proc::ProcessId;
use crate::stack::{Layout, Plan, Stack, http};

/// Most memory of an idle leader's agent, in kB.
const MEMORY_BAR: u64 = 20 * 1024;
/// Most CPU of an idle leader's agent and fence together, in per cent of a core.
const CPU_BAR: f64 = 0.3;
/// Most revisions of etcd in 10 s while nothing happens.
const REVISIONS_BAR: f64 = 1.0;
/// Most growth of the memory under health checks, in kB, from the end of the first tenth on.
const GROWTH_BAR: u64 = 1024;
/// The ports' checks ask for these paths in turn.
const PATHS: [&str; 3] = ["/primary", "/replica", "/readiness"];
/// How often memory is read.
const LOOK: Duration = Duration::from_secs(1);
/// After how many looks it is told how much time is left.
const TOLD_EVERY: usize = 15;
/// The bootstrap is over once the store's revision has stood still for so long, waited for at most that long.
const STANDS: Duration = Duration::from_secs(12);
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// The options of `soak`.
#[derive(Args, Debug)]
pub struct SoakOptions {
    /// Seconds without a health check
    #[arg(long, default_value_t = 120)]
    quiet: u64,
    /// Seconds with health checks
    #[arg(long, default_value_t = 1800)]
    checked: u64,
    /// Health checks a second, over all members
    #[arg(long, default_value_t = 50)]
    checks: u32,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// PostgreSQL's programs, if not the newest installed
    #[arg(long)]
    pg_bin: Option<PathBuf>,
}

/// What one phase cost.
#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    seconds: f64,
    /// Memory of the leader's agent, in kB: at the first tenth's end, the most, and at the end.
    memory: [u64; 3],
    fence_memory: u64,
    /// Of the leader's agent and its fence, in per cent of a core.
    cpu: f64,
    revisions_per_10_s: f64,
    checks: u64,
    failed_checks: u64,
}

/// Measures both phases and judges them.
pub async fn run(options: &SoakOptions) -> Result<bool> {
    let progress = Progress::new();
    let plan = Plan {
        timing: Timing {
            ttl: 30,
            loop_wait: 10,
            retry_timeout: 10,
            ..Timing::default()
        },
        postgresql: options.pg_bin.clone(),
        ..Plan::new(Layout::Loopback)
    };
    let stack = Stack::start(&plan, &progress).await?;
    let leader = stack.leader().await?;
    progress.step("waiting for the end of what a bootstrap writes");
    settle(&stack).await?;
    let quiet = Duration::from_secs(options.quiet);
    let checked = Duration::from_secs(options.checked);
    let phases = [
        measure(&stack, leader, ("quiet", quiet, 0), &progress).await?,
        measure(
            &stack,
            leader,
            ("checked", checked, options.checks),
            &progress,
        )
        .await?,
    ];
    progress.done();
    let leads_still = stack.leader().await? == leader;
    print(&phases);
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&phases)?)?;
    }
    let missed = missed(&phases, leads_still);
    missed.iter().for_each(|why| say(format!("MISSED: {why}")));
    Ok(missed.is_empty())
}

/// Waits until nobody has written to the store for a while.
async fn settle(stack: &Stack) -> Result<()> {
    let began = clock::now();
    let mut looks = tokio::time::interval(LOOK);
    let (mut last, mut since) = (stack.etcd[0].revision().await?, began);
    while clock::now().since(since) < STANDS {
        if clock::now().since(began) > SETTLE_LIMIT {
            bail!("the store was written to for {SETTLE_LIMIT:?} without a pause of {STANDS:?}");
        }
        looks.tick().await;
        let revision = stack.etcd[0].revision().await?;
        if revision != last {
            (last, since) = (revision, clock::now());
        }
    }
    Ok(())
}

/// One phase: `checks` health checks a second for so long.
async fn measure(
    stack: &Stack,
    leader: usize,
    (name, length, checks): (&'static str, Duration, u32),
    progress: &Progress,
) -> Result<Phase> {
    let member = &stack.members[leader];
    let agent = member.agent()?;
    let fence = member.fence().context("the leader has no fence")?;
    let used = || cpu_of(&[agent, fence]);
    let addresses: Vec<_> = stack.members.iter().map(|m| m.address.clone()).collect();
    let (revision, cpu, began) = (stack.etcd[0].revision().await?, used()?, clock::now());
    let memory = async {
        let mut looks = tokio::time::interval(LOOK);
        let mut seen = Vec::new();
        while clock::now().since(began) < length {
            looks.tick().await;
            seen.push(agent.memory_kb().context("the leader's agent has ended")?);
            if seen.len() % TOLD_EVERY == 1 {
                let left = length.saturating_sub(clock::now().since(began));
                progress.step(format!("{name}: {:.0} s left", left.as_secs_f64()));
            }
        }
        anyhow::Ok(seen)
    };
    let (seen, (asked, failed)) = tokio::join!(memory, check(&addresses, checks, began + length));
    let seconds = clock::now().since(began).as_secs_f64();
    let (seen, cpu) = (seen?, used()? - cpu);
    let revisions = stack.etcd[0].revision().await? - revision;
    Ok(Phase {
        name,
        seconds,
        memory: summary(&seen),
        fence_memory: fence.memory_kb().context("the fence has ended")?,
        cpu: cpu as f64 / 1e4 / seconds,
        revisions_per_10_s: revisions as f64 * 10.0 / seconds,
        checks: asked,
        failed_checks: failed,
    })
}

fn cpu_of(processes: &[ProcessId]) -> Result<u64> {
    let used = processes.iter().map(|process| process.cpu_us());
    used.sum::<Option<u64>>()
        .context("a process of the leader has ended")
}

/// At the end of the first tenth, the most from there on, and at the end.
fn summary(seen: &[u64]) -> [u64; 3] {
    let settled = seen.get(seen.len() / 10..).unwrap_or_default();
    let first = settled.first().copied().unwrap_or_default();
    let most = settled.iter().max().copied().unwrap_or_default();
    [first, most, seen.last().copied().unwrap_or_default()]
}

/// Asks the members in turn, as load balancers do, and counts what was not answered with 200 or 503.
async fn check(addresses: &[String], per_second: u32, until: Moment) -> (u64, u64) {
    let (mut asked, mut failed) = (0_u64, 0);
    if per_second == 0 {
        return (asked, failed);
    }
    let mut beats = tokio::time::interval(Duration::from_secs(1) / per_second);
    for turn in 0_usize.. {
        beats.tick().await;
        if clock::now() >= until {
            break;
        }
        let address = &addresses[turn % addresses.len()];
        let path = PATHS[turn / addresses.len() % PATHS.len()];
        let answer = http::get(&format!("{address}:8008"), path).await;
        asked += 1;
        failed += u64::from(!matches!(answer, Ok((200 | 503, _))));
    }
    (asked, failed)
}

fn missed(phases: &[Phase], leads_still: bool) -> Vec<String> {
    let mut missed = Vec::new();
    let mut judge = |is_met: bool, why: String| {
        if !is_met {
            missed.push(why);
        }
    };
    let [quiet, checked] = phases else {
        return vec!["there are not two phases".to_owned()];
    };
    judge(leads_still, "the leader changed".to_owned());
    judge(
        quiet.memory[1] <= MEMORY_BAR,
        format!("{} kB of memory, the bar is {MEMORY_BAR}", quiet.memory[1]),
    );
    judge(
        quiet.cpu <= CPU_BAR,
        format!("{:.2} % of a core, the bar is {CPU_BAR}", quiet.cpu),
    );
    judge(
        quiet.revisions_per_10_s <= REVISIONS_BAR,
        format!(
            "{:.2} revisions in 10 s, the bar is {REVISIONS_BAR}",
            quiet.revisions_per_10_s
        ),
    );
    let grown = checked.memory[1].saturating_sub(checked.memory[0]);
    judge(
        grown <= GROWTH_BAR,
        format!("memory grew by {grown} kB under health checks, the bar is {GROWTH_BAR}"),
    );
    judge(
        checked.failed_checks == 0,
        format!("{} health checks got no answer", checked.failed_checks),
    );
    missed
}

fn print(phases: &[Phase]) {
    let head = [
        "phase",
        "s",
        "memory kB: first, most, last",
        "fence kB",
        "CPU %",
        "revisions/10 s",
        "checks",
        "failed",
    ];
    let row = |phase: &Phase| {
        let [first, most, last] = phase.memory;
        vec![
            phase.name.to_owned(),
            format!("{:.0}", phase.seconds),
            format!("{first}, {most}, {last}"),
            phase.fence_memory.to_string(),
            format!("{:.2}", phase.cpu),
            format!("{:.2}", phase.revisions_per_10_s),
            phase.checks.to_string(),
            phase.failed_checks.to_string(),
        ]
    };
    say(format!(
        "the leader's agent with two replicas, ttl 30, loop_wait 10; {}",
        report::machine()
    ));
    let rows: Vec<_> = phases.iter().map(row).collect();
    say(report::table(&head, &rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(memory: [u64; 3], cpu: f64, revisions: f64, failed: u64) -> Phase {
        Phase {
            name: "a phase",
            seconds: 10.0,
            memory,
            fence_memory: 0,
            cpu,
            revisions_per_10_s: revisions,
            checks: 1,
            failed_checks: failed,
        }
    }

    #[test]
    fn each_bar_is_told_when_it_is_missed() {
        let good = || phase([9_000, 9_100, 9_050], 0.2, 0.9, 0);
        assert!(missed(&[good(), good()], true).is_empty());
        assert_eq!(missed(&[good(), good()], false).len(), 1);
        let bad = phase([9_000, MEMORY_BAR + 1, 9_000], 0.31, 1.1, 0);
        assert_eq!(missed(&[bad, good()], true).len(), 3);
        let grows = phase([9_000, 9_001 + GROWTH_BAR, 9_000], 9.0, 9.0, 1);
        assert_eq!(missed(&[good(), grows], true).len(), 2);
    }

    #[test]
    fn what_is_needed_to_settle_is_no_growth() {
        let mut seen: Vec<u64> = (1..=100).collect();
        seen[50] = 1_000;
        assert_eq!(summary(&seen), [11, 1_000, 100]);
        assert_eq!(summary(&[]), [0, 0, 0]);
    }
}
