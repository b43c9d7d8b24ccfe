//! PostgreSQL as far as the agents and routers can tell: histories, positions, phases.
//!
//! A position is (branch, end). A branch is the life of one writer: it begins where it left its parent.
//! Two servers that raised the same timeline number apart are two branches, so that a fork that
//! PostgreSQL itself would not notice is seen here.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_agent::decide::observation::{
    CommitsView, Local, Running, RunningRole, SlotView, Stopped, SynchronizedSlots,
};
use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_shared::cluster::timeline::TimelineEnd;
use trunkline_shared::cluster::{
    ClusterSettings, Lsn, MemberName, Moment, SystemId, Timeline, TimelineHistory,
};

use super::event::{NodeId, Time};
use super::lost_memory::KeptStore;
use super::synchronous::Waiting;

/// One writer's history.
pub(super) struct Branch {
    pub(super) timeline: u32,
    pub(super) parent: Option<u32>,
    /// Where it left its parent.
    pub(super) fork: u64,
    /// The ends of the timelines before it.
    pub(super) history: Arc<TimelineHistory>,
    /// Acknowledged commits: when, and the position after them.
    pub(super) acknowledged: Vec<(Time, u64)>,
    /// Who was promoted onto it.
    pub(super) writer: Option<NodeId>,
}

/// All branches of a world.
#[derive(Default)]
pub(super) struct Branches(pub(super) Vec<Branch>);

impl Branches {
    pub(super) fn root(&mut self) -> u32 {
        self.push(Branch {
            timeline: 1,
            parent: None,
            fork: 0,
            history: Arc::default(),
            acknowledged: Vec::new(),
            writer: None,
        })
    }

    /// A promotion at `end` of `parent` to `timeline`; that is the parent's for a server that was started
    /// writable without a promotion.
    pub(super) fn fork(&mut self, parent: u32, end: u64, timeline: u32) -> u32 {
        let old = &self.0[parent as usize];
        let history = if timeline > old.timeline {
            let mut ends = old.history.ends().to_vec();
            ends.push(TimelineEnd {
                timeline: Timeline(old.timeline),
                end: Lsn(end),
            });
            Arc::new(TimelineHistory::new(ends))
        } else {
            old.history.clone()
        };
        self.push(Branch {
            timeline,
            parent: Some(parent),
            fork: end,
            history,
            acknowledged: Vec::new(),
            writer: None,
        })
    }

    fn push(&mut self, branch: Branch) -> u32 {
        self.0.push(branch);
        self.0.len() as u32 - 1
    }

    /// The branch that a position really lies on: after a rewind it may lie before its branch begins.
    fn place(&self, branch: u32, end: u64) -> (u32, u64) {
        let mut at = branch;
        while let Some(parent) = self.0[at as usize].parent {
            if end > self.0[at as usize].fork {
                break;
            }
            at = parent;
        }
        // A server at exactly the end of a timeline that has been left belongs to the newer one.
        if end == self.0[branch as usize].fork {
            (branch, end)
        } else {
            (at, end)
        }
    }

    pub(super) fn timeline(&self, branch: u32) -> Timeline {
        Timeline(self.0[branch as usize].timeline)
    }

    /// Up to where a history that ends at (`branch`, `end`) shares `other`; `None` if not at all.
    pub(super) fn shared_until(&self, branch: u32, end: u64, other: u32) -> Option<u64> {
        let (mut at, mut limit) = (branch, end);
        while at != other {
            limit = limit.min(self.0[at as usize].fork);
            at = self.0[at as usize].parent?;
        }
        Some(limit)
    }

    /// The branch and position where two histories part.
    pub(super) fn parting(&self, one: (u32, u64), other: (u32, u64)) -> Option<(u32, u64)> {
        let (mut at, mut limit) = one;
        loop {
            if let Some(shared) = self.shared_until(other.0, other.1, at) {
                return Some((at, limit.min(shared)));
            }
            limit = limit.min(self.0[at as usize].fork);
            at = self.0[at as usize].parent?;
        }
    }

