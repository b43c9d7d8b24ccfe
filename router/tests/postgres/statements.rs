//! What the router remembers of prepared statements is what PostgreSQL has, whatever happens to a batch.

use super::support::client::Client;
use super::support::messages::{answer, message};
use super::*;

/// A router that trusts its clients, with these settings of the pool.
pub(super) async fn trusting(server: &Postgres, pool: &str) -> Stack {
    trusting_in(Mode::Transaction, server, pool).await
}

/// The same in any mode.
pub(super) async fn trusting_in(mode: Mode, server: &Postgres, pool: &str) -> Stack {
    let pooling =
        format!("\"app\" \"secret\"\n---\nauth: {{type: trust, file: x}}\npool: {{{pool}}}\n");
    let stack = Stack::start(Setup {
        mode,
        pooling: Some(pooling),
        ..Setup::default()
    })
    .await;
    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    stack.lead("a", address).await;
    stack
}

pub(super) fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// Bind to the unnamed portal, and Execute.
pub(super) fn run(name: &str) -> Vec<u8> {
    let bind = message(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes());
    [bind, message(b'E', b"\0\0\0\0\0")].concat()
}

pub(super) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub(super) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// Kinds of all answers to this.
pub(super) async fn ask(client: &mut Client, messages: &[Vec<u8>]) -> String {
    client.send(&messages.concat()).await;
    answer(client).await
}

#[test]
fn a_batch_that_fails_takes_back_what_gave_way() {
    as_postgres(
        "statements::a_batch_that_fails_takes_back_what_gave_way",
        async || {
            let server = Postgres::start();
            let one_at_a_time = "default_pool_size: 1, max_prepared_statements: 1";
            let stack = trusting(&server, one_at_a_time).await;
            let mut one = stack.session().await;
            assert_eq!(
                ask(&mut one, &[parse("s1", "select 1"), sync()]).await,
                "1ZI"
            );
            // PostgreSQL skips the Close of the first statement and the Parse of the second.
            let failing = [run("nobody"), parse("s2", "select 2"), sync()];
            assert_eq!(ask(&mut one, &failing).await, "EZI");
            for (name, told) in [("s1", "2DCZI"), ("s2", "EZI"), ("s1", "2DCZI")] {
                assert_eq!(ask(&mut one, &[run(name), sync()]).await, told, "{name}");
            }
        },
    );
}

#[test]
fn a_statement_is_taken_away_by_an_unnamed_one() {
    as_postgres(
        "statements::a_statement_is_taken_away_by_an_unnamed_one",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let (mut one, mut other) = (stack.session().await, stack.session().await);
            // As libpq before 17 lets its drivers do it.
            let away = |name: &str| {
                let describe = message(b'D', b"P\0");
                let [bind, execute] = [
                    message(b'B', b"\0\0\0\0\0\0\0\0"),
                    message(b'E', b"\0\0\0\0\0"),
                ];
                let parse = parse("", &format!("DEALLOCATE {name}"));
                [parse, bind, describe, execute].concat()
            };
            for client in [&mut one, &mut other] {
                let prepared = [parse("s", "select 1"), run("s"), sync()];
                assert_eq!(ask(client, &prepared).await, "12DCZI");
            }
            assert_eq!(ask(&mut one, &[away("s"), sync()]).await, "12nCZI");
            for (client, told) in [(&mut one, "EZI"), (&mut other, "2DCZI")] {
                assert_eq!(ask(client, &[run("s"), sync()]).await, told);
            }
            // All in one pipeline, and the name again.
            let again = [
                parse("s", "select 2"),
                run("s"),
                away("s"),
                parse("s", "select 3, 3"),
                run("s"),
                sync(),
            ];
            assert_eq!(ask(&mut one, &again).await, "12DC12nC12DCZI");
            // A batch that fails, or a transaction that has, takes nothing away.
            let failing = [run("nobody"), away("s"), sync()];
            assert_eq!(ask(&mut one, &failing).await, "EZI");
            assert_eq!(ask(&mut one, &[query("begin")]).await, "CZT");
            assert_eq!(ask(&mut one, &[query("select 1/0")]).await, "EZE");
            assert_eq!(ask(&mut one, &[away("s"), sync()]).await, "EZE");
            assert_eq!(ask(&mut one, &[query("rollback")]).await, "CZI");
            assert_eq!(ask(&mut one, &[run("s"), sync()]).await, "2DCZI");
            // Prepared and never executed, it takes nothing away either; executed twice, it fails as PostgreSQL's own.
            let only = [parse("", "DEALLOCATE s"), sync()];
            assert_eq!(ask(&mut one, &only).await, "1ZI");
            assert_eq!(ask(&mut one, &[run("s"), sync()]).await, "2DCZI");
            let twice = [away("s"), run(""), sync()];
            assert_eq!(ask(&mut one, &twice).await, "12nC2EZI");
            for unknown in ["s", "trunkline_1"] {
                assert_eq!(ask(&mut one, &[away(unknown), sync()]).await, "12nEZI");
            }
            assert_eq!(ask(&mut other, &[run("s"), sync()]).await, "2DCZI");
        },
    );
}

