//! In which order members are restarted. Pure.

use std::cmp::Ordering;

use trunkline_shared::cluster::topology::SwitchoverRecord;
use trunkline_shared::cluster::{Member, MemberName, MemberState, Topology};

use crate::api::requests::unfit;

/// Who is restarted, and how the leader is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rule {
    /// Everybody, not only who waits for it.
    pub(super) is_all: bool,
    /// The leader leads on.
    pub(super) keeps_leader: bool,
}

/// When a replica is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Once.
    Only,
    /// For what is raised: before the leader; what is lowered still waits then.
    BeforeLeader,
    /// For what is lowered: after it has replayed that the leader has lowered it.
    AfterLeader,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Restart a replica.
    Replica {
        /// Which.
        name: MemberName,
        /// When.
        round: Round,
    },
    /// Restart the leader where it is.
    LeaderInPlace {
        /// Who leads.
        name: MemberName,
        /// Why no other member leads meanwhile.
        why: &'static str,
    },
    /// Change the leader.
    SwitchOver {
        /// Who leads.
        from: MemberName,
        /// Who may lead then.
        to: Vec<MemberName>,
    },
    /// Restart who led, if the change of leader has not put its parameters into force.
    FormerLeader(MemberName),
}

impl Step {
    /// In a few words.
    pub(super) fn word(&self) -> String {
        let name = self.member();
        match self {
            Step::Replica { .. } | Step::SwitchOver { .. } | Step::FormerLeader(_) => {
                format!("{} {name}", self.action())
            }
            Step::LeaderInPlace { .. } => format!("{} {name} in place", self.action()),
        }
    }

    /// What is done.
    pub(super) fn action(&self) -> &'static str {
        match self {
            Step::Replica { .. } => "restart replica",
            Step::LeaderInPlace { .. } => "restart leader",
            Step::SwitchOver { .. } => "switch over from",
            Step::FormerLeader(_) => "restart former leader",
        }
    }

    /// With whom.
    pub(super) fn member(&self) -> &MemberName {
        match self {
            Step::Replica { name, .. } | Step::LeaderInPlace { name, .. } => name,
            Step::SwitchOver { from, .. } => from,
            Step::FormerLeader(name) => name,
        }
    }

    /// With what changes and what it means.
    pub(super) fn told(&self, topology: &Topology) -> String {
        let changes = |name: &MemberName| {
            let member = topology.members.get(name);
            let changes = member.map(|member| member.pending_restart.iter());
            let changes = changes
                .into_iter()
                .flatten()
                .map(|(name, change)| format!("{name}: {}->{}", change.old, change.new));
            let changes: Vec<String> = changes.collect();
            match changes.is_empty() {
                true => String::new(),
                false => format!(" ({})", changes.join(", ")),
            }
        };
        match self {
            Step::Replica {
                name,
                round: Round::Only | Round::AfterLeader,
            } => format!("{}{}", self.word(), changes(name)),
            Step::Replica {
                name,
                round: Round::BeforeLeader,
            } => format!("{}{}, for what is raised", self.word(), changes(name)),
            Step::LeaderInPlace { name, why } => format!(
                "{}{}: {why}; clients wait while it restarts",
                self.word(),
                changes(name)
            ),
            Step::SwitchOver { to, .. } => {
                let to: Vec<&str> = to.iter().map(MemberName::as_str).collect();
                format!("{} to one of {}", self.word(), to.join(", "))
            }
            Step::FormerLeader(name) => format!(
                "{}{}, unless the switchover has put them into force",
                self.word(),
                changes(name)
            ),
        }
    }
}

/// Parameters of which a replica needs as much as its primary has: raised on replicas first, lowered on the primary
/// first (PostgreSQL's documentation, "Hot Standby").
const SHARED: [&str; 5] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
];

/// Whether a member waits to raise, and to lower, what replicas and primary share.
fn directions(member: &Member) -> (bool, bool) {
    let shared = member
        .pending_restart
        .iter()
        .filter(|(name, _)| SHARED.contains(&name.as_ref()));
    let changes = shared.filter_map(|(_, change)| {
        let old: i64 = change.old.parse().ok()?;
        let new: i64 = change.new.parse().ok()?;
        Some(new.cmp(&old))
    });
    changes.fold((false, false), |(raises, lowers), change| match change {
        Ordering::Greater => (true, lowers),
        Ordering::Less => (raises, true),
        Ordering::Equal => (raises, lowers),
    })
}

