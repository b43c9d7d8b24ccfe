//! The first look at the DCS since this machine started, or after a ttl without it: what happened meanwhile is not
//! known, so nothing would contradict a restored or emptied DCS, and nothing is done by it before everybody who can
//! be reached was asked (`ha.md` 8).
//!
//! Data that an agent kept (`patroni.dynamic.json`) beside a DCS without a cluster has two explanations: the DCS lost
//! its memory, or a cluster moves to it, from Patroni or from another etcd. Two facts tell them apart. Names of other
//! members lie beside the data of every member of a cluster that Trunkline ran: one of them may have more, and nothing
//! is done here. Without such names a primary that the agent finds running is the cluster's, since nobody starts one
//! after a blackout but an agent that was elected or an operator; it is adopted, as Patroni does it, and replicas wait
//! for it. A stopped primary may have been dead for long: only an operator knows.
//!
//! Whoever has no data and sees a DCS without a cluster asks also later, as soon as somebody registers who has data: he may
//! have met the DCS before it lost the cluster.

use std::time::Duration;

use trunkline_shared::cluster::store::Told;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{MemberName, Timeline, Topology};

use super::decision::{Action, Decision, Detail, Reason};
use super::memory::Memory;
use super::observation::{LeaseView, Local, Observation, PeerAnswer, Peers};
use super::situation::Situation;
use super::store::{self, PeerStore, Word};
use super::{Turn, asking, no_data};

/// How soon the others are asked again while one has seen more than this member.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long others have to speak against the DCS before it is doubted, which only an operator or a leader ends: this
/// member's view is as old as its look, and a peer may have met the DCS just before it was accepted anew.
const CONTRADICTED_FOR: Duration = Duration::from_secs(1);

/// `None` where the DCS needs no proof any more, or nothing is done by it anyway.
pub(super) fn decide(seen: &Observation, memory: &Memory) -> Option<Decision> {
    let is_disputed = memory.contradicted_by.is_some();
    let asks = seen.store.is_unproved || is_disputed || no_data::is_beside_data(seen);
    if !asks || seen.store.doubt.is_some() || !seen.is_dcs_fresh() {
        return None;
    }
    match Situation::of(seen, memory) {
        Situation::AuthorityGone
        | Situation::JobRunning
        | Situation::ShuttingDown
        | Situation::DcsUnreachable => None,
        Situation::HoldingLease => by_lease(Turn::new(seen, memory)),
        Situation::ForeignData
        | Situation::Maintenance
        | Situation::NoData
        | Situation::Unregistered
        | Situation::Following
        | Situation::NoLeader => ask(Turn::new(seen, memory), seen.topology()?),
    }
}

/// A renewal that counted is proof enough: the key is this member's, as it was written.
fn by_lease(turn: Turn<'_>) -> Option<Decision> {
    match &turn.seen.lease {
        LeaseView::Held(held) if !held.is_by_failsafe => Some(trust(turn)),
        LeaseView::Held(_) | LeaseView::NotHeld | LeaseView::Lost => None,
    }
}

/// `None` where the DCS was proved before, and nobody speaks against it.
fn ask(turn: Turn<'_>, topology: &Topology) -> Option<Decision> {
    let seen = turn.seen;
    let generation = seen.store.generation;
    // A generation says that somebody has accepted it so.
    let is_accepted = generation > 0;
    let own = Told {
        generation,
        cluster_id: None,
    };
    let is_kept = topology.initialize == Initialize::Absent && seen.lost_config.is_some();
    if is_kept && !is_accepted && !is_moving(seen) {
        // Whoever made a cluster of it could cost another member what was committed since.
        let name = seen.me.name.clone();
        return Some(doubt(turn, name, own, Reason::KeptDataWithoutCluster));
    }
    let is_alone = asking::whom(topology, &turn.decision.memory, &seen.me.name).is_empty();
    if seen.peers == Peers::NotAsked && !is_alone {
        return Some(turn.ask_peers());
    }
    let word = match fallen_silent(seen, &turn.decision.memory) {
        Some(who) => (Word::Contradicts, Some(who)),
        None => store::loudest(seen),
    };
    Some(match word {
        (Word::Contradicts, Some((name, other))) => contradicted(turn, name, other),
        (Word::IsAhead, Some((name, _))) => turn
            .detail(Detail::Member(name))
            .remember(|memory| {
                forget_contradiction(memory);
                memory.wants_peers = true;
            })
            .within(Reason::PeerKnowsMore, ASK_AGAIN),
        (Word::Agrees | Word::IsAhead | Word::Contradicts, _)
            if is_data_newer(seen, topology) && !is_led(seen) =>
        {
            let name = seen.me.name.clone();
            doubt(turn, name, own, Reason::DataIsNewer)
        }
        (Word::Agrees | Word::IsAhead | Word::Contradicts, _) if !seen.store.is_unproved => {
            return None;
        }
        (Word::Agrees | Word::IsAhead | Word::Contradicts, _) => trust(turn),
    })
}

