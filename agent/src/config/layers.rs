//! The layering rule of server parameters: the cluster's configuration and this file's. It lives here and
//! nowhere else.

use std::collections::BTreeMap;

use crate::postgres::controlled::{DERIVED, checked, is_of_the_cluster};

/// The server parameters in force: the cluster's, with this file's laid over them, except where members
/// must agree.
pub fn parameters(
    of_the_cluster: &BTreeMap<String, String>,
    local: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut parameters = of_the_cluster.clone();
    parameters.extend(
        local
            .iter()
            .filter(|(name, _)| !is_of_the_cluster(name))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    parameters.retain(|name, _| !DERIVED.contains(&name.as_str()));
    parameters
}

/// Parameters of the cluster's configuration that it may not set so, each with why and what holds instead.
pub fn not_taken(of_the_cluster: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let why = |name: &str, value: &str| match DERIVED.contains(&name) {
        true => Some(derived(name).to_owned()),
        false => checked(name, value).err(),
    };
    of_the_cluster
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), why(name, value)?)))
        .collect()
}

/// From what a parameter that nobody sets follows.
pub fn derived(name: &str) -> &'static str {
    match name {
        "cluster_name" => "ignored: it follows from scope",
        "hot_standby" => "ignored: it is always on",
        _ => "ignored: it follows from postgresql.listen",
    }
}

/// What holds of a parameter on which members must agree, where this file sets it.
pub const ONLY_OF_THE_CLUSTER: &str = "ignored, as by Patroni: members must agree on it; set it with \
     \"trunkline edit-config\" (before there is a cluster: below bootstrap.dcs.postgresql.parameters)";

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
            ("wal_keep_size", "1GB"),
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
        let named: Vec<String> = not_taken(&cluster)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(named, ["port"]);
    }
}
