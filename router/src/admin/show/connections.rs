//! `SHOW CLIENTS`, `SHOW SERVERS` and `SHOW SOCKETS`: a row for every connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Snapshot;
use crate::admin::table::{Cell, Column, Kind, Table, number, text};
use crate::pool::view::{PoolView, ServerView};
use crate::protocol::startup::Replication;
use crate::roster::ClientView;

/// PgBouncer's columns of a connection.
const CONNECTION: [Column; 21] = [
    ("type", Kind::Text),
    ("user", Kind::Text),
    ("database", Kind::Text),
    ("replication", Kind::Text),
    ("state", Kind::Text),
    ("addr", Kind::Text),
    ("port", Kind::Integer),
    ("local_addr", Kind::Text),
    ("local_port", Kind::Integer),
    ("connect_time", Kind::Text),
    ("request_time", Kind::Text),
    ("wait", Kind::Integer),
    ("wait_us", Kind::Integer),
    ("close_needed", Kind::Integer),
    ("ptr", Kind::Text),
    ("link", Kind::Text),
    ("remote_pid", Kind::Integer),
    ("tls", Kind::Text),
    ("application_name", Kind::Text),
    ("prepared_statements", Kind::Integer),
    ("id", Kind::Integer),
];
/// Of a client, behind them: why it keeps its server, and where it came in.
const OF_CLIENT: [Column; 3] = [
    ("pin_reason", Kind::Text),
    ("scope", Kind::Text),
    ("listener", Kind::Text),
];
/// Of a server, behind them: whose it is.
const OF_SERVER: [Column; 2] = [("scope", Kind::Text), ("member", Kind::Text)];
/// PgBouncer's columns of a socket's buffers, behind the first. The router keeps no buffer with a connection that has
/// nothing in it, and does not show what is in one: all are 0.
const BUFFERS: [Column; 7] = [
    ("recv_pos", Kind::Integer),
    ("pkt_pos", Kind::Integer),
    ("pkt_remain", Kind::Integer),
    ("send_pos", Kind::Integer),
    ("send_remain", Kind::Integer),
    ("pkt_avail", Kind::Integer),
    ("send_avail", Kind::Integer),
];

/// What a client is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Idle,
    Active,
    Waiting,
}

/// `SHOW CLIENTS`.
pub fn clients(from: &Snapshot) -> Table {
    let links = Links::of(from);
    let mut table = Table::of(&[&CONNECTION[..], &OF_CLIENT[..]].concat());
    for client in from.clients() {
        let mut row = client_row(from, &links, client, false);
        row.extend(of_client(client));
        table.rows.push(row);
    }
    table
}

/// `SHOW SERVERS`.
pub fn servers(from: &Snapshot) -> Table {
    let links = Links::of(from);
    let mut table = Table::of(&[&CONNECTION[..], &OF_SERVER[..]].concat());
    for (pool, server) in from.servers() {
        let mut row = server_row(from, &links, pool, server, false);
        row.extend([text(&*pool.scope), text(pool.member.clone())]);
        table.rows.push(row);
    }
    table
}

/// `SHOW SOCKETS`: clients and servers; or only those of them that are at something.
pub fn sockets(from: &Snapshot, only_active: bool) -> Table {
    let links = Links::of(from);
    let mut table = Table::of(&[&CONNECTION[..], &BUFFERS[..]].concat());
    let buffers = || BUFFERS.iter().map(|_| number(0));
    for client in from.clients() {
        if only_active && links.at(client) == At::Idle && client.card.mode.is_some() {
            continue;
        }
        let mut row = client_row(from, &links, client, true);
        row.extend(buffers());
        table.rows.push(row);
    }
    for (pool, server) in from.servers() {
        if only_active && !server.is_active {
            continue;
        }
        let mut row = server_row(from, &links, pool, server, true);
        row.extend(buffers());
        table.rows.push(row);
    }
    table
}

/// Which client has which server.
struct Links {
    servers: BTreeMap<u32, (u32, u32)>,
    /// Clients that are here.
    clients: BTreeMap<u32, ()>,
}

