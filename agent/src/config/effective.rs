//! Every value in force for one member, with where it comes from: what holds where nothing is written, the cluster's
//! configuration, the member's files, the environment.

use std::path::Path;

use serde_json::{Map, Value as Json};
use trunkline_shared::dcs::records::read_value;

use super::document::{self, Entry, Node, Origin, Value};
use super::dynamic::OF_A_MEMBER;
use super::section::Address;
use super::{ConfigError, Environment, Warning, layers, masked, postgresql, restapi, sources};
use crate::postgres::controlled::{DERIVED, is_of_the_cluster};

/// What holds where nothing is written, in the words of the files. A test holds it against what is read.
const DEFAULTS: &str = include_str!("effective/defaults.yml");

const BOOTSTRAP: &str = "bootstrap";
const POSTGRESQL: &str = "postgresql";
const PARAMETERS: &str = "parameters";

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key, with dots between the levels. Keys of the cluster's configuration stand as they do there.
    pub key: String,
    /// The value, masked if it is a secret.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
}

/// The values in force for the member whose file this is, under the cluster's configuration `dynamic`; absent where
/// there is no cluster yet: then under what the file would begin one with.
///
/// # Errors
/// The file cannot be read. A mistake in a value does not keep the others from being shown.
pub fn effective(
    path: Option<&Path>,
    env: &Environment,
    dynamic: Option<&Json>,
) -> Result<(Vec<Effective>, Vec<Warning>), ConfigError> {
    let (file, warnings) = sources::read(path, env)?;
    let cluster = match dynamic {
        Some(dynamic) => Node::from_json(dynamic, &Origin::Dynamic),
        None => {
            let begun_with = file.child(BOOTSTRAP).and_then(|own| own.child("dcs"));
            begun_with
                .cloned()
                .unwrap_or_else(|| map(Vec::new(), Origin::Default))
        }
    };
    let mut lines = Vec::new();
    collect("", &in_force(file, cluster), &mut lines);
    Ok((lines, warnings))
}

/// All layers in one document.
fn in_force(mut file: Node, mut cluster: Node) -> Node {
    let mut all = defaults();
    all.merge(derived(&file));
    cut_parameters(&mut file, |name| {
        is_of_the_cluster(name) || DERIVED.contains(&name)
    });
    let unusable: Vec<String> = parameters_of(&cluster)
        .map(|parameters| layers::not_taken(&parameters).into_iter())
        .into_iter()
        .flatten()
        .map(|(name, _)| name)
        .collect();
    cut_parameters(&mut cluster, |name| unusable.iter().any(|cut| cut == name));
    // What the file says of PostgreSQL it says whole, but for parameters.
    let own: Vec<String> = entries(file.child(POSTGRESQL))
        .iter()
        .map(|entry| entry.key.clone())
        .filter(|key| key != PARAMETERS)
        .collect();
    cut(&mut cluster, POSTGRESQL, |key| {
        OF_A_MEMBER.contains(&key) || own.iter().any(|known| known == key)
    });
    if let Some(lines) = first_hba(&file, &cluster) {
        all.merge(lines.nested(&[POSTGRESQL, "pg_hba"]));
    }
    cut(&mut file, BOOTSTRAP, |key| key == "dcs");
    cut(&mut file, POSTGRESQL, |key| key == "use_slots");
    all.merge(cluster);
    all.merge(file);
    all
}

fn map(entries: Vec<Entry>, origin: Origin) -> Node {
    Node {
        origin,
        value: Value::Map(entries),
    }
}

fn defaults() -> Node {
    let read = document::parse("defaults", DEFAULTS);
    let none = || map(Vec::new(), Origin::Default);
    read.map_or_else(|_| none(), |(node, _)| node.moved_to(&Origin::Default))
}

