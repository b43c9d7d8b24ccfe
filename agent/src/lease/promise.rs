//! What this member promised to a leader that goes on without the DCS: until when it does not run for
//! leader itself (`ha.md` 6). Kept in `run_dir`, written before the promise is given, so that an agent that
//! is restarted keeps it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use trunkline_shared::cluster::{LeaderEpoch, Lsn, MemberName, Moment, Timeline};
use trunkline_shared::service::clock;

use super::LeaseStatus;
use crate::decide::observation::{Asked, LeaseView, NoRace, Promise, Reached};

/// Why a promise was not given.
#[derive(Debug, thiserror::Error)]
pub enum NoPromise {
    /// This member leads, or may be about to.
    #[error("Running as a leader")]
    Leads,
    /// The asker's leadership has been followed by another, as far as is known here.
    #[error(
        "epoch {0} is known here, and it is higher: another member has led since. If the DCS was replaced or restored \
         instead, stop this agent, remove the file no_race in its run_dir and start it"
    )]
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
    /// Promises `asker` not to run from now on; `may_write` says whether PostgreSQL here is a primary, or
    /// becoming one. An error says why not.
    pub fn consent(
        &self,
        asker: &MemberName,
        asked: Asked,
        may_write: &dyn Fn() -> bool,
    ) -> Result<(), NoPromise> {
        let is_held = || matches!(self.lease.borrow().view, LeaseView::Held(_));
        let leads = || is_held() || may_write();
        self.promises.give(asker, asked, clock::now(), leads)
    }
}

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// When the first agent of this boot started: nothing is known of what was promised before.
    booted: Moment,
    promise: Option<Promise>,
    /// The highest epoch ever seen.
    known: LeaderEpoch,
    /// Who leads, or led, under it.
    led_by: Option<MemberName>,
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
                    led_by: None,
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

    /// Promises `asker` not to run from `now` on. Whoever leads under the highest epoch known here may ask
    /// under an earlier one of its own: it has written its key again and never learnt of it, and nobody else has
    /// led since. `leads` is asked before and after the promise is there to
    /// be seen: whoever is about to become a primary looks at the promises after it was shown to lead, so
    /// one of the two sees the other.
    pub fn give(
        &self,
        asker: &MemberName,
        asked: Asked,
        now: Moment,
        leads: impl Fn() -> bool,
    ) -> Result<(), NoPromise> {
        let Asked {
            epoch,
            ttl,
            reached,
        } = asked;
        let mut kept = self.kept();
        if leads() {
            return Err(NoPromise::Leads);
        }
        // An agent that was restarted goes on by rounds before it has looked.
        let is_its = kept.led_by.as_ref() == Some(asker);
        let earlier = kept
            .promise
            .filter(|promise| is_its || promise.epoch == epoch);
        let reached = reached.or(earlier.and_then(|promise| promise.reached));
        if epoch.is_some_and(|epoch| epoch < kept.known) && !is_its {
            return Err(NoPromise::HigherEpoch(kept.known));
        }
        let earlier = kept.promise.map_or(Moment(0), |promise| promise.until);
        let mut next = Kept {
            promise: Some(Promise {
                until: earlier.max(now + ttl),
                epoch,
                reached,
            }),
            ..kept.clone()
        };
        if let Some(epoch) = epoch {
            next.note(epoch, asker, true);
        }
        next.write(&self.path).map_err(NoPromise::NotWritten)?;
        *kept = next;
        drop(kept);
        if leads() {
            return Err(NoPromise::Leads);
        }
        Ok(())
    }

    /// An epoch was seen in the DCS, and who leads under it; whoever else leads under an older one gets no promise.
    /// `is_made` is false while there is no cluster yet that it leads.
    pub fn saw(&self, epoch: LeaderEpoch, leader: &MemberName, is_made: bool) {
        let mut kept = self.kept();
        if !kept.note(epoch, leader, is_made) {
            return;
        }
        if let Err(error) = kept.write(&self.path) {
            tracing::warn!(%error, "the epoch could not be kept; a restarted agent will not know it");
        }
    }

    /// This member has no data and is about to copy some: that goes beyond what it was told, or is of another cluster under this name.
    pub fn has_no_data(&self) {
        let mut kept = self.kept();
        let Some(promise) = kept.promise.as_mut().filter(|p| p.reached.is_some()) else {
            return;
        };
        promise.reached = None;
        if let Err(error) = kept.write(&self.path) {
            tracing::warn!(%error, "what a leader had told could not be forgotten");
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Takes the epoch up if it is news; whether it was.
    fn note(&mut self, epoch: LeaderEpoch, leader: &MemberName, is_made: bool) -> bool {
        let is_news = epoch > self.known;
        if is_news {
            // The same leader has written that, whatever it writes its key by, and may end before it publishes more. A
            // cluster that is made anew under the same name begins from nothing.
            let stands = self.led_by.as_ref() == Some(leader) && is_made;
            if let Some(promise) = self.promise.as_mut().filter(|p| p.epoch < Some(epoch)) {
                promise.reached = promise.reached.filter(|_| stands);
            }
            self.known = epoch;
            self.led_by = Some(leader.clone());
        }
        is_news
    }

    /// Numbers: boot, until (0 for no promise), whether the asker said its epoch, that epoch, the known one. Then
    /// who led under that, to the end of the line. How far the asker had written is a second line, if it said so.
    fn write(&self, path: &Path) -> io::Result<()> {
        let promise = self.promise.unwrap_or(Promise {
            until: Moment(0),
            epoch: None,
            reached: None,
        });
        let asked = promise.epoch.unwrap_or_default();
        let led_by = self.led_by.as_ref().map_or("", MemberName::as_str);
        let mut text = format!(
            "{} {} {} {} {} {} {} {led_by}\n",
            self.booted.0,
            promise.until.0,
            u8::from(promise.epoch.is_some()),
            asked.generation,
            asked.revision,
            self.known.generation,
            self.known.revision
        );
        if let Some((timeline, position)) = promise.reached {
            let _ = writeln!(text, "{} {}", timeline.0, position.0);
        }
        super::saved::replace(path, text.as_bytes())
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, second) = text.split_once('\n')?;
        let reached = match second {
            "" => None,
            _ => Some(reached(second)?),
        };
        let mut words = first.splitn(8, ' ');
        let numbers: Option<Vec<u64>> = words
            .by_ref()
            .take(7)
            .map(|number| number.parse().ok())
            .collect();
        let numbers = numbers?;
        let [booted, until, says, generation, revision, known, at] = numbers.as_slice() else {
            return None;
        };
        let led_by = words.next()?;
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
                reached,
            }),
            known: epoch(*known, *at)?,
            led_by: (!led_by.is_empty()).then(|| MemberName::new(led_by)),
        })
    }
}

