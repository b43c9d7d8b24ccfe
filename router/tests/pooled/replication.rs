//! Replication connections: what their servers are opened with, and whose they are.

use super::*;

/// Logs in with these parameters.
async fn login(stack: &Stack, parameters: &str) -> Client {
    let mut client = stack.client().await;
    let body = format!("\0\x03\0\0{parameters}\0");
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    client.send(&[&length[..], body.as_bytes()].concat()).await;
    client
}

#[tokio::test]
async fn each_opens_a_server_with_its_own_parameters_and_takes_it_along() {
    let mut a = FakePostgres::start(false).await;
    let three = ONE.replace("size: 1", "size: 3, ignore_startup_parameters: x");
    let stack = stack(Mode::Statement, &three).await;
    stack.lead("a", a.address).await;
    let physical = "user\0app\0database\0replication\0replication\0true\0options\0-c a=b\0x\0on\0";
    let mut one = login(&stack, physical).await;
    one.ready().await;
    let mut two = login(&stack, "user\0app\0database\0app\0replication\0database\0").await;
    two.ready().await;
    let seen = a.until(|seen| seen.startups.len() == 2).await;
    let packet = |at: usize| String::from_utf8_lossy(&seen.startups[at][8..]).into_owned();
    assert_eq!(
        packet(0),
        "user\0app\0database\0replication\0replication\0true\0a\0b\0\0"
    );
    assert_eq!(
        packet(1),
        "user\0app\0database\0app\0replication\0database\0\0"
    );
    // Neither settings nor a look whether it is in recovery: it may take no SQL. A block is its own affair.
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    one.send(&message(b'X', b"")).await;
    a.until(|seen| seen.ended == 1).await;
    two.send(&message(b'X', b"")).await;
    let seen = a.until(|seen| seen.ended == 2).await;
    assert_eq!(seen.queries, ["begin"]);
    // Nothing of it is left in the pool.
    let mut three = stack.session().await;
    assert_eq!(ask(&mut three, "select 1").await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 2).await;
    assert_eq!(seen.startups.len(), 3);
}

#[tokio::test]
async fn their_servers_are_shown_with_their_clients_and_counted() {
    let a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, &with_operator("size: 3")).await;
    stack.lead("a", a.address).await;
    let mut console = console::console(&stack, "app", "pgbouncer").await;
    let mut one = login(&stack, REPLICA).await;
    one.ready().await;
    let servers = console::until(&mut console, "show servers", |rows| rows.len() == 1).await;
    let clients = console::until(&mut console, "show clients", |rows| rows.len() == 2).await;
    let client = console::one(&clients, "database", "app");
    assert_eq!(servers[0]["state"], "active");
    assert_eq!(
        (&servers[0]["link"], &client["link"]),
        (&client["ptr"], &servers[0]["ptr"])
    );
    for row in [&servers[0], client] {
        assert_eq!(row["replication"], "logical");
    }
    assert_eq!(
        (&*servers[0]["member"], &*servers[0]["scope"]),
        ("a", "demo")
    );
    let pools = console::until(&mut console, "show pools", |_| true).await;
    assert_eq!(console::one(&pools, "database", "app")["sv_active"], "1");
    // It is its client's for as long as that stays.
    assert_eq!(console::order(&mut console, "reconnect").await, "RECONNECT");
    console.query("wait_close app").await;
    let mut other = console::console(&stack, "app", "pgbouncer").await;
    console::until(&mut other, "show servers", |rows| {
        rows[0]["close_needed"] == "1"
    })
    .await;
    one.send(&message(b'X', b"")).await;
    assert_eq!(console::done(&mut console).await, "WAIT_CLOSE");
    console::until(&mut other, "show servers", <[_]>::is_empty).await;
}

#[tokio::test]
async fn one_idle_server_gives_way_for_one_of_them() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        mode: Mode::Transaction,
        pooling: Some(ONE.replace("size: 1", "size: 3")),
        cores: 4,
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    // Each is on a core of its own, and so is its server.
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = stack.session().await;
        assert_eq!(ask(&mut client, "begin").await, "CZT");
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(ask(client, "commit").await, "CZI");
    }
    let mut replica = login(&stack, REPLICA).await;
    replica.ready().await;
    let seen = a.until(|seen| seen.ended > 0).await;
    assert_eq!((seen.startups.len(), seen.ended), (4, 1));
}

#[tokio::test]
async fn who_it_is_and_where_it_wants_to_is_not_said_by_options() {
    let mut a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, ONE).await;
    stack.lead("a", a.address).await;
    for (name, kind) in [
        ("user", "replication\0true\0"),
        ("database", "replication\0database\0"),
        ("replication", "replication\0true\0"),
        ("_pq_.x", "replication\0true\0"),
        ("user", ""),
    ] {
        let options = format!("user\0app\0database\0app\0{kind}options\0-c {name}=off\0");
        let mut client = login(&stack, &options).await;
        let told = format!("unrecognized configuration parameter \"{name}\"");
        assert_eq!(client.fatal().await, ("42704".to_owned(), told));
    }
    let mut client = login(&stack, "user\0app\0replication\0on\0").await;
    client.ready().await;
    let seen = a.until(|seen| !seen.startups.is_empty()).await;
    assert_eq!(seen.startups.len(), 1);
}

