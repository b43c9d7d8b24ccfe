//! Whether the DCS is the one that was known, as this member and the others see it (`ha.md` 8).

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_shared::cluster::store::Authority;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{MemberName, Topology};

use super::observation::{Observation, PeerAnswer, Peers};

/// The store that holds the cluster, as this member knows it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StoreView {
    /// Its identity; 0 before it was first read.
    pub cluster_id: u64,
    /// The newest revision that was believed.
    pub revision: i64,
    /// The highest generation that is known.
    pub generation: u64,
    /// When what decides who may lead was written.
    pub authority: Authority,
    /// Names of other members lay beside the data when the agent started.
    pub knew_others: bool,
    /// In this boot nobody was asked yet whether this is the store that the others know.
    pub is_unproved: bool,
    /// It is not believed.
    pub doubt: Option<Doubt>,
}

/// A store that is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Why.
    pub why: Arc<str>,
    /// The cluster as it was known before; by an agent that was restarted, without members.
    pub before: Arc<Topology>,
    /// What that store shows, once it was read.
    pub shown: Option<Shown>,
}

/// What a store shows that is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its generation.
    pub generation: u64,
    /// Whom its leader key names.
    pub leader: Option<MemberName>,
    /// Its `initialize` key.
    pub initialize: Initialize,
}

/// The store as another member's agent knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStore {
    /// Its identity; 0 before it was first read.
    pub cluster_id: u64,
    /// The newest revision that was believed.
    pub revision: i64,
    /// The highest generation that is known.
    pub generation: u64,
    /// When what decides who may lead was written; zeros by an agent that does not tell.
    pub authority: Authority,
    /// It is not believed.
    pub is_doubted: bool,
    /// It has answered lately.
    pub is_fresh: bool,
    /// That member has asked nobody yet, and what it knows is of this boot.
    pub is_unproved: bool,
}

/// What a peer's word means for the store that this member sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Nothing against it.
    Agrees,
    /// That peer has seen more. It may be that this member's view is late by a moment.
    IsAhead,
    /// It is not the store that the peer knows.
    Contradicts,
}

impl StoreView {
    fn heard(&self, other: &PeerStore) -> Word {
        // A store that was accepted anew goes before what is known of an earlier one.
        if other.is_unproved || other.cluster_id == 0 || other.generation < self.generation {
            return Word::Agrees;
        }
        let is_other = self.cluster_id != 0 && other.cluster_id != self.cluster_id;
        if other.is_doubted || other.generation > self.generation || is_other {
            return Word::Contradicts;
        }
        // An old copy's own revision grows past what was seen; what was written in it does not.
        let is_later = self.authority.older_than(&other.authority).is_some();
        match is_later || other.revision > self.revision {
            true => Word::IsAhead,
            false => Word::Agrees,
        }
    }
}

/// Whether what a peer knows speaks against the store as it is seen now.
pub(super) fn contradicts(seen: &Observation, other: &PeerStore) -> bool {
    seen.store.heard(other) == Word::Contradicts
}

/// Whether a peer that hears this store believes it, and has asked the others before.
pub(super) fn is_confirmed(seen: &Observation, answers: &BTreeMap<MemberName, PeerAnswer>) -> bool {
    let mut others = answers.values().filter_map(|answer| match answer {
        PeerAnswer::Answered(view) => view.store,
        PeerAnswer::Unreachable => None,
    });
    others.any(|other| {
        let is_known = other.cluster_id == seen.store.cluster_id && !other.is_unproved;
        is_known && other.is_fresh && !other.is_doubted
    })
}

/// Of the peers that answered, who speaks against the store most.
pub(super) fn loudest(seen: &Observation) -> (Word, Option<(MemberName, PeerStore)>) {
    let Peers::Asked(answers) = &seen.peers else {
        return (Word::Agrees, None);
    };
    let mut ahead: Option<(MemberName, PeerStore)> = None;
    for (name, answer) in answers.iter() {
        let PeerAnswer::Answered(view) = answer else {
            continue;
        };
        let Some(other) = view.store else {
            continue;
        };
        match seen.store.heard(&other) {
            Word::Agrees => {}
            // Who does not hear the DCS is not ahead by a moment.
            Word::IsAhead if ahead.as_ref().is_none_or(|(_, before)| before.is_fresh) => {
                ahead = Some((name.clone(), other));
            }
            Word::IsAhead => {}
            Word::Contradicts => return (Word::Contradicts, Some((name.clone(), other))),
        }
    }
    match ahead {
        Some(who) => (Word::IsAhead, Some(who)),
        None => (Word::Agrees, None),
    }
}
