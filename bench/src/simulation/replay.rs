//! Replay that stands still on a standby, as for a query in its way or because somebody paused it: WAL arrives, is
//! flushed and acknowledged, and what is replayed says nothing of that.

use fastrand::Rng;

use super::event::{NodeId, SECOND, Time};
use super::fake_postgres::{Phase, Postgres};
use super::plan::{Fault, FaultKind, Plan};
use super::world::World;

/// One world in so many has a standby that stops replaying.
const ONE_IN: u8 = 10;

/// By a source of its own, so that what else strikes, and when, is the same with it and without.
pub(super) fn draw(rng: &Rng, plan: &Plan) -> Option<Fault> {
    let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0x2e91);
    if own.u8(..ONE_IN) > 0 || plan.faults.is_empty() {
        return None;
    }
    // Before something else strikes, so that it matters who stands where.
    let before = plan.faults[own.usize(..plan.faults.len())].at;
    let node = own.u8(..plan.members);
    Some(Fault {
        at: before
            .saturating_sub(own.u64(SECOND..4 * SECOND))
            .max(SECOND),
        lasts: own.u64(5 * SECOND..25 * SECOND),
        kind: FaultKind::ReplayStalls,
        node,
        other: node,
        hits_leader: false,
    })
}

impl World {
    /// Whether there is a standby that replays.
    pub(super) fn stall_replay(&mut self, node: NodeId, until: Time) -> bool {
        let now = self.now;
        let postgres = &mut self.node_mut(node).postgres;
        let is_standby = postgres.phase == (Phase::Replica { promotes: false });
        let Some(data) = postgres.data.as_mut().filter(|_| is_standby) else {
            return false;
        };
        data.replayed = data.replayed(now);
        data.replays_at = until.max(data.replays_at);
        postgres.replay_stalls = until.max(postgres.replay_stalls);
        true
    }
}

impl Postgres {
    /// When WAL that arrives now will have been replayed.
    pub(super) fn will_have_replayed(&self, now: Time, lag: Time) -> Time {
        (now + lag).max(self.replay_stalls)
    }

    /// Nothing is in its way any more.
    pub(super) fn replay_goes_on(&mut self, now: Time) {
        self.replay_stalls = 0;
        if let Some(data) = &mut self.data {
            data.replays_at = data.replays_at.min(now + SECOND);
        }
    }
}
