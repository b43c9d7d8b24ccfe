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

use super::state::LeaseState;
use crate::decide::observation::{Held, LeaseView};

mod asking;
mod kept;

pub(super) use asking::ask;
pub use asking::{ACCEPTED, Speaker};
pub(super) use kept::SavedAuthority;

/// For how many `ttl` after an outage a leader goes on by consent while it makes its key anew.
const KEYLESS_TTLS: u32 = 3;

/// Names of members, and the URLs of their agents.
pub type List = BTreeMap<MemberName, Arc<str>>;

/// The failsafe list as the DCS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The list.
    pub list: Arc<List>,
    /// The mod revision of its key, 0 if there is none.
    pub revision: Revision,
    /// The revision of the DCS at which it was so.
    pub at: Revision,
    /// Whether `failsafe_mode` is on.
    pub is_on: bool,
}

/// A list that was sent to be written, and may stand in the key without having been shown, or come to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    /// The leader key that the write compares, and the list's mod revision.
    under: LeaderEpoch,
    base: Revision,
    list: Arc<List>,
    /// The same was sent before. If this one is refused, that one may have been executed, and be the reason.
    is_repeated: bool,
}

impl Pending {
    /// Whether this state of the DCS shows what has become of the write, to who leads under `held`. It compares the
    /// list's revision: a state from that one on with another list is one in which it can happen no more. And it
    /// compares the leader key's: a state from when that was written again on shows every write under an earlier
    /// one that was executed, and no other can be. That the key was written again proves nothing by itself: the
    /// write may have been executed before, and not be shown yet.
    fn is_settled(&self, shown: &Shown, held: Option<LeaderEpoch>) -> bool {
        let is_passed = shown.at >= self.base && shown.revision != self.base;
        let is_of_earlier = |epoch| self.under < epoch && shown.is_from(epoch);
        is_passed || held.is_some_and(is_of_earlier)
    }
}

impl Shown {
    /// Whether this is how it stood when the leader key of this epoch was written, or later.
    fn is_from(&self, epoch: LeaderEpoch) -> bool {
        self.at >= epoch.revision
    }
}

/// Whom a leader asks: everybody who may run for leader by what the key holds, or may come to hold by a
/// write whose outcome is not known, or not shown yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailsafeList {
    /// `None` before the DCS was read.
    shown: Option<Shown>,
    pending: Vec<Pending>,
}

impl FailsafeList {
    /// The DCS was read, by who leads under `held` if it does.
    pub fn show(&mut self, shown: Shown, held: Option<LeaderEpoch>) {
        let known = self.shown.as_ref();
        let same = known.filter(|known| known.revision == shown.revision);
        let at = same.map_or(shown.at, |known| shown.at.max(known.at));
        let shown = Shown { at, ..shown };
        self.pending.retain(|write| !write.is_settled(&shown, held));
        self.shown = Some(shown);
    }

    /// A transaction that was committed at `at` compared the list's revision with this one.
    pub fn stood(&mut self, revision: Revision, at: Revision) {
        if let Some(shown) = self.shown.as_mut().filter(|s| s.revision == revision) {
            shown.at = shown.at.max(at);
        }
    }

    /// Whether the list was shown as it stood when the leader key of this epoch was written, or later.
    fn is_shown_from(&self, epoch: LeaderEpoch) -> bool {
        self.shown
            .as_ref()
            .is_some_and(|shown| shown.is_from(epoch))
    }

    /// Whether the DCS was ever read.
    pub fn is_known(&self) -> bool {
        self.shown.is_some()
    }

    /// This is about to be written in place of what stands at `base`, by who leads under `under`.
    pub fn will_be(&mut self, under: LeaderEpoch, base: Revision, list: Arc<List>) {
        if let Some(sent) = self.write(under, base, &list) {
            sent.is_repeated = true;
            return;
        }
        self.pending.push(Pending {
            under,
            base,
            list,
            is_repeated: false,
        });
    }

    /// That write surely did not happen.
    pub fn was_refused(&mut self, under: LeaderEpoch, base: Revision, list: &Arc<List>) {
        let is_it = |write: &Pending| (write.under, write.base, &write.list) == (under, base, list);
        self.pending
            .retain(|write| write.is_repeated || !is_it(write));
    }

    fn write(
        &mut self,
        under: LeaderEpoch,
        base: Revision,
        list: &Arc<List>,
    ) -> Option<&mut Pending> {
        let mut pending = self.pending.iter_mut();
        pending.find(|write| (write.under, write.base, &write.list) == (under, base, list))
    }

