//! Many clusters behind one listener: the database of a client says which.

use std::path::Path;
use std::sync::Arc;

use trunkline_router::config::databases::Scopes;
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::Dcs;
use trunkline_shared::dcs::memory::MemoryDcs;

use super::support::in_fleet::{InFleet, NOWHERE, prepare, until};
use super::support::stack::{pooling_of, startup_in};
use super::*;

async fn by_database(dcs: &MemoryDcs, more: &str) -> Stack {
    Stack::start(Setup {
        mode: Mode::Transaction,
        pooling: Some(format!("{ONE}{more}\n")),
        is_by_database: true,
        dcs: Arc::new(dcs.clone()),
        ..Setup::default()
    })
    .await
}

impl Stack {
    /// A client that has asked for this database.
    async fn asking(&self, user: &str, database: &str) -> Client {
        let mut client = self.client().await;
        client.send(&startup_in(user, database)).await;
        client
    }

    /// One that is logged in there.
    async fn inside(&self, user: &str, database: &str) -> Client {
        let mut client = self.asking(user, database).await;
        client.ready().await;
        client
    }

    /// What one hears that is not let in there, once it has proved who it is.
    async fn refusal(&self, user: &str, database: &str) -> (String, String) {
        let mut client = self.asking(user, database).await;
        assert_eq!(client.message().await.0, b'R');
        client.fatal().await
    }

