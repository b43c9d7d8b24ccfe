//! `databases` and `users`: where a client's database is, and what a user in it keeps to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use trunkline_shared::cluster::ClusterName;

use super::ListenerConfig;
use super::admin::is_console;
use super::listeners::pooled_mode;
use super::pattern::Pattern;
use super::pooling::{Mode, PoolConfig, PoolingConfig};
use super::raw::{Leaf, Reader, name, text};

/// Clusters that one router follows at once. Each costs a watch of the DCS, a question to it per second and a task.
pub const MAX_CLUSTERS: usize = 256;

/// `databases`, by the name that clients use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Databases {
    exact: BTreeMap<String, DatabaseConfig>,
    /// The one with the longest literal first. Of two as long as each other no name matches both.
    patterns: Vec<(Pattern, DatabaseConfig)>,
}

/// One of `databases`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// The cluster. A star in it is what the star of the same place stood for in the name.
    pub scope: Option<Pattern>,
    /// The name that PostgreSQL knows, with stars as above; the client's if absent.
    pub dbname: Option<Pattern>,
    /// In place of the listener's mode.
    pub pool_mode: Option<Mode>,
    /// In place of `default_pool_size`.
    pub pool_size: Option<usize>,
    /// In place of the pool's.
    pub min_pool_size: Option<usize>,
    /// In place of the pool's.
    pub reserve_pool_size: Option<usize>,
    /// In place of the pool's.
    pub max_db_connections: Option<usize>,
    /// In place of the pool's.
    pub max_db_client_connections: Option<usize>,
    /// In place of the pool's.
    pub server_lifetime: Option<Duration>,
    /// In place of the pool's.
    pub query_wait_timeout: Option<Duration>,
}

/// One of `users`. What is said here goes before what the database says, as in PgBouncer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserConfig {
    /// In place of the database's, or the listener's.
    pub pool_mode: Option<Mode>,
    /// In place of the database's, or of `default_pool_size`.
    pub pool_size: Option<usize>,
    /// In place of the database's, or the pool's.
    pub reserve_pool_size: Option<usize>,
    /// In place of the pool's.
    pub max_user_connections: Option<usize>,
    /// In place of the pool's.
    pub max_user_client_connections: Option<usize>,
    /// In place of the pool's.
    pub query_timeout: Option<Duration>,
    /// In place of the database's, or the pool's.
    pub query_wait_timeout: Option<Duration>,
    /// In place of the pool's.
    pub client_idle_timeout: Option<Duration>,
    /// In place of the pool's.
    pub idle_transaction_timeout: Option<Duration>,
}

/// What one user in one database keeps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The cluster, if the database's entry names one.
    pub scope: Option<ClusterName>,
    /// The name that PostgreSQL knows.
    pub dbname: Arc<str>,
    /// In place of the listener's mode.
    pub mode: Option<Mode>,
    /// Every limit and time, those of the entries in place of the pool's.
    pub pool: PoolConfig,
}

/// Which clusters a file names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scopes {
    /// By their names.
    pub named: BTreeSet<ClusterName>,
    /// By patterns.
    pub patterns: BTreeSet<Pattern>,
}

impl Databases {
    /// The entry of a database, and what the stars of its name stand for.
    fn find<'a>(&self, name: &'a str) -> Option<(&DatabaseConfig, Vec<&'a str>)> {
        if let Some(exact) = self.exact.get(name) {
            return Some((exact, Vec::new()));
        }
        let mut patterns = self.patterns.iter();
        patterns.find_map(|(pattern, config)| Some((config, pattern.taken(name)?)))
    }

    /// The names that stand for themselves.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.exact.keys().map(String::as_str)
    }

    fn entries(&self) -> impl Iterator<Item = &DatabaseConfig> {
        let patterns = self.patterns.iter().map(|(_, config)| config);
        self.exact.values().chain(patterns)
    }
}

impl PoolingConfig {
    /// Whether there is such a database.
    pub fn has_database(&self, name: &str) -> bool {
        let all = self.databases.as_ref();
        all.is_none_or(|all| all.find(name).is_some())
    }

    /// What this user keeps to in this database; `None` if there is no such database.
    pub fn terms(&self, database: &str, user: &str) -> Option<Terms> {
        let none = DatabaseConfig::default();
        let (own, taken) = match &self.databases {
            None => (&none, Vec::new()),
            Some(databases) => databases.find(database)?,
        };
        let filled = |name: &Pattern| name.filled(&taken);
        let dbname = own.dbname.as_ref().map(filled);
        let mut pool = self.pool.clone();
        own.apply(&mut pool);
        let user = self.user_limits.get(user);
        if let Some(user) = user {
            user.apply(&mut pool);
        }
        Some(Terms {
            scope: own.scope.as_ref().map(|s| ClusterName::new(&filled(s))),
            dbname: dbname.as_deref().unwrap_or(database).into(),
            mode: user.and_then(|user| user.pool_mode).or(own.pool_mode),
            pool,
        })
    }
}

