//! The lists of faults: drawn by a seeded generator, so that a run can be repeated by its number.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// The shortest time a fault lasts: long enough to be noticed by somebody.
const SHORTEST_MS: u64 = 300;
/// Half of the faults end before this: shorter than a TTL of 5 s, so that the lease outlives them.
const BRIEF_MS: u64 = 3_000;
/// The longest, if not said otherwise: more than two TTLs of 5 s, so that another member has led for a while.
pub const LONGEST: Duration = Duration::from_secs(12);

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// SIGKILL to the agent; started again at the end.
    AgentKilled,
    /// SIGKILL to the postmaster.
    PostmasterKilled,
    /// SIGKILL to the postmaster whenever there is one, until another member leads.
    PostmasterHeldDown,
    /// SIGKILL to agent and postmaster; the agent is started again at the end.
    AgentAndPostmasterKilled,
    /// SIGKILL to agent, fence and every server process; the agent is started again at the end.
    MemberKilled,
    /// Agent, fence and servers stand still.
    MemberFrozen,
    /// The agent alone stands still.
    AgentFrozen,
    /// The member's node is cut off, its etcd member too.
    MemberCut,
    /// The node is cut off whose etcd member leads the store.
    EtcdLeaderCut,
    /// SIGKILL to an etcd member; started again at the end.
    EtcdKilled,
    /// An etcd member stands still.
    EtcdFrozen,
}

impl Kind {
    /// Can it be done only where nodes can be cut apart?
    pub fn needs_namespaces(self) -> bool {
        matches!(self, Kind::MemberCut | Kind::EtcdLeaderCut)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::AgentKilled => "agent killed",
            Kind::PostmasterKilled => "postmaster killed",
            Kind::PostmasterHeldDown => "postmaster held down",
            Kind::AgentAndPostmasterKilled => "agent and postmaster killed",
            Kind::MemberKilled => "member killed",
            Kind::MemberFrozen => "member frozen",
            Kind::AgentFrozen => "agent frozen",
            Kind::MemberCut => "member cut off",
            Kind::EtcdLeaderCut => "etcd leader cut off",
            Kind::EtcdKilled => "etcd member killed",
            Kind::EtcdFrozen => "etcd member frozen",
        })
    }
}

/// Whom it meets, among the members or, of a fault of the store, among the etcd members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The one that leads.
    Leader,
    /// One of the others, counted from the leader on.
    Other(usize),
}

/// When it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    After(Duration),
    /// Once another member leads, and after this time.
    AnotherLeads(Duration),
}

/// One fault of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// What is done.
    pub kind: Kind,
    /// To whom.
    pub whom: Whom,
    /// For how long.
    pub until: Until,
}

/// Faults of every kind, on leader and others alike, each for a drawn time up to the longest.
pub fn random(seed: u64, count: usize, longest: Duration, can_cut: bool) -> Vec<Drawn> {
    const KINDS: [Kind; 9] = [
        Kind::AgentKilled,
        Kind::PostmasterKilled,
        Kind::MemberKilled,
        Kind::MemberFrozen,
        Kind::AgentFrozen,
        Kind::MemberCut,
        Kind::EtcdLeaderCut,
        Kind::EtcdKilled,
        Kind::EtcdFrozen,
    ];
    let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    let mut draw = fastrand::Rng::with_seed(seed);
    let kinds: Vec<_> = allowed(&KINDS, can_cut);
    let one = |draw: &mut fastrand::Rng| {
        let kind = kinds[draw.usize(..kinds.len())];
        // Three of five meet the leader: that is where a cluster can lose something.
        let whom = match draw.u8(..5) {
            0..=2 => Whom::Leader,
            _ => Whom::Other(draw.usize(1..=2)),
        };
        let millis = match draw.bool() {
            true => draw.u64(SHORTEST_MS..BRIEF_MS),
            false => draw.u64(BRIEF_MS..=longest.max(BRIEF_MS)),
        };
        Drawn {
            kind,
            whom,
            until: Until::After(Duration::from_millis(millis)),
        }
    };
    (0..count).map(|_| one(&mut draw)).collect()
}

/// Faults that make another member lead, each held until that is so.
pub fn failovers(seed: u64, count: usize, can_cut: bool) -> Vec<Drawn> {
    const KINDS: [Kind; 4] = [
        Kind::PostmasterHeldDown,
        Kind::AgentAndPostmasterKilled,
        Kind::MemberFrozen,
        Kind::MemberCut,
    ];
    let mut draw = fastrand::Rng::with_seed(seed);
    let kinds: Vec<_> = allowed(&KINDS, can_cut);
    let one = |draw: &mut fastrand::Rng| Drawn {
        kind: kinds[draw.usize(..kinds.len())],
        whom: Whom::Leader,
        until: Until::AnotherLeads(Duration::from_millis(draw.u64(SHORTEST_MS..BRIEF_MS))),
    };
    (0..count).map(|_| one(&mut draw)).collect()
}

fn allowed(kinds: &[Kind], can_cut: bool) -> Vec<Kind> {
    let can = |kind: &&Kind| can_cut || !kind.needs_namespaces();
    kinds.iter().filter(can).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_list_again_and_another_draws_another() {
        assert_eq!(random(7, 100, LONGEST, true), random(7, 100, LONGEST, true));
        assert_ne!(random(7, 100, LONGEST, true), random(8, 100, LONGEST, true));
    }

    #[test]
    fn a_longer_list_begins_as_the_shorter_one() {
        assert_eq!(
            random(7, 100, LONGEST, true)[..5],
            random(7, 5, LONGEST, true)
        );
    }

    #[test]
    fn a_hundred_faults_are_of_every_kind_and_meet_leader_and_others() {
        let list = random(1, 100, LONGEST, true);
        let kinds: std::collections::BTreeSet<_> = list.iter().map(|one| one.kind).collect();
        assert_eq!(kinds.len(), 9);
        assert!(list.iter().any(|one| one.whom == Whom::Leader));
        assert!(list.iter().any(|one| one.whom == Whom::Other(1)));
        assert!(list.iter().any(|one| one.whom == Whom::Other(2)));
    }

    #[test]
    fn nothing_is_cut_off_where_nodes_cannot_be_cut_apart() {
        let cuts = |list: Vec<Drawn>| list.iter().any(|one| one.kind.needs_namespaces());
        assert!(!cuts(random(1, 100, LONGEST, false)) && !cuts(failovers(1, 30, false)));
        assert!(cuts(random(1, 100, LONGEST, true)) && cuts(failovers(1, 30, true)));
    }
}
