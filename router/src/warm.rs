//! Connections to the candidate of a planned change, opened as soon as it is announced: when the candidate leads, clients
//! that were held find servers that have logged in already.

use std::sync::Arc;

use tokio::runtime::Handle;
use tracing::debug;

use crate::pool::ahead::open_ahead;
use crate::pool::registry::Registry;
use crate::server::ahead::Destination;
use crate::topology::{Cluster, Published};

/// Follows the changes of one cluster for as long as the process lives. What was opened ends with its lane.
pub async fn follow(cluster: Arc<Cluster>, cores: Arc<[Handle]>, registry: Arc<Registry>) {
    let mut changes = cluster.changes();
    let mut opened = None;
    loop {
        changes.mark_unchanged();
        let published = cluster.published();
        if let Some(to) = destination(&cluster, &published)
            && opened.replace(to.candidate.lane) != Some(to.candidate.lane)
        {
            let (name, member) = (&cluster.name, &to.candidate.member);
            debug!(cluster = %name, %member, "servers are opened ahead of the change of leader");
            for core in cores.iter() {
                let (to, registry) = (to.clone(), registry.clone());
                core.spawn(async move { open_ahead(&to, &registry) });
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Where the change goes that is announced, once that can be reached.
fn destination(cluster: &Arc<Cluster>, published: &Published) -> Option<Destination> {
    let candidate = published.table.candidate.clone()?;
    let from = published.table.last.as_ref()?.lane?;
    let places = published.places(&candidate.address);
    (!places.is_empty()).then(|| Destination {
        cluster: cluster.clone(),
        from,
        candidate,
        places,
    })
}
