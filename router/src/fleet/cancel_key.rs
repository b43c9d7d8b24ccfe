//! Which router a cancel key names. Pure.
//!
//! A key of protocol 3.0 is a process number of 31 bits (drivers take it for a positive `int4`) and a secret of 32, all of
//! which stay random. In `transaction` and `statement` mode the process number is the router's own: bit 30 is set, ten bits
//! are the router's number, twenty count its sessions. In `session` mode it is the process of PostgreSQL as
//! `pg_stat_activity` shows it, at most 2^22 on Linux, so bit 30 tells the two apart; such a key names no router.
//!
//! The number is drawn at the start and need not be unique: a key is offered to every router that has it. So nothing is
//! claimed, nobody renumbers while clients hold keys, and no key depends on the DCS.

/// Set in process numbers of the router's own.
const OWN: u32 = 1 << 30;
/// The bits that count sessions.
const SESSION_BITS: u32 = 20;
/// Numbers of routers are below this.
pub const NUMBERS: u16 = 1 << 10;

/// The process number of a session, for clients; sessions are counted up, and begin again after 2^20.
pub fn process(number: u16, session: u32) -> u32 {
    let session = session & ((1 << SESSION_BITS) - 1);
    OWN | u32::from(number % NUMBERS) << SESSION_BITS | session
}

/// The number of the router that gave a key with this process number out; `None` where it is PostgreSQL's.
pub fn number(process: u32) -> Option<u16> {
    let number = (process & !OWN) >> SESSION_BITS;
    match process & OWN {
        0 => None,
        _ => u16::try_from(number).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_router_and_is_a_positive_process_number() {
        for (router, session) in [(0, 0), (1, 7), (1023, u32::MAX), (512, 1 << 20)] {
            let process = process(router, session);
            assert_eq!(number(process), Some(router));
            assert!(i32::try_from(process).is_ok_and(|process| process > 0));
        }
        assert_ne!(process(3, 1), process(3, 2));
    }

    #[test]
    fn a_process_of_postgresql_names_no_router() {
        for pid in [1, 99_999, 1 << 22] {
            assert_eq!(number(pid), None);
        }
    }
}
