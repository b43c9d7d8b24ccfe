//! A commit whose wait for synchronous standbys is cancelled is committed on its member alone, and PostgreSQL answers with
//! success and a warning: its client hears that the outcome is unknown.

use trunkline_shared::service::clock;

use super::statements::{parse, query, run, sync, trusting, trusting_in};
use super::support::client::Client;
use super::*;

use std::process::Stdio;

const INSERT: &str = "insert into t values (1)";

/// Kinds of the answers up to ReadyForQuery, an error with its code.
async fn heard(client: &mut Client) -> String {
    let mut said = String::new();
    loop {
        let (kind, body) = client.message().await;
        said.push(char::from(kind));
        match kind {
            b'E' => {
                let code = body.split(|b| *b == 0).find(|f| f.first() == Some(&b'C'));
                said.push_str(&String::from_utf8_lossy(&code.unwrap()[1..]));
            }
            b'Z' => {
                said.push(char::from(body[0]));
                return said;
            }
            _ => {}
        }
    }
}

/// Once somebody waits for standbys, this is done to his backend.
async fn when_it_waits(server: &Postgres, what: &str) {
    let sql = format!("select {what}(pid) from pg_stat_activity where wait_event = 'SyncRep'");
    let began = clock::now();
    while server.ask(&sql) != "t" {
        assert!(
            clock::now().since(began).as_secs() < 20,
            "nobody waits for standbys"
        );
        tokio::task::yield_now().await;
    }
}

fn name_standbys(server: &Postgres, names: &str) {
    server.ask(&format!(
        "alter system set synchronous_standby_names = '{names}'"
    ));
    server.ask("select pg_reload_conf()");
}

/// From now on commits wait for a standby that never comes. The checkpointer tells them, some time after the reload:
/// one that waits shows that it has.
async fn let_commits_wait(server: &Postgres) {
    name_standbys(server, "nobody");
    let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    loop {
        let mut insert = server.psql(server.port, "postgres");
        insert.args([
            "-d",
            "app",
            "-qc",
            "create table probe (); drop table probe",
        ]);
        let mut insert = insert.stderr(Stdio::null()).spawn().unwrap();
        while insert.try_wait().unwrap().is_none() {
            if server.ask(waits) == "1" {
                when_it_waits(server, "pg_cancel_backend").await;
                insert.wait().unwrap();
                return;
            }
        }
    }
}

async fn is_told(client: &mut Client, server: &Postgres, messages: &[Vec<u8>], told: &str) {
    client.send(&messages.concat()).await;
    when_it_waits(server, "pg_cancel_backend").await;
    assert_eq!(heard(client).await, told);
}

#[test]
fn a_commit_whose_wait_is_cancelled_is_no_success() {
    as_postgres(
        "cancelled_waits::a_commit_whose_wait_is_cancelled_is_no_success",
        async || {
            let server = Postgres::start();
            for mode in [Mode::Transaction, Mode::Session] {
                let stack = trusting_in(mode, &server, "default_pool_size: 1").await;
                let mut client = stack.session().await;
                client
                    .send(&query("create table if not exists t (x int)"))
                    .await;
                heard(&mut client).await;
                let_commits_wait(&server).await;
                in_every_way(&mut client, &server).await;
                name_standbys(&server, "");
                client.send(&query("select count(*) from t")).await;
                assert_eq!(heard(&mut client).await, "TDCZI", "it goes on as before");
                client.send(&query(INSERT)).await;
                assert_eq!(heard(&mut client).await, "CZI");
                let mut count = server.psql(server.port, "postgres");
                count.args(["-d", "app", "-Atqc", "select count(*) from t; truncate t"]);
                let rows = done(&mut count).stdout;
                assert_eq!(rows, b"6\n", "each was committed, and once");
            }
        },
    );
}

async fn in_every_way(client: &mut Client, server: &Postgres) {
    is_told(client, server, &[query(INSERT)], "E08007ZI").await;
    let block = format!("begin; {INSERT}; commit; select 1");
    is_told(client, server, &[query(&block)], "CCE08007ZI").await;
    client.send(&query("begin")).await;
    assert_eq!(heard(client).await, "CZT");
    client.send(&query(INSERT)).await;
    assert_eq!(heard(client).await, "CZT");
    is_told(client, server, &[query("commit")], "E08007ZI").await;
    // By parts PostgreSQL commits at the Sync, when it has said that it is done.
    let whole = [parse("", INSERT), run(""), sync()];
    is_told(client, server, &whole, "12CE08007ZI").await;
    // What follows a COMMIT in its batch was executed, and nobody is told of it.
    client.send(&query(&format!("begin; {INSERT}"))).await;
    assert_eq!(heard(client).await, "CCZT");
    let batch = [
        parse("", "commit"),
        run(""),
        parse("", "select 1"),
        run(""),
        sync(),
    ];
    is_told(client, server, &batch, "12E08007ZI").await;
}

#[test]
fn what_is_sent_behind_it_before_the_sync_is_not_executed() {
    as_postgres(
        "cancelled_waits::what_is_sent_behind_it_before_the_sync_is_not_executed",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut client = stack.session().await;
            client.send(&query("create table t (x int)")).await;
            heard(&mut client).await;
            let_commits_wait(&server).await;
            client.send(&query(&format!("begin; {INSERT}"))).await;
            assert_eq!(heard(&mut client).await, "CCZT");
            let flush = b"H\0\0\0\x04".to_vec();
            let open = [parse("", "commit"), run(""), flush].concat();
            client.send(&open).await;
            when_it_waits(&server, "pg_cancel_backend").await;
            let mut told = String::new();
            while !told.ends_with('E') {
                told.push(char::from(client.message().await.0));
            }
            assert_eq!(told, "12E");
            let rest = [parse("", INSERT), run(""), sync()].concat();
            client.send(&rest).await;
            assert_eq!(heard(&mut client).await, "ZI");
            let mut count = server.psql(server.port, "postgres");
            count.args(["-d", "app", "-Atqc", "select count(*) from t"]);
            assert_eq!(done(&mut count).stdout, b"1\n");
        },
    );
}

#[test]
fn a_commit_whose_connection_is_ended_while_it_waits_is_no_success() {
    as_postgres(
        "cancelled_waits::a_commit_whose_connection_is_ended_while_it_waits_is_no_success",
        async || {
            let server = Postgres::start();
            let stack = trusting(&server, "default_pool_size: 1").await;
            let mut client = stack.session().await;
            client.send(&query("create table t (x int)")).await;
            heard(&mut client).await;
            let_commits_wait(&server).await;
            client.send(&query(INSERT)).await;
            when_it_waits(&server, "pg_terminate_backend").await;
            assert_eq!(heard(&mut client).await, "NE08007ZI");
        },
    );
}
