//! Which situation this member is in; nothing else.

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Lsn, SystemId, Timeline, Topology};

use super::memory::Memory;
use super::observation::{DcsView, JobKind, LeaseView, Local, Observation, RunningRole};
use super::{authority_gone, candidate};

/// The situations, most dangerous first. The first that applies is the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Situation {
    /// PostgreSQL can accept writes and the right to let it is gone or ends now.
    AuthorityGone,
    /// A long job is in progress.
    JobRunning,
    /// The agent was told to end.
    ShuttingDown,
    /// The data here belongs to another cluster.
    ForeignData,
    /// Automation is off: the cluster is paused, or its configuration cannot be read and is not known.
    Maintenance,
    /// There is no data here.
    NoData,
    /// This member holds the leader lease.
    HoldingLease,
    /// The DCS was never read, or not for `retry_timeout`.
    DcsUnreachable,
    /// There is data here and the DCS knows no cluster of this scope.
    Unregistered,
    /// A leader is named by the DCS: another member, or this one, unproved.
    Following,
    /// Nobody leads.
    NoLeader,
}

impl Situation {
    /// Every situation, in order.
    pub const ALL: [Situation; 11] = [
        Situation::AuthorityGone,
        Situation::JobRunning,
        Situation::ShuttingDown,
        Situation::ForeignData,
        Situation::Maintenance,
        Situation::NoData,
        Situation::HoldingLease,
        Situation::DcsUnreachable,
        Situation::Unregistered,
        Situation::Following,
        Situation::NoLeader,
    ];

    /// The word for it in the journal and the scripts.
    pub fn word(self) -> &'static str {
        match self {
            Situation::AuthorityGone => "authority_gone",
            Situation::JobRunning => "job_running",
            Situation::ForeignData => "foreign_data",
            Situation::ShuttingDown => "shutting_down",
            Situation::Maintenance => "maintenance",
            Situation::NoData => "no_data",
            Situation::HoldingLease => "holding_lease",
            Situation::DcsUnreachable => "dcs_unreachable",
            Situation::Unregistered => "unregistered",
            Situation::Following => "following",
            Situation::NoLeader => "no_leader",
        }
    }

    /// The sentence for people.
    pub fn sentence(self) -> &'static str {
        match self {
            Situation::AuthorityGone => {
                "PostgreSQL can accept writes and the right to let it is gone or ends now."
            }
            Situation::JobRunning => "A long job is in progress.",
            Situation::ForeignData => "The data here belongs to another cluster.",
            Situation::ShuttingDown => "The agent was told to end.",
            Situation::Maintenance => "Automation is off.",
            Situation::NoData => "There is no data here.",
            Situation::HoldingLease => "This member holds the leader lease.",
            Situation::DcsUnreachable => "The DCS was never read, or not for retry_timeout.",
            Situation::Unregistered => {
                "There is data here and the DCS knows no cluster of this scope."
            }
            Situation::Following => "The DCS names a leader.",
            Situation::NoLeader => "Nobody leads.",
        }
    }

    /// The situation of this observation.
    pub fn of(seen: &Observation, _memory: &Memory) -> Situation {
        let running = seen.job.running.as_ref().map(|job| job.kind);
        if authority_gone::verdict(seen).is_some() && running != Some(JobKind::StopNow) {
            return Situation::AuthorityGone;
        }
        if running.is_some_and(|kind| !kind.holds_nothing_up()) {
            return Situation::JobRunning;
        }
        let topology = seen.topology();
        if seen.is_shutting_down {
            return Situation::ShuttingDown;
        }
        if is_foreign(seen, topology) {
            return Situation::ForeignData;
        }
        if seen.is_automation_off() {
            return Situation::Maintenance;
        }
        if seen.local == Local::Empty {
            return Situation::NoData;
        }
        if matches!(seen.lease, LeaseView::Held(_)) {
            return Situation::HoldingLease;
        }
        let Some(topology) = topology.filter(|_| seen.is_dcs_fresh()) else {
            return Situation::DcsUnreachable;
        };
        if topology.leader.is_some() {
            return Situation::Following;
        }
        match topology.initialize {
            Initialize::Absent | Initialize::Running => Situation::Unregistered,
            Initialize::Done(_) => Situation::NoLeader,
        }
    }
}

