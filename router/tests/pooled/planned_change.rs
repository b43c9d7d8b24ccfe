//! A planned change of leader: what its stages hold, what they wait for, and how it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trunkline_router::drain::Progress;
use trunkline_router::route::TargetKind;
use trunkline_router::topology::routing_table::HoldStage;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::router::Acknowledged;
use trunkline_shared::cluster::topology::{SwitchoverRecord, SwitchoverStage};
use trunkline_shared::dcs::records::switchover_to_json;

use super::support::in_fleet::until;
use super::*;

/// Three servers, and nobody waits for one of them.
pub(super) const THREE: &str = "\"app\" \"secret\"\n---\n\
                     auth: {type: trust, file: x}\npool: {default_pool_size: 3}\n";

/// The change that is announced.
const CHANGE: u64 = 7;

async fn three() -> (Stack, FakePostgres) {
    let a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, THREE).await;
    stack.lead("a", a.address).await;
    (stack, a)
}

pub(super) async fn announce(stack: &Stack, stage: SwitchoverStage) {
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
pub(super) async fn drained(stack: &Stack, stage: SwitchoverStage, held: HoldStage) {
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

/// A driver hears no error of a statement that it closes: what follows would find the session ended without a word.
#[tokio::test]
async fn who_is_held_may_close_what_it_prepared() {
    let (stack, a) = three().await;
    let mut one = stack.session().await;
    let close = |name: &str| message(b'C', format!("S{name}\0").as_bytes());
    one.send(&[parse("s", "select 1"), sync()].concat()).await;
    assert_eq!(answer(&mut one).await, "1ZI");
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    one.send(&[close("s"), close("unknown"), sync(), close("s")].concat())
        .await;
    assert_eq!(answer(&mut one).await, "33ZI");
    // The name is free, though the rest is asked of a server.
    one.send(&[parse("s", "select 2"), bind("", "s"), sync()].concat())
        .await;
    announce(&stack, SwitchoverStage::Resume).await;
    assert_eq!(answer(&mut one).await, "312ZI");
    drop(a);
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

/// So many clients are held.
pub(super) async fn held(stack: &Stack, count: usize) {
    until(async || stack.cluster.held.load(Ordering::SeqCst) == count).await;
}

#[tokio::test]
async fn a_pipeline_is_held_where_its_first_block_begins() {
    let (stack, mut a) = three().await;
    let mut one = stack.session().await;
    let transactions = HoldStage::Transactions;
    drained(&stack, SwitchoverStage::HoldTransactions, transactions).await;
    let pipeline = ["select 1", "select 2", "begin", "select 3"].map(query);
    one.send(&pipeline.concat()).await;
    assert_eq!(answer(&mut one).await, "CZI");
    assert_eq!(answer(&mut one).await, "CZI");
    held(&stack, 1).await;
    assert_eq!(a.until(|_| true).await.queries, ["select 1", "select 2"]);
    announce(&stack, SwitchoverStage::Resume).await;
    assert_eq!(answer(&mut one).await, "CZT");
    assert_eq!(answer(&mut one).await, "CZT");
}

#[tokio::test]
async fn read_sessions_go_on_as_if_there_were_no_change() {
    let a = FakePostgres::start(false).await;
    let mut b = FakePostgres::start_standby().await;
    let stack = Stack::start(Setup {
        target: TargetKind::Replicas { falls_back: false },
        mode: Mode::Transaction,
        pooling: Some(THREE.to_owned()),
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    stack.member("b", b.address, "replica").await;
    stack.until(|p| p.table.has_reader()).await;
    let mut one = stack.session().await;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    // The second request does not wait for the answer to the first one.
    one.send(&["hang", "select 2"].map(query).concat()).await;
    let seen = b.until(|seen| seen.queries.len() == 4).await;
    assert_eq!(seen.queries[2..], ["hang", "select 2"]);
}

#[tokio::test]
async fn a_request_that_is_held_can_be_cancelled() {
    let (stack, mut a) = three().await;
    let (mut one, key) = keyed(&stack).await;
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    one.query("select 1").await;
    held(&stack, 1).await;
    let mut canceller = stack.client().await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &key].concat();
    canceller.send(&request).await;
    assert_eq!(canceller.rest().await, b"");
    assert_eq!(error(&mut one).await, "57014");
    assert_eq!(answer(&mut one).await, "ZI");
    announce(&stack, SwitchoverStage::Resume).await;
    assert_eq!(ask(&mut one, "select 2").await, "CZI");
    assert_eq!(a.until(|_| true).await.queries, ["select 2"]);
}

#[tokio::test]
async fn held_clients_come_to_the_next_leader_no_more_at_once_than_the_pool_has_servers() {
    const CLIENTS: usize = 12;
    const SERVERS: usize = 3;
    let (stack, _a) = three().await;
    let mut b = FakePostgres::start(false).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(stack.session().await);
    }
    drained(&stack, SwitchoverStage::HoldAll, HoldStage::All).await;
    for client in &mut clients {
        client.query("begin").await;
    }
    held(&stack, CLIENTS).await;
    stack.put("leader", "b").await;
    stack.member("b", b.address, "primary").await;
    let running = Arc::new(AtomicUsize::new(0));
    let transactions = clients.into_iter().map(|mut client| {
        let running = running.clone();
        tokio::spawn(async move {
            assert_eq!(answer(&mut client).await, "CZT");
            let at_once = running.fetch_add(1, Ordering::SeqCst) + 1;
            assert_eq!(ask(&mut client, "select 1").await, "CZT");
            running.fetch_sub(1, Ordering::SeqCst);
            assert_eq!(ask(&mut client, "commit").await, "CZI");
            at_once
        })
    });
    let mut most = 0;
    for transaction in transactions.collect::<Vec<_>>() {
        most = most.max(transaction.await.unwrap());
    }
    assert!(most <= SERVERS, "{most} at once");
    let seen = b.until(|_| true).await;
    assert!(seen.startups.len() <= SERVERS, "{}", seen.startups.len());
}
