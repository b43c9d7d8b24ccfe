//! How a member is shown the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::Memory;
use trunkline_agent::decide::observation::{
    CommitsView, CrashPolicy, FinishedJob, JobKind, JobView, Local, Me, Observation, PeerAnswer,
    Peers, RunningJob, RunningRole, SenderView, Stopped,
};
use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_shared::cluster::member::SwitchoverReady;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::timeline::{TimelineEnd, TimelineHistory};
use trunkline_shared::cluster::topology::{ClaimedTimeline, Status};
use trunkline_shared::cluster::{
    ClusterSettings, Leader, Lsn, MemberName, MemberRole, Timeline, Topology,
};

use super::planned::{REQUEST_ID, planned, show_change};
use super::turn::Members;
use super::{FORKS, LIMIT, Member, Postgres, Recorded, Remembers, SCALE, State, Store, Wal};
use crate::model::look::{
    MEMBERS, NOW, SYSTEM, address, epoch, name, number, plain_answer, plain_look, plain_me,
    plain_record, plain_topology, running,
};
use crate::model::right::Right;
use crate::model::rule::Rule;

/// Bytes from one position to the next.
const STEP: u64 = 16;
/// The first position.
const FIRST: u64 = 1_000_000;
/// Longer than every limit of a change.
pub(in crate::model) const LONG: Duration = Duration::from_secs(30);
/// What nobody lacks: with the rule broken nobody is too far behind.
const NO_LIMIT: u64 = 1 << 40;

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::model) struct Word {
    pub(super) postgres: Postgres,
    pub(super) wal: Wal,
    pub(super) ready: Option<u8>,
}

impl Word {
    /// What its agent answers; `None` where nobody is there to answer.
    pub(super) fn of(member: &Member) -> Option<Self> {
        member.is_agent_alive.then_some(Self {
            postgres: member.postgres,
            wal: member.wal,
            ready: member.ready,
        })
    }
}

/// All that a decision may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::model) struct Seen {
    pub(super) who: u8,
    pub(super) store: Store,
    pub(super) forks: [Option<(u8, u8)>; FORKS],
    /// The members' records.
    pub(super) records: [Option<Word>; MEMBERS],
    pub(super) me: Word,
    pub(super) right: Right,
    pub(super) armed: Option<u8>,
    pub(super) remembers: Remembers,
    pub(super) has_router: bool,
    /// Who receives WAL from here, where somebody is to lead after it.
    pub(super) receivers: u8,
    /// The answers, where the others were asked.
    pub(super) words: Option<[Option<Word>; MEMBERS]>,
}

impl Seen {
    pub(super) fn is_replica(&self) -> bool {
        self.me.postgres == Postgres::Replica
    }
}

impl Members {
    pub(super) fn seen(&self, state: &State, who: u8, store: &Store) -> Seen {
        let member = &state.members[usize::from(who)];
        Seen {
            who,
            store: *store,
            forks: state.forks,
            records: std::array::from_fn(|other| Word::of(&state.members[other])),
            me: Word {
                postgres: member.postgres,
                wal: member.wal,
                ready: None,
            },
            has_router: state.router.is_some() && !self.is(Rule::RouterUnasked),
            receivers: self.receivers(state, who),
            right: member.right,
            armed: member.armed,
            remembers: member.remembers,
            words: None,
        }
    }

    fn receivers(&self, state: &State, who: u8) -> u8 {
        let is_primary = state.members[usize::from(who)].postgres == Postgres::Primary;
        if state.router.is_none() || !is_primary {
            return 0;
        }
        let others = (0..number(MEMBERS)).filter(|other| state.may_receive(*other, who));
        others.fold(0, |set, other| set | 1 << other)
    }

