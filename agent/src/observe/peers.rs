//! Asks the other members' agents, in parallel, by Patroni's `GET /patroni`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline_shared::cluster::store::Authority;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Lsn, MemberName, Moment, SystemId, Tags, Timeline, Topology};
use trunkline_shared::dcs::watch::View;
use trunkline_shared::service::http::{HttpClient, HttpError};

use crate::decide::STOP_AHEAD;
use crate::decide::observation::{Looked, PeerAnswer, PeerStore, PeerView, Peers};

/// How long a peer may take to answer.
pub const PEER_LIMIT: Duration = Duration::from_millis(500);

/// Asks all of `whom`; what the answer leaves out of its tags is taken from the record.
async fn ask(
    client: &HttpClient,
    topology: &Topology,
    whom: BTreeMap<MemberName, Arc<str>>,
) -> Arc<BTreeMap<MemberName, PeerAnswer>> {
    let mut asking = JoinSet::new();
    let mut answers = BTreeMap::new();
    let cluster = match topology.initialize {
        Initialize::Done(system_id) => Some(system_id),
        Initialize::Absent | Initialize::Running => None,
    };
    for (name, url) in whom {
        answers.insert(name.clone(), PeerAnswer::Unreachable);
        let record = topology.members.get(&name);
        let tags = record.map(|member| member.tags.clone()).unwrap_or_default();
        let client = client.clone();
        asking.spawn(async move { (name, ask_one(&client, &url, &tags, cluster).await) });
    }
    while let Some(asked) = asking.join_next().await {
        if let Ok((name, Some(view))) = asked {
            answers.insert(name, PeerAnswer::Answered(view));
        }
    }
    Arc::new(answers)
}

/// The view, and what those who are asked answer. Where nobody led when they were asked and somebody does meanwhile, the newer
/// view alone: one that is frozen would hold up whoever is to follow, for nothing, since no race is left to be run. The same
/// where not all have answered when the stop of an armed PostgreSQL is due, in `left`: what is due needs nobody's answer, and
/// for all else they are asked again.
pub async fn ask_in_time(
    client: &HttpClient,
    cluster: &mut watch::Receiver<Arc<View>>,
    asked: Option<BTreeMap<MemberName, Arc<str>>>,
    left: impl Fn() -> Option<Duration>,
) -> (Arc<View>, Peers) {
    let view = cluster.borrow_and_update().clone();
    let Some(whom) = asked else {
        return (view, Peers::NotAsked);
    };
    let was_unled = view.topology.leader.is_none();
    let somebody_leads = cluster.wait_for(|new| was_unled && new.topology.leader.is_some());
    tokio::select! {
        biased;
        Ok(led) = somebody_leads => (led.clone(), Peers::NotAsked),
        () = has_passed(left) => (view, Peers::NotAsked),
        answers = ask(client, &view.topology, whom) => (view, Peers::Asked(answers)),
    }
}

/// In how long an armed PostgreSQL must be stopped, `now`; `None` where none is armed, and after the deadline, when nothing is
/// left to stop. The fence does it, too, but may be gone.
pub fn stop_is_due_in(now: Moment, deadline: Option<Moment>) -> Option<Duration> {
    let deadline = deadline.filter(|deadline| now < *deadline)?;
    Some(now.until(deadline.before(STOP_AHEAD)))
}

