//! Whom commits wait for, and who may lead after: one leader that keeps two standbys by the real rules, and at every
//! state the question whether either standby, asked now, would take the key without an acknowledged commit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::observation::{CommitsView, Local, PeerAnswer, Peers, RunningRole};
use trunkline_agent::decide::{Action, Memory, decide};
use trunkline_agent::lease::state::LeaseState;
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{ClusterSettings, Leader, Topology};

use super::checker::{Model, Steps, bits};
use super::look::{
    NOW, TTL, epoch, name, number, plain_answer, plain_look, plain_me, plain_topology, replica,
    running, settings,
};
use super::rule::Rule;
use shown::{
    believe_what_was_set, memory, names_of, of_sync_names, place, senders, set_of, sync_names,
    written,
};

mod shown;

/// What must be true of every state.
const PROPERTIES: [&str; 2] = [
    "no acknowledged synchronous write is lost",
    "every action is known to the model",
];
/// The revision of the record; a write that is under way is void once another one was made.
const REVISION: i64 = 7;
/// The unit of time: longer than a setting takes until it is certainly in force.
const TICK: Duration = Duration::from_millis(500);
/// How many standbys there are: n2 and n3, bits 0 and 1 of a set.
const STANDBYS: usize = 2;

/// A set of standbys, a bit each.
type Set = u8;

/// `synchronous_standby_names`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Names {
    Nobody,
    Blocked,
    All(Set),
    Any(u8, Set),
    /// The model does not know it.
    Unknown,
}

/// The `sync` record of this leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Recorded {
    standbys: Set,
    quorum: u8,
}

/// What the agent is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Turn {
    Idle,
    /// A write of the record is under way; what is to be set after it.
    Sent(Recorded, Option<Names>),
    /// It was made, and the answer is on its way.
    Told(Option<Names>),
}

/// A setting that was seen in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Note {
    /// For longer than a reload takes.
    is_old: bool,
    /// A position that was reached after that.
    at: Option<u8>,
}

/// Since when nobody can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Lost {
    No,
    Lately,
    /// For longer than `loop_wait`.
    Long,
}

/// The leader, its standbys and the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    /// So much is written, acknowledged, and flushed at each standby.
    written: u8,
    acknowledged: u8,
    flushed: [u8; STANDBYS],
    streams: [bool; STANDBYS],
    /// What the agent's file says, and what is in force.
    own: Option<Names>,
    in_force: Names,
    record: Recorded,
    turn: Turn,
    /// A write that nobody waits for any more.
    late: Option<Recorded>,
    note: Option<Note>,
    lost: Lost,
    is_unknown: bool,
    faults: u8,
}

/// What one look makes the leader do.
#[derive(Clone, Copy, Debug)]
struct Decided {
    record: Option<Recorded>,
    names: Option<Names>,
    note: Option<Note>,
    lost: Lost,
    is_unknown: bool,
}

/// What the leader's rules may depend on.
type Seen = (
    (u8, [u8; STANDBYS], [bool; STANDBYS]),
    (Option<Names>, Names, Recorded),
    (Option<Note>, Lost),
);

/// What an election may depend on: the record, who, what it has and, where that answers, what the other has.
type Elected = (Recorded, u8, u8, Option<u8>);

/// The model of one mode.
pub(super) struct Synchronous {
    rule: Option<Rule>,
    settings: Arc<ClusterSettings>,
    writes: u8,
    faults: u8,
    decided: RefCell<BTreeMap<Seen, Decided>>,
    elected: RefCell<BTreeMap<Elected, bool>>,
}

impl Synchronous {
    /// `writes` commits and `faults` faults at the most.
    pub(super) fn new(
        mode: SynchronousMode,
        is_strict: bool,
        (writes, faults): (u8, u8),
        rule: Option<Rule>,
    ) -> Self {
        Self {
            rule,
            settings: Arc::new(ClusterSettings {
                synchronous_mode: mode,
                is_synchronous_mode_strict: is_strict,
                ..settings()
            }),
            writes,
            faults,
            decided: RefCell::default(),
            elected: RefCell::default(),
        }
    }

