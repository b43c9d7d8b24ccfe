//! `trunkline-bench`: demo, faults under load, measurements.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use trunkline_bench::{
    crashes, cuts, demo, failover, faults, model, mutants, patroni, pools, report, serial,
    side_by_side, simulation, soak, switchover, throughput,
};

/// Judges Trunkline from outside, on real PostgreSQL and etcd.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// The leader's postmaster killed again and again: is every error that a client hears deserved?
    Crashes(crashes::CrashesOptions),
    /// Sessions of modes tcp and session while their leader goes: when they end, and in the middle of what
    Cuts(cuts::CutsOptions),
    /// A cluster of three with etcd and a router in a box, until Ctrl-C
    Demo(demo::DemoOptions),
    /// Faults under load, each judged against its bar
    Failover(failover::FailoverOptions),
    /// Every state of small clusters: synchronous standbys, the fence, a router
    Model(model::ModelOptions),
    /// The fault matrix, row by row on real processes
    Faults(faults::FaultsOptions),
    /// Rules of the agent broken one by one: does the proof of each promise notice?
    Mutants(mutants::MutantsOptions),
    /// Beside Patroni, in its place, and under the tools of its users
    Patroni(patroni::PatroniOptions),
    /// Clients that share servers, judged from their side
    Pools(pools::PoolsOptions),
    /// Transactions on lists while the leader is lost or moves: did each read what its isolation level promises?
    Serial(serial::SerialOptions),
    /// Trunkline, and Patroni with HAProxy and PgBouncer: the same faults under the same clients
    SideBySide(side_by_side::SideBySideOptions),
    /// Seeded histories of the whole system in one process, judged after every event
    #[command(alias = "simulation")]
    Simulate(simulation::command::SimulateOptions),
    /// What an idle leader's agent costs, quiet and under health checks
    Soak(soak::SoakOptions),
    /// Planned changes of leader back to back, under clients that write in every way
    Switchover(switchover::SwitchoverOptions),
    /// The router and its rivals in turn: throughput, CPU per transaction, memory per idle client
    Throughput(throughput::ThroughputOptions),
    /// The null relay that throughput measures beside
    #[command(hide = true)]
    Relay(throughput::relay::RelayOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Relay(options) = &arguments.command {
        let Err(error) = throughput::relay::run(options) else {
            return ExitCode::SUCCESS;
        };
        report::complain(format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            report::complain(format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments.command)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::complain(format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the command until it ends or is interrupted; either way the stack is dropped here, and so removed.
/// An interrupted demo has done what it was asked for.
async fn run(command: Command) -> Result<bool> {
    let is_demo = matches!(command, Command::Demo(_));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let work = async {
        match &command {
            Command::Crashes(options) => crashes::run(options).await,
            Command::Cuts(options) => cuts::run(options).await,
            Command::Demo(options) => demo::run(options).await.map(|()| true),
            Command::Failover(options) => failover::run(options).await,
            Command::Model(options) => model::run(options),
            Command::Faults(options) => faults::run(options).await,
            Command::Mutants(options) => mutants::run(options).await,
            Command::Patroni(options) => patroni::run(options).await,
            Command::Pools(options) => pools::run(options).await,
            Command::Serial(options) => serial::run(options).await,
            Command::SideBySide(options) => side_by_side::run(options).await,
            Command::Simulate(options) => simulation::command::run(options),
            Command::Soak(options) => soak::run(options).await,
            Command::Switchover(options) => switchover::run(options).await,
            Command::Throughput(options) => throughput::run(options).await.map(|()| true),
            // It runs before there is a runtime.
            Command::Relay(_) => Ok(true),
        }
    };
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Ok(stopped(is_demo)),
        _ = terminate.recv() => Ok(stopped(is_demo)),
    }
}

fn stopped(is_demo: bool) -> bool {
    report::say("\nstopped; everything is removed");
    is_demo
}
