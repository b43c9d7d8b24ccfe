//! A node: its clock, its processes and what they hold in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::decision::SlotCare;
use trunkline_agent::decide::observation::Local;
use trunkline_agent::decide::observation::{
    JobView, LocalRequest, Me, PeerAnswer, Reached, WatchdogView,
};
use trunkline_agent::decide::small_moves::WrittenRecord;
use trunkline_agent::decide::store::StoreView;
use trunkline_agent::decide::{Action, Memory};
use trunkline_agent::lease::state::LeaseState;
use trunkline_agent::watchdog::RESERVE;
use trunkline_shared::cluster::{LeaderEpoch, Lsn, Member, MemberName, Moment, Topology};
use trunkline_shared::dcs::Header;

use super::event::{NodeId, Time};
use super::failsafe::{Consent, Kept};
use super::fake_postgres::Postgres;
use super::lost_memory::KeptStore;

/// The lease task's own variables.
#[derive(Default)]
pub(super) struct LeaseTask {
    pub(super) state: LeaseState,
    /// The lease that the member's keys hang on; 0 for none.
    pub(super) id: i64,
    /// When the last answered keep-alive of it was sent.
    pub(super) sent: Moment,
    /// The raft term of that answer.
    pub(super) term: u64,
    /// Both as they were when the last order was sent: what a deposed leader of the store answers after it proves
    /// nothing.
    pub(super) ordered: (Moment, u64),
    pub(super) is_granting: bool,
    /// Raised by every change of authority: a check that began before one does not count.
    pub(super) changes: u32,
    /// Nothing is renewed before that.
    pub(super) lapses_until: Moment,
    /// None is renewed because no fence can be had.
    pub(super) is_without_fence: bool,
    /// The highest epoch held so far.
    pub(super) highest: LeaderEpoch,
    /// The keys were ordered to be made anew, the leader's on another lease, and whether that was done is not known.
    pub(super) is_moving: bool,
    /// In which store the key is that it is held by.
    pub(super) of_store: u32,
}

/// What a look saw before anybody was asked.
pub(super) struct Snapshot {
    pub(super) local: Local,
    pub(super) job: JobView,
    pub(super) store: StoreView,
    /// When the view was last proved the newest, if there was one.
    pub(super) proved: Option<Moment>,
    pub(super) has_read_all: bool,
}

/// The agent process.
pub(super) struct Agent {
    pub(super) is_alive: bool,
    pub(super) boot: u32,
    pub(super) paused_until: Time,
    pub(super) me: Arc<Me>,
    pub(super) memory: Memory,
    pub(super) view: Option<Arc<Topology>>,
    /// What the store shows that is not believed.
    pub(super) doubted: Option<Arc<Topology>>,
    /// How far it saw the store was found beside the data.
    pub(super) knew_store: bool,
    /// Nothing is asked of the store, since it is not believed.
    pub(super) is_store_shut: bool,
    /// What the clients of the agent have seen of the store.
    pub(super) client_saw: Header,
    /// How often a store was accepted anew.
    pub(super) acceptances: u32,
    /// It made the keys anew, and its view does not show it yet.
    pub(super) has_recreated: bool,
    /// The store has lost the configuration: the view shows the settings of before.
    pub(super) is_config_lost: bool,
    /// The view with which it was decided last, before what is broken on purpose changes it.
    pub(super) decided_by: Option<Arc<Topology>>,
    /// The view with which it was last decided to make the instance writable.
    pub(super) made_writable_by: Option<Arc<Topology>>,
    /// Which nodes a view in this life of the agent has shown registered.
    pub(super) ever_seen: [bool; 5],
    /// When the view was last proved the newest, by this node's clock.
    pub(super) proved: Moment,
    pub(super) lease: LeaseTask,
    pub(super) consent: Consent,
    /// The number of the turn; odd or even alike, it only grows.
    pub(super) turn: u32,
    pub(super) is_in_turn: bool,
    pub(super) is_woken: bool,
    pub(super) next_wake: Time,
    /// What the look in progress saw of the instance, and of the jobs and the store just before.
    pub(super) snapshot: Option<Snapshot>,
    /// The highest generation known when the last decision was made.
    pub(super) decided_at: u64,
    /// Who led, how far the WAL here reached, and whether that was all of it, as its last turn found it: what others are
    /// answered.
    pub(super) leader_at_look: Option<MemberName>,
    pub(super) reach_at_look: Option<(Lsn, bool)>,
    /// How far its primary had written then.
    pub(super) written_at_look: Option<Reached>,
    pub(super) answers: Option<BTreeMap<MemberName, PeerAnswer>>,
    pub(super) answers_missing: u8,
    /// Whose agents ran when it asked last, or when its question came to them; all of them before it asked any.
    pub(super) met: [bool; 5],
    /// When it trusted the store last, and whose agents ran then.
    pub(super) trusted: Trusted,
    /// The same when it took the key last.
    pub(super) met_before: [bool; 5],
    pub(super) actions: Vec<Action>,
    pub(super) step: usize,
    pub(super) next_within: Time,
    /// Turns in a row of which an action failed.
    pub(super) failures: u32,
    /// When the turn in progress looked.
    pub(super) looked_at: Moment,
    pub(super) job: JobView,
    pub(super) job_number: u32,
    /// It copies from whom an operator named to lead the standby cluster, as it was when it began.
    pub(super) is_job_of_operators_leader: bool,
    /// What the job that tends logical slots was told.
    pub(super) slot_care: SlotCare,
    pub(super) request: Option<LocalRequest>,
    pub(super) is_shutting_down: bool,
    /// The instance answered in this life of the agent and of the instance.
    pub(super) seen_running: bool,
    pub(super) record: Option<WrittenRecord>,
    pub(super) record_lease: i64,
    /// The record as it is to stand.
    pub(super) wanted: Option<Arc<Member>>,
    /// How many records were sent; the answer to the last counts.
    pub(super) records: u32,
    /// Turns in the current ten seconds.
    pub(super) turns: u32,
    pub(super) turns_since: Time,
    pub(super) started_at: Time,
}

