//! Whole sessions of pooled listeners over loopback sockets: a fake PostgreSQL behind, the in-memory DCS beside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support {
    pub mod client;
    pub mod fake_postgres;
    pub mod stack;
}

use std::time::Duration;

use support::client::{Client, SSL_REQUEST};
use support::fake_postgres::FakePostgres;
use support::stack::{Setup, Stack, startup};
use trunkline_router::config::pooling::Mode;
use trunkline_router::listener::limits::CONNECT_TIME;
use trunkline_shared::service::clock;

/// Everybody is trusted, and there is one server.
const ONE: &str = "\"app\" \"secret\"\n\"other\" \"secret\"\n---\n\
                   auth: {type: trust, file: x}\npool: {default_pool_size: 1}\n";

async fn stack(mode: Mode, pooling: &str) -> Stack {
    Stack::start(Setup {
        mode,
        pooling: Some(pooling.to_owned()),
        ..Setup::default()
    })
    .await
}

/// A stack with a leader `a`.
async fn led(mode: Mode) -> (Stack, FakePostgres) {
    let a = FakePostgres::start(false).await;
    let stack = stack(mode, ONE).await;
    stack.lead("a", a.address).await;
    (stack, a)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Kinds of the messages up to ReadyForQuery, with its status.
async fn answer(client: &mut Client) -> String {
    let mut kinds = String::new();
    loop {
        let (kind, body) = client.message().await;
        kinds.push(char::from(kind));
        if kind == b'Z' {
            kinds.push(char::from(body[0]));
            return kinds;
        }
    }
}

/// SQLSTATE of an ErrorResponse, which must be next.
async fn error(client: &mut Client) -> String {
    let (kind, body) = client.message().await;
    assert_eq!(kind, b'E');
    let code = body.split(|b| *b == 0).find(|f| f.first() == Some(&b'C'));
    String::from_utf8_lossy(&code.unwrap()[1..]).into_owned()
}

async fn ask(client: &mut Client, sql: &str) -> String {
    client.query(sql).await;
    answer(client).await
}

#[tokio::test]
async fn two_clients_share_one_server() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    for _ in 0..3 {
        assert_eq!(ask(&mut one, "select 1").await, "CZI");
        assert_eq!(ask(&mut two, "select 2").await, "CZI");
    }
    let seen = a.until(|seen| seen.queries.len() == 6).await;
    assert_eq!(seen.startups.len(), 1);
    assert_eq!(stack.listening.clients(), 2);
}

#[tokio::test]
async fn a_transaction_keeps_its_server_and_the_next_client_waits() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    two.query("select 2").await;
    assert_eq!(ask(&mut one, "select 1").await, "CZT");
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    assert_eq!(answer(&mut two).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 4).await;
    assert_eq!(seen.queries, ["begin", "select 1", "commit", "select 2"]);
}

#[tokio::test]
async fn who_waits_too_long_for_a_server_hears_57014() {
    let a = FakePostgres::start(false).await;
    let impatient = format!(
        "{}\n",
        ONE.trim_end()
            .replace("size: 1", "size: 1, query_wait_timeout: 100ms")
    );
    let stack = stack(Mode::Transaction, &impatient).await;
    stack.lead("a", a.address).await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    two.query("select 2").await;
    let (code, message) = two.fatal().await;
    assert_eq!(code, "57014");
    assert!(message.contains("query_wait_timeout"), "{message}");
}

