//! What this member promised to a leader that goes on without the DCS: until when it does not run for
//! leader itself (`ha.md` 6). Kept in `run_dir`, written before the promise is given, so that an agent that
//! is restarted keeps it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use trunkline_shared::cluster::{LeaderEpoch, Moment};
use trunkline_shared::service::clock;

use super::LeaseStatus;
use crate::decide::observation::{LeaseView, NoRace, Promise};

/// Why a promise was not given.
#[derive(Debug, thiserror::Error)]
pub enum NoPromise {
    /// This member leads, or may be about to.
    #[error("Running as a leader")]
    Leads,
    /// The asker's leadership has been followed by another.
    #[error("epoch {0} is known here, and it is higher")]
    HigherEpoch(LeaderEpoch),
    /// It could not be kept.
    #[error("the promise could not be written down: {0}")]
    NotWritten(io::Error),
}

/// The promises of this member. Clones share them.
#[derive(Clone, Debug)]
pub struct Promises {
    path: PathBuf,
    kept: Arc<Mutex<Kept>>,
}

/// Gives promises to whoever asks over the API.
#[derive(Clone, Debug)]
pub struct Acceptor {
    /// What was promised.
    pub promises: Promises,
    /// Whether this member leads itself.
    pub lease: watch::Receiver<LeaseStatus>,
}

impl Acceptor {
    /// Promises not to run for `ttl` from now; `may_write` says whether PostgreSQL here is a primary, or
    /// becoming one. An error says why not.
    pub fn consent(
        &self,
        epoch: Option<LeaderEpoch>,
        ttl: Duration,
        may_write: &dyn Fn() -> bool,
    ) -> Result<(), NoPromise> {
        let is_held = || matches!(self.lease.borrow().view, LeaseView::Held(_));
        let leads = || is_held() || may_write();
        self.promises.give(epoch, ttl, clock::now(), leads)
    }
}

/// What the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    /// When the first agent of this boot started: nothing is known of what was promised before.
    booted: Moment,
    promise: Option<Promise>,
    /// The highest epoch ever seen.
    known: LeaderEpoch,
}

impl Promises {
    /// Reads the file of this boot, or begins one at `now`.
    pub fn open(path: &Path, now: Moment) -> io::Result<Self> {
        let found = fs::read_to_string(path).ok();
        let kept = match found.and_then(|text| Kept::parse(&text)) {
            Some(kept) => kept,
            None => {
                let kept = Kept {
                    booted: now,
                    promise: None,
                    known: LeaderEpoch::default(),
                };
                kept.write(path)?;
                kept
            }
        };
        Ok(Self {
            path: path.to_owned(),
            kept: Arc::new(Mutex::new(kept)),
        })
    }

    /// What keeps this member from beginning to lead.
    pub fn no_race(&self) -> NoRace {
        let kept = self.kept();
        NoRace {
            promise: kept.promise,
            booted: Some(kept.booted),
        }
    }

    /// Promises not to run for `ttl` from `now`. `leads` is asked before and after the promise is there to
    /// be seen: whoever is about to become a primary looks at the promises after it was shown to lead, so
    /// one of the two sees the other.
    pub fn give(
        &self,
        epoch: Option<LeaderEpoch>,
        ttl: Duration,
        now: Moment,
        leads: impl Fn() -> bool,
    ) -> Result<(), NoPromise> {
        let mut kept = self.kept();
        if leads() {
            return Err(NoPromise::Leads);
        }
        if epoch.is_some_and(|epoch| epoch < kept.known) {
            return Err(NoPromise::HigherEpoch(kept.known));
        }
        let earlier = kept.promise.map_or(Moment(0), |promise| promise.until);
        let next = Kept {
            promise: Some(Promise {
                until: earlier.max(now + ttl),
                epoch,
            }),
            known: kept.known.max(epoch.unwrap_or_default()),
            ..*kept
        };
        next.write(&self.path).map_err(NoPromise::NotWritten)?;
        *kept = next;
        drop(kept);
        if leads() {
            return Err(NoPromise::Leads);
        }
        Ok(())
    }