/// What holds by other values of the file, where it says nothing itself.
fn derived(file: &Node) -> Node {
    let mut all = map(Vec::new(), Origin::Default);
    let mut put = |path: &[&str], node: Option<Node>| {
        if let Some(node) = node {
            all.merge(node.moved_to(&Origin::Default).nested(path));
        }
    };
    for (section, port) in [
        ("restapi", restapi::DEFAULT_PORT),
        (POSTGRESQL, postgresql::DEFAULT_PORT),
    ] {
        let listen = file.child(section).and_then(|own| own.child("listen"));
        put(
            &[section, "connect_address"],
            listen.map(|listen| reached_at(listen, port)),
        );
    }
    let data_dir = file.child(POSTGRESQL).and_then(|own| own.child("data_dir"));
    put(&[POSTGRESQL, "config_dir"], data_dir.cloned());
    all
}

/// The first of the hosts where it listens.
fn reached_at(listen: &Node, port: u16) -> Node {
    let mut node = listen.clone();
    if let Value::Scalar(scalar) = &mut node.value
        && let Some(address) = Address::parse_listen(&scalar.text, port)
    {
        scalar.text = address.first().to_string();
    }
    node
}

fn entries(node: Option<&Node>) -> &[Entry] {
    match node.map(|node| &node.value) {
        Some(Value::Map(entries)) => entries,
        Some(Value::Scalar(_) | Value::List(_)) | None => &[],
    }
}

/// Takes keys out of one section.
fn cut(document: &mut Node, section: &str, is_cut: impl Fn(&str) -> bool) {
    if let Value::Map(sections) = &mut document.value
        && let Some(own) = sections.iter_mut().find(|entry| entry.key == section)
        && let Value::Map(entries) = &mut own.node.value
    {
        entries.retain(|entry| !is_cut(&entry.key));
    }
}

fn cut_parameters(document: &mut Node, is_cut: impl Fn(&str) -> bool) {
    if let Value::Map(sections) = &mut document.value
        && let Some(own) = sections.iter_mut().find(|entry| entry.key == POSTGRESQL)
    {
        cut(&mut own.node, PARAMETERS, is_cut);
    }
}

/// The cluster's parameters as text.
fn parameters_of(cluster: &Node) -> Option<std::collections::BTreeMap<String, String>> {
    let parameters = cluster.child(POSTGRESQL)?.child(PARAMETERS)?.to_json();
    let mut postgresql = Map::new();
    postgresql.insert(PARAMETERS.to_owned(), parameters);
    let mut all = Map::new();
    all.insert(POSTGRESQL.to_owned(), Json::Object(postgresql));
    let read = read_value(&Json::Object(all)).ok()?;
    Some(read.settings.parameters)
}

/// The lines a cluster was begun with are used where neither the file nor the cluster has any.
fn first_hba(file: &Node, cluster: &Node) -> Option<Node> {
    let has = |node: &Node| {
        let lines = node.child(POSTGRESQL).and_then(|own| own.child("pg_hba"));
        lines.is_some_and(|lines| !lines.is_null())
    };
    if has(file) || has(cluster) {
        return None;
    }
    file.child(BOOTSTRAP)?.child("pg_hba").cloned()
}

