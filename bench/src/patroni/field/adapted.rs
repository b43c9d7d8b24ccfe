//! A site's agent file for a member of this machine: addresses, paths and the store are replaced, all else stays. Pure.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::at;

/// The sections that name a store, in Patroni's words.
const STORES: [&str; 7] = [
    "etcd",
    "etcd3",
    "consul",
    "zookeeper",
    "exhibitor",
    "raft",
    "kubernetes",
];
/// What says where etcd stands. The rest of its section is kept.
const PLACES: [&str; 6] = ["host", "hosts", "srv", "srv_suffix", "url", "proxy"];
/// Whoever comes from this machine.
const ANY_ADDRESS: &str = "127.0.0.0/8";
/// Patroni's port of the REST API, which the harness asks at.
const REST_PORT: u16 = 8008;
const POSTGRESQL_PORT: u16 = 5432;

/// Where a member stands here.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The member's name.
    pub name: &'a str,
    /// Its address, without port.
    pub address: &'a str,
    /// Host and port of each member of etcd.
    pub etcd: &'a [String],
    /// The folder of PostgreSQL's programs.
    pub postgresql: &'a Path,
    /// Its data directory.
    pub data_dir: &'a Path,
    /// The agent's run directory.
    pub run_dir: &'a Path,
    /// Where sockets may lie.
    pub socket: &'a Path,
    /// Whether there is a watchdog at this path.
    pub has_device: fn(&str) -> bool,
}

/// A file that can be run here.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// Its text: YAML in the form of JSON.
    pub text: String,
    /// PostgreSQL's port.
    pub port: u16,
    /// Name and password of the superuser.
    pub superuser: (String, String),
    /// What was replaced beyond addresses and paths.
    pub notes: Vec<String>,
}

/// Replaces what names another machine.
///
/// # Errors
/// Says what is not YAML, or which section is missing.
pub fn adapt(text: &str, site: &Site<'_>) -> Result<Adapted> {
    let mut document: Value = serde_saphyr::from_str(text).context("it is no YAML")?;
    let mut notes = Vec::new();
    let root = document.as_object_mut().context("it is no mapping")?;
    root.insert("name".into(), json!(site.name));
    store(root, site, &mut notes);
    let run_dir = json!({ "run_dir": site.run_dir });
    root.insert("trunkline".into(), run_dir);
    let rest = format!("{}:{REST_PORT}", site.address);
    addresses(section(root, "restapi")?, &rest);
    watchdog(root, site, &mut notes);
    let instance = section(root, "postgresql")?;
    let port = port_of(instance).unwrap_or(POSTGRESQL_PORT);
    addresses(instance, &format!("{}:{port}", site.address));
    paths(instance, site);
    for path in [
        &["bootstrap", "pg_hba"][..],
        &["bootstrap", "dcs", "postgresql", "pg_hba"],
        &["postgresql", "pg_hba"],
    ] {
        let lines = path
            .iter()
            .try_fold(&mut document, |value, key| value.get_mut(*key));
        for line in lines.and_then(Value::as_array_mut).into_iter().flatten() {
            *line = json!(admitted(line.as_str().unwrap_or_default()));
        }
    }
    let superuser = at(&document, &["postgresql", "authentication", "superuser"]);
    let word = |key: &str, absent: &str| superuser[key].as_str().unwrap_or(absent).to_owned();
    Ok(Adapted {
        port,
        superuser: (word("username", "postgres"), word("password", "")),
        text: serde_json::to_string_pretty(&document)?,
        notes,
    })
}

fn section<'v>(root: &'v mut Map<String, Value>, name: &str) -> Result<&'v mut Map<String, Value>> {
    let found = root.get_mut(name).and_then(Value::as_object_mut);
    found.with_context(|| format!("there is no section {name}"))
}

fn store(root: &mut Map<String, Value>, site: &Site<'_>, notes: &mut Vec<String>) {
    let mut kept = Map::new();
    for name in STORES {
        let Some(found) = root.remove(name) else {
            continue;
        };
        match (name, found) {
            ("etcd" | "etcd3", Value::Object(mut found)) => {
                PLACES.iter().for_each(|place| drop(found.remove(*place)));
                kept.extend(found);
            }
            (other, _) => notes.push(format!("the store was {other}; it is etcd here")),
        }
    }
    kept.insert("hosts".into(), json!(site.etcd));
    root.insert("etcd3".into(), Value::Object(kept));
}

/// A device that this machine lacks is a path that cannot be replaced: without it nobody would lead.
fn watchdog(root: &mut Map<String, Value>, site: &Site<'_>, notes: &mut Vec<String>) {
    let Ok(section) = section(root, "watchdog") else {
        return;
    };
    let device = section.get("device").and_then(Value::as_str);
    let device = device.unwrap_or("/dev/watchdog").to_owned();
    if section.get("mode") == Some(&json!("required")) && !(site.has_device)(&device) {
        section.insert("mode".into(), json!("automatic"));
        notes.push(format!(
            "watchdog.mode is automatic instead of required: there is no {device} here"
        ));
    }
}

fn addresses(section: &mut Map<String, Value>, address: &str) {
    for key in ["listen", "connect_address"] {
        section.insert(key.into(), json!(address));
    }
}

fn port_of(instance: &Map<String, Value>) -> Option<u16> {
    let listen = instance.get("listen")?.as_str()?;
    listen.rsplit_once(':')?.1.parse().ok()
}

