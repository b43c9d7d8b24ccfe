//! The cluster's configuration (`bootstrap.dcs`, and the `config` key that it becomes): what is wrong in it, and
//! what of it nobody reads.

use serde_json::{Map, Value};
use trunkline_shared::cluster::ClusterSettings;
use trunkline_shared::dcs::records::{SettingsError, read_settings, read_value};

use super::document::{Node, Origin};
use super::section::{Report, Section};
use super::{Mistake, Warning, layers};
use crate::postgres::settings::RECOVERY_SETTINGS;

/// Keys that are acted on.
const ACTED_ON: [&str; 21] = [
    "ttl",
    "loop_wait",
    "retry_timeout",
    "maximum_lag_on_failover",
    "primary_start_timeout",
    "primary_stop_timeout",
    // The names before Patroni 3.0.
    "master_start_timeout",
    "master_stop_timeout",
    "check_timeline",
    "pause",
    "failsafe_mode",
    "max_timelines_history",
    "member_slots_ttl",
    "postgresql",
    "slots",
    "ignore_slots",
    "standby_cluster",
    "synchronous_mode",
    "synchronous_mode_strict",
    "synchronous_node_count",
    "maximum_lag_on_syncnode",
];

/// Keys of `postgresql` that every member acts on; what else may stand in a member's file may stand here, too.
const OF_POSTGRESQL: [&str; 6] = [
    "use_pg_rewind",
    "use_slots",
    "parameters",
    "pg_hba",
    "pg_ident",
    "recovery_conf",
];

/// Keys of a member's own `postgresql` section that may stand in the cluster's configuration.
const SHARED_WITH_MEMBERS: [&str; 16] = [
    "bin_dir",
    "bin_name",
    "database",
    "custom_conf",
    "use_unix_socket",
    "use_unix_socket_repl",
    "remove_data_directory_on_rewind_failure",
    "remove_data_directory_on_diverged_timelines",
    "pg_ctl_timeout",
    "create_replica_methods",
    "create_replica_method",
    "basebackup",
    "callbacks",
    "pre_promote",
    "before_stop",
    "krbsrvname",
];

/// Keys that only a member's own file has.
pub(super) const OF_A_MEMBER: [&str; 7] = [
    "connect_address",
    "proxy_address",
    "listen",
    "config_dir",
    "data_dir",
    "pgpass",
    "authentication",
];

const BELONGS_TO_MEMBERS: &str = "it belongs in each member's own file, as in Patroni";

const OF_STANDBY_CLUSTER: [&str; 7] = [
    "host",
    "port",
    "primary_slot_name",
    "restore_command",
    "archive_cleanup_command",
    "recovery_min_apply_delay",
    "create_replica_methods",
];

const OF_A_SLOT: [&str; 5] = ["type", "database", "plugin", "cluster_type", "failover"];

/// What a new cluster begins with, as it is written. `failsafe_mode` is on unless the section says otherwise.
pub fn of_a_new_cluster(section: &Section<'_>) -> Map<String, Value> {
    let mut dcs = check(section);
    if section.is_present() && !dcs.contains_key("failsafe_mode") {
        dcs.insert("failsafe_mode".to_owned(), true.into());
    }
    dcs
}

/// Every key of the `config` key's text that nobody reads. What is no JSON object is not used at all, which is said
/// elsewhere.
pub fn unread(text: &str) -> Vec<Warning> {
    let Ok(written @ Value::Object(_)) = serde_json::from_str(text) else {
        return Vec::new();
    };
    let document = Node::from_json(&written, &Origin::Dynamic);
    let report = Report::new(&document);
    keys(&Section::root(&document, &report));
    report.into_parts().1
}

/// Every value of the `config` key's text that is not usable, with what may stand there. What is no JSON object is said
/// elsewhere.
pub fn unusable(text: &str) -> Vec<SettingsError> {
    read_settings(text)
        .map(|read| read.unusable)
        .unwrap_or_default()
}

