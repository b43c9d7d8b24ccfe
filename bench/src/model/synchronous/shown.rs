//! How the rules are shown a state, and how what they decide is read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::Memory;
use trunkline_agent::decide::memory::SyncNote;
use trunkline_agent::decide::observation::{CommitsView, Observation, SenderView};
use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_shared::cluster::{Lsn, MemberName};

use super::{Lost, Names, REVISION, STANDBYS, Set, State, TICK};
use crate::model::look::{NOW, epoch, name, number};

pub(super) fn place(written: u8) -> Lsn {
    Lsn(1_000_000 + u64::from(written))
}

pub(super) fn written(at: Lsn) -> u8 {
    u8::try_from(at.0.saturating_sub(1_000_000)).unwrap_or(u8::MAX)
}

pub(super) fn names_of(set: Set) -> BTreeSet<MemberName> {
    let bits = (0..number(STANDBYS)).filter(|who| set & 1 << *who != 0);
    bits.map(|who| name(who + 1)).collect()
}

pub(super) fn set_of<'a>(names: impl IntoIterator<Item = &'a MemberName>) -> Set {
    let bit = |one: &MemberName| {
        let who = (0..number(STANDBYS)).find(|who| name(who + 1) == *one);
        who.map_or(0, |who| 1 << who)
    };
    names.into_iter().fold(0, |set, one| set | bit(one))
}

pub(super) fn sync_names(names: Names) -> SyncNames {
    match names {
        Names::Nobody => SyncNames::Nobody,
        Names::Blocked => SyncNames::Blocked,
        Names::All(set) => SyncNames::All(names_of(set)),
        Names::Any(needed, set) => SyncNames::Any(u32::from(needed), names_of(set)),
        Names::Unknown => SyncNames::Other("".into()),
    }
}

pub(super) fn of_sync_names(names: &SyncNames) -> Names {
    match names {
        SyncNames::Nobody => Names::Nobody,
        SyncNames::Blocked => Names::Blocked,
        SyncNames::All(names) => Names::All(set_of(names)),
        SyncNames::Any(needed, names) => {
            Names::Any(u8::try_from(*needed).unwrap_or(u8::MAX), set_of(names))
        }
        SyncNames::Other(_) => Names::Unknown,
    }
}

pub(super) fn senders(state: &State) -> Vec<SenderView> {
    let streaming = (0..STANDBYS).filter(|who| state.streams[*who]);
    let sender = |who: usize| SenderView {
        name: name(number(who) + 1),
        is_streaming: true,
        flushed: place(state.flushed[who]),
    };
    streaming.map(sender).collect()
}

/// What the agent has written counts as in force, and as confirmed by everybody.
pub(super) fn believe_what_was_set(commits: &mut CommitsView) {
    if let Some(own) = &commits.own {
        commits.in_force = own.clone();
    }
    for sender in Arc::make_mut(&mut commits.senders) {
        sender.flushed = Lsn(u64::MAX);
    }
}

pub(super) fn memory(seen: &Observation, state: &State) -> Memory {
    let note = state.note.filter(|_| state.own == Some(state.in_force));
    let since = |is_old| match is_old {
        true => NOW.before(TICK),
        false => NOW,
    };
    Memory {
        sync_note: note.map(|note| SyncNote {
            epoch: epoch(1),
            record: REVISION,
            names: sync_names(state.in_force),
            since: since(note.is_old),
            at: note.at.map(place),
        }),
        sync_lost_since: match state.lost {
            Lost::No => None,
            Lost::Lately => Some(NOW),
            Lost::Long => Some(NOW.before(seen.settings().loop_wait + Duration::from_millis(1))),
        },
        ..Memory::default()
    }
}
