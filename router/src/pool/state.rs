//! All arithmetic of one pool on one core: who is idle, who works, who waits, what is opened and closed.
//! Pure: what happens comes in with the time it happens at, what is to be done goes out as effects, which are
//! to be carried out in their order.
//!
//! The invariant: nobody waits while a server is idle, and the oldest waiter is served first.

#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::Moment;

use crate::pool::budget::Budgets;
use crate::pool::gate::Gate;

mod ahead;

/// Servers that are being connected at once, per pool and core: a burst of clients after a blip must not
/// become a burst of log-ins at PostgreSQL.
pub const PARALLEL_CONNECTS: usize = 4;
/// The pause after a server could not be connected; doubled at each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// A pool in which nobody has waited and no server was for this long is taken down: clients choose the names
/// of databases.
pub const EMPTY_FOR: Duration = Duration::from_secs(60);

/// A server of one pool on one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerId(pub u32);

/// Somebody who waits for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// What a pool keeps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `min_pool_size`: servers kept open, as far as the budgets allow.
    pub min_size: usize,
    /// `reserve_pool_size`: servers beyond the pool's size for those who wait long.
    pub reserve_size: usize,
    /// `reserve_pool_timeout`: how long that is.
    pub reserve_after: Duration,
    /// `server_lifetime`: a server older than this is closed when it comes back.
    pub lifetime: Duration,
    /// `server_idle_timeout`: a server idle for longer is closed. Zero: never.
    pub idle_timeout: Duration,
    /// `server_login_retry`: the longest pause after a server could not be connected.
    pub longest_pause: Duration,
}

/// Why a server could not be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may be otherwise soon: nobody answers, it starts up or shuts down, it is full.
    Passing,
    /// It will not be otherwise by itself: no such database, a wrong password. Those who wait are told.
    Lasting,
}

/// Why a server is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// `server_lifetime`.
    Lifetime,
    /// `server_idle_timeout`.
    IdleTimeout,
    /// Another pool of the same database or user needs its place.
    Evicted,
    /// The pool is closed: its lane was cut.
    PoolClosed,
    /// `PAUSE` or `KILL`.
    Paused,
    /// `RECONNECT`: it was opened before that.
    Renewed,
}

impl CloseReason {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            CloseReason::Lifetime => "lifetime",
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::Evicted => "evicted",
            CloseReason::PoolClosed => "pool_closed",
            CloseReason::Paused => "paused",
            CloseReason::Renewed => "renewed",
        }
    }
}

/// Why somebody who waits gets no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// PostgreSQL refuses the log-in.
    Rejected,
    /// The pool is closed; there may be another one.
    PoolClosed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect a server, and report with [`PoolState::connected`] or [`PoolState::connect_failed`].
    Connect(ServerId),
    /// This server is the waiter's.
    Grant {
        /// Who.
        waiter: WaiterId,
        /// Which.
        server: ServerId,
    },
    /// Close an idle server. It is forgotten already.
    Close(ServerId, CloseReason),
    /// The waiter gets none.
    Refuse {
        /// Who.
        waiter: WaiterId,
        /// Why.
        why: Refusal,
    },
    /// Somebody waits and the budget is used up: an idle server elsewhere would help.
    Starved,
    /// Call [`PoolState::maintain`] at this time, besides the regular times.
    LookAt(Moment),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// Being connected before anybody asks for it: it gives way to whoever does.
    Ahead,
    Connecting,
    Idle,
    Active,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    condition: Condition,
    /// Since when it is in that condition.
    since: Moment,
    opened_at: Moment,
}

/// How many there are of each kind, for `SHOW POOLS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Servers being connected.
    pub connecting: usize,
    /// Idle servers.
    pub idle: usize,
    /// Servers at work.
    pub active: usize,
    /// Clients that wait.
    pub waiting: usize,
}

impl Counts {
    /// Servers that are connected.
    pub fn connected(&self) -> usize {
        self.idle + self.active
    }
}

