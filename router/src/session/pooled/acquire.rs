//! A server for a client that asks something: at once if one is idle, else as long as the client may wait.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::sleep;
use trunkline_shared::service::clock;

use super::Pooled;
use super::door::interned;
use crate::config::pooling::Mode;
use crate::error::{RequestError, SessionError};
use crate::listener::Listening;
use crate::pool::registry::{Mail, Mailbox, Registry};
use crate::pool::{self, Checkout, Lease, NoServer, PoolId, Ticket};
use crate::protocol::messages;
use crate::protocol::settings::{Settings, SettingsSeen, tracked};
use crate::protocol::sqlstate;
use crate::route::{Awaited, Chosen, NoRoute, RouteRequest, route};
use crate::server::login::OpenFailed;
use crate::server::{QueryFailed, Way};
use crate::session::carry_over::look::PinReason;
use crate::session::carry_over::opening::wants;
use crate::session::reach::{Held, gone};
use crate::session::stranded::Stranded;
use crate::topology::routing_table::Wants;
use crate::topology::{Cluster, Published};

/// Pause before a pool whose lane is cut is looked for again; the next table is a moment away.
const NEXT_TABLE: Duration = Duration::from_millis(20);
/// A version that no table has: a route that is not kept for the next request.
const NOT_KEPT: u64 = 0;

impl Pooled {
    /// Takes a server if one is idle.
    pub(super) fn quick_server(&mut self, cx: &Context<'_>) {
        let version = self.door.cluster.version();
        let Some((_, pool)) = self.route.filter(|(known, _)| *known == version) else {
            return;
        };
        if self.door.gate.is_paused() || !pool::has_idle(pool) {
            return;
        }
        if let Checkout::Ready(lease) = pool::checkout(pool, || cx.waker().clone()) {
            self.door.tally.wait.note(Duration::ZERO);
            self.lent(lease);
        }
    }

    /// Waits for a server: for a leader within `hold_timeout`, for its servers within `query_wait_timeout`.
    pub(super) async fn acquire(&mut self) -> Result<(), SessionError> {
        let began = clock::now();
        self.card.waits(Some(began));
        let outcome = self.acquire_in_turn().await;
        self.card.waits(None);
        let waited = clock::now().since(began);
        self.door.tally.wait.note(waited);
        outcome
    }

    async fn acquire_in_turn(&mut self) -> Result<(), SessionError> {
        loop {
            if self.door.gate.is_paused() && self.wait_at_gate().await?.is_none() {
                // Cancelled, and answered.
                return Ok(());
            }
            let pool = match self.kept_pool() {
                Some(pool) => pool,
                None => match self.find_pool_or_cancel().await? {
                    Some(pool) => pool,
                    // Cancelled, and answered.
                    None => return Ok(()),
                },
            };
            let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
            let granted = match pool::checkout(pool, || waker) {
                Checkout::Ready(lease) => Ok(lease),
                Checkout::Closed => Err(NoServer::PoolClosed),
                Checkout::Wait(ticket) => match self.wait(ticket).await? {
                    Some(granted) => granted,
                    // Cancelled, and answered.
                    None => return Ok(()),
                },
            };
            match granted {
                // A planned change of leader has begun while it waited.
                Ok(lease) if self.is_held_meanwhile() => lease.checkin(),
                Ok(lease) => {
                    self.door.tally.is_real();
                    self.lent(lease);
                    return Ok(());
                }
                Err(NoServer::Refused(why)) => return Err(rejected(why)),
                Err(NoServer::PoolClosed) => {
                    let known = self.route.take().map(|(version, _)| version);
                    if known == Some(self.door.cluster.version()) {
                        sleep(NEXT_TABLE).await;
                    }
                }
            }
        }
    }

    /// Waits in a pool's queue. `None`: the client has cancelled its request.
    async fn wait(
        &mut self,
        mut ticket: Ticket,
    ) -> Result<Option<Result<Lease, NoServer>>, SessionError> {
        let limit = self.door.terms.pool.query_wait_timeout;
        let pool = self.route.map(|(_, pool)| pool);
        tokio::select! {
            biased;
            granted = poll_fn(|cx| ticket.poll(cx)) => Ok(Some(granted)),
            mail = mail(&self.mailbox) => self.hear(&mail).map(|()| None),
            () = gone(self.client.socket()) => Err(SessionError::ClientGone),
            () = over(limit) => {
                let failure = pool.and_then(pool::failure);
                let code = failure.as_ref().and_then(OpenFailed::code);
                let why = failure.as_ref().map_or_else(String::new, |why| format!(": {why}"));
                Err(self.no_free_server(why, code))
            }
        }
    }

