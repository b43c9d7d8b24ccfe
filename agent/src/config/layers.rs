//! The layering rule of server parameters: the cluster's configuration and this file's. It lives here and
//! nowhere else.

use std::collections::BTreeMap;

/// Parameters that must be equal, or at least ordered, on all members: a replica refuses to start with less
/// than its primary had. They come from the cluster's configuration only, as in Patroni.
const OF_THE_CLUSTER: [&str; 10] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_worker_processes",
    "max_prepared_transactions",
    "wal_level",
    "track_commit_timestamp",
    "max_wal_senders",
    "max_replication_slots",
    "wal_log_hints",
    "hot_standby",
];

/// Parameters that follow from other settings and nobody sets.
const DERIVED: [&str; 3] = ["listen_addresses", "port", "cluster_name"];

/// The server parameters in force: the cluster's, with this file's laid over them, except where members
/// must agree.
pub fn parameters(
    of_the_cluster: &BTreeMap<String, String>,
    local: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let may_differ = |name: &str| !OF_THE_CLUSTER.contains(&name);
    let mut parameters = of_the_cluster.clone();
    parameters.extend(
        local
            .iter()
            .filter(|(name, _)| may_differ(name))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    parameters.retain(|name, _| !DERIVED.contains(&name.as_str()));
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn local_parameters_win_except_where_members_must_agree() {
        let cluster = map(&[
            ("max_connections", "100"),
            ("work_mem", "4MB"),
            ("port", "1"),
        ]);
        let local = map(&[
            ("max_connections", "5"),
            ("work_mem", "8MB"),
            ("jit", "off"),
        ]);
        assert_eq!(
            parameters(&cluster, &local),
            map(&[
                ("max_connections", "100"),
                ("work_mem", "8MB"),
                ("jit", "off")
            ])
        );
    }
}
