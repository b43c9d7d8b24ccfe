//! The operator's scripts: Patroni's callbacks, one after the other from one queue, and the two that are
//! waited for, `pre_promote` and `before_stop`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::process::Script;
use super::{Postgres, PostgresError};

/// Longest run of one callback; those behind it wait so long.
const CALLBACK_LIMIT: Duration = Duration::from_secs(60);

/// Callbacks that may wait. Beyond it the oldest reload goes, or else the oldest event.
const QUEUE: usize = 32;

/// A command and its arguments, split as a shell splits words.
pub type Command = Vec<String>;

/// What the operator wants to be run, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// `postgresql.callbacks`, by the names of their events.
    pub callbacks: BTreeMap<&'static str, Command>,
    /// `postgresql.pre_promote`: its failure forbids the promotion.
    pub pre_promote: Option<Command>,
    /// `postgresql.before_stop`: before every stop that is not an emergency.
    pub before_stop: Option<Command>,
}

/// The event that gives way to every other.
const RELOAD: &str = "on_reload";

/// One event's name and as what the instance ran or runs: a script's first two arguments.
type Event = (&'static str, &'static str);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Event>,
    running: Option<Event>,
}

/// The queue of the callbacks. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Callbacks {
    queue: Arc<Mutex<Queue>>,
    /// Something was queued.
    queued: Arc<Notify>,
    /// A script has ended.
    ended: Arc<Notify>,
}

impl Queue {
    fn push(&mut self, event: Event) {
        if self.waiting.len() >= QUEUE {
            let is_reload = |(event, _): &Event| *event == RELOAD;
            let at = self.waiting.iter().position(is_reload).unwrap_or(0);
            let lost = self.waiting.remove(at);
            tracing::error!(?lost, "too many callbacks wait: one is not called");
        }
        self.waiting.push_back(event);
    }
}

impl Callbacks {
    /// Takes a place in the queue.
    pub fn call(&self, event: &'static str, role: &'static str) {
        self.locked().push((event, role));
        self.queued.notify_one();
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Event> {
        let mut queue = self.locked();
        queue.running = queue.waiting.pop_front();
        queue.running
    }

    /// Calls the scripts of `door`'s configuration, for ever.
    pub async fn serve(&self, door: &Postgres) {
        loop {
            while let Some((event, role)) = self.next() {
                self.run(door, event, role).await;
                self.locked().running = None;
                self.ended.notify_waiters();
            }
            self.queued.notified().await;
        }
    }

    /// A reload's script ends when something more important waits; nothing ends any other.
    async fn run(&self, door: &Postgres, event: &'static str, role: &'static str) {
        let config = door.config();
        let Some(command) = config.hooks.callbacks.get(event) else {
            return;
        };
        let mut script = Script::new(command, CALLBACK_LIMIT, event);
        let arguments = [event, role, &config.cluster_name];
        script.arguments.extend(arguments.map(str::to_owned));
        tracing::info!(event, role, "callback");
        let running = script.run();
        let outcome = if event == RELOAD {
            tokio::select! {
                outcome = running => outcome,
                () = self.is_more_important() => {
                    tracing::warn!("the on_reload callback is ended: another event waits");
                    return;
                }
            }
        } else {
            running.await
        };
        if let Err(error) = outcome {
            tracing::warn!(event, %error, "the callback failed");
        }
    }

    async fn is_more_important(&self) {
        loop {
            let queued = self.queued.notified();
            let waits = |(event, _): &Event| *event != RELOAD;
            if self.locked().waiting.iter().any(waits) {
                // The place in the queue was told; the server is to look at it.
                self.queued.notify_one();
                return;
            }
            queued.await;
        }
    }

    /// Whether everything queued so far was called.
    pub fn are_done(&self) -> bool {
        let queue = self.locked();
        queue.waiting.is_empty() && queue.running.is_none()
    }

    /// Waits until everything queued so far was called, `limit` at the longest.
    pub async fn drained(&self, limit: Duration) {
        let empty = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                // Registered before the look, so that no end is missed.
                ended.as_mut().enable();
                if self.are_done() {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(limit, empty).await.is_err() {
            tracing::warn!(?limit, "callbacks are left to themselves");
        }
    }
}

impl Postgres {
    /// Runs `pre_promote`, if there is one; an error forbids the promotion.
    pub async fn pre_promote(&self, limit: Duration) -> Result<(), PostgresError> {
        let config = self.config();
        let Some(command) = &config.hooks.pre_promote else {
            return Ok(());
        };
        Script::new(command, limit, "pre_promote").run().await
    }

    /// Runs `before_stop`, if there is one, for `limit` at the most. Whatever becomes of it, the stop goes on.
    pub async fn before_stop(&self, limit: Duration) {
        let config = self.config();
        let Some(command) = &config.hooks.before_stop else {
            return;
        };
        let limit = limit.min(config.pg_ctl_timeout);
        let script = Script::new(command, limit, "before_stop");
        if let Err(error) = script.run().await {
            tracing::warn!(%error, "before_stop failed; PostgreSQL is stopped all the same");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_up_a_reload_before_a_role_change() {
        let mut queue = Queue::default();
        queue.push(("on_role_change", "primary"));
        for _ in 0..QUEUE {
            queue.push((RELOAD, "primary"));
        }
        queue.push(("on_stop", "primary"));
        assert_eq!(queue.waiting.len(), QUEUE);
        let first = queue.waiting.front().map(|(event, _)| *event);
        let last = queue.waiting.back().map(|(event, _)| *event);
        assert_eq!(first, Some("on_role_change"));
        assert_eq!(last, Some("on_stop"));
    }
}
