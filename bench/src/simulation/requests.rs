//! Requests to the DCS and its watches, with all that may happen to them on the way.

use std::sync::Arc;

use trunkline_agent::act::ACTION_LIMIT;
use trunkline_agent::decide::STOP_AHEAD;
use trunkline_shared::cluster::{Member, Moment};
use trunkline_shared::dcs::Header;

use super::breaks::{Break, Bug};
use super::event::{Event, MS, NodeId, SECOND, Time};
use super::failsafe::Listing;
use super::network::Place;
use super::store::{LeaderKey, Txn};
use super::story::{Actor, tell};
use super::world::{SILENCE_LIMIT, World};

/// What the path to the DCS does to requests, each until a time.
#[derive(Clone, Copy, Default)]
pub(super) struct Weather {
    /// Requests and answers take up to seconds.
    pub(super) slow_until: Time,
    /// Every third request or answer is lost.
    pub(super) loses_until: Time,
    /// Answers come twice, the second late.
    pub(super) twice_until: Time,
    /// Clients do not wait for standbys any longer.
    pub(super) impatient_until: Time,
    /// What strikes once a leader lists this node.
    pub(super) listing: Option<Listing>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Grant,
    KeepAlive(i64),
    ReadLeader,
    Commit(Txn),
    /// A new lease, and the leader key on it beside these writes, in a store that is not believed.
    Recreate(Txn),
    /// The member's record, in a store that is not believed.
    Word(Arc<Member>),
}

/// What for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// The lease task's.
    Lease,
    /// The read that makes a keep-alive count: when that was sent and by which term it was answered.
    /// With a turn it was asked for by an action.
    Check {
        sent: Moment,
        term: u64,
        changes: u32,
        turn: Option<u32>,
    },
    /// The keep-alive of an action.
    Confirm { turn: u32 },
    /// An action's transaction.
    Action { turn: u32 },
    /// The member's record.
    Record { number: u32 },
    /// The same in a store that is not believed.
    Word,
}

/// The answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    None,
    Granted(i64),
    /// Whether the lease lives.
    Alive(bool),
    /// Whether the key names the asker, and what it holds.
    Leader(Option<(bool, LeaderKey)>),
    /// The revision of the write, if the conditions held.
    Committed(Option<i64>),
    /// The revision of the write that made the keys anew, and the new lease.
    Recreated(i64, i64),
}

/// A request under way.
pub(super) struct Request {
    pub(super) node: NodeId,
    pub(super) boot: u32,
    pub(super) ask: Ask,
    pub(super) purpose: Purpose,
    pub(super) sent: Moment,
    pub(super) reply: Reply,
    pub(super) term: u64,
    /// What was known of the store when it was sent, and who answered.
    pub(super) before: Header,
    pub(super) header: Header,
    acceptances: u32,
    /// To which store its connection is.
    pub(super) incarnation: u32,
    is_executed: bool,
    is_done: bool,
}

impl World {
    /// Sends a request; one of answer and limit comes back.
    pub(super) fn send(&mut self, node: NodeId, ask: Ask, purpose: Purpose) {
        let limit = match purpose {
            Purpose::Lease | Purpose::Check { .. } => self.plan.ttl.as_nanos() as Time / 4,
            Purpose::Confirm { .. } | Purpose::Action { .. } => {
                self.plan.retry_timeout.min(ACTION_LIMIT).as_nanos() as Time
            }
            Purpose::Record { .. } | Purpose::Word => self.plan.retry_timeout.as_nanos() as Time,
        };
        let is_shut =
            self.node(node).agent.is_store_shut && !matches!(ask, Ask::Recreate(_) | Ask::Word(_));
        let limit = match is_shut {
            true => MS,
            false => self.bounded(node, &purpose, limit),
        };
        let sent = self.clock(node);
        let boot = self.node(node).agent.boot;
        let request = self.requests.len() as u32;
        self.requests.push(Request {
            node,
            boot,
            ask,
            purpose,
            sent,
            reply: Reply::None,
            term: 0,
            before: self.node(node).agent.client_saw,
            header: Header::default(),
            acceptances: self.node(node).agent.acceptances,
            incarnation: self.store.incarnation,
            is_executed: false,
            is_done: false,
        });
        self.put_in(limit, Event::Limit { request });
        // A connection needs both directions; only what is under way may be lost in one.
        if is_shut || !self.net.connects(Place::Node(node), Place::Dcs) || self.is_lost() {
            return;
        }
        let way = self.dcs_hop();
        self.put_in(way, Event::Arrive { request });
    }

