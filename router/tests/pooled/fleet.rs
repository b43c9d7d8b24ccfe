//! Several routers before one cluster: their records, and cancels that come to another one than the session's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use axum::http::Method;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpListener;
use trunkline_router::fleet::cancel_key;
use trunkline_router::fleet::wrong_keys::MAX_WRONG_KEYS;
use trunkline_shared::cluster::router::{Acknowledged, HoldStage};
use trunkline_shared::cluster::{ClusterName, RouterRecord};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::{
    Committed, Dcs, DcsError, LeaseAnswer, LeaseId, Listing, Revision, Txn, Watch,
};
use trunkline_shared::service::http::HttpClient;

use super::support::in_fleet::{InFleet, NOWHERE, join, knows, prepare, until};
use super::*;

/// Two routers of one fleet, with a leader `a`.
async fn two(mode: Mode) -> ([(Stack, InFleet); 2], FakePostgres) {
    two_with(mode, ONE).await
}

/// `app` is an operator.
const WITH_OPERATOR: &str =
    "\"app\" \"secret\"\n---\nauth: {type: trust, file: x}\nadmin: {admin_users: app}\n";

async fn two_with(mode: Mode, pooling: &str) -> ([(Stack, InFleet); 2], FakePostgres) {
    let a = FakePostgres::start(false).await;
    let setup = Setup {
        mode,
        pooling: Some(pooling.to_owned()),
        ..Setup::default()
    };
    let one = Stack::start(setup.clone()).await;
    one.lead("a", a.address).await;
    let two = Stack::start_in(one.dcs.clone(), setup).await;
    two.until(|p| p.table.has_writer()).await;
    let members = (join(&one, "one").await, join(&two, "two").await);
    knows(&one, 2).await;
    knows(&two, 2).await;
    ([(one, members.0), (two, members.1)], a)
}

/// Sends a cancel request and waits for its end.
async fn cancel(stack: &Stack, key: &[u8]) {
    let mut canceller = stack.client().await;
    canceller
        .send(&[&[0, 0, 0, 16, 4, 210, 22, 46][..], key].concat())
        .await;
    assert_eq!(canceller.rest().await, b"");
}

/// The key with another secret.
fn wrong(key: &[u8]) -> Vec<u8> {
    let mut wrong = key.to_vec();
    wrong[7] ^= 1;
    wrong
}

fn number(key: &[u8]) -> Option<u16> {
    cancel_key::number(u32::from_be_bytes(key[..4].try_into().unwrap()))
}

#[tokio::test]
async fn a_cancel_that_another_router_gets_reaches_its_query_and_a_wrong_key_reaches_nothing() {
    for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
        let ([(one, _one), (two, _two)], mut a) = two(mode).await;
        let (mut client, key) = keyed(&one).await;
        assert_eq!(number(&key).is_none(), mode == Mode::Session);
        client.query("wait").await;
        a.until(|seen| seen.queries.len() == 1).await;
        cancel(&two, &wrong(&key)).await;
        cancel(&one, &wrong(&key)).await;
        cancel(&two, &key).await;
        assert_eq!(error(&mut client).await, "57014");
        assert_eq!(answer(&mut client).await, "ZI");
        assert_eq!(ask(&mut client, "select 1").await, "CZI");
        let seen = a.until(|seen| !seen.cancels.is_empty()).await;
        assert_eq!(seen.cancels.len(), 1, "{mode:?}");
    }
}

