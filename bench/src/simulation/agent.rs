//! The agent's turns: wake, look, decide by the real rules, act, record. What surrounds `decide` in the
//! real program is modelled here, with a pause possible between any two steps.

use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::announce::announcement;
use trunkline_agent::decide::decision::{Lapse, StartAs};
use trunkline_agent::decide::observation::{
    DcsView, FenceView, LeaseView, Local, Observation, Peers,
};
use trunkline_agent::decide::small_moves::WrittenRecord;
use trunkline_agent::decide::{Action, Decision, decide};
use trunkline_agent::tick;
use trunkline_shared::cluster::topology::{Fact, FactKey};
use trunkline_shared::cluster::{MemberName, Moment};

use super::event::{Event, MS, NodeId, SECOND, Time};
use super::fake_postgres::UNREADABLE;
use super::node::{Agent, Snapshot};
use super::requests::{Ask, Purpose, Reply};
use super::store::{Txn, Write};
use super::story::{Actor, tell};
use super::world::World;

/// How soon a turn follows another at the earliest.
const TURN_GAP: Time = 2 * MS;

impl World {
    /// Starts the agent of a node: its memory is empty, what its run_dir holds is taken up.
    pub(super) fn start_agent(&mut self, node: NodeId) {
        let now = self.now;
        let this = self.node_mut(node);
        if !this.is_powered || this.agent.is_alive {
            return;
        }
        self.take_up_store(node);
        let this = self.node_mut(node);
        let boot = this.agent.boot + 1;
        let job_number = this.agent.job_number + 1;
        let turn = this.agent.turn + 1;
        let highest = this.agent.lease.highest;
        let rounds = this.agent.consent.number();
        let reserve = this.reserve();
        this.agent = Agent::started(this.agent.me.clone(), boot, reserve);
        this.agent.job_number = job_number;
        this.agent.turn = turn;
        this.agent.lease.id = this.run_dir.lease;
        this.agent.lease.highest = highest;
        this.agent.is_store_shut = this.run_dir.store.belief.doubt.is_some();
        this.agent.client_saw = this.run_dir.store.belief.seen;
        this.agent.turns_since = now;
        this.agent.started_at = now;
        self.take_up_failsafe(node, rounds);
        self.take_up_members(node);
        tell!(self, Actor::Agent(node), "starts");
        self.start_watch(node);
        self.put_in(MS, Event::Renew { node, boot });
        if self.node(node).agent.is_store_shut {
            self.leave_word_soon(node);
        }
        if !self.node(node).fence.is_alive {
            self.replace_fence(node);
        } else if self.node(node).fence.frozen_until > now {
            self.look_at_fence(node, MS);
        }
        self.show_interrupted_rewind(node);
        self.see_exit_soon(node);
        self.wake(node);
    }

    /// The agent is to look now.
    pub(super) fn wake(&mut self, node: NodeId) {
        self.wake_in(node, TURN_GAP);
    }

    pub(super) fn wake_in(&mut self, node: NodeId, delay: Time) {
        let at = self.now + delay;
        let agent = &mut self.node_mut(node).agent;
        if agent.is_in_turn {
            agent.is_woken = true;
        } else if at < agent.next_wake {
            agent.next_wake = at;
            let boot = agent.boot;
            self.queue.put(at, Event::Wake { node, boot });
        }
    }

    pub(super) fn on_wake(&mut self, node: NodeId, boot: u32) -> bool {
        let now = self.now;
        let agent = &self.node(node).agent;
        if agent.boot != boot || !agent.is_alive || agent.is_in_turn || agent.next_wake != now {
            return false;
        }
        let sleeps = self.node(node).agent_sleeps_until();
        if sleeps > now {
            self.node_mut(node).agent.next_wake = sleeps;
            self.queue.put(sleeps, Event::Wake { node, boot });
            return true;
        }
        self.begin_turn(node);
        true
    }

    fn begin_turn(&mut self, node: NodeId) {
        self.refresh_slots(node);
        let mut local = self.local(node);
        self.say_who_keeps_slots(node, &mut local);
        // As the agent's view of it: taken before anybody is asked.
        let store = self.store_view(node);
        let now = self.now;
        let met = self.met_without_asking(node);
        let has_read_all = self.node(node).postgres.has_read_all(now);
        let agent = &mut self.node_mut(node).agent;
        agent.next_wake = Time::MAX;
        agent.is_in_turn = true;
        agent.is_woken = false;
        agent.turn += 1;
        agent.seen_running |= matches!(local, Local::Running(_));
        agent.snapshot = Some(Snapshot {
            local,
            job: agent.job.clone(),
            store,
            proved: agent.view.is_some().then_some(agent.proved),
            has_read_all,
        });
        agent.answers = None;
        if now.saturating_sub(agent.turns_since) > 10 * SECOND {
            agent.turns = 0;
            agent.turns_since = now;
        }
        agent.turns += 1;
        let turn = agent.turn;
        if agent.memory.wants_peers {
            self.ask_peers(node, turn);
        } else {
            agent.met = met;
            let takes = self.rng.u64(MS / 5..3 * MS);
            self.put_in(takes, Event::Decide { node, turn });
        }
    }

