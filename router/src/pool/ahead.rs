//! Servers of the candidate of a planned change, opened while the former leader still leads: in pools of a lane that nobody
//! is sent to before the candidate leads. They count as being connected until then.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use trunkline_shared::service::clock;

use super::{POOLS, Pools};
use crate::pool::registry::Registry;
use crate::server::Way;
use crate::server::ahead::Ahead;
use crate::topology::Cluster;
use crate::topology::routing_table::{Candidate, LaneId};

/// The most servers that one core opens ahead, of all its pools: they take slots of the candidate before anybody needs them.
const MOST_AHEAD: usize = 64;
/// Of those the log-ins that run at once, for the candidate still has to replay what the former leader writes.
const LOG_INS_AHEAD: usize = 4;

/// Where a planned change goes.
#[derive(Clone)]
pub struct Destination {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The lane that is left.
    pub from: LaneId,
    /// Who is to lead, and on which lane.
    pub candidate: Candidate,
    /// Where its address leads.
    pub places: Vec<SocketAddr>,
}

/// Opens on this core as many servers of the candidate as each pool has on the lane that is left.
pub fn open_ahead(to: &Destination, registry: &Registry) {
    POOLS.with_borrow_mut(|pools| pools.open_ahead(to, registry));
}

impl Pools {
    fn open_ahead(&mut self, to: &Destination, registry: &Registry) {
        let now = clock::now();
        let ahead = Arc::new(Ahead {
            cluster: to.cluster.clone(),
            log_ins: Arc::new(Semaphore::new(LOG_INS_AHEAD)),
        });
        let used = self.on_lane(to.cluster.name.as_str(), to.from.0);
        let used = used.filter(|pool| pool.way.is_writer);
        let used = used.map(|pool| {
            let count = pool.state.counts().connected();
            (pool.spec.clone(), pool.way.clone(), count)
        });
        let mut left = MOST_AHEAD;
        for (spec, way, count) in used.collect::<Vec<_>>() {
            let count = count.min(left);
            if count == 0 {
                continue;
            }
            left -= count;
            let way = Way {
                lanes: way.lanes.clone(),
                lane: to.candidate.lane,
                member: to.candidate.member.clone(),
                address: to.candidate.address.clone(),
                places: to.places.clone(),
                is_writer: true,
                ahead: Some(ahead.clone()),
                limits: way.limits.clone(),
                in_force: way.in_force.clone(),
            };
            let spec = registry.on_lane(&spec, to.candidate.lane.0);
            let id = self.ensure(&Arc::new(spec), &Arc::new(way));
            let mut effects = std::mem::take(&mut self.effects);
            if let Some(pool) = self.get(id) {
                pool.state.open_ahead(count, now, &mut effects);
            }
            self.perform(id, effects, now);
        }
    }
}
