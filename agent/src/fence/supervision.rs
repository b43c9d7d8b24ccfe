//! Keeps a fence alive beside the agent's turns.
//!
//! It has a thread and a runtime of its own: neither the DCS nor PostgreSQL nor a disk that a turn waits for
//! holds it up. The fence's end wakes it at once, an old heartbeat within [`LOOK`].

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::RwLock;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::FenceHandle;

/// How often the heartbeat is looked at: often enough to see it old before it counts as old twice.
const LOOK: Duration = Duration::from_millis(250);

/// The pause before another attempt when there is no fence to be had.
const RETRY: Duration = Duration::from_millis(100);

/// How long ago a live fence may have been seen for renewals to count: a replacement takes less.
const SEEN_LIMIT: Duration = Duration::from_secs(2);

/// When the supervision last saw a live fence. It stops with the supervision, whatever ended that.
#[derive(Debug)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// A live fence was seen just now.
    pub fn new() -> Self {
        Self(AtomicU64::new(clock::now().0))
    }

    /// Whether a live fence was seen within the last two seconds.
    pub fn is_young(&self) -> bool {
        let seen = Moment(self.0.load(Ordering::Relaxed));
        clock::now().since(seen) <= SEEN_LIMIT
    }

    fn beat(&self) {
        self.0.store(clock::now().0, Ordering::Relaxed);
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

/// Starts the supervision; it ends when `stop` is cancelled.
pub fn keep(
    fence: Arc<RwLock<FenceHandle>>,
    pulse: Arc<Pulse>,
    stop: CancellationToken,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::Builder::new()
        .name("fence".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = supervise(&fence, &pulse) => {}
                }
            });
        })?;
    Ok(())
}

/// Until the fence that holds the lock has ended or its heartbeat is old. It holds the lock for as long as it lives,
/// so the heartbeat alone is looked at: looking for the holder each time was a third of an idle agent's CPU.
async fn watch(fence: &RwLock<FenceHandle>, pulse: &Pulse, end: &AsyncFd<OwnedFd>) {
    while timeout(LOOK, end.readable()).await.is_err()
        && fence.read().await.has_stamped(clock::now())
    {
        pulse.beat();
    }
}

/// Replaces a fence that died or froze.
async fn supervise(fence: &RwLock<FenceHandle>, pulse: &Pulse) {
    let mut said = false;
    loop {
        let (is_live, end) = {
            let fence = fence.read().await;
            (fence.is_live(clock::now()), fence.end())
        };
        if is_live {
            pulse.beat();
            match end {
                Some(end) => watch(fence, pulse, &end).await,
                None => sleep(LOOK).await,
            }
            continue;
        }
        match fence.write().await.ensure_live().await {
            Ok(is_new) => {
                if is_new {
                    tracing::warn!("the fence was dead or frozen: a new one watches");
                }
                said = false;
            }
            Err(error) => {
                if !said {
                    tracing::error!(%error, "there is no live fence; retrying");
                    said = true;
                }
                sleep(RETRY).await;
            }
        }
    }
}
