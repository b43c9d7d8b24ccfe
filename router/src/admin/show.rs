//! The tables of `SHOW`, made of what the cores have said: PgBouncer's columns in PgBouncer's order, and the router's
//! own behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_shared::cluster::{ClusterName, Moment, RouterRecord};
use trunkline_shared::service::clock::WallTime;

use crate::admin::commands::Show;
use crate::admin::desk::Sample;
use crate::admin::gather::CoreView;
use crate::admin::table::{Cell, Column, Kind, Table, number, text};
use crate::config::pooling::{Mode, PoolingConfig};
use crate::pool::gate::Gate;
use crate::pool::view::{PoolView, ServerView};
use crate::roster::ClientView;

pub mod connections;
mod facts;
mod fleet;
mod stats;

/// The console's name among the databases.
pub const CONSOLE: &str = "pgbouncer";
/// Its other name.
pub const CONSOLE_TOO: &str = "trunkline";

/// What `SHOW VERSION` says: exporters look for PgBouncer's number, whose columns these are.
pub const VERSION: &str = concat!(
    "PgBouncer 1.26.1 (trunkline-router ",
    env!("CARGO_PKG_VERSION"),
    ")"
);

/// What a table is made of.
pub struct Snapshot {
    /// When it was taken.
    pub now: Moment,
    /// The same by the wall clock.
    pub wall: WallTime,
    /// What every core has.
    pub views: Vec<CoreView>,
    /// The sections of pooled listeners.
    pub config: Arc<PoolingConfig>,
    /// What an operator has told the databases.
    pub gates: Vec<(Box<str>, Arc<Gate>)>,
    /// All are paused.
    pub is_all_paused: bool,
    /// The ports.
    pub ports: Vec<Port>,
    /// Clients that have not logged in.
    pub newcomers: usize,
    /// What averages begin with.
    pub sample: Sample,
    /// Where the clusters stand.
    pub topology: Vec<Seat>,
    /// The routers of each cluster.
    pub routers: Vec<Fellow>,
}

/// A listener.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its address.
    pub address: String,
    /// What it does.
    pub mode: Mode,
    /// Whether it leads to the console only.
    pub is_console: bool,
    /// The most clients at once.
    pub max_client_conn: usize,
}

/// A router of the fleet.
#[derive(Clone, Debug)]
pub struct Fellow {
    /// The cluster that it is registered for.
    pub scope: ClusterName,
    /// `<name>/<instance>`.
    pub key: Arc<str>,
    /// What it says of itself.
    pub record: Arc<RouterRecord>,
    /// The stage of a planned change that it holds, in words.
    pub acknowledged: Option<String>,
}

/// A member's place in the routing table.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The cluster.
    pub scope: String,
    /// `writer` or `reader`.
    pub role: &'static str,
    /// The member, if there is one.
    pub member: Option<String>,
    /// Host and port.
    pub address: Option<String>,
    /// The epoch of a writer.
    pub epoch: Option<String>,
    /// `open`, or why nobody is led there.
    pub state: String,
    /// Sessions and servers there now.
    pub sessions: usize,
}

const STATE: &[Column] = &[("key", Kind::Text), ("value", Kind::Text)];
const VERSION_COLUMNS: &[Column] = &[("version", Kind::Text)];
const PEERS: &[Column] = &[
    ("peer_id", Kind::Integer),
    ("host", Kind::Text),
    ("port", Kind::Integer),
    ("pool_size", Kind::Integer),
];
const PEER_POOLS: &[Column] = &[
    ("peer_id", Kind::Integer),
    ("cl_active_cancel_req", Kind::Integer),
    ("cl_waiting_cancel_req", Kind::Integer),
    ("sv_active_cancel", Kind::Integer),
    ("sv_login", Kind::Integer),
];
const DNS_HOSTS: &[Column] = &[
    ("hostname", Kind::Text),
    ("ttl", Kind::BigInteger),
    ("addrs", Kind::Text),
];
const DNS_ZONES: &[Column] = &[
    ("zonename", Kind::Text),
    ("serial", Kind::BigInteger),
    ("count", Kind::Integer),
];
const TOPOLOGY: &[Column] = &[
    ("scope", Kind::Text),
    ("role", Kind::Text),
    ("member", Kind::Text),
    ("address", Kind::Text),
    ("epoch", Kind::Text),
    ("state", Kind::Text),
    ("sessions", Kind::Integer),
];
const POOLS: &[Column] = &[
    ("database", Kind::Text),
    ("user", Kind::Text),
    ("cl_active", Kind::Integer),
    ("cl_waiting", Kind::Integer),
    ("cl_active_cancel_req", Kind::Integer),
    ("cl_waiting_cancel_req", Kind::Integer),
    ("sv_active", Kind::Integer),
    ("sv_active_cancel", Kind::Integer),
    ("sv_being_canceled", Kind::Integer),
    ("sv_idle", Kind::Integer),
    ("sv_used", Kind::Integer),
    ("sv_tested", Kind::Integer),
    ("sv_login", Kind::Integer),
    ("maxwait", Kind::Integer),
    ("maxwait_us", Kind::Integer),
    ("pool_mode", Kind::Text),
    ("load_balance_hosts", Kind::Text),
];

