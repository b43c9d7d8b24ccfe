//! `trunkline-bench serial`: clients of a pooled listener run transactions on a few lists while the leader is lost or moves;
//! what they read must be what their isolation level promises. Others look at the lists on the read port.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use tokio_postgres::Config;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::check::list_append::{Level, elle};
use crate::load::append::{self, Appenders, Seen};
use crate::load::writers;
use crate::report::Progress;
use crate::stack::member::{Synchronous, Timing};
use crate::stack::router::Pooled;
use crate::stack::{APP, Layout, Plan, Stack};
use crate::switchover::PORT;
use control::Control;
use fault::Fault;
use replicas::{Lagging, Looks, Readers};
use results::Results;

pub mod control;
pub mod fault;
pub mod replicas;
mod results;

/// The cluster may take so long until everybody streams again.
const WHOLE: Duration = Duration::from_secs(60);
/// Readers on the read port.
const READERS: usize = 2;
/// The pause between two looks of one of them.
const READ_PACE: Duration = Duration::from_millis(20);
/// The most bytes by which a replica may lag that serves reads: far more than clients write between two records of a member.
const MAX_LAG: u64 = 1_048_576;

/// The options of `serial`.
#[derive(Args, Debug)]
pub struct SerialOptions {
    /// Seconds that the clients run, the fault's own time not counted
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The isolation level of every transaction
    #[arg(long, value_enum, default_value_t = Level::Serializable)]
    level: Level,
    /// What happens in the middle
    #[arg(long, value_enum, default_value_t = Fault::KillPostgres)]
    fault: Fault,
    /// One PostgreSQL without agents, router and fault instead: what is PostgreSQL's own
    #[arg(long)]
    control: bool,
    /// Clients
    #[arg(long, default_value_t = 8)]
    clients: i32,
    /// How commits wait for standbys; they always do, since what no standby has may be lost with its leader
    #[arg(long, value_enum, default_value_t = Synchronous::On)]
    sync: Synchronous,
    /// The number by which the transactions are drawn, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
    /// Write the history to this file, as Elle reads it (JSON lines)
    #[arg(long)]
    history: Option<PathBuf>,
    /// Copy the logs of agents and router to this folder at the end
    #[arg(long)]
    keep_logs: Option<PathBuf>,
    /// Write the results to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

impl SerialOptions {
    /// A short run for a test.
    pub fn short(fault: Fault) -> Self {
        Self {
            seconds: 6,
            level: Level::Serializable,
            fault,
            control: false,
            clients: 8,
            sync: Synchronous::On,
            seed: None,
            history: None,
            keep_logs: None,
            json: None,
        }
    }
}

/// What a run left to be judged.
struct Course {
    seen: Seen,
    fault_over: Moment,
    looks: Looks,
    lagging: Option<Lagging>,
}

/// Runs it; whether the level's promise was kept.
pub async fn run(options: &SerialOptions) -> Result<bool> {
    let progress = Progress::new();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let course = match options.control {
        true => on_one_server(options, seed, &progress).await?,
        false => on_a_stack(options, seed, &progress).await?,
    };
    progress.done();
    if let Some(file) = &options.history {
        std::fs::write(file, elle::lines(&course.seen.history))?;
    }
    let results = Results::judge(options, seed, course);
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(results.tell())
}

async fn on_one_server(options: &SerialOptions, seed: u64, progress: &Progress) -> Result<Course> {
    let control = Control::start(progress).await?;
    let direct = append::connect(&control.config).await?;
    append::prepare(&direct, control::DATABASE).await?;
    let load = start(&control.config, options, seed);
    let began = clock::now();
    progress.step(format!("{} s on one server", options.seconds));
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    Ok(Course {
        seen: finish(&control.config, options.level, load).await?,
        fault_over: began,
        looks: Looks::default(),
        lagging: None,
    })
}

async fn on_a_stack(options: &SerialOptions, seed: u64, progress: &Progress) -> Result<Course> {
    let mut stack = Stack::start(&plan(options), progress).await?;
    let leader = stack.leader().await?;
    writers::prepare(&stack, leader).await?;
    append::prepare(&stack.members[leader].sql(APP).await?, APP).await?;
    stack.until_converged(WHOLE).await?;
    let config = writers::client_config(&stack.router.address, PORT);
    let load = start(&config, options, seed);
    let read_config = writers::client_config(&stack.router.address, stack.router.read_port);
    let readers = Readers::start(&read_config, READERS, READ_PACE);
    let half = Duration::from_secs(options.seconds) / 2;
    progress.step(format!("{} s before the fault", half.as_secs_f64()));
    tokio::time::sleep(half).await;
    let name = options.fault.name();
    progress.step(format!("the fault: {name}"));
    let inflicted = options.fault.inflict(&mut stack).await;
    let fault_over = clock::now();
    progress.step(format!("{} s after it", half.as_secs_f64()));
    tokio::time::sleep(half).await;
    let whole = stack.until_converged(WHOLE).await;
    let looks = readers.finish().await?;
    let seen = finish(&config, options.level, load).await;
    if let Some(folder) = &options.keep_logs {
        stack.keep_logs(folder)?;
    }
    let lagging = inflicted?;
    whole?;
    Ok(Course {
        seen: seen?,
        fault_over,
        looks,
        lagging,
    })
}

fn start(config: &Config, options: &SerialOptions, seed: u64) -> Appenders {
    let ways = std::slice::from_ref(config);
    Appenders::start(ways, options.level, options.clients, seed, append::PACE)
}

fn plan(options: &SerialOptions) -> Plan {
    Plan {
        pooled: Some(Pooled::by_password(&[(PORT, "transaction")])),
        timing: Timing {
            synchronous: Some(options.sync),
            ..Timing::default()
        },
        max_lag: Some(MAX_LAG),
        ..Plan::new(match options.fault.wants_namespaces() {
            true => Layout::Namespaces,
            false => Layout::Loopback,
        })
    }
}

/// Ends the clients and reads everything once more.
async fn finish(config: &Config, level: Level, load: Appenders) -> Result<Seen> {
    let mut seen = load.finish().await?;
    if seen.history.transactions.is_empty() {
        bail!(
            "no client ran a transaction; they were told {:?}",
            seen.errors
        );
    }
    append::read_all(config, level, &mut seen.history).await?;
    Ok(seen)
}
