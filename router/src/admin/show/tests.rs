use std::net::SocketAddr;

use super::*;
use crate::admin::commands::Command;
use crate::admin::table::Kind;
use crate::auth::users::Users;
use crate::config::RouterConfig;
use crate::roster::{Place, RosterView};
use crate::tally::Tally;

/// What the real one answers, as `SHOW word: column type, ...`; by its RowDescription.
const OF_PGBOUNCER: &str = include_str!("../../../tests/console/columns-of-pgbouncer-1.26.1");

fn snapshot() -> Snapshot {
    let file = "etcd3: {hosts: \"127.0.0.1:1\"}\nlisteners:\n  - {listen: \"127.0.0.1:1\", scope: demo, \
                target: primary, mode: transaction}\nauth: {file: users}\nadmin: {admin_users: boss}\n\
                databases: {app: {dbname: real, pool_size: 7}, \"*\": {}}\n";
    let mut config = RouterConfig::parse(file).unwrap().pooling.unwrap();
    config.users = Arc::new(Users::parse("\"app\" \"hunter2\"\n").unwrap());
    Snapshot {
        now: Moment(3_000_000_000),
        wall: WallTime(0),
        views: Vec::new(),
        config: Arc::new(config),
        gates: Vec::new(),
        is_all_paused: false,
        ports: vec![Port {
            address: "127.0.0.1:1".to_owned(),
            mode: Mode::Transaction,
            is_console: false,
            max_client_conn: 10_000,
        }],
        newcomers: 0,
        sample: Sample::default(),
        topology: Vec::new(),
        routers: Vec::new(),
    }
}

fn of(word: &str) -> Table {
    let Command::Show(what) = Command::parse(&format!("show {word}")).unwrap() else {
        panic!("{word}");
    };
    table(what, &snapshot())
}

fn written(columns: &[Column]) -> Vec<String> {
    let each = columns.iter();
    each.map(|(name, kind)| {
        let kind = match kind {
            Kind::Text => "text",
            Kind::Integer => "integer",
            Kind::BigInteger => "bigint",
            Kind::Numeric => "numeric",
        };
        format!("{name} {kind}")
    })
    .collect()
}

#[test]
fn columns_are_pgbouncers_with_its_types_and_own_ones_come_behind_them() {
    for line in OF_PGBOUNCER.lines() {
        let (word, columns) = line.split_once(": ").unwrap();
        let wanted: Vec<&str> = columns.split(", ").collect();
        let own = written(&of(word).columns);
        assert_eq!(own[..wanted.len()], wanted, "SHOW {word}");
        let more = own.len() - wanted.len();
        let has_own = ["CLIENTS", "SERVERS"].contains(&word);
        assert_eq!(more > 0, has_own, "SHOW {word}: {own:?}");
    }
}

#[test]
fn every_row_has_a_cell_for_every_column_and_no_secret() {
    let words = OF_PGBOUNCER
        .lines()
        .map(|line| line.split_once(": ").unwrap().0);
    for word in words.chain(["TOPOLOGY", "ROUTERS"]) {
        let table = of(word);
        let text = format!("{:?}", table.rows);
        assert!(!text.contains("hunter2"), "SHOW {word}");
        for row in &table.rows {
            assert_eq!(row.len(), table.columns.len(), "SHOW {word}");
        }
    }
}

/// What exporters of PgBouncer look for by name.
#[test]
fn exporters_find_what_they_look_for() {
    let first = |word: &str| -> Vec<String> {
        let rows = of(word).rows;
        rows.into_iter().filter_map(|row| row[0].clone()).collect()
    };
    let config = first("CONFIG");
    for key in [
        "max_client_conn",
        "max_user_connections",
        "default_pool_size",
    ] {
        assert!(config.iter().any(|known| known == key), "{key}");
    }
    let lists = [
        "databases",
        "users",
        "pools",
        "free_clients",
        "used_clients",
        "login_clients",
        "free_servers",
        "used_servers",
        "dns_names",
        "dns_zones",
        "dns_queries",
        "dns_pending",
    ];
    let known = first("LISTS");
    assert!(lists.iter().all(|name| known.iter().any(|own| own == name)));
    assert_eq!(first("DATABASES"), ["app", "pgbouncer"]);
    assert!(first("VERSION")[0].starts_with("PgBouncer 1.26.1 "));
}

#[test]
fn averages_are_taken_from_the_older_sample_on() {
    let tally = Tally::default();
    tally.queries.add(10);
    tally.query.note(std::time::Duration::from_micros(500));
    let place = Place {
        scope: "demo".into(),
        database: "app".into(),
        user: "app".into(),
        listener: "127.0.0.1:1".into(),
    };
    let mut from = snapshot();
    let before = BTreeMap::from([("app".into(), tally.read())]);
    from.sample = (Moment(1_000_000_000), before);
    tally.queries.add(20);
    tally.query.note(std::time::Duration::from_micros(2000));
    from.views = vec![CoreView {
        roster: RosterView {
            tallies: vec![(place, 0, tally.read())],
            ..RosterView::default()
        },
        ..CoreView::default()
    }];
    let stats = stats::stats(&from);
    let cell = |name: &str| {
        let at = stats.columns.iter().position(|(known, _)| *known == name);
        stats.rows[0][at.unwrap()].clone().unwrap()
    };
    assert_eq!(cell("total_query_count"), "30");
    assert_eq!(cell("total_query_time"), "2500");
    // Twenty in two seconds, and two thousand microseconds for them.
    assert_eq!(cell("avg_query_count"), "10");
    assert_eq!(cell("avg_query_time"), "100");
    assert_eq!(from.mode("app", None).as_deref(), Some("transaction"));
}

#[test]
fn moments_are_written_as_pgbouncer_writes_them() {
    let mut from = snapshot();
    from.wall = WallTime(1_795_923_000_000_000);
    assert_eq!(
        from.time(Moment(1_000_000_000)).as_deref(),
        Some("2026-11-29 03:29:58 UTC")
    );
    let _: SocketAddr = from.ports[0].address.parse().unwrap();
}
