//! The sections of the dynamic configuration that say who replicates from whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Section, SettingsError, Unusable, text};
use crate::cluster::settings::StandbyCluster;
use crate::cluster::slots::{ClusterType, PermanentSlot, SlotKind, SlotPattern};

/// PostgreSQL's port, where the section names none.
const DEFAULT_PORT: u16 = 5432;

impl Section<'_> {
    /// `slots`; one that is not usable is left out, as Patroni does it.
    pub(super) fn permanent_slots(
        &self,
        unusable: &mut Unusable,
    ) -> BTreeMap<String, PermanentSlot> {
        let map = match self.value("slots") {
            None => return BTreeMap::new(),
            Some(Value::Object(map)) => map,
            Some(other) => {
                let wrong = self.wrong("slots", other, "an object of slots by name");
                return unusable.or(Err(wrong), BTreeMap::new());
            }
        };
        map.iter()
            .filter_map(|(name, value)| {
                let is_name = (1..64).contains(&name.len())
                    && name
                        .chars()
                        .all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
                let read = if is_name {
                    self.permanent_slot(name, value)
                } else {
                    let allowed = "names of lower case letters, digits and _, 63 at most";
                    Err(self.wrong("slots", &Value::String(name.clone()), allowed))
                };
                Some((name.clone(), unusable.found(read)?))
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

    /// `ignore_slots`; what is no pattern matches nothing, and what a pattern says beyond the four properties counts
    /// as not said, so that rather too many slots are left alone.
    pub(super) fn ignored_slots(&self, unusable: &mut Unusable) -> Vec<SlotPattern> {
        let key = "ignore_slots";
        let list = match self.value(key) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => {
                let wrong = self.wrong(key, other, "a list of objects");
                return unusable.or(Err(wrong), Vec::new());
            }
        };
        let patterns = list.iter();
        patterns
            .filter_map(|value| self.ignored_slot(key, value, unusable))
            .collect()
    }

    fn ignored_slot(
        &self,
        key: &str,
        value: &Value,
        unusable: &mut Unusable,
    ) -> Option<SlotPattern> {
        let map = value.as_object().filter(|map| !map.is_empty());
        let map = unusable.found(map.ok_or_else(|| {
            self.wrong(key, value, "an object with name, type, database or plugin")
        }))?;
        let word = |key: &str| map.get(key).and_then(text);
        let is_logical = match word("type").as_deref() {
            None => Ok(None),
            Some("physical") => Ok(Some(false)),
            Some("logical") => Ok(Some(true)),
            Some(_) => Err(self.wrong("ignore_slots.type", value, "physical or logical")),
        };
        let is_logical = unusable.found(is_logical)?;
        let known = ["name", "type", "database", "plugin"];
        if let Some(other) = map.keys().find(|key| !known.contains(&key.as_str())) {
            let name = format!("{key}.{other}");
            let wrong = self.wrong(&name, value, "name, type, database and plugin");
            unusable.or(Err(wrong), ());
        }
        Some(SlotPattern {
            name: word("name"),
            is_logical,
            database: word("database"),
            plugin: word("plugin"),
        })
    }

    /// `standby_cluster`; an empty section is none. One that names a host, a port or a `restore_command` is one whatever
    /// else it says: nobody is promoted because of a slip in it.
    pub(super) fn standby_cluster(&self, unusable: &mut Unusable) -> Option<Arc<StandbyCluster>> {
        let map = match self.value("standby_cluster")? {
            Value::Object(map) if map.is_empty() => return None,
            Value::Object(map) => map,
            other => {
                let wrong = self.wrong("standby_cluster", other, "an object");
                return unusable.or(Err(wrong), None);
            }
        };
        let word = |key: &str| map.get(key).and_then(text).filter(|text| !text.is_empty());
        let wrong = |key: &str, allowed: &str| {
            let value = map.get(key).unwrap_or(&Value::Null);
            self.wrong(&format!("standby_cluster.{key}"), value, allowed)
        };
        let (host, restore_command) = (word("host"), word("restore_command"));
        let port = match word("port") {
            None => DEFAULT_PORT,
            Some(port) => {
                let read = port.parse().map_err(|_| wrong("port", "a port"));
                unusable.or(read, DEFAULT_PORT)
            }
        };
        if host.is_none() && restore_command.is_none() {
            let allowed = "a host to replicate from, or restore_command beside it";
            unusable.or(Err(wrong("host", allowed)), ());
            word("port")?;
        }
        let create_replica_methods = match map.get("create_replica_methods") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(names)) => Ok(names.split_whitespace().map(str::to_owned).collect()),
            Some(Value::Array(names)) => Ok(names.iter().filter_map(text).collect()),
            Some(_) => Err(wrong("create_replica_methods", "a list of methods")),
        };
        Some(Arc::new(StandbyCluster {
            host,
            port,
            primary_slot_name: word("primary_slot_name"),
            restore_command,
            archive_cleanup_command: word("archive_cleanup_command"),
            recovery_min_apply_delay: word("recovery_min_apply_delay"),
            create_replica_methods: unusable.or(create_replica_methods, Vec::new()),
        }))
    }
}
