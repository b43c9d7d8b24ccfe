//! The pools of this core, and the way into them. A pool belongs to one thread: nothing here locks. What the
//! cores share are the budgets; a server that is idle on one core goes to another whose clients wait.
//!
//! [`state`] decides, this performs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};
use trunkline_shared::cluster::Moment;
use trunkline_shared::cluster::router::HoldStage;
use trunkline_shared::service::clock;

use crate::auth::Credential;
use crate::cores;
use crate::pool::budget::Budgets;
use crate::pool::gate::Gate;
use crate::pool::local::{Hungry, Outcome, Pool};
use crate::pool::running::{Begun, Count, Running};
use crate::pool::state::{Effect, Failure, PoolState, Rules, ServerId, WaiterId};
use crate::protocol::sqlstate;
use crate::server::login::OpenFailed;
use crate::server::{Parcel, Server, Way};

pub mod ahead;
pub mod alone;
pub mod budget;
pub mod clients;
pub mod gate;
mod lease;
mod local;
pub mod registry;
pub mod running;
pub mod state;
pub mod view;

pub use lease::{Lease, Ticket};

/// How often idle servers, limits of time and cut lanes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A core that wants a server says so at each look; after two without a word it has one.
const STILL_HUNGRY: Duration = LOOK_EVERY.saturating_mul(2);
/// How much older than ours the oldest waiter of another core must be, to get a server that we need as well:
/// a server that changes cores costs more than a transaction.
const PATIENCE: Duration = Duration::from_millis(10);

/// What a pool keeps to.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The cluster.
    pub cluster: Box<str>,
    /// The database, as clients call it.
    pub database: Box<str>,
    /// The same, as PostgreSQL calls it.
    pub dbname: Arc<str>,
    /// The user.
    pub user: Arc<str>,
    /// The number of the lane.
    pub lane: u64,
    /// How the user logs in; it may change.
    pub credential: Arc<ArcSwap<Credential>>,
    /// What the servers count in.
    pub budgets: Budgets,
    /// What an operator has told the database.
    pub gate: Arc<Gate>,
    /// Limits and times.
    pub rules: Rules,
    /// How long a server may take to connect.
    pub connect_timeout: Duration,
}

/// Which pool: cluster, lane, database, user.
type Key = (Box<str>, u64, Box<str>, Arc<str>);

impl Spec {
    fn key(&self) -> Key {
        (
            self.cluster.clone(),
            self.lane,
            self.database.clone(),
            self.user.clone(),
        )
    }
}

/// A pool of this core. Numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolId(u64);

/// Why there is no server.
#[derive(Clone, Debug)]
pub enum NoServer {
    /// PostgreSQL refuses the log-in.
    Refused(OpenFailed),
    /// The lane was cut: look for another.
    PoolClosed,
}

/// A server, or a place in the queue for one.
pub enum Checkout {
    /// Here it is.
    Ready(Lease),
    /// Wait.
    Wait(Ticket),
    /// Look for another pool.
    Closed,
}

#[derive(Default)]
struct Pools {
    pools: BTreeMap<PoolId, Box<Pool>>,
    next_pool: u64,
    by_key: BTreeMap<Key, PoolId>,
    next_waiter: u64,
    /// Kept, so that none is made per transaction.
    effects: Vec<Effect>,
    has_janitor: bool,
}

thread_local! {
    static POOLS: RefCell<Pools> = RefCell::default();
}

/// The pool of this spec on this core; made if there is none. The way is renewed.
pub fn ensure(spec: &Arc<Spec>, way: &Arc<Way>) -> PoolId {
    POOLS.with_borrow_mut(|pools| pools.ensure(spec, way))
}

/// Takes a server for the running task.
pub fn checkout(pool: PoolId, waker: impl FnOnce() -> Waker) -> Checkout {
    POOLS.with_borrow_mut(|pools| pools.checkout(pool, waker))
}

/// Whether a server is idle in this pool.
pub fn has_idle(pool: PoolId) -> bool {
    POOLS.with_borrow_mut(|pools| pools.get(pool).is_some_and(|pool| !pool.parked.is_empty()))
}

/// Whether there still is this pool: one that nobody used for long is gone.
pub fn is_there(pool: PoolId) -> bool {
    POOLS.with_borrow(|pools| pools.pools.contains_key(&pool))
}

