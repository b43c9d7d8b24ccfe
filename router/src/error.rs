//! Why a session ends, and the only table from that to what the client is told.

use std::net::IpAddr;
use std::time::Duration;

use trunkline_shared::cluster::{ClusterName, MemberName};

use crate::auth::Malformed;
use crate::auth::scram::{NOT_BOUND, NOT_NEGOTIATED};
use crate::lanes::Ending;
use crate::listener::limits::{Full, MAX_CLIENT_CONN};
use crate::pool::registry::Kill;
use crate::protocol::startup::NotStartup;
use crate::protocol::{messages, sqlstate};
use crate::route::{Awaited, NoRoute};
use crate::topology::transition::CutCause;

mod request;
mod wording;

pub use request::RequestError;
pub use wording::Whence;
use wording::{awaited_text, ended_text, killed_text, reasons_text, seconds, unknown};

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// PostgreSQL's, or the way to it.
    Server,
    /// The router's, or the cluster's.
    Router,
}

/// Why a session ended before its time.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    /// The lane was cut or the router stops. Connect again.
    #[error("{}", ended_text(.ending, .has_outstanding))]
    Ended {
        /// Why.
        ending: Ending,
        /// Whether a request was sent whose outcome the client does not know.
        has_outstanding: bool,
    },
    /// The server closed the connection without a word: it crashed, or the way to it broke.
    #[error("the connection to PostgreSQL on member {member} was lost{}", unknown(.has_outstanding))]
    ServerLost {
        /// Which member.
        member: MemberName,
        /// As above.
        has_outstanding: bool,
    },
    /// The server took too long to say whether it encrypts.
    #[error("PostgreSQL on member {member} did not answer a request for encryption within {}", seconds(.limit))]
    EncryptionUnanswered {
        /// Which member.
        member: MemberName,
        /// The limit.
        limit: Duration,
    },
    /// The log-in was not over in time, in the clear or under TLS.
    #[error("PostgreSQL on member {member} was not ready for queries {} after the log-in began", seconds(.limit))]
    NotGreeted {
        /// Which member.
        member: MemberName,
        /// The limit.
        limit: Duration,
    },
    /// No target within the time a client is held.
    #[error("cluster {cluster} takes no writes now: {}; waited {}", awaited_text(.awaited), seconds(.waited))]
    HeldTooLong {
        /// Which cluster.
        cluster: ClusterName,
        /// What for.
        awaited: Awaited,
        /// How long.
        waited: Duration,
    },
    /// Writes never come to a standby cluster.
    #[error("cluster {cluster} is a standby cluster, led by {leader}: it takes no writes")]
    StandbyCluster {
        /// Which cluster.
        cluster: ClusterName,
        /// Its leader.
        leader: MemberName,
    },
    /// No replica serves.
    #[error("no replica of cluster {cluster} is fit for reads: {}", reasons_text(.reasons))]
    NoReplica {
        /// Which cluster.
        cluster: ClusterName,
        /// Each member and why not.
        reasons: Vec<(MemberName, String)>,
    },
    /// The listener, the router, a database or a user has too many clients.
    #[error(transparent)]
    TooManyClients(#[from] Full),
    /// The router follows too many clusters to follow this one, too.
    #[error("cluster {cluster} is not served: this router follows {limit} clusters already")]
    TooManyClusters {
        /// Which cluster.
        cluster: ClusterName,
        /// How many are followed.
        limit: usize,
    },
    /// Too many connections of one address, or in total, that are not logged in.
    #[error("sorry, too many clients of {address} are logging in already")]
    TooManyNewcomers {
        /// The client's address, from the PROXY header.
        address: IpAddr,
    },
    /// The first bytes are not PostgreSQL's.
    #[error("this is not a PostgreSQL connection: {0}")]
    NotTheProtocol(#[source] NotStartup),
    /// A parameter of the start-up packet that cannot be, in PostgreSQL's words where it has some.
    #[error("{message}")]
    BadParameter {
        /// SQLSTATE.
        code: &'static str,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: &'static str,
    },
    /// A protocol version that is gone.
    #[error("unsupported frontend protocol {major}.{minor}: this server supports 3.0 to 3.2")]
    OldProtocol {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A second request for the same encryption.
    #[error("encryption was asked for twice on one connection")]
    EncryptionTwice,
    /// Bytes in the clear behind a request for encryption: they could be anybody's.
    #[error("received unencrypted data after a request for encryption")]
    EarlyData,
    /// TLS could not be begun: there is no way to tell the client.
    #[error("TLS handshake: {0}")]
    Handshake(String),
    /// A log-in in the clear where TLS is demanded, in PostgreSQL's words.
    #[error("no pg_hba.conf entry for {0}")]
    NotEncrypted(Whence),
    /// No rule of `auth.hba_file` fits, in PostgreSQL's words.
    #[error("no pg_hba.conf entry for {0}")]
    NoHbaEntry(Whence),
    /// A rule of `auth.hba_file` rejects it, in PostgreSQL's words.
    #[error("pg_hba.conf rejects connection for {0}")]
    HbaRejects(Whence),
    /// The certificate is not the user's, or there is no such user: the same words for both.
    #[error("certificate authentication failed for user \"{user}\"")]
    WrongCertificate {
        /// Who it said it is.
        user: String,
    },
    /// PostgreSQL cannot be asked for users now.
    #[error("users of cluster {cluster} cannot be looked up now (auth.query): {why}")]
    NoLookup {
        /// Which cluster.
        cluster: ClusterName,
        /// Why, in words that are fit for somebody who has proved nothing.
        why: String,
    },
    /// The PROXY header is missing, malformed, or from a place that may not send one.
    #[error("PROXY protocol: {0}")]
    ProxyHeader(String),
    /// The start-up packet did not come in time.
    #[error("the start-up packet was not complete after {}", seconds(.0))]
    StartupTooSlow(Duration),
    /// The client went away.
    #[error("the client closed the connection")]
    ClientGone,
    /// A wrong password, or no such user: the same words for both.
    #[error("password authentication failed for user \"{user}\"")]
    WrongPassword {
        /// Who it said it is.
        user: String,
    },
    /// The client's part of the authentication makes no sense.
    #[error(transparent)]
    Authentication(Malformed),
    /// What was said of channel binding shows that somebody may be between.
    #[error("{0}")]
    NotBound(&'static str),
    /// The log-in took too long.
    #[error("the log-in was not complete after {} (client_login_timeout)", seconds(.0))]
    LoginTooSlow(Duration),
    /// No such database in the router's file, or no such cluster.
    #[error("database \"{database}\" does not exist: {why}")]
    UnknownDatabase {
        /// As the client calls it.
        database: String,
        /// What is missing.
        why: String,
    },
    /// No server came free in time.
    #[error("no server of database \"{database}\" came free for user \"{user}\" within {} (query_wait_timeout){why}", seconds(.limit))]
    NoFreeServer {
        /// Whose pool.
        database: String,
        /// And of which user.
        user: String,
        /// How long.
        limit: Duration,
        /// Why the last one could not be opened, after a colon; empty if that is not known.
        why: String,
        /// PostgreSQL's code for that, if it has refused.
        code: Option<String>,
    },
    /// Nothing was asked for too long.
    #[error("terminating connection: idle for {} (client_idle_timeout)", seconds(.0))]
    IdleTooLong(Duration),
    /// The same within a transaction.
    #[error("terminating connection: idle in a transaction for {} (idle_transaction_timeout)", seconds(.0))]
    IdleInTransaction(Duration),
    /// No answer in time. Whether the query took place is not known if something was outstanding outside a transaction,
    /// or its end.
    #[error("terminating connection: no answer within {} (query_timeout){}", seconds(.limit), unknown(.has_outstanding))]
    QueryTooSlow {
        /// The limit.
        limit: Duration,
        /// The outcome is unknown.
        has_outstanding: bool,
    },
    /// PostgreSQL refuses the router's log-in, or a setting of the client.
    #[error("{message}")]
    Rejected {
        /// PostgreSQL's code, or one of the router.
        code: String,
        /// PostgreSQL's words.
        message: String,
    },
    /// A message that no client sends.
    #[error("invalid message of kind {kind:?}, length {length}")]
    BadMessage {
        /// Its first byte.
        kind: char,
        /// The length it claims.
        length: u32,
    },
    /// A limit of the router.
    #[error("{0}")]
    TooMuch(&'static str),
    /// In statement mode a transaction is over with its statement.
    #[error("transaction blocks are not allowed in statement mode")]
    TransactionBlock,
    /// An operator has ended it. The words are PgBouncer's.
    #[error("{}{}", killed_text(*.kill), unknown(.has_outstanding))]
    Killed {
        /// Alone, or with all of its database.
        kill: Kill,
        /// As above.
        has_outstanding: bool,
    },
    /// An operator lets nobody in: `DISABLE`. The words are PgBouncer's.
    #[error("database \"{0}\" is disabled")]
    Disabled(String),
    /// Neither in `admin_users` nor in `stats_users`. The words are PgBouncer's.
    #[error("not allowed")]
    NoOperator,
}

impl From<NotStartup> for SessionError {
    fn from(why: NotStartup) -> Self {
        let message = why.to_string();
        match why {
            NotStartup::NoSetting(_) => SessionError::BadParameter {
                code: sqlstate::UNDEFINED_OBJECT,
                message,
                hint: "The options of a connection are settings.",
            },
            NotStartup::Replication(_) => SessionError::BadParameter {
                code: sqlstate::INVALID_PARAMETER_VALUE,
                message,
                hint: "Valid values are: \"false\", 0, \"true\", 1, \"database\".",
            },
            NotStartup::Length(_) | NotStartup::Code(_) | NotStartup::Parameters(_) => {
                SessionError::NotTheProtocol(why)
            }
        }
    }
}

impl From<Malformed> for SessionError {
    fn from(why: Malformed) -> Self {
        if [NOT_NEGOTIATED, NOT_BOUND].contains(&why) {
            return SessionError::NotBound(why.0);
        }
        SessionError::Authentication(why)
    }
}

impl SessionError {
    /// Whose fault it is: for the metric, and for whether to log it.
    pub fn side(&self) -> Side {
        match self {
            SessionError::ServerLost { .. }
            | SessionError::EncryptionUnanswered { .. }
            | SessionError::NotGreeted { .. }
            | SessionError::NoLookup { .. }
            | SessionError::Rejected { .. } => Side::Server,
            SessionError::Ended { .. }
            | SessionError::Killed { .. }
            | SessionError::Disabled(_)
            | SessionError::HeldTooLong { .. }
            | SessionError::StandbyCluster { .. }
            | SessionError::NoReplica { .. }
            | SessionError::NoFreeServer { .. }
            | SessionError::QueryTooSlow { .. }
            | SessionError::TooManyClients(_)
            | SessionError::TooManyClusters { .. } => Side::Router,
            SessionError::WrongPassword { .. }
            | SessionError::Authentication(_)
            | SessionError::NotBound(_)
            | SessionError::LoginTooSlow(_)
            | SessionError::UnknownDatabase { .. }
            | SessionError::BadMessage { .. }
            | SessionError::TooMuch(_)
            | SessionError::TransactionBlock
            | SessionError::NoOperator
            | SessionError::IdleTooLong(_)
            | SessionError::IdleInTransaction(_)
            | SessionError::NotTheProtocol(_)
            | SessionError::BadParameter { .. }
            | SessionError::OldProtocol { .. }
            | SessionError::EncryptionTwice
            | SessionError::EarlyData
            | SessionError::Handshake(_)
            | SessionError::NotEncrypted(_)
            | SessionError::NoHbaEntry(_)
            | SessionError::HbaRejects(_)
            | SessionError::WrongCertificate { .. }
            | SessionError::ProxyHeader(_)
            | SessionError::StartupTooSlow(_)
            | SessionError::TooManyNewcomers { .. }
            | SessionError::ClientGone => Side::Client,
        }
    }

    /// A short name: the metric's label and the log's field.
    pub fn reason(&self) -> &'static str {
        match self {
            SessionError::Ended {
                ending: Ending::Lane(CutCause::LeaderChanged),
                ..
            } => "leader_changed",
            SessionError::Ended {
                ending: Ending::Lane(CutCause::MemberLost),
                ..
            } => "member_lost",
            SessionError::Ended {
                ending: Ending::Lane(CutCause::BecameLeader),
                ..
            } => "became_leader",
            SessionError::Ended {
                ending: Ending::RouterStops,
                ..
            } => "router_stops",
            SessionError::ServerLost { .. } => "server_lost",
            SessionError::EncryptionUnanswered { .. } => "encryption_unanswered",
            SessionError::NotGreeted { .. } => "not_greeted",
            SessionError::HeldTooLong { .. } => "held_too_long",
            SessionError::StandbyCluster { .. } => "standby_cluster",
            SessionError::NoReplica { .. } => "no_replica",
            SessionError::TooManyClients(_) => "too_many_clients",
            SessionError::TooManyClusters { .. } => "too_many_clusters",
            SessionError::TooManyNewcomers { .. } => "too_many_newcomers",
            SessionError::NotTheProtocol(_) => "not_the_protocol",
            SessionError::BadParameter { .. } => "bad_parameter",
            SessionError::OldProtocol { .. } => "old_protocol",
            SessionError::EncryptionTwice => "encryption_twice",
            SessionError::EarlyData => "early_data",
            SessionError::NoLookup { .. } => "no_lookup",
            SessionError::Handshake(_) => "handshake",
            SessionError::NotEncrypted(_) => "not_encrypted",
            SessionError::NoHbaEntry(_) => "no_hba_entry",
            SessionError::HbaRejects(_) => "hba_rejects",
            SessionError::WrongCertificate { .. } => "wrong_certificate",
            SessionError::ProxyHeader(_) => "proxy_header",
            SessionError::StartupTooSlow(_) => "startup_too_slow",
            SessionError::ClientGone => "client_gone",
            SessionError::WrongPassword { .. } => "wrong_password",
            SessionError::Authentication(_) => "bad_authentication",
            SessionError::NotBound(_) => "not_bound",
            SessionError::LoginTooSlow(_) => "login_too_slow",
            SessionError::UnknownDatabase { .. } => "unknown_database",
            SessionError::NoFreeServer { .. } => "no_free_server",
            SessionError::Rejected { .. } => "rejected",
            SessionError::BadMessage { .. } => "bad_message",
            SessionError::TooMuch(_) => "too_much",
            SessionError::TransactionBlock => "transaction_block",
            SessionError::IdleTooLong(_) => "idle_too_long",
            SessionError::IdleInTransaction(_) => "idle_in_transaction",
            SessionError::QueryTooSlow { .. } => "query_too_slow",
            SessionError::Killed { .. } => "killed",
            SessionError::Disabled(_) => "disabled",
            SessionError::NoOperator => "no_operator",
        }
    }

    /// The one table: what the client is told, by code. `None` where there is nobody to tell.
    pub fn sqlstate(&self) -> Option<&str> {
        Some(match self {
            SessionError::NoFreeServer {
                code: Some(code), ..
            } => code,
            SessionError::WrongPassword { .. } => sqlstate::INVALID_PASSWORD,
            SessionError::UnknownDatabase { .. } => sqlstate::INVALID_CATALOG_NAME,
            SessionError::TransactionBlock => sqlstate::FEATURE_NOT_SUPPORTED,
            SessionError::NoFreeServer { .. }
            | SessionError::QueryTooSlow {
                has_outstanding: false,
                ..
            } => sqlstate::QUERY_CANCELED,
            SessionError::IdleTooLong(_) => sqlstate::IDLE_SESSION_TIMEOUT,
            SessionError::IdleInTransaction(_) => sqlstate::IDLE_IN_TRANSACTION_TIMEOUT,
            SessionError::Rejected { code, .. } => code,
            SessionError::BadParameter { code, .. } => code,
            SessionError::TooMuch(_) => sqlstate::PROGRAM_LIMIT_EXCEEDED,
            SessionError::Authentication(_)
            | SessionError::LoginTooSlow(_)
            | SessionError::BadMessage { .. } => sqlstate::PROTOCOL_VIOLATION,
            SessionError::Ended {
                has_outstanding: true,
                ..
            }
            | SessionError::ServerLost {
                has_outstanding: true,
                ..
            }
            | SessionError::Killed {
                has_outstanding: true,
                ..
            }
            | SessionError::QueryTooSlow {
                has_outstanding: true,
                ..
            } => sqlstate::TRANSACTION_RESOLUTION_UNKNOWN,
            SessionError::Ended { .. }
            | SessionError::ServerLost { .. }
            | SessionError::Killed { .. } => sqlstate::ADMIN_SHUTDOWN,
            SessionError::EncryptionUnanswered { .. }
            | SessionError::NotGreeted { .. }
            | SessionError::HeldTooLong { .. }
            | SessionError::StandbyCluster { .. }
            | SessionError::NoLookup { .. }
            | SessionError::Disabled(_)
            | SessionError::NoReplica { .. } => sqlstate::CANNOT_CONNECT_NOW,
            SessionError::TooManyClients(_)
            | SessionError::TooManyClusters { .. }
            | SessionError::TooManyNewcomers { .. } => sqlstate::TOO_MANY_CONNECTIONS,
            SessionError::OldProtocol { .. } => sqlstate::FEATURE_NOT_SUPPORTED,
            SessionError::NotTheProtocol(_)
            | SessionError::EncryptionTwice
            | SessionError::EarlyData
            | SessionError::ProxyHeader(_)
            | SessionError::StartupTooSlow(_) => sqlstate::PROTOCOL_VIOLATION,
            SessionError::NotEncrypted(_)
            | SessionError::NoHbaEntry(_)
            | SessionError::HbaRejects(_)
            | SessionError::NotBound(_)
            | SessionError::NoOperator
            | SessionError::WrongCertificate { .. } => sqlstate::INVALID_AUTHORIZATION,
            SessionError::Handshake(_) | SessionError::ClientGone => return None,
        })
    }

    /// The message for the client; `None` where there is nobody to tell.
    pub fn to_client(&self) -> Option<Vec<u8>> {
        let code = self.sqlstate()?;
        let hint = self.hint(code);
        Some(messages::fatal(code, &self.to_string(), hint))
    }

    /// What the client, or who runs the router, can do about it.
    fn hint(&self, code: &str) -> Option<&'static str> {
        Some(match self {
            SessionError::Ended { .. }
            | SessionError::ServerLost { .. }
            | SessionError::Killed { .. }
            | SessionError::QueryTooSlow { .. }
                if code == sqlstate::TRANSACTION_RESOLUTION_UNKNOWN =>
            {
                "Connect again, and check whether the last transaction took place before repeating it."
            }
            SessionError::Ended { .. } | SessionError::ServerLost { .. } => {
                "Connect again; nothing was outstanding."
            }
            SessionError::HeldTooLong { .. } => {
                "Connect again later; \"trunkline list\" shows the cluster."
            }
            SessionError::EncryptionUnanswered { .. } | SessionError::NotGreeted { .. } => {
                "Connect again later, and look into PostgreSQL's log on that member."
            }
            SessionError::NoLookup { .. } => {
                "Connect again later; the router's log says what is wrong."
            }
            SessionError::StandbyCluster { .. } => "Connect to the main cluster for writes.",
            SessionError::NoReplica { .. } => {
                "Connect again later, or set replicas.fallback to primary."
            }
            SessionError::TooManyClients(Full { key, .. }) if *key == MAX_CLIENT_CONN => {
                "Raise max_client_conn of the listener."
            }
            SessionError::NoFreeServer { .. } => {
                "Try again, or raise pool_size of the database or query_wait_timeout."
            }
            SessionError::EarlyData => {
                "This is a defect of the client, or an attack on the way from it."
            }
            SessionError::NotEncrypted(_) => {
                "This listener demands TLS (tls.client.mode): set sslmode to require or above."
            }
            SessionError::BadParameter { hint, .. } => hint,
            SessionError::Disabled(_) => "ENABLE at the router's console lets clients in again.",
            SessionError::TransactionBlock => "Use a listener or a database in transaction mode.",
            SessionError::TooManyClients(_)
            | SessionError::TooManyClusters { .. }
            | SessionError::TooManyNewcomers { .. }
            | SessionError::NotTheProtocol(_)
            | SessionError::OldProtocol { .. }
            | SessionError::EncryptionTwice
            | SessionError::Handshake(_)
            | SessionError::NoHbaEntry(_)
            | SessionError::HbaRejects(_)
            | SessionError::WrongCertificate { .. }
            | SessionError::ProxyHeader(_)
            | SessionError::StartupTooSlow(_)
            | SessionError::WrongPassword { .. }
            | SessionError::Authentication(_)
            | SessionError::NotBound(_)
            | SessionError::LoginTooSlow(_)
            | SessionError::UnknownDatabase { .. }
            | SessionError::Rejected { .. }
            | SessionError::BadMessage { .. }
            | SessionError::TooMuch(_)
            | SessionError::IdleTooLong(_)
            | SessionError::IdleInTransaction(_)
            | SessionError::QueryTooSlow { .. }
            | SessionError::Killed { .. }
            | SessionError::NoOperator
            | SessionError::ClientGone => return None,
        })
    }

    /// The error of a session that found no route.
    pub fn no_route(cluster: &ClusterName, why: NoRoute, waited: Duration) -> SessionError {
        let cluster = cluster.clone();
        match why {
            NoRoute::Hold(awaited) => SessionError::HeldTooLong {
                cluster,
                awaited,
                waited,
            },
            NoRoute::StandbyCluster { leader } => SessionError::StandbyCluster { cluster, leader },
            NoRoute::NoReplica { reasons } => SessionError::NoReplica { cluster, reasons },
        }
    }
}
