//! What stands in the file, value by value with its line, and the checks that make it a
//! [`RouterConfig`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Spanned;
use trunkline_shared::cluster::quantity;
use trunkline_shared::service::tls::TlsFiles;

use super::admin::RawAdmin;
use super::auth::RawAuth;
use super::databases::{RawDatabase, RawUser};
use super::listeners::RawListener;
use super::pooling::{RawPool, RawPooling};
use super::tls::RawTls;
use super::{CtlConfig, EtcdSection, HttpConfig, LogConfig, Mistake, RouterConfig};

/// `http.listen` where the file is silent.
const DEFAULT_HTTP: &str = "0.0.0.0:8010";
/// `switchover.hold_timeout` where the file is silent.
const DEFAULT_HOLD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest `hold_timeout`: a client held for longer is better told.
const MAX_HOLD_TIMEOUT: Duration = Duration::from_secs(3600);

/// The keys of `etcd3`.
const ETCD3_KEYS: [&str; 9] = [
    "hosts", "host", "url", "protocol", "username", "password", "cacert", "cert", "key",
];

pub(super) type Leaf = Option<Spanned<Value>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Leaf,
    namespace: Leaf,
    etcd3: Leaf,
    log: Option<RawLog>,
    state_file: Leaf,
    http: Option<RawHttp>,
    listeners: Option<Vec<RawListener>>,
    replicas: Option<RawReplicas>,
    switchover: Option<RawSwitchover>,
    ctl: Option<RawCtl>,
    admin: Option<RawAdmin>,
    auth: Option<RawAuth>,
    databases: Option<BTreeMap<String, RawDatabase>>,
    pool: Option<RawPool>,
    tls: Option<RawTls>,
    users: Option<BTreeMap<String, RawUser>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLog {
    level: Leaf,
    format: Leaf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    listen: Leaf,
    advertise: Leaf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawReplicas {
    max_lag: Leaf,
    fallback: Leaf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawSwitchover {
    hold_timeout: Leaf,
}

/// The agents' section, by their keys.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawCtl {
    insecure: Leaf,
    cacert: Leaf,
    certfile: Leaf,
    keyfile: Leaf,
    /// The command's: a router changes nothing.
    #[serde(rename = "authentication")]
    _authentication: Leaf,
}

/// Collects mistakes, and gives a harmless value in the place of each.
#[derive(Default)]
pub(super) struct Reader {
    mistakes: Vec<Mistake>,
}

impl Reader {
    pub(super) fn wrong(&mut self, line: u64, key: &str, value: String, allowed: &str) {
        self.mistakes.push(Mistake {
            line,
            key: key.to_owned(),
            value,
            allowed: allowed.to_owned(),
        });
    }

    /// Reads a value if it is there and not null.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        leaf: Leaf,
        allowed: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let leaf = leaf.filter(|leaf| !leaf.value.is_null())?;
        let parsed = parse(&leaf.value);
        if parsed.is_none() {
            let line = leaf.referenced.line();
            self.wrong(line, key, leaf.value.to_string(), allowed);
        }
        parsed
    }

    pub(super) fn needed<T>(
        &mut self,
        key: &str,
        leaf: Leaf,
        allowed: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        if leaf.as_ref().is_none_or(|leaf| leaf.value.is_null()) {
            self.wrong(0, key, String::new(), &format!("is missing; {allowed}"));
            return None;
        }
        self.value(key, leaf, allowed, parse)
    }

    pub(super) fn not_yet(&mut self, key: &str, leaf: Leaf, why: &str) {
        if let Some(leaf) = leaf {
            self.wrong(leaf.referenced.line(), key, String::new(), why);
        }
    }
}

pub(super) fn read(text: &str) -> Result<RouterConfig, Vec<Mistake>> {
    let raw: Raw = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |at| at.line());
        let text = error.without_snippet().to_string();
        vec![Mistake {
            line,
            key: String::new(),
            value: String::new(),
            allowed: text,
        }]
    })?;
    let mut reader = Reader::default();
    let config = reader.config(raw);
    match config {
        Some(config) if reader.mistakes.is_empty() => Ok(config),
        Some(_) | None => Err(reader.mistakes),
    }
}

impl Reader {
    fn config(&mut self, raw: Raw) -> Option<RouterConfig> {
        let name = self
            .value("name", raw.name, "a name without / is allowed", name)
            .unwrap_or_else(host_name);
        let namespace = self
            .value(
                "namespace",
                raw.namespace,
                "a path is allowed, such as /service",
                text,
            )
            .unwrap_or_else(|| "/service".to_owned());
        let etcd3 = self.etcd3(raw.etcd3);
        let log = self.log(raw.log.unwrap_or_default());
        let state_file = self.value("state_file", raw.state_file, "a path is allowed", text);
        let http = self.http(raw.http.unwrap_or_default(), &name);
        let (max_lag, falls_back) = self.replicas(raw.replicas.unwrap_or_default());
        let raw_listeners = raw.listeners.unwrap_or_default();
        let is_pooled = raw_listeners.iter().any(RawListener::is_pooled);
        let [tls, tls_server] = self.tls(raw.tls, is_pooled);
        let mut listeners = self.listeners(raw_listeners, falls_back, &tls);
        let hold_timeout = self
            .value(
                "switchover.hold_timeout",
                raw.switchover.unwrap_or_default().hold_timeout,
                "a time up to 1h is allowed, such as 10s or 500ms",
                |v| duration(v).filter(|d| *d <= MAX_HOLD_TIMEOUT),
            )
            .unwrap_or(DEFAULT_HOLD_TIMEOUT);
        let ctl = self.ctl(raw.ctl.unwrap_or_default());
        let pooling = RawPooling {
            auth: raw.auth,
            admin: raw.admin,
            pool: raw.pool,
            databases: raw.databases,
            users: raw.users,
            tls_server,
        };
        let pooling = self.pooling(pooling, is_pooled, &listeners);
        if let Some(pooling) = &pooling {
            self.console_port(&pooling.admin, &tls, &mut listeners);
            self.certificates(&pooling.auth, &listeners);
        }
        Some(RouterConfig {
            ctl,
            name,
            namespace,
            etcd3: etcd3?,
            log,
            state_file: state_file.map(PathBuf::from),
            http: http?,
            listeners,
            pooling,
            max_lag,
            hold_timeout,
        })
    }

