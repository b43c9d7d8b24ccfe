//! SIGUSR2: the program on disk takes over in this process. PostgreSQL, the fence and the lease stand as they do when
//! an agent is killed and started again, and the socket of the REST API stays open in between. What would not start
//! does not take over.

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::sync::watch;
use trunkline_shared::cluster::LeaderEpoch;
use trunkline_shared::dcs::records::epoch_from_text;
use trunkline_shared::service::sys;

use super::{ReadConfig, service_manager};
use crate::config::{AgentConfig, Environment};
use crate::postgres::PostgresError;
use crate::postgres::process::{Tool, execute};

/// How the next program is told what it is the successor of: this process's number, the epoch of a held key or `-`,
/// the number of the listening socket or `-`, where that listens, and a scheduled restart if there is one. The
/// environment outlives its meaning, so the process's number stands in it.
const SUCCESSION: &str = "TRUNKLINE_SUCCESSION";

/// What is not there.
const NOTHING: &str = "-";

/// Longest answer to `--version`, and to the question about the configuration.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// How long the loop may take to come to a point where nothing is half done: a job, a callback, a request of an
/// operator or a planned change is not cut off. Longer than a change with the default `drain_timeout` may take.
const PAUSE_LIMIT: Duration = Duration::from_secs(90);

/// What `--version` begins with.
const NAME: &str = "trunkline-agent ";

/// The flag by which a program checks that it would start, and does nothing else.
const CHECK_FLAG: &str = "--check-start";

/// Which member of what this is, by key. None of it can be changed without an end of PostgreSQL or of the fence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity([(&'static str, String); 5]);

impl Identity {
    fn of(config: &AgentConfig) -> Self {
        let run_dir = config.own.run_dir.as_ref();
        Self([
            ("scope", config.cluster.to_string()),
            ("namespace", config.namespace.clone()),
            ("name", config.name.to_string()),
            (
                "postgresql.data_dir",
                config.postgresql.data_dir.display().to_string(),
            ),
            (
                "trunkline.run_dir",
                run_dir.map_or_else(String::new, |dir| dir.display().to_string()),
            ),
        ])
    }

