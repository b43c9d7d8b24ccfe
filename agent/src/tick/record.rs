//! What a turn leaves behind: log, metrics, journal, the API's snapshot and the member record.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use trunkline_shared::cluster::member::ParameterChange;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{ClusterName, LeaderEpoch, Member, MemberName, Moment};
use trunkline_shared::dcs::records::member_to_json;
use trunkline_shared::service::clock;

use super::Wake;
use crate::act::ActError;
use crate::api::{Deadline, Published, ReplicationRow, ScheduledRestart, WallTime};
use crate::decide::observation::{LeaseView, Local, Observation, RunningRole, WatchdogView};
use crate::decide::small_moves::WrittenRecord;
use crate::decide::{Decision, Memory, Reason, announce};
use crate::journal::{Entry, Journal};
use crate::lease::{LeaseHandle, LeaseStatus};
use crate::observe::Look;
use crate::postgres::ServerStatus;

/// Writes down what the turns do.
pub struct Recorder {
    cluster: ClusterName,
    api_url: Arc<str>,
    /// Where clients behind a proxy reach PostgreSQL; the file may change it.
    pub proxy_address: Option<Arc<str>>,
    version: Arc<str>,
    published: Arc<ArcSwap<Published>>,
    journal: Arc<Journal>,
    scheduled_restart: ScheduledRestart,
    last_reason: Option<Reason>,
    last_error: Option<String>,
    has_failed: bool,
    record: Option<WrittenRecord>,
}

impl Recorder {
    /// Nothing recorded yet.
    pub fn new(
        cluster: ClusterName,
        api_url: &str,
        published: Arc<ArcSwap<Published>>,
        (journal, scheduled_restart): (Arc<Journal>, ScheduledRestart),
    ) -> Self {
        Self {
            cluster,
            api_url: Arc::from(api_url),
            proxy_address: None,
            version: Arc::from(env!("CARGO_PKG_VERSION")),
            published,
            journal,
            scheduled_restart,
            last_reason: None,
            last_error: None,
            has_failed: false,
            record: None,
        }
    }

    /// Whether an action of the last turn failed.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// What others wait for is said before anything slow is done.
    pub(super) fn before_acting(
        &mut self,
        look: &Look,
        decision: &Decision,
        pending_restart: BTreeMap<Arc<str>, ParameterChange>,
        lease: &LeaseHandle,
    ) {
        let seen = &look.observation;
        self.has_failed = false;
        metrics::counter!(crate::metrics::DECISIONS, "reason" => decision.reason.word())
            .increment(1);
        if self.last_reason != Some(decision.reason) && is_news(decision.reason) {
            let detail = decision.detail.to_string();
            tracing::info!(
                reason = decision.reason.word(),
                detail,
                "{}",
                decision.reason.sentence()
            );
            self.last_reason = Some(decision.reason);
        }
        let mut member = announce::announcement(seen, decision, &self.api_url, &self.version);
        // The settings may have been taken up after the look: whether something waits and what are told by one of both.
        member.has_pending_restart = !pending_restart.is_empty();
        member.pending_restart = pending_restart;
        member.scheduled_restart = self.scheduled_restart.recorded();
        member.proxy_address.clone_from(&self.proxy_address);
        self.published
            .store(Arc::new(self.snapshot(look, decision, &member)));
        self.show(seen, &member, lease);
    }

    /// Puts the member record, if it is due.
    fn show(&mut self, seen: &Observation, member: &Member, lease: &LeaseHandle) {
        let times = (seen.now, seen.settings().loop_wait);
        let shown = seen.topology();
        if let Some(record) = WrittenRecord::next(self.record.as_ref(), member, times, shown) {
            lease.put_member(member_to_json(member));
            self.record = Some(record);
        }
    }

    /// An action failed; said once while the words stay the same.
    pub(super) fn action_failed(&mut self, decision: &Decision, error: &ActError) {
        self.has_failed = true;
        metrics::counter!(crate::metrics::ACTIONS_FAILED).increment(1);
        let text = error.to_string();
        if self.last_error.as_ref() != Some(&text) {
            tracing::warn!(
                reason = decision.reason.word(),
                error = text,
                "an action failed"
            );
        }
        self.last_error = Some(text);
    }