#[test]
fn a_name_means_what_it_meant_where_its_change_is_skipped() {
    as_postgres(
        "statements::a_name_means_what_it_meant_where_its_change_is_skipped",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut one = stack.session().await;
            assert_eq!(
                ask(&mut one, &[parse("s", "select 1"), sync()]).await,
                "1ZI"
            );
            let close = message(b'C', b"Ss\0");
            let skipped = [
                close,
                parse("s", "select 1/0"),
                parse("t", "select 2"),
                sync(),
            ];
            let failing = [run("nobody"), skipped.concat()];
            assert_eq!(ask(&mut one, &failing).await, "EZI");
            assert_eq!(ask(&mut one, &[run("s"), sync()]).await, "2DCZI");
            assert_eq!(ask(&mut one, &[run("t"), sync()]).await, "EZI");
        },
    );
}

#[test]
fn a_batch_is_not_translated_by_what_an_earlier_one_may_not_have_done() {
    as_postgres(
        "statements::a_batch_is_not_translated_by_what_an_earlier_one_may_not_have_done",
        async || {
            let server = Postgres::start();
            let one_at_a_time = "default_pool_size: 1, max_prepared_statements: 1";
            let stack = trusting(&server, one_at_a_time).await;
            let mut one = stack.session().await;
            let mut other = stack.session().await;
            let close = || message(b'C', b"Ss\0");
            for (name, sql) in [("s", "select 1"), ("t", "select 2, 2")] {
                assert_eq!(ask(&mut one, &[parse(name, sql), sync()]).await, "1ZI");
            }
            // The unnamed statement that the server has is the other one's.
            let unnamed = [parse("", "select 3, 3, 3"), run(""), sync()];
            assert_eq!(ask(&mut other, &unnamed).await, "12DCZI");
            for (failing, then, told) in [
                (
                    [close(), parse("s", "select 1, 1")].concat(),
                    run("s"),
                    "2DCZI",
                ),
                (close(), run("s"), "2DCZI"),
                (run("t"), run("s"), "2DCZI"),
                (run("s"), run("s"), "2DCZI"),
                (parse("", "select 4"), run(""), "EZI"),
            ] {
                let batches = [run("nobody"), failing, sync(), then, sync()];
                assert_eq!(ask(&mut one, &batches).await, "EZI");
                assert_eq!(answer(&mut one).await, told);
            }
            // What is pipelined behind the Sync of a failed batch is this client's, and nobody else's.
            one.send(&[parse("", "selekt"), message(b'H', b"")].concat())
                .await;
            assert_eq!(one.message().await.0, b'E');
            let slow = query("select pg_sleep(0.2), 'mine'");
            one.send(&[sync(), slow].concat()).await;
            assert_eq!(answer(&mut one).await, "ZI");
            other.send(&query("select 'theirs'")).await;
            assert_eq!(answer(&mut one).await, "TDCZI");
            assert_eq!(other.message().await.0, b'T');
            assert!(other.message().await.1.ends_with(b"theirs"));
        },
    );
}

#[test]
fn statements_may_be_dropped_and_data_copied_in_one_query() {
    as_postgres(
        "statements::statements_may_be_dropped_and_data_copied_in_one_query",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut one = stack.session().await;
            assert_eq!(
                ask(&mut one, &[query("create table t (x int)")]).await,
                "CZI"
            );
            one.send(&query("deallocate all; copy t from stdin")).await;
            assert_eq!(one.message().await.0, b'C');
            assert_eq!(one.message().await.0, b'G');
            let data = [message(b'd', b"1\n"), message(b'c', b"")];
            assert_eq!(ask(&mut one, &data).await, "CZI");
        },
    );
}

