//! From a path and what is published to a status code. Pure: the caller passes the time.

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::{Lsn, MemberRole, MemberState, Moment, Tags};

use super::published::Published;

/// The condition holds.
pub const YES: u16 = 200;
/// It does not.
pub const NO: u16 = 503;

/// The status code of a health check; `None` if the path is none. `query` is what follows `?`.
pub fn status(path: &str, query: &str, published: &Published, now: Moment) -> Option<u16> {
    let check = Check {
        published,
        query,
        now,
    };
    let holds = match path {
        "/" | "/primary" | "/master" | "/read-write" => check.is_primary(),
        "/leader" => check.is_leader(),
        "/standby-leader" | "/standby_leader" => check.is_standby_leader(),
        "/replica" => check.is_replica(),
        "/read-only" => check.leads_with_the_tags() || check.is_replica(),
        "/synchronous" | "/sync" => check.is_synchronous() && check.is_replica(),
        "/read-only-sync" | "/read-only-synchronous" => {
            check.leads_with_the_tags() || (check.is_synchronous() && check.is_replica())
        }
        "/quorum" => check.is_quorum() && check.is_replica(),
        "/read-only-quorum" => {
            check.leads_with_the_tags() || (check.is_quorum() && check.is_replica())
        }
        "/asynchronous" | "/async" => {
            check.is_replica() && !check.is_synchronous() && !check.is_quorum()
        }
        "/health" => check.is_running() && check.has_the_tags(),
        "/liveness" => check.is_alive(),
        "/readiness" => check.is_ready(),
        _ => return None,
    };
    Some(if holds { YES } else { NO })
}

struct Check<'a> {
    published: &'a Published,
    query: &'a str,
    now: Moment,
}

impl Check<'_> {
    fn is_running(&self) -> bool {
        self.published.state == MemberState::Running
    }

    fn is_leader(&self) -> bool {
        self.is_running() && self.published.holds_lease(self.now)
    }

    /// The lease alone is not enough: between acquiring it and the end of the promotion a client that
    /// was sent here would find a server in recovery.
    fn is_primary(&self) -> bool {
        self.is_leader() && self.published.role == MemberRole::Primary
    }

    fn is_standby_leader(&self) -> bool {
        self.is_leader() && self.published.role == MemberRole::StandbyLeader
    }

    /// The paths that ask for a leader ask for no tag; those that a leader may answer among others do.
    fn leads_with_the_tags(&self) -> bool {
        (self.is_primary() || self.is_standby_leader()) && self.has_the_tags()
    }

    fn is_replica(&self) -> bool {
        self.is_running()
            && self.published.role == MemberRole::Replica
            && !self.published.tags.noloadbalance
            && self.has_the_tags()
            && self.parameter("replication_state").is_none_or(|wanted| {
                self.published
                    .replication_state
                    .as_deref()
                    .is_some_and(|state| state == wanted)
            })
            && match self.parameter("lag") {
                None => true,
                Some(lag) => bytes(&lag).is_some_and(|limit| self.lag_is_within(limit, false)),
            }
    }

    /// Lag behind the leader, by whatever is known of it. Unknown positions never pass.
    fn lag_is_within(&self, limit: u64, received: bool) -> bool {
        let topology = &self.published.topology;
        let told = topology.leader_member().and_then(|leader| leader.position);
        let leader = topology
            .status
            .optime
            .max(told.unwrap_or_default())
            .max(self.published.leader_end.unwrap_or_default());
        let own = match received {
            true => self.published.received.max(self.published.replayed),
            false => self.published.replayed,
        };
        own.is_some_and(|own: Lsn| own.bytes_behind(leader) <= limit)
    }

    fn is_in_sync(&self) -> bool {
        let sync = self.published.topology.sync.as_ref();
        sync.is_some_and(|sync| sync.standbys.contains(&self.published.name))
    }

    fn mode(&self) -> SynchronousMode {
        self.published
            .topology
            .settings_or_default()
            .synchronous_mode
    }

    fn is_synchronous(&self) -> bool {
        self.mode() == SynchronousMode::On && self.is_in_sync()
    }

    fn is_quorum(&self) -> bool {
        self.mode() == SynchronousMode::Quorum && self.is_in_sync()
    }

    fn is_alive(&self) -> bool {
        let ttl = self.published.topology.settings_or_default().ttl;
        let limit = match self.published.role {
            MemberRole::Primary => ttl,
            MemberRole::Replica
            | MemberRole::StandbyLeader
            | MemberRole::Demoted
            | MemberRole::Uninitialized
            | MemberRole::Promoted => ttl * 2,
        };
        self.published.is_paused || self.now.since(self.published.last_tick) < limit
    }

    fn is_ready(&self) -> bool {
        if self.is_leader() {
            return true;
        }
        let settings = self.published.topology.settings_or_default();
        let limit = match self.parameter("lag") {
            None => Some(settings.maximum_lag_on_failover),
            Some(lag) => bytes(&lag),
        };
        let received = self.parameter("mode").is_some_and(|mode| mode == "write");
        self.is_running()
            && self.published.role == MemberRole::Replica
            && self.published.replication_state.as_deref() == Some("streaming")
            && limit.is_some_and(|limit| self.lag_is_within(limit, received))
    }

    fn has_the_tags(&self) -> bool {
        parameters(self.query)
            .filter_map(|(key, value)| Some((key.strip_prefix("tag_")?.to_owned(), value)))
            .all(|(key, value)| {
                tag(&self.published.tags, &key).is_some_and(|tag| tag.eq_ignore_ascii_case(&value))
            })
    }

    fn parameter(&self, key: &str) -> Option<String> {
        parameters(self.query)
            .find(|(known, _)| known == key)
            .map(|(_, value)| value)
    }
}

