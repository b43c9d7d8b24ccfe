//! Whether a planned change of leader holds what is new.

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::topology::SwitchoverStage;

use crate::topology::routing_table::{Hold, HoldStage, RoutingTable};

/// What the announcement of the leader's agent holds. It counts for the epoch that it names, so that what a former
/// leader left behind holds nobody. Without a view of the DCS what was held last still is: each client for no longer
/// than `hold_timeout`.
pub(super) fn hold(topology: Option<&Topology>, next: &RoutingTable) -> Option<Hold> {
    let Some(topology) = topology else {
        let epoch = next.last.as_ref().map(|last| last.epoch);
        return next.hold.filter(|hold| Some(hold.epoch) == epoch);
    };
    let leader = topology.leader.as_ref()?;
    let announced = topology.switchover.as_ref()?;
    if announced.epoch != leader.epoch || announced.from != leader.member {
        return None;
    }
    let stage = match announced.stage {
        SwitchoverStage::HoldTransactions => HoldStage::Transactions,
        SwitchoverStage::HoldAll | SwitchoverStage::Stopped { .. } => HoldStage::All,
        SwitchoverStage::Resume => return None,
    };
    Some(Hold {
        switchover: announced.id,
        epoch: announced.epoch,
        stage,
    })
}