/// What runs now on a lane is told apart from what begins from here on; on this core.
pub fn set_mark(cluster: &str, lane: u64) {
    POOLS.with_borrow_mut(|pools| {
        pools
            .on_lane(cluster, lane)
            .for_each(|pool| pool.running.set_mark());
    });
}

/// What clients that are not pinned run on a lane, on this core. Who asks is told when a pool has nothing more of what this
/// stage waits for.
pub fn running(cluster: &str, lane: u64, stage: HoldStage, drain: &Arc<Notify>) -> Count {
    POOLS.with_borrow_mut(|pools| {
        let pools = pools.on_lane(cluster, lane);
        pools.fold(Count::default(), |sum, pool| {
            let count = pool.running.count();
            pool.drain = (count.left(stage) > 0).then(|| drain.clone());
            sum.and(count)
        })
    })
}

/// Why the last server of this pool could not be opened, if none was since.
pub fn failure(pool: PoolId) -> Option<OpenFailed> {
    POOLS.with_borrow_mut(|pools| pools.get(pool)?.failure.clone())
}

impl Pools {
    fn get(&mut self, pool: PoolId) -> Option<&mut Pool> {
        self.pools.get_mut(&pool).map(Box::as_mut)
    }

    fn ensure(&mut self, spec: &Arc<Spec>, way: &Arc<Way>) -> PoolId {
        let key = spec.key();
        if let Some(id) = self.by_key.get(&key).copied()
            && let Some(pool) = self.get(id)
        {
            pool.way = way.clone();
            return id;
        }
        self.next_pool += 1;
        let id = PoolId(self.next_pool);
        // The minimum is one core's to keep.
        let is_first = cores::peers().is_none_or(|peers| peers.own == 0);
        let mut rules = spec.rules.clone();
        rules.min_size = if is_first { rules.min_size } else { 0 };
        let pool = Pool {
            spec: spec.clone(),
            way: way.clone(),
            tls: way.in_force.current().server.clone(),
            state: PoolState::new(rules, spec.budgets.clone()).behind(spec.gate.clone()),
            cards: BTreeMap::new(),
            parked: Vec::new(),
            waiters: BTreeMap::new(),
            failure: None,
            hungry: Vec::new(),
            has_asked: false,
            running: Running::default(),
            drain: None,
            ahead: BTreeMap::new(),
        };
        self.pools.insert(id, Box::new(pool));
        self.by_key.insert(key, id);
        if !std::mem::replace(&mut self.has_janitor, true) {
            tokio::spawn(janitor());
        }
        id
    }

    fn checkout(&mut self, id: PoolId, waker: impl FnOnce() -> Waker) -> Checkout {
        let now = clock::now();
        let mut effects = std::mem::take(&mut self.effects);
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        let checkout = loop {
            let Some(pool) = self.get(id) else {
                break Checkout::Closed;
            };
            let Some(server) = pool.state.checkout(waiter, now, &mut effects) else {
                pool.waiters.insert(waiter, Outcome::Waiting(waker()));
                break Checkout::Wait(Ticket { pool: id, waiter });
            };
            match pool.unpark(server) {
                Some(server) => break Checkout::Ready(pool.lease(id, server, now)),
                // It has closed, or has said something, while it was idle.
                None => {
                    pool.count_closed("ended_idle");
                    pool.state.lost(server, now, &mut effects);
                }
            }
        };
        self.perform(id, effects, now);
        checkout
    }

    fn checkin(
        &mut self,
        id: PoolId,
        server_id: ServerId,
        (begun, now): (Option<Begun>, Moment),
        server: Box<Server>,
    ) {
        let mut effects = std::mem::take(&mut self.effects);
        let Some(pool) = self.get(id) else {
            return;
        };
        pool.end(begun);
        server.card.is_with(0);
        if server.is_spoiled || server.seat.notice().is_some() || !pool.is_opened_now(&server) {
            let is_cut = server.seat.notice().is_some();
            pool.count_closed(if is_cut { "lane_cut" } else { "spoiled" });
            server.close();
            pool.state.lost(server_id, now, &mut effects);
        } else {
            let to = pool.hungriest(now);
            pool.parked.push((server_id, server));
            match to {
                Some(to) => pool.send_parked(to, now, &mut effects),
                None => pool.state.checkin(server_id, now, &mut effects),
            }
        }
        self.perform(id, effects, now);
    }

    fn end(&mut self, id: PoolId, begun: Begun) {
        if let Some(pool) = self.get(id) {
            pool.end(Some(begun));
        }
    }

