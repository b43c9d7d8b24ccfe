//! `SHOW DATABASES`, `USERS`, `LISTS`, `MEM` and `CONFIG`: what there is, and what it keeps to. No secret is in any.

use std::collections::BTreeSet;
use std::mem::size_of;

use super::{CONSOLE, Snapshot};
use crate::admin::consoles::MAX_CONSOLES;
use crate::admin::table::{Cell, Column, Kind, Table, number, text};
use crate::config::pooling::{Mode, PoolConfig};
use crate::pool::gate::Gate;
use crate::roster::ClientCard;
use crate::server::Server;
use crate::server::card::ServerCard;
use crate::tally::Tally;

const DATABASES: &[Column] = &[
    ("name", Kind::Text),
    ("host", Kind::Text),
    ("port", Kind::Integer),
    ("database", Kind::Text),
    ("force_user", Kind::Text),
    ("pool_size", Kind::Integer),
    ("min_pool_size", Kind::Integer),
    ("reserve_pool_size", Kind::Integer),
    ("server_lifetime", Kind::Integer),
    ("pool_mode", Kind::Text),
    ("load_balance_hosts", Kind::Text),
    ("max_connections", Kind::Integer),
    ("current_connections", Kind::Integer),
    ("max_client_connections", Kind::Integer),
    ("current_client_connections", Kind::Integer),
    ("paused", Kind::Integer),
    ("disabled", Kind::Integer),
];
const USERS: &[Column] = &[
    ("name", Kind::Text),
    ("pool_size", Kind::Text),
    ("reserve_pool_size", Kind::Text),
    ("pool_mode", Kind::Text),
    ("max_user_connections", Kind::Integer),
    ("current_connections", Kind::Integer),
    ("max_user_client_connections", Kind::Integer),
    ("current_client_connections", Kind::Integer),
];
const LISTS: &[Column] = &[("list", Kind::Text), ("items", Kind::Integer)];
const MEM: &[Column] = &[
    ("name", Kind::Text),
    ("size", Kind::Integer),
    ("used", Kind::Integer),
    ("free", Kind::Integer),
    ("memtotal", Kind::Integer),
];
const CONFIG: &[Column] = &[
    ("key", Kind::Text),
    ("value", Kind::Text),
    ("default", Kind::Text),
    ("changeable", Kind::Text),
];

/// A limit as PgBouncer writes it: 0 is none.
fn limit(limit: usize) -> String {
    match limit {
        usize::MAX => "0".to_owned(),
        limit => limit.to_string(),
    }
}

pub(super) fn databases(from: &Snapshot) -> Table {
    let mut table = Table::of(DATABASES);
    for name in from.databases() {
        // Without what a user has of its own: nobody is called by no name.
        let terms = from.config.terms(name, "");
        let pool = terms.as_ref().map_or(&from.config.pool, |own| &own.pool);
        let servers: Vec<_> = from
            .servers()
            .filter(|(pool, _)| *pool.database == *name)
            .collect();
        let at = servers.first().and_then(|(_, server)| server.card.remote);
        let clients = from.clients().filter(|it| it.card.mode.is_some());
        let clients = clients.filter(|it| *it.card.place.database == *name);
        let gate = from.gates.iter().find(|(known, _)| **known == *name);
        let is = |told: fn(&Gate) -> bool| number(u8::from(gate.is_some_and(|(_, it)| told(it))));
        let dbname = terms.as_ref().map(|own| &*own.dbname);
        table.rows.push(vec![
            text(name),
            at.map(|at| at.ip().to_string()),
            number(at.map_or(0, |at| at.port())),
            text(dbname.unwrap_or(name)),
            None,
            number(pool.default_pool_size),
            number(pool.min_pool_size),
            number(pool.reserve_pool_size),
            number(pool.server_lifetime.as_secs()),
            from.mode(name, None),
            None,
            text(limit(pool.max_db_connections)),
            number(servers.len()),
            text(limit(pool.max_db_client_connections)),
            number(clients.count()),
            is(Gate::is_paused),
            is(Gate::is_disabled),
        ]);
    }
    table.rows.push(console_row(from));
    table
}

fn console_row(from: &Snapshot) -> Vec<Cell> {
    let consoles = from.clients().filter(|it| it.card.mode.is_none()).count();
    vec![
        text(CONSOLE),
        None,
        number(0),
        text(CONSOLE),
        text(CONSOLE),
        number(0),
        number(0),
        number(0),
        number(0),
        text(Mode::Statement.name()),
        None,
        number(0),
        number(0),
        number(MAX_CONSOLES),
        number(consoles),
        number(0),
        number(0),
    ]
}

