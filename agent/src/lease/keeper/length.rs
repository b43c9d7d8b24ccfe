//! Another length of the lease: a new lease is taken, and a held key moves onto it in one transaction.
//!
//! The key always stands on the lease that is renewed, or on the one it is being moved to: a move whose
//! outcome is not known may still be executed, so that lease is remembered until the key was seen on it, or
//! the move was tried again with a known outcome.

use std::time::Duration;

use trunkline_shared::cluster::LeaderEpoch;
use trunkline_shared::dcs::{DcsError, Revision, Txn};
use trunkline_shared::service::clock;

use super::super::{LeaseError, state};
use super::orders::{refused, said};
use super::{Keeper, Looked, Session};
use crate::decide::observation::Held;

const WHAT: &str = "move the leader key onto a lease of another length";

impl Keeper {
    /// While the key may stand on either of two leases the shorter one sets the pace.
    pub(super) fn interval(&self) -> Duration {
        state::renew_interval(self.shorter_ttl())
    }

    pub(super) fn shorter_ttl(&self) -> Duration {
        let inner = self.inner.borrow();
        let ttl = inner.session.map_or(inner.asked, |s| s.ttl);
        inner.moving.map_or(ttl, |moving| ttl.min(moving.ttl))
    }

    /// Longest wait for one answer of a renewal: two intervals, so that a lost one leaves room for others.
    pub(super) fn limit(&self) -> Duration {
        self.interval() * 2
    }

    /// Answered with the revision of the moved key, 0 if none is held or the length stands already.
    pub(super) async fn set_ttl(&self, ttl: Duration) -> Result<Revision, LeaseError> {
        self.inner.borrow_mut().asked = ttl;
        // No renewal meanwhile: it would find the key on the other lease.
        let _alone = self.alone.lock().await;
        let Some(session) = self.session().filter(|s| s.asked != ttl) else {
            return Ok(0);
        };
        let held = self.inner.borrow().state.held();
        let Some(held) = held else {
            self.grant().await?;
            return Ok(0);
        };
        let earlier = self.inner.borrow().moving.filter(|m| m.asked != ttl);
        if let Some(earlier) = earlier {
            // Only one lease can be the other one: an earlier move comes to its end first.
            return self.move_key(held, session, earlier).await;
        }
        let next = self.next_session(ttl).await?;
        self.count_on_no_more_than(next)?;
        self.inner.borrow_mut().moving = Some(next);
        self.move_key(held, session, next).await
    }

    /// From the moment the move is sent the key may stand on the other lease, whatever becomes of the answer:
    /// neither the agent nor the fence may count on more than both allow.
    fn count_on_no_more_than(&self, next: Session) -> Result<(), LeaseError> {
        let most = self.inner.borrow().state.deadline(next.sent, next.ttl);
        self.arming.shorten(most).map_err(|error| {
            refused(
                WHAT,
                format!("the fence's deadline could not be written: {error}"),
            )
        })?;
        self.inner.borrow_mut().state.capped(most);
        self.publish();
        Ok(())
    }

    /// Keeps the lease alive that the key may be moved to. Once the store has ended it the move can no longer
    /// be executed: a put onto an unknown lease is refused.
    pub(super) async fn renew_moving(&self) -> Result<(), DcsError> {
        let Some(moving) = self.inner.borrow().moving else {
            return Ok(());
        };
        let sent = clock::now();
        match self.limited(self.dcs.keep_alive(moving.lease)).await {
            Ok(answer) => {
                self.inner.borrow_mut().moving = Some(Session {
                    ttl: answer.ttl,
                    sent,
                    term: answer.header.term,
                    ..moving
                });
                Ok(())
            }
            Err(DcsError::LeaseGone(_)) => {
                self.inner.borrow_mut().moving = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The lease the key is to move onto: that of an earlier attempt, if it fits and still lives.
    async fn next_session(&self, ttl: Duration) -> Result<Session, LeaseError> {
        let sent = clock::now();
        let earlier = self.inner.borrow().moving.filter(|m| m.asked == ttl);
        if let Some(earlier) = earlier {
            match self.limited(self.dcs.keep_alive(earlier.lease)).await {
                Ok(answer) => {
                    return Ok(Session {
                        ttl: answer.ttl,
                        sent,
                        term: answer.header.term,
                        ..earlier
                    });
                }
                Err(DcsError::LeaseGone(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let sent = clock::now();
        let answer = self.limited(self.dcs.grant(ttl)).await?;
        Ok(Session {
            lease: answer.lease,
            asked: ttl,
            ttl: answer.ttl,
            sent,
            term: answer.header.term,
        })
    }

    async fn move_key(
        &self,
        held: Held,
        session: Session,
        next: Session,
    ) -> Result<Revision, LeaseError> {
        let mut then = vec![self.put_leader(next.lease)];
        then.extend(self.reads());
        let txn = Txn {
            when: vec![self.still(held)],
            then,
            otherwise: self.reads(),
        };
        let looked = match self.limited(self.dcs.commit(&txn)).await {
            Ok(committed) if committed.succeeded => {
                let epoch = LeaderEpoch {
                    generation: self.generation(&committed),
                    revision: committed.header.revision,
                };
                self.stands_on(next, epoch, committed.header.term);
                return Ok(epoch.revision);
            }
            Ok(committed) => self.looked(&committed, session.lease),
            Err(error @ DcsError::UnknownOutcome { .. }) => self.resolve(session, error).await?,
            Err(error) => return Err(error.into()),
        };
        if self.has_moved(&looked) {
            return Ok(looked.revision);
        }
        Err(refused(WHAT, said(&looked)))
    }

    /// Whether the key was found on the lease it was to move to; that lease is the session's then.
    pub(super) fn has_moved(&self, looked: &Looked) -> bool {
        let moving = self.inner.borrow().moving;
        let on = looked.holder.as_ref();
        let Some(next) = moving.filter(|m| {
            on.is_some_and(|(who, lease)| *who == *self.me.as_str() && *lease == m.lease)
        }) else {
            return false;
        };
        let epoch = LeaderEpoch {
            generation: looked.generation,
            revision: looked.revision,
        };
        self.stands_on(next, epoch, looked.header.term);
        true
    }

    fn stands_on(&self, next: Session, epoch: LeaderEpoch, term: u64) {
        self.changed();
        if let Err(error) = self.saved.store(next.lease) {
            tracing::warn!(%error, "the lease's number could not be kept");
        }
        if let Some(held) = self.held() {
            self.written_again(&held, epoch);
        }
        let held = {
            let mut inner = self.inner.borrow_mut();
            inner.moving = None;
            inner.session = Some(next);
            // Answers of two terms prove nothing together; the renewal that follows at once does.
            let counts = next.term == term && self.arming.may_move_on();
            if counts {
                inner.state.acquired(epoch, next.sent, next.ttl);
            }
            inner.state.held().filter(|_| counts)
        };
        if let Some(held) = held {
            self.move_fence(held.deadline);
        }
        self.publish();
        self.record_now.notify_one();
        self.renew_now.notify_one();
    }
}
