//! The arithmetic of the lease (`ha.md` 3). Pure: the lease task feeds it answers and reads what it
//! holds; the simulation drives the same code.

use std::time::Duration;

use trunkline_shared::cluster::{LeaderEpoch, Moment};

use crate::decide::observation::{Held, LeaseView};

/// The least distance between the local deadline and the moment the store may give the lease to others.
const MARGIN_FLOOR: Duration = Duration::from_millis(500);
/// What a kill may take, beside the clock's error of 1 % of the TTL.
const MARGIN_KILL: Duration = Duration::from_millis(300);

/// The safety distance before the end of a lease of `ttl`: max(500 ms, 300 ms + 1 % of the TTL).
pub fn margin(ttl: Duration) -> Duration {
    MARGIN_FLOOR.max(MARGIN_KILL + ttl / 100)
}

/// How often a lease is renewed: five times in its length.
pub fn renew_interval(ttl: Duration) -> Duration {
    ttl / 5
}

/// The pause after a renewal that counted for nothing.
const UNCOUNTED_PAUSE: Duration = Duration::from_millis(50);

/// What a linearizable read of the leader key, made after the keep-alive, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyCheck {
    /// The key names this member and hangs on the renewed lease.
    Mine(LeaderEpoch),
    /// There is no leader key.
    Missing,
    /// The key names somebody else, or hangs on another lease.
    Other,
}

/// One renewal: a keep-alive, then a read of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// CLOCK_BOOTTIME before the keep-alive was sent.
    pub sent: Moment,
    /// The TTL in the keep-alive's answer.
    pub ttl: Duration,
    /// The raft term of the keep-alive's answer.
    pub keep_alive_term: u64,
    /// The raft term of the read's answer.
    pub check_term: u64,
    /// What the read found.
    pub found: KeyCheck,
}

/// What the lease task holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    view: LeaseView,
    /// Under this epoch nothing is under way that would give the key away, if it is found first.
    settled: Option<LeaderEpoch>,
    /// What is left unused of a lease beside the margin.
    reserve: Duration,
}

impl Default for LeaseState {
    fn default() -> Self {
        Self {
            view: LeaseView::NotHeld,
            settled: None,
            reserve: Duration::ZERO,
        }
    }
}

impl LeaseState {
    /// The state of a program that took over in the process of the one before: that one held the key under this
    /// epoch and knew what had become of everything it had sent.
    pub fn of_successor(settled: Option<LeaderEpoch>) -> Self {
        Self {
            settled,
            ..Self::default()
        }
    }

    /// Leaves so much of every lease unused beside the margin, for a watchdog that resets the machine in that time:
    /// at most 3/10 of it, or a lease of two seconds would leave its renewals no time.
    #[must_use]
    pub fn reserving(self, reserve: Duration) -> Self {
        Self { reserve, ..self }
    }

    /// Until when a renewal that was sent at `sent` and granted `ttl` allows to act as leader.
    pub fn deadline(&self, sent: Moment, ttl: Duration) -> Moment {
        sent + ttl.saturating_sub(margin(ttl) + self.reserve.min(ttl * 3 / 10))
    }

    /// How long to rest after a renewal begun at `began` and answered in full, `now`, before the next one. One that
    /// moved no deadline, since its answers were of two raft terms or the fence was not live, is made again soon:
    /// after an election of the store the lease may be about to end, and nothing else is the matter.
    pub fn rest(&self, began: Moment, now: Moment, ttl: Duration) -> Duration {
        let least = self.deadline(began, ttl);
        let has_counted = self
            .held()
            .is_none_or(|held| held.is_key_missing || held.deadline >= least);
        let interval = renew_interval(ttl);
        match has_counted {
            true => interval.saturating_sub(now.since(began)),
            false => UNCOUNTED_PAUSE.min(interval),
        }
    }

    /// What decisions may see.
    pub fn view(&self) -> &LeaseView {
        &self.view
    }

    /// The lease, if held.
    pub fn held(&self) -> Option<Held> {
        match &self.view {
            LeaseView::Held(held) => Some(*held),
            LeaseView::NotHeld | LeaseView::Lost => None,
        }
    }