    /// No action is waited for into the time in which PostgreSQL must be stopped.
    fn bounded(&self, node: NodeId, purpose: &Purpose, limit: Time) -> Time {
        let is_action = matches!(
            purpose,
            Purpose::Confirm { .. } | Purpose::Action { .. } | Purpose::Check { turn: Some(_), .. }
        );
        let armed = self.node(node).run_dir.deadline;
        let armed_left = armed.map(|deadline| self.clock(node).until(deadline));
        let left = [self.lease_left(node), armed_left]
            .into_iter()
            .flatten()
            .min();
        match left {
            Some(left)
                if is_action && (armed.is_some() || self.node(node).postgres.can_commit()) =>
            {
                let left = left.saturating_sub(STOP_AHEAD).as_nanos() as Time;
                limit.min(left.max(50 * MS))
            }
            Some(_) | None => limit,
        }
    }

    fn is_lost(&mut self) -> bool {
        self.weather.loses_until > self.now && self.rng.u8(..3) == 0
    }

    fn dcs_hop(&mut self) -> Time {
        let hop = self.hop();
        if self.weather.slow_until > self.now {
            let most = [20 * MS, 400 * MS, 4 * SECOND][self.rng.usize(..3)];
            return hop + self.rng.u64(..most);
        }
        hop
    }

    pub(super) fn on_arrive(&mut self, request: u32) -> bool {
        let at = request as usize;
        let node = self.requests[at].node;
        if self.store.down_until > self.now || self.requests[at].is_executed {
            return true;
        }
        if !self.net.reaches(Place::Node(node), Place::Dcs) {
            return true;
        }
        if self.requests[at].incarnation != self.store.incarnation {
            return true;
        }
        self.requests[at].is_executed = true;
        self.requests[at].term = self.store.term;
        let lists = self.lists_the_awaited(at);
        let reply = self.execute(at);
        self.requests[at].reply = reply;
        self.requests[at].header = self.store_header();
        if lists && matches!(reply, Reply::Committed(Some(_))) {
            // The connection ends, and the answer with it.
            let way = self.hop();
            self.put_in(way, Event::Limit { request });
            return true;
        }
        if self.is_lost() {
            return true;
        }
        let way = self.dcs_hop();
        self.put_in(way, Event::Answer { request });
        if self.weather.twice_until > self.now {
            let way = self.rng.u64(..2 * SECOND);
            self.put_in(way, Event::Answer { request });
        }
        true
    }

