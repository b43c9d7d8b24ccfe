//! What is done to the local instance. Long work becomes a job.

use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::timeline::{Ancestry, TimelineEnd};
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Lsn, MemberName, SystemId, Timeline};
use trunkline_shared::dcs::Revision;

use super::jobs::{Failure, Work};
use super::{ActError, Actor, is_primary};
use crate::decide::decision::{StartAs, StopMode, Upstream};
use crate::decide::observation::{JobKind, Local, Observation, RunningRole, SourceTrouble};
use crate::postgres::rewind::{LocalEnd, RewindNeed, SourceFacts, needs_rewind};
use crate::postgres::timelines::TimelineStep;
use crate::postgres::{
    self, Postgres, PostgresError, Receivers, ServerRole, StopPlan, UpstreamChange,
};

/// How long an immediate stop may take before what is left is killed.
const IMMEDIATE_LIMIT: Duration = Duration::from_millis(200);

/// Longest run of `before_stop`; the stop goes on without it.
const BEFORE_STOP_LIMIT: Duration = Duration::from_secs(30);

/// The same while routers hold every client for a change of leader: a third of what the stop and the candidate's confirmation
/// may take.
const BEFORE_HAND_OVER_LIMIT: Duration = Duration::from_millis(500);

/// Longest checkpoint after a promotion; on a busy large instance it takes minutes.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3600);

/// Longest promotion where `primary_start_timeout` sets none.
const PROMOTION_LIMIT: Duration = Duration::from_secs(300);
/// How long reading and writing the history may each hold up a promotion that is done.
const HISTORY_LIMIT: Duration = Duration::from_millis(500);

impl Actor {
    /// Starts a job. One in progress that holds nothing up is ended.
    pub(super) async fn begin(
        &mut self,
        kind: JobKind,
        source: Option<MemberName>,
        work: Work,
    ) -> Result<Revision, ActError> {
        let running = self.jobs.view().running.map(|job| job.kind);
        if running.is_some_and(JobKind::holds_nothing_up) {
            self.jobs.cancel().await;
        }
        self.jobs.start(kind, source, work)?;
        Ok(0)
    }

    pub(super) fn door(&self) -> Arc<Postgres> {
        self.postgres.clone()
    }

    pub(super) fn initialize(&mut self) -> Result<Revision, ActError> {
        self.run_dir.unbind().map_err(ActError::Fence)?;
        let door = self.door();
        let work = async move { door.initialize().await.map_err(said) };
        self.jobs.start(JobKind::Initialize, None, Box::pin(work))?;
        Ok(0)
    }

    pub(super) fn finish_bootstrap(&mut self) -> Result<Revision, ActError> {
        let door = self.door();
        let work = async move { door.finish_bootstrap().await.map_err(said) };
        self.jobs
            .start(JobKind::FinishBootstrap, None, Box::pin(work))?;
        Ok(0)
    }

    pub(super) fn discard_bootstrap(&mut self) -> Result<Revision, ActError> {
        self.run_dir.unbind().map_err(ActError::Fence)?;
        let door = self.door();
        let work = async move { door.discard_bootstrap().await.map_err(said) };
        self.jobs
            .start(JobKind::DiscardBootstrap, None, Box::pin(work))?;
        Ok(0)
    }

    /// The lease is renewed meanwhile; a script that outlives one ttl keeps the cluster without a leader.
    pub(super) async fn run_pre_promote(
        &mut self,
        seen: &Observation,
    ) -> Result<Revision, ActError> {
        let door = self.door();
        let limit = seen.settings().ttl;
        let work = async move { door.pre_promote(limit).await.map_err(said) };
        self.begin(JobKind::PrePromote, None, Box::pin(work)).await
    }

    pub(super) async fn checkpoint(&mut self) -> Result<Revision, ActError> {
        let door = self.door();
        let work = async move { door.checkpoint(CHECKPOINT_LIMIT).await.map_err(said) };
        self.begin(JobKind::Checkpoint, None, Box::pin(work)).await
    }

