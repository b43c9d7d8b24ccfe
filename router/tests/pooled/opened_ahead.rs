//! Servers of the candidate of a planned change, opened while the former leader still leads.

use trunkline_router::route::TargetKind;
use trunkline_router::topology::routing_table::HoldStage;
use trunkline_shared::cluster::topology::SwitchoverStage;

use super::planned_change::{THREE, announce, drained, held};
use super::support::stack::startup_in;
use super::*;

/// Its pools have two servers, one on each core, and a change to the standby `b` is announced.
async fn ahead(mode: Mode) -> (Stack, [Client; 2], FakePostgres, FakePostgres) {
    let mut a = FakePostgres::start(false).await;
    let stack = stack(mode, THREE).await;
    stack.lead("a", a.address).await;
    let mut b = FakePostgres::start_standby().await;
    stack.member("b", b.address, "replica").await;
    let mut clients = [stack.session().await, stack.session().await];
    for client in &mut clients {
        assert_eq!(ask(client, "begin").await, "CZT");
    }
    for client in &mut clients {
        assert_eq!(ask(client, "commit").await, "CZI");
    }
    a.until(|seen| seen.startups.len() == 2).await;
    announce(&stack, SwitchoverStage::HoldTransactions).await;
    b.until(|seen| seen.startups.len() == 2).await;
    (stack, clients, a, b)
}

#[tokio::test]
async fn servers_of_the_candidate_are_opened_ahead_and_serve_once_it_leads() {
    let (stack, [mut one, mut two], mut a, mut b) = ahead(Mode::Transaction).await;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    one.query("select 1").await;
    two.query("begin").await;
    held(&stack, 2).await;
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 2).await;
    assert_eq!(b.until(|_| true).await.queries, [""; 0]);
    b.promote();
    stack.member("b", b.address, "primary").await;
    assert_eq!(answer(&mut one).await, "CZI");
    assert_eq!(answer(&mut two).await, "CZT");
    let seen = b.until(|seen| seen.queries.len() == 4).await;
    // Each was asked whether it takes writes before anybody got it.
    let asked = |query: &&String| query.contains("pg_is_in_recovery");
    assert_eq!(seen.queries.iter().filter(asked).count(), 2);
    assert_eq!((seen.startups.len(), seen.ended), (2, 0));
}

#[tokio::test]
async fn a_session_on_a_server_opened_ahead_hears_what_that_reports_as_leader() {
    let (stack, _clients, mut a, mut b) = ahead(Mode::Session).await;
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 2).await;
    b.promote();
    stack.member("b", b.address, "primary").await;
    let mut late = stack.client().await;
    late.send(&startup("app")).await;
    let mut reports = Vec::new();
    loop {
        match late.message().await {
            (b'S', body) => reports.push(String::from_utf8(body).unwrap()),
            (b'Z', _) => break,
            _ => {}
        }
    }
    assert!(reports.contains(&"in_hot_standby\0off\0".to_owned()));
    assert_eq!(b.until(|_| true).await.startups.len(), 2);
}

#[tokio::test]
async fn a_server_opened_ahead_that_is_in_recovery_still_is_given_to_nobody() {
    let (stack, [mut one, _two], mut a, mut b) = ahead(Mode::Transaction).await;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    one.query("select 1").await;
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 2).await;
    // Its record says more than is true.
    stack.member("b", b.address, "primary").await;
    b.until(|seen| seen.ended >= 2).await;
    b.promote();
    assert_eq!(answer(&mut one).await, "CZI");
    let seen = b.until(|_| true).await;
    let of_clients = seen.queries.iter().filter(|it| !it.contains("recovery"));
    assert_eq!(of_clients.collect::<Vec<_>>(), ["select 1"]);
}

#[tokio::test]
async fn what_was_opened_ahead_is_closed_when_the_change_is_called_off_or_goes_elsewhere() {
    for goes_elsewhere in [false, true] {
        let (stack, [mut one, _two], _a, mut b) = ahead(Mode::Transaction).await;
        let c = FakePostgres::start(false).await;
        match goes_elsewhere {
            true => stack.lead("c", c.address).await,
            false => announce(&stack, SwitchoverStage::Resume).await,
        }
        let seen = b.until(|seen| seen.ended == 2).await;
        assert_eq!(seen.queries, [""; 0]);
        assert_eq!(ask(&mut one, "select 1").await, "CZI");
        // The next change opens new ones.
        if !goes_elsewhere {
            announce(&stack, SwitchoverStage::HoldTransactions).await;
            b.until(|seen| seen.startups.len() == 4).await;
        }
    }
}

/// A router of one core, before a leader `a` with as many servers as clients, and beside it a standby.
async fn of_one_core(pooling: &str, clients: usize) -> (Stack, Vec<Client>, FakePostgres) {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        mode: Mode::Transaction,
        pooling: Some(pooling.to_owned()),
        cores: 1,
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    let mut sessions = Vec::new();
    for _ in 0..clients {
        let mut client = stack.session().await;
        assert_eq!(ask(&mut client, "begin").await, "CZT");
        sessions.push(client);
    }
    for client in &mut sessions {
        assert_eq!(ask(client, "commit").await, "CZI");
    }
    (stack, sessions, a)
}

