//! Whether a backend is for writes or for reads: by what its health check asks of Patroni. Pure.

use super::read::Line;

/// What a check lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Members that do not lead.
    pub is_replicas: bool,
    /// The leader, too.
    pub falls_back: bool,
    /// `lag=` of the check.
    pub max_lag: Option<String>,
    /// What the router does otherwise.
    pub attention: Option<&'static str>,
}

const EVERYBODY: &str = "its check lets every living member through, the leader as well; written as target: replicas with \
                         replicas.fallback: primary, so the leader serves where no replica is fit; for writes set target: primary";
const READ_ONLY: &str = "its check lets the leader through as well; here it serves reads where no replica is fit \
                         (replicas.fallback: primary)";
const SYNCHRONOUS: &str =
    "replicas are not told apart by how they are synchronous: every fit one serves";
const TAGS: &str = "replicas are not told apart by tags; a member with noloadbalance is never used";

/// The role of a backend by its lines, its own before its defaults'; none where it cannot be told.
pub fn role<'f>(lines: impl Iterator<Item = &'f Line> + Clone) -> Option<Role> {
    let mut options = lines.clone().filter(|line| line.word(0) == "option");
    let check = options.find(|line| {
        [
            "httpchk",
            "pgsql-check",
            "tcp-check",
            "external-check",
            "ldap-check",
            "mysql-check",
            "redis-check",
            "smtpchk",
        ]
        .contains(&line.word(1))
    })?;
    match check.word(1) {
        "httpchk" => {
            let mut sends =
                lines.filter(|line| line.word(0) == "http-check" && line.word(1) == "send");
            let sent = sends.find_map(|line| line.after("uri"));
            let own = check.words.iter().map(String::as_str);
            let own = own.skip(2).find(|word| word.starts_with('/'));
            of_path(sent.or(own).unwrap_or("/"))
        }
        "pgsql-check" => Some(Role {
            is_replicas: true,
            falls_back: true,
            max_lag: None,
            attention: Some(EVERYBODY),
        }),
        _ => None,
    }
}

/// By the paths of Patroni's REST API.
fn of_path(path: &str) -> Option<Role> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut role = match path.trim_end_matches('/') {
        "" | "/primary" | "/master" | "/leader" | "/read-write" => Role::default(),
        "/replica" => Role {
            is_replicas: true,
            ..Role::default()
        },
        "/read-only" => Role {
            is_replicas: true,
            falls_back: true,
            attention: Some(READ_ONLY),
            ..Role::default()
        },
        "/synchronous" | "/sync" | "/asynchronous" | "/async" | "/quorum" => Role {
            is_replicas: true,
            attention: Some(SYNCHRONOUS),
            ..Role::default()
        },
        "/read-only-sync" | "/read-only-quorum" => Role {
            is_replicas: true,
            falls_back: true,
            attention: Some(SYNCHRONOUS),
            ..Role::default()
        },
        "/health" | "/liveness" | "/readiness" => Role {
            is_replicas: true,
            falls_back: true,
            attention: Some(EVERYBODY),
            ..Role::default()
        },
        _ => return None,
    };
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("lag", lag)) => role.max_lag = Some(lag.to_owned()),
            Some((name, _)) if name.starts_with("tag_") => role.attention = Some(TAGS),
            Some(_) | None => {}
        }
    }
    Some(role)
}