    pub(super) async fn start(
        &mut self,
        seen: &Observation,
        start: &StartAs,
    ) -> Result<Revision, ActError> {
        let mut ends = std::mem::take(&mut self.wal_to_cut);
        if !matches!(start, StartAs::Replica(Some(_))) {
            ends = Arc::default();
        }
        if let Some(id) = seen.local.system_id() {
            self.run_dir.bind(id)?;
        }
        let check = is_primary(start).then(|| self.may_become_writable());
        let role = match start {
            StartAs::Primary | StartAs::PrimaryClosed => ServerRole::Primary,
            StartAs::Recovering => ServerRole::Recovering,
            StartAs::Replica(None) => ServerRole::Replica(UpstreamChange::Keep),
            StartAs::Replica(Some(upstream)) => ServerRole::Replica(change(upstream)?),
        };
        let is_closed = *start == StartAs::PrimaryClosed;
        let door = self.door();
        let work = async move {
            if !ends.is_empty() {
                door.cut_wal(&ends).await.map_err(said)?;
            }
            let may_start = || check.is_none_or(|check| check.holds());
            let started = door.start_if(role, is_closed, may_start).await;
            started.map(drop).map_err(said)
        };
        self.begin(JobKind::Start, None, Box::pin(work)).await
    }

    pub(super) async fn stop(
        &mut self,
        seen: &Observation,
        mode: StopMode,
        limit: Option<Duration>,
    ) -> Result<Revision, ActError> {
        let limit = limit.unwrap_or_else(|| self.postgres.config().pg_ctl_timeout);
        let plan = |mode, is_checkpoint_first| StopPlan {
            mode,
            is_checkpoint_first,
            wait_for: None,
            limit,
        };
        let (kind, plan) = match mode {
            StopMode::Planned => (JobKind::Stop, plan(postgres::StopMode::Fast, true)),
            StopMode::HandOver => {
                let plan = StopPlan {
                    wait_for: receivers(seen),
                    ..plan(postgres::StopMode::Fast, false)
                };
                (JobKind::Stop, plan)
            }
            StopMode::Fast => (JobKind::Stop, plan(postgres::StopMode::Fast, false)),
            StopMode::Immediate => {
                let plan = StopPlan {
                    limit: IMMEDIATE_LIMIT,
                    ..plan(postgres::StopMode::Immediate, false)
                };
                (JobKind::StopNow, plan)
            }
        };
        let door = self.door();
        let work = async move {
            if kind == JobKind::Stop {
                let limit = match mode {
                    StopMode::HandOver => BEFORE_HAND_OVER_LIMIT,
                    StopMode::Planned | StopMode::Fast | StopMode::Immediate => BEFORE_STOP_LIMIT,
                };
                door.before_stop(limit).await;
            }
            let report = door.stop(&plan).await.map_err(said)?;
            tracing::info!(
                checkpoint = ?report.checkpoint,
                took = ?report.took,
                is_as_planned = report.is_as_planned,
                "PostgreSQL has stopped"
            );
            if !report.lingered.is_empty() {
                let still_ran = report.lingered.join(", ");
                tracing::warn!(
                    still_ran,
                    "PostgreSQL did not stop in time and was ended by force"
                );
            }
            Ok(())
        };
        self.begin(kind, None, Box::pin(work)).await
    }

    pub(super) async fn promote(
        &mut self,
        seen: &Observation,
        timeline: Timeline,
    ) -> Result<Revision, ActError> {
        let configured = seen.settings().primary_start_timeout;
        let limit = if configured.is_zero() {
            PROMOTION_LIMIT
        } else {
            configured
        };
        let Local::Running(running) = &seen.local else {
            return Err(ActError::NotAllowed("only a running replica is promoted"));
        };
        let step = TimelineStep {
            from: running.timeline,
            to: timeline,
        };
        let check = self.may_become_writable();
        let history = self.history_record(seen)?;
        let door = self.door();
        let work = async move {
            let (promoted, recorded) = tokio::join!(
                door.promote(step, limit, || check.holds()),
                tokio::time::timeout(HISTORY_LIMIT, history.read())
            );
            let promoted = promoted.map_err(said)?;
            tracing::info!(took = ?promoted.took, timeline = %promoted.timeline, "promoted");
            // Members follow nobody whose timeline is not in the history. It stands there before anybody hears of this
            // primary: an agent that died in between would leave it written to, and not replicated, until its lease ends.
            // Where the DCS does not answer, the leader's next look writes it.
            if let Ok(Ok(recorded)) = recorded {
                let writing = history.write(promoted.timeline, recorded);
                let _ = tokio::time::timeout(HISTORY_LIMIT, writing).await;
            }
            Ok(())
        };
        self.begin(JobKind::Promote, None, Box::pin(work)).await
    }

    pub(super) async fn follow(&mut self, upstream: &Upstream) -> Result<Revision, ActError> {
        // Whether it streams from there is seen by the next looks.
        self.postgres.follow(change(upstream)?).await?;
        Ok(0)
    }

    pub(super) async fn end_replay_conflicts(&mut self) -> Result<Revision, ActError> {
        self.postgres.end_replay_conflicts().await?;
        Ok(0)
    }

