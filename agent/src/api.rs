//! The REST API: Patroni's paths, codes and JSON. Routes only.
//!
//! Health answers come from [`Published`], a value in memory; no SQL and no DCS call stands on their path.
//! Operators' requests become a record in the DCS, or a [`LocalRequest`] to this agent's own loop: the API
//! never touches PostgreSQL or the lease.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{MemberName, Moment};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::View;
use trunkline_shared::dcs::{Dcs, Operation, Txn};
use trunkline_shared::service::http::Peer;
use trunkline_shared::service::logging::Queue;
use trunkline_shared::service::tls::{Reloadable, ServerSettings};
use trunkline_shared::service::{clock, http};

use crate::decide::handing_over::longest;
use crate::journal::Journal;
use crate::metrics;

pub mod authorization;
pub mod dcs;
mod failsafe;
pub mod health;
pub(crate) mod local;
mod lookup;
mod published;
pub mod requests;
mod scheduled;
pub mod settings;
pub mod status;
pub mod view;

pub use authorization::Access;
pub use failsafe::Consent;
pub use local::{LocalOutcome, LocalRequest};
pub use lookup::Lookup;
pub use published::{Published, ReplicationRow, WallTime};
use requests::{ChangeOfLeader, Kind, Progress, TakenBack};
pub use scheduled::{
    ALREADY_SCHEDULED, NONE_SCHEDULED, ScheduledRestart, resume as resume_scheduled_restart,
};

/// Where the last turns are told, to whom unsafe methods are allowed: they show what the cluster is made of.
pub const JOURNAL: &str = "/trunkline/journal";

/// The largest body of a request, bytes.
const LARGEST_BODY: usize = 16 << 10;

/// The largest body of `PATCH` and `PUT /config`, bytes: a long `pg_hba` fits.
const LARGEST_SETTINGS: usize = 256 << 10;

/// How long a body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(5);

/// How long `GET /config` and `/history` wait for the DCS before they answer from memory.
const READ_LIMIT: Duration = Duration::from_secs(1);

/// Lines of the log that may wait without a word about it: Patroni's number.
const NORMAL_QUEUE: usize = 2;

/// Patroni polls a switchover for `2 * max(10, loop_wait)` seconds before it answers "unknown"; what Patroni has not, the
/// checkpoint ahead and the drain, comes on top.
const LEAST_WAIT: Duration = Duration::from_secs(10);

/// How often the published topology is looked at while a change of leader goes on.
const LOOK: Duration = Duration::from_millis(20);

/// A request counts as called off when no trace of it was seen for this long: the leader may delete the
/// request and announce the switchover in two transactions.
const CALLED_OFF_AFTER: Duration = Duration::from_secs(1);

/// Until when this member may lead, by what was published last and by what is held now.
pub type Deadline = dyn Fn(&Published) -> Option<Moment> + Send + Sync;

/// What the API needs of the agent.
#[derive(Clone)]
pub struct Api {
    /// What it may say.
    pub published: Arc<ArcSwap<Published>>,
    /// Until when this member may lead: the lease is renewed between two ticks, too.
    pub deadline: Arc<Deadline>,
    /// Where requests are written.
    pub dcs: Arc<dyn Dcs>,
    /// Under which keys.
    pub keys: Keys,
    /// The cluster as it is followed.
    pub cluster: watch::Receiver<Arc<View>>,
    /// Requests to this agent alone.
    pub requests: mpsc::Sender<LocalRequest>,
    /// What is asked of whoever changes something.
    pub access: Arc<Reloadable<Access>>,
    /// Where the hosts of the allowlist are.
    pub lookup: Arc<Lookup>,
    /// The process's own metrics as text, beside those of the published state.
    pub render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// The last turns.
    pub journal: Arc<Journal>,
    /// The restart for later.
    pub scheduled_restart: ScheduledRestart,
    /// Consents to another's going on without the DCS.
    pub consent: Arc<Consent>,
    /// The lines of the log that wait.
    pub log: Queue,
    /// The text of a key as it was seen last.
    pub seen: Arc<Seen>,
}

