//! The options of `apply`.

use clap::Args;

use super::Format;
use crate::ctl::drain::DrainArguments;

/// `apply`
#[derive(Clone, Debug, Args)]
pub struct Apply {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Restart every member, also those that wait for nothing: after PostgreSQL's programs were replaced by a minor version.
    #[arg(long)]
    pub all: bool,
    /// Restart the leader where it is: no other member leads, and clients are held for as long as it takes.
    #[arg(long)]
    pub no_switchover: bool,
    /// What becomes of transactions that run on the leader.
    #[command(flatten)]
    pub drain: DrainArguments,
    /// Show the plan, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How the steps are printed at the end; progress then goes to standard error.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty, hide_possible_values = true, help = "pretty, tsv, json or yaml: the steps with what became of each; progress then goes to standard error")]
    pub format: Format,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}
