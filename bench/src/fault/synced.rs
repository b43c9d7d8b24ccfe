//! Calls of fsync that fail as those on a broken disk do: strace traces the servers of an instance and answers in the
//! kernel's place.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::stack::proc::{self, ProcessId};
use crate::stack::process::{Launch, Process, args, find};

/// Between two looks for a new postmaster: shorter than it takes to come to its first fsync.
const LOOK: Duration = Duration::from_millis(5);
/// strace must have its processes, and have let go of them, within this.
const LIMIT: Duration = Duration::from_secs(20);
/// How strace marks a call that it answered itself.
const MARK: &str = "(INJECTED)";

/// Whether fsync can be made to fail here.
pub fn can_fail() -> bool {
    find("strace").is_some()
}

/// What came of it.
#[derive(Debug)]
pub struct Failed {
    /// How many calls were refused.
    pub calls: usize,
    /// When each postmaster was found, the first of them with all its servers.
    pub found: Vec<Moment>,
}

/// Until it is over, every server of this data directory, whoever starts it, is told EIO by fsync and fdatasync.
pub async fn fail(
    data_dir: &Path,
    folder: &Path,
    mut is_over: impl FnMut() -> bool,
) -> Result<Failed> {
    let log = folder.join("strace.log");
    let mut tracers = Vec::new();
    let mut found: Vec<(ProcessId, Moment)> = Vec::new();
    while !is_over() {
        let last = found.last().map(|(postmaster, _)| *postmaster);
        match proc::postmaster(data_dir) {
            Some(postmaster) if last != Some(postmaster) => {
                found.push((postmaster, clock::now()));
                trace_all(data_dir, folder, &log, &mut tracers).await?;
            }
            Some(_) | None => tokio::time::sleep(LOOK).await,
        }
    }
    for tracer in &mut tracers {
        tracer.signal(Signal::TERM);
        tracer.ended(LIMIT).await?;
    }
    let text = std::fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(Failed {
        calls: String::from_utf8_lossy(&text).matches(MARK).count(),
        found: found.into_iter().map(|(_, at)| at).collect(),
    })
}

/// Traces all servers that there are; those that they start are traced from their beginning.
async fn trace_all(
    data_dir: &Path,
    folder: &Path,
    log: &Path,
    tracers: &mut Vec<Process>,
) -> Result<()> {
    loop {
        // Again, since one may have been started between the look and the trace of its postmaster.
        let mut missing = proc::of_data_dir(data_dir);
        missing.retain(|id| id.is_alive() && !id.is_traced());
        if missing.is_empty() {
            return Ok(());
        }
        let mut words = [
            "-qq",
            "-f",
            "-e",
            "trace=fsync,fdatasync",
            "-e",
            "inject=fsync,fdatasync:error=EIO",
        ]
        .map(str::to_owned)
        .to_vec();
        words.extend(
            missing
                .iter()
                .flat_map(|id| ["-p".to_owned(), id.pid.to_string()]),
        );
        let launch = Launch {
            program: "strace".into(),
            args: args(words),
            log: log.to_owned(),
            folder: folder.to_owned(),
            ..Launch::default()
        };
        tracers.push(launch.start("strace")?);
        let deadline = clock::now() + LIMIT;
        while missing.iter().any(|id| id.is_alive() && !id.is_traced()) {
            if clock::now() >= deadline {
                bail!(
                    "strace does not trace within {LIMIT:?}: see {}",
                    log.display()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
