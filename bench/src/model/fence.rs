//! The deadline of one leader, and who keeps it: its agent, its fence, and a rival that leads as soon as the store lets
//! it. Time goes by a tenth of a second, so that the margins themselves are looked at.

use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::decision::StopMode;
use trunkline_agent::decide::observation::{CommitsView, LeaseView, Local, RunningRole};
use trunkline_agent::decide::{Action, Memory, Situation, decide};
use trunkline_agent::lease::arming::Arming;
use trunkline_agent::lease::state::{KeyCheck, LeaseState, Renewal};
use trunkline_shared::cluster::{ClusterSettings, Leader, Lsn, Moment};

use super::checker::{Label, Model, Step, bits};
use super::look::{NOW, TTL, epoch, name, plain_look, plain_me, plain_topology, running, settings};
use super::rule::Rule;

/// What must be true of every state.
const PROPERTIES: [&str; 2] = [
    "at most one writable primary",
    "a member past the end of its lease is fenced",
];
/// The unit of time.
const TICK: Duration = Duration::from_millis(100);
/// The length of the lease, in ticks.
const LEASE: u8 = 20;
/// So long may a kill take (`lease/state.rs`), in ticks.
const KILL: u8 = 3;
/// An answer that is older than this is waited for no more: a quarter of the lease.
const OLDEST_ANSWER: u8 = LEASE / 4;

/// Whether the fence process does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fence {
    Live,
    Dead,
}

/// What a renewal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Mine,
    Missing,
    Other,
}

/// The right to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    No,
    Lost,
    /// For so many ticks more.
    Mine {
        left: u8,
        is_missing: bool,
    },
}

/// One leader, and what keeps its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State {
    /// Ticks that the lease has left in the store; at none the key is gone.
    lease: u8,
    right: Right,
    /// Ticks until the fence fires.
    armed: Option<u8>,
    /// For so long the fence has been killing.
    killing: u8,
    is_writable: bool,
    is_agent_alive: bool,
    fence: Fence,
    /// How long ago a renewal reached the store, and what it found.
    renewal: Option<(u8, Found)>,
    /// Another member has taken the key, and accepts writes at once.
    has_rival: bool,
    faults: u8,
}

/// The model of the fence.
pub(super) struct Fenced {
    rule: Option<Rule>,
    settings: Arc<ClusterSettings>,
    faults: u8,
}

impl Fenced {
    pub(super) fn new(faults: u8, rule: Option<Rule>) -> Self {
        Self {
            rule,
            settings: Arc::new(settings()),
            faults,
        }
    }

    fn is(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }

    /// Whether the agent, looking now, stops its PostgreSQL at once.
    fn stops(&self, state: &State) -> bool {
        if self.is(Rule::FenceLeftDead) || self.is(Rule::NoFence) {
            return false;
        }
        let mut topology = plain_topology(&self.settings);
        let leader = match (state.has_rival, state.lease > 0) {
            (true, _) => Some(1),
            (false, true) => Some(0),
            (false, false) => None,
        };
        topology.leader = leader.map(|who| Leader {
            member: name(who),
            epoch: epoch(1 + who),
            lease: i64::from(who) + 1,
        });
        let role = RunningRole::Primary {
            position: Lsn(1_000_000),
            is_checkpointed: true,
        };
        let local = Local::Running(running(1, role, CommitsView::default()));
        let mut seen = plain_look(Arc::new(plain_me(0)), topology, local);
        seen.lease = state.right.state().view().clone();
        seen.fence.armed_until = state.armed.map(ahead);
        seen.fence.is_live = state.fence == Fence::Live;
        let decision = decide(&seen, &Memory::default());
        decision.situation == Situation::AuthorityGone
            && decision
                .actions
                .contains(&Action::Stop(StopMode::Immediate))
    }

