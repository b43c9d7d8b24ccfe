//! The agent's program: arguments, configuration, exit code.

use std::process::ExitCode;

use clap::Parser;
use trunkline_agent::config::arguments::Arguments;
use trunkline_agent::config::{self, AgentConfig, ConfigError, Warning};
use trunkline_agent::{fence, run};
use trunkline_shared::service::logging::{self, LogFormat};
use trunkline_shared::service::metrics::Metrics;
use trunkline_shared::service::tls;

/// The configuration cannot be used: nothing was started.
const EXIT_CONFIG: u8 = 2;

/// The threads of the loop's runtime; the lease has its own.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    if let Some(code) = fence::main_if_fence() {
        return code;
    }
    let arguments = Arguments::parse();
    if arguments.generate_sample_config {
        return print(config::SAMPLE);
    }
    let (config, warnings) = match load(&arguments) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error.to_string()),
    };
    if arguments.validate_config {
        warnings
            .iter()
            .for_each(|warning| say(&warning.to_string()));
        return ExitCode::SUCCESS;
    }
    if rustix::process::geteuid().is_root() {
        return refuse(
            "PostgreSQL does not run as root, and neither does its agent: run it as the postgres user, \
             e.g. setpriv --reuid=postgres --regid=postgres --init-groups trunkline-agent CONFIG",
        );
    }
    start(config, &warnings, arguments)
}

fn start(config: AgentConfig, warnings: &[Warning], arguments: Arguments) -> ExitCode {
    let format = if config.log.is_json {
        LogFormat::Json
    } else {
        LogFormat::Plain
    };
    if let Err(error) = logging::start(&config.log.level, format) {
        return refuse(&error.to_string());
    }
    warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    config
        .effective
        .iter()
        .for_each(|line| tracing::debug!("{line}"));
    // One provider for the process; a second call would be the only way to fail.
    let _ = std::sync::Arc::unwrap_or_clone(tls::provider()).install_default();
    let read = move || {
        load(&arguments)
            .map(|(config, _)| config)
            .map_err(|e| e.to_string())
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let ended = match (runtime, Metrics::install()) {
        (Ok(runtime), Ok(metrics)) => runtime
            .block_on(run::run(config, Box::new(read), metrics))
            .map_err(|error| error.to_string()),
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error.to_string()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn load(arguments: &Arguments) -> Result<(AgentConfig, Vec<Warning>), ConfigError> {
    let environment = config::environment();
    match &arguments.config {
        Some(path) => config::load(path, &environment),
        None => config::load_environment(&environment),
    }
}

#[expect(clippy::print_stdout, reason = "asked for on the command line")]
fn print(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

fn say(text: &str) {
    eprintln!("{text}");
}

fn refuse(text: &str) -> ExitCode {
    say(text);
    ExitCode::from(EXIT_CONFIG)
}
