//! Wakes the loop when a standby begins or ceases to stream from here: PostgreSQL tells nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::dcs::watch::View;

use crate::decide::observation::LeaseView;
use crate::lease::LeaseStatus;
use crate::postgres::Postgres;

/// How often it is looked, while this member leads and commits wait for standbys: a dead one is to be
/// replaced in under a second (`ha.md` 10).
const LOOK: Duration = Duration::from_millis(200);

/// Begins to look; notified when somebody begins or ceases to stream.
pub(super) fn watched(
    postgres: &Arc<Postgres>,
    lease: watch::Receiver<LeaseStatus>,
    cluster: &watch::Receiver<Arc<View>>,
) -> Arc<Notify> {
    let changed = Arc::new(Notify::new());
    tokio::spawn(look(
        postgres.clone(),
        lease,
        cluster.clone(),
        changed.clone(),
    ));
    changed
}

/// Looks until the agent ends.
async fn look(
    postgres: Arc<Postgres>,
    lease: watch::Receiver<LeaseStatus>,
    cluster: watch::Receiver<Arc<View>>,
    changed: Arc<Notify>,
) {
    let mut before = None;
    loop {
        tokio::time::sleep(LOOK).await;
        if !waits(&lease, &cluster) {
            before = None;
            continue;
        }
        // One that does not answer is seen by the next turn.
        let now = postgres.who_streams().await.ok();
        if before.is_some() && now != before {
            changed.notify_one();
        }
        before = now;
    }
}

fn waits(lease: &watch::Receiver<LeaseStatus>, cluster: &watch::Receiver<Arc<View>>) -> bool {
    let settings = cluster.borrow().topology.settings_or_default();
    // Consumers of such slots wait for standbys as commits do.
    let has_failover_slots = settings.slots.values().any(|slot| slot.is_failover);
    let waits = settings.synchronous_mode != SynchronousMode::Off || has_failover_slots;
    waits && matches!(lease.borrow().view, LeaseView::Held(_))
}
