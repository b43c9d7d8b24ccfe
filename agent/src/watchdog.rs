//! The watchdog (Patroni's `watchdog:` section): a device of the kernel that resets the machine unless somebody
//! pings it. It guards against what the fence cannot: a machine on which the fence does not run either.
//!
//! The fence keeps it ([`Watchdog`]): opened when it is armed, pinged only while a whole timeout fits before the
//! end of the lease, closed with the magic `V` once there is nothing to guard. A fence that is killed closes
//! nothing, so the device goes on counting and the next fence takes it over. The agent says in `run_dir` which
//! device it is and how long it may count ([`Teller`]), and reads there what the fence made of it.
//!
//! A named pipe may stand in the place of the device, for tests: it gets the same bytes, and nothing is reset.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::{clock, sys};

use crate::config::{WatchdogConfig, WatchdogMode};

/// What the fence is to do, in the run directory.
const ORDER_FILE: &str = "watchdog";

/// What the fence made of it, beside it.
const STATE_FILE: &str = "watchdog.state";

/// How long after the deadline the machine may be reset: the fence kills and closes the device in that time. The
/// lease ends 500 ms after the deadline or later (`ha.md` 3).
const PAST_DEADLINE: Duration = Duration::from_millis(400);

/// The bytes: any but `V` pings, and `V` right before the end of a session stops the device.
const PING: &[u8] = b"1";
const MAGIC_CLOSE: &[u8] = b"V";

/// The device number of `/dev/watchdog`; others are known by their class in sysfs.
const FIRST_WATCHDOG: (u32, u32) = (10, 130);

/// Which device counts how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    device: PathBuf,
    /// After so many seconds without a ping it resets the machine.
    seconds: u32,
    /// The longest that still leaves renewals the time to be late.
    most: u32,
}

impl Order {
    /// Patroni's arithmetic: the timeout is the ttl less the margin, and half of the ttl where no margin is
    /// wanted or none is left. At least one second, and short enough that one late renewal resets nothing.
    pub fn new(config: &WatchdogConfig, ttl: Duration) -> Self {
        let half = ttl / 2;
        let left = config
            .safety_margin
            .map(|margin| ttl.saturating_sub(margin));
        let wanted = left.filter(|left| *left >= Duration::from_secs(1));
        let slack = (ttl / 6).max(Duration::from_secs(1));
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
        let most = seconds(ttl.saturating_sub(slack));
        Self {
            device: config.device.clone(),
            seconds: seconds(wanted.unwrap_or(half)).min(most),
            most,
        }
    }

    /// After which time without a ping the machine is to be reset.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds))
    }

    fn encode(&self) -> Vec<u8> {
        let mut line = format!("{} {} ", self.seconds, self.most).into_bytes();
        line.extend(self.device.as_os_str().as_bytes());
        line
    }

    fn decode(line: &[u8]) -> Option<Self> {
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
        let (seconds, most) = (number()?, number()?);
        let device = parts.next().filter(|path| !path.is_empty())?;
        Some(Self {
            device: PathBuf::from(OsStr::from_bytes(device)),
            seconds,
            most,
        })
    }
}

/// What the fence made of its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not counting.
    Closed,
    /// It counts for so many seconds: this device.
    Open(u32, PathBuf),
    /// It cannot be used.
    Failed(String),
}

impl State {
    fn encode(&self) -> Vec<u8> {
        match self {
            State::Closed => b"closed".to_vec(),
            State::Open(seconds, device) => {
                let mut line = format!("open {seconds} ").into_bytes();
                line.extend(device.as_os_str().as_bytes());
                line
            }
            State::Failed(why) => format!("failed {why}").into_bytes(),
        }
    }

    /// What stands in the run directory; `Closed` if nothing does.
    pub fn read(run_dir: &Path) -> Self {
        let line = fs::read(run_dir.join(STATE_FILE)).unwrap_or_default();
        if let Some(why) = line.strip_prefix(b"failed ") {
            return State::Failed(String::from_utf8_lossy(why).into_owned());
        }
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let (word, seconds, device) = (parts.next(), parts.next(), parts.next());
        let seconds = seconds.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        match (word, seconds, device) {
            (Some(b"open"), Some(seconds), Some(device)) => {
                State::Open(seconds, PathBuf::from(OsStr::from_bytes(device)))
            }
            _ => State::Closed,
        }
    }
}

fn replace(run_dir: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let fresh = run_dir.join(format!("{name}.new"));
    fs::write(&fresh, text)?;
    fs::rename(&fresh, run_dir.join(name))
}

// The fence's side.

/// The device in the fence's hands.
#[derive(Debug)]
pub struct Watchdog {
    run_dir: PathBuf,
    open: Option<(File, Order, Duration)>,
    /// A device that a fence before this one left counting when it died.
    left: Option<PathBuf>,
    state: Option<State>,
}

