//! The lane of the member that a planned change goes to, made when the change is announced.

use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::{Member, MemberState, Topology};

use super::fitness::is_in_recovery;
use super::{CutCause, Step};
use crate::topology::routing_table::{Candidate, LaneId};

impl Step<'_> {
    /// Follows the announcement for as long as it holds clients, and the key from then on.
    pub(super) fn candidate(&mut self, topology: Option<&Topology>) {
        let known = self.next.candidate.take();
        let has_key = |own: &Candidate| {
            let holder = self.next.last.as_ref();
            holder.is_some_and(|it| it.member == own.member && it.epoch > own.epoch)
        };
        let next = match (self.next.hold, topology) {
            (None, _) => known.clone().filter(has_key),
            (Some(hold), None) => known.clone().filter(|own| own.epoch == hold.epoch),
            (Some(_), Some(topology)) => self.announced_candidate(topology, known.as_ref()),
        };
        if let Some(known) = known
            && next.as_ref().is_none_or(|next| next.lane != known.lane)
        {
            let cause = CutCause::LeaderChanged;
            self.cut(known.lane, cause, self.now, Duration::ZERO);
        }
        self.next.candidate = next;
    }

    fn announced_candidate(
        &mut self,
        topology: &Topology,
        known: Option<&Candidate>,
    ) -> Option<Candidate> {
        // A leader that only restarts announces itself.
        let announced = topology.switchover.as_ref();
        let announced = announced.filter(|it| it.to != it.from)?;
        let record = topology.members.get(&announced.to)?;
        let is_same = |own: &&Candidate| {
            own.member == announced.to
                && own.epoch == announced.epoch
                && own.address == record.address
        };
        if let Some(known) = known.filter(is_same) {
            return Some(known.clone());
        }
        takes_sessions(record).then(|| Candidate {
            member: announced.to.clone(),
            address: record.address.clone(),
            epoch: announced.epoch,
            lane: self.new_lane(),
        })
    }

    /// The lane that was made for the leader of this moment before it led, if one was.
    pub(super) fn lane_made_ahead(&mut self) -> Option<LaneId> {
        let last = self.next.last.as_ref()?;
        let is_its = |own: &mut Candidate| {
            own.member == last.member && own.address == last.address && own.epoch < last.epoch
        };
        self.next.candidate.take_if(is_its).map(|own| own.lane)
    }
}

/// Whether a standby lets somebody log in, as far as its record says.
fn takes_sessions(record: &Arc<Member>) -> bool {
    is_in_recovery(record) && record.state == MemberState::Running
}
