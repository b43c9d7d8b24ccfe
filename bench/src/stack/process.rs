//! Starts programs: the only spawner of the harness.
//!
//! Every program gets a process group of its own (a Ctrl-C at the terminal reaches the harness alone),
//! its output in a file, and a mark in its environment by which a later run finds what a killed run left.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::proc::ProcessId;

/// The variable that marks everything a stack started; its value is the stack's folder.
pub const MARK: &str = "TRUNKLINE_BENCH_FOLDER";

/// How often a process is looked at while its end is awaited.
const LOOK: Duration = Duration::from_millis(5);

/// How and where a program is to run.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The program's file, or its name on the PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    /// The same for the program alone: what starts it, as root, is without it.
    pub own_env: Vec<(String, String)>,
    /// Where standard output and error go (appended).
    pub log: PathBuf,
    /// The stack's folder, which marks the process.
    pub folder: PathBuf,
    /// The network namespace to enter, by name.
    pub namespace: Option<String>,
    /// The user to become; needs root.
    pub user: Option<String>,
    /// The cgroup v2 directory to join; needs root.
    pub cgroup: Option<PathBuf>,
}

impl Launch {
    /// Starts it.
    pub fn start(&self, name: &str) -> Result<Process> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open the log {}", self.log.display()))?;
        let errors = log.try_clone()?;
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", self.program.display()))?;
        let pid = i32::try_from(child.id())?;
        let id = ProcessId::now(pid).with_context(|| format!("{name} ended at once"))?;
        Ok(Process {
            name: name.to_owned(),
            id,
            child,
            log: self.log.clone(),
        })
    }

    /// Runs it to its end and returns what it printed on standard output; fails with what it said if it
    /// failed, or if it took longer than `limit`.
    pub async fn finish(&self, limit: Duration) -> Result<String> {
        let output = self.output(limit).await?;
        if !output.status.success() {
            bail!(
                "{} failed ({}): {}{}",
                self.describe(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim(),
                String::from_utf8_lossy(&output.stdout).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it to its end and returns everything it said, whatever its exit code.
    pub async fn output(&self, limit: Duration) -> Result<std::process::Output> {
        let mut command = tokio::process::Command::from(self.command());
        command.stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(limit, command.output()).await {
            Ok(output) => output.with_context(|| format!("cannot start {}", self.describe())),
            Err(_) => bail!("{} took longer than {limit:?}", self.describe()),
        }
    }

    /// Starts it with its standard output to be read line by line; it ends when dropped.
    pub fn stream(&self) -> Result<tokio::process::Child> {
        tokio::process::Command::from(self.command())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.describe()))
    }

    fn describe(&self) -> String {
        let args: Vec<_> = self.args.iter().map(|arg| arg.to_string_lossy()).collect();
        format!("{} {}", self.program.display(), args.join(" "))
    }

    /// One `exec` after another, so that the child's pid is the program's.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the harness spawns"
    )]
    fn command(&self) -> std::process::Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(cgroup) = &self.cgroup {
            let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.display());
            words.extend(["sh", "-c"].map(OsString::from));
            words.push(script.into());
            words.push("join-cgroup".into());
        }
        if let Some(namespace) = &self.namespace {
            words.push("nsenter".into());
            words.push(format!("--net=/run/netns/{namespace}").into());
            words.push("--".into());
        }
        if let Some(user) = &self.user {
            words.push("setpriv".into());
            words.push(format!("--reuid={user}").into());
            words.push(format!("--regid={user}").into());
            words.push("--init-groups".into());
        }
        if !self.own_env.is_empty() {
            words.push("env".into());
            let own = self.own_env.iter();
            words.extend(own.map(|(name, value)| format!("{name}={value}").into()));
        }
        words.push(self.program.clone().into());
        words.extend(self.args.iter().cloned());
        let mut command = std::process::Command::new(&words[0]);
        command
            .args(&words[1..])
            .envs(self.env.iter().map(|(key, value)| (key, value)));
        command.env(MARK, &self.folder).process_group(0);
        if self.folder.is_dir() {
            command.current_dir(&self.folder);
        }
        command
    }
}

/// A short command without a place in the stack: `ip`, `etcdctl`.
pub fn tool(program: &str, args: &[&str]) -> Launch {
    Launch {
        program: program.into(),
        args: args.iter().map(OsString::from).collect(),
        ..Launch::default()
    }
}

/// Runs a short command now and waits for it: for clean-up, where no runtime may be left.
pub fn run_now(program: &str, args: &[&str]) -> Result<()> {
    let output = tool(program, args)
        .command()
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Finds a program on the PATH or in the folders where servers are kept.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    id: ProcessId,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// The process.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Where it writes what it says.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends it a signal; false if it has ended.
    pub fn signal(&self, signal: Signal) -> bool {
        self.id.signal(signal)
    }

    /// Fails with the end of its log if it has ended.
    pub fn must_live(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!(
                    "{} ended by itself ({status}); its last lines:\n{}",
                    self.name,
                    self.tail()
                )
            }
        }
    }

    /// Waits for its end.
    pub async fn ended(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let deadline = clock::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if clock::now() >= deadline {
                bail!(
                    "{} did not end within {limit:?}; its last lines:\n{}",
                    self.name,
                    self.tail()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Kills it and waits for its end.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL);
        self.ended(Duration::from_secs(5)).await.map(|_| ())
    }

    /// The last lines it wrote.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            self.id.signal(Signal::KILL);
            // A killed child is gone in microseconds; the wait reaps it.
            self.child.wait().ok();
        }
    }
}

/// The arguments of a program, from anything that is text.
pub fn args<I, S>(words: I) -> Vec<OsString>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    words
        .into_iter()
        .map(|word| word.as_ref().to_owned())
        .collect()
}