    /// Whether a list that names anybody stands in the key, or may come to.
    pub fn may_name_anybody(&self) -> bool {
        let shown = self.shown.iter().map(|shown| &shown.list);
        let mut lists = shown.chain(self.pending.iter().map(|write| &write.list));
        lists.any(|list| !list.is_empty())
    }

    /// All who must consent to `me` leading as far as is shown and was sent, `me` among them; `None` where it may
    /// not go on so. A list without it, or an empty one, lets members run that it does not know of.
    pub fn asked(&self, me: &MemberName) -> Option<List> {
        let shown = self.shown.as_ref().filter(|shown| shown.is_on)?;
        let pending = self.pending.iter().map(|write| &write.list);
        let mut all = List::new();
        for list in std::iter::once(&shown.list).chain(pending) {
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

/// Whom the list may name at the moment at which the own key was written again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Carried {
    /// The key's new epoch.
    epoch: LeaderEpoch,
    list: List,
}

/// What the lease task knows of rounds.
///
/// The invariant: whoever stands in the key, or may come to, is among those that are asked, or nobody is. What the
/// DCS has shown counts only from the revision on at which the own key was written: nobody but this member wrote the
/// list since, and it knows what it sent. Before that is shown, those count too who were asked until the key was
/// written again, and without them nobody is asked.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// Who may run for leader.
    pub list: FailsafeList,
    /// When the last renewal was sent that was answered whole, at first when the task began; and whether one
    /// has failed since.
    heard: Moment,
    is_failing: bool,
    /// Since when it has answered again after a renewal that failed.
    answers_since: Moment,
    /// What is on file for a restart.
    kept: Option<Authority>,
    /// What held before the own key was written again.
    carried: Option<Carried>,
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
            answers_since: standing.now,
            carried: None,
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
        if self.is_failing && is_definite {
            self.answers_since = sent;
        }
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
        Some(Authority {
            epoch: held.epoch,
            ttl: standing.ttl,
            list: self.everybody(held, standing.me)?,
        })
    }

    fn everybody(&self, held: &Held, me: &MemberName) -> Option<List> {
        let kept = self.kept.as_ref().filter(|kept| kept.epoch == held.epoch);
        let carried = self.carried.as_ref().filter(|c| c.epoch == held.epoch);
        if !self.list.is_known() {
            // An agent that went on by rounds before it ever read the store goes on by the same list.
            return kept.map(|kept| kept.list.clone());
        }
        let mut list = self.list.asked(me)?;
        if !self.list.is_shown_from(held.epoch) {
            list.extend(carried?.list.clone());
        } else if held.has_unresolved_hand_over && carried.is_none() {
            // A write of the agent before may still be executed: whom that was to list counts, too.
            list.extend(kept?.list.clone());
        }
        Some(list)
    }

    /// This member has written its own key again, which it held like this until then; to be called before anybody
    /// sees the new epoch. What was executed under the earlier one may not be shown yet.
    pub fn written_again(&mut self, held: &Held, to: LeaderEpoch, me: &MemberName) {
        let list = self.everybody(held, me);
        self.carried = list.map(|list| Carried { epoch: to, list });
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
        self.carried = None;
        self.resumable = None;
    }

