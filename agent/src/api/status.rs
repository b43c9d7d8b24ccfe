//! This member as JSON: `GET /patroni` and the body of the health checks.

use serde_json::{Value, json};
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::{Lsn, MemberRole, Moment};
use trunkline_shared::dcs::records::{changes_to_json, role_word, state_word, tags_to_json};

use super::published::{Published, ReplicationRow};

/// The version this program shows.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `GET /patroni`: Patroni's fields, and Trunkline's under `trunkline`. Patroni members that race take
/// `xlog.location` for a living primary, and a missing `xlog` for a member that cannot be reached.
pub fn member(published: &Published, now: Moment) -> Value {
    let mut answer = json!({ "state": state_word(published.state) });
    if let Some(started) = &published.postmaster_start_time {
        answer["postmaster_start_time"] = started.text.as_ref().into();
    }
    answer["role"] = role_word(published.role).into();
    if let Some(version) = published.server_version {
        answer["server_version"] = version.into();
    }
    if let Some(xlog) = xlog(published) {
        answer["xlog"] = xlog;
    }
    if let Some(timeline) = published.timeline {
        answer["timeline"] = timeline.0.into();
    }
    if let Some(state) = &published.replication_state {
        answer["replication_state"] = state.as_ref().into();
    }
    if !published.replication.is_empty() {
        answer["replication"] = published.replication.iter().map(row).collect();
    }
    let in_sync = published
        .topology
        .sync
        .as_ref()
        .is_some_and(|sync| sync.standbys.contains(&published.name));
    match published.topology.settings_or_default().synchronous_mode {
        SynchronousMode::On if in_sync => answer["sync_standby"] = true.into(),
        SynchronousMode::Quorum if in_sync => answer["quorum_standby"] = true.into(),
        SynchronousMode::Off | SynchronousMode::On | SynchronousMode::Quorum => {}
    }
    flags(published, &mut answer);
    answer["dcs_last_seen"] = published.dcs_last_seen.into();
    let tags = tags_to_json(&published.tags);
    if tags.as_object().is_some_and(|tags| !tags.is_empty()) {
        answer["tags"] = tags;
    }
    if let Some(id) = published.system_id {
        answer["database_system_identifier"] = id.to_string().into();
    }
    answer["patroni"] = json!({
        "version": VERSION,
        "scope": published.cluster.as_str(),
        "name": published.name.as_str(),
    });
    if published.reason.is_some() {
        // Before the first turn nothing is known, and nothing is denied.
        answer["trunkline"] = json!({
            "leader": published.topology.leader.as_ref().map(|leader| leader.member.as_str()),
            "epoch": published.epoch.map(|epoch| epoch.to_string()),
            "writable": published.is_writable,
            "lease_left_ms": published.lease_left_ms(now),
            "reason": published.reason.as_deref(),
            "stands_still": published.stands_still(now),
            "stands_back": published.stands_back(now),
            "disk_nearly_full": published.is_disk_nearly_full,
            "write_waits_ms": published.write_waits(now).as_millis() as u64,
            "dcs": {
                "cluster_id": format!("{:x}", published.store.cluster_id),
                "revision": published.store.revision,
                "generation": published.store.generation,
                "written": published.store.authority,
                "went_back": published.store.doubt.is_some(),
                "answers": published.is_dcs_fresh,
                "unproved": published.store.is_unproved,
            },
        });
    }
    answer
}

fn flags(published: &Published, answer: &mut Value) {
    if published.topology.leader.is_none() {
        answer["cluster_unlocked"] = true.into();
    }
    if published.is_failsafe_active {
        answer["failsafe_mode_is_active"] = true.into();
    }
    if published.is_paused {
        answer["pause"] = true.into();
    }
    if published.has_watchdog_failed {
        answer["watchdog_failed"] = true.into();
    }
    if published.has_pending_restart {
        answer["pending_restart"] = true.into();
    }
    if !published.pending_restart.is_empty() {
        answer["pending_restart_reason"] = changes_to_json(&published.pending_restart);
    }
}

fn xlog(published: &Published) -> Option<Value> {
    let number = |lsn: Option<Lsn>| lsn.unwrap_or_default().0;
    match published.role {
        MemberRole::Primary => published
            .position
            .map(|position| json!({ "location": position.0 })),
        MemberRole::Replica
        | MemberRole::StandbyLeader
        | MemberRole::Demoted
        | MemberRole::Uninitialized
        | MemberRole::Promoted => {
            published.received.or(published.replayed)?;
            Some(json!({
                "received_location": number(published.received),
                "replayed_location": number(published.replayed),
                "replayed_timestamp": published.replayed_timestamp.as_ref().map(|t| t.text.as_ref()),
                "paused": published.is_replay_paused,
            }))
        }
    }
}

fn row(row: &ReplicationRow) -> Value {
    json!({
        "usename": row.usename,
        "application_name": row.application_name,
        "client_addr": row.client_addr,
        "state": row.state,
        "sync_state": row.sync_state,
        "sync_priority": row.sync_priority,
    })
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::{ClusterName, MemberName};

    use super::*;

    #[test]
    fn who_gave_the_lease_up_says_so_for_as_long_as_it_stands_back() {
        let at = |seconds: u64| Moment(seconds * 1_000_000_000);
        let (cluster, name) = (ClusterName::new("demo"), MemberName::new("a"));
        let published = Published {
            reason: Some("waiting".into()),
            stands_back_until: Some(at(30)),
            ..Published::before_the_first_tick(cluster, name, at(20))
        };
        let says = |now| member(&published, now)["trunkline"]["stands_back"].clone();
        assert_eq!((says(at(29)), says(at(30))), (true.into(), false.into()));
    }
}
