//! Starts, stops and watches processes; the only place of the agent that starts one.
//!
//! The postmaster gets its own process group, its output goes to a file, and it has no parent-death
//! signal: it survives the agent, and the next agent adopts it by `postmaster.pid`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::PostgresError;
use super::scan::ProcessId;

/// How much of a tool's output is kept: the end, where the reason stands.
const OUTPUT_LIMIT_BYTES: usize = 64 * 1024;

/// Beginnings of environment variables that are the agent's own and may hold secrets.
const PRIVATE_ENVIRONMENT: [&str; 4] = ["PATRONI_", "TRUNKLINE_", "PGPASSWORD", "NOTIFY_SOCKET"];

/// In the run directory: the operator's method that makes data.
pub(crate) const SCRIPT_FILE: &str = "method";

/// Longest wait for the last words of a script that has failed.
const SAID_LIMIT: Duration = Duration::from_secs(1);

/// How many of its last lines go into an error.
const ERROR_LINES: usize = 6;

/// PostgreSQL's stop modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Ends sessions, checkpoints, and sends everything to the replicas.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::TERM,
            Self::Fast => Signal::INT,
            Self::Immediate => Signal::QUIT,
        }
    }
}

/// What is known of the postmaster without asking it anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Postmaster {
    /// None runs, and none was seen to end.
    Absent,
    /// It runs.
    Running(ProcessId),
    /// It ended.
    Exited {
        /// Which one.
        id: ProcessId,
        /// When the end was seen.
        at: Moment,
        /// Its exit code, if it was a child of this agent and ended by itself.
        code: Option<i32>,
        /// The signal that ended it, if it was a child of this agent.
        signal: Option<i32>,
    },
}

impl Postmaster {
    /// The running one.
    pub fn running(self) -> Option<ProcessId> {
        match self {
            Self::Running(id) => Some(id),
            Self::Absent | Self::Exited { .. } => None,
        }
    }
}

/// A running postmaster under watch.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) id: ProcessId,
    pidfd: Arc<AsyncFd<OwnedFd>>,
}

impl Watched {
    /// Puts the process under watch: `publish` shows it running, and its end within milliseconds.
    /// `None` if it has ended already.
    pub(crate) fn new(id: ProcessId, publish: &watch::Sender<Postmaster>) -> Option<Self> {
        let pidfd = Arc::new(watch_descriptor(id.open()?).ok()?);
        publish.send_replace(Postmaster::Running(id));
        let (watched, publish) = (Arc::clone(&pidfd), publish.clone());
        tokio::spawn(async move {
            if watched.readable().await.is_err() {
                return;
            }
            let at = clock::now();
            // Only a child can be waited for; of an adopted postmaster nothing more is known.
            let status = waitid(
                WaitId::PidFd(rustix::fd::AsFd::as_fd(watched.get_ref())),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            )
            .ok()
            .flatten();
            let ended = Postmaster::Exited {
                id,
                at,
                code: status.as_ref().and_then(|s| s.exit_status()),
                signal: status.as_ref().and_then(|s| s.terminating_signal()),
            };
            publish.send_if_modified(|now| {
                let is_this = *now == Postmaster::Running(id);
                if is_this {
                    *now = ended;
                }
                is_this
            });
        });
        Some(Self { id, pidfd })
    }

    /// Sends a signal to exactly this process; one that has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Asks it to stop.
    pub(crate) fn stop(&self, mode: StopMode) {
        self.signal(mode.signal());
    }

    /// Waits for its end; false if `limit` came first.
    pub(crate) async fn ended_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.pidfd.readable())
            .await
            .is_ok()
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe because a type may lend out a descriptor it does not own; \
              OwnedFd owns its own until it is dropped"
)]
pub(crate) fn watch_descriptor(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(pidfd)
}