/// Waits until no time is left, by what it is each time.
async fn has_passed(left: impl Fn() -> Option<Duration>) {
    loop {
        match left() {
            Some(Duration::ZERO) => return,
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    }
}

async fn ask_one(
    client: &HttpClient,
    url: &str,
    registered: &Tags,
    cluster: Option<SystemId>,
) -> Option<PeerView> {
    let answer = client.request(Method::GET, url, Bytes::new(), PEER_LIMIT);
    match answer.await {
        Ok(answer) => view(&answer.body, registered, cluster),
        Err(error @ HttpError::Untrusted { .. }) => {
            // It counts as silent although it lives: somebody must mend the certificates.
            tracing::warn!(%error, "a member cannot be asked");
            None
        }
        Err(
            HttpError::Address(_)
            | HttpError::Unreachable { .. }
            | HttpError::Broken { .. }
            | HttpError::Timeout { .. },
        ) => None,
    }
}

/// Reads Patroni's status JSON. Without `xlog` its PostgreSQL does not answer.
fn view(body: &[u8], registered: &Tags, cluster: Option<SystemId>) -> Option<PeerView> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    // Its loop hangs, and what it says is as old: like one that does not answer.
    let stands_still = answer.pointer("/trunkline/stands_still");
    if stands_still.and_then(Value::as_bool) == Some(true) {
        return None;
    }
    let xlog = answer.get("xlog");
    let position = |name: &str| xlog.and_then(|x| x.get(name)?.as_u64()).map(Lsn);
    let (current, received, replayed) = (
        position("location"),
        position("received_location"),
        position("replayed_location"),
    );
    let word = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("");
    let (role, state) = (word("role"), word("state"));
    let timeline = answer.get("timeline").and_then(Value::as_u64);
    let tags = tags(answer.get("tags"), registered);
    let says = |name: &str| answer.get(name).and_then(Value::as_bool) == Some(true);
    // Patroni keeps to its consent for a ttl and takes no key meanwhile, whoever names it.
    let is_bound = answer.get("trunkline").is_none() && says("failsafe_mode_is_active");
    let stands_back = answer.pointer("/trunkline/stands_back") == Some(&Value::Bool(true));
    let seen = PeerView {
        is_running: xlog.is_some(),
        is_primary: current.is_some()
            || (matches!(role, "primary" | "master")
                && !matches!(state, "stopped" | "start failed")),
        timeline: timeline.and_then(|t| u32::try_from(t).ok()).map(Timeline),
        position: [current, received, replayed]
            .into_iter()
            .flatten()
            .max()
            .unwrap_or_default(),
        replayed: replayed.or(current).unwrap_or_default(),
        is_streaming: answer
            .get("replication_state")
            .and_then(Value::as_str)
            .map(|state| state == "streaming"),
        is_replay_paused: xlog.and_then(|x| x.get("paused")?.as_bool()) == Some(true),
        may_lead: tags.may_lead() && !says("watchdog_failed") && !is_bound && !stands_back,
        priority: tags.priority(),
        is_nearly_full: answer
            .pointer("/trunkline/disk_nearly_full")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        store: answer.pointer("/trunkline/dcs").and_then(store),
        has_read_all: received.is_some_and(|lsn| lsn.0 > 0),
        looked: looked(&answer, says("cluster_unlocked")),
    };
    let system_id = word("database_system_identifier")
        .parse()
        .ok()
        .map(SystemId);
    let is_foreign = system_id.is_some() && cluster.is_some() && system_id != cluster;
    Some(if is_foreign { without_data(seen) } else { seen })
}

/// A member whose data is of another cluster never leads this one, and its positions say nothing here. That it is a primary
/// counts: two of one scope would be too many.
fn without_data(seen: PeerView) -> PeerView {
    PeerView {
        timeline: None,
        position: Lsn(0),
        replayed: Lsn(0),
        may_lead: false,
        is_streaming: None,
        has_read_all: false,
        ..seen
    }
}

/// Patroni queries PostgreSQL for each answer; an agent answers what its last turn found, and names the leader of then. One
/// that the DCS did not answer in that turn does not know that nobody led.
fn looked(answer: &Value, is_unlocked: bool) -> Looked {
    let Some(ours) = answer.get("trunkline") else {
        return Looked::Asked;
    };
    let is_known = answer.pointer("/trunkline/dcs/answers") == Some(&Value::Bool(true));
    // Without a name it is some leader, which nobody else sees.
    let leader = ours.get("leader").and_then(Value::as_str).unwrap_or("");
    Looked::InTurn((!is_unlocked || !is_known).then(|| MemberName::new(leader)))
}

fn store(dcs: &Value) -> Option<PeerStore> {
    let is_set = |name: &str| dcs.get(name).and_then(Value::as_bool) == Some(true);
    let cluster_id = dcs.get("cluster_id")?.as_str()?;
    Some(PeerStore {
        cluster_id: u64::from_str_radix(cluster_id, 16).ok()?,
        revision: dcs.get("revision")?.as_i64()?,
        generation: dcs.get("generation")?.as_u64()?,
        authority: written(dcs).unwrap_or_default(),
        is_doubted: is_set("went_back"),
        is_fresh: is_set("answers"),
        is_unproved: is_set("unproved"),
    })
}

/// When what decides was written; an agent of before does not tell.
fn written(dcs: &Value) -> Option<Authority> {
    Authority::deserialize(dcs.get("written")?).ok()
}

