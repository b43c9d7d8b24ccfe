//! Faults and operators: how each begins and ends, and how all end.

use std::sync::Arc;

use trunkline_agent::decide::observation::{LocalRequest, Me, WatchdogView};
use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::topology::{Fact, FactKey, FailoverRequest};

use super::event::{Event, MS, NodeId, SECOND, Time};
use super::failsafe::Listing;
use super::network::Place;
use super::plan::{Fault, FaultKind};
use super::store::Write;
use super::story::{Actor, tell};
use super::word::ASKED_EVERY;
use super::world::{SILENCE_LIMIT, World};

impl World {
    pub(super) fn on_fault(&mut self, index: u8) -> bool {
        let at = usize::from(index);
        let mut fault = self.plan.faults[at];
        if fault.hits_leader
            && let Some(leader) = self.store.leader().and_then(|(name, _)| self.id_of(name))
        {
            if fault.other == leader {
                fault.other = fault.node;
            }
            fault.node = leader;
        }
        fault.lasts = fault.lasts.min(self.plan.ends.saturating_sub(self.now));
        self.plan.faults[at] = fault;
        tell!(
            self,
            Actor::World,
            "FAULT {} {} on {} for {} ms",
            self.plan.number_of(at),
            fault.kind.word(),
            super::story::node_name(fault.node),
            fault.lasts / MS
        );
        if self.begin_fault(fault) {
            self.coverage.fault(fault.kind);
            self.faults += 1;
            self.note_disturbance(fault);
            self.put_in(fault.lasts, Event::Heal { index });
        }
        true
    }

    /// Begins a fault; whether it could.
    fn begin_fault(&mut self, fault: Fault) -> bool {
        let node = fault.node;
        let now = self.now;
        // A fault never shortens another of its kind.
        let until = now + fault.lasts;
        let longer = |old: &mut Time| *old = until.max(*old);
        if !self.node(node).is_powered {
            return false;
        }
        match fault.kind {
            FaultKind::PostmasterKilled => return self.crash(node),
            FaultKind::PostmasterHangs => longer(&mut self.node_mut(node).postgres.hung_until),
            FaultKind::StopIsSlow => longer(&mut self.node_mut(node).troubles.stop_is_slow),
            FaultKind::DataUnreadable => {
                self.die(node);
                longer(&mut self.node_mut(node).postgres.unreadable_until);
            }
            FaultKind::DataForeign | FaultKind::DataLost => return self.replace_disk(fault),
            FaultKind::LeaderDataLost => return self.lose_leaders_disk(node),
            FaultKind::AgentKilled => self.kill_agent(node),
            FaultKind::AgentPaused => longer(&mut self.node_mut(node).agent.paused_until),
            FaultKind::AgentAndFencePaused => {
                longer(&mut self.node_mut(node).agent.paused_until);
                self.freeze_fence(node, until);
            }
            FaultKind::NodeFrozen => self.freeze(node, until),
            FaultKind::NodePowerOff => self.power_off(node),
            // Nothing ends on a machine that stands still.
            FaultKind::FenceKilled if self.node(node).frozen_until > now => return false,
            FaultKind::FenceKilled => self.kill_fence(node, fault.lasts),
            FaultKind::FenceFrozen => self.freeze_fence(node, until),
            FaultKind::NodeCutFromDcs
            | FaultKind::NodeCutFromNode
            | FaultKind::NodeIsolated
            | FaultKind::NodeHalfDeaf
            | FaultKind::OneLeftWithDcs
            | FaultKind::RouterCutFromDcs
            | FaultKind::RouterCutFromNode => self.change_links(fault, true),
            FaultKind::DcsOutage => longer(&mut self.store.down_until),
            FaultKind::DcsLeaderChange | FaultKind::DcsDeposedLeader => {
                self.change_raft_leader(fault.kind, until);
            }
            FaultKind::DcsSlow => longer(&mut self.weather.slow_until),
            FaultKind::DcsLosesAnswers => longer(&mut self.weather.loses_until),
            FaultKind::DcsAnswersTwice => longer(&mut self.weather.twice_until),
            FaultKind::WaitsCancelled => longer(&mut self.weather.impatient_until),
            FaultKind::WatchStalls => self.stall_watch(fault, until),
            FaultKind::ListAnswerLost => self.weather.listing = Some(Listing::Awaited(fault.other)),
            FaultKind::ReplayStalls => return self.stall_replay(fault.other, until),
            FaultKind::ReplicationStalls => self.stall_replication(fault.other, until),
            FaultKind::CloneFails => longer(&mut self.node_mut(node).troubles.clone_fails),
            FaultKind::RewindFails => longer(&mut self.node_mut(node).troubles.rewind_fails),
            FaultKind::StartFails => longer(&mut self.node_mut(node).troubles.start_fails),
            FaultKind::InitdbFails => longer(&mut self.node_mut(node).troubles.initdb_fails),
            FaultKind::DiskHangs | FaultKind::DiskFills | FaultKind::WalRemoved => {
                return self.host_is_ill(fault, until);
            }
            FaultKind::OperatorSwitchover
            | FaultKind::OperatorSwitchoverNamed
            | FaultKind::OperatorFailover
            | FaultKind::OperatorRestart
            | FaultKind::OperatorReinitialize
            | FaultKind::OperatorPauses
            | FaultKind::OperatorSchedules
            | FaultKind::OperatorDemotes
            | FaultKind::AgentToldToEnd => return self.operate(fault),
            FaultKind::ConfigDeleted | FaultKind::ConfigGarbled | FaultKind::SyncSwitchedOff => {
                return self.change_by_hand(fault);
            }
            FaultKind::DcsWiped | FaultKind::DcsRestored => return self.lose_memory(fault),
        }
        true
    }

