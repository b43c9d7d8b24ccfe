//! `admin`: the console's port and its operators.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::Value;

use super::pooling::Mode;
use super::raw::{ADDRESS, Leaf, Reader, address};
use super::tls::TlsSection;
use super::{ListenerConfig, ProxyProtocol};
use crate::admin::consoles::MAX_CONSOLES;
use crate::admin::show::{CONSOLE, CONSOLE_TOO};
use crate::route::TargetKind;

/// `admin`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminConfig {
    /// `listen`: a port for the console only.
    pub listen: Option<SocketAddr>,
    /// `admin_users`: they may everything.
    pub admin_users: BTreeSet<String>,
    /// `stats_users`: they may look.
    pub stats_users: BTreeSet<String>,
}

/// What an operator may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Look.
    Stats,
}

impl AdminConfig {
    /// What this user may; `None` if nothing.
    pub fn role(&self, user: &str) -> Option<Role> {
        if self.admin_users.contains(user) {
            Some(Role::Admin)
        } else if self.stats_users.contains(user) {
            Some(Role::Stats)
        } else {
            None
        }
    }
}

/// Whether this database is the console, on every pooled listener.
pub fn is_console(database: &str) -> bool {
    database == CONSOLE || database == CONSOLE_TOO
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdmin {
    listen: Leaf,
    admin_users: Leaf,
    stats_users: Leaf,
}

impl Reader {
    pub(super) fn admin(&mut self, raw: RawAdmin) -> AdminConfig {
        let allowed = "names of users are allowed, as a list or separated by commas";
        let mut names = |key, leaf| self.value(key, leaf, allowed, names).unwrap_or_default();
        AdminConfig {
            admin_users: names("admin.admin_users", raw.admin_users),
            stats_users: names("admin.stats_users", raw.stats_users),
            listen: self.value("admin.listen", raw.listen, ADDRESS, address),
        }
    }

    /// The console's own port among the others. Clients come in there as at a pooled listener, of which there is one.
    pub(super) fn console_port(
        &mut self,
        admin: &AdminConfig,
        tls: &TlsSection,
        listeners: &mut Vec<ListenerConfig>,
    ) {
        let mut pooled = listeners.iter().filter(|it| it.mode != Mode::Tcp);
        let (Some(listen), Some(first)) = (admin.listen, pooled.next()) else {
            return;
        };
        // The cluster that is asked for operators who are not in auth.file.
        let scope = first.scope.clone();
        let scope = scope.or_else(|| pooled.find_map(|it| it.scope.clone()));
        if listeners.iter().any(|it| it.listen == listen) && listen.port() != 0 {
            let why =
                "a listener has this address already; the console is database pgbouncer there, too";
            self.wrong(0, "admin.listen", listen.to_string(), why);
            return;
        }
        let port = ListenerConfig {
            listen,
            scope,
            target: TargetKind::Primary,
            mode: Mode::Session,
            proxy_protocol: ProxyProtocol::Off,
            proxy_protocol_from: Vec::new(),
            max_client_conn: MAX_CONSOLES,
            tls: tls.clone(),
            is_console: true,
        };
        listeners.push(port);
    }
}

fn names(value: &Value) -> Option<BTreeSet<String>> {
    let names: Option<Vec<&str>> = match value {
        Value::String(text) => Some(text.split(',').collect()),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    let names = names?.into_iter().map(|name| name.trim().to_owned());
    Some(names.filter(|name| !name.is_empty()).collect())
}