impl Watchdog {
    /// Not opened yet. What an earlier fence left counting stands to be read until this one has it in hand.
    pub fn new(run_dir: &Path) -> Self {
        let mut watchdog = Self {
            run_dir: run_dir.to_owned(),
            open: None,
            left: None,
            state: None,
        };
        match State::read(run_dir) {
            State::Open(_, device) => watchdog.left = Some(device),
            State::Closed | State::Failed(_) => {
                let _ = watchdog.say(State::Closed);
            }
        }
        watchdog
    }

    /// The fence is armed: opens the device as ordered and pings it while that is allowed. Returns what is new
    /// and worth a line in the log.
    pub fn keep(&mut self, deadline: Moment, now: Moment) -> Option<String> {
        let ordered = match fs::read(self.run_dir.join(ORDER_FILE)) {
            Ok(line) => Order::decode(&line),
            // What cannot be read has not changed; without a file there is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => self.open.as_ref().map(|(_, order, _)| order.clone()),
        };
        let Some(order) = ordered else {
            return self.close();
        };
        let is_another = |device: &PathBuf| *device != order.device;
        let is_known = |(_, known, _): &(File, Order, Duration)| *known == order;
        let has_changed = self.open.as_ref().is_some_and(|open| !is_known(open));
        if has_changed || self.left.as_ref().is_some_and(is_another) {
            let _ = self.close();
        }
        // To open one that counts is to ping it: so late that would let the machine live longer than it may.
        if self.left.is_some() && now > last_ping(deadline, order.timeout()) {
            return None;
        }
        let mut news = None;
        if self.open.is_none() {
            let state = match open(&order) {
                Ok((file, seconds)) => {
                    let timeout = Duration::from_secs(u64::from(seconds));
                    let device = order.device.clone();
                    self.left = None;
                    self.open = Some((file, order, timeout));
                    State::Open(seconds, device)
                }
                Err(why) => State::Failed(why),
            };
            news = self.say(state);
        }
        let (file, _, timeout) = self.open.as_mut()?;
        if now <= last_ping(deadline, *timeout)
            && let Err(error) = file.write_all(PING)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.open = None;
            return self.say(State::Failed(format!("cannot be pinged: {error}")));
        }
        news
    }

    /// There is nothing to guard: stops the device, be it one that a fence which died left counting.
    pub fn close(&mut self) -> Option<String> {
        let (device, stopped) = match (self.open.take(), &self.left) {
            (Some((mut file, order, _)), _) => {
                let stopped = file.write_all(MAGIC_CLOSE);
                (order.device, stopped.map_err(|error| error.to_string()))
            }
            (None, Some(device)) => {
                let stopped = open_device(device).and_then(|(mut file, _)| {
                    let stopped = file.write_all(MAGIC_CLOSE);
                    stopped.map_err(|error| error.to_string())
                });
                (device.clone(), stopped)
            }
            (None, None) => return self.say(State::Closed),
        };
        match stopped {
            Ok(()) => {
                self.left = None;
                self.say(State::Closed)
            }
            // It goes on counting and will reset the machine: that is what there is to say.
            Err(why) => {
                let device = device.display();
                self.say(State::Failed(format!("{device} cannot be stopped: {why}")))
            }
        }
    }

    fn say(&mut self, state: State) -> Option<String> {
        if self.state.as_ref() == Some(&state) {
            return None;
        }
        let line = state.encode();
        let _ = replace(&self.run_dir, STATE_FILE, &line);
        self.state = Some(state);
        Some(format!("watchdog: {}", String::from_utf8_lossy(&line)))
    }
}

/// The last moment at which a ping still lets the machine be reset in time: before anybody else may lead.
pub fn last_ping(deadline: Moment, timeout: Duration) -> Moment {
    (deadline + PAST_DEADLINE).before(timeout)
}

/// Opens the device, and says whether it is a named pipe.
fn open_device(device: &Path) -> Result<(File, bool), String> {
    let is_pipe = check(device)?;
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(device);
    let file = opened.map_err(|error| format!("cannot open {}: {error}", device.display()))?;
    Ok((file, is_pipe))
}

/// Opens the device and sets its time; returns the seconds in force.
fn open(order: &Order) -> Result<(File, u32), String> {
    let device = order.device.display();
    let (mut file, is_pipe) = open_device(&order.device)?;
    if is_pipe {
        return Ok((file, order.seconds));
    }
    let most = order.most;
    let why = match sys::set_watchdog_timeout(&file, order.seconds) {
        Ok(seconds) if seconds <= most => return Ok((file, seconds)),
        Ok(seconds) => {
            format!("{device} counts {seconds} s, and the ttl allows {most} s at the most")
        }
        Err(error) => format!("the time of {device} cannot be set: {error}"),
    };
    // Opening it has started it.
    match file.write_all(MAGIC_CLOSE) {
        Ok(()) => Err(why),
        Err(error) => Err(format!("{why}; and it cannot be stopped: {error}")),
    }
}

