//! Servers of the candidate of a planned change, opened while the former leader still leads: in pools of a lane that nobody
//! is sent to before the candidate leads. They count as being connected until then.

use std::sync::Arc;

use trunkline_shared::service::clock;

use super::{POOLS, Pools, Spec};
use crate::cores;
use crate::pool::registry::Registry;
use crate::server::ahead::Destination;

/// The most servers that one core opens ahead, of all its pools: they take slots of the candidate before anybody needs them.
const MOST_AHEAD: usize = 64;

/// Opens on this core as many servers of the candidate as each pool has on the lane that is left.
pub fn open_ahead(to: &Destination, registry: &Registry) {
    POOLS.with_borrow_mut(|pools| pools.open_ahead(to, registry));
}

impl Pools {
    /// Somebody waits in this pool, for which a database or a user has no room: for each of the two that has none, one that is
    /// opened ahead is given up. Whether there is room then.
    pub(super) fn give_up_ahead_for(&mut self, spec: &Spec) -> bool {
        let of_many = spec.budgets.of_many().into_iter();
        for tight in of_many.filter(|own| own.is_used_up()) {
            for pool in self.pools.values_mut() {
                if pool.spec.budgets.counts_in(tight) && pool.give_up_ahead() {
                    break;
                }
            }
        }
        !spec.budgets.may_gain()
    }

    /// A server that somebody has asked for was refused for want of a slot: what was opened ahead at this address gives its
    /// slots back, on every core.
    pub(super) fn leave_room_at(&self, address: &Arc<str>) {
        self.give_slots_back(address);
        let Some(peers) = cores::peers() else {
            return;
        };
        let others = peers.all.iter().enumerate();
        for (_, core) in others.filter(|(number, _)| *number != peers.own) {
            let address = address.clone();
            core.spawn(async move { POOLS.with_borrow(|pools| pools.give_slots_back(&address)) });
        }
    }

    fn give_slots_back(&self, address: &Arc<str>) {
        let ahead = self
            .pools
            .values()
            .filter_map(|pool| pool.way.ahead.as_ref().map(|own| (pool, own)));
        for (_, own) in ahead.filter(|(pool, _)| pool.way.address == *address) {
            own.full.cancel();
        }
    }

    fn open_ahead(&mut self, to: &Destination, registry: &Registry) {
        let now = clock::now();
        let ahead = to.ahead();
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
            let way = to.way(&way, &ahead);
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
