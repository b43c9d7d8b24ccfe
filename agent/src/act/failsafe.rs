//! The failsafe list and its switch, as the leader writes them.

use std::sync::Arc;

use serde_json::Value;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::{Compare, Operation, Revision};

use super::{ActError, Actor};
use crate::decide::observation::Observation;
use crate::lease::rounds::List;

impl Actor {
    /// By the lease task: whoever is about to be listed is asked from now on, for the outcome may never be
    /// known.
    pub(super) async fn publish_failsafe(
        &self,
        seen: &Observation,
        list: &Arc<List>,
    ) -> Result<Revision, ActError> {
        let base = seen
            .topology()
            .ok_or(ActError::NotAllowed("the list as it stands is not known"))?
            .failsafe_revision;
        Ok(self.lease.publish_failsafe(base, list.clone()).await?)
    }

    pub(super) async fn switch_failsafe_on(
        &self,
        seen: &Observation,
    ) -> Result<Revision, ActError> {
        let view = self.cluster.borrow().clone();
        let Some(config) = view.raw_config() else {
            return Err(ActError::NotAllowed("there is no config key"));
        };
        let Ok(Value::Object(mut settings)) = serde_json::from_str(&config.text) else {
            return Err(ActError::NotAllowed("the config key is no JSON object"));
        };
        if settings.contains_key("failsafe_mode") {
            return Ok(0);
        }
        settings.insert("failsafe_mode".to_owned(), true.into());
        let key = self.keys.path(&FactKey::Settings);
        let when = vec![
            self.still_leads(seen)?,
            Compare::ModRevision(key.clone(), config.revision),
        ];
        let put = Operation::Put {
            key,
            value: Value::Object(settings).to_string().into_bytes(),
            lease: 0,
        };
        let revision = self.write("config", when, vec![put]).await?;
        tracing::warn!(
            "failsafe_mode was not set and every member has been one of Trunkline for ten minutes: it is on from now \
             on; trunkline edit-config -s failsafe_mode=false turns it off"
        );
        Ok(revision)
    }
}
