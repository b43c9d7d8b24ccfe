//! The word that a member leaves in a store which has lost the cluster: that there is one.
//!
//! Nothing else is written to a store that is not believed (`ha.md` 8), for its revision would catch up with what was seen
//! of the one before. Where no cluster is recorded that tells nobody anything, since whoever knew one misses its identity;
//! and whoever knows nothing, and has no data, would make a second cluster there.

use std::rc::Rc;

use tokio::sync::watch;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::{Compare, DcsError, Txn};

use super::super::WantedRecord;
use super::orders::put;
use super::{Keeper, RETRY};

/// So often the record is put anew while its lease, which nobody keeps alive, would last.
const TIMES_A_LEASE: u32 = 3;

impl Keeper {
    pub(super) async fn word_loop(self: Rc<Self>, wanted: watch::Receiver<WantedRecord>) {
        loop {
            self.word_now.notified().await;
            let record = wanted.borrow().json.clone();
            let Some(record) = record.filter(|_| self.dcs.is_doubted()) else {
                continue;
            };
            let pause = match self.leave_word(&record).await {
                Ok(()) => self.inner.borrow().asked / TIMES_A_LEASE,
                Err(error) => {
                    tracing::debug!(%error, "the member record could not be put into the doubted DCS; retrying");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Puts the record where `initialize` is absent, or only claimed: whoever makes a cluster there gives it up.
    async fn leave_word(&self, record: &str) -> Result<(), DcsError> {
        let initialize = self.keys.path(&FactKey::Initialize);
        let asked = self.inner.borrow().asked;
        let lease = self.limited(self.dcs.grant_anew(asked)).await?.lease;
        for unmade in [
            Compare::Absent(initialize.clone()),
            Compare::Value(initialize, Vec::new()),
        ] {
            let txn = Txn {
                when: vec![unmade],
                then: vec![put(self.record_key(), record, lease)],
                otherwise: Vec::new(),
            };
            if self.limited(self.dcs.commit_anew(&txn)).await?.succeeded {
                return Ok(());
            }
        }
        Ok(())
    }
}
