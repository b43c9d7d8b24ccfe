//! Whether a planned change of leader holds what is new.

use std::time::Duration;

use trunkline_shared::cluster::topology::SwitchoverStage;
use trunkline_shared::cluster::{LeaderEpoch, Topology};

use super::Step;
use crate::topology::routing_table::{Hold, HoldStage, RoutingTable};

/// What is announced: which change, the epoch that it ends, the revision of the record that asks routers to hold, and how
/// much.
type Announced = (u64, LeaderEpoch, Option<i64>, HoldStage);

impl Step<'_> {
    /// Holds what the leader's agent has announced, for as long as a client may be held: an agent that is away cannot
    /// call its change off, and a leader that goes on must be written to.
    pub(super) fn hold(&mut self, topology: Option<&Topology>, limit: Option<Duration>) {
        let before = self.next.hold.take();
        let announced = match topology {
            Some(topology) => announced(topology),
            None => still(before, &self.next),
        };
        let Some((switchover, epoch, revision, stage)) = announced else {
            return;
        };
        if self.next.outlived == Some((switchover, epoch)) {
            return;
        }
        let known = before.filter(|known| (known.switchover, known.epoch) == (switchover, epoch));
        let since = known.map_or(self.now, |known| known.since);
        // Where nothing new is asked for, what was acknowledged stays so, and nobody is woken by another word of it.
        let revision = revision.or(known.map(|known| known.revision));
        let revision = revision.unwrap_or_default();
        if let Some(limit) = limit {
            let until = since + limit;
            if self.now >= until {
                self.next.outlived = Some((switchover, epoch));
                return;
            }
            self.look_again_at(until);
        }
        self.next.hold = Some(Hold {
            switchover,
            epoch,
            revision,
            stage,
            since,
        });
    }
}

/// The announcement counts for the epoch that it names, so that what a former leader left behind holds nobody.
fn announced(topology: &Topology) -> Option<Announced> {
    let leader = topology.leader.as_ref()?;
    let announced = topology.switchover.as_ref()?;
    if announced.epoch != leader.epoch || announced.from != leader.member {
        return None;
    }
    let asks = Some(topology.switchover_revision);
    let (stage, revision) = match announced.stage {
        SwitchoverStage::HoldTransactions => (HoldStage::Transactions, asks),
        SwitchoverStage::HoldAll => (HoldStage::All, asks),
        SwitchoverStage::Stopped { .. } => (HoldStage::All, None),
        SwitchoverStage::Resume => return None,
    };
    Some((announced.id, announced.epoch, revision, stage))
}

/// Without a view of the DCS what was held last still is.
fn still(before: Option<Hold>, next: &RoutingTable) -> Option<Announced> {
    let epoch = next.last.as_ref().map(|last| last.epoch);
    let hold = before.filter(|hold| Some(hold.epoch) == epoch)?;
    let revision = Some(hold.revision);
    Some((hold.switchover, hold.epoch, revision, hold.stage))
}
