//! The command line of `trunkline`: patronictl's commands and options, and its own.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::drain::DrainArguments;

mod apply;

pub use apply::Apply;

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
    /// Where the DCS is, such as 10.0.0.1:2379 or etcd3://10.0.0.1:2379/service; in place of the file's.
    #[arg(short = 'd', long = "dcs-url", alias = "dcs", global = true)]
    pub dcs_url: Option<String>,
    /// Take any certificate of an agent.
    #[arg(short = 'k', long, global = true)]
    pub insecure: bool,
    /// A group of Citus: there are none here.
    #[arg(long, global = true, hide = true)]
    pub group: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the members of clusters.
    List(List),
    /// Show the members of clusters as a tree by upstream.
    Topology(Topology),
    /// Change the leader while it lives: planned, nothing is lost.
    Switchover(Switchover),
    /// Change the leader to a named member, by force if need be.
    Failover(Failover),
    /// Restart PostgreSQL of members.
    Restart(Restart),
    /// Replace a member's data by a new copy.
    Reinit(Reinit),
    /// Make agents read their configuration again.
    Reload(Members),
    /// Take back what is scheduled.
    Flush(Flush),
    /// Show the changes of leader.
    History(History),
    /// Show the routers that are registered for the cluster.
    Routers(Routers),
    /// Show the configuration of the cluster.
    ShowConfig(ShowConfig),
    /// Change the configuration of the cluster.
    EditConfig(EditConfig),
    /// Show how to connect to a member: the leader's host and port, if no other is asked for.
    Dsn(Dsn),
    /// Send SQL to a member.
    Query(Query),
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
    /// Take a DCS that lost its memory, or another one, for the true one.
    AcceptDcs(AcceptDcs),
    /// Show the version of this program and, if a cluster is named, of its members.
    Version(Version),
    /// Show the cluster live: members, lag, who holds what, what happened last.
    Top(Top),
    /// Tell why members did, or do, what they do.
    Explain(Explain),
    /// Put parameters that wait for a restart into force, member by member.
    Apply(Apply),
    /// Turn a pgbouncer.ini or a haproxy.cfg into a router's file, and tell what has no equivalent.
    Import(Import),
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

/// Which members by what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Whoever holds the leader key.
    Leader,
    /// The leader of a cluster that stands on its own.
    Primary,
    /// The leader of a standby cluster.
    StandbyLeader,
    /// Everybody but the leader.
    Replica,
    /// The same.
    Standby,
    /// Everybody.
    Any,
}

impl Role {
    /// As it is written on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Primary => "primary",
            Role::StandbyLeader => "standby-leader",
            Role::Replica => "replica",
            Role::Standby => "standby",
            Role::Any => "any",
        }
    }
}

/// Printing again and again.
#[derive(Clone, Debug, Args)]
pub struct Watch {
    /// Print again every 2 seconds.
    #[arg(short = 'W')]
    pub every_2_seconds: bool,
    /// Print again after so many seconds.
    #[arg(
        short = 'w',
        long = "watch",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    pub every: Option<f64>,
}

/// `list`
#[derive(Clone, Debug, Args)]
pub struct List {
    /// The clusters; the file's scope if absent.
    pub clusters: Vec<String>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty, hide_possible_values = true, help = "pretty, tsv, json or yaml")]
    pub format: Format,
    /// Show all columns, even empty ones.
    #[arg(short, long)]
    pub extended: bool,
    /// Print the time first.
    #[arg(short, long)]
    pub timestamp: bool,
    /// Again and again.
    #[command(flatten)]
    pub watch: Watch,
}

/// `topology`
#[derive(Clone, Debug, Args)]
pub struct Topology {
    /// The clusters; the file's scope if absent.
    pub clusters: Vec<String>,
    /// Again and again.
    #[command(flatten)]
    pub watch: Watch,
}

/// `history`
#[derive(Clone, Debug, Args)]
pub struct History {
    /// How long each part of the changes took, where it is known.
    #[arg(long)]
    pub parts: bool,
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty, hide_possible_values = true, help = "pretty, tsv, json or yaml")]
    pub format: Format,
}