/// The text of a key as it was seen last, without a question to anybody.
pub type Seen = dyn Fn(&FactKey) -> Option<Arc<str>> + Send + Sync;

impl Api {
    /// What may be said now.
    fn shown(&self) -> Arc<Published> {
        let published = self.published.load_full();
        let deadline = (self.deadline)(&published);
        if deadline == published.lease_deadline {
            return published;
        }
        Arc::new(Published {
            lease_deadline: deadline,
            ..Published::clone(&published)
        })
    }
}

/// Serves on `listener` until `stop`, over TLS if settings for it are given, under the limits of the shared server:
/// connections, heads, idle clients and clients that do not read.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    tls: Option<Arc<ServerSettings>>,
    stop: CancellationToken,
) {
    http::serve(listener, router(api), tls, stop).await;
}

/// The routes.
pub fn router(api: Api) -> Router {
    Router::new().fallback(answer).with_state(api)
}

async fn answer(State(api): State<Api>, request: Request) -> Response {
    let access = api.access.current();
    let mut response = respond(&api, &access, request).await;
    for (name, value) in &access.headers {
        response.headers_mut().insert(name, value.clone());
    }
    response
}

/// Nothing of a body is read before its sender is known to be allowed to send it.
async fn respond(api: &Api, access: &Access, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    head.uri = with_one_slash(head.uri);
    match head.method {
        Method::HEAD | Method::OPTIONS => return status_only(api, &head.uri),
        Method::GET if head.uri.path() != JOURNAL => return get(api, &head.uri).await,
        _ => {}
    }
    let (method, path) = (head.method, head.uri.path());
    let peer = head.extensions.get::<Peer>().copied();
    let topology = api.published.load().topology.clone();
    let refusal = access.refusal(path, &head.headers, peer, &api.lookup, &topology);
    if let Some(refused) = refusal.await {
        return refused;
    }
    if method == Method::GET {
        return with_status(200, "application/jsonl", api.journal.lines());
    }
    let has_body = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
        .iter()
        .any(|name| head.headers.contains_key(name));
    if !has_body && needs_body(&method, path) {
        let why = "this request needs a body, and a header that says how long it is";
        return text(StatusCode::LENGTH_REQUIRED, why);
    }
    let body = match read(body, largest(path)).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    match method {
        Method::PATCH | Method::PUT if path == "/config" => {
            settings::change(api, method == Method::PATCH, &body).await
        }
        Method::POST => post(api, path, &body).await,
        Method::DELETE => delete(api, path).await,
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"),
    }
}

/// Tools join an address that ends in a slash and a path that begins with one; Patroni's server takes them for one.
fn with_one_slash(uri: Uri) -> Uri {
    let whole = uri.path_and_query().map(PathAndQuery::as_str);
    match whole.filter(|whole| whole.starts_with("//")) {
        Some(whole) => Uri::try_from(format!("/{}", whole.trim_start_matches('/'))).unwrap_or(uri),
        None => uri,
    }
}

/// Whether a request means nothing without a body.
fn needs_body(method: &Method, path: &str) -> bool {
    match path {
        "/config" => [Method::PATCH, Method::PUT].contains(method),
        "/switchover" | "/failover" | "/failsafe" => method == Method::POST,
        _ => false,
    }
}

fn largest(path: &str) -> usize {
    match path {
        "/config" => LARGEST_SETTINGS,
        _ => LARGEST_BODY,
    }
}

/// The whole body, or the answer to one that is too long, too slow or broken.
async fn read(body: Body, largest: usize) -> Result<Bytes, Response> {
    let too_long = || {
        let why = format!("the body is longer than {largest} bytes");
        text(StatusCode::PAYLOAD_TOO_LARGE, &why)
    };
    // What is announced as too long is not waited for.
    if body.size_hint().lower() > largest as u64 {
        return Err(too_long());
    }
    let reading = Limited::new(body, largest).collect();
    match timeout(BODY_LIMIT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(error)) => {
            let why = format!("the body could not be read: {error}");
            Err(text(StatusCode::BAD_REQUEST, &why))
        }
        Err(_) => {
            let why = format!("the body did not arrive within {BODY_LIMIT:?}");
            Err(text(StatusCode::REQUEST_TIMEOUT, &why))
        }
    }
}

