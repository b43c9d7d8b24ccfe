//! The member record: written again whenever it or the lease changes.

use std::rc::Rc;

use tokio::sync::watch;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::{Compare, DcsError, LeaseId, Operation, Revision, Txn};

use super::super::WantedRecord;
use super::{Keeper, RETRY};

/// What came of writing the record.
enum Writing {
    /// It stands, last written at this revision.
    Stands(Revision),
    /// It was not as it was seen; it was last written at this revision, or is absent (0).
    Overtaken(Revision),
}

impl Keeper {
    pub(super) async fn record_loop(self: Rc<Self>, mut wanted: watch::Receiver<WantedRecord>) {
        // A store that was accepted anew does not hold the record of before.
        let mut written: Option<(u64, LeaseId, u64)> = None;
        let mut seen: Revision = 0;
        loop {
            let want = wanted.borrow_and_update().clone();
            let session = self.session();
            let acceptances = self.dcs.acceptances();
            if let (Some(json), Some(session)) = (&want.json, session)
                && written != Some((want.version, session.lease, acceptances))
            {
                let writing = self.write_record(json, session.lease, seen);
                let outcome = tokio::select! {
                    outcome = writing => outcome,
                    // A newer one does not wait for an answer that may never come. This one is not executed after it,
                    // since the record is not as it was seen then.
                    Ok(()) = wanted.changed() => continue,
                };
                match outcome {
                    Ok(Writing::Stands(revision)) => {
                        seen = revision;
                        written = Some((want.version, session.lease, acceptances));
                    }
                    Ok(Writing::Overtaken(revision)) => seen = revision,
                    Err(error) => {
                        tracing::debug!(%error, "the member record could not be written; retrying");
                        if matches!(error, DcsError::LeaseGone(_)) {
                            self.renew_now.notify_one();
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                }
                continue;
            }
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.record_now.notified() => {}
            }
        }
    }

    /// Writes it over what was seen last. A write whose answer is lost may be executed seconds later, when etcd has a
    /// leader again: unconditional, it would put an older record over a newer one, and a router that reads "replica" there
    /// of a member that was just promoted ends that member's sessions.
    async fn write_record(
        &self,
        json: &str,
        lease: LeaseId,
        seen: Revision,
    ) -> Result<Writing, DcsError> {
        let key = self.record_key();
        let txn = Txn {
            when: vec![Compare::as_seen(key.clone(), seen)],
            then: vec![Operation::Put {
                key: key.clone(),
                value: json.as_bytes().to_vec(),
                lease,
            }],
            otherwise: vec![Operation::Get(key)],
        };
        let committed = self.limited(self.dcs.commit(&txn)).await?;
        if !committed.succeeded {
            let now = committed.entries.first();
            return Ok(Writing::Overtaken(now.map_or(0, |e| e.mod_revision)));
        }
        let revision = committed.header.revision;
        self.inner.borrow_mut().record = Some((lease, revision));
        Ok(Writing::Stands(revision))
    }

    pub(super) fn record_key(&self) -> String {
        self.keys.path(&FactKey::Member(self.me.clone()))
    }
}
