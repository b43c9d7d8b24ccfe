//! The one error of the door to the instance.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trunkline_shared::cluster::{Lsn, SystemId};

/// Why something asked of the instance was not done. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The agent runs as root. Permanent.
    #[error(
        "PostgreSQL refuses to run as root: run the agent as the owner of the data directory \
         (User=postgres in the systemd unit, or: setpriv --reuid=postgres --regid=postgres \
         --init-groups trunkline-agent ...)"
    )]
    Root,
    /// A server program is not there. Retry: a package may be on its way.
    #[error("cannot run {program}: {source}; install PostgreSQL or set postgresql.bin_dir")]
    Program {
        /// The program as it was called.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The programs are of another major version than the data directory. Permanent until one changes.
    #[error(
        "{data_dir} was made by PostgreSQL {directory}, but the programs in use are PostgreSQL \
         {program}; set postgresql.bin_dir to the folder of version {directory}"
    )]
    WrongMajor {
        /// The data directory.
        data_dir: PathBuf,
        /// Major version in `PG_VERSION`.
        directory: String,
        /// Major version of the programs.
        program: String,
    },
    /// The data directory has an owner or a mode that PostgreSQL refuses. Permanent until mended.
    #[error("{path} {problem}; PostgreSQL would refuse it: {remedy}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The command or setting that mends it.
        remedy: String,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of PostgreSQL's tools failed. The last lines of its output say why.
    #[error("{program} failed ({status}): {last_lines}")]
    Tool {
        /// The tool.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of its error output.
        last_lines: String,
    },
    /// A limit of time was reached. Retry or look at what is slow.
    #[error("{what} was not done within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// A query failed or was not answered.
    #[error(transparent)]
    Sql(#[from] super::sql::SqlError),
    /// The instance does not run.
    #[error("PostgreSQL does not run in {0}")]
    NotRunning(PathBuf),
    /// The instance runs where it must not.
    #[error("PostgreSQL runs in {data_dir} with process {pid}; stop it first")]
    Running {
        /// The data directory.
        data_dir: PathBuf,
        /// Its postmaster, or one of its processes.
        pid: i32,
    },
    /// The postmaster ended instead of becoming ready.
    #[error("PostgreSQL in {data_dir} ended while starting: {last_lines}")]
    StartFailed {
        /// The data directory.
        data_dir: PathBuf,
        /// The end of the log.
        last_lines: String,
    },
    /// Server processes are still there after the Kill. Not released: nobody may lead.
    #[error("processes {survivors:?} of the instance survive SIGKILL (stuck in the kernel?)")]
    NotDead {
        /// Their ids.
        survivors: Vec<i32>,
    },
    /// The caller's check said no in the same breath as the process was to be made. Nothing was started.
    #[error(
        "not started as primary: the lease does not hold for long enough, or no live armed fence keeps it"
    )]
    StartNotAllowed,
    /// The caller's check said no in the same breath as the promote signal. Nothing was signalled.
    #[error("promotion was not signalled: the right to promote ended before the signal")]
    PromoteNotAllowed,
    /// The instance is not in recovery, so there is nothing to promote.
    #[error("the instance is not in recovery")]
    NotInRecovery,
    /// Output of a tool has an unexpected form.
    #[error("cannot understand {what}: {text:?}")]
    Unreadable {
        /// Which output.
        what: &'static str,
        /// The part in question.
        text: String,
    },
    /// A copy belongs to another cluster. It was removed.
    #[error(
        "the copy from {source_address} has system identifier {found}, this cluster is {expected}; \
         the address belongs to another cluster"
    )]
    ForeignSystem {
        /// Where it was copied from.
        source_address: String,
        /// The copy's identifier.
        found: SystemId,
        /// This cluster's.
        expected: SystemId,
    },
    /// Not enough room for a copy beside the data directory.
    #[error(
        "a copy beside {path} needs {needed} bytes, {free} are free; make room, or set \
         remove_data_directory_on_rewind_failure and _on_diverged_timelines to true to copy in place"
    )]
    NoSpace {
        /// The data directory.
        path: PathBuf,
        /// Bytes needed: 1.2 times the size of the copy.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The data directory cannot be swapped by renames.
    #[error(
        "{path} cannot be renamed aside ({why}); the member stays down: move the data directory below \
         its mount point, or empty it by hand"
    )]
    CannotSwap {
        /// The data directory.
        path: PathBuf,
        /// A mount point, tablespaces that another program than pg_basebackup is to replace, or a parent without write permission.
        why: String,
    },
    /// None of `create_replica_methods` made a replica.
    #[error("no method made a replica; {tried}")]
    NoMethodWorked {
        /// Each with its error.
        tried: String,
    },
    /// A method ended with success and left nothing.
    #[error("{method} ended with success, but {data_dir} holds no data directory")]
    NothingMade {
        /// The method.
        method: String,
        /// Where it should be.
        data_dir: PathBuf,
    },
    /// A method that cannot be told another place would write over the old data.
    #[error(
        "{method} takes no arguments and {data_dir} is not empty: set keep_data if it works on the old \
         data, or drop no_params so that it can work beside it"
    )]
    MethodNeedsEmpty {
        /// The method.
        method: String,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A slot to be copied reads from WAL that was never here.
    #[error(
        "slot {slot} reads WAL from {from} on, which is not here: it is copied once its consumer has gone on"
    )]
    SlotNeedsOlderWal {
        /// The slot.
        slot: String,
        /// From where it reads.
        from: Lsn,
    },
    /// A slot to be copied does not exist there, is lost, or the server is no primary.
    #[error("{source_address} has no usable logical slot {slot}")]
    SlotNotThere {
        /// The slot.
        slot: String,
        /// Where it was looked for.
        source_address: String,
    },
    /// Only the data of a bootstrap that was never finished may be set aside as failed.
    #[error("{data_dir} is not the data of an unfinished bootstrap: it is left alone")]
    NotUnfinished {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A rewind began and did not end, or a copy waits to take the directory's place.
    #[error(
        "{data_dir} must not be started: a rewind of it did not end, or a newer copy waits beside it; \
         a new copy mends it (trunkline reinit)"
    )]
    HalfDone {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The data directory is missing while a copy or the one set aside stands beside it.
    #[error(
        "{data_dir} is missing but {beside} exists: a swap was interrupted by hand; rename the one to \
         keep to {data_dir}, or remove it"
    )]
    Lost {
        /// The data directory.
        data_dir: PathBuf,
        /// What stands beside it.
        beside: PathBuf,
    },
}

