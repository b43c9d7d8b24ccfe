//! What is asked of this member alone, by people and by other agents.

use trunkline_agent::api::requests::{ChangeOfLeader, Kind};
use trunkline_shared::cluster::switchover::{ChangeParts, Drain};
use trunkline_shared::cluster::topology::{SwitchoverRecord, SwitchoverStage};

use super::*;

#[tokio::test]
async fn local_requests_reach_the_loop_and_come_back() {
    let mut fixture = Fixture::new().await;
    fixture.publish(|published| {
        as_primary(published);
        published.role = MemberRole::Replica;
        published.topology = led_by(1, "n2", &[("n1", "replica"), ("n2", "primary")]);
    });
    let (sender, receiver) = mpsc::channel(4);
    let mut requests = std::mem::replace(&mut fixture.requests, receiver);
    drop(sender);
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            let (answer, outcome) = match request {
                LocalRequest::Restart { answer, .. } => {
                    (answer, LocalOutcome::Done("restarted".to_owned()))
                }
                LocalRequest::Reinitialize {
                    force: true,
                    answer,
                } => (answer, LocalOutcome::Unsupported("busy".to_owned())),
                LocalRequest::Reinitialize { answer, .. } => {
                    (answer, LocalOutcome::Refused("busy".to_owned()))
                }
                LocalRequest::Reload { answer } => {
                    (answer, LocalOutcome::Done("reloaded".to_owned()))
                }
            };
            answer.send(outcome).unwrap();
        }
    });
    for (path, body, status) in [
        ("/restart", json!({}), 200),
        ("/restart", json!({"timeout": "soon"}), 400),
        (
            "/restart",
            json!({"drain_timeout": "2s", "on_timeout": "terminate"}),
            200,
        ),
        ("/restart", json!({"drain_timeout": "soon"}), 400),
        ("/restart", json!({"on_timeout": "wait"}), 400),
        ("/restart", json!({"role": "primary"}), 503),
        ("/restart", json!({"restart_pending": true}), 503),
        ("/restart", json!({"schedule": "2030-01-01"}), 422),
        ("/restart", json!({"role": "king"}), 400),
        ("/reinitialize", json!({"force": false}), 503),
        ("/reinitialize", json!({"force": true}), 422),
        ("/reinitialize", json!({"from-leader": true}), 503),
        ("/reload", json!({}), 202),
        ("/nonsense", json!({}), 404),
    ] {
        let answer = fixture.send("POST", path, body.clone()).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text);
    }
}