    fn replicas(&mut self, replicas: RawReplicas) -> (Option<u64>, bool) {
        let max_lag = self.value(
            "replicas.max_lag",
            replicas.max_lag,
            "a number of bytes is allowed, or one with kB, MB, GB",
            bytes,
        );
        let falls_back = self
            .value(
                "replicas.fallback",
                replicas.fallback,
                "none or primary is allowed",
                |v| match v.as_str()? {
                    "none" => Some(false),
                    "primary" => Some(true),
                    _ => None,
                },
            )
            .unwrap_or(false);
        (max_lag, falls_back)
    }

    fn ctl(&mut self, raw: RawCtl) -> CtlConfig {
        let mut path = |key: &str, leaf: Leaf| {
            let found = self.value(key, leaf, "a file's path is allowed", text);
            found.map(PathBuf::from)
        };
        let files = TlsFiles {
            ca: path("ctl.cacert", raw.cacert),
            certificate: path("ctl.certfile", raw.certfile),
            key: path("ctl.keyfile", raw.keyfile),
        };
        let insecure = self.value(
            "ctl.insecure",
            raw.insecure,
            "true or false is allowed",
            Value::as_bool,
        );
        CtlConfig {
            files,
            is_insecure: insecure.unwrap_or(false),
        }
    }

    fn etcd3(&mut self, leaf: Leaf) -> Option<EtcdSection> {
        let Some(section) = leaf.filter(|leaf| !leaf.value.is_null()) else {
            let example =
                "is missing; write the agents' section, such as etcd3: {hosts: \"10.0.0.1:2379\"}";
            self.wrong(0, "etcd3", String::new(), example);
            return None;
        };
        let line = section.referenced.line();
        if !self.etcd3_keys(line, &section.value) {
            return None;
        }
        match serde_json::from_value(section.value.clone()) {
            Ok(config) => Some(EtcdSection {
                config,
                written: section.value,
            }),
            Err(error) => {
                // The value is not shown: it may hold a password.
                self.wrong(line, "etcd3", String::new(), &error.to_string());
                None
            }
        }
    }

    /// Whether every key of the section is known, and its credentials are text. What stands there is not
    /// shown: it may be a password.
    fn etcd3_keys(&mut self, line: u64, section: &Value) -> bool {
        let before = self.mistakes.len();
        for (key, value) in section.as_object().into_iter().flatten() {
            let path = format!("etcd3.{key}");
            if !ETCD3_KEYS.contains(&key.as_str()) {
                let allowed = format!("is unknown; {} are allowed", ETCD3_KEYS.join(", "));
                self.wrong(line, &path, String::new(), &allowed);
            } else if ["username", "password"].contains(&key.as_str())
                && !(value.is_string() || value.is_null())
            {
                let allowed = "text is allowed; put it in quotes";
                self.wrong(line, &path, String::new(), allowed);
            }
        }
        self.mistakes.len() == before
    }

    fn log(&mut self, raw: RawLog) -> LogConfig {
        let level = self.value(
            "log.level",
            raw.level,
            "error, warn, info, debug or trace is allowed",
            |v| {
                let level = v.as_str()?.to_lowercase();
                let is_known =
                    ["error", "warn", "info", "debug", "trace"].contains(&level.as_str());
                is_known.then_some(level)
            },
        );
        let is_json = self.value(
            "log.format",
            raw.format,
            "plain or json is allowed",
            |v| match v.as_str()? {
                "plain" => Some(false),
                "json" => Some(true),
                _ => None,
            },
        );
        LogConfig {
            level: level.unwrap_or_else(|| "info".to_owned()),
            is_json: is_json.unwrap_or(false),
        }
    }

    fn http(&mut self, raw: RawHttp, name: &str) -> Option<HttpConfig> {
        let default = DEFAULT_HTTP.parse().ok();
        let listen = match raw.listen {
            Some(leaf) => self.value("http.listen", Some(leaf), ADDRESS, address),
            None => default,
        };
        let advertise = self.value(
            "http.advertise",
            raw.advertise,
            "host:port is allowed",
            |v| text(v).filter(|t| t.contains(':')),
        );
        let listen = listen.or(default)?;
        Some(HttpConfig {
            listen,
            advertise: advertise.unwrap_or_else(|| format!("{name}:{}", listen.port())),
        })
    }
}

pub(super) const ADDRESS: &str =
    "an IP address and port is allowed, such as 0.0.0.0:5432 or [::]:5432";

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|t| !t.is_empty()).map(str::to_owned)
}

pub(super) fn name(value: &Value) -> Option<String> {
    let name = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// `*:5432` and `:5432` mean every address, as in HAProxy.
pub(super) fn address(value: &Value) -> Option<SocketAddr> {
    let text = value.as_str()?;
    let port = text.strip_prefix('*').unwrap_or(text).strip_prefix(':');
    match port {
        Some(port) => format!("0.0.0.0:{port}").parse().ok(),
        None => text.parse().ok(),
    }
}

pub(super) fn duration(value: &Value) -> Option<Duration> {
    quantity::duration(&written(value)?)
}

fn bytes(value: &Value) -> Option<u64> {
    quantity::bytes(&written(value)?)
}

fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
