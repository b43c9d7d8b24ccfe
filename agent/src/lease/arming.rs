//! Whether the fence is armed, and the only writer of its deadline.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use trunkline_shared::cluster::Moment;

/// Writes the deadline for the fence to read; `None` puts it to sleep.
pub type WriteDeadline = Box<dyn FnMut(Option<Moment>) -> io::Result<()> + Send>;

/// Whether a live fence was seen a moment ago.
pub type IsWatched = Box<dyn Fn() -> bool + Send + Sync>;

/// Joins the lease's deadline to the fence's. The flag and the write are one step: a renewal that comes
/// between "disarm" and its write must not arm the fence again.
pub struct Arming {
    state: Mutex<State>,
    is_watched: IsWatched,
}

struct State {
    deadline: Option<Moment>,
    write: WriteDeadline,
}

impl Arming {
    /// `found` is the deadline that an earlier agent left armed.
    pub fn new(found: Option<Moment>, write: WriteDeadline, is_watched: IsWatched) -> Self {
        Self {
            state: Mutex::new(State {
                deadline: found,
                write,
            }),
            is_watched,
        }
    }

    /// Whether a renewal may count: an armed deadline moves on only while a live fence keeps it.
    pub fn may_move_on(&self) -> bool {
        !self.is_armed() || (self.is_watched)()
    }

    /// Whether the fence will fire when the deadline passes.
    pub fn is_armed(&self) -> bool {
        self.deadline().is_some()
    }

    /// When the fence fires unless that is moved; `None` while it sleeps.
    pub fn deadline(&self) -> Option<Moment> {
        self.state().deadline
    }

    /// Arms with this deadline.
    pub fn arm(&self, deadline: Moment) -> io::Result<()> {
        self.state().set(Some(deadline))
    }

    /// The lease counts until then: an armed fence fires at that moment. It may be earlier than before, when
    /// the key was written anew on another lease.
    pub fn keep(&self, deadline: Moment) -> io::Result<()> {
        let mut state = self.state();
        match state.deadline {
            Some(other) if other != deadline => state.set(Some(deadline)),
            Some(_) | None => Ok(()),
        }
    }

    /// The lease may end sooner than was counted on: an armed fence fires then at the latest.
    pub fn shorten(&self, deadline: Moment) -> io::Result<()> {
        let mut state = self.state();
        match state.deadline {
            Some(later) if later > deadline => state.set(Some(deadline)),
            Some(_) | None => Ok(()),
        }
    }

    /// Puts the fence to sleep.
    pub fn disarm(&self) -> io::Result<()> {
        self.state().set(None)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set(&mut self, deadline: Option<Moment>) -> io::Result<()> {
        (self.write)(deadline)?;
        self.deadline = deadline;
        Ok(())
    }
}

impl fmt::Debug for Arming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arming")
            .field("deadline", &self.state().deadline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_armed_fence_keeps_the_deadline_of_the_lease() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = written.clone();
        let arming = Arming::new(
            None,
            Box::new(move |deadline| {
                log.lock().unwrap().push(deadline);
                Ok(())
            }),
            Box::new(|| true),
        );
        arming.shorten(Moment(1)).unwrap();
        arming.keep(Moment(5)).unwrap();
        assert!(!arming.is_armed());
        arming.arm(Moment(10)).unwrap();
        arming.keep(Moment(9)).unwrap();
        arming.keep(Moment(12)).unwrap();
        arming.keep(Moment(12)).unwrap();
        arming.shorten(Moment(14)).unwrap();
        arming.shorten(Moment(11)).unwrap();
        arming.disarm().unwrap();
        arming.keep(Moment(15)).unwrap();
        assert_eq!(
            *written.lock().unwrap(),
            [10, 9, 12, 11]
                .map(|at| Some(Moment(at)))
                .into_iter()
                .chain([None])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_write_that_failed_changes_nothing() {
        let full = Box::new(|_| Err(io::Error::other("full")));
        let arming = Arming::new(None, full, Box::new(|| true));
        assert!(arming.arm(Moment(1)).is_err());
        assert!(!arming.is_armed());
    }

    #[test]
    fn a_sleeping_fence_need_not_be_watched() {
        let arming = Arming::new(None, Box::new(|_| Ok(())), Box::new(|| false));
        assert!(arming.may_move_on());
        arming.arm(Moment(1)).unwrap();
        assert!(!arming.may_move_on());
    }
}
