//! The command line of `trunkline`: patronictl's commands and options.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The operator's command: looks at a cluster and changes it.
#[derive(Clone, Debug, Parser)]
#[command(name = "trunkline", version, about)]
pub struct Arguments {
    /// An agent's or a router's file. Without it the environment (TRUNKLINE_*, PATRONI_*) is enough.
    #[arg(
        short = 'c',
        long = "config-file",
        env = "TRUNKLINE_CONFIG_FILE",
        global = true
    )]
    pub config: Option<PathBuf>,
    /// Where the DCS is, such as 10.0.0.1:2379; in place of the file's.
    #[arg(short = 'd', long = "dcs-url", alias = "dcs", global = true)]
    pub dcs_url: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the members of a cluster.
    List(List),
    /// Show the members as a tree by upstream.
    Topology(Cluster),
    /// Change the leader while it lives: planned, nothing is lost.
    Switchover(Change),
    /// Change the leader to a named member, by force if need be.
    Failover(Change),
    /// Restart PostgreSQL of members.
    Restart(Restart),
    /// Replace a member's data by a new copy.
    Reinit(Reinit),
    /// Make agents read their configuration again.
    Reload(Members),
    /// Show the changes of leader.
    History(History),
    /// Show the configuration of the cluster.
    ShowConfig(ShowConfig),
    /// Change the configuration of the cluster.
    EditConfig(EditConfig),
    /// Make the cluster a standby of another one.
    DemoteCluster(DemoteCluster),
    /// Make a standby cluster stand on its own.
    PromoteCluster(PromoteCluster),
    /// Turn automation off.
    Pause(Pause),
    /// Turn automation on again.
    Resume(Resume),
    /// Delete everything that the DCS holds of a cluster.
    Remove(Remove),
    /// Show versions of this program and of the members.
    Version(Cluster),
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Pretty,
    /// Tabulators.
    Tsv,
    /// JSON.
    Json,
    /// YAML.
    #[value(alias = "yml")]
    Yaml,
}

/// A cluster.
#[derive(Clone, Debug, Args)]
pub struct Cluster {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
}

/// `list`
#[derive(Clone, Debug, Args)]
pub struct List {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty)]
    pub format: Format,
    /// Show all columns, even empty ones.
    #[arg(short, long)]
    pub extended: bool,
    /// Print again every 2 seconds.
    #[arg(short = 'W')]
    pub watch_2_seconds: bool,
    /// Print again after so many seconds.
    #[arg(short = 'w', long, value_name = "SECONDS")]
    pub watch: Option<u32>,
}

/// `history`
#[derive(Clone, Debug, Args)]
pub struct History {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty)]
    pub format: Format,
}

/// `switchover` and `failover`
#[derive(Clone, Debug, Args)]
pub struct Change {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// The leader to change away from.
    #[arg(long, alias = "primary", alias = "master")]
    pub leader: Option<String>,
    /// The member to change to.
    #[arg(long)]
    pub candidate: Option<String>,
    /// When, for a switchover: ISO 8601 with its offset, such as 2026-11-20T10:00:00+00:00.
    #[arg(long, value_name = "TIME")]
    pub scheduled: Option<String>,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// Members of a cluster.
#[derive(Clone, Debug, Args)]
pub struct Members {
    /// The cluster.
    pub cluster: String,
    /// The members; all if none is named.
    pub members: Vec<String>,
    /// Only members of this role.
    #[arg(short, long, value_parser = ["leader", "primary", "standby-leader", "replica", "standby", "any"], default_value = "any")]
    pub role: String,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// `restart`
#[derive(Clone, Debug, Args)]
pub struct Restart {
    /// Which members.
    #[command(flatten)]
    pub members: Members,
    /// One member of those, whichever.
    #[arg(long)]
    pub any: bool,
    /// Only members that wait for a restart.
    #[arg(long)]
    pub pending: bool,
    /// Only members whose PostgreSQL is older than this.
    #[arg(long)]
    pub pg_version: Option<String>,
    /// How long is waited for the restart.
    #[arg(long)]
    pub timeout: Option<String>,
    /// When: ISO 8601 with its offset, such as 2026-11-20T10:00:00+00:00.
    #[arg(long, value_name = "TIME")]
    pub scheduled: Option<String>,
}

/// `reinit`
#[derive(Clone, Debug, Args)]
pub struct Reinit {
    /// The cluster.
    pub cluster: String,
    /// The members.
    #[arg(required = true)]
    pub members: Vec<String>,
    /// Never ask; refused while another long job runs.
    #[arg(long)]
    pub force: bool,
    /// Copy from the leader, never from another replica.
    #[arg(long)]
    pub from_leader: bool,
    /// Wait until the members stream again.
    #[arg(long)]
    pub wait: bool,
}

/// `pause`
#[derive(Clone, Debug, Args)]
pub struct Pause {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Wait until every member has seen it.
    #[arg(long)]
    pub wait: bool,
}

/// `resume`
#[derive(Clone, Debug, Args)]
pub struct Resume {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Wait until every member has seen it and every fence is armed again.
    #[arg(long)]
    pub wait: bool,
    /// This member paused as primary with its fence asleep, and you know that it is dead: nobody waits for
    /// it any longer. If it lives, there may be two primaries.
    #[arg(long, value_name = "MEMBER")]
    pub without: Vec<String>,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// `demote-cluster`
#[derive(Clone, Debug, Args)]
pub struct DemoteCluster {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// The host to replicate from.
    #[arg(long)]
    pub host: Option<String>,
    /// Its port.
    #[arg(long)]
    pub port: Option<u16>,
    /// The slot there.
    #[arg(long)]
    pub primary_slot_name: Option<String>,
    /// Fetches WAL from an archive.
    #[arg(long)]
    pub restore_command: Option<String>,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// `promote-cluster`
#[derive(Clone, Debug, Args)]
pub struct PromoteCluster {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// `remove`
#[derive(Clone, Debug, Args)]
pub struct Remove {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// How the members are shown before it is asked.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty)]
    pub format: Format,
}

/// `show-config`
#[derive(Clone, Debug, Args)]
pub struct ShowConfig {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Show every value in force for the member of this file (-c) instead, each with where it comes from.
    #[arg(long)]
    pub effective: bool,
    /// How the values in force are printed.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty, requires = "effective")]
    pub format: Format,
}

/// `edit-config`
#[derive(Clone, Debug, Args)]
pub struct EditConfig {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Set a value: key=value, dots between the levels; key=null removes it.
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Set a PostgreSQL parameter: -p NAME=VALUE is -s postgresql.parameters.NAME=VALUE.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub pg: Vec<String>,
    /// Merge a YAML file; - is standard input.
    #[arg(long, value_name = "FILE")]
    pub apply: Option<PathBuf>,
    /// Replace everything by a YAML file; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "apply")]
    pub replace: Option<PathBuf>,
    /// Do not show what changes.
    #[arg(short, long)]
    pub quiet: bool,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}
