//! The `sync` record and whom commits wait for.

use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::{Compare, Revision, records};

use super::{ActError, Actor};
use crate::decide::observation::{Local, Observation, RunningRole, SyncNames};

impl Actor {
    /// Nobody else has written the record since it was seen at `revision`; 0 for never.
    fn sync_as_seen(&self, revision: Revision) -> Compare {
        Compare::as_seen(self.keys.path(&FactKey::Sync), revision)
    }

    pub(super) async fn write_sync(
        &self,
        seen: &Observation,
        sync: &SyncState,
    ) -> Result<Revision, ActError> {
        let when = vec![self.still_leads(seen)?, self.sync_as_seen(sync.revision)];
        let then = self.put(&FactKey::Sync, records::sync_to_json(sync));
        self.write("sync", when, vec![then]).await
    }

    pub(super) async fn renew_sync(&self, sync: &SyncState) -> Result<Revision, ActError> {
        let when = vec![self.sync_as_seen(sync.revision)];
        let then = self.put(&FactKey::Sync, records::sync_to_json(sync));
        self.write("sync", when, vec![then]).await
    }

    pub(super) async fn delete_sync(
        &self,
        seen: &Observation,
        revision: Revision,
    ) -> Result<Revision, ActError> {
        let when = vec![self.still_leads(seen)?, self.sync_as_seen(revision)];
        let then = self.delete(&FactKey::Sync);
        self.write("sync", when, vec![then]).await
    }

    pub(super) fn open_client_access(&self) -> Result<Revision, ActError> {
        tracing::info!("what the restart made visible is on the standbys; clients are let in");
        self.postgres.open_access()?;
        Ok(0)
    }

    pub(super) async fn set_sync_names(
        &self,
        seen: &Observation,
        names: Option<&SyncNames>,
    ) -> Result<Revision, ActError> {
        if let Some(names) = names {
            tracing::info!(names = %names, "commits are to wait for these standbys");
        }
        let value = names.map(ToString::to_string);
        self.postgres.set_sync_names(value).await?;
        let is_primary = matches!(&seen.local, Local::Running(running)
            if matches!(running.role, RunningRole::Primary { .. }));
        if is_primary {
            let postgres = self.postgres.clone();
            tokio::spawn(async move { postgres.let_standbys_answer().await });
        }
        Ok(0)
    }
}
