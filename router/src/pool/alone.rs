//! Servers that are opened for one client and go with it: they count in the budgets of their pool, and are never in
//! it. PgBouncer counts its replication connections in the same way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::{Lease, POOLS, PoolId, Pools, Spec};
use crate::cores;
use crate::pool::budget::Budgets;
use crate::pool::state::{Counts, ServerId};
use crate::pool::view::{PoolView, ServerView};
use crate::protocol::startup::Replication;
use crate::roster;
use crate::server::card::{ServerCard, next_id};
use crate::server::login::{Identity, OpenFailed, open};
use crate::server::{Server, Way};

/// Where a leased server belongs.
pub(super) enum Home {
    /// In a pool, by its number.
    Pool(PoolId, ServerId),
    /// Nowhere else: it goes with its client.
    Alone(
        #[expect(dead_code, reason = "both are given back when it is dropped")] (Listed, Counted),
    ),
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

impl Counted {
    /// Takes one if there is one.
    fn take(budgets: &Budgets) -> Option<Self> {
        budgets.take(0).then(|| Self(budgets.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// What is shown of such a server.
struct Shown {
    spec: Arc<Spec>,
    member: String,
    replication: Option<Replication>,
    /// Once it is open: when it was.
    open: Option<(Arc<ServerCard>, Moment)>,
}

thread_local! {
    /// Those of this core.
    static ALONE: RefCell<BTreeMap<u32, Shown>> = RefCell::default();
}

/// A server's place among those that are shown, as long as it lives.
pub(super) struct Listed(u32);

impl Listed {
    fn new(spec: &Arc<Spec>, way: &Way, replication: Option<Replication>) -> Self {
        let shown = Shown {
            spec: spec.clone(),
            member: way.member.to_string(),
            replication,
            open: None,
        };
        let number = next_id();
        ALONE.with_borrow_mut(|alone| alone.insert(number, shown));
        Self(number)
    }

    fn is_open(&self, server: &Server) {
        ALONE.with_borrow_mut(|alone| {
            if let Some(shown) = alone.get_mut(&self.0) {
                shown.open = Some((server.card.clone(), server.opened_at));
            }
        });
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        // While the thread ends there is nobody to show it to.
        let _ = ALONE.try_with(|alone| {
            let shown = alone.try_borrow_mut().ok()?.remove(&self.0)?;
            shown.open?;
            let spec = &shown.spec;
            roster::closed([&spec.cluster, &spec.database, &spec.user], "with_client");
            Some(())
        });
    }
}

/// Those of this core, each as a pool of one.
pub(super) fn view() -> Vec<PoolView> {
    let view = |shown: &Shown| {
        let (spec, open) = (&shown.spec, &shown.open);
        let server = open.as_ref().map(|(card, opened_at)| ServerView {
            card: card.clone(),
            is_active: true,
            is_old: spec.gate.is_old(*opened_at),
            opened_at: *opened_at,
        });
        PoolView {
            scope: spec.cluster.clone(),
            database: spec.database.clone(),
            user: spec.user.clone(),
            member: shown.member.clone(),
            replication: shown.replication,
            counts: Counts {
                connecting: usize::from(open.is_none()),
                active: usize::from(open.is_some()),
                ..Counts::default()
            },
            servers: server.into_iter().collect(),
        }
    };
    ALONE.with_borrow(|alone| alone.values().map(view).collect())
}

/// How many of this core are meant, by their spec and by when they were opened.
pub(super) fn count(
    is_meant: impl Fn(&Spec) -> bool,
    is_so: impl Fn(&Spec, Option<Moment>) -> bool,
) -> usize {
    ALONE.with_borrow(|alone| {
        let meant = alone.values().filter(|shown| is_meant(&shown.spec));
        let so = meant.filter(|shown| {
            let opened_at = shown.open.as_ref().map(|(_, opened_at)| *opened_at);
            is_so(&shown.spec, opened_at)
        });
        so.count()
    })
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

/// Takes a place in the budgets of this pool, where one is free.
pub fn take_place(pool: PoolId) -> Place {
    POOLS.with_borrow_mut(|pools| {
        let Some(pool) = pools.get(pool) else {
            return Place::Closed;
        };
        match Counted::take(&pool.spec.budgets) {
            Some(counted) => Place::Free(Opening {
                spec: pool.spec.clone(),
                way: pool.way.clone(),
                counted,
            }),
            None => Place::Full,
        }
    })
}

/// The same where none is free: one idle server gives its place, of this core or, asked one after the other, of another
/// one. The place is taken in the same turn: nobody comes between, and no second server gives way for it.
pub async fn make_place(id: PoolId) -> Place {
    let own = POOLS.with_borrow_mut(|pools| {
        let (spec, way) = {
            let pool = pools.get(id)?;
            (pool.spec.clone(), pool.way.clone())
        };
        let counted = pools.give_way(&spec);
        Some((spec, way, counted))
    });
    let Some((spec, way, counted)) = own else {
        return Place::Closed;
    };
    let counted = match counted {
        Some(counted) => Some(counted),
        None => ask_others(&spec).await,
    };
    match counted {
        Some(counted) => Place::Free(Opening { spec, way, counted }),
        None => Place::Full,
    }
}

impl Pools {
    /// The place of an idle server of this core, which is closed for it; of several where more are open than may be.
    fn give_way(&mut self, spec: &Spec) -> Option<Counted> {
        loop {
            if let Some(counted) = Counted::take(&spec.budgets) {
                return Some(counted);
            }
            let is_exceeded = spec.budgets.is_exceeded();
            if !self.close_idle(spec) {
                return None;
            }
            if !is_exceeded {
                return Counted::take(&spec.budgets);
            }
        }
    }

    /// Closes an idle server of this pool, or of another one where that makes room. Whether there was one.
    fn close_idle(&mut self, spec: &Spec) -> bool {
        let Some(id) = self.by_key.get(&spec.key()).copied() else {
            return self.evict_for(spec);
        };
        let mut effects = std::mem::take(&mut self.effects);
        let pool = self.get(id);
        let has_closed = pool.is_some_and(|pool| pool.state.evict(&mut effects));
        self.perform(id, effects, clock::now());
        has_closed || self.evict_for(spec)
    }
}

/// Asks the other cores, until one of them has a place.
async fn ask_others(spec: &Arc<Spec>) -> Option<Counted> {
    let peers = cores::peers()?;
    for (number, core) in peers.all.iter().enumerate() {
        if number == peers.own {
            continue;
        }
        let spec = spec.clone();
        let asked = core.spawn(async move { POOLS.with_borrow_mut(|pools| pools.give_way(&spec)) });
        // What comes when nobody waits for it any more is given back.
        if let Ok(Some(counted)) = asked.await {
            return Some(counted);
        }
    }
    None
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
        let listed = Listed::new(&self.spec, &self.way, replication);
        let identity = Identity {
            database: self.spec.dbname.clone(),
            user: self.spec.user.clone(),
            credential: self.spec.credential.load_full(),
            replication,
            settings,
        };
        let server = open(self.way, identity, self.spec.connect_timeout).await?;
        listed.is_open(&server);
        Ok(Lease {
            server: Some(Box::new(server)),
            home: Home::Alone((listed, self.counted)),
            since: clock::now(),
            begun: None,
        })
    }
}