/// One pool on one core.
#[derive(Debug)]
pub struct PoolState {
    rules: Rules,
    budgets: Budgets,
    gate: Arc<Gate>,
    servers: BTreeMap<ServerId, Known>,
    /// The one used last is on top: it is warm, and those below can end by `server_idle_timeout`.
    idle: Vec<ServerId>,
    waiting: VecDeque<(WaiterId, Moment)>,
    connecting: usize,
    next_server: u32,
    /// After a failure: how long, and until when nothing is connected.
    pause: Duration,
    retry_at: Moment,
    is_closed: bool,
    /// PostgreSQL refused the last log-in: only clients who ask for one bring about another.
    is_refused: bool,
    /// Since when there is nobody and nothing.
    empty_since: Option<Moment>,
    /// Its member does not lead yet, and nobody was sent here: nothing is connected but what is opened ahead.
    is_for_later: bool,
}

impl PoolState {
    /// An empty pool.
    pub fn new(rules: Rules, budgets: Budgets) -> Self {
        Self {
            rules,
            budgets,
            gate: Arc::default(),
            servers: BTreeMap::new(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            connecting: 0,
            next_server: 1,
            pause: Duration::ZERO,
            retry_at: Moment::default(),
            is_closed: false,
            is_refused: false,
            empty_since: None,
            is_for_later: false,
        }
    }

    /// The same pool, under what an operator tells its database.
    pub fn behind(self, gate: Arc<Gate>) -> Self {
        Self { gate, ..self }
    }

    /// Takes over changed rules.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// A client needs a server: the idle one used last, or `None` and its place in the queue.
    pub fn checkout(
        &mut self,
        waiter: WaiterId,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Option<ServerId> {
        self.empty_since = None;
        self.is_for_later = false;
        while let Some(server) = self.idle.pop() {
            match self.unwanted(server, now) {
                Some(reason) => self.close(server, reason, effects),
                None => {
                    self.mark(server, Condition::Active, now);
                    return Some(server);
                }
            }
        }
        if self.is_closed {
            let why = Refusal::PoolClosed;
            effects.push(Effect::Refuse { waiter, why });
            return None;
        }
        self.waiting.push_back((waiter, now));
        self.open(now, effects);
        if now < self.retry_at && self.waiting.len() == 1 {
            effects.push(Effect::LookAt(self.retry_at));
        }
        None
    }

    /// A waiter does not wait any more.
    pub fn leave(&mut self, waiter: WaiterId) {
        self.waiting.retain(|(known, _)| *known != waiter);
    }

    /// A server comes back clean: between transactions, with nothing outstanding.
    pub fn checkin(&mut self, server: ServerId, now: Moment, effects: &mut Vec<Effect>) {
        if !self.servers.contains_key(&server) {
            return;
        }
        match self.unwanted(server, now) {
            Some(reason) => {
                self.forget(server);
                effects.push(Effect::Close(server, reason));
                self.open(now, effects);
            }
            None => self.place(server, now, effects),
        }
    }

    /// A server was closed by whoever had it.
    pub fn lost(&mut self, server: ServerId, now: Moment, effects: &mut Vec<Effect>) {
        self.forget(server);
        self.open(now, effects);
    }

    /// A server is connected and ready.
    pub fn connected(&mut self, server: ServerId, now: Moment, effects: &mut Vec<Effect>) {
        let Some(known) = self.servers.get_mut(&server) else {
            return;
        };
        // One that was begun before all were to be new is not new.
        let is_old = self.gate.is_old(known.since);
        known.opened_at = if is_old { known.since } else { now };
        self.connecting -= 1;
        self.pause = Duration::ZERO;
        self.retry_at = Moment::default();
        self.is_refused = false;
        self.checkin(server, now, effects);
        self.open(now, effects);
    }

    /// A server could not be connected.
    pub fn connect_failed(
        &mut self,
        server: ServerId,
        failure: Failure,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let is_ahead = self.is_ahead(server);
        if self.servers.contains_key(&server) {
            self.connecting -= 1;
            self.forget(server);
        }
        if is_ahead {
            // Nobody has asked for it: no pause begins, and nobody is refused. Who has counted on it asks for another one.
            return self.open(now, effects);
        }
        self.pause = match failure {
            Failure::Passing => (self.pause * 2).max(FIRST_PAUSE),
            Failure::Lasting => self.rules.longest_pause,
        };
        self.pause = self.pause.min(self.rules.longest_pause);
        self.retry_at = now + self.pause;
        self.is_refused = failure == Failure::Lasting;
        match failure {
            Failure::Lasting => self.refuse_all(Refusal::Rejected, effects),
            Failure::Passing if self.waiting.is_empty() => {}
            Failure::Passing => effects.push(Effect::LookAt(self.retry_at)),
        }
    }

    /// An idle server for another core, with its place in the budgets; `None` if all work.
    pub fn hand_away(&mut self) -> Option<ServerId> {
        let server = self.idle.pop()?;
        self.servers.remove(&server);
        Some(server)
    }

    /// Takes a server that another core has handed away, with its place in the budgets.
    pub fn adopt(&mut self, opened_at: Moment, now: Moment, effects: &mut Vec<Effect>) -> ServerId {
        let server = self.number(Condition::Active, now);
        if let Some(known) = self.servers.get_mut(&server) {
            known.opened_at = opened_at;
        }
        self.checkin(server, now, effects);
        server
    }

    /// The number of the next server.
    pub fn next_number(&self) -> ServerId {
        ServerId(self.next_server)
    }

    /// Lets go of a server at work that goes to another core, with its place in the budgets.
    pub fn release(&mut self, server: ServerId) {
        self.servers.remove(&server);
    }

    /// An idle server has ended by itself.
    pub fn drop_idle(&mut self, server: ServerId) {
        self.idle.retain(|known| *known != server);
        self.forget(server);
    }

    /// Closes the idle server that was used longest ago, for another pool.
    pub fn evict(&mut self, effects: &mut Vec<Effect>) -> bool {
        if self.idle.is_empty() {
            return false;
        }
        let server = self.idle.remove(0);
        self.close(server, CloseReason::Evicted, effects);
        true
    }

    /// What the passing of time brings: expired servers, the reserve, the minimum, another attempt.
    pub fn maintain(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.is_closed {
            return;
        }
        let mut kept = Vec::with_capacity(self.idle.len());
        let mut left = self.servers.len();
        for server in std::mem::take(&mut self.idle) {
            match self.expired(server, left, now) {
                Some(reason) => {
                    left -= 1;
                    self.close(server, reason, effects);
                }
                None => kept.push(server),
            }
        }
        self.idle = kept;
        self.open(now, effects);
        let has_paused = now < self.retry_at || self.gate.is_paused();
        while self.servers.len() < self.rules.min_size
            && self.connecting < PARALLEL_CONNECTS
            && !has_paused
            && !self.is_for_later
            && !self.is_refused
            && self.budgets.take(0)
        {
            self.connect(Condition::Connecting, now, effects);
        }
        let is_kept = self.rules.min_size > 0 && !self.is_refused && !self.is_for_later;
        let is_empty = self.servers.is_empty() && self.waiting.is_empty() && !is_kept;
        self.empty_since = match is_empty {
            true => self.empty_since.or(Some(now)),
            false => None,
        };
    }

    fn expired(&self, server: ServerId, left: usize, now: Moment) -> Option<CloseReason> {
        if let Some(reason) = self.unwanted(server, now) {
            return Some(reason);
        }
        let known = self.servers.get(&server)?;
        let idle_timeout = self.rules.idle_timeout;
        let is_spare = left > self.rules.min_size;
        let is_over = !idle_timeout.is_zero() && now.since(known.since) > idle_timeout;
        (is_spare && is_over).then_some(CloseReason::IdleTimeout)
    }

    /// Why a server that nobody has is closed, idle or coming back.
    fn unwanted(&self, server: ServerId, now: Moment) -> Option<CloseReason> {
        let known = self.servers.get(&server)?;
        if self.is_closed {
            Some(CloseReason::PoolClosed)
        } else if self.gate.is_paused() {
            Some(CloseReason::Paused)
        } else if self.gate.is_old(known.opened_at) {
            Some(CloseReason::Renewed)
        } else if now.since(known.opened_at) > self.rules.lifetime {
            Some(CloseReason::Lifetime)
        } else {
            None
        }
    }

    /// Whether its lane was cut.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Ends the pool: its lane was cut. Servers at work are closed when they come back.
    pub fn close_all(&mut self, effects: &mut Vec<Effect>) {
        self.is_closed = true;
        for server in std::mem::take(&mut self.idle) {
            self.close(server, CloseReason::PoolClosed, effects);
        }
        self.refuse_all(Refusal::PoolClosed, effects);
    }

    /// Whether nothing is left of a closed pool, or nobody has used this one for [`EMPTY_FOR`].
    pub fn is_over(&self, now: Moment) -> bool {
        let is_empty = self.servers.is_empty() && self.waiting.is_empty();
        let is_unused = self
            .empty_since
            .is_some_and(|since| now.since(since) >= EMPTY_FOR);
        is_empty && (self.is_closed || is_unused)
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        Counts {
            connecting: self.connecting,
            idle: self.idle.len(),
            active: self.servers.len() - self.idle.len() - self.connecting,
            waiting: self.waiting.len(),
        }
    }

    /// Every server that is connected: whether it works, since when, and when it was opened.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, bool, Moment)> {
        let connected = self.servers.iter();
        let connected = connected.filter(|(_, known)| match known.condition {
            Condition::Ahead | Condition::Connecting => false,
            Condition::Idle | Condition::Active => true,
        });
        connected.map(|(id, known)| (*id, known.condition == Condition::Active, known.opened_at))
    }

    /// Since when the oldest waiter waits.
    pub fn oldest_waiter(&self) -> Option<Moment> {
        self.waiting.front().map(|(_, since)| *since)
    }

    /// Gives a clean server to the oldest waiter, or lays it aside.
    fn place(&mut self, server: ServerId, now: Moment, effects: &mut Vec<Effect>) {
        match self.waiting.pop_front() {
            Some((waiter, _)) => {
                self.mark(server, Condition::Active, now);
                effects.push(Effect::Grant { waiter, server });
            }
            None => {
                self.mark(server, Condition::Idle, now);
                self.idle.push(server);
            }
        }
    }

    /// Connects servers for those who wait, as far as the limits go.
    fn open(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.is_closed || self.gate.is_paused() {
            return;
        }
        while self.connecting < PARALLEL_CONNECTS.min(self.waiting.len()) && now >= self.retry_at {
            let waited = self.waiting.front().map(|(_, since)| now.since(*since));
            let is_long = waited.is_some_and(|waited| waited >= self.rules.reserve_after);
            let reserve = if is_long { self.rules.reserve_size } else { 0 };
            if !self.budgets.take(reserve) {
                if self.connecting == 0 {
                    effects.push(Effect::Starved);
                }
                return;
            }
            self.connect(Condition::Connecting, now, effects);
        }
    }

    fn connect(&mut self, condition: Condition, now: Moment, effects: &mut Vec<Effect>) {
        let server = self.number(condition, now);
        self.connecting += 1;
        effects.push(Effect::Connect(server));
    }

    fn number(&mut self, condition: Condition, now: Moment) -> ServerId {
        let server = ServerId(self.next_server);
        self.next_server = self.next_server.wrapping_add(1);
        let known = Known {
            condition,
            since: now,
            opened_at: now,
        };
        self.servers.insert(server, known);
        server
    }

    fn mark(&mut self, server: ServerId, condition: Condition, now: Moment) {
        if let Some(known) = self.servers.get_mut(&server) {
            known.condition = condition;
            known.since = now;
        }
    }

    fn refuse_all(&mut self, why: Refusal, effects: &mut Vec<Effect>) {
        let refused = self.waiting.drain(..);
        effects.extend(refused.map(|(waiter, _)| Effect::Refuse { waiter, why }));
    }

    fn close(&mut self, server: ServerId, reason: CloseReason, effects: &mut Vec<Effect>) {
        self.forget(server);
        effects.push(Effect::Close(server, reason));
    }

    fn forget(&mut self, server: ServerId) {
        if self.servers.remove(&server).is_some() {
            self.budgets.give_back();
        }
    }
}