fn paths(instance: &mut Map<String, Value>, site: &Site<'_>) {
    instance.insert("data_dir".into(), json!(site.data_dir));
    instance.insert("bin_dir".into(), json!(site.postgresql));
    if let Some(pgpass) = instance.get_mut("pgpass") {
        *pgpass = json!(site.socket.join("pgpass"));
    }
    let parameters = instance
        .get_mut("parameters")
        .and_then(Value::as_object_mut);
    let sockets = parameters.and_then(|all| all.get_mut("unix_socket_directories"));
    if let Some(Value::String(folders)) = sockets {
        let mut here: Vec<_> = folders
            .split(',')
            .map(|folder| match folder.trim().starts_with('/') {
                true => site.socket.display().to_string(),
                false => folder.trim().to_owned(),
            })
            .collect();
        here.dedup();
        *folders = here.join(",");
    }
}

/// A line of `pg_hba.conf` that names machines names this one instead; one that names everybody stays.
fn admitted(line: &str) -> String {
    let mut words: Vec<_> = line.split_whitespace().collect();
    let is_host = words.first().is_some_and(|kind| kind.starts_with("host"));
    match words.get_mut(3) {
        Some(address) if is_host && !matches!(*address, "0.0.0.0/0" | "::/0" | "all") => {
            *address = ANY_ADDRESS;
            words.join(" ")
        }
        Some(_) | None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site<'a>(etcd: &'a [String], has_device: fn(&str) -> bool) -> Site<'a> {
        Site {
            name: "n2",
            address: "127.77.1.2",
            etcd,
            postgresql: Path::new("/pg/bin"),
            data_dir: Path::new("/n2/data"),
            run_dir: Path::new("/n2/run"),
            socket: Path::new("/n2/s"),
            has_device,
        }
    }

    const FILE: &str = "
scope: billing
name: $NODE
restapi: {listen: '0.0.0.0:8008', connect_address: '$IP:8008', authentication: {username: u, password: p}}
raft: {data_dir: /raft, self_addr: '$IP:5010'}
bootstrap:
  dcs: {ttl: 30, postgresql: {use_slots: true}}
  pg_hba:
  - host replication replicator 192.0.2.20/32 md5
  - host all all 0.0.0.0/0 md5
postgresql:
  listen: 0.0.0.0:5434
  connect_address: $IP:5434
  data_dir: /var/lib/data
  authentication: {superuser: {username: super, password: secret}}
  parameters: {unix_socket_directories: '/var/run/postgresql,/tmp,.'}
watchdog: {mode: required, device: /dev/watchdog}
tags: {nofailover: true}
";

    #[test]
    fn addresses_paths_and_the_store_are_replaced_and_nothing_else() {
        let etcd = ["127.77.1.1:2379".to_owned()];
        let adapted = adapt(FILE, &site(&etcd, |_| true)).unwrap();
        let found: Value = serde_json::from_str(&adapted.text).unwrap();
        let wanted = json!({
            "scope": "billing",
            "name": "n2",
            "restapi": {
                "listen": "127.77.1.2:8008",
                "connect_address": "127.77.1.2:8008",
                "authentication": {"username": "u", "password": "p"},
            },
            "etcd3": {"hosts": ["127.77.1.1:2379"]},
            "bootstrap": {
                "dcs": {"ttl": 30, "postgresql": {"use_slots": true}},
                "pg_hba": ["host replication replicator 127.0.0.0/8 md5", "host all all 0.0.0.0/0 md5"],
            },
            "postgresql": {
                "listen": "127.77.1.2:5434",
                "connect_address": "127.77.1.2:5434",
                "data_dir": "/n2/data",
                "bin_dir": "/pg/bin",
                "authentication": {"superuser": {"username": "super", "password": "secret"}},
                "parameters": {"unix_socket_directories": "/n2/s,."},
            },
            "watchdog": {"mode": "required", "device": "/dev/watchdog"},
            "tags": {"nofailover": true},
            "trunkline": {"run_dir": "/n2/run"},
        });
        assert_eq!(found, wanted);
        assert_eq!(
            (adapted.port, adapted.superuser.0.as_str()),
            (5434, "super")
        );
        assert_eq!(adapted.notes, ["the store was raft; it is etcd here"]);
    }

    #[test]
    fn a_watchdog_that_is_not_there_is_said() {
        let etcd = ["127.77.1.1:2379".to_owned()];
        let adapted = adapt(FILE, &site(&etcd, |_| false)).unwrap();
        assert!(adapted.text.contains("\"automatic\""));
        assert!(adapted.notes[1].contains("there is no /dev/watchdog here"));
    }

    #[test]
    fn of_etcds_section_only_the_place_is_replaced() {
        let text = FILE.replace(
            "raft: {data_dir: /raft, self_addr: '$IP:5010'}",
            "etcd: {host: 'h:1', username: u}",
        );
        let etcd = ["127.77.1.1:2379".to_owned()];
        let adapted = adapt(&text, &site(&etcd, |_| true)).unwrap();
        let found: Value = serde_json::from_str(&adapted.text).unwrap();
        assert_eq!(
            found["etcd3"],
            json!({"username": "u", "hosts": ["127.77.1.1:2379"]})
        );
        assert!(found.get("etcd").is_none());
        assert!(adapted.notes.is_empty());
    }
}
