//! `/failsafe`, with Patroni's bodies and codes: another member leads and the DCS does not answer it.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use trunkline_shared::cluster::{Lsn, MemberName, MemberRole, Timeline};
use trunkline_shared::dcs::records::{epoch_from_text, failsafe_to_json};

use super::published::Published;
use super::{Api, local, text, with_status};
use crate::decide::observation::Asked;

/// The longest time that a leader may ask for, where the cluster's `ttl` is not known: no lease is longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// So many `ttl` as known here are the longest otherwise, since a change of it may not have come here yet. Whoever
/// asks need not prove who it is, and a promise keeps this member from leading.
const LONGEST_TTLS: u32 = 2;

/// Promises this asker what it asks for, unless the function given says that this member may write; an error says why
/// not.
pub type Consent =
    dyn Fn(&MemberName, Asked, &dyn Fn() -> bool) -> Result<(), String> + Send + Sync;

#[derive(Debug, Deserialize)]
struct Body {
    name: String,
    trunkline: Option<Fields>,
}

/// What a Patroni leader does not say.
#[derive(Debug, Deserialize)]
struct Fields {
    epoch: String,
    ttl_ms: u64,
    cluster: String,
    to: String,
    /// How far it has written, and on which timeline.
    timeline: Option<u32>,
    position: Option<u64>,
}

/// `GET /failsafe`: the list, 502 where there is none.
pub(super) fn list(published: &Published) -> Response {
    let failsafe = &published.topology.failsafe;
    if failsafe.is_empty() {
        return text(StatusCode::BAD_GATEWAY, "failsafe mode is off");
    }
    with_status(200, "application/json", failsafe_to_json(failsafe))
}

/// `POST /failsafe`: 200 once this member has written down that it does not run for leader, 500 where it
/// leads itself or knows better, 502 where the mode is off.
pub(super) fn consent(api: &Api, body: &[u8]) -> Response {
    let published = api.published.load();
    let asked: Body = match local::object(body) {
        Ok(asked) => asked,
        Err(why) => return text(StatusCode::BAD_REQUEST, &why),
    };
    let settings = published.topology.settings_or_default();
    let (epoch, ttl) = match &asked.trunkline {
        None if settings.failsafe_mode != Some(true) => {
            return text(StatusCode::BAD_GATEWAY, "failsafe mode is off");
        }
        None => (None, settings.ttl),
        Some(fields) => {
            let is_me = fields.cluster == published.cluster.as_str()
                && fields.to == published.name.as_str();
            if !is_me {
                let why = format!(
                    "this is {} of {}, not {} of {}: an api_url has changed hands",
                    published.name, published.cluster, fields.to, fields.cluster
                );
                return text(StatusCode::INTERNAL_SERVER_ERROR, &why);
            }
            let Some(epoch) = epoch_from_text(&fields.epoch) else {
                return text(StatusCode::BAD_REQUEST, "trunkline.epoch is no epoch");
            };
            let ttl = Duration::from_millis(fields.ttl_ms);
            let known = published.topology.settings.as_ref();
            let longest = known.map_or(LONGEST, |known| known.ttl * LONGEST_TTLS);
            if ttl > longest {
                // A shorter promise than was asked for would be believed.
                let why = format!(
                    "trunkline.ttl_ms is {}, and by the ttl as known here {} are the most",
                    fields.ttl_ms,
                    longest.as_millis()
                );
                return text(StatusCode::BAD_REQUEST, &why);
            }
            (Some(epoch), ttl)
        }
    };
    if published.reason.is_none() {
        // Whether PostgreSQL here is a primary is not known before the first turn.
        return text(StatusCode::INTERNAL_SERVER_ERROR, "starting");
    }
    let leads = || may_write(&api.published.load()) || asked.name == published.name.as_str();
    let fields = asked.trunkline.as_ref();
    let reached =
        fields.and_then(|fields| Some((Timeline(fields.timeline?), Lsn(fields.position?))));
    let wish = Asked {
        epoch,
        ttl,
        reached,
    };
    match (api.consent)(&MemberName::new(&asked.name), wish, &leads) {
        Ok(()) => {
            let mut response = text(StatusCode::OK, "Accepted");
            let position = published.received.max(published.replayed);
            if let Some(position) = position {
                response
                    .headers_mut()
                    .insert("lsn", HeaderValue::from(position.0));
            }
            response
        }
        Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &why),
    }
}

/// Whether this member's PostgreSQL is a primary, or is becoming one.
fn may_write(published: &Published) -> bool {
    match published.role {
        MemberRole::Primary | MemberRole::Promoted => true,
        MemberRole::Replica
        | MemberRole::StandbyLeader
        | MemberRole::Demoted
        | MemberRole::Uninitialized => false,
    }
}
