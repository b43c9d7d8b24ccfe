//! The console: what it shows adds up, and what an operator orders happens.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use trunkline_router::admin::consoles::{MAX_CONSOLES, MAX_LOOKING};

use super::support::stack::startup_in;
use super::*;

/// One server; `app` may everything, `other` may look, `third` is nobody.
const WITH_CONSOLE: &str = "\"app\" \"hunter2\"\n\"other\" \"hunter2\"\n\"third\" \"hunter2\"\n---\n\
    auth: {type: trust, file: x}\npool: {default_pool_size: 1}\n\
    admin: {admin_users: app, stats_users: [other]}\n";

pub type Row = BTreeMap<String, String>;

async fn with_console() -> (Stack, FakePostgres, Client) {
    let a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, WITH_CONSOLE).await;
    stack.lead("a", a.address).await;
    let console = console(&stack, "app", "pgbouncer").await;
    (stack, a, console)
}

fn packet(user: &str, database: &str) -> Vec<u8> {
    let body = format!("user\0{user}\0database\0{database}\0application_name\0test\0\0");
    let length = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
    [&length[..], &[0, 3, 0, 0], body.as_bytes()].concat()
}

pub async fn console(stack: &Stack, user: &str, database: &str) -> Client {
    let mut client = stack.client().await;
    client.send(&packet(user, database)).await;
    client.ready().await;
    client
}

/// The rows of a `SHOW`, by column; NULL is left out.
async fn rows(console: &mut Client, sql: &str) -> Vec<Row> {
    console.query(sql).await;
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    loop {
        let (kind, body) = console.message().await;
        match kind {
            b'T' => {
                let mut rest = &body[2..];
                while let Some(end) = rest.iter().position(|byte| *byte == 0) {
                    names.push(String::from_utf8(rest[..end].to_vec()).unwrap());
                    rest = &rest[end + 19..];
                }
            }
            b'D' => {
                let mut rest = &body[2..];
                let mut row = Row::new();
                for name in &names {
                    let length = i32::from_be_bytes(rest[..4].try_into().unwrap());
                    rest = &rest[4..];
                    if let Ok(length) = usize::try_from(length) {
                        let value = String::from_utf8(rest[..length].to_vec()).unwrap();
                        row.insert(name.clone(), value);
                        rest = &rest[length..];
                    }
                }
                rows.push(row);
            }
            b'Z' => return rows,
            kind => assert_ne!(kind, b'E', "{}", String::from_utf8_lossy(&body)),
        }
    }
}

/// Shows until this is so.
pub async fn until(console: &mut Client, sql: &str, is_so: impl Fn(&[Row]) -> bool) -> Vec<Row> {
    let looking = async {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        loop {
            looks.tick().await;
            let rows = rows(console, sql).await;
            if is_so(&rows) {
                return rows;
            }
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap()
}

pub fn one<'a>(rows: &'a [Row], column: &str, value: &str) -> &'a Row {
    rows.iter().find(|row| row[column] == value).unwrap()
}

/// The tag of a command that is done.
pub async fn order(console: &mut Client, sql: &str) -> String {
    console.query(sql).await;
    done(console).await
}

