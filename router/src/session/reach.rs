//! From a first packet to a connected server: route, take a seat, connect, and wait where there is nowhere
//! to go yet.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tracing::debug;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::service::clock;

use crate::error::SessionError;
use crate::lanes::Seat;
use crate::listener::Listening;
use crate::listener::limits::CONNECT_TIME;
use crate::route::{Awaited, NoRoute, RouteRequest, Target, TargetKind, route};
use crate::server::login::connect_to;
use crate::session::Client;
use crate::topology::Cluster;
use crate::topology::routing_table::Wants;

/// Pause before a leader that refused a connection is tried again; a change of the table ends it early.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often a held client that has sent something more is looked at for having left.
const LOOK_AT_HELD: Duration = Duration::from_millis(250);

/// A server and the session's seat on its lane.
pub struct Connected {
    /// The connection.
    pub server: TcpStream,
    /// The seat, taken before connecting.
    pub seat: Seat,
    /// Whose server it is.
    pub member: MemberName,
}

impl Connected {
    /// Sends a part of the opening.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let sent = self.server.write_all(bytes).await;
        sent.map_err(|_| SessionError::ServerLost {
            member: self.member.clone(),
            has_outstanding: false,
        })
    }
}

/// The search of one session.
pub struct Reach<'a> {
    listening: &'a Listening,
    cluster: &'a Cluster,
    tried: Vec<MemberName>,
    /// The member that a connection is being made to.
    connecting: Option<MemberName>,
}

impl<'a> Reach<'a> {
    /// Begins a search.
    pub fn new(listening: &'a Listening, cluster: &'a Cluster) -> Self {
        Self {
            listening,
            cluster,
            tried: Vec::new(),
            connecting: None,
        }
    }

    /// A connected server, however long the client is held for it; or why there is none.
    pub(super) async fn server(&mut self, client: &mut Client) -> Result<Connected, SessionError> {
        let began = clock::now();
        let mut changed = self.cluster.changes();
        let mut held: Option<Held<'_>> = None;
        loop {
            changed.mark_unchanged();
            let limit = self.listening.hold_timeout();
            // However short a client is held, and however late a leader comes: the time of one connect.
            let time = limit
                .saturating_sub(clock::now().since(began))
                .max(CONNECT_TIME);
            let attempt = tokio::select! {
                attempt = self.attempt() => attempt,
                () = gone(client.stream.socket()) => return Err(SessionError::ClientGone),
                () = sleep(time) => {
                    let why = self.out_of_time();
                    return Err(self.refused(why, clock::now().since(began)));
                }
            };
            let why = match attempt {
                Ok(connected) => {
                    if let Some(held) = held {
                        held.over(clock::now().since(began));
                    }
                    return Ok(connected);
                }
                Err(why) => why,
            };
            let NoRoute::Hold(awaited) = why else {
                return Err(self.refused(why, clock::now().since(began)));
            };
            let waited = clock::now().since(began);
            if waited >= limit {
                return Err(self.refused(NoRoute::Hold(awaited), waited));
            }
            client.newcomer = None;
            held.get_or_insert_with(|| Held::new(self.listening, self.cluster));
            let pause = match awaited {
                Awaited::Reachable(_) => RETRY_PAUSE.min(limit - waited),
                Awaited::FirstView
                | Awaited::Leader(_)
                | Awaited::Promotion(_)
                | Awaited::Switchover => limit - waited,
            };
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep(pause) => {}
                () = gone(client.stream.socket()) => return Err(SessionError::ClientGone),
            }
            self.tried.clear();
        }
    }

    fn refused(&self, why: NoRoute, waited: Duration) -> SessionError {
        SessionError::no_route(&self.cluster.name, why, waited)
    }

    /// Why there is no server, where the time ended during a connect.
    fn out_of_time(&mut self) -> NoRoute {
        self.tried.extend(self.connecting.take());
        match (self.listening.kind(), self.tried.last()) {
            (TargetKind::Primary, Some(member)) => {
                NoRoute::Hold(Awaited::Reachable(member.clone()))
            }
            (TargetKind::Primary, None) => NoRoute::Hold(Awaited::FirstView),
            (TargetKind::Replicas { .. }, _) => NoRoute::NoReplica {
                reasons: self
                    .tried
                    .drain(..)
                    .map(|member| (member, "could not be reached".to_owned()))
                    .collect(),
            },
        }
    }

    /// Tries the members in turn until one takes the connection or none is left.
    async fn attempt(&mut self) -> Result<Connected, NoRoute> {
        loop {
            let target = self.target()?;
            let Some(seat) = self.cluster.lanes.take_seat(target.lane) else {
                // Cut between the choice and now; the next table is a moment away.
                tokio::task::yield_now().await;
                continue;
            };
            self.connecting = Some(target.member.clone());
            let connecting = self.connect(&target);
            let connected = tokio::select! {
                connected = connecting => connected,
                _ = seat.ended() => continue,
            };
            match connected {
                Ok(server) => {
                    return Ok(Connected {
                        server,
                        seat,
                        member: target.member,
                    });
                }
                Err(error) => {
                    let (member, address) = (&target.member, &target.address);
                    debug!(%member, %address, "cannot connect: {error}");
                    self.tried.push(target.member);
                }
            }
        }
    }

    fn target(&self) -> Result<Target, NoRoute> {
        let cluster = self.cluster;
        let request = RouteRequest {
            kind: self.listening.kind(),
            wants: Wants::Session,
            tried: &self.tried,
        };
        let published = cluster.published();
        route(&request, &published.table, &|lane| cluster.lanes.load(lane))
    }

    async fn connect(&self, target: &Target) -> io::Result<TcpStream> {
        let turns = self.listening.limits.connects(&target.address);
        let _permit = turns.acquire().await;
        let began = clock::now();
        let places = self.cluster.published().places(&target.address);
        let server = connect_to(&places).await?;
        let took = clock::now().since(began);
        self.listening.metrics.connect_seconds.record(took);
        Ok(server)
    }
}

/// A client being held, for the metrics and for who changes the leader.
pub(super) struct Held<'a> {
    listening: &'a Listening,
    cluster: &'a Cluster,
}

impl<'a> Held<'a> {
    pub(super) fn new(listening: &'a Listening, cluster: &'a Cluster) -> Self {
        listening.metrics.held.increment(1);
        cluster.held.fetch_add(1, Ordering::Relaxed);
        Self { listening, cluster }
    }

    fn over(&self, waited: Duration) {
        self.listening.metrics.hold_seconds.record(waited);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.listening.metrics.held.decrement(1);
        self.cluster.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until the client has closed its side, without reading a byte of what it may have sent.
pub async fn gone(client: &TcpStream) {
    loop {
        match client.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() && !ready.is_error() => sleep(LOOK_AT_HELD).await,
            Ok(_) | Err(_) => return,
        }
    }
}