#[tokio::test]
async fn named_statements_follow_their_client_and_are_prepared_once_per_server() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    let parse = |name: &str| message(b'P', format!("{name}\0select 1\0\0\0").as_bytes());
    let bind = |name: &str| message(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes());
    let execute = message(b'E', b"\0\0\0\0\0");
    let sync = message(b'S', b"");
    one.send(&[parse("s"), sync.clone()].concat()).await;
    assert_eq!(answer(&mut one).await, "1ZI");
    // The same text under another name: the server has it already.
    two.send(&[parse("t"), bind("t"), execute.clone(), sync.clone()].concat())
        .await;
    assert_eq!(answer(&mut two).await, "12CZI");
    one.send(
        &[
            bind("s"),
            execute.clone(),
            message(b'C', b"Ss\0"),
            sync.clone(),
        ]
        .concat(),
    )
    .await;
    assert_eq!(answer(&mut one).await, "2C3ZI");
    let kinds = |seen: &[(char, Vec<u8>)]| seen.iter().map(|(kind, _)| *kind).collect::<String>();
    let seen = a.until(|seen| seen.messages.len() == 8).await;
    assert_eq!(kinds(&seen.messages), "PSBESBES");
    // A name that the client never gave is the server's to refuse, and no other client's statement.
    two.send(&[bind("trunkline_1"), sync.clone()].concat())
        .await;
    answer(&mut two).await;
    let seen = a.until(|seen| seen.messages.len() == 10).await;
    assert!(seen.messages[8].1.starts_with(b"\0trunkline_unknown\0"));
    // A new server is given the statement with the first Bind, and the client does not hear of that.
    ask(&mut one, "die-quietly").await;
    two.query("die").await;
    assert_eq!(error(&mut two).await, "08007");
    assert_eq!(answer(&mut two).await, "ZI");
    two.send(&[bind("t"), execute, sync].concat()).await;
    assert_eq!(answer(&mut two).await, "2CZI");
    let seen = a.until(|seen| seen.messages.len() == 14).await;
    assert_eq!(kinds(&seen.messages[10..]), "PBES");
}

#[tokio::test]
async fn an_unnamed_statement_is_found_again_and_never_anothers() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    let parse = message(b'P', b"\0select 1\0\0\0");
    let bind = message(b'B', b"\0\0\0\0\0\0\0\0");
    let sync = message(b'S', b"");
    one.send(&[parse, sync.clone()].concat()).await;
    assert_eq!(answer(&mut one).await, "1ZI");
    // It would find the other client's.
    two.send(&[bind.clone(), sync.clone()].concat()).await;
    answer(&mut two).await;
    one.send(&[bind, sync].concat()).await;
    assert_eq!(answer(&mut one).await, "2ZI");
    let seen = a.until(|seen| seen.messages.len() == 7).await;
    let kinds: String = seen.messages.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, "PSBSPBS");
    assert!(seen.messages[2].1.starts_with(b"\0trunkline_unnamed\0"));
}

#[tokio::test]
async fn settings_move_with_their_client() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let packet = |zone: &str| {
        let body = format!("user\0app\0database\0app\0TimeZone\0{zone}\0\0");
        let mut packet = u32::try_from(body.len() + 8)
            .unwrap()
            .to_be_bytes()
            .to_vec();
        packet.extend_from_slice(&[0, 3, 0, 0]);
        packet.extend_from_slice(body.as_bytes());
        packet
    };
    let mut one = stack.client().await;
    one.send(&packet("Asia/Tokyo")).await;
    one.ready().await;
    let mut two = stack.session().await;
    ask(&mut one, "select 1").await;
    ask(&mut two, "select 2").await;
    let seen = a.until(|seen| seen.queries.len() == 4).await;
    assert_eq!(
        seen.queries,
        [
            "SELECT pg_catalog.set_config(E'TimeZone', E'Asia/Tokyo', false)",
            "select 1",
            "SELECT pg_catalog.set_config(E'TimeZone', E'UTC', false)",
            "select 2"
        ]
    );
}

fn with_settings(settings: &str) -> Vec<u8> {
    let body = format!("user\0app\0database\0app\0{settings}\0\0");
    let length = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
    [&length[..], &[0, 3, 0, 0], body.as_bytes()].concat()
}

#[tokio::test]
async fn a_server_is_given_again_what_it_was_reset_from() {
    const GIVEN: &str = "SELECT pg_catalog.set_config(E'statement_timeout', E'5s', false)";
    const TAKEN: &str = "SELECT pg_catalog.set_config(E'statement_timeout', NULL, false)";
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.client().await;
    one.send(&with_settings("statement_timeout\x005s")).await;
    one.ready().await;
    ask(&mut one, "select 1").await;
    ask(&mut one, "reset all").await;
    ask(&mut one, "select 2").await;
    let mut two = stack.session().await;
    ask(&mut two, "select 3").await;
    ask(&mut two, "reset work_mem").await;
    two.send(&message(b'X', b"")).await;
    ask(&mut one, "select 4").await;
    let seen = a.until(|seen| seen.queries.len() == 11).await;
    assert_eq!(
        seen.queries,
        [
            GIVEN,
            "select 1",
            "reset all",
            GIVEN,
            "select 2",
            TAKEN,
            "select 3",
            "reset work_mem",
            "DISCARD ALL",
            GIVEN,
            "select 4"
        ]
    );
}

