//! What pools and sessions of all cores share: the settings of this moment, credentials, budgets, the first
//! report of each database, and who is cancelled by which key. Looked up at log-in and when a pool is made,
//! never on the way of a transaction.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use arc_swap::ArcSwap;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::oneshot;
use trunkline_shared::service::tls::Reloadable;

use crate::admin::desk::Desk;
use crate::auth::mock::MockSecret;
use crate::auth::users::User;
use crate::auth::{Credential, Method, Proven, RANDOM_BYTES, Secret};
use crate::config::databases::Terms;
use crate::config::pooling::PoolingConfig;
use crate::fleet::cancel_key;
use crate::in_force::{Entrance, InForce};
use crate::pool::Spec;
use crate::pool::budget::{Budget, Budgets};
use crate::pool::clients::Clients;
use crate::pool::gate::Gates;
use crate::pool::state::Rules;

/// What a server reports when it lets somebody in, by name.
pub type Report = Arc<BTreeMap<Box<str>, Box<str>>>;

/// A name in the registry: cluster, database as clients call it, user.
type Place = (Box<str>, Box<str>, Box<str>);
/// Cluster, and database or user.
type Half = (Box<str>, Box<str>);
/// A cancel key: process and secret.
type Key = (u32, Box<[u8]>);

/// What all cores share.
pub struct Registry {
    /// The settings of this moment.
    pub in_force: Arc<Reloadable<InForce>>,
    /// How many clients there are.
    pub clients: Clients,
    /// What an operator has told the databases.
    pub gates: Gates,
    /// What the console acts upon.
    pub desk: Desk,
    /// From which the answers for unknown users are derived, where the file names nothing else.
    mock: MockSecret,
    random: SystemRandom,
    credentials: Mutex<BTreeMap<Half, Arc<ArcSwap<Credential>>>>,
    pool_budgets: Mutex<BTreeMap<(Place, u64), Arc<Budget>>>,
    database_budgets: Mutex<BTreeMap<Half, Arc<Budget>>>,
    user_budgets: Mutex<BTreeMap<Half, Arc<Budget>>>,
    reports: Mutex<BTreeMap<(Place, bool), Report>>,
    mailboxes: Mutex<BTreeMap<Key, Arc<Mailbox>>>,
    /// In the cancel keys that are given out here.
    pub cancel_number: u16,
    next_session: AtomicU32,
    next_statement: AtomicU32,
}

