//! The hand-over of a planned change: n1 leads and is asked to give the key to n2, with a router that holds clients
//! meanwhile, and whatever dies or is not heard of dies at each step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::checker::{Model, Steps, bits};
use super::look::{MEMBERS, number, settings};
use super::members::turn::Members;
use super::members::{Member, Postgres, Router, Stage, State};
use super::race::led;
use super::rule::Rule;

/// What must be true of every state.
const PROPERTIES: [&str; 5] = [
    "at most one writable primary",
    "whoever may write has an armed fence",
    "a planned change loses nothing",
    "nobody stops for a successor before clients are held",
    "every action is known to the model",
];

/// So many leaderships: more than the faults allow.
const EPOCHS: u8 = 9;

/// The model of the hand-over.
pub(super) struct HandOver {
    members: Members,
    faults: u8,
}

impl HandOver {
    /// So many faults, and two members or all three. The last record of a stop has to be received in any case; what is
    /// written before comes with the third.
    pub(super) fn new((faults, count): (u8, u8), rule: Option<Rule>) -> Self {
        let count = count.clamp(2, number(MEMBERS));
        let members = Members {
            rule,
            settings: Arc::new(Members::settings(settings(), rule)),
            count,
            epochs: EPOCHS,
            writes: count.saturating_sub(2),
            decided: RefCell::new(BTreeMap::new()),
        };
        Self { members, faults }
    }
}

impl Model for HandOver {
    type State = State;

    fn properties(&self) -> &'static [&'static str] {
        &PROPERTIES
    }

    fn in_the_end(&self) -> Option<&'static str> {
        Some("somebody leads, and no client is held, in the end")
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "the candidate leads and nothing of the change is left",
            "the old leader goes on after its WAL has ended",
            "the key has moved and the candidate's agent is dead",
            "the outcome of a move is not known",
        ]
    }

    fn start(&self) -> State {
        let mut state = led(false, self.faults);
        state.store.is_asked = true;
        state.behind = state.store;
        for absent in &mut state.members[usize::from(self.members.count)..] {
            absent.is_agent_alive = false;
            absent.end(true);
        }
        state.router = Some(Router::default());
        state
    }

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        self.members.steps(state, steps);
    }

    fn broken(&self, state: &State) -> u32 {
        let unarmed = |member: &Member| member.postgres.may_write() && member.armed.is_none();
        let flaws = &state.flaws;
        bits(&[
            state.writable() > 1,
            state.members.iter().any(unarmed),
            flaws.is_lost,
            flaws.is_unheld,
            flaws.is_unknown,
        ])
    }

    fn is_settled(&self, state: &State) -> bool {
        let leads = (0..number(MEMBERS)).any(|who| state.leads(who));
        leads && is_released(state)
    }

    fn is_near_bound(&self, state: &State) -> bool {
        self.members.is_near_bound(state)
    }

    fn seen(&self, state: &State) -> u32 {
        let has_stopped = state
            .store
            .change
            .is_some_and(|change| matches!(change.stage, Stage::Stopped(_)));
        let old = &state.members[0];
        let candidate = &state.members[1];
        let is_moved = has_stopped && state.store.key.is_some_and(|(who, _)| who == 1);
        let is_unresolved = |member: &Member| {
            matches!(
                member.right,
                super::right::Right::Mine {
                    is_unresolved: true,
                    ..
                }
            )
        };
        bits(&[
            state.leads(1) && is_released(state),
            has_stopped && old.postgres == Postgres::Primary,
            is_moved && !candidate.is_agent_alive,
            is_unresolved(old),
        ])
    }
}

/// Nothing of the change is left, and nobody is held for it.
fn is_released(state: &State) -> bool {
    let is_held = state.router.is_some_and(|router| router.holds.is_some());
    !state.store.is_asked && state.store.change.is_none() && !is_held
}
