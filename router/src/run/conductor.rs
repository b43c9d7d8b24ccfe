//! Signals, and the order in which the process stops: reload, drain, hand over.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch};
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use trunkline_shared::service::clock;
use trunkline_shared::service::logging::Log;
use trunkline_shared::service::shutdown::{Request, Signals};
use trunkline_shared::service::tls::TlsError;

use super::hand_over::{Meeting, READY_WITHIN, ended};
use super::{RunError, filter_of};
use crate::admin::commands::Wait;
use crate::admin::desk::Order;
use crate::admin::gather::{Left, left};
use crate::config::RouterConfig;
use crate::cores::Cores;
use crate::fleet::Leaving;
use crate::http::Shown;
use crate::in_force::InForce;
use crate::listener::{self, Event};
use crate::pool::registry::Registry;
use crate::topology::transition::Rules;

/// How long sessions may go on after SIGTERM, or after the ports were handed over.
const DRAIN_TIME: Duration = Duration::from_secs(60);
/// After the drain time, how long sessions have to hear the goodbye.
const GOODBYE_TIME: Duration = Duration::from_millis(250);
/// How long the end waits for this router's keys to be taken away; later their lease does it.
const LEAVE_TIME: Duration = Duration::from_secs(1);
/// How often the sessions are counted meanwhile.
const COUNT_EVERY: Duration = Duration::from_millis(10);
/// How often a process that takes over looks whether it can route.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a reload acts upon.
pub(super) struct Live {
    pub(super) file: PathBuf,
    pub(super) config: RouterConfig,
    pub(super) rules: watch::Sender<Rules>,
    pub(super) shown: Arc<Shown>,
    pub(super) registry: Option<Arc<Registry>>,
    pub(super) log: Log,
}

impl Live {
    /// Reads the file again; whether it was taken up.
    fn reload(&mut self) -> bool {
        let new = match RouterConfig::load(&self.file) {
            Ok(new) => new,
            Err(mistakes) => {
                error!("reload refused, everything stays as it is:\n{mistakes}");
                return false;
            }
        };
        let fixed = self.config.needs_restart(&new);
        if !fixed.is_empty() {
            let keys = fixed.join(", ");
            warn!(%keys, "changed in the file, and taken up only by a restart or an upgrade");
        }
        let followed = self.followed_by(&new);
        let (next, kept) = match followed.transpose() {
            Ok(next) => next.unzip(),
            Err(error) => {
                // Checked a moment ago: a file was changed meanwhile.
                error!("reload refused, everything stays as it is: {error}");
                return false;
            }
        };
        if let (Some(registry), Some(next)) = (&self.registry, next) {
            // Before any client is led there: none hears that its cluster is unknown.
            self.shown.clusters.want(next.scopes());
            registry.reload(next);
        }
        for listener in kept.into_iter().flatten() {
            warn!(%listener, "it is not pooled in the file any more, and keeps its TLS and users until a restart");
        }
        // Ports are matched by address: one that is new or gone needs a restart.
        for listening in &self.shown.listenings {
            let own = new
                .listeners
                .iter()
                .find(|l| l.listen.to_string() == listening.address);
            if let Some(listener) = own {
                listening.reload(listener, new.hold_timeout);
            }
        }
        self.rules.send_replace(Rules {
            max_lag: new.max_lag,
            hold_timeout: Some(new.hold_timeout),
        });
        // The file's check knows the level already.
        let _ = self.log.set_level(&filter_of(&new.log.level));
        self.config.log.level = new.log.level;
        self.config.hold_timeout = new.hold_timeout;
        self.config.max_lag = new.max_lag;
        info!("reloaded");
        true
    }

    /// What the new file comes to for the pooled listeners, and which of them keep what they have.
    fn followed_by(&self, new: &RouterConfig) -> Option<Result<(InForce, Vec<String>), TlsError>> {
        let (registry, pooling) = (self.registry.as_ref()?, new.pooling.clone()?);
        let now = registry.in_force.current();
        Some(now.followed_by(pooling, &new.listeners))
    }
}

/// How this process came to its ports.
pub(super) enum Origin {
    /// It opens them itself.
    Fresh,
    /// It takes them over; from this process, if that was still alive.
    Upgrade(Option<OwnedFd>),
}

/// What ends a part of the process.
pub(super) struct Switches {
    /// Connections are accepted, and HTTP is served, once this is set.
    pub(super) open: watch::Sender<bool>,
    /// No connection is accepted any more once this is set.
    pub(super) close: watch::Sender<bool>,
    /// Ends HTTP: another process serves it from here on.
    pub(super) http: CancellationToken,
    /// Takes this router's keys out of the DCS.
    pub(super) fleet: Leaving,
}

