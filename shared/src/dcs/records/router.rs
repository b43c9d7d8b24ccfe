//! The record of a router. A field that a later version adds is ignored by an earlier one.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{epoch_from_text, number, object};
use crate::cluster::router::{Acknowledged, HoldStage, RouterRecord};

/// The word for a stage.
pub fn hold_stage_word(stage: HoldStage) -> &'static str {
    match stage {
        HoldStage::Transactions => "hold_transactions",
        HoldStage::All => "hold_all",
    }
}

fn hold_stage_from_word(word: &str) -> Option<HoldStage> {
    match word {
        "hold_transactions" => Some(HoldStage::Transactions),
        "hold_all" => Some(HoldStage::All),
        _ => None,
    }
}

/// Reads a router's record.
///
/// # Errors
/// Says which field is missing or unusable: a router without an address or with a stage that is not known can be
/// neither reached nor waited for.
pub fn router_from_json(text: &str) -> Result<RouterRecord, String> {
    let map = object(text)?;
    let unusable = |field: &str| format!("the field {field} is missing or unusable in {text}");
    let word = |field: &str| map.get(field).and_then(Value::as_str);
    let count = |field: &str| map.get(field).and_then(number);
    let epoch = match map.get("epoch") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let epoch = value.as_str().and_then(epoch_from_text);
            Some(epoch.ok_or_else(|| unusable("epoch"))?)
        }
    };
    let acknowledged = match map.get("switchover") {
        None | Some(Value::Null) => None,
        Some(value) => Some(acknowledged(value).ok_or_else(|| unusable("switchover"))?),
    };
    let hold = count("hold_timeout").ok_or_else(|| unusable("hold_timeout"))?;
    Ok(RouterRecord {
        version: word("version").unwrap_or_default().into(),
        http_url: word("http_url").ok_or_else(|| unusable("http_url"))?.into(),
        hold_timeout: Duration::from_millis(hold),
        epoch,
        acknowledged,
        writer_sessions: count("writer_sessions").unwrap_or(0),
        held_clients: count("held_clients").unwrap_or(0),
        cancel_number: count("cancel_number").and_then(|number| u16::try_from(number).ok()),
    })
}

/// One that does not say of which record it is acknowledges none that stands.
fn acknowledged(value: &Value) -> Option<Acknowledged> {
    let epoch = value.get("epoch").and_then(Value::as_str);
    Some(Acknowledged {
        switchover: number(value.get("id")?)?,
        epoch: epoch.and_then(epoch_from_text).unwrap_or_default(),
        revision: value.get("revision").and_then(Value::as_i64).unwrap_or(0),
        stage: hold_stage_from_word(value.get("stage")?.as_str()?)?,
    })
}

/// The `routers/<name>/<instance>` record.
pub fn router_to_json(record: &RouterRecord) -> String {
    let mut map = Map::new();
    map.insert("version".into(), json!(&*record.version));
    map.insert("http_url".into(), json!(&*record.http_url));
    let hold = u64::try_from(record.hold_timeout.as_millis()).unwrap_or(u64::MAX);
    map.insert("hold_timeout".into(), json!(hold));
    if let Some(epoch) = record.epoch {
        map.insert("epoch".into(), json!(epoch.to_string()));
    }
    if let Some(said) = record.acknowledged {
        let value = json!({
            "id": said.switchover,
            "epoch": said.epoch.to_string(),
            "revision": said.revision,
            "stage": hold_stage_word(said.stage),
        });
        map.insert("switchover".into(), value);
    }
    map.insert("writer_sessions".into(), json!(record.writer_sessions));
    map.insert("held_clients".into(), json!(record.held_clients));
    if let Some(number) = record.cancel_number {
        map.insert("cancel_number".into(), json!(number));
    }
    Value::Object(map).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::LeaderEpoch;

    fn whole() -> RouterRecord {
        RouterRecord {
            version: "0.1.0".into(),
            http_url: "http://r1:8010".into(),
            hold_timeout: Duration::from_millis(2500),
            epoch: Some(LeaderEpoch {
                generation: 1,
                revision: 42,
            }),
            acknowledged: Some(Acknowledged {
                switchover: 7,
                epoch: LeaderEpoch {
                    generation: 1,
                    revision: 42,
                },
                revision: 50,
                stage: HoldStage::All,
            }),
            writer_sessions: 3,
            held_clients: 4,
            cancel_number: Some(1023),
        }
    }

    #[test]
    fn a_router_reads_back_as_it_was_written() {
        let text = r#"{"version":"0.1.0","http_url":"http://r1:8010","hold_timeout":2500,"epoch":"1.42","switchover":{"id":7,"epoch":"1.42","revision":50,"stage":"hold_all"},"writer_sessions":3,"held_clients":4,"cancel_number":1023}"#;
        assert_eq!(router_to_json(&whole()), text);
        assert_eq!(router_from_json(text), Ok(whole()));
        let little = RouterRecord {
            epoch: None,
            acknowledged: None,
            cancel_number: None,
            ..whole()
        };
        assert_eq!(router_from_json(&router_to_json(&little)), Ok(little));
        let acknowledged = Some(Acknowledged {
            switchover: 8,
            epoch: LeaderEpoch::default(),
            revision: 0,
            stage: HoldStage::Transactions,
        });
        let other = RouterRecord {
            acknowledged,
            ..whole()
        };
        assert_eq!(router_from_json(&router_to_json(&other)), Ok(other.clone()));
        // Of a router that does not say of which record.
        let earlier = r#"{"http_url":"http://r1:8010","hold_timeout":1,"switchover":{"id":8,"stage":"hold_transactions"}}"#;
        let earlier = router_from_json(earlier).unwrap();
        assert_eq!(earlier.acknowledged, other.acknowledged);
    }

    #[test]
    fn what_a_later_version_adds_is_ignored_and_what_nobody_could_use_is_named() {
        let later = r#"{"http_url":"http://r1:8010","hold_timeout":1,"later":{"x":1}}"#;
        let record = router_from_json(later).unwrap();
        assert_eq!((record.epoch, record.cancel_number), (None, None));
        for (text, field) in [
            (r#"{"hold_timeout":1}"#, "http_url"),
            (r#"{"http_url":"x"}"#, "hold_timeout"),
            (r#"{"http_url":"x","hold_timeout":1,"epoch":"x"}"#, "epoch"),
            (
                r#"{"http_url":"x","hold_timeout":1,"switchover":{"id":1,"stage":"later"}}"#,
                "switchover",
            ),
        ] {
            let why = router_from_json(text).unwrap_err();
            assert!(why.contains(field), "{why}");
        }
    }
}