    fn topology(&self, record: Recorded) -> Topology {
        let mut topology = plain_topology(&self.settings);
        topology.sync = Some(SyncState {
            leader: Some(name(0)),
            standbys: names_of(record.standbys).into_iter().collect(),
            quorum: u32::from(record.quorum),
            revision: REVISION,
        });
        topology
    }

    /// What the leader does now.
    fn decide(&self, state: &State) -> Decided {
        let seen = (
            (state.written, state.flushed, state.streams),
            (state.own, state.in_force, state.record),
            (state.note, state.lost),
        );
        let known = self.decided.borrow().get(&seen).copied();
        known.unwrap_or_else(|| {
            let decided = self.ask(state);
            self.decided.borrow_mut().insert(seen, decided);
            decided
        })
    }

    fn ask(&self, state: &State) -> Decided {
        let mut topology = self.topology(state.record);
        topology.leader = Some(Leader {
            member: name(0),
            epoch: epoch(1),
            lease: 1,
        });
        let mut commits = CommitsView {
            senders: Arc::new(senders(state)),
            in_force: sync_names(state.in_force),
            own: state.own.map(sync_names),
            ..CommitsView::default()
        };
        if self.rule == Some(Rule::RecordBeforeNames) {
            believe_what_was_set(&mut commits);
        }
        let role = RunningRole::Primary {
            position: place(state.written),
            is_checkpointed: true,
        };
        let local = Local::Running(running(1, role, commits));
        let mut seen = plain_look(Arc::new(plain_me(0)), topology, local);
        let mut lease = LeaseState::default();
        lease.acquired(epoch(1), NOW, TTL);
        seen.lease = lease.view().clone();
        seen.fence.armed_until = Some(NOW + TTL);
        let decision = decide(&seen, &memory(&seen, state));
        let mut decided = Decided {
            record: None,
            names: None,
            note: decision.memory.sync_note.as_ref().map(|note| Note {
                is_old: NOW.since(note.since) >= TICK,
                at: note.at.map(written),
            }),
            lost: match decision.memory.sync_lost_since {
                None => Lost::No,
                Some(since) if NOW.since(since).is_zero() => Lost::Lately,
                Some(_) => Lost::Long,
            },
            is_unknown: false,
        };
        for action in &decision.actions {
            decided.take(action);
        }
        match self.rule {
            Some(Rule::StepForgotten) => decided.is_unknown |= decided.record.is_some(),
            Some(Rule::NamesNeverSet) => decided.names = None,
            _ => {}
        }
        decided
    }

    /// Whether this standby would take the key, by what it has and what the other says.
    fn takes_the_key(&self, elected: Elected) -> bool {
        let known = self.elected.borrow().get(&elected).copied();
        known.unwrap_or_else(|| {
            let takes = self.race(elected);
            self.elected.borrow_mut().insert(elected, takes);
            takes
        })
    }

    fn race(&self, (record, who, has, other): Elected) -> bool {
        let mut topology = self.topology(record);
        match (self.rule, &mut topology.sync) {
            (Some(Rule::VoteShort), Some(sync)) => sync.quorum = sync.quorum.saturating_sub(1),
            (Some(Rule::OutsideSync), sync) => *sync = None,
            (_, _) => {}
        }
        let local = Local::Running(running(1, replica(place(has)), CommitsView::default()));
        let mut seen = plain_look(Arc::new(plain_me(who + 1)), topology, local);
        let word = match other {
            Some(at) => PeerAnswer::Answered(plain_answer(1, place(at))),
            None => PeerAnswer::Unreachable,
        };
        let answers = [(name(0), PeerAnswer::Unreachable), (name(2 - who), word)];
        seen.peers = Peers::Asked(Arc::new(BTreeMap::from(answers)));
        let decision = decide(&seen, &Memory::default());
        decision.actions.contains(&Action::AcquireLeader)
    }

