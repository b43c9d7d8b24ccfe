//! Who reaches whom: a count of cuts for each directed pair of endpoints.

use super::event::{NodeId, Time};

/// An endpoint of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Dcs,
    Node(NodeId),
    Router(u8),
}

/// Nodes before routers in the table of links.
const ROUTERS_FROM: usize = 6;
/// Endpoints in all.
const PLACES: usize = 8;

impl Place {
    fn index(self) -> usize {
        match self {
            Place::Dcs => 0,
            Place::Node(node) => 1 + usize::from(node),
            Place::Router(router) => ROUTERS_FROM + usize::from(router),
        }
    }
}

/// The links. Every one has a count of the faults that cut it.
#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    cuts: [[u8; PLACES]; PLACES],
    /// When a cut of it ended last.
    mended: [[Time; PLACES]; PLACES],
}

impl Network {
    pub(super) fn reaches(&self, from: Place, to: Place) -> bool {
        self.cuts[from.index()][to.index()] == 0
    }

    /// Whether a round trip gets through.
    pub(super) fn connects(&self, one: Place, other: Place) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    /// When the link was mended last.
    pub(super) fn mended_at(&self, from: Place, to: Place) -> Time {
        self.mended[from.index()][to.index()]
    }

    /// A fault cuts the link, or such a cut ends.
    pub(super) fn change(&mut self, from: Place, to: Place, cut: bool, now: Time) {
        if !cut {
            self.mended[from.index()][to.index()] = now;
        }
        let count = &mut self.cuts[from.index()][to.index()];
        *count = match cut {
            true => *count + 1,
            false => count.saturating_sub(1),
        };
    }

    pub(super) fn mend_all(&mut self, now: Time) {
        self.cuts = Default::default();
        self.mended = [[now; PLACES]; PLACES];
    }
}
