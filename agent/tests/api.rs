//! The REST API over HTTP, with what a tick would publish made by hand and the in-memory DCS behind it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "api/memory.rs"]
mod memory;
#[path = "api/mistakes.rs"]
mod mistakes;
#[path = "api/requests.rs"]
mod requests;
#[path = "api/tls.rs"]
mod tls;
#[path = "support/waiting.rs"]
mod waiting;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use trunkline_agent::api::{
    self, Access, Api, LocalOutcome, LocalRequest, Lookup, Published, ScheduledRestart,
};
use trunkline_agent::config::RestCredentials;
use trunkline_agent::ctl::rest::{Answer, RestError, request};
use trunkline_agent::decide::observation::{Held, LeaseView};
use trunkline_agent::lease::LeaseStatus;
use trunkline_agent::lease::promise::{Acceptor, Promises};
use trunkline_agent::tick::record::deadline_by;
use trunkline_shared::cluster::topology::{Change, FactKey};
use trunkline_shared::cluster::{
    ClusterName, LeaderEpoch, Lsn, MemberName, MemberRole, MemberState, Moment, Timeline, Topology,
};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::memory::MemoryDcs;
use trunkline_shared::dcs::{Dcs, Operation, Txn, records};
use trunkline_shared::service::clock;
use trunkline_shared::service::http::{HttpClient, basic_authorization};
use trunkline_shared::service::tls::{Reloadable, ServerSettings};
use waiting::{PATIENCE, wait_for};

struct Fixture {
    address: SocketAddr,
    published: Arc<ArcSwap<Published>>,
    dcs: Arc<MemoryDcs>,
    keys: Keys,
    requests: mpsc::Receiver<LocalRequest>,
    access: Arc<Reloadable<Access>>,
    client: HttpClient,
    scheme: &'static str,
    /// What the member remembers of keys.
    seen: Arc<Mutex<BTreeMap<FactKey, Arc<str>>>>,
    lease: watch::Sender<LeaseStatus>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    /// Plain HTTP, and a password.
    async fn new() -> Self {
        let password = "secret".to_owned();
        let access = Access {
            authentication: Some(RestCredentials {
                username: "admin".to_owned(),
                password: password.clone().into(),
            }),
            ..Access::default()
        };
        let mut fixture = Self::with(access, None).await;
        fixture.client.credentials = Some(("admin".to_owned(), password.into()));
        fixture
    }

    async fn with(access: Access, tls: Option<Arc<ServerSettings>>) -> Self {
        let dcs = Arc::new(MemoryDcs::new());
        let mut fixture = Self::over(access, tls, dcs.clone()).await;
        fixture.dcs = dcs;
        fixture
    }

