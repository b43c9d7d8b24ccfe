//! The changes of authority, each one transaction, answered with the revision from which on the store
//! shows them (0: nothing to show). An unknown outcome is followed by linearizable reads
//! until it is known, or for [`RESOLVE_TRIES`].

use trunkline_shared::cluster::LeaderEpoch;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::{Committed, Compare, DcsError, LeaseId, Operation, Revision, Txn};
use trunkline_shared::service::clock;

use super::super::state::{KeyCheck, Renewal};
use super::super::{AsSeen, HandOver, LeaseError, Order};
use super::{Keeper, Looked, RETRY, Session};
use crate::decide::observation::Held;

/// How often an unknown outcome is read for before the command is answered with it.
const RESOLVE_TRIES: u32 = 5;

/// Why a leader key that is absent was not created.
const NOT_AS_SEEN: &str =
    "trunkline/timeline, sync, failsafe or initialize is not what this member has seen of it";

impl Keeper {
    pub(super) async fn execute(&self, order: Order) -> Result<Revision, LeaseError> {
        match order {
            Order::Acquire(as_seen) => self.acquire(as_seen).await,
            Order::ClaimBootstrap { seen, config } => self.claim_bootstrap(seen, config).await,
            Order::Confirm(lease) => self.confirm(lease).await,
            Order::Reassert => self.reassert().await,
            Order::Release {
                status,
                ends_bootstrap,
            } => self.release(status, ends_bootstrap).await,
            Order::HandOver(hand_over) => self.hand_over(hand_over).await,
            Order::SetTtl(ttl) => self.set_ttl(ttl).await,
            Order::PublishFailsafe { base, list } => self.publish_failsafe(base, list).await,
            Order::RemoveMember => self.remove_member().await,
            Order::Recreate { keys, record } => self.recreate(keys, record).await,
        }
    }

    async fn acquire(&self, seen: AsSeen) -> Result<Revision, LeaseError> {
        let session = self.young_session("take the leader key").await?;
        let mut then = vec![self.put_leader(session.lease)];
        then.extend(self.reads());
        let txn = Txn {
            when: self.nobody_leads(seen),
            then,
            otherwise: self.reads(),
        };
        let outcome = self.dcs.commit(&txn).await;
        let what = "take the leader key";
        self.took(what, session, seen, outcome).await
    }

    async fn claim_bootstrap(
        &self,
        seen: AsSeen,
        config: Option<String>,
    ) -> Result<Revision, LeaseError> {
        let what = "claim the bootstrap";
        let session = self.young_session(what).await?;
        let initialize = self.keys.path(&FactKey::Initialize);
        let mut when = self.nobody_leads(seen);
        when.push(Compare::Absent(initialize.clone()));
        let mut then = vec![
            put(initialize, "", session.lease),
            self.put_leader(session.lease),
        ];
        then.extend(config.map(|json| put(self.keys.path(&FactKey::Settings), &json, 0)));
        then.extend(self.reads());
        let txn = Txn {
            when,
            then,
            otherwise: self.reads(),
        };
        let outcome = self.dcs.commit(&txn).await;
        self.took(what, session, seen, outcome).await
    }

    /// The outcome of a transaction that was to put this member's name into the leader key.
    async fn took(
        &self,
        what: &'static str,
        session: Session,
        seen: AsSeen,
        outcome: Result<Committed, DcsError>,
    ) -> Result<Revision, LeaseError> {
        let looked = match outcome {
            Ok(committed) if committed.succeeded => {
                let epoch = LeaderEpoch {
                    generation: self.generation(&committed),
                    revision: committed.header.revision,
                };
                self.list_stood(seen.failsafe, epoch.revision);
                return self
                    .count_taken(epoch, committed.header.term, session)
                    .await;
            }
            Ok(committed) => self.looked(&committed, session.lease),
            Err(error @ DcsError::UnknownOutcome { .. }) => self.resolve(session, error).await?,
            Err(error) => {
                self.renew_if_gone(&error);
                return Err(error.into());
            }
        };
        match looked.found {
            KeyCheck::Mine(epoch) => self.count_taken(epoch, looked.header.term, session).await,
            KeyCheck::Missing => Err(refused(what, NOT_AS_SEEN.to_owned())),
            KeyCheck::Other => Err(refused(what, said(&looked))),
        }
    }

