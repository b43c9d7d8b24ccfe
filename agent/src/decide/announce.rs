//! What this member says of itself in its DCS record. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_shared::cluster::member::{Member, SwitchoverReady, TrunklineFields};
use trunkline_shared::cluster::topology::{Initialize, SwitchoverStage};
use trunkline_shared::cluster::{MemberRole, MemberState, SystemId};

use super::decision::{Decision, Reason};
use super::memory::Memory;
use super::observation::{
    BootstrapKind, JobKind, LeaseView, Local, Observation, Running, RunningRole, WatchdogView,
};

/// The record of this member after a turn. `api_url` and `version` are the agent's own words.
pub fn announcement(
    seen: &Observation,
    decision: &Decision,
    api_url: &Arc<str>,
    version: &Arc<str>,
) -> Member {
    let mut member = Member {
        name: seen.me.name.clone(),
        address: seen.me.address.clone(),
        api_url: api_url.clone(),
        role: role(seen, &decision.memory),
        state: state(seen, decision.memory.is_restarting),
        timeline: None,
        position: None,
        received: None,
        replayed: None,
        is_streaming: None,
        tags: seen.me.tags.clone(),
        is_checkpointed_after_promote: true,
        has_pending_restart: false,
        pending_restart: BTreeMap::new(),
        scheduled_restart: None,
        proxy_address: None,
        is_paused: seen.settings().is_paused,
        version: version.clone(),
        lease: 0,
        revision: 0,
        trunkline: Some(TrunklineFields {
            epoch: match &seen.lease {
                LeaseView::Held(held) => Some(held.epoch),
                LeaseView::NotHeld | LeaseView::Lost => None,
            },
            system_id: seen.local.system_id().or_else(|| known_system(seen)),
            ready: ready(seen),
            reason: Some(Arc::from(decision.reason.word())),
            detail: Some(decision.detail.to_string())
                .filter(|text| !text.is_empty())
                .map(Arc::from),
            has_watchdog_failed: seen.fence.watchdog == WatchdogView::Failed,
        }),
    };
    // Who ends is not to be waited for by commits, nor counted on who gives up what it had.
    let job = seen.job.running.as_ref().map(|job| job.kind);
    member.tags.nosync |= decision.reason == Reason::LeavingSync
        || job == Some(JobKind::Clone)
        || seen.local == Local::Empty;
    if let Local::Running(running) = &seen.local {
        describe(&mut member, running);
    }
    member
}

/// The cluster that the DCS has lost exists, whether its data can be read here or not: nobody is to make another one.
fn known_system(seen: &Observation) -> Option<SystemId> {
    match seen.store.doubt.as_ref()?.before.initialize {
        Initialize::Done(id) => Some(id),
        Initialize::Absent | Initialize::Running => None,
    }
}

fn describe(member: &mut Member, running: &Running) {
    member.timeline = Some(running.timeline);
    member.has_pending_restart = running.has_pending_restart;
    match &running.role {
        RunningRole::Primary {
            position,
            is_checkpointed,
        } => {
            member.position = Some(*position);
            member.is_checkpointed_after_promote = *is_checkpointed;
        }
        RunningRole::Replica {
            received,
            replayed,
            is_streaming,
            ..
        } => {
            member.position = Some(*received.max(replayed));
            member.received = Some(*received);
            member.replayed = Some(*replayed);
            member.is_streaming = Some(*is_streaming);
        }
    }
}

fn role(seen: &Observation, memory: &Memory) -> MemberRole {
    let job = seen.job.running.as_ref().map(|job| job.kind);
    match &seen.local {
        Local::Empty | Local::Unknown(_) => MemberRole::Uninitialized,
        Local::Running(running) => match running.role {
            // The job's last step is the history, without which nobody follows.
            _ if job == Some(JobKind::Promote) => MemberRole::Promoted,
            RunningRole::Primary { .. } => MemberRole::Primary,
            RunningRole::Replica { .. } if running.is_promoting => MemberRole::Promoted,
            RunningRole::Replica { .. } if leads_standby(seen) => MemberRole::StandbyLeader,
            RunningRole::Replica { .. } => MemberRole::Replica,
        },
        // Signalled to die, it answers nobody any more, whatever its disk still holds up.
        Local::Unresponsive {
            was_primary: true, ..
        } if memory.kill_hangs_since.is_some() => MemberRole::Demoted,
        Local::Starting {
            as_primary: true, ..
        }
        | Local::Unresponsive {
            was_primary: true, ..
        } => MemberRole::Primary,
        Local::Stopped(stopped) if stopped.was_primary => MemberRole::Demoted,
        Local::Stopped(_)
        | Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => MemberRole::Replica,
    }
}