    async fn over(access: Access, tls: Option<Arc<ServerSettings>>, dcs: Arc<dyn Dcs>) -> Self {
        let cluster = ClusterName::new("demo");
        let keys = Keys::new("service", &cluster);
        let first = Published::before_the_first_tick(cluster, MemberName::new("n1"), clock::now());
        let published = Arc::new(ArcSwap::from_pointee(first));
        let (sender, requests) = mpsc::channel(4);
        let (lease, _) = watch::channel(LeaseStatus::new(Duration::from_secs(5)));
        let dir = tempfile::tempdir().unwrap();
        let access = Arc::new(Reloadable::new(access));
        let seen = Arc::<Mutex<BTreeMap<FactKey, Arc<str>>>>::default();
        let api = Api {
            published: published.clone(),
            deadline: deadline_by(lease.subscribe()),
            dcs,
            keys: keys.clone(),
            cluster: watch::channel(Arc::default()).1,
            requests: sender,
            access: access.clone(),
            lookup: Arc::new(Lookup::default()),
            render_metrics: Arc::new(|| "trunkline_agent_ticks_total 1\n".to_owned()),
            journal: Arc::default(),
            scheduled_restart: ScheduledRestart::default(),
            log: Default::default(),
            seen: {
                let seen = seen.clone();
                Arc::new(move |key| seen.lock().unwrap().get(key).cloned())
            },
            consent: {
                let path = dir.path().join("no_race");
                let acceptor = Acceptor {
                    promises: Promises::open(&path, clock::now()).unwrap(),
                    lease: lease.subscribe(),
                };
                Arc::new(move |asker, asked, may_write| {
                    let given = acceptor.consent(asker, asked, may_write);
                    given.map_err(|refusal| refusal.to_string())
                })
            },
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        tokio::spawn(api::serve(listener, api, tls, CancellationToken::new()));
        Self {
            address,
            published,
            dcs: Arc::default(),
            keys,
            requests,
            access,
            client: HttpClient::default(),
            scheme,
            seen,
            lease,
            _dir: dir,
        }
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Answer {
        self.ask(&self.client, method, path, body).await.unwrap()
    }

    async fn ask(
        &self,
        client: &HttpClient,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<Answer, RestError> {
        let url = format!("{}://{}/patroni", self.scheme, self.address);
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        request(client, &url, method, path, body.to_string(), PATIENCE).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, Value::Null).await
    }

    async fn put(&self, key: &FactKey, value: &str) {
        let txn = Txn {
            then: vec![Operation::Put {
                key: self.keys.path(key),
                value: value.as_bytes().to_vec(),
                lease: 0,
            }],
            ..Txn::default()
        };
        self.dcs.commit(&txn).await.unwrap();
    }

    fn publish(&self, change: impl FnOnce(&mut Published)) {
        let mut next = Published::clone(&self.published.load());
        next.last_tick = clock::now();
        change(&mut next);
        let held = next.epoch.zip(next.lease_deadline);
        self.holds(held.map(|(epoch, deadline)| held_until(epoch, deadline)));
        self.published.store(Arc::new(next));
    }

    fn holds(&self, held: Option<Held>) {
        self.lease.send_modify(|status| {
            status.view = held.map_or(LeaseView::NotHeld, LeaseView::Held);
        });
    }
}

fn held_until(epoch: LeaderEpoch, deadline: Moment) -> Held {
    Held {
        epoch,
        deadline,
        is_key_missing: false,
        has_unresolved_hand_over: false,
        is_by_failsafe: false,
    }
}

fn topology(revision: i64, keys: &[(FactKey, &str)]) -> Arc<Topology> {
    let mut topology = Topology::default();
    for (key, value) in keys {
        topology.apply(&Change {
            key: key.clone(),
            fact: Some(records::parse(key, value.as_bytes())),
            revision,
            lease: 1,
        });
    }
    Arc::new(topology)
}

fn member(name: &str, role: &str) -> (FactKey, String) {
    let record = json!({
        "conn_url": format!("postgres://{name}:5432/postgres"),
        "api_url": format!("http://{name}:8008/patroni"),
        "state": "running",
        "role": role,
        "version": "0.1.0",
        "timeline": 1,
        "xlog_location": 1000,
    });
    (FactKey::Member(MemberName::new(name)), record.to_string())
}

fn led_by(revision: i64, leader: &str, others: &[(&str, &str)]) -> Arc<Topology> {
    let members: Vec<(FactKey, String)> = others.iter().map(|(n, r)| member(n, r)).collect();
    let mut keys: Vec<(FactKey, &str)> = vec![(FactKey::Leader, leader)];
    keys.extend(
        members
            .iter()
            .map(|(key, text)| (key.clone(), text.as_str())),
    );
    topology(revision, &keys)
}

fn as_primary(published: &mut Published) {
    published.reason = Some("leading".into());
    published.state = MemberState::Running;
    published.role = MemberRole::Primary;
    published.position = Some(Lsn(1000));
    published.timeline = Some(Timeline(1));
    published.is_writable = true;
    published.epoch = Some(LeaderEpoch {
        generation: 0,
        revision: 5,
    });
    published.lease_deadline = Some(clock::now() + Duration::from_secs(60));
    published.topology = led_by(1, "n1", &[("n1", "primary"), ("n2", "replica")]);
}

#[tokio::test]
async fn leader_paths_are_200_only_while_the_deadline_lies_ahead() {
    let fixture = Fixture::new().await;
    fixture.publish(as_primary);
    for path in [
        "/",
        "/primary",
        "/read-write",
        "/leader",
        "/read-only",
        "/health",
        "/readiness",
    ] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert_eq!(
                fixture.send(method, path, Value::Null).await.status,
                200,
                "{method} {path}"
            );
        }
    }
    for path in ["/replica", "/standby-leader", "/sync", "/async", "/quorum"] {
        assert_eq!(fixture.get(path).await.status, 503, "{path}");
    }
    // vip-manager joins "http://host:8008/" and "/leader".
    assert_eq!(fixture.get("//leader").await.status, 200);
    // The deadline passes and nobody publishes anything: a stuck tick must not keep a leader alive.
    fixture.publish(|published| published.lease_deadline = Some(clock::now()));
    for path in ["/", "/primary", "/read-write", "/leader"] {
        assert_eq!(fixture.get(path).await.status, 503, "{path}");
    }
    assert_eq!(fixture.get("/health").await.status, 200);
    assert_eq!(fixture.get("/nonsense").await.status, 404);
}