    /// Whom to ask now, if anybody: the last renewal failed, none was answered for `patience`, or the key is to be made
    /// anew. Nobody is asked to stand back for an instance that accepts no writes.
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
        let is_wanted = self.is_failing || is_late || self.is_keyless(view, standing);
        if !is_wanted || !standing.stands_armed() {
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

    /// Whether what everybody consented to is half over and the DCS, which answers again, does not show the key: to make it
    /// anew may take longer than what is left. What keeps it from being made for much longer is no outage.
    fn is_keyless(&self, view: &LeaseView, standing: Standing<'_>) -> bool {
        let LeaseView::Held(held) = view else {
            return false;
        };
        let left = standing.now.until(held.deadline);
        let is_soon = standing.now.since(self.answers_since) < standing.ttl * KEYLESS_TTLS;
        held.is_by_failsafe && held.is_key_missing && left < standing.ttl / 2 && is_soon
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
        let is_over = state.deadline(began, asked.ttl) <= standing.now;
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
        shown_at(names, revision, revision)
    }

    fn shown_at(names: &[&str], revision: Revision, at: Revision) -> Shown {
        Shown {
            list: list(names),
            revision,
            at,
            is_on: true,
        }
    }

    const LATER: LeaderEpoch = LeaderEpoch {
        generation: 0,
        revision: 20,
    };

    fn names(list: List) -> Vec<String> {
        list.keys().map(ToString::to_string).collect()
    }

    fn asked(failsafe: &FailsafeList) -> Option<Vec<String>> {
        failsafe.asked(&MemberName::new("a")).map(names)
    }

    #[test]
    fn what_may_have_been_written_is_asked_until_it_can_be_written_no_more() {
        let mut failsafe = FailsafeList::default();
        assert!(!failsafe.is_known() && asked(&failsafe).is_none());
        let off = Shown {
            is_on: false,
            ..shown(&["a", "b"], 7)
        };
        failsafe.show(off, Some(UNDER));
        assert_eq!(asked(&failsafe), None, "off");
        failsafe.show(shown(&["a", "b"], 7), Some(UNDER));
        failsafe.will_be(UNDER, 7, list(&["a", "c"]));
        assert_eq!(asked(&failsafe).unwrap(), ["a", "b", "c"]);
        failsafe.show(shown_at(&["a", "b"], 7, 8), Some(UNDER));
        assert_eq!(asked(&failsafe).unwrap(), ["a", "b", "c"]);
        failsafe.show(shown_at(&["a"], 6, 6), Some(UNDER));
        assert_eq!(
            asked(&failsafe).unwrap(),
            ["a", "c"],
            "from before it was sent"
        );
        failsafe.show(shown(&["a", "d"], 9), Some(UNDER));
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
            failsafe.show(shown(names, 7), Some(UNDER));
            failsafe.will_be(UNDER, 7, list(pending));
            assert_eq!(asked(&failsafe), None, "{names:?} {pending:?}");
            failsafe.was_refused(UNDER, 7, &list(pending));
            assert_eq!(asked(&failsafe).is_some(), names.contains(&"a"));
        }
    }

    #[test]
    fn a_write_under_an_earlier_key_counts_until_a_state_from_the_new_key_on_is_shown() {
        let mut failsafe = FailsafeList::default();
        failsafe.show(shown(&["a", "b"], 7), Some(UNDER));
        failsafe.will_be(UNDER, 7, list(&["a", "c"]));
        failsafe.show(shown_at(&["a", "b"], 7, 19), Some(LATER));
        assert_eq!(
            asked(&failsafe).unwrap(),
            ["a", "b", "c"],
            "it may be at 19"
        );
        failsafe.show(shown_at(&["a", "b"], 7, 20), Some(LATER));
        assert_eq!(asked(&failsafe).unwrap(), ["a", "b"]);
    }

    #[test]
    fn the_refusal_of_what_was_sent_before_proves_nothing() {
        let mut failsafe = FailsafeList::default();
        failsafe.show(shown(&["a", "b"], 7), Some(UNDER));
        for under in [UNDER, UNDER, LATER] {
            failsafe.will_be(under, 7, list(&["a", "c"]));
            failsafe.show(shown_at(&["a", "b"], 7, 8), Some(under));
        }
        for under in [LATER, UNDER] {
            failsafe.was_refused(under, 7, &list(&["a", "c"]));
            assert_eq!(asked(&failsafe).unwrap(), ["a", "b", "c"]);
        }
    }

