//! The long jobs of a member: what they do, and how they ended.

use std::sync::Arc;

use trunkline_shared::cluster::{MemberName, Moment};

/// The jobs of this member.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct JobView {
    /// The one in progress.
    pub running: Option<RunningJob>,
    /// The one that ended last, until the next begins.
    pub finished: Option<FinishedJob>,
}

/// A job in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningJob {
    /// What it does.
    pub kind: JobKind,
    /// Since when.
    pub since: Moment,
    /// Whose data it copies, for a clone or a rewind.
    pub source: Option<MemberName>,
}

/// A job that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedJob {
    /// What it did.
    pub kind: JobKind,
    /// When it ended.
    pub at: Moment,
    /// Why it failed, if it did.
    pub error: Option<Arc<str>>,
    /// It failed because of its source, before it touched the data.
    pub trouble: Option<SourceTrouble>,
    /// Whose data it copied, for a clone or a rewind.
    pub source: Option<MemberName>,
}

/// What keeps another server from being the source of a rewind now. Nothing here is changed by such an attempt, and
/// the next one may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceTrouble {
    /// It could not be asked.
    Silent,
    /// It has not written its first checkpoint since its promotion, or lacks WAL that is here and may still come.
    NotReady,
}

/// What takes long enough not to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobKind {
    /// initdb.
    Initialize,
    /// Roles and settings of a new cluster, on its running primary.
    FinishBootstrap,
    /// pg_basebackup.
    Clone,
    /// pg_rewind.
    Rewind,
    /// From the start of the postmaster until it lives.
    Start,
    /// A planned stop, until no process is left.
    Stop,
    /// A stop by force, until no process is left.
    StopNow,
    /// Until the instance is out of recovery.
    Promote,
    /// A checkpoint after a promotion.
    Checkpoint,
    /// The data of a bootstrap that failed is set aside.
    DiscardBootstrap,
    /// The operator's script that must allow a promotion.
    PrePromote,
    /// A look at another cluster's history; it succeeds if the local one has left that.
    CompareHistory,
    /// The leader's logical slots are copied: their files are read, then the instance stops for them.
    CopySlots,
    /// Logical slots are made, moved, and proved to be usable.
    TendSlots,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [JobKind; 14] = [
        JobKind::Initialize,
        JobKind::FinishBootstrap,
        JobKind::Clone,
        JobKind::Rewind,
        JobKind::Start,
        JobKind::Stop,
        JobKind::StopNow,
        JobKind::Promote,
        JobKind::Checkpoint,
        JobKind::DiscardBootstrap,
        JobKind::PrePromote,
        JobKind::CompareHistory,
        JobKind::CopySlots,
        JobKind::TendSlots,
    ];

    /// Whether it stops the instance.
    pub fn is_stop(self) -> bool {
        match self {
            JobKind::Stop | JobKind::StopNow | JobKind::CopySlots => true,
            JobKind::Initialize
            | JobKind::FinishBootstrap
            | JobKind::Clone
            | JobKind::Rewind
            | JobKind::Start
            | JobKind::Promote
            | JobKind::Checkpoint
            | JobKind::DiscardBootstrap
            | JobKind::PrePromote
            | JobKind::CompareHistory
            | JobKind::TendSlots => false,
        }
    }

    /// Whether it makes the data directory, or puts another in its place.
    pub fn replaces_data(self) -> bool {
        match self {
            JobKind::Initialize | JobKind::Clone | JobKind::Rewind | JobKind::DiscardBootstrap => {
                true
            }
            JobKind::FinishBootstrap
            | JobKind::Start
            | JobKind::Stop
            | JobKind::StopNow
            | JobKind::Promote
            | JobKind::Checkpoint
            | JobKind::PrePromote
            | JobKind::CompareHistory
            | JobKind::CopySlots
            | JobKind::TendSlots => false,
        }
    }

    /// Whether everything else goes on beside it, and any other job ends it: it may take minutes.
    pub fn holds_nothing_up(self) -> bool {
        matches!(self, JobKind::Checkpoint | JobKind::TendSlots)
    }

    /// The word for it in logs and scripts.
    pub fn name(self) -> &'static str {
        match self {
            JobKind::Initialize => "initialize",
            JobKind::FinishBootstrap => "finish_bootstrap",
            JobKind::Clone => "clone",
            JobKind::Rewind => "rewind",
            JobKind::Start => "start",
            JobKind::Stop => "stop",
            JobKind::StopNow => "stop_now",
            JobKind::Promote => "promote",
            JobKind::Checkpoint => "checkpoint",
            JobKind::DiscardBootstrap => "discard_bootstrap",
            JobKind::PrePromote => "pre_promote",
            JobKind::CompareHistory => "compare_history",
            JobKind::CopySlots => "copy_slots",
            JobKind::TendSlots => "tend_slots",
        }
    }
}