    fn execute(&mut self, at: usize) -> Reply {
        let now = self.now;
        let node = self.requests[at].node;
        match self.requests[at].ask {
            Ask::Grant => Reply::Granted(self.store.grant(self.plan.ttl.as_nanos() as Time, now)),
            Ask::KeepAlive(lease) => {
                if self.store.deposed_until > now && self.rng.bool() {
                    // The old raft leader has not heard of the new one: it answers and renews nothing.
                    self.requests[at].term = self.store.term - 1;
                    return Reply::Alive(true);
                }
                Reply::Alive(self.store.keep_alive(lease, now))
            }
            Ask::ReadLeader => {
                if let Some(found) = self.said_by_a_stale_member(node) {
                    return Reply::Leader(found);
                }
                let me = &self.node(node).name;
                let found = self.store.leader().map(|(name, key)| (name == me, key));
                Reply::Leader(found)
            }
            Ask::Commit(_) => {
                let Ask::Commit(txn) = std::mem::replace(&mut self.requests[at].ask, Ask::Grant)
                else {
                    return Reply::None;
                };
                let before = self.store.leader().map(|(_, key)| key.revision);
                let revision = self.store.commit(&txn);
                if revision.is_some() {
                    self.dcs_changed(Some(node), before);
                }
                self.requests[at].ask = Ask::Commit(txn);
                Reply::Committed(revision)
            }
            Ask::Recreate(ref txn) => {
                let mut txn = txn.clone();
                let before = self.store.leader().map(|(_, key)| key.revision);
                let lease = self.store.grant(self.plan.ttl.as_nanos() as Time, now);
                txn.then.extend(self.leader_anew(node, lease));
                let Some(revision) = self.store.commit(&txn) else {
                    return Reply::Committed(None);
                };
                let boot = self.requests[at].boot;
                self.ledger.authority.recreated = Some((node, lease, boot));
                self.dcs_changed(Some(node), before);
                Reply::Recreated(revision, lease)
            }
            Ask::Word(ref record) => {
                let record = record.clone();
                self.word_arrives(node, record)
            }
        }
    }

    /// The store has a new revision: watchers hear of it, the ledger notes who leads.
    pub(super) fn dcs_changed(&mut self, by: Option<NodeId>, leader_before: Option<i64>) {
        self.leader_key_changed(by, leader_before);
        for watcher in 0..self.watches.len() as u8 {
            self.push_view(watcher, None);
        }
    }

