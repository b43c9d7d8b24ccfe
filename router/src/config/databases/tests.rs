use super::*;
use crate::config::{Mistake, RouterConfig};

const BY_DATABASE: &str = r#"
etcd3: {hosts: "10.0.0.1:2379"}
auth: {file: x}
listeners:
  - {listen: "0.0.0.0:6432", target: primary, mode: transaction}
"#;

fn read(more: &str) -> PoolingConfig {
    let text = format!("{BY_DATABASE}{more}");
    RouterConfig::parse(&text).unwrap().pooling.unwrap()
}

fn wrong(text: &str) -> String {
    let mistakes = RouterConfig::parse(text).unwrap_err();
    let each: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    each.join("\n")
}

/// Cluster and database of PostgreSQL.
fn place(pooling: &PoolingConfig, database: &str) -> Option<(String, String)> {
    let terms = pooling.terms(database, "app")?;
    let scope = terms.scope.map(|scope| scope.to_string());
    Some((scope.unwrap_or_default(), terms.dbname.to_string()))
}

fn is(scope: &str, dbname: &str) -> Option<(String, String)> {
    Some((scope.to_owned(), dbname.to_owned()))
}

#[test]
fn an_exact_name_goes_before_patterns_and_the_longest_of_these_before_the_others() {
    let pooling = read(
        "databases:
  shard_1: {scope: special}
  shard_*: {scope: shard-*, dbname: app}
  shard_old_*: {scope: old, dbname: old_*}
  \"*_ro\": {scope: reports}
  \"*\": {scope: rest}
",
    );
    assert_eq!(place(&pooling, "shard_1"), is("special", "shard_1"));
    assert_eq!(place(&pooling, "shard_12"), is("shard-12", "app"));
    assert_eq!(place(&pooling, "shard_old_3"), is("old", "old_3"));
    assert_eq!(place(&pooling, "shard_"), is("rest", "shard_"));
    assert_eq!(place(&pooling, "app_ro"), is("reports", "app_ro"));
    assert_eq!(place(&pooling, "shard_7_ro"), is("shard-7_ro", "app"));
    assert_eq!(place(&pooling, "anything"), is("rest", "anything"));
}

#[test]
fn without_a_star_for_the_rest_other_names_are_unknown() {
    let pooling = read("databases: {app: {scope: main}, 12: {scope: 12}}\n");
    assert_eq!(place(&pooling, "app"), is("main", "app"));
    assert_eq!(place(&pooling, "12"), is("12", "12"));
    assert_eq!(place(&pooling, "apps"), None);
}

#[test]
fn what_a_user_is_told_goes_before_what_its_database_is_told() {
    let pooling = read(
        "pool: {default_pool_size: 9, reserve_pool_size: 8, query_wait_timeout: 60, max_db_client_connections: 7}
databases:
  a: {scope: a, pool_mode: statement, pool_size: 5, query_wait_timeout: 30, server_lifetime: 10, max_db_client_connections: 0}
  b: {scope: b}
users:
  batch: {pool_mode: session, pool_size: 2, query_wait_timeout: 10, query_timeout: 1, max_user_client_connections: 3}
",
    );
    let [both, database, user, none] = [("a", "batch"), ("a", "x"), ("b", "batch"), ("b", "x")]
        .map(|(database, user)| pooling.terms(database, user).unwrap());
    let modes = [&both, &database, &user, &none].map(|terms| terms.mode);
    let session = Some(Mode::Session);
    assert_eq!(modes, [session, Some(Mode::Statement), session, None]);
    let sizes = [&both, &database, &user, &none].map(|terms| terms.pool.default_pool_size);
    assert_eq!(sizes, [2, 5, 2, 9]);
    let waits = [&both, &database, &user, &none].map(|terms| terms.pool.query_wait_timeout);
    assert_eq!(waits, [10, 30, 10, 60].map(Duration::from_secs));
    let clients = [&both, &none].map(|terms| {
        let pool = &terms.pool;
        (
            pool.max_db_client_connections,
            pool.max_user_client_connections,
        )
    });
    assert_eq!(clients, [(usize::MAX, 3), (7, usize::MAX)]);
    assert_eq!(database.pool.server_lifetime, Duration::from_secs(10));
    assert_eq!(none.pool, pooling.pool);
}

#[test]
fn the_clusters_of_a_file_are_named_or_have_a_beginning() {
    let scopes = |more: &str| {
        let config = RouterConfig::parse(&format!("{BY_DATABASE}{more}")).unwrap();
        let databases = config.pooling.unwrap().databases;
        Scopes::of(&config.listeners, databases.as_ref())
    };
    let own = scopes("databases: {a: {scope: a}, b: {scope: a}, \"*\": {scope: rest}}\n");
    assert_eq!(own.named.len(), 2);
    assert_eq!(own.beginning(), None);
    let own = scopes("databases: {s_*: {scope: shard-*}, t_*: {scope: shared-*-x}}\n");
    assert_eq!(own.beginning(), Some("shar"));
    let include = |name: &str| own.include(&ClusterName::new(name));
    assert!(include("shard-1") && include("shared-1-x"));
    assert!(!include("shard-") && !include("shared-1-y"));
    let own = scopes("databases: {\"*\": {scope: \"*\"}}\n");
    assert_eq!(own.beginning(), Some(""));
}

#[test]
fn mistakes_of_databases_are_named() {
    assert_eq!(
        wrong(BY_DATABASE),
        "databases: is missing; a listener without scope takes the cluster from the entry of the client's \
         database, such as shard_1: {scope: shard-1}"
    );
    let text = format!(
        "{BY_DATABASE}databases:
  app: {{}}
  a*: {{scope: a-*-*}}
  b: {{scope: b/c, dbname: b*}}
  c: {{scope: c, pool_mode: tcp}}
  \"*a\": {{scope: d}}
  \"*x\": {{scope: d}}
"
    );
    assert_eq!(
        wrong(&text),
        "\
line 8: databases.a*.scope is \"a-*-*\": the name of a cluster is allowed, without / and with no more * than the entry's name has
databases.app.scope: is missing; no pooled listener names a cluster
line 9: databases.b.scope is \"b/c\": the name of a cluster is allowed, without / and without *
line 9: databases.b.dbname is \"b*\": a name is allowed, without *
line 10: databases.c.pool_mode is \"tcp\": session, transaction or statement is allowed
databases.a*: a name could match this and *a, which is as long: give one of them more letters
databases.a*: a name could match this and *x, which is as long: give one of them more letters"
    );
    let tcp = BY_DATABASE.replace(", mode: transaction", "");
    let said = wrong(&tcp);
    assert!(
        said.contains(
            "line 5: listeners[0].scope: is missing; in tcp mode a port leads to one cluster"
        ),
        "{said}"
    );
    let many: String = (0..=MAX_CLUSTERS)
        .map(|n| format!("  d{n}: {{scope: c{n}}}\n"))
        .collect();
    assert_eq!(
        wrong(&format!("{BY_DATABASE}databases:\n{many}")),
        "databases is 257 clusters: at most 256 clusters are followed by one router"
    );
}