    pub(super) fn local(&self, node: NodeId) -> Local {
        let this = self.node(node);
        if let Some(stuck) = self.stuck_on_disk(node) {
            return stuck;
        }
        let local = this.postgres.local(
            self.now,
            this.agent.seen_running,
            &self.branches,
            |at| this.clock(at),
            |id| match id {
                UNREADABLE => self.unreadable.clone(),
                id => self.node(id).address.clone(),
            },
        );
        self.with_commits(node, local)
    }

    pub(super) fn on_decide(&mut self, event: Event, node: NodeId, turn: u32) -> bool {
        let agent = &self.node(node).agent;
        if !agent.is_alive || agent.turn != turn || !agent.is_in_turn || agent.snapshot.is_none() {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        self.lapse(node);
        let Some(seen) = self.observation(node) else {
            return false;
        };
        let identity = seen.local.system_id();
        self.node_mut(node).agent.decided_by = match &seen.dcs {
            DcsView::Known { topology, .. } => Some(topology.clone()),
            DcsView::Unknown => None,
        };
        self.note_look(node, &seen);
        let seen = self.perturb_observation(node, seen);
        let shown = seen.topology().into_iter().flat_map(|t| t.members.keys());
        for id in shown
            .filter_map(|name| self.id_of(name))
            .collect::<Vec<_>>()
        {
            self.node_mut(node).agent.ever_seen[usize::from(id)] = true;
        }
        self.node_mut(node).agent.decided_at = seen.store.generation;
        let mut decision = decide(&seen, &self.node(node).agent.memory);
        self.coverage.situation(decision.situation);
        self.coverage.reason(decision.reason);
        for action in &decision.actions {
            self.coverage.action(action);
        }
        tell!(
            self,
            Actor::Agent(node),
            "{} ({}) {:?}{}",
            decision.reason,
            decision.detail,
            decision.actions,
            if decision.is_request_taken {
                " request taken"
            } else {
                ""
            }
        );
        self.keep_members(node, &seen);
        self.check_identity(node, identity, &decision);
        self.check_decision(node, &seen, &decision);
        self.perturb_decision(&seen, &mut decision);
        if decision.actions.iter().any(makes_writable) {
            let agent = &mut self.node_mut(node).agent;
            agent.made_writable_by = agent.decided_by.clone();
        }
        self.take_up(node, &seen, decision);
        true
    }

    fn note_look(&mut self, node: NodeId, seen: &Observation) {
        let leader = seen.topology().and_then(|shown| shown.leader.as_ref());
        // Whom the DCS did not answer says of nobody that he leads, and not that nobody does.
        let somebody = (!seen.is_dcs_fresh()).then(|| MemberName::new(""));
        let agent = &mut self.node_mut(node).agent;
        agent.leader_at_look = leader.map(|leader| leader.member.clone()).or(somebody);
        agent.written_at_look = tick::written(seen);
    }

    fn observation(&mut self, node: NodeId) -> Option<Observation> {
        self.show_failsafe(node);
        self.keep_config(node);
        let no_race = self.no_race(node);
        let now = self.clock(node);
        let this = self.node_mut(node);
        let Snapshot {
            local,
            job,
            store,
            proved,
            has_read_all,
        } = this.agent.snapshot.take()?;
        let agent = &mut this.agent;
        agent.reach_at_look = local.position().map(|found| (found, has_read_all));
        let dcs = match (&agent.view, proved) {
            (Some(topology), Some(proved)) => DcsView::Known {
                topology: topology.clone(),
                age: now.since(proved),
            },
            (None, _) | (_, None) => DcsView::Unknown,
        };
        let peers = match agent.answers.take() {
            Some(answers) => Peers::Asked(Arc::new(answers)),
            None => Peers::NotAsked,
        };
        let (me, lease) = (agent.me.clone(), agent.lease.state.view().clone());
        let request = agent.request.clone();
        let is_shutting_down = agent.is_shutting_down;
        let lost_config = agent.is_config_lost.then(|| "{}".into());
        let this = self.node(node);
        Some(self.with_doubt(Observation {
            now,
            me,
            dcs,
            store,
            lost_config,
            lease,
            local,
            peers,
            job,
            request,
            fence: FenceView {
                is_live: this.fence_looks_live(self.now),
                armed_until: this.run_dir.deadline,
                watchdog: this.watchdog,
            },
            no_race,
            health: self.health_view(node),
            is_shutting_down,
            is_bootstrap_unfinished: this.postgres.data.as_ref().is_some_and(|d| d.is_unfinished),
            scheduled: self.scheduled_for(node),
            // Of its own, so that it draws nothing from the seed's numbers.
            chance: this.agent.turn,
        }))
    }

    fn take_up(&mut self, node: NodeId, seen: &Observation, decision: Decision) {
        self.record(node, seen, &decision);
        let ends = decision.reason == trunkline_agent::decide::Reason::ShutDown;
        let agent = &mut self.node_mut(node).agent;
        agent.memory = decision.memory;
        agent.looked_at = seen.now;
        agent.next_within = decision.next.within.as_nanos() as Time;
        let no_fence = Action::LetLeaseLapse(Lapse::NoFence);
        agent.lease.is_without_fence = decision.actions.contains(&no_fence);
        agent.actions = decision.actions;
        agent.step = 0;
        if decision.is_request_taken {
            agent.request = None;
        }
        if ends && agent.actions.is_empty() {
            tell!(self, Actor::Agent(node), "ends");
            self.node_mut(node).agent.is_alive = false;
            if self.is_calm {
                self.start_agent(node);
            }
            return;
        }
        self.next_action(node);
    }

    /// The turn is over: the next follows at its time, or at once if something woke the agent meanwhile.
    pub(super) fn end_turn(&mut self, node: NodeId, failed: bool) {
        let agent = &mut self.node_mut(node).agent;
        agent.is_in_turn = false;
        agent.actions.clear();
        let is_woken = agent.is_woken;
        let within = agent.next_within;
        agent.failures = if failed { agent.failures + 1 } else { 0 };
        let failures = agent.failures;
        let delay = Duration::from_nanos(match (failed, is_woken) {
            (false, true) => 0,
            (true, _) | (false, false) => within,
        });
        let delay = match failed {
            true => tick::after_failure(delay, failures),
            false => delay,
        };
        let turn = (agent.looked_at, self.clock(node));
        let delay = tick::not_past(delay, turn, self.stands_until(node));
        self.wake_in(node, (delay.as_nanos() as Time).max(TURN_GAP));
    }

    /// Until when PostgreSQL may live, as its agent knows it.
    fn stands_until(&self, node: NodeId) -> Option<Moment> {
        let this = self.node(node);
        let held = match this.agent.lease.state.view() {
            LeaseView::Held(held) => Some(held.deadline),
            LeaseView::NotHeld | LeaseView::Lost => None,
        };
        held.into_iter().chain(this.run_dir.deadline).min()
    }

    /// Writes the member's record when it is due. An earlier one that is not answered yet is waited for no more.
    fn record(&mut self, node: NodeId, seen: &Observation, decision: &Decision) {
        let times = (self.clock(node), self.plan.loop_wait);
        let this = self.node(node);
        let agent = &this.agent;
        let record = announcement(seen, decision, &this.api_url, &self.version);
        let (is_shut, lease) = (agent.is_store_shut, agent.lease.id);
        let record = Arc::new(record);
        self.node_mut(node).agent.wanted = Some(record.clone());
        if is_shut || lease == 0 {
            return;
        }
        let agent = &self.node(node).agent;
        let on_lease = agent.record_lease == agent.lease.id;
        let before = agent.record.as_ref().filter(|_| on_lease);
        let Some(due) = WrittenRecord::next(before, &record, times, seen.topology()) else {
            return;
        };
        let key = FactKey::Member(self.node(node).name.clone());
        let txn = Txn {
            when: Vec::new(),
            then: vec![Write::Put(key, Fact::Member(record), lease)],
        };
        let agent = &mut self.node_mut(node).agent;
        agent.records += 1;
        agent.record = Some(due);
        agent.record_lease = lease;
        let number = agent.records;
        self.send(node, Ask::Commit(txn), Purpose::Record { number });
    }

    pub(super) fn record_answered(&mut self, node: NodeId, at: usize, number: u32) {
        let has_put = matches!(self.requests[at].reply, Reply::Committed(Some(_)));
        let agent = &mut self.node_mut(node).agent;
        if !has_put && agent.records == number {
            agent.record = None;
        }
    }

    /// What the rule that is broken on purpose does to what `decide` sees.
    fn perturb_observation(&self, node: NodeId, mut seen: Observation) -> Observation {
        let Some(rule) = self.rule else {
            return seen;
        };
        rule.perturb(&mut seen, self.node(node).clock(self.now));
        self.perturb_by_world(node, &mut seen);
        seen
    }

    fn perturb_decision(&self, seen: &Observation, decision: &mut Decision) {
        if let Some(rule) = self.rule {
            rule.perturb_decision(seen, decision);
        }
    }

    /// How much of the held lease is left.
    pub(super) fn lease_left(&self, node: NodeId) -> Option<Duration> {
        let held = self.node(node).agent.lease.state.held()?;
        let now: Moment = self.clock(node);
        Some(now.until(held.deadline))
    }
}

fn makes_writable(action: &Action) -> bool {
    matches!(
        action,
        Action::Promote(_)
            | Action::Start(StartAs::Primary | StartAs::PrimaryClosed | StartAs::Recovering)
    )
}