/// Whether it holds the lease of a standby cluster.
fn leads_standby(seen: &Observation) -> bool {
    matches!(seen.lease, LeaseView::Held(_)) && seen.settings().standby_cluster.is_some()
}

fn state(seen: &Observation, is_restarting: bool) -> MemberState {
    if let Some(job) = &seen.job.running {
        match job.kind {
            JobKind::Initialize if seen.me.bootstrap != BootstrapKind::Initdb => {
                return MemberState::RunningCustomBootstrap;
            }
            JobKind::Initialize | JobKind::FinishBootstrap | JobKind::DiscardBootstrap => {
                return MemberState::InitializingNewCluster;
            }
            JobKind::Clone | JobKind::Rewind => return MemberState::CreatingReplica,
            JobKind::Stop | JobKind::StopNow | JobKind::Start if is_restarting => {
                return MemberState::Restarting;
            }
            // Until it stops, the instance serves as before.
            JobKind::CopySlots if !matches!(seen.local, Local::Running(_)) => {
                return MemberState::Restarting;
            }
            JobKind::Stop | JobKind::StopNow => return MemberState::Stopping,
            JobKind::Start => return MemberState::Starting,
            JobKind::Promote
            | JobKind::PrePromote
            | JobKind::Checkpoint
            | JobKind::CompareHistory
            | JobKind::CopySlots
            | JobKind::TendSlots => {}
        }
    }
    let failed = |kind| {
        seen.job
            .finished
            .as_ref()
            .is_some_and(|job| job.kind == kind && job.error.is_some())
    };
    match &seen.local {
        // Nobody may write to a cluster that could still be given up.
        Local::Running(_)
            if seen
                .topology()
                .is_some_and(|t| t.initialize == Initialize::Running) =>
        {
            MemberState::InitializingNewCluster
        }
        // Nobody is to be sent there yet.
        Local::Running(running) if running.commits.is_access_closed => MemberState::Starting,
        Local::Running(_) => MemberState::Running,
        Local::Starting { .. }
            if seen.is_bootstrap_unfinished && seen.me.bootstrap != BootstrapKind::Initdb =>
        {
            MemberState::StartingAfterCustomBootstrap
        }
        Local::Starting { .. } if is_restarting => MemberState::Restarting,
        Local::Starting { .. } => MemberState::Starting,
        Local::Empty if failed(JobKind::Initialize) => match seen.me.bootstrap {
            BootstrapKind::Initdb => MemberState::InitdbFailed,
            BootstrapKind::Custom | BootstrapKind::CustomRecovering => {
                MemberState::CustomBootstrapFailed
            }
        },
        Local::Stopped(_) if failed(JobKind::Start) && is_restarting => MemberState::RestartFailed,
        Local::Stopped(_) if failed(JobKind::Start) => MemberState::StartFailed,
        Local::Stopped(stopped) if stopped.crashed_at.is_some() => MemberState::Crashed,
        Local::Unresponsive { .. } | Local::Orphaned { .. }
            if failed(JobKind::Stop) || failed(JobKind::StopNow) =>
        {
            MemberState::StopFailed
        }
        Local::Unresponsive { .. } | Local::Orphaned { .. } | Local::Unknown(_) => {
            MemberState::Crashed
        }
        Local::Empty | Local::Stopped(_) => MemberState::Stopped,
    }
}

/// Whether this member holds the last record of an old leader that names it as its successor.
fn ready(seen: &Observation) -> Option<SwitchoverReady> {
    let switchover = seen.topology()?.switchover.as_ref()?;
    let SwitchoverStage::Stopped {
        shutdown_checkpoint,
    } = switchover.stage
    else {
        return None;
    };
    let Local::Running(Running {
        role: RunningRole::Replica { replayed, .. },
        ..
    }) = &seen.local
    else {
        return None;
    };
    // Replay stops at the end of a record, so past its beginning means past its end.
    let has_all = switchover.to == seen.me.name && *replayed > shutdown_checkpoint;
    has_all.then_some(SwitchoverReady {
        id: switchover.id,
        replayed: *replayed,
    })
}
