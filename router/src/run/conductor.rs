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
use crate::config::RouterConfig;
use crate::cores::Cores;
use crate::http::Shown;
use crate::in_force::InForce;
use crate::listener::{self, Event};
use crate::pool::registry::Registry;
use crate::topology::transition::Rules;

/// How long sessions may go on after SIGTERM, or after the ports were handed over.
const DRAIN_TIME: Duration = Duration::from_secs(60);
/// After the drain time, how long sessions have to hear the goodbye.
const GOODBYE_TIME: Duration = Duration::from_millis(250);
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
    fn reload(&mut self) {
        let new = match RouterConfig::load(&self.file) {
            Ok(new) => new,
            Err(mistakes) => {
                error!("reload refused, everything stays as it is:\n{mistakes}");
                return;
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
                return;
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
        });
        // The file's check knows the level already.
        let _ = self.log.set_level(&filter_of(&new.log.level));
        self.config.log.level = new.log.level;
        self.config.hold_timeout = new.hold_timeout;
        self.config.max_lag = new.max_lag;
        info!("reloaded");
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
}

impl Switches {
    /// None is set; with those who hear the first two.
    pub(super) fn new() -> (Self, (watch::Receiver<bool>, watch::Receiver<bool>)) {
        let (open, opening) = watch::channel(false);
        let (close, closing) = watch::channel(false);
        let http = CancellationToken::new();
        (Self { open, close, http }, (opening, closing))
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
    meeting: Meeting,
    origin: Mutex<Origin>,
    failure: Arc<Mutex<Option<RunError>>>,
}

impl Conductor {
    pub(super) fn new(
        live: Live,
        cores: Arc<Cores>,
        switches: Switches,
        events: mpsc::Receiver<Event>,
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
        self.drain(fds, signals, events).await;
    }

    /// Accepts no more, and waits until the last session is over, or the time is.
    async fn drain(
        &self,
        fds: &ListenFds,
        signals: &mut Signals,
        events: &mut mpsc::Receiver<Event>,
    ) {
        self.shown.is_draining.store(true, Ordering::Relaxed);
        self.switches.close.send_replace(true);
        listener::close(fds);
        let sessions = self.cores.sessions();
        info!(sessions, "draining");
        tokio::select! {
            _ = timeout(DRAIN_TIME, self.empty()) => {}
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

    async fn empty(&self) {
        let mut look = interval(COUNT_EVERY);
        while self.cores.sessions() > 0 {
            look.tick().await;
        }
    }

    fn reload(&self) {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading]);
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reload();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
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
        loop {
            let request = tokio::select! {
                failed = failed(&mut events) => return self.fail(failed),
                request = signals.next() => request,
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
                    self.drain(&fds, &mut signals, &mut events).await;
                    true
                }
                Request::HandOver => tokio::select! {
                    is_served = self.hand_over(&fds) => {
                        if is_served {
                            self.retire(&fds, &mut signals, &mut events).await;
                        }
                        is_served
                    }
                    failed = failed(&mut events) => return self.fail(failed),
                    () = told_to_stop(&mut signals) => {
                        self.drain(&fds, &mut signals, &mut events).await;
                        true
                    }
                },
            };
            if is_over {
                self.meeting.leave();
                return ShutdownSignal::GracefulTerminate;
            }
        }
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
