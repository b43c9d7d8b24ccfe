//! Long jobs of an agent: at most one at a time, its end seen in a later look.

use std::sync::Arc;

use trunkline_agent::decide::observation::{FinishedJob, JobKind, RunningJob};
use trunkline_shared::cluster::MemberName;

use super::event::{Event, MS, NodeId, SECOND, Time};
use super::fake_postgres::{Data, Phase};
use super::network::Place;
use super::story::{Actor, tell};
use super::world::World;

impl World {
    /// Begins a job; the instance's phases end their own jobs, the others end by time.
    pub(super) fn start_job(&mut self, node: NodeId, kind: JobKind, source: Option<MemberName>) {
        let since = self.clock(node);
        let is_job_of_operators_leader = self.follows_operators_leader(node, source.as_ref());
        let agent = &mut self.node_mut(node).agent;
        agent.is_job_of_operators_leader = is_job_of_operators_leader;
        agent.job_number += 1;
        let job = agent.job_number;
        agent.job.running = Some(RunningJob {
            kind,
            since,
            source,
        });
        agent.job.finished = None;
        let takes = match kind {
            JobKind::Initialize => 2 * SECOND,
            JobKind::FinishBootstrap => 300 * MS,
            JobKind::Clone => self.plan.clone_takes,
            JobKind::Rewind => self.plan.rewind_takes,
            JobKind::Checkpoint => 200 * MS,
            JobKind::DiscardBootstrap
            | JobKind::PrePromote
            | JobKind::CompareHistory
            | JobKind::CopySlots
            | JobKind::TendSlots => 50 * MS,
            JobKind::Start => 30 * MS,
            JobKind::Stop | JobKind::StopNow | JobKind::Promote => return,
        };
        if kind == JobKind::Rewind
            && let Some(data) = &mut self.node_mut(node).postgres.data
        {
            data.is_broken = true;
        }
        let takes = self.around(takes);
        self.put_in(takes, Event::JobDone { node, job });
    }

    pub(super) fn cancel_job(&mut self, node: NodeId) {
        let kind = self
            .node(node)
            .agent
            .job
            .running
            .as_ref()
            .map(|job| job.kind);
        match kind {
            // The instance goes on with what it was told.
            Some(JobKind::Start | JobKind::Stop | JobKind::StopNow | JobKind::Promote) => {
                self.node_mut(node).agent.job.running = None;
            }
            Some(_) => self.finish_job(node, Some(self.failed.clone())),
            None => {}
        }
        self.node_mut(node).agent.job_number += 1;
    }

    /// The job in progress is over.
    pub(super) fn finish_job(&mut self, node: NodeId, error: Option<Arc<str>>) {
        let at = self.clock(node);
        let agent = &mut self.node_mut(node).agent;
        let Some(job) = agent.job.running.take() else {
            return;
        };
        agent.job_number += 1;
        tell!(
            self,
            Actor::Agent(node),
            "job {} ends{}",
            job.kind.name(),
            if error.is_some() {
                " with an error"
            } else {
                ""
            }
        );
        let agent = &mut self.node_mut(node).agent;
        agent.job.finished = Some(FinishedJob {
            kind: job.kind,
            at,
            error,
            trouble: None,
            source: job.source,
        });
        self.wake(node);
    }

    /// A phase of the instance is over: the job that waited for it ends with it.
    pub(super) fn finish_job_of(&mut self, node: NodeId, kind: JobKind, failed: bool) {
        let agent = &self.node(node).agent;
        if !agent.is_alive {
            return;
        }
        if agent
            .job
            .running
            .as_ref()
            .is_some_and(|job| job.kind == kind)
        {
            let error = failed.then(|| self.failed.clone());
            self.finish_job(node, error);
        }
    }