fn is_foreign(seen: &Observation, topology: Option<&Topology>) -> bool {
    match (seen.local.system_id(), topology.map(|t| t.initialize)) {
        (Some(SystemId(mine)), Some(Initialize::Done(SystemId(theirs)))) => mine != theirs,
        _ => false,
    }
}

impl Observation {
    /// The last view of the cluster, however old.
    pub fn topology(&self) -> Option<&Topology> {
        match &self.dcs {
            DcsView::Known { topology, .. } => Some(topology),
            DcsView::Unknown => None,
        }
    }

    /// Whether the view is young enough to act on: within `retry_timeout`.
    pub fn is_dcs_fresh(&self) -> bool {
        match &self.dcs {
            DcsView::Known { topology, age } => {
                *age <= topology.settings_or_default().retry_timeout
            }
            DcsView::Unknown => false,
        }
    }

    /// Whether what is known of the DCS was believed, however long ago that was: whoever copies data while the DCS is
    /// silent, or has gone back, keeps beside it whom he knew before.
    pub fn has_believed_dcs(&self) -> bool {
        self.topology().is_some() && !self.store.is_unproved
    }
}

impl Local {
    /// Whether it may accept a write now or by itself soon.
    pub fn may_accept_writes(&self) -> bool {
        match self {
            Local::Starting { as_primary, .. } => *as_primary,
            Local::Unresponsive { was_primary, .. } | Local::Orphaned { was_primary, .. } => {
                *was_primary
            }
            Local::Running(running) => match running.role {
                RunningRole::Primary { .. } => true,
                RunningRole::Replica { .. } => running.is_promoting,
            },
            Local::Unknown(_) | Local::Empty | Local::Stopped(_) => false,
        }
    }

    /// How far its WAL reaches, where that is known.
    pub fn position(&self) -> Option<Lsn> {
        match self {
            Local::Running(running) => match running.role {
                RunningRole::Primary { position, .. } => Some(position),
                RunningRole::Replica {
                    received, replayed, ..
                } => Some(received.max(replayed)),
            },
            Local::Stopped(stopped) => Some(stopped.position),
            Local::Unknown(_)
            | Local::Empty
            | Local::Starting { .. }
            | Local::Unresponsive { .. }
            | Local::Orphaned { .. } => None,
        }
    }

    /// Whether it lacks more than `maximum_lag_on_failover` of what was published, while what is kept of that beside
    /// the data for after a blackout, `kept`, does not show it: by an older copy of the DCS it would seem to lack less.
    pub fn is_behind_unrecorded(&self, topology: &Topology, kept: Lsn) -> bool {
        let limit = topology.settings_or_default().maximum_lag_on_failover;
        let lags = |own: Lsn, published| own.bytes_behind(published) > limit;
        let own = self.timeline().zip(self.position());
        own.is_some_and(|(timeline, own)| {
            // What it has beyond the newest history makes up for nothing.
            let own = candidate::shared_position(topology, timeline, own);
            lags(own, topology.status.optime) && !lags(own, kept)
        })
    }

    /// The timeline of its data, where it is known.
    pub fn timeline(&self) -> Option<Timeline> {
        match self {
            Local::Running(running) => Some(running.timeline),
            Local::Stopped(stopped) => Some(stopped.timeline),
            Local::Unknown(_)
            | Local::Empty
            | Local::Starting { .. }
            | Local::Unresponsive { .. }
            | Local::Orphaned { .. } => None,
        }
    }

    /// The system identifier of its data, where it could be read.
    pub fn system_id(&self) -> Option<SystemId> {
        match self {
            Local::Unknown(_) | Local::Empty => None,
            Local::Stopped(stopped) => Some(stopped.system_id),
            Local::Running(running) => Some(running.system_id),
            Local::Starting { system_id, .. }
            | Local::Unresponsive { system_id, .. }
            | Local::Orphaned { system_id, .. } => *system_id,
        }
    }
}
