//! `auth`: who the clients of pooled listeners are.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::pooling::Mode;
use super::raw::{Leaf, Reader, text};
use super::tls::TlsMode;
use super::{ListenerConfig, Mistake, wrong_file};
use crate::auth::Method;
use crate::auth::hba::Hba;
use crate::auth::ident::Ident;
use crate::auth::mock::MockSecret;

/// `auth.query` where the file is silent: PgBouncer's, in words that no search path changes. A role that may not log in
/// is none, and one whose password is out of date has none.
const QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil OPERATOR(pg_catalog.<) pg_catalog.now() \
                     THEN NULL ELSE rolpassword END FROM pg_catalog.pg_authid \
                     WHERE rolname OPERATOR(pg_catalog.=) $1 AND rolcanlogin";
/// `auth.database` where the file is silent: every cluster has it.
const DATABASE: &str = "postgres";

/// How users are looked up that are not in `auth.file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupConfig {
    /// `query`: one row, with the name and the secret.
    pub query: String,
    /// `user`: who asks.
    pub user: String,
    /// `database`: where.
    pub database: String,
}

/// `auth`.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// `type`; none where the rules of `hba_file` say it.
    pub method: Option<Method>,
    /// `file`.
    pub file: Option<PathBuf>,
    /// `hba_file`.
    pub hba_file: Option<PathBuf>,
    /// What stands there.
    pub hba: Arc<Hba>,
    /// `ident_file`.
    pub ident_file: Option<PathBuf>,
    /// What stands there.
    pub ident: Arc<Ident>,
    /// `query`, `user` and `database`, if users are looked up.
    pub lookup: Option<LookupConfig>,
    /// `mock_secret`; without one each process has its own.
    pub mock: Option<MockSecret>,
}

impl AuthConfig {
    /// Whether some client may prove by this method who it is.
    pub fn uses(&self, method: Method) -> bool {
        self.method
            .map_or_else(|| self.hba.uses(method), |own| own == method)
    }

    /// Reads the file of rules.
    pub(super) fn read_hba(&mut self) -> Result<(), Vec<Mistake>> {
        let Some(file) = &self.hba_file else {
            return Ok(());
        };
        let wrong = |why: String| wrong_file("auth.hba_file", file, why);
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|why| vec![wrong(format!("it cannot be read: {why}"))])?;
        let hba = Hba::parse(&text).map_err(|bad| {
            bad.into_iter()
                .map(|bad| wrong(bad.to_string()))
                .collect::<Vec<_>>()
        })?;
        if let Some(file) = &self.ident_file {
            let wrong = |why: String| wrong_file("auth.ident_file", file, why);
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|why| vec![wrong(format!("it cannot be read: {why}"))])?;
            let ident = Ident::parse(&text);
            let ident = ident.map_err(|bad| {
                let each = bad.into_iter().map(|bad| wrong(bad.to_string()));
                each.collect::<Vec<_>>()
            })?;
            self.ident = Arc::new(ident);
        }
        let unknown = hba.maps().filter(|map| !self.ident.has(map));
        let unknown: Vec<_> = unknown
            .map(|map| wrong(format!("the map {map} is not in auth.ident_file")))
            .collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        self.hba = Arc::new(hba);
        Ok(())
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    #[serde(rename = "type")]
    kind: Leaf,
    file: Leaf,
    query: Leaf,
    user: Leaf,
    database: Leaf,
    hba_file: Leaf,
    ident_file: Leaf,
    mock_secret: Leaf,
}

impl Reader {
    pub(super) fn auth(&mut self, raw: RawAuth) -> AuthConfig {
        let kind = self.value(
            "auth.type",
            raw.kind,
            "scram-sha-256, md5, cert, trust or hba is allowed",
            |v| match v.as_str()? {
                "scram-sha-256" => Some(Some(Method::ScramSha256)),
                "md5" => Some(Some(Method::Md5)),
                "cert" => Some(Some(Method::Cert)),
                "trust" => Some(Some(Method::Trust)),
                "hba" => Some(None),
                _ => None,
            },
        );
        let method = kind.unwrap_or(Some(Method::ScramSha256));
        let lookup = self.lookup(raw.query, raw.user, raw.database);
        let allowed = "the path of a file of rules is allowed, lines as in pg_hba.conf";
        let hba_file = match method {
            None => self.needed("auth.hba_file", raw.hba_file, allowed, text),
            Some(_) => {
                self.not_yet("auth.hba_file", raw.hba_file, "is for auth.type: hba");
                None
            }
        };
        let allowed = "the path of a file of maps is allowed, lines as in pg_ident.conf";
        let ident_file = match &hba_file {
            Some(_) => self.value("auth.ident_file", raw.ident_file, allowed, text),
            None => {
                self.not_yet("auth.ident_file", raw.ident_file, "is for auth.type: hba");
                None
            }
        };
        let allowed =
            "the path of a file of users is allowed, lines of \"name\" \"secret\" as in PgBouncer";
        let file = match &lookup {
            None => self.needed("auth.file", raw.file, allowed, text),
            Some(_) => self.value("auth.file", raw.file, allowed, text),
        };
        AuthConfig {
            method,
            file: file.map(PathBuf::from),
            hba_file: hba_file.map(PathBuf::from),
            hba: Arc::default(),
            ident_file: ident_file.map(PathBuf::from),
            ident: Arc::default(),
            lookup,
            mock: self.mock_secret(raw.mock_secret),
        }
    }

    /// What stands there is not shown where it cannot be used.
    fn mock_secret(&mut self, leaf: Leaf) -> Option<MockSecret> {
        let leaf = leaf.filter(|leaf| !leaf.value.is_null())?;
        let secret = text(&leaf.value).and_then(|text| MockSecret::of_text(&text));
        if secret.is_none() {
            let why = "a text of at least 32 characters is allowed, the same for all routers of a fleet, such as \
                       openssl rand -hex 32 gives";
            let line = leaf.referenced.line();
            self.wrong(line, "auth.mock_secret", String::new(), why);
        }
        secret
    }

    /// Where clients are known by their certificates, everybody must show one.
    pub(super) fn certificates(&mut self, auth: &AuthConfig, listeners: &[ListenerConfig]) {
        if auth.method != Some(Method::Cert) {
            return;
        }
        for (at, listener) in listeners.iter().enumerate() {
            if listener.mode != Mode::Tcp && listener.tls.mode < TlsMode::VerifyCa {
                let why =
                    "auth.type: cert needs tls.client.mode: verify-full on every pooled listener";
                let key = format!("listeners[{at}].tls.mode");
                self.wrong(listener.tls.at.1, &key, String::new(), why);
            }
        }
    }

    fn lookup(&mut self, query: Leaf, user: Leaf, database: Leaf) -> Option<LookupConfig> {
        let user = self.value("auth.user", user, "the name of a role is allowed", text);
        let Some(user) = user else {
            let why = "needs auth.user: who asks PostgreSQL for users";
            self.not_yet("auth.query", query, why);
            self.not_yet("auth.database", database, why);
            return None;
        };
        let allowed =
            "SQL with $1 for the name is allowed, that returns a row with the name and the secret";
        let query = self.value("auth.query", query, allowed, |v| {
            text(v).filter(|sql| sql.contains("$1"))
        });
        let database = self.value("auth.database", database, "a name is allowed", text);
        Some(LookupConfig {
            query: query.unwrap_or_else(|| QUERY.to_owned()),
            user,
            database: database.unwrap_or_else(|| DATABASE.to_owned()),
        })
    }
}
