//! The router's file: raw YAML to validated types. After this nothing is checked again.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::etcd::EtcdConfig;
pub use trunkline_shared::service::network::Network;
use trunkline_shared::service::tls::{TlsError, TlsFiles};

use crate::auth::Method;
use crate::auth::users::Users;
use crate::config::pooling::{Mode, PoolingConfig};
use crate::config::tls::{TlsMode, TlsSection};
use crate::route::TargetKind;
use crate::tls::{ClientTls, ServerTls};

pub mod admin;
pub mod auth;
pub mod databases;
mod listeners;
pub mod pattern;
pub mod pooling;
mod raw;
pub mod running;
pub mod tls;

/// Everything this process was told.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// This router's name.
    pub name: String,
    /// What every key begins with.
    pub namespace: String,
    /// How to reach etcd.
    pub etcd3: EtcdSection,
    /// How agents are asked.
    pub ctl: CtlConfig,
    /// Level and format of the log.
    pub log: LogConfig,
    /// Where the last table is kept.
    pub state_file: Option<PathBuf>,
    /// The HTTP endpoint.
    pub http: HttpConfig,
    /// The ports, in the order of the file.
    pub listeners: Vec<ListenerConfig>,
    /// What pooled listeners keep to; none without such a listener.
    pub pooling: Option<PoolingConfig>,
    /// `replicas.max_lag`, bytes; none is no limit.
    pub max_lag: Option<u64>,
    /// `switchover.hold_timeout`: the longest time a client is held.
    pub hold_timeout: Duration,
}

/// `etcd3`: the agents' section.
#[derive(Clone)]
pub struct EtcdSection {
    /// How to reach etcd.
    pub config: EtcdConfig,
    /// As it was written, to see whether it changed.
    written: serde_json::Value,
}

impl fmt::Debug for EtcdSection {
    /// Without what was written: that may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

/// `ctl`: the agents' section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CtlConfig {
    /// The certificate that is shown, and who signed those of the agents.
    pub files: TlsFiles,
    /// Any certificate will do.
    pub is_insecure: bool,
}

/// `log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// JSON lines instead of plain ones.
    pub is_json: bool,
}

/// `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Host and port that agents use.
    pub advertise: String,
}

/// One of `listeners`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The cluster it leads to; none where each client's database names it.
    pub scope: Option<ClusterName>,
    /// Where in it.
    pub target: TargetKind,
    /// What it does with its clients.
    pub mode: Mode,
    /// Whether a PROXY header comes first.
    pub proxy_protocol: ProxyProtocol,
    /// From where a PROXY header is believed.
    pub proxy_protocol_from: Vec<Network>,
    /// The most clients at once.
    pub max_client_conn: usize,
    /// How it speaks to its clients; in `tcp` mode TLS passes through.
    pub tls: TlsSection,
    /// It leads to the console only (`admin.listen`).
    pub is_console: bool,
}

/// `proxy_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// No header comes.
    Off,
    /// A header may come, from the trusted networks.
    Accept,
    /// A header must come, from the trusted networks.
    Require,
}

/// One thing wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Its line; 0 where something is missing from the whole file.
    pub line: u64,
    /// The key, as a path (`listeners[0].target`).
    pub key: String,
    /// What stands there.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mistake {
            line,
            key,
            value,
            allowed,
        } = self;
        if *line > 0 {
            write!(f, "line {line}: ")?;
        }
        match (key.is_empty(), value.is_empty()) {
            (true, _) => write!(f, "{allowed}"),
            (false, true) => write!(f, "{key}: {allowed}"),
            (false, false) => write!(f, "{key} is {value}: {allowed}"),
        }
    }
}

/// Why the file cannot be used. Every mistake is named at once.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: cannot be read: {why}", .file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// The system's reason.
        why: std::io::Error,
    },
    /// It can be read and is wrong.
    #[error("{}", listed(.file, .mistakes))]
    Wrong {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        mistakes: Vec<Mistake>,
    },
}

fn listed(file: &Path, mistakes: &[Mistake]) -> String {
    let each: Vec<String> = mistakes
        .iter()
        .map(|mistake| format!("{}: {mistake}", file.display()))
        .collect();
    each.join("\n")
}

