//! The few system calls that no crate wraps safely: the only `unsafe` of the project.
#![expect(
    unsafe_code,
    reason = "the kernel's watchdog is set by ioctl, for which there is no safe wrapper"
)]

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `WDIOC_SETTIMEOUT` of `linux/watchdog.h`: takes seconds, answers those in force, and counts as a ping.
const SET_TIMEOUT: Opcode = opcode::read_write::<c_int>(b'W', 6);

/// Sets after how many seconds without a ping a watchdog device resets the machine, and returns what is in
/// force now: drivers round. An error of kind `Unsupported` or ENOTTY: the device cannot.
pub fn set_watchdog_timeout(device: impl AsFd, seconds: u32) -> io::Result<u32> {
    let mut value = c_int::try_from(seconds).unwrap_or(c_int::MAX);
    // Sound: the number says read and write of one `int`, which is what the kernel's watchdog core and every
    // driver of it exchange for this call, and `value` is one that outlives the call. On anything but a
    // watchdog the kernel answers ENOTTY.
    unsafe {
        let setting: Updater<'_, SET_TIMEOUT, c_int> = Updater::new(&mut value);
        ioctl(device, setting)?;
    }
    u32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_watchdog_says_so() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(set_watchdog_timeout(&file, 5).is_err());
    }
}
