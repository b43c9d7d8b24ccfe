//! `auth`, `databases`, `pool` and `users`: what pooled listeners are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::admin::{AdminConfig, RawAdmin};
use super::auth::{AuthConfig, RawAuth};
use super::databases::{Databases, RawDatabase, RawUser, UserConfig};
use super::raw::{Leaf, Reader, duration};
use super::tls::TlsSection;
use super::{ListenerConfig, Mistake};
use crate::auth::Secret;
use crate::auth::users::Users;

/// `mode` of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes only.
    Tcp,
    /// A server for the client's life.
    Session,
    /// A server for a transaction.
    Transaction,
    /// A server for a statement.
    Statement,
}

impl Mode {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Tcp => "tcp",
            Mode::Session => "session",
            Mode::Transaction => "transaction",
            Mode::Statement => "statement",
        }
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct PoolingConfig {
    /// `auth`.
    pub auth: AuthConfig,
    /// `admin`.
    pub admin: AdminConfig,
    /// What stands in `auth.file`.
    pub users: Arc<Users>,
    /// `tls.server`.
    pub tls_server: TlsSection,
    /// `pool`.
    pub pool: PoolConfig,
    /// `databases`. None: every name is passed on to the listener's cluster.
    pub databases: Option<Databases>,
    /// `users`.
    pub user_limits: BTreeMap<String, UserConfig>,
}

/// `pool`. A limit of 0 is none, as in PgBouncer; here that is `usize::MAX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Servers per pool.
    pub default_pool_size: usize,
    /// Servers kept open per pool.
    pub min_pool_size: usize,
    /// Servers beyond the size for those who wait long.
    pub reserve_pool_size: usize,
    /// How long that is.
    pub reserve_pool_timeout: Duration,
    /// Servers per database.
    pub max_db_connections: usize,
    /// Servers per user.
    pub max_user_connections: usize,
    /// Clients of all pooled listeners.
    pub max_client_conn: usize,
    /// Clients per database.
    pub max_db_client_connections: usize,
    /// Clients per user.
    pub max_user_client_connections: usize,
    /// Statements prepared per server; 0: names are passed on as they are.
    pub max_prepared_statements: usize,
    /// What a server is asked after a client in session mode; empty: nothing.
    pub server_reset_query: String,
    /// A server older than this is closed.
    pub server_lifetime: Duration,
    /// A server idle for longer is closed; zero: never.
    pub server_idle_timeout: Duration,
    /// How long a client waits for a server; zero: for ever.
    pub query_wait_timeout: Duration,
    /// How long a client waits for an answer; zero: for ever.
    pub query_timeout: Duration,
    /// How long a client may be idle between two transactions; zero: for ever.
    pub client_idle_timeout: Duration,
    /// How long within one; zero: for ever.
    pub idle_transaction_timeout: Duration,
    /// How long a client may take to log in.
    pub client_login_timeout: Duration,
    /// How long a server may take to connect and let the router in.
    pub server_connect_timeout: Duration,
    /// The longest pause after PostgreSQL did not let the router in.
    pub server_login_retry: Duration,
    /// Start-up parameters of clients that are dropped.
    pub ignore_startup_parameters: Vec<String>,
}

impl Default for PoolConfig {
    /// PgBouncer's, but for `server_login_retry`: 15 s there, in which clients are refused after a blip.
    fn default() -> Self {
        Self {
            default_pool_size: 20,
            min_pool_size: 0,
            reserve_pool_size: 0,
            reserve_pool_timeout: Duration::from_secs(5),
            max_db_connections: usize::MAX,
            max_user_connections: usize::MAX,
            max_client_conn: usize::MAX,
            max_db_client_connections: usize::MAX,
            max_user_client_connections: usize::MAX,
            max_prepared_statements: 200,
            server_reset_query: "DISCARD ALL".to_owned(),
            server_lifetime: Duration::from_secs(3600),
            server_idle_timeout: Duration::from_secs(600),
            query_wait_timeout: Duration::from_secs(120),
            query_timeout: Duration::ZERO,
            client_idle_timeout: Duration::ZERO,
            idle_transaction_timeout: Duration::ZERO,
            client_login_timeout: Duration::from_secs(60),
            server_connect_timeout: Duration::from_secs(15),
            server_login_retry: Duration::from_secs(1),
            ignore_startup_parameters: Vec::new(),
        }
    }
}

