//! Limits on what clients may hold before and after they are known. Each permit gives itself back when it
//! is dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::fleet::wrong_keys::WrongKeys;
use crate::turns::Turns;

/// Clients that are not yet authenticated, in total. Each costs a socket, and what it has sent: in the clear a start-up
/// packet, under TLS [`MAX_HANDSHAKE`] and one read at most, and while it is asked for its proof two records of TLS.
pub const MAX_NEWCOMERS: usize = 8192;
/// The same from one address. A load balancer without PROXY protocol is one address.
pub const MAX_NEWCOMERS_PER_ADDRESS: usize = 2048;
/// Bytes that a client may send before its TLS handshake is over. A ClientHello with the keys of today and of
/// tomorrow takes 2,000.
pub const MAX_HANDSHAKE: usize = 8 * 1024;
/// The same where it is asked for its certificate: a chain of some RSA certificates fits.
pub const MAX_HANDSHAKE_WITH_CERTIFICATE: usize = 24 * 1024;
/// The same for PostgreSQL, which shows its chain.
pub const MAX_HANDSHAKE_OF_SERVER: usize = 128 * 1024;
/// Steps of TLS handshakes that one core does before everybody else on it has had a turn: with a key of RSA-4096 a
/// step takes milliseconds.
pub const MAX_HANDSHAKES_AT_WORK: usize = 2;
/// How long a client may take to send its start-up packet.
pub const STARTUP_TIME: Duration = Duration::from_secs(10);
/// Cancel requests being passed on at once; more are dropped, as PostgreSQL gives no answer to them either.
pub const MAX_CANCELS: usize = 64;
/// Connections being made to one address at once; more wait their turn.
pub const MAX_CONNECTS: usize = 256;
/// How long one attempt to connect to a server may take.
pub const CONNECT_TIME: Duration = Duration::from_secs(3);
/// How long a server may take to answer a request for encryption with its one byte.
pub const ENCRYPTION_ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long a session may last without the server's first ReadyForQuery, or under TLS or GSS without as many
/// bytes as that would need: PostgreSQL's own `authentication_timeout` where it is not set.
pub const GREETING_TIME: Duration = Duration::from_secs(60);

/// The limits of the whole process.
pub struct Limits {
    newcomers: AtomicUsize,
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
    /// Cancels in flight.
    pub cancels: Semaphore,
    /// Cancel keys that are nobody's.
    wrong_keys: Mutex<WrongKeys>,
    /// Connects in flight, by the address of the member as its record names it: one that does not answer
    /// holds up no other.
    connects: Turns,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            newcomers: AtomicUsize::new(0),
            by_address: Mutex::default(),
            cancels: Semaphore::new(MAX_CANCELS),
            wrong_keys: Mutex::default(),
            connects: Turns::new(MAX_CONNECTS),
        }
    }
}

/// A client that is not yet authenticated.
pub struct Newcomer {
    limits: Arc<Limits>,
    address: IpAddr,
}

impl Newcomer {
    /// Counts it under its own address instead of the proxy's; `None` if that has too many.
    pub fn behind(self, address: IpAddr) -> Option<Self> {
        let limits = self.limits.clone();
        drop(self);
        limits.admit(address)
    }
}

impl Limits {
    /// The counts of cancel keys that are nobody's.
    pub fn wrong_keys(&self) -> MutexGuard<'_, WrongKeys> {
        self.wrong_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The turns of those who connect to this address.
    pub fn connects(&self, address: &Arc<str>) -> Arc<Semaphore> {
        self.connects.of(address)
    }

    /// Clients that are not authenticated.
    pub fn newcomers(&self) -> usize {
        self.newcomers.load(Ordering::Relaxed)
    }

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

/// The key of a listener's limit.
pub const MAX_CLIENT_CONN: &str = "max_client_conn";

/// There are too many clients already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sorry, too many clients already: {whose} allows {limit} ({key})")]
pub struct Full {
    /// Of what there are too many clients, in words.
    pub whose: String,
    /// How many it allows.
    pub limit: usize,
    /// The key that says so.
    pub key: &'static str,
}

/// Counts something that is open; gives it back when dropped.
#[derive(Debug)]
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

    #[test]
    fn a_newcomer_behind_a_proxy_counts_under_its_own_address() {
        let limits = Arc::new(Limits::default());
        let proxy = IpAddr::from([127, 0, 0, 1]);
        let own = IpAddr::from([10, 0, 0, 9]);
        let newcomer = limits.admit(proxy).unwrap().behind(own).unwrap();
        let counted: Vec<_> = limits
            .by_address
            .lock()
            .unwrap()
            .clone()
            .into_iter()
            .collect();
        assert_eq!(counted, [(own, 1)]);
        drop(newcomer);
        assert_eq!(limits.newcomers.load(Ordering::Relaxed), 0);
    }
}