    /// A renewal is heard of: it counts only where a live fence keeps what is armed.
    fn told(&self, state: &State, age: u8, found: Found) -> State {
        let arming = state.arming();
        let mut next = State {
            renewal: None,
            ..*state
        };
        if !arming.may_move_on() {
            return next;
        }
        let age = match self.is(Rule::DeadlineFromAnswer) {
            true => 0,
            false => age,
        };
        let mut lease = state.right.state();
        lease.renewed(renewal(age, found));
        next.right = Right::of(&lease);
        if let (true, Right::Mine { left, .. }) = (self.is(Rule::NoMargin), &mut next.right) {
            *left = (*left).max(LEASE - age);
        }
        if let Right::Mine { left, .. } = next.right {
            // Nothing that is written here can fail.
            let _ = arming.keep(ahead(left));
            next.armed = arming.deadline().map(|at| ticks(NOW.until(at)));
        }
        next
    }
}

impl Model for Fenced {
    type State = State;

    fn properties(&self) -> &'static [&'static str] {
        &PROPERTIES
    }

    fn in_the_end(&self) -> Option<&'static str> {
        Some("somebody leads in the end")
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "a rival leads",
            "a fence is dead while the deadline is near",
            "an agent is dead when the deadline has come",
        ]
    }

    fn start(&self) -> State {
        let mut lease = LeaseState::default();
        lease.acquired(epoch(1), NOW, TTL);
        let right = Right::of(&lease);
        State {
            lease: LEASE,
            right,
            armed: right.left(),
            killing: 0,
            is_writable: true,
            is_agent_alive: true,
            fence: Fence::Live,
            renewal: None,
            has_rival: false,
            faults: self.faults,
        }
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step<State>>) {
        let mut add = |what, is_fault, next: State| {
            if next != *state {
                steps.push(Step {
                    label: Label { what, who: 0 },
                    state: next,
                    is_fault,
                });
            }
        };
        let is_sound = state.is_agent_alive && state.fence == Fence::Live;
        let is_due = state.armed == Some(0) && state.is_writable;
        let mut may_pass = true;
        if is_due && state.fence == Fence::Live && !self.is(Rule::NoFence) {
            add("the fence has killed", false, state.ended());
            may_pass = state.killing < KILL;
        }
        if state.is_agent_alive {
            self.of_agent(state, &mut add);
            let stops = state.is_writable && self.stops(state);
            if stops {
                add("the agent stops PostgreSQL", false, state.ended());
            }
            // Where the fence is dead the agent has to be in time; it looks at the deadline by a timer.
            may_pass &= !(stops && is_due && state.fence == Fence::Dead);
        } else {
            let is_agent_alive = true;
            add(
                "the agent starts",
                false,
                State {
                    is_agent_alive,
                    ..*state
                },
            );
        }
        if state.faults > 0 && is_sound {
            let faults = state.faults - 1;
            let fence = Fence::Dead;
            add(
                "the fence dies",
                true,
                State {
                    faults,
                    fence,
                    ..*state
                },
            );
            let next = State {
                faults,
                is_agent_alive: false,
                right: Right::No,
                renewal: None,
                ..*state
            };
            add("the agent dies", true, next);
        }
        if state.lease == 0 && !state.has_rival {
            let has_rival = true;
            add(
                "a rival leads",
                false,
                State {
                    has_rival,
                    ..*state
                },
            );
        }
        if may_pass {
            add("a moment passes", false, state.later(is_due));
        }
    }

    fn broken(&self, state: &State) -> u32 {
        let is_late = state.is_writable && state.lease == 0;
        let broken = [state.is_writable && state.has_rival, is_late];
        bits(&broken)
    }

    fn is_settled(&self, state: &State) -> bool {
        state.has_rival || (state.is_writable && state.lease > 0)
    }

    fn seen(&self, state: &State) -> u32 {
        let is_near = state.armed.is_some_and(|left| left <= KILL);
        let is_dead = !state.is_agent_alive && state.armed == Some(0);
        bits(&[
            state.has_rival,
            state.fence == Fence::Dead && is_near,
            is_dead && state.is_writable,
        ])
    }
}

