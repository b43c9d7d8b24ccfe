//! Beside the renewals, from the first that is not answered: rounds of consent (`ha.md` 6).

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{LeaderEpoch, Moment};
use trunkline_shared::dcs::records::failsafe_to_json;
use trunkline_shared::dcs::{Compare, DcsError, Operation, Revision, Txn};
use trunkline_shared::service::clock;

use super::super::LeaseError;
use super::super::rounds::{List, Round, Standing, ask};
use super::orders::refused;
use super::{Inner, Keeper};
use crate::decide::observation::Held;

impl Keeper {
    /// A renewal failed; the first such begins the rounds.
    pub(super) fn store_is_silent(&self) {
        if self.inner.borrow_mut().rounds.store_is_silent() {
            self.round_now.notify_one();
        }
    }

    fn standing(&self, inner: &Inner) -> Standing<'_> {
        Standing {
            me: &self.me,
            // A ttl that is being lowered may be known to the others already, who refuse much longer promises.
            ttl: inner
                .session
                .map_or(inner.asked, |s| s.ttl.min(s.asked).min(inner.asked)),
            now: clock::now(),
            armed_until: self.arming.deadline(),
        }
    }

    pub(super) async fn consent_loop(self: Rc<Self>) {
        let mut shown = self.shown.clone();
        loop {
            let pause = self.interval() / 2;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.round_now.notified() => {}
                changed = shown.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            shown.mark_unchanged();
            self.take_shown();
            self.keep_authority_or_say();
            if let Some(round) = self.wanted_round() {
                self.round(&round).await;
            }
        }
    }

    /// Takes up what the loop has read of the list since.
    fn take_shown(&self) {
        let shown = self.shown.borrow().clone();
        if let Some(shown) = shown {
            let mut inner = self.inner.borrow_mut();
            let held = inner.state.held().map(|held| held.epoch);
            inner.rounds.list.show(shown, held);
        }
    }

    fn keep_authority(&self) -> io::Result<()> {
        let wanted = {
            let inner = self.inner.borrow();
            inner
                .rounds
                .to_keep(inner.state.view(), self.standing(&inner))
        };
        let Some(wanted) = wanted else {
            return Ok(());
        };
        let stored = match &wanted {
            Some(authority) => self.authority.store(authority),
            None => self.authority.remove(),
        };
        if let Err(error) = stored {
            self.authority.remove()?;
            self.inner.borrow_mut().rounds.is_kept(None);
            return Err(error);
        }
        self.inner.borrow_mut().rounds.is_kept(wanted);
        Ok(())
    }

    pub(super) fn keep_authority_or_say(&self) {
        if let Err(error) = self.keep_authority() {
            tracing::warn!(%error, "the failsafe list could not be kept; a restarted agent cannot go on by it");
        }
    }

    /// The key was given away.
    pub(super) fn forget_authority(&self) {
        if let Err(error) = self.authority.remove() {
            tracing::warn!(%error, "what an earlier leadership left could not be removed");
        }
        self.inner.borrow_mut().rounds.forget();
    }

    /// Writes the list. Whoever is about to be listed is asked, and kept for a restart, before it is sent:
    /// the outcome may never be known.
    pub(super) async fn publish_failsafe(
        &self,
        base: Revision,
        list: Arc<List>,
    ) -> Result<Revision, LeaseError> {
        let what = "write the failsafe list";
        let (held, _) = self.own_key(what)?;
        if held.is_by_failsafe {
            // Whoever is added now has consented to nothing.
            return Err(refused(what, "a renewal has to come first".to_owned()));
        }
        self.take_shown();
        self.list_is_pending(held, base, &list);
        if let Err(error) = self.keep_authority() {
            self.list_was_refused(held, base, &list);
            let why = format!("the run directory could not be written: {error}");
            return Err(refused(what, why));
        }
        let key = self.keys.path(&FactKey::Failsafe);
        let txn = Txn {
            when: vec![self.still(held), Compare::as_seen(key.clone(), base)],
            then: vec![Operation::Put {
                key,
                value: failsafe_to_json(&list).into_bytes(),
                lease: 0,
            }],
            otherwise: Vec::new(),
        };
        match self.dcs.commit(&txn).await {
            Ok(committed) if committed.succeeded => Ok(committed.header.revision),
            Ok(_) => {
                self.list_was_refused(held, base, &list);
                Err(refused(what, "the keys are not as seen".to_owned()))
            }
            Err(error) => {
                if matches!(error, DcsError::UnknownOutcome { .. }) {
                    // Writing the leader key again makes it impossible, unless it was executed before that.
                    self.inner.borrow_mut().state.hand_over_sent();
                }
                Err(error.into())
            }
        }
    }

    /// What a release writes of the list. Nobody goes on by a list once its leader is dead or in recovery, and only
    /// a leader changes it: one left behind would keep whoever it does not name from leading, were all others lost.
    pub(super) fn empty_failsafe(&self) -> Option<Operation> {
        self.take_shown();
        let is_wanted = self.inner.borrow().rounds.list.may_name_anybody();
        is_wanted.then(|| Operation::Put {
            key: self.keys.path(&FactKey::Failsafe),
            value: failsafe_to_json(&List::new()).into_bytes(),
            lease: 0,
        })
    }

    /// The own key, held like this, was written again.
    pub(super) fn written_again(&self, held: &Held, to: LeaderEpoch) {
        self.take_shown();
        let mut inner = self.inner.borrow_mut();
        inner.rounds.written_again(held, to, &self.me);
    }

    /// The leader key was created at `at` on the condition that the list stood at this revision.
    pub(super) fn list_stood(&self, revision: Revision, at: Revision) {
        self.take_shown();
        self.inner.borrow_mut().rounds.list.stood(revision, at);
    }

    fn list_is_pending(&self, held: Held, base: Revision, list: &Arc<List>) {
        let mut inner = self.inner.borrow_mut();
        inner.rounds.list.will_be(held.epoch, base, list.clone());
    }

    fn list_was_refused(&self, held: Held, base: Revision, list: &Arc<List>) {
        let mut inner = self.inner.borrow_mut();
        inner.rounds.list.was_refused(held.epoch, base, list);
    }

    /// Two intervals without an answer are like a renewal that failed.
    fn wanted_round(&self) -> Option<Round> {
        if self.is_held_back() {
            return None;
        }
        let patience = self.interval() * 2;
        let inner = self.inner.borrow();
        let standing = self.standing(&inner);
        inner.rounds.wanted(inner.state.view(), patience, standing)
    }

    async fn round(&self, round: &Round) {
        let began = clock::now();
        let reached = *self.reached.borrow();
        let outcome = ask(&self.speaker, &self.me, &round.authority, reached).await;
        match outcome {
            Ok(()) => self.all_consented(round, began),
            Err(why) => {
                let mut inner = self.inner.borrow_mut();
                if inner.refused.as_ref() != Some(&why) {
                    tracing::warn!(
                        why,
                        "not every member consents to this leader going on without the DCS"
                    );
                }
                inner.refused = Some(why);
            }
        }
    }

    fn all_consented(&self, round: &Round, began: Moment) {
        self.take_shown();
        if !self.arming.may_move_on() || self.is_held_back() {
            return;
        }
        let held = {
            let mut inner = self.inner.borrow_mut();
            let was = inner.state.held().is_some_and(|held| held.is_by_failsafe);
            let mut state = inner.state.clone();
            let standing = self.standing(&inner);
            let counts = inner.rounds.consented(&mut state, round, began, standing);
            inner.state = state;
            let is = inner.state.held().is_some_and(|held| held.is_by_failsafe);
            if counts && (inner.refused.take().is_some() || is && !was) {
                tracing::warn!("every member consents to this leader going on without the DCS");
            }
            inner.state.held().filter(|_| counts)
        };
        if let Some(held) = held {
            self.move_fence(held.deadline);
        }
        self.publish();
    }
}
