//! The fleet: every router process registers itself for each cluster that it serves, so that agents know whom a planned
//! change waits for, and so that a cancel reaches its query whichever router gets it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use ring::rand::{SecureRandom, SystemRandom};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline_shared::cluster::router::name_and_instance;
use trunkline_shared::service::http::HttpClient;

use crate::clusters::Clusters;
use crate::fleet::beside::Beside;
use crate::fleet::cancels::{Carrier, Others};
use crate::fleet::record::{Own, Standing};
use crate::fleet::registration::Registration;
use crate::listener::Listening;
use crate::pool::registry::NoRandomness;
use crate::topology::Cluster;
use crate::topology::routing_table::Writer;

pub mod beside;
pub mod cancel_key;
pub mod cancels;
pub mod record;
pub mod registration;
pub mod wrong_keys;

/// What a process of this name says of itself for every cluster alike. Its instance is its own: a process that takes over
/// from another one is another instance.
///
/// # Errors
/// The system gives no randomness.
pub fn own(name: &str, advertise: &str) -> Result<Own, NoRandomness> {
    let mut random = [0; 4];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| NoRandomness)?;
    let (pid, random) = (std::process::id(), u32::from_be_bytes(random));
    Ok(Own {
        key: format!("{name}/{pid}-{random:08x}").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        http_url: format!("http://{advertise}").into(),
        cancel_number: None,
    })
}

/// Makes these listeners one router of the fleet; in the folder it meets the processes that it takes over from, and that
/// take over from it. Returns what registers it; and what takes cancels of other routers, if any listener is pooled.
pub fn join(
    (own, folder, leaving): (Own, &Path, &Leaving),
    clusters: &Arc<Clusters>,
    listenings: &[Arc<Listening>],
    client: &HttpClient,
) -> (Registration, Option<Router>) {
    let carrier = listenings.iter().find_map(|listening| {
        Some(Carrier {
            registry: listening.registry.clone()?,
            limits: listening.limits.clone(),
        })
    });
    let number = carrier.as_ref().map(|own| own.registry.cancel_number);
    let own = Arc::new(Own {
        cancel_number: number,
        ..own
    });
    let beside = Beside::new(folder, name_and_instance(&own.key).1);
    let others = Others::new(
        own.clone(),
        clusters.clone(),
        client.clone(),
        beside.clone(),
    );
    let others = Arc::new(others);
    for listening in listenings {
        listening.others.get_or_init(|| others.clone());
    }
    let registration = Registration {
        own,
        listenings: listenings.to_vec(),
        leaving: leaving.clone(),
        beside: carrier.clone().map(|carrier| (beside.clone(), carrier)),
    };
    let cancels = carrier.map(|carrier| cancels::routes(carrier, beside));
    (registration, cancels)
}

/// How this process stands towards a cluster, seen through its listeners: the one place where the acknowledged stage and
/// the counts of its record come from.
pub fn standing(cluster: &Cluster, listenings: &[Arc<Listening>]) -> Standing {
    let published = cluster.published();
    let table = &published.table;
    let (epoch, lane) = match &table.writer {
        Writer::Known { epoch, lane, .. } => (Some(*epoch), Some(*lane)),
        Writer::Promoting { .. } | Writer::None { .. } => {
            (None, table.last.as_ref().and_then(|last| last.lane))
        }
    };
    let acknowledged = cluster.progress.borrow().acknowledged;
    // One that names no cluster may lead to any.
    let own = listenings.iter().filter(|listening| {
        let own = listening.cluster.as_ref();
        own.is_none_or(|own| own.name == cluster.name)
    });
    Standing {
        epoch,
        acknowledged,
        writer_sessions: lane.map_or(0, |lane| cluster.lanes.load(lane).open as u64),
        held_clients: cluster.held.load(Ordering::Relaxed) as u64,
        hold_timeout: own.map(|own| own.hold_timeout()).min().unwrap_or_default(),
    }
}

/// The way out of the fleet.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// Set when the process ends.
    pub token: CancellationToken,
    /// Those who are to take their keys away then.
    pub tasks: TaskTracker,
}

impl Leaving {
    /// Takes the keys of this process away, and waits until that is done.
    pub async fn leave(&self) {
        self.token.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
