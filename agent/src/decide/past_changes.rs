//! What a new leader writes down of the change that made it one: how long each part took.

use std::sync::Arc;

use trunkline_shared::cluster::switchover::{ChangeParts, LeaderChange};
use trunkline_shared::cluster::topology::{SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{MemberName, Topology};

use super::Turn;
use super::decision::Action;
use super::memory::PlannedChange;
use super::observation::{LeaseView, Observation};

/// A candidate notes since when it has known where the old leader's WAL ends.
pub(super) fn note_candidacy<'a>(turn: Turn<'a>, topology: &Topology) -> Turn<'a> {
    let Some(record) = topology.switchover.as_ref() else {
        return turn;
    };
    let now = turn.seen.now;
    let is_known = |known: &PlannedChange| known.id == record.id && known.has_stopped();
    turn.remember(|memory| {
        if !memory.switchover.as_ref().is_some_and(is_known) {
            memory.switchover = Some(PlannedChange {
                id: record.id,
                is_restart: false,
                stage: Some(record.stage),
                since: now,
                was_streaming: false,
                parts: record.parts,
                is_rolled_back: false,
            });
        }
    })
}

/// It takes the key by itself: nobody hands it over.
pub(super) fn forget_candidacy(turn: Turn<'_>) -> Turn<'_> {
    let record = turn.seen.topology().and_then(|t| t.switchover.clone());
    let record = record.filter(|record| is_candidate(turn.seen, record));
    turn.remember(|memory| {
        let is_its = |known: &mut PlannedChange| record.is_some_and(|record| record.id == known.id);
        memory.switchover.take_if(is_its);
    })
}

fn is_candidate(seen: &Observation, record: &SwitchoverRecord) -> bool {
    record.to == seen.me.name && !record.is_restart()
}

/// Who has handed the key over to this member, after its PostgreSQL had stopped and this member had said that it has all
/// of it.
pub(super) fn handed_over_by<'a>(
    turn: &Turn<'_>,
    topology: &'a Topology,
) -> Option<&'a MemberName> {
    let record = topology.switchover.as_ref();
    let record =
        record.filter(|record| is_candidate(turn.seen, record) && has_stopped(record.stage));
    let known = turn.decision.memory.switchover.as_ref();
    let is_known = known.is_some_and(|known| record.is_some_and(|record| record.id == known.id));
    record.filter(|_| is_known).map(|record| &record.from)
}

/// The first look at a primary that this member has just become.
pub(super) fn note_promotion<'a>(turn: Turn<'a>, topology: &Topology) -> Turn<'a> {
    let seen = turn.seen;
    let LeaseView::Held(held) = &seen.lease else {
        return turn;
    };
    let since = turn.decision.memory.not_primary_since;
    let Some((_, since)) = since.filter(|(epoch, _)| *epoch == held.epoch) else {
        return turn;
    };
    let record = topology.switchover.as_ref();
    let record = record.filter(|record| record.to == seen.me.name);
    let planned = record.filter(|record| has_stopped(record.stage));
    let followed = turn.decision.memory.switchover.as_ref();
    let followed = followed.filter(|known| planned.is_some_and(|record| record.id == known.id));
    let change = LeaderChange {
        epoch: held.epoch,
        from: planned.map(|record| record.from.clone()),
        to: seen.me.name.clone(),
        at: Arc::from(""),
        parts: ChangeParts {
            hand_over: followed.map(|known| since.since(known.since)),
            promote: Some(seen.now.since(since)),
            ..planned.map(|record| record.parts).unwrap_or_default()
        },
    };
    turn.remember(|memory| {
        memory.switchover = None;
        memory.unrecorded = Some(change);
    })
}

fn has_stopped(stage: SwitchoverStage) -> bool {
    match stage {
        SwitchoverStage::Stopped { .. } => true,
        SwitchoverStage::HoldTransactions | SwitchoverStage::HoldAll | SwitchoverStage::Resume => {
            false
        }
    }
}

/// Writes it down; seen there, it is forgotten.
pub(super) fn record<'a>(turn: Turn<'a>, topology: &Topology) -> Turn<'a> {
    let Some(change) = turn.decision.memory.unrecorded.clone() else {
        return turn;
    };
    let is_written = topology.last_change >= Some(change.epoch);
    if is_written || !is_held(turn.seen, &change) {
        return turn.remember(|memory| memory.unrecorded = None);
    }
    turn.act(Action::RecordChange(Arc::new(change)))
}

fn is_held(seen: &Observation, change: &LeaderChange) -> bool {
    match &seen.lease {
        LeaseView::Held(held) => held.epoch == change.epoch,
        LeaseView::NotHeld | LeaseView::Lost => false,
    }
}