    fn standing(me: &MemberName) -> Standing<'_> {
        Standing {
            me,
            ttl: Duration::from_secs(5),
            now: Moment(1),
            armed_until: Some(Moment(1_000_000_000)),
        }
    }

    fn held(epoch: LeaderEpoch, has_unresolved_hand_over: bool) -> Held {
        Held {
            epoch,
            deadline: Moment(1_000_000_000),
            is_key_missing: false,
            has_unresolved_hand_over,
            is_by_failsafe: false,
        }
    }

    fn whom(rounds: &Rounds, held: &Held) -> Option<Vec<String>> {
        let me = MemberName::new("a");
        let authority = rounds.authority(held, standing(&me));
        authority.map(|authority| names(authority.list))
    }

    /// A leader adds d, the answer is lost, it writes its key again, and is shown neither; then it cannot reach
    /// the DCS any more, and d can.
    #[test]
    fn who_may_have_been_listed_before_the_key_was_written_again_is_asked() {
        let me = MemberName::new("a");
        let mut rounds = Rounds::begin(None, standing(&me));
        let before = shown(&["a", "b", "c"], 7);
        rounds.list.show(before.clone(), Some(UNDER));
        let wanted = list(&["a", "b", "c", "d"]);
        rounds.list.will_be(UNDER, 7, wanted.clone());
        rounds.is_kept(rounds.authority(&held(UNDER, false), standing(&me)));
        rounds.written_again(&held(UNDER, true), LATER, &me);
        rounds.list.show(before, Some(LATER));
        rounds.list.will_be(LATER, 7, wanted.clone());
        rounds.list.was_refused(LATER, 7, &wanted);
        let now = held(LATER, false);
        assert_eq!(whom(&rounds, &now).unwrap(), ["a", "b", "c", "d"]);
        // A round of the three does not count.
        let mut state = LeaseState::default();
        state.acquired(LATER, Moment(0), Duration::from_secs(5));
        let round = Round {
            authority: Authority {
                epoch: LATER,
                ttl: Duration::from_secs(5),
                list: (*list(&["a", "b", "c"])).clone(),
            },
            is_resumed: false,
        };
        assert!(!rounds.consented(&mut state, &round, Moment(0), standing(&me)));
        // Nor is it lost by the next move of the key, onto a lease of another length.
        let next = LeaderEpoch {
            revision: 30,
            ..LATER
        };
        rounds.written_again(&now, next, &me);
        let moved = held(next, false);
        assert_eq!(whom(&rounds, &moved).unwrap(), ["a", "b", "c", "d"]);
        rounds.list.show(shown_at(&["a", "b"], 7, 30), Some(next));
        assert_eq!(whom(&rounds, &moved).unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_leader_by_consent_whose_key_is_gone_asks_again_when_half_of_it_is_over() {
        let me = MemberName::new("a");
        let mut rounds = Rounds::begin(None, standing(&me));
        rounds.list.show(shown(&["a", "b"], 7), Some(UNDER));
        let asks = |left: u64, is_key_missing, is_by_failsafe| {
            let view = LeaseView::Held(Held {
                deadline: standing(&me).now + Duration::from_millis(left),
                is_key_missing,
                is_by_failsafe,
                ..held(UNDER, false)
            });
            rounds
                .wanted(&view, Duration::from_secs(2), standing(&me))
                .is_some()
        };
        assert!(asks(2400, true, true));
        assert!(!asks(2600, true, true), "there is time to make it anew");
        assert!(!asks(2400, false, true), "the store shows the key");
        assert!(
            !asks(2400, true, false),
            "a renewed lease, and a key that somebody removed"
        );
        rounds.answers_since = Moment::default();
        let late = Standing {
            now: Moment(15_000_000_000),
            armed_until: Some(Moment(17_000_000_000)),
            ..standing(&me)
        };
        rounds.heard = late.now;
        let view = LeaseView::Held(Held {
            deadline: Moment(17_000_000_000),
            is_key_missing: true,
            is_by_failsafe: true,
            ..held(UNDER, false)
        });
        let patience = Duration::from_secs(2);
        assert_eq!(rounds.wanted(&view, patience, late), None);
        rounds.store_is_silent();
        rounds.store_spoke(late.now, true);
        assert!(rounds.wanted(&view, patience, late).is_some());
    }

    #[test]
    fn so_is_who_may_have_been_listed_by_the_agent_before() {
        let me = MemberName::new("a");
        let found = Authority {
            epoch: UNDER,
            ttl: Duration::from_secs(5),
            list: (*list(&["a", "b", "d"])).clone(),
        };
        for (found, asks) in [(Some(found), true), (None, false)] {
            let mut rounds = Rounds::begin(found, standing(&me));
            rounds.list.show(shown_at(&["a", "b"], 4, 6), None);
            rounds.written_again(&held(UNDER, true), LATER, &me);
            let now = held(LATER, false);
            let expected = asks.then(|| ["a", "b", "d"].map(str::to_owned).to_vec());
            assert_eq!(whom(&rounds, &now), expected);
            rounds.list.show(shown_at(&["a", "b"], 4, 20), Some(LATER));
            assert_eq!(whom(&rounds, &now).unwrap(), ["a", "b"]);
        }
    }

    #[test]
    fn a_key_that_was_created_by_the_list_as_shown_needs_no_later_state() {
        let me = MemberName::new("a");
        let mut rounds = Rounds::begin(None, standing(&me));
        rounds.list.show(shown(&["a", "b"], 7), None);
        let now = held(LATER, false);
        assert_eq!(whom(&rounds, &now), None);
        rounds.list.stood(6, 20);
        assert_eq!(whom(&rounds, &now), None, "it compared another list");
        rounds.list.stood(7, 20);
        assert_eq!(whom(&rounds, &now).unwrap(), ["a", "b"]);
        rounds.list.show(shown_at(&["a", "b"], 7, 9), Some(LATER));
        assert_eq!(whom(&rounds, &now).unwrap(), ["a", "b"]);
    }
}
