//! The `config` record: Patroni's dynamic configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::cluster::ClusterSettings;
use crate::cluster::quantity::{self, BOOLEAN_FORMS, DURATION_FORMS, SIZE_FORMS};
use crate::cluster::settings::SynchronousMode;

mod sections;

/// The least `ttl`: what etcd grants with its default election timeout.
const MIN_TTL: Duration = Duration::from_secs(2);

/// The least `loop_wait` and `retry_timeout`.
const MIN_WAIT: Duration = Duration::from_millis(100);

/// Why a dynamic configuration is not usable. Show it to whoever wrote it; the last good one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The text is not JSON.
    #[error("the configuration is not JSON: {0}")]
    NotJson(String),
    /// The text is JSON, but not an object.
    #[error("the configuration must be a JSON object, found {0}")]
    NotAnObject(String),
    /// One value is not usable.
    #[error("{key}: {value} is not usable; allowed: {allowed}")]
    Value {
        /// The key, with dots between the levels.
        key: String,
        /// What was found there.
        value: String,
        /// What may stand there.
        allowed: String,
    },
}

/// A dynamic configuration as it is acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSettings {
    /// What holds: for each value that is not usable, what Patroni takes in its place.
    pub settings: ClusterSettings,
    /// The values that are not usable, in the order in which they are read. Name them.
    pub unusable: Vec<SettingsError>,
}

/// Reads the dynamic configuration, key by key, as whoever finds it in the DCS has to: one value that is not usable
/// changes nothing about the others. Keys that are not known are tolerated: they may be a newer version's, or
/// settings that only the members' local layer uses.
///
/// # Errors
/// The text is not JSON, or not an object.
pub fn read_settings(text: &str) -> Result<ReadSettings, SettingsError> {
    let value =
        serde_json::from_str(text).map_err(|error| SettingsError::NotJson(error.to_string()))?;
    read_value(&value)
}

/// As [`read_settings`], from parsed JSON.
///
/// # Errors
/// As [`read_settings`].
pub fn read_value(value: &Value) -> Result<ReadSettings, SettingsError> {
    let Value::Object(map) = value else {
        return Err(SettingsError::NotAnObject(value.to_string()));
    };
    let mut unusable = Unusable::default();
    let settings = read(&Section { path: "", map }, &mut unusable);
    Ok(ReadSettings {
        settings,
        unusable: unusable.found,
    })
}

/// As [`read_settings`], for whoever may still refuse the text.
///
/// # Errors
/// Names the first key that is not usable, what stands there and what may.
pub fn settings_from_json(text: &str) -> Result<ClusterSettings, SettingsError> {
    read_settings(text).and_then(all_usable)
}

/// As [`settings_from_json`], from parsed JSON.
///
/// # Errors
/// As [`settings_from_json`].
pub fn settings_from_value(value: &Value) -> Result<ClusterSettings, SettingsError> {
    read_value(value).and_then(all_usable)
}

fn all_usable(read: ReadSettings) -> Result<ClusterSettings, SettingsError> {
    match read.unusable.into_iter().next() {
        None => Ok(read.settings),
        Some(error) => Err(error),
    }
}

fn read(root: &Section<'_>, unusable: &mut Unusable) -> ClusterSettings {
    let empty = Map::new();
    let nothing = Section {
        path: "postgresql.",
        map: &empty,
    };
    let postgresql = unusable.or(root.section("postgresql", &empty), nothing);
    let defaults = ClusterSettings::default();
    ClusterSettings {
        ttl: unusable.or(root.ttl(defaults.ttl), defaults.ttl),
        loop_wait: unusable.or(
            root.duration(&["loop_wait"], MIN_WAIT, defaults.loop_wait),
            defaults.loop_wait,
        ),
        retry_timeout: unusable.or(
            root.duration(&["retry_timeout"], MIN_WAIT, defaults.retry_timeout),
            defaults.retry_timeout,
        ),
        maximum_lag_on_failover: root.limit(
            "maximum_lag_on_failover",
            defaults.maximum_lag_on_failover,
            unusable,
        ),
        primary_start_timeout: root.timeout(
            &["primary_start_timeout", "master_start_timeout"],
            defaults.primary_start_timeout,
            unusable,
        ),
        primary_stop_timeout: root.timeout(
            &["primary_stop_timeout", "master_stop_timeout"],
            defaults.primary_stop_timeout,
            unusable,
        ),
        is_paused: unusable.or(root.boolean("pause"), None).unwrap_or(false),
        check_timeline: unusable
            .or(root.boolean("check_timeline"), None)
            .unwrap_or(false),
        failsafe_mode: unusable.or(root.boolean("failsafe_mode"), Some(false)),
        synchronous_mode: unusable.or(root.synchronous_mode(), SynchronousMode::Off),
        is_synchronous_mode_strict: unusable
            .or(root.boolean("synchronous_mode_strict"), None)
            .unwrap_or(false),
        synchronous_node_count: unusable.or(root.node_count(), 1),
        maximum_lag_on_syncnode: unusable.or(root.syncnode_lag(), None),
        member_slots_ttl: root.timeout(&["member_slots_ttl"], defaults.member_slots_ttl, unusable),
        use_pg_rewind: unusable
            .or(postgresql.boolean("use_pg_rewind"), None)
            .unwrap_or(false),
        // Patroni takes such a value for "off", which drops the slots of members.
        use_slots: unusable
            .or(postgresql.boolean("use_slots"), None)
            .unwrap_or(true),
        parameters: postgresql.parameters("parameters", unusable),
        pg_hba: unusable.or(postgresql.lines("pg_hba"), None),
        pg_ident: unusable.or(postgresql.lines("pg_ident"), None),
        recovery_conf: postgresql.parameters("recovery_conf", unusable),
        of_members: postgresql.of_members(),
        standby_cluster: root.standby_cluster(unusable),
        slots: root.permanent_slots(unusable),
        ignore_slots: root.ignored_slots(unusable),
        max_timelines_history: unusable.or(root.count("max_timelines_history"), 0),
    }
}