impl PostgresError {
    /// Wraps an I/O error with what was tried on which file; used as `.map_err(PostgresError::file(..))`.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }

    /// Whether trying again later, with nothing changed by hand, may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Root
            | Self::WrongMajor { .. }
            | Self::Directory { .. }
            | Self::CannotSwap { .. }
            | Self::Lost { .. }
            | Self::HalfDone { .. }
            | Self::NotUnfinished { .. }
            | Self::MethodNeedsEmpty { .. }
            | Self::StartNotAllowed
            | Self::PromoteNotAllowed
            | Self::NotInRecovery => false,
            Self::Program { .. }
            | Self::File { .. }
            | Self::Tool { .. }
            | Self::Timeout { .. }
            | Self::Sql(_)
            | Self::NotRunning(_)
            | Self::Running { .. }
            | Self::StartFailed { .. }
            | Self::NotDead { .. }
            | Self::Unreadable { .. }
            | Self::ForeignSystem { .. }
            | Self::NoMethodWorked { .. }
            | Self::NothingMade { .. }
            | Self::SlotNeedsOlderWal { .. }
            | Self::SlotNotThere { .. }
            | Self::NoSpace { .. } => true,
        }
    }

    /// What a server that lives said instead of how it stands. One whose answer cannot be read does answer: that says
    /// nothing of its role, and is no reason to end it.
    pub(super) fn of_the_living(self) -> super::sql::SqlError {
        match self {
            Self::Sql(error) => error,
            other => super::sql::SqlError::Refused {
                target: "the local socket".to_owned(),
                code: "unreadable".to_owned(),
                message: other.to_string(),
            },
        }
    }
}
