//! One thread per core, each with a runtime of its own: a client and its server live on the same thread,
//! so no wake-up crosses cores.

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
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stopped = stop.clone();
            thread::Builder::new()
                .name(format!("core-{number}"))
                .spawn(move || runtime.block_on(stopped.notified()))?;
            cores.push(Core {
                handle,
                sessions: Arc::default(),
            });
        }
        Ok(Self { cores, stop })
    }

    /// Runs a session on the core with the fewest.
    pub fn spawn(&self, session: impl Future<Output = ()> + Send + 'static) {
        let least = self
            .cores
            .iter()
            .min_by_key(|core| core.sessions.load(Ordering::Relaxed));
        if let Some(core) = least {
            let counted = Counted::new(&core.sessions);
            core.handle.spawn(async move {
                session.await;
                drop(counted);
            });
        }
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