// The agent's side.

/// Whether the device could be opened, by what can be known without starting it: it is a watchdog or a named
/// pipe (true), and this user may write there.
fn check(device: &Path) -> Result<bool, String> {
    let shown = device.display();
    let metadata = fs::metadata(device).map_err(|error| format!("{shown}: {error}"))?;
    let kind = metadata.file_type();
    let is_device = kind.is_char_device() && is_watchdog(metadata.rdev());
    if !kind.is_fifo() && !is_device {
        return Err(format!("{shown} is no watchdog device"));
    }
    if is_device && never_stops(metadata.rdev()) {
        return Err(format!(
            "{shown} cannot be stopped once it counts (nowayout), so every planned stop of PostgreSQL would reset \
             the machine; load its module without nowayout"
        ));
    }
    rustix::fs::access(device, rustix::fs::Access::WRITE_OK).map_err(|_| {
        format!("this user may not write to {shown}; give it the device (udev rule)")
    })?;
    Ok(kind.is_fifo())
}

/// Whether the device can be used, as far as that can be known without starting it.
///
/// # Errors
/// Why it cannot.
pub fn usable(device: &Path) -> Result<(), String> {
    check(device).map(|_| ())
}

/// Whether the magic close does nothing, by what sysfs says.
fn never_stops(number: u64) -> bool {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let attribute = match (major, minor) {
        FIRST_WATCHDOG => "/sys/class/watchdog/watchdog0/nowayout".to_owned(),
        (major, minor) => format!("/sys/dev/char/{major}:{minor}/nowayout"),
    };
    fs::read_to_string(attribute).is_ok_and(|text| text.trim() == "1")
}

fn is_watchdog(number: u64) -> bool {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let class = fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
    (major, minor) == FIRST_WATCHDOG || class.is_ok_and(|class| class.ends_with("watchdog"))
}

/// How the watchdog stands for a member that leads or wants to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// None is wanted, or one only if it can be had.
    NotRequired,
    /// It counts, or as far as can be known it could.
    Ready,
    /// It is required and cannot be used.
    Failed(String),
}

/// Tells the fence about the watchdog, and the agent what became of it.
#[derive(Debug)]
pub struct Teller {
    config: WatchdogConfig,
    run_dir: PathBuf,
    told: Option<Order>,
}

impl Teller {
    /// Nothing told yet.
    pub fn new(config: WatchdogConfig, run_dir: &Path) -> Self {
        Self {
            config,
            run_dir: run_dir.to_owned(),
            told: None,
        }
    }