impl Fenced {
    fn of_agent(&self, state: &State, add: &mut impl FnMut(&'static str, bool, State)) {
        match state.renewal {
            Some((age, found)) => add("a renewal is told", false, self.told(state, age, found)),
            None => {
                let found = match (state.has_rival, state.lease > 0) {
                    (true, _) => Found::Other,
                    (false, true) => Found::Mine,
                    (false, false) => Found::Missing,
                };
                let lease = match found {
                    Found::Mine => LEASE,
                    Found::Missing | Found::Other => state.lease,
                };
                // An agent that was restarted finds its name in the key, and proves it by the same renewal.
                let renewal = Some((0, found));
                add(
                    "renews",
                    false,
                    State {
                        lease,
                        renewal,
                        ..*state
                    },
                );
            }
        }
        if state.fence == Fence::Dead && !self.is(Rule::FenceLeftDead) {
            let fence = Fence::Live;
            add("the fence is replaced", false, State { fence, ..*state });
        }
    }
}

impl State {
    /// PostgreSQL is dead, and the fence sleeps.
    fn ended(&self) -> Self {
        State {
            is_writable: false,
            armed: None,
            killing: 0,
            ..*self
        }
    }

    fn arming(&self) -> Arming {
        let is_live = self.fence == Fence::Live;
        let write = Box::new(|_| Ok(()));
        Arming::new(self.armed.map(ahead), write, Box::new(move || is_live))
    }

    /// A tenth of a second later.
    fn later(&self, is_due: bool) -> Self {
        let mut lease = self.right.earlier().state();
        lease.lapsed(NOW);
        let renewal = self.renewal.map(|(age, found)| (age + 1, found));
        State {
            lease: self.lease.saturating_sub(1),
            right: Right::of(&lease),
            armed: self.armed.map(|left| left.saturating_sub(1)),
            killing: match is_due && self.fence == Fence::Live {
                true => (self.killing + 1).min(KILL),
                false => 0,
            },
            renewal: renewal.filter(|(age, _)| *age <= OLDEST_ANSWER),
            ..*self
        }
    }
}

impl Right {
    fn left(self) -> Option<u8> {
        match self {
            Right::Mine { left, .. } => Some(left),
            Right::No | Right::Lost => None,
        }
    }

    /// With a tick less.
    fn earlier(self) -> Self {
        match self {
            Right::Mine { left, is_missing } => Right::Mine {
                left: left.saturating_sub(1),
                is_missing,
            },
            Right::No | Right::Lost => self,
        }
    }

    /// The real state of the lease task that shows this.
    fn state(self) -> LeaseState {
        let mut lease = LeaseState::default();
        match self {
            Right::No => {}
            Right::Lost => {
                lease.acquired(epoch(1), NOW, TTL);
                lease.renewed(renewal(0, Found::Other));
            }
            Right::Mine { left, is_missing } => {
                let whole = NOW.until(lease.deadline(NOW, TTL));
                lease.acquired(epoch(1), ahead(left).before(whole), TTL);
                if is_missing {
                    lease.renewed(renewal(0, Found::Missing));
                }
            }
        }
        lease
    }

    fn of(lease: &LeaseState) -> Self {
        match lease.view() {
            LeaseView::NotHeld => Right::No,
            LeaseView::Lost => Right::Lost,
            LeaseView::Held(held) => Right::Mine {
                left: ticks(NOW.until(held.deadline)),
                is_missing: held.is_key_missing,
            },
        }
    }
}

fn ahead(ticks: u8) -> Moment {
    NOW + TICK * u32::from(ticks)
}

fn ticks(duration: Duration) -> u8 {
    u8::try_from(duration.as_millis() / TICK.as_millis()).unwrap_or(u8::MAX)
}

fn renewal(age: u8, found: Found) -> Renewal {
    Renewal {
        sent: NOW.before(TICK * u32::from(age)),
        ttl: TTL,
        keep_alive_term: 1,
        check_term: 1,
        found: match found {
            Found::Mine => KeyCheck::Mine(epoch(1)),
            Found::Missing => KeyCheck::Missing,
            Found::Other => KeyCheck::Other,
        },
    }
}
