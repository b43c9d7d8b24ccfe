//! Where one router sends writes: the real step from table to table, under a store that changes its leader, a member of
//! the store that is behind, silence, and what the last leader answers when it is asked.

use std::sync::Arc;
use std::time::Duration;

use trunkline_router::topology::routing_table::{Doubt, LaneId, LastLeader, RoutingTable, Writer};
use trunkline_router::topology::transition::{
    Answer, Command, Health, Rules, Testimony, View, transition,
};
use trunkline_shared::cluster::member::TrunklineFields;
use trunkline_shared::cluster::{ClusterSettings, Leader, MemberRole, Timeline, Topology};

use super::checker::{Model, Steps, bits};
use super::look::{MEMBERS, NOW, epoch, name, number, plain_record, plain_topology, settings};
use super::rule::Rule;

/// What must be true of every state.
const PROPERTIES: [&str; 4] = [
    "the writer's epoch never goes back",
    "writes go to the newest leader that was seen",
    "nobody is made the writer whom no record confirmed",
    "a lane that was cut does not come back",
];
/// The unit of time: longer than a view is fresh for, and than silence is tolerated.
const TICK: Duration = Duration::from_secs(3);
/// The lane of the last leader's sessions, and the number that a new one gets.
const LANE: LaneId = LaneId(1);
const NEXT_LANE: u64 = 2;

/// What one member of the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Shown {
    revision: u8,
    /// Who leads, in which epoch.
    key: Option<(u8, u8)>,
    /// In which epoch each member's record says that it is primary.
    said: [Option<u8>; MEMBERS],
}

/// Where writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Goes {
    Nowhere,
    Promoting(u8, u8),
    To(u8, u8),
}

/// The last leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Last {
    who: u8,
    epoch: u8,
    is_confirmed: bool,
    has_lane: bool,
    timeline: bool,
}

/// What of the router's table decides where writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Table {
    revision: u8,
    highest: Option<u8>,
    goes: Goes,
    last: Option<Last>,
    /// That the key is gone, rather than that the view is old; and for longer than silence is tolerated.
    doubt: Option<(bool, bool)>,
}

/// What the last leader answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Said {
    Writable,
    Refused,
    Silent,
}

/// The store and the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    store: Shown,
    behind: Shown,
    epoch: u8,
    /// The epochs that a record confirmed, a bit each.
    confirmed: u8,
    /// What the router sees, and whether that is old.
    view: Option<(Shown, bool)>,
    answer: Option<(Said, u8)>,
    table: Table,
    /// The highest epoch that writes went to.
    best: u8,
    is_back: bool,
    is_unconfirmed: bool,
    is_cut_kept: bool,
}

/// The model of a router.
pub(super) struct Routing {
    rule: Option<Rule>,
    settings: Arc<ClusterSettings>,
    /// So many leaderships, and changes of the store, at the most.
    epochs: u8,
    changes: u8,
}

impl Routing {
    pub(super) fn new((epochs, changes): (u8, u8), rule: Option<Rule>) -> Self {
        Self {
            rule,
            settings: Arc::new(settings()),
            epochs,
            changes,
        }
    }

    fn is(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }

    fn topology(&self, shown: &Shown) -> Topology {
        let mut topology = plain_topology(&self.settings);
        topology.revision = i64::from(shown.revision);
        topology.leader = shown.key.map(|(who, number)| Leader {
            member: name(who),
            epoch: epoch(number),
            lease: i64::from(who) + 1,
        });
        for (who, said) in shown.said.iter().enumerate() {
            let who = number(who);
            let is_believed = self.is(Rule::RecordUnread);
            let of_key = shown
                .key
                .filter(|(holder, _)| is_believed && *holder == who);
            let Some(said) = said.or(of_key.map(|(_, epoch)| epoch)) else {
                continue;
            };
            let mut record = plain_record(who);
            record.role = MemberRole::Primary;
            record.revision = i64::from(shown.revision);
            record.trunkline = Some(TrunklineFields {
                epoch: Some(epoch(said)),
                ..TrunklineFields::default()
            });
            topology.members.insert(name(who), Arc::new(record));
        }
        topology
    }

