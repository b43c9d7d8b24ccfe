//! What a change of leader may lose, and what a copy may destroy.

use super::{Data, Fault, FaultKind, Invariant, NodeId, SECOND, Time, World};
use crate::simulation::coverage::Ending;

impl World {
    /// A primary that was promoted while a store of before did not show its key has it now.
    pub(super) fn check_late_loss(&mut self, by: NodeId) {
        let Some((node, branch)) = self.ledger.keyless.filter(|(node, _)| *node == by) else {
            return;
        };
        let postgres = &self.node(node).postgres;
        let data = postgres.data.as_ref();
        if postgres.can_commit() && data.is_some_and(|data| data.branch == branch) {
            self.check_loss(node, branch);
        }
    }

    /// `loss_within_limit`: called when a promotion is complete.
    pub(in crate::simulation) fn check_loss(&mut self, node: NodeId, branch: u32) {
        // One that ends recovery although it lost the key meanwhile is killed: nothing goes on from it.
        let key = self.store.leader();
        let key = key.filter(|(name, _)| **name == self.node(node).name);
        let Some((_, key)) = key else {
            self.ledger.keyless = Some((node, branch));
            return;
        };
        let key = (self.store.incarnation, key.revision);
        let led_by_choice = self.ledger.led_by_choice == Some(key);
        self.ledger.keyless = None;
        let old = std::mem::replace(&mut self.ledger.line, branch);
        let is_chosen = self.is_chosen(node);
        let accepted = self.ledger.loss_accepted && is_chosen;
        self.ledger.loss_accepted &= !is_chosen && self.is_still_asked();
        let recorded_by_choice = self.ledger.recorded_by_choice.take() == Some(node);
        if accepted || led_by_choice || recorded_by_choice {
            return;
        }
        let fork = self.branches.0[branch as usize].fork;
        let (mut lost, mut written) = (0, 0);
        // What lay beyond the point where the old line left a branch was lost, and counted, before.
        let mut until = u64::MAX;
        let mut at = Some(old);
        while let Some(one) = at {
            let kept = self.branches.shared_until(branch, fork, one);
            let begin = self.branches.0[one as usize].fork;
            let from = kept.unwrap_or(begin);
            let lost_here = self.branches.acknowledged_between(one, from, until);
            if lost_here > 0 {
                lost += lost_here;
                written += self.written_at_last(one, until);
            }
            if kept.is_some() {
                break;
            }
            until = begin;
            at = self.branches.0[one as usize].parent;
        }
        if lost > 0 && self.was_moved_to(node) {
            let detail = format!(
                "the key was moved to {}, which lost {lost} acknowledged bytes",
                self.node(node).name
            );
            return self.fail(Invariant::ASwitchoverLosesNothing, detail);
        }
        if lost > 0 && self.is_synchronous() {
            return self.check_synchronous_loss(node, lost);
        }
        let limit = self.may_lose(written);
        // A store that loses what it is asked or answers shows an older position, and more is written beyond that.
        let is_late = self.loses_answers();
        let shown = self.store.head.status.optime.0;
        if lost > limit && !(is_late && fork + self.plan.maximum_lag >= shown) {
            // As far as the old copy tells, it lags no more than it may.
            let is_near = fork + self.plan.maximum_lag >= shown;
            if is_near && self.is_by_an_old_copy(node) {
                return;
            }
            // Nor does what was remembered best, by which an operator has accepted a store since that was written.
            if is_near && self.branches.last_acknowledged(old, u64::MAX) < self.accepted_at {
                self.ending = Some(Ending::OldCopyUntold);
                return;
            }
            let detail = format!(
                "{} was promoted and lost {lost} acknowledged bytes; the limit is {limit}",
                self.node(node).name
            );
            self.fail(Invariant::LossWithinLimit, detail);
        }
    }