    pub(super) async fn clone_from(
        &mut self,
        seen: &Observation,
        from: &Upstream,
    ) -> Result<Revision, ActError> {
        let upstream = source(from)?;
        self.run_dir.unbind().map_err(ActError::Fence)?;
        let expected = recorded_id(seen);
        let door = self.door();
        let work = async move {
            let made = door.make_replica(Some(&upstream), expected).await;
            made.map_err(said)
        };
        let member = from.member.clone();
        self.begin(JobKind::Clone, member, Box::pin(work)).await
    }

    pub(super) async fn clone_without_leader(
        &mut self,
        seen: &Observation,
    ) -> Result<Revision, ActError> {
        self.run_dir.unbind().map_err(ActError::Fence)?;
        let expected = recorded_id(seen);
        let door = self.door();
        let work = async move { door.make_replica(None, expected).await.map_err(said) };
        self.begin(JobKind::Clone, None, Box::pin(work)).await
    }

    pub(super) async fn rewind(
        &mut self,
        seen: &Observation,
        from: &Upstream,
    ) -> Result<Revision, ActError> {
        let upstream = source(from)?;
        let mine = seen.local.system_id();
        // What leads a standby cluster is a standby, and so may be what that replicates from.
        let may_be_standby = seen.settings().standby_cluster.is_some();
        let work = rewind(self.door(), upstream, mine, may_be_standby);
        self.begin(JobKind::Rewind, from.member.clone(), Box::pin(work))
            .await
    }

    /// A gigabyte may be copied aside, for which no turn waits: the start that is decided with it does it.
    pub(super) fn cut_wal(&mut self, ends: &Arc<[TimelineEnd]>) -> Revision {
        self.wal_to_cut = Arc::clone(ends);
        0
    }

    pub(super) async fn compare_history(
        &mut self,
        seen: &Observation,
        with: &Upstream,
    ) -> Result<Revision, ActError> {
        let upstream = source(with)?;
        let Local::Running(running) = &seen.local else {
            return Err(ActError::NotAllowed("only a running replica is compared"));
        };
        let RunningRole::Replica {
            received, replayed, ..
        } = running.role
        else {
            return Err(ActError::NotAllowed("only a running replica is compared"));
        };
        let own = (running.system_id, running.timeline, received.max(replayed));
        let door = self.door();
        let work = async move {
            let facts = door.source_facts(&upstream).await.map_err(said)?;
            prove_divergence(own, &facts).map_err(Failure::from)
        };
        self.begin(JobKind::CompareHistory, None, Box::pin(work))
            .await
    }
}

