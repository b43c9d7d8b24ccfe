//! What a member decides: by the real rules, on what it is shown.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_agent::decide::announce::announcement;
use trunkline_agent::decide::decision::{StartAs, StopMode};
use trunkline_agent::decide::observation::Observation;
use trunkline_agent::decide::{Action, Decision, Reason, Situation, decide};
use trunkline_shared::cluster::ClusterSettings;

use super::planned::{change_of, stage_of};
use super::shown::{Seen, Word, look, who_of, written};
use super::{ACTS, Act, Member, Postgres, Remembers, Stage, State, Store};
use crate::model::look::MEMBERS;
use crate::model::right::Right;
use crate::model::rule::Rule;

/// The rules of the members, and how much may happen to them.
pub(in crate::model) struct Members {
    pub(in crate::model) rule: Option<Rule>,
    pub(in crate::model) settings: Arc<ClusterSettings>,
    /// So many of them there are.
    pub(in crate::model) count: u8,
    /// So many leaderships, and writes, at the most.
    pub(in crate::model) epochs: u8,
    pub(in crate::model) writes: u8,
    pub(in crate::model) decided: RefCell<BTreeMap<Seen, Decided>>,
}

/// What one look makes a member do.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Decided {
    acts: [Act; ACTS],
    remembers: Remembers,
    /// The others have to be asked first.
    asks_first: bool,
    /// What its record says of the leader that stopped for it.
    ready: Option<u8>,
    is_unknown: bool,
}

impl Members {
    pub(in crate::model) fn is(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }

    fn decide(&self, seen: &Seen) -> Decided {
        let known = self.decided.borrow().get(seen).copied();
        known.unwrap_or_else(|| {
            let decided = self.ask(seen);
            self.decided.borrow_mut().insert(*seen, decided);
            decided
        })
    }

    fn ask(&self, seen: &Seen) -> Decided {
        let mut shown = *seen;
        let is_race = seen.store.key.is_none() && seen.is_replica();
        if self.is(Rule::OutsideSync) && is_race {
            shown.store.sync = None;
        }
        let (observation, memory) = look(&self.settings, &shown);
        let decision = decide(&observation, &memory);
        let after = &decision.memory;
        let mut decided = Decided {
            acts: [Act::Nothing; ACTS],
            remembers: Remembers {
                asks: after.wants_peers,
                is_unchecked: after.is_key_unchecked,
                stands_back: after.stands_back_until.is_some(),
                change: after.switchover.as_ref().map(change_of),
            },
            ready: self.ready(seen, &observation, &decision),
            asks_first: decision.reason == Reason::AskingPeers,
            is_unknown: false,
        };
        let mut at = 0;
        for action in &decision.actions {
            match self.read(seen, &decision, action) {
                Some(Act::Nothing) => {}
                Some(act) if at < ACTS => {
                    decided.acts[at] = act;
                    at += 1;
                }
                Some(_) | None => decided.is_unknown = true,
            }
        }
        decided
    }

    /// The action as the model knows it; `Nothing` where it makes no difference here, `None` where it does not know it.
    fn read(&self, seen: &Seen, decision: &Decision, action: &Action) -> Option<Act> {
        let epoch = match seen.right {
            Right::Mine { epoch, .. } => epoch,
            Right::No | Right::Lost => 0,
        };
        let number = |timeline: u32| u8::try_from(timeline).unwrap_or(u8::MAX);
        Some(match action {
            Action::AcquireLeader if self.is(Rule::NobodyRuns) => Act::Nothing,
            Action::AcquireLeader => Act::Acquire {
                claimed: seen.store.claimed.0,
                sync: seen.store.sync.map_or(0, |sync| sync.revision),
            },
            Action::ConfirmLeader => Act::Confirm,
            Action::ReassertLeader => Act::Reassert,
            Action::ReleaseLeader { .. } if self.is(Rule::StepForgotten) => return None,
            Action::ReleaseLeader { .. } => Act::Release { epoch },
            Action::ClaimTimeline(claimed) => Act::Claim {
                timeline: number(claimed.timeline.0),
                parent: number(claimed.parent.0),
                seen: seen.store.claimed.0,
                epoch,
            },
            // Whom commits wait for is what the models of synchronous standbys are about.
            Action::WriteSync(sync) if !sync.standbys.is_empty() => Act::Nothing,
            Action::WriteSync(sync) => Act::WriteSync {
                seen: number(u32::try_from(sync.revision).unwrap_or(u32::MAX)),
                epoch,
            },
            Action::RecordHistory => Act::RecordHistory { epoch },
            Action::PublishStatus(status) => Act::Publish {
                at: written(status.optime),
                epoch,
            },
            Action::ArmFence => Act::Arm,
            Action::DisarmFence => Act::Disarm,
            Action::Promote(timeline) => Act::Promote(number(timeline.0)),
            Action::Start(StartAs::Replica(_)) => Act::StartReplica,
            Action::Start(StartAs::Primary | StartAs::PrimaryClosed) => Act::StartPrimary,
            Action::Stop(_)
                if self.is(Rule::NoFence) && decision.situation == Situation::AuthorityGone =>
            {
                Act::Nothing
            }
            Action::Stop(mode) if *mode != StopMode::HandOver => Act::Stop {
                is_immediate: *mode == StopMode::Immediate,
            },
            Action::Rewind(from) | Action::Clone(from) => {
                Act::Rewind(from.member.as_ref().and_then(who_of)?)
            }
            Action::SetSyncNames(_)
            | Action::OpenClientAccess
            | Action::CutWal(_)
            | Action::Follow(_)
            | Action::Checkpoint
            | Action::CancelJob
            | Action::RecordChange(_) => Act::Nothing,
            _ => return self.read_change(seen, epoch, action),
        })
    }

