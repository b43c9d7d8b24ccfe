//! The leader's key and all others, made anew in a store that is not the one that was known (`ha.md` 8).

use trunkline_shared::cluster::LeaderEpoch;
use trunkline_shared::dcs::{DcsError, Revision, Txn};
use trunkline_shared::service::clock;

use super::super::LeaseError;
use super::orders::{put, refused};
use super::{Keeper, Session};
use crate::recreation::Recreation;

impl Keeper {
    /// Only while every listed member consents: nobody else begins to lead before the deadline, whatever becomes
    /// of the transaction.
    pub(super) async fn recreate(
        &self,
        order: Recreation,
        record: Option<String>,
    ) -> Result<Revision, LeaseError> {
        let what = "make the cluster's keys anew";
        let held = self.inner.borrow().state.held();
        let held = held.ok_or(LeaseError::NotHeld(what))?;
        if !held.is_by_failsafe || self.is_held_back() {
            return Err(refused(what, "not every member consents".to_owned()));
        }
        if held.epoch.generation >= order.generation {
            return Err(refused(what, "they are anew already".to_owned()));
        }
        let alone = self.alone.lock().await;
        let asked = self.inner.borrow().asked;
        let sent = clock::now();
        let answer = self.limited(self.dcs.grant_anew(asked)).await?;
        let session = Session {
            lease: answer.lease,
            asked,
            ttl: answer.ttl,
            sent,
            term: answer.header.term,
        };
        // Until the outcome is known the key may come to stand on either lease.
        let moving = self.inner.borrow_mut().moving.replace(session);
        let mut then = order.then;
        then.push(self.put_leader(session.lease));
        // Routers go by the leader's record: it comes with the key.
        then.extend(record.map(|json| put(self.record_key(), &json, session.lease)));
        let txn = Txn {
            when: order.when,
            then,
            otherwise: Vec::new(),
        };
        let committed = match self.dcs.commit_anew(&txn).await {
            Ok(committed) if committed.succeeded => committed,
            Ok(_) => {
                self.inner.borrow_mut().moving = moving;
                let why = "what it holds is not what was seen".to_owned();
                return Err(refused(what, why));
            }
            Err(error) => {
                if !matches!(error, DcsError::UnknownOutcome { .. }) {
                    self.inner.borrow_mut().moving = moving;
                }
                return Err(error.into());
            }
        };
        if let Err(error) = self.saved.store(session.lease) {
            tracing::warn!(%error, "the lease's number could not be kept");
        }
        {
            let mut inner = self.inner.borrow_mut();
            inner.session = Some(session);
            inner.moving = None;
        }
        self.dcs.accept(&committed.header);
        drop(alone);
        self.record_now.notify_one();
        let epoch = LeaderEpoch {
            generation: order.generation,
            revision: committed.header.revision,
        };
        self.count_taken(epoch, committed.header.term, session)
            .await
    }
}
