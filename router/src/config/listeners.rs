//! `listeners`: the ports, which cluster and members each leads to, and how.

use serde::Deserialize;
use serde_json::Value;
use trunkline_shared::cluster::ClusterName;

use super::pooling::Mode;
use super::raw::{ADDRESS, Leaf, Reader, address, name};
use super::tls::{RawTlsSide, TlsSection};
use super::{ListenerConfig, Network, ProxyProtocol};
use crate::route::TargetKind;

/// `max_client_conn` where the file is silent: bounded, and above what one PostgreSQL is set to.
const DEFAULT_MAX_CLIENT_CONN: usize = 10_000;
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListener {
    listen: Leaf,
    scope: Leaf,
    target: Leaf,
    mode: Leaf,
    proxy_protocol: Leaf,
    proxy_protocol_from: Leaf,
    max_client_conn: Leaf,
    tls: Option<RawTlsSide>,
}

impl RawListener {
    pub(super) fn is_pooled(&self) -> bool {
        let mode = self.mode.as_ref().and_then(|leaf| mode_of(&leaf.value));
        mode.is_some_and(|mode| mode != Mode::Tcp)
    }
}

impl Reader {
    pub(super) fn listeners(
        &mut self,
        raw: Vec<RawListener>,
        falls_back: bool,
        tls: &TlsSection,
    ) -> Vec<ListenerConfig> {
        if raw.is_empty() {
            let example = "is missing; at least one is needed, such as \
                           - {listen: \"0.0.0.0:5432\", scope: demo, target: primary}";
            self.wrong(0, "listeners", String::new(), example);
        }
        let mut listeners: Vec<ListenerConfig> = Vec::new();
        for (at, raw) in raw.into_iter().enumerate() {
            let line = raw.listen.as_ref().map_or(0, |leaf| leaf.referenced.line());
            let at_key = format!("listeners[{at}]");
            let Some(listener) = self.listener(&at_key, raw, falls_back, tls) else {
                continue;
            };
            let is_taken = |other: &ListenerConfig| {
                other.listen == listener.listen && listener.listen.port() != 0
            };
            if listeners.iter().any(is_taken) {
                let key = format!("listeners[{at}].listen");
                let value = listener.listen.to_string();
                self.wrong(
                    line,
                    &key,
                    value,
                    "another listener has this address already",
                );
            }
            listeners.push(listener);
        }
        listeners
    }

    fn listener(
        &mut self,
        at: &str,
        raw: RawListener,
        falls_back: bool,
        base: &TlsSection,
    ) -> Option<ListenerConfig> {
        let key = |name: &str| format!("{at}.{name}");
        let mode = self.value(
            &key("mode"),
            raw.mode,
            "tcp, session, transaction or statement is allowed",
            mode_of,
        );
        let mode = mode.unwrap_or(Mode::Tcp);
        let tls = match (mode, raw.tls) {
            (Mode::Tcp, None) => TlsSection::default(),
            (Mode::Tcp, Some(own)) => {
                let why = "is not allowed in tcp mode: TLS passes through to PostgreSQL";
                self.wrong(own.line(), &key("tls"), String::new(), why);
                TlsSection::default()
            }
            (Mode::Session | Mode::Transaction | Mode::Statement, None) => base.clone(),
            (Mode::Session | Mode::Transaction | Mode::Statement, Some(own)) => {
                self.client_tls(&key("tls"), own, base)
            }
        };
        let line = raw.listen.as_ref().map_or(0, |leaf| leaf.referenced.line());
        let listen = self.needed(&key("listen"), raw.listen, ADDRESS, address);
        let has_no_scope = raw.scope.as_ref().is_none_or(|leaf| leaf.value.is_null());
        if has_no_scope && mode == Mode::Tcp {
            let why = "is missing; in tcp mode a port leads to one cluster: write its name here, or mode: session, \
                       transaction or statement, where the entry of the client's database names it (databases)";
            self.wrong(line, &key("scope"), String::new(), why);
        }
        let allowed = "the name of a cluster, without /, is allowed";
        let scope = self.value(&key("scope"), raw.scope, allowed, name);
        let target = self.needed(
            &key("target"),
            raw.target,
            "primary or replicas is allowed",
            |v| match v.as_str()? {
                "primary" => Some(TargetKind::Primary),
                "replicas" => Some(TargetKind::Replicas { falls_back }),
                _ => None,
            },
        );
        let (proxy_protocol, proxy_protocol_from) =
            self.proxy(at, raw.proxy_protocol, raw.proxy_protocol_from);
        let max_client_conn = self.value(
            &key("max_client_conn"),
            raw.max_client_conn,
            "a number of at least 1 is allowed",
            |v| usize::try_from(v.as_u64()?).ok().filter(|n| *n > 0),
        );
        Some(ListenerConfig {
            listen: listen?,
            scope: scope.as_deref().map(ClusterName::new),
            target: target?,
            mode,
            proxy_protocol,
            proxy_protocol_from,
            max_client_conn: max_client_conn.unwrap_or(DEFAULT_MAX_CLIENT_CONN),
            tls,
            is_console: false,
        })
    }

    fn proxy(&mut self, at: &str, mode: Leaf, from: Leaf) -> (ProxyProtocol, Vec<Network>) {
        let key = format!("{at}.proxy_protocol");
        let line = mode.as_ref().map_or(0, |leaf| leaf.referenced.line());
        let mode = self
            .value(
                &key,
                mode,
                "off, accept or require is allowed",
                |v| match v {
                    // YAML reads a bare `off` as false in some dialects.
                    Value::Bool(false) => Some(ProxyProtocol::Off),
                    other => match other.as_str()? {
                        "off" => Some(ProxyProtocol::Off),
                        "accept" => Some(ProxyProtocol::Accept),
                        "require" => Some(ProxyProtocol::Require),
                        _ => None,
                    },
                },
            )
            .unwrap_or(ProxyProtocol::Off);
        let from_key = format!("{at}.proxy_protocol_from");
        let allowed = "a list of networks is allowed, such as [10.0.0.0/8]";
        let from = self
            .value(&from_key, from, allowed, networks)
            .unwrap_or_default();
        if mode != ProxyProtocol::Off && from.is_empty() {
            let why = "needs proxy_protocol_from: the networks whose header is believed";
            self.wrong(line, &key, String::new(), why);
        }
        (mode, from)
    }
}

fn mode_of(value: &Value) -> Option<Mode> {
    match value.as_str()? {
        "tcp" => Some(Mode::Tcp),
        "session" => Some(Mode::Session),
        "transaction" => Some(Mode::Transaction),
        "statement" => Some(Mode::Statement),
        _ => None,
    }
}

/// The mode of an entry of `databases` or `users`.
pub(super) fn pooled_mode(value: &Value) -> Option<Mode> {
    mode_of(value).filter(|mode| *mode != Mode::Tcp)
}

fn networks(value: &Value) -> Option<Vec<Network>> {
    match value {
        Value::String(text) => text.split(',').map(|t| Network::parse(t.trim())).collect(),
        Value::Array(list) => list.iter().map(|v| Network::parse(v.as_str()?)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}