impl Agent {
    /// An agent that has just started and leaves so much of its leases unused.
    pub(super) fn started(me: Arc<Me>, boot: u32, reserve: Duration) -> Self {
        Self {
            is_alive: true,
            boot,
            paused_until: 0,
            me,
            memory: Memory {
                is_key_unchecked: true,
                ..Memory::default()
            },
            view: None,
            doubted: None,
            knew_store: false,
            is_store_shut: false,
            client_saw: Header::default(),
            acceptances: 0,
            has_recreated: false,
            is_config_lost: false,
            decided_by: None,
            made_writable_by: None,
            ever_seen: [false; 5],
            proved: Moment(0),
            lease: LeaseTask {
                state: LeaseState::default().reserving(reserve),
                ..LeaseTask::default()
            },
            consent: Consent::unborn(),
            turn: 0,
            is_in_turn: false,
            is_woken: false,
            next_wake: Time::MAX,
            snapshot: None,
            decided_at: 0,
            leader_at_look: None,
            reach_at_look: None,
            written_at_look: None,
            answers: None,
            answers_missing: 0,
            met: [true; 5],
            trusted: Trusted::default(),
            met_before: [true; 5],
            actions: Vec::new(),
            step: 0,
            next_within: 0,
            failures: 0,
            looked_at: Moment::default(),
            job: JobView::default(),
            job_number: 0,
            is_job_of_operators_leader: false,
            slot_care: SlotCare::default(),
            request: None,
            is_shutting_down: false,
            seen_running: false,
            record: None,
            record_lease: 0,
            wanted: None,
            records: 0,
            turns: 0,
            turns_since: 0,
            started_at: 0,
        }
    }
}

/// The fence process.
#[derive(Default)]
pub(super) struct Fence {
    pub(super) is_alive: bool,
    pub(super) frozen_until: Time,
    pub(super) frozen_since: Time,
    /// When it began to run.
    pub(super) started: Time,
    /// Which fence process this is.
    pub(super) number: u32,
    /// How often it stopped running.
    pub(super) left: u32,
    /// It was frozen until the deadline and killed after it, before its watchdog had counted to the end: that counts once
    /// more then, for it was pinged as its file was closed.
    pub(super) is_pinged_late: bool,
    pub(super) is_starting: bool,
    /// Until then no other can be started.
    pub(super) missing_until: Time,
    /// Until when the one before looked live.
    pub(super) live_until: Time,
}

/// What a member trusted the store by.
#[derive(Clone, Copy, Default)]
pub(super) struct Trusted {
    pub(super) at: Time,
    pub(super) incarnation: u32,
    pub(super) met: [bool; 5],
}

/// What lies in the folder that survives the agent but not the machine.
#[derive(Clone, Default)]
pub(super) struct RunDir {
    /// Promises, and what a restarted leader needs.
    pub(super) failsafe: Kept,
    /// Until when the instance may live; armed if there is one.
    pub(super) deadline: Option<Moment>,
    /// Since when it has been armed.
    pub(super) armed_at: Time,
    pub(super) lease: i64,
    /// What is known of the store.
    pub(super) store: KeptStore,
}

/// What is made to go wrong on a node until a time.
#[derive(Clone, Copy, Default)]
pub(super) struct Troubles {
    pub(super) stop_is_slow: Time,
    pub(super) clone_fails: Time,
    pub(super) rewind_fails: Time,
    pub(super) start_fails: Time,
    pub(super) initdb_fails: Time,
    pub(super) replication_stalls: Time,
    /// No write to its disk comes back, from when on, and until when.
    pub(super) disk_hung_at: Time,
    pub(super) disk_hangs: Time,
    /// Its disk is nearly full.
    pub(super) disk_is_full: Time,
}

