//! The loop: wake, observe, decide, act, record. Everything that can make the agent do something is a
//! [`Wake`]; each runs a turn at once, and a decision's `next` is only the longest pause.
#![deny(clippy::wildcard_enum_match_arm)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use trunkline_shared::cluster::Moment;
use trunkline_shared::cluster::topology::{FactKey, Initialize};
use trunkline_shared::dcs::watch::View;
use trunkline_shared::service::clock;

use crate::act::Actor;
use crate::api::LocalRequest;
use crate::decide::defective::PANICS;
use crate::decide::observation::{LeaseView, Local, Observation, Reached, RunningRole};
use crate::decide::{self, Decision, Memory, RETRY_PAUSE, Reason, STOP_AHEAD, asking};
use crate::lease::LeaseStatus;
use crate::lease::rounds::Shown;
use crate::observe::{Circumstances, Look, Observer};
use crate::postgres::{Postmaster, ProcessId};
use crate::watchdog::Teller;

pub mod record;
mod request;
mod settings;

pub use record::Recorder;
use request::Requests;
pub use settings::{ReadConfig, SettingsKeeper};

/// The next turn comes so soon after a failed action at the latest: `loop_wait` is no time to let a primary wait for
/// its start. After each turn in a row that fails twice as late, for what fails on is not mended by haste.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Times that it is doubled; by then it is longer than any pause.
const DOUBLED: u32 = 10;

/// How long to wait after the last of `failures` turns in a row of which an action failed, whose decision would wait for
/// `pause`.
pub fn after_failure(pause: Duration, failures: u32) -> Duration {
    let doubled = failures.saturating_sub(1).min(DOUBLED);
    pause.clamp(RETRY_PAUSE, AFTER_FAILURE * 2u32.pow(doubled))
}

/// The pause after a turn that looked at `looked_at` and ends `now`. When PostgreSQL is to be stopped is not slept through
/// by a turn that looked before and took its time; one that looked later has decided about it.
pub fn not_past(
    pause: Duration,
    (looked_at, now): (Moment, Moment),
    deadline: Option<Moment>,
) -> Duration {
    let stop_at = deadline.map(|deadline| deadline.before(STOP_AHEAD));
    match stop_at.filter(|stop_at| looked_at < *stop_at) {
        Some(stop_at) => pause.min(now.until(stop_at)),
        None => pause,
    }
}

/// Why a turn runs. Closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nothing happened for as long as the last decision wanted to wait.
    Timer,
    /// The DCS shows something new.
    TopologyChanged,
    /// The postmaster ended, or another runs.
    PostmasterChanged,
    /// The instance accepts connections.
    PostgresReady,
    /// The long job ended.
    JobEnded,
    /// The right to lead changed.
    LeaseChanged,
    /// A standby began or ceased to stream from here.
    StandbyChanged,
    /// An operator asked something of this member.
    Requested,
    /// The loop is to come to a pause.
    Pause,
    /// The agent was told to end.
    Shutdown,
}

/// Why the loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The agent may end.
    Over,
    /// It was asked to pause, between two turns and with nothing half done. It may go on.
    Paused,
}

impl Wake {
    /// The word for it in log and journal.
    pub fn word(self) -> &'static str {
        match self {
            Wake::Timer => "timer",
            Wake::TopologyChanged => "topology_changed",
            Wake::PostmasterChanged => "postmaster_changed",
            Wake::PostgresReady => "postgres_ready",
            Wake::JobEnded => "job_ended",
            Wake::LeaseChanged => "lease_changed",
            Wake::StandbyChanged => "standby_changed",
            Wake::Requested => "requested",
            Wake::Pause => "pause",
            Wake::Shutdown => "shutdown",
        }
    }
}

/// What wakes the loop from outside.
pub struct Inbox {
    /// Cancelled when the agent is told to end.
    pub shutdown: CancellationToken,
    /// The postmaster's start and end.
    pub postmaster: watch::Receiver<Postmaster>,
    /// True while the loop is to come to a pause.
    pub pause: watch::Receiver<bool>,
    /// Notified when the instance accepts connections.
    pub ready: Arc<Notify>,
    /// Notified when a standby begins or ceases to stream from here, where commits wait for standbys.
    pub standbys: Arc<Notify>,
    /// The lease task.
    pub lease: watch::Receiver<LeaseStatus>,
    /// The cluster.
    pub cluster: watch::Receiver<Arc<View>>,
    /// Operators' requests of this member alone.
    pub requests: mpsc::Receiver<LocalRequest>,
}

/// The loop and everything it holds.
pub struct Tick {
    /// What wakes it.
    pub inbox: Inbox,
    /// Looks.
    pub observer: Observer,
    /// Acts.
    pub actor: Actor,
    /// Writes down.
    pub recorder: Recorder,
    /// Brings PostgreSQL's settings in line with the cluster's.
    pub settings: SettingsKeeper,
    requests: Requests,
    memory: Memory,
    /// Turns in a row of which an action failed.
    failures: u32,
    /// Turns in a row whose rules failed; kept, once there are enough, until the lease is given up.
    panics: u32,
    /// The postmaster that the fence was told of.
    told_of: Option<ProcessId>,
}

