//! The metrics of pools, made of what the cores say when they are asked for: nothing is recorded on the way of a query
//! but plain numbers, and gauges are of one moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use trunkline_shared::service::metrics::DEFAULT_BUCKETS;

use crate::admin::gather::CoreView;
use crate::roster::{OTHER, Place};
use crate::tally::{BUCKETS, TimesRead, Totals};

/// Places with label values of their own. The others are together under `other`. Which have their own is settled as
/// they come, and stays so for as long as they are used.
pub const MAX_LABEL_SETS: usize = 256;

const CLIENTS: &str = "trunkline_router_pool_clients";
const SERVERS: &str = "trunkline_router_pool_servers";
const SERVERS_CLOSED: &str = "trunkline_router_pool_servers_closed_total";
const SESSIONS_ENDED: &str = "trunkline_router_pool_sessions_ended_total";

/// A number that only grows: name, help, value.
type Counter = (&'static str, &'static str, fn(&Totals) -> u64);
/// A time: name, help, value.
type Histogram = (&'static str, &'static str, fn(&Totals) -> &TimesRead);

const COUNTERS: [Counter; 9] = [
    (
        "trunkline_router_pool_queries_total",
        "Requests that were answered to their ReadyForQuery",
        |it| it.queries,
    ),
    (
        "trunkline_router_pool_transactions_total",
        "Transactions that ended",
        |it| it.transactions,
    ),
    (
        "trunkline_router_pool_assignments_total",
        "Servers given to clients",
        |it| it.assignments,
    ),
    (
        "trunkline_router_pool_logins_total",
        "Clients that logged in",
        |it| it.logins,
    ),
    (
        "trunkline_router_pool_received_bytes_total",
        "Bytes that came from clients",
        |it| it.received,
    ),
    (
        "trunkline_router_pool_sent_bytes_total",
        "Bytes of servers passed to clients",
        |it| it.sent,
    ),
    (
        "trunkline_router_pool_client_parses_total",
        "Parse messages of clients",
        |it| it.client_parses,
    ),
    (
        "trunkline_router_pool_server_parses_total",
        "Parse messages that servers were sent",
        |it| it.server_parses,
    ),
    (
        "trunkline_router_pool_binds_total",
        "Bind messages of clients",
        |it| it.binds,
    ),
];

const HISTOGRAMS: [Histogram; 4] = [
    (
        "trunkline_router_pool_wait_seconds",
        "Time that clients waited for a server, 0 where one was at hand",
        |it| &it.wait,
    ),
    (
        "trunkline_router_pool_checkout_seconds",
        "Time that a server was a client's, from the first request to the last answer before it came back",
        |it| &it.checkout,
    ),
    (
        "trunkline_router_pool_query_seconds",
        "Time from a request to the last ReadyForQuery that was outstanding",
        |it| &it.query,
    ),
    (
        "trunkline_router_pool_transaction_seconds",
        "Time from the first request to the end of its transaction",
        |it| &it.transaction,
    ),
];

/// Values of `scope`, `database`, `user` and `listener`.
type Labels = [String; 4];

