//! A server that is opened before its member leads: it logs in at once, and is ready when the member does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::login::{IN_HOT_STANDBY, Identity, OpenFailed, admit, begin, log_in, within};
use super::{Server, Way};
use crate::protocol::sqlstate;
use crate::topology::Cluster;
use crate::topology::routing_table::{Candidate, LaneId};

/// Log-ins of one core at once: the candidate still has to replay what the former leader writes, and when it leads, those
/// that have not logged in by then would all begin in the same moment.
const LOG_INS_AHEAD: usize = 4;

/// Where a planned change goes.
#[derive(Clone)]
pub struct Destination {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The lane that is left.
    pub from: LaneId,
    /// Who is to lead, and on which lane.
    pub candidate: Candidate,
    /// Where its address leads.
    pub places: Vec<SocketAddr>,
}

impl Destination {
    /// What the servers of one core wait for.
    pub fn ahead(&self) -> Arc<Ahead> {
        Arc::new(Ahead {
            cluster: self.cluster.clone(),
            log_ins: Semaphore::new(LOG_INS_AHEAD),
            full: CancellationToken::new(),
        })
    }

    /// The way there, of clients who come this way now.
    pub fn way(&self, now: &Way, ahead: &Arc<Ahead>) -> Way {
        Way {
            lanes: now.lanes.clone(),
            lane: self.candidate.lane,
            member: self.candidate.member.clone(),
            address: self.candidate.address.clone(),
            places: self.places.clone(),
            is_writer: true,
            ahead: Some(ahead.clone()),
            limits: now.limits.clone(),
            in_force: now.in_force.clone(),
        }
    }
}

/// What a server waits for that is opened ahead of a planned change of leader.
pub struct Ahead {
    /// The cluster whose leader the member is to be.
    pub cluster: Arc<Cluster>,
    /// Log-ins at once.
    pub log_ins: Semaphore,
    /// The member has no free slot: those that were taken ahead are given back, and no more are taken before it leads.
    pub full: CancellationToken,
}

impl Ahead {
    /// Opens one, and waits until writes go to its lane. Whatever has kept it from logging in, or has ended it since, is
    /// no failure before: then it is opened as any other is.
    ///
    /// # Errors
    /// The member does not lead after all, or it cannot be opened then.
    pub(super) async fn open(
        &self,
        way: Arc<Way>,
        identity: &Identity,
        limit: Duration,
    ) -> Result<Server, OpenFailed> {
        let seat = way.lanes.take_seat(way.lane).ok_or(OpenFailed::LaneCut)?;
        let early = tokio::select! {
            biased;
            _ = seat.ended() => return Err(OpenFailed::LaneCut),
            early = self.log_in_early(&way, identity, limit) => early,
        };
        drop(seat);
        let early = self.keep_until_it_leads(early, &way).await?;
        // Its place counts in budgets that the next leader's servers share: it ends with its lane, as any other opening does.
        let seat = way.lanes.take_seat(way.lane).ok_or(OpenFailed::LaneCut)?;
        tokio::select! {
            biased;
            _ = seat.ended() => Err(OpenFailed::LaneCut),
            opened = self.open_now(early, way.clone(), identity, limit) => opened,
        }
    }

    /// Opens it on the leader, from what has logged in before if that lives.
    async fn open_now(
        &self,
        early: Option<Server>,
        way: Arc<Way>,
        identity: &Identity,
        limit: Duration,
    ) -> Result<Server, OpenFailed> {
        // One that has said something unasked has said goodbye.
        let early = early.and_then(|mut own| own.stream.is_silent().then_some(own));
        if let Some(mut server) = early {
            // What it has reported it has said as a standby: it is asked anew, and reports anew.
            server.reported.remove(IN_HOT_STANDBY);
            return within(limit, admit(server, identity)).await;
        }
        let _turn = self.log_ins.acquire().await;
        within(limit, begin(way, identity)).await
    }

    /// Logs in before the member leads; `None` where it has not come to its turn by then, or was not let in.
    async fn log_in_early(
        &self,
        way: &Arc<Way>,
        identity: &Identity,
        limit: Duration,
    ) -> Option<Server> {
        let _turn = tokio::select! {
            biased;
            () = self.full.cancelled() => return None,
            turn = self.log_ins.acquire() => turn,
            () = self.cluster.until_writer(way.lane) => return None,
        };
        match within(limit, log_in(way.clone(), identity)).await {
            Ok(server) => Some(server),
            Err(why) => {
                let member = &way.member;
                debug!(%member, user = %identity.user, "no server is opened ahead of a change of leader: {why}");
                if why.code() == Some(sqlstate::TOO_MANY_CONNECTIONS) {
                    self.full.cancel();
                }
                None
            }
        }
    }

    /// The same server once the member leads; none, if its slot had to be given back.
    async fn keep_until_it_leads(
        &self,
        mut early: Option<Server>,
        way: &Way,
    ) -> Result<Option<Server>, OpenFailed> {
        let led = tokio::select! {
            biased;
            led = self.until_it_leads(way) => led,
            () = self.full.cancelled(), if early.is_some() => {
                if let Some(server) = early.take() {
                    server.close();
                }
                self.until_it_leads(way).await
            }
        };
        match led {
            Ok(()) => Ok(early),
            Err(why) => {
                if let Some(server) = early {
                    server.close();
                }
                Err(why)
            }
        }
    }

    async fn until_it_leads(&self, way: &Way) -> Result<(), OpenFailed> {
        let seat = way.lanes.take_seat(way.lane).ok_or(OpenFailed::LaneCut)?;
        tokio::select! {
            biased;
            _ = seat.ended() => Err(OpenFailed::LaneCut),
            () = self.cluster.until_writer(way.lane) => Ok(()),
        }
    }
}
