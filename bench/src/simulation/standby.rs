//! A cluster that becomes another one's standby for a while.

use std::sync::Arc;

use trunkline_agent::decide::observation::{DcsView, Observation};
use trunkline_shared::cluster::settings::StandbyCluster;

use super::event::{NodeId, SECOND, Time};
use super::invariants::Invariant;
use super::world::World;

/// Where the remote is.
pub(super) const REMOTE: &str = "remote:5432";

/// How long the remote can be reached, and how long not.
const REMOTE_SPELL: Time = 7 * SECOND;

/// Whether a stream from the remote stands. It never brings anything.
pub(super) fn remote_sends(now: Time) -> bool {
    (now / REMOTE_SPELL).is_multiple_of(2)
}

/// A remote that never brings anything.
pub(super) fn section() -> Arc<StandbyCluster> {
    Arc::new(StandbyCluster {
        host: Some("remote".to_owned()),
        port: 5432,
        primary_slot_name: None,
        restore_command: None,
        archive_cleanup_command: None,
        recovery_min_apply_delay: None,
        create_replica_methods: Vec::new(),
    })
}

/// What an agent would see that does not read `standby_cluster`.
pub(super) fn unread(seen: &mut Observation) {
    if let DcsView::Known { topology, .. } = &mut seen.dcs {
        let mut settings = (*topology.settings_or_default()).clone();
        settings.standby_cluster = None;
        Arc::make_mut(topology).settings = Some(Arc::new(settings));
    }
}

impl World {
    /// `a_standby_cluster_never_writes`: called at the signal that makes an instance writable.
    pub(super) fn check_standby(&mut self, node: NodeId) {
        let view = self.node(node).agent.view.as_ref();
        let is_standby = view.is_some_and(|view| {
            let settings = view.settings.as_ref();
            settings.is_some_and(|settings| settings.standby_cluster.is_some())
        });
        if is_standby {
            let detail = format!(
                "{} becomes writable in a standby cluster",
                self.node(node).name
            );
            self.fail(Invariant::AStandbyClusterNeverWrites, detail);
        }
    }
}
