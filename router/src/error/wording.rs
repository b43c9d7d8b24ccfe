//! How the parts of an error are written out.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use trunkline_shared::cluster::MemberName;

use crate::lanes::Ending;
use crate::pool::registry::Kill;
use crate::route::Awaited;
use crate::topology::transition::CutCause;

/// Who wants to log in and from where, as PostgreSQL says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whence {
    /// Where the client is.
    pub address: IpAddr,
    /// Whether it is under TLS.
    pub is_encrypted: bool,
    /// Who it says it is.
    pub user: String,
    /// Where it wants to.
    pub database: String,
}

impl fmt::Display for Whence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            user,
            database,
            ..
        } = self;
        let encryption = match self.is_encrypted {
            true => "SSL encryption",
            false => "no encryption",
        };
        write!(
            f,
            "host \"{address}\", user \"{user}\", database \"{database}\", {encryption}"
        )
    }
}

pub(super) fn unknown(has_outstanding: &bool) -> &'static str {
    if *has_outstanding {
        "; the outcome of the last request is unknown"
    } else {
        ""
    }
}

pub(super) fn ended_text(ending: &Ending, has_outstanding: &bool) -> String {
    let why = match ending {
        Ending::Lane(CutCause::LeaderChanged) => {
            "terminating connection because the leader was lost or changed"
        }
        Ending::Lane(CutCause::MemberLost) => {
            "terminating connection because the member it led to left the cluster"
        }
        Ending::Lane(CutCause::BecameLeader) => {
            "terminating connection because the replica it led to became the leader"
        }
        Ending::RouterStops => "terminating connection because the router is stopping",
    };
    format!("{why}{}", unknown(has_outstanding))
}

pub(super) fn awaited_text(awaited: &Awaited) -> String {
    match awaited {
        Awaited::FirstView => "the DCS has not answered since the router started".to_owned(),
        Awaited::Leader(why) => why.to_string(),
        Awaited::Promotion(member) => {
            format!("{member} holds the leader key and does not accept writes yet")
        }
        Awaited::Switchover => "a planned change of leader is under way".to_owned(),
        Awaited::Reachable(member) => format!("the leader {member} cannot be reached"),
    }
}

pub(super) fn reasons_text(reasons: &[(MemberName, String)]) -> String {
    if reasons.is_empty() {
        return "no member is registered".to_owned();
    }
    let each: Vec<String> = reasons
        .iter()
        .map(|(m, why)| format!("{m} {why}"))
        .collect();
    each.join(", ")
}

pub(super) fn seconds(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

pub(super) fn killed_text(kill: Kill) -> &'static str {
    match kill {
        Kill::Client => "admin forced disconnect",
        Kill::Database => "database removed",
    }
}