impl Tick {
    /// A loop that has not run yet.
    pub fn new(
        inbox: Inbox,
        observer: Observer,
        actor: Actor,
        recorder: Recorder,
        settings: SettingsKeeper,
        memory: Memory,
    ) -> Self {
        Self {
            inbox,
            observer,
            actor,
            recorder,
            settings,
            requests: Requests::default(),
            memory,
            failures: 0,
            panics: 0,
            told_of: None,
        }
    }

    /// Runs until the agent may end, or until it is at rest after it was asked to pause.
    pub async fn run(&mut self) -> End {
        let mut wake = Wake::Timer;
        loop {
            self.actor.lease.turn_begins();
            let (pause, is_over) = self.turn(wake).await;
            self.actor.lease.turn_ends();
            if is_over {
                return End::Over;
            }
            let is_told = self.inbox.shutdown.is_cancelled();
            if *self.inbox.pause.borrow() && !is_told && self.is_at_rest() {
                return End::Paused;
            }
            wake = self.next_wake(pause).await;
        }
    }

    /// Whether neither a job, nor a callback, nor an operator's request, nor a planned change is in progress.
    fn is_at_rest(&self) -> bool {
        let has_job = self.actor.jobs.view().running.is_some();
        let view = self.observer.cluster.borrow();
        let me = &self.observer.me.name;
        let changes = decide::is_change_under_way(me, &view.topology, &self.memory);
        !has_job && !changes && self.requests.are_done() && self.actor.callbacks.are_done()
    }

    async fn next_wake(&mut self, pause: Duration) -> Wake {
        let inbox = &mut self.inbox;
        let is_told = inbox.shutdown.is_cancelled();
        tokio::select! {
            biased;
            () = inbox.shutdown.cancelled(), if !is_told => Wake::Shutdown,
            Ok(()) = inbox.postmaster.changed() => Wake::PostmasterChanged,
            () = self.actor.jobs.ended() => Wake::JobEnded,
            Ok(()) = inbox.lease.changed() => Wake::LeaseChanged,
            Ok(()) = inbox.pause.changed() => Wake::Pause,
            () = inbox.ready.notified() => Wake::PostgresReady,
            () = inbox.standbys.notified() => Wake::StandbyChanged,
            Some(request) = inbox.requests.recv() => {
                self.requests.take(request, &mut self.settings);
                Wake::Requested
            }
            Ok(()) = inbox.cluster.changed() => Wake::TopologyChanged,
            () = tokio::time::sleep(pause) => Wake::Timer,
        }
    }

    /// One turn: how long to wait for the next at the most, and whether the agent may end.
    async fn turn(&mut self, wake: Wake) -> (Duration, bool) {
        self.take_changes();
        let look = self.look().await;
        self.name_unread_settings();
        self.settings
            .bring_in_line(&look.observation, &self.actor)
            .await;
        let seen = &look.observation;
        let data_dir = self.actor.postgres.config().data_dir.clone();
        self.observer.config.keep(&data_dir, seen).await;
        if let Some(topology) = seen.topology() {
            let whom = asking::whom(topology, &self.memory, &seen.me.name);
            self.observer.members.keep(&data_dir, seen, whom).await;
        }
        let view = self.observer.cluster.borrow().clone();
        self.observer.beside.keep(&data_dir, seen, &view).await;
        self.actor.tell_watchdog(seen);
        let Some(decision) = self.decide(&look) else {
            return (RETRY_PAUSE, false);
        };
        let memory = std::mem::replace(&mut self.memory, decision.memory.clone());
        let waiting = look.status.as_ref();
        let waiting = waiting.map(|status| self.actor.postgres.pending_restart(status));
        let waiting = waiting.unwrap_or_default();
        self.recorder
            .before_acting(&look, &decision, waiting, &self.actor.lease);
        if replaces_data(&decision) {
            // An empty directory alone may be a disk that is not mounted.
            if seen.local == Local::Empty {
                self.observer.promises.has_no_data();
            }
            self.observer.before.forget();
            self.observer.config.data_replaced();
            self.observer.members.data_replaced();
            self.observer.beside.data_replaced();
        }
        let outcome = self.actor.perform(seen, &decision).await;
        if let Err(error) = &outcome {
            self.recorder.action_failed(&decision, error);
        }
        self.requests
            .answer(seen, &decision, outcome.as_ref().err());
        self.recorder
            .after_acting(wake, &look, &memory, &decision, outcome.err());
        let pause = decision.next.within;
        let pause = if self.recorder.has_failed() {
            self.failures = self.failures.saturating_add(1);
            after_failure(pause, self.failures)
        } else {
            self.failures = 0;
            pause
        };
        let ended = (look.observation.now, clock::now());
        let pause = not_past(pause, ended, self.actor.stands_until());
        (pause, decision.reason == Reason::ShutDown)
    }