fn labels(place: &Place, is_own: bool) -> Labels {
    match is_own {
        true => [&place.scope, &place.database, &place.user, &place.listener].map(|it| escaped(it)),
        false => [OTHER; 4].map(str::to_owned),
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

/// What is known, by labels.
#[derive(Default)]
struct Known {
    totals: BTreeMap<Labels, Totals>,
    /// With the state in the place of the listener behind the pool's labels.
    servers: BTreeMap<([String; 3], &'static str), usize>,
    closed: BTreeMap<([String; 3], &'static str), u64>,
    clients: BTreeMap<(Labels, &'static str), usize>,
}

impl Known {
    fn of(views: &[CoreView]) -> Self {
        let mut own = Self::default();
        let mut numbers: BTreeMap<&Place, usize> = BTreeMap::new();
        let mut pools: BTreeMap<[&str; 3], usize> = BTreeMap::new();
        for (place, number, totals) in views.iter().flat_map(|view| &view.roster.tallies) {
            numbers.insert(place, *number);
            let pool = [&*place.scope, &*place.database, &*place.user];
            let least = pools.entry(pool).or_insert(*number);
            *least = (*number).min(*least);
            let labels = labels(place, *number < MAX_LABEL_SETS);
            own.totals.entry(labels).or_default().add(totals);
        }
        let pool = |names: [&str; 3]| match pools.get(&names) {
            Some(number) if *number < MAX_LABEL_SETS => names.map(escaped),
            Some(_) | None => [OTHER; 3].map(str::to_owned),
        };
        for view in views.iter().flat_map(|view| &view.pools) {
            let key = pool([&view.scope, &view.database, &view.user]);
            let mut add = |state, count| {
                *own.servers.entry((key.clone(), state)).or_default() += count;
            };
            add("active", view.counts.active);
            add("idle", view.counts.idle);
            add("login", view.counts.connecting);
        }
        for (names, reason, count) in views.iter().flat_map(|view| &view.roster.closed) {
            let key = pool([&names[0], &names[1], &names[2]]);
            *own.closed.entry((key, reason)).or_default() += count;
        }
        for client in views.iter().flat_map(|view| &view.roster.clients) {
            if client.card.mode.is_none() {
                continue;
            }
            let place = &*client.card.place;
            let is_own = numbers.get(place).is_some_and(|it| *it < MAX_LABEL_SETS);
            let labels = labels(place, is_own);
            // Those who are here and do not wait, and those who do: with both every state is there.
            let waits = usize::from(client.waiting_since.is_some());
            for (state, count) in [("active", 1 - waits), ("waiting", waits)] {
                *own.clients.entry((labels.clone(), state)).or_default() += count;
            }
        }
        own
    }
}

/// All of them in Prometheus's text form.
pub fn render(views: &[CoreView]) -> String {
    let known = Known::of(views);
    let mut out = String::new();
    begin(
        &mut out,
        CLIENTS,
        "Clients of pooled listeners: waiting for a server, or active (with one, or asking nothing)",
        "gauge",
    );
    for ((labels, state), count) in &known.clients {
        line(&mut out, CLIENTS, &all(labels, &[("state", state)]), count);
    }
    begin(&mut out, SERVERS, "Servers of pools, by state", "gauge");
    for ((labels, state), count) in &known.servers {
        line(&mut out, SERVERS, &of_pool(labels, ("state", state)), count);
    }
    let help = "Servers of pools that were closed, by reason";
    begin(&mut out, SERVERS_CLOSED, help, "counter");
    for ((labels, reason), count) in &known.closed {
        let labels = of_pool(labels, ("reason", reason));
        line(&mut out, SERVERS_CLOSED, &labels, count);
    }
    let help = "Sessions of pools that an error ended, by reason";
    begin(&mut out, SESSIONS_ENDED, help, "counter");
    for (labels, totals) in &known.totals {
        for (reason, count) in &totals.ended {
            let labels = all(labels, &[("reason", reason)]);
            line(&mut out, SESSIONS_ENDED, &labels, count);
        }
    }
    for (name, help, value) in COUNTERS {
        begin(&mut out, name, help, "counter");
        for (labels, totals) in &known.totals {
            line(&mut out, name, &all(labels, &[]), value(totals));
        }
    }
    for (name, help, value) in HISTOGRAMS {
        begin(&mut out, name, help, "histogram");
        for (labels, totals) in &known.totals {
            times(&mut out, name, labels, value(totals));
        }
    }
    out
}

fn times(out: &mut String, name: &str, labels: &Labels, times: &TimesRead) {
    let mut count = 0;
    let bucket = format!("{name}_bucket");
    for at in 0..BUCKETS {
        count += times.buckets[at];
        let bound = DEFAULT_BUCKETS.get(at);
        let bound = bound.map_or_else(|| "+Inf".to_owned(), f64::to_string);
        line(out, &bucket, &all(labels, &[("le", &bound)]), count);
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sum of seconds is told as a float; beyond 104 days its nanoseconds are rounded"
    )]
    let seconds = times.nanos as f64 / 1e9;
    line(out, &format!("{name}_sum"), &all(labels, &[]), seconds);
    line(out, &format!("{name}_count"), &all(labels, &[]), count);
}

fn begin(out: &mut String, name: &str, help: &str, kind: &str) {
    // Writing into a String does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

fn all([scope, database, user, listener]: &Labels, more: &[(&str, &str)]) -> String {
    let mut all = format!(
        "scope=\"{scope}\",database=\"{database}\",user=\"{user}\",listener=\"{listener}\""
    );
    for (name, value) in more {
        let _ = write!(all, ",{name}=\"{value}\"");
    }
    all
}

fn of_pool([scope, database, user]: &[String; 3], (name, value): (&str, &str)) -> String {
    format!("scope=\"{scope}\",database=\"{database}\",user=\"{user}\",{name}=\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::RosterView;
    use crate::tally::Tally;

    fn view(places: usize) -> CoreView {
        let tally = Tally::default();
        tally.queries.add(1);
        tally.query.note(std::time::Duration::from_millis(2));
        let place = |number: usize| Place {
            scope: "demo".into(),
            database: format!("d\"{number:04}").into(),
            user: "app".into(),
            listener: "[::]:1".into(),
        };
        let tallies = (0..places).map(|number| (place(number), number, tally.read()));
        CoreView {
            roster: RosterView {
                tallies: tallies.collect(),
                ..RosterView::default()
            },
            ..CoreView::default()
        }
    }

    #[test]
    fn numbers_of_cores_add_up_and_histograms_are_cumulative() {
        let text = render(&[view(1), view(1)]);
        let labels = r#"scope="demo",database="d\"0000",user="app",listener="[::]:1""#;
        for line in [
            format!("trunkline_router_pool_queries_total{{{labels}}} 2"),
            format!("trunkline_router_pool_query_seconds_bucket{{{labels},le=\"0.001\"}} 0"),
            format!("trunkline_router_pool_query_seconds_bucket{{{labels},le=\"0.0025\"}} 2"),
            format!("trunkline_router_pool_query_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("trunkline_router_pool_query_seconds_sum{{{labels}}} 0.004"),
            format!("trunkline_router_pool_query_seconds_count{{{labels}}} 2"),
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
    }

    #[test]
    fn more_places_than_labels_are_counted_together() {
        let text = render(&[view(MAX_LABEL_SETS + 3)]);
        let queries = |line: &&str| line.starts_with("trunkline_router_pool_queries_total{");
        assert_eq!(text.lines().filter(queries).count(), MAX_LABEL_SETS + 1);
        let other = text.lines().filter(queries).find(|it| it.contains(OTHER));
        assert!(other.is_some_and(|it| it.ends_with(" 3")), "{other:?}");
    }
}