/// The system gives no randomness: nobody can be authenticated.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps stay whole whatever panics around them: every change is one insert or one remove.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// An empty one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new(in_force: InForce) -> Result<Self, NoRandomness> {
        let random = SystemRandom::new();
        let mut mock = [0; 32];
        random.fill(&mut mock).map_err(|_| NoRandomness)?;
        let mut number = [0; 2];
        random.fill(&mut number).map_err(|_| NoRandomness)?;
        let mock = MockSecret::of_bytes(mock);
        let config = &in_force.pooling;
        if config.auth.uses(Method::ScramSha256) {
            let mock = config.auth.mock.unwrap_or(mock);
            config.users.derive(mock.bytes(), None);
        }
        Ok(Self {
            in_force: Arc::new(Reloadable::new(in_force)),
            clients: Clients::default(),
            gates: Gates::default(),
            desk: Desk::default(),
            mock,
            random,
            credentials: Mutex::default(),
            pool_budgets: Mutex::default(),
            database_budgets: Mutex::default(),
            user_budgets: Mutex::default(),
            reports: Mutex::default(),
            mailboxes: Mutex::default(),
            cancel_number: u16::from_be_bytes(number) % cancel_key::NUMBERS,
            next_session: AtomicU32::new(1),
            next_statement: AtomicU32::new(1),
        })
    }

    /// Takes over a new file. Open pools keep their rules until they are made anew. What takes long comes first: the
    /// old settings are whole until the new ones are.
    pub fn reload(&self, new: InForce) {
        if new.pooling.auth.uses(Method::ScramSha256) {
            let before = self.config();
            let mock = self.mock(&new.pooling);
            let is_same = mock == self.mock(&before);
            let earlier = is_same.then_some(&*before.users);
            new.pooling.users.derive(mock.bytes(), earlier);
        }
        self.in_force.replace(new);
    }

    /// The sections of pooled listeners as they are at this moment.
    pub fn config(&self) -> Arc<PoolingConfig> {
        self.in_force.current().pooling.clone()
    }

    /// How clients come in at the listener of this address. A log-in asks once.
    pub fn entrance(&self, address: &str) -> Option<Entrance> {
        self.in_force.current().entrance(address).cloned()
    }

    /// The secret for mock answers under these settings.
    pub fn mock(&self, pooling: &PoolingConfig) -> MockSecret {
        pooling.auth.mock.unwrap_or(self.mock)
    }

    /// Random bytes for one exchange.
    ///
    /// # Errors
    /// The system gives none.
    pub fn random(&self) -> Result<[u8; RANDOM_BYTES], NoRandomness> {
        let mut bytes = [0; RANDOM_BYTES];
        self.random.fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(bytes)
    }

    /// A number for a statement, on all servers.
    pub fn statement_number(&self) -> u32 {
        self.next_statement.fetch_add(1, Ordering::Relaxed)
    }

    /// How the router logs in as this user of a cluster, after the user has logged in here.
    pub fn credential(
        &self,
        cluster: &str,
        name: &str,
        user: &User,
        proven: Proven,
    ) -> Arc<ArcSwap<Credential>> {
        let credential = match (user.secret(), proven.keys) {
            (Secret::Scram(_), Some(keys)) => Credential::Keys(keys),
            (Secret::Scram(_) | Secret::Plain(_) | Secret::Md5(_) | Secret::Empty, _) => {
                user.credential()
            }
        };
        let who: Half = (cluster.into(), name.into());
        let mut credentials = locked(&self.credentials);
        match credentials.get(&who) {
            Some(own) => {
                // One who was trusted proves nothing, and takes nothing away.
                let is_nothing = matches!(credential, Credential::Nothing);
                if !is_nothing && !own.load().is_same_password(&credential) {
                    own.store(Arc::new(credential));
                }
                own.clone()
            }
            None => {
                let own = Arc::new(ArcSwap::from_pointee(credential));
                credentials.insert(who, own.clone());
                own
            }
        }
    }

    /// What a pool of this database and user on this lane keeps to.
    pub fn spec(
        &self,
        (cluster, database, user): (&str, &str, &str),
        terms: &Terms,
        lane: u64,
        credential: Arc<ArcSwap<Credential>>,
    ) -> Spec {
        let pool = &terms.pool;
        let place = (cluster.into(), database.into(), user.into());
        let budgets = Budgets {
            pool: budget(
                &mut locked(&self.pool_budgets),
                (place, lane),
                pool.default_pool_size,
            ),
            database: budget(
                &mut locked(&self.database_budgets),
                (cluster.into(), database.into()),
                pool.max_db_connections,
            ),
            user: budget(
                &mut locked(&self.user_budgets),
                (cluster.into(), user.into()),
                pool.max_user_connections,
            ),
        };
        Spec {
            cluster: cluster.into(),
            database: database.into(),
            dbname: terms.dbname.clone(),
            user: user.into(),
            lane,
            credential,
            budgets,
            gate: self.gates.of(database),
            rules: Rules {
                min_size: pool.min_pool_size,
                reserve_size: pool.reserve_pool_size,
                reserve_after: pool.reserve_pool_timeout,
                lifetime: pool.server_lifetime,
                idle_timeout: pool.server_idle_timeout,
                longest_pause: pool.server_login_retry,
            },
            connect_timeout: pool.server_connect_timeout,
        }
    }

    /// What the same pool keeps to on another lane.
    pub fn on_lane(&self, spec: &Spec, lane: u64) -> Spec {
        let place = (
            spec.cluster.clone(),
            spec.database.clone(),
            Box::from(&*spec.user),
        );
        let limit = spec.budgets.pool.limit();
        let budgets = Budgets {
            pool: budget(&mut locked(&self.pool_budgets), (place, lane), limit),
            ..spec.budgets.clone()
        };
        Spec {
            lane,
            budgets,
            ..spec.clone()
        }
    }

    /// What the servers of a database reported last to this user; of the writer or of readers.
    pub fn report(&self, place: (&str, &str, &str), is_writer: bool) -> Option<Report> {
        let place = (place.0.into(), place.1.into(), place.2.into());
        locked(&self.reports).get(&(place, is_writer)).cloned()
    }

    /// Remembers such a report.
    pub fn set_report(&self, place: (&str, &str, &str), is_writer: bool, report: Report) {
        let place = (place.0.into(), place.1.into(), place.2.into());
        locked(&self.reports).insert((place, is_writer), report);
    }

    /// Forgets what is known of a cluster that is not followed any more: what its servers reported, and its users.
    pub fn forget_cluster(&self, cluster: &str) {
        locked(&self.reports).retain(|(place, _), _| &*place.0 != cluster);
        locked(&self.credentials).retain(|(own, _), _| &**own != cluster);
        self.in_force.current().forget_lines(cluster);
    }

    /// A cancel key that nobody has, for a new session.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new_key(&self) -> Result<(u32, [u8; 4]), NoRandomness> {
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        let process = cancel_key::process(self.cancel_number, session);
        Ok((process, self.new_secret()?))
    }

    /// The secret of a cancel key of the router's own. A server's own one is told to nobody: it would go on to
    /// cancel for the clients that have the server later.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new_secret(&self) -> Result<[u8; 4], NoRandomness> {
        let mut secret = [0; 4];
        self.random.fill(&mut secret).map_err(|_| NoRandomness)?;
        Ok(secret)
    }

    /// From here on the session with this key can be cancelled, until the entry is dropped.
    pub fn enter(self: &Arc<Self>, process: u32, secret: &[u8], mailbox: Arc<Mailbox>) -> Entered {
        let key = (process, Box::from(secret));
        locked(&self.mailboxes).insert(key.clone(), mailbox);
        Entered {
            registry: self.clone(),
            key,
        }
    }

    /// Ends every session that holds no server; those that do hear it from their lanes.
    pub fn end_all(&self) {
        for mailbox in locked(&self.mailboxes).values() {
            mailbox.put(END);
        }
    }

    /// Hands a cancel request to the session it names, if there is one. What it returns ends with an error
    /// once the session has dealt with the request.
    pub fn cancel(&self, process: u32, secret: &[u8]) -> Option<oneshot::Receiver<Infallible>> {
        let key = (process, Box::from(secret));
        let mailbox = locked(&self.mailboxes).get(&key).cloned()?;
        let (canceller, over) = oneshot::channel();
        locked(&mailbox.cancellers).push(canceller);
        mailbox.put(CANCEL);
        Some(over)
    }
}