    /// The same of a planned change.
    fn read_change(&self, seen: &Seen, epoch: u8, action: &Action) -> Option<Act> {
        Some(match action {
            Action::Stop(StopMode::HandOver) => Act::StopToHandOver,
            Action::AnnounceSwitchover(record) => Act::Announce {
                stage: stage_of(record.stage)?,
                to: who_of(&record.to)?,
                epoch,
            },
            Action::HandOver { to, .. } => {
                let to = who_of(to)?;
                Act::HandOver {
                    to,
                    at: seen.records[usize::from(to)]?.ready?,
                    epoch,
                }
            }
            Action::ClearSwitchover if self.is(Rule::TracesLeft) => Act::Nothing,
            Action::ClearSwitchover => Act::ClearChange { epoch },
            Action::DropFailoverRequest { .. } => Act::DropRequest,
            _ => return None,
        })
    }

    /// A look of this member, for each way in which the others may be silent.
    pub(super) fn looks(&self, state: &State, who: u8, store: &Store) -> Vec<State> {
        let seen = self.seen(state, who, store);
        let member = &state.members[usize::from(who)];
        let first = if member.remembers.asks {
            None
        } else {
            Some(self.decide(&seen))
        };
        if let Some(decided) = first.filter(|decided| !decided.asks_first) {
            return vec![self.decided_on(state, who, &decided)];
        }
        let others = (0..crate::model::look::number(MEMBERS)).filter(|other| *other != who);
        let heard: Vec<(u8, Word)> = others
            .filter_map(|other| Some((other, Word::of(&state.members[usize::from(other)])?)))
            .collect();
        let mut after = Vec::new();
        for silent in 0..1_u8 << heard.len() {
            let mut words = [None; MEMBERS];
            for (at, (other, word)) in heard.iter().enumerate() {
                if silent & 1 << at == 0 {
                    words[usize::from(*other)] = Some(*word);
                }
            }
            let shown = match self.is(Rule::PeersUnheard) {
                true => [None; MEMBERS],
                false => words,
            };
            let seen = Seen {
                words: Some(shown),
                ..seen
            };
            let decided = self.decide(&seen);
            let mut next = self.decided_on(state, who, &decided);
            next.flaws.is_behind |= is_behind(state, member, &decided, &words);
            if !after.contains(&next) {
                after.push(next);
            }
        }
        after
    }

    /// What the member's record says, by the real rules.
    fn ready(&self, seen: &Seen, shown: &Observation, decision: &Decision) -> Option<u8> {
        if self.is(Rule::ConfirmsEarly) {
            let change = seen.store.change.filter(|change| change.to == seen.who)?;
            return match change.stage {
                Stage::Stopped(at) => Some(at),
                Stage::HoldTransactions | Stage::HoldAll => None,
            };
        }
        let nothing = Arc::from("");
        let record = announcement(shown, decision, &nothing, &nothing);
        let ready = record.trunkline?.ready?;
        Some(written(ready.replayed))
    }

    fn decided_on(&self, state: &State, who: u8, decided: &Decided) -> State {
        let mut next = *state;
        next.flaws.is_unknown |= decided.is_unknown;
        let member = next.member(who);
        member.acts = decided.acts;
        member.remembers = decided.remembers;
        member.ready = decided.ready;
        if member.acts[0] != Act::Nothing && !member.acts[0].is_shared() {
            self.go_on(&mut next, who);
        }
        next
    }
}

/// Whether a replica runs although one that answered it is further on.
fn is_behind(state: &State, member: &Member, decided: &Decided, words: &[Option<Word>]) -> bool {
    let runs =
        matches!(decided.acts[0], Act::Acquire { .. }) && member.postgres == Postgres::Replica;
    let is_further = |word: &Word| word.postgres == Postgres::Replica && word.wal > member.wal;
    runs && state.acknowledged.is_none() && words.iter().flatten().any(is_further)
}
