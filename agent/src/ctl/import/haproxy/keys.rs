//! What the lines of a proxy that carries PostgreSQL become. A line that no entry knows is named as unknown.
//! Pure.

/// What a line becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Something that depends on other lines, too.
    Own,
    /// Nothing, and nobody misses it.
    Moot(&'static str),
    /// Nothing, and it may be missed: what to do.
    Absent(&'static str),
}

use Meaning::{Absent, Moot, Own};

const CHECKS: &str =
    "the store is watched, which says within milliseconds who leads; nothing is polled for that";
const LOG: &str =
    "the router logs to stderr, for the service manager to keep; log.level and log.format say how";
const IDLE: &str = "a session in tcp mode is not ended for being idle; PostgreSQL's idle_session_timeout does that, and keepalive finds dead peers";
const RULES: &str = "a port leads to one target for everybody: pg_hba.conf says who may come, or auth.hba_file on a pooled listener";
const BALANCE: &str = "replicas are chosen by the fewest connections, as leastconn does";
const SOCKETS: &str =
    "the router sets its sockets itself: keepalive is on, and what can be spliced is not needed";
const SESSIONS: &str =
    "sessions on a member that stops leading are always cut, and new ones go to the new leader";

/// The first word or two of a line, the longer one first where both fit.
pub const LINES: &[(&str, Meaning)] = &[
    ("acl", Absent(RULES)),
    ("backlog", Moot(SOCKETS)),
    ("balance", Moot(BALANCE)),
    ("bind", Own),
    ("default-server", Own),
    ("default_backend", Own),
    ("description", Moot("it is a comment")),
    (
        "disabled",
        Absent("the proxy is switched off: take its listener out"),
    ),
    ("enabled", Moot("it is the default")),
    ("errorfile", Moot("it is of HTTP")),
    ("fullconn", Moot(BALANCE)),
    ("hash-type", Moot(BALANCE)),
    ("http-check connect", Moot(CHECKS)),
    ("http-check disable-on-404", Moot(CHECKS)),
    ("http-check expect", Own),
    ("http-check send", Own),
    ("http-check", Moot(CHECKS)),
    ("id", Moot("it is of HAProxy's statistics")),
    (
        "load-server-state-from-file",
        Moot("state_file keeps the last table"),
    ),
    ("log", Moot(LOG)),
    ("log-format", Moot(LOG)),
    ("log-tag", Moot(LOG)),
    ("maxconn", Own),
    ("mode", Own),
    ("option allbackups", Moot(BALANCE)),
    ("option clitcpka", Moot(SOCKETS)),
    ("option dontlog-normal", Moot(LOG)),
    ("option dontlognull", Moot(LOG)),
    (
        "option external-check",
        Absent("which of the ports is for writes cannot be told from a script"),
    ),
    ("option forwardfor", Moot("it is of HTTP")),
    ("option http-server-close", Moot("it is of HTTP")),
    ("option httpchk", Own),
    ("option httplog", Moot("it is of HTTP")),
    ("option log-health-checks", Moot(LOG)),
    ("option logasap", Moot(LOG)),
    ("option persist", Moot(SESSIONS)),
    ("option pgsql-check", Own),
    (
        "option redispatch",
        Moot("a session whose member cannot be reached looks for another one by itself"),
    ),
    ("option splice-auto", Moot(SOCKETS)),
    ("option splice-request", Moot(SOCKETS)),
    ("option splice-response", Moot(SOCKETS)),
    ("option srvtcpka", Moot(SOCKETS)),
    ("option tcp-check", Own),
    ("option tcp-smart-accept", Moot(SOCKETS)),
    ("option tcp-smart-connect", Moot(SOCKETS)),
    ("option tcpka", Moot(SOCKETS)),
    ("option tcplog", Moot(LOG)),
    (
        "rate-limit",
        Absent(
            "logins at once are limited by themselves, in all and per address; no rate can be set",
        ),
    ),
    (
        "retries",
        Moot("a member that cannot be reached is tried again until switchover.hold_timeout"),
    ),
    ("server", Own),
    ("server-template", Own),
    (
        "source",
        Absent("the address from which servers are reached cannot be chosen"),
    ),
    ("stats", Own),
    (
        "stick",
        Absent("a client is bound to no member; a session keeps its own until it ends"),
    ),
    (
        "stick-table",
        Absent("nothing is counted by client; logins at once are limited by address by themselves"),
    ),
    ("tcp-check", Moot(CHECKS)),
    ("tcp-request", Absent(RULES)),
    ("tcp-response", Absent(RULES)),
    ("timeout check", Moot(CHECKS)),
    ("timeout client", Moot(IDLE)),
    ("timeout client-fin", Moot(IDLE)),
    (
        "timeout connect",
        Moot(
            "a member has its own time to answer, and another one is tried until switchover.hold_timeout",
        ),
    ),
    ("timeout http-keep-alive", Moot("it is of HTTP")),
    ("timeout http-request", Moot("it is of HTTP")),
    (
        "timeout queue",
        Moot("who finds no leader is held for switchover.hold_timeout"),
    ),
    ("timeout server", Moot(IDLE)),
    ("timeout server-fin", Moot(IDLE)),
    ("timeout tarpit", Moot("it is of HTTP")),
    ("timeout tunnel", Moot(IDLE)),
    ("use_backend", Absent(RULES)),
];

const MEMBERS: &str = "members are found in the store, with their addresses";

/// The words of a `server` or `default-server` line that say more than where it is.
pub const SERVER: &[(&str, Meaning)] = &[
    (
        "backup",
        Absent(
            "members are chosen by what they are: tags noloadbalance and nofailover on the member take it out",
        ),
    ),
    (
        "disabled",
        Absent(
            "members are chosen by what they are: tags noloadbalance and nofailover on the member take it out",
        ),
    ),
    ("fall", Moot(CHECKS)),
    ("fastinter", Moot(CHECKS)),
    ("downinter", Moot(CHECKS)),
    ("inter", Moot(CHECKS)),
    ("init-addr", Moot(MEMBERS)),
    (
        "maxconn",
        Absent(
            "connections cannot be limited by member: PostgreSQL's max_connections does that, or max_client_conn of the listener",
        ),
    ),
    ("on-error", Moot(CHECKS)),
    ("on-marked-down", Moot(SESSIONS)),
    ("on-marked-up", Moot(SESSIONS)),
    ("resolvers", Moot(MEMBERS)),
    ("rise", Moot(CHECKS)),
    (
        "send-proxy",
        Absent("PostgreSQL reads no PROXY header, so none is sent"),
    ),
    (
        "send-proxy-v2",
        Absent("PostgreSQL reads no PROXY header, so none is sent"),
    ),
    ("slowstart", Moot("new members start slowly by themselves")),
    (
        "ssl",
        Absent("in tcp mode the client's own TLS passes through; a pooled listener has tls.server"),
    ),
    ("weight", Moot(BALANCE)),
];

/// The meaning of a line by its first words.
pub fn meaning(first: &str, second: &str) -> Option<Meaning> {
    let both = format!("{first} {second}");
    let of = |name: &str| LINES.iter().find(|(own, _)| *own == name);
    of(&both).or_else(|| of(first)).map(|(_, meaning)| *meaning)
}
