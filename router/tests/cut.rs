//! How long it takes to end thousands of sessions at once. What is checked is that every one is told; how fast
//! that was is printed (`--nocapture`), because this machine's other work decides it too.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests use more of it")]
mod support {
    pub mod stack;
}

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::stack::{Setup, Stack, startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

/// As many as a busy router carries to one leader.
const SESSIONS: usize = 5_000;
/// Descriptors of a session in this process: client, two of the router, server.
const PER_SESSION: u64 = 4;
/// Descriptors of everything else.
const SPARE: u64 = 256;
/// How many log in at once: fewer than an address may.
const CONNECTING: usize = 50;
/// No step takes longer than this.
const DEADLINE: Duration = Duration::from_secs(60);

const GREETING: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

/// How many sessions this process may hold: all, where the limit can be raised.
fn affordable() -> usize {
    let wanted = SESSIONS as u64 * PER_SESSION + SPARE;
    let raised = Rlimit {
        current: Some(wanted),
        maximum: Some(wanted),
    };
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_none_or(|hard| hard >= wanted) {
        let soft = Rlimit {
            current: Some(wanted),
            ..limit
        };
        setrlimit(Resource::Nofile, soft).unwrap();
    } else if setrlimit(Resource::Nofile, raised).is_err() {
        let most = Rlimit {
            current: limit.maximum,
            ..limit
        };
        setrlimit(Resource::Nofile, most).unwrap();
    }
    let have = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
    usize::try_from(have.min(wanted).saturating_sub(SPARE) / PER_SESSION).unwrap()
}

/// When sessions were seen to end.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Vec<Moment>>>);

impl Ends {
    fn note(&self) {
        self.0.lock().unwrap().push(clock::now());
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn tell(&self, what: &str, began: Moment) {
        let mut took: Vec<Duration> = self
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|at| at.since(began))
            .collect();
        took.sort();
        let at = |part: usize| took[(took.len() - 1) * part / 100];
        eprintln!(
            "{} {what}: half after {:?}, 99 % after {:?}, the last after {:?}",
            took.len(),
            at(50),
            at(99),
            at(100)
        );
    }
}

/// What the router's threads have computed since they started: other work on this machine does not bear on it.
fn router_cpu() -> Duration {
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with("core-") {
            let spent = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let nanoseconds = spent.split(' ').next().and_then(|n| n.parse().ok());
            sum += Duration::from_nanos(nanoseconds.unwrap_or(0));
        }
    }
    sum
}

/// A server that greets and then only notices its end.
async fn serve(listener: TcpListener, ends: Ends, all_over: watch::Receiver<bool>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (ends, mut all_over) = (ends.clone(), all_over.clone());
        tokio::spawn(async move {
            let mut packet = vec![0; startup("app").len()];
            // A probe sends nothing.
            if stream.read_exact(&mut packet).await.is_ok() {
                stream.write_all(GREETING).await.unwrap();
                let _ = stream.read_u8().await;
                ends.note();
                // To close it now would only take time from the others.
                let _ = all_over.wait_for(|is_over| *is_over).await;
            }
        });
    }
}

struct Client {
    ends: Ends,
    open: mpsc::Sender<()>,
    turns: Arc<Semaphore>,
    all_over: watch::Receiver<bool>,
}

impl Client {
    /// Logs in, waits for the end, and reads it only once everybody has heard theirs.
    async fn live(mut self, address: SocketAddr) -> Vec<u8> {
        let turn = self.turns.acquire().await.unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&startup("app")).await.unwrap();
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).await.unwrap();
        drop(turn);
        self.open.send(()).await.unwrap();
        stream.peek(&mut [0]).await.unwrap();
        self.ends.note();
        self.all_over.wait_for(|is_over| *is_over).await.unwrap();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).await.unwrap();
        told
    }
}

/// The clients and the server, on a thread of their own.
struct Outside {
    server: SocketAddr,
    servers: Ends,
    clients: Ends,
    opened: mpsc::Receiver<()>,
    all_over: watch::Sender<bool>,
    told: std::thread::JoinHandle<Vec<Vec<u8>>>,
    addresses: mpsc::Sender<SocketAddr>,
}

fn outside(sessions: usize) -> Outside {
    let (open, opened) = mpsc::channel(CONNECTING);
    let (all_over, hear) = watch::channel(false);
    let (addresses, mut address) = mpsc::channel(1);
    let (servers, clients) = (Ends::default(), Ends::default());
    let listener = std::net::TcpListener::bind("127.77.32.2:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = listener.local_addr().unwrap();
    let (noted, ends) = (servers.clone(), clients.clone());
    let told = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            tokio::spawn(serve(listener, noted, hear.clone()));
            let address = address.recv().await.unwrap();
            let turns = Arc::new(Semaphore::new(CONNECTING));
            let mut living = Vec::new();
            for _ in 0..sessions {
                let client = Client {
                    ends: ends.clone(),
                    open: open.clone(),
                    turns: turns.clone(),
                    all_over: hear.clone(),
                };
                living.push(tokio::spawn(client.live(address)));
            }
            let mut told = Vec::new();
            for client in living {
                told.push(client.await.unwrap());
            }
            told
        })
    });
    Outside {
        server,
        servers,
        clients,
        opened,
        all_over,
        told,
        addresses,
    }
}

#[tokio::test]
async fn thousands_of_sessions_of_a_lost_leader_are_all_told() {
    let sessions = affordable();
    let mut outside = outside(sessions);
    let stack = Stack::start(Setup {
        max_client_conn: SESSIONS,
        ..Setup::default()
    })
    .await;
    stack.lead("a", outside.server).await;
    outside.addresses.send(stack.address).await.unwrap();
    for _ in 0..sessions {
        let opened = tokio::time::timeout(DEADLINE, outside.opened.recv());
        opened.await.unwrap().unwrap();
    }
    assert_eq!(stack.listening.clients(), sessions);
    let (began, cpu) = (clock::now(), router_cpu());
    stack.delete("leader").await;
    let over = async {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while outside.servers.count() < sessions || outside.clients.count() < sessions {
            looks.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, over).await.unwrap();
    eprintln!(
        "router, all cores together: {:?} of CPU",
        router_cpu() - cpu
    );
    outside.servers.tell("servers left", began);
    outside.clients.tell("clients told", began);
    outside.all_over.send(true).unwrap();
    let told = tokio::task::spawn_blocking(move || outside.told.join().unwrap())
        .await
        .unwrap();
    for bytes in told {
        assert_eq!(bytes[0], b'E');
        assert!(bytes.windows(5).any(|part| part == b"57P01"));
    }
}