#[tokio::test]
async fn leader_paths_follow_the_lease_between_two_ticks() {
    let fixture = Fixture::new().await;
    fixture.publish(as_primary);
    let shown = fixture.published.load_full();
    let epoch = shown.epoch.unwrap();
    // The tick's deadline has passed, the lease task's has moved on.
    fixture.publish(|published| published.lease_deadline = Some(clock::now()));
    let later = clock::now() + Duration::from_secs(60);
    fixture.holds(Some(held_until(epoch, later)));
    assert_eq!(fixture.get("/primary").await.status, 200);
    let body: Value = serde_json::from_str(&fixture.get("/patroni").await.text).unwrap();
    assert!(body["trunkline"]["lease_left_ms"].as_u64().unwrap() > 50_000);
    // The lease is gone, and no tick has looked yet.
    fixture.holds(None);
    assert_eq!(fixture.get("/primary").await.status, 503);
    let body: Value = serde_json::from_str(&fixture.get("/patroni").await.text).unwrap();
    assert_eq!(body["trunkline"]["lease_left_ms"], 0);
    // What the agent before held stands as the last tick showed it.
    fixture.publish(as_primary);
    fixture.holds(None);
    fixture
        .lease
        .send_modify(|status| status.left_behind = Some(epoch));
    assert_eq!(fixture.get("/primary").await.status, 200);
}