#[tokio::test]
async fn what_a_rolled_back_transaction_had_set_is_not_taken_for_set() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    ask(&mut one, "set timezone = 'Asia/Tokyo'").await;
    drop(one);
    // One that wants that zone is given it, and one that does not finds its own.
    let mut two = stack.client().await;
    two.send(&with_settings("TimeZone\0Asia/Tokyo")).await;
    two.ready().await;
    ask(&mut two, "select 2").await;
    let seen = a.until(|seen| seen.queries.len() == 5).await;
    assert_eq!(
        seen.queries[2..],
        [
            "ROLLBACK",
            "SELECT pg_catalog.set_config(E'TimeZone', E'Asia/Tokyo', false)",
            "select 2"
        ]
    );
}

#[tokio::test]
async fn no_client_closes_a_statement_of_another_by_its_name_on_the_server() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    one.send(&[message(b'C', b"Strunkline_1\0"), sync()].concat())
        .await;
    assert_eq!(answer(&mut one).await, "3ZI");
    let seen = a.until(|seen| seen.messages.len() == 2).await;
    assert_eq!(seen.messages[0].1, b"Strunkline_unknown\0");
}

#[tokio::test]
async fn a_path_that_is_not_reported_pins() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "set search_path = x").await;
    let mut two = stack.session().await;
    two.query("select 2").await;
    ask(&mut one, "select 1").await;
    one.send(&message(b'X', b"")).await;
    assert_eq!(answer(&mut two).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 4).await;
    assert_eq!(seen.queries[1..], ["select 1", "DISCARD ALL", "select 2"]);
}

#[tokio::test]
async fn what_cannot_be_shared_pins_its_client_and_is_reset_when_that_leaves() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    assert_eq!(ask(&mut one, "listen x").await, "CZI");
    two.query("select 2").await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    one.send(&message(b'X', b"")).await;
    assert_eq!(answer(&mut two).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 4).await;
    assert_eq!(
        seen.queries,
        ["listen x", "select 1", "DISCARD ALL", "select 2"]
    );
}

#[tokio::test]
async fn a_transaction_whose_client_leaves_is_rolled_back_and_its_server_kept() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    drop(one);
    let mut two = stack.session().await;
    assert_eq!(ask(&mut two, "select 2").await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 3).await;
    assert_eq!(seen.queries, ["begin", "ROLLBACK", "select 2"]);
    assert_eq!(seen.startups.len(), 1);
}

#[tokio::test]
async fn a_server_with_an_unanswered_request_is_nobody_elses() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    one.query("hang").await;
    a.until(|seen| seen.queries.len() == 1).await;
    drop(one);
    let mut two = stack.session().await;
    assert_eq!(ask(&mut two, "select 2").await, "CZI");
    let seen = a
        .until(|seen| seen.startups.len() == 2 && seen.ended == 1)
        .await;
    assert_eq!(seen.queries, ["hang", "select 2"]);
}

#[tokio::test]
async fn a_server_that_says_what_was_not_asked_is_nobodys() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    for (sql, count) in [("babble", 1), ("lie", 2)] {
        one.query(sql).await;
        let mut kinds = String::new();
        while !kinds.ends_with('Z') {
            kinds.push(char::from(one.message().await.0));
        }
        a.until(|seen| seen.ended == count).await;
        assert_eq!(ask(&mut one, "select 1").await, "CZI");
    }
    let seen = a.until(|seen| seen.queries.len() == 4).await;
    assert_eq!(seen.startups.len(), 3);
}

#[tokio::test]
async fn a_cancel_reaches_the_server_of_the_session_and_only_while_it_works() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.client().await;
    one.send(&startup("app")).await;
    let key = loop {
        let (kind, body) = one.message().await;
        if kind == b'K' {
            break body;
        }
    };
    one.ready().await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &key].concat();
    let cancel = async || {
        let mut canceller = stack.client().await;
        canceller.send(&request).await;
        assert_eq!(canceller.rest().await, b"");
    };
    cancel().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    one.query("hang").await;
    a.until(|seen| seen.queries.len() == 2).await;
    cancel().await;
    let seen = a.until(|seen| !seen.cancels.is_empty()).await;
    // With the server's own key, which the client never saw.
    assert_eq!(
        seen.cancels,
        [[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 9, 1, 2, 3, 4].to_vec()]
    );
}

