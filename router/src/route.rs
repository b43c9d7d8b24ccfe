//! Which member serves a new session. Pure: the table and the loads come in, a target goes out.

#![deny(clippy::wildcard_enum_match_arm)]

use std::sync::Arc;

use trunkline_shared::cluster::MemberName;

use crate::route::balance::{Candidate, Load};
use crate::topology::routing_table::{LaneId, NoWriter, RoutingTable, Wants, Writer};

pub mod balance;

/// What a listener sends its clients to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// The confirmed leader.
    Primary,
    /// The least connected fit replica.
    Replicas {
        /// Whether the leader serves when no replica does.
        falls_back: bool,
    },
}

/// One request for a route.
#[derive(Clone, Copy, Debug)]
pub struct RouteRequest<'a> {
    /// Where to.
    pub kind: TargetKind,
    /// For what.
    pub wants: Wants,
    /// Members that were tried for this session and could not be reached.
    pub tried: &'a [MemberName],
}

/// Where a session goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The lane.
    pub lane: LaneId,
    /// The member behind it.
    pub member: MemberName,
    /// Host and port, as the member's record names them.
    pub address: Arc<str>,
    /// Why this one.
    pub why: Chosen,
}

/// Why a target was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// It leads.
    Leader,
    /// It has the fewest sessions of the fit replicas.
    LeastConnected,
    /// No replica serves, and the leader may.
    Fallback,
}

/// Why there is no target now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// A leader may come: wait.
    Hold(Awaited),
    /// Writes never come to a standby cluster.
    StandbyCluster {
        /// Its leader.
        leader: MemberName,
    },
    /// No replica serves; each with its reason.
    NoReplica {
        /// The members and why each does not serve.
        reasons: Vec<(MemberName, String)>,
    },
}

/// What a held session waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Any word of the DCS.
    FirstView,
    /// A leader, where there is none.
    Leader(NoWriter),
    /// The end of a promotion.
    Promotion(MemberName),
    /// The end of a planned change of leader.
    Switchover,
    /// The leader leads and cannot be reached.
    Reachable(MemberName),
}

/// Picks the target of one session.
pub fn route(
    request: &RouteRequest<'_>,
    table: &RoutingTable,
    load: &dyn Fn(LaneId) -> Load,
) -> Result<Target, NoRoute> {
    if !table.is_informed() {
        return Err(NoRoute::Hold(Awaited::FirstView));
    }
    match request.kind {
        TargetKind::Primary => writer(table, request, Chosen::Leader),
        TargetKind::Replicas { falls_back } => {
            let candidates = table
                .readers
                .iter()
                .filter(|(name, reader)| reader.unfit.is_none() && !request.tried.contains(name))
                .map(|(name, reader)| Candidate {
                    load: load(reader.lane),
                    place: (name, reader),
                });
            if let Some((name, reader)) = balance::least_connected(candidates) {
                return Ok(Target {
                    lane: reader.lane,
                    member: name.clone(),
                    address: reader.address.clone(),
                    why: Chosen::LeastConnected,
                });
            }
            if falls_back {
                let target = writer(table, request, Chosen::Fallback);
                if target.is_ok() || target == Err(NoRoute::Hold(Awaited::Switchover)) {
                    return target;
                }
            }
            if table.revision == 0 {
                // The state file knows a leader and no replica: that says nothing about replicas.
                return Err(NoRoute::Hold(Awaited::FirstView));
            }
            Err(NoRoute::NoReplica {
                reasons: reasons(table, request.tried),
            })
        }
    }
}

fn writer(
    table: &RoutingTable,
    request: &RouteRequest<'_>,
    why: Chosen,
) -> Result<Target, NoRoute> {
    match &table.writer {
        Writer::Known { .. } if table.hold.is_some_and(|hold| hold.holds(request.wants)) => {
            Err(NoRoute::Hold(Awaited::Switchover))
        }
        Writer::Known { member, .. } if request.tried.contains(member) => {
            Err(NoRoute::Hold(Awaited::Reachable(member.clone())))
        }
        Writer::Known {
            member,
            address,
            lane,
            ..
        } => Ok(Target {
            lane: *lane,
            member: member.clone(),
            address: address.clone(),
            why,
        }),
        Writer::Promoting { member, .. } => Err(NoRoute::Hold(Awaited::Promotion(member.clone()))),
        Writer::None {
            why: NoWriter::StandbyCluster { leader },
        } => Err(NoRoute::StandbyCluster {
            leader: leader.clone(),
        }),
        Writer::None { why } => Err(NoRoute::Hold(Awaited::Leader(why.clone()))),
    }
}

fn reasons(table: &RoutingTable, tried: &[MemberName]) -> Vec<(MemberName, String)> {
    table
        .readers
        .iter()
        .map(|(name, reader)| {
            let why = match &reader.unfit {
                Some(unfit) => unfit.to_string(),
                None if tried.contains(name) => "could not be reached".to_owned(),
                None => "is fit".to_owned(),
            };
            (name.clone(), why)
        })
        .collect()
}