/// The usage, as PgBouncer lays it out.
pub const HELP: &str = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
    \tSHOW PEERS|PEER_POOLS\n\
    \tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\
    \tSHOW DNS_HOSTS|DNS_ZONES\n\
    \tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\
    \tSHOW TOPOLOGY|ROUTERS\n\
    \tSET key = arg\n\
    \tRELOAD\n\
    \tPAUSE [<db>]\n\
    \tRESUME [<db>]\n\
    \tDISABLE <db>\n\
    \tENABLE <db>\n\
    \tRECONNECT [<db>]\n\
    \tKILL [<db>]\n\
    \tKILL_CLIENT <client_id>\n\
    \tSHUTDOWN\n\
    \tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n\
    \tWAIT_CLOSE [<db>]";

/// The table of a `SHOW`. `HELP` is none: it is empty.
pub fn table(what: Show, from: &Snapshot) -> Table {
    match what {
        Show::Help => Table::default(),
        Show::Config => facts::config(from),
        Show::Databases => facts::databases(from),
        Show::Pools => pools(from),
        Show::Clients => connections::clients(from),
        Show::Servers => connections::servers(from),
        Show::Sockets => connections::sockets(from, false),
        Show::ActiveSockets => connections::sockets(from, true),
        Show::Users => facts::users(from),
        Show::Version => {
            let mut table = Table::of(VERSION_COLUMNS);
            table.rows.push(vec![text(VERSION)]);
            table
        }
        // Routers of a fleet know each other by the DCS: SHOW ROUTERS.
        Show::Peers => Table::of(PEERS),
        Show::PeerPools => Table::of(PEER_POOLS),
        Show::Lists => facts::lists(from),
        Show::Mem => facts::mem(from),
        Show::State => state(from),
        // Names are resolved by the topology, out of the way of clients; nothing is kept here.
        Show::DnsHosts => Table::of(DNS_HOSTS),
        Show::DnsZones => Table::of(DNS_ZONES),
        Show::Stats => stats::stats(from),
        Show::StatsTotals => stats::totals(from),
        Show::StatsAverages => stats::averages(from),
        Show::Totals => stats::sums(from),
        Show::Topology => topology(from),
        Show::Routers => fleet::routers(from),
        Show::Setting(name, value) => Table {
            columns: vec![(name, Kind::Text)],
            rows: vec![vec![text(value)]],
        },
    }
}

impl Snapshot {
    fn clients(&self) -> impl Iterator<Item = &ClientView> {
        self.views.iter().flat_map(|view| &view.roster.clients)
    }

    fn pools(&self) -> impl Iterator<Item = &PoolView> {
        self.views.iter().flat_map(|view| &view.pools)
    }

    fn servers(&self) -> impl Iterator<Item = (&PoolView, &ServerView)> {
        self.pools()
            .flat_map(|pool| pool.servers.iter().map(move |server| (pool, server)))
    }

    /// Every database that is known: of the file, of a client, of a pool, of an operator's word. Not the console.
    fn databases(&self) -> BTreeSet<&str> {
        let of_file = self.config.databases.iter().flat_map(|all| all.names());
        let of_clients = self.clients().filter(|client| client.card.mode.is_some());
        let of_clients = of_clients.map(|client| &*client.card.place.database);
        let of_pools = self.pools().map(|pool| &*pool.database);
        let of_gates = self.gates.iter().map(|(name, _)| &**name);
        of_file
            .chain(of_clients)
            .chain(of_pools)
            .chain(of_gates)
            .collect()
    }