#[test]
fn what_a_session_resets_is_as_it_was_when_it_began() {
    as_postgres(
        "statements::what_a_session_resets_is_as_it_was_when_it_began",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut one = stack.client().await;
            let asked = b"\0\x03\0\0user\0app\0database\0app\0TimeZone\0Asia/Tokyo\0\0";
            let length = u32::try_from(asked.len() + 4).unwrap().to_be_bytes();
            one.send(&[&length[..], asked].concat()).await;
            one.ready().await;
            let mut other = stack.session().await;
            for reset in ["discard all", "reset all"] {
                assert_eq!(
                    ask(&mut one, &[query("set timezone = 'UTC'")]).await,
                    "CSZI"
                );
                assert_eq!(ask(&mut other, &[query("select 1")]).await, "TDCZI");
                // The client hears where it is, whatever the server was set to.
                one.send(&query(reset)).await;
                assert_eq!(one.message().await.0, b'C');
                let (kind, told) = one.message().await;
                assert_eq!((kind, &told[..]), (b'S', &b"TimeZone\0Asia/Tokyo\0"[..]));
                assert_eq!(answer(&mut one).await, "ZI");
                one.send(&query("show timezone")).await;
                assert_eq!(one.message().await.0, b'T');
                let (_, row) = one.message().await;
                assert!(row.ends_with(b"Asia/Tokyo"), "{reset}: {row:?}");
                assert_eq!(answer(&mut one).await, "CZI");
            }
        },
    );
}

#[test]
fn what_follows_a_deallocate_all_in_its_pipeline_is_there() {
    as_postgres(
        "statements::what_follows_a_deallocate_all_in_its_pipeline_is_there",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut one = stack.session().await;
            let first = [parse("s1", "select 1"), sync()];
            assert_eq!(ask(&mut one, &first).await, "1ZI");
            let again = [parse("s2", "select 1"), run("s2"), sync()].concat();
            for dropping in ["deallocate all", "discard all"] {
                let drop = query(dropping);
                assert_eq!(ask(&mut one, &[drop, again.clone()]).await, "CZI");
                assert_eq!(answer(&mut one).await, "12DCZI", "{dropping}");
                let unnamed = [parse("", dropping), run(""), again.clone()];
                assert_eq!(ask(&mut one, &unnamed).await, "12C12DCZI", "{dropping}");
            }
            // It is the client's own from here on, and what went before is gone.
            assert_eq!(ask(&mut one, &[run("s2"), sync()]).await, "2DCZI");
            assert_eq!(ask(&mut one, &[run("s1"), sync()]).await, "EZI");
        },
    );
}

#[test]
fn a_statement_that_is_not_kept_for_its_client_is_no_other_clients() {
    as_postgres(
        "statements::a_statement_that_is_not_kept_for_its_client_is_no_other_clients",
        async || {
            let server = Postgres::start();
            let none = "default_pool_size: 1, max_prepared_statements: 0, query_wait_timeout: 0";
            let stack = trusting(&server, none).await;
            let mut one = stack.session().await;
            let mut two = stack.session().await;
            assert_eq!(
                ask(&mut one, &[parse("s", "select 1"), sync()]).await,
                "1ZI"
            );
            two.send(&[run("s"), sync()].concat()).await;
            // It keeps its only server, as long as it is there.
            assert_eq!(ask(&mut one, &[run("s"), sync()]).await, "2DCZI");
            one.send(&message(b'X', b"")).await;
            assert_eq!(answer(&mut two).await, "EZI");
        },
    );
}

#[test]
fn many_long_statements_are_prepared_again_piece_by_piece() {
    as_postgres(
        "statements::many_long_statements_are_prepared_again_piece_by_piece",
        async || {
            let server = Postgres::start();
            let one_at_a_time = "default_pool_size: 1, max_prepared_statements: 1";
            let stack = trusting(&server, one_at_a_time).await;
            let mut one = stack.session().await;
            let long = |n: usize| format!("select {n} /* {} */", "x".repeat(100_000));
            for n in 0..4 {
                let parsing = [parse(&n.to_string(), &long(n)), sync()];
                assert_eq!(ask(&mut one, &parsing).await, "1ZI");
            }
            // A kilobyte of the client's is ten megabytes to the server.
            let mut bound: Vec<Vec<u8>> = (0..100).map(|n| run(&(n % 4).to_string())).collect();
            bound.push(sync());
            assert_eq!(ask(&mut one, &bound).await, "2DC".repeat(100) + "ZI");
        },
    );
}

