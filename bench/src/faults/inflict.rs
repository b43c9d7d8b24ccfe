//! What each row does to the cluster, and what only that row must show.

use std::time::Duration;

use anyhow::{Result, bail};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::row::Row;
use super::site::Field;
use crate::failover::inflict;
use crate::failover::scenario::Scenario;
use crate::failover::sequence::another_leads;

mod clients;
mod clocks;
mod disk;
mod network;
mod planned;
mod processes;
mod replay;
mod store;

/// Another member must lead, and clients write, within this.
const LEADER_LIMIT: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long a link is cut: longer than a view of the store may be old, and than a router's registration.
const CUT: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(50);

/// Inflicts the faults of a row, each until its consequence shows, ends each, and waits until the cluster is whole.
pub async fn inflict(row: Row, field: &mut Field<'_>) -> Result<()> {
    match row {
        Row::Moves => planned::back_to_back(field).await,
        Row::MoveBesideTransaction => planned::beside_transaction(field).await,
        Row::MoveToLagging => planned::to_lagging(field).await,
        Row::CandidateHurt => planned::candidate_hurt(field).await,
        Row::PostmasterKilled => scenario(field, Scenario::PostmasterKilled).await,
        Row::BackendCrashed => processes::backend_crashed(field).await,
        Row::PostmasterStopped => processes::postmaster_stopped(field).await,
        Row::AgentStopped => scenario(field, Scenario::AgentStopped).await,
        Row::AgentAndFenceStopped => scenario(field, Scenario::AgentAndFenceStopped).await,
        Row::NodeFrozen => scenario(field, Scenario::NodeFrozen).await,
        Row::AgentKilled => scenario(field, Scenario::AgentKilled).await,
        Row::AgentCrashLoop => processes::agent_crash_loop(field).await,
        Row::PowerOff => processes::power_off(field, false).await,
        Row::PowerOffWithEtcdLeader => processes::power_off(field, true).await,
        Row::PowerOffWithStandby => processes::power_off_with_standby(field).await,
        Row::Partition => scenario(field, Scenario::Partition).await,
        Row::PartitionWithRouter => network::partition_with_router(field).await,
        Row::LeaderWithoutEtcd => scenario(field, Scenario::EtcdGoneFromLeader).await,
        Row::LeaderWithoutStandbys => network::leader_without_standbys(field).await,
        Row::OneWayLoss => network::one_way_loss(field).await,
        Row::RouterWithoutEtcd => network::router_without_etcd(field).await,
        Row::RouterWithoutLeader => network::router_without_leader(field).await,
        Row::FlappingLink => network::flapping_link(field).await,
        Row::EtcdMemberDown => scenario(field, Scenario::EtcdFrozenKilled).await,
        Row::EtcdLeaderKilled => store::leader_killed_again_and_again(field).await,
        Row::EtcdGone => scenario(field, Scenario::EtcdGone).await,
        Row::EtcdGoneThenLeader => store::gone_then_leader(field).await,
        Row::EtcdForgetful => {
            scenario(field, Scenario::EtcdWiped).await?;
            scenario(field, Scenario::EtcdRestored).await
        }
        Row::LeaderKeyTampered => store::leader_key_tampered(field).await,
        Row::DiskNearlyFull => disk::nearly_full(field).await,
        Row::DisksFull => disk::all_full(field).await,
        Row::ReplayBlocked => replay::blocked(field).await,
        Row::ReplayBehind => replay::behind(field).await,
        Row::CancelStorm => clients::cancel_storm(field).await,
        Row::CommitsNotAwaited => clients::commits_not_awaited(field).await,
        Row::StatementsInFlight => processes::statements_in_flight(field).await,
        Row::OldLeaderReturns => processes::old_leader_returns(field).await,
        Row::RewindKilled => processes::rewind_killed(field).await,
        Row::PromotedByHand => processes::promoted_by_hand(field).await,
        Row::TwoOfOneName => processes::two_of_one_name(field).await,
        Row::Starved => processes::starved(field).await,
        Row::WatchDead => network::watch_dead(field).await,
        Row::RouterKilled => scenario(field, Scenario::RouterKilled).await,
        Row::TenTimesTheClients => clients::ten_times(field).await,
        Row::ThunderingHerd => clients::thundering_herd(field).await,
        Row::SyncChurn => replay::churn(field).await,
        Row::FsyncSlow => disk::slow(field).await,
        Row::DiskHangs => disk::hangs(field).await,
        Row::FsyncFails => disk::fsync_fails(field).await,
        Row::WallClockJumps => clocks::wall_clock_jumps(field).await,
        Row::ClockRuns => bail!("this cannot be done here"),
    }
}

/// A scenario of `failover`.
async fn scenario(field: &mut Field<'_>, scenario: Scenario) -> Result<()> {
    let on = leader_name(field);
    inflict::inflict(scenario, &mut field.run, field.progress).await?;
    field.whole(&scenario.to_string(), &on).await?;
    Ok(())
}

fn leader_name(field: &Field<'_>) -> String {
    field.run.stack.members[field.run.leader].name.clone()
}

/// Waits until another member leads and clients write, by a server that this one's end did not leave alone: since when.
async fn another_writes(field: &Field<'_>, old: usize) -> Result<Moment> {
    let deadline = clock::now() + LEADER_LIMIT;
    while !another_leads(field.run.stack, old).await {
        if clock::now() >= deadline {
            bail!("no other member led within {LEADER_LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    let led = clock::now();
    while field.run.writes.done() <= led {
        if clock::now() >= deadline {
            bail!("another member leads, and no client wrote within {LEADER_LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(led)
}

/// Kills all of the member that leads and waits for another one; which it was. It is not started again.
async fn lose_leader(field: &mut Field<'_>) -> Result<usize> {
    let old = field.run.leader;
    field.run.began = clock::now();
    field.run.stack.members[old].kill().await?;
    another_writes(field, old).await?;
    Ok(old)
}
