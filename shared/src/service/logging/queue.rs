//! The lines between those who log and the thread that writes: bounded, so that a disk or a pipe that hangs costs
//! lines and never a turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most bytes of one line; the rest of a longer one is cut off.
const LONGEST_LINE: usize = 64 << 10;

/// The queue. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something was put in, or an order was given.
    filled: Condvar,
    /// The writer has nothing to do.
    idle: Condvar,
    limit: AtomicUsize,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    is_writing: bool,
    has_order: bool,
}

/// What the writer is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Write a line.
    Line(String),
    /// Look at its orders first.
    Order,
}

impl Queue {
    /// A queue of so many lines, at least one.
    pub(super) fn of(limit: usize) -> Self {
        let queue = Self::default();
        queue.limit_to(limit);
        queue
    }

    /// From now on so many lines may wait, at least one.
    pub(super) fn limit_to(&self, limit: usize) {
        self.0.limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// How many lines wait to be written.
    pub fn waiting(&self) -> usize {
        let state = self.state();
        state.lines.len() + usize::from(state.is_writing)
    }

    /// How many lines were lost because too many waited, or because they could not be written.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Counts a line that could not be written.
    pub(super) fn lose(&self) {
        self.0.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts a line in, or loses it where there is no room. Never waits for the writer.
    pub(super) fn push(&self, mut line: String) {
        if line.len() > LONGEST_LINE {
            let end = (0..=LONGEST_LINE)
                .rev()
                .find(|at| line.is_char_boundary(*at));
            line.truncate(end.unwrap_or(0));
            line.push('\n');
        }
        let mut state = self.state();
        if state.lines.len() >= self.0.limit.load(Ordering::Relaxed) {
            self.lose();
            return;
        }
        state.lines.push_back(line);
        self.0.filled.notify_one();
    }

    /// Wakes the writer for an order.
    pub(super) fn order(&self) {
        self.state().has_order = true;
        self.0.filled.notify_one();
    }

    /// What is to be done next; waits until there is something. What was taken before counts as done.
    pub(super) fn next(&self) -> Next {
        let mut state = self.state();
        state.is_writing = false;
        loop {
            if std::mem::take(&mut state.has_order) {
                return Next::Order;
            }
            if let Some(line) = state.lines.pop_front() {
                state.is_writing = true;
                return Next::Line(line);
            }
            self.0.idle.notify_all();
            state = self.wait(&self.0.filled, state);
        }
    }

    /// Waits until everything is written, for `limit` at the longest; says whether it is.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let is_busy = |state: &mut State| !state.lines.is_empty() || state.is_writing;
        let waited = self.0.idle.wait_timeout_while(self.state(), limit, is_busy);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !is_busy(&mut state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, until: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        until.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_loses_lines_and_counts_them() {
        let queue = Queue::of(2);
        for line in ["a", "b", "c", "d"] {
            queue.push(line.to_owned());
        }
        assert_eq!((queue.waiting(), queue.lost()), (2, 2));
        assert_eq!(queue.next(), Next::Line("a".to_owned()));
        // The one that is being written waits too: it may hang there.
        assert_eq!(queue.waiting(), 2);
        assert!(!queue.flush(Duration::ZERO));
        queue.limit_to(0);
        queue.push("e".to_owned());
        assert_eq!(queue.lost(), 3);
        queue.order();
        assert_eq!(queue.next(), Next::Order);
        assert_eq!(queue.next(), Next::Line("b".to_owned()));
    }

    #[test]
    fn a_long_line_is_cut_between_letters() {
        let queue = Queue::of(1);
        queue.push("ä".repeat(LONGEST_LINE));
        let Next::Line(line) = queue.next() else {
            panic!("a line was pushed");
        };
        assert!(line.len() <= LONGEST_LINE + 1 && line.ends_with("ä\n"));
    }
}