    /// A renewal was answered twice. It counts only if the key is still this member's and one raft term
    /// answered both: a deposed etcd leader may go on answering keep-alives.
    pub fn renewed(&mut self, renewal: Renewal) {
        let known = self.held().map(|held| held.epoch);
        match renewal.found {
            // A look from before the key was last written.
            KeyCheck::Mine(epoch) if known.is_some_and(|known| epoch < known) => {}
            KeyCheck::Mine(epoch) if renewal.keep_alive_term == renewal.check_term => {
                let until = self.deadline(renewal.sent, renewal.ttl);
                let before = self.held().filter(|held| held.epoch == epoch);
                let settled = self.settled.take();
                let is_by_failsafe =
                    before.is_some_and(|held| held.is_by_failsafe && held.deadline > until);
                let (earlier, unresolved) = match before {
                    Some(held) => (held.deadline, held.has_unresolved_hand_over),
                    // A release or hand-over of this very key may still be under way, sent before the lease
                    // lapsed or by the agent before: only writing the key again makes it impossible.
                    None => (until, settled != Some(epoch)),
                };
                self.view = LeaseView::Held(Held {
                    epoch,
                    deadline: until.max(earlier),
                    is_key_missing: false,
                    has_unresolved_hand_over: unresolved,
                    is_by_failsafe,
                });
            }
            KeyCheck::Mine(_) => {}
            KeyCheck::Missing => {
                if let LeaseView::Held(held) = &mut self.view {
                    held.is_key_missing = true;
                }
            }
            KeyCheck::Other => {
                self.view = match self.view {
                    LeaseView::Held(_) | LeaseView::Lost => LeaseView::Lost,
                    LeaseView::NotHeld => LeaseView::NotHeld,
                };
            }
        }
    }

    /// The key was created, or written again, by this member's committed transaction. The deadline counts
    /// from the last counted keep-alive of the lease, never from the write of the key. Where everybody has
    /// consented to more than that, it stands: nobody who did leads before, whatever becomes of the key, and
    /// nobody is listed anew meanwhile. So does what this very key was renewed to while its write was answered.
    pub fn acquired(&mut self, epoch: LeaderEpoch, lease_sent: Moment, ttl: Duration) {
        let until = self.deadline(lease_sent, ttl);
        let stands = |held: &Held| held.is_by_failsafe || held.epoch == epoch;
        let standing = self.held().filter(stands);
        let standing = standing.filter(|held| held.deadline > until);
        self.view = LeaseView::Held(Held {
            epoch,
            deadline: standing.map_or(until, |held| held.deadline),
            is_key_missing: false,
            has_unresolved_hand_over: false,
            is_by_failsafe: standing.is_some_and(|held| held.is_by_failsafe),
        });
    }

    /// The key of `before` was written again, on the lease that it stands on: what that was renewed to meanwhile holds for
    /// the new one.
    pub fn written_again(&mut self, before: LeaderEpoch, epoch: LeaderEpoch) {
        if let LeaseView::Held(held) = &mut self.view
            && held.epoch == before
        {
            held.epoch = epoch;
        }
    }

    /// The key may come to stand on a lease that allows no more than this.
    pub fn capped(&mut self, deadline: Moment) {
        if let LeaseView::Held(held) = &mut self.view {
            held.deadline = held.deadline.min(deadline);
        }
    }

    /// Every member of the failsafe list consented to this leadership in a round whose first request was
    /// sent at `began`: until the shortest of their promises may have ended, nobody else leads.
    pub fn consented(&mut self, epoch: LeaderEpoch, began: Moment, ttl: Duration) {
        let until = self.deadline(began, ttl);
        if let LeaseView::Held(held) = &mut self.view
            && held.epoch == epoch
            && held.deadline < until
        {
            held.deadline = until;
            held.is_by_failsafe = true;
        }
    }

    /// The same for an agent that was restarted while the earlier one's deadline still stood. What became of
    /// a release or hand-over of the agent before is not known.
    pub fn resumed(&mut self, epoch: LeaderEpoch, began: Moment, ttl: Duration) {
        if self.view == LeaseView::NotHeld {
            let settled = self.settled.take();
            self.view = LeaseView::Held(Held {
                epoch,
                deadline: self.deadline(began, ttl),
                is_key_missing: false,
                has_unresolved_hand_over: settled != Some(epoch),
                is_by_failsafe: true,
            });
        }
    }

    /// A hand-over was sent and its outcome is not known yet. Called before sending.
    pub fn hand_over_sent(&mut self) {
        if let LeaseView::Held(held) = &mut self.view {
            held.has_unresolved_hand_over = true;
        }
    }

