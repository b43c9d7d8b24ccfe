//! Who is here: the clients of pooled listeners on this core as the console shows them, and what they have done.
//! A session that comes or goes changes a map of its own core; nothing here is on the way of a query.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::config::pooling::Mode;
use crate::pool::registry::{Kill, Mailbox};
use crate::protocol::settings::Settings;
use crate::protocol::startup::Replication;
use crate::roster::places::{Places, Ticket};
use crate::server::card::next_id;
use crate::session::carry_over::look::PinReason;
use crate::tally::{Tally, Totals};

pub mod account;
pub mod places;

/// Rows of servers that were closed, of one core at most: by pool and reason.
const MAX_CLOSED: usize = 4096;
/// The name in the place of those that are not counted apart.
pub const OTHER: &str = "other";

/// Where a session is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The cluster.
    pub scope: Box<str>,
    /// The database, as clients call it.
    pub database: Box<str>,
    /// The user.
    pub user: Box<str>,
    /// The address of the listener.
    pub listener: Box<str>,
}

impl Place {
    fn other() -> Self {
        Self {
            scope: OTHER.into(),
            database: OTHER.into(),
            user: OTHER.into(),
            listener: OTHER.into(),
        }
    }
}

/// The places of all cores.
static PLACES: Mutex<Places> = Mutex::new(Places::new());

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is whole whatever panics around it: every change is one insert or one store.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What changes seldom in a session, as it was told last.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Its settings.
    pub settings: Arc<Settings>,
    /// Why it keeps its server.
    pub pin: Option<PinReason>,
    /// Named statements that are kept for it.
    pub statements: usize,
}

/// What is shown of a client.
pub struct ClientCard {
    /// Its number.
    pub id: u32,
    /// Where it is.
    pub place: Arc<Place>,
    /// What its listener does; none at the console.
    pub mode: Option<Mode>,
    /// Of which kind it is, if it replicates.
    pub replication: Option<Replication>,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The router's end.
    pub local: Option<SocketAddr>,
    /// Version and cipher of TLS; none in the clear.
    pub tls: Option<String>,
    /// When it had logged in.
    pub connected_at: Moment,
    /// Where it hears what others want of it.
    pub mailbox: Arc<Mailbox>,
    /// 0: it does not wait.
    waiting_since: AtomicU64,
    asked_at: AtomicU64,
    told: Mutex<Told>,
}

impl ClientCard {
    /// It begins to wait for a server, or has one; then `None`.
    pub fn waits(&self, since: Option<Moment>) {
        let since = since.map_or(0, |since| since.0.max(1));
        self.waiting_since.store(since, Ordering::Relaxed);
    }

    /// It asks something.
    pub fn asks(&self, now: Moment) {
        self.asked_at.store(now.0, Ordering::Relaxed);
    }

    /// What has changed of it.
    pub fn tell(&self, told: Told) {
        *locked(&self.told) = told;
    }

    fn view(self: &Arc<Self>) -> ClientView {
        let waiting = self.waiting_since.load(Ordering::Relaxed);
        let asked = Moment(self.asked_at.load(Ordering::Relaxed));
        ClientView {
            card: self.clone(),
            waiting_since: (waiting != 0).then_some(Moment(waiting)),
            asked_at: asked.max(self.connected_at),
            told: locked(&self.told).clone(),
        }
    }
}

/// A client as it was at one moment.
#[derive(Clone)]
pub struct ClientView {
    /// What it is.
    pub card: Arc<ClientCard>,
    /// Since when it waits for a server, if it does.
    pub waiting_since: Option<Moment>,
    /// When it asked last.
    pub asked_at: Moment,
    /// What changes seldom.
    pub told: Told,
}

/// Scope, database and user of a pool.
pub type PoolName = [Box<str>; 3];

