//! Replication connections through pooled listeners, by PostgreSQL's own programs and by the protocol.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use trunkline_shared::service::clock;

use super::support::client::Client;
use super::support::messages::{answer, message};
use super::support::stack::DEADLINE;
use super::*;

/// A server that decodes, where `app` may replicate.
fn decoding() -> Postgres {
    let server = Postgres::start();
    server.ask("alter system set wal_level = logical");
    server.ask("alter role app replication");
    done(&mut server.control("stop"));
    let log = server.folder.path().join("log");
    done(server.control("start").arg("-l").arg(log));
    server.ask("create table if not exists t (x int)");
    server
}

/// One of PostgreSQL's programs, at the router.
fn program(server: &Postgres, name: &str, port: u16) -> Command {
    let mut command = command(server.bin.join(name));
    command.args(["-h", "127.0.0.1", "-U", "app", "-p", &port.to_string()]);
    command
}

async fn succeeds(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = timeout(DEADLINE, run(command)).await.expect(&shown);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The end of what was written, after one more row.
fn insert(server: &Postgres, row: u32) -> String {
    server.ask(&format!("insert into t values ({row})"));
    server.ask("select pg_current_wal_lsn()")
}

async fn until_no_sender_is_left(server: &Postgres) {
    let mut looks = interval(Duration::from_millis(20));
    let senders = "select count(*) from pg_stat_activity where backend_type = 'walsender'";
    let wait = async {
        while server.ask(senders) != "0" {
            looks.tick().await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap();
}

#[test]
fn the_programs_of_postgresql_replicate_through_every_mode() {
    as_postgres(
        "replication::the_programs_of_postgresql_replicate_through_every_mode",
        async || {
            let server = decoding();
            for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
                let stack = server.router(mode).await;
                let port = stack.address.port();
                identifies(&server, port).await;
                copies_all(&server, port).await;
                receives(&server, port).await;
                decodes(&server, port).await;
                until_no_sender_is_left(&server).await;
                let client = connect(&stack, "afterwards").await;
                assert_eq!(text(&client, "select 'on'").await, "on");
            }
        },
    );
}

/// psql, with a setting of its own, which no SQL can give it.
async fn identifies(server: &Postgres, port: u16) {
    for (kind, database) in [("database", "app"), ("true", "")] {
        let mut psql = server.psql(port, "app");
        psql.env("PGOPTIONS", "-c work_mem=5MB");
        psql.arg(format!("dbname=app replication={kind}"));
        psql.args(["-Atq", "-c", "IDENTIFY_SYSTEM", "-c", "SHOW work_mem"]);
        let told = succeeds(psql).await;
        let (system, work_mem) = told.trim().split_once('\n').unwrap();
        assert!(system.ends_with(&format!("|{database}")), "{told}");
        assert_eq!(work_mem, "5MB");
    }
}

/// It streams while it copies: two connections.
async fn copies_all(server: &Postgres, port: u16) {
    let folder = tempfile::tempdir().unwrap();
    let mut backup = program(server, "pg_basebackup", port);
    backup.args(["-c", "fast", "-X", "stream", "--no-sync", "-D"]);
    backup.arg(folder.path());
    succeeds(backup).await;
    assert!(folder.path().join("PG_VERSION").exists());
}

async fn receives(server: &Postgres, port: u16) {
    let folder = tempfile::tempdir().unwrap();
    let end = insert(server, 1);
    let mut receive = program(server, "pg_receivewal", port);
    receive.args(["--no-loop", "--no-sync", "-E", &end, "-D"]);
    receive.arg(folder.path());
    let receiving = tokio::spawn(succeeds(receive));
    // It sees the end when there is something behind it.
    let mut looks = interval(Duration::from_millis(20));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !receiving.is_finished() {
        insert(server, 2);
        looks.tick().await;
    }
    receiving.await.unwrap();
    assert!(fs::read_dir(folder.path()).unwrap().count() > 0);
}

async fn decodes(server: &Postgres, port: u16) {
    let recvlogical = || {
        let mut command = program(server, "pg_recvlogical", port);
        command.args(["-d", "postgres", "-S", "by_the_router"]);
        command
    };
    let mut create = recvlogical();
    create.args(["--create-slot", "-P", "test_decoding"]);
    succeeds(create).await;
    let end = insert(server, 7);
    let mut start = recvlogical();
    start.args(["--start", "--no-loop", "-f", "-", "-E", &end]);
    let decoded = succeeds(start).await;
    assert!(
        decoded.contains("table public.t: INSERT: x[integer]:7"),
        "{decoded}"
    );
    let mut drop = recvlogical();
    drop.arg("--drop-slot");
    succeeds(drop).await;
}

/// A client that is logged in for replication.
async fn replica(stack: &Stack) -> Client {
    let mut client = stack.client().await;
    let body = b"\0\x03\0\0user\0app\0database\0postgres\0replication\0database\0\0";
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    client.send(&[&length[..], body].concat()).await;
    client.ready().await;
    client
}

/// The same, that follows a temporary slot.
async fn following(stack: &Stack) -> Client {
    let mut client = replica(stack).await;
    client
        .query("CREATE_REPLICATION_SLOT own TEMPORARY LOGICAL test_decoding")
        .await;
    assert_eq!(answer(&mut client).await, "TDCZI");
    client.query("START_REPLICATION SLOT own LOGICAL 0/0").await;
    assert_eq!(client.message().await.0, b'W');
    client
}

/// Reads until this is decoded.
async fn hears(client: &mut Client, text: &str) {
    loop {
        let (kind, body) = client.message().await;
        assert_eq!(kind, b'd');
        if String::from_utf8_lossy(&body).contains(text) {
            return;
        }
    }
}

#[test]
fn a_stream_outlives_the_times_of_queries_and_ends_as_its_client_says() {
    as_postgres(
        "replication::a_stream_outlives_the_times_of_queries_and_ends_as_its_client_says",
        async || {
            let server = decoding();
            let times = "query_timeout: 200ms, server_lifetime: 100ms";
            let stack = statements::trusting(&server, times).await;
            let mut client = following(&stack).await;
            let began = clock::now();
            let mut looks = interval(Duration::from_millis(50));
            let mut row = 1000;
            while clock::now().since(began) < Duration::from_secs(1) {
                row += 1;
                insert(&server, row);
                hears(&mut client, &format!("[integer]:{row}")).await;
                looks.tick().await;
            }
            client.send(&message(b'c', b"")).await;
            let mut ends = String::new();
            while !ends.ends_with('Z') {
                ends.push(char::from(client.message().await.0));
            }
            // PostgreSQL may say something between the end of its data and the end of the command.
            let ends = ends.replace('d', "");
            assert!(["cCZ", "cCCZ"].contains(&ends.as_str()), "{ends}");
            // It is a session like any other again.
            client.query("IDENTIFY_SYSTEM").await;
            assert_eq!(answer(&mut client).await, "TDCZI");
        },
    );
}

#[test]
fn a_leader_that_stops_leading_ends_its_streams() {
    as_postgres(
        "replication::a_leader_that_stops_leading_ends_its_streams",
        async || {
            let server = decoding();
            let stack = statements::trusting(&server, "default_pool_size: 2").await;
            let mut streaming = following(&stack).await;
            let mut idle = replica(&stack).await;
            stack.lead("b", "127.0.0.1:1".parse().unwrap()).await;
            assert_eq!(idle.fatal().await.0, "57P01");
            let mut last = streaming.message().await;
            while last.0 == b'd' {
                last = streaming.message().await;
            }
            assert_eq!(last.0, b'E');
            let told = String::from_utf8_lossy(&last.1).into_owned();
            assert!(told.contains("C08007\0"), "{told}");
            until_no_sender_is_left(&server).await;
        },
    );
}

#[test]
fn a_replication_connection_counts_in_its_pool_and_an_idle_server_gives_way_to_it() {
    as_postgres(
        "replication::a_replication_connection_counts_in_its_pool_and_an_idle_server_gives_way_to_it",
        async || {
            let server = decoding();
            let pool = "default_pool_size: 1, query_wait_timeout: 2s";
            let stack = statements::trusting(&server, pool).await;
            let login = || async {
                let mut client = stack.client().await;
                let body = b"\0\x03\0\0user\0app\0database\0postgres\0\0";
                let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
                client.send(&[&length[..], body].concat()).await;
                client
            };
            let mut ordinary = login().await;
            ordinary.ready().await;
            let ask = [statements::query("select 1")];
            assert_eq!(statements::ask(&mut ordinary, &ask).await, "TDCZI");
            // Its server is idle, on whichever core.
            let mut own = replica(&stack).await;
            own.query("IDENTIFY_SYSTEM").await;
            assert_eq!(answer(&mut own).await, "TDCZI");
            ordinary.query("select 2").await;
            assert_eq!(ordinary.fatal().await.0, "57014");
            // With its end its place is free.
            own.send(&message(b'X', b"")).await;
            until_no_sender_is_left(&server).await;
            let mut other = login().await;
            other.ready().await;
            assert_eq!(statements::ask(&mut other, &ask).await, "TDCZI");
        },
    );
}

#[test]
fn who_may_not_replicate_hears_it_from_postgresql() {
    as_postgres(
        "replication::who_may_not_replicate_hears_it_from_postgresql",
        async || {
            let server = Postgres::start();
            let stack = server.router(Mode::Transaction).await;
            let mut psql = server.psql(stack.address.port(), "app");
            psql.args(["dbname=app replication=database", "-c", "IDENTIFY_SYSTEM"]);
            let output = run(psql).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && said.contains("replication"),
                "{said}"
            );
        },
    );
}
