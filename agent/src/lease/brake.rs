//! What ends a lease that the store would renew: a killed PostgreSQL that does not die, a loop that stands still, a
//! fence that is not replaced. The lease's own thread needs none of them, and would go on for ever.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use trunkline_shared::cluster::Moment;

/// PostgreSQL was killed in vain.
const KILL_HANGS: &str =
    "PostgreSQL was killed and its processes do not end: look at the host's storage";

/// The leader key names a member that may not write.
const NO_FENCE: &str =
    "the fence is gone and no other can be started: look at the agent's log and the host's limits";

/// The loop's side and the lease task's side of it.
#[derive(Debug, Default)]
pub struct Brake {
    /// When the turn in progress began; 0 between turns.
    turn_began: AtomicU64,
    /// Until when nothing is renewed after a kill in vain.
    pulled_until: AtomicU64,
    /// No fence can be had.
    is_without_fence: AtomicBool,
}

impl Brake {
    /// Nothing is renewed until then: a kill is in vain.
    pub fn pull(&self, until: Moment) {
        self.pulled_until.fetch_max(until.0, Ordering::Relaxed);
    }

    /// Nothing is renewed while no fence can be had.
    pub fn is_without_fence(&self, is_without: bool) {
        self.is_without_fence.store(is_without, Ordering::Relaxed);
    }

    /// A turn begins.
    pub fn turn_begins(&self, now: Moment) {
        self.turn_began.store(now.0, Ordering::Relaxed);
    }

    /// It has ended.
    pub fn turn_ends(&self) {
        self.turn_began.store(0, Ordering::Relaxed);
    }

    /// Why nothing may be renewed now. Every wait within a turn has a limit of seconds, so one that lasts a `ttl`
    /// hangs.
    pub fn why(&self, now: Moment, ttl: Duration) -> Option<&'static str> {
        if now.0 < self.pulled_until.load(Ordering::Relaxed) {
            return Some(KILL_HANGS);
        }
        if self.is_without_fence.load(Ordering::Relaxed) {
            return Some(NO_FENCE);
        }
        let began = self.turn_began.load(Ordering::Relaxed);
        let hangs = began != 0 && now.since(Moment(began)) >= ttl;
        hangs.then_some("the agent's loop has stood still for a ttl: look at the host's storage")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_while_pulled_and_while_a_turn_lasts_a_ttl() {
        let ttl = Duration::from_secs(5);
        let at = |seconds: u64| Moment(seconds * 1_000_000_000);
        let brake = Brake::default();
        assert_eq!(brake.why(at(100), ttl), None);
        brake.turn_begins(at(100));
        assert_eq!(brake.why(at(104), ttl), None);
        assert!(brake.why(at(105), ttl).is_some());
        brake.turn_ends();
        assert_eq!(brake.why(at(200), ttl), None);
        brake.pull(at(210));
        brake.pull(at(205));
        assert_eq!(brake.why(at(209), ttl), Some(KILL_HANGS));
        assert_eq!(brake.why(at(210), ttl), None);
        brake.is_without_fence(true);
        assert_eq!(brake.why(at(999), ttl), Some(NO_FENCE));
        brake.is_without_fence(false);
        assert_eq!(brake.why(at(999), ttl), None);
    }
}
