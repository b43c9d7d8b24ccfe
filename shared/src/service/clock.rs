//! The only caller of the system clocks.

use rustix::time::{ClockId, clock_gettime};

use crate::cluster::Moment;

/// Now, by CLOCK_BOOTTIME: unlike `std::time::Instant` (CLOCK_MONOTONIC) it goes on while the machine is
/// suspended, so a lease cannot outlive a nap.
pub fn now() -> Moment {
    let reading = clock_gettime(ClockId::Boottime);
    let nanos = i128::from(reading.tv_sec) * 1_000_000_000 + i128::from(reading.tv_nsec);
    Moment(u64::try_from(nanos).unwrap_or(0))
}