    /// The key is this member's. The lease counts from the last keep-alive before the transaction if one raft
    /// term answered both, else from a new renewal. A keep-alive that was sent later proves nothing of it: an
    /// etcd leader that was deposed in between may have answered it.
    pub(super) async fn count_taken(
        &self,
        epoch: LeaderEpoch,
        term: u64,
        session: Session,
    ) -> Result<Revision, LeaseError> {
        self.changed();
        if term != session.term || !self.arming.may_move_on() {
            return self.confirm(session.lease).await;
        }
        {
            let state = &mut self.inner.borrow_mut().state;
            state.acquired(epoch, session.sent, session.ttl);
        }
        // A fence that an earlier lease armed keeps this one's deadline from now on.
        if let Some(held) = self.held() {
            self.move_fence(held.deadline);
        }
        self.publish();
        Ok(epoch.revision)
    }

    /// A session lease that was renewed not long ago, so that what is acquired on it has time left.
    async fn young_session(&self, what: &'static str) -> Result<Session, LeaseError> {
        let is_old = |s: Session| clock::now().since(s.sent) > self.limit();
        if self.session().is_none_or(is_old) {
            self.renew().await?;
        }
        self.session().ok_or(LeaseError::NoLease(what))
    }

    async fn confirm(&self, lease: LeaseId) -> Result<Revision, LeaseError> {
        let what = "prove the leadership";
        let _alone = self.alone.lock().await;
        let adopted = self.session().is_none_or(|s| s.lease != lease);
        let sent = clock::now();
        let answer = match self.limited(self.dcs.keep_alive(lease)).await {
            Ok(answer) => answer,
            Err(error) => {
                self.renew_if_gone(&error);
                return Err(error.into());
            }
        };
        {
            let mut inner = self.inner.borrow_mut();
            let asked = inner.asked;
            inner.session = Some(Session {
                lease,
                asked: inner.session.map_or(asked, |s| s.asked),
                ttl: answer.ttl,
                sent,
                term: answer.header.term,
            });
        }
        if adopted {
            if let Err(error) = self.saved.store(lease) {
                tracing::warn!(%error, "the lease's number could not be kept");
            }
            self.record_now.notify_one();
        }
        let changes = self.inner.borrow().changes;
        self.check(lease, changes).await?;
        let held = self.inner.borrow().state.held();
        held.map(|held| held.epoch.revision).ok_or_else(|| {
            refused(
                what,
                "the leader key does not stand on this lease".to_owned(),
            )
        })
    }

    /// A renewal that was counted while the write was under way is of the same lease: without it the deadline would go back,
    /// after a slow answer behind the present.
    fn stands_as(&self, held: &Held, epoch: LeaderEpoch) {
        self.inner
            .borrow_mut()
            .state
            .written_again(held.epoch, epoch);
    }

