//! A planned change of leader: what its stages hold, what they wait for, and how it goes on.

use std::sync::atomic::Ordering;

use trunkline_router::drain::Progress;
use trunkline_router::topology::routing_table::HoldStage;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::router::Acknowledged;
use trunkline_shared::cluster::topology::{SwitchoverRecord, SwitchoverStage};
use trunkline_shared::dcs::records::switchover_to_json;

use super::support::in_fleet::until;
use super::*;

/// Three servers, and nobody waits for one of them.
const THREE: &str = "\"app\" \"secret\"\n---\n\
                     auth: {type: trust, file: x}\npool: {default_pool_size: 3}\n";

/// The change that is announced.
const CHANGE: u64 = 7;

async fn three() -> (Stack, FakePostgres) {
    let a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, THREE).await;
    stack.lead("a", a.address).await;
    (stack, a)
}

async fn announce(stack: &Stack, stage: SwitchoverStage) {
    let last = stack.cluster.published().table.last.clone().unwrap();
    let record = SwitchoverRecord {
        id: CHANGE,
        epoch: last.epoch,
        from: last.member,
        to: MemberName::new("b"),
        stage,
        parts: Default::default(),
    };
    stack
        .put("trunkline/switchover", &switchover_to_json(&record))
        .await;
}

/// Waits until the router's own word is like this.
async fn told(stack: &Stack, is_so: impl Fn(&Progress) -> bool) -> Progress {
    let mut progress = stack.cluster.progress.subscribe();
    let waited = tokio::time::timeout(DEADLINE, progress.wait_for(is_so)).await;
    *waited.unwrap().unwrap()
}

/// Announces a stage and waits until it is acknowledged.
async fn drained(stack: &Stack, stage: SwitchoverStage, held: HoldStage) {
    announce(stack, stage).await;
    told(stack, |it| has_acknowledged(it, held)).await;
}

fn has_acknowledged(progress: &Progress, held: HoldStage) -> bool {
    let is_it = |said: Acknowledged| (said.switchover, said.stage) == (CHANGE, held);
    progress.acknowledged.is_some_and(is_it)
}

#[tokio::test]
async fn a_transaction_that_runs_is_finished_before_the_stage_is_acknowledged() {
    let (stack, mut a) = three().await;
    let mut one = stack.session().await;
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    announce(&stack, SwitchoverStage::HoldTransactions).await;
    let seen = told(&stack, |it| it.running > 0).await;
    assert_eq!((seen.acknowledged, seen.running), (None, 1));
    // Single statements go on meanwhile, and what opens a block waits.
    let mut two = stack.session().await;
    assert_eq!(ask(&mut two, "select 2").await, "CZI");
    two.query("begin").await;
    told(&stack, |it| it.held == 1).await;
    assert_eq!(ask(&mut one, "select 1").await, "CZT");
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    let is_done = |it: &Progress| has_acknowledged(it, HoldStage::Transactions);
    assert_eq!(told(&stack, is_done).await.running, 0);
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    one.query("select 3").await;
    told(&stack, |it| it.acknowledged.is_some()).await;
    // Called off: everybody goes on, on the same leader.
    announce(&stack, SwitchoverStage::Resume).await;
    assert_eq!(answer(&mut two).await, "CZT");
    assert_eq!(answer(&mut one).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 6).await;
    assert_eq!(
        seen.queries[..4],
        ["begin", "select 2", "select 1", "commit"]
    );
    told(&stack, |it| *it == Progress::default()).await;
}

#[tokio::test]
async fn in_the_second_stage_a_running_statement_is_waited_for() {
    let (stack, mut a) = three().await;
    let mut one = stack.session().await;
    one.query("hang").await;
    a.until(|seen| seen.queries == ["hang"]).await;
    announce(&stack, SwitchoverStage::HoldAll).await;
    let seen = told(&stack, |it| it.running > 0).await;
    assert_eq!(seen.acknowledged, None);
    drop(one);
    told(&stack, |it| has_acknowledged(it, HoldStage::All)).await;
}

#[tokio::test]
async fn who_is_held_goes_on_with_the_next_leader_and_notices_nothing() {
    let (stack, mut a) = three().await;
    let mut b = FakePostgres::start(false).await;
    let (mut one, mut two) = (stack.session().await, stack.session().await);
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    drained(
        &stack,
        SwitchoverStage::HoldTransactions,
        HoldStage::Transactions,
    )
    .await;
    one.query("begin").await;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    two.query("select 2").await;
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 1).await;
    stack.member("b", b.address, "primary").await;
    assert_eq!(answer(&mut one).await, "CZT");
    assert_eq!(answer(&mut two).await, "CZI");
    let mut seen = b
        .until(|seen| seen.queries.len() == 2)
        .await
        .queries
        .clone();
    seen.sort();
    assert_eq!(seen, ["begin", "select 2"]);
    assert_eq!(a.until(|_| true).await.queries, ["select 1"]);
}

