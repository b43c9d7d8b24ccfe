//! `tls` and a listener's own: how clients and PostgreSQL are spoken to.

use std::path::PathBuf;

use serde::Deserialize;
use trunkline_shared::service::tls::TlsFiles;

use super::raw::{Leaf, Reader, text};

/// `mode`, by PgBouncer's meanings of `client_tls_sslmode` and `server_tls_sslmode`. In order: each asks for
/// more than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// No TLS.
    #[default]
    Disable,
    /// TLS for who asks for it.
    Allow,
    /// To a client the same as [`TlsMode::Allow`].
    Prefer,
    /// TLS for everybody.
    Require,
    /// And a certificate of the CA.
    VerifyCa,
    /// To a client the same as [`TlsMode::VerifyCa`].
    VerifyFull,
}

impl TlsMode {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "disable" => TlsMode::Disable,
            "allow" => TlsMode::Allow,
            "prefer" => TlsMode::Prefer,
            "require" => TlsMode::Require,
            "verify-ca" => TlsMode::VerifyCa,
            "verify-full" => TlsMode::VerifyFull,
            _ => return None,
        })
    }
}

/// `tls.client` as a listener has it, or `tls.server`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSection {
    /// `mode`.
    pub mode: TlsMode,
    /// `cert`, `key` and `ca`.
    pub files: TlsFiles,
    /// Clients may be known by their certificates: they are asked for one, where `ca` can check it.
    pub asks_for_certificates: bool,
    /// Where it stands in the file: its key and its line.
    pub at: (String, u64),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    client: Option<RawTlsSide>,
    server: Option<RawTlsSide>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTlsSide {
    mode: Leaf,
    cert: Leaf,
    key: Leaf,
    ca: Leaf,
    reload: Leaf,
}

impl RawTlsSide {
    pub(super) fn line(&self) -> u64 {
        let keys = [&self.mode, &self.cert, &self.key, &self.ca, &self.reload];
        let lines = keys
            .into_iter()
            .flatten()
            .map(|leaf| leaf.referenced.line());
        lines.min().unwrap_or(0)
    }
}

const MODES: &str = "disable, allow, prefer, require, verify-ca or verify-full is allowed";

impl Reader {
    /// `tls`: what listeners have that say nothing else, and how PostgreSQL is spoken to.
    pub(super) fn tls(&mut self, raw: Option<RawTls>, is_pooled: bool) -> [TlsSection; 2] {
        // PgBouncer's defaults.
        let none = TlsSection::default();
        let server = TlsSection {
            mode: TlsMode::Prefer,
            ..TlsSection::default()
        };
        let Some(raw) = raw else {
            return [none, server];
        };
        let line = [&raw.client, &raw.server].map(|side| side.as_ref().map_or(0, RawTlsSide::line));
        if !is_pooled {
            let why = "is for listeners in mode session, transaction or statement, and there is none; \
                       in tcp mode TLS passes through to PostgreSQL";
            self.wrong(line[0].max(line[1]), "tls", String::new(), why);
            return [none, server];
        }
        let client = match raw.client {
            Some(client) => self.client_tls("tls.client", client, &none),
            None => none,
        };
        let server = match raw.server {
            Some(raw) => self.server_tls(raw, &server),
            None => server,
        };
        [client, server]
    }

    fn server_tls(&mut self, raw: RawTlsSide, base: &TlsSection) -> TlsSection {
        let own = self.tls_side("tls.server", raw, base);
        if own.mode == TlsMode::VerifyCa && own.files.ca.is_none() {
            // The CAs of the web sign anybody's certificate, and the name is not looked at.
            let why = "is missing; verify-ca needs the file of the CA of PostgreSQL's certificates";
            self.wrong(own.at.1, "tls.server.ca", String::new(), why);
        }
        if own.files.key.is_some() && own.files.certificate.is_none() {
            let why = "is missing; a key without a certificate is of no use";
            self.wrong(own.at.1, "tls.server.cert", String::new(), why);
        }
        own
    }

    /// A listener's own, where what it does not say is as in `base`.
    pub(super) fn client_tls(
        &mut self,
        at: &str,
        raw: RawTlsSide,
        base: &TlsSection,
    ) -> TlsSection {
        let names_no_mode = raw.mode.is_none();
        let own = self.tls_side(at, raw, base);
        let line = own.at.1;
        let mode = own.mode;
        if mode == TlsMode::Disable && names_no_mode && own.files.named().next().is_some() {
            // Nobody names a certificate to serve in the clear.
            let why = "is missing beside the files of TLS; disable, allow, require or verify-full is meant";
            self.wrong(line, &format!("{at}.mode"), String::new(), why);
        }
        if mode > TlsMode::Disable && own.files.certificate.is_none() {
            let why = "is missing; TLS needs the file of the router's certificate";
            self.wrong(line, &format!("{at}.cert"), String::new(), why);
        }
        if mode >= TlsMode::VerifyCa && own.files.ca.is_none() {
            // The CAs of the web would sign anybody's certificate of any name.
            let why =
                "is missing; verify-ca and verify-full need the file of the CA of the clients";
            self.wrong(line, &format!("{at}.ca"), String::new(), why);
        }
        own
    }

    fn tls_side(&mut self, at: &str, raw: RawTlsSide, base: &TlsSection) -> TlsSection {
        let line = raw.line();
        let key = |name: &str| format!("{at}.{name}");
        let why =
            "is not available in this version: files are looked at every 10 s and at a reload";
        self.not_yet(&key("reload"), raw.reload, why);
        let mode = self.value(&key("mode"), raw.mode, MODES, |v| {
            TlsMode::parse(v.as_str()?)
        });
        let mut file = |name: &str, leaf: Leaf, base: &Option<PathBuf>| {
            let named = self.value(&key(name), leaf, "a file's path is allowed", text);
            named.map(PathBuf::from).or_else(|| base.clone())
        };
        TlsSection {
            mode: mode.unwrap_or(base.mode),
            files: TlsFiles {
                certificate: file("cert", raw.cert, &base.files.certificate),
                key: file("key", raw.key, &base.files.key),
                ca: file("ca", raw.ca, &base.files.ca),
            },
            asks_for_certificates: false,
            at: (at.to_owned(), line),
        }
    }
}
