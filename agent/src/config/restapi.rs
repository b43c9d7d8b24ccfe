//! `restapi:`

use std::collections::BTreeSet;

use axum::http::{HeaderName, HeaderValue, header};
use trunkline_shared::service::network::Network;
use trunkline_shared::service::tls::{ClientCertificates, TlsFiles};

use super::UserPassword;
use super::document::Value;
use super::rest_client::RestClientConfig;
use super::section::{Address, Section};

/// Patroni's port.
pub const DEFAULT_PORT: u16 = 8008;

/// User and password of unsafe requests.
pub type RestCredentials = UserPassword;

/// The REST API.
#[derive(Clone, Debug)]
pub struct RestApiConfig {
    /// Where it listens; `127.0.0.1:8008` unless set.
    pub listen: Address,
    /// How others reach it.
    pub connect_address: Address,
    /// HTTPS if set.
    pub tls: Option<ServerTls>,
    /// Required for unsafe methods if set.
    pub authentication: Option<RestCredentials>,
    /// Who may use unsafe methods.
    pub allowlist: Allowlist,
    /// What a client of other members' APIs can use of it.
    pub as_client: RestClientConfig,
    /// What every answer carries: `http_extra_headers`, over TLS `https_extra_headers` too, and what
    /// `server_tokens` says.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// `certfile`, `keyfile`, `cafile` and `verify_client`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Our certificate, its key, and who signed those of clients.
    pub files: TlsFiles,
    /// Whether clients show one: `optional` means that only unsafe methods need it.
    pub clients: ClientCertificates,
}

/// `allowlist` and `allowlist_include_members`; everybody may where both are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    /// Addresses and networks.
    pub networks: Vec<Network>,
    /// Host names, looked up when they are needed.
    pub hosts: BTreeSet<String>,
    /// The members' hosts too.
    pub includes_members: bool,
}

impl Allowlist {
    /// Whether it keeps anybody out.
    pub fn is_in_force(&self) -> bool {
        self.includes_members || !self.networks.is_empty() || !self.hosts.is_empty()
    }
}

impl RestApiConfig {
    /// The member's `api_url`, as Patroni writes it.
    pub fn api_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/patroni", self.connect_address)
    }
}

/// What is written instead of a password for a key.
const NO_KEY_PASSWORD: &str = "absence: a key that needs a password is not read; write it without one (openssl pkey -in KEY -out NEWKEY), \
     readable by the agent's user alone";

/// Reads the section.
pub fn read(section: &Section<'_>) -> Option<RestApiConfig> {
    let default = Address {
        host: "127.0.0.1".to_owned(),
        port: DEFAULT_PORT,
    };
    let has_listen = section.find("listen").is_some();
    let listen = section.listen("listen", DEFAULT_PORT, false);
    let listen = if has_listen { listen } else { Some(default) };
    let has_connect = section.find("connect_address").is_some();
    let connect = section.address("connect_address", DEFAULT_PORT);
    if !has_connect && listen.as_ref().is_some_and(Address::is_wildcard) {
        section.missing(
            "connect_address",
            "restapi.listen is every address; write the one that other members can reach, such as \
             \"connect_address: 10.0.0.1:8008\"",
        );
    }
    let (tls, files) = tls(section);
    let headers = headers(section, tls.is_some());
    let authentication = authentication(section);
    let config = listen.map(|listen| RestApiConfig {
        connect_address: connect.unwrap_or_else(|| listen.clone()),
        listen,
        tls,
        as_client: RestClientConfig {
            files,
            is_insecure: false,
            authentication: authentication.clone(),
        },
        authentication,
        allowlist: allowlist(section),
        headers,
    });
    section.without_effect(&[
        (
            "ciphers",
            "TLS 1.2 and 1.3 are spoken, with ECDHE and AES-GCM or ChaCha20-Poly1305 alone",
        ),
        (
            "request_queue_size",
            "1024 connections may wait to be accepted, and none waits for another's answer",
        ),
    ]);
    section.end();
    config
}

