//! `restapi:`

use std::path::PathBuf;

use super::UserPassword;
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
    /// Certificate with its chain; HTTPS if set.
    pub certfile: Option<PathBuf>,
    /// The certificate's key; in `certfile` if absent.
    pub keyfile: Option<PathBuf>,
    /// Who signed clients' certificates.
    pub cafile: Option<PathBuf>,
    /// Whether clients need one.
    pub verify_client: VerifyClient,
    /// Required for unsafe methods if set.
    pub authentication: Option<RestCredentials>,
    /// Addresses, networks and host names that may use unsafe methods; empty: any.
    pub allowlist: Vec<String>,
    /// Members' hosts may use unsafe methods, too.
    pub allowlist_include_members: bool,
}

/// `restapi.verify_client`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyClient {
    /// No certificate is asked for.
    None,
    /// Needed for unsafe methods.
    Optional,
    /// Needed for everything.
    Required,
}

impl RestApiConfig {
    /// The member's `api_url`, as Patroni writes it.
    pub fn api_url(&self) -> String {
        let scheme = if self.certfile.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}/patroni", self.connect_address)
    }
}

/// A protection that would not protect is refused: whoever set it relies on it.
const UNPROTECTED: &str = "absence: this version serves the REST API over plain HTTP and protects unsafe requests by \
     restapi.authentication only; leave the key out and keep the port in a private network";

/// Reads the section.
pub fn read(section: &Section<'_>) -> Option<RestApiConfig> {
    let default = Address {
        host: "127.0.0.1".to_owned(),
        port: DEFAULT_PORT,
    };
    let has_listen = section.find("listen").is_some();
    let listen = section.address("listen", DEFAULT_PORT);
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
    let config = listen.map(|listen| RestApiConfig {
        connect_address: connect.unwrap_or_else(|| listen.clone()),
        listen,
        certfile: section.file("certfile"),
        keyfile: section.file("keyfile"),
        cafile: section.file("cafile"),
        verify_client: section
            .one_of(
                "verify_client",
                &[
                    ("none", VerifyClient::None),
                    ("optional", VerifyClient::Optional),
                    ("required", VerifyClient::Required),
                ],
            )
            .unwrap_or(VerifyClient::None),
        authentication: user_password(&section.section("authentication")),
        allowlist: section.texts("allowlist", true).unwrap_or_default(),
        allowlist_include_members: section
            .boolean("allowlist_include_members")
            .unwrap_or(false),
    });
    for key in ["certfile", "keyfile", "cafile", "allowlist"] {
        if let Some(node) = section.find(key) {
            section.unusable(key, node, UNPROTECTED);
        }
    }
    if config
        .as_ref()
        .is_some_and(|c| c.verify_client != VerifyClient::None)
        && let Some(node) = section.find("verify_client")
    {
        section.unusable("verify_client", node, UNPROTECTED);
    }
    if config.as_ref().is_some_and(|c| c.allowlist_include_members)
        && let Some(node) = section.find("allowlist_include_members")
    {
        section.unusable("allowlist_include_members", node, UNPROTECTED);
    }
    section.not_acted_on(&[
        "keyfile_password",
        "ciphers",
        "http_extra_headers",
        "https_extra_headers",
        "request_queue_size",
        "server_tokens",
        "auth",
    ]);
    section.end();
    config
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
