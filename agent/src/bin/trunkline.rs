//! The operator's command: arguments and exit code; everything else is in `trunkline_agent::ctl`.

use std::process::ExitCode;

use clap::Parser;
use trunkline_agent::config::environment;
use trunkline_agent::ctl::{self, arguments::Arguments};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime
            .block_on(ctl::run(arguments, &environment()))
            .map_err(|error| (error.to_string(), error.exit_code())),
        Err(error) => Err((format!("the system gives no event loop: {error}"), 1)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err((text, code)) => {
            eprintln!("Error: {text}");
            ExitCode::from(code)
        }
    }
}