impl RouterConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|why| ConfigError::Unreadable {
            file: file.to_owned(),
            why,
        })?;
        let wrong = |mistakes| ConfigError::Wrong {
            file: file.to_owned(),
            mistakes,
        };
        let mut config = Self::parse(&text).map_err(wrong)?;
        if let Some(pooling) = &mut config.pooling {
            if let Some(file) = &pooling.auth.file {
                pooling.users = read_users(file).map_err(|mistake| wrong(vec![mistake]))?;
            }
            pooling
                .check_lookup()
                .map_err(|mistake| wrong(vec![mistake]))?;
            pooling.auth.read_hba().map_err(wrong)?;
            let asks = pooling.auth.uses(Method::Cert);
            for listener in &mut config.listeners {
                listener.tls.asks_for_certificates = asks;
            }
        }
        config.check_rules().map_err(wrong)?;
        config.check_files().map_err(wrong)?;
        Ok(config)
    }

    /// Whether who is to be known by a certificate can be asked for one, on a listener that has TLS at all.
    fn check_rules(&self) -> Result<(), Vec<Mistake>> {
        let mut mistakes: Vec<Mistake> = Vec::new();
        for listener in &self.listeners {
            let TlsSection {
                mode, files, at, ..
            } = &listener.tls;
            let can_ask = *mode == TlsMode::Disable || files.ca.is_some();
            let mistake = Mistake {
                line: at.1,
                key: format!("{}.ca", at.0),
                value: String::new(),
                allowed: "is missing; auth.hba_file has rules with cert, and this is the file of the CA of the \
                          clients' certificates"
                    .to_owned(),
            };
            // Listeners that share a section share its mistakes.
            if listener.tls.asks_for_certificates && !can_ask && !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        }
        match mistakes.is_empty() {
            true => Ok(()),
            false => Err(mistakes),
        }
    }

    /// Whether the files of TLS are there and fit together.
    fn check_files(&self) -> Result<(), Vec<Mistake>> {
        let mut mistakes: Vec<Mistake> = Vec::new();
        let mut check = |section: &TlsSection, loaded: Result<(), TlsError>| {
            let Err(why) = loaded else { return };
            let (key, line) = section.at.clone();
            let mistake = Mistake {
                line,
                key,
                value: String::new(),
                allowed: why.to_string(),
            };
            // Listeners that share a section share its mistakes.
            if !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        };
        for listener in &self.listeners {
            check(&listener.tls, ClientTls::load(&listener.tls).map(|_| ()));
        }
        if let Some(pooling) = &self.pooling {
            let section = &pooling.tls_server;
            check(section, ServerTls::load(section).map(|_| ()));
        }
        match mistakes.is_empty() {
            true => Ok(()),
            false => Err(mistakes),
        }
    }

    /// Reads the text of a file. What other files hold is read by [`RouterConfig::load`].
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        raw::read(text)
    }

    /// What differs in `new` and cannot change while the process lives, as keys.
    pub fn needs_restart(&self, new: &RouterConfig) -> Vec<&'static str> {
        let still = |own: &ListenerConfig, other: &ListenerConfig| {
            own.listen == other.listen
                && own.scope == other.scope
                && own.mode == other.mode
                && own.is_console == other.is_console
                && own.proxy_protocol == other.proxy_protocol
                && own.proxy_protocol_from == other.proxy_protocol_from
                && std::mem::discriminant(&own.target) == std::mem::discriminant(&other.target)
        };
        let are_listeners_same = self.listeners.len() == new.listeners.len()
            && self
                .listeners
                .iter()
                .zip(&new.listeners)
                .all(|(a, b)| still(a, b));
        [
            ("name", self.name == new.name),
            ("namespace", self.namespace == new.namespace),
            ("etcd3", self.etcd3.written == new.etcd3.written),
            ("ctl", self.ctl == new.ctl),
            ("log.format", self.log.is_json == new.log.is_json),
            ("state_file", self.state_file == new.state_file),
            ("http", self.http == new.http),
            ("listeners", are_listeners_same),
        ]
        .into_iter()
        .filter_map(|(key, is_same)| (!is_same).then_some(key))
        .collect()
    }
}

/// A mistake in a file that a key names.
fn wrong_file(key: &str, file: &Path, why: String) -> Mistake {
    Mistake {
        line: 0,
        key: key.to_owned(),
        value: file.display().to_string(),
        allowed: why,
    }
}

fn read_users(file: &Path) -> Result<Arc<Users>, Mistake> {
    let mistake = |why: String| wrong_file("auth.file", file, why);
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|why| mistake(format!("it cannot be read: {why}")))?;
    let users = Users::parse(&text).map_err(|why| mistake(why.to_string()))?;
    Ok(Arc::new(users))
}

#[cfg(test)]
mod tests;
