//! Historical bugs of other projects, each re-introduced by a switch, where no other rule of [`Break`] breaks the
//! same. Whose bug each was stands in the bank (`simulation/bank.rs`).

use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::decision::StopMode;
use trunkline_agent::decide::observation::{DcsView, Local, Observation, PeerView};
use trunkline_agent::decide::{Action, Decision, Situation};
use trunkline_agent::lease::state::KeyCheck;
use trunkline_shared::cluster::member::SwitchoverReady;
use trunkline_shared::cluster::timeline::TimelineEnd;
use trunkline_shared::cluster::topology::{Initialize, SwitchoverStage};
use trunkline_shared::cluster::{LeaderEpoch, Lsn, Moment, TimelineHistory};

use super::{Break, change_settings};
use crate::simulation::event::{NodeId, SECOND, Time};
use crate::simulation::fake_postgres::Phase;
use crate::simulation::invariants::Invariant;
use crate::simulation::store::LeaderKey;
use crate::simulation::world::World;

/// A bug that others had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A renewal that fails is no matter while what was read of the DCS before still names this leader.
    StaleReadTrusted,
    /// The fence is disarmed with the order to stop, not after the end of every process.
    DisarmedEarly,
    /// At the deadline PostgreSQL is asked to stop, and not killed.
    FencedGently,
    /// A watch that has ended counts as one that shows everything.
    CancelUnheard,
    /// What a member of the store that has fallen behind says of the leader key counts.
    StaleMemberBelieved,
    /// A store that does not answer is no reason to ask the members for their consent.
    OutageUnrecognized,
    /// The key is handed over once any healthy member has the last record, be it not the one named.
    AnybodyConfirms,
    /// Candidates are compared by positions from while WAL still arrived.
    PositionsFromBefore,
    /// Candidates are compared by what they have replayed.
    ReplayCompared,
    /// A former primary is rewound although its source has made no checkpoint since its promotion.
    RewoundTooEarly,
    /// A timeline that the history lists has nothing beyond its end, whatever the end.
    HistoryUnread,
    /// As long as the leader's name stays, nobody looks whether it has begun another timeline.
    LeaderNameCompared,
    /// Slots exist for those who are registered now.
    SlotsOfTheLiving,
    /// Data of another cluster counts as this one's.
    IdentityUnread,
    /// A keep-alive that is answered proves the leader key, by whomever it is answered.
    KeepAliveTrusted,
    /// A leader that cannot go on keeps its lease.
    LeaseNeverGivenUp,
    /// One renewal without an answer costs a leader its lease.
    NoPatience,
    /// Writes that were held go to whoever holds the key, before it has said that it is a primary.
    PromotingWritten,
    /// What PostgreSQL answers to a commit whose wait for standbys was cancelled goes on to the client.
    CancelledWaitRelayed,
}

impl Bug {
    /// Changes what `decide` sees.
    pub(super) fn perturb(self, seen: &mut Observation) {
        match self {
            Bug::RewoundTooEarly => {
                if let DcsView::Known { topology, .. } = &mut seen.dcs {
                    for member in Arc::make_mut(topology).members.values_mut() {
                        Arc::make_mut(member).is_checkpointed_after_promote = true;
                    }
                }
            }
            Bug::HistoryUnread => forget_forks(seen),
            Bug::SlotsOfTheLiving => {
                change_settings(seen, |settings| settings.member_slots_ttl = Duration::ZERO);
            }
            Bug::IdentityUnread => take_for_ours(seen),
            Bug::StaleReadTrusted
            | Bug::DisarmedEarly
            | Bug::FencedGently
            | Bug::CancelUnheard
            | Bug::StaleMemberBelieved
            | Bug::OutageUnrecognized
            | Bug::AnybodyConfirms
            | Bug::PositionsFromBefore
            | Bug::ReplayCompared
            | Bug::LeaderNameCompared
            | Bug::KeepAliveTrusted
            | Bug::LeaseNeverGivenUp
            | Bug::NoPatience
            | Bug::PromotingWritten
            | Bug::CancelledWaitRelayed => {}
        }
    }

    /// Changes what was decided.
    pub(super) fn perturb_decision(self, decision: &mut Decision) {
        let stop = |action: &Action| matches!(action, Action::Stop(_));
        match self {
            Bug::DisarmedEarly => {
                if let Some(at) = decision.actions.iter().position(stop) {
                    decision.actions.insert(at + 1, Action::DisarmFence);
                }
            }
            Bug::FencedGently if decision.situation == Situation::AuthorityGone => {
                for action in decision.actions.iter_mut().filter(|action| stop(action)) {
                    *action = Action::Stop(StopMode::Fast);
                }
            }
            Bug::LeaseNeverGivenUp if decision.situation == Situation::HoldingLease => {
                let gives_up = |action: &Action| matches!(action, Action::ReleaseLeader { .. });
                decision.actions.retain(|action| !gives_up(action));
            }
            Bug::FencedGently
            | Bug::LeaseNeverGivenUp
            | Bug::StaleReadTrusted
            | Bug::CancelUnheard
            | Bug::StaleMemberBelieved
            | Bug::OutageUnrecognized
            | Bug::AnybodyConfirms
            | Bug::PositionsFromBefore
            | Bug::ReplayCompared
            | Bug::RewoundTooEarly
            | Bug::HistoryUnread
            | Bug::LeaderNameCompared
            | Bug::SlotsOfTheLiving
            | Bug::IdentityUnread
            | Bug::KeepAliveTrusted
            | Bug::NoPatience
            | Bug::PromotingWritten
            | Bug::CancelledWaitRelayed => {}
        }
    }