/// Refuses to run as root, as PostgreSQL does.
pub(crate) fn refuse_root() -> Result<(), PostgresError> {
    if rustix::process::geteuid().is_root() {
        return Err(PostgresError::Root);
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the home file of processes")]
fn command(program: &Path) -> std::process::Command {
    std::process::Command::new(program)
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Starts `program` under another name with an empty environment; it is to outlive this process.
pub(crate) fn spawn_detached(
    program: &Path,
    name: &str,
    directory: &Path,
    log: &Path,
) -> io::Result<Child> {
    command(program)
        .arg0(name)
        .env_clear()
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(append_to(log)?)
        .spawn()
}

/// Executes `program` in place of this one, with more of an environment. Returns only if the system refuses.
pub(crate) fn execute(
    program: &Path,
    arguments: &[String],
    environment: &[(&str, String)],
) -> io::Error {
    let environment = environment.iter().map(|(name, value)| (name, value));
    command(program).args(arguments).envs(environment).exec()
}

/// Starts the postmaster and leaves it to itself. The returned identity is that of the new process.
pub(crate) fn spawn_postmaster(
    program: &Path,
    arguments: &[String],
    log: &Path,
) -> Result<ProcessId, PostgresError> {
    let log_file = append_to(log).map_err(PostgresError::file("open", log))?;
    let second = log_file
        .try_clone()
        .map_err(PostgresError::file("open", log))?;
    let mut command = command(program);
    remove_private(&mut command);
    let child = command
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log_file)
        .stderr(second)
        .spawn()
        .map_err(|source| PostgresError::Program {
            program: program.to_owned(),
            source,
        })?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    ProcessId::of_child(pid).ok_or_else(|| PostgresError::StartFailed {
        data_dir: PathBuf::new(),
        last_lines: last_lines_of(log),
    })
}

/// The last lines of a file, for an error; empty if it cannot be read.
pub(crate) fn last_lines_of(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let kept = &text[text.len().saturating_sub(OUTPUT_LIMIT_BYTES)..];
    last_lines(&String::from_utf8_lossy(kept))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..].join(" | ")
}

/// One call of one of PostgreSQL's tools. Passwords go through a password file, never an argument.
#[derive(Debug)]
pub(crate) struct Tool<'a> {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) passfile: Option<&'a Path>,
    pub(crate) limit: Duration,
    /// Named in a timeout.
    pub(crate) what: &'static str,
}

/// What a tool printed.
#[derive(Debug)]
pub(crate) struct ToolOutput {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Tool<'_> {
    /// Runs it to its end. Dropping the future kills it.
    pub(crate) async fn output(&self) -> Result<ToolOutput, PostgresError> {
        let mut command = tokio::process::Command::from(command(&self.program));
        command
            .args(&self.arguments)
            .env("LC_ALL", "C")
            .env("LC_MESSAGES", "C")
            .env("PGCONNECT_TIMEOUT", "5")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(passfile) = self.passfile {
            command.env("PGPASSFILE", passfile).env_remove("PGPASSWORD");
        }
        let mut child = command.spawn().map_err(|source| PostgresError::Program {
            program: self.program.clone(),
            source,
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let whole = async {
            let (stdout, stderr) = tokio::join!(tail(stdout), tail(stderr));
            Ok(ToolOutput {
                status: child.wait().await?,
                stdout,
                stderr,
            })
        };
        match tokio::time::timeout(self.limit, whole).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(source)) => Err(PostgresError::Program {
                program: self.program.clone(),
                source,
            }),
            Err(_) => Err(PostgresError::Timeout {
                what: self.what,
                after: self.limit,
            }),
        }
    }

    /// Runs it; a status other than 0 is an error with its last lines.
    pub(crate) async fn run(&self) -> Result<ToolOutput, PostgresError> {
        let output = self.output().await?;
        self.checked(&output).map(|()| output)
    }

    /// A status other than 0 is an error with the last lines.
    pub(crate) fn checked(&self, output: &ToolOutput) -> Result<(), PostgresError> {
        if output.status.success() {
            return Ok(());
        }
        let text = if output.stderr.trim().is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        Err(PostgresError::Tool {
            program: self.program.display().to_string(),
            status: output.status.to_string(),
            last_lines: last_lines(text),
        })
    }
}

