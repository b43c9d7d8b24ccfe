//! The ports: one listening socket per address, owned and handed over by pingora's table of descriptors;
//! accepted sockets go raw to the core with the fewest sessions.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::clusters::Clusters;
use crate::config::pooling::Mode;
use crate::config::{ListenerConfig, Network, ProxyProtocol};
use crate::cores::Cores;
use crate::fleet::cancels::Others;
use crate::listener::limits::{Counted, Full, Limits, MAX_CLIENT_CONN};
use crate::metrics::Metrics;
use crate::pool::registry::Registry;
use crate::route::TargetKind;
use crate::run::RunError;
use crate::server::login::tune;
use crate::session::{self, Places};
use crate::topology::Cluster;

pub mod limits;
pub mod proxy;

/// How many connections the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 4096;
/// Pause after the system had no descriptor left for a new connection.
const PAUSE_WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(100);

/// One port and all that its sessions need.
pub struct Listening {
    /// Its address, as configured: its name in logs, metrics and errors.
    pub address: String,
    /// The cluster it leads to; none where each client's database names it.
    pub cluster: Option<Arc<Cluster>>,
    /// All that there are.
    pub clusters: Arc<Clusters>,
    /// Whether a PROXY header comes first.
    pub proxy_protocol: ProxyProtocol,
    /// From where it is believed.
    pub proxy_protocol_from: Vec<Network>,
    /// What it does with its clients.
    pub mode: Mode,
    /// Whether it leads to the console only.
    pub is_console: bool,
    /// What pooled sessions share; present unless in mode `tcp`.
    pub registry: Option<Arc<Registry>>,
    /// Limits of the whole process.
    pub limits: Arc<Limits>,
    /// The other routers, to which cancels go that are nobody's here; none in mode `tcp`.
    pub others: OnceLock<Arc<Others>>,
    /// Handles of its metrics.
    pub metrics: Metrics,
    is_for_writes: bool,
    clients: Arc<AtomicUsize>,
    falls_back: AtomicBool,
    max_client_conn: AtomicUsize,
    hold_timeout_ms: AtomicU64,
}

impl Listening {
    /// One port by its configuration.
    pub fn new(
        config: &ListenerConfig,
        hold_timeout: Duration,
        clusters: &Arc<Clusters>,
        limits: Arc<Limits>,
        registry: Option<Arc<Registry>>,
    ) -> Self {
        let address = config.listen.to_string();
        let listening = Self {
            metrics: Metrics::new(&address),
            address,
            cluster: config.scope.as_ref().and_then(|name| clusters.own(name)),
            clusters: clusters.clone(),
            proxy_protocol: config.proxy_protocol,
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            limits,
            mode: config.mode,
            is_console: config.is_console,
            registry,
            others: OnceLock::new(),
            is_for_writes: config.target == TargetKind::Primary,
            clients: Arc::default(),
            falls_back: AtomicBool::default(),
            max_client_conn: AtomicUsize::default(),
            hold_timeout_ms: AtomicU64::default(),
        };
        listening.reload(config, hold_timeout);
        listening
    }

    /// Takes over what may change while the process lives. New sessions see it.
    pub fn reload(&self, config: &ListenerConfig, hold_timeout: Duration) {
        let falls_back = config.target == TargetKind::Replicas { falls_back: true };
        let hold_ms = u64::try_from(hold_timeout.as_millis()).unwrap_or(u64::MAX);
        self.falls_back.store(falls_back, Ordering::Relaxed);
        self.max_client_conn
            .store(config.max_client_conn, Ordering::Relaxed);
        self.hold_timeout_ms.store(hold_ms, Ordering::Relaxed);
    }

    /// Where in the cluster its clients go.
    pub fn kind(&self) -> TargetKind {
        if self.is_for_writes {
            TargetKind::Primary
        } else {
            TargetKind::Replicas {
                falls_back: self.falls_back.load(Ordering::Relaxed),
            }
        }
    }

    /// The most clients at once.
    pub fn max_client_conn(&self) -> usize {
        self.max_client_conn.load(Ordering::Relaxed)
    }

    /// What is said when there are as many.
    pub fn full(&self) -> Full {
        Full {
            whose: format!("listener {}", self.address),
            limit: self.max_client_conn(),
            key: MAX_CLIENT_CONN,
        }
    }

    /// Clients connected now.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// The longest time a client is held.
    pub fn hold_timeout(&self) -> Duration {
        Duration::from_millis(self.hold_timeout_ms.load(Ordering::Relaxed))
    }