    /// Which invariants are to notice it.
    pub(super) fn noticed_by(self) -> &'static [Invariant] {
        match self {
            Bug::StaleReadTrusted => &[Invariant::AtMostOneWritablePrimary],
            Bug::DisarmedEarly | Bug::FencedGently => &[Invariant::FenceKillsByTheDeadline],
            Bug::CancelUnheard | Bug::PromotingWritten => {
                &[Invariant::RouterNeverSendsWritesToAReplica]
            }
            Bug::StaleMemberBelieved | Bug::NoPatience => &[Invariant::NobodyIsDeposedForNothing],
            Bug::OutageUnrecognized => &[Invariant::AnOutageAloneDeposesNobody],
            Bug::AnybodyConfirms => &[
                Invariant::ASwitchoverLosesNothing,
                Invariant::NoAcknowledgedCommitLost,
            ],
            Bug::PositionsFromBefore | Bug::ReplayCompared | Bug::CancelledWaitRelayed => {
                &[Invariant::NoAcknowledgedCommitLost]
            }
            Bug::RewoundTooEarly => &[Invariant::ARewindLeavesOneHistory],
            Bug::HistoryUnread | Bug::LeaderNameCompared => &[Invariant::EveryoneConverges],
            Bug::SlotsOfTheLiving => &[Invariant::ASlotOutlivesItsMembersAbsence],
            Bug::IdentityUnread => &[Invariant::OneClusterIdentity],
            Bug::KeepAliveTrusted => &[
                Invariant::DeadlineWithinTheLease,
                Invariant::AtMostOneWritablePrimary,
            ],
            Bug::LeaseNeverGivenUp => &[Invariant::ALeaderEmerges],
        }
    }
}

/// Each timeline of the history goes on for ever: whatever lies on one of them is shared.
fn forget_forks(seen: &mut Observation) {
    let DcsView::Known { topology, .. } = &mut seen.dcs else {
        return;
    };
    let endless = |end: &TimelineEnd| TimelineEnd {
        timeline: end.timeline,
        end: Lsn(u64::MAX),
    };
    let ends = topology.history.ends().iter().map(endless).collect();
    Arc::make_mut(topology).history = Arc::new(TimelineHistory::new(ends));
}

fn take_for_ours(seen: &mut Observation) {
    let Some(Initialize::Done(ours)) = seen.topology().map(|topology| topology.initialize) else {
        return;
    };
    match &mut seen.local {
        Local::Unknown(_) | Local::Empty => {}
        Local::Stopped(stopped) => stopped.system_id = ours,
        Local::Running(running) => running.system_id = ours,
        Local::Starting { system_id, .. }
        | Local::Unresponsive { system_id, .. }
        | Local::Orphaned { system_id, .. } => *system_id = system_id.map(|_| ours),
    }
}

/// Between two looks at where everybody stands, of which the one before the last counts.
const LOOK_EVERY: Time = 2 * SECOND;

/// Where everybody stood a while ago.
#[derive(Default)]
pub(in crate::simulation) struct Before {
    at: Time,
    latest: [u64; 5],
    earlier: [u64; 5],
}

impl World {
    pub(in crate::simulation) fn has_bug(&self, bug: Bug) -> bool {
        self.rule == Some(Break::Historical(bug))
    }

    /// What a bug does to an observation that one member's own view is not enough for.
    pub(in crate::simulation) fn perturb_by_world(&self, node: NodeId, seen: &mut Observation) {
        if self.has_bug(Bug::LeaderNameCompared) {
            let leader = seen
                .topology()
                .and_then(|topology| topology.leader.as_ref());
            let leader = leader.and_then(|leader| self.id_of(&leader.member));
            let data = self.node(node).postgres.data.as_ref();
            let follows = data.and_then(|data| data.upstream);
            if leader.is_some() && follows == leader {
                forget_forks(seen);
            }
        }
        if self.has_bug(Bug::AnybodyConfirms) {
            self.confirm_by_anybody(node, seen);
        }
    }

    fn confirm_by_anybody(&self, node: NodeId, seen: &mut Observation) {
        let DcsView::Known { topology, .. } = &mut seen.dcs else {
            return;
        };
        let Some(record) = topology.switchover.clone() else {
            return;
        };
        let SwitchoverStage::Stopped {
            shutdown_checkpoint,
        } = record.stage
        else {
            return;
        };
        let candidate = self.id_of(&record.to);
        let mut others = (0..self.plan.members).filter(|id| *id != node && Some(*id) != candidate);
        let has_last = |id: NodeId| {
            let data = self.node(id).postgres.data.as_ref();
            data.is_some_and(|data| Lsn(data.end) > shutdown_checkpoint)
        };
        if !others.any(has_last) {
            return;
        }
        let member = Arc::make_mut(topology).members.get_mut(&record.to);
        if let Some(fields) = member.and_then(|member| Arc::make_mut(member).trunkline.as_mut()) {
            fields.ready = Some(SwitchoverReady {
                id: record.id,
                replayed: Lsn(u64::MAX),
            });
        }
    }

