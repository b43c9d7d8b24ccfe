//! What an operator hears in the place of what was ordered. The words are PgBouncer's where it has such ones.

use std::time::Duration;

use crate::admin::commands::NoCommand;
use crate::admin::gather::Silent;
use crate::config::running::NotSet;

/// Why a command is not carried out. The session goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// It is no command.
    #[error(transparent)]
    NoCommand(#[from] NoCommand),
    /// Those in `stats_users` may look.
    #[error("admin access needed")]
    OnlyLooks,
    /// A core does not answer.
    #[error(transparent)]
    Silent(#[from] Silent),
    /// The setting stays as it is.
    #[error(transparent)]
    NotSet(#[from] NotSet),
    /// There is no such database.
    #[error("no such database: {0}")]
    NoDatabase(String),
    /// The console itself.
    #[error("cannot {0} admin db: {1}")]
    IsConsole(&'static str, String),
    /// `PAUSE` while everything is paused.
    #[error("already paused")]
    Paused,
    /// `RESUME` while nothing is.
    #[error("pooler is not paused")]
    NotPaused,
    /// `RESUME` of one database that is not.
    #[error("database {0} is not paused")]
    DatabaseNotPaused(String),
    /// No such client.
    #[error("client not found")]
    NoClient,
    /// The file is wrong.
    #[error("RELOAD failed, everything stays as it is; the log says why")]
    NotReloaded,
    /// The file, or a certificate, was taken up between the look and the change.
    #[error("the settings were replaced meanwhile; say it again")]
    Overtaken,
    /// The process has not said what came of it.
    #[error("no answer within {} s: the process is busy with something else, and does it later; its log says so", .0.as_secs())]
    Unanswered(Duration),
    /// Nobody hears orders.
    #[error("this process takes no such order now")]
    NoConductor,
}
