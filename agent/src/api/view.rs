//! The cluster as Patroni shows it in `/cluster` and `list`: one function for both. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use trunkline_shared::cluster::member::{ParameterChange, RestartSchedule};
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::{Lsn, Member, MemberRole, MemberState, Topology};
use trunkline_shared::dcs::records::{
    changes_to_json, restart_schedule_to_json, state_word, tags_to_json,
};

/// One member as the cluster sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Name.
    pub name: String,
    /// Host of its PostgreSQL.
    pub host: String,
    /// Port of its PostgreSQL, 0 if its record has none.
    pub port: u16,
    /// `leader`, `standby_leader`, `sync_standby`, `quorum_standby`, `replica`.
    pub role: &'static str,
    /// State; a running replica shows how it replicates.
    pub state: String,
    /// URL of its REST API.
    pub api_url: String,
    /// Timeline.
    pub timeline: Option<u32>,
    /// Received position; absent for the leader.
    pub received: Option<Lsn>,
    /// Bytes not received.
    pub receive_lag: Option<u64>,
    /// Replayed position.
    pub replayed: Option<Lsn>,
    /// Bytes not replayed.
    pub replay_lag: Option<u64>,
    /// The furthest position; absent for the leader.
    pub position: Option<Lsn>,
    /// Bytes between it and the leader.
    pub lag: Option<u64>,
    /// Whether it waits for a restart.
    pub has_pending_restart: bool,
    /// For which parameters, as far as its record says.
    pub pending_restart: BTreeMap<Arc<str>, ParameterChange>,
    /// The restart that is to happen later.
    pub scheduled_restart: Option<RestartSchedule>,
    /// Tags that are set, by name.
    pub tags: Value,
}

/// The members in the order of their names.
pub fn members(topology: &Topology) -> Vec<MemberView> {
    topology
        .members
        .values()
        .map(|member| view(topology, member))
        .collect()
}

fn view(topology: &Topology, member: &Member) -> MemberView {
    let is_leader = topology
        .leader
        .as_ref()
        .is_some_and(|leader| leader.member == member.name);
    // The leader's own record may be newer than `status`.
    let leader_record = topology.leader_member().and_then(|leader| leader.position);
    let end = leader_record
        .into_iter()
        .chain([topology.status.optime])
        .max()
        .filter(|end| *end != Lsn(0));
    let lag = |own: Option<Lsn>| Some(own?.bytes_behind(end?));
    let replica = |lsn: Option<Lsn>| if is_leader { None } else { lsn };
    let (received, replayed) = (replica(member.received), replica(member.replayed));
    let position = replica(member.position);
    let (host, port) = host_and_port(&member.address);
    MemberView {
        name: member.name.to_string(),
        host,
        port,
        role: role(topology, member, is_leader),
        state: state(
            member,
            is_leader && member.role != MemberRole::StandbyLeader,
        ),
        api_url: member.api_url.to_string(),
        timeline: member.timeline.map(|t| t.0),
        received,
        receive_lag: lag(received),
        replayed,
        replay_lag: lag(replayed),
        position,
        lag: lag(position),
        has_pending_restart: member.has_pending_restart,
        pending_restart: member.pending_restart.clone(),
        scheduled_restart: member.scheduled_restart.clone(),
        tags: tags_to_json(&member.tags),
    }
}

fn role(topology: &Topology, member: &Member, is_leader: bool) -> &'static str {
    if is_leader {
        return match member.role {
            MemberRole::StandbyLeader => "standby_leader",
            MemberRole::Primary
            | MemberRole::Replica
            | MemberRole::Demoted
            | MemberRole::Uninitialized
            | MemberRole::Promoted => "leader",
        };
    }
    let is_in_sync = topology
        .sync
        .as_ref()
        .is_some_and(|sync| sync.standbys.contains(&member.name));
    match topology.settings_or_default().synchronous_mode {
        SynchronousMode::On if is_in_sync => "sync_standby",
        SynchronousMode::Quorum if is_in_sync => "quorum_standby",
        SynchronousMode::Off | SynchronousMode::On | SynchronousMode::Quorum => "replica",
    }
}

/// Whoever is no leader of its own cluster, a standby leader too, is told by how it replicates.
fn state(member: &Member, is_leader: bool) -> String {
    let word = match (member.state, member.is_streaming) {
        (MemberState::Running, Some(true)) if !is_leader => "streaming",
        (MemberState::Running, Some(false)) if !is_leader => "in archive recovery",
        (state, _) => state_word(state),
    };
    word.to_owned()
}

fn host_and_port(address: &str) -> (String, u16) {
    match address.rsplit_once(':') {
        Some((host, port)) => (
            host.trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port.parse().unwrap_or(0),
        ),
        None => (address.to_owned(), 0),
    }
}

/// `GET /cluster`.
pub fn cluster(scope: &str, topology: &Topology) -> Value {
    let members: Vec<Value> = members(topology).iter().map(member_json).collect();
    let mut answer = json!({ "members": members, "scope": scope });
    if topology.settings_or_default().is_paused {
        answer["pause"] = true.into();
    }
    if let Some(request) = &topology.failover
        && let Some(at) = &request.scheduled_at
    {
        let mut scheduled = json!({ "at": at.as_ref() });
        if let Some(from) = &request.leader {
            scheduled["from"] = from.as_str().into();
        }
        if let Some(to) = &request.candidate {
            scheduled["to"] = to.as_str().into();
        }
        answer["scheduled_switchover"] = scheduled;
    }
    answer
}

fn member_json(view: &MemberView) -> Value {
    let mut member = json!({
        "name": view.name,
        "role": view.role,
        "state": view.state,
        "api_url": view.api_url,
        "host": view.host,
        "port": view.port,
    });
    if let Some(timeline) = view.timeline {
        member["timeline"] = timeline.into();
    }
    if view.role != "leader" && view.role != "standby_leader" {
        let unknown = || Value::from("unknown");
        let number = |lag: Option<u64>| lag.map_or_else(unknown, Value::from);
        let lsn = |lsn: Option<Lsn>| lsn.map_or_else(unknown, |lsn| lsn.to_string().into());
        member["lag"] = number(view.lag);
        member["receive_lsn"] = lsn(view.received);
        member["receive_lag"] = number(view.receive_lag);
        member["replay_lsn"] = lsn(view.replayed);
        member["replay_lag"] = number(view.replay_lag);
        member["lsn"] = lsn(view.position);
    }
    if view.has_pending_restart {
        member["pending_restart"] = true.into();
    }
    if !view.pending_restart.is_empty() {
        member["pending_restart_reason"] = changes_to_json(&view.pending_restart);
    }
    if let Some(scheduled) = &view.scheduled_restart {
        member["scheduled_restart"] = restart_schedule_to_json(scheduled);
    }
    if view.tags.as_object().is_some_and(|tags| !tags.is_empty()) {
        member["tags"] = view.tags.clone();
    }
    member
}