/// Who spoke against the DCS, and does not answer any more: it has not taken that back, and what it knows speaks against it
/// still.
fn fallen_silent(seen: &Observation, memory: &Memory) -> Option<(MemberName, PeerStore)> {
    let (name, other) = memory.contradicted_by.as_ref()?;
    let Peers::Asked(answers) = &seen.peers else {
        return None;
    };
    let is_silent = !matches!(answers.get(name), Some(PeerAnswer::Answered(_)));
    let is_against = store::contradicts(seen, other) && !store::is_confirmed(seen, answers);
    (is_silent && is_against).then(|| (name.clone(), *other))
}

fn forget_contradiction(memory: &mut Memory) {
    memory.contradicted_since = None;
    memory.contradicted_by = None;
}

fn trust(turn: Turn<'_>) -> Decision {
    turn.remember(forget_contradiction)
        .act(Action::TrustStore)
        .now(Reason::TrustingStore)
}

fn doubt(turn: Turn<'_>, name: MemberName, told: Told, reason: Reason) -> Decision {
    turn.remember(forget_contradiction)
        .act(Action::DoubtStore { name, told })
        .now(reason)
}

/// A peer speaks against the DCS: it is asked again for a while, and the view may come up to what it knows.
fn contradicted(turn: Turn<'_>, name: MemberName, other: PeerStore) -> Decision {
    let seen = turn.seen;
    let since = turn.decision.memory.contradicted_since;
    let since = since.unwrap_or(seen.now);
    let turn = turn.detail(Detail::Member(name.clone()));
    if seen.now.since(since) < CONTRADICTED_FOR {
        return turn
            .remember(|memory| {
                memory.contradicted_since = Some(since);
                memory.contradicted_by = Some((name, other));
                memory.wants_peers = true;
            })
            .within(Reason::PeerKnowsMore, ASK_AGAIN);
    }
    // Whoever believes a DCS of a higher generation speaks for that one, and against all before it.
    let denied = match other.is_doubted {
        true => other.generation,
        false => other.generation.saturating_sub(1),
    };
    let told = Told {
        generation: seen.store.generation.max(denied),
        cluster_id: Some(other.cluster_id),
    };
    doubt(turn, name, told, Reason::PeerKnowsMore)
}

/// Whether what lies here looks like a cluster that moves to this DCS, and not like what is left of one.
fn is_moving(seen: &Observation) -> bool {
    let is_left = match &seen.local {
        Local::Stopped(stopped) => stopped.was_primary,
        Local::Orphaned { was_primary, .. } => *was_primary,
        Local::Unknown(_)
        | Local::Empty
        | Local::Starting { .. }
        | Local::Running(_)
        | Local::Unresponsive { .. } => false,
    };
    !seen.store.knew_others && !is_left
}

/// A timeline is claimed before it begins. One that a DCS knows nothing of began after what it shows: an old copy,
/// by which the newest data would be taken for what is to be rewound.
fn is_data_newer(seen: &Observation, topology: &Topology) -> bool {
    let (system, own) = match &seen.local {
        Local::Running(running) => (running.system_id, running.timeline),
        Local::Stopped(stopped) => (stopped.system_id, stopped.timeline),
        Local::Unknown(_)
        | Local::Empty
        | Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => return false,
    };
    let recorded = topology.history.last_ended();
    let recorded = recorded.map_or(Timeline(0), |ended| Timeline(ended.0 + 1));
    let of_members = topology.members.values();
    let of_members = of_members.filter_map(|member| member.timeline).max();
    let known = recorded
        .max(topology.claimed.timeline)
        .max(of_members.unwrap_or_default());
    // Where nothing is recorded, as before the first promotion under Trunkline, nothing can be told.
    known > Timeline(0) && own > known && topology.initialize == Initialize::Done(system)
}

/// A primary that answers is the cluster's choice, whatever this member missed.
fn is_led(seen: &Observation) -> bool {
    match &seen.peers {
        Peers::NotAsked => false,
        Peers::Asked(answers) => answers.values().any(|answer| match answer {
            PeerAnswer::Answered(view) => view.is_primary,
            PeerAnswer::Unreachable => false,
        }),
    }
}
