//! Decisions as text, for scripts, the journal and `trunkline explain`. Pure.

use std::fmt;

use super::changes;
use super::synchronous::named;
use trunkline_shared::cluster::Lsn;
use trunkline_shared::cluster::store::Told;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::topology::{Status, SwitchoverRecord, SwitchoverStage};

use crate::decide::decision::{
    Action, Decision, Detail, NextWhy, SlotAdvance, SlotCare, StartAs, StopMode, Upstream,
};

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.situation.word(), self.reason)?;
        if self.detail != Detail::None {
            write!(f, " ({})", self.detail)?;
        }
        for action in &self.actions {
            write!(f, "\n  {action}")?;
        }
        if let Some(limit) = self.stop_limit {
            write!(f, "\n  stop limited to {limit:?}")?;
        }
        if let Some(limit) = self.act_limit {
            write!(f, "\n  each limited to {limit:?}")?;
        }
        if self.is_request_taken {
            write!(f, "\n  request taken")?;
        }
        let why = match self.next.why {
            NextWhy::SeeResult => "to see the result",
            NextWhy::LeaseDeadline => "lease deadline",
            NextWhy::Limit => "limit",
            NextWhy::Routine => "routine",
        };
        write!(f, "\n  next in {:?}: {why}", self.next.within)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Action::ReleaseLeader {
                position: Some(position),
            } => write!(f, " at {position}"),
            Action::HandOver {
                to,
                lease,
                record_revision,
                position,
            } => write!(
                f,
                " to {to} lease {lease:x} record {record_revision} at {position}"
            ),
            Action::ClaimTimeline(claimed) => both(f, claimed.timeline, Of(claimed.parent)),
            Action::Promote(timeline) => write!(f, " to timeline {timeline}"),
            Action::CallBack(callback, role) => both(f, callback.word(), role.word()),
            Action::RecordSystemId(id) => write!(f, " {id}"),
            Action::PublishStatus(status) => write!(f, "{}", Published(status)),
            Action::RecreateKeys { generation } => write!(f, " {generation}"),
            Action::DoubtStore { name, told } => both(f, name, Denied(told)),
            Action::DropFailoverRequest { revision } | Action::DeleteSync { revision } => {
                write!(f, " {revision}")
            }
            Action::RequestSwitchover(to) => write!(f, " to {to}"),
            Action::RemoveDisarmedOf(name, at) => write!(f, " {name} record {at}"),
            Action::RecordChange(change) => write!(f, " {}", changes::Recorded(change)),
            Action::AnnounceSwitchover(record) => write!(f, " {}", Announced(record)),
            Action::Start(start) => write!(f, " {start}"),
            Action::PublishFailsafe(list) => list.keys().try_for_each(|name| write!(f, " {name}")),
            Action::Stop(mode) => write!(f, " {}", mode_word(*mode)),
            Action::CutWal(ends) => placed(f, ends.iter().map(|end| (end.timeline, end.end))),
            Action::Follow(upstream)
            | Action::Clone(upstream)
            | Action::Rewind(upstream)
            | Action::CompareHistory(upstream) => write!(f, " {upstream}"),
            Action::CopyLogicalSlots { from, names } => write!(f, "{} of {from}", spaced(names)),
            Action::TendLogicalSlots(care) => write!(f, "{care}"),
            Action::CreateSlots(slots) | Action::DropSlots(slots) => f.write_str(&spaced(slots)),
            Action::SetSynchronizedSlots(slots) => f.write_str(&spaced(slots)),
            Action::AdvanceSlots(slots) => placed(f, slots.iter().map(|(slot, to)| (slot, *to))),
            Action::WriteSync(s) | Action::RenewSync(s) => write!(f, " {}", Recorded(s)),
            Action::SetSyncNames(names) => write!(f, " {}", named(names)),
            Action::ClearSyncNames
            | Action::OpenClientAccess
            | Action::AcquireLeader
            | Action::ConfirmLeader
            | Action::ReassertLeader
            | Action::ReleaseLeader { position: None }
            | Action::ClaimBootstrap
            | Action::RecordHistory
            | Action::DiscardBootstrap
            | Action::EndReplayConflicts
            | Action::RunPrePromote
            | Action::CloneWithoutLeader
            | Action::ClearSwitchover
            | Action::WriteDisarmed
            | Action::RemoveDisarmed
            | Action::ArmFence
            | Action::DisarmFence
            | Action::Initialize
            | Action::FinishBootstrap
            | Action::Checkpoint
            | Action::SwitchFailsafeOn
            | Action::LetLeaseLapse(_)
            | Action::RestoreConfig
            | Action::TrustStore
            | Action::CancelJob => Ok(()),
        }
    }
}