#[tokio::test]
async fn a_router_that_is_dead_or_hangs_keeps_no_cancel_from_the_others() {
    let ([(one, _one), (two, _two)], mut a) = two(Mode::Transaction).await;
    let (mut client, key) = keyed(&one).await;
    // It takes connections and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = hanging.local_addr().map(|address| (hanging, address));
    let (_hanging, address) = hanging.unwrap();
    let dead = {
        let vacant = TcpListener::bind("127.0.0.1:0").await.unwrap();
        vacant.local_addr().unwrap()
    };
    for (name, address) in [("hanging", address), ("dead", dead)] {
        let number = number(&key).unwrap();
        let record = format!(
            r#"{{"http_url":"http://{address}","hold_timeout":1,"cancel_number":{number}}}"#
        );
        two.put(&format!("routers/{name}/1"), &record).await;
    }
    knows(&two, 4).await;
    client.query("wait").await;
    a.until(|seen| seen.queries.len() == 1).await;
    // Nobody has this one: it ends all the same.
    cancel(&two, &wrong(&key)).await;
    cancel(&two, &key).await;
    assert_eq!(error(&mut client).await, "57014");
    assert_eq!(answer(&mut client).await, "ZI");
}

/// Sends a cancel request from another address of this machine, and does not wait for its end.
async fn cancel_from(stack: &Stack, host: u8, key: &[u8]) -> Client {
    let mut canceller = stack.client_from(host).await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], key].concat();
    canceller.send(&request).await;
    canceller
}

#[tokio::test]
async fn wrong_keys_of_one_address_keep_no_cancel_of_another_from_its_query() {
    let ([(one, _one), (two, _two)], mut a) = two(Mode::Transaction).await;
    let (mut client, key) = keyed(&one).await;
    client.query("wait").await;
    a.until(|seen| seen.queries.len() == 1).await;
    let mut wrong_ones = Vec::new();
    for _ in 0..MAX_WRONG_KEYS {
        wrong_ones.push(cancel_from(&two, 2, &wrong(&key)).await);
    }
    for own in &mut wrong_ones {
        assert_eq!(own.rest().await, b"");
    }
    cancel(&two, &key).await;
    assert_eq!(error(&mut client).await, "57014");
    assert_eq!(answer(&mut client).await, "ZI");
}

