//! Faults that come together in a few worlds, since what they do together hardly any world of single ones would show. Each
//! by a source of its own, so that what else strikes, and when, is the same in the worlds without.

use fastrand::Rng;
use trunkline_shared::cluster::settings::SynchronousMode;

use super::event::{MS, SECOND, Time};
use super::plan::{Fault, FaultKind, Origin, Plan};

/// One world in so many has a candidate whose WAL stalls when it is chosen, if it has a third member.
const STALLED_CANDIDATE: u8 = 30;
/// One synchronous world in so many has clients that wait for standbys no longer.
const IMPATIENT: u8 = 8;
/// One world in so many has a member that loses all it knows while the store has lost the cluster.
const FORGETFUL: u8 = 40;

impl Plan {
    /// Whether the world is about one fault, beside which nothing else strikes.
    pub(super) fn is_taken(&self) -> bool {
        let mut kinds = self.faults.iter().map(|fault| fault.kind);
        self.is_blackout || kinds.any(|kind| kind == FaultKind::ListAnswerLost)
    }

    /// Called last: it goes by what is drawn.
    pub(super) fn draw_together(&mut self, rng: &Rng) {
        if self.origin != Origin::Running || self.is_taken() {
            return;
        }
        let own = |salt: u64| Rng::with_seed(rng.clone().u64(..) ^ salt);
        self.draw_stalled_candidate(&mut own(0x57A1));
        self.draw_impatience(&mut own(0xCA9C));
        self.draw_forgetful(&mut own(0xF069));
        self.faults.sort_by_key(|fault| fault.at);
    }

    /// An operator names a candidate, and a moment later no WAL reaches it any more: others may have what it lacks.
    fn draw_stalled_candidate(&mut self, own: &mut Rng) {
        if own.u8(..STALLED_CANDIDATE) > 0 || self.members < 3 {
            return;
        }
        let node = own.u8(..self.members);
        let chosen = Fault {
            at: own.u64(6 * SECOND..15 * SECOND),
            lasts: SECOND,
            kind: FaultKind::OperatorSwitchoverNamed,
            node,
            other: (node + 1) % self.members,
            hits_leader: true,
        };
        let stalled = Fault {
            at: chosen.at + own.u64(..1_500 * MS),
            lasts: own.u64(4 * SECOND..12 * SECOND),
            kind: FaultKind::ReplicationStalls,
            ..chosen
        };
        self.strike([chosen, stalled], own.bool());
    }

    /// Clients cancel what waits while no WAL reaches a standby; then the leader's host is lost.
    fn draw_impatience(&mut self, own: &mut Rng) {
        let is_on = self.synchronous_mode != SynchronousMode::Off;
        if own.u8(..IMPATIENT) > 0 || !is_on {
            return;
        }
        let at = own.u64(8 * SECOND..15 * SECOND);
        let fault = |kind, at, node, lasts: Time| Fault {
            at,
            lasts,
            kind,
            node,
            other: (node + 1) % self.members,
            hits_leader: true,
        };
        let lasts = own.u64(3 * SECOND..10 * SECOND);
        let ends = at + own.u64(SECOND..lasts);
        let mut together = vec![
            fault(FaultKind::WaitsCancelled, at, 0, lasts),
            fault(FaultKind::NodePowerOff, ends, 0, 2 * lasts),
        ];
        let stalls =
            (0..self.members).map(|node| fault(FaultKind::ReplicationStalls, at, node, lasts));
        together.extend(stalls);
        self.strike(together, own.bool());
    }

    /// The store is emptied, and a member comes back without its disk and without what its memory held.
    fn draw_forgetful(&mut self, own: &mut Rng) {
        if own.u8(..FORGETFUL) > 0 {
            return;
        }
        let node = own.u8(..self.members);
        let lost = Fault {
            at: own.u64(8 * SECOND..15 * SECOND),
            lasts: SECOND,
            kind: FaultKind::DataLost,
            node: (node + 1) % self.members,
            other: node,
            hits_leader: true,
        };
        let wiped = Fault {
            at: lost.at + own.u64(..SECOND),
            lasts: own.u64(200 * MS..3 * SECOND),
            kind: FaultKind::DcsWiped,
            ..lost
        };
        let off = Fault {
            at: wiped.at + own.u64(..12 * SECOND),
            lasts: own.u64(200 * MS..4 * SECOND),
            kind: FaultKind::NodePowerOff,
            node,
            hits_leader: false,
            ..lost
        };
        self.strike([lost, wiped, off], own.bool());
    }

    fn strike(&mut self, together: impl IntoIterator<Item = Fault>, alone: bool) {
        if alone {
            self.faults.clear();
        }
        self.faults.extend(together);
    }
}
