//! The member record.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{epoch_from_text, name, number, object, position};
use crate::cluster::member::{ParameterChange, RestartSchedule, SwitchoverReady, TrunklineFields};
use crate::cluster::{
    Lsn, Member, MemberName, MemberRole, MemberState, SystemId, Tags, Timeline, quantity,
};

/// PostgreSQL's port, where a connection URL names none.
const DEFAULT_PORT: u16 = 5432;

/// Patroni's word for a state.
pub fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::InitializingNewCluster => "initializing new cluster",
        MemberState::InitdbFailed => "initdb failed",
        MemberState::RunningCustomBootstrap => "running custom bootstrap script",
        MemberState::CustomBootstrapFailed => "custom bootstrap failed",
        MemberState::CreatingReplica => "creating replica",
        MemberState::Running => "running",
        MemberState::Starting => "starting",
        MemberState::StartingAfterCustomBootstrap => "starting after custom bootstrap",
        MemberState::StartFailed => "start failed",
        MemberState::Restarting => "restarting",
        MemberState::RestartFailed => "restart failed",
        MemberState::Stopping => "stopping",
        MemberState::Stopped => "stopped",
        MemberState::StopFailed => "stop failed",
        MemberState::Crashed => "crashed",
    }
}

/// The state that Patroni's word means; `None` if it is no such word.
pub fn state_from_word(word: &str) -> Option<MemberState> {
    Some(match word {
        "initializing new cluster" => MemberState::InitializingNewCluster,
        "initdb failed" => MemberState::InitdbFailed,
        "running custom bootstrap script" => MemberState::RunningCustomBootstrap,
        "custom bootstrap failed" => MemberState::CustomBootstrapFailed,
        "creating replica" => MemberState::CreatingReplica,
        // The two others stand in the records of some versions for a running replica.
        "running" | "streaming" | "in archive recovery" => MemberState::Running,
        "starting" => MemberState::Starting,
        "starting after custom bootstrap" => MemberState::StartingAfterCustomBootstrap,
        "start failed" => MemberState::StartFailed,
        "restarting" => MemberState::Restarting,
        "restart failed" => MemberState::RestartFailed,
        "stopping" => MemberState::Stopping,
        "stopped" => MemberState::Stopped,
        "stop failed" => MemberState::StopFailed,
        "crashed" => MemberState::Crashed,
        _ => return None,
    })
}

/// Patroni's word for a role.
pub fn role_word(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Primary => "primary",
        MemberRole::Replica => "replica",
        MemberRole::StandbyLeader => "standby_leader",
        MemberRole::Demoted => "demoted",
        MemberRole::Uninitialized => "uninitialized",
        MemberRole::Promoted => "promoted",
    }
}

/// The role that Patroni's word means, `master` (before 4.0) included.
pub fn role_from_word(word: &str) -> Option<MemberRole> {
    Some(match word {
        "primary" | "master" => MemberRole::Primary,
        "replica" => MemberRole::Replica,
        "standby_leader" => MemberRole::StandbyLeader,
        "demoted" => MemberRole::Demoted,
        "uninitialized" => MemberRole::Uninitialized,
        "promoted" => MemberRole::Promoted,
        _ => return None,
    })
}

/// Host and port in a connection URL; user, password, database and options are left out.
fn address(conn_url: &str) -> Option<String> {
    let rest = conn_url
        .strip_prefix("postgres://")
        .or_else(|| conn_url.strip_prefix("postgresql://"))?;
    let authority = rest.split(['/', '?']).next()?;
    let address = authority.rsplit('@').next()?;
    let host = match address.rsplit_once(':') {
        // A colon inside the brackets of an IPv6 address is none before a port.
        Some((_, port)) if port.ends_with(']') => None,
        Some((host, port)) => Some((host, port.parse::<u16>().ok()?)),
        None => None,
    };
    match host {
        Some(("", _)) => None,
        Some((host, port)) => Some(format!("{host}:{port}")),
        None if address.is_empty() => None,
        None => Some(format!("{address}:{DEFAULT_PORT}")),
    }
}

