//! The documents stored under the keys, in Patroni's exact JSON; conversion to and from the model.
//!
//! Reading never fails: what cannot be read becomes [`Fact::Unreadable`] and says why. Fields that are not
//! known are ignored, as Patroni's own readers do.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::cluster::switchover::{ChangeParts, Drain};
use crate::cluster::sync_state::SyncState;
use crate::cluster::timeline::{TimelineEnd, TimelineHistory};
use crate::cluster::topology::{
    ClaimedTimeline, Fact, FactKey, FailoverRequest, Status, SwitchoverRecord, SwitchoverStage,
};
use crate::cluster::{LeaderEpoch, Lsn, MemberName, SystemId, Timeline};

mod changes;
mod member;
mod router;
mod settings;

pub use changes::{changes_from_json, drain_from_json, drain_to_json, leader_changes_to_json};
pub use member::{
    changes_to_json, member_from_json, member_to_json, restart_schedule_to_json, role_from_word,
    role_word, state_from_word, state_word, tags_from_json, tags_to_json,
};
pub use router::{hold_stage_word, router_from_json, router_to_json};
pub use settings::{
    ReadSettings, SettingsError, merge_patch, read_settings, read_value, settings_from_json,
    settings_from_value,
};

/// Reads the value of a key.
pub fn parse(key: &FactKey, value: &[u8]) -> Fact {
    match std::str::from_utf8(value) {
        Ok(text) => fact(key, text).unwrap_or_else(|why| Fact::Unreadable(why.into())),
        Err(_) => Fact::Unreadable("the value is not UTF-8 text".into()),
    }
}

/// Whether a value means the same as no key at all: Patroni empties `failover` instead of deleting it.
pub fn is_absent(key: &FactKey, value: &[u8]) -> bool {
    match key {
        FactKey::Failover => {
            let value = value.trim_ascii();
            value.is_empty() || value == b"null" || is_empty_object(value)
        }
        FactKey::Leader => value.trim_ascii().is_empty(),
        FactKey::Sync | FactKey::Switchover => value.trim_ascii().is_empty(),
        FactKey::Initialize
        | FactKey::Settings
        | FactKey::Member(_)
        | FactKey::Status
        | FactKey::History
        | FactKey::Failsafe
        | FactKey::Generation
        | FactKey::Succeeds
        | FactKey::Timeline
        | FactKey::Disarmed(_)
        | FactKey::Changes
        | FactKey::Router(_) => false,
    }
}

fn is_empty_object(value: &[u8]) -> bool {
    matches!(serde_json::from_slice(value), Ok(Value::Object(map)) if map.is_empty())
}

fn fact(key: &FactKey, text: &str) -> Result<Fact, String> {
    Ok(match key {
        FactKey::Initialize => Fact::Initialize(match text.trim() {
            "" => None,
            id => Some(SystemId(id.parse().map_err(|_| {
                format!("\"{id}\" is not a system identifier (a decimal number)")
            })?)),
        }),
        FactKey::Settings => Fact::Settings(Arc::new(
            read_settings(text).map_err(|e| e.to_string())?.settings,
        )),
        FactKey::Leader => Fact::Leader(MemberName::new(text.trim())),
        FactKey::Member(name) => Fact::Member(Arc::new(member_from_json(name, text)?)),
        FactKey::Status => Fact::Status(Arc::new(status_from_json(text)?)),
        FactKey::Failover => Fact::Failover(failover_from_text(text)?),
        FactKey::Sync => Fact::Sync(sync_from_json(text)?),
        FactKey::History => Fact::History(Arc::new(history_from_json(text)?)),
        FactKey::Failsafe => Fact::Failsafe(Arc::new(failsafe_from_json(text)?)),
        FactKey::Generation => {
            Fact::Generation(text.trim().parse().map_err(|_| {
                format!("\"{}\" is not a generation (a decimal number)", text.trim())
            })?)
        }
        FactKey::Succeeds => Fact::Succeeds(stores_from_json(text)?),
        FactKey::Timeline => Fact::Timeline(claimed_from_json(text)?),
        FactKey::Disarmed(_) => Fact::Disarmed,
        FactKey::Switchover => Fact::Switchover(Arc::new(switchover_from_json(text)?)),
        FactKey::Router(_) => Fact::Router(Arc::new(router_from_json(text)?)),
        FactKey::Changes => {
            let changes = changes_from_json(text)?;
            Fact::Changes(changes.last().map(|change| change.epoch))
        }
    })
}