/// `routers`
#[derive(Clone, Debug, Args)]
pub struct Routers {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty, hide_possible_values = true, help = "pretty, tsv, json or yaml")]
    pub format: Format,
}

/// `switchover`
#[derive(Clone, Debug, Args)]
pub struct Switchover {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// The leader to change away from.
    #[arg(long, alias = "primary", alias = "master")]
    pub leader: Option<String>,
    /// The member to change to.
    #[arg(long)]
    pub candidate: Option<String>,
    /// When: ISO 8601, such as 2026-11-20T10:00:00+00:00; without an offset in this machine's time zone.
    #[arg(long, value_name = "TIME")]
    pub scheduled: Option<String>,
    /// What becomes of transactions that run.
    #[command(flatten)]
    pub drain: DrainArguments,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// `failover`
#[derive(Clone, Debug, Args)]
pub struct Failover {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// The member to change to.
    #[arg(long)]
    pub candidate: Option<String>,
    /// What becomes of transactions that run.
    #[command(flatten)]
    pub drain: DrainArguments,
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
    #[arg(short, long, value_enum, default_value_t = Role::Any, hide_possible_values = true, help = "Only members of this role: leader, primary, standby-leader, replica, standby, any")]
    pub role: Role,
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
    /// Only members whose PostgreSQL is older than this, such as 15.9.
    #[arg(long, value_name = "VERSION")]
    pub pg_version: Option<String>,
    /// How long is waited for the restart: seconds, or a time such as 1min. It ends the waiting, not the restart.
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// When: ISO 8601, such as 2026-11-20T10:00:00+00:00; without an offset in this machine's time zone.
    #[arg(long, value_name = "TIME")]
    pub scheduled: Option<String>,
    /// What becomes of transactions that run on the leader.
    #[command(flatten)]
    pub drain: DrainArguments,
}

/// `reinit`
#[derive(Clone, Debug, Args)]
pub struct Reinit {
    /// The cluster.
    pub cluster: String,
    /// The members.
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

/// `flush`
#[derive(Clone, Debug, Args)]
#[command(override_usage = "trunkline flush [OPTIONS] <CLUSTER> [MEMBERS]... <restart|switchover>")]
pub struct Flush {
    /// The cluster.
    pub cluster: String,
    /// The members whose restart is taken back, all if none is named; then what is taken back: restart or
    /// switchover.
    #[arg(required = true, value_name = "TARGET")]
    pub words: Vec<String>,
    /// Only members of this role.
    #[arg(
        short,
        long,
        value_enum,
        default_value_t = Role::Any,
        hide_possible_values = true,
        help = "Only members of this role: leader, primary, standby-leader, replica, standby, any"
    )]
    pub role: Role,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// `dsn`
#[derive(Clone, Debug, Args)]
pub struct Dsn {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Any member of this role.
    #[arg(
        short,
        long,
        value_enum,
        hide_possible_values = true,
        help = "Any member of this role: leader, primary, standby-leader, replica, standby, any"
    )]
    pub role: Option<Role>,
    /// This member.
    #[arg(short, long)]
    pub member: Option<String>,
}