impl Switches {
    /// None is set; with those who hear the first two.
    pub(super) fn new() -> (Self, (watch::Receiver<bool>, watch::Receiver<bool>)) {
        let (open, opening) = watch::channel(false);
        let (close, closing) = watch::channel(false);
        let switches = Self {
            open,
            close,
            http: CancellationToken::new(),
            fleet: Leaving::default(),
        };
        (switches, (opening, closing))
    }
}

/// Hears the signals and leads through the start and the stop.
pub(super) struct Conductor {
    live: Mutex<Live>,
    cores: Arc<Cores>,
    shown: Arc<Shown>,
    registry: Option<Arc<Registry>>,
    switches: Switches,
    events: tokio::sync::Mutex<mpsc::Receiver<Event>>,
    /// Of the console.
    orders: tokio::sync::Mutex<mpsc::Receiver<Order>>,
    meeting: Meeting,
    origin: Mutex<Origin>,
    failure: Arc<Mutex<Option<RunError>>>,
}

impl Conductor {
    pub(super) fn new(
        live: Live,
        cores: Arc<Cores>,
        switches: Switches,
        (events, orders): (mpsc::Receiver<Event>, mpsc::Receiver<Order>),
        meeting: Meeting,
        origin: Origin,
        failure: Arc<Mutex<Option<RunError>>>,
    ) -> Self {
        Self {
            shown: live.shown.clone(),
            registry: live.registry.clone(),
            live: Mutex::new(live),
            cores,
            switches,
            events: tokio::sync::Mutex::new(events),
            orders: tokio::sync::Mutex::new(orders),
            meeting,
            origin: Mutex::new(origin),
            failure,
        }
    }

    fn fail(&self, error: RunError) -> ShutdownSignal {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        ShutdownSignal::FastShutdown
    }

    /// Serves from here on, and says so.
    fn announce(&self) {
        self.switches.open.send_replace(true);
        if let Err(error) = self.meeting.announce() {
            warn!("the pid file cannot be written: {error}");
        }
        let pid = std::process::id();
        let states = [
            sd_notify::NotifyState::MainPid(pid),
            sd_notify::NotifyState::Ready,
        ];
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&states);
        info!(pid, "listening");
    }

    /// Whether this process may serve now that its ports are open. One that takes over must be able to
    /// route first: until then its predecessor serves, and with no predecessor it serves as it is.
    async fn may_serve(&self, origin: Origin) -> Result<(), RunError> {
        let predecessor = match origin {
            Origin::Fresh | Origin::Upgrade(None) => return Ok(()),
            Origin::Upgrade(Some(predecessor)) => predecessor,
        };
        let can_route = async {
            let mut look = interval(LOOK_EVERY);
            while self.shown.cannot_route_yet().is_some() {
                look.tick().await;
            }
        };
        tokio::select! {
            biased;
            () = can_route => Ok(()),
            () = ended(Some(predecessor)) => {
                warn!("the process that gave its ports is over already; serving at once");
                Ok(())
            }
            () = tokio::time::sleep(READY_WITHIN) => {
                let why = self.shown.cannot_route_yet().unwrap_or_default();
                Err(RunError::CannotTakeOver { why })
            }
        }
    }

    /// Gives the ports to the process that was started with `--upgrade`; whether that serves now.
    async fn hand_over(&self, fds: &ListenFds) -> bool {
        match self.meeting.hand_over(fds).await {
            Ok(pid) => {
                info!(pid, "another process serves the ports now");
                true
            }
            Err(error) => {
                error!("not handed over, this router goes on serving: {error}");
                false
            }
        }
    }

    /// Leaves the service to the process that serves now: its HTTP answers from here on, not ours.
    async fn retire(
        &self,
        fds: &ListenFds,
        signals: &mut Signals,
        events: &mut mpsc::Receiver<Event>,
    ) {
        self.switches.http.cancel();
        self.drain(fds, signals, events, Wait::Clients).await;
    }

    /// Accepts no more, waits for this or until the time is over, and ends the sessions that are left.
    async fn drain(
        &self,
        fds: &ListenFds,
        signals: &mut Signals,
        events: &mut mpsc::Receiver<Event>,
        wait: Wait,
    ) {
        self.shown.is_draining.store(true, Ordering::Relaxed);
        self.switches.close.send_replace(true);
        listener::close(fds);
        if let Some(registry) = &self.registry {
            registry.desk.over.cancel();
        }
        let sessions = self.cores.sessions();
        info!(sessions, "draining");
        tokio::select! {
            _ = timeout(DRAIN_TIME, self.waited(wait)) => {}
            () = told_to_stop(signals) => info!("told again to stop: not waiting any more"),
            error = failed(events) => error!("{error}; not waiting any more"),
        }
        let left = self.cores.sessions();
        if left > 0 {
            info!(sessions = left, "ending the sessions that are left");
            let now = clock::now();
            for cluster in self.shown.clusters.all() {
                cluster.lanes.end_all(now);
            }
            if let Some(registry) = &self.registry {
                registry.end_all();
            }
            let _ = timeout(GOODBYE_TIME, self.empty()).await;
        }
    }

    async fn waited(&self, wait: Wait) {
        match (wait, &self.registry) {
            (Wait::Nothing, _) => {}
            (Wait::Servers, Some(registry)) => {
                registry.gates.pause_all(true);
                self.servers_released().await;
            }
            (Wait::Servers, None) | (Wait::Clients, _) => self.empty().await,
        }
    }

    /// Waits until no pool has a server; sessions in `tcp` mode are not waited for.
    async fn servers_released(&self) {
        let cores = self.cores.handles();
        let mut look = interval(COUNT_EVERY);
        loop {
            look.tick().await;
            if left(Left::All, &cores, None).await == Ok(0) {
                return;
            }
        }
    }

    async fn empty(&self) {
        let mut look = interval(COUNT_EVERY);
        while self.cores.sessions() > 0 {
            look.tick().await;
        }
    }

    /// The end of the process, behind its last session.
    async fn leave(&self) -> ShutdownSignal {
        let _ = timeout(LEAVE_TIME, self.switches.fleet.leave()).await;
        self.meeting.leave();
        ShutdownSignal::GracefulTerminate
    }

    /// Does what signals and operators ask for, until that is to stop.
    async fn serve(
        &self,
        fds: &ListenFds,
        signals: &mut Signals,
        events: &mut mpsc::Receiver<Event>,
    ) -> ShutdownSignal {
        let mut orders = self.orders.lock().await;
        loop {
            let request = tokio::select! {
                failed = failed(events) => return self.fail(failed),
                request = signals.next() => request,
                Some(order) = orders.recv() => match order {
                    Order::Reload(told) => {
                        // Who asked may be gone.
                        let _ = told.send(self.reload());
                        continue;
                    }
                    Order::Stop(wait) => {
                        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                        self.drain(fds, signals, events, wait).await;
                        return self.leave().await;
                    }
                },
            };
            let is_over = match request {
                Request::Reload => {
                    self.reload();
                    false
                }
                Request::Reexecute => {
                    info!(
                        "SIGUSR2 is the agent's; to replace a router start it with --upgrade and send SIGQUIT"
                    );
                    false
                }
                Request::Stop => {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                    self.drain(fds, signals, events, Wait::Clients).await;
                    true
                }
                Request::HandOver => tokio::select! {
                    is_served = self.hand_over(fds) => {
                        if is_served {
                            self.retire(fds, signals, events).await;
                        }
                        is_served
                    }
                    failed = failed(events) => return self.fail(failed),
                    () = told_to_stop(signals) => {
                        self.drain(fds, signals, events, Wait::Clients).await;
                        true
                    }
                },
            };
            if is_over {
                return self.leave().await;
            }
        }
    }

    fn reload(&self) -> bool {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading]);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let is_taken_up = live.reload();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        is_taken_up
    }
}