#[tokio::test]
async fn a_server_opened_ahead_gives_way_to_whoever_needs_its_room() {
    for limit in ["max_user_connections", "max_db_connections"] {
        let tight = THREE.replace("size: 3", &format!("size: 5, {limit}: 3"));
        let (stack, mut clients, mut a) = of_one_core(&tight, 1).await;
        let mut b = FakePostgres::start_standby().await;
        stack.member("b", b.address, "replica").await;
        announce(&stack, SwitchoverStage::HoldTransactions).await;
        b.until(|seen| seen.startups.len() == 1).await;
        let mut one = clients.pop().unwrap();
        let mut two = stack.session().await;
        one.query("hang").await;
        two.query("hang").await;
        let hang = |query: &&String| *query == "hang";
        a.until(|seen| seen.queries.iter().filter(hang).count() == 2)
            .await;
        let mut three = stack.session().await;
        assert_eq!(ask(&mut three, "select 3").await, "CZI", "{limit}");
        b.until(|seen| seen.ended == 1).await;
    }
}

#[tokio::test]
async fn where_two_limits_are_reached_a_server_opened_ahead_gives_way_for_each() {
    let tight = "size: 5, max_user_connections: 4, max_db_connections: 4";
    let tight = THREE.replace("size: 3", tight);
    let tight = tight.replacen("---", "\"other\" \"secret\"\n---", 1);
    let (stack, _, mut a) = of_one_core(&tight, 0).await;
    let log_in = async |user, database| {
        let mut client = stack.client().await;
        client.send(&startup_in(user, database)).await;
        client.ready().await;
        client
    };
    // None of what is opened ahead for these two counts in both limits of the others.
    let _used = [log_in("app", "web").await, log_in("other", "app").await];
    let mut b = FakePostgres::start_standby().await;
    stack.member("b", b.address, "replica").await;
    announce(&stack, SwitchoverStage::HoldTransactions).await;
    b.until(|seen| seen.startups.len() == 2).await;
    let mut one = log_in("app", "app").await;
    let mut two = log_in("app", "app").await;
    let mut three = log_in("app", "app").await;
    one.query("hang").await;
    two.query("hang").await;
    a.until(|seen| seen.queries == ["hang", "hang"]).await;
    assert_eq!(ask(&mut three, "select 3").await, "CZI");
    b.until(|seen| seen.ended == 2).await;
}

#[tokio::test]
async fn a_log_in_ahead_that_hangs_ends_with_the_change() {
    let patient = THREE.replace("size: 3", "size: 3, server_connect_timeout: 1h");
    let (stack, _clients, _a) = of_one_core(&patient, 1).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    stack.member("b", address, "replica").await;
    announce(&stack, SwitchoverStage::HoldTransactions).await;
    let mut log_in = log_in_at(&silent).await;
    announce(&stack, SwitchoverStage::Resume).await;
    let mut rest = Vec::new();
    let end = tokio::time::timeout(DEADLINE, log_in.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "it goes on after the change was called off");
}

#[tokio::test]
async fn a_candidate_without_a_free_slot_is_given_back_what_was_taken_ahead() {
    let (stack, mut clients, _a) = of_one_core(THREE, 2).await;
    let mut b = FakePostgres::start_standby().await;
    b.has_slots(1);
    stack.member("b", b.address, "replica").await;
    announce(&stack, SwitchoverStage::HoldTransactions).await;
    b.until(|seen| seen.startups.len() == 2 && seen.ended == 1)
        .await;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    for client in &mut clients {
        client.query("select 1").await;
    }
    held(&stack, 2).await;
    b.has_slots(2);
    b.promote();
    stack.put("leader", "b").await;
    stack.member("b", b.address, "primary").await;
    for client in &mut clients {
        assert_eq!(answer(client).await, "CZI");
    }
}

#[tokio::test]
async fn a_reader_that_finds_no_slot_on_the_candidate_gets_one_that_was_taken_ahead() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        target: TargetKind::Replicas { falls_back: true },
        mode: Mode::Transaction,
        pooling: Some(THREE.to_owned()),
        cores: 1,
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    let mut one = stack.session().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    a.until(|seen| seen.queries == ["select 1"]).await;
    let mut b = FakePostgres::start_standby().await;
    b.has_slots(1);
    stack.member("b", b.address, "replica").await;
    announce(&stack, SwitchoverStage::HoldTransactions).await;
    b.until(|seen| seen.startups.len() == 1).await;
    one.query("select 2").await;
    b.until(|seen| seen.ended == 1).await;
    b.has_slots(1);
    assert_eq!(answer(&mut one).await, "CZI");
    assert_eq!(b.until(|_| true).await.queries, ["select 2"]);
}