    /// Gives one accepted connection to a core.
    pub fn admit(self: &Arc<Self>, cores: &Cores, client: TcpStream, peer: SocketAddr) {
        let Some(newcomer) = self.limits.admit(peer.ip()) else {
            // So many clients that are not authenticated are an attack or a defect: no answer, no thread.
            debug!(listener = %self.address, %peer, "too many unauthenticated connections");
            self.metrics.ended("too_many_newcomers");
            return;
        };
        let place = Counted::within(&self.clients, self.max_client_conn());
        let places = |of_core| Places {
            of_listener: place,
            _of_core: of_core,
        };
        cores.spawn(|of_core| session::run(self.clone(), client, peer, newcomer, places(of_core)));
    }
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {why}{}", hint(.why))]
pub struct CannotListen {
    /// Which.
    pub address: String,
    /// The system's reason.
    pub why: io::Error,
}

fn hint(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process listens there (a router being replaced hands its ports over: --upgrade)"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// The listening socket of an address: the one inherited, or a new one.
pub fn socket(fds: Option<&ListenFds>, address: SocketAddr) -> Result<TcpListener, CannotListen> {
    let name = address.to_string();
    let inherited = fds.and_then(|fds| fds.lock().get(&name).copied());
    let opened = match inherited {
        Some(fd) => duplicate(fd).map(TcpListener::from),
        None => bind(address),
    };
    let listener = opened.map_err(|why| CannotListen {
        address: name.clone(),
        why,
    })?;
    if let (Some(fds), None, Ok(copy)) = (fds, inherited, listener.try_clone()) {
        // The table's own copy: it stays open until the table is closed or handed over.
        fds.lock().add(name, copy.into_raw_fd());
    }
    Ok(listener)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    // Clients may come from here on, long before they are accepted.
    tune(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A descriptor of our own for one that the table holds only as a number.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, fd, PidfdGetfdFlags::empty())?)
}

/// What the services tell the one who leads through start and stop.
pub enum Event {
    /// The ports are open, and this is the table that holds them.
    Open(ListenFds),
    /// The process cannot run.
    Failed(RunError),
    /// A task that must not end has ended.
    Defect(String),
}

/// All ports, as one service of the process.
pub struct Ports {
    listenings: Vec<(SocketAddr, Arc<Listening>)>,
    cores: Arc<Cores>,
    /// Connections are accepted once this is set.
    opening: watch::Receiver<bool>,
    /// Set when no new connection is to be accepted any more.
    closing: watch::Receiver<bool>,
    events: mpsc::Sender<Event>,
    /// Where HTTP listens: bound here, so that every address is in one table.
    http: SocketAddr,
    http_socket: mpsc::Sender<TcpListener>,
}

impl Ports {
    /// The service.
    pub fn new(
        listenings: Vec<(SocketAddr, Arc<Listening>)>,
        cores: Arc<Cores>,
        (opening, closing): (watch::Receiver<bool>, watch::Receiver<bool>),
        events: mpsc::Sender<Event>,
        http: (SocketAddr, mpsc::Sender<TcpListener>),
    ) -> Self {
        Self {
            listenings,
            cores,
            opening,
            closing,
            events,
            http: http.0,
            http_socket: http.1,
        }
    }

    fn open(
        &self,
        fds: Option<&ListenFds>,
    ) -> Result<(TcpListener, Vec<TcpListener>), CannotListen> {
        let http = socket(fds, self.http)?;
        let ports = self.listenings.iter().map(|(at, _)| socket(fds, *at));
        Ok((http, ports.collect::<Result<_, _>>()?))
    }

    /// Closes inherited ports that the file does not name any more: nobody would accept there.
    fn close_orphans(&self, fds: &ListenFds) {
        let own: HashSet<String> = self.listen_addresses().into_iter().flatten().collect();
        for listener in fds.lock().close_unclaimed(&own) {
            info!(%listener, "is not configured any more and is closed");
        }
    }
}

#[async_trait]
impl Service for Ports {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let Some(fds) = fds else { return };
        let (http, ports) = match self.open(Some(&fds)) {
            Ok(open) => open,
            Err(error) => {
                let _ = self.events.send(Event::Failed(error.into())).await;
                return;
            }
        };
        self.close_orphans(&fds);
        // A process that takes over does not accept before it serves: its predecessor still does.
        let _ = self.events.send(Event::Open(fds)).await;
        // An error means that the process is over anyway.
        if self.opening.wait_for(|is_open| *is_open).await.is_err() {
            return;
        }
        let _ = self.http_socket.send(http).await;
        let mut accepting = JoinSet::new();
        // On the cores themselves: a client that stays on the one that has accepted it wakes no other thread.
        let handles = self.cores.handles();
        let ports = self.listenings.iter().zip(ports);
        for (((_, listening), port), core) in ports.zip(handles.iter().cycle()) {
            let (listening, cores) = (listening.clone(), self.cores.clone());
            accepting.spawn_on(accept(port, listening, cores), core);
        }
        let _ = self.closing.wait_for(|is_closing| *is_closing).await;
        accepting.shutdown().await;
    }

    fn name(&self) -> &str {
        "ports"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        let ports = self.listenings.iter().map(|(at, _)| at.to_string());
        Some(ports.chain([self.http.to_string()]).collect())
    }
}

/// Closes the table's copies: from here on the system refuses new connections, unless another process has
/// taken the ports over.
pub fn close(fds: &ListenFds) {
    let keep = HashSet::new();
    fds.lock().close_unclaimed(&keep);
}

/// Accepts on a port for ever, giving each connection to a core.
pub async fn accept(port: TcpListener, listening: Arc<Listening>, cores: Arc<Cores>) {
    let listener = &listening.address;
    let registered = port
        .set_nonblocking(true)
        // One that was inherited may not be yet.
        .and_then(|()| tune(&port))
        .and_then(|()| tokio::net::TcpListener::from_std(port));
    let port = match registered {
        Ok(port) => port,
        Err(error) => {
            warn!(%listener, "cannot accept: {error}");
            return;
        }
    };
    match &listening.cluster {
        Some(cluster) => info!(%listener, cluster = %cluster.name, "accepting"),
        None => info!(%listener, "accepting, for the clusters of the databases"),
    }
    loop {
        // The socket leaves this runtime again: it belongs to the core that gets it.
        let accepted = port.accept().await.and_then(|(client, peer)| {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            Ok((client.into_std()?, peer))
        });
        match accepted {
            Ok((client, peer)) => listening.admit(&cores, client, peer),
            Err(error) if is_shortage(&error) => {
                warn!(%listener, "no descriptor or memory left for a new connection ({error}); raise LimitNOFILE");
                tokio::time::sleep(PAUSE_WITHOUT_DESCRIPTORS).await;
            }
            // The client gave up while it waited in the queue.
            Err(_) => {}
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    shortages
        .map(|e| Some(e.raw_os_error()))
        .contains(&error.raw_os_error())
}