    /// Whether PostgreSQL, which knows only timeline numbers, would stream from (`up`, `up_end`) to a
    /// standby at (`branch`, `end`).
    pub(super) fn would_stream(&self, branch: u32, end: u64, up: u32, up_end: u64) -> bool {
        let (place, end) = self.place(branch, end);
        let timeline = self.timeline(place);
        if timeline == self.timeline(up) {
            return end <= up_end;
        }
        self.0[up as usize]
            .history
            .end_of(timeline)
            .is_some_and(|Lsn(ended)| end <= ended)
    }

    /// When the last commit of `branch` up to `to` was acknowledged.
    pub(super) fn last_acknowledged(&self, branch: u32, to: u64) -> Time {
        let acknowledged = &self.0[branch as usize].acknowledged;
        let last = acknowledged.iter().rev().find(|(_, end)| *end <= to);
        last.map_or(0, |(at, _)| *at)
    }

    /// Bytes of acknowledged commits of `branch` beyond `from`, and up to `to`.
    pub(super) fn acknowledged_between(&self, branch: u32, from: u64, to: u64) -> u64 {
        let acknowledged = &self.0[branch as usize].acknowledged;
        let ends = acknowledged.iter().rev().map(|(_, end)| *end);
        let last = ends.into_iter().find(|end| *end <= to);
        last.map_or(0, |end| end.saturating_sub(from))
    }
}

/// A data directory.
#[derive(Clone, Debug)]
pub(super) struct Data {
    pub(super) system_id: u64,
    pub(super) branch: u32,
    /// Written, for a primary; received, for a replica.
    pub(super) end: u64,
    /// Replayed before `replays_at`, `end` after it.
    pub(super) replayed: u64,
    pub(super) replays_at: Time,
    pub(super) checkpoint: u64,
    pub(super) redo: u64,
    pub(super) is_clean: bool,
    /// It last ran as a primary.
    pub(super) was_primary: bool,
    pub(super) upstream: Option<NodeId>,
    /// Its upstream is the remote of a standby cluster.
    pub(super) follows_remote: bool,
    /// A rewind was interrupted: it cannot be started.
    pub(super) is_broken: bool,
    pub(super) is_checkpointed: bool,
    pub(super) crashed_at: Option<Moment>,
    /// Made for a new cluster whose identity was never recorded.
    pub(super) is_unfinished: bool,
    /// Whom commits wait for, by the file.
    pub(super) sync_names: Option<SyncNames>,
    /// The cluster's configuration, beside the data.
    pub(super) config: Option<Arc<ClusterSettings>>,
    /// Whom the agent knew, beside the data.
    pub(super) members: BTreeMap<MemberName, Arc<str>>,
    /// How far the agent saw the store, beside the data.
    pub(super) store: Option<KeptStore>,
}

impl Data {
    /// The directory that initdb makes.
    pub(super) fn new(system_id: u64, branch: u32) -> Self {
        Self {
            system_id,
            branch,
            end: FIRST_LSN,
            replayed: FIRST_LSN,
            replays_at: 0,
            checkpoint: FIRST_LSN - CHECKPOINT_BYTES,
            redo: FIRST_LSN - CHECKPOINT_BYTES,
            is_clean: true,
            was_primary: true,
            upstream: None,
            follows_remote: false,
            is_broken: false,
            is_checkpointed: true,
            crashed_at: None,
            is_unfinished: false,
            sync_names: None,
            config: None,
            members: BTreeMap::new(),
            store: None,
        }
    }

    /// What a stopped one shows: what a replica received and did not replay is none of its data.
    fn reached(&self) -> u64 {
        match self.was_primary || self.replays_at < Time::MAX {
            true => self.end,
            false => self.replayed,
        }
    }

    pub(super) fn replayed(&self, now: Time) -> u64 {
        if now >= self.replays_at {
            self.end
        } else {
            self.replayed
        }
    }
}

