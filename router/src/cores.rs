//! One thread per core, each with a runtime of its own: a client and its server live on the same thread,
//! so no wake-up crosses cores.

use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use crate::listener::limits::Counted;

struct Core {
    handle: Handle,
    sessions: Arc<AtomicUsize>,
}

/// This core and the others, as code on it sees them.
#[derive(Clone)]
pub struct Peers {
    /// Its own number.
    pub own: usize,
    /// All cores, by number.
    pub all: Arc<[Handle]>,
}

thread_local! {
    static PEERS: OnceCell<Peers> = const { OnceCell::new() };
}

/// The cores, for code that runs on one; `None` elsewhere.
pub fn peers() -> Option<Peers> {
    PEERS.with(|peers| peers.get().cloned())
}

/// The threads that carry sessions.
pub struct Cores {
    cores: Vec<Core>,
    stop: Arc<Notify>,
}

impl Cores {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The system gives no thread or no poll descriptor.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = Arc::new(Notify::new());
        let mut cores = Vec::with_capacity(count);
        let runtimes: Vec<_> = (0..count)
            .map(|_| Builder::new_current_thread().enable_all().build())
            .collect::<io::Result<_>>()?;
        let all: Arc<[Handle]> = runtimes.iter().map(|r| r.handle().clone()).collect();
        for (own, runtime) in runtimes.into_iter().enumerate() {
            let handle = runtime.handle().clone();
            let stopped = stop.clone();
            let peers = Peers {
                own,
                all: all.clone(),
            };
            thread::Builder::new()
                .name(format!("core-{own}"))
                .spawn(move || {
                    PEERS.with(|own| own.get_or_init(|| peers).own);
                    runtime.block_on(stopped.notified());
                })?;
            cores.push(Core {
                handle,
                sessions: Arc::default(),
            });
        }
        Ok(Self { cores, stop })
    }

    /// Runs a session on the core with the fewest. It keeps its place among them: a future around it would hold it
    /// twice.
    pub fn spawn<S>(&self, session: impl FnOnce(Counted) -> S)
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let least = self
            .cores
            .iter()
            .min_by_key(|core| core.sessions.load(Ordering::Relaxed));
        if let Some(core) = least {
            core.handle.spawn(session(Counted::new(&core.sessions)));
        }
    }

    /// The runtimes, by number.
    pub fn handles(&self) -> Arc<[Handle]> {
        self.cores.iter().map(|core| core.handle.clone()).collect()
    }

    /// Sessions on all cores.
    pub fn sessions(&self) -> usize {
        self.cores
            .iter()
            .map(|core| core.sessions.load(Ordering::Relaxed))
            .sum()
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.stop.notify_waiters();
    }
}