fn collect(path: &str, node: &Node, lines: &mut Vec<Effective>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                collect(&masked::below(path, &entry.key), &entry.node, lines);
            }
        }
        Value::List(items) => {
            for (at, item) in items.iter().enumerate() {
                collect(&format!("{path}[{at}]"), item, lines);
            }
        }
        // A null says nothing.
        Value::Scalar(_) if node.is_null() => {}
        Value::Scalar(scalar) => lines.push(Effective {
            key: path.to_owned(),
            value: masked::shown(path, &scalar.text),
            origin: node.origin.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::ClusterSettings;

    use super::*;
    use crate::config::load;

    const FILE: &str = "\
scope: demo
name: n1
etcd3: {hosts: \"10.0.0.1:2379\"}
postgresql: {listen: \"10.0.0.1:5432\", data_dir: /data}
";

    /// Of the defaults, what stands in the cluster's configuration.
    fn of_the_cluster() -> Json {
        let mut all = defaults();
        let file = [
            "restapi",
            "etcd3",
            "log",
            "watchdog",
            "tags",
            "trunkline",
            "namespace",
        ];
        if let Value::Map(entries) = &mut all.value {
            entries.retain(|entry| !file.contains(&entry.key.as_str()));
        }
        let shared = ["use_slots", "use_pg_rewind", PARAMETERS];
        cut(&mut all, POSTGRESQL, |key| !shared.contains(&key));
        all.to_json()
    }

    #[test]
    fn the_defaults_are_what_is_read_where_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("2.yml"), FILE).unwrap();
        let silent = load(dir.path(), &Environment::new()).unwrap().0;
        let mut local = defaults();
        let cluster = of_the_cluster();
        if let Value::Map(entries) = &mut local.value {
            let top = cluster.as_object().unwrap();
            entries.retain(|entry| entry.key == POSTGRESQL || !top.contains_key(&entry.key));
        }
        cut(&mut local, POSTGRESQL, |key| {
            [PARAMETERS, "use_slots", "use_pg_rewind"].contains(&key)
        });
        let text = serde_saphyr::to_string(&local.to_json()).unwrap();
        std::fs::write(dir.path().join("1.yml"), text).unwrap();
        let (told, warnings) = load(dir.path(), &Environment::new()).unwrap();
        assert_eq!(warnings, []);
        let comparable = |config: crate::config::AgentConfig| {
            let mut config = config;
            config.effective.clear();
            config.values = Default::default();
            format!("{config:#?}")
        };
        assert_eq!(comparable(told), comparable(silent));

        let settings = read_value(&cluster).unwrap().settings;
        assert_eq!(layers::not_taken(&settings.parameters), []);
        let silent = ClusterSettings {
            parameters: settings.parameters.clone(),
            ..ClusterSettings::default()
        };
        assert_eq!(settings, silent);
    }

    #[test]
    fn every_value_names_the_layer_that_it_is_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n1.yml");
        let text = FILE.replace(
            "data_dir: /data",
            "data_dir: /data, pg_ctl_timeout: 90, parameters: {work_mem: 8MB, max_connections: 7}",
        );
        std::fs::write(&path, text).unwrap();
        let env: Environment = [
            ("PATRONI_SUPERUSER_PASSWORD", "hidden"),
            ("TRUNKLINE_WATCHDOG_MODE", "automatic"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let dynamic = serde_json::json!({
            "ttl": 20,
            "postgresql": {
                "pg_ctl_timeout": 70,
                "data_dir": "/elsewhere",
                "before_stop": "/bin/true",
                "parameters": { "max_connections": 200, "work_mem": "1MB", "max_wal_senders": 1 },
            },
        });
        let (lines, _) = effective(Some(&path), &env, Some(&dynamic)).unwrap();
        let shown = path.display().to_string();
        let line = |key: &str| {
            let line = lines.iter().find(|line| line.key == key).unwrap();
            format!("{} ({})", line.value, line.origin).replace(&shown, "n1.yml")
        };
        for (key, expected) in [
            ("ttl", "20 (dynamic configuration)"),
            ("loop_wait", "10 (default)"),
            ("postgresql.data_dir", "/data (n1.yml:4)"),
            ("postgresql.config_dir", "/data (default)"),
            ("postgresql.pg_ctl_timeout", "90 (n1.yml:4)"),
            (
                "postgresql.before_stop",
                "/bin/true (dynamic configuration)",
            ),
            ("postgresql.connect_address", "10.0.0.1:5432 (default)"),
            ("postgresql.parameters.work_mem", "8MB (n1.yml:4)"),
            (
                "postgresql.parameters.max_connections",
                "200 (dynamic configuration)",
            ),
            ("postgresql.parameters.max_wal_senders", "10 (default)"),
            (
                "postgresql.authentication.superuser.password",
                "*** (environment variable PATRONI_SUPERUSER_PASSWORD)",
            ),
            (
                "watchdog.mode",
                "automatic (environment variable TRUNKLINE_WATCHDOG_MODE)",
            ),
        ] {
            assert_eq!(line(key), expected, "{key}");
        }
    }
}
