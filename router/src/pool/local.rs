//! One pool on this core: its idle servers, those who wait, and the other cores that want one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};
use trunkline_shared::cluster::Moment;

use super::{Lease, NoServer, PATIENCE, POOLS, PoolId, STILL_HUNGRY, Spec};
use crate::cores;
use crate::pool::alone::Home;
use crate::pool::running::{Begun, Running};
use crate::pool::state::{CloseReason, Effect, PoolState, Refusal, ServerId, WaiterId};
use crate::roster;
use crate::server::card::ServerCard;
use crate::server::login::{Identity, OpenFailed, open};
use crate::server::{Parcel, Server, Way};
use crate::tls::ServerTls;

/// What has become of somebody who waits.
pub(super) enum Outcome {
    Waiting(Waker),
    Granted(Lease),
    Refused(NoServer),
}

/// A pool.
pub(super) struct Pool {
    pub(super) spec: Arc<Spec>,
    pub(super) way: Arc<Way>,
    /// How PostgreSQL is spoken to, as last looked at: what was opened otherwise is closed when it comes free.
    pub(super) tls: Arc<ServerTls>,
    pub(super) state: PoolState,
    /// What is shown of the servers; also of some that are closed, until the next look.
    pub(super) cards: BTreeMap<ServerId, Arc<ServerCard>>,
    /// The idle servers, in the order of the state.
    pub(super) parked: Vec<(ServerId, Box<Server>)>,
    pub(super) waiters: BTreeMap<WaiterId, Outcome>,
    /// Why the last server could not be opened.
    pub(super) failure: Option<OpenFailed>,
    /// Other cores whose clients wait for a server of this pool.
    pub(super) hungry: Vec<Hungry>,
    /// The other cores know that clients wait here.
    pub(super) has_asked: bool,
    /// What a planned change of leader waits for.
    pub(super) running: Running,
    /// Who waits for it.
    pub(super) drain: Option<Arc<Notify>>,
    /// The tasks that open servers ahead, so that those can give way.
    pub(super) ahead: BTreeMap<ServerId, AbortHandle>,
}

/// A core whose clients wait for a server of another one.
pub(super) struct Hungry {
    pub(super) core: usize,
    /// They wait since then.
    pub(super) since: Moment,
    /// It said so last; it says so again as long as it is so.
    pub(super) heard: Moment,
}

/// A server and its number.
pub(super) struct Unparked(ServerId, Box<Server>);

impl Pool {
    /// Puts it into somebody's hands.
    pub(super) fn lease(
        &mut self,
        pool: PoolId,
        Unparked(id, server): Unparked,
        since: Moment,
    ) -> Lease {
        Lease {
            since,
            server: Some(server),
            home: Home::Pool(pool, id),
            begun: Some(self.running.begin()),
        }
    }

    /// A lease is over, or is not waited for any more. Who waits for the last of them is told once, and looks again.
    pub(super) fn end(&mut self, begun: Option<Begun>) {
        let before = self.running.count();
        self.running.end(begun);
        // Nobody waits but in a planned change.
        if self.drain.is_some()
            && self.running.is_over_since(before)
            && let Some(drain) = self.drain.take()
        {
            drain.notify_one();
        }
    }

    /// Takes an idle server that is as it was left.
    pub(super) fn unpark(&mut self, server: ServerId) -> Option<Unparked> {
        let mut own = self.take(server)?;
        let is_usable = own.seat.notice().is_none() && self.is_opened_now(&own);
        if !is_usable || !own.stream.is_silent() {
            debug!(member = %own.way.member, "an idle server has closed, been cut, or was opened by an older tls.server");
            return None;
        }
        Some(Unparked(server, own))
    }

    /// Looks at how PostgreSQL is spoken to now.
    pub(super) fn renew(&mut self) {
        let now = self.way.in_force.current();
        if !Arc::ptr_eq(&now.server, &self.tls) {
            self.tls = now.server.clone();
        }
    }

    /// Whether a server was opened as one would be now.
    pub(super) fn is_opened_now(&self, server: &Server) -> bool {
        Arc::ptr_eq(&server.opened_by, &self.tls)
    }

    pub(super) fn take(&mut self, server: ServerId) -> Option<Box<Server>> {
        let at = self.parked.iter().rposition(|(id, _)| *id == server)?;
        Some(self.parked.remove(at).1)
    }

    pub(super) fn connect(&mut self, pool: PoolId, server: ServerId) {
        let identity = Identity {
            database: self.spec.dbname.clone(),
            user: self.spec.user.clone(),
            credential: self.spec.credential.load_full(),
            replication: None,
            settings: Vec::new(),
        };
        let (way, limit) = (self.way.clone(), self.spec.connect_timeout);
        let opening = tokio::spawn(async move {
            let opened = open(way, identity, limit).await;
            POOLS.with_borrow_mut(|pools| pools.opened(pool, server, opened));
        });
        if self.state.is_ahead(server) {
            self.ahead.insert(server, opening.abort_handle());
        }
    }

    pub(super) fn grant(&mut self, pool: PoolId, waiter: WaiterId, server: ServerId, now: Moment) {
        let Some(own) = self.take(server) else {
            return;
        };
        let lease = self.lease(pool, Unparked(server, own), now);
        self.resolve(waiter, Outcome::Granted(lease));
    }