#[test]
fn a_statement_of_the_protocol_is_deallocated_in_sql() {
    as_postgres(
        "statements::a_statement_of_the_protocol_is_deallocated_in_sql",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut one = stack.session().await;
            let mut other = stack.session().await;
            for name in ["s", "S 1"] {
                for client in [&mut one, &mut other] {
                    let parsing = [parse(name, "select 1"), sync()];
                    assert_eq!(ask(client, &parsing).await, "1ZI");
                }
            }
            // In its place among others, and it is gone for what follows.
            let pipeline = [query("select 1"), query("deallocate s"), run("s"), sync()];
            assert_eq!(ask(&mut one, &pipeline).await, "TDCZI");
            assert_eq!(one.message().await, (b'C', b"DEALLOCATE\0".to_vec()));
            assert_eq!(answer(&mut one).await, "ZI");
            assert_eq!(answer(&mut one).await, "EZI");
            assert_eq!(ask(&mut one, &[query("deallocate s")]).await, "EZI");
            // Of another client, or by the name it has on the server, nothing is taken away.
            assert_eq!(
                ask(&mut one, &[query("deallocate trunkline_1")]).await,
                "EZI"
            );
            assert_eq!(ask(&mut other, &[run("s"), sync()]).await, "2DCZI");
            // A transaction that failed refuses it, and so does a batch.
            let quoted = || query("DEALLOCATE PREPARE \"S 1\";");
            let failed = [query("begin"), query("select 1/0"), quoted()];
            assert_eq!(ask(&mut one, &failed).await, "CZT");
            assert_eq!(answer(&mut one).await, "EZE");
            assert_eq!(answer(&mut one).await, "EZE");
            assert_eq!(ask(&mut one, &[query("rollback")]).await, "CZI");
            let skipped = [run("nobody"), quoted(), sync()];
            assert_eq!(ask(&mut one, &skipped).await, "EZI");
            let still = [
                query("begin"),
                run("S 1"),
                sync(),
                quoted(),
                query("commit"),
            ];
            assert_eq!(ask(&mut one, &still).await, "CZT");
            assert_eq!(answer(&mut one).await, "2DCZT");
            assert_eq!(answer(&mut one).await, "CZT");
            assert_eq!(answer(&mut one).await, "CZI");
            assert_eq!(ask(&mut one, &[run("S 1"), sync()]).await, "EZI");
            assert_eq!(ask(&mut other, &[run("S 1"), sync()]).await, "2DCZI");
        },
    );
}

#[test]
fn a_name_that_is_taken_is_refused_and_means_what_it_meant() {
    as_postgres(
        "statements::a_name_that_is_taken_is_refused_and_means_what_it_meant",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut one = stack.session().await;
            let mut other = stack.session().await;
            for session in [&mut one, &mut other] {
                let told = ask(session, &[parse("s", "select 1, 1"), sync()]).await;
                assert_eq!(told, "1ZI");
            }
            // The same text and another one, alone and in front of what is skipped with it.
            for (sql, code) in [
                ("select 1, 1", "42P05"),
                ("select 2", "42P05"),
                ("selekt", "42601"),
            ] {
                for session in [&mut one, &mut other] {
                    let batch = [parse("s", sql), run("s"), parse("t", "select 3"), sync()];
                    session.send(&batch.concat()).await;
                    let (kind, body) = session.message().await;
                    let said = String::from_utf8_lossy(&body).into_owned();
                    assert!(
                        kind == b'E' && said.contains(&format!("\0C{code}\0")),
                        "{said}"
                    );
                    assert_eq!(answer(session).await, "ZI");
                    // Nothing was replaced, nothing was given.
                    session.send(&[run("s"), sync()].concat()).await;
                    assert_eq!(session.message().await.0, b'2');
                    assert_eq!(session.message().await.1[..2], [0, 2]);
                    assert_eq!(answer(session).await, "CZI");
                    assert_eq!(ask(session, &[run("t"), sync()]).await, "EZI");
                }
            }
            // In a transaction it fails the transaction; a name that was closed is free in the same batch.
            assert_eq!(ask(&mut one, &[query("begin")]).await, "CZT");
            assert_eq!(
                ask(&mut one, &[parse("s", "select 2"), sync()]).await,
                "EZE"
            );
            assert_eq!(
                ask(&mut one, &[parse("s", "select 2"), sync()]).await,
                "EZE"
            );
            assert_eq!(ask(&mut one, &[query("rollback")]).await, "CZI");
            let closed = [
                message(b'C', b"Ss\0"),
                parse("s", "select 2"),
                run("s"),
                sync(),
            ];
            assert_eq!(ask(&mut one, &closed).await, "312DCZI");
            // It was no mistake of the router's: the server is the same one.
            let servers = "select count(*) from pg_stat_activity where usename = 'app'";
            assert_eq!(server.ask(servers), "1");
        },
    );
}
