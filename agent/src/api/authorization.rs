//! Who may change something: the allowlist, then the client's certificate, then basic authentication, in Patroni's
//! order and with its codes.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use secrecy::ExposeSecret;
use trunkline_shared::cluster::Topology;
use trunkline_shared::service::http::{Peer, basic_authorization};

use super::lookup::Lookup;
use super::text;
use crate::config::{Allowlist, RestCredentials};

/// What is asked of whoever changes something, and what every answer carries.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// From where.
    pub allowlist: Allowlist,
    /// Whether with a certificate.
    pub needs_certificate: bool,
    /// As whom.
    pub authentication: Option<RestCredentials>,
    /// Headers of every answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Whether the allowlist counts for a path: everybody who may lead must be able to ask for consent, from a host
/// that was added a moment ago too.
fn is_listed_only(path: &str) -> bool {
    path != "/failsafe"
}

impl Access {
    /// The answer to a request that may not pass; `None` lets it pass. `peer` is absent where nobody knows from
    /// where it came.
    pub(super) async fn refusal(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<Peer>,
        lookup: &Lookup,
        topology: &Topology,
    ) -> Option<Response> {
        if self.allowlist.is_in_force() && is_listed_only(path) {
            let is_listed = match peer {
                Some(peer) => is_listed(&self.allowlist, peer.address, lookup, topology).await,
                None => false,
            };
            if !is_listed {
                let from = peer.map_or_else(|| "here".to_owned(), |peer| peer.address.to_string());
                let why = format!("access is denied: {from} is not in restapi.allowlist");
                return Some(text(StatusCode::FORBIDDEN, &why));
            }
        }
        if self.needs_certificate && !peer.is_some_and(|peer| peer.has_certificate) {
            let why =
                "client certificate required: this method needs one that restapi.cafile signed";
            return Some(text(StatusCode::FORBIDDEN, why));
        }
        refusal_of_stranger(headers, self.authentication.as_ref())
    }
}

async fn is_listed(
    allowlist: &Allowlist,
    address: IpAddr,
    lookup: &Lookup,
    topology: &Topology,
) -> bool {
    if allowlist.networks.iter().any(|n| n.contains(address)) {
        return true;
    }
    let mut hosts = allowlist.hosts.clone();
    if allowlist.includes_members {
        let members = topology.members.values();
        hosts.extend(members.filter_map(|member| host(&member.api_url)));
    }
    lookup.is_one_of(hosts, address).await
}

/// The host of a URL, IPv6 without its brackets.
fn host(url: &str) -> Option<String> {
    let uri: axum::http::Uri = url.parse().ok()?;
    let host = uri.host()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some(host.to_owned())
}

fn refusal_of_stranger(headers: &HeaderMap, wanted: Option<&RestCredentials>) -> Option<Response> {
    let wanted = wanted?;
    let given = headers
        .get(header::AUTHORIZATION)
        .map_or(&b""[..], |value| value.as_bytes());
    let expected = basic_authorization(&wanted.username, wanted.password.expose_secret());
    if is_equal(given, expected.as_bytes()) {
        return None;
    }
    let why = if given.is_empty() {
        "no credentials: this method needs the user and password of restapi.authentication"
    } else {
        "wrong user or password"
    };
    let mut response = text(StatusCode::UNAUTHORIZED, why);
    let value = HeaderValue::from_static("Basic realm=\"trunkline\"");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, value);
    Some(response)
}

/// Takes as long for a wrong first byte as for a wrong last one. Only the length shows.
fn is_equal(given: &[u8], expected: &[u8]) -> bool {
    if given.len() != expected.len() {
        return false;
    }
    let difference = given
        .iter()
        .zip(expected)
        .fold(0u8, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_from_urls() {
        for (url, found) in [
            ("http://10.0.0.1:8008/patroni", Some("10.0.0.1")),
            ("https://[::1]:8008/patroni", Some("::1")),
            ("https://db1.example/", Some("db1.example")),
            ("nonsense url", None),
        ] {
            assert_eq!(host(url).as_deref(), found, "{url}");
        }
    }
}