    pub(super) fn refuse(&mut self, waiter: WaiterId, why: Refusal) {
        let why = match (why, &self.failure) {
            (Refusal::Rejected, Some(failure)) => NoServer::Refused(failure.clone()),
            (Refusal::Rejected, None) | (Refusal::PoolClosed, _) => NoServer::PoolClosed,
        };
        self.resolve(waiter, Outcome::Refused(why));
    }

    pub(super) fn resolve(&mut self, waiter: WaiterId, outcome: Outcome) {
        if let Some(Outcome::Waiting(waker)) = self.waiters.insert(waiter, outcome) {
            waker.wake();
        }
    }

    pub(super) fn discard(&mut self, server: ServerId, reason: CloseReason) {
        if let Some(opening) = self.ahead.remove(&server) {
            // Nobody has had it, so it is no server that was closed.
            opening.abort();
            return;
        }
        self.count_closed(reason.name());
        if let Some(own) = self.take(server) {
            let (member, database) = (&own.way.member, &self.spec.database);
            debug!(%member, %database, user = %self.spec.user, ?reason, "server closed");
            own.close();
        }
    }

    pub(super) fn count_closed(&self, reason: &'static str) {
        let spec = &self.spec;
        roster::closed([&spec.cluster, &spec.database, &spec.user], reason);
    }

    pub(super) fn close(&mut self, effects: &mut Vec<Effect>) {
        if self.state.is_closed() {
            return;
        }
        self.state.close_all(effects);
        let (member, database) = (&self.way.member, &self.spec.database);
        info!(%member, %database, user = %self.spec.user, "pool closed: the member does not serve this any more");
    }

    pub(super) fn tell(&self, why: &OpenFailed) {
        let (member, database, user) = (&self.way.member, &self.spec.database, &self.spec.user);
        warn!(%member, %database, %user, "no server: {why}");
    }

    /// The same of one that nobody has asked for.
    pub(super) fn tell_of_ahead(&self, why: &OpenFailed) {
        let (member, database, user) = (&self.way.member, &self.spec.database, &self.spec.user);
        debug!(%member, %database, %user, "no server opened ahead: {why}");
    }

    /// Gives up one that is opened ahead. Whether there was one.
    pub(super) fn give_up_ahead(&mut self) -> bool {
        let mut effects = Vec::new();
        let has_given = self.state.give_up_ahead(&mut effects);
        for effect in effects {
            if let Effect::Close(server, reason) = effect {
                self.discard(server, reason);
            }
        }
        has_given
    }

    /// The core whose clients should have a server that comes back here.
    pub(super) fn hungriest(&mut self, now: Moment) -> Option<usize> {
        self.hungry
            .retain(|hungry| now.since(hungry.heard) < STILL_HUNGRY);
        let Hungry { core, since, .. } = *self.hungry.first()?;
        let is_ours_younger = match self.state.oldest_waiter() {
            None => true,
            Some(own) => now.since(since) > now.since(own) + PATIENCE,
        };
        if !is_ours_younger {
            return None;
        }
        self.hungry.remove(0);
        Some(core)
    }

    /// Sends the server parked last away; the state counts it as at work.
    pub(super) fn send_parked(&mut self, to: usize, now: Moment, effects: &mut Vec<Effect>) {
        if let Some((server, _)) = self.parked.last() {
            let server = *server;
            self.state.release(server);
            self.send_away(to);
            self.state.maintain(now, effects);
        }
    }

    /// Sends the server parked last, which the state has let go of, to another core.
    pub(super) fn send_away(&mut self, to: usize) {
        let Some((_, server)) = self.parked.pop() else {
            return;
        };
        let budgets = self.spec.budgets.clone();
        let core = cores::peers().and_then(|peers| peers.all.get(to).cloned());
        let parcel = Parcel::pack(*server);
        let (Some(core), Ok(parcel)) = (core, parcel) else {
            budgets.give_back();
            return;
        };
        let key = self.spec.key();
        core.spawn(async move {
            POOLS.with_borrow_mut(|pools| pools.adopt(&key, parcel, &budgets));
        });
    }

    /// Closes the pool if its lane was cut: who waits here is to look for another one, and not for the next attempt to
    /// connect. Whether it was.
    pub(super) fn close_if_cut(&mut self, effects: &mut Vec<Effect>) -> bool {
        let mut parked = self.parked.iter();
        let is_cut = !self.way.lanes.is_open(self.way.lane)
            || parked.any(|(_, server)| server.seat.notice().is_some());
        if is_cut {
            self.close(effects);
        }
        is_cut
    }

    /// Closes what has ended by itself, by its lane, or by its time.
    pub(super) fn sweep(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.close_if_cut(effects) {
            return;
        }
        self.renew();
        let tls = &self.tls;
        let dead: Vec<ServerId> = self
            .parked
            .iter_mut()
            .filter_map(|(id, server)| {
                let is_good = Arc::ptr_eq(&server.opened_by, tls) && server.stream.is_silent();
                (!is_good).then_some(*id)
            })
            .collect();
        for server in dead {
            self.count_closed("ended_idle");
            self.state.drop_idle(server);
            drop(self.take(server));
        }
        self.sort_cards();
        // Who still waits asks again: a core that had nothing then may have something now.
        self.has_asked = false;
        self.state.maintain(now, effects);
    }
}