fn stores_from_json(text: &str) -> Result<Arc<[u64]>, String> {
    let map = object(text)?;
    let Some(Value::Array(stores)) = map.get("stores") else {
        return Err("\"stores\" is not a list".to_owned());
    };
    let store = |value: &Value| {
        let number = value
            .as_str()
            .and_then(|text| u64::from_str_radix(text, 16).ok());
        number.ok_or_else(|| format!("{value} is not the identity of a store (hexadecimal digits)"))
    };
    stores.iter().map(store).collect()
}

/// The `trunkline/succeeds` record: identities of stores, in hexadecimal digits as etcd shows them.
pub fn stores_to_json(stores: &[u64]) -> String {
    let stores: Vec<String> = stores.iter().map(|store| format!("{store:x}")).collect();
    json!({"stores": stores}).to_string()
}

fn claimed_from_json(text: &str) -> Result<ClaimedTimeline, String> {
    let map = object(text)?;
    let timeline = |key: &str| {
        let value = map
            .get(key)
            .and_then(number)
            .and_then(|n| u32::try_from(n).ok());
        value
            .map(Timeline)
            .ok_or_else(|| format!("\"{key}\" is not a timeline"))
    };
    Ok(ClaimedTimeline {
        timeline: timeline("timeline")?,
        parent: timeline("parent")?,
    })
}

/// The `trunkline/timeline` record.
pub fn claimed_to_json(claimed: ClaimedTimeline) -> String {
    json!({"timeline": claimed.timeline.0, "parent": claimed.parent.0}).to_string()
}

/// The JSON object in `text`, or why it is none.
fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(format!("expected a JSON object, found {other}")),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// A number that is stored as a JSON number, or, by some tools, as text.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A position as the number of bytes Patroni stores, or in PostgreSQL's own form.
fn position(value: &Value) -> Option<Lsn> {
    number(value)
        .map(Lsn)
        .or_else(|| value.as_str().and_then(|s| s.parse().ok()))
}

fn name(value: Option<&Value>) -> Option<MemberName> {
    match value?.as_str()?.trim() {
        "" => None,
        name => Some(MemberName::new(name)),
    }
}

fn status_from_json(text: &str) -> Result<Status, String> {
    // Patroni before 2.1 kept the bare position here.
    if let Ok(optime) = text.trim().parse() {
        return Ok(Status {
            optime: Lsn(optime),
            ..Status::default()
        });
    }
    let map = object(text)?;
    let optime = match map.get("optime") {
        None | Some(Value::Null) => Lsn(0),
        Some(value) => {
            position(value).ok_or_else(|| format!("optime {value} is not a position"))?
        }
    };
    let slots = match map.get("slots") {
        Some(Value::Object(slots)) => slots
            .iter()
            .filter_map(|(slot, at)| Some((slot.clone(), position(at)?)))
            .collect(),
        _ => BTreeMap::new(),
    };
    let retain_slots = match map.get("retain_slots") {
        Some(Value::Array(slots)) => slots
            .iter()
            .filter_map(|slot| Some(slot.as_str()?.to_owned()))
            .collect(),
        _ => Vec::new(),
    };
    Ok(Status {
        optime,
        slots,
        retain_slots,
    })
}

/// The `status` record.
pub fn status_to_json(status: &Status) -> String {
    let mut map = Map::new();
    map.insert("optime".into(), json!(status.optime.0));
    if !status.slots.is_empty() {
        let slots: Map<_, _> = status
            .slots
            .iter()
            .map(|(slot, at)| (slot.clone(), json!(at.0)))
            .collect();
        map.insert("slots".into(), Value::Object(slots));
    }
    if !status.retain_slots.is_empty() {
        map.insert("retain_slots".into(), json!(status.retain_slots));
    }
    Value::Object(map).to_string()
}