pub(super) fn users(from: &Snapshot) -> Table {
    let mut table = Table::of(USERS);
    for name in user_names(from) {
        let pool = &from.config.pool;
        let own = from.config.user_limits.get(name);
        let servers_at_most = own.and_then(|own| own.max_user_connections);
        let clients_at_most = own.and_then(|own| own.max_user_client_connections);
        let size = |size: Option<usize>| size.map(|size| size.to_string());
        let servers = from.servers().filter(|(pool, _)| *pool.user == *name);
        let clients = from.clients().filter(|it| *it.card.place.user == *name);
        table.rows.push(vec![
            text(name),
            size(own.and_then(|own| own.pool_size)),
            size(own.and_then(|own| own.reserve_pool_size)),
            own.and_then(|own| own.pool_mode)
                .map(|mode| mode.name().to_owned()),
            text(limit(servers_at_most.unwrap_or(pool.max_user_connections))),
            number(servers.count()),
            text(limit(
                clients_at_most.unwrap_or(pool.max_user_client_connections),
            )),
            number(clients.count()),
        ]);
    }
    table
}

fn user_names(from: &Snapshot) -> BTreeSet<&str> {
    let of_file = from.config.users.names();
    let here = from.clients().map(|it| &*it.card.place.user);
    of_file.chain(here).collect()
}

pub(super) fn lists(from: &Snapshot) -> Table {
    let mut table = Table::of(LISTS);
    let pools: BTreeSet<_> = from.pools().map(|it| (&it.database, &it.user)).collect();
    // The console counts among the databases and the pools, as in PgBouncer.
    for (name, items) in [
        ("databases", from.databases().len() + 1),
        ("users", user_names(from).len()),
        ("peers", 0),
        ("pools", pools.len() + 1),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", from.clients().count()),
        ("login_clients", from.newcomers),
        ("free_servers", 0),
        ("used_servers", from.servers().count()),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ] {
        table.rows.push(vec![text(name), number(items)]);
    }
    table
}

/// What is kept for each connection without what its text and its buffers take: the router has no caches of a size.
pub(super) fn mem(from: &Snapshot) -> Table {
    let mut table = Table::of(MEM);
    let tallies: usize = from.views.iter().map(|it| it.roster.tallies.len()).sum();
    for (name, size, used) in [
        ("tally_cache", size_of::<Tally>(), tallies),
        (
            "server_cache",
            size_of::<Server>() + size_of::<ServerCard>(),
            from.servers().count(),
        ),
        (
            "client_cache",
            size_of::<ClientCard>(),
            from.clients().count(),
        ),
    ] {
        let total = number(size * used);
        table.rows.push(vec![
            text(name),
            number(size),
            number(used),
            number(0),
            total,
        ]);
    }
    table
}

pub(super) fn config(from: &Snapshot) -> Table {
    let mut table = Table::of(CONFIG);
    let names = |names: &BTreeSet<String>| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.join(",")
    };
    let config = &from.config;
    let clients = from.ports.iter().filter(|port| !port.is_console);
    let clients: usize = clients.map(|port| port.max_client_conn).sum();
    let clients = clients.min(config.pool.max_client_conn);
    let file = config.auth.file.as_ref();
    let hba = config.auth.hba_file.as_ref();
    let path = |path: Option<&std::path::PathBuf>| {
        path.map_or_else(String::new, |path| path.display().to_string())
    };
    let auth = match config.auth.method {
        Some(method) => method.name(),
        None => "hba",
    };
    let mut rows = vec![
        (
            "admin_users",
            names(&config.admin.admin_users),
            String::new(),
        ),
        ("auth_file", path(file), String::new()),
        ("auth_hba_file", path(hba), String::new()),
        ("auth_type", auth.to_owned(), "scram-sha-256".to_owned()),
        ("max_client_conn", clients.to_string(), "10000".to_owned()),
        ("stats_period", "60".to_owned(), "60".to_owned()),
        (
            "stats_users",
            names(&config.admin.stats_users),
            String::new(),
        ),
    ];
    let defaults = PoolConfig::default();
    let own = config.pool.shown().into_iter();
    let own = own.zip(defaults.shown());
    rows.extend(own.map(|((key, value), (_, default))| (key, value, default)));
    rows.sort_unstable_by_key(|(key, ..)| *key);
    for (key, value, default) in rows {
        let is_changeable = if PoolConfig::can_set(key) {
            "yes"
        } else {
            "no"
        };
        table.rows.push(vec![
            text(key),
            text(value),
            text(default),
            text(is_changeable),
        ]);
    }
    table
}