/// The tags of the answer; a peer without any shows none, and its record says the same.
fn tags(answer: Option<&Value>, registered: &Tags) -> Tags {
    let Some(tags) = answer else {
        return registered.clone();
    };
    let priority = tags.get("failover_priority").and_then(Value::as_u64);
    Tags {
        nofailover: tags
            .get("nofailover")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        failover_priority: priority.and_then(|p| u32::try_from(p).ok()),
        ..Tags::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_waited_for_while_an_armed_primary_must_be_stopped() {
        let at = |ms: u64| Moment(ms * 1_000_000);
        let due = |now: u64, deadline| stop_is_due_in(at(now), deadline);
        assert_eq!(due(0, None), None);
        assert_eq!(due(1000, Some(at(1500))), Some(Duration::from_millis(200)));
        assert_eq!(due(1300, Some(at(1500))), Some(Duration::ZERO));
        // The fence has fired, and whoever wants to lead again asks as everybody does.
        assert_eq!(due(1500, Some(at(1500))), None);
    }

    #[test]
    fn reads_patronis_answers() {
        let replica = br#"{"state":"running","role":"replica","timeline":3,
            "xlog":{"received_location":100,"replayed_location":90,"paused":false},
            "tags":{"failover_priority":2}}"#;
        let seen = view(replica, &Tags::default(), None).unwrap();
        assert!(seen.is_running && !seen.is_primary && seen.may_lead);
        assert_eq!((seen.position, seen.replayed), (Lsn(100), Lsn(90)));
        assert_eq!((seen.timeline, seen.priority), (Some(Timeline(3)), 2));
        assert_eq!((seen.is_streaming, seen.is_replay_paused), (None, false));
        let paused = br#"{"state":"running","role":"replica","replication_state":"streaming",
            "xlog":{"received_location":1,"replayed_location":1,"paused":true}}"#;
        let seen = view(paused, &Tags::default(), None).unwrap();
        assert_eq!(
            (seen.is_streaming, seen.is_replay_paused),
            (Some(true), true)
        );
        let full = br#"{"state":"running","role":"replica","xlog":{"received_location":1,
            "replayed_location":1},"trunkline":{"disk_nearly_full":true}}"#;
        assert!(view(full, &Tags::default(), None).unwrap().is_nearly_full);
        let primary = br#"{"state":"running","role":"master","xlog":{"location":7}}"#;
        assert!(view(primary, &Tags::default(), None).unwrap().is_primary);
        let hung = br#"{"state":"running","role":"primary","xlog":{"location":7},
            "trunkline":{"stands_still":true}}"#;
        assert!(view(hung, &Tags::default(), None).is_none());
        let unwatched = br#"{"state":"running","role":"replica","watchdog_failed":true,
            "xlog":{"received_location":1,"replayed_location":1}}"#;
        assert!(!view(unwatched, &Tags::default(), None).unwrap().may_lead);
        let bound = r#"{"state":"running","role":"replica","failsafe_mode_is_active":true,
            "xlog":{"received_location":1,"replayed_location":1}}"#;
        assert!(
            !view(bound.as_bytes(), &Tags::default(), None)
                .unwrap()
                .may_lead
        );
        let ours = bound.replacen('{', r#"{"trunkline":{},"#, 1);
        assert!(
            view(ours.as_bytes(), &Tags::default(), None)
                .unwrap()
                .may_lead
        );
        let looked = |ours: &str| {
            let answer = format!(
                r#"{{"state":"running","role":"replica","cluster_unlocked":true{ours},
                "xlog":{{"received_location":1,"replayed_location":1}}}}"#
            );
            view(answer.as_bytes(), &Tags::default(), None)
                .unwrap()
                .looked
        };
        assert_eq!(looked(""), Looked::Asked);
        assert_eq!(
            looked(r#","trunkline":{"dcs":{"answers":true}}"#),
            Looked::InTurn(None)
        );
        assert_ne!(
            looked(r#","trunkline":{"dcs":{"answers":false}}"#),
            Looked::InTurn(None),
            "it does not know that nobody leads"
        );
        let back = br#"{"state":"running","role":"replica","trunkline":{"stands_back":true},
            "xlog":{"received_location":1,"replayed_location":1}}"#;
        assert!(!view(back, &Tags::default(), None).unwrap().may_lead);
        let stopped = br#"{"state":"stopped","role":"replica"}"#;
        assert!(!view(stopped, &Tags::default(), None).unwrap().is_running);
    }

    #[test]
    fn data_of_another_cluster_is_no_rival_and_no_measure_but_a_primary_of_it_is_one() {
        let answer = |xlog: &str| {
            format!(
                r#"{{"state":"running","role":"replica","timeline":9,"xlog":{{{xlog}}},
                "database_system_identifier":"8"}}"#
            )
        };
        let replica = answer(r#""received_location":100,"replayed_location":90"#);
        let seen = |cluster| view(replica.as_bytes(), &Tags::default(), cluster).unwrap();
        for known in [None, Some(SystemId(8))] {
            assert!(seen(known).may_lead && seen(known).position == Lsn(100));
        }
        let foreign = seen(Some(SystemId(7)));
        assert!(!foreign.may_lead && !foreign.has_read_all);
        assert_eq!((foreign.timeline, foreign.position), (None, Lsn(0)));
        let primary = answer(r#""location":7"#);
        let seen = view(primary.as_bytes(), &Tags::default(), Some(SystemId(7))).unwrap();
        assert!(seen.is_primary);
    }
}
