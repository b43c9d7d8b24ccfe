//! Whole sessions of pooled listeners over loopback sockets: a fake PostgreSQL behind, the in-memory DCS beside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pooled/bound.rs"]
mod bound;
#[path = "pooled/cancels.rs"]
mod cancels;
#[path = "pooled/clusters.rs"]
mod clusters;
#[path = "pooled/console.rs"]
mod console;
#[path = "pooled/encrypted.rs"]
mod encrypted;
#[path = "pooled/fleet.rs"]
mod fleet;
#[path = "pooled/lost_leader.rs"]
mod lost_leader;
#[path = "pooled/opened_ahead.rs"]
mod opened_ahead;
#[path = "pooled/planned_change.rs"]
mod planned_change;
#[path = "pooled/replication.rs"]
mod replication;
#[path = "pooled/slow_readers.rs"]
mod slow_readers;
#[path = "pooled/strangers.rs"]
mod strangers;
#[path = "pooled/timeouts.rs"]
mod timeouts;
mod support {
    #[path = "../support/certificates.rs"]
    pub mod certificates;
    #[path = "../support/client.rs"]
    pub mod client;
    #[path = "../support/fake_postgres.rs"]
    pub mod fake_postgres;
    #[path = "../support/in_fleet.rs"]
    pub mod in_fleet;
    #[path = "../support/messages.rs"]
    pub mod messages;
    #[path = "../support/stack.rs"]
    pub mod stack;
}

use std::time::Duration;

use support::client::{Client, SSL_REQUEST};
use support::fake_postgres::FakePostgres;
use support::messages::{answer, message};
use support::stack::{DEADLINE, Setup, Stack, startup};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
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
    // Without a server nobody is told of it.
    let close = message(b'C', b"Strunkline_1\0");
    one.send(&[close.clone(), sync()].concat()).await;
    assert_eq!(answer(&mut one).await, "3ZI");
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    one.send(&[close, sync()].concat()).await;
    assert_eq!(answer(&mut one).await, "3ZT");
    let seen = a.until(|seen| seen.messages.len() == 2).await;
    assert_eq!(seen.messages[0].1, b"Strunkline_unknown\0");
}

#[tokio::test]
async fn a_path_that_is_not_reported_and_cannot_be_asked_for_pins() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "set search_path = x").await;
    let mut two = stack.session().await;
    two.query("select 2").await;
    ask(&mut one, "select 1").await;
    one.send(&message(b'X', b"")).await;
    assert_eq!(answer(&mut two).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 5).await;
    let asked = ["SHOW search_path", "select 1", "DISCARD ALL", "select 2"];
    assert_eq!(seen.queries[1..], asked);
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

/// A connection that somebody begins to log in by.
async fn log_in_at(silent: &TcpListener) -> TcpStream {
    let log_in = async {
        loop {
            let (mut socket, _) = silent.accept().await.unwrap();
            // Others only look whether somebody listens.
            if socket.read_exact(&mut [0; 8]).await.is_ok() {
                return socket;
            }
        }
    };
    tokio::time::timeout(DEADLINE, log_in).await.unwrap()
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
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
    assert_eq!(client.message().await.0, b'R', "it is who it says");
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
async fn who_breaks_the_protocol_hears_it_of_postgresql_and_is_gone() {
    let (stack, _a) = led(Mode::Transaction).await;
    let mut good = stack.session().await;
    let mut bad = stack.session().await;
    bad.query("breach").await;
    assert_eq!(bad.message().await.0, b'E');
    assert_eq!(bad.fatal().await.0, "08P01");
    assert_eq!(ask(&mut good, "select 1").await, "CZI");
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

#[tokio::test]
async fn an_idle_server_gives_way_to_another_user_whose_clients_are_on_another_core() {
    let a = FakePostgres::start(false).await;
    let one_of_all = ONE.replace("size: 1", "size: 1, max_db_connections: 1");
    let stack = stack(Mode::Transaction, &one_of_all).await;
    stack.lead("a", a.address).await;
    // The listener gives each to the core with the fewest sessions.
    let mut one = stack.session().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    let mut two = stack.client().await;
    two.send(&startup("other")).await;
    two.ready().await;
    for _ in 0..3 {
        assert_eq!(ask(&mut two, "select 2").await, "CZI");
        assert_eq!(ask(&mut one, "select 1").await, "CZI");
    }
}
