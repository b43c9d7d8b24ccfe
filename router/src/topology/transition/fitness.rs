//! Whether a member may serve reads. Pure.

use trunkline_shared::cluster::{Member, MemberRole, MemberState, Timeline, Topology};

use super::Rules;
use crate::topology::routing_table::Unfit;

/// Whether the member's record says that it is in recovery.
pub(super) fn is_in_recovery(member: &Member) -> bool {
    match member.role {
        MemberRole::Replica | MemberRole::StandbyLeader => true,
        MemberRole::Primary
        | MemberRole::Demoted
        | MemberRole::Uninitialized
        | MemberRole::Promoted => false,
    }
}

/// Whether the member's data is not being made at the moment.
pub(super) fn has_data(member: &Member) -> bool {
    match member.state {
        MemberState::InitializingNewCluster
        | MemberState::InitdbFailed
        | MemberState::RunningCustomBootstrap
        | MemberState::CustomBootstrapFailed
        | MemberState::CreatingReplica => false,
        MemberState::Running
        | MemberState::Starting
        | MemberState::StartingAfterCustomBootstrap
        | MemberState::StartFailed
        | MemberState::Restarting
        | MemberState::RestartFailed
        | MemberState::Stopping
        | MemberState::Stopped
        | MemberState::StopFailed
        | MemberState::Crashed => true,
    }
}

/// Why a member may not serve reads in quiet times. Fields that a record does not carry (Patroni's) are
/// not held against it.
pub(super) fn strictly_unfit(
    member: &Member,
    topology: &Topology,
    current: Option<Timeline>,
    rules: &Rules,
) -> Option<Unfit> {
    if !is_in_recovery(member) {
        return Some(Unfit::Role(member.role));
    }
    if member.state != MemberState::Running {
        return Some(Unfit::State(member.state));
    }
    if member.tags.noloadbalance {
        return Some(Unfit::NoLoadBalance);
    }
    if member.is_streaming == Some(false) {
        return Some(Unfit::NotStreaming);
    }
    if let (Some(own), Some(current)) = (member.timeline, current)
        && own != current
    {
        return Some(Unfit::Timeline { own, current });
    }
    let position = member.replayed.or(member.received).or(member.position);
    let lag_bytes = position.map_or(0, |at| at.bytes_behind(topology.status.optime));
    if rules.max_lag.is_some_and(|max| lag_bytes > max) {
        return Some(Unfit::Lag { lag_bytes });
    }
    None
}
