//! What the records of changes of leader hold beside their own fields: how long to wait for transactions, how long
//! the parts took, and the list of past changes.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{epoch_from_text, name};
use crate::cluster::quantity;
use crate::cluster::switchover::{ChangeParts, Drain, LeaderChange, OnTimeout};

/// The fields beside Patroni's in `failover` and in the body of `POST /switchover`. Patroni asks its record for the
/// fields that it knows and lets others stand.
const DRAIN_TIMEOUT: &str = "drain_timeout";
const ON_TIMEOUT: &str = "on_timeout";

/// Reads how long a change waits for transactions.
///
/// # Errors
/// Says which field is unusable, and what may stand there.
pub fn drain_from_json(map: &Map<String, Value>) -> Result<Drain, String> {
    let timeout = match map.get(DRAIN_TIMEOUT) {
        None | Some(Value::Null) => None,
        Some(Value::Number(number)) => {
            let read = number.as_f64().and_then(quantity::seconds);
            Some(read.ok_or_else(|| no_duration(&number.to_string()))?)
        }
        Some(Value::String(text)) => Some(duration(text)?),
        Some(other) => return Err(no_duration(&other.to_string())),
    };
    let on_timeout = match map.get(ON_TIMEOUT) {
        None | Some(Value::Null) => None,
        Some(word) => {
            let known = word.as_str().and_then(OnTimeout::from_word);
            Some(known.ok_or_else(|| format!("on_timeout {word} is not give-up or terminate"))?)
        }
    };
    Ok(Drain {
        timeout,
        on_timeout,
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    quantity::duration(text).ok_or_else(|| no_duration(text))
}

fn no_duration(text: &str) -> String {
    format!("drain_timeout {text} is not {}", quantity::DURATION_FORMS)
}

/// Adds the same where it was said.
pub fn drain_to_json(drain: &Drain, map: &mut Map<String, Value>) {
    if let Some(timeout) = drain.timeout {
        map.insert(DRAIN_TIMEOUT.into(), json!(timeout.as_secs_f64()));
    }
    if let Some(on_timeout) = drain.on_timeout {
        map.insert(ON_TIMEOUT.into(), json!(on_timeout.word()));
    }
}

/// Milliseconds with three digits behind the point: what is told is what was measured.
pub(super) fn parts_to_json(parts: &ChangeParts) -> Value {
    let known = parts.named().into_iter().filter_map(|(word, took)| {
        let micros = u64::try_from(took?.as_micros()).unwrap_or(u64::MAX);
        Some((word.to_owned(), json!(micros as f64 / 1000.0)))
    });
    Value::Object(known.collect())
}

pub(super) fn parts_from_json(value: Option<&Value>) -> ChangeParts {
    let mut parts = ChangeParts::default();
    let Some(Value::Object(map)) = value else {
        return parts;
    };
    for (word, value) in map {
        let took = value.as_f64().filter(|ms| (0.0..1e12).contains(ms));
        if let Some(part) = parts.part_mut(word) {
            *part = took.map(|ms| Duration::from_micros((ms * 1000.0).round() as u64));
        }
    }
    parts
}

/// Reads the list of past changes, the oldest first.
///
/// # Errors
/// If it is no JSON list of changes.
pub fn changes_from_json(text: &str) -> Result<Vec<LeaderChange>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Array(list) = value else {
        return Err("expected a JSON list of changes of leader".to_owned());
    };
    list.iter().map(change_from_json).collect()
}

fn change_from_json(value: &Value) -> Result<LeaderChange, String> {
    let unusable = |field: &str| format!("the field {field} is missing or unusable in {value}");
    let epoch = value.get("epoch").and_then(Value::as_str);
    Ok(LeaderChange {
        epoch: epoch
            .and_then(epoch_from_text)
            .ok_or_else(|| unusable("epoch"))?,
        from: name(value.get("from")),
        to: name(value.get("to")).ok_or_else(|| unusable("to"))?,
        at: value
            .get("at")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .into(),
        parts: parts_from_json(value.get("parts_ms")),
    })
}

/// The `trunkline/history` record.
pub fn leader_changes_to_json(changes: &[LeaderChange]) -> String {
    let one = |change: &LeaderChange| {
        let mut map = Map::new();
        map.insert("epoch".into(), json!(change.epoch.to_string()));
        if let Some(from) = &change.from {
            map.insert("from".into(), json!(from.as_str()));
        }
        map.insert("to".into(), json!(change.to.as_str()));
        map.insert("at".into(), json!(&*change.at));
        map.insert("parts_ms".into(), parts_to_json(&change.parts));
        Value::Object(map)
    };
    Value::Array(changes.iter().map(one).collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{LeaderEpoch, MemberName};

    fn drain(text: &str) -> Result<Drain, String> {
        let Ok(Value::Object(map)) = serde_json::from_str(text) else {
            return Err("the test's own text".to_owned());
        };
        drain_from_json(&map)
    }

    #[test]
    fn how_long_to_wait_is_read_in_seconds_or_with_a_unit() {
        let of = |seconds: f64| Some(Duration::from_secs_f64(seconds));
        for (text, timeout, on_timeout) in [
            ("{}", None, None),
            (r#"{"drain_timeout":5}"#, of(5.0), None),
            (r#"{"drain_timeout":0.5}"#, of(0.5), None),
            // So short that it is written with an exponent.
            (r#"{"drain_timeout":0.000005}"#, of(0.000_005), None),
            (
                r#"{"drain_timeout":"1500ms","on_timeout":"terminate"}"#,
                of(1.5),
                Some(OnTimeout::Terminate),
            ),
            (
                r#"{"drain_timeout":null,"on_timeout":"give-up"}"#,
                None,
                Some(OnTimeout::GiveUp),
            ),
        ] {
            let expected = Drain {
                timeout,
                on_timeout,
            };
            assert_eq!(drain(text), Ok(expected), "{text}");
            let mut map = Map::new();
            drain_to_json(&expected, &mut map);
            assert_eq!(drain_from_json(&map), Ok(expected), "{text}");
        }
        for text in [
            r#"{"drain_timeout":"soon"}"#,
            r#"{"drain_timeout":-1}"#,
            r#"{"drain_timeout":[]}"#,
            r#"{"on_timeout":"wait"}"#,
            r#"{"on_timeout":1}"#,
        ] {
            assert!(drain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn past_changes_read_back_as_they_were_written() {
        let change = LeaderChange {
            epoch: LeaderEpoch {
                generation: 1,
                revision: 42,
            },
            from: Some(MemberName::new("a")),
            to: MemberName::new("b"),
            at: "2026-11-29T10:00:00+00:00".into(),
            parts: ChangeParts {
                checkpoint: Some(Duration::from_micros(12_345)),
                stop: Some(Duration::from_millis(80)),
                promote: Some(Duration::ZERO),
                ..ChangeParts::default()
            },
        };
        let unplanned = LeaderChange {
            from: None,
            parts: ChangeParts::default(),
            ..change.clone()
        };
        let text = leader_changes_to_json(&[change.clone(), unplanned.clone()]);
        assert!(
            text.starts_with(
                r#"[{"epoch":"1.42","from":"a","to":"b","at":"2026-11-29T10:00:00+00:00","parts_ms":{"checkpoint":12.345,"#
            ),
            "{text}"
        );
        assert_eq!(changes_from_json(&text), Ok(vec![change, unplanned]));
        assert!(changes_from_json("{}").is_err());
        assert!(changes_from_json(r#"[{"to":"b"}]"#).is_err());
    }
}
