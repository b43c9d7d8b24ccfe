//! What belongs to whom: commits to the `sync` record, data to a cluster and to a history, slots to members.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_agent::decide::{Action, Decision};
use trunkline_shared::cluster::SystemId;
use trunkline_shared::cluster::topology::Initialize;

use super::{Data, Invariant, NodeId, SECOND, Time, World};

/// When a member's record stood in the DCS.
#[derive(Clone, Copy, Default)]
pub(super) struct Registered {
    stands: bool,
    since: Time,
    gone_at: Time,
}

impl World {
    /// `the_record_finds_every_commit`: called when commits are acknowledged that waited for `names`. The record lets
    /// nobody lead whom any `quorum` of its standbys could miss: so many of those and of `names` have each commit.
    pub(in crate::simulation) fn check_record(&mut self, node: NodeId, names: &SyncNames) {
        let head = &self.store.head;
        let is_paused = head.settings.as_ref().is_some_and(|s| s.is_paused);
        // It was adopted just before: nobody makes commits wait in a pause.
        self.ledger.synchronous_was_ended |= is_paused && head.sync.is_none();
        let name = &self.node(node).name;
        let leads = self
            .store
            .leader()
            .is_some_and(|(leader, _)| leader == name);
        let record = self.store.head.sync.as_ref();
        let Some(record) = record.filter(|record| record.leader.as_ref() == Some(name)) else {
            return;
        };
        // A store that was restored shows the record of before, until somebody who knows better makes it anew. One
        // without standbys lets nobody lead.
        if !leads || !self.store.is_vouched || record.standbys.is_empty() {
            return;
        }
        let (waited_for, needed) = names.waited_for();
        let voters: BTreeSet<_> = record.standbys.iter().cloned().collect();
        let missed = voters.union(&waited_for).count() - needed;
        if missed > usize::try_from(record.quorum).unwrap_or(usize::MAX) {
            let detail = format!("{name} acknowledges what waited for {names:?} under {record:?}");
            self.fail(Invariant::TheRecordFindsEveryCommit, detail);
        }
    }

    /// `one_cluster_identity`: called with every decision; `identity` is that of the data as it was seen.
    pub(in crate::simulation) fn check_identity(
        &mut self,
        node: NodeId,
        identity: Option<SystemId>,
        decision: &Decision,
    ) {
        let view = self.node(node).agent.decided_by.as_ref();
        let (Some(identity), Some(Initialize::Done(ours))) = (identity, view.map(|v| v.initialize))
        else {
            return;
        };
        let begins = |action: &Action| {
            matches!(
                action,
                Action::AcquireLeader | Action::Promote(_) | Action::Start(_)
            )
        };
        if identity != ours && decision.actions.iter().any(begins) {
            let detail = format!(
                "{} goes on with the data of cluster {identity:?} in cluster {ours:?}: {}",
                self.node(node).name,
                decision.reason
            );
            self.fail(Invariant::OneClusterIdentity, detail);
        }
    }

    /// `a_rewind_leaves_one_history`: called when a rewind has ended well.
    pub(in crate::simulation) fn check_rewound(&mut self, node: NodeId, source: &Data) {
        let Some(own) = &self.node(node).postgres.data else {
            return;
        };
        let here = (own.branch, own.end);
        let parting = self.branches.parting(here, (source.branch, source.end));
        if parting.is_none_or(|(_, at)| at < own.end) {
            let name = &self.node(node).name;
            let detail = format!("{name} is rewound and keeps what its source does not have");
            self.fail(Invariant::ARewindLeavesOneHistory, detail);
        }
    }

    /// Called whenever the DCS has changed.
    pub(super) fn note_members(&mut self) {
        let now = self.now;
        let seen = self.ledger.authority.registered.iter_mut();
        for (registered, node) in seen.zip(&self.nodes) {
            let stands = self.store.head.members.contains_key(&node.name);
            match (registered.stands, stands) {
                (false, true) => registered.since = now,
                (true, false) => registered.gone_at = now,
                (true, true) | (false, false) => {}
            }
            registered.stands = stands;
        }
    }

    /// `a_slot_outlives_its_members_absence`: called when a primary drops slots. It may know of a registration as late
    /// as its view may be old, and notes in every turn who is registered; while it cannot know, nobody is forgotten.
    pub(in crate::simulation) fn check_slots_of_members(
        &mut self,
        node: NodeId,
        names: &[Arc<str>],
    ) {
        let known_by_now = self.plan.retry_timeout.as_nanos() as Time + SECOND;
        // A turn may wait for the DCS.
        let noted_every = self.plan.loop_wait + self.plan.retry_timeout + Duration::from_secs(1);
        let kept_for = self.settings.member_slots_ttl.saturating_sub(noted_every);
        let kept_for = kept_for.as_nanos() as Time;
        // A store that was restored shows who was registered before.
        if !self.store.is_vouched {
            return;
        }
        // What a machine does as it goes on was decided before it stood still.
        let (from, until) = self.node(node).stood_still;
        let decided_at = match from < self.now && until + SECOND > self.now {
            true => from,
            false => self.now,
        };
        let registered = self.ledger.authority.registered;
        for (id, registered) in (0..self.plan.members).zip(registered) {
            let is_recent = registered.stands || registered.gone_at + kept_for > self.now;
            let is_known = registered.since + known_by_now <= decided_at;
            let was_ever = registered.stands || registered.gone_at > 0;
            let slot = self.node(id).name.slot_name();
            let is_dropped = id != node && names.iter().any(|name| **name == *slot);
            if is_dropped && was_ever && is_recent && is_known {
                let detail = format!(
                    "{} drops the slot of {slot}, which was registered lately",
                    self.node(node).name
                );
                self.fail(Invariant::ASlotOutlivesItsMembersAbsence, detail);
            }
        }
    }
}
