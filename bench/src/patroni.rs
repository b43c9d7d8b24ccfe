//! `trunkline-bench patroni`: Trunkline beside Patroni, in its place, and under the tools of its users.
//!
//! Patroni is not part of what is built or installed here: its programs are named by `--patroni`, and
//! `deploy/outside-tools` fetches them and whatever else Debian's own packages lack.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::report::{self, Progress, say};
use crate::stack::member::Timing;
use course::Line;
use rig::Outside;

pub mod course;
pub mod field;
pub mod haproxy;
pub mod migration;
pub mod mixed;
pub mod rig;
pub mod tools;

/// Patroni's smallest `ttl`, with the smallest other times that its users publish for it.
pub const TIMING: (u32, u32, u32) = (20, 5, 5);

/// The options of `patroni`.
#[derive(Args, Debug)]
pub struct PatroniOptions {
    /// Which of them; if none is named all, `field` only with `--from`
    scenarios: Vec<Scenario>,
    /// The folder of the programs `patroni` and `patronictl` (4.1): `deploy/outside-tools` fetches them
    #[arg(long, env = "TRUNKLINE_PATRONI")]
    patroni: Option<PathBuf>,
    /// A vip-manager that reads etcd 3 (2.0 or newer): `deploy/outside-tools` fetches one
    #[arg(long, env = "TRUNKLINE_VIP_MANAGER")]
    vip_manager: Option<PathBuf>,
    /// The folder of the programs `prometheus` and `promtool`, if not on the PATH
    #[arg(long, env = "TRUNKLINE_PROMETHEUS")]
    prometheus: Option<PathBuf>,
    /// The folder of agent files (*.yml) for `field`
    #[arg(long)]
    from: Option<PathBuf>,
    /// Writers through HAProxy
    #[arg(long, default_value_t = 8)]
    writers: i32,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep the logs of the clusters in this folder
    #[arg(long)]
    keep_logs: Option<PathBuf>,
}

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Members of both kinds in one cluster: changes of leader in both directions, pause, failsafe
    Mixed,
    /// Patroni's members replaced one by one and back, on the same files, under writers
    Migration,
    /// patronictl, HAProxy, vip-manager and Prometheus on a cluster of Trunkline alone
    Tools,
    /// Agent files of other sites, but for addresses, paths and store: a cluster of Trunkline's fails over with each
    Field,
}

/// Runs them; true if everything held.
pub async fn run(options: &PatroniOptions) -> Result<bool> {
    let progress = Progress::new();
    let is_possible = |scenario: &Scenario| *scenario != Scenario::Field || options.from.is_some();
    let wanted: Vec<_> = match options.scenarios.is_empty() {
        true => Scenario::value_variants()
            .iter()
            .copied()
            .filter(is_possible)
            .collect(),
        false => options.scenarios.clone(),
    };
    let (vip_manager, prometheus) = (options.vip_manager.clone(), options.prometheus.clone());
    let outside = Outside::find(options.patroni.as_deref(), vip_manager, prometheus).await?;
    say(format!(
        "machine: {}; writers: {}; {}",
        report::machine(),
        options.writers,
        outside.versions()
    ));
    let mut all = Vec::new();
    for scenario in wanted {
        let setup = Setup {
            outside: &outside,
            writers: options.writers,
            keep_logs: options.keep_logs.clone(),
            progress: &progress,
        };
        let lines = match scenario {
            Scenario::Mixed => mixed::run(&setup).await,
            Scenario::Migration => migration::run(&setup).await,
            Scenario::Tools => tools::run(&setup).await,
            Scenario::Field => match &options.from {
                Some(folder) => field::run(&setup, folder).await,
                None => Err(anyhow::anyhow!("name the folder of the files by --from")),
            },
        };
        all.extend(lines.unwrap_or_else(|error| vec![Line::broke_off(scenario, &error)]));
    }
    progress.done();
    say(course::table(&all));
    for line in &all {
        for fault in &line.faults {
            say(format!("FAULT {}: {fault}", line.what));
        }
        for note in &line.notes {
            say(format!("{}: {note}", line.what));
        }
    }
    let held = all.iter().filter(|line| line.faults.is_empty()).count();
    say(format!("{held} of {} held", all.len()));
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(held == all.len())
}

/// What every scenario is given.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The programs of others.
    pub outside: &'a Outside,
    /// Writers through HAProxy.
    pub writers: i32,
    /// Where logs are kept, if at all.
    pub keep_logs: Option<PathBuf>,
    /// What people see meanwhile.
    pub progress: &'a Progress,
}

/// The times of a cluster in which Patroni takes part.
pub fn timing() -> Timing {
    let (ttl, loop_wait, retry_timeout) = TIMING;
    Timing {
        ttl,
        loop_wait,
        retry_timeout,
        ..Timing::default()
    }
}