    /// The settings of the members.
    pub(in crate::model) fn settings(base: ClusterSettings, rule: Option<Rule>) -> ClusterSettings {
        ClusterSettings {
            ttl: SCALE.ttl,
            use_pg_rewind: true,
            maximum_lag_on_failover: match rule == Some(Rule::LagUnread) {
                true => NO_LIMIT,
                false => u64::from(LIMIT) * STEP,
            },
            ..base
        }
    }
}

pub(super) fn place(at: u8) -> Lsn {
    Lsn(FIRST + u64::from(at) * STEP)
}

pub(super) fn written(at: Lsn) -> u8 {
    u8::try_from(at.0.saturating_sub(FIRST) / STEP).unwrap_or(u8::MAX)
}

pub(super) fn who_of(one: &MemberName) -> Option<u8> {
    (0..number(MEMBERS)).find(|who| name(*who) == *one)
}

fn line(timeline: u8) -> Timeline {
    Timeline(u32::from(timeline))
}

/// The look, and what is remembered at it.
pub(super) fn look(settings: &Arc<ClusterSettings>, seen: &Seen) -> (Observation, Memory) {
    let me = Me {
        // Whoever crashes gives the others the key.
        crash_policy: CrashPolicy::Failover,
        ..plain_me(seen.who)
    };
    let mut shown = plain_look(Arc::new(me), topology(settings, seen), local(seen));
    shown.lease = SCALE.state(seen.right).view().clone();
    shown.fence.armed_until = seen.armed.map(|left| SCALE.ahead(left));
    if let Some(words) = &seen.words {
        let others = (0..number(MEMBERS)).filter(|other| *other != seen.who);
        let answers = others.map(|other| (name(other), answer(words[usize::from(other)])));
        shown.peers = Peers::Asked(Arc::new(answers.collect()));
    }
    shown.job = job(seen);
    let memory = Memory {
        wants_peers: seen.remembers.asks,
        is_key_unchecked: seen.remembers.is_unchecked,
        stands_back_until: seen.remembers.stands_back.then(|| NOW + SCALE.ttl),
        switchover: seen.remembers.change.map(|change| planned(&change)),
        ..Memory::default()
    };
    (shown, memory)
}

/// The stop for a hand-over goes on, or was the last that was done.
fn job(seen: &Seen) -> JobView {
    let since = match seen.remembers.change {
        Some(change) if change.is_over_time => NOW.before(LONG),
        Some(_) | None => NOW,
    };
    match seen.me.postgres {
        Postgres::Stopping => JobView {
            running: Some(RunningJob {
                kind: JobKind::Stop,
                since,
                source: None,
            }),
            finished: None,
        },
        Postgres::Stopped {
            was_primary: true,
            is_clean: true,
        } => JobView {
            running: None,
            finished: Some(FinishedJob {
                kind: JobKind::Stop,
                at: since,
                error: None,
                trouble: None,
                source: None,
            }),
        },
        Postgres::Replica
        | Postgres::Promoting(_)
        | Postgres::Primary
        | Postgres::Stopped { .. } => JobView::default(),
    }
}

fn topology(settings: &Arc<ClusterSettings>, seen: &Seen) -> Topology {
    let store = &seen.store;
    let mut topology = plain_topology(settings);
    topology.leader = store.key.map(|(who, number)| Leader {
        member: name(who),
        epoch: epoch(number),
        lease: i64::from(who) + 1,
    });
    let (timeline, parent) = store.claimed;
    topology.claimed = ClaimedTimeline {
        timeline: line(timeline),
        parent: line(parent),
    };
    topology.claim_and_history.0 = i64::from(timeline);
    topology.history = Arc::new(history(seen));
    topology.is_history_behind = timeline > 1 && store.recorded != timeline;
    topology.status = Arc::new(Status {
        optime: place(store.published.at),
        ..Status::default()
    });
    topology.sync = store.sync.map(|sync| recorded(&sync));
    show_change(&mut topology, seen);
    topology.members = BTreeMap::new();
    for (who, word) in seen.records.iter().enumerate() {
        let who = number(who);
        let Some(word) = word else {
            continue;
        };
        let mut record = plain_record(who);
        record.timeline = Some(line(word.wal.timeline));
        record.position = Some(place(word.wal.at));
        if matches!(word.postgres, Postgres::Primary | Postgres::Stopping) {
            record.role = MemberRole::Primary;
        }
        if let Some(fields) = &mut record.trunkline {
            fields.ready = word.ready.map(|at| SwitchoverReady {
                id: REQUEST_ID,
                replayed: place(at),
            });
        }
        topology.members.insert(name(who), Arc::new(record));
    }
    topology
}

