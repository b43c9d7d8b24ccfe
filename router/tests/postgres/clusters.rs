//! Three clusters behind one listener, in a real etcd, each with a PostgreSQL of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use trunkline_router::topology::routing_table::Writer;
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::etcd::{Budgets, Etcd};

use super::support::etcd::Etcd as EtcdServer;
use super::*;

fn address(server: &Postgres) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.port))
}

/// A client of this database, or the server's refusal.
async fn enter(stack: &Stack, database: &str) -> Result<Client, tokio_postgres::Error> {
    enter_as(stack, ("app", "secret"), database).await
}

async fn enter_as(
    stack: &Stack,
    (user, password): (&str, &str),
    database: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(stack.address.port())
        .user(user)
        .password(password)
        .dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Waits until the router follows so many clusters.
async fn until_followed(stack: &Stack, count: usize) {
    let mut changes = stack.clusters.changes();
    let wait = async {
        while stack.clusters.all().len() != count {
            changes.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(super::support::stack::DEADLINE, wait);
    waited.await.unwrap();
}

/// Waits until the router knows this member for the leader.
async fn until_led(stack: &Stack, scope: &str, leader: &str) {
    let followed = stack.clusters.find(&ClusterName::new(scope)).unwrap();
    let mut changes = followed.cluster.changes();
    let is_led = || match &followed.cluster.published().table.writer {
        Writer::Known { member, .. } => member.as_str() == leader,
        Writer::Promoting { .. } | Writer::None { .. } => false,
    };
    let wait = async {
        while !is_led() {
            changes.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(super::support::stack::DEADLINE, wait);
    waited.await.unwrap();
}

async fn router(server: &Postgres, etcd: &EtcdServer) -> Stack {
    let config = serde_json::json!({"hosts": etcd.address.to_string()});
    let budgets = Budgets {
        operation: Duration::from_secs(2),
        renewal: Duration::from_secs(1),
    };
    let config = serde_json::from_value(config).unwrap();
    let verifier = server.ask("select rolpassword from pg_authid where rolname = 'app'");
    // The one secret is good for the role of every cluster.
    let pooling = format!(
        "\"app\" \"{verifier}\"\n---\nauth: {{file: x}}\npool: {{default_pool_size: {SERVERS}}}\n\
         databases: {{shard_*: {{scope: shard-*, dbname: app}}, reports: {{scope: shard-1, dbname: app, pool_mode: session}}}}\n"
    );
    Stack::start(Setup {
        mode: Mode::Transaction,
        pooling: Some(pooling),
        is_by_database: true,
        dcs: Arc::new(Etcd::new(&config, budgets).unwrap()),
        ..Setup::default()
    })
    .await
}

#[test]
fn each_database_is_in_its_cluster_and_a_new_cluster_needs_no_edit() {
    let name = "clusters::each_database_is_in_its_cluster_and_a_new_cluster_needs_no_edit";
    as_postgres(name, async || {
        let etcd = EtcdServer::start();
        let servers = [Postgres::start(), Postgres::start(), Postgres::start()];
        let verifier = servers[0].ask("select rolpassword from pg_authid where rolname = 'app'");
        for server in &servers[1..] {
            server.ask(&format!("alter role app password '{verifier}'"));
        }
        let stack = router(&servers[0], &etcd).await;
        let ports = servers.each_ref().map(|server| server.port.to_string());
        // `reports` names the first cluster, so that it is followed before it has a key.
        until_followed(&stack, 1).await;
        stack.lead_in("shard-1", "a", address(&servers[0])).await;
        let one = enter(&stack, "shard_1").await.unwrap();
        assert_eq!(text(&one, "show port").await, ports[0]);
        let unknown = enter(&stack, "shard_2").await.err().unwrap();
        assert_eq!(unknown.code(), Some(&SqlState::UNDEFINED_DATABASE));
        // It comes after the router.
        stack.lead_in("shard-2", "a", address(&servers[1])).await;
        until_followed(&stack, 2).await;
        let two = enter(&stack, "shard_2").await.unwrap();
        assert_eq!(text(&two, "show port").await, ports[1]);
        // The entry says that its clients keep their servers.
        let reports = enter(&stack, "reports").await.unwrap();
        text(&reports, "create temp table own (x int)").await;
        assert_eq!(text(&reports, "select count(*) from own").await, "0");
        text(&two, "begin").await;
        text(&two, "create table kept (x int)").await;
        // Another leads the first cluster: the second one's transaction goes on.
        stack.lead_in("shard-1", "c", address(&servers[2])).await;
        until_led(&stack, "shard-1", "c").await;
        let lost = reports.simple_query("select 1").await.err().unwrap();
        assert!(
            lost.is_closed() || lost.code() == Some(&SqlState::ADMIN_SHUTDOWN),
            "{lost}"
        );
        assert_eq!(text(&one, "show port").await, ports[2]);
        text(&two, "commit").await;
        assert_eq!(text(&two, "select count(*) from kept").await, "0");
        let running = "select count(*) from pg_stat_activity where usename = 'app'";
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while servers[0].ask(running) != "0" {
            looks.tick().await;
        }
    });
}

#[test]
fn users_are_looked_up_in_the_cluster_of_their_database() {
    let name = "clusters::users_are_looked_up_in_the_cluster_of_their_database";
    as_postgres(name, async || {
        let servers = [Postgres::start(), Postgres::start()];
        for (server, password) in servers.iter().zip(["one", "two"]) {
            server.ask("create role asker superuser login password 'secret'");
            server.ask(&format!("create role own login password '{password}'"));
        }
        let pooling = format!(
            "\"asker\" \"secret\"\n---\nauth: {{user: asker, file: x}}\npool: {{default_pool_size: {SERVERS}}}\n\
             databases: {{one: {{scope: one, dbname: app}}, two: {{scope: two, dbname: app}}, s_*: {{scope: s-*}}}}\n"
        );
        let stack = Stack::start(Setup {
            mode: Mode::Transaction,
            pooling: Some(pooling),
            is_by_database: true,
            ..Setup::default()
        })
        .await;
        stack.lead_in("one", "a", address(&servers[0])).await;
        stack.lead_in("two", "a", address(&servers[1])).await;
        for (server, scope) in servers.iter().zip(["one", "two"]) {
            let client = enter_as(&stack, ("own", scope), scope).await.unwrap();
            assert_eq!(text(&client, "show port").await, server.port.to_string());
        }
        // The password of the other cluster is none here, and where there is no cluster nobody is known.
        for (password, database) in [("one", "two"), ("two", "one"), ("one", "s_1"), ("one", "x")] {
            let refused = enter_as(&stack, ("own", password), database).await;
            let refused = refused.err().unwrap();
            assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));
        }
        // Who has proved who it is hears of the database.
        for database in ["s_1", "x"] {
            let unknown = enter_as(&stack, ("asker", "secret"), database).await;
            let unknown = unknown.err().unwrap();
            assert_eq!(unknown.code(), Some(&SqlState::UNDEFINED_DATABASE));
        }
    });
}
