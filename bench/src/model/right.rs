//! The right to lead in whole ticks, over the real arithmetic of the lease.

use std::time::Duration;

use trunkline_agent::decide::observation::LeaseView;
use trunkline_agent::lease::state::{KeyCheck, LeaseState, Renewal};
use trunkline_shared::cluster::Moment;

use super::look::{NOW, epoch};

/// How long a tick and a lease last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) tick: Duration,
    pub(super) ttl: Duration,
}

/// The right to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Right {
    No,
    Lost,
    /// For so many ticks more.
    Mine {
        epoch: u8,
        left: u8,
        is_missing: bool,
        is_unresolved: bool,
    },
}

impl Scale {
    pub(super) fn ahead(&self, ticks: u8) -> Moment {
        NOW + self.tick * u32::from(ticks)
    }

    pub(super) fn ticks(&self, duration: Duration) -> u8 {
        u8::try_from(duration.as_millis() / self.tick.as_millis()).unwrap_or(u8::MAX)
    }

    /// The answer to a renewal that was sent so many ticks ago.
    pub(super) fn renewal(&self, age: u8, found: KeyCheck) -> Renewal {
        Renewal {
            sent: NOW.before(self.tick * u32::from(age)),
            ttl: self.ttl,
            keep_alive_term: 1,
            check_term: 1,
            found,
        }
    }

    /// The real state of the lease task that shows this.
    pub(super) fn state(&self, right: Right) -> LeaseState {
        let mut lease = LeaseState::default();
        match right {
            Right::No => {}
            Right::Lost => {
                lease.acquired(epoch(1), NOW, self.ttl);
                lease.renewed(self.renewal(0, KeyCheck::Other));
            }
            Right::Mine {
                epoch: number,
                left,
                is_missing,
                is_unresolved,
            } => {
                let whole = NOW.until(lease.deadline(NOW, self.ttl));
                lease.acquired(epoch(number), self.ahead(left).before(whole), self.ttl);
                if is_missing {
                    lease.renewed(self.renewal(0, KeyCheck::Missing));
                }
                if is_unresolved {
                    lease.hand_over_sent();
                }
            }
        }
        lease
    }

    pub(super) fn right(&self, lease: &LeaseState) -> Right {
        match lease.view() {
            LeaseView::NotHeld => Right::No,
            LeaseView::Lost => Right::Lost,
            LeaseView::Held(held) => Right::Mine {
                epoch: u8::try_from(held.epoch.revision).unwrap_or(u8::MAX),
                left: self.ticks(NOW.until(held.deadline)),
                is_missing: held.is_key_missing,
                is_unresolved: held.has_unresolved_hand_over,
            },
        }
    }

    /// What happens to it by the real rules.
    pub(super) fn changed(&self, right: Right, change: impl FnOnce(&mut LeaseState)) -> Right {
        let mut lease = self.state(right);
        change(&mut lease);
        self.right(&lease)
    }

    /// A tick later.
    pub(super) fn later(&self, right: Right) -> Right {
        self.changed(right.earlier(), |lease| lease.lapsed(NOW))
    }
}

impl Right {
    pub(super) fn left(self) -> Option<u8> {
        match self {
            Right::Mine { left, .. } => Some(left),
            Right::No | Right::Lost => None,
        }
    }

    /// With a tick less.
    fn earlier(mut self) -> Self {
        if let Right::Mine { left, .. } = &mut self {
            *left = left.saturating_sub(1);
        }
        self
    }
}
