//! How many cancel keys that are nobody's one address may try: a secret of 32 bits is to be guessed by nobody. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use trunkline_shared::cluster::Moment;

/// Wrong keys from one address in one [`WINDOW`]; what comes from there after them is not looked at until it is over.
/// One secret in particular is found in three months, on average. A load balancer without PROXY protocol is one
/// address, and keys of sessions that are just over are wrong, too.
pub const MAX_WRONG_KEYS: u32 = 256;
/// The same of a router, whose clients have addresses of their own: so many of [`MAX_WRONG_OFFERS`] that it takes
/// sixteen addresses to have it not looked at. To who can reach the endpoint one secret costs three weeks.
pub const MAX_WRONG_KEYS_OF_ROUTER: u32 = 16 * MAX_WRONG_OFFERS;
/// Keys from one address that are offered to other routers in one [`WINDOW`] without being theirs, those that are on
/// their way included. Whatever comes after them is looked at here only.
pub const MAX_WRONG_OFFERS: u32 = 64;
/// See [`MAX_WRONG_KEYS`].
pub const WINDOW: Duration = Duration::from_secs(1);
/// Addresses that are remembered in one window. Those beyond it share one count.
const MAX_ADDRESSES: usize = 1024;

/// The network of an IPv6 address that one customer has, and all addresses in it: /64.
const NETWORK: u128 = !(u64::MAX as u128);

/// Whom an address stands for.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(own) => Ipv6Addr::from(u128::from(own) & NETWORK).into(),
        IpAddr::V4(own) => own.into(),
    }
}

/// The counts of one window.
#[derive(Debug, Default)]
pub struct WrongKeys {
    since: Moment,
    by_address: BTreeMap<IpAddr, u32>,
    others: u32,
}

impl WrongKeys {
    /// Whether a key from this address, which may try so many, is looked at now.
    pub fn may_try(&mut self, address: IpAddr, most: u32, now: Moment) -> bool {
        self.turn(now);
        let count = match self.by_address.get(&source(address)) {
            Some(count) => *count,
            None if self.by_address.len() < MAX_ADDRESSES => 0,
            None => self.others,
        };
        count < most
    }

    /// Whether a key from this address that is nobody's here is offered to others now.
    pub fn may_offer(&mut self, address: IpAddr, now: Moment) -> bool {
        self.may_try(address, MAX_WRONG_OFFERS, now)
    }

    /// A key from this address was nobody's.
    pub fn note(&mut self, address: IpAddr, now: Moment) {
        self.turn(now);
        let address = source(address);
        let has_room = self.by_address.len() < MAX_ADDRESSES;
        let count = match self.by_address.get_mut(&address) {
            Some(count) => count,
            None if has_room => self.by_address.entry(address).or_default(),
            None => &mut self.others,
        };
        *count = count.saturating_add(1);
    }

    /// A key that was noted was somebody's. In the next window it may take back what another one has left, once.
    pub fn take_back(&mut self, address: IpAddr, now: Moment) {
        self.turn(now);
        let count = self.by_address.get_mut(&source(address));
        let count = count.unwrap_or(&mut self.others);
        *count = count.saturating_sub(1);
    }

    fn turn(&mut self, now: Moment) {
        if now.since(self.since) >= WINDOW {
            *self = Self {
                since: now,
                ..Self::default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(7_000_000_000);

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn who_tries_too_many_keys_waits_for_the_next_window_and_nobody_else_does() {
        let mut keys = WrongKeys::default();
        for _ in 0..MAX_WRONG_KEYS {
            assert!(keys.may_try(address(1), MAX_WRONG_KEYS, NOW));
            keys.note(address(1), NOW);
        }
        assert!(!keys.may_try(address(1), MAX_WRONG_KEYS, NOW));
        assert!(keys.may_try(address(2), MAX_WRONG_KEYS, NOW));
        assert!(keys.may_try(address(1), MAX_WRONG_KEYS, NOW + WINDOW));
    }

    #[test]
    fn fewer_are_offered_than_tried_and_a_router_may_pass_on_those_of_many() {
        let mut keys = WrongKeys::default();
        for _ in 0..MAX_WRONG_OFFERS {
            assert!(keys.may_offer(address(1), NOW));
            keys.note(address(1), NOW);
        }
        assert!(!keys.may_offer(address(1), NOW));
        assert!(keys.may_try(address(1), MAX_WRONG_KEYS, NOW));
        keys.take_back(address(1), NOW);
        assert!(keys.may_offer(address(1), NOW));
        keys.take_back(address(2), NOW);
        (1..MAX_WRONG_KEYS_OF_ROUTER).for_each(|_| keys.note(address(3), NOW));
        assert!(keys.may_try(address(3), MAX_WRONG_KEYS_OF_ROUTER, NOW));
        keys.note(address(3), NOW);
        assert!(!keys.may_try(address(3), MAX_WRONG_KEYS_OF_ROUTER, NOW));
    }

    #[test]
    fn the_addresses_of_one_network_of_ipv6_share_a_count() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut keys = WrongKeys::default();
        for number in 0..MAX_WRONG_KEYS {
            keys.note(address(&format!("2001:db8:0:1::{number:x}")), NOW);
            keys.note(address("::ffff:10.0.0.1"), NOW);
        }
        assert!(!keys.may_try(address("2001:db8:0:1:ffff::"), MAX_WRONG_KEYS, NOW));
        assert!(keys.may_try(address("2001:db8:0:2::1"), MAX_WRONG_KEYS, NOW));
        assert!(!keys.may_try(address("10.0.0.1"), MAX_WRONG_KEYS, NOW));
        assert!(keys.may_try(address("10.0.0.2"), MAX_WRONG_KEYS, NOW));
    }

    #[test]
    fn addresses_beyond_those_remembered_share_a_count() {
        let mut keys = WrongKeys::default();
        let many = u32::try_from(MAX_ADDRESSES).unwrap();
        (0..many + MAX_WRONG_KEYS).for_each(|number| keys.note(address(number), NOW));
        assert_eq!(keys.by_address.len(), MAX_ADDRESSES);
        assert!(keys.may_try(address(0), MAX_WRONG_KEYS, NOW));
        assert!(!keys.may_try(address(u32::MAX), MAX_WRONG_KEYS, NOW));
    }
}