fn failover_from_text(text: &str) -> Result<FailoverRequest, String> {
    if !text.trim_start().starts_with('{') {
        let (leader, member) = text.split_once(':').unwrap_or((text, ""));
        let part = |part: &str| match part.trim() {
            "" => None,
            name => Some(MemberName::new(name)),
        };
        return Ok(FailoverRequest {
            leader: part(leader),
            candidate: part(member),
            scheduled_at: None,
            drain: Drain::default(),
            revision: 0,
        });
    }
    let map = object(text)?;
    Ok(FailoverRequest {
        leader: name(map.get("leader")),
        candidate: name(map.get("member")),
        scheduled_at: map
            .get("scheduled_at")
            .and_then(Value::as_str)
            .map(Arc::from),
        drain: drain_from_json(&map)?,
        revision: 0,
    })
}

/// The `failover` record.
pub fn failover_to_json(request: &FailoverRequest) -> String {
    let mut map = Map::new();
    if let Some(leader) = &request.leader {
        map.insert("leader".into(), json!(leader.as_str()));
    }
    if let Some(candidate) = &request.candidate {
        map.insert("member".into(), json!(candidate.as_str()));
    }
    if let Some(at) = &request.scheduled_at {
        map.insert("scheduled_at".into(), json!(at));
    }
    drain_to_json(&request.drain, &mut map);
    Value::Object(map).to_string()
}

fn sync_from_json(text: &str) -> Result<SyncState, String> {
    let map = object(text)?;
    let standbys = match map.get("sync_standby") {
        Some(Value::String(names)) => names
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(MemberName::new)
            .collect(),
        _ => Vec::new(),
    };
    let quorum = match map.get("quorum") {
        None | Some(Value::Null) => 0,
        Some(value) => number(value)
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| format!("quorum {value} is not a number of members"))?,
    };
    Ok(SyncState {
        leader: name(map.get("leader")),
        standbys,
        quorum,
        revision: 0,
    })
}

/// The `sync` record.
pub fn sync_to_json(sync: &SyncState) -> String {
    let standbys = sync
        .standbys
        .iter()
        .map(MemberName::as_str)
        .collect::<Vec<_>>()
        .join(",");
    json!({
        "leader": sync.leader.as_ref().map(MemberName::as_str),
        "sync_standby": if standbys.is_empty() { Value::Null } else { standbys.into() },
        "quorum": sync.quorum,
    })
    .to_string()
}

/// One line of the `history` record: what Patroni shows in `patronictl history`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryLine {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended.
    pub end: Lsn,
    /// Why, in PostgreSQL's words.
    pub reason: String,
    /// When the next one began, as RFC 3339 text; absent in the oldest lines.
    pub time: Option<String>,
    /// Who led the next one; absent in older lines.
    pub leader: Option<String>,
}

/// The lines of the `history` record.
///
/// # Errors
/// Says which line is not `[timeline, position, reason, time, member]`.
pub fn history_lines(text: &str) -> Result<Vec<HistoryLine>, String> {
    let lines: Vec<Value> =
        serde_json::from_str(text).map_err(|error| format!("not a JSON list: {error}"))?;
    lines
        .iter()
        .map(|line| {
            history_line(line)
                .ok_or_else(|| format!("{line} is not [timeline, position, reason, time, member]"))
        })
        .collect()
}

fn history_line(line: &Value) -> Option<HistoryLine> {
    let text = |at: usize| Some(line.get(at)?.as_str()?.to_owned());
    Some(HistoryLine {
        timeline: Timeline(u32::try_from(number(line.get(0)?)?).ok()?),
        end: position(line.get(1)?)?,
        reason: text(2).unwrap_or_default(),
        time: text(3),
        leader: text(4),
    })
}

fn history_from_json(text: &str) -> Result<TimelineHistory, String> {
    let ends = history_lines(text)?
        .into_iter()
        .map(|line| TimelineEnd {
            timeline: line.timeline,
            end: line.end,
        })
        .collect();
    Ok(TimelineHistory::new(ends))
}