    /// The pools of one lane of a cluster.
    fn on_lane(&mut self, cluster: &str, lane: u64) -> impl Iterator<Item = &mut Pool> {
        let all = self.pools.values_mut().map(Box::as_mut);
        all.filter(move |pool| *pool.spec.cluster == *cluster && pool.spec.lane == lane)
    }

    fn lost(&mut self, id: PoolId, server: ServerId, begun: Option<Begun>) {
        let now = clock::now();
        let mut effects = std::mem::take(&mut self.effects);
        if let Some(pool) = self.get(id) {
            pool.end(begun);
            pool.count_closed("with_client");
            pool.close_if_cut(&mut effects);
            pool.state.lost(server, now, &mut effects);
        }
        self.perform(id, effects, now);
    }

    fn opened(&mut self, id: PoolId, server_id: ServerId, opened: Result<Server, OpenFailed>) {
        let now = clock::now();
        let mut effects = std::mem::take(&mut self.effects);
        let Some(pool) = self.get(id) else {
            return;
        };
        let is_ahead = pool.ahead.remove(&server_id).is_some();
        match opened {
            Ok(server) => {
                pool.failure = None;
                pool.renew();
                pool.cards.insert(server_id, server.card.clone());
                pool.parked.push((server_id, Box::new(server)));
                pool.state.connected(server_id, now, &mut effects);
            }
            Err(OpenFailed::LaneCut) => {
                pool.state
                    .connect_failed(server_id, Failure::Passing, now, &mut effects);
                pool.close(&mut effects);
            }
            Err(why) if is_ahead => {
                pool.tell_of_ahead(&why);
                pool.state
                    .connect_failed(server_id, Failure::Passing, now, &mut effects);
            }
            Err(why) => {
                let failure = match why.is_lasting() {
                    true => Failure::Lasting,
                    false => Failure::Passing,
                };
                pool.tell(&why);
                let is_full = why.code() == Some(sqlstate::TOO_MANY_CONNECTIONS);
                let full = is_full.then(|| pool.way.address.clone());
                pool.failure = Some(why);
                pool.state
                    .connect_failed(server_id, failure, now, &mut effects);
                if let Some(address) = full {
                    self.leave_room_at(&address);
                }
            }
        }
        self.perform(id, effects, now);
    }

    /// Carries effects out, in their order; `effects` is kept for the next time.
    fn perform(&mut self, id: PoolId, mut effects: Vec<Effect>, now: Moment) {
        let mut at = 0;
        while let Some(effect) = effects.get(at).cloned() {
            at += 1;
            let Some(pool) = self.get(id) else {
                break;
            };
            match effect {
                Effect::Connect(server) => pool.connect(id, server),
                Effect::Grant { waiter, server } => pool.grant(id, waiter, server, now),
                Effect::Close(server, reason) => pool.discard(server, reason),
                Effect::Refuse { waiter, why } => pool.refuse(waiter, why),
                Effect::LookAt(moment) => {
                    tokio::spawn(async move {
                        sleep(clock::now().until(moment)).await;
                        POOLS.with_borrow_mut(|pools| pools.maintain_one(id));
                    });
                }
                Effect::Starved => self.feed(id, now, &mut effects),
            }
        }
        effects.clear();
        self.effects = effects;
    }

    /// Somebody waits, and there is no place for another server: one that is idle elsewhere must give way.
    fn feed(&mut self, id: PoolId, now: Moment, effects: &mut Vec<Effect>) {
        let Some(pool) = self.get(id) else {
            return;
        };
        let spec = pool.spec.clone();
        let has_asked = std::mem::replace(&mut pool.has_asked, true);
        if self.evict_for(&spec) {
            if let Some(pool) = self.get(id) {
                pool.has_asked = false;
                pool.state.maintain(now, effects);
            }
            return;
        }
        let Some(peers) = cores::peers().filter(|_| !has_asked) else {
            return;
        };
        for (number, core) in peers.all.iter().enumerate() {
            if number != peers.own {
                let (spec, own) = (spec.clone(), peers.own);
                core.spawn(async move {
                    POOLS.with_borrow_mut(|pools| {
                        if !pools.asked(&spec.key(), own, now) {
                            pools.asked_to_evict(&spec, own);
                        }
                    });
                });
            }
        }
    }

