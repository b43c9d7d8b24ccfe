//! Clients that write through the routers and remember what was acknowledged.

use trunkline_shared::cluster::settings::SynchronousMode;

use super::breaks::Bug;
use super::event::{Event, MS, NodeId, SECOND, Time};
use super::fake_postgres::Phase;
use super::invariants::{Invariant, KILL_LIMIT};
use super::network::Place;
use super::routers::Lane;
use super::world::World;

/// A write under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteSent {
    pub(super) router: u8,
    pub(super) lane: Lane,
    /// Which life of the instance its connection is to.
    pub(super) run: u32,
    branch: u32,
    end: u64,
    /// How old the router's view was when it sent it.
    sent: Time,
    /// Acknowledged past the deadline of a node on which nothing ran that could end it.
    is_unguarded: bool,
    /// Its wait for standbys was cancelled: PostgreSQL says so, and that it is committed.
    pub(super) is_unconfirmed: bool,
    /// A transaction that lasts.
    pub(super) is_transaction: bool,
    pub(super) is_answered: bool,
}

/// How long an instance may still be written to after it stopped being a primary: how long a router may
/// believe an old view, and a margin.
const BELIEF: Time = 4 * SECOND;
/// In how short a time a router that the DCS does not answer asks an agent that was gone, or could not be reached, and is
/// back: until then what it vouched for before counts.
const ASKED_ANEW: Time = 300 * MS;

impl World {
    pub(super) fn on_write(&mut self, client: u8) -> bool {
        let every = self.plan.write_every;
        let pause = every / 2 + self.rng.u64(..every);
        self.put_in(pause, Event::Write { client });
        let router = client % self.plan.routers;
        let Some(lane) = self.routers[usize::from(router)].writer else {
            return true;
        };
        let is_transaction = client % 2 == 1;
        if !self.dispatches(router, is_transaction) {
            return true;
        }
        self.check_sent(router, lane);
        if !self
            .net
            .reaches(Place::Router(router), Place::Node(lane.node))
        {
            return true;
        }
        let write = self.writes.len() as u32;
        self.writes.push(WriteSent {
            router,
            lane,
            run: self.node(lane.node).postgres.run,
            branch: 0,
            end: 0,
            sent: self.now,
            is_unguarded: false,
            is_unconfirmed: false,
            is_transaction,
            is_answered: false,
        });
        self.routers[usize::from(router)].fleet.open.push(write);
        let lasts = match is_transaction {
            true => self.plan.fleet.transaction,
            false => 0,
        };
        let way = self.hop() + lasts;
        self.put_in(way, Event::WriteArrives { write });
        true
    }

    pub(super) fn on_write_arrives(&mut self, event: Event, write: u32) -> bool {
        let at = write as usize;
        let sent = self.writes[at];
        let node: NodeId = sent.lane.node;
        let this = self.node(node);
        if !this.is_powered || this.postgres.run != sent.run {
            return true;
        }
        let sleeps = this.frozen_until.max(this.postgres.hung_until);
        let sleeps = sleeps.max(this.troubles.disk_hangs);
        if self.put_off(sleeps, event) {
            return true;
        }
        let this = self.node(node);
        let is_writable = this.postgres.phase == Phase::Primary
            || (this.postgres.phase == Phase::Down && this.postgres.has_orphans);
        if matches!(this.postgres.phase, Phase::Replica { .. }) {
            let since = this.postgres.was_primary_until;
            self.note_recorded_primary();
            let since = since.max(self.ledger.recorded_primary[usize::from(node)]);
            let router = Place::Router(sent.router);
            let is_heard = self.net.mended_at(Place::Node(node), router);
            let is_asked = self.node(node).agent.started_at.max(is_heard) + ASKED_ANEW;
            if sent.sent > is_asked.max(since + BELIEF) {
                self.fail(
                    Invariant::RouterNeverSendsWritesToAReplica,
                    format!(
                        "router {} sends a write to {}, which is in recovery",
                        sent.router,
                        self.node(node).name
                    ),
                );
            }
            return true;
        }
        if !is_writable || this.postgres.waiting.is_closed {
            return true;
        }
        self.check_hidden(node);
        let bytes = self.plan.commit_bytes;
        let postgres = &mut self.node_mut(node).postgres;
        let Some(data) = &mut postgres.data else {
            return true;
        };
        data.end += bytes;
        let (branch, end) = (data.branch, data.end);
        self.writes[at].branch = branch;
        self.writes[at].end = end;
        self.ship_to_all(node);
        self.commit_waits(node, write, end);
        true
    }

    /// PostgreSQL tells the client that its commit is done.
    pub(super) fn answer_write(&mut self, node: NodeId, write: u32) {
        let this = self.node(node);
        let deadline = this.run_dir.deadline;
        let is_over = deadline.is_some_and(|deadline| this.clock(self.now) > deadline);
        // One that thaws after the deadline may commit until its fence has killed, and in quorum mode a standby that
        // streams yet confirm it, which has voted for another.
        let is_thawing = self.now < this.unguarded + KILL_LIMIT
            && deadline.is_some_and(|deadline| this.clock(this.unguarded) >= deadline)
            && self.plan.synchronous_mode == SynchronousMode::Quorum;
        let is_unguarded = is_over && (is_thawing || !this.is_guarded(self.now));
        self.writes[write as usize].is_unguarded = is_unguarded;
        let router = self.writes[write as usize].router;
        if self.net.reaches(Place::Node(node), Place::Router(router)) {
            let way = self.hop();
            self.put_in(way, Event::WriteAnswered { write });
        }
    }

    pub(super) fn on_write_answered(&mut self, write: u32) -> bool {
        self.writes[write as usize].is_answered = true;
        let sent = self.writes[write as usize];
        let router = &self.routers[usize::from(sent.router)];
        // A session that was cut takes no answer to its client.
        if router.has_cut(sent.lane) {
            return true;
        }
        // Only a watchdog could have kept it from that: such a node is no part of any promise.
        if sent.is_unguarded && self.is_synchronous() {
            return true;
        }
        // The router tells the client that the outcome is not known.
        if sent.is_unconfirmed && !self.has_bug(Bug::CancelledWaitRelayed) {
            return true;
        }
        let now = self.now;
        let acknowledged = &mut self.branches.0[sent.branch as usize].acknowledged;
        acknowledged.push((now, sent.end));
        true
    }
}