    /// What is acknowledged once every process has looked again.
    fn acknowledged(state: &State) -> u8 {
        let has = |at: u8, set: Set| {
            let streaming = (0..STANDBYS).filter(|who| set & 1 << *who != 0 && state.streams[*who]);
            streaming.filter(|who| state.flushed[*who] >= at).count()
        };
        let is_released = |at: u8| match state.in_force {
            Names::Nobody => true,
            Names::Blocked | Names::Unknown => false,
            Names::All(set) => has(at, set) == set.count_ones() as usize,
            Names::Any(needed, set) => has(at, set) >= usize::from(needed),
        };
        let released = (0..=state.written).filter(|at| is_released(*at)).max();
        released.unwrap_or(0).max(state.acknowledged)
    }
}

impl Decided {
    fn take(&mut self, action: &Action) {
        match action {
            Action::WriteSync(sync) => {
                self.record = Some(Recorded {
                    standbys: set_of(&sync.standbys),
                    quorum: u8::try_from(sync.quorum).unwrap_or(u8::MAX),
                });
            }
            Action::SetSyncNames(names) => self.names = Some(of_sync_names(names)),
            // Neither who waits nor who may lead depends on these.
            Action::PublishStatus(_) | Action::RecordHistory => {}
            _ => self.is_unknown = true,
        }
    }
}

impl Model for Synchronous {
    type State = State;

    fn properties(&self) -> &'static [&'static str] {
        &PROPERTIES
    }

    fn in_the_end(&self) -> Option<&'static str> {
        Some("commits wait for whoever streams, and it may lead")
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "a standby in the record",
            "an acknowledged write that one standby lacks",
            "a record that the next one replaced",
        ]
    }

    fn start(&self) -> State {
        State {
            written: 0,
            acknowledged: 0,
            flushed: [0; STANDBYS],
            streams: [true; STANDBYS],
            own: None,
            in_force: Names::Nobody,
            record: Recorded {
                standbys: 0,
                quorum: 0,
            },
            turn: Turn::Idle,
            late: None,
            note: None,
            lost: Lost::No,
            is_unknown: false,
            faults: self.faults,
        }
    }

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        if let Some(next) = self.next_of_agent(state) {
            steps.add(next.0, 1, false, next.1);
        }
        if state.written < self.writes {
            let written = state.written + 1;
            steps.add("writes", 1, false, State { written, ..*state });
        }
        let acknowledged = Self::acknowledged(state);
        let next = State {
            acknowledged,
            ..*state
        };
        steps.add("acknowledges", 1, false, next);
        steps.add("takes its setting up", 1, false, state.reloaded());
        let older = state.note.map(|note| Note {
            is_old: true,
            ..note
        });
        steps.add(
            "waits a moment",
            1,
            false,
            State {
                note: older,
                ..*state
            },
        );
        if state.lost == Lost::Lately {
            let lost = Lost::Long;
            steps.add("waits for long", 1, false, State { lost, ..*state });
        }
        if let Some(record) = state.late {
            steps.add("comes late to the store", 1, false, state.recorded(record));
            steps.add(
                "never comes to the store",
                1,
                false,
                State {
                    late: None,
                    ..*state
                },
            );
        }
        for who in 0..STANDBYS {
            let mut next = *state;
            next.flushed[who] = (next.flushed[who] + 1).min(state.written);
            if state.streams[who] {
                steps.add("flushes", number(who) + 2, false, next);
            }
            let mut next = *state;
            next.streams[who] = true;
            steps.add("connects", number(who) + 2, false, next);
        }
        for (what, who, next) in state.faults() {
            steps.add(what, who, true, next);
        }
    }

    fn broken(&self, state: &State) -> u32 {
        let loses = (0..STANDBYS).any(|who| {
            let (has, other) = (state.flushed[who], state.flushed[1 - who]);
            let mut said = [Some(other), None].into_iter();
            let lacks = has < state.acknowledged;
            lacks && said.any(|said| self.takes_the_key((state.record, number(who), has, said)))
        });
        bits(&[loses, state.is_unknown])
    }

    fn is_settled(&self, state: &State) -> bool {
        let streaming = state.streams.iter().filter(|streams| **streams).count();
        state.record.standbys != 0 && streaming == STANDBYS && state.turn == Turn::Idle
    }

    fn seen(&self, state: &State) -> u32 {
        let lacks = state.flushed.iter().any(|at| *at < state.acknowledged);
        let is_recorded = state.record.standbys != 0;
        let is_replaced = matches!(state.turn, Turn::Sent(next, _) if next != state.record);
        bits(&[is_recorded, lacks && is_recorded, is_replaced])
    }
}

