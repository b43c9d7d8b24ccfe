//! `SHOW STATS` and its parts: what was done, by database. Bytes are those between clients and the router.

use super::{CONSOLE, Snapshot};
use crate::admin::desk;
use crate::admin::table::{Cell, Column, Kind, Table, number, text};
use crate::tally::Totals;

/// One figure: what it is called as a total and as an average in `SHOW STATS`, in the shorter tables, and in `TOTALS`.
struct Figure {
    total: &'static str,
    average: &'static str,
    of_totals: &'static str,
    of_averages: &'static str,
    sum: &'static str,
    value: fn(&Totals) -> u64,
    /// A time is averaged over these, a count over the seconds.
    per: Option<fn(&Totals) -> u64>,
}

const FIGURES: [Figure; 12] = [
    Figure {
        total: "total_server_assignment_count",
        average: "avg_server_assignment_count",
        of_totals: "server_assignment_count",
        of_averages: "server_assignment_count",
        sum: "server_assignment_count",
        value: |it| it.assignments,
        per: None,
    },
    Figure {
        total: "total_xact_count",
        average: "avg_xact_count",
        of_totals: "xact_count",
        of_averages: "xact_count",
        sum: "xact_count",
        value: |it| it.transactions,
        per: None,
    },
    Figure {
        total: "total_query_count",
        average: "avg_query_count",
        of_totals: "query_count",
        of_averages: "query_count",
        sum: "query_count",
        value: |it| it.queries,
        per: None,
    },
    Figure {
        total: "total_received",
        average: "avg_recv",
        of_totals: "bytes_received",
        of_averages: "bytes_received",
        sum: "client_bytes",
        value: |it| it.received,
        per: None,
    },
    Figure {
        total: "total_sent",
        average: "avg_sent",
        of_totals: "bytes_sent",
        of_averages: "bytes_sent",
        sum: "server_bytes",
        value: |it| it.sent,
        per: None,
    },
    Figure {
        total: "total_xact_time",
        average: "avg_xact_time",
        of_totals: "xact_time",
        of_averages: "xact_time",
        sum: "xact_time",
        value: |it| it.transaction.micros(),
        per: Some(|it| it.transactions),
    },
    Figure {
        total: "total_query_time",
        average: "avg_query_time",
        of_totals: "query_time",
        of_averages: "query_time",
        sum: "query_time",
        value: |it| it.query.micros(),
        per: Some(|it| it.queries),
    },
    Figure {
        total: "total_wait_time",
        average: "avg_wait_time",
        of_totals: "wait_time",
        of_averages: "wait_time",
        sum: "wait_time",
        value: |it| it.wait.micros(),
        per: Some(|it| it.assignments),
    },
    Figure {
        total: "total_client_parse_count",
        average: "avg_client_parse_count",
        of_totals: "client_parse_count",
        of_averages: "avg_client_parse_count",
        sum: "ps_client_parse_count",
        value: |it| it.client_parses,
        per: None,
    },
    Figure {
        total: "total_server_parse_count",
        average: "avg_server_parse_count",
        of_totals: "server_parse_count",
        of_averages: "avg_server_parse_count",
        sum: "ps_server_parse_count",
        value: |it| it.server_parses,
        per: None,
    },
    Figure {
        total: "total_bind_count",
        average: "avg_bind_count",
        of_totals: "bind_count",
        of_averages: "avg_bind_count",
        sum: "ps_bind_count",
        value: |it| it.binds,
        per: None,
    },
    Figure {
        total: "total_client_login_count",
        average: "avg_client_login_count",
        of_totals: "client_login_count",
        of_averages: "avg_client_login_count",
        sum: "client_login_count",
        value: |it| it.logins,
        per: None,
    },
];

/// Database, its totals now, and those that averages begin with.
fn by_database(from: &Snapshot) -> Vec<(Box<str>, Totals, Totals)> {
    let mut now = desk::totals(&from.views);
    now.entry(CONSOLE.into()).or_default();
    now.into_iter()
        .map(|(database, totals)| {
            let before = from.sample.1.get(&database).cloned().unwrap_or_default();
            (database, totals, before)
        })
        .collect()
}

impl Figure {
    fn average(&self, from: &Snapshot, now: &Totals, before: &Totals) -> u64 {
        let more = |value: fn(&Totals) -> u64| value(now).saturating_sub(value(before));
        let over = match self.per {
            Some(per) => more(per),
            None => from.now.since(from.sample.0).as_secs(),
        };
        more(self.value) / over.max(1)
    }
}

fn columns(name: impl Fn(&Figure) -> &'static str) -> impl Iterator<Item = Column> {
    FIGURES
        .iter()
        .map(move |figure| (name(figure), Kind::Numeric))
}

fn of_databases(
    from: &Snapshot,
    columns: impl Iterator<Item = Column>,
    cells: impl Fn(&Totals, &Totals) -> Vec<Cell>,
) -> Table {
    let columns: Vec<Column> = [("database", Kind::Text)]
        .into_iter()
        .chain(columns)
        .collect();
    let mut table = Table::of(&columns);
    for (database, now, before) in by_database(from) {
        let mut row = vec![text(database)];
        row.extend(cells(&now, &before));
        table.rows.push(row);
    }
    table
}

/// `SHOW STATS`.
pub(super) fn stats(from: &Snapshot) -> Table {
    let columns = columns(|it| it.total).chain(columns(|it| it.average));
    of_databases(from, columns, |now, before| {
        let totals = FIGURES.iter().map(|it| number((it.value)(now)));
        let averages = FIGURES
            .iter()
            .map(|it| number(it.average(from, now, before)));
        totals.chain(averages).collect()
    })
}

/// `SHOW STATS_TOTALS`.
pub(super) fn totals(from: &Snapshot) -> Table {
    of_databases(from, columns(|it| it.of_totals), |now, _| {
        FIGURES.iter().map(|it| number((it.value)(now))).collect()
    })
}

/// `SHOW STATS_AVERAGES`.
pub(super) fn averages(from: &Snapshot) -> Table {
    of_databases(from, columns(|it| it.of_averages), |now, before| {
        let averages = FIGURES
            .iter()
            .map(|it| number(it.average(from, now, before)));
        averages.collect()
    })
}

/// `SHOW TOTALS`: all databases together, a row for every figure.
pub(super) fn sums(from: &Snapshot) -> Table {
    let (mut now, mut before) = (Totals::default(), Totals::default());
    for (_, more, earlier) in by_database(from) {
        now.add(&more);
        before.add(&earlier);
    }
    let mut table = Table::of(&[("name", Kind::Text), ("value", Kind::Numeric)]);
    for figure in &FIGURES {
        let value = number((figure.value)(&now));
        table
            .rows
            .push(vec![text(format!("total_{}", figure.sum)), value]);
    }
    for figure in &FIGURES {
        let value = number(figure.average(from, &now, &before));
        table
            .rows
            .push(vec![text(format!("avg_{}", figure.sum)), value]);
    }
    table
}