/// Health checks without a body; every other path that can be read exists.
fn status_only(api: &Api, uri: &Uri) -> Response {
    let published = api.shown();
    let query = uri.query().unwrap_or_default();
    let code = match health::status(uri.path(), query, &published, clock::now()) {
        Some(code) => code,
        None => match uri.path() {
            "/patroni" | "/cluster" | "/history" | "/config" | "/metrics" | JOURNAL
            | "/failsafe" | "/trunkline/dcs" => health::YES,
            _ => 404,
        },
    };
    with_status(code, "text/plain", String::new())
}

async fn get(api: &Api, uri: &Uri) -> Response {
    let published = api.shown();
    let now = clock::now();
    match uri.path() {
        "/patroni" => json(200, &member(api, &published, now)),
        "/cluster" => json(
            200,
            &view::cluster(published.cluster.as_str(), &published.topology),
        ),
        "/metrics" => {
            let mut text = metrics::exposition(&published, now);
            text.push_str(&(api.render_metrics)());
            with_status(200, "text/plain; version=0.0.4", text)
        }
        "/failsafe" => failsafe::list(&published),
        "/trunkline/dcs" => json(
            200,
            &dcs::known(&api.keys, &published, &api.cluster.borrow()),
        ),
        "/history" => raw(api, &FactKey::History, 200, "[]").await,
        "/config" => raw(api, &FactKey::Settings, 502, "").await,
        path => {
            let query = uri.query().unwrap_or_default();
            match health::status(path, query, &published, now) {
                Some(code) => json(code, &member(api, &published, now)),
                None => text(StatusCode::NOT_FOUND, "no such path"),
            }
        }
    }
}

/// This member, with what the process itself knows.
fn member(api: &Api, published: &Published, now: Moment) -> Value {
    let mut answer = status::member(published, now);
    if let Some(scheduled) = api.scheduled_restart.shown() {
        answer["scheduled_restart"] = scheduled;
    }
    let (waiting, lost) = (api.log.waiting(), api.log.lost());
    if waiting > NORMAL_QUEUE {
        answer["logger_queue_size"] = waiting.into();
    }
    if lost > 0 {
        answer["logger_records_lost"] = lost.into();
    }
    answer
}

/// A key's value as it stands in the DCS, or as it was seen last where the DCS does not answer in time; `status` and
/// `otherwise` where there is none.
async fn raw(api: &Api, key: &FactKey, status: u16, otherwise: &str) -> Response {
    let read = Txn {
        then: vec![Operation::Get(api.keys.path(key))],
        ..Txn::default()
    };
    let known = |why: String| match (api.seen)(key) {
        Some(value) => with_status(200, "application/json", value.to_string()),
        None => with_status(503, "text/plain", why),
    };
    match timeout(READ_LIMIT, api.dcs.commit(&read)).await {
        Ok(Ok(committed)) => match committed.entries.first() {
            Some(entry) => {
                let value = String::from_utf8_lossy(&entry.value).into_owned();
                with_status(200, "application/json", value)
            }
            None => with_status(status, "application/json", otherwise.to_owned()),
        },
        Ok(Err(error)) => known(error.to_string()),
        Err(_) => known(format!("the DCS did not answer within {READ_LIMIT:?}")),
    }
}

async fn post(api: &Api, path: &str, body: &[u8]) -> Response {
    match path {
        "/switchover" => change_leader(api, Kind::Switchover, body).await,
        "/failover" => change_leader(api, Kind::Failover, body).await,
        "/restart" => local::restart(api, body).await,
        "/reinitialize" => local::reinitialize(api, body).await,
        "/reload" => local::reload(api).await,
        "/failsafe" => failsafe::consent(api, body),
        _ => text(StatusCode::NOT_FOUND, "no such path"),
    }
}

