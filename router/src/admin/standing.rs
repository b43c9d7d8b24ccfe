//! Where the clusters and their routers stand, for `SHOW TOPOLOGY` and `SHOW ROUTERS`: by the routing tables that are in
//! force, and by the records of the fleet.

use std::sync::Arc;

use trunkline_shared::dcs::records::hold_stage_word;

use crate::admin::show::{Fellow, Seat};
use crate::fleet::cancels::Others;
use crate::topology::Cluster;
use crate::topology::routing_table::Writer;

/// Where these clusters stand.
pub(super) fn seats(clusters: &[Arc<Cluster>]) -> Vec<Seat> {
    let mut seats = Vec::new();
    for cluster in clusters {
        let published = cluster.published();
        let table = &published.table;
        let scope = cluster.name.to_string();
        let seat = |role, member, address, epoch, state: String, sessions| Seat {
            scope: scope.clone(),
            role,
            member,
            address,
            epoch,
            state,
            sessions,
        };
        seats.push(match &table.writer {
            Writer::Known {
                member,
                epoch,
                address,
                lane,
            } => seat(
                "writer",
                Some(member.to_string()),
                Some(address.to_string()),
                Some(epoch.to_string()),
                "open".to_owned(),
                cluster.lanes.load(*lane).open,
            ),
            Writer::Promoting { member, epoch } => seat(
                "writer",
                Some(member.to_string()),
                None,
                Some(epoch.to_string()),
                "is being promoted".to_owned(),
                0,
            ),
            Writer::None { why } => seat("writer", None, None, None, why.to_string(), 0),
        });
        for (name, reader) in &table.readers {
            let state = reader.unfit.as_ref();
            seats.push(seat(
                "reader",
                Some(name.to_string()),
                Some(reader.address.to_string()),
                None,
                state.map_or_else(|| "open".to_owned(), ToString::to_string),
                cluster.lanes.load(reader.lane).open,
            ));
        }
    }
    seats
}

/// The routers that are registered, this one too.
pub(super) fn fellows(others: Option<&Arc<Others>>) -> Vec<Fellow> {
    let known = others.map_or_else(Vec::new, |others| others.known());
    let fellows = known.into_iter().map(|(scope, key, record)| {
        let acknowledged = record.acknowledged;
        let acknowledged = acknowledged
            .map(|said| format!("{} of {}", hold_stage_word(said.stage), said.switchover));
        Fellow {
            scope,
            key,
            record,
            acknowledged,
        }
    });
    fellows.collect()
}
