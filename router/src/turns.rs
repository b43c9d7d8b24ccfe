//! Turns of those who want something of one address: one that does not answer holds up who wants something of it, and
//! nobody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// The turns of all addresses.
#[derive(Debug)]
pub struct Turns {
    most: usize,
    by_address: Mutex<BTreeMap<Arc<str>, Arc<Semaphore>>>,
}

impl Turns {
    /// So many at once for each address.
    pub const fn new(most: usize) -> Self {
        Self {
            most,
            by_address: Mutex::new(BTreeMap::new()),
        }
    }

    /// Those of one address, for as long as anybody keeps them.
    pub fn of(&self, address: &Arc<str>) -> Arc<Semaphore> {
        let by_address = self.by_address.lock();
        // The map stays whole whatever panics around it: every change is one insert or one retain.
        let mut by_address = by_address.unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = by_address.get(address) {
            return turns.clone();
        }
        // Those that nobody has any more are forgotten when a new one comes.
        by_address.retain(|_, turns| Arc::strong_count(turns) > 1);
        let turns = Arc::new(Semaphore::new(self.most));
        by_address.insert(address.clone(), turns.clone());
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_that_does_not_answer_holds_up_no_other_and_is_forgotten() {
        let turns = Turns::new(2);
        let (dead, alive): (Arc<str>, Arc<str>) = ("dead:5432".into(), "alive:5432".into());
        let held = [1, 2].map(|_| turns.of(&dead).try_acquire_owned().unwrap());
        assert!(turns.of(&dead).try_acquire().is_err());
        assert!(turns.of(&alive).try_acquire().is_ok());
        drop(held);
        assert!(turns.of(&"other:5432".into()).try_acquire().is_ok());
        assert_eq!(turns.by_address.lock().unwrap().len(), 1);
        assert!(turns.of(&dead).try_acquire().is_ok());
    }
}