/// Puts a value of an entry in the place of the pool's, where there is one.
fn put<T: Copy>(place: &mut T, own: Option<T>) {
    *place = own.unwrap_or(*place);
}

impl DatabaseConfig {
    fn apply(&self, pool: &mut PoolConfig) {
        put(&mut pool.default_pool_size, self.pool_size);
        put(&mut pool.min_pool_size, self.min_pool_size);
        put(&mut pool.reserve_pool_size, self.reserve_pool_size);
        put(&mut pool.max_db_connections, self.max_db_connections);
        let clients = self.max_db_client_connections;
        put(&mut pool.max_db_client_connections, clients);
        put(&mut pool.server_lifetime, self.server_lifetime);
        put(&mut pool.query_wait_timeout, self.query_wait_timeout);
    }
}

impl UserConfig {
    fn apply(&self, pool: &mut PoolConfig) {
        put(&mut pool.default_pool_size, self.pool_size);
        put(&mut pool.reserve_pool_size, self.reserve_pool_size);
        put(&mut pool.max_user_connections, self.max_user_connections);
        let clients = self.max_user_client_connections;
        put(&mut pool.max_user_client_connections, clients);
        put(&mut pool.query_timeout, self.query_timeout);
        put(&mut pool.query_wait_timeout, self.query_wait_timeout);
        put(&mut pool.client_idle_timeout, self.client_idle_timeout);
        let idle = self.idle_transaction_timeout;
        put(&mut pool.idle_transaction_timeout, idle);
    }
}

impl Scopes {
    /// Those of a file.
    pub fn of(listeners: &[ListenerConfig], databases: Option<&Databases>) -> Self {
        let own = listeners.iter().filter_map(|l| l.scope.clone());
        let mut scopes = Self {
            named: own.collect(),
            patterns: BTreeSet::new(),
        };
        for scope in databases
            .into_iter()
            .flat_map(Databases::entries)
            .filter_map(|entry| entry.scope.as_ref())
        {
            match scope.stars() {
                0 => scopes.named.insert(ClusterName::new(&scope.to_string())),
                _ => scopes.patterns.insert(scope.clone()),
            };
        }
        scopes
    }

    /// Whether a cluster of this name is one of them.
    pub fn include(&self, name: &ClusterName) -> bool {
        self.named.contains(name) || self.patterns.iter().any(|p| p.matches(name.as_str()))
    }