/// Values that are not usable, as they are found.
#[derive(Debug, Default)]
struct Unusable {
    found: Vec<SettingsError>,
}

impl Unusable {
    /// What was read, or `fallback` where that is not usable.
    fn or<T>(&mut self, read: Result<T, SettingsError>, fallback: T) -> T {
        self.found(read).unwrap_or(fallback)
    }

    /// What was read, if it is usable.
    fn found<T>(&mut self, read: Result<T, SettingsError>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                self.found.push(error);
                None
            }
        }
    }
}

/// Applies a JSON merge patch (RFC 7396, as `PATCH /config` and `edit-config --set` do): objects are merged,
/// `null` deletes, anything else replaces. Returns whether something changed.
pub fn merge_patch(target: &mut Value, patch: &Value) -> bool {
    let Value::Object(patch) = patch else {
        let is_changed = target != patch;
        *target = patch.clone();
        return is_changed;
    };
    let mut is_changed = false;
    if !target.is_object() {
        *target = Value::Object(Map::new());
        is_changed = true;
    }
    let Value::Object(target) = target else {
        return is_changed;
    };
    for (key, value) in patch {
        if value.is_null() {
            is_changed |= target.shift_remove(key).is_some();
        } else {
            is_changed |= merge_patch(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
    is_changed
}

struct Section<'a> {
    path: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The value under `key`; a null counts as none.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, allowed: &str) -> SettingsError {
        SettingsError::Value {
            key: format!("{}{key}", self.path),
            value: value.to_string(),
            allowed: allowed.to_owned(),
        }
    }

    fn section(
        &self,
        key: &'static str,
        empty: &'a Map<String, Value>,
    ) -> Result<Section<'a>, SettingsError> {
        let map = match self.value(key) {
            None => empty,
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.wrong(key, other, "an object")),
        };
        Ok(Section {
            path: "postgresql.",
            map,
        })
    }

    fn duration(
        &self,
        keys: &[&str],
        least: Duration,
        default: Duration,
    ) -> Result<Duration, SettingsError> {
        let found = keys.iter().find_map(|key| Some((*key, self.value(key)?)));
        let Some((key, value)) = found else {
            return Ok(default);
        };
        match text(value).and_then(|text| quantity::duration(&text)) {
            Some(duration) if duration >= least => Ok(duration),
            Some(_) => Err(self.wrong(key, value, &format!("{least:?} or more"))),
            None => Err(self.wrong(key, value, DURATION_FORMS)),
        }
    }

    /// A length of time that may be none; what is negative counts as none, as for Patroni.
    fn timeout(&self, keys: &[&str], default: Duration, unusable: &mut Unusable) -> Duration {
        let is_negative = keys
            .iter()
            .find_map(|key| self.value(key))
            .is_some_and(is_negative);
        let fallback = if is_negative { Duration::ZERO } else { default };
        unusable.or(self.duration(keys, Duration::ZERO, default), fallback)
    }

    /// A number of bytes that something may lack; less than none is none.
    fn limit(&self, key: &str, default: u64, unusable: &mut Unusable) -> u64 {
        let is_negative = self.value(key).is_some_and(is_negative);
        unusable.or(
            self.bytes(key, default),
            if is_negative { 0 } else { default },
        )
    }

    fn ttl(&self, default: Duration) -> Result<Duration, SettingsError> {
        let ttl = self.duration(&["ttl"], MIN_TTL, default)?;
        match self.value("ttl") {
            Some(value) if ttl.subsec_nanos() != 0 => {
                Err(self.wrong("ttl", value, "whole seconds"))
            }
            _ => Ok(ttl),
        }
    }

    fn bytes(&self, key: &str, default: u64) -> Result<u64, SettingsError> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => text(value)
                .and_then(|text| quantity::bytes(&text))
                .ok_or_else(|| self.wrong(key, value, SIZE_FORMS)),
        }
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, SettingsError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => text(value)
                .and_then(|text| quantity::boolean(&text))
                .map(Some)
                .ok_or_else(|| self.wrong(key, value, BOOLEAN_FORMS)),
        }
    }

    fn synchronous_mode(&self) -> Result<SynchronousMode, SettingsError> {
        let Some(value) = self.value("synchronous_mode") else {
            return Ok(SynchronousMode::Off);
        };
        if value
            .as_str()
            .is_some_and(|text| text.eq_ignore_ascii_case("quorum"))
        {
            return Ok(SynchronousMode::Quorum);
        }
        match text(value).and_then(|text| quantity::boolean(&text)) {
            Some(true) => Ok(SynchronousMode::On),
            Some(false) => Ok(SynchronousMode::Off),
            None => Err(self.wrong("synchronous_mode", value, "on, off or quorum")),
        }
    }

    fn node_count(&self) -> Result<u32, SettingsError> {
        let key = "synchronous_node_count";
        match self.value(key) {
            None => Ok(1),
            Some(value) => text(value)
                .and_then(|text| text.parse().ok())
                .filter(|count| *count >= 1)
                .ok_or_else(|| self.wrong(key, value, "a number of members, 1 or more")),
        }
    }

    fn syncnode_lag(&self) -> Result<Option<u64>, SettingsError> {
        let key = "maximum_lag_on_syncnode";
        match self.value(key) {
            None => Ok(None),
            Some(value) if text(value).as_deref() == Some("-1") => Ok(None),
            Some(_) => self.bytes(key, 0).map(Some),
        }
    }

    fn count(&self, key: &str) -> Result<usize, SettingsError> {
        match self.value(key) {
            None => Ok(0),
            Some(value) => text(value)
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| self.wrong(key, value, "a number, 0 or more")),
        }
    }

    /// PostgreSQL parameters, each as the text that stands in postgresql.conf.
    fn parameters(&self, key: &str, unusable: &mut Unusable) -> BTreeMap<String, String> {
        let map = match self.value(key) {
            None => return BTreeMap::new(),
            Some(Value::Object(map)) => map,
            Some(other) => {
                let wrong = self.wrong(key, other, "an object");
                return unusable.or(Err(wrong), BTreeMap::new());
            }
        };
        let given = map.iter().filter(|(_, value)| !value.is_null());
        given
            .filter_map(|(name, value)| {
                let read = match value {
                    Value::Bool(true) => Ok("on".to_owned()),
                    Value::Bool(false) => Ok("off".to_owned()),
                    _ => text(value).ok_or_else(|| {
                        let name = format!("{key}.{name}");
                        self.wrong(&name, value, "text, a number or a boolean")
                    }),
                };
                Some((name.clone(), unusable.found(read)?))
            })
            .collect()
    }

    /// What the members' own layer reads.
    fn of_members(&self) -> Map<String, Value> {
        let of_the_cluster = [
            "use_pg_rewind",
            "use_slots",
            "parameters",
            "pg_hba",
            "pg_ident",
            "recovery_conf",
        ];
        let others = self.map.iter();
        let others = others.filter(|(key, _)| !of_the_cluster.contains(&key.as_str()));
        others
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    fn lines(&self, key: &str) -> Result<Option<Vec<String>>, SettingsError> {
        let lines = match self.value(key) {
            None => return Ok(None),
            Some(Value::Array(lines)) => lines,
            Some(other) => return Err(self.wrong(key, other, "a list of lines")),
        };
        lines
            .iter()
            .map(|line| {
                let line = line.as_str().map(str::to_owned);
                line.ok_or_else(|| self.wrong(key, &Value::Array(lines.clone()), "a list of lines"))
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

/// A scalar as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether it is a number below 0, with a unit or without.
fn is_negative(value: &Value) -> bool {
    text(value).is_some_and(|text| text.trim_start().starts_with('-'))
}