#[tokio::test]
async fn a_client_that_keeps_its_server_is_not_waited_for() {
    let (stack, _a) = three().await;
    let mut pinned = stack.session().await;
    assert_eq!(ask(&mut pinned, "listen x").await, "CZI");
    assert_eq!(ask(&mut pinned, "begin").await, "CZT");
    drained(
        &stack,
        SwitchoverStage::HoldTransactions,
        HoldStage::Transactions,
    )
    .await;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    // It has its server: nothing of it is held either.
    assert_eq!(ask(&mut pinned, "select 1").await, "CZT");
}

#[tokio::test]
async fn who_waits_for_a_server_when_a_change_begins_is_held_in_its_place() {
    let a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, ONE).await;
    stack.lead("a", a.address).await;
    let (mut one, mut two) = (stack.session().await, stack.session().await);
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    two.query("begin").await;
    announce(&stack, SwitchoverStage::HoldTransactions).await;
    told(&stack, |it| it.running == 1).await;
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    let done = told(&stack, |it| it.acknowledged.is_some()).await;
    assert!(has_acknowledged(&done, HoldStage::Transactions));
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    stack.delete("trunkline/switchover").await;
    assert_eq!(answer(&mut two).await, "CZT");
}

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
    until(async || stack.cluster.held.load(Ordering::SeqCst) == 2).await;
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

#[tokio::test]
async fn a_client_that_always_has_the_next_transaction_at_hand_is_held_between_two() {
    let (stack, _a) = three().await;
    let mut one = stack.session().await;
    let transaction = [message(b'Q', b"begin\0"), message(b'Q', b"commit\0")].concat();
    let (counted, mut count) = tokio::sync::watch::channel(0);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let talking = tokio::spawn(async move {
        let mut open = 3;
        one.send(&transaction.repeat(open)).await;
        while open > 0 {
            assert_eq!(answer(&mut one).await, "CZT");
            assert_eq!(answer(&mut one).await, "CZI");
            counted.send_modify(|count| *count += 1);
            // There is never a moment without something outstanding.
            let is_over = *stopped.borrow();
            match is_over {
                true => open -= 1,
                false => one.send(&transaction).await,
            }
        }
    });
    count.wait_for(|count| *count > 5).await.unwrap();
    let (transactions, all) = (HoldStage::Transactions, HoldStage::All);
    drained(&stack, SwitchoverStage::HoldTransactions, transactions).await;
    drained(&stack, SwitchoverStage::HoldAll, all).await;
    stop.send(true).unwrap();
    announce(&stack, SwitchoverStage::Resume).await;
    talking.await.unwrap();
}

#[tokio::test]
async fn a_stage_is_acknowledged_of_the_record_that_stands() {
    let (stack, _a) = three().await;
    let revision = |it: Progress| it.acknowledged.unwrap().revision;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    let first = revision(*stack.cluster.progress.borrow());
    // Called off and announced again, under the same number, before anybody has looked in between.
    announce(&stack, SwitchoverStage::Resume).await;
    announce(&stack, SwitchoverStage::HoldAll).await;
    let is_new = |it: &Progress| it.acknowledged.is_some_and(|said| said.revision > first);
    let second = revision(told(&stack, is_new).await);
    let shown = stack.cluster.published().table.hold.unwrap();
    assert_eq!(second, shown.revision);
}

#[tokio::test]
async fn every_core_has_had_a_turn_before_a_stage_is_acknowledged() {
    let (stack, _a) = three().await;
    for busy in stack._cores.handles().iter() {
        // What runs on a core may have looked before the hold was there, and take a server in the same turn.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let turn = busy.spawn(async move {
            begin.send(()).unwrap();
            ended.recv().unwrap();
        });
        begun.await.unwrap();
        announce(&stack, SwitchoverStage::HoldAll).await;
        stack.until(|p| p.table.hold.is_some()).await;
        let mut progress = stack.cluster.progress.subscribe();
        let early = progress.wait_for(|it| it.acknowledged.is_some());
        let early = tokio::time::timeout(Duration::from_millis(200), early).await;
        assert!(early.is_err(), "acknowledged, and a core was not asked");
        end.send(()).unwrap();
        turn.await.unwrap();
        told(&stack, |it| has_acknowledged(it, HoldStage::All)).await;
        announce(&stack, SwitchoverStage::Resume).await;
        told(&stack, |it| *it == Progress::default()).await;
    }
}
