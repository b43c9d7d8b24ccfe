//! Servers that are opened for one client and go with it: they count in the budgets of their pool, and are never in
//! it. PgBouncer counts its replication connections in the same way.

use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use trunkline_shared::service::clock;

use super::{Lease, POOLS, PoolId, Pools, Spec};
use crate::auth::RANDOM_BYTES;
use crate::cores;
use crate::pool::budget::Budgets;
use crate::pool::state::ServerId;
use crate::protocol::startup::Replication;
use crate::server::Way;
use crate::server::login::{Identity, OpenFailed, open};

/// Where a leased server belongs.
pub(super) enum Home {
    /// In a pool, by its number.
    Pool(PoolId, ServerId),
    /// Nowhere else: it goes with its client.
    Alone(#[expect(dead_code, reason = "it is given back when it is dropped")] Counted),
}

impl Home {
    /// The pool that it goes back to.
    pub(super) fn pool(&self) -> Option<(PoolId, ServerId)> {
        match self {
            Home::Pool(pool, server) => Some((*pool, *server)),
            Home::Alone(_) => None,
        }
    }
}

/// A place in the budgets, as long as it lives.
pub(super) struct Counted(Budgets);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// A server that may be opened.
pub struct Opening {
    spec: Arc<Spec>,
    way: Arc<Way>,
    counted: Counted,
}

/// Whether there is a place for one more server.
pub enum Place {
    /// There is.
    Free(Opening),
    /// There is none now.
    Full,
    /// Look for another pool.
    Closed,
}

/// Takes a place in the budgets of this pool. An idle server gives way for it; where that is another core's, there will
/// be a place in a moment.
pub fn take_place(pool: PoolId) -> Place {
    POOLS.with_borrow_mut(|pools| pools.take_place(pool))
}

impl Pools {
    fn take_place(&mut self, id: PoolId) -> Place {
        let Some(pool) = self.get(id) else {
            return Place::Closed;
        };
        let (spec, way) = (pool.spec.clone(), pool.way.clone());
        let budgets = &spec.budgets;
        if budgets.take(0) || self.make_room(id, &spec) && budgets.take(0) {
            let counted = Counted(budgets.clone());
            return Place::Free(Opening { spec, way, counted });
        }
        ask_others(&spec);
        Place::Full
    }

    fn make_room(&mut self, id: PoolId, spec: &Spec) -> bool {
        let mut effects = std::mem::take(&mut self.effects);
        let pool = self.get(id);
        let has_closed = pool.is_some_and(|pool| pool.state.evict(&mut effects));
        self.perform(id, effects, clock::now());
        has_closed || self.evict_for(spec)
    }
}

/// Asks the other cores to make room.
fn ask_others(spec: &Arc<Spec>) {
    let Some(peers) = cores::peers() else {
        return;
    };
    for (number, core) in peers.all.iter().enumerate() {
        if number != peers.own {
            let spec = spec.clone();
            core.spawn(async move {
                POOLS.with_borrow_mut(|pools| {
                    if let Some(id) = pools.by_key.get(&spec.key()).copied() {
                        pools.make_room(id, &spec);
                    }
                });
            });
        }
    }
}

impl Opening {
    /// Opens the server, of this kind and with these settings.
    ///
    /// # Errors
    /// It cannot be opened now, or at all.
    pub async fn open(
        self,
        replication: Option<Replication>,
        settings: Vec<(String, String)>,
    ) -> Result<Lease, OpenFailed> {
        let identity = Identity {
            database: self.spec.dbname.clone(),
            user: self.spec.user.clone(),
            credential: self.spec.credential.load_full(),
            replication,
            settings,
        };
        let mut nonce = [0; RANDOM_BYTES];
        let filled = SystemRandom::new().fill(&mut nonce);
        filled.map_err(|_| OpenFailed::Broken)?;
        let server = open(self.way, identity, nonce, self.spec.connect_timeout).await?;
        Ok(Lease {
            server: Some(Box::new(server)),
            home: Home::Alone(self.counted),
            since: clock::now(),
            begun: None,
        })
    }
}