/// A client that is logged in, and its cancel key.
async fn keyed(stack: &Stack) -> (Client, Vec<u8>) {
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    let key = loop {
        let (kind, body) = client.message().await;
        if kind == b'K' {
            break body;
        }
    };
    client.ready().await;
    (client, key)
}

/// Sends a cancel request and waits for its end.
async fn cancel(stack: &Stack, key: &[u8]) {
    let mut canceller = stack.client().await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], key].concat();
    canceller.send(&request).await;
    assert_eq!(canceller.rest().await, b"");
}

#[tokio::test]
async fn the_key_of_a_session_that_is_over_reaches_nobody() {
    let (stack, mut a) = led(Mode::Session).await;
    let (mut one, key) = keyed(&stack).await;
    one.send(&message(b'X', b"")).await;
    // The same server, whose own secret no client has seen.
    let (mut two, own) = keyed(&stack).await;
    assert!(key != own && key[4..] != [1, 2, 3, 4]);
    two.query("wait").await;
    a.until(|seen| seen.queries.iter().any(|q| q == "wait"))
        .await;
    cancel(&stack, &key).await;
    cancel(&stack, &[0, 0, 0, 9, 1, 2, 3, 4]).await;
    // Those before it would have come first.
    cancel(&stack, &own).await;
    assert_eq!(error(&mut two).await, "57014");
    assert_eq!(answer(&mut two).await, "ZI");
    let seen = a.until(|seen| !seen.cancels.is_empty()).await;
    assert_eq!((seen.startups.len(), seen.cancels.len()), (1, 1));
}

#[tokio::test]
async fn a_server_whose_cancel_did_not_end_is_nobody_elses() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let (mut one, key) = keyed(&stack).await;
    one.query("wait long").await;
    a.until(|seen| seen.queries.len() == 1).await;
    cancel(&stack, &key).await;
    assert_eq!(error(&mut one).await, "57014");
    assert_eq!(answer(&mut one).await, "ZI");
    let mut two = stack.session().await;
    assert_eq!(ask(&mut two, "select 2").await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 2).await;
    assert_eq!(seen.startups.len(), 2, "it was given to the next client");
}

#[tokio::test]
async fn what_a_client_asks_after_its_cancel_waits_for_the_end_of_it() {
    let mut a = FakePostgres::start(false).await;
    let two_servers = ONE.replace("size: 1", "size: 2");
    let stack = stack(Mode::Session, &two_servers).await;
    stack.lead("a", a.address).await;
    let mut other = stack.session().await;
    let (mut one, key) = keyed(&stack).await;
    one.query("wait long").await;
    a.until(|seen| seen.queries.len() == 1).await;
    let began = clock::now();
    cancel(&stack, &key).await;
    assert_eq!(error(&mut one).await, "57014");
    assert_eq!(answer(&mut one).await, "ZI");
    one.query("select next").await;
    assert_eq!(ask(&mut other, "now").await, "CZI");
    assert_eq!(answer(&mut one).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 3).await;
    // Later than this the router has given the cancel up, and the server with it.
    if clock::now().since(began) < CONNECT_TIME {
        assert_eq!(seen.queries, ["wait long", "now", "select next"]);
    }
}

#[tokio::test]
async fn a_request_that_waits_for_a_server_is_cancelled_here() {
    let (stack, a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    let mut two = stack.client().await;
    two.send(&startup("app")).await;
    let key = loop {
        let (kind, body) = two.message().await;
        if kind == b'K' {
            break body;
        }
    };
    two.ready().await;
    two.query("select 2").await;
    // Sent again until the request has come to wait.
    let mut canceller = stack.client().await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &key].concat();
    canceller.send(&request).await;
    let answered = async {
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                code = error(&mut two) => return code,
                _ = looks.tick() => {
                    let mut canceller = stack.client().await;
                    canceller.send(&request).await;
                }
            }
        }
    };
    assert_eq!(answered.await, "57014");
    assert_eq!(answer(&mut two).await, "ZI");
    ask(&mut one, "commit").await;
    assert_eq!(ask(&mut two, "select 3").await, "CZI");
    drop(a);
}