impl PoolingConfig {
    /// Whether the router can log in as the one who looks users up.
    pub(super) fn check_lookup(&self) -> Result<(), Mistake> {
        let Some(lookup) = &self.auth.lookup else {
            return Ok(());
        };
        match self.users.find(&lookup.user).map(|user| user.secret()) {
            Some(Secret::Scram(_)) => Err(Mistake {
                line: 0,
                key: "auth.user".to_owned(),
                value: lookup.user.clone(),
                allowed:
                    "its secret in auth.file is a SCRAM verifier, by which nobody can log in; \
                          put the password there, or let pg_hba.conf take the router's certificate"
                        .to_owned(),
            }),
            Some(Secret::Plain(_) | Secret::Md5(_) | Secret::Empty) | None => Ok(()),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPool {
    default_pool_size: Leaf,
    min_pool_size: Leaf,
    reserve_pool_size: Leaf,
    reserve_pool_timeout: Leaf,
    max_db_connections: Leaf,
    max_user_connections: Leaf,
    max_prepared_statements: Leaf,
    server_reset_query: Leaf,
    server_lifetime: Leaf,
    server_idle_timeout: Leaf,
    query_wait_timeout: Leaf,
    client_login_timeout: Leaf,
    server_connect_timeout: Leaf,
    ignore_startup_parameters: Leaf,
    max_client_conn: Leaf,
    max_db_client_connections: Leaf,
    max_user_client_connections: Leaf,
    query_timeout: Leaf,
    client_idle_timeout: Leaf,
    idle_transaction_timeout: Leaf,
    server_login_retry: Leaf,
    cancel_wait_timeout: Leaf,
    track_extra_parameters: Leaf,
}

/// The four sections as they stand in the file.
pub(super) struct RawPooling {
    pub(super) auth: Option<RawAuth>,
    pub(super) admin: Option<RawAdmin>,
    pub(super) pool: Option<RawPool>,
    pub(super) databases: Option<BTreeMap<String, RawDatabase>>,
    pub(super) users: Option<BTreeMap<String, RawUser>>,
    /// Read already.
    pub(super) tls_server: TlsSection,
}

const NOT_YET: &str = "is not available in this version";
const NUMBER: &str = "a number is allowed";
const TIME: &str = "a time is allowed, such as 10s or 500ms";

impl Reader {
    /// Reads the sections, if a listener pools; else none of them may be there.
    pub(super) fn pooling(
        &mut self,
        raw: RawPooling,
        is_pooled: bool,
        listeners: &[ListenerConfig],
    ) -> Option<PoolingConfig> {
        if !is_pooled {
            let why = "is for listeners in mode session, transaction or statement, and there is none; \
                       in tcp mode PostgreSQL itself does this";
            for (key, is_there) in [
                ("admin", raw.admin.is_some()),
                ("auth", raw.auth.is_some()),
                ("databases", raw.databases.is_some()),
                ("pool", raw.pool.is_some()),
                ("users", raw.users.is_some()),
            ] {
                if is_there {
                    self.wrong(0, key, String::new(), why);
                }
            }
            return None;
        }
        let auth = self.auth(raw.auth.unwrap_or_default());
        let admin = self.admin(raw.admin.unwrap_or_default());
        let pool = self.pool(raw.pool.unwrap_or_default());
        let databases = self.databases(raw.databases, listeners);
        let mut user_limits = BTreeMap::new();
        for (name, raw) in raw.users.unwrap_or_default() {
            let own = self.user(&name, raw);
            user_limits.insert(name, own);
        }
        Some(PoolingConfig {
            auth,
            admin,
            users: Arc::default(),
            tls_server: raw.tls_server,
            pool,
            databases,
            user_limits,
        })
    }

    fn pool(&mut self, mut raw: RawPool) -> PoolConfig {
        for (key, leaf) in [
            ("cancel_wait_timeout", &mut raw.cancel_wait_timeout),
            ("track_extra_parameters", &mut raw.track_extra_parameters),
        ] {
            self.not_yet(&format!("pool.{key}"), leaf.take(), NOT_YET);
        }
        let mut own = PoolConfig::default();
        self.pool_numbers(&mut own, &mut raw);
        self.pool_times(&mut own, &mut raw);
        self.pool_texts(
            &mut own,
            raw.server_reset_query,
            raw.ignore_startup_parameters,
        );
        own
    }

    fn pool_numbers(&mut self, own: &mut PoolConfig, raw: &mut RawPool) {
        for (key, leaf, number) in [
            (
                "default_pool_size",
                &mut raw.default_pool_size,
                &mut own.default_pool_size,
            ),
            (
                "min_pool_size",
                &mut raw.min_pool_size,
                &mut own.min_pool_size,
            ),
            (
                "reserve_pool_size",
                &mut raw.reserve_pool_size,
                &mut own.reserve_pool_size,
            ),
            (
                "max_prepared_statements",
                &mut raw.max_prepared_statements,
                &mut own.max_prepared_statements,
            ),
        ] {
            *number = self
                .number(&format!("pool.{key}"), leaf.take())
                .unwrap_or(*number);
        }
        own.default_pool_size = own.default_pool_size.max(1);
        for (key, leaf, limit) in [
            (
                "max_db_connections",
                &mut raw.max_db_connections,
                &mut own.max_db_connections,
            ),
            (
                "max_user_connections",
                &mut raw.max_user_connections,
                &mut own.max_user_connections,
            ),
            (
                "max_client_conn",
                &mut raw.max_client_conn,
                &mut own.max_client_conn,
            ),
            (
                "max_db_client_connections",
                &mut raw.max_db_client_connections,
                &mut own.max_db_client_connections,
            ),
            (
                "max_user_client_connections",
                &mut raw.max_user_client_connections,
                &mut own.max_user_client_connections,
            ),
        ] {
            *limit = self
                .limit(&format!("pool.{key}"), leaf.take())
                .unwrap_or(*limit);
        }
    }

    fn pool_times(&mut self, own: &mut PoolConfig, raw: &mut RawPool) {
        for (key, leaf, time) in [
            (
                "reserve_pool_timeout",
                &mut raw.reserve_pool_timeout,
                &mut own.reserve_pool_timeout,
            ),
            (
                "server_lifetime",
                &mut raw.server_lifetime,
                &mut own.server_lifetime,
            ),
            (
                "server_idle_timeout",
                &mut raw.server_idle_timeout,
                &mut own.server_idle_timeout,
            ),
            (
                "query_wait_timeout",
                &mut raw.query_wait_timeout,
                &mut own.query_wait_timeout,
            ),
            (
                "query_timeout",
                &mut raw.query_timeout,
                &mut own.query_timeout,
            ),
            (
                "client_idle_timeout",
                &mut raw.client_idle_timeout,
                &mut own.client_idle_timeout,
            ),
            (
                "idle_transaction_timeout",
                &mut raw.idle_transaction_timeout,
                &mut own.idle_transaction_timeout,
            ),
            (
                "client_login_timeout",
                &mut raw.client_login_timeout,
                &mut own.client_login_timeout,
            ),
            (
                "server_connect_timeout",
                &mut raw.server_connect_timeout,
                &mut own.server_connect_timeout,
            ),
            (
                "server_login_retry",
                &mut raw.server_login_retry,
                &mut own.server_login_retry,
            ),
        ] {
            let key = format!("pool.{key}");
            *time = self.time(&key, leaf.take()).unwrap_or(*time);
        }
    }

    fn pool_texts(&mut self, own: &mut PoolConfig, reset: Leaf, ignored: Leaf) {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        if let Some(query) = self.value("pool.server_reset_query", reset, "SQL is allowed", text) {
            own.server_reset_query = query;
        }
        let names = |v: &Value| {
            let names = v
                .as_str()?
                .split(',')
                .map(|name| name.trim().to_ascii_lowercase());
            Some(names.collect())
        };
        let allowed = "names of parameters are allowed, separated by commas";
        let ignored = self.value("pool.ignore_startup_parameters", ignored, allowed, names);
        own.ignore_startup_parameters = ignored.unwrap_or_default();
    }

    pub(super) fn number(&mut self, key: &str, leaf: Leaf) -> Option<usize> {
        self.value(key, leaf, NUMBER, |v: &Value| {
            usize::try_from(v.as_u64()?).ok()
        })
    }

    /// A number of which 0 is no limit.
    pub(super) fn limit(&mut self, key: &str, leaf: Leaf) -> Option<usize> {
        let number = self.number(key, leaf)?;
        Some(if number == 0 { usize::MAX } else { number })
    }

    pub(super) fn time(&mut self, key: &str, leaf: Leaf) -> Option<Duration> {
        self.value(key, leaf, TIME, duration)
    }
}