/// A tag's value as text; `None` if it is not set. Patroni's own tags count as set when true.
fn tag(tags: &Tags, key: &str) -> Option<String> {
    let yes = |is_set: bool| is_set.then(|| "true".to_owned());
    match key {
        "nofailover" => yes(tags.nofailover),
        "noloadbalance" => yes(tags.noloadbalance),
        "clonefrom" => yes(tags.clonefrom),
        "nosync" => yes(tags.nosync),
        "nostream" => yes(tags.nostream),
        "sync_priority" => tags.sync_priority.map(|p| p.to_string()),
        "failover_priority" => tags.failover_priority.map(|p| p.to_string()),
        "replicatefrom" => tags.replicatefrom.as_ref().map(ToString::to_string),
        custom => tags.custom.get(custom).map(|json| {
            match serde_json::from_str::<serde_json::Value>(json) {
                Ok(serde_json::Value::String(text)) => text,
                Ok(_) | Err(_) => json.clone(),
            }
        }),
    }
}

/// `key=value` pairs of a query, with `%xx` and `+` undone.
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(key, value)| (unescaped(key), unescaped(value)))
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let code = tail
                    .get(..2)
                    .and_then(|hex| std::str::from_utf8(hex).ok())
                    .and_then(|hex| u8::from_str_radix(hex, 16).ok());
                match code {
                    Some(byte) => {
                        bytes.push(byte);
                        rest = &tail[2..];
                    }
                    None => bytes.push(b'%'),
                }
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `16777216`, `16384kB`, `16MB`, `1GB`: PostgreSQL's units, in any case, as Patroni takes them.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1 << 10,
        "mb" => 1 << 20,
        "gb" => 1 << 30,
        "tb" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_escapes_are_understood() {
        for (text, expected) in [
            ("100", Some(100)),
            ("1kB", Some(1024)),
            ("16MB", Some(16 << 20)),
            ("2 gb", Some(2 << 30)),
            ("", None),
            ("MB", None),
            ("1 parsec", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        assert_eq!(unescaped("a%20b+c%zz%4"), "a b c%zz%4");
    }
}
