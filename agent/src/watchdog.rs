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
    /// It counts for so many seconds.
    Open(u32),
    /// It cannot be used.
    Failed(String),
}

impl State {
    fn encode(&self) -> String {
        match self {
            State::Closed => "closed".to_owned(),
            State::Open(seconds) => format!("open {seconds}"),
            State::Failed(why) => format!("failed {why}"),
        }
    }

    /// What stands in the run directory; `Closed` if nothing does.
    pub fn read(run_dir: &Path) -> Self {
        let text = fs::read_to_string(run_dir.join(STATE_FILE)).unwrap_or_default();
        match text.split_once(' ') {
            Some(("open", seconds)) => State::Open(seconds.parse().unwrap_or_default()),
            Some(("failed", why)) => State::Failed(why.to_owned()),
            Some(_) | None => State::Closed,
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
    state: Option<State>,
}

impl Watchdog {
    /// Not opened yet, whatever an earlier fence left to be read.
    pub fn new(run_dir: &Path) -> Self {
        let mut watchdog = Self {
            run_dir: run_dir.to_owned(),
            open: None,
            state: None,
        };
        let _ = watchdog.say(State::Closed);
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
        if self
            .open
            .as_ref()
            .is_some_and(|(_, known, _)| *known != order)
        {
            let _ = self.close();
        }
        let mut news = None;
        if self.open.is_none() {
            let state = match open(&order) {
                Ok((file, seconds)) => {
                    let timeout = Duration::from_secs(u64::from(seconds));
                    self.open = Some((file, order, timeout));
                    State::Open(seconds)
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

    /// There is nothing to guard: stops the device.
    pub fn close(&mut self) -> Option<String> {
        if let Some((mut file, order, _)) = self.open.take()
            && let Err(error) = file.write_all(MAGIC_CLOSE)
        {
            // It goes on counting and will reset the machine: that is what there is to say.
            let device = order.device.display();
            return self.say(State::Failed(format!(
                "{device} cannot be stopped: {error}"
            )));
        }
        self.say(State::Closed)
    }

    fn say(&mut self, state: State) -> Option<String> {
        if self.state.as_ref() == Some(&state) {
            return None;
        }
        let text = state.encode();
        let _ = replace(&self.run_dir, STATE_FILE, text.as_bytes());
        self.state = Some(state);
        Some(format!("watchdog: {text}"))
    }
}

/// The last moment at which a ping still lets the machine be reset in time: before anybody else may lead.
pub fn last_ping(deadline: Moment, timeout: Duration) -> Moment {
    (deadline + PAST_DEADLINE).before(timeout)
}

/// Opens the device and sets its time; returns the seconds in force.
fn open(order: &Order) -> Result<(File, u32), String> {
    let device = order.device.display();
    let is_pipe = check(&order.device)?;
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&order.device);
    let mut file = opened.map_err(|error| format!("cannot open {device}: {error}"))?;
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
    /// changed. Writes only what is new.
    pub fn tell(&mut self, ttl: Duration) -> io::Result<()> {
        if self.config.mode == WatchdogMode::Off {
            let path = self.run_dir.join(ORDER_FILE);
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        let order = Order::new(&self.config, ttl);
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
                State::Open(_) => return Ok(()),
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
        State::Open(_) => Ok(()),
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
            State::Open(25),
            State::Failed("no such file".into()),
        ] {
            replace(folder.path(), STATE_FILE, state.encode().as_bytes()).unwrap();
            assert_eq!(State::read(folder.path()), state);
        }
    }

    #[test]
    fn what_is_no_watchdog_is_never_written_to() {
        for path in ["/dev/null", "/etc/hostname", "/nowhere"] {
            assert!(check(Path::new(path)).is_err(), "{path}");
        }
    }
}