    /// An epoch was seen in the DCS; whoever leads under an older one gets no promise.
    pub fn saw(&self, epoch: LeaderEpoch) {
        let mut kept = self.kept();
        if epoch <= kept.known {
            return;
        }
        kept.known = epoch;
        if let Err(error) = kept.write(&self.path) {
            tracing::warn!(%error, "the epoch could not be kept; a restarted agent will not know it");
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Numbers: boot, until (0 for no promise), whether the asker said its epoch, that epoch, the known one.
    fn write(&self, path: &Path) -> io::Result<()> {
        let promise = self.promise.unwrap_or(Promise {
            until: Moment(0),
            epoch: None,
        });
        let asked = promise.epoch.unwrap_or_default();
        let text = format!(
            "{} {} {} {} {} {} {}\n",
            self.booted.0,
            promise.until.0,
            u8::from(promise.epoch.is_some()),
            asked.generation,
            asked.revision,
            self.known.generation,
            self.known.revision
        );
        super::saved::replace(path, text.as_bytes())
    }

    fn parse(text: &str) -> Option<Self> {
        let numbers: Option<Vec<u64>> = text
            .strip_suffix('\n')?
            .split(' ')
            .map(|number| number.parse().ok())
            .collect();
        let numbers = numbers?;
        let [booted, until, says, generation, revision, known, at] = numbers.as_slice() else {
            return None;
        };
        let epoch = |generation: u64, revision: u64| {
            Some(LeaderEpoch {
                generation,
                revision: i64::try_from(revision).ok()?,
            })
        };
        let asked = epoch(*generation, *revision)?;
        Some(Self {
            booted: Moment(*booted),
            promise: (*until > 0).then_some(Promise {
                until: Moment(*until),
                epoch: (*says == 1).then_some(asked),
            }),
            known: epoch(*known, *at)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn epoch(revision: i64) -> Option<LeaderEpoch> {
        Some(LeaderEpoch {
            generation: 0,
            revision,
        })
    }

    #[test]
    fn a_promise_outlives_the_agent_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no_race");
        let promises = Promises::open(&path, Moment(7)).unwrap();
        assert_eq!(promises.no_race().promise, None);
        promises
            .give(epoch(10), TTL, Moment(100), || false)
            .unwrap();
        promises.give(epoch(10), TTL, Moment(50), || false).unwrap();
        let again = Promises::open(&path, Moment(9_000)).unwrap();
        let kept = again.no_race();
        assert_eq!(kept.booted, Some(Moment(7)));
        let promise = kept.promise.unwrap();
        assert_eq!(
            (promise.until, promise.epoch),
            (Moment(100) + TTL, epoch(10))
        );
    }

    #[test]
    fn who_leads_or_knows_a_higher_epoch_promises_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no_race");
        let promises = Promises::open(&path, Moment(7)).unwrap();
        let leads = promises.give(epoch(10), TTL, Moment(8), || true);
        assert!(matches!(leads, Err(NoPromise::Leads)));
        assert_eq!(promises.no_race().promise, None);
        promises.saw(epoch(12).unwrap());
        let again = Promises::open(&path, Moment(9)).unwrap();
        let old = again.give(epoch(11), TTL, Moment(9), || false);
        assert!(matches!(old, Err(NoPromise::HigherEpoch(_))));
        // A Patroni leader says none.
        again.give(None, TTL, Moment(9), || false).unwrap();
    }

    #[test]
    fn who_begins_to_lead_while_it_promises_has_not_promised() {
        let dir = tempfile::tempdir().unwrap();
        let promises = Promises::open(&dir.path().join("no_race"), Moment(7)).unwrap();
        let asked = std::cell::Cell::new(0);
        let outcome = promises.give(epoch(10), TTL, Moment(8), || {
            asked.set(asked.get() + 1);
            asked.get() > 1
        });
        assert!(matches!(outcome, Err(NoPromise::Leads)));
        // Whoever becomes a primary looks after it was shown to lead, and finds it.
        assert!(promises.no_race().promise.is_some());
    }

    #[test]
    fn a_damaged_file_counts_as_none_of_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no_race");
        for damaged in ["", "1 2 3\n", "1 2 1 0 0 0 0", "a b c d e f g\n"] {
            fs::write(&path, damaged).unwrap();
            let promises = Promises::open(&path, Moment(42)).unwrap();
            assert_eq!(promises.no_race().booted, Some(Moment(42)), "{damaged:?}");
        }
    }
}