    async fn reassert(&self) -> Result<Revision, LeaseError> {
        let what = "write the leader key again";
        let (held, session) = self.own_key(what)?;
        let mut then = vec![self.put_leader(session.lease)];
        then.extend(self.reads());
        let txn = Txn {
            when: vec![self.still(held)],
            then,
            otherwise: self.reads(),
        };
        let looked = match self.dcs.commit(&txn).await {
            Ok(committed) if committed.succeeded => {
                let epoch = LeaderEpoch {
                    generation: self.generation(&committed),
                    revision: committed.header.revision,
                };
                self.written_again(&held, epoch);
                self.stands_as(&held, epoch);
                return self
                    .count_taken(epoch, committed.header.term, session)
                    .await;
            }
            Ok(committed) => self.looked(&committed, session.lease),
            Err(error @ DcsError::UnknownOutcome { .. }) => self.resolve(session, error).await?,
            Err(error) => {
                self.renew_if_gone(&error);
                return Err(error.into());
            }
        };
        match looked.found {
            KeyCheck::Mine(epoch) if epoch.revision != held.epoch.revision => {
                self.written_again(&held, epoch);
                self.stands_as(&held, epoch);
                self.count_taken(epoch, looked.header.term, session).await
            }
            KeyCheck::Mine(_) => Err(refused(what, "it was not written".to_owned())),
            KeyCheck::Missing | KeyCheck::Other => {
                self.count_look(session, &looked);
                Err(refused(what, said(&looked)))
            }
        }
    }

    async fn release(
        &self,
        status: Option<String>,
        ends_bootstrap: bool,
    ) -> Result<Revision, LeaseError> {
        let what = "release the leader key";
        let (held, session) = self.own_key(what)?;
        let mut then = vec![Operation::Delete(self.leader_key.clone())];
        then.extend(status.map(|json| put(self.keys.path(&FactKey::Status), &json, 0)));
        then.extend(self.empty_failsafe());
        let mut when = vec![self.still(held)];
        if ends_bootstrap {
            let initialize = self.keys.path(&FactKey::Initialize);
            when.push(Compare::Value(initialize.clone(), Vec::new()));
            when.push(Compare::Lease(initialize.clone(), session.lease));
            then.push(Operation::Delete(initialize));
        }
        let txn = Txn {
            when,
            then,
            otherwise: self.reads(),
        };
        // Until the outcome is known the key may still be deleted at any time, as with a hand-over.
        self.inner.borrow_mut().state.hand_over_sent();
        self.publish();
        let outcome = self.dcs.commit(&txn).await;
        self.gave(what, held, session, outcome, |looked| {
            looked.holder.is_none()
        })
        .await
    }

    async fn hand_over(&self, hand_over: HandOver) -> Result<Revision, LeaseError> {
        let what = "hand the leader key over";
        let (held, session) = self.own_key(what)?;
        let record = self.keys.path(&FactKey::Member(hand_over.to.clone()));
        let to = hand_over.to.as_str();
        let txn = Txn {
            when: vec![
                self.still(held),
                Compare::ModRevision(record.clone(), hand_over.record_revision),
                Compare::Lease(record, hand_over.lease),
            ],
            then: vec![
                put(self.leader_key.clone(), to, hand_over.lease),
                put(self.keys.path(&FactKey::Status), &hand_over.status, 0),
            ],
            otherwise: self.reads(),
        };
        self.inner.borrow_mut().state.hand_over_sent();
        self.publish();
        let outcome = self.dcs.commit(&txn).await;
        self.gave(what, held, session, outcome, |looked| {
            let holder = looked.holder.as_ref();
            holder.is_some_and(|(name, lease)| name == to && *lease == hand_over.lease)
        })
        .await
    }

    /// The outcome of a transaction that was to give the key away; `is_done` tells it from a later read.
    async fn gave(
        &self,
        what: &'static str,
        held: Held,
        session: Session,
        outcome: Result<Committed, DcsError>,
        is_done: impl Fn(&Looked) -> bool,
    ) -> Result<Revision, LeaseError> {
        let (looked, is_known) = match outcome {
            Ok(committed) if committed.succeeded => {
                self.changed();
                self.gone();
                return Ok(committed.header.revision);
            }
            Ok(committed) => (self.looked(&committed, session.lease), true),
            Err(error @ DcsError::UnknownOutcome { .. }) => {
                (self.resolve(session, error).await?, false)
            }
            Err(error) => {
                self.inner.borrow_mut().state.hand_over_failed();
                return Err(error.into());
            }
        };
        self.changed();
        if !is_known && is_done(&looked) {
            self.gone();
            return Ok(looked.header.revision);
        }
        match looked.found {
            // A request whose outcome is unknown may still be executed while the key stands unchanged.
            KeyCheck::Mine(epoch) if is_known || epoch.revision != held.epoch.revision => {
                self.inner.borrow_mut().state.hand_over_failed();
            }
            KeyCheck::Mine(_) => {}
            KeyCheck::Missing | KeyCheck::Other => self.count_look(session, &looked),
        }
        Err(refused(what, said(&looked)))
    }

