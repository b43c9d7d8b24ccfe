//! The watchdog (Patroni's `watchdog:` section): a device of the kernel that resets the machine unless somebody
//! pings it. It guards against what the fence cannot: a machine on which the fence does not run either.
//!
//! The fence keeps it ([`Watchdog`]): opened when it is armed, and closed with the magic `V` once there is nothing to
//! guard. At every moment twice its time fits before the end of the lease: once it does not any more it is told a
//! shorter one, down to a second, and at last it is pinged no more. That it is pinged in time would not be enough: a
//! fence that is killed closes its device, and the kernel pings it in doing so, so it counts its whole time once more
//! ([`device`]), and one that is stopped may be killed as late as that time has nearly passed. What a fence left counting the
//! next one takes over. The agent says
//! in `run_dir` which device it is and how long it may count ([`Teller`]), and reads there what the fence made of it.
//!
//! A named pipe may stand in the place of the device, for tests: it gets the same bytes, and nothing is reset.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::config::{WatchdogConfig, WatchdogMode};

mod device;

use device::{Device, check};

/// What the fence is to do, in the run directory.
const ORDER_FILE: &str = "watchdog";

/// What the fence made of it, beside it.
const STATE_FILE: &str = "watchdog.state";

/// The shortest time that a device can be told, and that is worth to be opened for.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long after the deadline the machine may be reset if the fence does not run: it kills and closes the device in
/// that time. As long as the shortest count, which a fence that is killed starts again: the kernel pings its device.
pub const PAST_DEADLINE: Duration = SHORTEST;

/// Where there may be a watchdog, so much of a lease is left unused: it ends 500 ms after the deadline or later
/// without that (`ha.md` 3), and 1.3 s with it. So a fence that is killed until 300 ms after the deadline, when it has
/// killed PostgreSQL, leaves no machine beyond its lease.
pub const RESERVE: Duration = Duration::from_millis(800);

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
    /// wanted or none is left. At least one second, and so short that twice of it fits into a lease of which one
    /// renewal is late. The fence pings every [`crate::fence::HEARTBEAT`], so that a short time costs nothing.
    pub fn new(config: &WatchdogConfig, ttl: Duration) -> Self {
        let half = ttl / 2;
        let left = config
            .safety_margin
            .map(|margin| ttl.saturating_sub(margin));
        let wanted = left.filter(|left| *left >= Duration::from_secs(1));
        let slack = (ttl / 6).max(Duration::from_secs(1));
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
        let most = seconds(ttl.saturating_sub(slack) / 2);
        Self {
            device: config.device.clone(),
            seconds: seconds(wanted.unwrap_or(half)).min(most),
            most,
        }
    }

    /// After how many seconds without a ping the machine is to be reset.
    pub fn seconds(&self) -> u32 {
        self.seconds
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
    open: Option<Opened>,
    /// A device that a fence before this one left counting when it died.
    left: Option<PathBuf>,
    state: Option<State>,
    /// The agent can read how it stands.
    is_said: bool,
}

/// One that counts.
#[derive(Debug)]
struct Opened {
    device: Device,
    order: Order,
    /// The seconds it was told last, and those in force since: drivers round.
    told: u32,
    in_force: u32,
    /// What it may be told at the most: what is above comes out longer than a lease allows.
    longest: u32,
}

impl Opened {
    /// What it counts where `left` seconds of the lease are left for it; else how it stands.
    fn open(order: &Order, left: u32) -> Result<Self, State> {
        let shown = order.device.display();
        let mut device = Device::open(&order.device).map_err(State::Failed)?;
        let seconds = order.seconds.min(left);
        let state = match device.count(seconds) {
            Ok(in_force) if in_force <= left => {
                return Ok(Self {
                    device,
                    order: order.clone(),
                    told: seconds,
                    in_force,
                    longest: order.seconds,
                });
            }
            // After the next renewal it fits.
            Ok(in_force) if in_force <= order.most => State::Closed,
            Ok(in_force) => State::Failed(format!(
                "{shown} counts {in_force} s, and the lease allows {} s at the most",
                order.most
            )),
            Err(error) => State::Failed(format!("the time of {shown} cannot be set: {error}")),
        };
        // Opening it has started it.
        match device.stop() {
            Ok(()) => Err(state),
            Err(error) => Err(State::Failed(format!(
                "{shown} counts longer than the lease allows and cannot be stopped: {error}"
            ))),
        }
    }

