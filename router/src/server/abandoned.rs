//! Cancels of queries whose client is gone already. With a leader that stalls there may be as many at once as there are
//! clients, and each is a connection to it: a few go at a time, and the others wait their turn for as long as it is worth
//! something. The server that they are for is closed in any case, and given to nobody.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use super::{CancelKey, Way, cancel};
use crate::turns::Turns;

/// Such cancels that are being sent to one member at once.
const MAX_AT_ONCE: usize = 64;
/// Such cancels that are sent, or wait for their turn; of more than these the queries go on to their end.
const MAX_KNOWN: usize = 8192;
/// How long one waits for its turn; after it the query goes on to its end.
const PATIENCE: Duration = Duration::from_secs(10);

static QUEUE: Queue = Queue::new();

/// Sends one, after those that were first.
pub fn cancel_abandoned(way: Arc<Way>, key: CancelKey) {
    QUEUE.send(&way.address.clone(), async move {
        // What comes of it is no matter any more.
        let _ = cancel(way, key).await;
    });
}

struct Queue {
    turns: Turns,
    known: Semaphore,
}

impl Queue {
    const fn new() -> Self {
        Self {
            turns: Turns::new(MAX_AT_ONCE),
            known: Semaphore::const_new(MAX_KNOWN),
        }
    }

    fn send(&'static self, address: &Arc<str>, sending: impl Future<Output = ()> + Send + 'static) {
        let Ok(known) = self.known.try_acquire() else {
            debug!(%address, "a query that took too long is not cancelled: {MAX_KNOWN} others go before it");
            return;
        };
        let (turns, address) = (self.turns.of(address), address.clone());
        tokio::spawn(async move {
            let _known = known;
            match timeout(PATIENCE, turns.acquire()).await {
                Ok(Ok(_turn)) => sending.await,
                Ok(Err(_)) | Err(_) => {
                    debug!(%address, "a query that took too long is not cancelled: the member answers no others");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn so_many_go_to_a_member_at_once_and_those_to_others_do_not_wait_for_them() {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        let (stalled, other): (Arc<str>, Arc<str>) = ("a:5432".into(), "b:5432".into());
        let begun = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(Semaphore::new(0));
        let send = |to: &Arc<str>| {
            let (begun, answer) = (begun.clone(), answer.clone());
            queue.send(to, async move {
                begun.fetch_add(1, Ordering::SeqCst);
                // It is never closed.
                let _ = answer.acquire().await;
            });
        };
        let begins = async |count: usize| {
            while begun.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        };
        (0..=MAX_AT_ONCE).for_each(|_| send(&stalled));
        begins(MAX_AT_ONCE).await;
        send(&other);
        begins(MAX_AT_ONCE + 1).await;
        // All others have been in the runtime's queue before that one.
        assert_eq!(begun.load(Ordering::SeqCst), MAX_AT_ONCE + 1);
        assert_eq!(queue.known.available_permits(), MAX_KNOWN - MAX_AT_ONCE - 2);
        answer.add_permits(1);
        begins(MAX_AT_ONCE + 2).await;
        while queue.known.available_permits() < MAX_KNOWN {
            tokio::task::yield_now().await;
        }
    }
}