/// Takes back what was scheduled.
async fn delete(api: &Api, path: &str) -> Response {
    match path {
        "/switchover" => match requests::take_back(api.dcs.as_ref(), &api.keys).await {
            Ok(TakenBack::Scheduled) => text(StatusCode::OK, "scheduled switchover deleted"),
            Ok(TakenBack::Standing) => {
                text(StatusCode::OK, "request for a change of leader deleted")
            }
            Ok(TakenBack::Nothing) => text(StatusCode::NOT_FOUND, "no switchover is scheduled"),
            Err(refusal) => with_status(refusal.status, "text/plain", refusal.text),
        },
        "/restart" => api.scheduled_restart.delete(),
        _ => text(StatusCode::NOT_FOUND, "no such path"),
    }
}

async fn change_leader(api: &Api, kind: Kind, body: &[u8]) -> Response {
    let published = api.published.load_full();
    let before = published.topology.leader.as_ref().map(|l| l.member.clone());
    let asked = match ChangeOfLeader::from_body(kind, body)
        .and_then(|asked| asked.check(&published.topology).map(|()| asked))
    {
        Ok(asked) => asked,
        Err(refusal) => return with_status(refusal.status, "text/plain", refusal.text),
    };
    let revision = match asked.write(api.dcs.as_ref(), &api.keys).await {
        Ok(revision) => revision,
        Err(refusal) => return with_status(refusal.status, "text/plain", refusal.text),
    };
    if asked.scheduled_at.is_some() {
        return text(StatusCode::ACCEPTED, "Switchover scheduled");
    }
    let loop_wait = published.topology.settings_or_default().loop_wait;
    let wait = loop_wait.max(LEAST_WAIT) * 2 + longest(asked.drain.timeout);
    let deadline = clock::now() + wait;
    let mut called_off_since = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = clock::now();
        let published = api.published.load_full();
        if published.topology.revision >= revision {
            match asked.progress(&published.topology, before.as_ref()) {
                Progress::Done(leader) => return changed(&asked, &leader),
                Progress::CalledOff => {
                    let since = *called_off_since.get_or_insert(now);
                    if now.since(since) >= CALLED_OFF_AFTER {
                        let why = api.journal.why_dropped(revision);
                        return called_off(kind, why, before.as_ref());
                    }
                }
                Progress::Pending | Progress::Promoting(_) => called_off_since = None,
            }
        }
        if now >= deadline {
            let text = format!(
                "{} status unknown: not finished after {} s; see GET /cluster",
                kind.word(),
                wait.as_secs()
            );
            return with_status(503, "text/plain", text);
        }
    }
}

/// Who led goes on. Only its own agent knows why.
fn called_off(kind: Kind, why: Option<String>, leader: Option<&MemberName>) -> Response {
    let word = kind.word();
    let told = match (why, leader) {
        (Some(why), _) => format!("{word} failed: {why}"),
        (None, Some(leader)) => format!("{word} failed: the log of {leader} says why"),
        (None, None) => format!("{word} failed: the agents' logs say why"),
    };
    with_status(503, "text/plain", told)
}

fn changed(asked: &ChangeOfLeader, leader: &MemberName) -> Response {
    let done = asked.kind.done();
    let text = match &asked.candidate {
        Some(candidate) if candidate != leader => {
            let mut done = done.to_owned();
            done[..1].make_ascii_uppercase();
            format!("{done} to \"{leader}\" instead of \"{candidate}\"")
        }
        Some(_) | None => format!("Successfully {done} to \"{leader}\""),
    };
    with_status(200, "text/plain", text)
}

fn json(status: u16, value: &Value) -> Response {
    with_status(status, "application/json", value.to_string())
}

fn text(status: StatusCode, text: &str) -> Response {
    with_status(status.as_u16(), "text/plain", text.to_owned())
}

fn with_status(status: u16, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
