//! Servers of the candidate of a planned change, opened while the former leader still leads.

use trunkline_router::topology::routing_table::HoldStage;
use trunkline_shared::cluster::topology::SwitchoverStage;

use super::planned_change::{THREE, announce, drained, held};
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
