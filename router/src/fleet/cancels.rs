//! Cancels across the fleet: a key that no session here has is offered to the other routers that may have given it out.
//!
//! It goes to their HTTP endpoint, which every record names, and not to their listeners: those may demand a PROXY header
//! and stand behind load balancers. The key is its own proof, as in PostgreSQL's protocol; it is in the body, which is
//! logged nowhere. An endpoint that does not know the key offers it to nobody.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{Method, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use trunkline_shared::cluster::topology::Routers;
use trunkline_shared::cluster::{ClusterName, RouterRecord};
use trunkline_shared::service::clock;
use trunkline_shared::service::http::{HttpClient, Peer};

use crate::clusters::Clusters;
use crate::fleet::beside::Beside;
use crate::fleet::cancel_key;
use crate::fleet::record::Own;
use crate::fleet::wrong_keys::{MAX_WRONG_KEYS, MAX_WRONG_KEYS_OF_ROUTER};
use crate::listener::limits::Limits;
use crate::pool::registry::Registry;
use crate::protocol::messages;
use crate::protocol::startup::{self, First, Progress};
use crate::topology::Cluster;
use crate::turns::Turns;

/// How long a cancel waits for its end: a session that waits for a leader looks at its mail later.
const CANCEL_TIME: Duration = Duration::from_secs(1);
/// How long another router may take: [`CANCEL_TIME`] and the way there and back. A dead one costs that much.
pub(super) const OFFER_TIME: Duration = Duration::from_millis(1500);
/// Keys on their way to one other router at once; more are not offered to it, as PostgreSQL gives no answer to them
/// either.
const MAX_OFFERS: usize = 64;
/// The most routers that one key is offered to.
const MAX_ROUTERS: usize = 64;
/// In the place of a URL: the processes of a hand-over, which have sockets.
const BESIDE: &str = "";
/// The longest body of an offer, bytes: the longest secret of protocol 3.2 fits.
const MAX_OFFER: usize = 1024;

/// A cancel key as a client sends it.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    process: u32,
    secret: Box<[u8]>,
}

impl CancelKey {
    /// Reads a cancel request.
    pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut packet = vec![0; 4];
        from.read_exact(&mut packet).await?;
        let whole = match startup::parse(&packet) {
            Ok(Progress::Need(_)) => {
                u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]])
            }
            Ok(Progress::Whole(..)) | Err(_) => return Err(invalid()),
        };
        // The parser has looked at the length.
        packet.resize(whole as usize, 0);
        from.read_exact(&mut packet[4..]).await?;
        match startup::parse(&packet) {
            Ok(Progress::Whole(First::Cancel, _)) => Self::of_packet(&packet).ok_or_else(invalid),
            Ok(Progress::Whole(..) | Progress::Need(_)) | Err(_) => Err(invalid()),
        }
    }

    /// The request as a client sends it.
    pub(super) fn packet(&self) -> Vec<u8> {
        messages::cancel(self.process, &self.secret)
    }

    /// The key of a cancel request, whose length and code were looked at.
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        let process = packet.get(8..12)?.try_into().ok()?;
        Some(Self {
            process: u32::from_be_bytes(process),
            secret: packet.get(12..)?.into(),
        })
    }
}

/// A key on its way to another router.
#[derive(Deserialize, Serialize)]
struct Offer {
    process: u32,
    secret: String,
}

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A session here had it, and has dealt with it.
    Here,
    /// None had.
    Nowhere,
    /// Too many keys are looked at, or too many wrong ones came from that address: it was not looked at.
    TooMany,
}

/// The sessions of this process, as far as cancels go.
#[derive(Clone)]
pub struct Carrier {
    /// Who is cancelled by which key.
    pub registry: Arc<Registry>,
    /// How many keys are looked at.
    pub limits: Arc<Limits>,
}

/// Who asks for a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// A client, from this address.
    Client(IpAddr),
    /// Another router, or whoever reaches the endpoint as one could.
    Router(IpAddr),
    /// The other process of a hand-over, which has counted the wrong keys itself.
    Beside,
}