#[tokio::test]
async fn failsafe_is_consented_to_with_patronis_bodies_and_codes() {
    let fixture = Fixture::new().await;
    let off = fixture.get("/failsafe").await;
    assert_eq!(off.status, 502);
    let patronis = json!({"name": "n2", "conn_url": "", "api_url": "", "slots": {}});
    let off = fixture.send("POST", "/failsafe", patronis.clone()).await;
    assert_eq!(off.status, 502);
    let list = r#"{"n1":"http://n1:8008/patroni","n2":"http://n2:8008/patroni"}"#;
    let keys = [
        (FactKey::Settings, r#"{"ttl":5,"failsafe_mode":true}"#),
        (FactKey::Failsafe, list),
    ];
    fixture.publish(|published| {
        published.topology = topology(5, &keys);
        published.reason = Some("following".into());
        published.role = MemberRole::Replica;
        published.received = Some(Lsn(77));
    });
    let shown = fixture.get("/failsafe").await;
    assert_eq!((shown.status, shown.text), (200, list.to_owned()));
    let accepted = fixture.send("POST", "/failsafe", patronis.clone()).await;
    assert_eq!(
        (accepted.status, accepted.text),
        (200, "Accepted".to_owned())
    );
    let by = |name: &str, epoch: &str, to: &str| {
        json!({"name": name, "conn_url": "", "api_url": "", "slots": {},
            "trunkline": {"epoch": epoch, "ttl_ms": 5000, "cluster": "demo", "to": to}})
    };
    let ours = |epoch: &str| by("n2", epoch, "n1");
    let mistaken = fixture
        .send("POST", "/failsafe", by("n2", "0.12", "n3"))
        .await;
    assert_eq!(mistaken.status, 500, "{}", mistaken.text);
    // The second is asked by who leads under the first, and does not know that it wrote its key again.
    for epoch in ["0.12", "0.11"] {
        let accepted = fixture.send("POST", "/failsafe", ours(epoch)).await;
        assert_eq!(accepted.status, 200, "{epoch}: {}", accepted.text);
    }
    let older = fixture
        .send("POST", "/failsafe", by("n3", "0.11", "n1"))
        .await;
    assert_eq!(older.status, 500, "{}", older.text);
    let mut long = ours("0.12");
    for (ttl_ms, status) in [(10_000, 200), (10_001, 400), (3_600_000, 400)] {
        long["trunkline"]["ttl_ms"] = json!(ttl_ms);
        let answer = fixture.send("POST", "/failsafe", long.clone()).await;
        assert_eq!(answer.status, status, "{ttl_ms}: {}", answer.text);
    }
    let own = json!({"name": "n1", "conn_url": "", "api_url": "", "slots": {}});
    assert_eq!(fixture.send("POST", "/failsafe", own).await.status, 500);
    fixture.holds(Some(held_until(LeaderEpoch::default(), clock::now())));
    let leads = fixture.send("POST", "/failsafe", ours("0.13")).await;
    assert_eq!(
        (leads.status, leads.text),
        (500, "Running as a leader".to_owned())
    );
}

#[tokio::test]
async fn what_is_scheduled_is_checked_shown_carried_out_and_taken_back() {
    let mut fixture = Fixture::new().await;
    fixture.publish(as_primary);
    let at = "2099-01-01T00:00:00+00:00";
    let body = json!({"leader": "n1", "candidate": "n2", "scheduled_at": at});
    let answer = fixture.send("POST", "/switchover", body).await;
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (202, "Switchover scheduled")
    );
    let key = fixture.keys.path(&FactKey::Failover);
    let written = fixture.dcs.read(&key).await.unwrap().entries;
    let text = String::from_utf8_lossy(&written[0].value).into_owned();
    assert!(text.contains(at), "{text}");
    for (status, text) in [
        (200, "scheduled switchover deleted"),
        (404, "no switchover is scheduled"),
    ] {
        let answer = fixture.send("DELETE", "/switchover", Value::Null).await;
        assert_eq!((answer.status, answer.text.as_str()), (status, text));
    }
    let failover = json!({"candidate": "n2", "scheduled_at": at});
    assert_eq!(
        fixture.send("POST", "/failover", failover).await.status,
        400
    );

    let answer = fixture
        .send("POST", "/restart", json!({"schedule": at}))
        .await;
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (202, "restart scheduled")
    );
    let shown: Value = serde_json::from_str(&fixture.get("/patroni").await.text).unwrap();
    assert_eq!(shown["scheduled_restart"]["schedule"], at);
    let again = fixture
        .send("POST", "/restart", json!({"schedule": at}))
        .await;
    assert_eq!(again.status, 409);
    for status in [200, 404] {
        assert_eq!(
            fixture.send("DELETE", "/restart", Value::Null).await.status,
            status
        );
    }
    let past = json!({"schedule": "2020-01-01T00:00:00+00:00"});
    assert_eq!(fixture.send("POST", "/restart", past).await.status, 422);

    // One whose time comes is asked of the loop.
    let soon = clock::WallTime(clock::wall_clock().0 + 300_000).rfc3339();
    let answer = fixture
        .send("POST", "/restart", json!({"schedule": soon}))
        .await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let asked = tokio::time::timeout(PATIENCE, fixture.requests.recv()).await;
    assert!(matches!(asked, Ok(Some(LocalRequest::Restart { .. }))));
}

