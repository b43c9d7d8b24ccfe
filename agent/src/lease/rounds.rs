//! Rounds: a leader that the DCS does not answer asks every member of the failsafe list for its consent
//! (`ha.md` 6). Only all of them are enough: one that does not answer may be the one that the DCS still
//! answers. Pure: the lease task and the simulation drive the same code.
//!
//! Why it holds: whoever creates the leader key stands in the list and compares its revision, and only the
//! leader writes it, so everybody who may lead next is asked. The deadline counts from before the first
//! request, each promise from its receipt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::{LeaderEpoch, MemberName, Moment};
use trunkline_shared::dcs::Revision;

use super::state::{self, LeaseState};
use crate::decide::observation::{Held, LeaseView};

mod asking;
mod kept;

pub(super) use asking::ask;
pub use asking::{ACCEPTED, Speaker};
pub(super) use kept::SavedAuthority;

/// Names of members, and the URLs of their agents.
pub type List = BTreeMap<MemberName, Arc<str>>;

/// The failsafe list as the DCS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The list.
    pub list: Arc<List>,
    /// The mod revision of its key, 0 if there is none.
    pub revision: Revision,
    /// Whether `failsafe_mode` is on.
    pub is_on: bool,
}

/// A list that was sent to be written, and may be written at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    /// The leader key that the write compares, and the list's mod revision.
    under: LeaderEpoch,
    base: Revision,
    list: Arc<List>,
}

/// Whom a leader asks: everybody who may run for leader by what the key holds, or may come to hold by a
/// write whose outcome is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailsafeList {
    /// `None` before the DCS was read.
    shown: Option<Shown>,
    pending: Vec<Pending>,
}

impl FailsafeList {
    /// The DCS was read.
    pub fn show(&mut self, shown: Shown) {
        // A write compares the revision it was made for: once that has passed it can happen no more.
        self.pending.retain(|write| write.base == shown.revision);
        self.shown = Some(shown);
    }

    /// Whether the DCS was ever read.
    pub fn is_known(&self) -> bool {
        self.shown.is_some()
    }

    /// This is about to be written in place of what stands at `base`, by who leads under `under`.
    pub fn will_be(&mut self, under: LeaderEpoch, base: Revision, list: Arc<List>) {
        let write = Pending { under, base, list };
        if !self.pending.contains(&write) {
            self.pending.push(write);
        }
    }

    /// That write surely did not happen.
    pub fn was_refused(&mut self, under: LeaderEpoch, base: Revision, list: &Arc<List>) {
        self.pending
            .retain(|write| (write.under, write.base, &write.list) != (under, base, list));
    }

    /// Whether a list that names anybody stands in the key, or may come to.
    pub fn may_name_anybody(&self) -> bool {
        let shown = self.shown.iter().map(|shown| &shown.list);
        let mut lists = shown.chain(self.pending.iter().map(|write| &write.list));
        lists.any(|list| !list.is_empty())
    }

    /// All who must consent to `me` leading under `epoch`, `me` among them; `None` where it may not go on
    /// so. A list without it, or an empty one, lets members run that it does not know of.
    pub fn asked(&self, me: &MemberName, epoch: LeaderEpoch) -> Option<List> {
        let shown = self.shown.as_ref().filter(|shown| shown.is_on)?;
        let pending = self.pending.iter().filter(|write| write.under == epoch);
        let mut all = List::new();
        for list in std::iter::once(&shown.list).chain(pending.map(|write| &write.list)) {
            list.get(me)?;
            all.extend(list.iter().map(|(name, url)| (name.clone(), url.clone())));
        }
        Some(all)
    }
}

/// What a leader needs to go on by rounds, kept for an agent that is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Under which epoch it leads.
    pub epoch: LeaderEpoch,
    /// The length of the lease.
    pub ttl: Duration,
    /// Who must consent.
    pub list: List,
}

/// One round: whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Under which epoch, and for how long.
    pub authority: Authority,
    /// The agent was restarted and goes on with what the one before it left.
    is_resumed: bool,
}

/// How the leader stands that asks.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// Its name.
    pub me: &'a MemberName,
    /// The length of its lease, and so of the promises.
    pub ttl: Duration,
    /// CLOCK_BOOTTIME.
    pub now: Moment,
    /// The fence's deadline; `None` while the instance cannot accept writes.
    pub armed_until: Option<Moment>,
}