/// Asks the sessions of this process.
pub(super) async fn look_here(
    registry: &Registry,
    limits: &Limits,
    key: &CancelKey,
    asker: Asker,
) -> Found {
    let Ok(_permit) = limits.cancels.try_acquire() else {
        return Found::TooMany;
    };
    let may_try = |from, most| limits.wrong_keys().may_try(from, most, clock::now());
    let is_looked_at = match asker {
        Asker::Client(from) => may_try(from, MAX_WRONG_KEYS),
        Asker::Router(from) => may_try(from, MAX_WRONG_KEYS_OF_ROUTER),
        Asker::Beside => true,
    };
    if !is_looked_at {
        return Found::TooMany;
    }
    match registry.cancel(key.process, &key.secret) {
        Some(over) => {
            // It ends by an error: nothing is ever sent.
            let _ = timeout(CANCEL_TIME, over).await;
            Found::Here
        }
        None => Found::Nowhere,
    }
}

/// Takes a client's key to the session that has it, here or at another router. Ends when that has dealt with it, or when
/// nobody has it. A flood of keys that are somebody else's takes no place of those that are known here; and of one
/// address only so many are offered to the others that these go on looking at what comes from this router.
pub async fn carry_out(
    registry: &Registry,
    limits: &Limits,
    others: Option<&Others>,
    key: &CancelKey,
    from: IpAddr,
) {
    match look_here(registry, limits, key, Asker::Client(from)).await {
        Found::Here | Found::TooMany => return,
        Found::Nowhere => {}
    }
    let may_offer = {
        let mut wrong_keys = limits.wrong_keys();
        let now = clock::now();
        let may_offer = wrong_keys.may_offer(from, now);
        // It counts until somebody has it: those that are on their way do, too.
        wrong_keys.note(from, now);
        may_offer
    };
    let Some(others) = others.filter(|_| may_offer) else {
        return;
    };
    if others.offer(key).await {
        limits.wrong_keys().take_back(from, clock::now());
    }
}

/// A router that is registered: the cluster, `<name>/<instance>`, and its record.
pub type Registered = (ClusterName, Arc<str>, Arc<RouterRecord>);

/// The other routers, as this process knows them.
pub struct Others {
    own: Arc<Own>,
    clusters: Arc<Clusters>,
    client: HttpClient,
    beside: Beside,
    turns: Turns,
}

impl Others {
    /// Those that are registered for any of these clusters, and the processes of this one's hand-over.
    pub fn new(own: Arc<Own>, clusters: Arc<Clusters>, client: HttpClient, beside: Beside) -> Self {
        Self {
            own,
            clusters,
            client,
            beside,
            turns: Turns::new(MAX_OFFERS),
        }
    }

    /// Every router that is registered, this one too.
    pub fn known(&self) -> Vec<Registered> {
        let of_cluster = |cluster: &Arc<Cluster>| {
            let routers = cluster.routers();
            let name = cluster.name.clone();
            let entry = move |(key, record): (&Arc<str>, &Arc<RouterRecord>)| {
                (name.clone(), key.clone(), record.clone())
            };
            routers.iter().map(entry).collect::<Vec<_>>()
        };
        self.clusters.all().iter().flat_map(of_cluster).collect()
    }

    /// Whether one of them had the key. The first that has it is waited for, and no other.
    async fn offer(&self, key: &CancelKey) -> bool {
        let offer = Offer {
            process: key.process,
            secret: STANDARD.encode(&key.secret),
        };
        // Numbers and text always become JSON.
        let body = serde_json::to_vec(&offer).unwrap_or_default();
        let fleets: Vec<Routers> = self.clusters.all().iter().map(|c| c.routers()).collect();
        let mut asking = JoinSet::new();
        let (beside, own) = (self.beside.clone(), key.clone());
        let turn = |address: &Arc<str>| self.turns.of(address).try_acquire_owned();
        if let Ok(turn) = turn(&BESIDE.into()) {
            asking.spawn(async move {
                let _turn = turn;
                beside.offer(&own).await
            });
        }
        for url in candidates(key.process, &self.own, &fleets) {
            let Ok(turn) = turn(&url) else {
                continue;
            };
            let (client, body) = (self.client.clone(), body.clone().into());
            asking.spawn(async move {
                let _turn = turn;
                let url = format!("{url}/cancel");
                let asked = client.request(Method::POST, &url, body, OFFER_TIME);
                asked.await.is_ok_and(|answer| answer.status == 204)
            });
        }
        while let Some(taken) = asking.join_next().await {
            if taken.is_ok_and(|is_taken| is_taken) {
                return true;
            }
        }
        false
    }
}

