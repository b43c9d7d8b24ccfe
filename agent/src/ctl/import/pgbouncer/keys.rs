//! Every key of PgBouncer 1.26 and what it becomes. A key that the router learns moves from
//! [`Meaning::Absent`] to the meaning with its name. Pure.

/// What a key becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A number under this key.
    Number(&'static str),
    /// A time under this key; PgBouncer writes seconds.
    Time(&'static str),
    /// The same in the place of the one of `[pgbouncer]`, which -1 stands for.
    OwnTime(&'static str),
    /// How servers are shared, under this key.
    Mode(&'static str),
    /// Text under this key.
    Text(&'static str),
    /// Something that depends on other keys, too.
    Own,
    /// Nothing, and nobody misses it.
    Moot(&'static str),
    /// Nothing, and it is missed unless it has this value: what to do.
    Absent(&'static str, &'static str),
}

use Meaning::{Absent, Mode, Moot, Number, Own, OwnTime, Text, Time};

const LOG: &str =
    "the router logs to stderr, for the service manager to keep; log.level and log.format say how";
const UNIX: &str = "the router listens on no Unix socket";
const DNS: &str = "addresses come from the members' records in the store, and names in them are resolved as they change";
const CIPHERS: &str =
    "TLS 1.2 and 1.3 with rustls's cipher suites and curves are spoken, and no others";
const PROTOCOLS: &str =
    "TLS 1.2 and 1.3 are spoken, and nothing older: old clients and servers must be renewed first";
const SOCKETS: &str =
    "the router sets its sockets itself: keepalive is on, and buffers are the system's";
const LOOKUP: &str =
    "users are looked up in one way for all databases: auth.user, auth.query and auth.database";

/// The keys of `[pgbouncer]`.
pub const SETTINGS: &[(&str, Meaning)] = &[
    ("admin_users", Text("admin.admin_users")),
    (
        "application_name_add_host",
        Absent("0", "application_name is passed on as the client gave it"),
    ),
    ("auth_dbname", Own),
    ("auth_file", Own),
    ("auth_hba_file", Own),
    ("auth_ident_file", Own),
    (
        "auth_ldap_options",
        Absent("", "LDAP is not asked: put the users into auth.file"),
    ),
    ("auth_query", Own),
    ("auth_type", Own),
    ("auth_user", Own),
    (
        "autodb_idle_timeout",
        Moot("an empty pool costs nothing and goes by itself"),
    ),
    (
        "cancel_wait_timeout",
        Moot("a cancel goes to its server at once and waits for no pool"),
    ),
    ("client_idle_timeout", Time("pool.client_idle_timeout")),
    ("client_login_timeout", Time("pool.client_login_timeout")),
    ("client_tls13_ciphers", Moot(CIPHERS)),
    ("client_tls_ca_file", Text("tls.client.ca")),
    ("client_tls_cert_file", Text("tls.client.cert")),
    ("client_tls_ciphers", Moot(CIPHERS)),
    ("client_tls_dheparams", Moot(CIPHERS)),
    ("client_tls_ecdhcurve", Moot(CIPHERS)),
    ("client_tls_key_file", Text("tls.client.key")),
    ("client_tls_protocols", Absent("secure", PROTOCOLS)),
    ("client_tls_sslmode", Text("tls.client.mode")),
    ("conffile", Moot("the file is named on the command line")),
    ("default_pool_size", Number("pool.default_pool_size")),
    (
        "disable_pqexec",
        Absent(
            "0",
            "simple queries cannot be refused here: keep them out of the application",
        ),
    ),
    ("dns_max_ttl", Moot(DNS)),
    ("dns_nxdomain_ttl", Moot(DNS)),
    ("dns_zone_check_period", Moot(DNS)),
    (
        "idle_transaction_timeout",
        Time("pool.idle_transaction_timeout"),
    ),
    (
        "ignore_startup_parameters",
        Text("pool.ignore_startup_parameters"),
    ),
    ("job_name", Moot("it is of Windows")),
    ("listen_addr", Own),
    ("listen_backlog", Moot(SOCKETS)),
    ("listen_port", Own),
    ("log_connections", Moot(LOG)),
    ("log_disconnections", Moot(LOG)),
    ("log_pooler_errors", Moot(LOG)),
    ("log_stats", Moot("numbers are on http.listen (/metrics)")),
    ("logfile", Moot(LOG)),
    (
        "login_notify_message",
        Absent("", "no message can be sent to who logs in"),
    ),
    ("max_client_conn", Own),
    (
        "max_db_client_connections",
        Number("pool.max_db_client_connections"),
    ),
    ("max_db_connections", Number("pool.max_db_connections")),
    (
        "max_packet_size",
        Absent(
            "2147483647",
            "messages of any length that the protocol has are passed on, without being held whole",
        ),
    ),
    (
        "max_prepared_statements",
        Number("pool.max_prepared_statements"),
    ),
    (
        "max_user_client_connections",
        Number("pool.max_user_client_connections"),
    ),
    ("max_user_connections", Number("pool.max_user_connections")),
    ("min_pool_size", Number("pool.min_pool_size")),
    ("peer_id", Moot("routers have no numbers")),
    ("pidfile", Moot("the service manager knows the process")),
    (
        "pkt_buf",
        Moot("a connection has a buffer only while its peer does not take what was read"),
    ),
    (
        "pool_idle_timeout",
        Moot("an empty pool costs nothing and goes by itself"),
    ),
    ("pool_mode", Own),
    ("query_timeout", Time("pool.query_timeout")),
    (
        "query_wait_notify",
        Moot("who waits for a server is told nothing until query_wait_timeout"),
    ),
    ("query_wait_timeout", Time("pool.query_wait_timeout")),
    ("reserve_pool_size", Number("pool.reserve_pool_size")),
    ("reserve_pool_timeout", Own),
    ("resolv_conf", Moot(DNS)),
    (
        "sbuf_loopcnt",
        Moot("no client is served for longer than its turn"),
    ),
    (
        "scram_iterations",
        Moot("a secret in auth.file says its own; of a plain password 4096 are made"),
    ),
    (
        "server_check_delay",
        Moot("a server that ends is noticed at once, and the store says who leads"),
    ),
    (
        "server_check_query",
        Moot("a server that ends is noticed at once, and the store says who leads"),
    ),
    (
        "server_connect_timeout",
        Time("pool.server_connect_timeout"),
    ),
    (
        "server_fast_close",
        Absent(
            "0",
            "a session keeps its server until it ends, unless its member stops leading",
        ),
    ),
    ("server_idle_timeout", Time("pool.server_idle_timeout")),
    ("server_lifetime", Time("pool.server_lifetime")),
    ("server_login_retry", Time("pool.server_login_retry")),
    ("server_reset_query", Text("pool.server_reset_query")),
    (
        "server_reset_query_always",
        Moot(
            "in transaction mode what a client leaves behind moves with it or keeps it on its server; it never reaches another client",
        ),
    ),
    (
        "server_round_robin",
        Moot("one listener leads to one leader, or to the least connected replica"),
    ),
    ("server_tls13_ciphers", Moot(CIPHERS)),
    ("server_tls_ca_file", Text("tls.server.ca")),
    ("server_tls_cert_file", Text("tls.server.cert")),
    ("server_tls_ciphers", Moot(CIPHERS)),
    ("server_tls_key_file", Text("tls.server.key")),
    ("server_tls_protocols", Absent("secure", PROTOCOLS)),
    ("server_tls_sslmode", Text("tls.server.mode")),
    ("service_name", Moot("it is of Windows")),
    ("so_reuseport", Moot("one process uses all cores")),
    (
        "stats_period",
        Moot("numbers are on http.listen (/metrics), from the start of the process on"),
    ),
    ("stats_users", Text("admin.stats_users")),
    ("syslog", Moot(LOG)),
    ("syslog_facility", Moot(LOG)),
    ("syslog_ident", Moot(LOG)),
    ("tcp_defer_accept", Moot(SOCKETS)),
    ("tcp_keepalive", Moot(SOCKETS)),
    ("tcp_keepcnt", Moot(SOCKETS)),
    ("tcp_keepidle", Moot(SOCKETS)),
    ("tcp_keepintvl", Moot(SOCKETS)),
    ("tcp_socket_buffer", Moot(SOCKETS)),
    (
        "tcp_user_timeout",
        Absent(
            "0",
            "it cannot be set; net.ipv4.tcp_retries2 is the system's own limit",
        ),
    ),
    (
        "track_extra_parameters",
        Moot(
            "what PostgreSQL reports and what a client gave at its start moves with it; another SET keeps it on its server",
        ),
    ),
    (
        "transaction_timeout",
        Absent(
            "0",
            "set transaction_timeout in PostgreSQL 17 or newer, or pool.idle_transaction_timeout",
        ),
    ),
    (
        "unix_socket_dir",
        Absent(
            "",
            "the router listens on no Unix socket: local clients connect to an address",
        ),
    ),
    ("unix_socket_group", Moot(UNIX)),
    ("unix_socket_mode", Moot(UNIX)),
    ("user", Moot("the service's unit names its user")),
    ("verbose", Own),
];

const AS_ITSELF: &str =
    "clients log in to PostgreSQL as themselves: make a role for each, and put it into auth.file";
const BY_ROLE: &str =
    "it cannot be set here: ALTER DATABASE ... SET or ALTER ROLE ... SET does it in PostgreSQL";

/// The keys of an entry of `[databases]`; the names are keys of the database's entry.
pub const DATABASE: &[(&str, Meaning)] = &[
    ("application_name", Absent("", BY_ROLE)),
    ("auth_dbname", Absent("", LOOKUP)),
    ("auth_query", Absent("", LOOKUP)),
    ("auth_user", Absent("", LOOKUP)),
    ("client_encoding", Absent("", BY_ROLE)),
    (
        "connect_query",
        Absent(
            "",
            "no query is sent to a new server: set defaults by ALTER DATABASE ... SET in PostgreSQL",
        ),
    ),
    ("datestyle", Absent("", BY_ROLE)),
    ("dbname", Text("dbname")),
    ("host", Own),
    (
        "load_balance_hosts",
        Moot("a listener leads to the leader, or to the least connected replica"),
    ),
    (
        "max_db_client_connections",
        Number("max_db_client_connections"),
    ),
    ("max_db_connections", Number("max_db_connections")),
    ("min_pool_size", Number("min_pool_size")),
    (
        "password",
        Absent(
            "",
            "the password of another user is of no use here; remove it from this file",
        ),
    ),
    ("pool_mode", Mode("pool_mode")),
    ("pool_size", Number("pool_size")),
    ("port", Own),
    ("query_wait_timeout", OwnTime("query_wait_timeout")),
    ("reserve_pool", Number("reserve_pool_size")),
    ("reserve_pool_size", Number("reserve_pool_size")),
    ("server_lifetime", OwnTime("server_lifetime")),
    ("timezone", Absent("", BY_ROLE)),
    ("user", Absent("", AS_ITSELF)),
];

/// The keys of an entry of `[users]`; the names are keys of the user's entry.
pub const USER: &[(&str, Meaning)] = &[
    ("client_idle_timeout", OwnTime("client_idle_timeout")),
    (
        "idle_transaction_timeout",
        OwnTime("idle_transaction_timeout"),
    ),
    (
        "max_user_client_connections",
        Number("max_user_client_connections"),
    ),
    ("max_user_connections", Number("max_user_connections")),
    ("pool_mode", Mode("pool_mode")),
    ("pool_size", Number("pool_size")),
    ("query_timeout", OwnTime("query_timeout")),
    ("query_wait_timeout", OwnTime("query_wait_timeout")),
    ("reserve_pool_size", Number("reserve_pool_size")),
    (
        "transaction_timeout",
        Absent(
            "0",
            "set transaction_timeout for the role in PostgreSQL 17 or newer",
        ),
    ),
];

/// The meaning of a key in one of the tables.
pub fn meaning(table: &[(&str, Meaning)], key: &str) -> Option<Meaning> {
    let found = table.iter().find(|(name, _)| *name == key);
    found.map(|(_, meaning)| *meaning)
}
