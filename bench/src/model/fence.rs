//! The deadline of one leader, and who keeps it: its agent, its fence, and a rival that leads as soon as the store lets
//! it. Time goes by a tenth of a second, so that the margins themselves are looked at.

use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::decision::StopMode;
use trunkline_agent::decide::observation::{CommitsView, Local, RunningRole};
use trunkline_agent::decide::{Action, Memory, Situation, decide};
use trunkline_agent::lease::arming::Arming;
use trunkline_agent::lease::state::{KeyCheck, LeaseState};
use trunkline_shared::cluster::{ClusterSettings, Leader, Lsn};

use super::checker::{Model, Steps, bits};
use super::look::{NOW, TTL, epoch, name, plain_look, plain_me, plain_topology, running, settings};
use super::right::{Right, Scale};
use super::rule::Rule;

/// What must be true of every state.
const PROPERTIES: [&str; 2] = [
    "at most one writable primary",
    "a member past the end of its lease is fenced",
];
/// The unit of time.
const SCALE: Scale = Scale {
    tick: Duration::from_millis(100),
    ttl: TTL,
};
/// The length of the lease, in ticks.
const LEASE: u8 = 20;
/// So long may a kill take (`lease/state.rs`), in ticks.
const KILL: u8 = 3;
/// An answer that is older than this is waited for no more: a quarter of the lease.
const OLDEST_ANSWER: u8 = LEASE / 4;

/// Whether the fence process does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Fence {
    Live,
    Dead,
}

/// What a renewal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Found {
    Mine,
    Missing,
    Other,
}

/// One leader, and what keeps its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
        seen.lease = SCALE.state(state.right).view().clone();
        seen.fence.armed_until = state.armed.map(|left| SCALE.ahead(left));
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
        let mut lease = SCALE.state(state.right);
        lease.renewed(SCALE.renewal(age, found.check()));
        next.right = SCALE.right(&lease);
        if let (true, Right::Mine { left, .. }) = (self.is(Rule::NoMargin), &mut next.right) {
            *left = (*left).max(LEASE - age);
        }
        if let Right::Mine { left, .. } = next.right {
            // Nothing that is written here can fail.
            let _ = arming.keep(SCALE.ahead(left));
            next.armed = arming.deadline().map(|at| SCALE.ticks(NOW.until(at)));
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
        let right = SCALE.right(&lease);
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

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        let is_sound = state.is_agent_alive && state.fence == Fence::Live;
        let is_due = state.armed == Some(0) && state.is_writable;
        let mut may_pass = true;
        if is_due && state.fence == Fence::Live && !self.is(Rule::NoFence) {
            steps.add("the fence has killed", 0, false, state.ended());
            may_pass = state.killing < KILL;
        }
        if state.is_agent_alive {
            self.of_agent(state, steps);
            let stops = state.is_writable && self.stops(state);
            if stops {
                steps.add("the agent stops PostgreSQL", 0, false, state.ended());
            }
            // Where the fence is dead the agent has to be in time; it looks at the deadline by a timer.
            may_pass &= !(stops && is_due && state.fence == Fence::Dead);
        } else {
            let is_agent_alive = true;
            steps.add(
                "the agent starts",
                0,
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
            steps.add(
                "the fence dies",
                0,
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
            steps.add("the agent dies", 0, true, next);
        }
        if state.lease == 0 && !state.has_rival && !self.is(Rule::KeyOutlivesLease) {
            let has_rival = true;
            steps.add(
                "a rival leads",
                0,
                false,
                State {
                    has_rival,
                    ..*state
                },
            );
        }
        if may_pass {
            steps.add("a moment passes", 0, false, state.later(is_due));
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
    fn of_agent(&self, state: &State, steps: &mut Steps<State>) {
        match state.renewal {
            Some((age, found)) => {
                steps.add("a renewal is told", 0, false, self.told(state, age, found))
            }
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
                steps.add(
                    "renews",
                    0,
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
            steps.add("the fence is replaced", 0, false, State { fence, ..*state });
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
        Arming::new(
            self.armed.map(|left| SCALE.ahead(left)),
            write,
            Box::new(move || is_live),
        )
    }

    /// A tenth of a second later.
    fn later(&self, is_due: bool) -> Self {
        let renewal = self.renewal.map(|(age, found)| (age + 1, found));
        State {
            lease: self.lease.saturating_sub(1),
            right: SCALE.later(self.right),
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

impl Found {
    fn check(self) -> KeyCheck {
        match self {
            Found::Mine => KeyCheck::Mine(epoch(1)),
            Found::Missing => KeyCheck::Missing,
            Found::Other => KeyCheck::Other,
        }
    }
}
