//! The lease task, started.

use std::path::Path;
use std::sync::Arc;

use trunkline_shared::cluster::{ClusterSettings, LeaderEpoch};
use trunkline_shared::dcs::etcd::{Budgets, Etcd};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::{Dcs, StoreMemory};

use super::{Rest, RunError, system};
use crate::config::AgentConfig;
use crate::lease::LeaseHandle;
use crate::lease::arming::Arming;
use crate::lease::keeper::{self, KeeperConfig};
use crate::lease::rounds::Speaker;

/// How the lease task reaches the store: by connections of its own, knowing what the others know.
pub(super) struct OwnDcs {
    pub(super) budgets: Budgets,
    pub(super) memory: StoreMemory,
}

pub(super) fn start(
    config: &AgentConfig,
    settings: &ClusterSettings,
    own: OwnDcs,
    keys: &Keys,
    run_dir: &Path,
    arming: &Arc<Arming>,
    (rest, settled): (&Rest, Option<LeaderEpoch>),
) -> Result<LeaseHandle, RunError> {
    let keeper = KeeperConfig {
        keys: keys.clone(),
        me: config.name.clone(),
        ttl: settings.ttl,
        saved: run_dir.join("lease"),
        authority: run_dir.join("authority"),
        speaker: Speaker {
            cluster: config.cluster.as_str().to_owned(),
            address: config.postgresql.connect_address.to_string(),
            api_url: config.restapi.api_url(),
            client: rest.client(),
        },
        settled,
        reserve: config.watchdog.reserve(),
    };
    let etcd = config.etcd.clone();
    keeper::spawn(keeper, arming.clone(), move || {
        let dcs = Etcd::sharing(&etcd, own.budgets, own.memory);
        dcs.map(|dcs| Arc::new(dcs) as Arc<dyn Dcs>)
            .map_err(|error| tracing::error!(%error, "the lease task cannot reach the DCS"))
            .ok()
    })
    .map_err(system("starting the lease task"))
}
