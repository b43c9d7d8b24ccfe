//! Log format and start of the log, identical in both programs.

use std::str::FromStr;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Why the log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is none.
    #[error(
        "log level \"{0}\" is not usable; allowed: ERROR, WARNING, INFO, DEBUG, TRACE, or a filter such as info,trunkline_agent::lease=debug"
    )]
    Level(String),
    /// Something else writes the log already.
    #[error("the log was started twice")]
    Twice,
}

/// Changes the level while the program runs.
#[derive(Clone, Debug)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
}

impl LogLevel {
    /// Changes the level.
    ///
    /// # Errors
    /// If the text is no level; the old one stays.
    pub fn set(&self, level: &str) -> Result<(), LoggingError> {
        let filter = filter(level)?;
        self.handle.reload(filter).map_err(|_| LoggingError::Twice)
    }
}

/// Patroni's and PostgreSQL's words, or a filter by module.
fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let word = match level.trim().to_ascii_uppercase().as_str() {
        "CRITICAL" | "FATAL" | "ERROR" => "error",
        "WARNING" | "WARN" => "warn",
        "INFO" | "NOTICE" | "" => "info",
        "DEBUG" => "debug",
        "TRACE" | "NOTSET" => "trace",
        _ => return EnvFilter::from_str(level).map_err(|_| LoggingError::Level(level.to_owned())),
    };
    // The libraries below speak of every frame; their debug is asked for by name.
    let text = match word {
        "debug" | "trace" => format!(
            "info,trunkline_agent={word},trunkline_router={word},trunkline_shared={word},trunkline={word}"
        ),
        _ => word.to_owned(),
    };
    EnvFilter::from_str(&text).map_err(|_| LoggingError::Level(level.to_owned()))
}

/// Starts the log on standard error.
///
/// # Errors
/// If the level is unusable, or the log was started before.
pub fn start(level: &str, format: LogFormat) -> Result<LogLevel, LoggingError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_file(false)
        .with_line_number(false);
    let started = match format {
        LogFormat::Plain => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry
            .with(lines.json().flatten_event(true).with_current_span(false))
            .try_init(),
    };
    started.map_err(|_| LoggingError::Twice)?;
    Ok(LogLevel { handle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_patronis_words_or_filters() {
        for level in [
            "INFO",
            "warning",
            "DEBUG",
            "critical",
            "info,trunkline_agent::lease=debug",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
        let error = filter("=loud=").unwrap_err().to_string();
        assert!(
            error.contains("=loud=") && error.contains("WARNING"),
            "{error}"
        );
    }
}