/// Reads a member's record.
///
/// # Errors
/// Says what is missing or unusable: without role, state or address a member is of no use to anyone.
pub fn member_from_json(member: &MemberName, text: &str) -> Result<Member, String> {
    let map = object(text)?;
    let word = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
    let unusable = |field: &str| format!("the {field} \"{}\" is missing or unusable", word(field));
    let address = address(word("conn_url")).ok_or_else(|| unusable("conn_url"))?;
    let received = map.get("receive_lsn").and_then(position);
    let replayed = map.get("replay_lsn").and_then(position);
    Ok(Member {
        name: member.clone(),
        address: address.into(),
        proxy_address: self::address(word("proxy_url")).map(Arc::from),
        api_url: word("api_url").into(),
        role: role_from_word(word("role")).ok_or_else(|| unusable("role"))?,
        state: state_from_word(word("state")).ok_or_else(|| unusable("state"))?,
        timeline: map.get("timeline").and_then(timeline),
        position: map
            .get("xlog_location")
            .and_then(position)
            .or_else(|| received.max(replayed)),
        received,
        replayed,
        is_streaming: map
            .get("replication_state")
            .and_then(Value::as_str)
            .map(|state| state == "streaming"),
        tags: map.get("tags").map(tags_from_json).unwrap_or_default(),
        is_checkpointed_after_promote: flag(map.get("checkpoint_after_promote")).unwrap_or(true),
        has_pending_restart: flag(map.get("pending_restart")).unwrap_or(false),
        pending_restart: map
            .get("pending_restart_reason")
            .map(changes_from_json)
            .unwrap_or_default(),
        scheduled_restart: map.get("scheduled_restart").and_then(restart_schedule),
        is_paused: flag(map.get("pause")).unwrap_or(false),
        version: word("version").into(),
        lease: 0,
        revision: 0,
        trunkline: map.get("trunkline").and_then(trunkline_fields),
    })
}

fn timeline(value: &Value) -> Option<Timeline> {
    match u32::try_from(number(value)?) {
        Ok(0) | Err(_) => None,
        Ok(timeline) => Some(Timeline(timeline)),
    }
}

