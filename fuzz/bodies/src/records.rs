//! What stands under the keys of the DCS: read whatever it is, and read again as it is written.

use serde_json::{Map, Value};
use trunkline_shared::cluster::topology::{Change, Fact, FactKey, Topology};
use trunkline_shared::cluster::{ClusterName, MemberName};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::records::{
    changes_from_json, claimed_to_json, failover_to_json, failsafe_to_json, history_lines,
    history_to_json, initialize_to_text, is_absent, leader_changes_to_json, member_to_json,
    merge_patch, parse, read_settings, router_to_json, status_to_json, stores_to_json,
    switchover_to_json, sync_to_json,
};

use crate::draw::Draw;

/// Looks at keys and their values.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    match draw.below(8) {
        0 => keys(draw.rest()),
        1 => cluster(&mut draw),
        2 => patch(&mut draw),
        3 => changes(draw.rest()),
        _ => {
            let key = key(draw.byte());
            one(&key, draw.rest());
        }
    }
}

fn key(number: u8) -> FactKey {
    let a = || MemberName::new("a");
    match number % 16 {
        0 => FactKey::Initialize,
        1 => FactKey::Settings,
        2 => FactKey::Leader,
        3 => FactKey::Status,
        4 => FactKey::Failover,
        5 => FactKey::Sync,
        6 => FactKey::History,
        7 => FactKey::Failsafe,
        8 => FactKey::Generation,
        9 => FactKey::Succeeds,
        10 => FactKey::Timeline,
        11 => FactKey::Disarmed(a()),
        12 => FactKey::Switchover,
        13 => FactKey::Changes,
        14 => FactKey::Router("r1/7".into()),
        _ => FactKey::Member(a()),
    }
}

/// A key's path is that of one key, and reads back.
fn keys(path: &[u8]) {
    let path = String::from_utf8_lossy(path);
    let keys = Keys::new("/service/", &ClusterName::new("demo"));
    for path in [
        path.clone().into_owned(),
        format!("{}{path}", keys.prefix()),
    ] {
        if let Some(key) = keys.parse(&path) {
            assert_eq!(keys.path(&key), path);
            assert!(Keys::cluster_of("service", &path).is_some());
        }
    }
}

fn one(key: &FactKey, value: &[u8]) -> Fact {
    is_absent(key, value);
    let fact = parse(key, value);
    if let Some(written) = written(&fact) {
        assert_eq!(parse(key, written.as_bytes()), fact, "{written}");
    }
    fact
}

/// As it would be written; none of what only other documents make.
fn written(fact: &Fact) -> Option<String> {
    Some(match fact {
        Fact::Initialize(id) => initialize_to_text(*id),
        Fact::Leader(name) => name.as_str().to_owned(),
        Fact::Member(member) => member_to_json(member),
        Fact::Status(status) => status_to_json(status),
        Fact::Failover(request) => failover_to_json(request),
        Fact::Sync(sync) => sync_to_json(sync),
        Fact::Failsafe(failsafe) => failsafe_to_json(failsafe),
        Fact::Generation(generation) => generation.to_string(),
        Fact::Succeeds(stores) => stores_to_json(stores),
        Fact::Timeline(claimed) => claimed_to_json(*claimed),
        Fact::Disarmed => String::new(),
        Fact::Switchover(record) => switchover_to_json(record),
        Fact::Router(record) => router_to_json(record),
        Fact::Settings(_) | Fact::History(_) | Fact::Changes(_) | Fact::Unreadable(_) => {
            return None;
        }
    })
}

/// The two lists that only grow.
fn changes(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    if let Ok(lines) = history_lines(&text) {
        assert_eq!(history_lines(&history_to_json(&lines)), Ok(lines));
    }
    if let Ok(changes) = changes_from_json(&text) {
        let written = leader_changes_to_json(&changes);
        assert_eq!(changes_from_json(&written), Ok(changes), "{written}");
    }
}

/// A cluster's keys change one after the other.
fn cluster(draw: &mut Draw<'_>) {
    let mut topology = Topology::default();
    let mut revision = 0;
    while !draw.is_over() {
        let key = key(draw.byte());
        revision += i64::from(draw.byte() % 4);
        let is_deleted = draw.below(4) == 0;
        let value = draw.short();
        let fact = (!is_deleted && !is_absent(&key, value)).then(|| one(&key, value));
        topology.apply(&Change {
            key,
            fact,
            revision,
            lease: i64::from(draw.byte() % 3),
        });
        let newest = topology.newest_timeline();
        topology.parent_of(newest);
        topology.has_history_of(newest);
        topology.epoch();
        topology.settings_or_default();
    }
}

/// RFC 7396, word for word.
fn by_the_rfc(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut merged = match target {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for (name, value) in patch {
        match value.is_null() {
            true => drop(merged.shift_remove(name)),
            false => {
                let before = merged.shift_remove(name).unwrap_or(Value::Null);
                merged.insert(name.clone(), by_the_rfc(before, value));
            }
        }
    }
    Value::Object(merged)
}

fn patch(draw: &mut Draw<'_>) {
    let target = draw.short();
    let (Ok(before), Ok(patch)) = (
        serde_json::from_slice::<Value>(target),
        serde_json::from_slice::<Value>(draw.rest()),
    ) else {
        return;
    };
    let mut after = before.clone();
    let is_changed = merge_patch(&mut after, &patch);
    assert_eq!(after, by_the_rfc(before.clone(), &patch));
    assert_eq!(is_changed, after != before);
    assert!(!merge_patch(&mut after.clone(), &patch), "a second time");
    // Whatever it is, it is read, or is no object.
    assert_eq!(read_settings(&after.to_string()).is_ok(), after.is_object());
}