fn placed<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    mut all: impl Iterator<Item = (T, Lsn)>,
) -> fmt::Result {
    all.try_for_each(|(what, at)| write!(f, " {what}@{at}"))
}

/// What something is of.
struct Of<T>(T);

impl<T: fmt::Display> fmt::Display for Of<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {}", self.0)
    }
}

/// The generation, and whose successor is waited for.
struct Denied<'a>(&'a Told);

impl fmt::Display for Denied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.generation)?;
        self.0
            .cluster_id
            .map_or(Ok(()), |id| write!(f, " for {id}"))
    }
}

fn both(
    f: &mut fmt::Formatter<'_>,
    one: impl fmt::Display,
    other: impl fmt::Display,
) -> fmt::Result {
    write!(f, " {one} {other}")
}

fn mode_word(mode: StopMode) -> &'static str {
    match mode {
        StopMode::Planned => "planned",
        StopMode::HandOver => "hand_over",
        StopMode::Fast => "fast",
        StopMode::Immediate => "immediate",
    }
}

fn spaced<'a>(names: impl IntoIterator<Item = &'a std::sync::Arc<str>>) -> String {
    let names = names.into_iter();
    names.map(|name| format!(" {name}")).collect()
}

impl fmt::Display for SlotCare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in &self.create {
            write!(f, " create {} {} {}", slot.name, slot.database, slot.plugin)?;
            if slot.is_failover {
                f.write_str(" failover")?;
            }
        }
        for SlotAdvance { slot, to } in &self.advance {
            write!(f, " advance {}@{to}", slot.name)?;
        }
        for name in &self.prove {
            write!(f, " prove {name}")?;
        }
        match &self.of {
            Some(of) => write!(f, " of {of}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for StartAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartAs::PrimaryClosed => f.write_str("as primary, closed to clients"),
            StartAs::Primary => f.write_str("as primary"),
            StartAs::Recovering => f.write_str("recovering, then primary"),
            StartAs::Replica(None) => f.write_str("as replica, upstream kept"),
            StartAs::Replica(Some(upstream)) => write!(f, "as replica of {upstream}"),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.member, &self.address) {
            (Some(member), Some(_)) => member.fmt(f)?,
            (None, Some(address)) => address.fmt(f)?,
            (_, None) => f.write_str("the archive")?,
        }
        match (&self.slot, &self.address) {
            (None, Some(_)) => f.write_str(" without a slot"),
            (Some(_), _) | (None, None) => Ok(()),
        }
    }
}

struct Published<'a>(&'a Status);

impl fmt::Display for Published<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        write!(f, " {}", status.optime)?;
        for (name, at) in &status.slots {
            write!(f, " {name}@{at}")?;
        }
        if !status.retain_slots.is_empty() {
            write!(f, " retain {}", status.retain_slots.join(","))?;
        }
        Ok(())
    }
}

struct Recorded<'a>(&'a SyncState);

impl fmt::Display for Recorded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sync = self.0;
        sync.leader.iter().try_for_each(|leader| leader.fmt(f))?;
        f.write_str(" with")?;
        if sync.standbys.is_empty() {
            f.write_str(" nobody")?;
        }
        for standby in &sync.standbys {
            write!(f, " {standby}")?;
        }
        if sync.quorum > 0 {
            write!(f, ", quorum {}", sync.quorum)?;
        }
        write!(f, ", after {}", sync.revision)
    }
}

struct Announced<'a>(&'a SwitchoverRecord);

impl fmt::Display for Announced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        write!(f, "{} {} to {}: ", record.id, record.from, record.to)?;
        match record.stage {
            SwitchoverStage::HoldTransactions => f.write_str("hold_transactions"),
            SwitchoverStage::HoldAll => f.write_str("hold_all"),
            SwitchoverStage::Stopped {
                shutdown_checkpoint,
            } => {
                write!(f, "stopped:{shutdown_checkpoint}")
            }
            SwitchoverStage::Resume => f.write_str("resume"),
        }
    }
}
