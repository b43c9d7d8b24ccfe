//! What people see: progress while it lasts, a table at the end.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

/// Writes one line to standard output.
pub fn say(line: impl AsRef<str>) {
    // A reader that went away is no reason to stop judging.
    writeln!(std::io::stdout().lock(), "{}", line.as_ref()).ok();
}

/// Steps that take longer than a glance: a spinner on a terminal, a line each elsewhere.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// On a terminal a spinner, else lines.
    pub fn new() -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress { bar: None };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress { bar: Some(bar) }
    }

    /// Progress that nobody sees, for tests.
    pub fn hidden() -> Progress {
        Progress {
            bar: Some(ProgressBar::hidden()),
        }
    }

    /// What is being done now.
    pub fn step(&self, what: impl Into<String>) {
        let what = what.into();
        match &self.bar {
            Some(bar) => bar.set_message(what),
            None => {
                writeln!(std::io::stderr().lock(), "... {what}").ok();
            }
        }
    }

    /// A line that stays.
    pub fn line(&self, line: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Ends the spinner.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

/// An aligned table.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

/// Milliseconds with one decimal.
pub fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}

/// The middle value; of an even number the lower of the two; nothing of nothing.
pub fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// The machine a figure was measured on.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = rustix::system::uname();
    format!(
        "{cores} cores, {} {}",
        kernel.sysname().to_string_lossy(),
        kernel.release().to_string_lossy()
    )
}

/// Writes one line to standard error.
pub fn complain(line: impl AsRef<str>) {
    writeln!(
        std::io::stderr().lock(),
        "trunkline-bench: {}",
        line.as_ref()
    )
    .ok();
}
