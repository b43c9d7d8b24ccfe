//! What is done to replication slots.

use std::collections::BTreeSet;
use std::sync::Arc;

use trunkline_shared::cluster::Lsn;
use trunkline_shared::dcs::Revision;

use super::instance::{said, source};
use super::{ActError, Actor};
use crate::decide::decision::{SlotCare, Upstream};
use crate::decide::observation::JobKind;
use crate::postgres::logical_slots::NewSlot;
use crate::postgres::{Receivers, StopMode, StopPlan};

impl Actor {
    pub(super) async fn create_slots(&self, names: &[Arc<str>]) -> Result<Revision, ActError> {
        for name in names {
            self.postgres.create_slot(name).await?;
        }
        Ok(0)
    }

    pub(super) async fn drop_slots(&self, names: &[Arc<str>]) -> Result<Revision, ActError> {
        for name in names {
            self.postgres.drop_slot(name).await?;
        }
        Ok(0)
    }

    pub(super) async fn advance_slots(
        &self,
        slots: &[(Arc<str>, Lsn)],
    ) -> Result<Revision, ActError> {
        for (name, to) in slots {
            self.postgres.advance_slot(name, *to).await?;
        }
        Ok(0)
    }

    pub(super) async fn set_synchronized_slots(
        &self,
        slots: &BTreeSet<Arc<str>>,
    ) -> Result<Revision, ActError> {
        let names: Vec<String> = slots.iter().map(ToString::to_string).collect();
        tracing::info!(slots = %names.join(","), "consumers of failover slots are to wait for these");
        self.postgres
            .set_synchronized_slots(names.join(","))
            .await?;
        Ok(0)
    }

    /// What has just been read there is stopped for; senders of this member are cut, none of them is waited for.
    pub(super) async fn copy_slots(
        &mut self,
        from: &Upstream,
        names: &[Arc<str>],
    ) -> Result<Revision, ActError> {
        let upstream = source(from)?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let door = self.door();
        let plan = StopPlan {
            mode: StopMode::Fast,
            is_checkpoint_first: false,
            wait_for: Some(Receivers::default()),
            limit: door.config().pg_ctl_timeout,
        };
        let work = async move {
            let copied = door.copy_logical_slots(&upstream, &names, &plan).await;
            copied.map_err(said)
        };
        self.begin(JobKind::CopySlots, from.member.clone(), Box::pin(work))
            .await
    }

    pub(super) fn tend_logical_slots(&mut self, care: &SlotCare) -> Result<Revision, ActError> {
        let of = care.of.as_ref().map(source).transpose()?;
        let care = care.clone();
        let door = self.door();
        // One slot that cannot be made or moved, its database is gone say, keeps the others from nothing.
        let work = async move {
            let mut outcome = Ok(());
            for slot in &care.create {
                let slot = NewSlot {
                    name: slot.name.to_string(),
                    database: slot.database.to_string(),
                    plugin: slot.plugin.to_string(),
                    is_failover: slot.is_failover,
                };
                outcome = outcome.and(door.create_logical_slot(&slot).await);
            }
            for to in &care.advance {
                let (name, database) = (&to.slot.name, &to.slot.database);
                let moved = door.advance_logical_slot(name, database, to.to).await;
                outcome = outcome.and(moved);
            }
            let prove: Vec<String> = care.prove.iter().map(ToString::to_string).collect();
            if let Some(of) = of.filter(|_| !prove.is_empty()) {
                outcome = outcome.and(door.prove_logical_slots(&of, &prove).await);
            }
            outcome.map_err(said)
        };
        self.jobs.start(JobKind::TendSlots, None, Box::pin(work))?;
        Ok(0)
    }
}