    /// What is done for the clients that came to this database, as this user or any.
    fn mode(&self, database: &str, user: Option<&str>) -> Cell {
        let places = self.views.iter().flat_map(|view| &view.roster.tallies);
        let meant = places.filter(|(place, ..)| {
            *place.database == *database && user.is_none_or(|user| *place.user == *user)
        });
        let modes: BTreeSet<&str> = meant
            .filter_map(|(place, ..)| {
                let mut ports = self.ports.iter();
                let port = ports.find(|port| port.address == *place.listener)?;
                let terms = self.config.terms(&place.database, &place.user);
                let own = terms.and_then(|terms| terms.mode);
                Some(own.unwrap_or(port.mode).name())
            })
            .collect();
        let modes: Vec<&str> = modes.into_iter().collect();
        (!modes.is_empty()).then(|| modes.join(","))
    }

    /// A moment as PgBouncer writes it.
    fn time(&self, moment: Moment) -> Cell {
        let ago = i64::try_from(self.now.since(moment).as_micros()).unwrap_or(0);
        let written = WallTime(self.wall.0 - ago).rfc3339();
        let seconds = written.get(..19).unwrap_or_default().replace('T', " ");
        Some(format!("{seconds} UTC"))
    }

    /// Seconds and microseconds since then.
    fn wait(&self, since: Option<Moment>) -> [Cell; 2] {
        let waited = since.map_or_else(Default::default, |since| self.now.since(since));
        [number(waited.as_secs()), number(waited.subsec_micros())]
    }
}

/// What one pool has on all cores.
#[derive(Default)]
struct Sum {
    active: usize,
    waiting: usize,
    waits_since: Option<Moment>,
    sv_active: usize,
    sv_idle: usize,
    sv_tested: usize,
    sv_login: usize,
}

fn pools(from: &Snapshot) -> Table {
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for pool in from.pools() {
        let sum = sums.entry((&pool.database, &pool.user)).or_default();
        let cleaned = pool.servers.iter().filter(|it| it.is_active);
        let cleaned = cleaned.filter(|it| it.card.read().1).count();
        sum.sv_active += pool.counts.active - cleaned;
        sum.sv_tested += cleaned;
        sum.sv_idle += pool.counts.idle;
        sum.sv_login += pool.counts.connecting;
    }
    for client in from.clients() {
        let place = &client.card.place;
        let key = match client.card.mode {
            Some(_) => (&*place.database, &*place.user),
            None => (CONSOLE, CONSOLE),
        };
        let sum = sums.entry(key).or_default();
        match client.waiting_since {
            Some(since) => {
                sum.waiting += 1;
                let oldest = sum.waits_since.map_or(since, |other| other.min(since));
                sum.waits_since = Some(oldest);
            }
            None => sum.active += 1,
        }
    }
    let mut table = Table::of(POOLS);
    for ((database, user), sum) in sums {
        let mode = match (database, user) {
            (CONSOLE, CONSOLE) => text(Mode::Statement.name()),
            (database, user) => from.mode(database, Some(user)),
        };
        let [maxwait, maxwait_us] = from.wait(sum.waits_since);
        table.rows.push(vec![
            text(database),
            text(user),
            number(sum.active),
            number(sum.waiting),
            number(0),
            number(0),
            number(sum.sv_active),
            number(0),
            number(0),
            number(sum.sv_idle),
            number(0),
            number(sum.sv_tested),
            number(sum.sv_login),
            maxwait,
            maxwait_us,
            mode,
            None,
        ]);
    }
    table
}

fn state(from: &Snapshot) -> Table {
    let word = |is_so: bool| text(if is_so { "yes" } else { "no" });
    let mut table = Table::of(STATE);
    table.rows = vec![
        vec![text("active"), word(!from.is_all_paused)],
        vec![text("paused"), word(from.is_all_paused)],
    ];
    table
}

fn topology(from: &Snapshot) -> Table {
    let mut table = Table::of(TOPOLOGY);
    let rows = from.topology.iter().map(|seat| {
        vec![
            text(seat.scope.clone()),
            text(seat.role),
            seat.member.clone(),
            seat.address.clone(),
            seat.epoch.clone(),
            text(seat.state.clone()),
            number(seat.sessions),
        ]
    });
    table.rows = rows.collect();
    table
}

#[cfg(test)]
mod tests;