    /// Waits until this is followed, or is not any more.
    async fn until_followed(&self, scope: &str, is_followed: bool) {
        let mut changes = self.clusters.changes();
        let wait = async {
            let name = ClusterName::new(scope);
            while self.clusters.all().iter().any(|own| own.name == name) != is_followed {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap();
    }
}

#[tokio::test]
async fn each_database_is_in_its_own_cluster() {
    let dcs = MemoryDcs::new();
    let databases = "databases: {main: {scope: main}, shard_*: {scope: shard-*, dbname: app_*}}";
    let stack = by_database(&dcs, databases).await;
    let mut servers = Vec::new();
    for (scope, database) in [
        ("main", "main"),
        ("shard-1", "shard_1"),
        ("shard-2", "shard_2"),
    ] {
        // The others came after the router.
        let server = FakePostgres::start(false).await;
        stack.lead_in(scope, "a", server.address).await;
        stack.until_followed(scope, true).await;
        let mut client = stack.inside("app", database).await;
        assert_eq!(ask(&mut client, &format!("select {database}")).await, "CZI");
        servers.push((server, client, database));
    }
    for (server, client, database) in &mut servers {
        assert_eq!(ask(client, "select 2").await, "CZI");
        let seen = server.until(|seen| seen.queries.len() == 2).await;
        assert_eq!(
            seen.queries,
            [format!("select {database}").as_str(), "select 2"]
        );
        let packet = String::from_utf8_lossy(&seen.startups[0]).into_owned();
        let dbname = database.replace("shard", "app");
        assert!(
            packet.contains(&format!("database\0{dbname}\0")),
            "{packet:?}"
        );
    }
    let (code, text) = stack.refusal("app", "shard_3").await;
    assert_eq!(code, "3D000");
    assert_eq!(
        text,
        "database \"shard_3\" does not exist: there is no cluster shard-3"
    );
    let (code, text) = stack.refusal("app", "shard_1/members").await;
    assert_eq!(code, "3D000", "{text}");
    let (code, text) = stack.refusal("app", "other").await;
    assert_eq!(code, "3D000", "{text}");
    // Who does not prove who it is learns nothing of databases.
    let mut client = stack.asking("nobody", "shard_3").await;
    assert_eq!(client.fatal().await.0, "28P01");
}

#[tokio::test]
async fn a_lost_leader_cuts_the_sessions_of_its_cluster_only() {
    let dcs = MemoryDcs::new();
    let stack = by_database(&dcs, "databases: {\"*\": {scope: \"*\", dbname: app}}").await;
    let [mut a, mut b, mut c] = [
        FakePostgres::start(false).await,
        FakePostgres::start(false).await,
        FakePostgres::start(false).await,
    ];
    for (scope, server) in [("one", &a), ("two", &b)] {
        stack.lead_in(scope, "n1", server.address).await;
        stack.until_followed(scope, true).await;
    }
    let mut one = stack.inside("app", "one").await;
    let mut two = stack.inside("app", "two").await;
    for client in [&mut one, &mut two] {
        assert_eq!(ask(client, "begin").await, "CZT");
    }
    stack.lead_in("one", "n2", c.address).await;
    a.until(|seen| seen.ended == 1).await;
    one.query("select 0").await;
    assert_eq!(error(&mut one).await, "40001");
    assert_eq!(answer(&mut one).await, "ZE");
    assert_eq!(ask(&mut two, "commit").await, "CZI");
    assert_eq!(ask(&mut one, "rollback").await, "CZI");
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    let seen = c.until(|seen| seen.queries.len() == 1).await;
    assert_eq!(seen.queries, ["select 1"]);
    let seen = b.until(|seen| seen.queries.len() == 2).await;
    assert_eq!(seen.ended, 0);
}

#[tokio::test]
async fn while_the_dcs_is_silent_a_client_waits_to_learn_whether_there_is_its_cluster() {
    let dcs = MemoryDcs::new();
    let databases = "databases: {\"*\": {scope: \"*\"}}";
    let server = FakePostgres::start(false).await;
    let earlier = by_database(&dcs, databases).await;
    earlier.lead_in("one", "a", server.address).await;
    dcs.set_reachable(false);
    let stack = by_database(&dcs, databases).await;
    let mut waiting = stack.asking("app", "one").await;
    let mut other = stack.asking("app", "two").await;
    for client in [&mut waiting, &mut other] {
        assert_eq!(client.message().await.0, b'R');
    }
    assert!(stack.clusters.cannot_route_yet().is_some());
    dcs.set_reachable(true);
    waiting.ready().await;
    assert_eq!(ask(&mut waiting, "select 1").await, "CZI");
    assert_eq!(other.fatal().await.0, "3D000");
    assert_eq!(stack.clusters.cannot_route_yet(), None);
}

#[tokio::test]
async fn who_waits_too_long_for_word_of_its_cluster_hears_57p03() {
    let dcs = MemoryDcs::new();
    dcs.set_reachable(false);
    let stack = Stack::start(Setup {
        mode: Mode::Session,
        pooling: Some(format!("{ONE}databases: {{\"*\": {{scope: \"*\"}}}}\n")),
        is_by_database: true,
        hold_timeout: Duration::from_millis(50),
        dcs: Arc::new(dcs),
        ..Setup::default()
    })
    .await;
    let (code, text) = stack.refusal("app", "one").await;
    assert_eq!(code, "57P03");
    assert!(
        text.starts_with("cluster one takes no writes now"),
        "{text}"
    );
}

#[tokio::test]
async fn a_reload_leads_to_new_clusters_and_leaves_the_old_ones_when_nobody_uses_them() {
    let dcs = MemoryDcs::new();
    let stack = by_database(&dcs, "databases: {old: {scope: old}}").await;
    let [mut a, mut b] = [
        FakePostgres::start(false).await,
        FakePostgres::start(false).await,
    ];
    stack.lead_in("old", "a", a.address).await;
    stack.lead_in("new", "a", b.address).await;
    let mut old = stack.inside("app", "old").await;
    assert_eq!(ask(&mut old, "select 1").await, "CZI");
    let sections = format!("{ONE}databases: {{new: {{scope: new, pool_mode: session}}}}\n");
    let (pooling, registry) = (pooling_of(&sections), stack.listening.registry.clone());
    let registry = registry.unwrap();
    let (next, _) = {
        let now = registry.in_force.current();
        let config = stack.config.clone();
        now.followed_by(pooling, &[config]).unwrap()
    };
    stack.clusters.want(next.scopes());
    registry.reload(next);
    // The entry names the mode, too: the key is the server's own.
    let (mut new, key) = keyed_in(&stack, "new").await;
    assert_eq!(key[..4], [0, 0, 0, 9]);
    assert_eq!(ask(&mut new, "select 2").await, "CZI");
    let seen = b.until(|seen| seen.queries.len() == 1).await;
    assert_eq!(seen.queries, ["select 2"]);
    assert_eq!(stack.refusal("app", "old").await.0, "3D000");
    // Who is in there goes on, and its leader is followed.
    assert_eq!(ask(&mut old, "select 3").await, "CZI");
    let mut c = FakePostgres::start(false).await;
    stack.lead_in("old", "b", c.address).await;
    a.until(|seen| seen.ended == 1).await;
    assert_eq!(ask(&mut old, "select 4").await, "CZI");
    old.send(&message(b'X', b"")).await;
    stack.until_followed("old", false).await;
    // What is left of its servers is closed.
    let seen = c.until(|seen| seen.ended == 1).await;
    assert_eq!(seen.queries, ["select 4"]);
}

async fn keyed_in(stack: &Stack, database: &str) -> (Client, Vec<u8>) {
    let mut client = stack.asking("app", database).await;
    let key = loop {
        let (kind, body) = client.message().await;
        if kind == b'K' {
            break body;
        }
    };
    client.ready().await;
    (client, key)
}

#[tokio::test]
async fn a_listener_of_one_cluster_does_not_lead_to_another() {
    let databases = "databases: {app: {}, here: {scope: demo}, there: {scope: other}}\n";
    let stack = stack(Mode::Transaction, &format!("{ONE}{databases}")).await;
    let [mut a, b] = [
        FakePostgres::start(false).await,
        FakePostgres::start(false).await,
    ];
    stack.lead("a", a.address).await;
    stack.lead_in("other", "b", b.address).await;
    for database in ["app", "here"] {
        let mut client = stack.inside("app", database).await;
        assert_eq!(ask(&mut client, "select 1").await, "CZI");
    }
    a.until(|seen| seen.queries.len() == 2).await;
    let (code, text) = stack.refusal("app", "there").await;
    assert_eq!(code, "3D000");
    assert!(
        text.contains("is in cluster other, and this listener"),
        "{text}"
    );
}

#[tokio::test]
async fn a_users_mode_goes_before_its_databases_and_too_many_clients_are_told_of_what() {
    let a = FakePostgres::start(false).await;
    let limited = format!(
        "{ONE}databases: {{app: {{max_db_client_connections: 2}}, \"*\": {{pool_mode: session}}}}\n\
         users: {{other: {{pool_mode: transaction, max_user_client_connections: 1}}}}\n"
    );
    let stack = stack(Mode::Statement, &limited).await;
    stack.lead("a", a.address).await;
    let mut other = stack.inside("other", "x").await;
    assert_eq!(ask(&mut other, "begin").await, "CZT");
    assert_eq!(ask(&mut other, "commit").await, "CZI");
    let (code, text) = stack.refusal("other", "app").await;
    assert_eq!(code, "53300");
    assert_eq!(
        text,
        "sorry, too many clients already: user \"other\" allows 1 (max_user_client_connections)"
    );
    other.send(&message(b'X', b"")).await;
    let _one = stack.inside("app", "app").await;
    let _two = stack.inside("app", "app").await;
    let (code, text) = stack.refusal("app", "app").await;
    assert_eq!(code, "53300");
    assert!(
        text.contains("database \"app\" allows 2 (max_db_client_connections)"),
        "{text}"
    );
    // The listener's mode, where neither says otherwise.
    let mut one = stack.inside("app", "x").await;
    assert_eq!(ask(&mut one, "begin").await, "CZT");
}

/// Makes it a router of the fleet in every cluster that it follows.
async fn in_fleet(stack: &Stack, name: &str) -> InFleet {
    let (own, registration) = prepare(stack, name, Path::new(NOWHERE)).await;
    let (dcs, clusters) = (stack.dcs.clone(), stack.clusters.clone());
    registration.keep(dcs, "service".to_owned(), clusters);
    own
}

#[tokio::test]
async fn a_router_is_registered_in_the_clusters_that_it_follows_and_in_no_other() {
    let dcs = MemoryDcs::new();
    let stack = by_database(&dcs, "databases: {one: {scope: one}, two: {scope: two}}").await;
    let own = in_fleet(&stack, "r").await;
    let registered = async || {
        let mut scopes = Vec::new();
        for scope in ["one", "two"] {
            let prefix = format!("/service/{scope}/routers/{}", own.key);
            if !dcs.read_keys(&prefix).await.unwrap().entries.is_empty() {
                scopes.push(scope);
            }
        }
        scopes
    };
    until(async || registered().await == ["one", "two"]).await;
    let scopes = |names: &[&str]| Scopes {
        named: names.iter().map(|name| ClusterName::new(name)).collect(),
        ..Scopes::default()
    };
    stack.clusters.want(scopes(&["two"]));
    until(async || registered().await == ["two"]).await;
    stack.clusters.want(scopes(&["one", "two"]));
    until(async || registered().await == ["one", "two"]).await;
    own.leaving.leave().await;
    assert!(registered().await.is_empty());
}

#[tokio::test]
async fn a_cancel_finds_its_query_in_any_cluster_through_another_router() {
    let dcs = MemoryDcs::new();
    let mut a = FakePostgres::start(false).await;
    let databases = "databases: {app: {scope: one}, other: {scope: two}}";
    let one = by_database(&dcs, databases).await;
    let two = by_database(&dcs, databases).await;
    one.lead_in("one", "a", a.address).await;
    let _members = (in_fleet(&one, "r").await, in_fleet(&two, "s").await);
    let knows = |stack: &Stack| {
        let followed = stack.clusters.find(&ClusterName::new("one")).unwrap();
        followed.cluster.routers().len() == 2
    };
    until(async || knows(&one) && knows(&two)).await;
    let (mut client, key) = keyed(&one).await;
    client.query("wait").await;
    a.until(|seen| seen.queries.len() == 1).await;
    let mut canceller = two.client().await;
    let packet = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &key].concat();
    canceller.send(&packet).await;
    assert_eq!(canceller.rest().await, b"");
    assert_eq!(error(&mut client).await, "57014");
    assert_eq!(answer(&mut client).await, "ZI");
}