/// `query`. Its -c and -d are patronictl's: the file and the DCS are named before the word query.
#[derive(Clone, Debug, Args)]
pub struct Query {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// The SQL.
    #[arg(short = 'c', long, value_name = "SQL")]
    pub command: Option<String>,
    /// A file with the SQL.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The database; the user's name if absent.
    #[arg(short = 'd', long)]
    pub dbname: Option<String>,
    /// The user; PGUSER or this process's user if absent.
    #[arg(short = 'U', long)]
    pub username: Option<String>,
    /// Ask for the password. Without it PGPASSWORD and the password file are used.
    #[arg(long)]
    pub password: bool,
    /// Any member of this role; the leader if absent.
    #[arg(
        short,
        long,
        value_enum,
        hide_possible_values = true,
        help = "Any member of this role: leader, primary, standby-leader, replica, standby, any"
    )]
    pub role: Option<Role>,
    /// This member.
    #[arg(short, long)]
    pub member: Option<String>,
    /// How it is printed.
    #[arg(long, value_enum, default_value_t = Format::Tsv, hide_possible_values = true, help = "pretty, tsv, json or yaml")]
    pub format: Format,
    /// What stands between two columns of TSV.
    #[arg(long, default_value = "\t", hide_default_value = true)]
    pub delimiter: String,
    /// Again and again.
    #[command(flatten)]
    pub watch: Watch,
    /// An agent's or a router's file.
    #[arg(id = "config", long = "config-file", env = "TRUNKLINE_CONFIG_FILE")]
    pub config: Option<PathBuf>,
    /// Where the DCS is.
    #[arg(id = "dcs_url", long = "dcs-url", alias = "dcs")]
    pub dcs_url: Option<String>,
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
    /// The cluster.
    pub cluster: String,
    /// How the members are shown before it is asked.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty, hide_possible_values = true, help = "pretty, tsv, json or yaml")]
    pub format: Format,
}

/// `version`
#[derive(Clone, Debug, Args)]
pub struct Version {
    /// The cluster; only this program's version if absent.
    pub cluster: Option<String>,
    /// The members; all if none is named.
    pub members: Vec<String>,
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

/// `accept-dcs`
#[derive(Clone, Debug, Args)]
pub struct AcceptDcs {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// How the members are shown before it is asked.
    #[arg(short, long, value_enum, default_value_t = Format::Pretty)]
    pub format: Format,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}

/// `top`
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// Ask the members again after so many seconds.
    #[arg(short = 'w', long, value_name = "SECONDS", default_value_t = 1.0)]
    pub refresh: f64,
}

/// `explain`
#[derive(Clone, Debug, Args)]
pub struct Explain {
    /// The cluster; the file's scope if absent.
    pub cluster: Option<String>,
    /// The member; the newest turn of each if absent.
    pub member: Option<String>,
    /// Read the journal from a file, as GET /trunkline/journal gave it.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// List the turns that are kept, the newest first.
    #[arg(short, long)]
    pub list: bool,
    /// How the list is printed.
    #[arg(
        short,
        long,
        value_enum,
        default_value_t = Format::Pretty,
        hide_possible_values = true,
        help = "How the list is printed: pretty, tsv, json or yaml"
    )]
    pub format: Format,
    /// This turn; 1 is the newest.
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub turn: Option<u32>,
    /// The newest turn that was decided for this reason, such as racing.
    #[arg(short, long, value_name = "WORD", conflicts_with = "turn")]
    pub reason: Option<String>,
    /// Write the turn as a script of the tests into a new file.
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub script: Option<PathBuf>,
}

/// `import`. Where the store is comes from -c or -d, as for every command.
#[derive(Clone, Debug, Args)]
pub struct Import {
    /// pgbouncer.ini or haproxy.cfg.
    pub file: PathBuf,
    /// PgBouncer's userlist.txt, in place of the one that auth_file names.
    pub userlist: Option<PathBuf>,
    /// The cluster behind WHAT: a host, host:port, or a section of haproxy.cfg; without WHAT behind all others.
    /// CLUSTER/replicas leads to its replicas.
    #[arg(short, long, value_name = "[WHAT=]CLUSTER")]
    pub scope: Vec<String>,
    /// Write to a new file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace that file if it is there.
    #[arg(long, requires = "output")]
    pub force: bool,
    /// The trunkline-router that checks the result; the one beside this program, or on the path, if absent.
    #[arg(long, value_name = "PROGRAM")]
    pub router: Option<PathBuf>,
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
    #[arg(long, value_name = "FILE")]
    pub replace: Option<PathBuf>,
    /// Do not show what changes.
    #[arg(short, long)]
    pub quiet: bool,
    /// Never ask.
    #[arg(long)]
    pub force: bool,
}
