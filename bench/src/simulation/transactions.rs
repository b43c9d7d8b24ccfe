//! The transaction of each action that changes the DCS.

use std::sync::Arc;

use trunkline_agent::decide::Action;
use trunkline_shared::cluster::Lsn;
use trunkline_shared::cluster::topology::{Fact, FactKey, Initialize, Status};

use super::event::NodeId;
use super::store::{Compare, Txn, Write};
use super::world::World;

impl World {
    /// What the action asks of the DCS; nothing if it cannot be asked now.
    pub(super) fn transaction(&self, node: NodeId, action: &Action) -> Option<Txn> {
        self.change_of_authority(node, action)
            .or_else(|| self.change_of_records(node, action))
    }

    fn change_of_authority(&self, node: NodeId, action: &Action) -> Option<Txn> {
        let this = self.node(node);
        let me = this.name.clone();
        let lease = this.agent.lease.id;
        let held = this.agent.lease.state.held();
        let mine = || Some(Compare::Revision(FactKey::Leader, held?.epoch.revision));
        let lead = |lease| Write::Put(FactKey::Leader, Fact::Leader(me.clone()), lease);
        let txn = |when, then| Some(Txn { when, then });
        let needs_lease = lease != 0;
        match action {
            Action::AcquireLeader if needs_lease => {
                txn(vec![Compare::Absent(FactKey::Leader)], vec![lead(lease)])
            }
            Action::ReassertLeader if needs_lease => txn(vec![mine()?], vec![lead(lease)]),
            Action::ReleaseLeader { position } => {
                let mut then = vec![Write::Delete(FactKey::Leader)];
                let is_claimed = self.store.head.initialize == Initialize::Running;
                then.extend(is_claimed.then_some(Write::Delete(FactKey::Initialize)));
                then.extend(position.map(|at| self.status(node, at)));
                txn(vec![mine()?], then)
            }
            Action::HandOver {
                to,
                lease,
                record_revision,
                position,
            } => {
                let record = Compare::Revision(FactKey::Member(to.clone()), *record_revision);
                let key = Write::Put(FactKey::Leader, Fact::Leader(to.clone()), *lease);
                txn(
                    vec![mine()?, record],
                    vec![key, self.status(node, *position)],
                )
            }
            Action::ClaimBootstrap if needs_lease => txn(
                vec![
                    Compare::Absent(FactKey::Initialize),
                    Compare::Absent(FactKey::Leader),
                ],
                vec![
                    Write::Put(FactKey::Initialize, Fact::Initialize(None), lease),
                    lead(lease),
                    Write::Put(FactKey::Settings, Fact::Settings(self.settings.clone()), 0),
                ],
            ),
            _ => None,
        }
    }

    fn change_of_records(&self, node: NodeId, action: &Action) -> Option<Txn> {
        let this = self.node(node);
        let me = this.name.clone();
        let lease = this.agent.lease.id;
        let held = this.agent.lease.state.held();
        let mine = || Some(Compare::Revision(FactKey::Leader, held?.epoch.revision));
        let txn = |when, then| Some(Txn { when, then });
        match action {
            Action::RecordSystemId(id) => txn(
                vec![mine()?],
                vec![
                    Write::Put(FactKey::Initialize, Fact::Initialize(Some(*id)), 0),
                    Write::Put(
                        FactKey::Settings,
                        Fact::Settings(
                            self.store
                                .head
                                .settings
                                .clone()
                                .unwrap_or_else(|| self.settings.clone()),
                        ),
                        0,
                    ),
                ],
            ),
            Action::PublishStatus { optime } => {
                txn(vec![mine()?], vec![self.status(node, *optime)])
            }
            Action::RecordHistory => {
                let branch = this.postgres.data.as_ref()?.branch;
                let history = self.branches.0[branch as usize].history.clone();
                txn(
                    vec![mine()?],
                    vec![Write::Put(FactKey::History, Fact::History(history), 0)],
                )
            }
            Action::DropFailoverRequest { revision } => txn(
                vec![Compare::Revision(FactKey::Failover, *revision)],
                vec![Write::Delete(FactKey::Failover)],
            ),
            Action::AnnounceSwitchover(record) => txn(
                vec![mine()?],
                vec![Write::Put(
                    FactKey::Switchover,
                    Fact::Switchover(record.clone()),
                    lease,
                )],
            ),
            Action::ClearSwitchover => txn(Vec::new(), vec![Write::Delete(FactKey::Switchover)]),
            Action::WriteDisarmed => txn(
                vec![mine()?],
                vec![Write::Put(FactKey::Disarmed(me), Fact::Disarmed, 0)],
            ),
            Action::ClaimTimeline(claimed) => txn(
                vec![mine()?, Compare::Claimed(this.agent.view.as_ref()?.claimed)],
                vec![Write::Put(FactKey::Timeline, Fact::Timeline(*claimed), 0)],
            ),
            Action::RemoveDisarmed => txn(Vec::new(), vec![Write::Delete(FactKey::Disarmed(me))]),
            _ => None,
        }
    }

    fn status(&self, _node: NodeId, optime: Lsn) -> Write {
        let status = Status {
            optime,
            ..Status::default()
        };
        Write::Put(FactKey::Status, Fact::Status(Arc::new(status)), 0)
    }
}