/// Who leads, if something can be begun.
fn leader_to_begin_with<'t>(
    topology: &'t Topology,
    waits: &[&Member],
) -> Result<&'t Member, String> {
    let Some(leader) = topology.leader_member() else {
        return Err("nobody leads: nothing is restarted before that is mended".to_owned());
    };
    if topology.settings_or_default().is_paused {
        return Err("the cluster is paused: trunkline resume first".to_owned());
    }
    let is_of_the_leader = |record: &SwitchoverRecord| {
        let lease = topology.leader.as_ref();
        lease.is_some_and(|lease| lease.member == record.from && lease.epoch == record.epoch)
    };
    let record = topology.switchover.as_deref();
    if topology.failover.is_some() || record.is_some_and(is_of_the_leader) {
        let why = "a change of leader, or a restart of the leader, is asked for or goes on: wait for its end";
        return Err(why.to_owned());
    }
    match waits
        .iter()
        .find(|member| member.state != MemberState::Running)
    {
        Some(down) => Err(format!("{} is to be restarted and does not run", down.name)),
        None => Ok(leader),
    }
}

/// The steps that put every pending parameter into force, or restart everybody: replicas first, those that commits wait for
/// last, then the leader by way of a switchover. What is lowered for all of them is lowered on the leader first, where it is.
///
/// # Errors
/// Why nothing can be begun.
pub(super) fn plan(topology: &Topology, rule: Rule) -> Result<Vec<Step>, String> {
    let is_due = |member: &Member| rule.is_all || member.has_pending_restart;
    let members = topology.members.values().map(AsRef::as_ref);
    let waits: Vec<&Member> = members.filter(|member| is_due(member)).collect();
    if waits.is_empty() {
        return Ok(Vec::new());
    }
    let leader = leader_to_begin_with(topology, &waits)?;
    let is_synchronous = |member: &Member| {
        let sync = topology.sync.as_ref();
        sync.is_some_and(|sync| sync.standbys.contains(&member.name))
    };
    let mut replicas: Vec<&Member> = waits
        .iter()
        .copied()
        .filter(|m| m.name != leader.name)
        .collect();
    replicas.sort_by_key(|member| (is_synchronous(member), member.name.clone()));
    let restarts = |round: Round| {
        let names = replicas.iter().map(|member| member.name.clone());
        let steps = names.map(|name| Step::Replica { name, round });
        steps.collect::<Vec<_>>()
    };
    let in_place = |why: &'static str| Step::LeaderInPlace {
        name: leader.name.clone(),
        why,
    };
    if !is_due(leader) {
        return Ok(restarts(Round::Only));
    }
    let (raises, lowers) = directions(leader);
    if lowers {
        let mut steps = if raises {
            restarts(Round::BeforeLeader)
        } else {
            Vec::new()
        };
        steps.push(in_place("what replicas need is lowered here first"));
        steps.extend(restarts(Round::AfterLeader));
        return Ok(steps);
    }
    let others = topology.members.values().filter(|m| m.name != leader.name);
    let to: Vec<MemberName> = others
        .filter(|member| unfit(member).is_none() && member.is_streaming == Some(true))
        .map(|member| member.name.clone())
        .collect();
    let mut steps = restarts(Round::Only);
    if rule.keeps_leader {
        steps.push(in_place("it leads on, as was asked for"));
    } else if to.is_empty() {
        steps.push(in_place("nobody else can lead"));
    } else {
        let from = leader.name.clone();
        steps.push(Step::SwitchOver { from, to });
        steps.push(Step::FormerLeader(leader.name.clone()));
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::topology::{Change, FactKey};
    use trunkline_shared::dcs::records;

    use super::*;

    fn topology(keys: &[(FactKey, String)]) -> Topology {
        let mut topology = Topology::default();
        for (revision, (key, value)) in (1..).zip(keys) {
            topology.apply(&Change {
                key: key.clone(),
                fact: Some(records::parse(key, value.as_bytes())),
                revision,
                lease: 7,
            });
        }
        topology
    }

    fn member(name: &str, more: &str) -> (FactKey, String) {
        let role = if name == "a" { "primary" } else { "replica" };
        let text = format!(
            r#"{{"conn_url":"postgres://{name}:5432/x","api_url":"","state":"running","role":"{role}","replication_state":"streaming"{more}}}"#
        );
        (FactKey::Member(MemberName::new(name)), text)
    }

    const PENDING: &str = r#","pending_restart":true"#;

    fn words(keys: &[(FactKey, String)]) -> Vec<String> {
        planned(keys, Rule::default())
    }

    fn planned(keys: &[(FactKey, String)], rule: Rule) -> Vec<String> {
        let steps = plan(&topology(keys), rule).unwrap();
        steps.iter().map(Step::word).collect()
    }

    fn changes(old: &str, new: &str) -> String {
        format!(
            r#","pending_restart":true,"pending_restart_reason":{{"max_connections":{{"old_value":"{old}","new_value":"{new}"}},"max_worker_processes":{{"old_value":"8","new_value":"16"}}}}"#
        )
    }

    #[test]
    fn replicas_come_first_then_the_leader_by_way_of_a_switchover() {
        let leader = (FactKey::Leader, "a".to_owned());
        let sync = (
            FactKey::Sync,
            r#"{"leader":"a","sync_standby":"b"}"#.to_owned(),
        );
        let all = [
            leader.clone(),
            sync,
            member("a", PENDING),
            member("b", PENDING),
            member("c", PENDING),
        ];
        assert_eq!(
            words(&all),
            [
                "restart replica c",
                "restart replica b",
                "switch over from a",
                "restart former leader a"
            ]
        );
        let raised = changes("100", "200");
        let all = [leader.clone(), member("a", &raised), member("b", &raised)];
        assert_eq!(
            words(&all),
            [
                "restart replica b",
                "switch over from a",
                "restart former leader a"
            ]
        );
        assert_eq!(
            words(&[leader.clone(), member("a", ""), member("b", "")]),
            [""; 0]
        );
        let alone = [
            leader.clone(),
            member("a", PENDING),
            member("b", r#","tags":{"nofailover":true}"#),
        ];
        assert_eq!(words(&alone), ["restart leader a in place"]);
        let down = member("b", PENDING);
        let down = (down.0, down.1.replace("\"running\"", "\"stopped\""));
        let refused = |keys: &[(FactKey, String)]| plan(&topology(keys), Rule::default()).is_err();
        assert!(refused(&[leader, member("a", ""), down]));
        assert!(refused(&[member("a", PENDING)]), "nobody leads");
    }

    #[test]
    fn everybody_is_restarted_where_that_is_asked_for_and_the_leader_where_it_is() {
        let leader = (FactKey::Leader, "a".to_owned());
        let all = [
            leader,
            member("a", ""),
            member("b", PENDING),
            member("c", ""),
        ];
        let rule = |is_all, keeps_leader| Rule {
            is_all,
            keeps_leader,
        };
        assert_eq!(planned(&all, rule(false, true)), ["restart replica b"]);
        assert_eq!(
            planned(&all, rule(true, false)),
            [
                "restart replica b",
                "restart replica c",
                "switch over from a",
                "restart former leader a"
            ]
        );
        assert_eq!(
            planned(&all, rule(true, true)),
            [
                "restart replica b",
                "restart replica c",
                "restart leader a in place"
            ]
        );
    }

    #[test]
    fn what_replicas_need_is_lowered_on_the_leader_first_and_raised_on_replicas_first() {
        let leader = (FactKey::Leader, "a".to_owned());
        let both = changes("100", "50");
        assert_eq!(
            words(&[leader.clone(), member("a", &both), member("b", &both)]),
            [
                "restart replica b",
                "restart leader a in place",
                "restart replica b"
            ]
        );
        let lowered = both.replace("\"16\"", "\"4\"");
        assert_eq!(
            words(&[leader, member("a", &lowered), member("b", &lowered)]),
            ["restart leader a in place", "restart replica b"]
        );
    }
}
