//! The race for the leader key: three members, of which the leader is lost in every way, and at every moment of their
//! turns.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_shared::cluster::ClusterSettings;
use trunkline_shared::cluster::settings::SynchronousMode;

use super::checker::{Model, Steps, bits};
use super::look::{MEMBERS, number, settings};
use super::members::turn::Members;
use super::members::{
    ACTS, Act, FORKS, Flaws, LEASE, Member, Postgres, Recorded, Remembers, State, Store, Wal,
};
use super::right::Right;
use super::rule::Rule;

/// What must be true of every state; the last is about replicas that nobody waits for.
const PROPERTIES: [&str; 5] = [
    "at most one writable primary",
    "whoever may write has an armed fence",
    "nothing acknowledged is lost, or no more than the limit",
    "every action is known to the model",
    "nobody runs who is behind one that answered",
];

/// The model of the race.
pub(super) struct Race {
    members: Members,
    faults: u8,
}

impl Race {
    /// So many faults and leaderships; where commits wait, the first standby is the synchronous one.
    pub(super) fn new(
        is_synchronous: bool,
        (faults, epochs): (u8, u8),
        rule: Option<Rule>,
    ) -> Self {
        let base = ClusterSettings {
            synchronous_mode: match is_synchronous {
                true => SynchronousMode::On,
                false => SynchronousMode::Off,
            },
            ..settings()
        };
        let members = Members {
            rule,
            settings: Arc::new(Members::settings(base, rule)),
            count: number(MEMBERS),
            epochs,
            writes: 1,
            decided: RefCell::new(BTreeMap::new()),
        };
        Self { members, faults }
    }

    fn is_synchronous(&self) -> bool {
        self.members.settings.synchronous_mode != SynchronousMode::Off
    }
}

/// n1 leads, and two replicas follow it.
pub(super) fn led(is_synchronous: bool, faults: u8) -> State {
    let begin = Wal { timeline: 1, at: 0 };
    let store = Store {
        key: Some((0, 1)),
        claimed: (0, 0),
        recorded: 1,
        published: begin,
        sync: is_synchronous.then_some(Recorded {
            leader: 0,
            standbys: 1 << 1,
            revision: 1,
        }),
        is_asked: false,
        change: None,
        said: None,
    };
    let member = |is_leader| Member {
        postgres: if is_leader {
            Postgres::Primary
        } else {
            Postgres::Replica
        },
        wal: begin,
        right: match is_leader {
            true => Right::Mine {
                epoch: 1,
                left: LEASE - 1,
                is_missing: false,
                is_unresolved: false,
            },
            false => Right::No,
        },
        armed: is_leader.then_some(LEASE - 1),
        is_agent_alive: true,
        is_cut: false,
        remembers: Remembers::NOTHING,
        acts: [Act::Nothing; ACTS],
        late: None,
        ready: None,
    };
    State {
        store,
        behind: store,
        key_left: LEASE,
        epoch: 1,
        forks: [None; FORKS],
        members: std::array::from_fn(|who| member(who == 0)),
        acknowledged: is_synchronous.then_some(begin),
        router: None,
        announced: 0,
        faults,
        flaws: Flaws::default(),
    }
}

impl Model for Race {
    type State = State;

    fn properties(&self) -> &'static [&'static str] {
        match self.is_synchronous() {
            true => &PROPERTIES[..4],
            false => &PROPERTIES,
        }
    }

    fn in_the_end(&self) -> Option<&'static str> {
        Some("somebody leads in the end")
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "another member leads",
            "a member is told to lead while another holds the key",
            "a replica was the leader",
        ]
    }

    fn start(&self) -> State {
        led(self.is_synchronous(), self.faults)
    }

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        self.members.steps(state, steps);
    }

    fn broken(&self, state: &State) -> u32 {
        let unarmed = |member: &Member| member.postgres.may_write() && member.armed.is_none();
        let Flaws {
            is_behind,
            is_lost,
            is_unknown,
            is_unheld: _,
        } = state.flaws;
        bits(&[
            state.writable() > 1,
            state.members.iter().any(unarmed),
            is_lost,
            is_unknown,
            is_behind,
        ])
    }

    fn is_settled(&self, state: &State) -> bool {
        (0..number(MEMBERS)).any(|who| state.leads(who))
    }

    fn is_near_bound(&self, state: &State) -> bool {
        self.members.is_near_bound(state)
    }

    fn seen(&self, state: &State) -> u32 {
        let runs = |member: &Member| matches!(member.acts[0], Act::Acquire { .. });
        let is_late = state.members.iter().any(runs) && state.store.key.is_some();
        bits(&[
            state.leads(1) || state.leads(2),
            is_late,
            state.members[0].postgres == Postgres::Replica,
        ])
    }
}