fn budget<K: Ord>(budgets: &mut BTreeMap<K, Arc<Budget>>, key: K, limit: usize) -> Arc<Budget> {
    // Those of lanes that are gone: nobody holds them, nothing is open.
    budgets.retain(|_, budget| Arc::strong_count(budget) > 1);
    let own = budgets
        .entry(key)
        .or_insert_with(|| Arc::new(Budget::new(limit)));
    own.set_limit(limit);
    own.clone()
}

/// Where a session hears what others want of it.
#[derive(Debug, Default)]
pub struct Mailbox {
    mail: AtomicU8,
    waker: Mutex<Option<Waker>>,
    /// Connections that wait for the end of the cancel they asked for; `MAX_CANCELS` at most.
    cancellers: Mutex<Vec<Canceller>>,
}

/// Dropped when a cancel is over.
pub type Canceller = oneshot::Sender<Infallible>;

const CANCEL: u8 = 1;
const END: u8 = 2;
const KILL: u8 = 4;
const KILL_DATABASE: u8 = 8;

/// What came since the last look.
#[derive(Debug)]
pub struct Mail {
    /// The request that runs is to be cancelled.
    pub is_cancel: bool,
    /// Who waits for the end of that.
    pub cancellers: Vec<Canceller>,
    /// The session is to end, once it holds no server.
    pub is_end: bool,
    /// The session is to end at once.
    pub kill: Option<Kill>,
}

/// Who is ended by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// This client: `KILL_CLIENT`.
    Client,
    /// All of its database: `KILL`.
    Database,
}

impl Mailbox {
    fn put(&self, mail: u8) {
        self.mail.fetch_or(mail, Ordering::Release);
        if let Some(waker) = locked(&self.waker).as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Ends the session.
    pub fn kill(&self, kill: Kill) {
        self.put(match kill {
            Kill::Client => KILL,
            Kill::Database => KILL_DATABASE,
        });
    }

    /// Leaves the waker of the session's task.
    pub fn register(&self, cx: &Context<'_>) {
        *locked(&self.waker) = Some(cx.waker().clone());
    }

    /// Whether anything came since the last look.
    pub fn has_mail(&self) -> bool {
        self.mail.load(Ordering::Relaxed) != 0
    }

    /// Whether an order to end came since the last look.
    pub fn is_end(&self) -> bool {
        self.mail.load(Ordering::Acquire) & (END | KILL | KILL_DATABASE) != 0
    }

    /// Looks.
    pub fn take(&self) -> Mail {
        let mail = self.mail.swap(0, Ordering::Acquire);
        let cancellers = match mail & CANCEL != 0 {
            true => std::mem::take(&mut *locked(&self.cancellers)),
            false => Vec::new(),
        };
        Mail {
            is_cancel: mail & CANCEL != 0,
            cancellers,
            is_end: mail & END != 0,
            kill: match (mail & KILL != 0, mail & KILL_DATABASE != 0) {
                (true, _) => Some(Kill::Client),
                (false, true) => Some(Kill::Database),
                (false, false) => None,
            },
        }
    }
}

/// A session's place among those who can be cancelled.
pub struct Entered {
    registry: Arc<Registry>,
    key: Key,
}

impl Drop for Entered {
    fn drop(&mut self) {
        locked(&self.registry.mailboxes).remove(&self.key);
    }
}