/// The `history` record.
pub fn history_to_json(lines: &[HistoryLine]) -> String {
    let lines = lines
        .iter()
        .map(|line| {
            let mut cells = vec![
                json!(line.timeline.0),
                json!(line.end.0),
                json!(line.reason),
            ];
            if line.time.is_some() || line.leader.is_some() {
                cells.push(json!(line.time));
            }
            if let Some(leader) = &line.leader {
                cells.push(json!(leader));
            }
            Value::Array(cells)
        })
        .collect();
    Value::Array(lines).to_string()
}

fn failsafe_from_json(text: &str) -> Result<BTreeMap<MemberName, Arc<str>>, String> {
    object(text)?
        .iter()
        .map(|(name, url)| match url.as_str() {
            Some(url) => Ok((MemberName::new(name), Arc::from(url))),
            None => Err(format!("the address {url} of {name} is not text")),
        })
        .collect()
}

/// The `failsafe` record.
pub fn failsafe_to_json(failsafe: &BTreeMap<MemberName, Arc<str>>) -> String {
    let map: Map<_, _> = failsafe
        .iter()
        .map(|(name, url)| (name.as_str().to_owned(), json!(url)))
        .collect();
    Value::Object(map).to_string()
}

/// An epoch as `generation.revision`.
pub fn epoch_from_text(text: &str) -> Option<LeaderEpoch> {
    let (generation, revision) = text.split_once('.')?;
    Some(LeaderEpoch {
        generation: generation.parse().ok()?,
        revision: revision.parse().ok()?,
    })
}

fn switchover_from_json(text: &str) -> Result<SwitchoverRecord, String> {
    let map = object(text)?;
    let missing = |field: &str| format!("the field {field} is missing or unusable in {text}");
    let stage = match map.get("stage").and_then(Value::as_str) {
        Some("hold_transactions") => SwitchoverStage::HoldTransactions,
        Some("hold_all") => SwitchoverStage::HoldAll,
        Some("stopped") => SwitchoverStage::Stopped {
            shutdown_checkpoint: map
                .get("shutdown_checkpoint")
                .and_then(position)
                .ok_or_else(|| missing("shutdown_checkpoint"))?,
        },
        Some("resume") => SwitchoverStage::Resume,
        _ => return Err(missing("stage")),
    };
    Ok(SwitchoverRecord {
        id: map
            .get("id")
            .and_then(number)
            .ok_or_else(|| missing("id"))?,
        epoch: map
            .get("epoch")
            .and_then(Value::as_str)
            .and_then(epoch_from_text)
            .ok_or_else(|| missing("epoch"))?,
        from: name(map.get("from")).ok_or_else(|| missing("from"))?,
        to: name(map.get("to")).ok_or_else(|| missing("to"))?,
        stage,
        parts: changes::parts_from_json(map.get("parts_ms")),
    })
}

/// The `trunkline/switchover` record.
pub fn switchover_to_json(record: &SwitchoverRecord) -> String {
    let (stage, checkpoint) = match record.stage {
        SwitchoverStage::HoldTransactions => ("hold_transactions", None),
        SwitchoverStage::HoldAll => ("hold_all", None),
        SwitchoverStage::Stopped {
            shutdown_checkpoint,
        } => ("stopped", Some(shutdown_checkpoint)),
        SwitchoverStage::Resume => ("resume", None),
    };
    let mut map = Map::new();
    map.insert("id".into(), json!(record.id));
    map.insert("epoch".into(), json!(record.epoch.to_string()));
    map.insert("from".into(), json!(record.from.as_str()));
    map.insert("to".into(), json!(record.to.as_str()));
    map.insert("stage".into(), json!(stage));
    if let Some(at) = checkpoint {
        map.insert("shutdown_checkpoint".into(), json!(at.0));
    }
    if record.parts != ChangeParts::default() {
        map.insert("parts_ms".into(), changes::parts_to_json(&record.parts));
    }
    Value::Object(map).to_string()
}

/// The `initialize` record.
pub fn initialize_to_text(id: Option<SystemId>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