    /// Lets the fence know the device and its time; to be called before it is armed and when the ttl may have
    /// changed. `granted` is how long the lease in the store lives, where a ttl that was `wanted` later is not in
    /// force yet: a device that counts longer than that would get no ping, and reset too late who got none. Writes
    /// only what is new.
    pub fn tell(&mut self, wanted: Duration, granted: Duration) -> io::Result<()> {
        if self.config.mode == WatchdogMode::Off {
            let path = self.run_dir.join(ORDER_FILE);
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        let order = Order::new(&self.config, wanted.min(granted));
        if self.told.as_ref() == Some(&order) {
            return Ok(());
        }
        replace(&self.run_dir, ORDER_FILE, &order.encode())?;
        self.told = Some(order);
        Ok(())
    }

    /// What [`readiness`] is to be asked with.
    pub fn readiness_later(&self) -> (WatchdogConfig, PathBuf) {
        (self.config.clone(), self.run_dir.clone())
    }

    /// Where one is required, waits until an armed fence has opened it, so that nothing is promoted before.
    pub async fn wait_open(&self, limit: Duration) -> Result<(), String> {
        if self.config.mode != WatchdogMode::Required {
            return Ok(());
        }
        let began = clock::now();
        loop {
            match State::read(&self.run_dir) {
                State::Open(..) => return Ok(()),
                State::Failed(why) => return Err(why),
                State::Closed if clock::now().since(began) >= limit => {
                    return Err(format!("the fence has not opened it within {limit:?}"));
                }
                State::Closed => tokio::time::sleep(OPEN_PAUSE).await,
            }
        }
    }
}

/// Pause between two looks whether the fence has opened the device.
const OPEN_PAUSE: Duration = Duration::from_millis(10);

/// How the watchdog stands.
pub fn readiness(config: &WatchdogConfig, run_dir: &Path) -> Readiness {
    if config.mode != WatchdogMode::Required {
        return Readiness::NotRequired;
    }
    let usable = match State::read(run_dir) {
        State::Open(..) => Ok(()),
        State::Failed(why) => Err(why),
        State::Closed => check(&config.device).map(drop),
    };
    usable.map_or_else(Readiness::Failed, |()| Readiness::Ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(margin: Option<u64>, ttl: u64) -> Order {
        let config = WatchdogConfig {
            mode: WatchdogMode::Required,
            device: PathBuf::from("/dev/a watchdog"),
            safety_margin: margin.map(Duration::from_secs),
        };
        Order::new(&config, Duration::from_secs(ttl))
    }

    #[test]
    fn the_timeout_is_patronis_and_always_leaves_renewals_their_time() {
        for (margin, ttl, seconds) in [
            (Some(5), 30, 25),
            (Some(5), 20, 15),
            (None, 30, 15),
            (Some(5), 5, 2),
            (Some(5), 2, 1),
            (Some(0), 30, 25),
            (Some(40), 30, 15),
        ] {
            assert_eq!(order(margin, ttl).seconds, seconds, "{margin:?} of {ttl}");
        }
    }

    #[test]
    fn order_and_state_read_back() {
        let order = order(Some(5), 30);
        assert_eq!(Order::decode(&order.encode()), Some(order));
        assert_eq!(Order::decode(b"25 25"), None);
        let folder = tempfile::tempdir().unwrap();
        for state in [
            State::Closed,
            State::Open(25, PathBuf::from("/dev/a watchdog")),
            State::Failed("no such file".into()),
        ] {
            replace(folder.path(), STATE_FILE, &state.encode()).unwrap();
            assert_eq!(State::read(folder.path()), state);
        }
    }

    #[test]
    fn the_device_counts_no_longer_than_the_lease_that_is_granted_allows() {
        let folder = tempfile::tempdir().unwrap();
        let config = WatchdogConfig {
            mode: WatchdogMode::Required,
            device: PathBuf::from("/dev/a watchdog"),
            safety_margin: Some(Duration::from_secs(5)),
        };
        let mut teller = Teller::new(config, folder.path());
        let mut told = |wanted, granted| {
            let (wanted, granted) = (Duration::from_secs(wanted), Duration::from_secs(granted));
            teller.tell(wanted, granted).unwrap();
            Order::decode(&fs::read(folder.path().join(ORDER_FILE)).unwrap())
        };
        assert_eq!(told(60, 20), Some(order(Some(5), 20)));
        assert_eq!(told(60, 60), Some(order(Some(5), 60)));
        assert_eq!(told(20, 60), Some(order(Some(5), 20)));
    }

    /// A pipe in the place of the device, and what it got since the last look.
    fn pipe(path: &Path) -> impl FnMut() -> String + use<> {
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        let mut reader = reader.unwrap();
        move || {
            let mut bytes = [0; 64];
            let count = io::Read::read(&mut reader, &mut bytes).unwrap_or(0);
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        }
    }

    #[test]
    fn a_device_that_a_dead_fence_left_counting_is_not_pinged_late_and_is_stopped_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path();
        let device = run_dir.join("device");
        let mut got = pipe(&device);
        let config = WatchdogConfig {
            mode: WatchdogMode::Required,
            device: device.clone(),
            safety_margin: Some(Duration::from_secs(5)),
        };
        let order = Order::new(&config, Duration::from_secs(20));
        replace(run_dir, ORDER_FILE, &order.encode()).unwrap();
        let deadline = Moment(20_000_000_000);
        let counts = State::Open(15, device);
        // A fence that is killed closes nothing.
        let _ = Watchdog::new(run_dir).keep(deadline, Moment(0));
        assert_eq!((got(), State::read(run_dir)), ("1".into(), counts.clone()));

        let mut next = Watchdog::new(run_dir);
        assert_eq!(State::read(run_dir), counts, "it still counts");
        assert_eq!(next.keep(deadline, Moment(6_000_000_000)), None);
        assert_eq!(got(), "", "a whole timeout does not fit any more");
        let _ = next.close();
        assert_eq!((got(), State::read(run_dir)), ("V".into(), State::Closed));

        // One that comes in time goes on.
        let _ = next.keep(deadline, Moment(1));
        let mut third = Watchdog::new(run_dir);
        let _ = third.keep(deadline, Moment(2));
        assert_eq!((got(), State::read(run_dir)), ("11".into(), counts));
        let _ = third.close();
        assert_eq!(got(), "V");
    }

    #[test]
    fn what_is_no_watchdog_is_never_written_to() {
        for path in ["/dev/null", "/etc/hostname", "/nowhere"] {
            assert!(check(Path::new(path)).is_err(), "{path}");
        }
    }
}
