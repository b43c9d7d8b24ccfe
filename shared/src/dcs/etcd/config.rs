//! The `etcd3` section of both programs' files, with Patroni's names.

use std::path::PathBuf;
use std::sync::Arc;

use etcd_client::ConnectOptions;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::route::Route;
use crate::service::tls::{self, ServerCheck, TlsError, TlsFiles};

/// etcd's client port, where a host names none.
const DEFAULT_PORT: u16 = 2379;

/// How endpoints are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// In the clear.
    #[default]
    Http,
    /// TLS.
    Https,
}

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "RawEtcd")]
pub struct EtcdConfig {
    /// The endpoints as `host:port`.
    pub hosts: Vec<String>,
    /// In the clear or TLS; a `cacert` or `cert` alone does not imply TLS, as in Patroni.
    pub protocol: Protocol,
    /// User, where etcd asks for one.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// File with the certificates (PEM) that etcd's is checked by; absent: the system's.
    pub cacert: Option<PathBuf>,
    /// File with our certificate (PEM), where etcd asks for one.
    pub cert: Option<PathBuf>,
    /// File with our certificate's key (PEM).
    pub key: Option<PathBuf>,
}

/// Why the section cannot be used. Mend the configuration.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// Nothing names an endpoint.
    #[error(
        "the etcd3 section names no endpoint; write hosts, host or url, such as hosts: \"10.0.0.1:2379,10.0.0.2:2379\""
    )]
    NoEndpoint,
    /// An endpoint is not `host:port`.
    #[error(
        "the etcd3 endpoint \"{0}\" is not usable; allowed: host, host:port, http://host:port or https://host:port"
    )]
    Endpoint(String),
    /// An endpoint carries credentials. It is not shown: where a password ends cannot be told.
    #[error(
        "endpoint {number} of etcd3 is not usable: it holds an \"@\", so perhaps a password (not shown here); write host:port there, and the credentials as etcd3.username and etcd3.password"
    )]
    Credentials {
        /// Which one, from 1, as written.
        number: usize,
    },
    /// A file of cacert, cert or key cannot be used.
    #[error("etcd3.cacert, cert, key: {0}")]
    Tls(#[from] TlsError),
    /// One of a pair is missing.
    #[error("etcd3.{present} is given without etcd3.{missing}; give both or none")]
    Incomplete {
        /// What is there.
        present: &'static str,
        /// What is not.
        missing: &'static str,
    },
}

#[derive(Deserialize)]
struct RawEtcd {
    #[serde(default)]
    hosts: Hosts,
    host: Option<String>,
    url: Option<String>,
    #[serde(default)]
    protocol: Protocol,
    username: Option<String>,
    password: Option<SecretString>,
    cacert: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Patroni takes a list, or one text with commas.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Hosts {
    #[default]
    None,
    Text(String),
    List(Vec<String>),
}

impl TryFrom<RawEtcd> for EtcdConfig {
    type Error = EtcdConfigError;

    fn try_from(raw: RawEtcd) -> Result<Self, EtcdConfigError> {
        let written: Vec<String> = match raw.hosts {
            Hosts::Text(text) => text.split(',').map(|host| host.trim().to_owned()).collect(),
            Hosts::List(list) => list,
            Hosts::None => raw.url.into_iter().chain(raw.host).take(1).collect(),
        };
        let mut protocol = raw.protocol;
        let mut hosts = Vec::new();
        // A password may hold a comma, so a part without an "@" may be a piece of one with it.
        let secret = written.iter().position(|text| text.contains('@'));
        if let Some(index) = secret {
            return Err(EtcdConfigError::Credentials { number: index + 1 });
        }
        for host in written.iter().filter(|host| !host.is_empty()) {
            let (host, own_protocol) = endpoint_of(host)?;
            protocol = own_protocol.unwrap_or(protocol);
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        if hosts.is_empty() {
            return Err(EtcdConfigError::NoEndpoint);
        }
        let incomplete = |present, missing| EtcdConfigError::Incomplete { present, missing };
        match (&raw.username, &raw.password, &raw.cert, &raw.key) {
            (Some(_), None, _, _) => return Err(incomplete("username", "password")),
            (None, Some(_), _, _) => return Err(incomplete("password", "username")),
            (_, _, None, Some(_)) => return Err(incomplete("key", "cert")),
            _ => {}
        }
        Ok(Self {
            hosts,
            protocol,
            username: raw.username,
            password: raw.password,
            cacert: raw.cacert,
            cert: raw.cert,
            key: raw.key,
        })
    }
}

/// `host:port`, and the protocol if the text names it.
fn endpoint_of(text: &str) -> Result<(String, Option<Protocol>), EtcdConfigError> {
    let wrong = || EtcdConfigError::Endpoint(text.to_owned());
    let trimmed = text.trim().trim_end_matches('/');
    let (rest, protocol) = if let Some(rest) = trimmed.strip_prefix("http://") {
        (rest, Some(Protocol::Http))
    } else if let Some(rest) = trimmed.strip_prefix("https://") {
        (rest, Some(Protocol::Https))
    } else {
        (trimmed, None)
    };
    let is_bare = rest.ends_with(']') || !rest.contains(':');
    let (host, port) = if is_bare {
        (rest, DEFAULT_PORT)
    } else {
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        (host, port.parse().map_err(|_| wrong())?)
    };
    let is_usable = !host.is_empty()
        && (host.starts_with('[') == host.contains(':'))
        && !host.contains(|c: char| c.is_whitespace() || "/@?#".contains(c));
    if is_usable {
        Ok((format!("{host}:{port}"), protocol))
    } else {
        Err(wrong())
    }
}

impl EtcdConfig {
    /// The section from its endpoints alone; for tools and tests.
    ///
    /// # Errors
    /// If one is not `host:port`, or there is none.
    pub fn from_hosts(hosts: &str) -> Result<Self, EtcdConfigError> {
        Self::try_from(RawEtcd {
            hosts: Hosts::Text(hosts.to_owned()),
            host: None,
            url: None,
            protocol: Protocol::Http,
            username: None,
            password: None,
            cacert: None,
            cert: None,
            key: None,
        })
    }