/// What a command comes to: its tag, or the words of an error.
pub async fn done(console: &mut Client) -> String {
    let mut said = String::new();
    loop {
        let (kind, body) = console.message().await;
        match kind {
            b'C' => said = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned(),
            b'E' => {
                let words = body.split(|b| *b == 0).find(|f| f.first() == Some(&b'M'));
                said = String::from_utf8_lossy(&words.unwrap()[1..]).into_owned();
            }
            b'Z' => return said,
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_is_shown_adds_up() {
    let (stack, _a, mut console) = with_console().await;
    let mut one_client = stack.session().await;
    let mut two = stack.session().await;
    let _three = stack.session().await;
    ask(&mut one_client, "begin").await;
    two.query("select 2").await;
    let pools = until(&mut console, "show pools", |rows| {
        rows.iter()
            .any(|row| row["database"] == "app" && row["cl_waiting"] == "1")
    })
    .await;
    let pool = one(&pools, "database", "app");
    let counts =
        ["cl_active", "sv_active", "sv_idle", "sv_login", "sv_tested"].map(|name| &*pool[name]);
    assert_eq!(counts, ["2", "1", "0", "0", "0"], "{pool:?}");
    assert_eq!(pool["pool_mode"], "transaction");
    assert_eq!(one(&pools, "database", "pgbouncer")["cl_active"], "1");

    let clients = rows(&mut console, "show clients").await;
    let mut states: Vec<&str> = clients.iter().map(|row| &*row["state"]).collect();
    states.sort_unstable();
    assert_eq!(states, ["active", "idle", "idle", "waiting"]);
    let servers = rows(&mut console, "show servers").await;
    let active = one(&clients, "state", "active");
    assert_eq!(servers.len(), 1);
    assert_eq!(servers[0]["link"], active["ptr"]);
    assert_eq!(servers[0]["ptr"], active["link"]);
    assert_eq!(
        (&*servers[0]["member"], &*servers[0]["scope"]),
        ("a", "demo")
    );
    let own = one(&clients, "database", "pgbouncer");
    assert_eq!(own["application_name"], "test");

    assert_eq!(ask(&mut one_client, "commit").await, "CZI");
    assert_eq!(answer(&mut two).await, "CZI");
    let stats = rows(&mut console, "show stats_totals").await;
    let stats = one(&stats, "database", "app");
    let counts = ["query_count", "xact_count", "client_login_count"].map(|name| &*stats[name]);
    assert_eq!(counts, ["3", "2", "3"], "{stats:?}");
    let lists = rows(&mut console, "show lists").await;
    assert_eq!(one(&lists, "list", "used_clients")["items"], "4");
    assert_eq!(one(&lists, "list", "used_servers")["items"], "1");
    let topology = rows(&mut console, "show topology").await;
    assert_eq!(one(&topology, "role", "writer")["member"], "a");
}

#[tokio::test]
async fn a_database_that_postgresql_does_not_know_gets_no_row_of_its_own() {
    let (stack, _a, mut console) = with_console().await;
    for name in ["nowhere_1", "nowhere_2"] {
        let mut client = stack.client().await;
        client.send(&startup_in("app", name)).await;
        assert_eq!(client.message().await.0, b'R');
        assert_eq!(client.fatal().await.0, "3D000");
    }
    let mut real = stack.session().await;
    assert_eq!(ask(&mut real, "select 1").await, "CZI");
    let stats = rows(&mut console, "show stats_totals").await;
    let databases: Vec<&str> = stats.iter().map(|row| &*row["database"]).collect();
    assert_eq!(databases, ["app", "other", "pgbouncer"]);
    assert_eq!(one(&stats, "database", "app")["client_login_count"], "1");
}

#[tokio::test]
async fn a_full_console_lets_operators_in_in_the_place_of_who_is_idle_longest() {
    let (stack, _a, mut first) = with_console().await;
    let mut looking = Vec::new();
    for _ in 0..MAX_LOOKING {
        looking.push(console(&stack, "other", "pgbouncer").await);
    }
    let mut admins = Vec::new();
    for _ in MAX_LOOKING..MAX_CONSOLES - 1 {
        admins.push(console_of(&stack).await);
    }
    for own in &mut looking[2..] {
        assert_eq!(rows(own, "show version").await.len(), 1);
    }
    assert_eq!(rows(&mut looking[1], "show version").await.len(), 1);
    let mut newcomer = console_of(&stack).await;
    let (code, words) = looking[0].fatal().await;
    assert_eq!(code, "54000");
    assert!(words.contains("idle longest"), "{words}");
    let mut one_more = console(&stack, "other", "pgbouncer").await;
    assert_eq!(looking[2].fatal().await.0, "54000");
    for own in [&mut first, &mut newcomer, &mut one_more, &mut admins[0]] {
        assert_eq!(rows(own, "show version").await.len(), 1);
    }
}

#[tokio::test]
async fn a_console_that_reads_nothing_is_ended_by_an_operator() {
    let (stack, _a, mut console) = with_console().await;
    let own = rows(&mut console, "show clients").await[0]["id"].clone();
    let mut deaf = console_of(&stack).await;
    let clients = rows(&mut console, "show clients").await;
    let other = clients.iter().find(|row| row["id"] != own).unwrap();
    let many = message(b'Q', b"show config\0").repeat(10_000);
    let asking = tokio::spawn(async move {
        deaf.send(&many).await;
        deaf
    });
    let kill = format!("kill_client {}", other["id"]);
    assert_eq!(order(&mut console, &kill).await, "KILL_CLIENT");
    until(&mut console, "show clients", |rows| rows.len() == 1).await;
    asking.abort();
}

#[tokio::test]
async fn a_command_that_waits_is_ended_by_an_operator_and_by_the_end_of_the_process() {
    let (stack, _a, mut console) = with_console().await;
    let id = rows(&mut console, "show clients").await[0]["id"].clone();
    let mut client = stack.session().await;
    ask(&mut client, "begin").await;
    console.query("pause app").await;
    let mut other = console_of(&stack).await;
    until(&mut other, "show databases", |rows| {
        rows[0]["paused"] == "1"
    })
    .await;
    let kill = format!("kill_client {id}");
    assert_eq!(order(&mut other, &kill).await, "KILL_CLIENT");
    assert_eq!(console.fatal().await.0, "57P01");
    let desk = &stack.listening.registry.as_ref().unwrap().desk;
    let (orders, mut hear) = mpsc::channel(1);
    desk.equip(orders, vec![stack.listening.clone()]);
    other.query("reload").await;
    // It is heard, and never answered.
    let order = tokio::time::timeout(DEADLINE, hear.recv()).await.unwrap();
    desk.over.cancel();
    assert_eq!(other.fatal().await.0, "57P01");
    drop(order);
}

#[tokio::test]
async fn a_pinned_client_is_shown_with_the_reason_and_others_without() {
    let (stack, _a, mut console) = with_console().await;
    let mut client = stack.session().await;
    ask(&mut client, "listen x").await;
    let clients = rows(&mut console, "show clients").await;
    let of_app = one(&clients, "database", "app");
    assert_eq!(of_app["pin_reason"], "listen");
    assert_eq!(of_app["state"], "active");
    assert!(!one(&clients, "database", "pgbouncer").contains_key("pin_reason"));
}

#[tokio::test]
async fn operators_are_let_in_by_what_the_file_says_of_them() {
    let (stack, _a, _console) = with_console().await;
    let mut nobody = stack.client().await;
    nobody.send(&packet("third", "pgbouncer")).await;
    let (code, words) = loop {
        let (kind, body) = nobody.message().await;
        if kind == b'E' {
            let field = |code| {
                let found = body.split(|b| *b == 0).find(|f| f.first() == Some(&code));
                String::from_utf8_lossy(&found.unwrap()[1..]).into_owned()
            };
            break (field(b'C'), field(b'M'));
        }
    };
    assert_eq!((code.as_str(), words.as_str()), ("28000", "not allowed"));
    // By its other name, and only to look.
    let mut looks = console(&stack, "other", "trunkline").await;
    assert_eq!(rows(&mut looks, "show state").await.len(), 2);
    for sql in [
        "pause",
        "resume app",
        "disable app",
        "kill",
        "kill_client 1",
        "reload",
        "shutdown",
        "set query_timeout = 1",
        "reconnect",
        "wait_close",
        "enable app",
    ] {
        assert_eq!(order(&mut looks, sql).await, "admin access needed", "{sql}");
    }
    let mut client = stack.session().await;
    assert_eq!(ask(&mut client, "select 1").await, "CZI");
}

#[tokio::test]
async fn the_extended_protocol_is_refused_to_the_next_sync() {
    let (_stack, _a, mut console) = with_console().await;
    let batch = [parse("", "show version"), bind("", ""), execute(""), sync()].concat();
    console.send(&batch).await;
    assert_eq!(answer(&mut console).await, "EZI");
    assert_eq!(rows(&mut console, "show version").await.len(), 1);
    assert_eq!(
        order(&mut console, "select 1").await,
        "invalid command 'select 1', use SHOW HELP;"
    );
    console.query(&"x".repeat(5000)).await;
    assert_eq!(console.fatal().await.0, "54000");
}

#[tokio::test]
async fn pause_waits_for_the_transaction_and_holds_what_comes() {
    let (stack, mut a, mut console) = with_console().await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    ask(&mut one, "begin").await;
    console.query("pause app").await;
    let mut other = self::console(&stack, "app", "pgbouncer").await;
    until(&mut other, "show databases", |rows| {
        rows[0]["paused"] == "1"
    })
    .await;
    two.query("select 2").await;
    until(&mut other, "show pools", |rows| {
        rows[0]["cl_waiting"] == "1"
    })
    .await;
    assert_eq!(ask(&mut one, "select 1").await, "CZT");
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    assert_eq!(done(&mut console).await, "PAUSE");
    a.until(|seen| seen.ended == 1).await;
    assert!(rows(&mut other, "show servers").await.is_empty());
    // Who logs in meanwhile waits with the others.
    let three = stack.session().await;
    assert_eq!(order(&mut other, "resume app").await, "RESUME");
    assert_eq!(answer(&mut two).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 4).await;
    assert_eq!(seen.queries, ["begin", "select 1", "commit", "select 2"]);
    assert_eq!(
        order(&mut other, "resume app").await,
        "database app is not paused"
    );
    drop(three);
}

#[tokio::test]
async fn pause_of_all_is_told_by_state_and_only_once() {
    let (stack, _a, mut console) = with_console().await;
    assert_eq!(order(&mut console, "resume").await, "pooler is not paused");
    assert_eq!(order(&mut console, "pause").await, "PAUSE");
    assert_eq!(order(&mut console, "pause").await, "already paused");
    let state = rows(&mut console, "show state").await;
    assert_eq!(one(&state, "key", "paused")["value"], "yes");
    // The first client of its database has come while all are paused: it waits within its log-in.
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    until(&mut console, "show pools", |rows| {
        rows[0]["cl_waiting"] == "1"
    })
    .await;
    assert_eq!(order(&mut console, "resume").await, "RESUME");
    client.ready().await;
    assert_eq!(ask(&mut client, "select 1").await, "CZI");
}

#[tokio::test]
async fn the_first_request_of_a_session_does_not_begin_with_its_log_in() {
    let a = FakePostgres::start(false).await;
    let stack = stack(Mode::Session, WITH_CONSOLE).await;
    stack.lead("a", a.address).await;
    let mut console = console_of(&stack).await;
    let mut client = stack.session().await;
    let entered = clock::now();
    // It says nothing for a while.
    until(&mut console, "show state", |_| {
        clock::now().since(entered) > Duration::from_millis(300)
    })
    .await;
    let asked = clock::now();
    assert_eq!(ask(&mut client, "select 1").await, "CZI");
    let stats = rows(&mut console, "show stats_totals").await;
    // The router reads its clock behind the answer, and before it is asked for what it has counted.
    let took = clock::now().since(asked);
    let stats = one(&stats, "database", "app");
    assert_eq!(stats["query_count"], "1");
    for total in ["query_time", "xact_time"] {
        let counted = Duration::from_micros(stats[total].parse().unwrap());
        assert!(counted <= took, "{total}: {counted:?} of {took:?}");
    }
}

#[tokio::test]
async fn reconnect_gives_no_old_server_out() {
    let (stack, mut a, mut console) = with_console().await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    ask(&mut one, "begin").await;
    assert_eq!(order(&mut console, "reconnect").await, "RECONNECT");
    let servers = rows(&mut console, "show servers").await;
    assert_eq!(servers[0]["close_needed"], "1");
    console.query("wait_close app").await;
    two.query("select 2").await;
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    assert_eq!(answer(&mut two).await, "CZI");
    assert_eq!(done(&mut console).await, "WAIT_CLOSE");
    let seen = a
        .until(|seen| seen.startups.len() == 2 && seen.ended == 1)
        .await;
    assert_eq!(seen.queries, ["begin", "commit", "select 2"]);
    let servers = rows(&mut console, "show servers").await;
    assert_eq!(servers[0]["close_needed"], "0");
}

#[tokio::test]
async fn kill_ends_clients_and_servers_and_holds_who_comes() {
    let (stack, mut a, mut console) = with_console().await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    let mut idle = stack.session().await;
    ask(&mut one, "begin").await;
    two.query("select 2").await;
    until(&mut console, "show pools", |rows| {
        rows[0]["cl_waiting"] == "1"
    })
    .await;
    assert_eq!(order(&mut console, "kill app").await, "KILL");
    for client in [&mut one, &mut two, &mut idle] {
        assert_eq!(
            client.fatal().await,
            ("57P01".to_owned(), "database removed".to_owned())
        );
    }
    a.until(|seen| seen.ended == 1).await;
    let mut late = stack.session().await;
    late.query("select 3").await;
    until(&mut console, "show pools", |rows| {
        rows[0]["cl_waiting"] == "1"
    })
    .await;
    assert_eq!(order(&mut console, "resume app").await, "RESUME");
    assert_eq!(answer(&mut late).await, "CZI");
}

#[tokio::test]
async fn kill_client_ends_that_one_and_what_was_outstanding_is_told() {
    let (stack, _a, mut console) = with_console().await;
    let mut one_client = stack.session().await;
    one_client.query("hang").await;
    let clients = until(&mut console, "show clients", |rows| {
        rows.iter().any(|row| row["state"] == "active")
    })
    .await;
    let id = one(&clients, "state", "active")["id"].clone();
    assert_eq!(
        order(&mut console, "kill_client 999999").await,
        "client not found"
    );
    assert_eq!(
        order(&mut console, &format!("kill_client {id}")).await,
        "KILL_CLIENT"
    );
    let (code, words) = one_client.fatal().await;
    assert_eq!(code, "08007");
    assert!(words.starts_with("admin forced disconnect"), "{words}");
    let mut other = console_of(&stack).await;
    let own = one(&rows(&mut console, "show clients").await, "type", "C")["id"].clone();
    assert_eq!(
        order(&mut other, &format!("kill_client {own}")).await,
        "KILL_CLIENT"
    );
    assert_eq!(console.fatal().await.0, "57P01");
}

async fn console_of(stack: &Stack) -> Client {
    console(stack, "app", "pgbouncer").await
}

#[tokio::test]
async fn a_disabled_database_lets_nobody_in_and_nobody_out() {
    let (stack, _a, mut console) = with_console().await;
    let mut one = stack.session().await;
    assert_eq!(order(&mut console, "disable app").await, "DISABLE");
    assert_eq!(
        order(&mut console, "disable pgbouncer").await,
        "cannot disable admin db: pgbouncer"
    );
    let mut two = stack.client().await;
    two.send(&startup("app")).await;
    let (code, words) = two.fatal().await;
    assert_eq!(
        (code.as_str(), words.as_str()),
        ("57P03", "database \"app\" is disabled")
    );
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    assert_eq!(order(&mut console, "enable app").await, "ENABLE");
    let mut three = stack.session().await;
    assert_eq!(ask(&mut three, "select 3").await, "CZI");
}

#[tokio::test]
async fn set_holds_for_who_comes_later_and_says_what_it_cannot() {
    let (stack, _a, mut console) = with_console().await;
    let mut one_client = stack.session().await;
    ask(&mut one_client, "begin").await;
    let set = order(&mut console, "set query_wait_timeout = '100ms'").await;
    assert_eq!(set, "SET query_wait_timeout=100ms");
    let config = rows(&mut console, "show config").await;
    let row = one(&config, "key", "query_wait_timeout");
    assert_eq!(
        (&*row["value"], &*row["default"], &*row["changeable"]),
        ("0.1", "120", "yes")
    );
    let mut two = stack.session().await;
    two.query("select 2").await;
    assert_eq!(two.fatal().await.0, "57014");
    let refused = order(&mut console, "set listen_port = 5").await;
    assert!(
        refused.starts_with("listen_port cannot be changed here"),
        "{refused}"
    );
    let text = format!("{config:?}");
    assert!(!text.contains("hunter2"));
}