    /// The transaction that gives the key away surely did not happen.
    pub fn hand_over_failed(&mut self) {
        if let LeaseView::Held(held) = &mut self.view {
            held.has_unresolved_hand_over = false;
        }
    }

    /// The key was given away or deleted by this member's committed transaction.
    pub fn given_up(&mut self) {
        self.view = LeaseView::NotHeld;
    }

    /// The deadline passed, or the store said that the lease is gone: nothing is held any more.
    pub fn lapsed(&mut self, now: Moment) {
        if self.held().is_some_and(|held| held.deadline <= now) {
            self.view = LeaseView::NotHeld;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn epoch(revision: i64) -> LeaderEpoch {
        LeaderEpoch {
            generation: 0,
            revision,
        }
    }

    fn renewal(sent: u64, found: KeyCheck) -> Renewal {
        let sent = Moment(sent * 1_000_000_000);
        Renewal {
            sent,
            ttl: TTL,
            keep_alive_term: 3,
            check_term: 3,
            found,
        }
    }

    #[test]
    fn the_margin_is_half_a_second_or_more() {
        assert_eq!(margin(Duration::from_secs(5)), Duration::from_millis(500));
        assert_eq!(margin(Duration::from_secs(30)), Duration::from_millis(600));
        let sent = Moment(1_000_000_000);
        let guarded = LeaseState::default().reserving(Duration::from_millis(600));
        let until = sent + Duration::from_millis(3900);
        assert_eq!(guarded.deadline(sent, TTL), until);
    }

    #[test]
    fn the_deadline_counts_from_before_the_keep_alive_was_sent() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        let held = lease.held().unwrap();
        assert_eq!(held.deadline, Moment(14_500_000_000));
        lease.renewed(renewal(9, KeyCheck::Mine(epoch(7))));
        assert_eq!(
            lease.held().unwrap().deadline,
            held.deadline,
            "a late answer never shortens"
        );
    }

    #[test]
    fn answers_of_two_terms_do_not_count() {
        let mut lease = LeaseState::default();
        let two = Renewal {
            check_term: 4,
            ..renewal(10, KeyCheck::Mine(epoch(7)))
        };
        lease.renewed(two);
        assert_eq!(lease.held(), None);
    }

    #[test]
    fn a_renewal_that_did_not_count_is_made_again_at_once() {
        let mut lease = LeaseState::default();
        let at = |seconds: u64| Moment(seconds * 1_000_000_000);
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        assert_eq!(lease.rest(at(10), at(10), TTL), renew_interval(TTL));
        let two = Renewal {
            check_term: 4,
            ..renewal(14, KeyCheck::Mine(epoch(7)))
        };
        lease.renewed(two);
        assert_eq!(lease.rest(at(14), at(14), TTL), UNCOUNTED_PAUSE);
        lease.renewed(renewal(14, KeyCheck::Mine(epoch(7))));
        assert_eq!(lease.rest(at(14), at(14), TTL), renew_interval(TTL));
        // A member that holds nothing, and one whose key is to be made again, keep the pace.
        assert_eq!(
            LeaseState::default().rest(at(14), at(14), TTL),
            renew_interval(TTL)
        );
        lease.renewed(renewal(15, KeyCheck::Missing));
        assert_eq!(lease.rest(at(15), at(15), TTL), renew_interval(TTL));
    }

    #[test]
    fn a_missing_key_is_not_a_lost_one() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        lease.renewed(renewal(11, KeyCheck::Missing));
        assert!(lease.held().unwrap().is_key_missing);
        lease.renewed(renewal(12, KeyCheck::Other));
        assert_eq!(*lease.view(), LeaseView::Lost);
    }

    #[test]
    fn a_lapse_does_not_forget_a_release_under_way() {
        let mut lease = LeaseState::default();
        lease.acquired(epoch(7), Moment(10_000_000_000), TTL);
        assert!(!lease.held().unwrap().has_unresolved_hand_over);
        lease.hand_over_sent();
        lease.lapsed(Moment(20_000_000_000));
        assert_eq!(lease.held(), None);
        lease.renewed(renewal(21, KeyCheck::Mine(epoch(7))));
        assert!(lease.held().unwrap().has_unresolved_hand_over);
    }