    /// What the file and the cluster's configuration say anew of this member, to everybody who goes by it.
    fn take_changes(&mut self) {
        let Some(changed) = self.settings.changed() else {
            return;
        };
        self.observer.me = changed.me.clone();
        self.actor.me = changed.me;
        if self.observer.watchdog.0 != changed.watchdog {
            let run_dir = &self.observer.watchdog.1;
            self.actor.watchdog = Teller::new(changed.watchdog.clone(), run_dir);
            self.observer.watchdog.0 = changed.watchdog;
        }
        self.recorder.proxy_address = changed.proxy_address;
    }

    /// Whoever wrote the cluster's configuration may not have been told that nobody reads a key.
    fn name_unread_settings(&mut self) {
        let view = self.inbox.cluster.borrow();
        let written = view.raw.get(&FactKey::Settings);
        self.settings.name_unread(written.map(|raw| &raw.text));
    }

    async fn look(&mut self) -> Look {
        let asked = self.memory.wants_peers.then(|| {
            let view = self.observer.cluster.borrow();
            asking::whom(&view.topology, &self.memory, &self.observer.me.name)
        });
        let circumstances = Circumstances {
            job: self.actor.jobs.view(),
            request: self.requests.shown(),
            is_shutting_down: self.inbox.shutdown.is_cancelled(),
            asked,
        };
        let mut look = self.observer.look(circumstances).await;
        self.tell_of_failsafe(&look);
        let postmaster = self.inbox.postmaster.borrow().running();
        if look.status.is_some() && postmaster != self.told_of {
            // Only a postmaster that answers has written down its shared memory.
            self.actor.tell_fence().await;
            self.told_of = postmaster;
        }
        if let Some(why) = self.observer.before.take_failed_start() {
            self.actor.jobs.start_failed(why);
            look.observation.job = self.actor.jobs.view();
        }
        if look.status.is_some() {
            self.actor.jobs.start_succeeded();
        }
        look
    }

    /// The lease task goes by the failsafe list, and whoever asks for a promise by the newest epoch.
    fn tell_of_failsafe(&self, look: &Look) {
        let promises = &self.observer.promises;
        if let LeaseView::Held(held) = &look.observation.lease {
            promises.saw(held.epoch, &look.observation.me.name, true);
        }
        self.actor.lease.show_reached(written(&look.observation));
        let Some(topology) = look.observation.topology() else {
            return;
        };
        self.actor.lease.show_failsafe(Shown {
            list: topology.failsafe.clone(),
            revision: topology.failsafe_revision,
            at: topology.revision,
            is_on: topology.settings_or_default().failsafe_mode == Some(true),
        });
        if let Some(leader) = &topology.leader {
            let is_made = matches!(topology.initialize, Initialize::Done(_));
            promises.saw(leader.epoch, &leader.member, is_made);
        }
    }

    /// A defect in the rules costs a turn, not the agent; three in a row cost the leadership.
    fn decide(&mut self, look: &Look) -> Option<Decision> {
        let (seen, memory) = (&look.observation, &self.memory);
        let leads = matches!(seen.lease, LeaseView::Held(_));
        if self.panics >= PANICS && leads {
            let instead = || decide::defective::decide(seen, memory);
            return catch_unwind(AssertUnwindSafe(instead)).ok();
        }
        match catch_unwind(AssertUnwindSafe(|| decide::decide(seen, memory))) {
            Ok(decision) => {
                self.panics = 0;
                Some(decision)
            }
            Err(_) => {
                self.panics = self.panics.saturating_add(1);
                metrics::counter!(crate::metrics::TURNS_SKIPPED).increment(1);
                tracing::error!("a defect in the rules: this turn is skipped; please report it");
                None
            }
        }
    }
}

/// How far a running primary has written.
pub fn written(seen: &Observation) -> Option<Reached> {
    let Local::Running(running) = &seen.local else {
        return None;
    };
    match running.role {
        RunningRole::Primary { position, .. } => Some((running.timeline, position)),
        RunningRole::Replica { .. } => None,
    }
}

/// Whether what was known of the local data is void after this decision.
fn replaces_data(decision: &Decision) -> bool {
    let mut actions = decision.actions.iter();
    actions.any(|action| action.traits().replaces_data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_took_its_time_does_not_sleep_through_the_stop() {
        let at = |ms: u64| Moment(ms * 1_000_000);
        let second = Duration::from_secs(1);
        let pause = |looked: u64, ended: u64, deadline| {
            not_past(second, (at(looked), at(ended)), deadline).as_millis()
        };
        assert_eq!(pause(0, 5, None), 1000);
        // It is stopped at 1,200 ms.
        assert_eq!(pause(0, 100, Some(at(1500))), 1000);
        assert_eq!(pause(0, 900, Some(at(1500))), 300);
        assert_eq!(pause(0, 1300, Some(at(1500))), 0);
        // The decision was made of it.
        assert_eq!(pause(1200, 1300, Some(at(1500))), 1000);
    }
}