    /// The router's next step.
    fn stepped(&self, mut state: State) -> State {
        let table = self.table(&state.table);
        let shown = state.view.map(|(shown, is_old)| {
            let proven_at = match is_old {
                true => NOW.before(TICK),
                false => NOW,
            };
            (self.topology(&shown), proven_at)
        });
        let view = shown.as_ref().map(|(topology, proven_at)| View {
            topology,
            proven_at: *proven_at,
        });
        let mut health = Health::default();
        if let Some((said, number)) = state.answer {
            health.hear(Testimony {
                epoch: epoch(number),
                asked_at: NOW,
                answer: match said {
                    Said::Writable => Answer::Writable { until: NOW + TICK },
                    Said::Refused => Answer::Refused,
                    Said::Silent => Answer::Silent,
                },
            });
        }
        let (mut next, commands) = transition(&table, view, &health, &Rules::default(), NOW);
        match (&table.writer, &mut next.last) {
            (Writer::Known { .. }, _) if self.is(Rule::WriterKept) => {
                next.writer = table.writer.clone();
            }
            (_, Some(last)) if self.is(Rule::CutLaneKept) => last.lane = last.lane.and(Some(LANE)),
            (_, _) => {}
        }
        let kept = next.last.as_ref().and_then(|last| last.lane);
        let is_cut = |command: &Command| {
            let Command::Cut { lane, .. } = command;
            *lane == LANE
        };
        state.is_cut_kept |= kept == Some(LANE) && commands.iter().any(is_cut);
        let goes = goes(&next.writer);
        if let Goes::To(_, number) = goes {
            state.is_back |= number < state.best;
            state.best = state.best.max(number);
            let is_opened = kept.is_some_and(|lane| lane != LANE);
            state.is_unconfirmed |= is_opened && state.confirmed & 1 << number == 0;
        }
        state.table = Table {
            revision: u8::try_from(next.revision).unwrap_or(u8::MAX),
            highest: next.highest_epoch.map(|epoch| number_of(epoch.revision)),
            goes,
            last: next.last.as_ref().map(last_of),
            doubt: next
                .doubt
                .map(|(why, since)| (why == Doubt::KeyGone, NOW.since(since) >= TICK)),
        };
        state
    }

    fn table(&self, table: &Table) -> RoutingTable {
        let is_forgotten = self.is(Rule::EpochForgotten);
        let last = table.last.as_ref().map(|last| LastLeader {
            member: name(last.who),
            epoch: epoch(last.epoch),
            address: plain_record(last.who).address,
            api_url: plain_record(last.who).api_url,
            timeline: last.timeline.then_some(Timeline(1)),
            is_trunkline: true,
            is_confirmed: last.is_confirmed,
            lane: last.has_lane.then_some(LANE),
        });
        RoutingTable {
            revision: match is_forgotten {
                true => 0,
                false => i64::from(table.revision),
            },
            highest_epoch: table.highest.filter(|_| !is_forgotten).map(epoch),
            writer: match table.goes {
                Goes::Nowhere => RoutingTable::default().writer,
                Goes::Promoting(who, number) => Writer::Promoting {
                    member: name(who),
                    epoch: epoch(number),
                },
                Goes::To(who, number) => Writer::Known {
                    member: name(who),
                    epoch: epoch(number),
                    address: plain_record(who).address,
                    lane: LANE,
                },
            },
            last,
            doubt: table.doubt.map(|(is_gone, is_long)| {
                let why = if is_gone {
                    Doubt::KeyGone
                } else {
                    Doubt::ViewOld
                };
                let since = if is_long { NOW.before(TICK) } else { NOW };
                (why, since)
            }),
            next_lane: NEXT_LANE,
            ..RoutingTable::default()
        }
    }
}

fn number_of(revision: i64) -> u8 {
    u8::try_from(revision).unwrap_or(u8::MAX)
}

fn who_of(name_of: &trunkline_shared::cluster::MemberName) -> u8 {
    (0..number(MEMBERS))
        .find(|who| name(*who) == *name_of)
        .unwrap_or(u8::MAX)
}

fn goes(writer: &Writer) -> Goes {
    match writer {
        Writer::None { .. } => Goes::Nowhere,
        Writer::Promoting { member, epoch } => {
            Goes::Promoting(who_of(member), number_of(epoch.revision))
        }
        Writer::Known { member, epoch, .. } => Goes::To(who_of(member), number_of(epoch.revision)),
    }
}

fn last_of(last: &LastLeader) -> Last {
    Last {
        who: who_of(&last.member),
        epoch: number_of(last.epoch.revision),
        is_confirmed: last.is_confirmed,
        has_lane: last.lane.is_some(),
        timeline: last.timeline.is_some(),
    }
}

impl Model for Routing {
    type State = State;

