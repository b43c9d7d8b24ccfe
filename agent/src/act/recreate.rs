//! The cluster's keys, made anew in a DCS that is not the one that was known (`ha.md` 8).

use std::sync::atomic::Ordering;

use tokio::time::timeout;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::store::Told;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::watch::View;
use trunkline_shared::dcs::{Entry, Revision, records};

use super::{ActError, Actor, SHOWN_LIMIT, records as own};
use crate::decide::decision::Action;
use crate::decide::observation::{Local, Observation, RunningRole};
use crate::recreation::{Succession, transaction};

impl Actor {
    /// What a turn makes of the store as a whole.
    pub(super) async fn judge_store(
        &self,
        seen: &Observation,
        action: &Action,
    ) -> Result<Revision, ActError> {
        if let Action::RecreateKeys { generation } = action {
            return self.recreate_keys(seen, *generation).await;
        }
        if let Action::DoubtStore { name, told } = action {
            return self.doubt_store(seen, name, *told).await;
        }
        self.is_store_trusted.store(true, Ordering::Relaxed);
        Ok(0)
    }

    async fn recreate_keys(
        &self,
        seen: &Observation,
        generation: u64,
    ) -> Result<Revision, ActError> {
        let view = self.cluster.borrow().clone();
        let Some(doubted) = view.doubted.clone() else {
            return Err(ActError::NotAllowed("the DCS is believed"));
        };
        let wanted = self.wanted(seen, &view);
        let before = doubted.topology.succeeds.iter();
        let before = before.chain(view.topology.succeeds.iter()).copied();
        let succession = Succession::new(generation, before.chain([view.belief.seen.cluster_id]));
        let keeps = |name: &MemberName| *name == self.me.name;
        let order = transaction(&self.keys, &doubted, wanted, &succession, keeps);
        self.lease.recreate(order).await?;
        tracing::warn!(
            generation,
            "the DCS was not the one that was known: the cluster's keys are made anew"
        );
        // The next look is to show it; revisions of another store tell nothing.
        let _ = timeout(SHOWN_LIMIT, self.refresh.now()).await;
        Ok(0)
    }

    /// The keys as they were known, with the position of now.
    fn wanted(&self, seen: &Observation, view: &View) -> Vec<Entry> {
        let mut wanted = view.lasting_keys(&self.keys);
        let mut set = |key: FactKey, text: String| {
            let path = self.keys.path(&key);
            wanted.retain(|entry| entry.key != path);
            wanted.push(Entry {
                key: path,
                value: text.into_bytes(),
                mod_revision: 0,
                lease: 0,
            });
        };
        if let Some(text) = seen
            .lost_config
            .as_ref()
            .filter(|_| view.raw_config().is_none())
        {
            set(FactKey::Settings, text.to_string());
        }
        if let Local::Running(running) = &seen.local
            && let RunningRole::Primary { position, .. } = running.role
        {
            let before = seen.store.doubt.as_ref().map(|doubt| &doubt.before);
            let known = before.map(|before| before.status.clone());
            let status = own::status_at(known.unwrap_or_default(), position);
            set(FactKey::Status, status);
            let id = records::initialize_to_text(Some(running.system_id));
            set(FactKey::Initialize, id);
        }
        wanted
    }

    /// Others know more: the store is not believed.
    async fn doubt_store(
        &self,
        seen: &Observation,
        name: &MemberName,
        told: Told,
    ) -> Result<Revision, ActError> {
        let why = match *name == self.me.name {
            true => "the data here was kept by an agent, and the DCS knows no cluster".to_owned(),
            false => format!("the agent of {name} knows another DCS, or more than this one shows"),
        };
        let decided_at = seen.store.generation;
        let refresh = &self.refresh;
        refresh.doubt(why.into(), told, decided_at).await?;
        Ok(0)
    }
}