    /// What the names of all clusters begin with that the patterns name; `None` without a pattern.
    pub fn beginning(&self) -> Option<&str> {
        let mut beginnings = self.patterns.iter().map(Pattern::beginning);
        let first = beginnings.next()?;
        Some(beginnings.fold(first, |own, other| {
            let same = own.char_indices().zip(other.chars());
            let end = same.take_while(|((_, one), two)| one == two);
            let length = end.last().map_or(0, |((at, one), _)| at + one.len_utf8());
            own.get(..length).unwrap_or_default()
        }))
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDatabase {
    scope: Leaf,
    dbname: Leaf,
    pool_mode: Leaf,
    pool_size: Leaf,
    min_pool_size: Leaf,
    reserve_pool_size: Leaf,
    max_db_connections: Leaf,
    max_db_client_connections: Leaf,
    server_lifetime: Leaf,
    query_wait_timeout: Leaf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUser {
    pool_mode: Leaf,
    pool_size: Leaf,
    reserve_pool_size: Leaf,
    max_user_connections: Leaf,
    max_user_client_connections: Leaf,
    query_timeout: Leaf,
    query_wait_timeout: Leaf,
    client_idle_timeout: Leaf,
    idle_transaction_timeout: Leaf,
}

const POOL_MODE: &str = "session, transaction or statement is allowed";

impl Reader {
    pub(super) fn databases(
        &mut self,
        raw: Option<BTreeMap<String, RawDatabase>>,
        listeners: &[ListenerConfig],
    ) -> Option<Databases> {
        let is_scoped = |listener: &ListenerConfig| listener.scope.is_some();
        let mut pooled = listeners.iter().filter(|own| own.mode != Mode::Tcp);
        let needs_scope = !listeners.iter().all(is_scoped) && !pooled.any(is_scoped);
        if raw.is_none() && !listeners.iter().all(is_scoped) {
            let why = "is missing; a listener without scope takes the cluster from the entry of the client's \
                       database, such as shard_1: {scope: shard-1}";
            self.wrong(0, "databases", String::new(), why);
        }
        let mut databases = Databases::default();
        for (name, raw) in raw? {
            let key = format!("databases.{name}");
            if is_console(&name) {
                let why = "is the console; choose another name for clients, and name PostgreSQL's by dbname";
                self.wrong(0, &key, String::new(), why);
            }
            let pattern = Pattern::new(&name);
            let has_scope = raw.scope.as_ref().is_some_and(|leaf| !leaf.value.is_null());
            let config = self.database(&key, raw, &pattern);
            if needs_scope && !has_scope {
                let why = "is missing; no pooled listener names a cluster";
                self.wrong(0, &format!("{key}.scope"), String::new(), why);
            }
            match pattern.stars() {
                0 => drop(databases.exact.insert(name, config)),
                _ => databases.patterns.push((pattern, config)),
            }
        }
        self.ties(&databases.patterns);
        let patterns = &mut databases.patterns;
        patterns.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.literal_length()));
        let named = Scopes::of(listeners, Some(&databases)).named.len();
        if named > MAX_CLUSTERS {
            let why = format!("at most {MAX_CLUSTERS} clusters are followed by one router");
            self.wrong(0, "databases", format!("{named} clusters"), &why);
        }
        Some(databases)
    }

    /// Of two patterns that a name could match, one must be the longer.
    fn ties(&mut self, patterns: &[(Pattern, DatabaseConfig)]) {
        for (at, (one, _)) in patterns.iter().enumerate() {
            for (two, _) in patterns.iter().skip(at + 1) {
                if one.literal_length() == two.literal_length() && one.overlaps(two) {
                    let key = format!("databases.{two}");
                    let why = format!(
                        "a name could match this and {one}, which is as long: give one of them more letters"
                    );
                    self.wrong(0, &key, String::new(), &why);
                }
            }
        }
    }

    fn database(&mut self, at: &str, raw: RawDatabase, own: &Pattern) -> DatabaseConfig {
        let key = |leaf: &str| format!("{at}.{leaf}");
        let fits = |text: String| {
            let pattern = Pattern::new(&text);
            (pattern.stars() <= own.stars()).then_some(pattern)
        };
        let stars = match own.stars() {
            0 => "without *",
            _ => "with no more * than the entry's name has",
        };
        let scope = format!("the name of a cluster is allowed, without / and {stars}");
        let dbname = format!("a name is allowed, {stars}");
        DatabaseConfig {
            scope: self.value(&key("scope"), raw.scope, &scope, |v| fits(name(v)?)),
            dbname: self.value(&key("dbname"), raw.dbname, &dbname, |v| fits(text(v)?)),
            pool_mode: self.value(&key("pool_mode"), raw.pool_mode, POOL_MODE, pooled_mode),
            pool_size: self.size(&key("pool_size"), raw.pool_size),
            min_pool_size: self.number(&key("min_pool_size"), raw.min_pool_size),
            reserve_pool_size: self.number(&key("reserve_pool_size"), raw.reserve_pool_size),
            max_db_connections: self.limit(&key("max_db_connections"), raw.max_db_connections),
            max_db_client_connections: self.limit(
                &key("max_db_client_connections"),
                raw.max_db_client_connections,
            ),
            server_lifetime: self.time(&key("server_lifetime"), raw.server_lifetime),
            query_wait_timeout: self.time(&key("query_wait_timeout"), raw.query_wait_timeout),
        }
    }

    pub(super) fn user(&mut self, name: &str, raw: RawUser) -> UserConfig {
        let key = |leaf: &str| format!("users.{name}.{leaf}");
        UserConfig {
            pool_mode: self.value(&key("pool_mode"), raw.pool_mode, POOL_MODE, pooled_mode),
            pool_size: self.size(&key("pool_size"), raw.pool_size),
            reserve_pool_size: self.number(&key("reserve_pool_size"), raw.reserve_pool_size),
            max_user_connections: self
                .limit(&key("max_user_connections"), raw.max_user_connections),
            max_user_client_connections: self.limit(
                &key("max_user_client_connections"),
                raw.max_user_client_connections,
            ),
            query_timeout: self.time(&key("query_timeout"), raw.query_timeout),
            query_wait_timeout: self.time(&key("query_wait_timeout"), raw.query_wait_timeout),
            client_idle_timeout: self.time(&key("client_idle_timeout"), raw.client_idle_timeout),
            idle_transaction_timeout: self.time(
                &key("idle_transaction_timeout"),
                raw.idle_transaction_timeout,
            ),
        }
    }

    /// A number of servers, of which a pool needs one.
    fn size(&mut self, key: &str, leaf: Leaf) -> Option<usize> {
        self.number(key, leaf).map(|number| number.max(1))
    }
}

#[cfg(test)]
mod tests;
