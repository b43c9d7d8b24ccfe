//! Asks the others for their consent, by Patroni's `POST /failsafe`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use serde_json::json;
use tokio::task::JoinSet;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::tls::Reloadable;

use super::Authority;
use crate::decide::observation::Reached;

/// The body of a consent, Patroni's.
pub const ACCEPTED: &[u8] = b"Accepted";

/// The longest wait for one member's consent.
const LONGEST: Duration = Duration::from_secs(2);

/// The shortest such wait.
const SHORTEST: Duration = Duration::from_millis(500);

/// This member, as it names itself to the others.
#[derive(Clone, Debug, Default)]
pub struct Speaker {
    /// The cluster.
    pub cluster: String,
    /// Its PostgreSQL's host and port.
    pub address: String,
    /// The URL of its agent.
    pub api_url: String,
    /// How the others are reached.
    pub client: Arc<Reloadable<HttpClient>>,
}

/// Asks everybody of the list but `me` at once. `Err` names who did not consent, and why.
pub(in crate::lease) async fn ask(
    speaker: &Speaker,
    me: &MemberName,
    authority: &Authority,
    reached: Option<Reached>,
) -> Result<(), String> {
    let ttl = u64::try_from(authority.ttl.as_millis()).unwrap_or(u64::MAX);
    let body = |to: &MemberName| {
        let body = json!({
            "name": me.as_str(),
            "conn_url": format!("postgres://{}/postgres", speaker.address),
            "api_url": speaker.api_url,
            "slots": {},
            // Whoever answers at a URL that has changed hands must not consent in another's name.
            "trunkline": {
                "epoch": authority.epoch.to_string(),
                "ttl_ms": ttl,
                "cluster": speaker.cluster,
                "to": to.as_str(),
                // Nobody can look it up while the DCS does not answer.
                "timeline": reached.map(|(timeline, _)| timeline.0),
                "position": reached.map(|(_, position)| position.0),
            },
        });
        Bytes::from(body.to_string())
    };
    let limit = (authority.ttl / 4).clamp(SHORTEST, LONGEST);
    let client = speaker.client.current();
    let mut asking = JoinSet::new();
    for (name, api_url) in authority.list.iter().filter(|(name, _)| *name != me) {
        let (name, url, body) = (name.clone(), endpoint(api_url), body(name));
        let client = client.clone();
        asking.spawn(async move {
            match client.request(Method::POST, &url, body, limit).await {
                Ok(answer) if answer.status == 200 && answer.body.as_ref() == ACCEPTED => None,
                Ok(answer) => {
                    let said = String::from_utf8_lossy(&answer.body).into_owned();
                    Some(format!("{name}: {} {said}", answer.status))
                }
                Err(error) => Some(format!("{name}: {error}")),
            }
        });
    }
    let mut refused = Vec::new();
    while let Some(asked) = asking.join_next().await {
        match asked {
            Ok(None) => {}
            Ok(Some(why)) => refused.push(why),
            Err(error) => refused.push(error.to_string()),
        }
    }
    refused.sort_unstable();
    match refused.is_empty() {
        true => Ok(()),
        false => Err(refused.join("; ")),
    }
}

/// `http://host:port/patroni` to `http://host:port/failsafe`, as Patroni does it.
fn endpoint(api_url: &str) -> String {
    let (scheme, rest) = api_url.split_once("://").unwrap_or(("http", api_url));
    let authority = rest.split('/').next().unwrap_or(rest);
    format!("{scheme}://{authority}/failsafe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_the_api_url_is_replaced() {
        assert_eq!(
            endpoint("http://10.0.0.1:8008/patroni"),
            "http://10.0.0.1:8008/failsafe"
        );
        assert_eq!(
            endpoint("https://[::1]:8008"),
            "https://[::1]:8008/failsafe"
        );
    }
}