/// Finds every mistake, and every key that nobody reads; returns the section as JSON.
pub fn check(section: &Section<'_>) -> Map<String, Value> {
    let dcs: Map<_, _> = section
        .values()
        .iter()
        .map(|entry| (entry.key.clone(), entry.node.to_json()))
        .collect();
    let settings = usable(section, dcs.clone());
    check_times(section, &settings);
    keys(section);
    let parameters = section.section("postgresql").section("parameters");
    for (name, done) in layers::not_taken(&settings.parameters) {
        if let Some(node) = parameters.find(&name) {
            section.report().warn(Warning::Contradiction {
                origin: node.origin.clone(),
                key: parameters.path_of(&name),
                done,
            });
        }
    }
    dcs
}

/// The settings without what cannot be used: each of those is a mistake.
fn usable(section: &Section<'_>, dcs: Map<String, Value>) -> ClusterSettings {
    // The section was made of a mapping; whatever else stood there is a mistake already.
    let Ok(read) = read_value(&Value::Object(dcs)) else {
        return ClusterSettings::default();
    };
    for error in read.unusable {
        let (
            SettingsError::Value {
                key,
                value,
                allowed,
            },
            Some(own),
        ) = (error, section.node())
        else {
            continue;
        };
        let node = key
            .split('.')
            .try_fold(own, |node, part| node.child(part))
            .unwrap_or(own);
        section.report().mistake(Mistake::Unusable {
            origin: node.origin.clone(),
            key: section.path_of(&key),
            value,
            expected: allowed,
        });
    }
    read.settings
}

/// Warns of keys that nobody reads, on every level that has a list of its own.
fn keys(section: &Section<'_>) {
    section.acknowledge(&ACTED_ON);
    section.not_acted_on(&["primary_race_backoff"]);
    let postgresql = section.section("postgresql");
    postgresql.acknowledge(&OF_POSTGRESQL);
    postgresql.acknowledge(&SHARED_WITH_MEMBERS);
    postgresql.without_effect(&OF_A_MEMBER.map(|key| (key, BELONGS_TO_MEMBERS)));
    let methods: Vec<&str> = postgresql
        .values()
        .iter()
        .filter(|entry| entry.node.child("command").is_some())
        .map(|entry| entry.key.as_str())
        .collect();
    postgresql.acknowledge(&methods);
    postgresql.end();
    let recovery = postgresql.section("recovery_conf");
    recovery.acknowledge(&RECOVERY_SETTINGS);
    recovery.end();
    let standby = section.section("standby_cluster");
    standby.acknowledge(&OF_STANDBY_CLUSTER);
    standby.end();
    let slots = section.section("slots");
    for slot in slots.entries() {
        let slot = slots.section(&slot.key);
        slot.acknowledge(&OF_A_SLOT);
        slot.end();
    }
    section.end();
}

/// The rule of the three times, on the values in effect. Reported, never bent.
fn check_times(section: &Section<'_>, settings: &ClusterSettings) {
    if settings.loop_wait + settings.retry_timeout * 2 <= settings.ttl {
        return;
    }
    let Some(node) = section.node() else {
        return;
    };
    section.report().warn(Warning::TimesDoNotFit {
        origin: section.find("ttl").unwrap_or(node).origin.clone(),
        ttl: settings.ttl,
        loop_wait: settings.loop_wait,
        retry_timeout: settings.retry_timeout,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_nobody_reads_are_named_on_every_level() {
        let text = r#"{"ttl": 30, "tll": 20, "postgresql": {"use_slots": true, "usr_slots": true, "listen": "h:1"},
            "slots": {"a": {"type": "physical", "tpye": "x"}}, "standby_cluster": {"host": "h", "hots": "i"}}"#;
        let told: Vec<_> = unread(text).iter().map(ToString::to_string).collect();
        let told = told.join("\n");
        for key in [
            "tll",
            "postgresql.usr_slots",
            "postgresql.listen",
            "slots.a.tpye",
            "standby_cluster.hots",
        ] {
            assert!(
                told.contains(&format!("dynamic configuration: {key}: ")),
                "{key}: {told}"
            );
        }
        assert_eq!(told.lines().count(), 5, "{told}");
        assert!(unread("[]").is_empty() && unread("{").is_empty() && unread("{}").is_empty());
    }
}