impl Standing<'_> {
    fn stands_armed(&self) -> bool {
        self.armed_until.is_some_and(|until| until > self.now)
    }
}

/// What the lease task knows of rounds.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// Who may run for leader.
    pub list: FailsafeList,
    /// When the last renewal was sent that was answered whole, at first when the task began; and whether one
    /// has failed since.
    heard: Moment,
    is_failing: bool,
    /// What is on file for a restart.
    kept: Option<Authority>,
    /// What the agent before left, if its deadline stood when this one began: after it PostgreSQL is dead,
    /// and somebody else may lead.
    resumable: Option<Authority>,
}

impl Rounds {
    /// A lease task begins; `found` is what is on file.
    pub fn begin(found: Option<Authority>, standing: Standing<'_>) -> Self {
        Self {
            list: FailsafeList::default(),
            heard: standing.now,
            is_failing: false,
            resumable: found.clone().filter(|_| standing.stands_armed()),
            kept: found,
        }
    }

    /// The length of the lease that the agent before had, if this one may go on where it was.
    pub fn found_ttl(&self) -> Option<Duration> {
        self.resumable.as_ref().map(|found| found.ttl)
    }

    /// Under which epoch the agent before led, while nothing else is held.
    pub fn left_behind(&self, view: &LeaseView) -> Option<LeaderEpoch> {
        let resumable = self.resumable.as_ref();
        resumable
            .filter(|_| *view == LeaseView::NotHeld)
            .map(|left| left.epoch)
    }

    /// The store answered a renewal that was sent at `sent`: as a whole, or by two terms.
    pub fn store_spoke(&mut self, sent: Moment, is_definite: bool) {
        self.is_failing = !is_definite;
        if is_definite {
            self.heard = self.heard.max(sent);
            // From now on the store says who leads, whatever the agent before knew.
            self.resumable = None;
        }
    }

    /// A renewal failed; whether it is the first.
    pub fn store_is_silent(&mut self) -> bool {
        !std::mem::replace(&mut self.is_failing, true)
    }

    /// Whom this leader must ask, if it may go on by consent.
    pub fn authority(&self, held: &Held, standing: Standing<'_>) -> Option<Authority> {
        let kept = self.kept.as_ref().filter(|kept| kept.epoch == held.epoch);
        let list = match (self.list.is_known(), held.has_unresolved_hand_over) {
            // An agent that went on by rounds before it ever read the store goes on by the same list.
            (false, _) => kept?.list.clone(),
            (true, false) => self.list.asked(standing.me, held.epoch)?,
            // A write of the agent before may still be executed: whom that was to list counts, too.
            (true, true) => {
                let mut list = kept?.list.clone();
                list.extend(self.list.asked(standing.me, held.epoch)?);
                list
            }
        };
        Some(Authority {
            epoch: held.epoch,
            ttl: standing.ttl,
            list,
        })
    }

    /// What a restart must find on file, if it is not what lies there: never less than may be in the key, and
    /// nothing of an earlier leadership. To be written before anybody sees the leadership, or the list is sent.
    pub fn to_keep(&self, view: &LeaseView, standing: Standing<'_>) -> Option<Option<Authority>> {
        let wanted = match view {
            LeaseView::Held(held) => self.authority(held, standing),
            LeaseView::Lost => None,
            // Not known to be given up: the deadline of the fence tells.
            LeaseView::NotHeld => return None,
        };
        (wanted != self.kept).then_some(wanted)
    }

    /// This lies on file now.
    pub fn is_kept(&mut self, kept: Option<Authority>) {
        self.kept = kept;
    }

    /// The key was given away: nobody goes on by it.
    pub fn forget(&mut self) {
        self.kept = None;
        self.resumable = None;
    }

    /// Whom to ask now, if anybody: the last renewal failed, or none was answered for `patience`. Nobody is
    /// asked to stand back for an instance that accepts no writes.
    pub fn wanted(
        &self,
        view: &LeaseView,
        patience: Duration,
        standing: Standing<'_>,
    ) -> Option<Round> {
        // A restarted agent does not wait until little is left of what it found.
        let is_short = standing
            .armed_until
            .is_some_and(|until| standing.now.until(until) < standing.ttl / 2);
        let patience = match view {
            LeaseView::NotHeld if is_short => Duration::ZERO,
            LeaseView::NotHeld => patience / 2,
            LeaseView::Held(_) | LeaseView::Lost => patience,
        };
        let is_late = standing.now.since(self.heard) > patience;
        if !self.is_failing && !is_late || !standing.stands_armed() {
            return None;
        }
        match view {
            LeaseView::Held(held) => Some(Round {
                authority: self.authority(held, standing)?,
                is_resumed: false,
            }),
            LeaseView::NotHeld => Some(Round {
                authority: self.resumable.clone()?,
                is_resumed: true,
            }),
            LeaseView::Lost => None,
        }
    }

