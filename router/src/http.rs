//! The HTTP endpoint: health, readiness, metrics, the topology for programs and for people, and the agents'
//! push.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tracing::warn;
use trunkline_shared::service::metrics::Metrics;

use crate::clusters::{Clusters, Sight};
use crate::listener::Listening;
use crate::metrics::shared::Shared;
use crate::topology::Cluster;
use crate::topology::routing_table::{RoutingTable, Writer};

/// What the endpoint shows.
pub struct Shown {
    /// This router's name.
    pub name: String,
    /// Its clusters.
    pub clusters: Arc<Clusters>,
    /// Its ports.
    pub listenings: Vec<Arc<Listening>>,
    /// Set while it drains.
    pub is_draining: AtomicBool,
    /// Renders the metrics.
    pub metrics: Metrics,
    /// What the pools have done, where some listener pools.
    pub pooled: Option<Shared>,
}

/// The endpoint's routes.
pub fn routes(shown: Arc<Shown>) -> Router {
    Router::new()
        .route("/health", get(async || "alive\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/topology", get(topology))
        .route("/refresh", post(refresh))
        .route("/", get(page))
        .with_state(shown)
}

impl Shown {
    /// What is missing before sessions can be routed; `None` if nothing is.
    pub fn cannot_route_yet(&self) -> Option<String> {
        self.clusters.cannot_route_yet()
    }
}

/// 200 while it can route: a load balancer in front sends clients elsewhere otherwise.
async fn ready(State(shown): State<Arc<Shown>>) -> Response {
    if shown.is_draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match shown.cannot_route_yet() {
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        None => "ready\n".into_response(),
    }
}

async fn metrics(State(shown): State<Arc<Shown>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    let mut text = shown.metrics.render();
    if let Some(pooled) = &shown.pooled {
        match pooled.text().await {
            Ok(pools) => text.push_str(&pools),
            // What is half known is not told.
            Err(silent) => warn!("the metrics of pools are left out: {silent}"),
        }
    }
    (kind, text).into_response()
}

async fn topology(State(shown): State<Arc<Shown>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, format!("{:#}\n", describe(&shown))).into_response()
}

/// Nothing in the request is believed; it only makes the router look.
async fn refresh(State(shown): State<Arc<Shown>>) -> StatusCode {
    shown.clusters.all().iter().for_each(|own| own.refresh());
    StatusCode::ACCEPTED
}

fn describe(shown: &Shown) -> Value {
    let clusters = shown.clusters.all();
    let clusters: Vec<Value> = clusters.iter().map(|c| describe_cluster(c)).collect();
    let listeners: Vec<Value> = shown
        .listenings
        .iter()
        .map(|listening| {
            json!({
                "listen": listening.address,
                "scope": listening.cluster.as_ref().map(|own| own.name.as_str()),
                "target": target_word(listening),
                "mode": if listening.is_console { "console" } else { listening.mode.name() },
                "clients": listening.clients(),
                "max_client_conn": listening.max_client_conn(),
            })
        })
        .collect();
    json!({
        "name": shown.name,
        "version": env!("CARGO_PKG_VERSION"),
        "clusters": clusters,
        "namespace": describe_namespace(shown),
        "listeners": listeners,
    })
}

/// What is known of clusters that patterns name.
fn describe_namespace(shown: &Shown) -> Option<Value> {
    let (sight, left_out) = shown.clusters.namespace()?;
    let (state, why) = match sight {
        Sight::Never(why) => ("unknown", why),
        Sight::Clear => ("known", None),
        Sight::Lost(why) => ("lost", Some(why)),
    };
    let left_out: Vec<&str> = left_out.iter().map(|name| name.as_str()).collect();
    Some(json!({"state": state, "dcs_trouble": why, "left_out": left_out}))
}

fn target_word(listening: &Listening) -> &'static str {
    match listening.kind() {
        crate::route::TargetKind::Primary => "primary",
        crate::route::TargetKind::Replicas { .. } => "replicas",
    }
}

fn describe_cluster(cluster: &Cluster) -> Value {
    let published = cluster.published();
    let table = &published.table;
    let readers: Vec<Value> = table
        .readers
        .iter()
        .map(|(name, reader)| {
            json!({
                "member": name.as_str(),
                "address": &*reader.address,
                "is_fit": reader.unfit.is_none(),
                "why_not": reader.unfit.as_ref().map(ToString::to_string),
                "sessions": cluster.lanes.load(reader.lane).open,
            })
        })
        .collect();
    json!({
        "scope": cluster.name.as_str(),
        "revision": table.revision,
        "dcs_trouble": cluster.trouble(),
        "writer": describe_writer(cluster, table),
        "readers": readers,
    })
}

fn describe_writer(cluster: &Cluster, table: &RoutingTable) -> Value {
    match &table.writer {
        Writer::Known {
            member,
            epoch,
            address,
            lane,
        } => json!({
            "state": "known",
            "member": member.as_str(),
            "epoch": epoch.to_string(),
            "address": &**address,
            "sessions": cluster.lanes.load(*lane).open,
            "vouched_by_its_agent": table.doubt.is_some(),
        }),
        Writer::Promoting { member, epoch } => json!({
            "state": "promoting",
            "member": member.as_str(),
            "epoch": epoch.to_string(),
        }),
        Writer::None { why } => json!({"state": "none", "why": why.to_string()}),
    }
}

async fn page(State(shown): State<Arc<Shown>>) -> Html<String> {
    let mut text = String::from(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=2>\
         <title>trunkline-router</title>\
         <style>body{font:15px system-ui;margin:2em}table{border-collapse:collapse;margin:1em 0}\
         td,th{border:1px solid #bbb;padding:.3em .7em;text-align:left}</style>",
    );
    // Writing into a String does not fail.
    let _ = write!(text, "<h1>{}</h1>", escaped(&shown.name));
    for cluster in &shown.clusters.all() {
        let published = cluster.published();
        let table = &published.table;
        let writer = match &table.writer {
            Writer::Known { member, epoch, .. } => format!("{member} (epoch {epoch})"),
            Writer::Promoting { member, .. } => format!("held: {member} is being promoted"),
            Writer::None { why } => format!("held: {why}"),
        };
        let _ = write!(
            text,
            "<h2>{}</h2><p>Writer: {}</p><table><tr><th>Member<th>Address<th>Reads<th>Sessions</tr>",
            escaped(cluster.name.as_str()),
            escaped(&writer)
        );
        for (name, reader) in &table.readers {
            let reads = match &reader.unfit {
                None => "fit".to_owned(),
                Some(why) => why.to_string(),
            };
            let _ = write!(
                text,
                "<tr><td>{}<td>{}<td>{}<td>{}</tr>",
                escaped(name.as_str()),
                escaped(&reader.address),
                escaped(&reads),
                cluster.lanes.load(reader.lane).open
            );
        }
        text.push_str("</table>");
    }
    text.push_str("<table><tr><th>Listener<th>Cluster<th>Target<th>Clients</tr>");
    for listening in &shown.listenings {
        let _ = write!(
            text,
            "<tr><td>{}<td>{}<td>{}<td>{} of {}</tr>",
            escaped(&listening.address),
            match &listening.cluster {
                Some(own) => escaped(own.name.as_str()),
                None => "by database".to_owned(),
            },
            target_word(listening),
            listening.clients(),
            listening.max_client_conn()
        );
    }
    text.push_str("</table>");
    Html(text)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
