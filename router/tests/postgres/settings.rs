//! A setting that PostgreSQL does not report moves with the session that has set it, and with no other.

use super::statements::{ask, parse, query, run, sync, trusting};
use super::support::client::Client;
use super::support::messages::{answer, message};
use super::*;

/// What a session's setting is.
async fn shown(client: &mut Client, name: &str) -> String {
    client.send(&query(&format!("show {name}"))).await;
    assert_eq!(client.message().await.0, b'T');
    let (kind, row) = client.message().await;
    assert_eq!(kind, b'D');
    assert_eq!(answer(client).await, "CZI");
    String::from_utf8(row[6..].to_vec()).unwrap()
}

#[test]
fn a_setting_of_a_driver_moves_with_its_session() {
    as_postgres(
        "settings::a_setting_of_a_driver_moves_with_its_session",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1, query_wait_timeout: 5").await;
            let mut one = stack.session().await;
            let mut other = stack.session().await;
            // As a driver sets it, and in a pipeline after something else.
            let set = [parse("", "SET extra_float_digits = 3"), run(""), sync()];
            assert_eq!(ask(&mut one, &set).await, "12CZI");
            let pipeline = [query("select 1"), query("set lock_timeout to '7s'")];
            assert_eq!(ask(&mut one, &pipeline).await, "TDCZI");
            assert_eq!(answer(&mut one).await, "CZI");
            assert_eq!(shown(&mut other, "extra_float_digits").await, "1");
            assert_eq!(shown(&mut other, "lock_timeout").await, "0");
            assert_eq!(shown(&mut one, "extra_float_digits").await, "3");
            assert_eq!(shown(&mut one, "lock_timeout").await, "7s");
            // What is rolled back was never set.
            let undone = [
                query("begin"),
                query("set lock_timeout = '9s'"),
                query("rollback"),
            ];
            assert_eq!(ask(&mut one, &undone).await, "CZT");
            assert_eq!(answer(&mut one).await, "CZT");
            assert_eq!(answer(&mut one).await, "CZI");
            assert_eq!(shown(&mut other, "lock_timeout").await, "0");
            assert_eq!(shown(&mut one, "lock_timeout").await, "7s");
            // A statement that sets is bound on a server that was another client's meanwhile.
            for name in ["", "s"] {
                let parsing = [parse(name, "set statement_timeout = '8s'"), sync()];
                assert_eq!(ask(&mut other, &parsing).await, "1ZI");
                assert_eq!(shown(&mut one, "statement_timeout").await, "0");
                assert_eq!(ask(&mut other, &[run(name), sync()]).await, "2CZI");
                assert_eq!(shown(&mut one, "statement_timeout").await, "0", "{name}");
                assert_eq!(shown(&mut other, "statement_timeout").await, "8s", "{name}");
                assert_eq!(ask(&mut other, &[query("reset all")]).await, "CZI");
                assert_eq!(shown(&mut other, "statement_timeout").await, "0", "{name}");
            }
            assert_eq!(shown(&mut one, "extra_float_digits").await, "3");
        },
    );
}

#[test]
fn who_leaves_in_the_middle_leaves_no_setting_behind() {
    as_postgres(
        "settings::who_leaves_in_the_middle_leaves_no_setting_behind",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1, query_wait_timeout: 5").await;
            let mut one = stack.session().await;
            let mut other = stack.session().await;
            let setting = [query("begin"), query("set lock_timeout = '9s'")];
            assert_eq!(ask(&mut one, &setting).await, "CZT");
            assert_eq!(answer(&mut one).await, "CZT");
            one.send(&[query("commit"), message(b'X', b"")].concat())
                .await;
            assert_eq!(shown(&mut other, "lock_timeout").await, "0");
            // In one transaction with a reset nobody knows which came first: the session keeps its server.
            let both = [
                query("begin"),
                query("set lock_timeout = '9s'"),
                query("reset all"),
                query("commit"),
            ];
            assert_eq!(ask(&mut other, &both).await, "CZT");
            assert_eq!(answer(&mut other).await, "CZT");
            assert_eq!(answer(&mut other).await, "CZT");
            assert_eq!(answer(&mut other).await, "CZI");
            assert_eq!(shown(&mut other, "lock_timeout").await, "0");
        },
    );
}
