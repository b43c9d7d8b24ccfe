//! What ends a lease that the store would renew: a killed PostgreSQL that does not die, a loop that stands still, a
//! fence that is not replaced. The lease's own thread needs none of them, and would go on for ever.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use trunkline_shared::cluster::Moment;

/// PostgreSQL was killed in vain.
pub const KILL_HANGS: &str =
    "PostgreSQL was killed and its processes do not end: look at the host's storage";

/// The leader key names a member that may not write.
pub const NO_FENCE: &str =
    "the fence is gone and no other can be started: look at the agent's log and the host's limits";

/// For how long a decision to let the lease lapse for want of a fence holds renewals back: with one that is there by then,
/// its member leads on.
pub const WITHOUT_FENCE: Duration = Duration::from_secs(1);

/// The loop's side and the lease task's side of it.
#[derive(Debug, Default)]
pub struct Brake {
    /// When the turn in progress began; 0 between turns.
    turn_began: AtomicU64,
    /// Until when nothing is renewed, and why.
    pulled: Mutex<Option<(Moment, &'static str)>>,
}

impl Brake {
    /// Nothing is renewed until then, or until what was said before.
    pub fn pull(&self, until: Moment, why: &'static str) {
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        if pulled.is_none_or(|(before, _)| before < until) {
            *pulled = Some((until, why));
        }
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
        let pulled = *self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, why)) = pulled.filter(|(until, _)| now < *until) {
            return Some(why);
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
        brake.pull(at(210), KILL_HANGS);
        brake.pull(at(205), NO_FENCE);
        assert_eq!(brake.why(at(209), ttl), Some(KILL_HANGS));
        assert_eq!(brake.why(at(210), ttl), None);
    }
}