    /// Another raft leader: after an election in which nobody answers, or while the old one still answers
    /// keep-alives.
    fn change_raft_leader(&mut self, kind: FaultKind, until: Time) {
        let now = self.now;
        if kind == FaultKind::DcsDeposedLeader {
            self.store.leader_changes(now);
            self.store.deposed_until = until.min(now + 3 * SECOND);
            return;
        }
        let election = self.rng.u64(100 * MS..2 * SECOND);
        self.store.down_until = self.store.down_until.max(now + election);
        self.store.leader_changes(now + election);
    }

    pub(super) fn on_heal(&mut self, index: u8) -> bool {
        let fault = self.plan.faults[usize::from(index)];
        let node = fault.node;
        match fault.kind {
            FaultKind::NodeCutFromDcs
            | FaultKind::NodeCutFromNode
            | FaultKind::NodeIsolated
            | FaultKind::NodeHalfDeaf
            | FaultKind::OneLeftWithDcs
            | FaultKind::RouterCutFromDcs
            | FaultKind::RouterCutFromNode => {
                if !self.is_calm {
                    self.change_links(fault, false);
                }
            }
            FaultKind::NodePowerOff => self.power_on(node),
            FaultKind::AgentKilled | FaultKind::AgentToldToEnd => self.start_agent(node),
            FaultKind::OperatorDemotes => self.end_standby(),
            FaultKind::OperatorPauses => {
                self.set_pause(false);
            }
            FaultKind::PostmasterHangs | FaultKind::DataUnreadable => self.wake(node),
            FaultKind::DataForeign => self.empty_foreign(node),
            FaultKind::DiskHangs | FaultKind::DiskFills => self.disk_is_well(fault),
            FaultKind::ConfigDeleted => self.config_is_missed(),
            FaultKind::ConfigGarbled => self.operator_writes_config(),
            FaultKind::SyncSwitchedOff => {
                self.switch_synchronous_mode(self.plan.synchronous_mode);
            }
            FaultKind::ListAnswerLost => self.listing_is_over(),
            FaultKind::PostmasterKilled
            | FaultKind::StopIsSlow
            | FaultKind::DataLost
            | FaultKind::LeaderDataLost
            | FaultKind::AgentPaused
            | FaultKind::AgentAndFencePaused
            | FaultKind::NodeFrozen
            | FaultKind::FenceKilled
            | FaultKind::FenceFrozen
            | FaultKind::DcsOutage
            | FaultKind::DcsWiped
            | FaultKind::DcsRestored
            | FaultKind::DcsLeaderChange
            | FaultKind::DcsDeposedLeader
            | FaultKind::DcsSlow
            | FaultKind::DcsLosesAnswers
            | FaultKind::DcsAnswersTwice
            | FaultKind::WatchStalls
            | FaultKind::ReplicationStalls
            | FaultKind::ReplayStalls
            | FaultKind::WaitsCancelled
            | FaultKind::CloneFails
            | FaultKind::RewindFails
            | FaultKind::StartFails
            | FaultKind::WalRemoved
            | FaultKind::OperatorSchedules
            | FaultKind::InitdbFails
            | FaultKind::OperatorSwitchover
            | FaultKind::OperatorSwitchoverNamed
            | FaultKind::OperatorFailover
            | FaultKind::OperatorRestart
            | FaultKind::OperatorReinitialize => {}
        }
        true
    }