    /// Has it go on counting for as long as is allowed at `now`; the answer is worth a line in the log. One that
    /// cannot count so short is left to count what it does.
    fn go_on(&mut self, deadline: Moment, now: Moment) -> io::Result<Option<String>> {
        let Some(allowed) = may_count(deadline, now, self.order.most) else {
            return Ok(None);
        };
        let wanted = allowed.min(self.longest);
        if wanted != self.told && wanted >= self.device.shortest {
            match self.device.count(wanted) {
                Ok(in_force) if in_force > self.order.most => {
                    // Pings would never be due again, and the machine be reset under a good lease.
                    self.longest = self.told;
                    self.in_force = self.device.count(self.told)?;
                    return Ok(None);
                }
                Ok(in_force) => {
                    (self.told, self.in_force) = (wanted, in_force);
                    let is_late = in_force > allowed;
                    return Ok(is_late.then(|| self.is_coarse(in_force)));
                }
                Err(_) if wanted < self.in_force => {
                    return Ok(Some(self.is_coarse(wanted.saturating_add(1))));
                }
                // It goes on with the shorter one.
                Err(_) => {}
            }
        }
        if self.in_force <= allowed {
            self.device.ping()?;
        }
        Ok(None)
    }

    /// It cannot count less than that, as was found out.
    fn is_coarse(&mut self, shortest: u32) -> String {
        self.device.shortest = self.device.shortest.max(shortest);
        coarse(&self.order.device, self.device.shortest)
    }
}

fn coarse(device: &Path, shortest: u32) -> String {
    format!(
        "watchdog: {} counts {shortest} s at the least, so a fence that is killed in the last {shortest} s of a \
         lease leaves the machine up to {shortest} s beyond it",
        device.display()
    )
}

