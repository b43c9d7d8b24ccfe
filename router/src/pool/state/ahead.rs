//! Servers before anybody asks for one.

use trunkline_shared::cluster::Moment;

use super::{Effect, PoolState};

impl PoolState {
    /// Connects servers until there are so many, as far as the budgets allow.
    pub fn open_ahead(&mut self, count: usize, now: Moment, effects: &mut Vec<Effect>) {
        let may_connect = !self.is_closed && !self.gate.is_paused();
        let count = count.min(self.servers.len() + self.budgets.to_spare());
        while may_connect && self.servers.len() < count && self.budgets.take(0) {
            self.connect(now, effects);
        }
    }
}