    fn freeze(&mut self, node: NodeId, until: Time) {
        let now = self.now;
        let this = self.node_mut(node);
        let (from, before) = this.stood_still;
        let from = if before >= now { from } else { now };
        this.frozen_until = this.frozen_until.max(until);
        this.stood_still = (from, this.frozen_until);
    }

    pub(super) fn kill_agent(&mut self, node: NodeId) {
        let this = self.node_mut(node);
        this.agent.is_alive = false;
        this.agent.paused_until = 0;
        this.agent.job_number += 1;
        this.agent.job.running = None;
        this.agent.is_in_turn = false;
    }

    pub(super) fn power_off(&mut self, node: NodeId) {
        let now = self.now;
        self.kill_agent(node);
        self.die(node);
        let this = self.node_mut(node);
        this.is_powered = false;
        this.frozen_until = 0;
        this.stood_still.1 = this.stood_still.1.min(now);
        this.fence.is_alive = false;
        this.fence.is_starting = false;
        this.fence.frozen_until = 0;
        this.fence.missing_until = 0;
        this.fence.number += 1;
        this.run_dir = super::node::RunDir::default();
    }

    pub(super) fn power_on(&mut self, node: NodeId) {
        let at = self.now as i64;
        if !self.node(node).is_powered && self.is_to_start_last(node) {
            return self.put_in(ASKED_EVERY, Event::PowerReturns { node });
        }
        let this = self.node_mut(node);
        if this.is_powered {
            return;
        }
        this.is_powered = true;
        // CLOCK_BOOTTIME begins anew.
        this.offset = 5 * SECOND as i64 - (at + at * this.drift / 1_000_000);
        if let Some(data) = &mut this.postgres.data {
            data.crashed_at = None;
        }
        self.start_agent(node);
    }

    fn stall_watch(&mut self, fault: Fault, until: Time) {
        let watcher = match fault.hits_leader {
            true => self.plan.members + fault.node % self.plan.routers,
            false => fault.other,
        };
        let watch = &mut self.watches[usize::from(watcher)];
        (watch.stalled_until, watch.lists_at) = (until, self.now + SILENCE_LIMIT);
        self.falls_behind(watcher);
        // The connection ends, and the next one is to a member of the store that has fallen behind.
        let place = self.place_of(watcher);
        if let Place::Router(_) = place
            && self.net.connects(place, Place::Dcs)
            && let Some(earlier) = self.store.earlier.first().cloned()
            && earlier.revision < self.watches[usize::from(watcher)].seen
        {
            self.view_arrives(watcher, earlier, None);
        }
    }