impl Watchdog {
    /// Not opened yet. What an earlier fence left counting stands to be read until this one has it in hand.
    pub fn new(run_dir: &Path) -> Self {
        let mut watchdog = Self {
            run_dir: run_dir.to_owned(),
            open: None,
            left: None,
            state: None,
            is_said: true,
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
        self.say_again();
        let ordered = match fs::read(self.run_dir.join(ORDER_FILE)) {
            Ok(line) => Order::decode(&line),
            // What cannot be read has not changed; without a file there is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => self.open.as_ref().map(|open| open.order.clone()),
        };
        let Some(order) = ordered else {
            return self.close();
        };
        let is_another = |device: &PathBuf| *device != order.device;
        let has_changed = self.open.as_ref().is_some_and(|open| open.order != order);
        if has_changed || self.left.as_ref().is_some_and(is_another) {
            let _ = self.close();
        }
        let mut news = None;
        if self.open.is_none() {
            // To open one is to have it count: so late that would let the machine live longer than it may. One that
            // counts already is better left to it.
            let left = may_count(deadline, now, order.most)?;
            let state = match Opened::open(&order, left) {
                Ok(open) => {
                    let (seconds, device) = (open.in_force, order.device.clone());
                    let shortest = open.device.shortest;
                    self.left = None;
                    self.open = Some(open);
                    news = (shortest > 1).then(|| coarse(&device, shortest));
                    State::Open(seconds, device)
                }
                Err(state) => state,
            };
            news = self.say(state).or(news);
        }
        let Some(open) = self.open.as_mut() else {
            return news;
        };
        match open.go_on(deadline, now) {
            Ok(said) => said.or(news),
            Err(error) => {
                // Else it resets the machine, however good the lease.
                let stopped = self.open.take().map(|open| open.device.stop());
                let how = match stopped {
                    Some(Err(why)) => format!("; and it cannot be stopped: {why}"),
                    Some(Ok(())) | None => String::new(),
                };
                self.say(State::Failed(format!("cannot be pinged: {error}{how}")))
            }
        }
    }

    /// There is nothing to guard: stops the device, be it one that a fence which died left counting.
    pub fn close(&mut self) -> Option<String> {
        self.say_again();
        let (device, stopped) = match (self.open.take(), &self.left) {
            (Some(open), _) => (open.order.device, open.device.stop()),
            (None, Some(device)) => {
                let stopped = Device::open(device).and_then(Device::stop);
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
        self.is_said = replace(&self.run_dir, STATE_FILE, &line).is_ok();
        self.state = Some(state);
        Some(format!("watchdog: {}", String::from_utf8_lossy(&line)))
    }

    /// What could not be written, since the memory it lies in was full, is written as soon as it can be.
    fn say_again(&mut self) {
        if let Some(state) = self.state.as_ref().filter(|_| !self.is_said) {
            self.is_said = replace(&self.run_dir, STATE_FILE, &state.encode()).is_ok();
        }
    }
}

/// How many seconds a device may count that is pinged or told its time at `now`, no more than `most`: half of what is
/// left. Then the machine is reset before anybody else may lead, and also if the fence is stopped right after that and
/// killed right before the reset, since its last deed is a ping. No device counts less than a second: one that is stopped in the
/// last second before the deadline and killed after it may leave the machine that much longer. `None`: not even the
/// shortest fits, for the deadline has passed.
pub fn may_count(deadline: Moment, now: Moment, most: u32) -> Option<u32> {
    let left = now.until(deadline + PAST_DEADLINE);
    if left < SHORTEST {
        return None;
    }
    let seconds = (left / 2).max(SHORTEST).as_secs();
    Some(u32::try_from(seconds).unwrap_or(u32::MAX).min(most))
}

// The agent's side.

impl WatchdogConfig {
    /// What is left unused of every lease for the sake of the device, if there may be one.
    pub fn reserve(&self) -> Duration {
        match self.mode {
            WatchdogMode::Off => Duration::ZERO,
            WatchdogMode::Automatic | WatchdogMode::Required => RESERVE,
        }
    }
}

/// Whether the device can be used, as far as that can be known without starting it.
///
/// # Errors
/// Why it cannot.
pub fn usable(device: &Path) -> Result<(), String> {
    check(device).map(|_| ())
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
}

impl Teller {
    /// Nothing told yet.
    pub fn new(config: WatchdogConfig, run_dir: &Path) -> Self {
        Self {
            config,
            run_dir: run_dir.to_owned(),
        }
    }

    /// Lets the fence know the device and its time; to be called before it is armed and when the ttl may have
    /// changed. `granted` is how long the lease in the store lives, where a ttl that was `wanted` later is not in
    /// force yet: a device that counts longer than that would get no ping, and reset too late who got none. Writes
    /// only what is new.
    pub fn tell(&self, wanted: Duration, granted: Duration) -> io::Result<()> {
        if self.config.mode == WatchdogMode::Off {
            let path = self.run_dir.join(ORDER_FILE);
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        let order = Order::new(&self.config, wanted.min(granted));
        let line = order.encode();
        // Somebody may have removed it.
        let stands = fs::read(self.run_dir.join(ORDER_FILE)).is_ok_and(|told| told == line);
        if stands {
            return Ok(());
        }
        replace(&self.run_dir, ORDER_FILE, &line)
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
            match state_of(&self.config, &self.run_dir) {
                State::Open(..) => return Ok(()),
                State::Failed(why) => return Err(why),
                State::Closed if clock::now().since(began) >= limit => {
                    return Err(format!(
                        "the fence has not opened it within {limit:?}, or its time does not fit into what is left \
                         of the lease"
                    ));
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
    let usable = match state_of(config, run_dir) {
        State::Open(..) => Ok(()),
        State::Failed(why) => Err(why),
        State::Closed => check(&config.device).map(drop),
    };
    usable.map_or_else(Readiness::Failed, |()| Readiness::Ready)
}

/// Whether the fence has the device that is required in hand. That one could be opened is not enough to become
/// writable: a fence that froze before it was armed has not opened it, and does not kill either.
pub fn is_kept(config: &WatchdogConfig, run_dir: &Path) -> bool {
    config.mode != WatchdogMode::Required || matches!(state_of(config, run_dir), State::Open(..))
}

/// What the fence made of this device: another one that it has open yet, after a reload, does not count.
fn state_of(config: &WatchdogConfig, run_dir: &Path) -> State {
    match State::read(run_dir) {
        State::Open(_, device) if device != config.device => State::Closed,
        state @ (State::Closed | State::Open(..) | State::Failed(_)) => state,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::fence::HEARTBEAT;
    use crate::lease::state::LeaseState;

    fn order(margin: Option<u64>, ttl: u64) -> Order {
        let config = WatchdogConfig {
            mode: WatchdogMode::Required,
            device: PathBuf::from("/dev/a watchdog"),
            safety_margin: margin.map(Duration::from_secs),
        };
        Order::new(&config, Duration::from_secs(ttl))
    }

    #[test]
    fn the_timeout_is_patronis_where_it_fits_twice_into_a_lease_of_which_one_renewal_is_late() {
        for (margin, ttl, seconds) in [
            (Some(22), 30, 8),
            (Some(5), 30, 12),
            (Some(5), 20, 8),
            (None, 30, 12),
            (Some(5), 5, 2),
            (Some(5), 2, 1),
            (Some(0), 30, 12),
            (Some(40), 30, 12),
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
        let teller = Teller::new(config, folder.path());
        let told = |wanted, granted| {
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
        let reader = fs::OpenOptions::new()
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
        let (folder, mut got) = armed_for(20);
        let run_dir = folder.path();
        let device = run_dir.join("device");
        let deadline = Moment(20_000_000_000);
        let counts = State::Open(8, device);
        // The kernel closes the device of a fence that is killed, and nobody stops it.
        let _ = Watchdog::new(run_dir).keep(deadline, Moment(0));
        assert_eq!(
            (got(), State::read(run_dir)),
            ("t8 1".into(), counts.clone())
        );

        let mut next = Watchdog::new(run_dir);
        assert_eq!(State::read(run_dir), counts, "it still counts");
        assert_eq!(next.keep(deadline, Moment(20_000_000_001)), None);
        assert_eq!(got(), "", "no second fits any more");
        let _ = next.close();
        assert_eq!((got(), State::read(run_dir)), ("V".into(), State::Closed));

        // One that comes in time goes on.
        let _ = next.keep(deadline, Moment(1));
        let mut third = Watchdog::new(run_dir);
        let _ = third.keep(deadline, Moment(6_000_000_000));
        let counts = State::Open(7, counts.device());
        assert_eq!((got(), State::read(run_dir)), ("t8 1t7 1".into(), counts));
        let _ = third.close();
        assert_eq!(got(), "V");
    }

    impl State {
        fn device(&self) -> PathBuf {
            match self {
                State::Open(_, device) => device.clone(),
                State::Closed | State::Failed(_) => PathBuf::new(),
            }
        }
    }

    #[test]
    fn a_fence_that_is_armed_late_opens_a_shorter_time_and_none_if_no_second_fits() {
        let (folder, mut got) = armed_for(20);
        let deadline = Moment(20_000_000_000);
        for (at, sent) in [
            (20_000_000_001, ""),
            (20_000_000_000, "t1 1"),
            (17_000_000_000, "t2 1"),
        ] {
            let mut watchdog = Watchdog::new(folder.path());
            let _ = watchdog.keep(deadline, Moment(at));
            assert_eq!(got(), sent);
            assert_eq!(State::read(folder.path()) == State::Closed, sent.is_empty());
            let _ = watchdog.close();
            got();
        }
    }

    #[test]
    fn a_driver_that_rounds_up_neither_resets_under_a_good_lease_nor_is_given_up_for_one_late_renewal()
     {
        device::STEPS.set(&[5, 10, 21, 43]);
        let (folder, mut got) = armed_for(30);
        let mut watchdog = Watchdog::new(folder.path());
        let (until, second) = (|at: u64| Moment((at + 30) * 1_000_000_000), 1_000_000_000);
        // 10 s fit, 12 would come out as 21: the 10 are kept, and pinged.
        let _ = watchdog.keep(until(0), Moment(11 * second));
        assert_eq!(got(), "t10 1");
        let _ = watchdog.keep(until(9), Moment(12 * second));
        assert_eq!(got(), "t12 t10 ");
        let _ = watchdog.keep(until(9), Moment(13 * second));
        assert_eq!(got(), "1");
        let _ = watchdog.close();
        assert_eq!(got(), "V");
        // What does not fit into the rest of this lease fits after the next renewal.
        let _ = watchdog.keep(until(0), Moment(18 * second));
        assert_eq!(got(), "t6 V");
        assert_eq!(State::read(folder.path()), State::Closed);
        let _ = watchdog.keep(until(15), Moment(26 * second));
        assert_eq!(got(), "t10 1");
        let _ = watchdog.close();
        got();
        // None of its times fits into a lease.
        device::STEPS.set(&[43]);
        let _ = watchdog.keep(until(30), Moment(31 * second));
        assert_eq!(got(), "t12 V");
        assert!(matches!(State::read(folder.path()), State::Failed(_)));
        device::STEPS.set(&[]);
    }

    /// A run directory whose fence is ordered to keep a pipe for a ttl.
    fn armed_for(ttl: u64) -> (tempfile::TempDir, impl FnMut() -> String + use<>) {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        let got = pipe(&device);
        let config = WatchdogConfig {
            mode: WatchdogMode::Required,
            device,
            safety_margin: Some(Duration::from_secs(5)),
        };
        let order = Order::new(&config, Duration::from_secs(ttl));
        replace(folder.path(), ORDER_FILE, &order.encode()).unwrap();
        (folder, got)
    }

    /// When the device resets the machine, by what it got.
    #[derive(Default)]
    struct Counting {
        seconds: u64,
        resets_at: Option<Moment>,
    }

    impl Counting {
        fn gets(&mut self, bytes: &str, now: Moment) {
            for told in bytes.split('t').filter_map(|rest| rest.split_once(' ')) {
                self.seconds = told.0.parse().unwrap();
            }
            if !bytes.is_empty() {
                self.pinged(now);
            }
            if bytes.ends_with('V') {
                self.resets_at = None;
            }
        }

        fn pinged(&mut self, now: Moment) {
            self.resets_at = Some(now + Duration::from_secs(self.seconds));
        }
    }

    #[test]
    fn whenever_the_fence_is_killed_the_machine_lives_no_longer_than_the_lease() {
        let beat = Duration::from_millis(200);
        let lease_ends = Duration::from_millis(30_000);
        let deadline = LeaseState::default()
            .reserving(RESERVE)
            .deadline(Moment(0), lease_ends);
        let (folder, mut got) = armed_for(30);
        // Up to 200 ms past the deadline, too: the fence kills first, and closes the device then.
        for killed_at in (1..290).step_by(7).chain(280..=288) {
            let killed_at = Moment(0) + Duration::from_millis(100) * killed_at;
            let mut counting = Counting::default();
            let mut watchdog = Watchdog::new(folder.path());
            let mut now = Moment(0);
            while now < killed_at {
                let _ = watchdog.keep(deadline, now);
                counting.gets(&got(), now);
                now = now + beat;
                let resets_at = counting.resets_at.unwrap();
                assert!(
                    resets_at > now.min(deadline),
                    "reset at {resets_at:?} although alive"
                );
            }
            drop(watchdog);
            counting.pinged(killed_at);
            let late = counting.resets_at.unwrap().since(Moment(0) + lease_ends);
            assert_eq!(late, Duration::ZERO, "killed at {killed_at:?}");
        }
    }

    /// A lease of 30 s with its deadline, and the device of a fence that keeps it from its beginning until `stopped_at`.
    fn kept_until(stopped_at: Moment, lease_ends: Duration) -> (Counting, Moment) {
        let deadline = LeaseState::default()
            .reserving(RESERVE)
            .deadline(Moment(0), lease_ends);
        let (folder, mut got) = armed_for(30);
        let mut counting = Counting::default();
        let mut watchdog = Watchdog::new(folder.path());
        let mut now = Moment(0);
        while now <= stopped_at {
            let _ = watchdog.keep(deadline, now);
            counting.gets(&got(), now);
            now = now + HEARTBEAT;
        }
        (counting, deadline)
    }

    #[test]
    fn a_fence_that_is_stopped_and_killed_right_before_the_reset_leaves_no_machine_beyond_its_lease()
     {
        let lease_ends = Duration::from_millis(30_000);
        for stopped_at in (0..288).step_by(3) {
            let stopped_at = Moment(0) + Duration::from_millis(100) * stopped_at;
            let (mut counting, deadline) = kept_until(stopped_at, lease_ends);
            counting.pinged(counting.resets_at.unwrap());
            let late = counting.resets_at.unwrap().since(Moment(0) + lease_ends);
            // No device counts less than a second.
            let is_at_last = stopped_at > deadline.before(SHORTEST);
            let allowed = if is_at_last {
                PAST_DEADLINE
            } else {
                Duration::ZERO
            };
            assert!(late <= allowed, "stopped at {stopped_at:?}: {late:?} late");
        }
    }
}