/// Reads a pipe to its end and keeps the last [`OUTPUT_LIMIT_BYTES`].
async fn tail(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut chunk = [0; 8192];
    while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..read]);
        if kept.len() > 2 * OUTPUT_LIMIT_BYTES {
            kept.drain(..kept.len() - OUTPUT_LIMIT_BYTES);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// One run of an operator's command, in a process group of its own that ends with it.
#[derive(Debug)]
pub(crate) struct Script {
    program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Where it is written down while it runs, for an agent that starts in the middle of it.
    pub(crate) note: Option<PathBuf>,
    limit: Duration,
    what: &'static str,
}

/// Ends a process group when it goes out of scope.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // None of it may be left; then there is nothing to end.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Script {
    /// `command` is not empty.
    pub(crate) fn new(command: &[String], limit: Duration, what: &'static str) -> Self {
        let mut words = command.iter().cloned();
        Self {
            program: words.next().unwrap_or_default().into(),
            arguments: words.collect(),
            environment: Vec::new(),
            note: None,
            limit,
            what,
        }
    }

    /// Runs it; a status other than 0 is an error with its last lines. Dropping the call, and the limit, end
    /// it and all that it started.
    pub(crate) async fn run(&self) -> Result<(), PostgresError> {
        let mut command = command(&self.program);
        remove_private(&mut command);
        command.process_group(0);
        let mut command = tokio::process::Command::from(command);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| PostgresError::Program {
            program: self.program.clone(),
            source,
        })?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let mut group = Group(pid.and_then(Pid::from_raw));
        if let (Some(note), Some(id)) = (&self.note, pid.and_then(ProcessId::of_child)) {
            let text = format!("{} {}", id.pid, id.start_ticks);
            std::fs::write(note, text).map_err(PostgresError::file("write", note))?;
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // What it leaves running in the background may hold the pipes open: its own end counts.
        let reading = tokio::spawn(async move { tokio::join!(tail(stdout), tail(stderr)) });
        let status = match tokio::time::timeout(self.limit, child.wait()).await {
            Ok(status) => status.map_err(|source| PostgresError::Program {
                program: self.program.clone(),
                source,
            })?,
            Err(_) => {
                reading.abort();
                return Err(PostgresError::Timeout {
                    what: self.what,
                    after: self.limit,
                });
            }
        };
        // It has ended by itself: what it left behind is the operator's.
        group.0 = None;
        if status.success() {
            reading.abort();
            return Ok(());
        }
        let said = tokio::time::timeout(SAID_LIMIT, reading).await;
        let (stdout, stderr) = match said {
            Ok(Ok(said)) => said,
            Ok(Err(_)) | Err(_) => (String::new(), String::new()),
        };
        let text = if stderr.trim().is_empty() {
            &stdout
        } else {
            &stderr
        };
        Err(PostgresError::Tool {
            program: format!("{} ({})", self.what, self.program.display()),
            status: status.to_string(),
            last_lines: last_lines(text),
        })
    }
}

/// Ends the script of an agent that was killed: it would go on changing what the new one looks at.
pub(crate) fn end_orphaned_script(run_dir: &Path) {
    let note = run_dir.join(SCRIPT_FILE);
    let text = std::fs::read_to_string(&note).unwrap_or_default();
    let mut words = text.split(' ').map(str::parse::<u64>);
    if let (Some(Ok(pid)), Some(Ok(start_ticks))) = (words.next(), words.next())
        && let Ok(pid) = i32::try_from(pid)
        && ProcessId::of(pid) == Some(ProcessId { pid, start_ticks })
        && let Some(group) = Pid::from_raw(pid)
    {
        // It may end by itself at this moment.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = std::fs::remove_file(&note);
}

/// Whatever is started would inherit these.
fn remove_private(command: &mut std::process::Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if PRIVATE_ENVIRONMENT.iter().any(|p| text.starts_with(p)) {
            command.env_remove(&name);
        }
    }
}
