//! The few system calls that no crate wraps safely: the only `unsafe` of the project.
#![expect(
    unsafe_code,
    reason = "the kernel's watchdog is set by ioctl, for which there is no safe wrapper, and a socket that another program \
              left open is known by its number alone"
)]

use std::ffi::c_int;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};
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

/// Whether a number was taken over: a second owner of one number would close what is another's.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over the listening socket that the program before left open in this process under `number`, once in a
/// process and before anything else is opened. An error: there is none, or it is none.
pub fn inherited_listener(number: RawFd) -> io::Result<TcpListener> {
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if number <= 2 {
        return refused("this number is of standard input or output");
    }
    if IS_TAKEN.swap(true, Ordering::SeqCst) {
        return refused("a socket was taken over before");
    }
    // Sound: it is borrowed for two questions that fail where nothing is open under the number.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if !rustix::net::sockopt::socket_acceptconn(borrowed)? {
        return refused("it does not listen");
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // Sound: it is open and listens, nothing of this program has opened a listening socket yet, and a second call is
    // refused; so this is its one owner.
    Ok(unsafe { TcpListener::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_taken_over_once_and_nothing_else_is() {
        assert!(inherited_listener(1).is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = inherited_listener(std::os::fd::IntoRawFd::into_raw_fd(listener)).unwrap();
        assert_eq!(taken.local_addr().unwrap(), address);
        assert!(inherited_listener(std::os::fd::AsRawFd::as_raw_fd(&taken)).is_err());
    }

    #[test]
    fn what_is_no_watchdog_says_so() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(set_watchdog_timeout(&file, 5).is_err());
    }
}