fn reached(line: &str) -> Option<Reached> {
    let (timeline, position) = line.strip_suffix('\n')?.split_once(' ')?;
    let timeline = timeline.parse().ok()?;
    Some((Timeline(timeline), Lsn(position.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: std::time::Duration = std::time::Duration::from_secs(5);

    fn name(text: &str) -> MemberName {
        MemberName::new(text)
    }

    fn epoch(revision: i64) -> Option<LeaderEpoch> {
        Some(LeaderEpoch {
            generation: 0,
            revision,
        })
    }

    const REACHED: Reached = (Timeline(3), Lsn(0x1_5000_0060));

    fn asked(epoch: Option<LeaderEpoch>) -> Asked {
        Asked {
            epoch,
            ttl: TTL,
            reached: epoch.map(|_| REACHED),
        }
    }

    #[test]
    fn a_promise_outlives_the_agent_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no_race");
        let promises = Promises::open(&path, Moment(7)).unwrap();
        assert_eq!(promises.no_race().promise, None);
        for at in [100, 50] {
            let given = promises.give(&name("b"), asked(epoch(10)), Moment(at), || false);
            given.unwrap();
        }
        let again = Promises::open(&path, Moment(9_000)).unwrap();
        let kept = again.no_race();
        assert_eq!(kept.booted, Some(Moment(7)));
        let promise = kept.promise.unwrap();
        assert_eq!(
            (promise.until, promise.epoch, promise.reached),
            (Moment(100) + TTL, epoch(10), Some(REACHED))
        );
        // An agent that has not looked yet does not say it, and takes nothing back; a later leadership does.
        let silent = Asked {
            reached: None,
            ..asked(epoch(10))
        };
        let reached = |promises: &Promises| promises.no_race().promise.unwrap().reached;
        again
            .give(&name("b"), silent, Moment(101), || false)
            .unwrap();
        assert_eq!(reached(&again), Some(REACHED));
        // It writes its key again, and may end before it publishes.
        again.saw(epoch(11).unwrap(), &name("b"), true);
        let later = Asked {
            epoch: epoch(11),
            ..silent
        };
        again
            .give(&name("b"), later, Moment(102), || false)
            .unwrap();
        assert_eq!(reached(&again), Some(REACHED));
        let made_anew = Promises::open(&path, Moment(9_001)).unwrap();
        made_anew.saw(epoch(12).unwrap(), &name("b"), false);
        assert_eq!(reached(&made_anew), None);
        again.has_no_data();
        assert_eq!(reached(&again), None);
        again
            .give(&name("b"), asked(epoch(12)), Moment(103), || false)
            .unwrap();
        assert_eq!(reached(&again), Some(REACHED));
        again.saw(epoch(13).unwrap(), &name("c"), true);
        let again = Promises::open(&path, Moment(9_001)).unwrap();
        assert_eq!(reached(&again), None);
    }

    #[test]
    fn who_leads_or_knows_a_higher_epoch_promises_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no_race");
        let promises = Promises::open(&path, Moment(7)).unwrap();
        let leads = promises.give(&name("b"), asked(epoch(10)), Moment(8), || true);
        assert!(matches!(leads, Err(NoPromise::Leads)));
        assert_eq!(promises.no_race().promise, None);
        promises.saw(epoch(12).unwrap(), &name("c"), true);
        let again = Promises::open(&path, Moment(9)).unwrap();
        let old = again.give(&name("b"), asked(epoch(11)), Moment(9), || false);
        assert!(matches!(old, Err(NoPromise::HigherEpoch(_))));
        // A Patroni leader says none.
        let given = again.give(&name("b"), asked(None), Moment(9), || false);
        given.unwrap();
    }

    #[test]
    fn who_wrote_its_key_again_without_learning_it_gets_the_promise_until_another_leads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no_race");
        let promises = Promises::open(&path, Moment(7)).unwrap();
        promises.saw(epoch(10).unwrap(), &name("b of two"), true);
        promises.saw(epoch(12).unwrap(), &name("b of two"), true);
        // An agent that is restarted knows whose epoch that was.
        let again = Promises::open(&path, Moment(9)).unwrap();
        let asks = |by: &str| again.give(&name(by), asked(epoch(10)), Moment(9), || false);
        asks("b of two").unwrap();
        assert!(matches!(asks("c"), Err(NoPromise::HigherEpoch(_))));
        again.saw(epoch(13).unwrap(), &name("c"), true);
        assert!(matches!(asks("b of two"), Err(NoPromise::HigherEpoch(_))));
    }

    #[test]
    fn who_begins_to_lead_while_it_promises_has_not_promised() {
        let dir = tempfile::tempdir().unwrap();
        let promises = Promises::open(&dir.path().join("no_race"), Moment(7)).unwrap();
        let times = std::cell::Cell::new(0);
        let outcome = promises.give(&name("b"), asked(epoch(10)), Moment(8), || {
            times.set(times.get() + 1);
            times.get() > 1
        });
        assert!(matches!(outcome, Err(NoPromise::Leads)));
        // Whoever becomes a primary looks after it was shown to lead, and finds it.
        assert!(promises.no_race().promise.is_some());
    }

    #[test]
    fn a_damaged_file_counts_as_none_of_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no_race");
        for damaged in [
            "",
            "1 2 3\n",
            "1 2 1 0 0 0 0\n",
            "1 2 1 0 0 0 0 b",
            "a b c d e f g \n",
            "1 2 1 0 0 0 0 b\nhalf",
        ] {
            fs::write(&path, damaged).unwrap();
            let promises = Promises::open(&path, Moment(42)).unwrap();
            assert_eq!(promises.no_race().booted, Some(Moment(42)), "{damaged:?}");
        }
    }
}