    /// Called now and then; notes where everybody stands.
    pub(in crate::simulation) fn note_positions(&mut self) {
        if !self.has_bug(Bug::PositionsFromBefore) || self.now < self.before.at + LOOK_EVERY {
            return;
        }
        let mut latest = [0; 5];
        for (position, node) in latest.iter_mut().zip(&self.nodes) {
            *position = node.postgres.data.as_ref().map_or(0, |data| data.end);
        }
        self.before = Before {
            at: self.now,
            earlier: self.before.latest,
            latest,
        };
    }

    /// What a bug makes of a peer's answer.
    pub(in crate::simulation) fn misreport(&self, node: NodeId, view: &mut PeerView) {
        if view.is_primary {
            return;
        }
        if self.has_bug(Bug::ReplayCompared) {
            view.position = view.replayed;
        }
        if self.has_bug(Bug::PositionsFromBefore) {
            let earlier = Lsn(self.before.earlier[usize::from(node)]);
            view.position = view.position.min(earlier);
            view.replayed = view.replayed.min(earlier);
        }
    }

    /// A watch of an agent's is to a member of the store that has fallen behind.
    pub(in crate::simulation) fn falls_behind(&mut self, watcher: u8) {
        if self.has_bug(Bug::StaleMemberBelieved) {
            let behind = self.store.earlier.first().cloned();
            self.watches[usize::from(watcher)].behind = behind;
        }
    }

    /// What that member says of the leader key: whether it names the asker, and what it holds.
    pub(in crate::simulation) fn said_by_a_stale_member(
        &self,
        node: NodeId,
    ) -> Option<Option<(bool, LeaderKey)>> {
        let watch = &self.watches[usize::from(node)];
        let behind = watch.behind.as_ref();
        let behind = behind.filter(|_| watch.stalled_until > self.now)?;
        Some(behind.leader.as_ref().map(|leader| {
            let key = LeaderKey {
                revision: leader.epoch.revision,
                lease: leader.lease,
            };
            (leader.member == self.node(node).name, key)
        }))
    }

    /// The epoch under which the node leads by what it last saw of the DCS.
    fn leads_by_its_view(&self, node: NodeId) -> Option<LeaderEpoch> {
        let view = self.node(node).agent.view.as_ref()?;
        let leader = view.leader.as_ref()?;
        (leader.member == self.node(node).name).then_some(leader.epoch)
    }

    /// What a look at the leader key found, as the bug has it.
    pub(in crate::simulation) fn found_by(&self, node: NodeId, found: KeyCheck) -> KeyCheck {
        match self.leads_by_its_view(node) {
            Some(epoch) if self.has_bug(Bug::StaleReadTrusted) => KeyCheck::Mine(epoch),
            Some(_) | None => found,
        }
    }

    /// A renewal was not answered; whether a bug has dealt with that.
    pub(in crate::simulation) fn mistakes_silence(&mut self, node: NodeId) -> bool {
        let found = match self.leads_by_its_view(node) {
            Some(epoch) if self.has_bug(Bug::StaleReadTrusted) => KeyCheck::Mine(epoch),
            Some(_) if self.has_bug(Bug::NoPatience) => KeyCheck::Other,
            Some(_) | None => return false,
        };
        let now = self.clock(node);
        self.renewed(node, now, 0, 0, found);
        true
    }

    /// A keep-alive was answered; whether a bug takes that for the proof of the key.
    pub(in crate::simulation) fn trusts_keep_alive(
        &mut self,
        node: NodeId,
        sent: Moment,
        term: u64,
    ) -> bool {
        let held = self.node(node).agent.lease.state.held();
        let Some(held) = held.filter(|_| self.has_bug(Bug::KeepAliveTrusted)) else {
            return false;
        };
        self.renewed(node, sent, term, term, KeyCheck::Mine(held.epoch));
        true
    }

    /// The deadline has passed: what the fence does about it.
    pub(in crate::simulation) fn end_by_fence(&mut self, node: NodeId) {
        match self.has_bug(Bug::FencedGently) {
            true => self.shut_down(node),
            false => self.begin_kill(node),
        }
    }

    /// Whether a source is fit for a rewind: a primary, and since its promotion it has made a checkpoint.
    pub(in crate::simulation) fn is_rewind_source(&self, node: NodeId) -> bool {
        let postgres = &self.node(node).postgres;
        let data = postgres.data.as_ref();
        let is_checkpointed = data.is_some_and(|data| data.is_checkpointed);
        postgres.phase == Phase::Primary && (is_checkpointed || self.has_bug(Bug::RewoundTooEarly))
    }
}