    fn properties(&self) -> &'static [&'static str] {
        &PROPERTIES
    }

    fn in_the_end(&self) -> Option<&'static str> {
        Some("writes go to whoever leads")
    }

    fn sights(&self) -> &'static [&'static str] {
        &[
            "writes go to a second leader",
            "a leader that is doubted goes on",
            "a router that sees what is behind",
        ]
    }

    fn start(&self) -> State {
        let store = Shown {
            revision: 1,
            key: Some((0, 1)),
            said: [Some(1), None, None],
        };
        State {
            store,
            behind: store,
            epoch: 1,
            confirmed: 1 << 1,
            view: None,
            answer: None,
            table: Table {
                revision: 0,
                highest: None,
                goes: Goes::Nowhere,
                last: None,
                doubt: None,
            },
            best: 0,
            is_back: false,
            is_unconfirmed: false,
            is_cut_kept: false,
        }
    }

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        if state.store.revision < self.changes {
            for (what, who, next) in state.changes(self.epochs) {
                steps.add(what, who, true, next);
            }
        }
        let behind = state.store;
        steps.add("the store catches up", 0, false, State { behind, ..*state });
        for (what, shown) in [
            ("sees the store", state.store),
            ("sees what is behind", state.behind),
        ] {
            if self.is(Rule::StoreUnseen) && state.view.is_some() {
                continue;
            }
            let next = State {
                view: Some((shown, false)),
                answer: None,
                ..*state
            };
            steps.add(what, 0, false, self.stepped(next));
        }
        for (what, said) in [
            ("says that it is writable", Said::Writable),
            ("says that it is not writable", Said::Refused),
            ("says nothing", Said::Silent),
        ] {
            if let (Some(last), Some(_)) = (state.table.last, state.table.doubt) {
                let answer = Some((said, last.epoch));
                let next = self.stepped(State { answer, ..*state });
                steps.add(what, last.who + 1, false, next);
            }
        }
        let next = State {
            view: state.view.map(|(shown, _)| (shown, true)),
            answer: None,
            table: Table {
                doubt: state.table.doubt.map(|(is_gone, _)| (is_gone, true)),
                ..state.table
            },
            ..*state
        };
        steps.add("three seconds pass", 0, false, self.stepped(next));
    }

    fn broken(&self, state: &State) -> u32 {
        let is_beside = match (state.table.goes, state.table.highest) {
            (Goes::To(who, epoch), Some(highest)) => {
                let holds = state.table.last.map(|last| (last.who, last.epoch));
                epoch != highest || holds != Some((who, epoch))
            }
            (Goes::To(..), None) => true,
            (Goes::Nowhere | Goes::Promoting(..), _) => false,
        };
        let broken = [
            state.is_back,
            is_beside,
            state.is_unconfirmed,
            state.is_cut_kept,
        ];
        bits(&broken)
    }

    fn is_settled(&self, state: &State) -> bool {
        let Some((who, epoch)) = state.store.key else {
            return state.table.goes == Goes::Nowhere;
        };
        match state.store.said[usize::from(who)] == Some(epoch) {
            true => state.table.goes == Goes::To(who, epoch),
            false => true,
        }
    }

    fn seen(&self, state: &State) -> u32 {
        let is_going = matches!(state.table.goes, Goes::To(..));
        let is_behind = state.view.is_some_and(|(shown, _)| shown != state.store);
        bits(&[
            matches!(state.table.goes, Goes::To(_, epoch) if epoch > 1),
            is_going && state.table.doubt.is_some(),
            is_behind,
        ])
    }
}

impl State {
    /// What the members may do to the store next.
    fn changes(&self, epochs: u8) -> Vec<(&'static str, u8, State)> {
        let mut changes = Vec::new();
        let mut next = *self;
        next.store.revision += 1;
        match self.store.key {
            Some((who, epoch)) => {
                let mut gone = next;
                gone.store.key = None;
                changes.push(("loses the key", who + 1, gone));
                let mut said = next;
                said.store.said[usize::from(who)] = Some(epoch);
                said.confirmed |= 1 << epoch;
                changes.push(("says that it is primary", who + 1, said));
            }
            None if self.epoch < epochs => {
                for who in 0..number(MEMBERS) {
                    let mut taken = next;
                    taken.epoch += 1;
                    taken.store.key = Some((who, taken.epoch));
                    changes.push(("takes the key", who + 1, taken));
                }
            }
            None => {}
        }
        for who in 0..MEMBERS {
            let mut replica = next;
            replica.store.said[who] = None;
            changes.push(("says that it is a replica", number(who) + 1, replica));
        }
        changes
    }
}