#[tokio::test]
async fn an_idle_client_does_not_notice_a_change_of_leader() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut b = FakePostgres::start(false).await;
    let mut one = stack.session().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 1).await;
    one.query("select 2").await;
    stack.member("b", b.address, "primary").await;
    assert_eq!(answer(&mut one).await, "CZI");
    b.until(|seen| seen.queries == ["select 2"]).await;
}

#[tokio::test]
async fn a_transaction_on_a_lost_leader_hears_40001_and_its_session_goes_on() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let b = FakePostgres::start(false).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 1).await;
    stack.member("b", b.address, "primary").await;
    one.query("select 1").await;
    assert_eq!(error(&mut one).await, "40001");
    assert_eq!(answer(&mut one).await, "ZE");
    one.query("select 2").await;
    assert_eq!(error(&mut one).await, "25P02");
    assert_eq!(answer(&mut one).await, "ZE");
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    assert_eq!(ask(&mut one, "select 3").await, "CZI");
}

#[tokio::test]
async fn an_unanswered_commit_hears_08007_and_its_session_goes_on() {
    for (statements, code, status) in [
        (&["hang"][..], "08007", "ZI"),
        (&["begin", "hang"], "40001", "ZE"),
        (&["begin", "commit; hang"], "08007", "ZI"),
        (&["stop"], "08007", "ZI"),
        (&["begin", "stop"], "40001", "ZE"),
    ] {
        let (stack, mut a) = led(Mode::Transaction).await;
        let mut one = stack.session().await;
        let (last, before) = statements.split_last().unwrap();
        for sql in before {
            ask(&mut one, sql).await;
        }
        one.query(last).await;
        a.until(|seen| seen.queries.iter().any(|q| q == last)).await;
        stack.delete("leader").await;
        assert_eq!(error(&mut one).await, code, "{statements:?}");
        assert_eq!(answer(&mut one).await, status, "{statements:?}");
    }
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(portal: &str, name: &str) -> Vec<u8> {
    message(b'B', format!("{portal}\0{name}\0\0\0\0\0\0\0").as_bytes())
}

fn execute(portal: &str) -> Vec<u8> {
    message(b'E', format!("{portal}\0\0\0\0\0").as_bytes())
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// What a client hears whose leader is lost after these batches, of which the last is not answered.
async fn told_after(mode: Mode, pooling: &str, batches: &[Vec<u8>]) -> String {
    let mut a = FakePostgres::start(false).await;
    let stack = stack(mode, pooling).await;
    stack.lead("a", a.address).await;
    let mut one = stack.session().await;
    let (last, before) = batches.split_last().unwrap();
    for batch in before {
        one.send(batch).await;
        answer(&mut one).await;
    }
    // Header and rest come apart.
    one.send(&last[..5]).await;
    let mut other = stack.client().await;
    other.send(&SSL_REQUEST).await;
    other.expect(b"N").await;
    one.send(&last[5..]).await;
    a.until(|seen| {
        let is_hanging = |query: &String| query.ends_with("hang");
        let is_execute = |(kind, _): &(char, Vec<u8>)| *kind == 'E';
        seen.queries.iter().any(is_hanging) || seen.messages.iter().any(is_execute)
    })
    .await;
    stack.delete("leader").await;
    loop {
        let (kind, body) = one.message().await;
        if kind == b'E' {
            let code = body.split(|b| *b == 0).find(|f| f.first() == Some(&b'C'));
            return String::from_utf8_lossy(&code.unwrap()[1..]).into_owned();
        }
    }
}

#[tokio::test]
async fn whatever_may_have_committed_is_told_08007() {
    let unprepared = ONE.replace("size: 1", "size: 1, max_prepared_statements: 0");
    let (commit, insert) = ("commit -- hang", "insert into t values (1) -- hang");
    let prepared = |name: &str, sql: &str| [parse(name, sql), sync()].concat();
    let run = |name: &str| [bind("", name), execute(""), sync()].concat();
    let (begin, listen) = (query("begin"), query("listen x"));
    let bound = [bind("p", "c"), sync()].concat();
    let ported = [execute("p"), sync()].concat();
    let unasked = [parse("", "begin"), sync(), query(insert)].concat();
    let long = query(&format!("commit /* {} */ -- hang", "x".repeat(1 << 20)));
    let (mode, other) = (Mode::Transaction, Mode::Session);
    let first = || begin.clone();
    let held = vec![first(), prepared("c", commit), bound, ported];
    let named = |sql: &str| vec![first(), prepared("c", sql), run("c")];
    let unnamed = |sql: &str| vec![first(), prepared("", sql), run("")];
    for (mode, pooling, batches, code) in [
        (other, ONE, vec![first(), query(commit)], "08007"),
        (other, ONE, vec![first(), query(insert)], "57P01"),
        (other, ONE, named(commit), "08007"),
        (other, ONE, named(insert), "57P01"),
        (other, ONE, vec![first(), long], "08007"),
        (mode, ONE, vec![listen, first(), query(commit)], "08007"),
        (mode, ONE, unnamed(commit), "08007"),
        (mode, ONE, unnamed(insert), "40001"),
        (mode, &unprepared, named(commit), "08007"),
        (mode, ONE, held, "08007"),
        (mode, ONE, vec![unasked], "08007"),
    ] {
        let told = told_after(mode, pooling, &batches).await;
        let said: Vec<_> = batches.iter().map(|b| String::from_utf8_lossy(b)).collect();
        let said: Vec<String> = said.iter().map(|s| s.chars().take(80).collect()).collect();
        assert_eq!(told, code, "{mode:?} {said:?}");
    }
}

/// Stops both cores until what it returns is dropped: what happens meanwhile they find all at once.
async fn hold_cores(stack: &Stack) -> Vec<std::sync::mpsc::Sender<()>> {
    let (held, mut threads) = tokio::sync::mpsc::unbounded_channel();
    let mut holds = Vec::new();
    // Each goes to the core with the fewest sessions, which are as many on both or one more.
    for _ in 0..4 {
        let (hold, until) = std::sync::mpsc::channel();
        let held = held.clone();
        stack._cores.spawn(async move {
            let _ = held.send(std::thread::current().id());
            let _ = until.recv();
        });
        holds.push(hold);
    }
    let stopped = async {
        let first = threads.recv().await;
        while threads.recv().await == first {}
    };
    let stopped = tokio::time::timeout(Duration::from_secs(20), stopped).await;
    stopped.unwrap();
    holds
}

#[tokio::test]
async fn a_request_that_was_begun_when_its_server_was_lost_is_read_to_its_end() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    ask(&mut one, "doom").await;
    let hold = hold_cores(&stack).await;
    let second = query("select 2, 'Q and what else looks like a header'");
    let (half, rest) = second.split_at(20);
    one.send(&[query("select 1"), half.to_vec()].concat()).await;
    let mut cancel = tokio::net::TcpStream::connect(a.address).await.unwrap();
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &[0; 8]].concat();
    tokio::io::AsyncWriteExt::write_all(&mut cancel, &request)
        .await
        .unwrap();
    a.until(|seen| seen.ended == 1).await;
    drop(hold);
    assert_eq!(error(&mut one).await, "40001");
    assert_eq!(answer(&mut one).await, "ZE");
    one.send(rest).await;
    assert_eq!(error(&mut one).await, "25P02");
    assert_eq!(answer(&mut one).await, "ZE");
    assert_eq!(ask(&mut one, "rollback").await, "CZI");
}