    /// What differs, for people; empty if nothing does.
    fn difference(&self, other: &Self) -> String {
        let pairs = self.0.iter().zip(&other.0);
        let different = pairs.filter(|(own, other)| own != other);
        let shown = different.map(|((key, own), (_, other))| format!("{key} ({own} -> {other})"));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// The program that takes over.
pub(super) struct Successor {
    program: PathBuf,
    arguments: Vec<String>,
    identity: Identity,
    read: ReadConfig,
    /// Whether the loop is to come to a pause.
    wanted: watch::Sender<bool>,
}

impl Successor {
    /// The program and the arguments this one was started by.
    pub(super) fn new(config: &AgentConfig, read: ReadConfig) -> Self {
        let mut words = std::env::args_os();
        let program = program(words.next().unwrap_or_default());
        Self {
            program,
            arguments: words.map(|w| w.to_string_lossy().into_owned()).collect(),
            identity: Identity::of(config),
            read,
            wanted: watch::Sender::new(false),
        }
    }

    /// Whether the loop is to come to a pause.
    pub(super) fn wanted(&self) -> watch::Receiver<bool> {
        self.wanted.subscribe()
    }

    /// Checks the program, then asks the loop to pause; the log says what becomes of it.
    pub(super) async fn prepare(self: Arc<Self>) {
        if *self.wanted.borrow() {
            tracing::warn!("the program on disk is about to take over already");
            return;
        }
        if let Err(why) = self.check().await {
            tracing::error!(
                why,
                "the program on disk does not take over, this one goes on"
            );
            return;
        }
        tracing::info!(program = %self.program.display(), "the program on disk takes over");
        self.wanted.send_replace(true);
        tokio::time::sleep(PAUSE_LIMIT).await;
        if self.wanted.send_replace(false) {
            tracing::error!(
                "the program on disk does not take over: a job, a callback, a request or a planned change is in progress \
                 for {PAUSE_LIMIT:?}; send SIGUSR2 again when \"trunkline list\" shows the member at rest"
            );
        }
    }

    /// Whether it would start, and as the same member.
    async fn check(&self) -> Result<(), String> {
        let shown = self.program.display();
        let is_file = self.program.metadata().map(|found| found.is_file());
        match is_file {
            Ok(true) => {}
            Ok(false) => return Err(format!("{shown} is no file")),
            Err(error) => return Err(format!("{shown}: {error}")),
        }
        access(&self.program, Access::EXEC_OK).map_err(|error| format!("{shown}: {error}"))?;
        let version = self.ask(vec!["--version".to_owned()]).await?;
        if !version.starts_with(NAME) {
            let said = version.lines().next().unwrap_or_default();
            return Err(format!(
                "{shown} is not this agent: --version says \"{said}\""
            ));
        }
        let mut arguments = self.arguments.clone();
        arguments.push(CHECK_FLAG.to_owned());
        self.ask(arguments).await?;
        let read = self.read.clone();
        let config = tokio::task::spawn_blocking(move || read()).await;
        let (config, _) = config.map_err(|error| error.to_string())??;
        let difference = self.identity.difference(&Identity::of(&config));
        match difference.as_str() {
            "" => Ok(()),
            difference => Err(format!(
                "the configuration makes another member of this one: {difference}; end the agent and start it for that"
            )),
        }
    }

    async fn ask(&self, arguments: Vec<String>) -> Result<String, String> {
        let tool = Tool {
            program: self.program.clone(),
            arguments,
            passfile: None,
            limit: CHECK_LIMIT,
            what: "the check of the program on disk",
        };
        let output = tool.output().await.map_err(|error| match error {
            PostgresError::Program { program, source } => {
                format!("{} cannot be executed: {source}", program.display())
            }
            other => other.to_string(),
        })?;
        tool.checked(&output).map_err(|error| error.to_string())?;
        Ok(output.stdout)
    }

    /// Executes the program in this process. Returns only if the system refuses; then this one goes on. `settled` is
    /// the epoch under which the key is held, if nothing is under way that gives it away; `scheduled` a restart for later.
    pub(super) fn execute(
        &self,
        settled: Option<LeaderEpoch>,
        (listener, address): (Option<&TcpListener>, &str),
        scheduled: Option<String>,
    ) -> io::Error {
        service_manager::reloading();
        if let Some(listener) = listener
            && let Err(error) = fcntl_setfd(listener.as_fd(), FdFlags::empty())
        {
            return error.into();
        }
        let or_nothing = |text: Option<String>| text.unwrap_or_else(|| NOTHING.to_owned());
        let told = format!(
            "{} {} {} {address}{}",
            std::process::id(),
            or_nothing(settled.map(|epoch| epoch.to_string())),
            or_nothing(listener.map(|listener| listener.as_raw_fd().to_string())),
            scheduled.map_or_else(String::new, |restart| format!(" {restart}")),
        );
        let error = execute(&self.program, &self.arguments, &[(SUCCESSION, told)]);
        if let Some(listener) = listener {
            // Nobody else who is started may inherit it.
            let _ = fcntl_setfd(listener.as_fd(), FdFlags::CLOEXEC);
        }
        service_manager::ready();
        self.wanted.send_replace(false);
        error
    }
}

/// What this process kept from the program before, if it is a successor.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The listening socket of the REST API, and where it listens.
    pub(super) listener: Option<(TcpListener, String)>,
    /// The epoch under which the key was held, with nothing under way that gives it away.
    pub(super) settled: Option<LeaderEpoch>,
    /// The restart that was scheduled, as [`ScheduledRestart::handed_on`](crate::api::ScheduledRestart::handed_on)
    /// writes it.
    pub(super) scheduled_restart: Option<String>,
    /// Whether there was a program before.
    pub(super) is_successor: bool,
}

impl Inherited {
    /// To be called once, before anything is opened.
    pub fn take(environment: &Environment) -> Self {
        let told = environment.get(SUCCESSION);
        told.and_then(|told| Self::read(told)).unwrap_or_default()
    }

    fn read(told: &str) -> Option<Self> {
        let mut words = told.splitn(5, ' ');
        let (process, epoch, number) = (words.next()?, words.next()?, words.next()?);
        if process.parse() != Ok(std::process::id()) {
            return None;
        }
        let address = words.next()?;
        let listener = number.parse().ok().and_then(|number| {
            let listener = sys::inherited_listener(number).ok()?;
            Some((listener, address.to_owned()))
        });
        Some(Self {
            listener,
            settled: epoch_from_text(epoch),
            scheduled_restart: words.next().map(str::to_owned),
            is_successor: true,
        })
    }
}

/// The path by which the program is found again: what it was called by, if that is a path; else where it was found.
fn program(called: OsString) -> PathBuf {
    let called = Path::new(&called);
    if called.components().count() > 1 {
        return std::path::absolute(called).unwrap_or_else(|_| called.to_owned());
    }
    std::env::current_exe().unwrap_or_else(|_| called.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_is_meant_is_a_successor() {
        let own = std::process::id();
        let read = Inherited::read(&format!("{own} 0.7 - 10.0.0.1:8008")).unwrap();
        let epoch = LeaderEpoch {
            generation: 0,
            revision: 7,
        };
        assert_eq!(read.settled, Some(epoch));
        assert!(read.is_successor && read.listener.is_none());
        let read = Inherited::read(&format!("{own} - - [::]:8008")).unwrap();
        assert_eq!((read.settled, read.scheduled_restart), (None, None));
        let read = Inherited::read(&format!("{own} - - [::]:8008 {{\"a\": 1}}")).unwrap();
        assert_eq!(read.scheduled_restart.as_deref(), Some("{\"a\": 1}"));
        for told in ["", "nonsense", "1 0.7 5 10.0.0.1:8008"] {
            assert!(Inherited::read(told).is_none(), "{told}");
        }
    }
}
