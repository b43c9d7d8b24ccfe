//! Limits on what clients may hold before and after they are known. Each permit gives itself back when it
//! is dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

/// Clients that are not yet authenticated, in total: they cost a socket each and nothing else.
pub const MAX_NEWCOMERS: usize = 8192;
/// The same from one address. A load balancer without PROXY protocol is one address.
pub const MAX_NEWCOMERS_PER_ADDRESS: usize = 2048;
/// How long a client may take to send its start-up packet.
pub const STARTUP_TIME: Duration = Duration::from_secs(10);
/// Cancel requests being passed on at once; more are dropped, as PostgreSQL gives no answer to them either.
pub const MAX_CANCELS: usize = 64;
/// Connections being made to servers at once; more wait their turn.
pub const MAX_CONNECTS: usize = 256;
/// How long one attempt to connect to a server may take.
pub const CONNECT_TIME: Duration = Duration::from_secs(3);

/// The limits of the whole process.
pub struct Limits {
    newcomers: AtomicUsize,
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
    /// Cancels in flight.
    pub cancels: Semaphore,
    /// Connects in flight.
    pub connects: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            newcomers: AtomicUsize::new(0),
            by_address: Mutex::default(),
            cancels: Semaphore::new(MAX_CANCELS),
            connects: Semaphore::new(MAX_CONNECTS),
        }
    }
}

/// A client that is not yet authenticated.
pub struct Newcomer {
    limits: Arc<Limits>,
    address: IpAddr,
}

impl Limits {
    /// Counts one more client that is not authenticated; `None` if there are too many.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Newcomer> {
        if self.newcomers.fetch_add(1, Ordering::Relaxed) >= MAX_NEWCOMERS {
            self.newcomers.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= MAX_NEWCOMERS_PER_ADDRESS {
            self.newcomers.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        *count += 1;
        Some(Newcomer {
            limits: self.clone(),
            address,
        })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.limits.newcomers.fetch_sub(1, Ordering::Relaxed);
        let mut by_address = self
            .limits
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// Counts something that is open; gives it back when dropped.
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Counts one more.
    pub fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }

    /// Counts one more unless that would be more than `limit`.
    pub fn within(count: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let one = Self::new(count);
        (count.load(Ordering::Relaxed) <= limit).then_some(one)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_are_limited_per_address_and_given_back() {
        let limits = Arc::new(Limits::default());
        let one = IpAddr::from([127, 0, 0, 1]);
        let two = IpAddr::from([127, 0, 0, 2]);
        let full: Vec<_> = (0..MAX_NEWCOMERS_PER_ADDRESS)
            .map(|_| limits.admit(one).unwrap())
            .collect();
        assert!(limits.admit(one).is_none());
        assert!(limits.admit(two).is_some());
        drop(full);
        assert!(limits.admit(one).is_some());
        assert!(limits.by_address.lock().unwrap().is_empty());
    }
}
