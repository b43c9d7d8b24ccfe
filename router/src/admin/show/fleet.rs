//! `SHOW ROUTERS`: the routers of the fleet, by the records that they keep in the DCS: what `trunkline routers` shows.

use trunkline_shared::cluster::router::name_and_instance;

use super::Snapshot;
use crate::admin::table::{Column, Kind, Table, number, text};

const ROUTERS: &[Column] = &[
    ("scope", Kind::Text),
    ("router", Kind::Text),
    ("instance", Kind::Text),
    ("version", Kind::Text),
    ("http_url", Kind::Text),
    ("epoch", Kind::Text),
    ("hold_timeout_ms", Kind::BigInteger),
    ("writer_sessions", Kind::BigInteger),
    ("held_clients", Kind::BigInteger),
    ("acknowledged", Kind::Text),
];

pub(super) fn routers(from: &Snapshot) -> Table {
    let mut table = Table::of(ROUTERS);
    for own in &from.routers {
        let (name, instance) = name_and_instance(&own.key);
        let record = &own.record;
        table.rows.push(vec![
            text(own.scope.as_str()),
            text(name),
            text(instance),
            text(&*record.version),
            text(&*record.http_url),
            record.epoch.map(|epoch| epoch.to_string()),
            number(record.hold_timeout.as_millis()),
            number(record.writer_sessions),
            number(record.held_clients),
            own.acknowledged.clone(),
        ]);
    }
    table
}