#[tokio::test]
async fn what_the_router_answers_itself_waits_for_nothing_after_a_flush() {
    let (stack, _a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    one.send(&[parse("s", "select 1"), sync()].concat()).await;
    assert_eq!(answer(&mut one).await, "1ZI");
    let flush = message(b'H', b"");
    one.send(&[bind("", "s"), parse("t", "select 1"), flush].concat())
        .await;
    assert_eq!(one.message().await.0, b'2');
    assert_eq!(one.message().await.0, b'1');
    one.send(&sync()).await;
    assert_eq!(answer(&mut one).await, "ZI");
    // More than may be outstanding, and no Sync that the server could answer.
    let many = parse("t", "select 1").repeat(70_000);
    one.send(&[many, sync()].concat()).await;
    assert_eq!(answer(&mut one).await.len(), 70_002);
}

#[tokio::test]
async fn a_client_in_a_transaction_hears_that_the_router_stops() {
    let (stack, _a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    stack.cluster.lanes.end_all(clock::now());
    let (code, message) = one.fatal().await;
    assert_eq!(code, "57P01");
    assert!(message.contains("router is stopping"), "{message}");
}

#[tokio::test]
async fn a_client_pinned_to_a_lost_leader_hears_what_session_mode_says() {
    for (mode, first) in [(Mode::Transaction, "listen x"), (Mode::Session, "select 1")] {
        let (stack, _a) = led(mode).await;
        let mut one = stack.session().await;
        ask(&mut one, first).await;
        stack.delete("leader").await;
        assert_eq!(one.fatal().await.0, "57P01");
        let (stack, mut a) = led(mode).await;
        let mut one = stack.session().await;
        ask(&mut one, first).await;
        one.query("hang").await;
        a.until(|seen| seen.queries.iter().any(|q| q == "hang"))
            .await;
        stack.delete("leader").await;
        assert_eq!(one.fatal().await.0, "08007");
    }
}

#[tokio::test]
async fn in_session_mode_the_client_gets_the_servers_process_and_a_clean_server() {
    let (stack, mut a) = led(Mode::Session).await;
    let (mut one, key) = keyed(&stack).await;
    assert_eq!(key[..4], [0, 0, 0, 9]);
    assert_eq!(ask(&mut one, "set work_mem = 1").await, "CZI");
    one.send(&message(b'X', b"")).await;
    let mut two = stack.session().await;
    assert_eq!(ask(&mut two, "select 2").await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 3).await;
    assert_eq!(
        seen.queries,
        ["set work_mem = 1", "DISCARD ALL", "select 2"]
    );
    assert_eq!(seen.startups.len(), 1);
}

#[tokio::test]
async fn in_statement_mode_a_transaction_block_is_refused() {
    let (stack, _a) = led(Mode::Statement).await;
    let mut one = stack.session().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    one.query("begin").await;
    assert_eq!(one.message().await.0, b'C');
    assert_eq!(one.fatal().await.0, "0A000");
}

#[tokio::test]
async fn unknown_users_and_databases_are_refused_as_postgresql_does() {
    let a = FakePostgres::start(false).await;
    let known = format!("{ONE}databases: {{app: {{}}}}\n");
    let stack = stack(Mode::Transaction, &known).await;
    stack.lead("a", a.address).await;
    let mut client = stack.client().await;
    client.send(&SSL_REQUEST).await;
    client.expect(b"N").await;
    client.send(&startup("nobody")).await;
    let (code, text) = client.fatal().await;
    assert_eq!(code, "28P01");
    assert_eq!(text, "password authentication failed for user \"nobody\"");
    let mut client = stack.client().await;
    client
        .send(b"\0\0\0\x20\0\x03\0\0user\0app\0database\0none\0\0")
        .await;
    let (code, text) = client.fatal().await;
    assert_eq!(code, "3D000");
    assert!(text.contains("\"none\""), "{text}");
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_only_its_sender() {
    let (stack, _a) = led(Mode::Transaction).await;
    let mut good = stack.session().await;
    for garbage in [
        &b"\0\0\0\0\0\0"[..],
        b"Q\0\0\0\x03select",
        b"Q\x7f\xff\xff\xffselect",
        b"x\0\0\0\x04",
        b"E\0\0\xff\xffx",
        b"B\0\0\0\x06xx",
        b"P\0\0\0\x06xx",
    ] {
        let mut bad = stack.session().await;
        bad.send(garbage).await;
        assert_eq!(bad.fatal().await.0, "08P01", "{garbage:?}");
        assert_eq!(ask(&mut good, "select 1").await, "CZI");
    }
}

#[tokio::test]
async fn a_slow_reader_slows_only_itself() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut slow = stack.session().await;
    slow.query("rows 20000").await;
    a.until(|seen| seen.queries.len() == 1).await;
    let mut rows = 0;
    while slow.message().await.0 == b'D' {
        rows += 1;
    }
    assert_eq!(rows, 20_000);
    assert_eq!(ask(&mut slow, "select 1").await, "CZI");
}