    fn change_links(&mut self, fault: Fault, cut: bool) {
        let here = Place::Node(fault.node);
        let there = Place::Node(fault.other);
        let router = Place::Router(fault.other % self.plan.routers);
        let (members, now) = (self.plan.members, self.now);
        let mut both = |one: Place, other: Place| {
            self.net.change(one, other, cut, now);
            self.net.change(other, one, cut, now);
        };
        match fault.kind {
            FaultKind::NodeCutFromDcs => both(here, Place::Dcs),
            FaultKind::NodeCutFromNode => both(here, there),
            FaultKind::RouterCutFromDcs => both(router, Place::Dcs),
            FaultKind::RouterCutFromNode => both(router, here),
            FaultKind::NodeIsolated => {
                both(here, Place::Dcs);
                let others = (0..members).filter(|n| *n != fault.node);
                others.for_each(|node| both(here, Place::Node(node)));
            }
            FaultKind::NodeHalfDeaf => {
                // Nothing reaches it, what it says is heard.
                self.net.change(Place::Dcs, here, cut, now);
                self.net.change(there, here, cut, now);
            }
            FaultKind::OneLeftWithDcs => self.leave_one_with_the_dcs(fault.other, cut),
            // No faults of the network.
            FaultKind::PostmasterKilled
            | FaultKind::PostmasterHangs
            | FaultKind::StopIsSlow
            | FaultKind::DataUnreadable
            | FaultKind::DataForeign
            | FaultKind::DataLost
            | FaultKind::LeaderDataLost
            | FaultKind::AgentKilled
            | FaultKind::AgentPaused
            | FaultKind::AgentAndFencePaused
            | FaultKind::NodeFrozen
            | FaultKind::NodePowerOff
            | FaultKind::FenceKilled
            | FaultKind::FenceFrozen
            | FaultKind::DcsOutage
            | FaultKind::DcsWiped
            | FaultKind::DcsRestored
            | FaultKind::DcsLeaderChange
            | FaultKind::DcsDeposedLeader
            | FaultKind::DcsSlow
            | FaultKind::DcsLosesAnswers
            | FaultKind::DcsAnswersTwice
            | FaultKind::WatchStalls
            | FaultKind::ReplicationStalls
            | FaultKind::ReplayStalls
            | FaultKind::WaitsCancelled
            | FaultKind::CloneFails
            | FaultKind::RewindFails
            | FaultKind::StartFails
            | FaultKind::InitdbFails
            | FaultKind::DiskHangs
            | FaultKind::ListAnswerLost
            | FaultKind::DiskFills
            | FaultKind::WalRemoved
            | FaultKind::OperatorSchedules
            | FaultKind::OperatorSwitchover
            | FaultKind::OperatorSwitchoverNamed
            | FaultKind::OperatorFailover
            | FaultKind::OperatorRestart
            | FaultKind::OperatorReinitialize
            | FaultKind::OperatorPauses
            | FaultKind::OperatorDemotes
            | FaultKind::ConfigDeleted
            | FaultKind::ConfigGarbled
            | FaultKind::SyncSwitchedOff
            | FaultKind::AgentToldToEnd => {}
        }
    }

    // Operators.

    fn operate(&mut self, fault: Fault) -> bool {
        let leader = self.store.leader().map(|(name, _)| name.clone());
        let candidate = Some(self.node(fault.other).name.clone());
        match fault.kind {
            FaultKind::OperatorSwitchover => {
                self.request_change(leader.clone(), None) && leader.is_some()
            }
            FaultKind::OperatorSwitchoverNamed => {
                leader.is_some() && leader != candidate && self.request_change(leader, candidate)
            }
            FaultKind::OperatorFailover => {
                self.request_change(None, candidate.clone()) && self.accept_loss(candidate)
            }
            FaultKind::OperatorRestart => {
                self.request(fault.node, LocalRequest::Restart(self.plan.fleet.drain))
            }
            FaultKind::OperatorReinitialize => {
                let of_leader = fault.hits_leader.then_some(fault.node);
                self.request(of_leader.unwrap_or(fault.other), LocalRequest::Reinitialize)
            }
            FaultKind::OperatorSchedules => self.schedule(leader, fault.lasts),
            FaultKind::OperatorPauses => self.set_pause(true),
            FaultKind::OperatorDemotes => self.set_standby(true),
            FaultKind::AgentToldToEnd => self.tell_to_end(fault.node),
            // Nobody's doing.
            FaultKind::PostmasterKilled
            | FaultKind::PostmasterHangs
            | FaultKind::StopIsSlow
            | FaultKind::DataUnreadable
            | FaultKind::DataForeign
            | FaultKind::DataLost
            | FaultKind::LeaderDataLost
            | FaultKind::AgentKilled
            | FaultKind::AgentPaused
            | FaultKind::AgentAndFencePaused
            | FaultKind::NodeFrozen
            | FaultKind::NodePowerOff
            | FaultKind::FenceKilled
            | FaultKind::FenceFrozen
            | FaultKind::DcsOutage
            | FaultKind::DcsWiped
            | FaultKind::DcsRestored
            | FaultKind::DcsLeaderChange
            | FaultKind::DcsDeposedLeader
            | FaultKind::DcsSlow
            | FaultKind::DcsLosesAnswers
            | FaultKind::DcsAnswersTwice
            | FaultKind::WatchStalls
            | FaultKind::ReplicationStalls
            | FaultKind::ReplayStalls
            | FaultKind::WaitsCancelled
            | FaultKind::CloneFails
            | FaultKind::RewindFails
            | FaultKind::StartFails
            | FaultKind::InitdbFails
            | FaultKind::DiskHangs
            | FaultKind::ListAnswerLost
            | FaultKind::DiskFills
            | FaultKind::WalRemoved
            | FaultKind::NodeCutFromDcs
            | FaultKind::NodeCutFromNode
            | FaultKind::NodeIsolated
            | FaultKind::NodeHalfDeaf
            | FaultKind::OneLeftWithDcs
            | FaultKind::RouterCutFromDcs
            | FaultKind::ConfigDeleted
            | FaultKind::ConfigGarbled
            | FaultKind::SyncSwitchedOff
            | FaultKind::RouterCutFromNode => false,
        }
    }