    /// Another core has clients whose database or user may have no more servers: an idle one here gives way.
    fn asked_to_evict(&mut self, spec: &Arc<Spec>, core: usize) {
        if !self.evict_for(spec) {
            return;
        }
        let core = cores::peers().and_then(|peers| peers.all.get(core).cloned());
        if let Some(core) = core {
            let key = spec.key();
            core.spawn(async move {
                POOLS.with_borrow_mut(|pools| {
                    if let Some(id) = pools.by_key.get(&key).copied() {
                        pools.maintain_one(id);
                    }
                });
            });
        }
    }

    /// Closes an idle server of another pool, where that makes room.
    fn evict_for(&mut self, spec: &Spec) -> bool {
        // Who waits for the pool itself, as most do, does not pay for a look at all the others.
        if !spec.budgets.may_gain() {
            return false;
        }
        // What nobody has asked for goes first.
        if self.give_up_ahead_for(spec) {
            return true;
        }
        let mut effects = Vec::new();
        for pool in self.pools.values_mut() {
            let is_own = Arc::ptr_eq(&pool.spec.budgets.pool, &spec.budgets.pool);
            let helps = !is_own && spec.budgets.gains_by(&pool.spec.budgets);
            if !helps || !pool.state.evict(&mut effects) {
                continue;
            }
            for effect in effects.drain(..) {
                if let Effect::Close(server, reason) = effect {
                    pool.discard(server, reason);
                }
            }
            return true;
        }
        false
    }

    /// Another core has clients that wait since this time. Whether it is sent a server.
    fn asked(&mut self, key: &Key, core: usize, since: Moment) -> bool {
        let now = clock::now();
        let Some(id) = self.by_key.get(key).copied() else {
            return false;
        };
        let mut is_sent = false;
        let mut effects = std::mem::take(&mut self.effects);
        if let Some(pool) = self.get(id) {
            match pool.state.hand_away() {
                Some(_) => {
                    pool.send_away(core);
                    is_sent = true;
                }
                None => match pool.hungry.iter_mut().find(|known| known.core == core) {
                    Some(known) => known.heard = now,
                    None => pool.hungry.push(Hungry {
                        core,
                        since,
                        heard: now,
                    }),
                },
            }
        }
        effects.clear();
        self.perform(id, effects, now);
        is_sent
    }

    /// Takes a server that another core has sent.
    fn adopt(&mut self, key: &Key, parcel: Parcel, budgets: &Budgets) {
        let now = clock::now();
        let id = self.by_key.get(key).copied();
        let server = parcel.unpack();
        let (Some(id), Ok(server)) = (id, server) else {
            budgets.give_back();
            return;
        };
        let mut effects = std::mem::take(&mut self.effects);
        let Some(pool) = self.get(id) else {
            budgets.give_back();
            return;
        };
        pool.has_asked = false;
        pool.renew();
        let opened_at = server.opened_at;
        let number = pool.state.next_number();
        pool.cards.insert(number, server.card.clone());
        pool.parked.push((number, Box::new(server)));
        pool.state.adopt(opened_at, now, &mut effects);
        self.perform(id, effects, now);
    }

    fn maintain_one(&mut self, id: PoolId) {
        let now = clock::now();
        let mut effects = std::mem::take(&mut self.effects);
        if let Some(pool) = self.get(id) {
            pool.sweep(now, &mut effects);
        }
        self.perform(id, effects, now);
    }

    fn maintain(&mut self) {
        let now = clock::now();
        let all: Vec<PoolId> = self.pools.keys().copied().collect();
        for id in all {
            self.maintain_one(id);
            // Who was told and has not looked yet is still to hear it from this pool.
            let is_over = self
                .get(id)
                .is_some_and(|pool| pool.state.is_over(now) && pool.waiters.is_empty());
            if is_over {
                self.pools.remove(&id);
                self.by_key.retain(|_, known| *known != id);
            }
        }
    }
}

async fn janitor() {
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        POOLS.with_borrow_mut(Pools::maintain);
    }
}

/// How many servers and waiters the pools of this core have, for tests and the console: database, user and
/// counts.
pub fn counts() -> Vec<(Box<str>, Arc<str>, state::Counts)> {
    POOLS.with_borrow(|pools| {
        let open = pools.pools.values();
        open.map(|pool| {
            (
                pool.spec.database.clone(),
                pool.spec.user.clone(),
                pool.state.counts(),
            )
        })
        .collect()
    })
}