/// The address to replicate from, if it is not the archive alone.
fn server(upstream: &Upstream) -> Result<Option<postgres::Upstream>, ActError> {
    let Some(address) = &upstream.address else {
        return Ok(None);
    };
    let parts = address.rsplit_once(':');
    let (host, port) = parts
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| ActError::Address(address.clone()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(Some(postgres::Upstream {
        host: host.to_owned(),
        port,
        slot: upstream.slot.as_ref().map(ToString::to_string),
    }))
}

/// The same where a server is needed to copy from.
pub(super) fn source(upstream: &Upstream) -> Result<postgres::Upstream, ActError> {
    server(upstream)?.ok_or(ActError::NotAllowed("data is copied from a server only"))
}

fn change(upstream: &Upstream) -> Result<UpstreamChange, ActError> {
    Ok(server(upstream)?.map_or(UpstreamChange::Nowhere, UpstreamChange::To))
}

/// The identity that every member's data must have.
fn recorded_id(seen: &Observation) -> Option<SystemId> {
    match seen.topology().map(|t| t.initialize) {
        Some(Initialize::Done(id)) => Some(id),
        Some(Initialize::Running | Initialize::Absent) | None => None,
    }
}

/// The receivers that a stop for a successor waits for: the successor alone; where the agent ends and will not start
/// PostgreSQL again, or where it only restarts, everybody who streams, for any of them may lead next when the successor
/// does not, or PostgreSQL does not start.
fn receivers(seen: &Observation) -> Option<Receivers> {
    let record = seen.topology()?.switchover.as_ref()?;
    if record.from != seen.me.name {
        return None;
    }
    let mut receivers = Receivers {
        successor: (!record.is_restart()).then(|| record.to.to_string()),
        others: Vec::new(),
        is_taken_back: !seen.is_shutting_down && !record.is_restart(),
    };
    if let Local::Running(running) = &seen.local
        && (seen.is_shutting_down || record.is_restart())
    {
        let senders = running.commits.senders.iter();
        receivers.others = senders.map(|sender| sender.name.to_string()).collect();
    }
    Some(receivers)
}

async fn rewind(
    door: Arc<Postgres>,
    source: postgres::Upstream,
    mine: Option<SystemId>,
    may_be_standby: bool,
) -> Result<(), Failure> {
    let facts = door.source_facts(&source).await.map_err(|error| Failure {
        why: error.to_string(),
        trouble: Some(SourceTrouble::Silent),
    })?;
    if mine.is_some_and(|mine| mine != facts.system_id) {
        return Err(Failure::from(format!(
            "the source has the system identifier {}, not ours",
            facts.system_id
        )));
    }
    let end = door.local_end(None).await.map_err(said)?;
    if let Some(why) = not_ready(&facts, end, may_be_standby) {
        return Err(Failure {
            why: why.to_owned(),
            trouble: Some(SourceTrouble::NotReady),
        });
    }
    let failure = |why: &str| Err(Failure::from(why.to_owned()));
    match needs_rewind(end, facts.timeline, &facts.history) {
        RewindNeed::NotNeeded => Ok(()),
        RewindNeed::Needed { .. } if !door.config().use_pg_rewind => {
            failure("the data has diverged, and use_pg_rewind is off")
        }
        RewindNeed::Needed { fork } => door.rewind(&source, fork).await.map_err(said),
        // A standby only repeats what was written here.
        RewindNeed::SameTimeline if facts.is_in_recovery => Ok(()),
        RewindNeed::SameTimeline => failure("both wrote on the same timeline: only a copy is safe"),
        RewindNeed::Unknown => failure("the source's history does not mention the local timeline"),
    }
}

/// Why a server, which may become fit by itself, is no source of a rewind yet.
fn not_ready(facts: &SourceFacts, own: LocalEnd, may_be_standby: bool) -> Option<&'static str> {
    let own = match own {
        LocalEnd::StoppedPrimary { timeline, .. }
        | LocalEnd::CrashedPrimary { timeline }
        | LocalEnd::Replica { timeline, .. } => timeline,
    };
    if !facts.is_in_recovery || !may_be_standby {
        let is_fit = facts.is_rewind_source();
        return (!is_fit).then_some("the source has not written a checkpoint since its promotion");
    }
    (facts.timeline < own).then_some("the source is a standby that has not come to our timeline")
}

/// Succeeds where `own`, a system identifier, a timeline and a position, is surely not a part of the source's
/// history.
fn prove_divergence(own: (SystemId, Timeline, Lsn), facts: &SourceFacts) -> Result<(), String> {
    let (system_id, timeline, position) = own;
    if facts.system_id != system_id {
        return Err(format!(
            "the source has the system identifier {}, not ours",
            facts.system_id
        ));
    }
    if facts.is_in_recovery && facts.timeline <= timeline {
        return Err("the source is a standby and shows no newer timeline".to_owned());
    }
    match facts.history.ancestry(timeline, position, facts.timeline) {
        Ancestry::Diverged { .. } => Ok(()),
        Ancestry::Ancestor => Err("the histories agree".to_owned()),
        Ancestry::Unknown => Err("the source's history does not mention ours".to_owned()),
    }
}

pub(super) fn said(error: PostgresError) -> Failure {
    Failure::from(error.to_string())
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::timeline::TimelineHistory;

    use super::*;

    #[test]
    fn a_source_of_a_rewind_that_may_become_fit_is_waited_for() {
        let own = LocalEnd::StoppedPrimary {
            timeline: Timeline(3),
            end: Lsn(0x500_0000),
        };
        let facts = |is_in_recovery, timeline, checkpoint| SourceFacts {
            system_id: SystemId(7),
            is_in_recovery,
            timeline: Timeline(timeline),
            checkpoint_timeline: Timeline(checkpoint),
            history: TimelineHistory::default(),
        };
        let is_ready = |facts, may_be_standby| not_ready(&facts, own, may_be_standby).is_none();
        assert!(is_ready(facts(false, 4, 4), true));
        // Promoted a moment ago.
        assert!(!is_ready(facts(false, 4, 3), true));
        assert!(!is_ready(facts(false, 4, 3), false));
        // A standby will do only for a standby cluster, and has to come as far as the timeline here.
        assert!(!is_ready(facts(true, 4, 4), false));
        assert!(is_ready(facts(true, 4, 3), true));
        assert!(is_ready(facts(true, 3, 3), true));
        assert!(!is_ready(facts(true, 2, 2), true));
    }
}
