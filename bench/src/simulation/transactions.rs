//! The transaction of each action that changes the DCS.

use std::sync::Arc;

use trunkline_agent::decide::Action;
use trunkline_shared::cluster::switchover::{Drain, LeaderChange, OnTimeout};
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::topology::{
    ClaimedTimeline, Fact, FactKey, FailoverRequest, Initialize, Status, SwitchoverRecord,
};
use trunkline_shared::cluster::{ClusterSettings, Lsn, MemberName, SystemId};

use super::breaks::Break;
use super::event::NodeId;
use super::store::{Compare, Txn, Write};
use super::world::World;

fn remove_disarmed_of(name: &MemberName, at: i64) -> Txn {
    Txn {
        when: vec![Compare::Revision(FactKey::Member(name.clone()), at)],
        then: vec![Write::Delete(FactKey::Disarmed(name.clone()))],
    }
}

impl World {
    /// What the action asks of the DCS; nothing if it cannot be asked now.
    pub(super) fn transaction(&self, node: NodeId, action: &Action) -> Option<Txn> {
        let disarmed = || FactKey::Disarmed(self.node(node).name.clone());
        match action {
            Action::AcquireLeader => self.acquire(node),
            Action::ReassertLeader => self.reassert(node),
            Action::ReleaseLeader { position } => self.release(node, *position),
            Action::HandOver {
                to,
                lease,
                record_revision,
                position,
            } => self.hand_over(node, to, (*lease, *record_revision), *position),
            Action::ClaimBootstrap => self.claim_bootstrap(node),
            Action::RecordSystemId(id) => self.record_system_id(node, *id),
            Action::PublishStatus(status) => self.publish(node, status),
            Action::RecordHistory => self.record_history(node),
            Action::RecordChange(change) => self.record_change(node, change),
            Action::DropFailoverRequest { revision } => Some(drop_failover(*revision)),
            Action::RequestSwitchover(to) => self.request_switchover(node, to),
            Action::AnnounceSwitchover(record) => self.announce(node, record.clone()),
            Action::ClearSwitchover => self.clear_switchover(node),
            Action::WriteDisarmed => self.as_leader(node, vec![put(disarmed(), Fact::Disarmed)]),
            Action::RemoveDisarmed => self.remove_disarmed(node),
            Action::RemoveDisarmedOf(name, at) => Some(remove_disarmed_of(name, *at)),
            Action::ClaimTimeline(claimed) => self.claim_timeline(node, *claimed),
            Action::WriteSync(sync) => self.on_sync_as_seen(node, sync.revision, record(sync)),
            Action::RenewSync(sync) => Some(Txn {
                when: vec![sync_as_seen(sync.revision)],
                then: vec![record(sync)],
            }),
            Action::DeleteSync { revision } => {
                self.on_sync_as_seen(node, *revision, Write::Delete(FactKey::Sync))
            }
            Action::PublishFailsafe(_) => self.publish_failsafe(node),
            Action::RestoreConfig => self.restore_config(node),
            Action::SwitchFailsafeOn => self.switch_failsafe_on(node),
            // A keep-alive and a read, or nothing of the DCS.
            Action::ConfirmLeader
            | Action::RecreateKeys { .. }
            | Action::DoubtStore { .. }
            | Action::TrustStore
            | Action::LetLeaseLapse(_)
            | Action::ArmFence
            | Action::DisarmFence
            | Action::Initialize
            | Action::FinishBootstrap
            | Action::Start(_)
            | Action::Stop(_)
            | Action::Promote(_)
            | Action::Checkpoint
            | Action::CutWal(_)
            | Action::Follow(_)
            | Action::Clone(_)
            | Action::Rewind(_)
            | Action::CancelJob
            | Action::DiscardBootstrap
            | Action::CloneWithoutLeader
            | Action::CallBack(..)
            | Action::RunPrePromote
            | Action::SetSyncNames(_)
            | Action::ClearSyncNames
            | Action::CompareHistory(_)
            | Action::OpenClientAccess
            | Action::CopyLogicalSlots { .. }
            | Action::TendLogicalSlots(_)
            | Action::SetSynchronizedSlots(_)
            | Action::CreateSlots(_)
            | Action::EndReplayConflicts
            | Action::DropSlots(_)
            | Action::AdvanceSlots(_) => None,
        }
    }

    fn claim_timeline(&self, node: NodeId, claimed: ClaimedTimeline) -> Option<Txn> {
        let then = vec![put(FactKey::Timeline, Fact::Timeline(claimed))];
        let mut txn = self.as_leader(node, then)?;
        let seen = self.node(node).agent.view.as_ref()?.claimed;
        txn.when.push(Compare::Claimed(seen));
        Some(txn)
    }