    /// The turn is over.
    pub(super) fn after_acting(
        &mut self,
        wake: Wake,
        look: &Look,
        memory: &Memory,
        decision: &Decision,
        error: Option<ActError>,
    ) {
        if error.is_none() {
            self.last_error = None;
        }
        let took = clock::now().since(look.observation.now);
        let time = clock::wall_clock().rfc3339();
        let failed = error.map(|e| e.to_string());
        let seen = &look.observation;
        self.journal.push(Entry::new(
            time,
            wake.word(),
            seen,
            memory,
            decision,
            failed,
        ));
        tracing::debug!(
            wake = wake.word(),
            situation = decision.situation.word(),
            reason = decision.reason.word(),
            actions = ?decision.actions,
            next = ?decision.next.within,
            ?took,
            "turn"
        );
    }

    fn snapshot(&self, look: &Look, decision: &Decision, member: &Member) -> Published {
        let seen = &look.observation;
        let before =
            Published::before_the_first_tick(self.cluster.clone(), seen.me.name.clone(), seen.now);
        let status = look.status.as_deref();
        let held = match &seen.lease {
            LeaseView::Held(held) => Some(*held),
            LeaseView::NotHeld | LeaseView::Lost => None,
        };
        let (epoch, lease_deadline) = authority(look);
        let detail = decision.detail.to_string();
        let reason = if detail.is_empty() {
            decision.reason.sentence().to_owned()
        } else {
            format!("{} ({detail})", decision.reason.sentence())
        };
        Published {
            state: member.state,
            role: member.role,
            server_version: status.map(|s| s.version),
            postmaster_start_time: status.map(|status| wall_time(status.started_us)),
            timeline: member.timeline,
            data_timeline: seen.local.timeline(),
            position: if is_primary(seen) {
                member.position
            } else {
                None
            },
            received: member.received,
            replayed: member.replayed,
            replayed_timestamp: status
                .and_then(|status| status.replayed_at_us)
                .map(wall_time),
            leader_end: status
                .and_then(|status| status.receiver.as_ref())
                .and_then(|receiver| receiver.latest_end),
            is_replay_paused: status.is_some_and(|s| s.is_replay_paused),
            replication_state: member.is_streaming.map(|is_streaming| {
                Arc::from(if is_streaming {
                    "streaming"
                } else {
                    "in archive recovery"
                })
            }),
            replication: status.map(replication).unwrap_or_default(),
            tags: member.tags.clone(),
            has_pending_restart: member.has_pending_restart,
            pending_restart: member.pending_restart.clone(),
            system_id: seen.local.system_id(),
            is_paused: member.is_paused,
            is_disk_nearly_full: seen.health.is_nearly_full,
            writes_since: seen.health.writes_since,
            has_watchdog_failed: seen.fence.watchdog == WatchdogView::Failed,
            stands_back_until: decision.memory.stands_back_until,
            dcs_last_seen: dcs_last_seen(look),
            store: seen.store.clone(),
            is_dcs_fresh: seen.is_dcs_fresh(),
            former: former(&decision.memory),
            topology: Arc::new(seen.topology().cloned().unwrap_or_default()),
            reason: Some(Arc::from(reason.as_str())),
            decided: Some(decision.reason),
            is_failsafe_active: held.is_some_and(|held| held.is_by_failsafe),
            epoch,
            lease_deadline,
            is_writable: is_primary(seen) && is_of_the_cluster(look),
            ..before
        }
    }
}

fn former(memory: &Memory) -> BTreeMap<MemberName, Arc<str>> {
    let known = memory.former.iter();
    known
        .map(|(name, former)| (name.clone(), former.api_url.clone()))
        .collect()
}

