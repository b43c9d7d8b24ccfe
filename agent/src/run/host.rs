//! How often the host's disks are written to, and by whom: half of `loop_wait`, WAL by a leader only.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trunkline_shared::dcs::watch::View;

use super::Parts;
use crate::decide::observation::LeaseView;
use crate::lease::LeaseStatus;

/// Begins to write, until the agent ends.
pub(super) fn watch_disks(parts: &Parts) {
    let (wal, files) = (parts.health.clone(), parts.health.clone());
    let (lease, cluster) = (parts.lease.status(), parts.cluster.clone());
    let (door, views) = (parts.postgres.clone(), cluster.clone());
    tokio::spawn(async move {
        let pace = || leads(&lease).then(|| pace(&views));
        wal.write_wal(&door, pace).await;
    });
    let door = parts.postgres.clone();
    tokio::spawn(async move {
        if let Err(error) = files.write_files(&door, || pace(&cluster)).await {
            tracing::error!(%error, "the disks are not looked at");
        }
    });
}

fn leads(lease: &watch::Receiver<LeaseStatus>) -> bool {
    match lease.borrow().view {
        LeaseView::Held(_) => true,
        LeaseView::NotHeld | LeaseView::Lost => false,
    }
}

fn pace(cluster: &watch::Receiver<Arc<View>>) -> Duration {
    cluster.borrow().topology.settings_or_default().loop_wait / 2
}