/// Where a new cluster's WAL begins.
pub(super) const FIRST_LSN: u64 = 0x0150_0000;
/// The length of a checkpoint record.
pub(super) const CHECKPOINT_BYTES: u64 = 120;

/// What the server processes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is no postmaster.
    Down,
    Starting {
        as_primary: bool,
    },
    Primary,
    Replica {
        promotes: bool,
    },
    Stopping {
        was_primary: bool,
        step: StopStep,
    },
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopStep {
    /// Sessions end, then a checkpoint.
    Sessions,
    /// The shutdown checkpoint is on its way to the replicas.
    Draining,
    /// By force.
    Immediate,
}

/// One node's PostgreSQL.
pub(super) struct Postgres {
    /// `None` where the directory is empty.
    pub(super) data: Option<Data>,
    pub(super) phase: Phase,
    /// Which life of the server processes this is.
    pub(super) run: u32,
    pub(super) since: Time,
    /// Backends that outlived their postmaster and go on committing.
    pub(super) has_orphans: bool,
    /// The postmaster was stopped by a signal: it does not answer until then.
    pub(super) hung_until: Time,
    /// The directory cannot be read until then.
    pub(super) unreadable_until: Time,
    pub(super) kill_pending: bool,
    /// The number of the timeline that the promotion in progress begins.
    pub(super) promotes_to: u32,
    /// As what the start in progress was told to start.
    pub(super) starts_as_primary: bool,
    /// Without access for clients.
    pub(super) starts_closed: bool,
    /// No commit was to wait when this start was decided.
    pub(super) starts_unawaited: bool,
    /// The WAL receiver streams.
    pub(super) is_streaming: bool,
    /// Its replay stands still until then.
    pub(super) replay_stalls: Time,
    /// Its upstream has removed the WAL that it needs next.
    pub(super) is_wal_gone: bool,
    pub(super) heard_at: Time,
    /// How often the server was started; and which start of its upstream the receiver is connected to.
    pub(super) starts: u32,
    pub(super) sender: u32,
    /// Which chain of looks after the WAL receiver counts.
    pub(super) receiver: u32,
    /// WAL on its way to this replica.
    pub(super) shipping: Option<u64>,
    pub(super) slots: Arc<Vec<SlotView>>,
    /// Whom consumers of `failover` slots wait for.
    pub(super) synchronized: SynchronizedSlots,
    /// When it last stopped being a primary.
    pub(super) was_primary_until: Time,
    pub(super) waiting: Waiting,
}

impl Postgres {
    pub(super) fn new(data: Option<Data>) -> Self {
        Self {
            data,
            phase: Phase::Down,
            run: 0,
            since: 0,
            has_orphans: false,
            hung_until: 0,
            unreadable_until: 0,
            kill_pending: false,
            promotes_to: 0,
            starts_as_primary: false,
            starts_closed: false,
            starts_unawaited: false,
            is_streaming: false,
            replay_stalls: 0,
            is_wal_gone: false,
            heard_at: 0,
            starts: 0,
            sender: 0,
            receiver: 0,
            shipping: None,
            slots: Arc::default(),
            synchronized: SynchronizedSlots::Unset,
            was_primary_until: 0,
            waiting: Waiting::default(),
        }
    }

    /// A replica that has streamed since it started, or has replayed all that lies there. Until then it knows of no more
    /// than it has replayed.
    pub(super) fn has_read_all(&self, now: Time) -> bool {
        let has_streamed = self.is_streaming || self.heard_at > self.since;
        let data = self.data.as_ref();
        has_streamed || data.is_none_or(|data| now >= data.replays_at)
    }

    fn known_end(&self, data: &Data, now: Time) -> Lsn {
        Lsn(match self.has_read_all(now) {
            true => data.end,
            false => data.replayed(now),
        })
    }