/// Where a key that is not known here may be: at the routers that it names, or at all where it names none.
fn candidates(process: u32, own: &Own, fleets: &[Routers]) -> BTreeSet<Arc<str>> {
    let named = cancel_key::number(process);
    let records = fleets.iter().flat_map(|routers| routers.values());
    let mut urls = BTreeSet::new();
    for record in records {
        let Some(number) = record.cancel_number else {
            continue;
        };
        let may_know = named.is_none_or(|named| named == number);
        if may_know && record.http_url != own.http_url && urls.len() < MAX_ROUTERS {
            urls.insert(record.http_url.clone());
        }
    }
    urls
}

/// What the endpoint answers by.
#[derive(Clone)]
struct Endpoint {
    carrier: Carrier,
    beside: Beside,
}

/// `POST /cancel`: 204 once a session here has dealt with it, 404 where none has the key, 429 where too many keys come, or too
/// many wrong ones.
pub fn routes(carrier: Carrier, beside: Beside) -> Router {
    Router::new()
        .route("/cancel", post(take))
        .layer(DefaultBodyLimit::max(MAX_OFFER))
        .with_state(Endpoint { carrier, beside })
}

async fn take(
    State(endpoint): State<Endpoint>,
    Extension(peer): Extension<Peer>,
    Json(offer): Json<Offer>,
) -> StatusCode {
    let Ok(secret) = STANDARD.decode(offer.secret) else {
        return StatusCode::BAD_REQUEST;
    };
    let key = CancelKey {
        process: offer.process,
        secret: secret.into(),
    };
    let Carrier { registry, limits } = &endpoint.carrier;
    match look_here(registry, limits, &key, Asker::Router(peer.address)).await {
        Found::Here => StatusCode::NO_CONTENT,
        Found::TooMany => StatusCode::TOO_MANY_REQUESTS,
        // The sessions that this process's forerunner kept were reached at this endpoint, too.
        Found::Nowhere => match endpoint.beside.offer(&key).await {
            true => StatusCode::NO_CONTENT,
            false => {
                limits.wrong_keys().note(peer.address, clock::now());
                StatusCode::NOT_FOUND
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn router(url: &str, cancel_number: Option<u16>) -> Arc<RouterRecord> {
        Arc::new(RouterRecord {
            version: "0.1.0".into(),
            http_url: url.into(),
            hold_timeout: Duration::ZERO,
            epoch: None,
            acknowledged: None,
            writer_sessions: 0,
            held_clients: 0,
            cancel_number,
        })
    }

    fn asked(process: u32) -> Vec<String> {
        let own = Own {
            key: "a/1".into(),
            version: "0.1.0".into(),
            http_url: "http://a".into(),
            cancel_number: Some(1),
        };
        let fleet = |routers: &[(&str, Option<u16>)]| -> Routers {
            let entry = |(number, (url, own)): (usize, &(&str, Option<u16>))| {
                (format!("{number}/1").into(), router(url, *own))
            };
            Arc::new(BTreeMap::from_iter(routers.iter().enumerate().map(entry)))
        };
        let one = fleet(&[
            ("http://a", Some(1)),
            ("http://b", Some(2)),
            ("http://c", Some(2)),
            ("http://d", None),
        ]);
        let two = fleet(&[("http://b", Some(2)), ("http://e", Some(4))]);
        let urls = candidates(process, &own, &[one, two]);
        urls.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_key_is_offered_to_the_routers_that_it_names_and_to_all_where_it_names_none() {
        let named = |number| asked(cancel_key::process(number, 77));
        assert_eq!(named(2), ["http://b", "http://c"]);
        assert_eq!(named(4), ["http://e"]);
        assert!(named(1).is_empty() && named(9).is_empty());
        assert_eq!(asked(4711), ["http://b", "http://c", "http://e"]);
    }

    #[test]
    fn a_packet_is_taken_apart() {
        let packet = [
            &[0, 0, 0, 16, 4, 210, 22, 46][..],
            &[0, 0, 1, 2, 9, 8, 7, 6],
        ]
        .concat();
        let key = CancelKey::of_packet(&packet).unwrap();
        assert_eq!((key.process, &*key.secret), (258, &[9, 8, 7, 6][..]));
        assert!(CancelKey::of_packet(&packet[..11]).is_none());
    }
}