/// HTTPS, if it is wanted, and the files as they are named.
fn tls(section: &Section<'_>) -> (Option<ServerTls>, TlsFiles) {
    refuse_key_password(section);
    let files = TlsFiles {
        certificate: section.file("certfile"),
        key: section.file("keyfile"),
        ca: section.file("cafile"),
    };
    let clients = section
        .one_of(
            "verify_client",
            &[
                ("none", ClientCertificates::Ignore),
                ("optional", ClientCertificates::Optional),
                ("required", ClientCertificates::Required),
            ],
        )
        .unwrap_or_default();
    if files.certificate.is_some() {
        let tls = ServerTls {
            files: files.clone(),
            clients,
        };
        return (Some(tls), files);
    }
    // What would protect nothing is refused: whoever set it relies on it.
    for (key, is_set) in [
        ("keyfile", files.key.is_some()),
        ("verify_client", clients != ClientCertificates::Ignore),
    ] {
        if let Some(node) = section.find(key).filter(|_| is_set) {
            let expected = "absence, for there is no restapi.certfile and the REST API is plain HTTP; name the \
                 certificate, or leave this out";
            section.unusable(key, node, expected);
        }
    }
    (None, files)
}

/// Refuses `keyfile_password` clearly: the key could not be read, and nothing would be served.
pub(super) fn refuse_key_password(section: &Section<'_>) {
    if let Some(node) = section.find("keyfile_password") {
        section.unusable("keyfile_password", node, NO_KEY_PASSWORD);
    }
}

fn allowlist(section: &Section<'_>) -> Allowlist {
    let mut allowlist = Allowlist {
        includes_members: section
            .boolean("allowlist_include_members")
            .unwrap_or(false),
        ..Allowlist::default()
    };
    for text in section.texts("allowlist", true).unwrap_or_default() {
        let is_host = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        };
        match Network::parse(&text) {
            Some(network) => allowlist.networks.push(network),
            None if is_host(&text) => drop(allowlist.hosts.insert(text)),
            None => {
                if let Some(node) = section.find("allowlist") {
                    let expected = format!(
                        "addresses, networks such as 10.0.0.0/8, and host names; \"{}\" is none of them",
                        text.escape_debug()
                    );
                    section.unusable("allowlist", node, &expected);
                }
            }
        }
    }
    allowlist
}

fn headers(section: &Section<'_>, is_tls: bool) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = extra_headers(&section.section("http_extra_headers"));
    let over_tls = extra_headers(&section.section("https_extra_headers"));
    section.acknowledge(&["http_extra_headers", "https_extra_headers"]);
    if is_tls {
        headers.extend(over_tls);
    }
    // "Original" is the header as it is without this key: none.
    let tokens = section.one_of(
        "server_tokens",
        &[
            ("Original", None),
            (
                "Minimal",
                Some(concat!("Trunkline/", env!("CARGO_PKG_VERSION"))),
            ),
            ("ProductOnly", Some("Trunkline")),
        ],
    );
    if let Some(token) = tokens.flatten() {
        headers.push((header::SERVER, HeaderValue::from_static(token)));
    }
    headers
}

fn extra_headers(section: &Section<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for entry in section.entries() {
        let text = match &entry.node.value {
            Value::Scalar(scalar) => Some(scalar.text.as_str()),
            Value::List(_) | Value::Map(_) => None,
        };
        let name = HeaderName::from_bytes(entry.key.as_bytes()).ok();
        // How an answer is framed is nobody's to say but the server's.
        let name = name.filter(|name| {
            ![
                header::CONTENT_LENGTH,
                header::TRANSFER_ENCODING,
                header::CONNECTION,
            ]
            .contains(name)
        });
        match name.zip(text.and_then(|text| HeaderValue::from_str(text).ok())) {
            Some(pair) => headers.push(pair),
            None => section.unusable(
                &entry.key,
                &entry.node,
                "a header's name and its value, not one of Content-Length, Transfer-Encoding and Connection",
            ),
        }
    }
    headers
}

/// `authentication`, or `auth: user:password` as older files have it.
pub(super) fn authentication(section: &Section<'_>) -> Option<UserPassword> {
    let told = user_password(&section.section("authentication"));
    section.acknowledge(&["authentication"]);
    let Some(pair) = section.text("auth") else {
        return told;
    };
    match pair.split_once(':') {
        Some((username, password)) if !username.is_empty() => {
            let short = UserPassword {
                username: username.to_owned(),
                password: password.to_owned().into(),
            };
            told.or(Some(short))
        }
        Some(_) | None => {
            if let Some(node) = section.find("auth") {
                section.unusable("auth", node, "user:password");
            }
            told
        }
    }
}

/// A user with a password: both or none.
pub fn user_password(section: &Section<'_>) -> Option<UserPassword> {
    let username = section.text("username");
    let password = section.secret("password");
    section.end();
    match (username, password) {
        (Some(username), Some(password)) => Some(UserPassword { username, password }),
        (None, None) => None,
        (Some(_), None) => {
            section.missing("password", "a username without it protects nothing");
            None
        }
        (None, Some(_)) => {
            section.missing("username", "a password without it lets nobody in");
            None
        }
    }
}