    fn tell_to_end(&mut self, node: NodeId) -> bool {
        let agent = &mut self.node_mut(node).agent;
        let runs = agent.is_alive;
        agent.is_shutting_down = true;
        self.wake(node);
        runs
    }

    /// The key of the leader that an operator has chosen, and that is not promoted yet.
    fn led_by_choice(&self) -> Option<(u32, i64)> {
        let (leader, key) = self.store.leader()?;
        let key = (self.store.incarnation, key.revision);
        let mut nodes = 0..self.plan.members;
        let leader = nodes.find(|node| self.node(*node).name == *leader)?;
        let is_chosen = self.ledger.loss_accepted && self.is_chosen(leader);
        (is_chosen || self.ledger.led_by_choice == Some(key)).then_some(key)
    }

    /// Whether what an operator asked for was asked after the last promotion began; the store may have lost that.
    pub(super) fn is_still_asked(&self) -> bool {
        let (claim, history) = self.store.head.claim_and_history;
        let request = self.store.head.failover.as_ref();
        let is_newer = request.is_some_and(|request| request.revision > claim.max(history));
        is_newer || self.store.incarnation > 0
    }

    fn accept_loss(&mut self, named: Option<MemberName>) -> bool {
        self.ledger.loss_accepted = true;
        self.ledger.named = named;
        true
    }

    pub(super) fn request_change(
        &mut self,
        leader: Option<MemberName>,
        candidate: Option<MemberName>,
    ) -> bool {
        if self.store.down_until > self.now {
            return false;
        }
        let request = FailoverRequest {
            leader,
            candidate,
            scheduled_at: None,
            drain: self.drain_asked(),
            revision: 0,
        };
        self.write_by_operator(FactKey::Failover, Fact::Failover(request));
        true
    }

    pub(super) fn write_by_operator(&mut self, key: FactKey, fact: Fact) {
        if key == FactKey::Failover {
            self.ledger.led_by_choice = self.led_by_choice();
        }
        self.write_freely(Write::Put(key, fact, 0));
    }

    fn request(&mut self, node: NodeId, request: LocalRequest) -> bool {
        let agent = &mut self.node_mut(node).agent;
        if !agent.is_alive || agent.request.is_some() {
            return false;
        }
        agent.request = Some(request);
        self.wake(node);
        true
    }

    // The end of all faults.

    pub(super) fn on_calm(&mut self) -> bool {
        let now = self.now;
        self.is_calm = true;
        self.calm_since = now;
        tell!(self, Actor::World, "all faults end");
        self.net.mend_all(self.now);
        self.weather = Default::default();
        self.store.down_until = 0;
        self.store.deposed_until = 0;
        for watch in &mut self.watches {
            watch.stalled_until = 0;
        }
        self.operator_writes_config();
        self.set_pause(false);
        self.end_standby();
        self.empty_foreign(0);
        for node in 0..self.plan.members {
            self.power_on(node);
            let this = self.node_mut(node);
            // What its end sets free is about to come.
            this.troubles = super::node::Troubles {
                disk_hangs: now.min(this.troubles.disk_hangs),
                ..Default::default()
            };
            this.postgres.unreadable_until = 0;
            this.postgres.replay_goes_on(now);
            if this.watchdog == WatchdogView::Failed {
                this.watchdog = WatchdogView::Ready;
            }
            this.agent.me = Arc::new(Me {
                may_replace_data: true,
                may_replace_unrewound: true,
                tags: Default::default(),
                ..(*this.agent.me).clone()
            });
            self.start_agent(node);
            self.wake(node);
        }
        self.put_in(SECOND, Event::Converged);
        true
    }
}
