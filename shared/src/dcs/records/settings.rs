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

/// Reads the dynamic configuration. Keys that are not known are tolerated: they may be a newer version's,
/// or settings that only the members' local layer uses.
///
/// # Errors
/// Names the key, what stands there and what may.
pub fn settings_from_json(text: &str) -> Result<ClusterSettings, SettingsError> {
    let value =
        serde_json::from_str(text).map_err(|error| SettingsError::NotJson(error.to_string()))?;
    settings_from_value(&value)
}

/// As [`settings_from_json`], from parsed JSON.
///
/// # Errors
/// As [`settings_from_json`].
pub fn settings_from_value(value: &Value) -> Result<ClusterSettings, SettingsError> {
    let Value::Object(map) = value else {
        return Err(SettingsError::NotAnObject(value.to_string()));
    };
    let root = Section { path: "", map };
    let empty = Map::new();
    let postgresql = root.section("postgresql", &empty)?;
    let defaults = ClusterSettings::default();
    Ok(ClusterSettings {
        ttl: root.ttl(defaults.ttl)?,
        loop_wait: root.duration(&["loop_wait"], MIN_WAIT, defaults.loop_wait)?,
        retry_timeout: root.duration(&["retry_timeout"], MIN_WAIT, defaults.retry_timeout)?,
        maximum_lag_on_failover: root
            .bytes("maximum_lag_on_failover", defaults.maximum_lag_on_failover)?,
        primary_start_timeout: root.duration(
            &["primary_start_timeout", "master_start_timeout"],
            Duration::ZERO,
            defaults.primary_start_timeout,
        )?,
        primary_stop_timeout: root.duration(
            &["primary_stop_timeout", "master_stop_timeout"],
            Duration::ZERO,
            defaults.primary_stop_timeout,
        )?,
        is_paused: root.boolean("pause")?.unwrap_or(false),
        check_timeline: root.boolean("check_timeline")?.unwrap_or(false),
        failsafe_mode: root.boolean("failsafe_mode")?,
        synchronous_mode: root.synchronous_mode()?,
        is_synchronous_mode_strict: root.boolean("synchronous_mode_strict")?.unwrap_or(false),
        synchronous_node_count: root.node_count()?,
        maximum_lag_on_syncnode: root.syncnode_lag()?,
        member_slots_ttl: root.duration(
            &["member_slots_ttl"],
            Duration::ZERO,
            defaults.member_slots_ttl,
        )?,
        use_pg_rewind: postgresql.boolean("use_pg_rewind")?.unwrap_or(false),
        use_slots: postgresql.boolean("use_slots")?.unwrap_or(true),
        parameters: postgresql.parameters("parameters")?,
        pg_hba: postgresql.lines("pg_hba")?,
        pg_ident: postgresql.lines("pg_ident")?,
        recovery_conf: postgresql.parameters("recovery_conf")?,
        of_members: postgresql.of_members(),
        standby_cluster: root.standby_cluster()?,
        slots: root.permanent_slots()?,
        ignore_slots: root.ignored_slots()?,
        max_timelines_history: root.count("max_timelines_history")?,
    })
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
    fn parameters(&self, key: &str) -> Result<BTreeMap<String, String>, SettingsError> {
        let map = match self.value(key) {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.wrong(key, other, "an object")),
        };
        map.iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| match value {
                Value::Bool(true) => Ok((name.clone(), "on".to_owned())),
                Value::Bool(false) => Ok((name.clone(), "off".to_owned())),
                _ => text(value).map(|text| (name.clone(), text)).ok_or_else(|| {
                    self.wrong(
                        &format!("{key}.{name}"),
                        value,
                        "text, a number or a boolean",
                    )
                }),
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