    /// Whether some process of it can commit.
    pub(super) fn can_commit(&self) -> bool {
        match self.phase {
            Phase::Primary
            | Phase::Stopping {
                was_primary: true,
                step: StopStep::Sessions | StopStep::Immediate,
            } => true,
            Phase::Down => self.has_orphans,
            Phase::Starting { .. } | Phase::Replica { .. } | Phase::Stopping { .. } => false,
        }
    }

    /// Whether any server process lives.
    pub(super) fn is_alive(&self) -> bool {
        self.phase != Phase::Down || self.has_orphans
    }

    /// What its agent sees. `clock` turns true time into the node's.
    pub(super) fn local(
        &self,
        now: Time,
        seen_running: bool,
        branches: &Branches,
        clock: impl Fn(Time) -> Moment,
        name: impl Fn(NodeId) -> Arc<str>,
    ) -> Local {
        // A live server is seen whatever has become of its directory; only its identity may be unknown.
        let is_unreadable = now < self.unreadable_until;
        if is_unreadable && self.phase == Phase::Down && !self.has_orphans {
            return Local::Unknown(name(UNREADABLE));
        }
        let Some(data) = &self.data else {
            return Local::Empty;
        };
        let system_id = SystemId(data.system_id);
        let if_readable = (!is_unreadable).then_some(system_id);
        let unresponsive = |since, was_primary| Local::Unresponsive {
            since: clock(since),
            was_primary,
            system_id: if_readable,
        };
        let starting = |as_primary| Local::Starting {
            since: clock(self.since),
            as_primary,
            system_id: if_readable,
        };
        let running = |role| {
            Local::Running(Running {
                system_id,
                timeline: branches.timeline(data.branch),
                role,
                is_wal_gone: self.is_wal_gone && !self.is_streaming,
                has_read_all: now >= data.replays_at,
                is_promoting: self.phase == (Phase::Replica { promotes: true }),
                slots: self.slots.clone(),
                has_pending_restart: false,
                major: 15,
                synchronized: SynchronizedSlots::NotOurs,
                commits: CommitsView::default(),
            })
        };
        // Who hangs carries a promotion out as soon as it goes on.
        let is_primary = [Phase::Primary, Phase::Replica { promotes: true }].contains(&self.phase);
        match self.phase {
            Phase::Down if self.has_orphans => Local::Orphaned {
                was_primary: data.was_primary || is_unreadable,
                system_id: if_readable,
            },
            Phase::Down => Local::Stopped(self.stopped(data, branches)),
            Phase::Starting { as_primary } => starting(as_primary),
            Phase::Stopping { was_primary, .. } if seen_running => {
                unresponsive(self.since, was_primary)
            }
            Phase::Stopping { was_primary, .. } => starting(was_primary),
            Phase::Primary | Phase::Replica { .. } if now < self.hung_until => {
                if seen_running {
                    unresponsive(self.since, is_primary)
                } else {
                    starting(is_primary)
                }
            }
            Phase::Primary => running(RunningRole::Primary {
                position: Lsn(data.end),
                is_checkpointed: data.is_checkpointed,
            }),
            Phase::Replica { .. } => running(RunningRole::Replica {
                received: self.known_end(data, now),
                replayed: Lsn(data.replayed(now)),
                upstream: if data.follows_remote {
                    Some(super::standby::REMOTE.into())
                } else {
                    data.upstream.map(name)
                },
                is_streaming: self.is_streaming
                    || data.follows_remote && super::standby::remote_sends(now),
            }),
        }
    }

    fn stopped(&self, data: &Data, branches: &Branches) -> Stopped {
        Stopped {
            system_id: SystemId(data.system_id),
            timeline: branches.timeline(data.branch),
            checkpoint: Lsn(data.checkpoint),
            redo: Lsn(data.redo),
            position: Lsn(data.reached()),
            is_clean: data.is_clean,
            was_primary: data.was_primary,
            crashed_at: data.crashed_at,
            is_half_rewound: data.is_broken,
        }
    }
}

/// Stands for the text about an unreadable directory where names are looked up.
pub(super) const UNREADABLE: NodeId = NodeId::MAX;
