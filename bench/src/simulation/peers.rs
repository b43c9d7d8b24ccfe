//! The question to the other members' agents before a race, and what they answer.

use std::collections::BTreeMap;
use std::time::Duration;

use trunkline_agent::decide::asking;
use trunkline_agent::decide::observation::{
    Local, Looked, PeerAnswer, PeerView, RunningRole, WatchdogView,
};
use trunkline_agent::observe::peers::{PEER_LIMIT, stop_is_due_in};
use trunkline_shared::cluster::Lsn;

use super::breaks::Break;
use super::event::{Event, MS, NodeId, SECOND, Time};
use super::fake_postgres::Phase;
use super::network::Place;
use super::world::World;

impl World {
    pub(super) fn ask_peers(&mut self, from: NodeId, turn: u32) {
        let agent = &self.node(from).agent;
        let me = &self.node(from).name;
        // An agent that was restarted asks whom it kept.
        let known = self.node(from).known();
        let whom = known.map(|view| asking::whom(&view, &agent.memory, me));
        let whom = whom.unwrap_or_default();
        let peers: Vec<NodeId> = whom.keys().filter_map(|name| self.id_of(name)).collect();
        let asked = peers
            .iter()
            .map(|id| (self.node(*id).name.clone(), PeerAnswer::Unreachable));
        let asked: BTreeMap<_, _> = asked.collect();
        let speaks = |to: usize| {
            let to = to as NodeId;
            to < self.plan.members && self.speaks(to, Place::Node(from))
        };
        let met = std::array::from_fn(speaks);
        let agent = &mut self.node_mut(from).agent;
        agent.answers = Some(asked);
        agent.answers_missing = peers.len() as u8;
        agent.met = met;
        // Whoever this agent has ever seen registered gets the question as far as the ledger goes: who could
        // have been asked is what the invariant judges by, not who was.
        for to in (0..self.plan.members).filter(|to| *to != from) {
            let is_known = self.node(from).agent.ever_seen[usize::from(to)] || peers.contains(&to);
            if is_known && self.net.reaches(Place::Node(from), Place::Node(to)) {
                let way = self.hop();
                self.put_in(way, Event::PeerAsk { from, to, turn });
            }
        }
        let limit = match peers.len() {
            0 => MS,
            _ => (self.plan.retry_timeout.as_nanos() as Time / 2).min(SECOND),
        };
        let limit = limit.min(PEER_LIMIT.as_nanos() as Time);
        let left = self.stop_is_due_in(from);
        let left = left.map(|left| left.as_nanos() as Time);
        let limit = left.map_or(limit, |left| limit.min(left));
        self.put_in(limit, Event::PeersLimit { node: from, turn });
    }

    /// In how long a PostgreSQL that runs armed must be stopped.
    fn stop_is_due_in(&self, node: NodeId) -> Option<Duration> {
        let this = self.node(node);
        let runs = this.postgres.phase != Phase::Down;
        let deadline = this.run_dir.deadline.filter(|_| runs);
        stop_is_due_in(self.clock(node), deadline)
    }

    pub(super) fn on_peer_ask(
        &mut self,
        event: Event,
        from: NodeId,
        to: NodeId,
        turn: u32,
    ) -> bool {
        let this = self.node(to);
        if !this.is_powered || !this.agent.is_alive {
            return false;
        }
        if self.put_off(this.agent_sleeps_until(), event) {
            return true;
        }
        let asking = &mut self.node_mut(from).agent;
        if asking.turn == turn {
            asking.met[usize::from(to)] = true;
        }
        if !self.net.reaches(Place::Node(to), Place::Node(from)) {
            return true;
        }
        let mut view = self.peer_view(to);
        self.misreport(to, &mut view);
        if view.is_primary && self.node(from).agent.turn == turn {
            self.ledger.primary_was_seen(from, turn);
        }
        if matches!(self.rule, Some(Break::NoPeerCheck | Break::NoRaceIgnored)) {
            view.is_primary = false;
        }
        let name = self.node(to).name.clone();
        let agent = &mut self.node_mut(from).agent;
        if agent.turn != turn {
            return true;
        }
        let Some(answers) = &mut agent.answers else {
            return true;
        };
        if !answers.contains_key(&name) {
            return true;
        }
        // The answer is put where it will be looked for, and counts once it has arrived.
        answers.insert(name, PeerAnswer::Answered(view));
        let way = self.hop();
        self.put_in(way, Event::PeerAnswer { from, to, turn });
        true
    }