#[tokio::test]
async fn it_is_one_where_postgresql_says_so_and_is_judged_as_one() {
    let mut a = FakePostgres::start(false).await;
    let hba = "\"app\" \"secret\"\n-hba-\nhost replication app all trust\nhost app app all reject\n---\n\
               auth: {type: hba, hba_file: x, file: x}\n";
    let stack = stack(Mode::Transaction, hba).await;
    stack.lead("a", a.address).await;
    let asks = |kind: &str| format!("user\0app\0database\0app\0replication\0{kind}\0");
    for off in ["n", "f", "of", "0", "database"] {
        let mut client = login(&stack, &asks(off)).await;
        assert_eq!(client.fatal().await.0, "28000", "{off}");
    }
    let mut client = login(&stack, &asks("o")).await;
    let told = "invalid value for parameter \"replication\": \"o\"".to_owned();
    assert_eq!(client.fatal().await, ("22023".to_owned(), told));
    let mut client = login(&stack, &asks("Y")).await;
    client.ready().await;
    let seen = a.until(|seen| !seen.startups.is_empty()).await;
    let packet = String::from_utf8_lossy(&seen.startups[0][8..]).into_owned();
    let on = "user\0app\0database\0app\0replication\0true\0\0";
    assert_eq!((packet.as_str(), seen.startups.len()), (on, 1));
}

/// Everybody is trusted with whatever the text says, `app` is an operator.
fn with_operator(pool: &str) -> String {
    format!(
        "{}admin: {{admin_users: app}}\n",
        ONE.replace("size: 1", pool)
    )
}

#[tokio::test]
async fn the_console_takes_none_before_anybody_is_asked_who_it_is() {
    let stack = stack(Mode::Transaction, &with_operator("size: 1")).await;
    for console in ["pgbouncer", "trunkline"] {
        let asks = format!("user\0app\0database\0{console}\0replication\0true\0");
        let mut client = login(&stack, &asks).await;
        // Not even AuthenticationOk comes before it.
        let (code, message) = client.fatal().await;
        assert_eq!(code, "0A000");
        assert!(message.contains("console"), "{message}");
    }
}

const REPLICA: &str = "user\0app\0database\0app\0replication\0database\0";

#[tokio::test]
async fn one_that_waits_for_a_place_is_ended_by_an_operator_and_by_a_stop() {
    let a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, &with_operator("size: 1")).await;
    stack.lead("a", a.address).await;
    let mut console = console::console(&stack, "app", "pgbouncer").await;
    let mut one = login(&stack, REPLICA).await;
    one.ready().await;
    let mut two = login(&stack, REPLICA).await;
    assert_eq!(two.message().await.0, b'R');
    let clients = console::until(&mut console, "show clients", |rows| {
        rows.iter().any(|row| row["state"] == "waiting")
    })
    .await;
    let id = &console::one(&clients, "state", "waiting")["id"];
    let kill = format!("kill_client {id}");
    assert_eq!(console::order(&mut console, &kill).await, "KILL_CLIENT");
    assert_eq!(two.fatal().await.0, "57P01");
    let mut three = login(&stack, REPLICA).await;
    assert_eq!(three.message().await.0, b'R');
    console::until(&mut console, "show clients", |rows| {
        rows.iter().any(|row| row["state"] == "waiting")
    })
    .await;
    stack.listening.registry.as_ref().unwrap().end_all();
    assert_eq!(three.fatal().await.0, "57P01");
}

#[tokio::test]
async fn one_that_comes_while_its_database_is_paused_waits_with_the_others() {
    let mut a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, &with_operator("size: 2")).await;
    stack.lead("a", a.address).await;
    let mut console = console::console(&stack, "app", "pgbouncer").await;
    assert_eq!(console::order(&mut console, "pause").await, "PAUSE");
    let mut one = login(&stack, REPLICA).await;
    assert_eq!(one.message().await.0, b'R');
    console::until(&mut console, "show clients", |rows| {
        rows.iter().any(|row| row["state"] == "waiting")
    })
    .await;
    assert!(a.until(|_| true).await.startups.is_empty());
    assert_eq!(console::order(&mut console, "kill app").await, "KILL");
    assert_eq!(one.fatal().await.0, "57P01");
    let mut two = login(&stack, REPLICA).await;
    assert_eq!(two.message().await.0, b'R');
    console::until(&mut console, "show clients", |rows| {
        rows.iter().any(|row| row["state"] == "waiting")
    })
    .await;
    assert!(a.until(|_| true).await.startups.is_empty());
    assert_eq!(console::order(&mut console, "resume").await, "RESUME");
    two.ready().await;
    a.until(|seen| seen.startups.len() == 1).await;
}

#[tokio::test]
async fn one_that_finds_no_place_hears_57014_and_the_places_come_back() {
    let impatient = ONE.replace("size: 1", "size: 1, query_wait_timeout: 300ms");
    let mut a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, &impatient).await;
    stack.lead("a", a.address).await;
    let replica = "user\0app\0database\0app\0replication\0database\0";
    let mut one = login(&stack, replica).await;
    one.ready().await;
    let mut two = login(&stack, replica).await;
    // AuthenticationOk comes before the wait for a server.
    assert_eq!(two.message().await.0, b'R');
    let (code, message_of_it) = two.fatal().await;
    assert_eq!(code, "57014");
    assert!(
        message_of_it.contains("query_wait_timeout"),
        "{message_of_it}"
    );
    one.send(&message(b'X', b"")).await;
    a.until(|seen| seen.ended == 1).await;
    let mut three = login(&stack, replica).await;
    three.ready().await;
}
