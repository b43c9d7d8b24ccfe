//! Where writes and reads may go now: one immutable value, replaced as a whole. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use trunkline_shared::cluster::router::HoldStage;
use trunkline_shared::cluster::{
    LeaderEpoch, MemberName, MemberRole, MemberState, Moment, Timeline,
};

/// One lane: the sessions that go to one member for one purpose. When the member stops being fit for that
/// purpose the lane is cut, and its number never comes back; that is the stamp every server connection
/// carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneId(pub u64);

/// Where writes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// To this member.
    Known {
        /// The confirmed leader.
        member: MemberName,
        /// Its epoch.
        epoch: LeaderEpoch,
        /// Host and port as its record names them.
        address: Arc<str>,
        /// The lane of its sessions.
        lane: LaneId,
    },
    /// A member holds the key and has not yet said that it accepts writes: hold.
    Promoting {
        /// The holder of the key.
        member: MemberName,
        /// Its epoch.
        epoch: LeaderEpoch,
    },
    /// Nowhere: hold.
    None {
        /// Why.
        why: NoWriter,
    },
}

/// A planned change of leader holds what is new (`trunkline/switchover`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Which change.
    pub switchover: u64,
    /// The epoch that it ends.
    pub epoch: LeaderEpoch,
    /// The revision of its announcement.
    pub revision: i64,
    /// How much is held.
    pub stage: HoldStage,
    /// When this router began to hold for it.
    pub since: Moment,
}

/// The member that a planned change goes to: its servers are opened while the former leader still leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub member: MemberName,
    /// Host and port as its record names them.
    pub address: Arc<str>,
    /// The epoch that the change ends.
    pub epoch: LeaderEpoch,
    /// The lane of its sessions once it leads. Nobody is sent there before.
    pub lane: LaneId,
}

/// What a client wants to be dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// A server for as long as it stays.
    Session,
    /// Something that may open a transaction block.
    Transaction,
    /// A statement that ends by itself.
    Statement,
}

impl Hold {
    /// Whether this has to wait.
    pub fn holds(&self, wants: Wants) -> bool {
        match (self.stage, wants) {
            (HoldStage::Transactions, Wants::Statement) => false,
            (HoldStage::Transactions, Wants::Session | Wants::Transaction)
            | (HoldStage::All, _) => true,
        }
    }
}

/// Why there is no writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoWriter {
    /// The DCS has not answered since the router started.
    NothingKnownYet,
    /// Nobody holds the leader key.
    NoLeaderKey,
    /// The DCS has been silent and the last leader does not vouch for itself.
    DcsSilent {
        /// The last leader.
        last: MemberName,
    },
    /// The last leader says that it does not accept writes any more.
    LeaderStepsDown {
        /// Who.
        last: MemberName,
    },
    /// The key shows an older epoch than one already seen: the DCS went back.
    EpochWentBack {
        /// What the key shows.
        shown: LeaderEpoch,
        /// What was seen before.
        seen: LeaderEpoch,
    },
    /// The whole cluster follows another one; writes never come here.
    StandbyCluster {
        /// Its leader.
        leader: MemberName,
    },
}

impl fmt::Display for NoWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoWriter::NothingKnownYet => f.write_str("the DCS has not answered yet"),
            NoWriter::NoLeaderKey => f.write_str("no member holds the leader key"),
            NoWriter::DcsSilent { last } => write!(
                f,
                "the DCS does not answer and the last leader {last} does not vouch for itself"
            ),
            NoWriter::LeaderStepsDown { last } => {
                write!(f, "the last leader {last} does not accept writes any more")
            }
            NoWriter::EpochWentBack { shown, seen } => write!(
                f,
                "the DCS shows epoch {shown}, older than epoch {seen} seen before; see trunkline accept-dcs"
            ),
            NoWriter::StandbyCluster { leader } => {
                write!(f, "this is a standby cluster, led by {leader}")
            }
        }
    }
}

/// Why a member gets no new read sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is not in recovery (or has no data).
    Role(MemberRole),
    /// Its PostgreSQL does not run.
    State(MemberState),
    /// It does not stream.
    NotStreaming,
    /// It is on another timeline than the leader.
    Timeline {
        /// Its own.
        own: Timeline,
        /// The leader's.
        current: Timeline,
    },
    /// It lags by more than `replicas.max_lag`.
    Lag {
        /// By how much, bytes.
        lag_bytes: u64,
    },
    /// Its tag `noloadbalance` is set.
    NoLoadBalance,
    /// It does not answer the router.
    NotAnswering,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Role(MemberRole::Primary) => f.write_str("is the primary"),
            Unfit::Role(MemberRole::Promoted) => f.write_str("is being promoted"),
            Unfit::Role(MemberRole::Uninitialized) => f.write_str("has no data yet"),
            Unfit::Role(MemberRole::Demoted) => f.write_str("was demoted and is not a replica yet"),
            Unfit::Role(MemberRole::Replica | MemberRole::StandbyLeader) => {
                f.write_str("is not in recovery")
            }
            Unfit::State(state) => write!(f, "is {}", state_word(*state)),
            Unfit::NotStreaming => f.write_str("does not stream from its upstream"),
            Unfit::Timeline { own, current } => {
                write!(f, "is on timeline {} instead of {}", own.0, current.0)
            }
            Unfit::Lag { lag_bytes } => write!(f, "lags by {lag_bytes} bytes"),
            Unfit::NoLoadBalance => f.write_str("is tagged noloadbalance"),
            Unfit::NotAnswering => f.write_str("does not answer"),
        }
    }
}

fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::InitializingNewCluster => "initializing a new cluster",
        MemberState::InitdbFailed => "without data: initdb failed",
        MemberState::RunningCustomBootstrap => "running a custom bootstrap",
        MemberState::CustomBootstrapFailed => "without data: the custom bootstrap failed",
        MemberState::CreatingReplica => "being cloned",
        MemberState::Running => "running",
        MemberState::Starting => "starting",
        MemberState::StartingAfterCustomBootstrap => "starting after a custom bootstrap",
        MemberState::StartFailed => "down: it could not be started",
        MemberState::Restarting => "restarting",
        MemberState::RestartFailed => "down: it could not be restarted",
        MemberState::Stopping => "stopping",
        MemberState::Stopped => "stopped",
        MemberState::StopFailed => "in an unknown state: it could not be stopped",
        MemberState::Crashed => "crashed",
    }
}

/// One member as a place for reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Host and port as its record names them.
    pub address: Arc<str>,
    /// The lane of its read sessions.
    pub lane: LaneId,
    /// In recovery, by its record.
    pub is_in_recovery: bool,
    /// Not just being made or made anew, by its record.
    pub has_data: bool,
    /// `None` while it is fit to serve.
    pub unfit: Option<Unfit>,
}

/// The last member that was confirmed, or announced itself, as leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastLeader {
    /// Who.
    pub member: MemberName,
    /// Its epoch.
    pub epoch: LeaderEpoch,
    /// Its PostgreSQL.
    pub address: Arc<str>,
    /// Its agent's REST API.
    pub api_url: Arc<str>,
    /// Its timeline as last seen.
    pub timeline: Option<Timeline>,
    /// Written by Trunkline's agent, not by Patroni.
    pub is_trunkline: bool,
    /// The DCS confirmed it under this epoch, and has not said otherwise since.
    pub is_confirmed: bool,
    /// Its lane, as long as that was not cut.
    pub lane: Option<LaneId>,
}

/// Why the last leader is asked to vouch for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Its key is gone.
    KeyGone,
    /// The view of the DCS is old.
    ViewOld,
}

/// A question to the last leader's agent, put again and again while it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whom to ask.
    pub member: MemberName,
    /// For which epoch an answer counts.
    pub epoch: LeaderEpoch,
    /// Where.
    pub api_url: Arc<str>,
    /// Whether it is Trunkline's agent (`GET /patroni`) or Patroni (`GET /primary`).
    pub is_trunkline: bool,
}

/// The routing table of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingTable {
    /// The DCS revision behind it.
    pub revision: i64,
    /// Its generation.
    pub generation: u64,
    /// The largest epoch ever seen; a smaller one is never believed.
    pub highest_epoch: Option<LeaderEpoch>,
    /// Where writes go.
    pub writer: Writer,
    /// Whether a planned change of leader holds what is new on the writer's lane.
    pub hold: Option<Hold>,
    /// A planned change that was held for until its time was over: nobody is held for it again.
    pub outlived: Option<(u64, LeaderEpoch)>,
    /// Who is to lead after a planned change, until it does.
    pub candidate: Option<Candidate>,
    /// The last leader.
    pub last: Option<LastLeader>,
    /// Why it is doubted, and since when.
    pub doubt: Option<(Doubt, Moment)>,
    /// Every registered member as a place for reads.
    pub readers: BTreeMap<MemberName, Reader>,
    /// When the confirmed leader last changed.
    pub changed_at: Option<Moment>,
    /// The number the next lane gets.
    pub next_lane: u64,
    /// When the table changes by itself, if nothing happens before.
    pub look_again_at: Option<Moment>,
    /// Whom to ask meanwhile.
    pub question: Option<Question>,
}

impl Default for RoutingTable {
    fn default() -> Self {
        Self {
            revision: 0,
            generation: 0,
            highest_epoch: None,
            writer: Writer::None {
                why: NoWriter::NothingKnownYet,
            },
            hold: None,
            outlived: None,
            candidate: None,
            last: None,
            doubt: None,
            readers: BTreeMap::new(),
            changed_at: None,
            next_lane: 1,
            look_again_at: None,
            question: None,
        }
    }
}

impl RoutingTable {
    /// The table of a router that starts and remembers this leader. Its epoch counts as seen, so that the
    /// epoch does not go back over a restart.
    pub fn remembering(last: Option<LastLeader>) -> Self {
        Self {
            highest_epoch: last.as_ref().map(|l| l.epoch),
            last,
            ..Self::default()
        }
    }

    /// The lanes that servers may be on.
    pub fn lanes(&self) -> impl Iterator<Item = LaneId> + '_ {
        let writer = self.last.as_ref().and_then(|l| l.lane);
        let next = self.candidate.as_ref().map(|c| c.lane);
        let writers = writer.into_iter().chain(next);
        writers.chain(self.readers.values().map(|r| r.lane))
    }

    /// Whether writes go to this lane.
    pub fn is_writer(&self, lane: LaneId) -> bool {
        matches!(self.writer, Writer::Known { lane: own, .. } if own == lane)
    }

    /// Whether new write sessions are served now.
    pub fn has_writer(&self) -> bool {
        matches!(self.writer, Writer::Known { .. })
    }

    /// Whether any read session can be served now.
    pub fn has_reader(&self) -> bool {
        self.readers.values().any(|r| r.unfit.is_none())
    }

    /// Whether anything at all is known of the cluster.
    pub fn is_informed(&self) -> bool {
        self.revision > 0 || self.last.is_some()
    }
}
