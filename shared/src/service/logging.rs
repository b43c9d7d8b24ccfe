//! The log of both programs: levels, looks, and a thread of its own that writes. Who logs never waits for a disk.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use self::output::Open;
pub use self::output::{LogFiles, Output};
use self::queue::Next;
pub use self::queue::Queue;
use self::style::Said;
pub use self::style::{Style, StyleError};
use super::clock;

mod output;
mod queue;
mod style;

/// How many lines may wait to be written, unless told otherwise: Patroni's number.
pub const DEFAULT_QUEUE: usize = 1000;

/// How long an ending process waits for its last lines to be written.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a start waits to hear that the log can be written.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

/// What the log is told.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// A level in Patroni's or PostgreSQL's words, or a filter such as `info,trunkline_agent::lease=debug`.
    pub level: String,
    /// Levels of single modules, by the beginning of their names.
    pub modules: Vec<(String, String)>,
    /// How lines look.
    pub style: Style,
    /// Where they go.
    pub output: Output,
    /// How many of them may wait.
    pub queue: usize,
}

impl LogSettings {
    /// A level and a look, on standard error.
    pub fn new(level: &str, style: Style) -> Self {
        Self {
            level: level.to_owned(),
            modules: Vec::new(),
            style,
            output: Output::StandardError,
            queue: DEFAULT_QUEUE,
        }
    }
}

/// Why the log cannot be as it is told.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is none.
    #[error(
        "log level \"{0}\" is not usable; allowed: ERROR, WARNING, INFO, DEBUG, TRACE, or a filter such as info,trunkline_agent::lease=debug"
    )]
    Level(String),
    /// The file cannot be written.
    #[error("the log {path} cannot be written: {source}; make its folder, writable for this user")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread that writes cannot be started.
    #[error("the log's thread cannot be started: {0}")]
    Thread(std::io::Error),
    /// Something else writes the log already.
    #[error("the log was started twice")]
    Twice,
}

/// The log, to be told something else while the program runs. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
    style: Arc<ArcSwap<Style>>,
    queue: Queue,
    orders: Arc<Mutex<Option<Output>>>,
}

impl Log {
    /// Changes the level alone.
    ///
    /// # Errors
    /// If the text is no level; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), LoggingError> {
        let filter = filter(level, &[])?;
        self.filter.reload(filter).map_err(|_| LoggingError::Twice)
    }

    /// Changes everything. Files are opened anew, so that whoever moved them away gets new ones; one that cannot be
    /// opened is told of in the output from before, which stays.
    ///
    /// # Errors
    /// If a level is none; nothing has changed then.
    pub fn tell(&self, settings: LogSettings) -> Result<(), LoggingError> {
        let filter = filter(&settings.level, &settings.modules)?;
        self.filter
            .reload(filter)
            .map_err(|_| LoggingError::Twice)?;
        self.style.store(Arc::new(settings.style));
        self.queue.limit_to(settings.queue);
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings.output);
        self.queue.order();
        Ok(())
    }

    /// What waits and what was lost.
    pub fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Waits until everything is written, for [`LAST_WORDS`] at the longest: to be called before the process ends, or
    /// becomes another program.
    pub fn flush(&self) {
        self.queue.flush(LAST_WORDS);
    }

    /// Flushes when it goes out of scope.
    pub fn flushed_at_end(&self) -> FlushedAtEnd {
        FlushedAtEnd(self.clone())
    }
}

/// Flushes the log when it goes out of scope.
#[derive(Debug)]
pub struct FlushedAtEnd(Log);

impl Drop for FlushedAtEnd {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Whether this can be a level: a word, or a filter by module.
pub fn is_level(level: &str) -> bool {
    filter(level, &[]).is_ok()
}

/// Whether this is a level's word.
pub fn is_word(level: &str) -> bool {
    word(level).is_some()
}

/// Patroni's and PostgreSQL's words, or a filter by module; then the modules with levels of their own.
fn filter(level: &str, modules: &[(String, String)]) -> Result<EnvFilter, LoggingError> {
    let mut text = match word(level) {
        // The libraries below speak of every frame; their debug is asked for by name.
        Some(word @ ("debug" | "trace")) => format!(
            "info,trunkline_agent={word},trunkline_router={word},trunkline_shared={word},trunkline={word}"
        ),
        Some(word) => word.to_owned(),
        None => level.to_owned(),
    };
    for (module, level) in modules {
        let word = word(level).ok_or_else(|| LoggingError::Level(format!("{module}: {level}")))?;
        text.push_str(&format!(",{}={word}", target(module)));
    }
    EnvFilter::from_str(&text).map_err(|_| LoggingError::Level(text))
}

fn word(level: &str) -> Option<&'static str> {
    match level.trim().to_ascii_uppercase().as_str() {
        "CRITICAL" | "FATAL" | "ERROR" => Some("error"),
        "WARNING" | "WARN" => Some("warn"),
        "INFO" | "NOTICE" | "" => Some("info"),
        "DEBUG" => Some("debug"),
        "TRACE" | "NOTSET" => Some("trace"),
        _ => None,
    }
}

