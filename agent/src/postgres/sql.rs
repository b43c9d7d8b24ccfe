//! Connections to PostgreSQL servers: the local one, kept open, and short ones to others. Every statement
//! has a limit of time.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::config::{Credentials, PostgresConfig};

/// Name under which the agent's sessions appear in `pg_stat_activity`.
const APPLICATION_NAME: &str = "Trunkline agent";

/// Longest time to open the local connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// The agent's own statements never wait for a replica, and may write whatever the user's default is.
const SESSION_OPTIONS: &str = "-c synchronous_commit=local -c search_path=pg_catalog \
    -c default_transaction_read_only=off \
    -c client_min_messages=error -c statement_timeout=0";

/// For statements that hold passwords.
const UNLOGGED_OPTIONS: &str = "-c log_statement=none -c log_min_duration_statement=-1 \
    -c log_min_duration_sample=-1 -c log_transaction_sample_rate=0 \
    -c log_min_error_statement=panic -c pg_stat_statements.track_utility=off";

/// Why a statement gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SqlError {
    /// Nobody listens: PostgreSQL does not run, or not there.
    #[error("cannot connect to PostgreSQL at {target}: {why}")]
    NotListening {
        /// Host and port, or socket directory.
        target: String,
        /// What the system said.
        why: String,
    },
    /// It runs but lets nobody in yet, or no longer (SQLSTATE 57P03): starts, recovers or stops.
    #[error("PostgreSQL at {target} is not accepting connections: {why}")]
    NotAccepting {
        /// Host and port, or socket directory.
        target: String,
        /// Its message.
        why: String,
    },
    /// It answered with an error. Not retryable as it stands.
    #[error("PostgreSQL at {target} refused ({code}): {message}")]
    Refused {
        /// Host and port, or socket directory.
        target: String,
        /// SQLSTATE.
        code: String,
        /// Its message.
        message: String,
    },
    /// No answer in time: hung, frozen, overloaded.
    #[error("PostgreSQL at {target} did not answer within {after:?}")]
    Unresponsive {
        /// Host and port, or socket directory.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// The connection broke while a statement ran; whether it took effect is unknown.
    #[error("the connection to PostgreSQL at {target} broke: {why}")]
    Broken {
        /// Host and port, or socket directory.
        target: String,
        /// What was seen.
        why: String,
    },
}

/// A server and a role to connect as.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    config: Config,
    name: String,
}

impl Target {
    /// The instance of `config`, as superuser.
    pub(crate) fn local(config: &PostgresConfig) -> Self {
        match config.socket_dirs.first() {
            Some(dir) if config.use_unix_socket => {
                let mut target = Self::of(&config.superuser, &config.database, config.port);
                // The server takes a relative one from its data directory.
                target.config.host_path(config.data_dir.join(dir));
                target.name = format!("{}:{}", dir.display(), config.port);
                target
            }
            _ => Self::remote(
                &config.superuser,
                &config.database,
                config.local_host(),
                config.port,
            ),
        }
    }

    /// Another server.
    pub(crate) fn remote(role: &Credentials, database: &str, host: &str, port: u16) -> Self {
        let mut target = Self::of(role, database, port);
        for host in host.split(',') {
            target.config.host(host);
        }
        target.name = format!("{host}:{port}");
        target
    }

    fn of(role: &Credentials, database: &str, port: u16) -> Self {
        let mut config = Config::new();
        config
            .user(&role.username)
            .dbname(database)
            .port(port)
            .application_name(APPLICATION_NAME)
            .connect_timeout(CONNECT_LIMIT)
            .options(SESSION_OPTIONS);
        if let Some(password) = &role.password {
            config.password(password.expose_secret());
        }
        Self {
            config,
            name: String::new(),
        }
    }