    fn restore_config(&self, node: NodeId) -> Option<Txn> {
        let settings = self.node(node).agent.view.as_ref()?.settings.clone()?;
        let then = vec![put(FactKey::Settings, Fact::Settings(settings))];
        let mut txn = self.as_leader(node, then)?;
        txn.when.push(Compare::Absent(FactKey::Settings));
        Some(txn)
    }

    fn switch_failsafe_on(&self, node: NodeId) -> Option<Txn> {
        let seen = self.node(node).agent.view.as_ref()?.settings.clone()?;
        let settings = ClusterSettings {
            failsafe_mode: Some(true),
            ..ClusterSettings::clone(&seen)
        };
        let then = vec![put(FactKey::Settings, Fact::Settings(Arc::new(settings)))];
        let mut txn = self.as_leader(node, then)?;
        txn.when.push(Compare::Settings(seen));
        Some(txn)
    }

    fn release(&self, node: NodeId, position: Option<Lsn>) -> Option<Txn> {
        let mut then = vec![Write::Delete(FactKey::Leader)];
        let this = self.node(node);
        let (view, held) = (this.agent.view.as_ref()?, this.agent.lease.state.held()?);
        let is_claimed = match view.initialize {
            Initialize::Running => true,
            Initialize::Absent => !view.shows_leader(&this.name, held.epoch),
            Initialize::Done(_) => false,
        };
        then.extend(is_claimed.then_some(Write::Delete(FactKey::Initialize)));
        then.extend(position.map(|at| self.last_status(node, at)));
        then.extend(self.empty_failsafe(node));
        let mut txn = self.as_leader(node, then)?;
        txn.when.extend(is_claimed.then_some(Compare::Unmade));
        Some(txn)
    }

    /// The leader key, and the record of who leads, by which routers go.
    pub(super) fn leader_anew(&self, node: NodeId, lease: i64) -> Vec<Write> {
        let this = self.node(node);
        let key = Write::Put(FactKey::Leader, Fact::Leader(this.name.clone()), lease);
        let record = this.agent.wanted.clone().map(|record| {
            let key = FactKey::Member(this.name.clone());
            Write::Put(key, Fact::Member(record), lease)
        });
        record.into_iter().chain([key]).collect()
    }

    fn remove_disarmed(&self, node: NodeId) -> Option<Txn> {
        let this = self.node(node);
        let seen = this.agent.view.as_ref()?.revision;
        Some(Txn {
            when: vec![Compare::Unchanged(FactKey::Settings, seen)],
            then: vec![Write::Delete(FactKey::Disarmed(this.name.clone()))],
        })
    }

    fn reassert(&self, node: NodeId) -> Option<Txn> {
        let lease = self.session(node)?;
        self.as_leader(node, vec![self.lead(node, lease)])
    }

    fn request_switchover(&self, node: NodeId, to: &MemberName) -> Option<Txn> {
        let request = FailoverRequest {
            leader: Some(self.node(node).name.clone()),
            candidate: Some(to.clone()),
            scheduled_at: None,
            drain: Drain {
                timeout: None,
                on_timeout: Some(OnTimeout::Terminate),
            },
            revision: 0,
        };
        let then = Write::Put(FactKey::Failover, Fact::Failover(request), 0);
        let mut txn = self.as_leader(node, vec![then])?;
        txn.when.push(Compare::Absent(FactKey::Failover));
        Some(txn)
    }

    fn hand_over(
        &self,
        node: NodeId,
        to: &MemberName,
        (lease, record_revision): (i64, i64),
        position: Lsn,
    ) -> Option<Txn> {
        let key = Write::Put(FactKey::Leader, Fact::Leader(to.clone()), lease);
        let mut txn = self.as_leader(node, vec![key, self.last_status(node, position)])?;
        let record = FactKey::Member(to.clone());
        txn.when.push(Compare::Revision(record, record_revision));
        Some(txn)
    }

    fn announce(&self, node: NodeId, record: Arc<SwitchoverRecord>) -> Option<Txn> {
        let lease = self.node(node).agent.lease.id;
        let view = self.node(node).agent.view.as_ref();
        let request = view.and_then(|view| view.failover.as_ref());
        let request = record.request_to_stand(request);
        let put = Write::Put(FactKey::Switchover, Fact::Switchover(record), lease);
        let mut txn = self.as_leader(node, vec![put])?;
        let as_seen = request.map(|revision| Compare::Revision(FactKey::Failover, revision));
        txn.when.extend(as_seen);
        Some(txn)
    }

    fn record_system_id(&self, node: NodeId, id: SystemId) -> Option<Txn> {
        let settings = self.store.head.settings.clone();
        let settings = settings.unwrap_or_else(|| self.settings.clone());
        let then = vec![
            put(FactKey::Initialize, Fact::Initialize(Some(id))),
            put(FactKey::Settings, Fact::Settings(settings)),
        ];
        self.as_leader(node, then)
    }

    fn record_change(&self, node: NodeId, change: &LeaderChange) -> Option<Txn> {
        let fact = Fact::Changes(Some(change.epoch));
        self.as_leader(node, vec![put(FactKey::Changes, fact)])
    }