/// A node.
pub(super) struct Node {
    pub(super) name: MemberName,
    pub(super) address: Arc<str>,
    pub(super) api_url: Arc<str>,
    pub(super) is_powered: bool,
    /// For how long others who know the cluster could be heard while this one was to start last.
    pub(super) waits_for_word: Time,
    pub(super) frozen_until: Time,
    /// From when to when it stood still last.
    pub(super) stood_still: (Time, Time),
    /// What CLOCK_BOOTTIME showed at the beginning of the world.
    pub(super) offset: i64,
    /// Its rate error, parts per million.
    pub(super) drift: i64,
    pub(super) agent: Agent,
    pub(super) fence: Fence,
    pub(super) run_dir: RunDir,
    pub(super) postgres: Postgres,
    pub(super) troubles: Troubles,
    /// The device that resets the machine.
    pub(super) watchdog: WatchdogView,
    /// When nothing on the node could enforce the deadline for the last time.
    pub(super) unguarded: Time,
}

impl Node {
    /// The node's CLOCK_BOOTTIME at a true time.
    pub(super) fn clock(&self, at: Time) -> Moment {
        let at = at as i64;
        let local = self.offset + at + at * self.drift / 1_000_000;
        Moment(u64::try_from(local).unwrap_or(0))
    }

    /// The first true time at which the node's clock shows `moment`.
    pub(super) fn when(&self, moment: Moment) -> Time {
        let local = moment.0 as i64 - self.offset;
        let guess = (i128::from(local) * 1_000_000 / i128::from(1_000_000 + self.drift)) as i64;
        let mut at = u64::try_from(guess).unwrap_or(0);
        while self.clock(at) < moment {
            at += 1_000;
        }
        at
    }

    /// Until when the agent does not run.
    pub(super) fn agent_sleeps_until(&self) -> Time {
        self.agent.paused_until.max(self.frozen_until)
    }

    /// Until when the fence does not run.
    pub(super) fn fence_sleeps_until(&self) -> Time {
        self.fence.frozen_until.max(self.frozen_until)
    }

    /// Whether the fence would look live to its agent.
    pub(super) fn fence_looks_live(&self, now: Time) -> bool {
        let is_stale = self.fence.frozen_until > now && now > self.fence.frozen_since + HEARTBEAT;
        self.fence.is_alive && !is_stale
    }

    /// Whether a renewal may count: an armed deadline moves on only while a live fence keeps it, or did a moment ago.
    pub(super) fn may_move_on(&self, now: Time) -> bool {
        let was_live = now <= self.fence.live_until + SEEN_LIMIT;
        self.run_dir.deadline.is_none() || self.fence_looks_live(now) || was_live
    }

    /// The fence is about to end: until when it looked live.
    pub(super) fn note_live_fence(&mut self, now: Time) {
        if self.fence.is_alive {
            self.fence.live_until = match self.fence.frozen_until > now {
                true => now.min(self.fence.frozen_since + HEARTBEAT),
                false => now,
            };
        }
    }

    /// Whether the fence has run since it was armed, and so has the watchdog in hand.
    pub(super) fn holds_watchdog(&self, now: Time) -> bool {
        self.fence.frozen_until <= now || self.fence.frozen_since >= self.run_dir.armed_at
    }

    /// Whether the watchdog lets it become writable.
    pub(super) fn is_watched(&self, now: Time) -> bool {
        match self.watchdog {
            WatchdogView::NotRequired => true,
            WatchdogView::Ready => self.holds_watchdog(now),
            WatchdogView::Failed => false,
        }
    }

    /// What its agent leaves unused of a lease.
    pub(super) fn reserve(&self) -> Duration {
        reserve(self.watchdog)
    }

    /// Whether some process on it runs that enforces the deadline.
    pub(super) fn is_guarded(&self, now: Time) -> bool {
        if self.watchdog != WatchdogView::NotRequired {
            // The machine itself enforces it while it runs.
            return self.frozen_until <= now;
        }
        let fence = self.fence.is_alive && self.fence.frozen_until <= now;
        let agent = self.agent.is_alive && self.agent.paused_until <= now;
        self.frozen_until <= now && (fence || agent)
    }
}

/// A fence that has not stamped its heartbeat for so long is taken for frozen.
const HEARTBEAT: Time = super::event::SECOND;

/// How long ago a live fence may have been seen for renewals to count (`fence/supervision.rs`).
const SEEN_LIMIT: Time = 2 * super::event::SECOND;

/// What is left unused of a lease where there is such a watchdog.
pub(super) fn reserve(watchdog: WatchdogView) -> Duration {
    match watchdog {
        WatchdogView::NotRequired => Duration::ZERO,
        WatchdogView::Ready | WatchdogView::Failed => RESERVE,
    }
}

/// The names of the nodes, in order.
pub(super) fn member_name(node: NodeId) -> MemberName {
    let names = ["a", "b", "c", "d", "e"];
    MemberName::new(names[usize::from(node)])
}