#[tokio::test]
async fn keys_of_a_router_that_hangs_keep_no_cancel_from_the_others() {
    let ([(one, _one), (two, _two)], mut a) = two(Mode::Transaction).await;
    let (mut client, key) = keyed(&one).await;
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hanging.local_addr().unwrap();
    let other = number(&key).unwrap() ^ 1;
    let record =
        format!(r#"{{"http_url":"http://{address}","hold_timeout":1,"cancel_number":{other}}}"#);
    two.put("routers/hanging/1", &record).await;
    knows(&two, 3).await;
    client.query("wait").await;
    a.until(|seen| seen.queries.len() == 1).await;
    let of_other = [&cancel_key::process(other, 1).to_be_bytes()[..], &key[4..]].concat();
    let mut wrong_ones = Vec::new();
    for host in [2, 3, 4] {
        for _ in 0..32 {
            wrong_ones.push(cancel_from(&two, host, &of_other).await);
        }
    }
    let mut held = Vec::new();
    while held.len() < 64 {
        let accepted = tokio::time::timeout(DEADLINE, hanging.accept()).await;
        held.push(accepted.unwrap().unwrap());
    }
    cancel(&two, &key).await;
    assert_eq!(error(&mut client).await, "57014");
    assert_eq!(answer(&mut client).await, "ZI");
}

#[tokio::test]
async fn the_routers_of_the_fleet_are_shown_at_the_console() {
    let ([(one, at_one), _two], _a) = two_with(Mode::Transaction, WITH_OPERATOR).await;
    let mut console = console::console(&one, "app", "pgbouncer").await;
    let routers = console::until(&mut console, "show routers", |rows| rows.len() == 2).await;
    let own = console::one(&routers, "router", "one");
    assert_eq!(own["scope"], "demo");
    assert_eq!(format!("{}/{}", own["router"], own["instance"]), at_one.key);
    assert_eq!(own["http_url"], format!("http://{}", at_one.http));
    assert!(own.contains_key("epoch") && !own.contains_key("acknowledged"));
}

/// What the endpoint of a router answers to an offer.
async fn offer(to: &InFleet, body: &str) -> u16 {
    let url = format!("http://{}/cancel", to.http);
    let body = body.to_owned().into();
    let client = HttpClient::default();
    let asked = client.request(Method::POST, &url, body, DEADLINE);
    asked.await.unwrap().status
}

fn offered(key: &[u8]) -> String {
    let process = u32::from_be_bytes(key[..4].try_into().unwrap());
    let secret = STANDARD.encode(&key[4..]);
    serde_json::json!({"process": process, "secret": secret}).to_string()
}

#[tokio::test]
async fn an_offered_key_is_offered_to_nobody_else() {
    let ([(one, at_one), (_, at_two)], mut a) = two(Mode::Transaction).await;
    let (mut client, key) = keyed(&one).await;
    client.query("wait").await;
    a.until(|seen| seen.queries.len() == 1).await;
    assert_eq!(offer(&at_two, &offered(&key)).await, 404);
    assert_eq!(offer(&at_one, &offered(&wrong(&key))).await, 404);
    assert_eq!(offer(&at_one, &offered(&key)).await, 204);
    assert_eq!(error(&mut client).await, "57014");
    let seen = a.until(|seen| !seen.cancels.is_empty()).await;
    assert_eq!(seen.cancels.len(), 1);
    let long = "A".repeat(4096);
    let long = format!(r#"{{"process":1,"secret":"{long}"}}"#);
    assert_eq!(offer(&at_one, &long).await, 413);
    assert_eq!(offer(&at_one, r#"{"process":1,"secret":"!"}"#).await, 400);
}

fn own_record(stack: &Stack, own: &InFleet) -> Option<Arc<RouterRecord>> {
    stack.cluster.routers().get(own.key.as_str()).cloned()
}

#[tokio::test]
async fn a_router_tells_its_epoch_and_its_stage_at_once_and_takes_its_key_away_when_it_ends() {
    let ([(one, at_one), (two, _two)], a) = two(Mode::Transaction).await;
    let record = own_record(&two, &at_one).unwrap();
    assert_eq!(&*record.http_url, format!("http://{}", at_one.http));
    assert_eq!(record.hold_timeout, DEADLINE);
    let epoch = record.epoch.unwrap();
    // Another leadership of the same member: a higher epoch.
    one.delete("leader").await;
    one.lead("a", a.address).await;
    until(async || own_record(&two, &at_one).unwrap().epoch > Some(epoch)).await;
    let mut client = one.session().await;
    let epoch = own_record(&two, &at_one).unwrap().epoch.unwrap();
    let announced =
        format!(r#"{{"id":7,"epoch":"{epoch}","from":"a","to":"b","stage":"hold_transactions"}}"#);
    one.put("trunkline/switchover", &announced).await;
    let is_it = |said: Acknowledged| {
        (said.switchover, said.epoch, said.stage) == (7, epoch, HoldStage::Transactions)
            && said.revision == one.cluster.published().table.hold.unwrap().revision
    };
    let has_said = || {
        own_record(&two, &at_one)
            .unwrap()
            .acknowledged
            .is_some_and(is_it)
    };
    until(async || has_said()).await;
    client.query("begin").await;
    // During a planned change the counts are told soon, too.
    until(async || own_record(&two, &at_one).unwrap().held_clients == 1).await;
    one.delete("trunkline/switchover").await;
    until(async || own_record(&two, &at_one).unwrap().acknowledged.is_none()).await;
    at_one.leaving.leave().await;
    knows(&two, 1).await;
}

/// A store that lets everybody read and nobody write.
struct ReadOnly {
    store: Arc<dyn Dcs>,
    refused: AtomicUsize,
}

#[async_trait]
impl Dcs for ReadOnly {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.store.read(prefix).await
    }

    async fn commit(&self, _: &Txn) -> Result<Committed, DcsError> {
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(DcsError::Refused {
            endpoint: "memory".to_owned(),
            why: "permission denied".to_owned(),
        })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        self.store.keep_alive(lease).await
    }
}

/// A store that refuses the first write that is made after an order.
struct Stumbling {
    store: Arc<dyn Dcs>,
    stumbles: AtomicUsize,
}

#[async_trait]
impl Dcs for Stumbling {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.store.read(prefix).await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        if self.stumbles.swap(0, Ordering::SeqCst) > 0 {
            return Err(DcsError::Rejected("too many requests".to_owned()));
        }
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        self.store.keep_alive(lease).await
    }
}

#[tokio::test]
async fn a_record_that_could_not_be_written_once_is_written_soon() {
    let (stack, a) = led(Mode::Transaction).await;
    let (own, registration) = prepare(&stack, "one", Path::new(NOWHERE)).await;
    let dcs = Arc::new(Stumbling {
        store: stack.dcs.clone(),
        stumbles: AtomicUsize::new(0),
    });
    let lease = registration.begin(dcs.clone());
    let keys = Keys::new("service", &ClusterName::new("demo"));
    registration.register(dcs.clone(), &keys, stack.cluster.clone(), lease);
    knows(&stack, 1).await;
    let epoch = own_record(&stack, &own).unwrap().epoch;
    dcs.stumbles.store(1, Ordering::SeqCst);
    stack.delete("leader").await;
    stack.lead("a", a.address).await;
    until(async || own_record(&stack, &own).unwrap().epoch > epoch).await;
    assert_eq!(dcs.stumbles.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_router_that_may_not_write_routes_on_and_does_not_press_the_dcs() {
    let (stack, a) = led(Mode::Transaction).await;
    let (own, registration) = prepare(&stack, "one", Path::new(NOWHERE)).await;
    let dcs = Arc::new(ReadOnly {
        store: stack.dcs.clone(),
        refused: AtomicUsize::new(0),
    });
    let lease = registration.begin(dcs.clone());
    let keys = Keys::new("service", &ClusterName::new("demo"));
    registration.register(dcs.clone(), &keys, stack.cluster.clone(), lease);
    until(async || dcs.refused.load(Ordering::SeqCst) > 0).await;
    let mut client = stack.session().await;
    for _ in 0..3 {
        stack.delete("leader").await;
        stack.lead("a", a.address).await;
        assert_eq!(ask(&mut client, "select 1").await, "CZI");
    }
    assert_eq!(dcs.refused.load(Ordering::SeqCst), 1);
    own.leaving.leave().await;
    assert_eq!(dcs.refused.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn in_a_hand_over_a_cancel_finds_the_sessions_of_the_process_that_goes() {
    let folder = tempfile::tempdir().unwrap();
    // What a process left that is gone.
    let left = folder.path().join("cancel-2147483647-00000000.sock");
    drop(tokio::net::UnixListener::bind(&left).unwrap());
    let (old, mut a) = led(Mode::Session).await;
    let setup = Setup {
        mode: Mode::Session,
        pooling: Some(ONE.to_owned()),
        ..Setup::default()
    };
    let new = Stack::start_in(old.dcs.clone(), setup).await;
    let (old_one, of_old) = prepare(&old, "one", folder.path()).await;
    let (new_one, of_new) = prepare(&new, "one", folder.path()).await;
    let _leases = (of_old.begin(old.dcs.clone()), of_new.begin(new.dcs.clone()));
    let sockets = || std::fs::read_dir(folder.path()).unwrap().count();
    until(async || sockets() == 2 && !left.exists()).await;
    let (mut client, key) = keyed(&old).await;
    client.query("wait").await;
    a.until(|seen| seen.queries.len() == 1).await;
    cancel(&new, &wrong(&key)).await;
    cancel(&new, &key).await;
    assert_eq!(error(&mut client).await, "57014");
    assert_eq!(answer(&mut client).await, "ZI");
    // The endpoint is the new process's, too.
    client.query("hang").await;
    a.until(|seen| seen.queries.len() == 2).await;
    assert_eq!(offer(&new_one, &offered(&key)).await, 204);
    let seen = a.until(|seen| seen.cancels.len() == 2).await;
    assert_eq!(seen.startups.len(), 1);
    old_one.leaving.leave().await;
    until(async || sockets() == 1).await;
}
