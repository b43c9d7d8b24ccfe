//! Parameters on which the members of a cluster must agree (pure): a replica refuses to start, or to replay, with
//! less than its primary had. They come from the cluster's configuration alone, as in Patroni, with Patroni's
//! defaults and minima; a value that cannot be used is replaced by the default, so that every member makes the
//! same of it.

use std::collections::BTreeMap;

use trunkline_shared::cluster::quantity;

use super::config::PostgresConfig;
use super::control_data::SharedMemorySettings;

/// What a value must be.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// A whole number of at least so many.
    Least(u32),
    /// A size of at least so many megabytes; a bare number counts those.
    Megabytes(u64),
    /// `replica` or `logical`.
    WalLevel,
    /// On or off.
    Switch,
}

/// How the server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On the command line, where no file can win over it.
    CommandLine,
    /// In the file.
    File,
}

/// Patroni's table: name, default, what is allowed, and where it is given.
const CONTROLLED: [(&str, &str, Rule, Place); 10] = [
    (
        "max_connections",
        "100",
        Rule::Least(25),
        Place::CommandLine,
    ),
    (
        "max_locks_per_transaction",
        "64",
        Rule::Least(32),
        Place::CommandLine,
    ),
    (
        "max_worker_processes",
        "8",
        Rule::Least(2),
        Place::CommandLine,
    ),
    (
        "max_prepared_transactions",
        "0",
        Rule::Least(0),
        Place::CommandLine,
    ),
    ("wal_level", "replica", Rule::WalLevel, Place::CommandLine),
    (
        "track_commit_timestamp",
        "off",
        Rule::Switch,
        Place::CommandLine,
    ),
    ("max_wal_senders", "10", Rule::Least(3), Place::CommandLine),
    (
        "max_replication_slots",
        "10",
        Rule::Least(4),
        Place::CommandLine,
    ),
    ("wal_log_hints", "on", Rule::Switch, Place::CommandLine),
    // WAL around a fork must still be there when pg_rewind looks for it.
    ("wal_keep_size", "128MB", Rule::Megabytes(16), Place::File),
];

/// Parameters that follow from other settings; nobody sets them.
pub const DERIVED: [&str; 4] = ["listen_addresses", "port", "cluster_name", "hot_standby"];

/// Whether only the cluster's configuration may set it.
pub fn is_of_the_cluster(name: &str) -> bool {
    CONTROLLED.iter().any(|(known, ..)| *known == name)
}

/// The value as the server prints it.
///
/// # Errors
/// What may stand there, and what is used instead.
pub fn checked(name: &str, wanted: &str) -> Result<String, String> {
    let Some((_, default, rule, _)) = CONTROLLED.iter().find(|(known, ..)| *known == name) else {
        return Ok(wanted.to_owned());
    };
    let (found, allowed) = match rule {
        Rule::Least(least) => (
            number(wanted)
                .filter(|number| number >= least)
                .map(|number| number.to_string()),
            format!("a whole number, {least} or more"),
        ),
        Rule::Megabytes(least) => (
            megabytes(wanted)
                .filter(|size| size >= least)
                .map(|_| wanted.trim().to_owned()),
            format!("a size of {least}MB or more"),
        ),
        Rule::WalLevel => (
            match wanted.trim().to_ascii_lowercase().as_str() {
                "logical" => Some("logical".to_owned()),
                // The name before PostgreSQL 9.6.
                "replica" | "hot_standby" => Some("replica".to_owned()),
                _ => None,
            },
            "replica or logical".to_owned(),
        ),
        Rule::Switch => (
            quantity::boolean(wanted).map(|on| if on { "on" } else { "off" }.to_owned()),
            "on or off".to_owned(),
        ),
    };
    found.ok_or_else(|| format!("{allowed} is allowed; {default} is used"))
}

/// A whole number, also where YAML or JSON wrote it with a fraction of zero.
fn number(text: &str) -> Option<u32> {
    let text = text.trim();
    let whole = text.strip_suffix(".0").unwrap_or(text);
    whole.parse().ok()
}

fn megabytes(text: &str) -> Option<u64> {
    match number(text) {
        Some(bare) => Some(u64::from(bare)),
        None => quantity::bytes(text).map(|bytes| bytes >> 20),
    }
}

/// The parameters in force. `floor`: what the primary wrote last into the control file; a replica that undercut
/// it would refuse to start, so it keeps the larger until the primary's smaller value has been replayed.
pub fn controlled(
    config: &PostgresConfig,
    floor: Option<SharedMemorySettings>,
) -> BTreeMap<&'static str, String> {
    let floor = floor.unwrap_or_default();
    CONTROLLED
        .iter()
        .map(|(name, default, _, _)| {
            let wanted = config
                .parameters
                .get(*name)
                .map(|wanted| checked(name, wanted));
            let value = match wanted {
                Some(Ok(value)) => value,
                Some(Err(_)) | None => (*default).to_owned(),
            };
            let least = match *name {
                "max_connections" => floor.max_connections,
                "max_locks_per_transaction" => floor.max_locks_per_transaction,
                "max_worker_processes" => floor.max_worker_processes,
                "max_prepared_transactions" => floor.max_prepared_transactions,
                "max_wal_senders" => floor.max_wal_senders,
                _ => 0,
            };
            let value = match value.parse::<u32>() {
                Ok(number) => number.max(least).to_string(),
                Err(_) if *name == "wal_log_hints" && config.use_pg_rewind => "on".to_owned(),
                Err(_) => value,
            };
            (*name, value)
        })
        .collect()
}

/// Those of them that are given on the command line.
pub fn on_the_command_line<'c>(
    controlled: &'c BTreeMap<&'static str, String>,
) -> impl Iterator<Item = (&'static str, &'c str)> {
    let is_there = |name: &str| {
        let mut known = CONTROLLED.iter();
        known.any(|(known, .., place)| *known == name && *place == Place::CommandLine)
    };
    controlled
        .iter()
        .filter(move |(name, _)| is_there(name))
        .map(|(name, value)| (*name, value.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_made_as_the_server_prints_them_or_refused_with_what_is_allowed() {
        for (name, wanted, found) in [
            ("max_connections", "25", Some("25")),
            ("max_connections", "100.0", Some("100")),
            ("max_connections", "24", None),
            ("max_connections", "many", None),
            ("max_prepared_transactions", "0", Some("0")),
            ("max_wal_senders", "2", None),
            ("wal_level", "Logical", Some("logical")),
            ("wal_level", "hot_standby", Some("replica")),
            ("wal_level", "minimal", None),
            ("track_commit_timestamp", "yes", Some("on")),
            ("wal_log_hints", "perhaps", None),
            ("wal_keep_size", "64", Some("64")),
            ("wal_keep_size", "1GB", Some("1GB")),
            ("wal_keep_size", "8MB", None),
            ("work_mem", "anything", Some("anything")),
        ] {
            let checked = checked(name, wanted);
            assert_eq!(
                checked.as_deref().ok(),
                found,
                "{name} {wanted}: {checked:?}"
            );
        }
        assert_eq!(
            checked("max_connections", "10"),
            Err("a whole number, 25 or more is allowed; 100 is used".to_owned())
        );
    }
}
