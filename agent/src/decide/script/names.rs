//! The words for roles and states in scripts.

use trunkline_shared::cluster::{MemberRole, MemberState};

/// Every role.
pub(super) const ROLES: [MemberRole; 6] = [
    MemberRole::Primary,
    MemberRole::Replica,
    MemberRole::StandbyLeader,
    MemberRole::Demoted,
    MemberRole::Uninitialized,
    MemberRole::Promoted,
];

/// The word for a member's role in scripts.
pub(super) fn role_word(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Primary => "primary",
        MemberRole::Replica => "replica",
        MemberRole::StandbyLeader => "standby_leader",
        MemberRole::Demoted => "demoted",
        MemberRole::Uninitialized => "uninitialized",
        MemberRole::Promoted => "promoted",
    }
}

/// Every state.
pub(super) const STATES: [MemberState; 15] = [
    MemberState::InitializingNewCluster,
    MemberState::InitdbFailed,
    MemberState::RunningCustomBootstrap,
    MemberState::CustomBootstrapFailed,
    MemberState::CreatingReplica,
    MemberState::Running,
    MemberState::Starting,
    MemberState::StartingAfterCustomBootstrap,
    MemberState::StartFailed,
    MemberState::Restarting,
    MemberState::RestartFailed,
    MemberState::Stopping,
    MemberState::Stopped,
    MemberState::StopFailed,
    MemberState::Crashed,
];

/// The word for a member's state in scripts.
pub(super) fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::InitializingNewCluster => "initializing",
        MemberState::InitdbFailed => "initdb_failed",
        MemberState::RunningCustomBootstrap => "custom_bootstrap",
        MemberState::CustomBootstrapFailed => "custom_bootstrap_failed",
        MemberState::CreatingReplica => "creating_replica",
        MemberState::Running => "running",
        MemberState::Starting => "starting",
        MemberState::StartingAfterCustomBootstrap => "starting_after_custom_bootstrap",
        MemberState::StartFailed => "start_failed",
        MemberState::Restarting => "restarting",
        MemberState::RestartFailed => "restart_failed",
        MemberState::Stopping => "stopping",
        MemberState::Stopped => "stopped",
        MemberState::StopFailed => "stop_failed",
        MemberState::Crashed => "crashed",
    }
}