#[tokio::test]
async fn a_scheduled_restart_that_is_carried_out_is_neither_deleted_nor_shown_nor_replaced() {
    let mut fixture = Fixture::new().await;
    fixture.publish(as_primary);
    let soon = clock::WallTime(clock::wall_clock().0 + 300_000).rfc3339();
    let answer = fixture
        .send("POST", "/restart", json!({"schedule": soon}))
        .await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let asked = tokio::time::timeout(PATIENCE, fixture.requests.recv()).await;
    let Ok(Some(LocalRequest::Restart { answer: begun, .. })) = asked else {
        panic!("{asked:?} is no restart");
    };
    let answer = fixture.send("DELETE", "/restart", Value::Null).await;
    assert_eq!(answer.status, 404, "{}", answer.text);
    assert!(answer.text.contains("being carried out"), "{}", answer.text);
    let shown: Value = serde_json::from_str(&fixture.get("/patroni").await.text).unwrap();
    assert_eq!(shown.get("scheduled_restart"), None);
    let later = json!({"schedule": "2099-01-01T00:00:00+00:00"});
    let answer = fixture.send("POST", "/restart", later.clone()).await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    assert!(answer.text.contains("being carried out"), "{}", answer.text);

    // Once it is over there is room for the next.
    let _ = begun.send(LocalOutcome::Done("restarted successfully".to_owned()));
    let schedule = async || {
        loop {
            let answer = fixture.send("POST", "/restart", later.clone()).await;
            if answer.status != 409 {
                return answer.status;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(
        tokio::time::timeout(PATIENCE, schedule()).await.ok(),
        Some(202)
    );
    let answer = fixture.send("DELETE", "/restart", Value::Null).await;
    assert_eq!(answer.text, "scheduled restart deleted");
}

/// Patroni overwrites what stands under `failover`; so do we, as long as nobody carries it out.
#[tokio::test]
async fn a_standing_request_is_replaced_and_taken_back_until_it_has_begun() {
    let fixture = Fixture::new().await;
    let asked = ChangeOfLeader {
        kind: Kind::Failover,
        leader: None,
        candidate: Some(MemberName::new("n2")),
        scheduled_at: None,
        drain: Drain::default(),
    };
    let (dcs, keys) = (fixture.dcs.as_ref(), &fixture.keys);
    let later = r#"{"leader":"n1","scheduled_at":"2099-01-01T00:00:00+00:00"}"#;
    for standing in [later, r#"{"leader":"n1","member":"n3"}"#, "{}", "rubbish"] {
        fixture.put(&FactKey::Failover, standing).await;
        let revision = asked.write(dcs, keys).await.unwrap();
        let found = dcs.read(&keys.path(&FactKey::Failover)).await.unwrap();
        assert_eq!(found.entries[0].mod_revision, revision, "{standing}");
        assert_eq!(found.entries[0].value, br#"{"member":"n2"}"#, "{standing}");
    }
    let revision = asked.write(dcs, keys).await.unwrap();
    let begun = |id: i64| {
        let epoch = LeaderEpoch {
            generation: 0,
            revision: 5,
        };
        records::switchover_to_json(&SwitchoverRecord {
            id: u64::try_from(id).unwrap(),
            epoch,
            from: MemberName::new("n1"),
            to: MemberName::new("n2"),
            stage: SwitchoverStage::HoldAll,
            parts: ChangeParts::default(),
        })
    };
    fixture.put(&FactKey::Switchover, &begun(revision)).await;
    let refusal = asked.write(dcs, keys).await.unwrap_err();
    assert_eq!(refusal.status, 412, "{refusal}");
    assert!(refusal.text.contains("wait for its end"), "{refusal}");
    let answer = fixture.send("DELETE", "/switchover", Value::Null).await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    // What was carried out was another one.
    fixture
        .put(&FactKey::Switchover, &begun(revision - 1))
        .await;
    let answer = fixture.send("DELETE", "/switchover", Value::Null).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answer = fixture.send("DELETE", "/switchover", Value::Null).await;
    assert_eq!(answer.status, 404, "{}", answer.text);
    fixture.put(&FactKey::Failover, later).await;
    let answer = fixture.send("DELETE", "/switchover", Value::Null).await;
    assert_eq!(answer.text, "scheduled switchover deleted");
}

#[tokio::test]
async fn a_standby_leader_is_shown_by_how_it_replicates() {
    let fixture = Fixture::new().await;
    let state = |role: &str| {
        let member = format!(
            r#"{{"conn_url":"postgres://n1:5432/postgres","api_url":"http://n1:8008/patroni","state":"running",
                "role":"{role}","replication_state":"streaming"}}"#
        );
        let keys = [
            (FactKey::Leader, "n1"),
            (FactKey::Member(MemberName::new("n1")), member.as_str()),
        ];
        fixture.publish(|published| published.topology = topology(1, &keys));
        let fixture = &fixture;
        async move {
            let answer = fixture.get("/cluster").await;
            let shown: Value = serde_json::from_str(&answer.text).unwrap();
            shown["members"][0]["state"].as_str().unwrap().to_owned()
        }
    };
    assert_eq!(state("standby_leader").await, "streaming");
    assert_eq!(state("primary").await, "running");
}