fn replication(status: &ServerStatus) -> Vec<ReplicationRow> {
    let row = |sender: &crate::postgres::status::Sender| ReplicationRow {
        usename: sender.usename.clone(),
        application_name: sender.application_name.clone(),
        client_addr: sender.client_addr.clone(),
        state: sender.state.clone(),
        sync_state: sender.sync_state.clone(),
        sync_priority: sender.sync_priority,
    };
    status.senders.iter().map(row).collect()
}

/// Peers are asked in every second turn of a race, and a job says itself when it begins and ends.
fn is_news(reason: Reason) -> bool {
    reason != Reason::AskingPeers && reason != Reason::JobInProgress
}

fn is_primary(seen: &Observation) -> bool {
    match &seen.local {
        Local::Running(running) => match running.role {
            RunningRole::Primary { .. } => true,
            RunningRole::Replica { .. } => false,
        },
        Local::Unknown(_)
        | Local::Empty
        | Local::Stopped(_)
        | Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => false,
    }
}

/// Whether the local instance is the one that `initialize` names. Until a bootstrap has written that key its
/// PostgreSQL takes writes which nobody may rely on: the next bootstrap removes them.
fn is_of_the_cluster(look: &Look) -> bool {
    let seen = &look.observation;
    match seen.topology().map(|topology| topology.initialize) {
        Some(Initialize::Done(id)) => seen.local.system_id() == Some(id),
        Some(Initialize::Absent | Initialize::Running) => false,
        // Restarted while the DCS is away: consent is asked for only under an epoch of a cluster that was made.
        None => {
            matches!(&seen.lease, LeaseView::Held(held) if held.is_by_failsafe)
                || look.left_behind.is_some()
        }
    }
}

/// Under which epoch PostgreSQL may accept writes, and until when. What the agent before left stands until the
/// fence's deadline, which this one has not moved.
fn authority(look: &Look) -> (Option<LeaderEpoch>, Option<Moment>) {
    let seen = &look.observation;
    match (&seen.lease, look.left_behind, seen.fence.armed_until) {
        (LeaseView::Held(held), _, _) => (Some(held.epoch), Some(held.deadline)),
        // Where the DCS answers, it says who leads.
        (LeaseView::NotHeld, Some(epoch), Some(until))
            if is_primary(seen) && !seen.is_dcs_fresh() =>
        {
            (Some(epoch), Some(until))
        }
        (LeaseView::NotHeld | LeaseView::Lost, _, _) => (None, None),
    }
}

/// Until when this member may lead by what the lease task holds now: the deadline moves on between two ticks,
/// and a lease that is gone is no longer one. A tick that has hung for a ttl keeps nothing true: what it saw last
/// may be over.
fn deadline_now(published: &Published, lease: &LeaseStatus, now: Moment) -> Option<Moment> {
    let ttl = published.topology.settings_or_default().ttl;
    let hangs = now.since(published.last_tick) >= ttl;
    match &lease.view {
        LeaseView::Held(held) if Some(held.epoch) == published.epoch && !hangs => {
            Some(held.deadline)
        }
        // The next tick looks at what is held under another epoch, and that it is writable.
        LeaseView::Held(_) => published.lease_deadline,
        LeaseView::NotHeld if lease.left_behind.is_some() => published.lease_deadline,
        LeaseView::NotHeld | LeaseView::Lost => None,
    }
}

/// The same for the API, by the clock of that moment.
pub fn deadline_by(lease: watch::Receiver<LeaseStatus>) -> Arc<Deadline> {
    Arc::new(move |published| deadline_now(published, &lease.borrow(), clock::now()))
}

fn wall_time(micros: i64) -> WallTime {
    let text = clock::WallTime(micros).rfc3339();
    WallTime {
        text: Arc::from(text.replacen('T', " ", 1).as_str()),
        seconds: micros as f64 / 1e6,
    }
}

fn dcs_last_seen(look: &Look) -> u64 {
    look.dcs_proven_at.map_or(0, |at| {
        let ago = look.observation.now.since(at);
        let now = u64::try_from(clock::wall_clock().0 / 1_000_000).unwrap_or(0);
        now.saturating_sub(ago.as_secs())
    })
}
