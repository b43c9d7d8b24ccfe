//! Servers before anybody asks for one: of a member that is to lead, while it does not yet.

use trunkline_shared::cluster::Moment;

use super::{CloseReason, Condition, Effect, PoolState, ServerId};

impl PoolState {
    /// Connects servers until there are so many, as far as the budgets allow.
    pub fn open_ahead(&mut self, count: usize, now: Moment, effects: &mut Vec<Effect>) {
        self.is_for_later = true;
        let may_connect = !self.is_closed && !self.gate.is_paused();
        let count = count.min(self.servers.len() + self.budgets.to_spare());
        while may_connect && self.servers.len() < count && self.budgets.take(0) {
            self.connect(Condition::Ahead, now, effects);
        }
    }

    /// Whether this one is being connected before anybody has asked for it.
    pub fn is_ahead(&self, server: ServerId) -> bool {
        let known = self.servers.get(&server);
        known.is_some_and(|known| known.condition == Condition::Ahead)
    }

    /// Gives up the last one that is being connected ahead: whoever asks for a server needs its room. Whether there was one,
    /// and nobody waits for it by now.
    pub fn give_up_ahead(&mut self, effects: &mut Vec<Effect>) -> bool {
        if !self.waiting.is_empty() {
            return false;
        }
        let mut all = self.servers.keys().rev().copied();
        let Some(server) = all.find(|server| self.is_ahead(*server)) else {
            return false;
        };
        self.connecting -= 1;
        self.close(server, CloseReason::Evicted, effects);
        true
    }
}