    fn record_history(&self, node: NodeId) -> Option<Txn> {
        let branch = self.node(node).postgres.data.as_ref()?.branch;
        let history = self.branches.0[branch as usize].history.clone();
        self.as_leader(node, vec![put(FactKey::History, Fact::History(history))])
    }

    fn acquire(&self, node: NodeId) -> Option<Txn> {
        let lease = self.session(node)?;
        let mut when = vec![Compare::Absent(FactKey::Leader)];
        when.extend(self.claim_as_seen(node));
        let view = self.node(node).agent.view.as_ref();
        let sync = view.and_then(|view| view.sync.as_ref());
        when.push(sync_as_seen(sync.map_or(0, |sync| sync.revision)));
        when.extend(self.list_as_seen(node));
        Some(Txn {
            when,
            then: vec![self.lead(node, lease)],
        })
    }

    fn claim_bootstrap(&self, node: NodeId) -> Option<Txn> {
        let lease = self.session(node)?;
        let mut txn = self.acquire(node)?;
        txn.when.push(Compare::Absent(FactKey::Initialize));
        txn.then.push(Write::Put(
            FactKey::Initialize,
            Fact::Initialize(None),
            lease,
        ));
        let view = self.node(node).agent.view.as_ref()?;
        if view.settings.is_none() {
            txn.then.push(put(
                FactKey::Settings,
                Fact::Settings(self.settings.clone()),
            ));
        }
        Some(txn)
    }

    fn publish(&self, node: NodeId, status: &Arc<Status>) -> Option<Txn> {
        let fact = Fact::Status(status.clone());
        self.as_leader(node, vec![put(FactKey::Status, fact)])
    }

    /// The last position, with the slots as they stand.
    fn last_status(&self, node: NodeId, optime: Lsn) -> Write {
        let view = self.node(node).agent.view.as_ref();
        let known = view.map(|view| view.status.clone()).unwrap_or_default();
        let status = Status {
            optime: optime.max(known.optime),
            ..Status::clone(&known)
        };
        put(FactKey::Status, Fact::Status(Arc::new(status)))
    }

    /// The session lease, if there is one.
    fn session(&self, node: NodeId) -> Option<i64> {
        Some(self.node(node).agent.lease.id).filter(|lease| *lease != 0)
    }

    fn lead(&self, node: NodeId, lease: i64) -> Write {
        let me = self.node(node).name.clone();
        Write::Put(FactKey::Leader, Fact::Leader(me), lease)
    }

    fn clear_switchover(&self, node: NodeId) -> Option<Txn> {
        self.as_leader(node, vec![Write::Delete(FactKey::Switchover)])
    }

    /// Under the condition that the own leader key stands as it was written.
    fn as_leader(&self, node: NodeId, then: Vec<Write>) -> Option<Txn> {
        let held = self.node(node).agent.lease.state.held()?;
        Some(Txn {
            when: vec![Compare::Revision(FactKey::Leader, held.epoch.revision)],
            then,
        })
    }

    fn on_sync_as_seen(&self, node: NodeId, revision: i64, then: Write) -> Option<Txn> {
        let mut txn = self.as_leader(node, vec![then])?;
        txn.when.push(sync_as_seen(revision));
        Some(txn)
    }

    /// Whoever creates a leader key compares the failsafe list as it was seen.
    fn list_as_seen(&self, node: NodeId) -> Option<Compare> {
        let view = self.node(node).agent.view.as_ref();
        Some(match view.map_or(0, |view| view.failsafe_revision) {
            0 => Compare::Absent(FactKey::Failsafe),
            revision => Compare::Revision(FactKey::Failsafe, revision),
        })
    }

    /// Whoever creates a leader key compares the last claimed timeline as it was seen.
    fn claim_as_seen(&self, node: NodeId) -> Option<Compare> {
        if self.rule == Some(Break::ClaimIgnored) {
            return None;
        }
        let view = self.node(node).agent.view.as_ref();
        Some(match view.map_or(0, |view| view.claim_revision()) {
            0 => Compare::Absent(FactKey::Timeline),
            revision => Compare::Revision(FactKey::Timeline, revision),
        })
    }
}

fn sync_as_seen(revision: i64) -> Compare {
    match revision {
        0 => Compare::Absent(FactKey::Sync),
        revision => Compare::Revision(FactKey::Sync, revision),
    }
}

fn put(key: FactKey, fact: Fact) -> Write {
    Write::Put(key, fact, 0)
}

fn record(sync: &SyncState) -> Write {
    put(FactKey::Sync, Fact::Sync(sync.clone()))
}

fn drop_failover(revision: i64) -> Txn {
    Txn {
        when: vec![Compare::Revision(FactKey::Failover, revision)],
        then: vec![Write::Delete(FactKey::Failover)],
    }
}
