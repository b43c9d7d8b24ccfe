//! The member record: written again whenever it or the lease changes.

use std::rc::Rc;

use tokio::sync::watch;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::{DcsError, LeaseId, Operation, Txn};

use super::super::WantedRecord;
use super::{Keeper, RETRY};

impl Keeper {
    pub(super) async fn record_loop(self: Rc<Self>, mut wanted: watch::Receiver<WantedRecord>) {
        // A store that was accepted anew does not hold the record of before.
        let mut written: Option<(u64, LeaseId, u64)> = None;
        loop {
            let want = wanted.borrow_and_update().clone();
            let session = self.session();
            let acceptances = self.dcs.acceptances();
            if let (Some(json), Some(session)) = (&want.json, session)
                && written != Some((want.version, session.lease, acceptances))
            {
                let writing = self.write_record(json, session.lease);
                let outcome = tokio::select! {
                    outcome = writing => outcome,
                    // A newer one does not wait for an answer that may never come. Should this one come after it, the
                    // newer one is written again (`decide/small_moves.rs`).
                    Ok(()) = wanted.changed() => continue,
                };
                match outcome {
                    Ok(()) => written = Some((want.version, session.lease, acceptances)),
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

    async fn write_record(&self, json: &str, lease: LeaseId) -> Result<(), DcsError> {
        let txn = Txn {
            then: vec![Operation::Put {
                key: self.record_key(),
                value: json.as_bytes().to_vec(),
                lease,
            }],
            ..Txn::default()
        };
        let committed = self.limited(self.dcs.commit(&txn)).await?;
        self.inner.borrow_mut().record = Some((lease, committed.header.revision));
        Ok(())
    }

    pub(super) fn record_key(&self) -> String {
        self.keys.path(&FactKey::Member(self.me.clone()))
    }
}
