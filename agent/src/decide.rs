//! What this member does next: one pure function from an observation to a decision.
//!
//! The situation is found first ([`situation`]); each situation's rules stand in a file of its own,
//! ordered from most dangerous to least: the first that applies returns. Nothing below this module does
//! I/O, reads a clock or draws randomness: same observation, same decision.
#![deny(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use observation::{Local, RunningRole};
use trunkline_shared::cluster::Topology;

pub mod announce;
pub mod asking;
mod authority_gone;
mod bootstrap;
pub mod callbacks;
mod candidate;
mod config_unknown;
mod dcs_unreachable;
pub mod decision;
pub mod defective;
pub mod failsafe;
mod fence_gone;
mod following;
mod foreign_data;
pub mod handing_over;
mod holding_lease;
mod host_health;
mod job_running;
mod leading;
mod lost_config;
mod maintenance;
pub mod memory;
mod newcomer;
mod no_data;
mod no_leader;
pub mod observation;
mod past_changes;
mod recreate;
mod requests;
mod restarting;
mod routers;
pub mod script;
mod shutting_down;
pub mod situation;
mod slots;
pub mod small_moves;
mod stalled_promotion;
mod standby_cluster;
mod stopping;
pub mod store;
pub mod sync_standbys;
mod unregistered;
mod upstream;

pub use decision::{Action, Decision, Detail, NextTick, NextWhy, Reason};
pub use memory::Memory;
pub use observation::Observation;
pub use requests::is_change_under_way;
pub use situation::Situation;

/// How long before the lease's deadline the agent stops PostgreSQL itself; the fence is the backstop
/// (`ha.md` 3).
pub const STOP_AHEAD: Duration = Duration::from_millis(300);

/// The lease must hold for more than this when a promotion or a start as primary begins (`ha.md` 5.1).
pub const PROMOTE_NEEDS: Duration = Duration::from_millis(500);

/// After an action failed the next turn is this much later at the earliest, unless something happens.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What to do next. Total: every observation has a decision.
pub fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let seen = &*lost_config::as_the_record_tells(seen, memory);
    let seen = &*host_health::as_it_is_to_clients(seen);
    let decision = match newcomer::decide(seen, memory) {
        Some(decision) => decision,
        None => {
            let mut decision = by_situation(seen, memory);
            decision.memory.contradicted_since = None;
            decision.memory.contradicted_by = None;
            decision
        }
    };
    let decision = stopping::note(seen, decision);
    let decision = host_health::note(seen, decision);
    let decision = host_health::look_in_time(seen, decision);
    let decision = fence_gone::note(seen, decision);
    let decision = lost_config::note(seen, decision);
    let decision = recreate::note(seen, decision);
    callbacks::note(seen, memory.told, decision)
}

fn by_situation(seen: &Observation, memory: &Memory) -> Decision {
    let situation = Situation::of(seen, memory);
    let topology = seen.topology();
    match (situation, topology, &seen.job.running) {
        (Situation::AuthorityGone, _, _) => authority_gone::decide(seen, memory),
        (Situation::JobRunning, _, Some(job)) => job_running::decide(seen, memory, job),
        _ if restarting::is_lost(seen, memory) => restarting::lost(seen, memory),
        (
            Situation::ForeignData
            | Situation::Unregistered
            | Situation::Following
            | Situation::NoLeader,
            _,
            _,
        ) if bootstrap::is_abandoned(seen) && !seen.settings().is_paused => {
            bootstrap::abandoned(seen, memory)
        }
        (Situation::ForeignData, _, _) => foreign_data::decide(seen, memory),
        (Situation::ShuttingDown, _, _) => shutting_down::decide(seen, memory),
        (Situation::Maintenance, Some(t), _) if t.is_config_unknown() => {
            config_unknown::decide(seen, memory, t)
        }
        (Situation::Maintenance, Some(t), _) => maintenance::decide(seen, memory, t),
        (Situation::NoData, _, _) => no_data::decide(seen, memory),
        (Situation::HoldingLease, _, _) => holding_lease::decide(seen, memory),
        (Situation::Unregistered, Some(t), _) => unregistered::decide(seen, memory, t),
        (Situation::Following, Some(t), _) => following::decide(seen, memory, t),
        (Situation::NoLeader, Some(t), _) => no_leader::decide(seen, memory, t),
        (Situation::DcsUnreachable, _, _)
        | (
            Situation::JobRunning
            | Situation::Maintenance
            | Situation::Unregistered
            | Situation::Following
            | Situation::NoLeader,
            _,
            _,
        ) => dcs_unreachable::decide(seen, memory),
    }
}

/// A decision being made: what the situation files build their answer with.
struct Turn<'a> {
    seen: &'a Observation,
    decision: Decision,
    /// The first reason given for what was added; a rule that collects actions ends with it.
    why: Option<Reason>,
    /// What belongs to it.
    why_detail: Detail,
    /// The longest pause that a rule which collects actions allows.
    soon: Option<Duration>,
}

