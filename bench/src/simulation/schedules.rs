//! What an operator asks for later, and WAL that a leader removes too early.

use std::time::Duration;

use trunkline_agent::decide::observation::{Due, HealthView, Local, Observation};
use trunkline_agent::decide::{Action, Decision};
use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::topology::{Fact, FactKey, FailoverRequest};

use super::breaks::Break;
use super::event::{NodeId, Time};
use super::fake_postgres::Phase;
use super::invariants::Invariant;
use super::world::World;

impl Break {
    /// Changes what `decide` sees of schedules, of disks and of WAL that is gone.
    pub(super) fn leave_unread(self, seen: &mut Observation) {
        if self == Break::IllDiskUnseen {
            seen.health = HealthView::default();
        } else if self == Break::ScheduleUnread {
            seen.scheduled = seen.scheduled.map(|_| Due::Ago(Duration::ZERO));
        } else if let Local::Running(running) = &mut seen.local {
            running.is_wal_gone = false;
        }
    }
}

impl World {
    /// Asks for a switchover `after` from now. Times are written in true nanoseconds here: wall clocks agree.
    pub(super) fn schedule(&mut self, leader: Option<MemberName>, after: Time) -> bool {
        if leader.is_none() || self.store.down_until > self.now {
            return false;
        }
        let request = FailoverRequest {
            leader,
            candidate: None,
            scheduled_at: Some((self.now + after).to_string().into()),
            drain: self.drain_asked(),
            revision: 0,
        };
        self.write_by_operator(FactKey::Failover, Fact::Failover(request));
        true
    }

    /// When the switchover in this agent's view is to happen.
    pub(super) fn scheduled_for(&self, node: NodeId) -> Option<Due> {
        let view = self.node(node).agent.view.as_ref()?;
        let at = view.failover.as_ref()?.scheduled_at.as_ref()?;
        let Ok(at) = at.parse::<Time>() else {
            return Some(Due::Unreadable);
        };
        let span = Duration::from_nanos;
        Some(match at.checked_sub(self.now) {
            Some(left) if left > 0 => Due::In(span(left)),
            Some(_) | None => Due::Ago(span(self.now.saturating_sub(at))),
        })
    }

    /// `nothing_before_its_time`: called with every decision.
    pub(super) fn check_schedule(&mut self, node: NodeId, decision: &Decision) {
        let request = self.node(node).agent.view.as_ref();
        let request = request.and_then(|view| view.failover.as_ref());
        let begins = decision.actions.iter().find_map(|action| match action {
            Action::AnnounceSwitchover(record) => Some(record.id),
            _ => None,
        });
        let asked = request.filter(|request| begins == u64::try_from(request.revision).ok());
        if asked.is_none() {
            return;
        }
        if let Some(Due::In(left)) = self.scheduled_for(node) {
            let name = &self.node(node).name;
            let detail = format!("{name} begins a switchover {left:?} before its time");
            self.fail(Invariant::NothingBeforeItsTime, detail);
        }
    }

    /// The leader keeps no WAL for a replica: what it needs next is gone for good.
    pub(super) fn remove_wal(&mut self, node: NodeId) -> bool {
        let may_be_copied = self.node(node).agent.me.may_replace_data;
        let postgres = &mut self.node_mut(node).postgres;
        let streams =
            postgres.phase == (Phase::Replica { promotes: false }) && postgres.is_streaming;
        if !streams || !may_be_copied {
            return false;
        }
        postgres.is_wal_gone = true;
        postgres.is_streaming = false;
        postgres.shipping = None;
        let upstream = postgres.data.as_ref().and_then(|data| data.upstream);
        upstream.into_iter().for_each(|up| self.wake(up));
        self.wake(node);
        true
    }
}