    /// The way to each endpoint.
    pub(super) fn routes(&self) -> Result<Vec<Route>, EtcdConfigError> {
        let tls = match self.protocol {
            Protocol::Http => None,
            Protocol::Https => {
                let files = TlsFiles {
                    certificate: self.cert.clone(),
                    key: self.key.clone(),
                    ca: self.cacert.clone(),
                };
                let mut tls = tls::client(&files, ServerCheck::IssuerAndName)?;
                tls.alpn_protocols = vec![b"h2".to_vec()];
                Some(Arc::new(tls))
            }
        };
        let hosts = self.hosts.iter();
        hosts.map(|host| Route::new(host, tls.clone())).collect()
    }

    /// Whether a client logs in.
    pub(super) fn has_user(&self) -> bool {
        self.username.is_some() && self.password.is_some()
    }

    /// The same options with the user, if there is one.
    pub(super) fn with_user(&self, options: ConnectOptions) -> ConnectOptions {
        match (&self.username, &self.password) {
            (Some(user), Some(password)) => options.with_user(user, password.expose_secret()),
            _ => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(json: &str) -> Result<EtcdConfig, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn endpoints_are_read_in_every_form_patroni_takes() {
        for (json, expected) in [
            (r#"{"hosts":"a:1, b ,c:3"}"#, vec!["a:1", "b:2379", "c:3"]),
            (r#"{"hosts":["a:1","[::1]:2"]}"#, vec!["a:1", "[::1]:2"]),
            (r#"{"host":"a"}"#, vec!["a:2379"]),
            (
                r#"{"url":"https://e.example:2380/"}"#,
                vec!["e.example:2380"],
            ),
        ] {
            assert_eq!(hosts(json).unwrap().hosts, expected, "{json}");
        }
        let config = hosts(r#"{"url":"https://e.example:2380"}"#).unwrap();
        assert_eq!(config.protocol, Protocol::Https);
    }

    #[test]
    fn what_is_missing_or_unusable_is_named() {
        for (json, words) in [
            ("{}", "names no endpoint"),
            (r#"{"hosts":""}"#, "names no endpoint"),
            (r#"{"hosts":"a:b"}"#, "a:b"),
            (r#"{"hosts":"::1"}"#, "::1"),
            (r#"{"host":"a","username":"u"}"#, "etcd3.password"),
            (r#"{"host":"a","key":"k"}"#, "etcd3.cert"),
            (r#"{"host":"a","protocol":"ftp"}"#, "ftp"),
        ] {
            let error = hosts(json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
    }

    #[test]
    fn the_password_is_never_printed() {
        let config = hosts(r#"{"host":"a","username":"u","password":"s3cret"}"#).unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn the_password_of_a_url_is_never_printed() {
        for json in [
            r#"{"url":"http://u:s3cret@a:2379"}"#,
            r#"{"host":"u:s3cret@a"}"#,
            r#"{"hosts":"b:2379,https://u:s3cret@a:2379"}"#,
            r#"{"hosts":"http://u:s3cret,more@a:2379,b"}"#,
            r#"{"hosts":["http://u:s3cret/@a:2379"]}"#,
        ] {
            let error = hosts(json).unwrap_err();
            assert!(!error.contains("s3cret"), "{json}: {error}");
            assert!(
                error.contains("etcd3.username and etcd3.password"),
                "{error}"
            );
        }
    }
}
