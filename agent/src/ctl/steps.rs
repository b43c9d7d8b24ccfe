//! The steps of a change of leader as the watch shows them, each with the time it was seen. Pure.

use std::time::Duration;

use trunkline_shared::cluster::router::{Acknowledged, HoldStage};
use trunkline_shared::cluster::topology::{SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{MemberName, Moment, Topology};

use crate::api::requests::{ChangeOfLeader, Kind, Progress};

/// When each step was seen first.
#[derive(Clone, Debug)]
pub struct Steps {
    asked: ChangeOfLeader,
    before: Option<MemberName>,
    started: Moment,
    requested: Option<Moment>,
    held: Option<Moment>,
    drained: Option<Moment>,
    stopped: Option<Moment>,
    moved: Option<(Moment, MemberName)>,
    promoted: Option<(Moment, MemberName)>,
    called_off: Option<Moment>,
}

/// What a new view says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A step to print.
    Step(String),
    /// It is done: the last line.
    Done(String),
}

/// A change counts as called off when no trace of it was seen for this long.
pub const CALLED_OFF_AFTER: Duration = Duration::from_secs(1);

impl Steps {
    /// Begins now.
    pub fn new(asked: ChangeOfLeader, before: Option<MemberName>, started: Moment) -> Self {
        Self {
            asked,
            before,
            started,
            requested: None,
            held: None,
            drained: None,
            stopped: None,
            moved: None,
            promoted: None,
            called_off: None,
        }
    }

    /// Takes a view in; returns what is new in it, in order.
    pub fn see(&mut self, topology: &Topology, now: Moment) -> Vec<Seen> {
        let mut seen = Vec::new();
        let announced = announced(topology);
        let is_asked = topology.failover.is_some() || announced.is_some();
        if self.requested.is_none() && is_asked {
            self.requested = Some(now);
            let candidate = announced.map(|record| record.to.clone());
            let to = candidate.or_else(|| self.asked.candidate.clone());
            let to = to.map_or_else(String::new, |to| format!(", to {to}"));
            seen.push(self.step(now, &format!("requested{to}")));
        }
        seen.extend(self.see_held(topology, now));
        if let Some(record) = announced
            && let SwitchoverStage::Stopped {
                shutdown_checkpoint,
            } = record.stage
            && self.stopped.is_none()
        {
            self.stopped = Some(now);
            seen.push(self.step(
                now,
                &format!("stopped: {} ended at {shutdown_checkpoint}", record.from),
            ));
        }
        match self.asked.progress(topology, self.before.as_ref()) {
            Progress::Pending => self.called_off = None,
            Progress::Promoting(leader) => seen.extend(self.see_moved(leader, now)),
            Progress::Done(leader) => {
                seen.extend(self.see_moved(leader.clone(), now));
                if self.promoted.is_none() {
                    let section = &topology.settings_or_default().standby_cluster;
                    let what = match section {
                        Some(_) => format!("leading: {leader} leads the standby cluster"),
                        None => format!("promoted: {leader} is primary"),
                    };
                    seen.push(self.step(now, &what));
                    seen.push(Seen::Done(self.summary(&leader, now)));
                    self.promoted = Some((now, leader));
                }
            }
            Progress::CalledOff => {
                if self.requested.is_some() && self.called_off.is_none() {
                    self.called_off = Some(now);
                }
            }
        }
        seen
    }

    /// What registered routers do; without any nobody is held before the stop.
    fn see_held(&mut self, topology: &Topology, now: Moment) -> Option<Seen> {
        let record = announced(topology)?;
        let routers = topology.routers.len();
        match record.stage {
            SwitchoverStage::HoldTransactions if self.held.is_none() => {
                self.held = Some(now);
                Some(self.step(
                    now,
                    &format!("holding: {routers} routers hold new transactions"),
                ))
            }
            SwitchoverStage::HoldAll if self.drained.is_none() && routers > 0 => {
                self.drained = Some(now);
                Some(self.step(now, "drained: routers hold everything"))
            }
            SwitchoverStage::HoldTransactions
            | SwitchoverStage::HoldAll
            | SwitchoverStage::Stopped { .. }
            | SwitchoverStage::Resume => None,
        }
    }

    fn see_moved(&mut self, leader: MemberName, now: Moment) -> Option<Seen> {
        self.called_off = None;
        if self
            .moved
            .as_ref()
            .is_some_and(|(_, known)| *known == leader)
        {
            return None;
        }
        let step = self.step(now, &format!("moved: {leader} holds the leader key"));
        self.moved = Some((now, leader));
        Some(step)
    }

    fn step(&self, now: Moment, what: &str) -> Seen {
        Seen::Step(format!("{:>8} {what}", seconds(now.since(self.started))))
    }

    /// Who leads now, if it is done.
    pub fn leader(&self) -> Option<&MemberName> {
        self.promoted.as_ref().map(|(_, leader)| leader)
    }

    /// Whether the request is gone and the old leader leads, and has so for long enough to be believed.
    pub fn is_called_off(&self, now: Moment) -> bool {
        self.called_off
            .is_some_and(|since| now.since(since) >= CALLED_OFF_AFTER)
    }

    fn summary(&self, leader: &MemberName, now: Moment) -> String {
        let moved = self.moved.as_ref().map_or(now, |(at, _)| *at);
        let requested = self.requested.unwrap_or(self.started);
        let mut parts = Vec::new();
        if let (Some(held), Some(drained)) = (self.held, self.drained) {
            parts.push(format!("drain {}", plain(drained.since(held))));
        }
        let requested = self.drained.unwrap_or(requested);
        match self.stopped {
            Some(stopped) => {
                parts.push(format!("stop {}", plain(stopped.since(requested))));
                parts.push(format!("hand over {}", plain(moved.since(stopped))));
            }
            None => parts.push(format!("hand over {}", plain(moved.since(requested)))),
        }
        parts.push(format!("promote {}", plain(now.since(moved))));
        let from = self
            .before
            .as_ref()
            .map_or_else(String::new, |from| format!(" from {from}"));
        let done = match self.asked.kind {
            Kind::Switchover => "Switched over",
            Kind::Failover => "Failed over",
        };
        format!(
            "{done}{from} to {leader} in {} ({})",
            seconds(now.since(self.started)),
            parts.join(", ")
        )
    }
}

/// The change of leader that is under way; a restart of the leader is none.
fn announced(topology: &Topology) -> Option<&SwitchoverRecord> {
    let record = topology.switchover.as_deref();
    record.filter(|record| !record.is_restart())
}

/// Which router a planned change, or a restart of the leader, waits for: for the line that lives.
pub fn waits_for(topology: &Topology) -> Option<String> {
    let record = topology.switchover.as_ref()?;
    let stage = match record.stage {
        SwitchoverStage::HoldTransactions => HoldStage::Transactions,
        SwitchoverStage::HoldAll => HoldStage::All,
        SwitchoverStage::Stopped { .. } | SwitchoverStage::Resume => return None,
    };
    let wanted = Some(Acknowledged {
        switchover: record.id,
        epoch: record.epoch,
        revision: topology.switchover_revision,
        stage,
    });
    let mut routers = topology.routers.iter();
    let (name, router) = routers.find(|(_, router)| router.acknowledged != wanted)?;
    Some(format!(
        "waits for router {name}: {} open writer sessions, {} clients held",
        router.writer_sessions, router.held_clients
    ))
}

fn plain(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64())
}

pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}