    /// Whether an operator's choice of this member stands. Who was elected while that of another was under way is nobody's
    /// choice, nor is who was named once and is elected later; but the store may have lost what was written there.
    pub(in crate::simulation) fn is_chosen(&self, node: NodeId) -> bool {
        let name = &self.node(node).name;
        let request = self.store.head.failover.as_ref();
        let stands = request.is_some_and(|request| request.candidate.as_ref() == Some(name));
        let named = self.ledger.named.as_ref();
        named.is_none_or(|named| named == name) && (stands || self.store.incarnation > 0)
    }

    pub(super) fn loses_answers(&self) -> bool {
        let loses = |fault: &Fault| fault.kind == FaultKind::DcsLosesAnswers;
        self.plan.faults.iter().any(loses)
    }

    /// What an asynchronous failover may lose, `written` in the time it takes to notice a leader's end.
    pub(in crate::simulation) fn may_lose(&self, written: u64) -> u64 {
        self.plan.maximum_lag + written + self.plan.commit_bytes + 4096
    }

    /// Bytes acknowledged in the last moments of a branch, or of its part before `until`.
    pub(in crate::simulation) fn written_at_last(&self, branch: u32, until: u64) -> u64 {
        let detection = 2 * self.plan.ttl.as_nanos() as Time + 2 * SECOND;
        let last = self.branches.last_acknowledged(branch, until);
        let detection = detection + self.stood_still(branch, last);
        self.written_between(branch, last.saturating_sub(detection), last)
    }

    /// How long the machine that wrote a branch stood still until then: what its clients sent meanwhile is written when it
    /// goes on, and nobody else can have it.
    fn stood_still(&self, branch: u32, at: Time) -> Time {
        let Some(writer) = self.branches.0[branch as usize].writer else {
            return 0;
        };
        let (from, until) = self.node(writer).stood_still;
        match from < at && until + SECOND > at {
            true => until.min(at) - from,
            false => 0,
        }
    }

    fn written_between(&self, branch: u32, from: Time, to: Time) -> u64 {
        let branch = &self.branches.0[branch as usize];
        let until = |at: Time| {
            let ends = branch.acknowledged.iter();
            let ends = ends.filter(|(then, _)| *then <= at).map(|(_, end)| *end);
            ends.max().unwrap_or(branch.fork)
        };
        until(to).saturating_sub(until(from.saturating_sub(1)))
    }

    /// `no_data_destroyed`: called before a copy of `source` takes the place of what the node has.
    pub(in crate::simulation) fn check_replacement(&mut self, node: NodeId, source: &Data) {
        let Some(own) = &self.node(node).postgres.data else {
            return;
        };
        if self.node(node).agent.is_job_of_operators_leader {
            return;
        }
        if own.system_id != source.system_id {
            return;
        }
        let newest = self.ledger.line;
        let own_part = self.branches.shared_until(own.branch, own.end, newest);
        let their_part = self
            .branches
            .shared_until(source.branch, source.end, newest);
        let begin = their_part.unwrap_or(self.branches.0[newest as usize].fork);
        let lost = self.branches.acknowledged_between(newest, begin, u64::MAX);
        let limit = self.standby_may_lose(node);
        // What another member still has is not destroyed by the copy of one that is behind.
        let others = self.nodes.iter().enumerate();
        let others = others.filter(|(id, _)| *id != usize::from(node));
        let parts = others.filter_map(|(_, other)| {
            let data = other.postgres.data.as_ref()?;
            self.branches.shared_until(data.branch, data.end, newest)
        });
        let elsewhere = parts.max();
        // By the position that such a store shows, whoever leads a standby cluster is near enough.
        let shown = self.store.head.status.optime.0;
        let is_near = self.loses_answers() && source.end + self.plan.maximum_lag >= shown;
        let is_late = is_near && self.was_standby();
        if own_part > their_part && own_part > elsewhere && lost > limit && !is_late {
            let detail = format!(
                "{} replaces the newest history by one that lacks {lost} acknowledged bytes; the limit is {limit}",
                self.node(node).name
            );
            self.fail(Invariant::NoDataDestroyed, detail);
        }
    }
}