    /// Waits until an operator lets the clients of the database go on. `None`: the client has cancelled its request.
    pub(super) async fn wait_at_gate(&mut self) -> Result<Option<()>, SessionError> {
        let limit = self.door.terms.pool.query_wait_timeout;
        let gate = self.door.gate.clone();
        tokio::select! {
            biased;
            () = gate.is_open() => Ok(Some(())),
            mail = mail(&self.mailbox) => self.hear(&mail).map(|()| None),
            () = gone(self.client.socket()) => Err(SessionError::ClientGone),
            () = over(limit) => {
                let why = ": it is paused by an operator (RESUME ends that)";
                Err(self.no_free_server(why.to_owned(), None))
            }
        }
    }

    fn no_free_server(&self, why: String, code: Option<&str>) -> SessionError {
        SessionError::NoFreeServer {
            database: self.door.database.to_string(),
            user: self.door.user.to_string(),
            limit: self.door.terms.pool.query_wait_timeout,
            why,
            code: code.map(str::to_owned),
        }
    }

    /// Mail for a session that waits for a server: its request is cancelled, or it is ended.
    fn hear(&mut self, mail: &Mail) -> Result<(), SessionError> {
        if let Some(error) = self.ordered_end(mail) {
            return Err(error);
        }
        self.answer_cancel();
        Ok(())
    }

    /// The request that waits was never sent: it is answered here.
    fn answer_cancel(&mut self) {
        let (own, _) = Stranded::begin(RequestError::Canceled, false, (0, false), &mut Vec::new());
        self.stranded = Some(Box::new(own));
    }

    /// Whether the route that was found does not hold any more, because of a planned change of leader.
    fn is_held_meanwhile(&self) -> bool {
        if self.kept_pool().is_some() {
            return false;
        }
        let published = self.door.cluster.published();
        let is_new = |(version, _)| version != published.version;
        let is_held = || {
            let route = self.route_by(&published);
            matches!(route, Err(NoRoute::Hold(Awaited::Switchover)))
        };
        self.route.is_none_or(is_new) && is_held()
    }

    /// What the client asks needs, of which nothing was sent yet.
    fn wants(&self) -> Wants {
        match (self.door.mode, self.pinned) {
            (Mode::Tcp | Mode::Session, _) | (_, Some(PinReason::Replication)) => Wants::Session,
            // A block is refused there.
            (Mode::Statement, _) => Wants::Statement,
            (Mode::Transaction, _) => wants(&self.carry, self.statements.get()),
        }
    }

    /// The pool that was found before, if nothing was published since: the usual case, without a count that all cores share.
    fn kept_pool(&self) -> Option<PoolId> {
        let (known, pool) = self.route?;
        (known == self.door.cluster.version() && pool::is_there(pool)).then_some(pool)
    }

    /// As [`Self::find_pool`], `None` where the client has cancelled its request meanwhile: it was never sent.
    async fn find_pool_or_cancel(&mut self) -> Result<Option<PoolId>, SessionError> {
        let mailbox = self.mailbox.clone();
        let mail = tokio::select! {
            biased;
            mail = mail(&mailbox) => mail,
            pool = self.find_pool() => return pool.map(Some),
        };
        self.hear(&mail).map(|()| None)
    }

