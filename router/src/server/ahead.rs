//! A server that is opened before its member leads: it logs in at once, and is ready when the member does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::debug;

use super::login::{IN_HOT_STANDBY, Identity, OpenFailed, admit, begin, log_in, within};
use super::{Server, Way};
use crate::topology::Cluster;
use crate::topology::routing_table::{Candidate, LaneId};

/// Log-ins of one core at once, for the candidate still has to replay what the former leader writes.
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
            log_ins: Arc::new(Semaphore::new(LOG_INS_AHEAD)),
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
    /// Log-ins at once: the candidate has work of its own.
    pub log_ins: Arc<Semaphore>,
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
        let turn = tokio::select! {
            biased;
            turn = self.log_ins.acquire() => Some(turn),
            // Whoever has not had its turn by then is opened as any other is: clients wait for it.
            led = self.until_it_leads(&way) => {
                led?;
                None
            }
        };
        let early = match turn {
            Some(_turn) => within(limit, log_in(way.clone(), identity)).await,
            None => return within(limit, begin(way, identity)).await,
        };
        let early = early.inspect_err(|why| {
            let member = &way.member;
            debug!(%member, user = %identity.user, "no server is opened ahead of a change of leader: {why}");
        });
        if let Err(why) = self.until_it_leads(&way).await {
            if let Ok(server) = early {
                server.close();
            }
            return Err(why);
        }
        // One that has said something unasked has said goodbye.
        let early = early.ok();
        let early = early.and_then(|mut it| it.stream.is_silent().then_some(it));
        if let Some(mut server) = early {
            // What it has reported it has said as a standby: it is asked anew, and reports anew.
            server.reported.remove(IN_HOT_STANDBY);
            return within(limit, admit(server, identity)).await;
        }
        within(limit, begin(way, identity)).await
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
