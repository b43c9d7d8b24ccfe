//! Signals, and the order in which the process stops: reload, drain, hand over.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch};
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};
use tracing::{error, info, warn};
use trunkline_shared::service::clock;
use trunkline_shared::service::logging::LogLevel;
use trunkline_shared::service::shutdown::{Request, Signals};

use super::{RunError, filter_of};
use crate::config::RouterConfig;
use crate::cores::Cores;
use crate::http::Shown;
use crate::listener::{self, Event};
use crate::topology::transition::Rules;

/// How long sessions may go on after SIGTERM, or after the ports were handed over.
const DRAIN_TIME: Duration = Duration::from_secs(60);
/// How long this process goes on accepting beside the one that took its ports over, which meanwhile
/// learns the topology.
const OVERLAP: Duration = Duration::from_secs(3);
/// After the drain time, how long sessions have to hear the goodbye.
const GOODBYE_TIME: Duration = Duration::from_millis(250);
/// How often the sessions are counted meanwhile.
const COUNT_EVERY: Duration = Duration::from_millis(10);

/// What a reload acts upon.
pub(super) struct Live {
    pub(super) file: PathBuf,
    pub(super) config: RouterConfig,
    pub(super) rules: watch::Sender<Rules>,
    pub(super) shown: Arc<Shown>,
    pub(super) level: LogLevel,
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
        let _ = self.level.set(&filter_of(&new.log.level));
        self.config.log.level = new.log.level;
        self.config.hold_timeout = new.hold_timeout;
        self.config.max_lag = new.max_lag;
        info!("reloaded");
    }
}

/// Hears the signals and leads through the stop.
pub(super) struct Conductor {
    live: Mutex<Live>,
    cores: Arc<Cores>,
    shown: Arc<Shown>,
    close: watch::Sender<bool>,
    events: tokio::sync::Mutex<mpsc::Receiver<Event>>,
    pid_file: PathBuf,
    upgrade_socket: String,
    failure: Arc<Mutex<Option<RunError>>>,
}

impl Conductor {
    pub(super) fn new(
        live: Live,
        cores: Arc<Cores>,
        close: watch::Sender<bool>,
        events: mpsc::Receiver<Event>,
        pid_file: PathBuf,
        upgrade_socket: String,
        failure: Arc<Mutex<Option<RunError>>>,
    ) -> Self {
        Self {
            shown: live.shown.clone(),
            live: Mutex::new(live),
            cores,
            close,
            events: tokio::sync::Mutex::new(events),
            pid_file,
            upgrade_socket,
            failure,
        }
    }

    fn fail(&self, error: RunError) -> ShutdownSignal {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        ShutdownSignal::FastShutdown
    }

    fn announce(&self) {
        let pid = std::process::id();
        if let Err(error) = std::fs::write(&self.pid_file, format!("{pid}\n")) {
            warn!("cannot write {}: {error}", self.pid_file.display());
        }
        let states = [
            sd_notify::NotifyState::MainPid(pid),
            sd_notify::NotifyState::Ready,
        ];
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&states);
        info!(pid, "listening");
    }

    /// Gives the ports to the process that was started with `--upgrade`; whether it took them.
    async fn hand_over(&self, fds: &ListenFds) -> bool {
        let (fds, socket) = (fds.clone(), self.upgrade_socket.clone());
        let sent = tokio::task::spawn_blocking(move || fds.lock().send_to_sock(socket.as_str()));
        match sent.await {
            Ok(Ok(_)) => true,
            Ok(Err(why)) => {
                let socket = &self.upgrade_socket;
                error!(
                    "no process took the ports over at {socket} ({why}); start trunkline-router \
                     --upgrade first; going on"
                );
                false
            }
            Err(defect) => {
                error!("the hand-over failed: {defect}; going on");
                false
            }
        }
    }

    /// Accepts no more, and waits until the last session is over, or the time is.
    async fn drain(
        &self,
        fds: &ListenFds,
        signals: &mut Signals,
        events: &mut mpsc::Receiver<Event>,
    ) {
        self.shown.is_draining.store(true, Ordering::Relaxed);
        self.close.send_replace(true);
        listener::close(fds);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let sessions = self.cores.sessions();
        info!(sessions, "draining");
        tokio::select! {
            _ = timeout(DRAIN_TIME, self.empty()) => {}
            () = told_again(signals) => info!("told again to stop: not waiting any more"),
            defect = defect(events) => error!("a task ended that must not: {defect}; not waiting any more"),
        }
        let left = self.cores.sessions();
        if left > 0 {
            info!(sessions = left, "ending the sessions that are left");
            let now = clock::now();
            for cluster in &self.shown.clusters {
                cluster.lanes.end_all(now);
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

    /// Takes the pid file away, unless another process has written its own by now.
    fn forget(&self) {
        let own = std::process::id().to_string();
        let written = std::fs::read_to_string(&self.pid_file).unwrap_or_default();
        if written.trim() == own {
            let _ = std::fs::remove_file(&self.pid_file);
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
        let mut ports: Option<ListenFds> = None;
        loop {
            tokio::select! {
                Some(event) = events.recv() => match event {
                    Event::Open(fds) => {
                        ports = Some(fds);
                        self.announce();
                    }
                    Event::Failed(error) => return self.fail(error),
                    Event::Defect(text) => return self.fail(RunError::Defect(text)),
                },
                request = signals.next() => match request {
                    Request::Reload => self.reload(),
                    Request::Reexecute => {
                        info!("SIGUSR2 is the agent's; to replace a router start it with --upgrade and send SIGQUIT");
                    }
                    Request::Stop => {
                        if let Some(fds) = &ports {
                            self.drain(fds, &mut signals, &mut events).await;
                        }
                        self.forget();
                        return ShutdownSignal::GracefulTerminate;
                    }
                    Request::HandOver => {
                        if let Some(fds) = &ports
                            && self.hand_over(fds).await
                        {
                            info!("the ports were handed over");
                            tokio::time::sleep(OVERLAP).await;
                            self.drain(fds, &mut signals, &mut events).await;
                            self.forget();
                            return ShutdownSignal::GracefulTerminate;
                        }
                    }
                },
            }
        }
    }
}

/// Waits for a task that must not end to have ended: sessions that still run would not be cut any more.
async fn defect(events: &mut mpsc::Receiver<Event>) -> String {
    loop {
        match events.recv().await {
            Some(Event::Defect(text)) => return text,
            Some(Event::Open(_) | Event::Failed(_)) => {}
            None => std::future::pending().await,
        }
    }
}

async fn told_again(signals: &mut Signals) {
    while signals.next().await != Request::Stop {}
}