impl<'a> Turn<'a> {
    fn new(seen: &'a Observation, memory: &Memory) -> Self {
        let situation = Situation::of(seen, memory);
        let mut memory = Memory {
            wants_peers: false,
            ..memory.clone()
        };
        if seen.request.is_none() {
            memory.copy_ordered_at = None;
        }
        if !matches!(seen.request, Some(observation::LocalRequest::Restart(_))) {
            // What is remembered of a restart ends with the request for it.
            memory.switchover.take_if(|change| change.is_restart);
        }
        if let Some(topology) = seen.topology() {
            asking::note(&mut memory, topology, seen.now);
            if let Some(settings) = &topology.settings {
                memory.is_standby_cluster = settings.standby_cluster.is_some();
            }
        }
        Self {
            seen,
            decision: Decision {
                situation,
                reason: Reason::Following,
                detail: Detail::None,
                actions: Vec::new(),
                next: NextTick {
                    within: Duration::ZERO,
                    why: NextWhy::Routine,
                },
                memory,
                is_request_taken: false,
                stop_limit: None,
                act_limit: None,
            },
            why: None,
            why_detail: Detail::None,
            soon: None,
        }
    }

    fn act(mut self, action: Action) -> Self {
        self.decision.actions.push(action);
        self
    }

    /// Takes the leader key. What accepts writes is armed in the same breath, should the agent die right after.
    fn acquire(self) -> Self {
        let may_write = self.seen.local.may_accept_writes();
        let turn = past_changes::forget_candidacy(self).act(Action::AcquireLeader);
        if may_write {
            return turn.act(Action::ArmFence);
        }
        turn
    }

    /// None of its actions is waited for longer.
    fn act_within(mut self, limit: Duration) -> Self {
        self.decision.act_limit = Some(limit);
        self
    }

    fn because(mut self, reason: Reason) -> Self {
        self.why = self.why.or(Some(reason));
        self
    }

    /// The same with what belongs to it.
    fn because_of(mut self, reason: Reason, detail: Detail) -> Self {
        if self.why.is_none() {
            self.why_detail = detail;
        }
        self.because(reason)
    }

    /// Ends a turn that collected actions: for the first reason given, else for this one.
    fn collected(mut self, otherwise: Reason) -> Decision {
        let detail = std::mem::take(&mut self.why_detail);
        let reason = self.why.unwrap_or(otherwise);
        let soon = self.soon;
        let turn = self.detail(detail);
        match soon {
            Some(within) => turn.within(reason, within),
            None => turn.routine(reason),
        }
    }

    /// The next look is to come after `within` at the latest.
    fn soon(mut self, within: Duration) -> Self {
        self.soon = Some(self.soon.map_or(within, |soon| soon.min(within)));
        self
    }

    fn detail(mut self, detail: Detail) -> Self {
        self.decision.detail = detail;
        self
    }

    /// Names the member that data comes from.
    fn from(self, upstream: &decision::Upstream) -> Self {
        match &upstream.member {
            Some(member) => self.detail(Detail::Member(member.clone())),
            None => self,
        }
    }

