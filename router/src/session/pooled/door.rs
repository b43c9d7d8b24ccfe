//! What all sessions of one user in one database on one listener have in common.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::auth::Credential;
use crate::config::databases::Terms;
use crate::config::pooling::{Mode, PoolingConfig};
use crate::listener::Listening;
use crate::pool::Spec;
use crate::pool::gate::Gate;
use crate::pool::registry::Registry;
use crate::protocol::settings::Settings;
use crate::roster::Place;
use crate::roster::account::Account;
use crate::topology::Cluster;
use crate::topology::routing_table::LaneId;

/// Above this many, what nobody uses any more is dropped.
const SWEEP_FROM: usize = 64;

/// What a session knows of its place.
pub(in crate::session) struct Door {
    pub(super) listening: Arc<Listening>,
    pub(super) registry: Arc<Registry>,
    config: Arc<PoolingConfig>,
    /// Where its database is.
    pub(super) cluster: Arc<Cluster>,
    pub(super) mode: Mode,
    /// As the client calls it.
    pub(super) database: Box<str>,
    pub(super) user: Box<str>,
    /// What it keeps to.
    pub(super) terms: Terms,
    credential: Arc<ArcSwap<Credential>>,
    /// Statements that are prepared on a server at most.
    pub(super) limit: usize,
    /// What an operator has told the database.
    pub(super) gate: Arc<Gate>,
    pub(super) position: Arc<Place>,
    /// What its sessions have done on this core.
    pub(super) tally: Account,
    specs: Mutex<BTreeMap<u64, Arc<Spec>>>,
}

/// Listener, database, user.
type Key = (Box<str>, Box<str>, Box<str>);

thread_local! {
    static DOORS: RefCell<BTreeMap<Key, Arc<Door>>> = RefCell::default();
    static SETTINGS: RefCell<BTreeSet<Arc<Settings>>> = RefCell::default();
}

impl Door {
    /// The one of this core, or a new one.
    pub(super) fn find(
        listening: &Arc<Listening>,
        registry: &Arc<Registry>,
        config: &Arc<PoolingConfig>,
        (database, user): (&str, &str),
        (cluster, terms): (Arc<Cluster>, Terms),
        credential: Arc<ArcSwap<Credential>>,
    ) -> Arc<Door> {
        let key: Key = (
            listening.address.as_str().into(),
            database.into(),
            user.into(),
        );
        DOORS.with_borrow_mut(|doors| {
            if let Some(door) = doors.get(&key)
                && Arc::ptr_eq(&door.config, config)
                && Arc::ptr_eq(&door.cluster, &cluster)
                && Arc::ptr_eq(&door.listening, listening)
                && door.tally.is_good()
            {
                return door.clone();
            }
            if doors.len() >= SWEEP_FROM {
                doors.retain(|_, door| Arc::strong_count(door) > 1);
            }
            let position = Place {
                scope: cluster.name.as_str().into(),
                database: database.into(),
                user: user.into(),
                listener: listening.address.as_str().into(),
            };
            let position = Arc::new(position);
            let door = Arc::new(Door {
                gate: registry.gates.of(database),
                tally: Account::open(&position),
                position,
                listening: listening.clone(),
                registry: registry.clone(),
                cluster,
                mode: terms.mode.unwrap_or(listening.mode),
                database: database.into(),
                user: user.into(),
                credential,
                limit: terms.pool.max_prepared_statements,
                terms,
                config: config.clone(),
                specs: Mutex::default(),
            });
            doors.insert(key, door.clone());
            door
        })
    }

    /// The spec of the pool on this lane. Those of other lanes are forgotten when it is a new one.
    pub(super) fn spec(&self, lane: LaneId) -> Arc<Spec> {
        let mut specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spec) = specs.get(&lane.0) {
            return spec.clone();
        }
        if specs.len() >= SWEEP_FROM {
            specs.clear();
        }
        let credential = self.credential.clone();
        let spec = self
            .registry
            .spec(self.place(), &self.terms, lane.0, credential);
        let spec = Arc::new(spec);
        specs.insert(lane.0, spec.clone());
        spec
    }

    /// Its name in the registry.
    pub(super) fn place(&self) -> (&str, &str, &str) {
        (self.cluster.name.as_str(), &self.database, &self.user)
    }
}

/// These settings, shared by all sessions of this core that have the same.
pub(super) fn interned(settings: Settings) -> Arc<Settings> {
    SETTINGS.with_borrow_mut(|known| {
        if let Some(same) = known.get(&settings) {
            return same.clone();
        }
        if known.len() >= SWEEP_FROM {
            known.retain(|settings| Arc::strong_count(settings) > 1);
        }
        let settings = Arc::new(settings);
        known.insert(settings.clone());
        settings
    })
}