    pub(super) fn on_peer_answer(
        &mut self,
        event: Event,
        from: NodeId,
        _to: NodeId,
        turn: u32,
    ) -> bool {
        let agent = &self.node(from).agent;
        if !agent.is_alive || agent.turn != turn || agent.answers_missing == 0 {
            return false;
        }
        if self.put_off(self.node(from).agent_sleeps_until(), event) {
            return true;
        }
        let agent = &mut self.node_mut(from).agent;
        agent.answers_missing -= 1;
        if agent.answers_missing == 0 {
            self.put_in(0, Event::Decide { node: from, turn });
        }
        true
    }

    pub(super) fn on_peers_limit(&mut self, event: Event, node: NodeId, turn: u32) -> bool {
        let agent = &self.node(node).agent;
        if !agent.is_alive
            || agent.turn != turn
            || (agent.answers_missing == 0 && agent.answers.as_ref().is_none_or(|a| !a.is_empty()))
        {
            return false;
        }
        if self.put_off(self.node(node).agent_sleeps_until(), event) {
            return true;
        }
        // The deadline may have moved; what is due now needs nobody's answer.
        let is_cut_short = self.stop_is_due_in(node) == Some(Duration::ZERO);
        let agent = &mut self.node_mut(node).agent;
        if is_cut_short && agent.answers_missing > 0 {
            agent.answers = None;
        }
        agent.answers_missing = 0;
        self.put_in(0, Event::Decide { node, turn });
        true
    }

    fn stands_back(&self, node: NodeId) -> bool {
        let until = self.node(node).agent.memory.stands_back_until;
        until.is_some_and(|until| until > self.clock(node))
    }

    fn peer_view(&self, node: NodeId) -> PeerView {
        let tags = &self.node(node).agent.me.tags;
        let mut view = PeerView {
            is_running: false,
            is_primary: false,
            timeline: None,
            position: Lsn(0),
            replayed: Lsn(0),
            is_streaming: None,
            is_replay_paused: false,
            may_lead: tags.may_lead()
                && self.node(node).watchdog != WatchdogView::Failed
                && !self.stands_back(node),
            priority: tags.priority(),
            is_nearly_full: self.node(node).troubles.disk_is_full > self.now,
            store: Some(self.peer_store(node)),
            has_read_all: false,
            looked: Looked::InTurn(self.node(node).agent.leader_at_look.clone()),
        };
        match self.local(node) {
            Local::Running(running) => {
                view.is_running = true;
                view.timeline = Some(running.timeline);
                match running.role {
                    RunningRole::Primary { position, .. } => {
                        view.is_primary = true;
                        view.position = position;
                        view.replayed = position;
                    }
                    RunningRole::Replica {
                        received,
                        replayed,
                        is_streaming,
                        ..
                    } => {
                        view.is_streaming = Some(is_streaming);
                        view.position = received.max(replayed);
                        view.replayed = replayed;
                        self.as_of_last_look(node, &mut view);
                    }
                }
            }
            Local::Unresponsive { was_primary, .. } | Local::Orphaned { was_primary, .. } => {
                let is_killed = self.node(node).agent.memory.kill_hangs_since.is_some();
                view.is_primary = was_primary && !is_killed;
            }
            Local::Stopped(stopped) => {
                view.timeline = Some(stopped.timeline);
                view.position = stopped.position;
            }
            Local::Unknown(_) | Local::Empty | Local::Starting { .. } => {}
        }
        view
    }

    /// How far it has received, and whether it had read all that lies there, is what its last turn found.
    fn as_of_last_look(&self, node: NodeId, view: &mut PeerView) {
        if let Some((found, is_all)) = self.node(node).agent.reach_at_look {
            view.position = found.min(view.position);
            view.has_read_all = is_all;
        }
    }
}