    /// The same under another name in `pg_stat_activity`.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.config.application_name(name);
        self
    }

    /// The same, with nothing of its statements in log or statistics.
    pub(crate) fn without_log(mut self) -> Self {
        self.config
            .options(format!("{SESSION_OPTIONS} {UNLOGGED_OPTIONS}"));
        self
    }

    async fn connect(&self) -> Result<Client, SqlError> {
        let connecting = self.config.connect(NoTls);
        let (client, connection) = match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return Err(self.error(&error, true)),
            Err(_) => {
                return Err(SqlError::Unresponsive {
                    target: self.name.clone(),
                    after: CONNECT_LIMIT,
                });
            }
        };
        // Ends when the client is dropped or the server goes away; the client then says why.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }

    fn error(&self, error: &tokio_postgres::Error, is_connecting: bool) -> SqlError {
        let target = self.name.clone();
        if let Some(answer) = error.as_db_error() {
            let message = answer.message().to_owned();
            if *answer.code() == SqlState::CANNOT_CONNECT_NOW {
                return SqlError::NotAccepting {
                    target,
                    why: message,
                };
            }
            return SqlError::Refused {
                target,
                code: answer.code().code().to_owned(),
                message,
            };
        }
        let source = std::error::Error::source(error);
        let why = source.map_or_else(|| error.to_string(), ToString::to_string);
        if is_connecting {
            SqlError::NotListening { target, why }
        } else {
            SqlError::Broken { target, why }
        }
    }

    /// Runs `sql` on `client` by the simple protocol: one round trip, several statements allowed. The
    /// first value of the first row, if there is one.
    async fn run(
        &self,
        client: &Client,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<String>, SqlError> {
        let messages = match tokio::time::timeout(limit, client.simple_query(sql)).await {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) => return Err(self.error(&error, false)),
            Err(_) => {
                return Err(SqlError::Unresponsive {
                    target: self.name.clone(),
                    after: limit,
                });
            }
        };
        let value = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) if !row.is_empty() => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(messages.iter().filter_map(value).collect())
    }

    /// Connects, runs `sql`, and disconnects. The first value of each row that is not NULL.
    pub(crate) async fn query_once(
        &self,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<String>, SqlError> {
        let client = self.connect().await?;
        self.run(&client, sql, limit).await
    }
}

/// The local connection: opened when first needed, kept, and opened again when it broke.
#[derive(Debug, Default)]
pub(crate) struct LocalSession {
    client: Mutex<Option<Arc<Client>>>,
}

impl LocalSession {
    /// Runs `sql`; the first value of each row that is not NULL. `limit` is for the whole, a new connection
    /// included. A statement that is not answered costs the connection.
    pub(crate) async fn query(
        &self,
        target: &Target,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<String>, SqlError> {
        let whole = async {
            let client = self.client(target).await?;
            let result = target.run(&client, sql, limit).await;
            if matches!(
                result,
                Err(SqlError::Unresponsive { .. } | SqlError::Broken { .. })
            ) {
                self.drop_if(&client).await;
            }
            result
        };
        match tokio::time::timeout(limit, whole).await {
            Ok(result) => result,
            Err(_) => {
                // The lock may be held by another caller that waits too; it then drops the client itself.
                if let Ok(mut kept) = self.client.try_lock() {
                    *kept = None;
                }
                Err(SqlError::Unresponsive {
                    target: target.name.clone(),
                    after: limit,
                })
            }
        }
    }

    async fn client(&self, target: &Target) -> Result<Arc<Client>, SqlError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|c| !c.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(target.connect().await?);
        *kept = Some(Arc::clone(&client));
        Ok(client)
    }

    async fn drop_if(&self, client: &Arc<Client>) {
        let mut kept = self.client.lock().await;
        if kept.as_ref().is_some_and(|k| Arc::ptr_eq(k, client)) {
            *kept = None;
        }
    }

    /// Closes the connection: before a stop, and when the target changes.
    pub(crate) async fn close(&self) {
        *self.client.lock().await = None;
    }
}

/// Quotes an identifier.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text for SQL; right with either value of `standard_conforming_strings`.
pub(crate) fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_for_sql() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }
}