/// A module of a file that may be Patroni's: `patroni.api` is `trunkline_agent::api`, `etcd.client` is
/// `etcd::client`.
fn target(module: &str) -> String {
    let path = module.trim().replace('.', "::");
    match path.strip_prefix("patroni") {
        Some(rest) if rest.is_empty() || rest.starts_with("::") => format!("trunkline_agent{rest}"),
        Some(_) | None => path,
    }
}

/// Starts the log and its thread.
///
/// # Errors
/// If the level is unusable, the file cannot be opened, or the log was started before. A disk that hangs is none: lines
/// wait for it, and are lost.
pub fn start(settings: LogSettings) -> Result<Log, LoggingError> {
    let (filter, handle) = reload::Layer::new(filter(&settings.level, &settings.modules)?);
    let log = Log {
        filter: handle,
        style: Arc::new(ArcSwap::from_pointee(settings.style)),
        queue: Queue::of(settings.queue),
        orders: Arc::default(),
    };
    let (tell, opened) = mpsc::sync_channel(1);
    let (writer, output) = (Writer::of(&log), settings.output);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            let output = open(&output);
            let (output, outcome) = match output {
                Ok(output) => (Some(output), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Whoever started it may have gone on without the answer.
            let _ = tell.send(outcome);
            writer.write(output.unwrap_or(Open::StandardError));
        })
        .map_err(LoggingError::Thread)?;
    if let Ok(outcome) = opened.recv_timeout(OPEN_LIMIT) {
        outcome?;
    }
    let lines = Lines {
        style: log.style.clone(),
        queue: log.queue.clone(),
        program: program(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|_| LoggingError::Twice)?;
    Ok(log)
}

fn open(output: &Output) -> Result<Open, LoggingError> {
    Open::new(output).map_err(|source| LoggingError::File {
        path: match output {
            Output::StandardError => "standard error".to_owned(),
            Output::Files(files) => files.path.display().to_string(),
        },
        source,
    })
}

/// The program's own name.
fn program() -> Arc<str> {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().unwrap_or_default();
    Arc::from(name.to_string_lossy().as_ref())
}

/// Turns events into lines of the queue.
struct Lines {
    style: Arc<ArcSwap<Style>>,
    queue: Queue,
    program: Arc<str>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let metadata = event.metadata();
        let thread = std::thread::current();
        let line = self.style.load().line(Said {
            at: clock::wall_clock(),
            level: *metadata.level(),
            target: seen.target.as_deref().unwrap_or(metadata.target()),
            file: metadata.file(),
            line: metadata.line(),
            thread: thread.name(),
            program: &self.program,
            message: seen.message,
            fields: seen.fields,
        });
        self.queue.push(line);
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Seen {
    message: String,
    /// The module of what a library says through the crate `log`.
    target: Option<String>,
    fields: Vec<(&'static str, Value)>,
}

impl Seen {
    fn take(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("log.target", Value::String(text)) => self.target = Some(text),
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.take(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, value.into());
    }
}

/// Writes the queue's lines, on a thread of its own.
struct Writer {
    queue: Queue,
    style: Arc<ArcSwap<Style>>,
    orders: Arc<Mutex<Option<Output>>>,
    program: Arc<str>,
    /// Of how many lost lines the log has told.
    told_of: u64,
    is_broken: bool,
}

impl Writer {
    fn of(log: &Log) -> Self {
        Self {
            queue: log.queue.clone(),
            style: log.style.clone(),
            orders: log.orders.clone(),
            program: program(),
            told_of: 0,
            is_broken: false,
        }
    }

    fn write(mut self, mut output: Open) {
        loop {
            match self.queue.next() {
                Next::Order => self.take_order(&mut output),
                Next::Line(line) => self.put(&line, &mut output),
            }
        }
    }

    fn put(&mut self, line: &str, output: &mut Open) {
        if let Err(error) = output.write(line) {
            self.queue.lose();
            // The log has nobody to tell but those who look at the process.
            if !std::mem::replace(&mut self.is_broken, true) {
                eprintln!("the log cannot be written: {error}; lines are lost");
            }
            return;
        }
        self.is_broken = false;
        let lost = self.queue.lost();
        if lost > self.told_of {
            let news = lost - self.told_of;
            let text = format!(
                "{news} lines of the log were lost: they could not be written as fast as they came"
            );
            let line = self.own_line(tracing::Level::WARN, text);
            if output.write(&line).is_ok() {
                self.told_of = lost;
            }
        }
    }

    fn take_order(&mut self, output: &mut Open) {
        let told = {
            let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            orders.take()
        };
        let Some(told) = told else {
            return;
        };
        match open(&told) {
            Ok(opened) => *output = opened,
            Err(error) => {
                let line = self.own_line(tracing::Level::ERROR, error.to_string());
                self.put(&line, output);
            }
        }
    }

    fn own_line(&self, level: tracing::Level, message: String) -> String {
        self.style.load().line(Said {
            at: clock::wall_clock(),
            level,
            target: module_path!(),
            file: None,
            line: None,
            thread: None,
            program: &self.program,
            message,
            fields: Vec::new(),
        })
    }
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
            assert!(filter(level, &[]).is_ok(), "{level}");
        }
        let error = filter("=loud=", &[]).unwrap_err().to_string();
        assert!(
            error.contains("=loud=") && error.contains("WARNING"),
            "{error}"
        );
    }

    #[test]
    fn modules_have_levels_of_their_own_under_patronis_names_too() {
        for (module, path) in [
            ("patroni", "trunkline_agent"),
            ("patroni.api", "trunkline_agent::api"),
            ("trunkline_agent::lease", "trunkline_agent::lease"),
            ("patronize", "patronize"),
        ] {
            assert_eq!(target(module), path);
        }
        let levels = |level: &str| vec![("patroni.api".to_owned(), level.to_owned())];
        let shown = filter("WARNING", &levels("DEBUG")).unwrap().to_string();
        assert!(
            shown.contains("trunkline_agent::api=debug") && shown.contains("warn"),
            "{shown}"
        );
        assert!(filter("INFO", &levels("loud")).is_err());
    }

    fn files(path: &std::path::Path) -> Output {
        Output::Files(LogFiles {
            path: path.to_owned(),
            size: 0,
            kept: 0,
            mode: None,
        })
    }

    fn writer(queue: &Queue) -> Writer {
        Writer {
            queue: queue.clone(),
            style: Arc::new(ArcSwap::from_pointee(Style::patroni())),
            orders: Arc::default(),
            program: "test".into(),
            told_of: 0,
            is_broken: false,
        }
    }

    /// A pipe that nobody reads, as a disk that hangs.
    #[test]
    fn an_output_that_hangs_costs_lines_and_nobody_waits_for_it() {
        use std::io::{BufRead, BufReader, PipeReader};

        let (reader, pipe) = std::io::pipe().unwrap();
        let reader: PipeReader = reader;
        let queue = Queue::of(100);
        let writer = writer(&queue);
        let output = Open::of_pipe(pipe);
        std::thread::spawn(move || writer.write(output));
        // More than a pipe and the queue hold.
        for _ in 0..100_000 {
            queue.push(format!("{}\n", "x".repeat(99)));
        }
        let lost = queue.lost();
        assert!(lost > 0 && queue.waiting() > 0);
        let said = BufReader::new(reader)
            .lines()
            .map(Result::unwrap)
            .find(|line| line.contains("were lost"));
        assert!(said.unwrap().contains("lines of the log were lost"));
    }

    #[test]
    fn another_file_by_order_and_one_that_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (first, next) = (folder.path().join("first"), folder.path().join("next"));
        let mut writer = writer(&Queue::of(1));
        let mut output = Open::new(&files(&first)).unwrap();
        writer.put("one\n", &mut output);
        for order in [next.as_path(), std::path::Path::new("/nowhere/x")] {
            *writer.orders.lock().unwrap() = Some(files(order));
            writer.take_order(&mut output);
            writer.put("two\n", &mut output);
        }
        assert_eq!(std::fs::read_to_string(&first).unwrap(), "one\n");
        let text = std::fs::read_to_string(&next).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[2], lines.len()), ("two", "two", 3));
        assert!(lines[1].contains("/nowhere/x cannot be written"), "{text}");
    }
}
