//! Performs a decision's actions in their order; judges nothing. The first failure ends the turn: the next
//! look shows what is so.
#![deny(clippy::wildcard_enum_match_arm)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{RwLock, watch};
use tokio::time::timeout;
use trunkline_shared::cluster::timeline::TimelineEnd;
use trunkline_shared::cluster::{Lsn, MemberName, Moment};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::{Refresh, View};
use trunkline_shared::dcs::{Dcs, DcsError, Revision};
use trunkline_shared::service::clock;

use crate::config::WatchdogConfig;
use crate::decide::decision::{Action, BrokenRule, Decision, Lapse, StartAs};
use crate::decide::observation::{LeaseView, Me, Observation};
use crate::decide::{PROMOTE_NEEDS, STOP_AHEAD};
use crate::fence::FenceHandle;
use crate::fence::known::Known;
use crate::fence::run_dir::{RunDir, RunDirError};
use crate::lease::arming::Arming;
use crate::lease::{HandOver, LeaseError, LeaseHandle, LeaseStatus};
use crate::postgres::hooks::Callbacks;
use crate::postgres::{Postgres, PostgresError};
use crate::watchdog::{self, Teller};

mod failsafe;
mod history;
mod instance;
pub mod jobs;
mod records;
pub mod recreate;
mod slots;
mod sync;

use jobs::{JobRuns, Jobs};

/// Longest time that one action may hold the loop up; what was begun goes on and shows in a later look.
pub const ACTION_LIMIT: Duration = Duration::from_secs(2);

/// Longest wait for the data directory to be looked at for the fence.
const TELL_LIMIT: Duration = Duration::from_millis(200);

/// Longest wait for an armed fence to open a watchdog that is required: it looks every 200 ms.
const WATCHDOG_LIMIT: Duration = Duration::from_millis(600);

/// Longest wait for a write of this agent to come back by its own watch, before the next look.
const SHOWN_LIMIT: Duration = Duration::from_millis(500);

/// How long the watch is waited for to show what was written: it takes some milliseconds.
const WATCH_PATIENCE: Duration = Duration::from_millis(150);

