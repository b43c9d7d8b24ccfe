//! `trunkline-bench soak`: what an idle agent costs as leader, quiet and under the health checks of load balancers, and
//! what Patroni costs in the same place.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::patroni::rig::Outside;
use crate::report::{self, Progress, say};
use crate::stack::member::Product;
use measured::{Load, Measured, Phase};

mod measured;

/// Most memory of an idle leader's agent, in kB.
const MEMORY_BAR: u64 = 20 * 1024;
/// Most CPU of an idle leader's agent and fence together, in per cent of a core.
const CPU_BAR: f64 = 0.3;
/// Most revisions of etcd in 10 s while nothing happens.
const REVISIONS_BAR: f64 = 1.0;
/// Most growth of the memory under health checks, in kB, from the end of the first tenth on.
const GROWTH_BAR: u64 = 1024;

/// The options of `soak`.
#[derive(Args, Debug)]
pub struct SoakOptions {
    /// Seconds without a health check
    #[arg(long, default_value_t = 120)]
    quiet: u64,
    /// Seconds with health checks
    #[arg(long, default_value_t = 1800)]
    checked: u64,
    /// Health checks a second, over all members of a cluster
    #[arg(long, default_value_t = 50)]
    checks: u32,
    /// Measure Patroni beside it, in a cluster of its own at the same time: the folder of the programs `patroni` and
    /// `patronictl` (4.1), which `deploy/outside-tools` fetches
    #[arg(long, env = "TRUNKLINE_PATRONI")]
    patroni: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// PostgreSQL's programs, if not the newest installed
    #[arg(long)]
    pg_bin: Option<PathBuf>,
}

/// Measures both phases and judges Trunkline's.
pub async fn run(options: &SoakOptions) -> Result<bool> {
    let progress = Progress::new();
    let postgresql = options.pg_bin.as_deref();
    let ours = Measured::start(Product::Trunkline, None, postgresql, &progress).await?;
    let mut clusters = vec![ours];
    let mut compared_with = String::new();
    if let Some(folder) = &options.patroni {
        let outside = Outside::find(Some(folder), None, None).await?;
        let program = Some(outside.patroni.as_path());
        clusters.push(Measured::start(Product::Patroni, program, postgresql, &progress).await?);
        compared_with = format!(", {} beside it", outside.versions());
    }
    progress.step("waiting for the end of what a bootstrap writes");
    for cluster in &clusters {
        cluster.settle().await?;
    }
    let quiet = Load {
        name: "quiet",
        length: Duration::from_secs(options.quiet),
        checks: 0,
    };
    let checked = Load {
        name: "checked",
        length: Duration::from_secs(options.checked),
        checks: options.checks,
    };
    let mut phases = Vec::new();
    for load in [quiet, checked] {
        phases.extend(beside_each_other(&clusters, load, &progress).await?);
    }
    progress.done();
    let leads_still = clusters[0].leads_still().await?;
    say(format!(
        "the leader's agent with two replicas, ttl 30, loop_wait 10{compared_with}; {}",
        report::machine()
    ));
    say(table(&phases));
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&phases)?)?;
    }
    let missed = missed(&phases, leads_still);
    missed.iter().for_each(|why| say(format!("MISSED: {why}")));
    Ok(missed.is_empty())
}

/// The same load on every cluster at the same time.
async fn beside_each_other(
    clusters: &[Measured],
    load: Load,
    progress: &Progress,
) -> Result<Vec<Phase>> {
    match clusters {
        [one] => Ok(vec![one.measure(load, progress).await?]),
        [one, other] => {
            let both = tokio::join!(one.measure(load, progress), other.measure(load, progress));
            Ok(vec![both.0?, both.1?])
        }
        _ => anyhow::bail!("one or two clusters are measured, not {}", clusters.len()),
    }
}

/// What of Trunkline's figures is above its bar. Patroni's are for comparison.
fn missed(phases: &[Phase], leads_still: bool) -> Vec<String> {
    let mut missed = Vec::new();
    let mut judge = |is_met: bool, why: String| {
        if !is_met {
            missed.push(why);
        }
    };
    let ours: Vec<_> = phases.iter().filter(|phase| phase.is_ours()).collect();
    let [quiet, checked] = ours[..] else {
        return vec!["there are not two phases".to_owned()];
    };
    judge(leads_still, "the leader changed".to_owned());
    judge(
        quiet.memory.most <= MEMORY_BAR,
        format!(
            "{} kB of memory, the bar is {MEMORY_BAR}",
            quiet.memory.most
        ),
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
    let grown = checked.memory.grown();
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

fn table(phases: &[Phase]) -> String {
    let head = [
        "phase",
        "kept by",
        "s",
        "memory kB: start, middle, end",
        "most",
        "flat",
        "beside it kB",
        "CPU %",
        "revisions/10 s",
        "checks",
        "failed",
    ];
    let row = |phase: &Phase| {
        let memory = &phase.memory;
        let flat = match memory.grown() {
            grown if grown <= GROWTH_BAR => "yes".to_owned(),
            grown => format!("no, +{grown}"),
        };
        vec![
            phase.name.to_owned(),
            phase.kept_by.clone(),
            format!("{:.0}", phase.seconds),
            format!("{}, {}, {}", memory.start, memory.middle, memory.end),
            memory.most.to_string(),
            flat,
            phase.memory_beside.to_string(),
            format!("{:.2}", phase.cpu),
            format!("{:.2}", phase.revisions_per_10_s),
            phase.checks.to_string(),
            phase.failed_checks.to_string(),
        ]
    };
    let rows: Vec<_> = phases.iter().map(row).collect();
    report::table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::measured::Memory;
    use super::*;

    fn phase(kept_by: Product, [start, most]: [u64; 2], (cpu, revisions): (f64, f64)) -> Phase {
        Phase {
            name: "a phase",
            kept_by: kept_by.to_string(),
            seconds: 10.0,
            memory: Memory {
                start,
                middle: most,
                end: start,
                most,
            },
            memory_beside: 0,
            cpu,
            revisions_per_10_s: revisions,
            checks: 1,
            failed_checks: 0,
        }
    }

    #[test]
    fn each_bar_is_told_when_it_is_missed() {
        let good = || phase(Product::Trunkline, [9_000, 9_100], (0.2, 0.9));
        assert!(missed(&[good(), good()], true).is_empty());
        assert_eq!(missed(&[good(), good()], false).len(), 1);
        let bad = phase(Product::Trunkline, [9_000, MEMORY_BAR + 1], (0.31, 1.1));
        assert_eq!(missed(&[bad, good()], true).len(), 3);
        let mut grows = phase(Product::Trunkline, [9_000, 9_001 + GROWTH_BAR], (9.0, 9.0));
        grows.failed_checks = 1;
        assert_eq!(missed(&[good(), grows], true).len(), 2);
        assert_eq!(missed(&[good()], true).len(), 1);
    }

    #[test]
    fn what_patroni_costs_is_told_and_not_judged() {
        let good = || phase(Product::Trunkline, [9_000, 9_100], (0.2, 0.9));
        let other = || phase(Product::Patroni, [40_000, 90_000], (2.0, 3.0));
        let all = [good(), other(), good(), other()];
        assert!(missed(&all, true).is_empty());
        assert!(table(&all).contains("no, +50000"));
    }
}