#[tokio::test]
async fn replica_checks_know_lag_and_tags() {
    let fixture = Fixture::new().await;
    fixture.publish(|published| {
        published.state = MemberState::Running;
        published.role = MemberRole::Replica;
        published.received = Some(Lsn(3 << 20));
        published.replayed = Some(Lsn(1 << 20));
        published.replication_state = Some("streaming".into());
        published
            .tags
            .custom
            .insert("dc".to_owned(), "\"a\"".to_owned());
        published.topology = topology(1, &[(FactKey::Status, r#"{"optime":3145728}"#)]);
    });
    for (path, status) in [
        ("/replica", 200),
        ("/replica?lag=3MB", 200),
        ("/replica?lag=1MB", 503),
        ("/replica?lag=1%20MB", 503),
        ("/replica?lag=nonsense", 503),
        ("/replica?tag_dc=a", 200),
        ("/replica?tag_dc=b", 503),
        ("/replica?tag_rack=1", 503),
        ("/replica?replication_state=streaming", 200),
        ("/async?lag=2097152", 200),
        ("/read-only", 200),
        ("/primary", 503),
        ("/readiness", 503),
        ("/readiness?lag=2MB", 200),
        ("/readiness?mode=write", 200),
        ("/liveness", 200),
    ] {
        assert_eq!(fixture.get(path).await.status, status, "{path}");
    }
    fixture.publish(|published| published.tags.noloadbalance = true);
    assert_eq!(fixture.get("/replica").await.status, 503);
}

/// Whether Patroni 4.1 answers 200: per path for a primary, a standby leader, and replicas without synchronous mode, in
/// the sync record with synchronous mode, and in it with quorum commit.
const CODES: [(&str, [bool; 5]); 14] = [
    ("/primary", [true, false, false, false, false]),
    ("/read-write", [true, false, false, false, false]),
    ("/leader", [true, true, false, false, false]),
    ("/standby-leader", [false, true, false, false, false]),
    ("/replica", [false, false, true, true, true]),
    ("/read-only", [true, true, true, true, true]),
    ("/sync", [false, false, false, true, false]),
    ("/synchronous", [false, false, false, true, false]),
    ("/read-only-sync", [true, true, false, true, false]),
    ("/read-only-synchronous", [true, true, false, true, false]),
    ("/quorum", [false, false, false, false, true]),
    ("/read-only-quorum", [true, true, false, false, true]),
    ("/async", [false, false, true, false, false]),
    ("/health", [true, true, true, true, true]),
];

#[tokio::test]
async fn every_role_answers_every_path_as_patroni_does() {
    let fixture = Fixture::new().await;
    let replica = |mode: &str| {
        let config = format!(r#"{{"synchronous_mode":{mode}}}"#);
        let mut shown = led_by(1, "n2", &[("n1", "replica"), ("n2", "primary")]);
        let sync = r#"{"leader":"n2","sync_standby":"n1","quorum":1}"#;
        let keys = [(FactKey::Settings, config.as_str()), (FactKey::Sync, sync)];
        let said = topology(1, &keys);
        let shown_now = Arc::make_mut(&mut shown);
        shown_now.settings.clone_from(&said.settings);
        shown_now.sync.clone_from(&said.sync);
        shown
    };
    for role in 0..5 {
        fixture.publish(|published| {
            as_primary(published);
            published
                .tags
                .custom
                .insert("dc".to_owned(), "\"a\"".to_owned());
            match role {
                0 => {}
                1 => published.role = MemberRole::StandbyLeader,
                _ => {
                    published.role = MemberRole::Replica;
                    published.lease_deadline = None;
                    published.topology = replica(["false", "true", "\"quorum\""][role - 2]);
                }
            }
        });
        for (path, expected) in CODES {
            let status = |is_ok: bool| if is_ok { 200 } else { 503 };
            let of_a_leader = ["/primary", "/read-write", "/leader", "/standby-leader"];
            let is_asked_for_tags = !of_a_leader.contains(&path);
            for (query, is_ok) in [
                ("", expected[role]),
                ("?tag_dc=a", expected[role]),
                ("?tag_dc=b", expected[role] && !is_asked_for_tags),
            ] {
                let answer = fixture.get(&format!("{path}{query}")).await;
                assert_eq!(answer.status, status(is_ok), "role {role} {path}{query}");
            }
        }
    }
}

#[tokio::test]
async fn status_carries_patronis_fields_and_ours() {
    let fixture = Fixture::new().await;
    fixture.publish(as_primary);
    let answer = fixture.get("/patroni").await;
    let status: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(status["role"], "primary");
    assert_eq!(status["xlog"]["location"], 1000);
    assert_eq!(status["patroni"]["name"], "n1");
    assert_eq!(status["trunkline"]["epoch"], "0.5");
    assert_eq!(status["trunkline"]["writable"], true);
    let left = status["trunkline"]["lease_left_ms"].as_u64().unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    let cluster = fixture.get("/cluster").await;
    let cluster: Value = serde_json::from_str(&cluster.text).unwrap();
    assert_eq!(cluster["members"][0]["role"], "leader");
    assert_eq!(cluster["members"][1]["role"], "replica");
    assert_eq!(cluster["scope"], "demo");
    let metrics = fixture.get("/metrics").await.text;
    for line in [
        "patroni_primary{scope=\"demo\",name=\"n1\"} 1\n",
        "patroni_postgres_state{scope=\"demo\",name=\"n1\"} 5\n",
        "trunkline_agent_writable{scope=\"demo\",name=\"n1\"} 1\n",
        "trunkline_agent_ticks_total 1\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn unsafe_methods_need_the_password() {
    let mut fixture = Fixture::new().await;
    fixture.client.credentials = Some(("admin".to_owned(), "wrong".to_owned().into()));
    for (method, path) in [
        ("POST", "/switchover"),
        ("POST", "/restart"),
        ("PATCH", "/config"),
        ("DELETE", "/switchover"),
    ] {
        assert_eq!(
            fixture.send(method, path, json!({})).await.status,
            401,
            "{path}"
        );
    }
    assert_eq!(fixture.get("/patroni").await.status, 200);
    assert!(fixture.requests.try_recv().is_err());
}

/// Sends a head that promises a body of `length` bytes and no body, and returns the answer's first line.
async fn first_line(fixture: &Fixture, authorization: &str, length: usize) -> String {
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    let head = format!(
        "POST /restart HTTP/1.1\r\nhost: n1\r\nauthorization: {authorization}\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    tokio::time::timeout(PATIENCE, lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn a_body_is_read_only_from_those_who_may_send_it_and_only_a_small_one_in_time() {
    let mut fixture = Fixture::new().await;
    let known = basic_authorization("admin", "secret");
    let refused = first_line(&fixture, "Basic nonsense", 100).await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let long = first_line(&fixture, &known, 1 << 30).await;
    assert!(long.starts_with("HTTP/1.1 413"), "{long}");
    let slow = first_line(&fixture, &known, 100).await;
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert!(fixture.requests.try_recv().is_err());
}

#[tokio::test]
async fn the_configuration_is_merged_and_checked() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.get("/config").await.status, 502);
    assert_eq!(
        fixture
            .send("PATCH", "/config", json!({"ttl": 20}))
            .await
            .status,
        503
    );
    fixture
        .put(
            &FactKey::Settings,
            r#"{"ttl":30,"loop_wait":10,"pause":true}"#,
        )
        .await;
    let patched = fixture
        .send("PATCH", "/config", json!({"ttl": 20, "pause": null}))
        .await;
    assert_eq!(patched.status, 200);
    assert_eq!(
        fixture.get("/config").await.text,
        r#"{"ttl":20,"loop_wait":10}"#
    );
    let wrong = fixture
        .send("PATCH", "/config", json!({"ttl": "never"}))
        .await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text.contains("ttl"), "{}", wrong.text);
    assert_eq!(fixture.send("PUT", "/config", json!([1])).await.status, 400);
    assert_eq!(
        fixture
            .send("PUT", "/config", json!({"ttl": 40}))
            .await
            .status,
        200
    );
    assert_eq!(fixture.get("/config").await.text, r#"{"ttl":40}"#);
}

#[tokio::test]
async fn a_switchover_is_checked_written_and_followed() {
    let fixture = Fixture::new().await;
    fixture.publish(as_primary);
    for (body, status) in [
        (json!({}), 400),
        (json!({"leader": "n1", "candidate": "n1"}), 400),
        (json!({"leader": "n2"}), 412),
        (json!({"leader": "n1", "candidate": "n9"}), 412),
        (
            json!({"leader": "n1", "scheduled_at": "2030-01-01T00:00"}),
            400,
        ),
        (
            json!({"leader": "n1", "scheduled_at": "2020-01-01T00:00+00:00"}),
            422,
        ),
        (json!("text"), 400),
    ] {
        let answer = fixture.send("POST", "/switchover", body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
    }
    assert_eq!(
        fixture.send("POST", "/failover", json!({})).await.status,
        400
    );
    let acting = async {
        let key = fixture.keys.path(&FactKey::Failover);
        let written = wait_for("the request", String::new, async || {
            let found = fixture.dcs.read(&key).await.unwrap();
            found.entries.into_iter().next()
        });
        assert_eq!(written.await.value, br#"{"leader":"n1","member":"n2"}"#);
        let after = led_by(100, "n2", &[("n1", "replica"), ("n2", "primary")]);
        fixture.publish(|published| published.topology = after);
    };
    let body = json!({"leader": "n1", "candidate": "n2"});
    let (answer, ()) = tokio::join!(fixture.send("POST", "/switchover", body), acting);
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (200, "Successfully switched over to \"n2\"")
    );
}

#[tokio::test]
async fn a_switchover_that_is_called_off_is_503() {
    let fixture = Fixture::new().await;
    fixture.publish(as_primary);
    let acting = async {
        let same = led_by(100, "n1", &[("n1", "primary"), ("n2", "replica")]);
        fixture.publish(|published| published.topology = same);
    };
    let body = json!({"leader": "n1", "candidate": "n2"});
    let (answer, ()) = tokio::join!(fixture.send("POST", "/switchover", body), acting);
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (503, "switchover failed: the log of n1 says why")
    );
}