#[async_trait]
impl ShutdownSignalWatch for Conductor {
    async fn recv(&self) -> ShutdownSignal {
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return self.fail(error.into()),
        };
        let mut events = self.events.lock().await;
        let fds = tokio::select! {
            opened = opened(&mut events) => match opened {
                Ok(fds) => fds,
                Err(error) => return self.fail(error),
            },
            () = told_to_stop(&mut signals) => return ShutdownSignal::GracefulTerminate,
        };
        let origin = {
            let mut origin = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *origin, Origin::Fresh)
        };
        tokio::select! {
            may_serve = self.may_serve(origin) => if let Err(error) = may_serve {
                return self.fail(error);
            },
            failed = failed(&mut events) => return self.fail(failed),
            () = told_to_stop(&mut signals) => return ShutdownSignal::GracefulTerminate,
        }
        self.announce();
        self.serve(&fds, &mut signals, &mut events).await
    }
}

/// Waits for the ports to be open.
async fn opened(events: &mut mpsc::Receiver<Event>) -> Result<ListenFds, RunError> {
    match events.recv().await {
        Some(Event::Open(fds)) => Ok(fds),
        Some(Event::Failed(error)) => Err(error),
        Some(Event::Defect(text)) => Err(RunError::Defect(text)),
        None => std::future::pending().await,
    }
}

/// Waits for what the process cannot go on after.
async fn failed(events: &mut mpsc::Receiver<Event>) -> RunError {
    loop {
        match events.recv().await {
            Some(Event::Failed(error)) => return error,
            Some(Event::Defect(text)) => return RunError::Defect(text),
            Some(Event::Open(_)) => {}
            None => std::future::pending().await,
        }
    }
}

async fn told_to_stop(signals: &mut Signals) {
    while signals.next().await != Request::Stop {}
}