impl Synchronous {
    /// The one thing that the agent does next.
    fn next_of_agent(&self, state: &State) -> Option<(&'static str, State)> {
        Some(match state.turn {
            Turn::Idle => ("decides", self.decided_on(state)),
            Turn::Sent(record, names) => (
                "reaches the store",
                State {
                    turn: Turn::Told(names),
                    ..state.recorded(record)
                },
            ),
            Turn::Told(names) => (
                "hears the store",
                State {
                    turn: Turn::Idle,
                    ..state.set(names)
                },
            ),
        })
    }

    fn decided_on(&self, state: &State) -> State {
        let decided = self.decide(state);
        let next = State {
            note: decided.note,
            lost: decided.lost,
            is_unknown: state.is_unknown || decided.is_unknown,
            ..*state
        };
        match (decided.record, decided.names) {
            (Some(record), _)
                if self.rule == Some(Rule::NamesBeforeRecord)
                    && record.standbys & state.record.standbys != state.record.standbys =>
            {
                let names = match record.standbys {
                    0 => Names::Nobody,
                    set => Names::All(set),
                };
                State {
                    turn: Turn::Sent(record, decided.names),
                    ..next.set(Some(names))
                }
            }
            (Some(record), names) => State {
                turn: Turn::Sent(record, names),
                ..next
            },
            (None, names) => next.set(names),
        }
    }
}

impl State {
    /// The agent's file says this from now on.
    fn set(&self, names: Option<Names>) -> Self {
        match names {
            Some(_) => State {
                own: names,
                note: None,
                is_unknown: self.is_unknown || names == Some(Names::Unknown),
                ..*self
            },
            None => *self,
        }
    }

    /// The server takes the file up.
    fn reloaded(&self) -> Self {
        match self.own {
            Some(own) if own != self.in_force => State {
                in_force: own,
                note: None,
                ..*self
            },
            Some(_) | None => *self,
        }
    }

    /// The record is written. Whatever else was to replace the one before fails, and what was noted under it is void.
    fn recorded(&self, record: Recorded) -> Self {
        State {
            record,
            late: None,
            note: None,
            turn: match self.turn {
                // The one that is under way compares a revision that is gone.
                Turn::Sent(..) if self.late == Some(record) => Turn::Idle,
                turn => turn,
            },
            ..*self
        }
    }

    fn faults(&self) -> Vec<(&'static str, u8, State)> {
        let mut faults = Vec::new();
        if self.faults == 0 {
            return faults;
        }
        let next = State {
            faults: self.faults - 1,
            ..*self
        };
        for who in 0..STANDBYS {
            let mut next = next;
            next.streams[who] = false;
            faults.push(("disconnects", number(who) + 2, next));
        }
        match self.turn {
            Turn::Sent(record, _) => {
                let (turn, late) = (Turn::Idle, Some(record));
                faults.push(("gives the answer up", 1, State { turn, late, ..next }));
            }
            Turn::Told(_) => {
                let turn = Turn::Idle;
                faults.push(("loses the answer", 1, State { turn, ..next }));
            }
            Turn::Idle => {}
        }
        faults
    }
}