    pub(super) fn on_job_done(&mut self, event: Event, node: NodeId, job: u32) -> bool {
        let agent = &self.node(node).agent;
        if !agent.is_alive || agent.job_number != job {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        let Some(running) = self.node(node).agent.job.running.clone() else {
            return false;
        };
        let troubles = self.node(node).troubles;
        let now = self.now;
        let mut trouble = None;
        let done = match running.kind {
            JobKind::Initialize => troubles.initdb_fails <= now && self.initialize(node),
            JobKind::Clone => {
                troubles.clone_fails <= now && self.clone_from(node, running.source.as_ref())
            }
            JobKind::Rewind if running.source.is_none() => {
                let ended = self.rewind_from_remote(node);
                trouble = ended.err().flatten();
                ended.is_ok()
            }
            JobKind::Rewind => {
                troubles.rewind_fails <= now && self.rewind_from(node, running.source.as_ref())
            }
            JobKind::Checkpoint => self.checkpoint(node),
            JobKind::FinishBootstrap => {
                let is_primary = self.node(node).postgres.phase == Phase::Primary;
                // A script of the operator's that fails, at a time of its own.
                let fails = troubles.initdb_fails.max(troubles.clone_fails);
                fails.max(troubles.rewind_fails) <= now && is_primary
            }
            JobKind::PrePromote => troubles.start_fails <= now,
            // Whether the silent remote has gone another way is a matter of luck.
            JobKind::CompareHistory => self.rng.u8(..3) == 0,
            JobKind::CopySlots => self.copy_logical_slots(node, running.source.as_ref()),
            JobKind::TendSlots => self.tend_logical_slots(node),
            JobKind::DiscardBootstrap => self.discard_bootstrap(node),
            JobKind::Start => troubles.start_fails <= now && self.postmaster_starts(node),
            JobKind::Stop | JobKind::StopNow | JobKind::Promote => return false,
        };
        let error = (!done).then(|| self.failed.clone());
        self.finish_job(node, error);
        if let Some(finished) = &mut self.node_mut(node).agent.job.finished {
            finished.trouble = trouble;
        }
        true
    }

    /// An agent that starts beside an interrupted rewind shows it as failed.
    pub(super) fn show_interrupted_rewind(&mut self, node: NodeId) {
        let data = self.node(node).postgres.data.as_ref();
        if !data.is_some_and(|data| data.is_broken) {
            return;
        }
        let at = self.clock(node);
        let error = Some(self.failed.clone());
        self.node_mut(node).agent.job.finished = Some(FinishedJob {
            kind: JobKind::Rewind,
            at,
            error,
            trouble: None,
            source: None,
        });
    }

    fn initialize(&mut self, node: NodeId) -> bool {
        if self.node(node).postgres.data.is_some() {
            return false;
        }
        let system_id = self.rng.u64(1..1 << 62);
        let root = self.branches.root();
        self.node_mut(node).postgres.data = Some(Data {
            is_unfinished: true,
            ..Data::new(system_id, root)
        });
        true
    }

    fn discard_bootstrap(&mut self, node: NodeId) -> bool {
        let postgres = &mut self.node_mut(node).postgres;
        let is_unfinished = postgres.data.as_ref().is_some_and(|d| d.is_unfinished);
        if postgres.is_alive() || !is_unfinished {
            return false;
        }
        postgres.data = None;
        true
    }

    /// The source of a copy, if it runs and is reached.
    pub(super) fn source(
        &self,
        node: NodeId,
        source: Option<&MemberName>,
    ) -> Option<(NodeId, Data)> {
        let id = self.id_of(source?)?;
        let there = self.node(id);
        let runs = there.is_powered
            && there.frozen_until <= self.now
            && there.postgres.hung_until <= self.now
            && matches!(there.postgres.phase, Phase::Primary | Phase::Replica { .. });
        let is_reached = self.net.connects(Place::Node(node), Place::Node(id));
        (runs && is_reached)
            .then(|| there.postgres.data.clone())
            .flatten()
            .map(|data| (id, data))
    }

    fn clone_from(&mut self, node: NodeId, source: Option<&MemberName>) -> bool {
        let Some((id, source)) = self.source(node, source) else {
            return false;
        };
        if self.node(node).postgres.is_alive() {
            return false;
        }
        self.check_replacement(node, &source);
        let postgres = &mut self.node_mut(node).postgres;
        postgres.data = Some(Data {
            was_primary: false,
            is_clean: false,
            upstream: Some(id),
            follows_remote: false,
            is_broken: false,
            crashed_at: None,
            replays_at: 0,
            config: None,
            members: Default::default(),
            store: None,
            ..source
        });
        postgres.slots = Arc::default();
        postgres.is_wal_gone = false;
        true
    }

    fn rewind_from(&mut self, node: NodeId, source: Option<&MemberName>) -> bool {
        let Some((id, source)) = self.source(node, source) else {
            return false;
        };
        if !self.is_rewind_source(id) || self.node(node).postgres.is_alive() {
            return false;
        }
        let Some(own) = self.node(node).postgres.data.clone() else {
            return false;
        };
        let parting = self
            .branches
            .parting((own.branch, own.end), (source.branch, source.end));
        if parting.is_none() || own.system_id != source.system_id {
            return false;
        }
        if !source.is_checkpointed {
            return self.rewinds_nothing(node, &source);
        }
        self.check_replacement(node, &source);
        let postgres = &mut self.node_mut(node).postgres;
        // A rewind empties them: they may stand beyond where it leads.
        postgres.slots = Arc::default();
        postgres.is_wal_gone = false;
        // The WAL of its source is copied, too, and recovery ends nowhere before the end of that.
        postgres.data = Some(Data {
            branch: source.branch,
            end: source.end,
            replayed: source.end,
            replays_at: 0,
            is_clean: false,
            was_primary: false,
            is_broken: false,
            upstream: Some(id),
            follows_remote: false,
            crashed_at: None,
            config: None,
            members: Default::default(),
            store: None,
            ..own
        });
        self.check_rewound(node, &source);
        true
    }

    /// The control file of a source without a checkpoint names its timeline of before: pg_rewind finds nothing to do,
    /// says so, and ends well.
    fn rewinds_nothing(&mut self, node: NodeId, source: &Data) -> bool {
        if let Some(data) = &mut self.node_mut(node).postgres.data {
            data.is_broken = false;
        }
        self.check_rewound(node, source);
        true
    }

    fn checkpoint(&mut self, node: NodeId) -> bool {
        let postgres = &mut self.node_mut(node).postgres;
        if postgres.phase != Phase::Primary {
            return false;
        }
        if let Some(data) = &mut postgres.data {
            data.is_checkpointed = true;
            data.redo = data.end;
            data.checkpoint = data.end;
            data.end += super::fake_postgres::CHECKPOINT_BYTES;
        }
        self.ship_to_all(node);
        true
    }

    /// How long until something of about this length is over.
    pub(super) fn soon(&mut self, most: Time) -> Time {
        self.rng.u64(MS..most.max(2 * MS))
    }
}
