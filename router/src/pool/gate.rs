//! What an operator has told the pools of a database: to hold its clients, to let no new ones in, to use no server of
//! before. Every core reads it without a lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use trunkline_shared::cluster::Moment;

/// Of one database, as clients call it, on every cluster.
#[derive(Debug, Default)]
pub struct Gate {
    is_paused: AtomicBool,
    is_disabled: AtomicBool,
    /// Servers opened until then are not used again; 0: all are.
    renewed_at: AtomicU64,
    opened: Notify,
}

impl Gate {
    /// Whether its clients are to wait: `PAUSE`, `KILL`.
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Acquire)
    }

    /// Whether no new client is let in: `DISABLE`.
    pub fn is_disabled(&self) -> bool {
        self.is_disabled.load(Ordering::Acquire)
    }

    /// Whether a server that was opened then is not to be used again.
    pub fn is_old(&self, opened_at: Moment) -> bool {
        opened_at.0 <= self.renewed_at.load(Ordering::Acquire)
    }

    /// Holds its clients, or lets them go on.
    pub fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Release);
        if !is_paused {
            self.opened.notify_waiters();
        }
    }

    /// Lets new clients in, or none.
    pub fn disable(&self, is_disabled: bool) {
        self.is_disabled.store(is_disabled, Ordering::Release);
    }

    /// Every server opened until now is old: `RECONNECT`.
    pub fn renew(&self, now: Moment) {
        self.renewed_at.fetch_max(now.0, Ordering::AcqRel);
    }

    /// Waits until its clients may go on.
    pub async fn is_open(&self) {
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            // From here on nothing is missed.
            opened.as_mut().enable();
            if !self.is_paused() {
                return;
            }
            opened.await;
        }
    }

    fn is_kept(self: &Arc<Self>) -> bool {
        let is_renewed = self.renewed_at.load(Ordering::Acquire) != 0;
        let is_as_ever = !self.is_paused() && !self.is_disabled() && !is_renewed;
        Arc::strong_count(self) > 1 || !is_as_ever
    }
}

/// The gates of all databases that anybody has asked for.
#[derive(Debug, Default)]
pub struct Gates {
    is_all_paused: AtomicBool,
    by_database: Mutex<BTreeMap<Box<str>, Arc<Gate>>>,
}

impl Gates {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Arc<Gate>>> {
        // The map stays whole whatever panics around it: every change is one insert or one retain.
        let locked = self.by_database.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    /// The gate of a database. Not per transaction.
    pub fn of(&self, database: &str) -> Arc<Gate> {
        let mut gates = self.locked();
        if let Some(gate) = gates.get(database) {
            return gate.clone();
        }
        // Clients choose names: what nobody uses and nobody has shut is forgotten.
        gates.retain(|_, gate| gate.is_kept());
        let gate = Arc::<Gate>::default();
        gate.pause(self.is_all_paused());
        gates.insert(database.into(), gate.clone());
        gate
    }

    /// All that somebody uses or has shut, by the name of their database.
    pub fn all(&self) -> Vec<(Box<str>, Arc<Gate>)> {
        let gates = self.locked();
        let each = gates.iter().filter(|(_, gate)| gate.is_kept());
        each.map(|(name, gate)| (name.clone(), gate.clone()))
            .collect()
    }

    /// Whether every database is paused, those included that nobody has asked for yet.
    pub fn is_all_paused(&self) -> bool {
        self.is_all_paused.load(Ordering::Acquire)
    }

    /// Pauses every database, or none.
    pub fn pause_all(&self, is_paused: bool) {
        let gates = self.locked();
        self.is_all_paused.store(is_paused, Ordering::Release);
        for gate in gates.values() {
            gate.pause(is_paused);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_comes_while_all_are_paused_is_paused() {
        let gates = Gates::default();
        let early = gates.of("early");
        gates.pause_all(true);
        assert!(early.is_paused() && gates.of("late").is_paused());
        gates.pause_all(false);
        assert!(!early.is_paused() && !gates.of("late").is_paused());
    }

    #[test]
    fn a_gate_is_forgotten_once_it_is_as_ever_and_nobody_has_it() {
        let gates = Gates::default();
        gates.of("used").disable(true);
        gates.of("unused");
        gates.of("another");
        let names: Vec<_> = gates.all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.join(" "), "used");
        assert!(gates.of("used").is_disabled());
    }

    #[test]
    fn servers_of_before_are_old_and_stay_so() {
        let gate = Gate::default();
        assert!(!gate.is_old(Moment(1)));
        gate.renew(Moment(5));
        gate.renew(Moment(3));
        assert!(gate.is_old(Moment(5)) && !gate.is_old(Moment(6)));
    }
}