    fn gone(&self) {
        self.inner.borrow_mut().state.given_up();
        self.forget_authority();
    }

    async fn remove_member(&self) -> Result<Revision, LeaseError> {
        let Some((_, revision)) = self.inner.borrow_mut().record.take() else {
            return Ok(0);
        };
        let txn = Txn {
            when: vec![Compare::ModRevision(self.record_key(), revision)],
            then: vec![Operation::Delete(self.record_key())],
            otherwise: Vec::new(),
        };
        Ok(self.dcs.commit(&txn).await?.header.revision)
    }

    /// Reads until the store answers, [`RESOLVE_TRIES`] times at the most.
    pub(super) async fn resolve(
        &self,
        session: Session,
        error: DcsError,
    ) -> Result<Looked, LeaseError> {
        let mut last = error;
        for _ in 0..RESOLVE_TRIES {
            match self.limited(self.look(session.lease)).await {
                Ok(looked) => return Ok(looked),
                Err(error) => last = error,
            }
            tokio::time::sleep(RETRY).await;
        }
        Err(last.into())
    }

    /// Takes a definite "missing" or "somebody else's" into the state.
    fn count_look(&self, session: Session, looked: &Looked) {
        self.changed();
        let term = looked.header.term;
        self.inner.borrow_mut().state.renewed(Renewal {
            sent: session.sent,
            ttl: session.ttl,
            keep_alive_term: term,
            check_term: term,
            found: looked.found,
        });
    }

    fn renew_if_gone(&self, error: &DcsError) {
        if matches!(error, DcsError::LeaseGone(_)) {
            self.renew_now.notify_one();
        }
    }

    pub(super) fn changed(&self) {
        self.inner.borrow_mut().changes += 1;
    }

    pub(super) fn own_key(&self, what: &'static str) -> Result<(Held, Session), LeaseError> {
        let held = self.inner.borrow().state.held();
        match (held, self.session()) {
            (Some(held), Some(session)) => Ok((held, session)),
            (None, _) => Err(LeaseError::NotHeld(what)),
            (Some(_), None) => Err(LeaseError::NoLease(what)),
        }
    }

    pub(super) fn still(&self, held: Held) -> Compare {
        Compare::ModRevision(self.leader_key.clone(), held.epoch.revision)
    }

    fn nobody_leads(&self, seen: AsSeen) -> Vec<Compare> {
        vec![
            Compare::Absent(self.leader_key.clone()),
            Compare::as_seen(self.keys.path(&FactKey::Timeline), seen.claim),
            Compare::as_seen(self.keys.path(&FactKey::Sync), seen.sync),
            Compare::as_seen(self.keys.path(&FactKey::Failsafe), seen.failsafe),
        ]
    }

    pub(super) fn put_leader(&self, lease: LeaseId) -> Operation {
        put(self.leader_key.clone(), self.me.as_str(), lease)
    }
}

pub(super) fn put(key: String, value: &str, lease: LeaseId) -> Operation {
    Operation::Put {
        key,
        value: value.as_bytes().to_vec(),
        lease,
    }
}

pub(super) fn refused(what: &'static str, why: String) -> LeaseError {
    LeaseError::Refused { what, why }
}

pub(super) fn said(looked: &Looked) -> String {
    match &looked.holder {
        None => "there is no leader key".to_owned(),
        Some((name, lease)) => format!("the leader key names {name} on lease {lease:x}"),
    }
}
