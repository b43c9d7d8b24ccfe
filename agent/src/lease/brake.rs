//! What ends a lease that the store would renew: a killed PostgreSQL that does not die, and a loop that stands
//! still. Both come of a disk that hangs; the lease's own thread touches none, and would go on for ever.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trunkline_shared::cluster::Moment;

/// The loop's side and the lease task's side of it.
#[derive(Debug, Default)]
pub struct Brake {
    /// When the turn in progress began; 0 between turns.
    turn_began: AtomicU64,
    /// Until when nothing is renewed.
    pulled_until: AtomicU64,
}

impl Brake {
    /// Nothing is renewed until then.
    pub fn pull(&self, until: Moment) {
        self.pulled_until.fetch_max(until.0, Ordering::Relaxed);
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
            return Some(
                "PostgreSQL was killed and its processes do not end: look at the host's storage",
            );
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
        assert!(brake.why(at(209), ttl).is_some());
        assert_eq!(brake.why(at(210), ttl), None);
    }
}