    /// Everybody consented to a round whose first request was sent at `began`. Returns whether it counts: the
    /// deadline may have passed meanwhile, or the list have grown.
    pub fn consented(
        &self,
        state: &mut LeaseState,
        round: &Round,
        began: Moment,
        standing: Standing<'_>,
    ) -> bool {
        state.lapsed(standing.now);
        let asked = &round.authority;
        let is_over = state::deadline(began, asked.ttl) <= standing.now;
        if is_over || !standing.stands_armed() {
            return false;
        }
        match state.view().clone() {
            LeaseView::Held(held) if held.epoch == asked.epoch => {
                let covers = |now: Authority| {
                    let mut names = now.list.keys();
                    names.all(|name| asked.list.contains_key(name))
                };
                let counts = self.authority(&held, standing).is_some_and(covers);
                if counts {
                    state.consented(asked.epoch, began, asked.ttl);
                }
                counts
            }
            LeaseView::NotHeld if round.is_resumed => {
                state.resumed(asked.epoch, began, asked.ttl);
                true
            }
            LeaseView::Held(_) | LeaseView::NotHeld | LeaseView::Lost => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Arc<List> {
        let url = |name: &&str| Arc::from(format!("http://{name}:8008/patroni"));
        let pair = |name: &&str| (MemberName::new(name), url(name));
        Arc::new(names.iter().map(pair).collect())
    }

    const UNDER: LeaderEpoch = LeaderEpoch {
        generation: 0,
        revision: 5,
    };

    fn shown(names: &[&str], revision: Revision) -> Shown {
        Shown {
            list: list(names),
            revision,
            is_on: true,
        }
    }

    fn asked(failsafe: &FailsafeList) -> Option<Vec<String>> {
        let list = failsafe.asked(&MemberName::new("a"), UNDER)?;
        Some(list.keys().map(ToString::to_string).collect())
    }

    #[test]
    fn what_may_have_been_written_is_asked_until_it_can_be_written_no_more() {
        let mut failsafe = FailsafeList::default();
        assert!(!failsafe.is_known() && asked(&failsafe).is_none());
        failsafe.show(Shown {
            is_on: false,
            ..shown(&["a", "b"], 7)
        });
        assert_eq!(asked(&failsafe), None, "off");
        failsafe.show(shown(&["a", "b"], 7));
        failsafe.will_be(UNDER, 7, list(&["a", "c"]));
        assert_eq!(asked(&failsafe).unwrap(), ["a", "b", "c"]);
        failsafe.show(shown(&["a", "b"], 7));
        assert_eq!(asked(&failsafe).unwrap(), ["a", "b", "c"]);
        failsafe.show(shown(&["a", "d"], 9));
        assert_eq!(asked(&failsafe).unwrap(), ["a", "d"]);
    }

    #[test]
    fn nobody_goes_on_by_a_list_that_may_let_anybody_run() {
        let mut failsafe = FailsafeList::default();
        for (names, pending) in [
            (&[][..], &["a"][..]),
            (&["b"], &["a", "b"]),
            (&["a"], &[]),
            (&["a"], &["b"]),
        ] {
            failsafe.show(shown(names, 7));
            failsafe.will_be(UNDER, 7, list(pending));
            assert_eq!(asked(&failsafe), None, "{names:?} {pending:?}");
            failsafe.was_refused(UNDER, 7, &list(pending));
            assert_eq!(asked(&failsafe).is_some(), names.contains(&"a"));
        }
    }

    #[test]
    fn a_write_under_an_earlier_key_cannot_happen_any_more() {
        let mut failsafe = FailsafeList::default();
        failsafe.show(shown(&["a", "b"], 7));
        let earlier = LeaderEpoch {
            revision: 4,
            ..UNDER
        };
        failsafe.will_be(earlier, 7, list(&["a", "c"]));
        assert_eq!(asked(&failsafe).unwrap(), ["a", "b"]);
    }
}