/// A boolean as JSON, or as text in one of Patroni's spellings.
fn flag(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => quantity::boolean(text),
        Value::Number(number) => quantity::boolean(&number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Reads a `pending_restart_reason`; what is none is as good as none.
fn changes_from_json(value: &Value) -> BTreeMap<Arc<str>, ParameterChange> {
    let change = |(name, change): (&String, &Value)| {
        let text = |field| {
            change
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let change = ParameterChange {
            old: text("old_value").into(),
            new: text("new_value").into(),
        };
        (Arc::from(name.as_str()), change)
    };
    let map = value.as_object();
    map.map(|map| map.iter().map(change).collect())
        .unwrap_or_default()
}

fn restart_schedule(value: &Value) -> Option<RestartSchedule> {
    let text = |field: &str| value.get(field)?.as_str().map(Arc::from);
    Some(RestartSchedule {
        schedule: text("schedule")?,
        postgres_version: text("postgres_version"),
        postmaster_start_time: text("postmaster_start_time"),
    })
}

/// The `scheduled_restart` object.
pub fn restart_schedule_to_json(schedule: &RestartSchedule) -> Value {
    let mut map = Map::new();
    map.insert("schedule".into(), json!(schedule.schedule));
    for (field, text) in [
        ("postmaster_start_time", &schedule.postmaster_start_time),
        ("postgres_version", &schedule.postgres_version),
    ] {
        if let Some(text) = text {
            map.insert(field.into(), json!(text));
        }
    }
    Value::Object(map)
}

/// The `pending_restart_reason` object.
pub fn changes_to_json(changes: &BTreeMap<Arc<str>, ParameterChange>) -> Value {
    let fields =
        |change: &ParameterChange| json!({ "old_value": change.old, "new_value": change.new });
    changes
        .iter()
        .map(|(name, change)| (name.to_string(), fields(change)))
        .collect::<Map<_, _>>()
        .into()
}

/// Reads a `tags` object; what is none is as good as no tags.
pub fn tags_from_json(value: &Value) -> Tags {
    let mut tags = Tags::default();
    let Value::Object(map) = value else {
        return tags;
    };
    let (mut explicit_nofailover, mut explicit_nosync) = (None, None);
    // Patroni takes a negative priority for 0.
    let priority_of = |value: &Value| {
        let priority = value.as_i64().or_else(|| value.as_str()?.parse().ok());
        priority.map(|p| u32::try_from(p.max(0)).unwrap_or(u32::MAX))
    };
    for (tag, value) in map {
        match tag.as_str() {
            "nofailover" => explicit_nofailover = flag(Some(value)),
            "failover_priority" => tags.failover_priority = priority_of(value),
            "sync_priority" => tags.sync_priority = priority_of(value),
            "nostream" => tags.nostream = flag(Some(value)).unwrap_or(false),
            "noloadbalance" => tags.noloadbalance = flag(Some(value)).unwrap_or(false),
            "clonefrom" => tags.clonefrom = flag(Some(value)).unwrap_or(false),
            "nosync" => explicit_nosync = flag(Some(value)),
            "replicatefrom" => tags.replicatefrom = name(Some(value)),
            _ => {
                tags.custom.insert(tag.clone(), value.to_string());
            }
        }
    }
    tags.nofailover = explicit_nofailover.unwrap_or(false);
    tags.nosync = explicit_nosync.unwrap_or(false);
    // An explicit nofailover wins over a priority, whichever it says.
    if explicit_nofailover == Some(false) && tags.failover_priority == Some(0) {
        tags.failover_priority = None;
    }
    if explicit_nosync == Some(false) && tags.sync_priority == Some(0) {
        tags.sync_priority = None;
    }
    tags
}

/// The `tags` object.
pub fn tags_to_json(tags: &Tags) -> Value {
    let mut map = Map::new();
    for (tag, is_set) in [
        ("nofailover", tags.nofailover),
        ("noloadbalance", tags.noloadbalance),
        ("clonefrom", tags.clonefrom),
        ("nosync", tags.nosync),
        ("nostream", tags.nostream),
    ] {
        if is_set {
            map.insert(tag.into(), json!(true));
        }
    }
    if let Some(priority) = tags.failover_priority {
        map.insert("failover_priority".into(), json!(priority));
    }
    if let Some(priority) = tags.sync_priority {
        map.insert("sync_priority".into(), json!(priority));
    }
    if let Some(upstream) = &tags.replicatefrom {
        map.insert("replicatefrom".into(), json!(upstream.as_str()));
    }
    for (tag, text) in &tags.custom {
        let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        map.insert(tag.clone(), value);
    }
    Value::Object(map)
}

fn trunkline_fields(value: &Value) -> Option<TrunklineFields> {
    let map = value.as_object()?;
    let ready = map.get("ready").and_then(|ready| {
        Some(SwitchoverReady {
            id: number(ready.get("id")?)?,
            replayed: position(ready.get("replayed")?)?,
        })
    });
    Some(TrunklineFields {
        epoch: map
            .get("epoch")
            .and_then(Value::as_str)
            .and_then(epoch_from_text),
        system_id: map.get("system_id").and_then(number).map(SystemId),
        ready,
        reason: map.get("reason").and_then(Value::as_str).map(Arc::from),
        detail: map.get("detail").and_then(Value::as_str).map(Arc::from),
        has_watchdog_failed: map.get("watchdog_failed").and_then(Value::as_bool) == Some(true),
    })
}

/// A member's record. The fields that say nothing are left out, as Patroni does.
pub fn member_to_json(member: &Member) -> String {
    let mut map = Map::new();
    let mut put = |field: &str, value: Value| {
        map.insert(field.to_owned(), value);
    };
    put(
        "conn_url",
        json!(format!("postgres://{}/postgres", member.address)),
    );
    if let Some(proxy) = &member.proxy_address {
        put("proxy_url", json!(format!("postgres://{proxy}/postgres")));
    }
    put("api_url", json!(member.api_url));
    put("state", json!(state_word(member.state)));
    put("role", json!(role_word(member.role)));
    put("version", json!(member.version));
    if !member.is_checkpointed_after_promote || member.role == MemberRole::Primary {
        put(
            "checkpoint_after_promote",
            json!(member.is_checkpointed_after_promote),
        );
    }
    let tags = tags_to_json(&member.tags);
    if tags.as_object().is_some_and(|tags| !tags.is_empty()) {
        put("tags", tags);
    }
    if member.has_pending_restart {
        put("pending_restart", json!(true));
    }
    if !member.pending_restart.is_empty() {
        put(
            "pending_restart_reason",
            changes_to_json(&member.pending_restart),
        );
    }
    if let Some(schedule) = &member.scheduled_restart {
        put("scheduled_restart", restart_schedule_to_json(schedule));
    }
    let bytes = |lsn: Lsn| json!(lsn.0);
    if let Some(position) = member.position {
        put("xlog_location", bytes(position));
    }
    if let Some(received) = member.received {
        put("receive_lsn", bytes(received));
    }
    if let Some(replayed) = member.replayed {
        put("replay_lsn", bytes(replayed));
    }
    if let Some(is_streaming) = member.is_streaming {
        let state = if is_streaming {
            "streaming"
        } else {
            "in archive recovery"
        };
        put("replication_state", json!(state));
    }
    if let Some(timeline) = member.timeline {
        put("timeline", json!(timeline.0));
    }
    if member.is_paused {
        put("pause", json!(true));
    }
    if let Some(fields) = &member.trunkline {
        put("trunkline", trunkline_to_json(fields));
    }
    Value::Object(map).to_string()
}

fn trunkline_to_json(fields: &TrunklineFields) -> Value {
    let mut map = Map::new();
    if let Some(epoch) = fields.epoch {
        map.insert("epoch".into(), json!(epoch.to_string()));
    }
    if let Some(id) = fields.system_id {
        // As text: readers whose numbers are doubles would round it.
        map.insert("system_id".into(), json!(id.to_string()));
    }
    if let Some(ready) = fields.ready {
        map.insert(
            "ready".into(),
            json!({"id": ready.id, "replayed": ready.replayed.0}),
        );
    }
    if let Some(reason) = &fields.reason {
        map.insert("reason".into(), json!(reason));
    }
    if let Some(detail) = &fields.detail {
        map.insert("detail".into(), json!(detail));
    }
    if fields.has_watchdog_failed {
        map.insert("watchdog_failed".into(), json!(true));
    }
    Value::Object(map)
}