impl Links {
    fn of(from: &Snapshot) -> Self {
        let servers = from.servers().filter_map(|(_, server)| {
            let (client, ..) = server.card.read();
            (client != 0).then_some((client, (server.card.id, server.card.process)))
        });
        Self {
            servers: servers.collect(),
            clients: from.clients().map(|it| (it.card.id, ())).collect(),
        }
    }

    fn at(&self, client: &ClientView) -> At {
        if client.waiting_since.is_some() {
            At::Waiting
        } else if self.servers.contains_key(&client.card.id) {
            At::Active
        } else {
            At::Idle
        }
    }
}

fn client_row(from: &Snapshot, links: &Links, client: &ClientView, is_socket: bool) -> Vec<Cell> {
    let card = &client.card;
    let at = links.at(client);
    let state = match (at, is_socket) {
        (At::Idle, false) => "idle",
        (At::Active, false) => "active",
        (At::Waiting, false) => "waiting",
        (At::Idle | At::Active, true) => "cl_active",
        (At::Waiting, true) => "cl_waiting",
    };
    let link = links.servers.get(&card.id);
    let name = client.told.settings.value("application_name");
    let mut row = vec![
        text("C"),
        text(&*card.place.user),
        text(&*card.place.database),
        replication(card.replication),
        text(state),
    ];
    row.extend(addresses(Some(card.peer), card.local));
    row.extend([from.time(card.connected_at), from.time(client.asked_at)]);
    row.extend(from.wait(client.waiting_since));
    row.extend([
        number(0),
        text(pointer(card.id)),
        text(link.map_or_else(String::new, |(server, _)| pointer(*server))),
        number(link.map_or(0, |(_, process)| *process)),
        text(card.tls.clone().unwrap_or_default()),
        text(name.unwrap_or_default()),
        number(client.told.statements),
        number(card.id),
    ]);
    row
}

fn of_client(client: &ClientView) -> [Cell; 3] {
    let place = &client.card.place;
    [
        client.told.pin.and_then(|pin| text(pin.name())),
        (!place.scope.is_empty()).then(|| place.scope.to_string()),
        text(&*place.listener),
    ]
}

fn server_row(
    from: &Snapshot,
    links: &Links,
    pool: &PoolView,
    server: &ServerView,
    is_socket: bool,
) -> Vec<Cell> {
    let card = &server.card;
    let (client, is_cleaned, asked_at) = card.read();
    let state = match (server.is_active, is_cleaned, is_socket) {
        (false, _, false) => "idle",
        (true, true, false) => "tested",
        (true, false, false) => "active",
        (false, _, true) => "sv_idle",
        (true, true, true) => "sv_tested",
        (true, false, true) => "sv_active",
    };
    let is_linked = client != 0 && links.clients.contains_key(&client);
    let link = if is_linked {
        pointer(client)
    } else {
        String::new()
    };
    let mut row = vec![
        text("S"),
        text(&*pool.user),
        text(&*pool.database),
        replication(pool.replication),
        text(state),
    ];
    row.extend(addresses(card.remote, card.local));
    row.extend([from.time(server.opened_at), from.time(asked_at)]);
    row.extend([number(0), number(0)]);
    row.extend([
        number(u8::from(server.is_old)),
        text(pointer(card.id)),
        text(link),
        number(card.process),
        text(card.tls.clone().unwrap_or_default()),
        text(""),
        number(0),
        number(card.id),
    ]);
    row
}

fn addresses(remote: Option<SocketAddr>, local: Option<SocketAddr>) -> [Cell; 4] {
    let host = |at: Option<SocketAddr>| {
        text(at.map_or_else(String::new, |at| at.ip().to_canonical().to_string()))
    };
    let port = |at: Option<SocketAddr>| number(at.map_or(0, |at| at.port()));
    [host(remote), port(remote), host(local), port(local)]
}

fn replication(kind: Option<Replication>) -> Cell {
    text(match kind {
        None => "none",
        Some(Replication::Physical) => "physical",
        Some(Replication::Logical) => "logical",
    })
}

/// A number in the form of PgBouncer's addresses.
fn pointer(id: u32) -> String {
    format!("0x{id:x}")
}
