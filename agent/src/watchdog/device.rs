//! A watchdog device, or the named pipe in its place. To open one starts it, and so does to close it without the
//! magic `V`, by whatever ends the process: the kernel pings it then, and it counts its whole time once more.
//!
//! A pipe gets `t`, the seconds and a space where a device is told its time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use trunkline_shared::service::sys;

/// The bytes: any but `V` pings, and `V` right before the end of a session stops the device.
const PING: &[u8] = b"1";
const MAGIC_CLOSE: &[u8] = b"V";

/// The device number of `/dev/watchdog`; others are known by their class in sysfs.
const FIRST_WATCHDOG: (u32, u32) = (10, 130);

/// An open device.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    is_pipe: bool,
    /// The shortest time it can be told, as far as sysfs says; seconds.
    pub(super) shortest: u32,
}

impl Device {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let (is_pipe, number) = check(path)?;
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        let file = opened.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        let shortest = match is_pipe {
            true => None,
            false => attribute(number, "min_timeout").and_then(|text| text.parse().ok()),
        };
        Ok(Self {
            file,
            is_pipe,
            shortest: shortest.unwrap_or(1).max(1),
        })
    }

    /// Has it count so many seconds from now; returns those in force.
    pub(super) fn count(&mut self, seconds: u32) -> io::Result<u32> {
        if self.is_pipe {
            return self
                .write(format!("t{seconds} ").as_bytes())
                .map(|()| rounded(seconds));
        }
        sys::set_watchdog_timeout(&self.file, seconds)
    }

    /// It counts from now on.
    pub(super) fn ping(&mut self) -> io::Result<()> {
        self.write(PING)
    }

    /// A reader of the pipe that is behind has no say.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_all(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Stops it.
    pub(super) fn stop(mut self) -> Result<(), String> {
        let stopped = self.file.write_all(MAGIC_CLOSE);
        stopped.map_err(|error| error.to_string())
    }
}

/// What a pipe takes a time for: in tests it may round up as drivers do.
fn rounded(seconds: u32) -> u32 {
    #[cfg(test)]
    if let Some(step) = STEPS.get().iter().find(|step| **step >= seconds) {
        return *step;
    }
    seconds
}

#[cfg(test)]
thread_local! {
    /// The only times, in order, that the pipes of a test know; all, if there are none.
    pub(super) static STEPS: std::cell::Cell<&'static [u32]> = const { std::cell::Cell::new(&[]) };
}

/// Whether the device could be opened, by what can be known without starting it: it is a named pipe (true) or a
/// watchdog, by its number, and this user may write there.
pub(super) fn check(device: &Path) -> Result<(bool, u64), String> {
    let shown = device.display();
    let metadata = fs::metadata(device).map_err(|error| format!("{shown}: {error}"))?;
    let kind = metadata.file_type();
    let is_device = kind.is_char_device() && is_watchdog(metadata.rdev());
    if !kind.is_fifo() && !is_device {
        return Err(format!("{shown} is no watchdog device"));
    }
    // The magic close does nothing then.
    if is_device && attribute(metadata.rdev(), "nowayout").is_some_and(|text| text == "1") {
        return Err(format!(
            "{shown} cannot be stopped once it counts (nowayout), so every planned stop of PostgreSQL would reset \
             the machine; load its module without nowayout"
        ));
    }
    rustix::fs::access(device, rustix::fs::Access::WRITE_OK).map_err(|_| {
        format!("this user may not write to {shown}; give it the device (udev rule)")
    })?;
    Ok((kind.is_fifo(), metadata.rdev()))
}

/// What sysfs says of a watchdog.
fn attribute(number: u64, name: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = match (major, minor) {
        FIRST_WATCHDOG => format!("/sys/class/watchdog/watchdog0/{name}"),
        (major, minor) => format!("/sys/dev/char/{major}:{minor}/{name}"),
    };
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn is_watchdog(number: u64) -> bool {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let class = fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
    (major, minor) == FIRST_WATCHDOG || class.is_ok_and(|class| class.ends_with("watchdog"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_watchdog_is_never_written_to() {
        for path in ["/dev/null", "/etc/hostname", "/nowhere"] {
            assert!(check(Path::new(path)).is_err(), "{path}");
        }
    }
}