    #[test]
    fn a_round_counts_from_before_its_first_request_and_for_one_epoch() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        lease.consented(epoch(6), Moment(14_000_000_000), TTL);
        assert_eq!(lease.held().unwrap().deadline, Moment(14_500_000_000));
        lease.consented(epoch(7), Moment(14_000_000_000), TTL);
        let held = lease.held().unwrap();
        assert!(held.is_by_failsafe && held.deadline == Moment(18_500_000_000));
        // A renewal that was sent before the round does not take the consent back; a later one ends it.
        lease.renewed(renewal(12, KeyCheck::Mine(epoch(7))));
        assert!(lease.held().unwrap().is_by_failsafe);
        lease.renewed(renewal(15, KeyCheck::Mine(epoch(7))));
        assert!(!lease.held().unwrap().is_by_failsafe);
    }

    #[test]
    fn a_key_on_a_lease_that_allows_less_takes_no_consent_back() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        lease.consented(epoch(7), Moment(14_000_000_000), TTL);
        lease.renewed(renewal(12, KeyCheck::Missing));
        lease.acquired(epoch(9), Moment(12_000_000_000), TTL);
        let held = lease.held().unwrap();
        assert!(held.epoch == epoch(9) && held.is_by_failsafe && !held.is_key_missing);
        assert_eq!(held.deadline, Moment(18_500_000_000));
        lease.renewed(renewal(15, KeyCheck::Mine(epoch(9))));
        let held = lease.held().unwrap();
        assert!(!held.is_by_failsafe && held.deadline == Moment(19_500_000_000));
        lease.acquired(epoch(11), Moment(14_000_000_000), TTL);
        assert_eq!(lease.held().unwrap().deadline, Moment(18_500_000_000));
    }

    #[test]
    fn what_a_key_was_renewed_to_before_its_write_was_answered_stands() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(9))));
        let renewed = lease.held().unwrap().deadline;
        lease.acquired(epoch(9), Moment(8_000_000_000), TTL);
        let held = lease.held().unwrap();
        assert!(held.deadline == renewed && !held.is_by_failsafe && !held.has_unresolved_hand_over);
    }

    #[test]
    fn what_the_lease_was_renewed_to_before_the_key_was_written_again_stands() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        let renewed = lease.held().unwrap().deadline;
        lease.written_again(epoch(7), epoch(9));
        lease.acquired(epoch(9), Moment(8_000_000_000), TTL);
        let held = lease.held().unwrap();
        assert!(held.epoch == epoch(9) && held.deadline == renewed);
        lease.written_again(epoch(7), epoch(11));
        assert_eq!(lease.held().unwrap().epoch, epoch(9));
    }

    #[test]
    fn who_lost_the_key_does_not_go_on_by_a_round() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        lease.renewed(renewal(11, KeyCheck::Other));
        lease.consented(epoch(7), Moment(12_000_000_000), TTL);
        lease.resumed(epoch(7), Moment(12_000_000_000), TTL);
        assert_eq!(*lease.view(), LeaseView::Lost);
    }

    #[test]
    fn a_successor_knows_that_nothing_is_under_way_and_only_once_and_only_under_that_epoch() {
        let unresolved = |lease: &LeaseState| lease.held().unwrap().has_unresolved_hand_over;
        let mut lease = LeaseState::of_successor(Some(epoch(7)));
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        assert!(!unresolved(&lease));
        // After a lapse it is like any other that finds its key again.
        lease.lapsed(Moment(100_000_000_000));
        lease.renewed(renewal(101, KeyCheck::Mine(epoch(7))));
        assert!(unresolved(&lease));
        let mut other = LeaseState::of_successor(Some(epoch(7)));
        other.renewed(renewal(10, KeyCheck::Mine(epoch(9))));
        assert!(unresolved(&other));
    }

    #[test]
    fn an_unresolved_hand_over_stays_so_while_the_key_was_not_written_again() {
        let mut lease = LeaseState::default();
        lease.renewed(renewal(10, KeyCheck::Mine(epoch(7))));
        lease.hand_over_sent();
        lease.renewed(renewal(11, KeyCheck::Mine(epoch(7))));
        assert!(lease.held().unwrap().has_unresolved_hand_over);
        lease.acquired(epoch(9), Moment(11_000_000_000), TTL);
        assert!(!lease.held().unwrap().has_unresolved_hand_over);
    }
}
