//! `trunkline-router`: arguments, configuration, exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use trunkline_router::config::RouterConfig;
use trunkline_router::run;

/// Carries client connections to the right PostgreSQL.
#[derive(Parser)]
#[command(name = "trunkline-router", version)]
struct Arguments {
    /// The router's file (YAML).
    config: PathBuf,
    /// Check the file and exit.
    #[arg(long)]
    validate: bool,
    /// Take the ports over from the running router (send it SIGQUIT after starting this).
    #[arg(long)]
    upgrade: bool,
}

/// The exit code for a file that cannot be used.
const WRONG_CONFIGURATION: u8 = 2;

// Synchronous: pingora builds one runtime per service.
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match RouterConfig::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    if arguments.validate {
        eprintln!("{} is usable", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    match run::run(config, arguments.config, arguments.upgrade) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trunkline-router: {error}");
            ExitCode::FAILURE
        }
    }
}
