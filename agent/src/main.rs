//! The agent's program: arguments, configuration, exit code.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use trunkline_agent::config::arguments::Arguments;
use trunkline_agent::config::{self, AgentConfig, ConfigError, Warning};
use trunkline_agent::run::{self, Inherited, Kept};
use trunkline_agent::{fence, generate, metrics, validate};
use trunkline_shared::service::logging;
use trunkline_shared::service::metrics::Metrics;
use trunkline_shared::service::tls;

/// The configuration cannot be used: nothing was started.
const EXIT_CONFIG: u8 = 2;

/// The threads of the loop's runtime; the lease has its own.
const WORKERS: usize = 2;

/// A configuration was asked about, and has mistakes; or one was asked for, and there is none.
const EXIT_MISTAKES: u8 = 1;

fn main() -> ExitCode {
    if let Some(code) = fence::main_if_fence() {
        return code;
    }
    // Before anything is opened.
    let inherited = Inherited::take(&config::environment());
    let arguments = Arguments::parse();
    if arguments.generate_sample_config {
        return give(arguments.config.as_deref(), config::SAMPLE);
    }
    if arguments.generate_config {
        return generate_config(&arguments);
    }
    if arguments.validate_config {
        return validate_config(&arguments);
    }
    let (config, warnings) = match load(&arguments) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error.to_string()),
    };
    if arguments.check_start {
        return match run::check_files(&config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&error.to_string()),
        };
    }
    if rustix::process::geteuid().is_root() {
        return refuse(
            "PostgreSQL does not run as root, and neither does its agent: run it as the postgres user, \
             e.g. setpriv --reuid=postgres --regid=postgres --init-groups trunkline-agent CONFIG",
        );
    }
    start(config, &warnings, arguments, inherited)
}

/// Runs what needs no agent to its end.
fn finish<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| format!("the system gives no event loop: {error}"))?;
    Ok(runtime.block_on(work))
}

fn validate_config(arguments: &Arguments) -> ExitCode {
    let environment = config::environment();
    let asked = validate::Asked {
        ignore_listen_port: arguments.ignore_listen_port,
    };
    let validating = validate::validate(arguments.config.as_deref(), &environment, asked);
    let examined = match finish(validating) {
        Ok(examined) => examined,
        Err(why) => return fail(&why),
    };
    if let Some(config) = examined.config.as_ref().filter(|_| arguments.print) {
        print(&config.source.yaml());
    }
    let (mistakes, warnings) = (&examined.mistakes, &examined.warnings);
    mistakes.iter().for_each(|m| say(&format!("error: {m}")));
    warnings.iter().for_each(|w| say(&format!("warning: {w}")));
    say(&format!(
        "{}: {} error(s), {} warning(s)",
        match &arguments.config {
            Some(path) => path.display().to_string(),
            None => "environment".to_owned(),
        },
        mistakes.len(),
        warnings.len()
    ));
    match mistakes.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_MISTAKES),
    }
}

fn generate_config(arguments: &Arguments) -> ExitCode {
    let environment = config::environment();
    let generating = generate::of_a_running_instance(arguments.dsn.as_deref(), &environment);
    match finish(generating) {
        Ok(Ok(text)) => give(arguments.config.as_deref(), &text),
        Ok(Err(error)) => fail(&error.to_string()),
        Err(why) => fail(&why),
    }
}

/// Writes a configuration into the file that was named, or to standard output.
fn give(path: Option<&Path>, text: &str) -> ExitCode {
    match path.map(|path| generate::write(path, text)) {
        None => {
            print(text);
            ExitCode::SUCCESS
        }
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => fail(&error.to_string()),
    }
}

fn start(
    config: AgentConfig,
    warnings: &[Warning],
    arguments: Arguments,
    inherited: Inherited,
) -> ExitCode {
    let log = match logging::start(config.log.clone()) {
        Ok(log) => log,
        Err(error) => return refuse(&error.to_string()),
    };
    let _flushed = log.flushed_at_end();
    warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    config
        .effective
        .iter()
        .for_each(|line| tracing::debug!("{line}"));
    // One provider for the process; a second call would be the only way to fail.
    let _ = Arc::unwrap_or_clone(tls::provider()).install_default();
    let read = move || load(&arguments).map_err(|error| error.to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let ended = match (runtime, Metrics::install()) {
        (Ok(runtime), Ok(registry)) => {
            metrics::describe();
            let kept = Kept { log, inherited };
            runtime
                .block_on(run::run(config, Arc::new(read), registry, kept))
                .map_err(|error| error.to_string())
        }
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

/// To standard output. Who reads only the beginning of it, as `head` does, does no harm.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn say(text: &str) {
    eprintln!("{text}");
}

fn fail(text: &str) -> ExitCode {
    say(text);
    ExitCode::from(EXIT_MISTAKES)
}

fn refuse(text: &str) -> ExitCode {
    say(text);
    ExitCode::from(EXIT_CONFIG)
}
