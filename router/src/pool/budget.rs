//! How many servers may be open: counts that all cores share, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of servers that may be open at once.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    open: AtomicUsize,
}

impl Budget {
    /// With this limit; `usize::MAX` is none.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            open: AtomicUsize::new(0),
        }
    }

    /// Changes the limit. What is open above it stays open until it is closed for another reason.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// How many may be open.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Counts one more, if that is within the limit and `extra` beyond it.
    fn take(&self, extra: usize) -> bool {
        let limit = self.limit.load(Ordering::Relaxed).saturating_add(extra);
        let taken = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < limit).then_some(open + 1)
            });
        taken.is_ok()
    }

    fn free(&self) -> usize {
        self.limit().saturating_sub(self.open())
    }

    fn give_back(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether no more may be open.
    pub fn is_used_up(&self) -> bool {
        self.open() >= self.limit.load(Ordering::Relaxed)
    }

    fn is_exceeded(&self) -> bool {
        self.open() > self.limit.load(Ordering::Relaxed)
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// The three that a server counts in.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// Of its pool, on all cores: `default_pool_size`.
    pub pool: Arc<Budget>,
    /// Of its database: `max_db_connections`.
    pub database: Arc<Budget>,
    /// Of its user: `max_user_connections`.
    pub user: Arc<Budget>,
}

impl Budgets {
    /// How many may be opened before anybody asks for them: half of what the database and the user have left, for others
    /// may need that meanwhile.
    pub fn to_spare(&self) -> usize {
        self.database.free().min(self.user.free()) / 2
    }

    /// Counts one more in all of them, or in none. The reserve goes beyond the pool's limit only.
    pub fn take(&self, reserve: usize) -> bool {
        if !self.pool.take(reserve) {
            return false;
        }
        if !self.database.take(0) {
            self.pool.give_back();
            return false;
        }
        if !self.user.take(0) {
            self.pool.give_back();
            self.database.give_back();
            return false;
        }
        true
    }

    /// Whether more servers are open than may be, in any of them: a limit was lowered, or the reserve is in use.
    pub fn is_exceeded(&self) -> bool {
        let all = [&self.pool, &self.database, &self.user];
        all.iter().any(|own| own.is_exceeded())
    }

    /// Whether it is the database's or the user's that is used up, and not the pool's own: another pool's server may
    /// make room.
    pub fn may_gain(&self) -> bool {
        !self.pool.is_used_up() && (self.database.is_used_up() || self.user.is_used_up())
    }

    /// Those that servers of several pools count in.
    pub fn of_many(&self) -> [&Arc<Budget>; 2] {
        [&self.database, &self.user]
    }

    /// Whether a server that counts in these counts in that one.
    pub fn counts_in(&self, one: &Arc<Budget>) -> bool {
        self.of_many().iter().any(|own| Arc::ptr_eq(own, one))
    }

    /// Whether a server of the other ones does: it counts in each that is used up.
    pub fn gains_by(&self, other: &Budgets) -> bool {
        let helps = |own: &Arc<Budget>, other| !own.is_used_up() || Arc::ptr_eq(own, other);
        helps(&self.database, &other.database) && helps(&self.user, &other.user)
    }

    /// Counts one less in all of them.
    pub fn give_back(&self) {
        self.pool.give_back();
        self.database.give_back();
        self.user.give_back();
    }
}
