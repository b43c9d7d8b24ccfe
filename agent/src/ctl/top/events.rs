//! What happened, by two looks at the cluster one after the other. Pure.

use std::collections::VecDeque;

use trunkline_shared::cluster::topology::{FailoverRequest, SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{Member, MemberName, Topology};
use trunkline_shared::dcs::records::{role_word, state_word};

use crate::decide::Reason;

/// How many are kept.
const KEPT: usize = 200;

/// The last events, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<(String, String)>);

impl Events {
    /// One more, with its time.
    pub(super) fn add(&mut self, time: String, text: String) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((time, text));
    }

    /// The newest, the newest first.
    pub(super) fn newest(&self, most: usize) -> impl Iterator<Item = &(String, String)> {
        self.0.iter().rev().take(most)
    }
}

/// What became different, each as a person reads it.
pub(super) fn changes(old: &Topology, new: &Topology) -> Vec<String> {
    let mut changes = Vec::new();
    let leader = |topology: &Topology| topology.leader.as_ref().map(|l| l.member.clone());
    match (leader(old), leader(new)) {
        (old, new) if old == new => {}
        (Some(old), Some(new)) => changes.push(format!("the leader key moved from {old} to {new}")),
        (None, Some(new)) => changes.push(format!("{new} holds the leader key")),
        (Some(old), None) => changes.push(format!("{old} holds the leader key no more")),
        (None, None) => {}
    }
    let is_paused = |topology: &Topology| topology.settings_or_default().is_paused;
    match (is_paused(old), is_paused(new)) {
        (false, true) => changes.push("maintenance mode is on".to_owned()),
        (true, false) => changes.push("maintenance mode is off".to_owned()),
        (true, true) | (false, false) => {}
    }
    if old.failover != new.failover
        && let Some(request) = &new.failover
    {
        changes.push(requested(request));
    }
    let stage = |topology: &Topology| topology.switchover.as_ref().map(|record| record.stage);
    if stage(old) != stage(new) {
        changes.push(match &new.switchover {
            Some(record) => planned(record),
            None => match &old.switchover {
                Some(record) if record.is_restart() => "the restart is over".to_owned(),
                Some(_) | None => "the switchover is over".to_owned(),
            },
        });
    }
    let standbys = |topology: &Topology| {
        let sync = topology.sync.as_ref();
        let names: Vec<&str> = sync
            .map(|sync| sync.standbys.iter().map(MemberName::as_str).collect())
            .unwrap_or_default();
        names.join(", ")
    };
    if standbys(old) != standbys(new) {
        changes.push(match standbys(new).as_str() {
            "" => "commits wait for no standby".to_owned(),
            names => format!("commits wait for {names}"),
        });
    }
    for name in old.members.keys() {
        if !new.members.contains_key(name) {
            changes.push(format!("{name} is not registered any more"));
        }
    }
    for (name, member) in &new.members {
        match old.members.get(name) {
            None => changes.push(format!(
                "{name} is registered: {}",
                state_word(member.state)
            )),
            Some(before) => changes.extend(of_member(before, member)),
        }
    }
    changes
}

fn requested(request: &FailoverRequest) -> String {
    let name = |name: &Option<MemberName>| {
        name.as_ref()
            .map_or("anybody".to_owned(), ToString::to_string)
    };
    let at = request.scheduled_at.as_deref();
    format!(
        "a change of leader from {} to {} is {}",
        name(&request.leader),
        name(&request.candidate),
        at.map_or("asked for".to_owned(), |at| format!("scheduled at {at}"))
    )
}

/// The word for a stage, as the record writes it.
/// A planned change, and how far it has come.
pub(super) fn planned(record: &SwitchoverRecord) -> String {
    let (from, to, stage) = (&record.from, &record.to, stage_word(&record.stage));
    match record.is_restart() {
        true => format!("restart of {from}: {stage}"),
        false => format!("switchover from {from} to {to}: {stage}"),
    }
}

fn stage_word(stage: &SwitchoverStage) -> &'static str {
    match stage {
        SwitchoverStage::HoldTransactions => "new transactions are held",
        SwitchoverStage::HoldAll => "everything is held",
        SwitchoverStage::Stopped { .. } => "the old leader has stopped",
        SwitchoverStage::Resume => "called off",
    }
}

fn of_member(old: &Member, new: &Member) -> Vec<String> {
    let name = &new.name;
    let mut changes = Vec::new();
    let what =
        |member: &Member| format!("{}, {}", role_word(member.role), state_word(member.state));
    if what(old) != what(new) {
        changes.push(format!("{name}: {} -> {}", what(old), what(new)));
    }
    match (old.is_streaming, new.is_streaming) {
        (Some(true), Some(false)) => changes.push(format!("{name} does not stream any more")),
        (Some(false), Some(true)) => changes.push(format!("{name} streams")),
        _ => {}
    }
    if let (Some(old), Some(new)) = (old.timeline, new.timeline)
        && old != new
    {
        changes.push(format!("{name}: timeline {old} -> {new}"));
    }
    if !old.has_pending_restart && new.has_pending_restart {
        changes.push(format!("{name} waits for a restart"));
    }
    let reason = |member: &Member| member.trunkline.as_ref().and_then(|own| own.reason.clone());
    if let Some(word) = reason(new)
        && reason(old) != Some(word.clone())
    {
        let sentence = match Reason::from_word(&word) {
            Some(reason) => reason.sentence(),
            None => &word,
        };
        changes.push(format!("{name}: {sentence}"));
    }
    changes
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::topology::{Change, FactKey};
    use trunkline_shared::dcs::records;

    use super::*;

    fn after(topology: &Topology, keys: &[(FactKey, &str)]) -> Topology {
        let mut topology = topology.clone();
        for (key, value) in keys {
            topology.apply(&Change {
                key: key.clone(),
                fact: Some(records::parse(key, value.as_bytes())),
                revision: topology.revision + 1,
                lease: 7,
            });
        }
        topology
    }

    #[test]
    fn what_became_different_is_told_and_nothing_else() {
        let b = FactKey::Member(MemberName::new("b"));
        let old = after(
            &Topology::default(),
            &[
                (FactKey::Leader, "a"),
                (
                    b.clone(),
                    r#"{"conn_url":"postgres://b:1/x","state":"running","role":"replica","timeline":1}"#,
                ),
            ],
        );
        assert_eq!(changes(&old, &old), [""; 0]);
        let new = after(
            &old,
            &[
                (FactKey::Leader, "b"),
                (FactKey::Settings, r#"{"pause":true}"#),
                (
                    b,
                    r#"{"conn_url":"postgres://b:1/x","state":"running","role":"primary","timeline":2}"#,
                ),
            ],
        );
        assert_eq!(
            changes(&old, &new),
            [
                "the leader key moved from a to b",
                "maintenance mode is on",
                "b: replica, running -> primary, running",
                "b: timeline 1 -> 2",
            ]
        );
    }
}
