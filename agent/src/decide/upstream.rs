//! Whom a member replicates from: the leader, or the member its tag `replicatefrom` names.

use std::sync::Arc;

use trunkline_shared::cluster::{Member, MemberName, MemberState, Tags, Topology};

use super::decision::Upstream;
use super::observation::Observation;

/// Longest chain of cascading members that is followed.
const LONGEST_CHAIN: usize = 16;

/// The member other than the leader that one of this name and these tags replicates from.
pub(super) fn cascade_of<'a>(
    topology: &'a Topology,
    name: &MemberName,
    tags: &Tags,
    leader: &MemberName,
) -> Option<&'a Arc<Member>> {
    let named = topology.members.get(tags.replicatefrom.as_ref()?)?;
    let is_usable =
        named.name != *leader && can_send(named) && reaches_leader(topology, name, named, leader);
    is_usable.then_some(named)
}

/// Whether it is there to be replicated from. One that only restarts is waited for.
fn can_send(member: &Member) -> bool {
    match member.state {
        MemberState::Running
        | MemberState::Starting
        | MemberState::Restarting
        | MemberState::Stopping => !member.tags.nostream,
        MemberState::InitializingNewCluster
        | MemberState::InitdbFailed
        | MemberState::RunningCustomBootstrap
        | MemberState::CustomBootstrapFailed
        | MemberState::CreatingReplica
        | MemberState::StartingAfterCustomBootstrap
        | MemberState::StartFailed
        | MemberState::RestartFailed
        | MemberState::Stopped
        | MemberState::StopFailed
        | MemberState::Crashed => false,
    }
}

/// Two that name each other would both replicate from nobody.
fn reaches_leader(
    topology: &Topology,
    name: &MemberName,
    from: &Arc<Member>,
    leader: &MemberName,
) -> bool {
    let mut at = from;
    for _ in 0..LONGEST_CHAIN {
        if at.name == *name {
            return false;
        }
        if at.name == *leader {
            return true;
        }
        let next = at.tags.replicatefrom.as_ref();
        match next.and_then(|next| topology.members.get(next)) {
            Some(next) if can_send(next) => at = next,
            Some(_) | None => return true,
        }
    }
    false
}

/// Where this member has its WAL from while `leader` leads.
pub(super) fn own(seen: &Observation, topology: &Topology, leader: &Arc<Member>) -> Upstream {
    if seen.me.tags.nostream {
        return Upstream {
            member: None,
            address: None,
            slot: None,
        };
    }
    let cascade = cascade_of(topology, &seen.me.name, &seen.me.tags, &leader.name);
    to(seen, topology, cascade.unwrap_or(leader))
}

/// Where data is copied from: a member has a slot for this one only if it is the one to replicate from.
pub(super) fn source(
    seen: &Observation,
    topology: &Topology,
    leader: &Member,
    source: &Member,
) -> Upstream {
    let cascade = cascade_of(topology, &seen.me.name, &seen.me.tags, &leader.name);
    let replicates_from = cascade.map_or(&leader.name, |cascade| &cascade.name);
    let mut from = to(seen, topology, source);
    if source.name != *replicates_from || seen.me.tags.nostream {
        from.slot = None;
    }
    from
}

/// The way to a member, with this member's slot there.
pub(super) fn to(seen: &Observation, topology: &Topology, member: &Member) -> Upstream {
    Upstream {
        member: Some(member.name.clone()),
        address: Some(member.address.clone()),
        slot: own_slot(seen, topology),
    }
}

/// The name of this member's slot; `None` where slots are off, or another member, whose name makes the same
/// slot and stands before this one's, has it.
fn own_slot(seen: &Observation, topology: &Topology) -> Option<Arc<str>> {
    let own = seen.me.name.slot_name();
    let is_taken = name_taken_by(seen, topology).is_some();
    (seen.settings().use_slots && !is_taken).then(|| own.into())
}

/// The member whose slot has the name that this member's would have.
pub(super) fn name_taken_by<'a>(
    seen: &Observation,
    topology: &'a Topology,
) -> Option<&'a MemberName> {
    let own = seen.me.name.slot_name();
    let mut before = topology
        .members
        .keys()
        .take_while(|name| **name < seen.me.name);
    before.find(|name| name.slot_name() == own)
}