    /// The pool of the client's target, however long it is held for one.
    pub(super) async fn find_pool(&mut self) -> Result<PoolId, SessionError> {
        let listening = self.door.listening.clone();
        let began = clock::now();
        let limit = listening.hold_timeout();
        loop {
            let mut changed = self.door.cluster.changes();
            let published = self.door.cluster.published();
            if let Some((known, pool)) = self.route
                && known == published.version
                && pool::is_there(pool)
            {
                return Ok(pool);
            }
            let why = match self.route_by(&published) {
                Ok(way) => {
                    // During a planned change of leader the way to the one that is left is good for this request only.
                    let version = match published.holds(way.lane) {
                        true => NOT_KEPT,
                        false => published.version,
                    };
                    let spec = self.door.spec(way.lane);
                    let pool = pool::ensure(&spec, &Arc::new(way));
                    self.route = Some((version, pool));
                    return Ok(pool);
                }
                Err(why) => why,
            };
            let waited = clock::now().since(began);
            let is_held = matches!(why, NoRoute::Hold(_));
            if !is_held || waited >= limit {
                return Err(SessionError::no_route(&self.door.cluster.name, why, waited));
            }
            let _held = Held::new(&listening, &self.door.cluster);
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep(limit - waited) => {}
                () = ended(&self.mailbox) => {
                    let ended = self.ordered_end(&self.mailbox.take());
                    return Err(ended.unwrap_or(SessionError::ClientGone));
                }
                () = gone(self.client.socket()) => return Err(SessionError::ClientGone),
            }
        }
    }

    fn route_by(&self, published: &Published) -> Result<Way, NoRoute> {
        let (listening, registry) = (&self.door.listening, &self.door.registry);
        let cluster = (&*self.door.cluster, published);
        way_by(listening, cluster, registry, || self.wants())
    }

    /// Gives the server the client's settings.
    pub(super) async fn carry_settings(&mut self) -> Result<(), SessionError> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let sql = server.settings.change_to(&self.settings);
        if sql.is_empty() {
            server.settings = self.settings.clone();
            return Ok(());
        }
        match server.run(&sql).await {
            Ok(_) => {}
            Err(QueryFailed::Refused(complaint)) => {
                if let Some(server) = self.server.take() {
                    server.checkin();
                }
                return Err(SessionError::Rejected {
                    code: complaint.code,
                    message: complaint.message,
                });
            }
            Err(QueryFailed::Lost) => {
                // Nothing of the client's was sent: another server will do.
                self.server = None;
                self.is_seated = false;
                return Ok(());
            }
        }
        // PostgreSQL spells some values in its own way, and the client hears of that.
        let mut settled = Settings::clone(&self.settings);
        let mut told = Vec::new();
        for (name, value) in &server.reported {
            let is_other = tracked(name).is_some() && settled.value(name) != Some(value);
            if is_other {
                settled.set(name, value);
                messages::parameter_status(&mut told, name, value);
            }
        }
        let settled = interned(settled);
        server.settings = settled.clone();
        self.settings = settled;
        self.to_client.push(&told);
        Ok(())
    }

    /// Asks the server for settings that the client may have changed, and notes them for both. Where that fails, the
    /// client keeps its server.
    pub(super) async fn ask_settings(&mut self) -> Result<(), SessionError> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        // A simple query ends the unnamed statement.
        self.has_unnamed = false;
        let mut of_server = Settings::clone(&server.settings);
        let mut of_client = Settings::clone(&self.settings);
        for name in self.to_ask.names() {
            match server.run(&format!("SHOW {name}")).await {
                Ok(Some(value)) => {
                    of_server.set(name, &value);
                    of_client.set(name, &value);
                }
                Ok(None) | Err(QueryFailed::Refused(_)) => {
                    self.pinned = Some(PinReason::Set);
                    return Ok(());
                }
                Err(QueryFailed::Lost) => return self.server_gone(),
            }
        }
        server.settings = interned(of_server);
        self.settings = interned(of_client);
        self.to_ask = SettingsSeen::default();
        self.release();
        Ok(())
    }
}

/// Mail for a session.
async fn mail(mailbox: &Mailbox) -> Mail {
    poll_fn(|cx| {
        mailbox.register(cx);
        match mailbox.has_mail() {
            true => Poll::Ready(mailbox.take()),
            false => Poll::Pending,
        }
    })
    .await
}

/// The order to end, which stays in the mailbox as all other mail does.
pub(super) async fn ended(mailbox: &Mailbox) {
    poll_fn(|cx| {
        mailbox.register(cx);
        match mailbox.is_end() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// The end of a time; zero: never.
async fn over(limit: Duration) {
    match limit.is_zero() {
        true => std::future::pending().await,
        false => sleep(limit).await,
    }
}

/// The way that a table of the cluster leads; `wants` is looked at while a planned change holds.
pub(super) fn way_by(
    listening: &Listening,
    (cluster, published): (&Cluster, &Published),
    registry: &Registry,
    wants: impl FnOnce() -> Wants,
) -> Result<Way, NoRoute> {
    let request = RouteRequest {
        kind: listening.kind(),
        wants: match published.table.hold {
            Some(_) => wants(),
            None => Wants::Statement,
        },
        tried: &[],
    };
    let target = route(&request, &published.table, &|lane| cluster.lanes.load(lane))?;
    let places = published.places(&target.address);
    if places.is_empty() {
        return Err(NoRoute::Hold(Awaited::Reachable(target.member)));
    }
    Ok(Way {
        lanes: cluster.lanes.clone(),
        lane: target.lane,
        member: target.member,
        places,
        address: target.address,
        // A lane's servers are shared by all who come to it, for whatever they were opened.
        is_writer: match target.why {
            Chosen::Leader | Chosen::Fallback => true,
            Chosen::LeastConnected => false,
        },
        ahead: None,
        limits: listening.limits.clone(),
        in_force: registry.in_force.clone(),
    })
}

/// What a client hears when PostgreSQL does not let the router in.
pub(super) fn rejected(why: OpenFailed) -> SessionError {
    let code = match &why {
        OpenFailed::Refused(complaint) => complaint.code.clone(),
        OpenFailed::NoLogin(_) => sqlstate::INVALID_AUTHORIZATION.to_owned(),
        OpenFailed::LaneCut
        | OpenFailed::NoTls
        | OpenFailed::Handshake(_)
        | OpenFailed::Unreachable(_)
        | OpenFailed::TooSlow
        | OpenFailed::InRecovery
        | OpenFailed::Broken => sqlstate::CANNOT_CONNECT_NOW.to_owned(),
    };
    SessionError::Rejected {
        code,
        message: why.to_string(),
    }
}
