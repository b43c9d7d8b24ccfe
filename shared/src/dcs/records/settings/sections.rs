//! The sections of the dynamic configuration that say who replicates from whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Section, SettingsError, text};
use crate::cluster::settings::StandbyCluster;
use crate::cluster::slots::{ClusterType, PermanentSlot, SlotKind, SlotPattern};

/// PostgreSQL's port, where the section names none.
const DEFAULT_PORT: u16 = 5432;

impl Section<'_> {
    /// `slots`
    pub(super) fn permanent_slots(&self) -> Result<BTreeMap<String, PermanentSlot>, SettingsError> {
        let map = match self.value("slots") {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.wrong("slots", other, "an object of slots by name")),
        };
        map.iter()
            .map(|(name, value)| {
                let is_name = (1..64).contains(&name.len())
                    && name
                        .chars()
                        .all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
                if !is_name {
                    let allowed = "names of lower case letters, digits and _, 63 at most";
                    return Err(self.wrong("slots", &Value::String(name.clone()), allowed));
                }
                Ok((name.clone(), self.permanent_slot(name, value)?))
            })
            .collect()
    }

    fn permanent_slot(&self, name: &str, value: &Value) -> Result<PermanentSlot, SettingsError> {
        let empty = Map::new();
        let map = match value {
            Value::Object(map) => map,
            Value::Null => &empty,
            other => return Err(self.wrong(&format!("slots.{name}"), other, "an object")),
        };
        let word = |key: &str| map.get(key).and_then(text).unwrap_or_default();
        let wrong = |key: &str, allowed: &str| {
            let value = map.get(key).unwrap_or(&Value::Null);
            Err(self.wrong(&format!("slots.{name}.{key}"), value, allowed))
        };
        let is_logical = match word("type").as_str() {
            "" => !word("database").is_empty() && !word("plugin").is_empty(),
            "physical" => false,
            "logical" => true,
            _ => return wrong("type", "physical or logical"),
        };
        let kind = if is_logical {
            let (database, plugin) = (word("database"), word("plugin"));
            if database.is_empty() {
                return wrong("database", "a database's name");
            }
            if plugin.is_empty() {
                return wrong("plugin", "an output plugin's name");
            }
            SlotKind::Logical {
                database: database.into(),
                plugin: plugin.into(),
            }
        } else {
            SlotKind::Physical
        };
        let only_in = match word("cluster_type").as_str() {
            "" => None,
            "primary" => Some(ClusterType::Primary),
            "standby" => Some(ClusterType::Standby),
            _ => return wrong("cluster_type", "primary or standby"),
        };
        let is_failover = match word("failover").as_str() {
            "" | "false" | "off" => false,
            "true" | "on" => true,
            _ => return wrong("failover", "true or false"),
        };
        Ok(PermanentSlot {
            kind,
            only_in,
            is_failover,
        })
    }

    /// `ignore_slots`
    pub(super) fn ignored_slots(&self) -> Result<Vec<SlotPattern>, SettingsError> {
        let key = "ignore_slots";
        let list = match self.value(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(self.wrong(key, other, "a list of objects")),
        };
        list.iter()
            .map(|value| {
                let map = value
                    .as_object()
                    .filter(|map| !map.is_empty())
                    .ok_or_else(|| {
                        self.wrong(key, value, "an object with name, type, database or plugin")
                    })?;
                let word = |key: &str| map.get(key).and_then(text);
                let is_logical = match word("type").as_deref() {
                    None => None,
                    Some("physical") => Some(false),
                    Some("logical") => Some(true),
                    Some(_) => {
                        return Err(self.wrong("ignore_slots.type", value, "physical or logical"));
                    }
                };
                let known = ["name", "type", "database", "plugin"];
                if let Some(other) = map.keys().find(|key| !known.contains(&key.as_str())) {
                    // A property that is passed over would make the pattern match more than was meant.
                    let name = format!("{key}.{other}");
                    return Err(self.wrong(&name, value, "name, type, database and plugin"));
                }
                Ok(SlotPattern {
                    name: word("name"),
                    is_logical,
                    database: word("database"),
                    plugin: word("plugin"),
                })
            })
            .collect()
    }

    /// `standby_cluster`; an empty section is none.
    pub(super) fn standby_cluster(&self) -> Result<Option<Arc<StandbyCluster>>, SettingsError> {
        let map = match self.value("standby_cluster") {
            None => return Ok(None),
            Some(Value::Object(map)) if map.is_empty() => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.wrong("standby_cluster", other, "an object")),
        };
        let word = |key: &str| map.get(key).and_then(text).filter(|text| !text.is_empty());
        let wrong = |key: &str, allowed: &str| {
            let value = map.get(key).unwrap_or(&Value::Null);
            self.wrong(&format!("standby_cluster.{key}"), value, allowed)
        };
        let host = word("host");
        if host.as_ref().is_some_and(|host| host.contains(',')) {
            return Err(wrong("host", "one host"));
        }
        let port = match word("port") {
            None => DEFAULT_PORT,
            Some(port) => port.parse().map_err(|_| wrong("port", "a port"))?,
        };
        let restore_command = word("restore_command");
        if host.is_none() && restore_command.is_none() {
            return Err(wrong(
                "host",
                "a host to replicate from, or restore_command beside it",
            ));
        }
        Ok(Some(Arc::new(StandbyCluster {
            host,
            port,
            primary_slot_name: word("primary_slot_name"),
            restore_command,
            archive_cleanup_command: word("archive_cleanup_command"),
            recovery_min_apply_delay: word("recovery_min_apply_delay"),
            create_replica_methods: match map.get("create_replica_methods") {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::String(names)) => names.split_whitespace().map(str::to_owned).collect(),
                Some(Value::Array(names)) => names.iter().filter_map(text).collect(),
                Some(_) => return Err(wrong("create_replica_methods", "a list of methods")),
            },
        })))
    }
}