#[derive(Default)]
struct Roster {
    clients: BTreeMap<u32, Arc<ClientCard>>,
    tallies: BTreeMap<Place, (Ticket, Arc<Tally>)>,
    /// Of all places that are not counted apart.
    others: Arc<Tally>,
    closed: BTreeMap<(PoolName, &'static str), u64>,
}

thread_local! {
    static ROSTER: RefCell<Roster> = RefCell::default();
}

fn tally_of_others() -> Arc<Tally> {
    ROSTER.with_borrow(|roster| roster.others.clone())
}

/// The numbers on this core of a place that is counted apart. Not per transaction.
fn own_tally(place: &Place, ticket: Ticket) -> Arc<Tally> {
    ROSTER.with_borrow_mut(|roster| {
        if let Some((known, tally)) = roster.tallies.get(place)
            && *known == ticket
        {
            return tally.clone();
        }
        let tally = Arc::<Tally>::default();
        let before = roster
            .tallies
            .insert(place.clone(), (ticket, tally.clone()));
        if let Some((_, before)) = before {
            roster.others.take_over(&before.read());
        }
        tally
    })
}

/// Counts a server of this core that was closed.
pub fn closed(pool: [&str; 3], reason: &'static str) {
    // While the thread ends there is nobody to count for.
    let _ = ROSTER.try_with(|roster| {
        let Ok(mut roster) = roster.try_borrow_mut() else {
            return;
        };
        let is_full = roster.closed.len() >= MAX_CLOSED;
        let key = (pool.map(Into::into), reason);
        if is_full && !roster.closed.contains_key(&key) {
            *roster.closed.entry(of_others(reason)).or_default() += 1;
            return;
        }
        *roster.closed.entry(key).or_default() += 1;
    });
}

fn of_others(reason: &'static str) -> (PoolName, &'static str) {
    ([OTHER; 3].map(Into::into), reason)
}

impl Roster {
    /// Notes which places have clients here, and counts with the others what is not counted apart any more.
    fn forget_unused(&mut self) {
        // Found before the lock is taken: all cores look at once, and each has thousands of clients.
        let of_clients = self.clients.values().map(|card| &card.place);
        let used: BTreeMap<_, _> = of_clients.map(|it| (Arc::as_ptr(it), it)).collect();
        let mut places = locked(&PLACES);
        let now = clock::now();
        for place in used.values() {
            places.seen(place, now);
        }
        let others = &self.others;
        self.tallies.retain(|place, (ticket, tally)| {
            let is_there = places.has(place, *ticket);
            if !is_there {
                others.take_over(&tally.read());
            }
            is_there
        });
        let pools = places.pools();
        let is_gone = |(pool, _): &(PoolName, _)| {
            let [scope, database, user] = pool.each_ref().map(|name| &**name);
            scope != OTHER && !pools.contains(&[scope, database, user])
        };
        let gone: Vec<_> = self
            .closed
            .keys()
            .filter(|key| is_gone(key))
            .cloned()
            .collect();
        for key in gone {
            let count = self.closed.remove(&key).unwrap_or_default();
            *self.closed.entry(of_others(key.1)).or_default() += count;
        }
    }
}

/// A client's place on the roster of its core, until it is dropped.
pub struct Listed(Arc<ClientCard>);

/// What is known of a client that has logged in.
pub struct Newcomer {
    /// Where it is.
    pub place: Arc<Place>,
    /// What its listener does; none at the console.
    pub mode: Option<Mode>,
    /// Of which kind it is, if it replicates.
    pub replication: Option<Replication>,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The router's end.
    pub local: Option<SocketAddr>,
    /// Version and cipher of TLS.
    pub tls: Option<String>,
    /// Now.
    pub now: Moment,
}

impl Listed {
    /// Puts a client on it.
    pub fn new(client: Newcomer) -> Self {
        let card = Arc::new(ClientCard {
            id: next_id(),
            place: client.place,
            mode: client.mode,
            replication: client.replication,
            peer: client.peer,
            local: client.local,
            tls: client.tls,
            connected_at: client.now,
            mailbox: Arc::default(),
            waiting_since: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
            told: Mutex::default(),
        });
        ROSTER.with_borrow_mut(|roster| roster.clients.insert(card.id, card.clone()));
        Self(card)
    }
}

impl Deref for Listed {
    type Target = ClientCard;

    fn deref(&self) -> &ClientCard {
        &self.0
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let _ = ROSTER.try_with(|roster| {
            if let Ok(mut roster) = roster.try_borrow_mut() {
                roster.clients.remove(&self.0.id);
            }
        });
    }
}

/// What this core has.
#[derive(Clone, Default)]
pub struct RosterView {
    /// Its clients.
    pub clients: Vec<ClientView>,
    /// What was done, by place with its number.
    pub tallies: Vec<(Place, usize, Totals)>,
    /// Servers that were closed, by pool and reason.
    pub closed: Vec<(PoolName, &'static str, u64)>,
}

/// All of it.
pub fn view() -> RosterView {
    ROSTER.with_borrow_mut(|roster| {
        roster.forget_unused();
        let tallies = roster.tallies.iter();
        let tallies =
            tallies.map(|(place, (own, tally))| (place.clone(), own.number, tally.read()));
        let others = (Place::other(), Ticket::OTHER.number, roster.others.read());
        let others = (others.2 != Totals::default()).then_some(others);
        let closed = roster.closed.iter();
        RosterView {
            clients: roster.clients.values().map(ClientCard::view).collect(),
            tallies: tallies.chain(others).collect(),
            closed: closed
                .map(|((pool, reason), count)| (pool.clone(), *reason, *count))
                .collect(),
        }
    })
}

/// Ends the clients of this core of which this is so. How many.
pub fn kill(kill: Kill, is_meant: impl Fn(&ClientCard) -> bool) -> usize {
    ROSTER.with_borrow(|roster| {
        let meant = roster.clients.values().filter(|card| is_meant(card));
        meant.map(|card| card.mailbox.kill(kill)).count()
    })
}
