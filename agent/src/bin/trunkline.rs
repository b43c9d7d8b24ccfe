//! The operator's command: arguments and exit code; everything else is in `trunkline_agent::ctl`.

use std::process::ExitCode;

use clap::Parser;
use trunkline_agent::config::environment;
use trunkline_agent::ctl::arguments::Arguments;
use trunkline_agent::ctl::{self, terminal::Terminal};

/// The exit code that shells give to what SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: the system gives no event loop: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(until_interrupted(arguments));
    // Somebody may still be asked: the answer is not waited for.
    runtime.shutdown_background();
    code
}

/// Carries the command out; an interrupt ends it with a word on what goes on in the cluster.
async fn until_interrupted(arguments: Arguments) -> ExitCode {
    let env = environment();
    let terminal = Terminal::new(env.contains_key("NO_COLOR"));
    let done = tokio::select! {
        done = ctl::run(arguments, &env, &terminal, ctl::etcd) => done,
        Ok(()) = tokio::signal::ctrl_c() => {
            eprintln!("\n{}", terminal.interrupted());
            return ExitCode::from(INTERRUPTED);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
