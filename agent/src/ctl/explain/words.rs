//! What an action means, for who does not know its word. Pure.

use crate::decide::decision::{Action, StopMode};

/// In a few words.
pub(super) fn of(action: &Action) -> &'static str {
    match action {
        Action::AcquireLeader => "takes the leader key",
        Action::ConfirmLeader => "proves that the leader key is its own",
        Action::ReassertLeader => "writes its leader key again",
        Action::ReleaseLeader { .. } => "gives the leader key up",
        Action::HandOver { .. } => "moves the leader key to the candidate",
        Action::ClaimBootstrap => "offers to make the cluster",
        Action::RecordSystemId(_) => "writes the identity of the data into the DCS",
        Action::PublishStatus(_) => "tells the cluster how far it is",
        Action::RecordHistory => "writes the history of timelines",
        Action::DropFailoverRequest { .. } => "drops the request for a change of leader",
        Action::RequestSwitchover(_) => "asks for a switchover itself",
        Action::AnnounceSwitchover(_) => "tells the routers and members of the switchover",
        Action::ClearSwitchover => "ends the announcement of the switchover",
        Action::WriteDisarmed => "writes down that its fence sleeps",
        Action::RemoveDisarmed => "takes back that its fence sleeps",
        Action::RemoveDisarmedOf(..) => {
            "takes back, for a member that Patroni runs now, that its fence sleeps"
        }
        Action::ArmFence => "the fence ends PostgreSQL when the lease runs out",
        Action::DisarmFence => {
            "the fence sleeps: PostgreSQL accepts no writes, or maintenance is on"
        }
        Action::Initialize => "makes the data of a new cluster",
        Action::FinishBootstrap => "makes roles and settings of the new cluster",
        Action::Start(_) => "starts PostgreSQL",
        Action::RecordChange(_) => "writes down how long the change of leader took",
        Action::Stop(StopMode::Planned) => "stops PostgreSQL after a checkpoint",
        Action::Stop(StopMode::HandOver) => "stops PostgreSQL for its successor",
        Action::Stop(StopMode::Fast) => "stops PostgreSQL",
        Action::Stop(StopMode::Immediate) => "ends PostgreSQL at once",
        Action::ClaimTimeline(_) => "reserves the number of the next timeline",
        Action::Promote(_) => "makes PostgreSQL accept writes",
        Action::Checkpoint => "a checkpoint, so that others may rewind or a stop is short",
        Action::CutWal(_) => "takes away WAL that the leader's history does not have",
        Action::Follow(_) => "points PostgreSQL at its upstream",
        Action::EndReplayConflicts => "ends sessions that replay waits for",
        Action::Clone(_) => "copies the data anew",
        Action::Rewind(_) => "takes its WAL back to where it left the leader's",
        Action::CancelJob => "ends the job in progress",
        Action::CreateSlots(_) => "makes replication slots",
        Action::DropSlots(_) => "drops replication slots",
        Action::AdvanceSlots(_) => "moves replication slots forward",
        Action::DiscardBootstrap => "sets the data of a failed bootstrap aside",
        Action::CloneWithoutLeader => "makes the data from a backup",
        Action::CallBack(..) => "calls the operator's script",
        Action::RunPrePromote => "asks the operator's script whether it may be promoted",
        Action::WriteSync(_) => "writes down whom commits wait for",
        Action::RenewSync(_) => {
            "writes the record of whom commits wait for again, so that no older write of it counts"
        }
        Action::DeleteSync { .. } => "commits wait for nobody any more: the record is deleted",
        Action::SetSyncNames(_) => "makes commits wait for these standbys",
        Action::ClearSyncNames => "the user's own synchronous_standby_names holds again",
        Action::CompareHistory(_) => "looks whether its history has left that of its upstream",
        Action::OpenClientAccess => "lets clients in",
        Action::PublishFailsafe(_) => "writes down who must consent while the DCS is away",
        Action::SwitchFailsafeOn => "switches failsafe_mode on",
        Action::RestoreConfig => "writes the lost configuration again",
        Action::RecreateKeys { .. } => "makes the lost keys of the cluster anew",
        Action::DoubtStore { .. } => "believes nothing of this DCS any more",
        Action::TrustStore => "believes this DCS",
        Action::CopyLogicalSlots { .. } => {
            "copies the leader's logical slots; PostgreSQL stops for it"
        }
        Action::TendLogicalSlots(_) => "makes, moves or proves logical slots",
        Action::SetSynchronizedSlots(_) => "consumers of failover slots wait for these standbys",
        Action::LetLeaseLapse(_) => "renews the lease no more, so that it ends",
    }
}