/// Why an action was not performed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The decision broke a rule that every decision keeps. A defect; the turn is skipped.
    #[error("the decision was refused because it breaks the rule {0:?}; please report this defect")]
    Broken(BrokenRule),
    /// The lease task could not, or the store said no.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The store failed.
    #[error(transparent)]
    Dcs(#[from] DcsError),
    /// A condition of a write did not hold: somebody else wrote first, or this member leads no more.
    #[error("the DCS refused to write {0}: what was seen has changed")]
    Changed(&'static str),
    /// PostgreSQL could not.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The fence's deadline, or another file beside it, could not be written.
    #[error("the run directory could not be written: {0}")]
    Fence(std::io::Error),
    /// The fence could not open the watchdog that is required.
    #[error("the watchdog is required and not ready: {0}")]
    Watchdog(String),
    /// The run directory belongs to another instance.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Another long job is in progress.
    #[error(transparent)]
    Job(#[from] JobRuns),
    /// What must hold in the same breath does not hold.
    #[error("refused: {0}")]
    NotAllowed(&'static str),
    /// A member's address cannot be used.
    #[error("the address {0} of a member is not host:port")]
    Address(Arc<str>),
    /// It goes on beyond the time the loop may wait.
    #[error("{0} was not done within {1:?}; it may still be")]
    Slow(&'static str, Duration),
}

/// Everything that is acted on.
pub struct Actor {
    /// This member.
    pub me: Arc<Me>,
    /// The local instance.
    pub postgres: Arc<Postgres>,
    /// The lease task.
    pub lease: LeaseHandle,
    /// What it publishes.
    pub lease_status: watch::Receiver<LeaseStatus>,
    /// The store.
    pub dcs: Arc<dyn Dcs>,
    /// The cluster's keys.
    pub keys: Keys,
    /// The cluster as this agent follows it.
    pub cluster: watch::Receiver<Arc<View>>,
    /// Has it read anew.
    pub refresh: Refresh,
    /// Set once nobody speaks against the store.
    pub is_store_trusted: Arc<AtomicBool>,
    /// The fence.
    pub fence: Arc<RwLock<FenceHandle>>,
    /// Its deadline.
    pub arming: Arc<Arming>,
    /// The long jobs.
    pub jobs: Jobs,
    /// The folder of lease, deadline and fence, tied to one instance.
    pub run_dir: RunDir,
    /// What the fence is told of the watchdog.
    pub watchdog: Teller,
    /// The operator's scripts.
    pub callbacks: Callbacks,
    /// What the start that follows takes away first.
    pub wal_to_cut: Arc<[TimelineEnd]>,
    /// The `config` of a new cluster.
    pub bootstrap_config: String,
}

impl Actor {
    /// Performs all actions of a decision, or none if it broke a rule.
    pub async fn perform(
        &mut self,
        seen: &Observation,
        decision: &Decision,
    ) -> Result<(), ActError> {
        if let Some(rule) = decision.broken_rule(seen, self.lease_left()) {
            return Err(ActError::Broken(rule));
        }
        let no_fence = Action::LetLeaseLapse(Lapse::NoFence);
        if !decision.actions.contains(&no_fence) {
            self.lease.is_without_fence(false);
        }
        for action in &decision.actions {
            let limit = self.limit(seen);
            let limit = decision.act_limit.map_or(limit, |most| most.min(limit));
            let name = action.word();
            let shown = timeout(limit, self.act(seen, action, decision.stop_limit))
                .await
                .map_err(|_| ActError::Slow(name, limit))??;
            self.wait_shown(shown).await;
        }
        Ok(())
    }

    /// No action is waited for into the time in which PostgreSQL must be stopped.
    fn limit(&self, seen: &Observation) -> Duration {
        // The start of a primary may be among the actions before it.
        let may_write = seen.local.may_accept_writes() || self.arming.is_armed();
        match self.stands_until() {
            Some(deadline) if may_write => {
                let left = clock::now().until(deadline.before(STOP_AHEAD));
                // Stopping itself must not be starved by a deadline that has come.
                left.clamp(Duration::from_millis(50), ACTION_LIMIT)
            }
            Some(_) | None => ACTION_LIMIT,
        }
    }

    fn deadline(&self) -> Option<Moment> {
        match self.lease_status.borrow().view {
            LeaseView::Held(held) => Some(held.deadline),
            LeaseView::NotHeld | LeaseView::Lost => None,
        }
    }

    /// Until when PostgreSQL may live: a restarted agent holds no lease, and the deadline it found armed
    /// stands all the same.
    pub(crate) fn stands_until(&self) -> Option<Moment> {
        let armed = self.arming.deadline();
        match (self.deadline(), armed) {
            (Some(held), Some(armed)) => Some(held.min(armed)),
            (held, armed) => held.or(armed),
        }
    }

    fn lease_left(&self) -> Option<Duration> {
        self.deadline().map(|deadline| clock::now().until(deadline))
    }

    /// The next look is to show what was written.
    async fn wait_shown(&mut self, revision: Revision) {
        let shown = self
            .cluster
            .wait_for(|view| view.topology.revision >= revision);
        if timeout(WATCH_PATIENCE, shown).await.is_err() {
            // The watch may hang on a member of the DCS that is gone; a read goes to another. Should that not come, the
            // look shows the older state and the store refuses what does not fit.
            let left = SHOWN_LIMIT.saturating_sub(WATCH_PATIENCE);
            let _ = timeout(left, self.refresh.now()).await;
        }
    }

    /// The revision from which on the cluster shows the action's effect, 0 if it has none there.
    async fn act(
        &mut self,
        seen: &Observation,
        action: &Action,
        stop_limit: Option<Duration>,
    ) -> Result<Revision, ActError> {
        Ok(match action {
            Action::AcquireLeader => self.acquire(seen).await?,
            Action::ConfirmLeader => self.confirm(seen).await?,
            Action::ReassertLeader => self.lease.reassert().await?,
            Action::ReleaseLeader { position } => self.release(seen, *position).await?,
            Action::HandOver {
                to,
                lease,
                record_revision,
                position,
            } => {
                let key = (*lease, *record_revision);
                self.hand_over(seen, to, key, *position).await?
            }
            Action::ClaimBootstrap => self.claim_bootstrap(seen).await?,
            Action::RecordSystemId(id) => self.record_system_id(seen, *id).await?,
            Action::PublishStatus(status) => self.publish_status(seen, status).await?,
            Action::RecordHistory => self.record_history(seen).await?,
            Action::RecordChange(change) => self.record_change(seen, change).await?,
            Action::DropFailoverRequest { revision } => self.drop_failover(*revision).await?,
            Action::RequestSwitchover(to) => self.request_switchover(seen, to).await?,
            Action::AnnounceSwitchover(record) => self.announce_switchover(seen, record).await?,
            Action::ClearSwitchover => self.clear_switchover(seen).await?,
            Action::WriteDisarmed => self.write_disarmed(seen).await?,
            Action::RemoveDisarmed => self.remove_disarmed(seen).await?,
            Action::RemoveDisarmedOf(name, at) => self.remove_disarmed_of(name, *at).await?,
            Action::ArmFence => self.arm(seen).await?,
            Action::DisarmFence => self.disarm(seen)?,
            Action::Initialize => self.initialize()?,
            Action::FinishBootstrap => self.finish_bootstrap()?,
            Action::Start(start) => self.start(seen, start).await?,
            Action::Stop(mode) => self.stop(seen, *mode, stop_limit).await?,
            Action::ClaimTimeline(claimed) => self.claim_timeline(seen, *claimed).await?,
            Action::Promote(timeline) => self.promote(seen, *timeline).await?,
            Action::Checkpoint => self.checkpoint().await?,
            Action::CutWal(ends) => self.cut_wal(ends),
            Action::Follow(upstream) => self.follow(upstream).await?,
            Action::EndReplayConflicts => self.end_replay_conflicts().await?,
            Action::Clone(upstream) => self.clone_from(seen, upstream).await?,
            Action::Rewind(upstream) => self.rewind(seen, upstream).await?,
            Action::CancelJob => self.cancel_job().await,
            Action::CreateSlots(names) => self.create_slots(names).await?,
            Action::DropSlots(names) => self.drop_slots(names).await?,
            Action::AdvanceSlots(slots) => self.advance_slots(slots).await?,
            Action::CloneWithoutLeader => self.clone_without_leader(seen).await?,
            Action::CallBack(callback, role) => self.call_back(callback.word(), role.word()),
            Action::RunPrePromote => self.run_pre_promote(seen).await?,
            Action::CompareHistory(with) => self.compare_history(seen, with).await?,
            Action::CopyLogicalSlots { from, names } => self.copy_slots(from, names).await?,
            Action::TendLogicalSlots(care) => self.tend_logical_slots(care)?,
            Action::SetSynchronizedSlots(slots) => self.set_synchronized_slots(slots).await?,
            Action::DiscardBootstrap => self.discard_bootstrap()?,
            Action::WriteSync(sync) => self.write_sync(seen, sync).await?,
            Action::RenewSync(sync) => self.renew_sync(sync).await?,
            Action::DeleteSync { revision } => self.delete_sync(seen, *revision).await?,
            Action::SetSyncNames(names) => self.set_sync_names(seen, Some(names)).await?,
            Action::ClearSyncNames => self.set_sync_names(seen, None).await?,
            Action::OpenClientAccess => self.open_client_access()?,
            Action::PublishFailsafe(list) => self.publish_failsafe(seen, list).await?,
            Action::SwitchFailsafeOn => self.switch_failsafe_on(seen).await?,
            Action::LetLeaseLapse(lapse) => self.let_lease_lapse(seen, *lapse),
            Action::RestoreConfig => self.restore_config(seen).await?,
            Action::RecreateKeys { .. } | Action::DoubtStore { .. } | Action::TrustStore => {
                self.judge_store(seen, action).await?
            }
        })
    }

    async fn hand_over(
        &self,
        seen: &Observation,
        to: &MemberName,
        (lease, record_revision): (i64, i64),
        position: Lsn,
    ) -> Result<Revision, ActError> {
        let order = HandOver {
            to: to.clone(),
            lease,
            record_revision,
            status: records::status(seen, position),
        };
        Ok(self.lease.hand_over(order).await?)
    }

    fn call_back(&self, callback: &'static str, role: &'static str) -> Revision {
        self.callbacks.call(callback, role);
        0
    }

    async fn cancel_job(&mut self) -> Revision {
        self.jobs.cancel().await;
        0
    }

    fn let_lease_lapse(&self, seen: &Observation, lapse: Lapse) -> Revision {
        match lapse {
            Lapse::KillHangs => self.lease.let_lapse(seen.settings().ttl),
            Lapse::NoFence => self.lease.is_without_fence(true),
        }
        0
    }

    async fn acquire(&self, seen: &Observation) -> Result<Revision, ActError> {
        let outcome = self.lease.acquire(records::as_seen(seen)).await;
        if matches!(outcome, Err(LeaseError::Refused { .. })) {
            // What was seen is not so, and the watch has not said it: its etcd member may lag behind.
            let _ = timeout(SHOWN_LIMIT, self.refresh.now()).await;
        }
        Ok(outcome?)
    }

    async fn confirm(&self, seen: &Observation) -> Result<Revision, ActError> {
        let leader = seen.topology().and_then(|t| t.leader.as_ref());
        let lease = leader
            .map(|leader| leader.lease)
            .filter(|lease| *lease != 0);
        let lease = lease.ok_or(ActError::NotAllowed("the leader key hangs on no lease"))?;
        self.lease.confirm(lease).await?;
        Ok(0)
    }

    async fn release(
        &self,
        seen: &Observation,
        position: Option<Lsn>,
    ) -> Result<Revision, ActError> {
        if seen.local.may_accept_writes() {
            return Err(ActError::NotAllowed(
                "the leader key is released only with PostgreSQL dead or in recovery",
            ));
        }
        let status = position.map(|position| records::status(seen, position));
        let ends_bootstrap = records::may_be_claimed(seen);
        Ok(self.lease.release(status, ends_bootstrap).await?)
    }

    async fn arm(&mut self, seen: &Observation) -> Result<Revision, ActError> {
        self.tell_fence().await;
        self.tell_watchdog(seen);
        let deadline = self
            .deadline()
            .ok_or(ActError::NotAllowed("arming needs a held lease"))?;
        self.arming.arm(deadline).map_err(ActError::Fence)?;
        let opened = self.watchdog.wait_open(WATCHDOG_LIMIT).await;
        opened.map_err(ActError::Watchdog)?;
        Ok(0)
    }

    /// The device's time follows the cluster's ttl, once the lease has it.
    pub(crate) fn tell_watchdog(&self, seen: &Observation) {
        if seen.topology().is_none() {
            return;
        }
        let granted = self.lease_status.borrow().ttl;
        if let Err(error) = self.watchdog.tell(seen.settings().ttl, granted) {
            tracing::warn!(%error, "the fence could not be told of the watchdog");
        }
    }

    /// Looks at the instance for the fence, which must not have to while its disk hangs. What cannot be said
    /// now is left as it was: the fence can look for itself.
    pub(crate) async fn tell_fence(&self) {
        let data_dir = self.postgres.config().data_dir.clone();
        let run_dir = self.run_dir.path().to_owned();
        let telling = move || match Known::look(&data_dir) {
            Some(known) => known.write(&run_dir),
            None => Ok(()),
        };
        match timeout(TELL_LIMIT, tokio::task::spawn_blocking(telling)).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "the fence could not be told its instance")
            }
            Ok(Err(_)) | Err(_) => tracing::warn!("the data directory's disk does not answer"),
        }
    }

    fn disarm(&self, seen: &Observation) -> Result<Revision, ActError> {
        if seen.local.may_accept_writes() && !seen.settings().is_paused {
            return Err(ActError::NotAllowed(
                "the fence sleeps only while PostgreSQL is dead or in recovery",
            ));
        }
        self.arming.disarm().map_err(ActError::Fence)?;
        Ok(0)
    }

    /// In the same breath as an instance becomes writable: the lease holds for long enough and a live fence
    /// keeps its deadline.
    fn may_become_writable(&self) -> MayBecomeWritable {
        MayBecomeWritable {
            lease: self.lease_status.clone(),
            fence: self.fence.clone(),
            arming: self.arming.clone(),
            watchdog: self.watchdog.readiness_later(),
        }
    }
}

/// The check of the same breath, to be taken into a job.
#[derive(Clone)]
struct MayBecomeWritable {
    lease: watch::Receiver<LeaseStatus>,
    fence: Arc<RwLock<FenceHandle>>,
    arming: Arc<Arming>,
    watchdog: (WatchdogConfig, PathBuf),
}

impl MayBecomeWritable {
    fn holds(&self) -> bool {
        let now = clock::now();
        let holds_lease = match self.lease.borrow().view {
            LeaseView::Held(held) => {
                now.until(held.deadline) > PROMOTE_NEEDS && !held.has_unresolved_hand_over
            }
            LeaseView::NotHeld | LeaseView::Lost => false,
        };
        // It is locked for writing only while it is replaced.
        let is_live = self.fence.try_read().is_ok_and(|fence| fence.is_live(now));
        let (watchdog, run_dir) = &self.watchdog;
        let is_watched = watchdog::is_kept(watchdog, run_dir);
        holds_lease && is_live && is_watched && self.arming.is_armed()
    }
}

fn is_primary(start: &StartAs) -> bool {
    match start {
        StartAs::Primary | StartAs::PrimaryClosed | StartAs::Recovering => true,
        StartAs::Replica(_) => false,
    }
}
