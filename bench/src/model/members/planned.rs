//! How a planned change is shown to the rules, and read from what they decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_agent::decide::memory::PlannedChange;
use trunkline_shared::cluster::router::{Acknowledged, HoldStage};
use trunkline_shared::cluster::switchover::{ChangeParts, Drain};
use trunkline_shared::cluster::topology::{FailoverRequest, SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{RouterRecord, Topology};

use super::shown::{LONG, Seen, place, written};
use super::{Change, Held, Stage, Store};
use crate::model::look::{NOW, epoch, name};

/// The request for the change, and what it is known by.
const REQUEST: i64 = 900;
pub(in crate::model) const REQUEST_ID: u64 = 900;

/// The request, what is announced, and the router with what it says that it holds.
pub(super) fn show_change(topology: &mut Topology, seen: &Seen) {
    show_record(topology, &seen.store);
    if seen.has_router {
        let record = router(seen.store.said);
        topology.routers = Arc::new(BTreeMap::from([(Arc::from("r1/1"), Arc::new(record))]));
    }
}

pub(in crate::model) fn show_record(topology: &mut Topology, store: &Store) {
    topology.failover = store.is_asked.then(|| FailoverRequest {
        leader: Some(name(0)),
        candidate: Some(name(1)),
        scheduled_at: None,
        drain: Drain::default(),
        revision: REQUEST,
    });
    if let Some(change) = &store.change {
        topology.switchover = Some(Arc::new(SwitchoverRecord {
            id: REQUEST_ID,
            epoch: epoch(change.epoch),
            from: name(change.from),
            to: name(change.to),
            stage: stage(change.stage),
            parts: ChangeParts::default(),
        }));
        topology.switchover_revision = i64::from(change.revision);
    }
}

fn router(said: Option<Held>) -> RouterRecord {
    RouterRecord {
        version: Arc::from("1"),
        http_url: Arc::from("http://r1:8009"),
        hold_timeout: LONG,
        epoch: None,
        acknowledged: said.map(|said| Acknowledged {
            switchover: REQUEST_ID,
            epoch: epoch(said.epoch),
            revision: i64::from(said.revision),
            stage: match said.is_all {
                true => HoldStage::All,
                false => HoldStage::Transactions,
            },
        }),
        writer_sessions: 0,
        held_clients: 0,
        cancel_number: None,
    }
}

/// The stage as the record has it. The last record of a clean stop takes one step.
fn stage(stage: Stage) -> SwitchoverStage {
    match stage {
        Stage::HoldTransactions => SwitchoverStage::HoldTransactions,
        Stage::HoldAll => SwitchoverStage::HoldAll,
        Stage::Stopped(at) => SwitchoverStage::Stopped {
            shutdown_checkpoint: place(at.saturating_sub(1)),
        },
    }
}

pub(super) fn stage_of(stage: SwitchoverStage) -> Option<Stage> {
    match stage {
        SwitchoverStage::HoldTransactions => Some(Stage::HoldTransactions),
        SwitchoverStage::HoldAll => Some(Stage::HoldAll),
        SwitchoverStage::Stopped {
            shutdown_checkpoint,
        } => Some(Stage::Stopped(written(shutdown_checkpoint) + 1)),
        SwitchoverStage::Resume => None,
    }
}

pub(super) fn planned(change: &Change) -> PlannedChange {
    PlannedChange {
        id: REQUEST_ID,
        is_restart: false,
        stage: change.stage.map(stage),
        since: match change.is_over_time {
            true => NOW.before(LONG),
            false => NOW,
        },
        was_streaming: change.was_streaming,
        parts: ChangeParts::default(),
        is_rolled_back: change.is_rolled_back,
    }
}

pub(super) fn change_of(change: &PlannedChange) -> Change {
    Change {
        stage: change.stage.and_then(stage_of),
        is_over_time: !NOW.since(change.since).is_zero(),
        was_streaming: change.was_streaming,
        is_rolled_back: change.is_rolled_back,
    }
}