    fn remember(mut self, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.decision.memory);
        self
    }

    fn request_taken(mut self) -> Self {
        self.decision.is_request_taken = true;
        self
    }

    /// Takes back the announcement that this member is without a fence, once its PostgreSQL is surely dead, in
    /// recovery, or without data; nobody may run for leader before (`ha.md` 7).
    fn withdraw_announcement(self) -> Self {
        let is_surely_harmless = match &self.seen.local {
            Local::Stopped(_)
            | Local::Starting {
                as_primary: false, ..
            } => true,
            // In a pause somebody may have unmounted it under a server.
            Local::Empty => !self.seen.is_automation_off(),
            Local::Running(running) => matches!(running.role, RunningRole::Replica { .. }),
            Local::Unknown(_)
            | Local::Starting { .. }
            | Local::Unresponsive { .. }
            | Local::Orphaned { .. } => false,
        };
        let me = &self.seen.me.name;
        let is_announced = self
            .seen
            .topology()
            .is_some_and(|t| t.disarmed.contains(me));
        let turn = self.withdraw_of_patroni();
        if is_announced && is_surely_harmless {
            return turn.act(Action::RemoveDisarmed);
        }
        turn
    }

    /// A member that paused as primary and came back under Patroni: it has no fence that could be asleep, and
    /// Patroni knows nothing of the key, which would keep everybody from running for ever.
    fn withdraw_of_patroni(self) -> Self {
        let seen = self.seen;
        let Some(topology) = seen.topology().filter(|_| !seen.settings().is_paused) else {
            return self;
        };
        let records = topology.disarmed.iter();
        let mut records = records.filter_map(|name| topology.members.get(name));
        match records.find(|member| !member.is_trunkline()) {
            Some(member) => {
                let name = member.name.clone();
                self.act(Action::RemoveDisarmedOf(name, member.revision))
            }
            None => self,
        }
    }

    /// Puts an armed fence to sleep where nothing it guards can happen.
    fn disarm_if_harmless(self) -> Self {
        let is_writable = self.seen.local.may_accept_writes();
        if self.seen.fence.is_armed() && !is_writable && self.seen.job.running.is_none() {
            return self.act(Action::DisarmFence);
        }
        self
    }

    /// Looks again at once with the other members' answers.
    fn ask_peers(self) -> Decision {
        self.remember(|memory| memory.wants_peers = true)
            .now(Reason::AskingPeers)
    }

    /// Why the last job failed, if it was of this kind.
    fn failure_of(&self, kind: observation::JobKind) -> Option<std::sync::Arc<str>> {
        let job = self
            .seen
            .job
            .finished
            .as_ref()
            .filter(|job| job.kind == kind)?;
        job.error.clone()
    }

    /// Whether the last job was of this kind and failed less than `loop_wait` ago.
    fn failed_lately(&self, kind: observation::JobKind) -> bool {
        let wait = self.seen.settings().loop_wait;
        self.failure_of(kind).is_some()
            && self
                .seen
                .job
                .finished
                .as_ref()
                .is_some_and(|j| self.seen.now.since(j.at) < wait)
    }

    /// Waits until `loop_wait` has passed since the job failed.
    fn after_failure(self, kind: observation::JobKind) -> Decision {
        self.after_failure_because(kind, Reason::WaitingAfterFailure)
    }

    /// The same with a reason of its own.
    fn after_failure_because(self, kind: observation::JobKind, reason: Reason) -> Decision {
        let wait = self.seen.settings().loop_wait;
        let at = self
            .seen
            .job
            .finished
            .as_ref()
            .map_or(self.seen.now, |job| job.at);
        let left = wait.saturating_sub(self.seen.now.since(at));
        let why = self.failure_of(kind).unwrap_or_default();
        self.detail(Detail::Text(why)).within(reason, left)
    }

    /// Starts the instance in recovery, unless the last start failed less than `loop_wait` ago.
    fn start_unless_just_failed(self, start: decision::StartAs, reason: Reason) -> Decision {
        if self.failed_lately(observation::JobKind::Start) {
            return self.after_failure(observation::JobKind::Start);
        }
        self.act(Action::Start(start)).routine(reason)
    }

    /// An instance that has not answered for a ttl is stopped by force.
    fn wait_for_hung(self, since: trunkline_shared::cluster::Moment) -> Decision {
        let ttl = self.seen.settings().ttl;
        let waited = self.seen.now.since(since);
        if waited < ttl {
            return self.within(Reason::PostgresUnresponsive, ttl - waited);
        }
        self.act(Action::Stop(decision::StopMode::Immediate))
            .now(Reason::StoppingHungPostgres)
    }

    /// The actions show their result at once: look again as soon as they are done.
    fn now(self, reason: Reason) -> Decision {
        self.finish(reason, Duration::ZERO, NextWhy::SeeResult)
    }

    /// Nothing more until something happens, `loop_wait` at the longest.
    fn routine(self, reason: Reason) -> Decision {
        let within = self.seen.settings().loop_wait;
        self.finish(reason, within, NextWhy::Routine)
    }

    /// Look again after `within`, `loop_wait` at the longest.
    fn within(self, reason: Reason, within: Duration) -> Decision {
        let within = within.min(self.seen.settings().loop_wait);
        self.finish(reason, within, NextWhy::Limit)
    }

    fn finish(mut self, reason: Reason, within: Duration, why: NextWhy) -> Decision {
        self.decision.reason = reason;
        self.decision.next = NextTick { within, why };
        // The deadline is never slept through, be it of a held lease or one that an earlier agent left armed.
        let deadline = match &self.seen.lease {
            observation::LeaseView::Held(held) => Some(held.deadline),
            observation::LeaseView::NotHeld | observation::LeaseView::Lost => {
                let armed = self.seen.fence.armed_until;
                armed.filter(|_| self.seen.local.may_accept_writes())
            }
        };
        if let Some(deadline) = deadline {
            let left = self.seen.now.until(deadline.before(STOP_AHEAD));
            if !left.is_zero() && left < within {
                self.decision.next = NextTick {
                    within: left,
                    why: NextWhy::LeaseDeadline,
                };
            }
        }
        self.decision
    }
}

impl Observation {
    /// The cluster's settings, or the defaults while they are unknown.
    pub fn settings(&self) -> std::sync::Arc<trunkline_shared::cluster::ClusterSettings> {
        self.topology()
            .map(|t| t.settings_or_default())
            .unwrap_or_default()
    }

    /// Whether automation is off: the cluster is paused, or nobody here knows whether it is.
    fn is_automation_off(&self) -> bool {
        self.settings().is_paused || self.topology().is_some_and(Topology::is_config_unknown)
    }

    /// Whether a PostgreSQL that accepts writes is left alone even without the right to: in maintenance. Where nobody
    /// here knows whether the cluster is paused, only who has said to be paused without a fence surely was.
    fn is_left_alone(&self) -> bool {
        let is_announced = |t: &Topology| t.disarmed.contains(&self.me.name);
        self.settings().is_paused
            || self
                .topology()
                .is_some_and(|t| t.is_config_unknown() && is_announced(t))
    }
}