/// The ancestry that is written down.
fn history(seen: &Seen) -> TimelineHistory {
    let (mut ends, mut at) = (Vec::new(), seen.store.recorded);
    while let Some((parent, end)) = usize::from(at)
        .checked_sub(2)
        .and_then(|at| seen.forks.get(at).copied().flatten())
    {
        ends.push(TimelineEnd {
            timeline: line(parent),
            end: place(end),
        });
        at = parent;
    }
    TimelineHistory::new(ends)
}

fn recorded(sync: &Recorded) -> SyncState {
    SyncState {
        leader: Some(name(sync.leader)),
        standbys: names(sync.standbys).collect(),
        quorum: 0,
        revision: i64::from(sync.revision),
    }
}

fn names(set: u8) -> impl Iterator<Item = MemberName> {
    (0..number(MEMBERS))
        .filter(move |who| set & 1 << *who != 0)
        .map(name)
}

fn local(seen: &Seen) -> Local {
    let Word { postgres, wal, .. } = seen.me;
    let role = match postgres {
        Postgres::Primary | Postgres::Stopping => RunningRole::Primary {
            position: place(wal.at),
            is_checkpointed: true,
        },
        Postgres::Replica | Postgres::Promoting(_) => RunningRole::Replica {
            received: place(wal.at),
            replayed: place(wal.at),
            // Whoever leads is followed at once.
            upstream: seen.store.key.map(|(who, _)| address(who)),
            is_streaming: true,
        },
        Postgres::Stopped {
            was_primary,
            is_clean,
        } => {
            return Local::Stopped(Stopped {
                system_id: SYSTEM,
                timeline: line(wal.timeline),
                checkpoint: place(wal.at.saturating_sub(1)),
                redo: place(wal.at.saturating_sub(1)),
                position: place(wal.at),
                is_clean,
                was_primary,
                is_half_rewound: false,
                crashed_at: (!is_clean).then_some(NOW),
            });
        }
    };
    let mut shown = running(wal.timeline, role, commits(seen));
    shown.is_promoting = matches!(postgres, Postgres::Promoting(_));
    Local::Running(shown)
}

/// Commits wait for whom the record names, and those have everything as far as the leader's duties go.
fn commits(seen: &Seen) -> CommitsView {
    let sender = |name| SenderView {
        name,
        is_streaming: true,
        flushed: Lsn(u64::MAX),
    };
    let Some(sync) = seen.store.sync else {
        return CommitsView {
            senders: Arc::new(names(seen.receivers).map(sender).collect()),
            ..CommitsView::default()
        };
    };
    let waits = match sync.standbys {
        0 => SyncNames::Nobody,
        set => SyncNames::All(names(set).collect()),
    };
    CommitsView {
        senders: Arc::new(names(sync.standbys).map(sender).collect()),
        in_force: waits.clone(),
        own: Some(waits),
        ..CommitsView::default()
    }
}

fn answer(word: Option<Word>) -> PeerAnswer {
    let Some(Word { postgres, wal, .. }) = word else {
        return PeerAnswer::Unreachable;
    };
    let mut said = plain_answer(wal.timeline, place(wal.at));
    said.is_primary = matches!(postgres, Postgres::Primary | Postgres::Stopping);
    said.is_running = !matches!(postgres, Postgres::Stopped { .. });
    PeerAnswer::Answered(said)
}