    pub(super) fn on_answer(&mut self, event: Event, request: u32) -> bool {
        let at = request as usize;
        let (node, boot) = (self.requests[at].node, self.requests[at].boot);
        if self.requests[at].is_done || self.node(node).agent.boot != boot {
            return false;
        }
        if !self.node(node).agent.is_alive {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        if !self.net.reaches(Place::Dcs, Place::Node(node)) {
            return true;
        }
        self.requests[at].is_done = true;
        self.answered(node, at);
        true
    }

    pub(super) fn on_limit(&mut self, event: Event, request: u32) -> bool {
        let at = request as usize;
        let (node, boot) = (self.requests[at].node, self.requests[at].boot);
        if self.requests[at].is_done || self.node(node).agent.boot != boot {
            return false;
        }
        if !self.node(node).agent.is_alive {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        self.requests[at].is_done = true;
        self.requests[at].reply = Reply::None;
        self.answered(node, at);
        true
    }

    fn answered(&mut self, node: NodeId, at: usize) {
        let has_answered = !matches!(self.requests[at].reply, Reply::None);
        let is_of_before = self.requests[at].acceptances != self.node(node).agent.acceptances;
        if is_of_before || !self.client_believes(node, at) {
            self.requests[at].reply = Reply::None;
        }
        match self.requests[at].purpose.clone() {
            Purpose::Lease => self.lease_answered(node, at),
            Purpose::Check {
                sent,
                term,
                changes,
                turn,
            } => self.check_answered(node, at, (sent, term), changes, turn),
            Purpose::Confirm { turn } => self.confirm_answered(node, at, turn),
            Purpose::Action { turn } => self.action_answered(node, at, turn),
            Purpose::Record { number } => self.record_answered(node, at, number),
            Purpose::Word => self.word_answered(node, has_answered),
        }
    }

    // Watches.

    /// Opens a watcher's connection anew.
    pub(super) fn start_watch(&mut self, watcher: u8) {
        let watch = &mut self.watches[usize::from(watcher)];
        watch.boot += 1;
        watch.seen = -1;
        watch.coming = None;
        watch.lists_at = self.now;
        let boot = watch.boot;
        self.put_in(MS, Event::WatchProbe { watcher, boot });
    }

    /// Sends the newest view: an event's, or the answer to a listing asked for at `asked`.
    fn push_view(&mut self, watcher: u8, asked: Option<Time>) {
        let place = self.place_of(watcher);
        let at = usize::from(watcher);
        if self.watches[at].coming.is_some() || self.watches[at].boot == 0 {
            return;
        }
        // Whoever has not listed yet is told of no changes.
        if asked.is_none() && self.watches[at].seen < 0 {
            return;
        }
        let is_stalled = self.watches[at].stalled_until > self.now && asked.is_none();
        if is_stalled || !self.net.reaches(Place::Dcs, place) {
            return;
        }
        self.watches[at].coming = Some((self.store.head.clone(), asked));
        self.watches[at].from = self.store_header();
        let way = self.hop();
        self.put_in(way, Event::WatchView { watcher });
    }

    fn watcher_sleeps_until(&self, watcher: u8) -> Time {
        match self.place_of(watcher) {
            Place::Node(node) => self.node(node).agent_sleeps_until(),
            Place::Dcs | Place::Router(_) => 0,
        }
    }

    pub(super) fn on_watch_view(&mut self, event: Event, watcher: u8) -> bool {
        if self.put_off(self.watcher_sleeps_until(watcher), event) {
            return true;
        }
        let at = usize::from(watcher);
        let place = self.place_of(watcher);
        let Some((view, asked)) = self.watches[at].coming.take() else {
            return false;
        };
        if !self.net.reaches(Place::Dcs, place) {
            return true;
        }
        let is_behind = view.revision < self.store.revision();
        self.view_arrives(watcher, view, asked);
        if is_behind {
            self.push_view(watcher, None);
        }
        true
    }

    /// A view arrives at whoever watches. One that is older than another already seen is refused.
    pub(super) fn view_arrives(
        &mut self,
        watcher: u8,
        view: Arc<trunkline_shared::cluster::Topology>,
        asked: Option<Time>,
    ) {
        let at = usize::from(watcher);
        let place = self.place_of(watcher);
        if matches!(place, Place::Node(node) if !self.node(node).agent.is_alive) {
            return;
        }
        let believes_old = matches!(place, Place::Router(_))
            && self.rule.is_some_and(|rule| rule.believes_old_views());
        if view.revision < self.watches[at].seen && !believes_old {
            return;
        }
        let header = self.watches[at].from;
        let is_believed = match place {
            // An event comes by a connection to the store that was believed when it was opened.
            Place::Node(node) if asked.is_none() => {
                self.node(node).run_dir.store.belief.doubt.is_none()
            }
            Place::Node(node) => self.agent_believes(node, header, &view),
            Place::Router(_) if believes_old => true,
            Place::Router(router) if asked.is_none() => {
                self.routers[usize::from(router)].belief.doubt.is_none()
            }
            Place::Router(router) => self.router_believes(router, header, &view),
            Place::Dcs => true,
        };
        if !is_believed {
            // It lists again, until the store is accepted.
            self.watches[at].seen = -1;
            if let Place::Router(router) = place {
                self.router_steps(router);
            }
            return;
        }
        self.watches[at].seen = view.revision;
        match place {
            Place::Node(node) => {
                if asked.is_none() {
                    self.take_event(node, header, &view);
                }
                // A sign of life counts from the sending of the question: an event may have waited in the
                // socket of a frozen reader.
                let asked = match self.rule {
                    Some(Break::ClaimIgnored) => Some(self.now),
                    _ => asked,
                };
                let proved = asked.map(|asked| self.node(node).clock(asked));
                let view = self.with_config(node, view);
                let agent = &mut self.node_mut(node).agent;
                let is_news = agent.view.as_ref().is_none_or(|old| matters(old, &view));
                agent.view = Some(view);
                if let Some(proved) = proved {
                    self.store_proved(node, proved);
                }
                if is_news {
                    self.wake(node);
                }
            }
            Place::Router(router) => {
                let belief = &mut self.routers[usize::from(router)].belief;
                if belief.doubt.is_none() {
                    belief.take(header, &view);
                }
                self.router_sees(router, view, asked);
            }
            Place::Dcs => {}
        }
    }

    pub(super) fn on_watch_probe(&mut self, event: Event, watcher: u8, boot: u32) -> bool {
        let at = usize::from(watcher);
        if self.watches[at].boot != boot {
            return false;
        }
        if self.put_off(self.watcher_sleeps_until(watcher), event) {
            return true;
        }
        let place = self.place_of(watcher);
        let every = (self.plan.retry_timeout.as_nanos() as Time / 3).min(SECOND);
        self.put_in(every, event);
        let is_silent = self.watches[at].stalled_until > self.now;
        let lists = is_silent && self.watches[at].lists_at <= self.now;
        let is_unheard = self.has_bug(Bug::CancelUnheard);
        let is_open = self.net.connects(place, Place::Dcs) && self.store.down_until <= self.now;
        if is_open && (is_unheard || !is_silent || lists) {
            let there = self.hop();
            let revision = self.store.revision();
            self.watches[at].lists_at = self.now + SILENCE_LIMIT;
            if self.watches[at].seen < revision && !(is_unheard && is_silent) {
                self.push_view(watcher, Some(self.now));
            }
            self.put_in(
                2 * there,
                Event::WatchAlive {
                    watcher,
                    sent: self.now,
                    revision: revision as u32,
                },
            );
        }
        true
    }

    pub(super) fn on_watch_alive(
        &mut self,
        event: Event,
        watcher: u8,
        sent: Time,
        revision: u32,
    ) -> bool {
        if self.put_off(self.watcher_sleeps_until(watcher), event) {
            return true;
        }
        let place = self.place_of(watcher);
        if matches!(place, Place::Node(node) if !self.node(node).agent.is_alive) {
            return false;
        }
        let seen = self.watches[usize::from(watcher)].seen;
        let is_behind = seen < i64::from(revision) && !self.has_bug(Bug::CancelUnheard);
        if !self.net.reaches(Place::Dcs, place) || is_behind {
            return true;
        }
        match place {
            Place::Node(node) => {
                let proved = self.node(node).clock(sent);
                self.store_proved(node, proved);
            }
            Place::Router(router) => {
                let router = &mut self.routers[usize::from(router)];
                router.proved = router.proved.max(sent);
            }
            Place::Dcs => {}
        }
        true
    }

    pub(super) fn on_lease_scan(&mut self) -> bool {
        self.put_in(500 * MS, Event::LeaseScan);
        self.copy_store();
        self.note_positions();
        if self.store.down_until > self.now {
            return true;
        }
        let before = self.store.leader().map(|(_, key)| key.revision);
        if self.store.expire(self.now) {
            if before.is_some() && self.store.leader().is_none() {
                tell!(self, Actor::Dcs, "the leader's lease has ended");
            }
            self.dcs_changed(None, before);
        }
        true
    }
}

/// Whether an agent is woken by a change: positions alone do not wake it.
fn matters(
    old: &trunkline_shared::cluster::Topology,
    new: &trunkline_shared::cluster::Topology,
) -> bool {
    let keys = old.leader != new.leader
        || old.initialize != new.initialize
        || !Arc::ptr_eq(&old.history, &new.history)
        || old.failover != new.failover
        || old.switchover != new.switchover
        || !Arc::ptr_eq(&old.routers, &new.routers)
        || old.disarmed != new.disarmed
        || old.claimed != new.claimed
        || old.settings != new.settings
        || old.failsafe != new.failsafe
        || old.members.len() != new.members.len();
    keys || old
        .members
        .iter()
        .zip(&new.members)
        .any(|((_, a), (_, b))| !Arc::ptr_eq(a, b) && differs(a, b))
}

/// Whether two records differ in more than positions and what a write of any record changes.
fn differs(one: &Member, other: &Member) -> bool {
    one.role != other.role
        || one.state != other.state
        || one.timeline != other.timeline
        || one.is_streaming != other.is_streaming
        || one.is_checkpointed_after_promote != other.is_checkpointed_after_promote
        || one.is_paused != other.is_paused
        || match (&one.trunkline, &other.trunkline) {
            (Some(one), Some(other)) => one.epoch != other.epoch || one.ready != other.ready,
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        }
}
