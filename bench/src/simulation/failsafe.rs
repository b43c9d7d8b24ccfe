//! Failsafe mode: the leader's rounds, the others' promises, and what a restarted agent knows of both. Whom
//! to ask and what counts is the agent's own code ([`Rounds`]); the requests and `run_dir` are modelled here.

use std::sync::Arc;

use trunkline_agent::decide::Action;
use trunkline_agent::decide::failsafe::wanted;
use trunkline_agent::decide::observation::{LeaseView, NoRace, Promise};
use trunkline_agent::lease::rounds::{
    Authority, FailsafeList, List, Round, Rounds, Shown, Standing,
};
use trunkline_shared::cluster::topology::{Fact, FactKey, Initialize};
use trunkline_shared::cluster::{LeaderEpoch, MemberName, Moment, Topology};

use super::breaks::{Break, Bug};
use super::event::{Event, NodeId, SECOND, Time};
use super::network::Place;
use super::requests::Ask;
use super::store::{Compare, Txn, Write};
use super::story::{Actor, tell};
use super::world::World;

/// What lies in `run_dir` of failsafe mode.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) no_race: NoRace,
    authority: Option<Authority>,
    /// The highest epoch ever seen, and who led under it.
    known: LeaderEpoch,
    led_by: Option<MemberName>,
}

impl Kept {
    fn note(&mut self, epoch: LeaderEpoch, leader: &MemberName, is_made: bool) {
        if epoch > self.known {
            let stands = self.led_by.as_ref() == Some(leader) && is_made;
            let promise = self.no_race.promise.as_mut();
            if let Some(promise) = promise.filter(|promise| promise.epoch < Some(epoch)) {
                promise.reached = promise.reached.filter(|_| stands);
            }
            self.known = epoch;
            self.led_by = Some(leader.clone());
        }
    }
}

/// What becomes of a node's entry into the failsafe list, where that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// The answer to the leader that lists it will be lost.
    Awaited(NodeId),
    /// This leader does not know of it, and will be cut off once it has written its key again.
    Unknown { alone: NodeId, leader: NodeId },
    /// It is alone with the DCS.
    Alone(NodeId),
}

/// How long a leader's watch shows nothing of what it wrote.
const UNSHOWN: Time = 3 * SECOND;

/// A round under way.
#[derive(Clone, Debug)]
struct Asking {
    number: u32,
    round: Round,
    began: Moment,
    missing: Vec<MemberName>,
    /// So many may stay missing: none, unless the rule is broken on purpose.
    spare: usize,
}

/// The lease task's part of it.
#[derive(Clone, Debug)]
pub(super) struct Consent {
    pub(super) rounds: Rounds,
    asking: Option<Asking>,
    number: u32,
}

impl Consent {
    /// The last round's number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Before the agent has started for the first time.
    pub(super) fn unborn() -> Self {
        let me = MemberName::new("");
        Self {
            rounds: Rounds::begin(
                None,
                Standing {
                    me: &me,
                    ttl: std::time::Duration::ZERO,
                    now: Moment(0),
                    armed_until: None,
                },
            ),
            asking: None,
            number: 0,
        }
    }
}

fn shown(view: &Topology) -> Shown {
    Shown {
        list: view.failsafe.clone(),
        revision: view.failsafe_revision,
        at: view.revision,
        is_on: view.settings_or_default().failsafe_mode == Some(true),
    }
}

impl World {
    fn standing<'a>(&self, node: NodeId, me: &'a MemberName) -> Standing<'a> {
        Standing {
            me,
            ttl: self.plan.ttl,
            now: self.clock(node),
            armed_until: self.node(node).run_dir.deadline,
        }
    }

    /// The agent starts; the first one of a boot begins the file of promises.
    pub(super) fn take_up_failsafe(&mut self, node: NodeId, number: u32) {
        let me = self.node(node).name.clone();
        let standing = self.standing(node, &me);
        let kept = &mut self.node_mut(node).run_dir.failsafe;
        kept.no_race.booted = kept.no_race.booted.or(Some(standing.now));
        let rounds = Rounds::begin(kept.authority.clone(), standing);
        self.node_mut(node).agent.consent = Consent {
            rounds,
            asking: None,
            number: number + 1,
        };
    }

    /// What `decide` sees of it.
    pub(super) fn no_race(&self, node: NodeId) -> NoRace {
        self.node(node).run_dir.failsafe.no_race
    }

    /// Before every decision: the lease task is shown the list, the newest epoch is kept.
    pub(super) fn show_failsafe(&mut self, node: NodeId) {
        let this = self.node_mut(node);
        let view = this.agent.view.clone();
        if this.postgres.data.is_none()
            && let Some(promise) = &mut this.run_dir.failsafe.no_race.promise
        {
            promise.reached = None;
        }
        if let Some(held) = this.agent.lease.state.held() {
            this.run_dir.failsafe.note(held.epoch, &this.name, true);
        }
        if let Some(view) = &view
            && let Some(leader) = &view.leader
        {
            let is_made = matches!(view.initialize, Initialize::Done(_));
            this.run_dir
                .failsafe
                .note(leader.epoch, &leader.member, is_made);
        }
        if let Some(view) = view {
            let shown = shown(&view);
            let agent = &mut self.node_mut(node).agent;
            let held = agent.lease.state.held().map(|held| held.epoch);
            agent.consent.rounds.list.show(shown, held);
        }
        self.keep_authority(node);
    }

    /// Called before anybody may act on what the lease task holds.
    pub(super) fn keep_authority(&mut self, node: NodeId) {
        let me = self.node(node).name.clone();
        let standing = self.standing(node, &me);
        let agent = &self.node(node).agent;
        let wanted = agent
            .consent
            .rounds
            .to_keep(agent.lease.state.view(), standing);
        if let Some(wanted) = wanted {
            let this = self.node_mut(node);
            this.run_dir.failsafe.authority = wanted.clone();
            this.agent.consent.rounds.is_kept(wanted);
        }
    }

    pub(super) fn forget_authority(&mut self, node: NodeId) {
        let this = self.node_mut(node);
        this.run_dir.failsafe.authority = None;
        this.agent.consent.rounds.forget();
    }

    /// The store answered a renewal sent at `sent`.
    pub(super) fn store_spoke(&mut self, node: NodeId, sent: Moment, is_definite: bool) {
        let rounds = &mut self.node_mut(node).agent.consent.rounds;
        rounds.store_spoke(sent, is_definite);
    }

    /// Called whenever the lease task looks at its clock, and when a renewal failed.
    pub(super) fn ask_for_consent(&mut self, node: NodeId) {
        if self.has_bug(Bug::OutageUnrecognized) {
            return;
        }
        self.show_failsafe(node);
        let me = self.node(node).name.clone();
        let standing = self.standing(node, &me);
        let agent = &self.node(node).agent;
        let patience = self.plan.ttl * 2 / 5;
        let view = agent.lease.state.view();
        let Some(round) = agent.consent.rounds.wanted(view, patience, standing) else {
            return;
        };
        // One round after the other, as its requests are waited for.
        let limit = self.plan.ttl / 4;
        if let Some(asking) = &agent.consent.asking
            && standing.now.since(asking.began) < limit
        {
            return;
        }
        let missing: Vec<MemberName> = round.authority.list.keys().cloned().collect();
        let consent = &mut self.node_mut(node).agent.consent;
        consent.number += 1;
        let number = consent.number;
        consent.asking = Some(Asking {
            number,
            round,
            began: standing.now,
            missing: missing
                .iter()
                .filter(|name| **name != me)
                .cloned()
                .collect(),
            spare: 0,
        });
        if self.rule == Some(Break::FailsafeOneLess)
            && let Some(asking) = &mut self.node_mut(node).agent.consent.asking
        {
            asking.spare = 1;
        }
        let asked = missing.iter().filter_map(|name| self.id_of(name));
        for to in asked.collect::<Vec<_>>() {
            if to != node && self.net.reaches(Place::Node(node), Place::Node(to)) {
                let way = self.hop();
                let event = Event::Consent {
                    from: node,
                    to,
                    number,
                };
                self.put_in(way, event);
            }
        }
        self.count_round(node);
    }

    pub(super) fn on_consent(
        &mut self,
        event: Event,
        from: NodeId,
        to: NodeId,
        number: u32,
    ) -> bool {
        let this = self.node(to);
        if !this.is_powered || !this.agent.is_alive {
            return false;
        }
        if self.put_off(this.agent_sleeps_until(), event) {
            return true;
        }
        let asking = self.node(from).agent.consent.asking.as_ref();
        let Some(asked) = asking
            .filter(|asking| asking.number == number)
            .map(|asking| asking.round.authority.epoch)
        else {
            return true;
        };
        let now = self.clock(to);
        let ttl = self.plan.ttl;
        let asker = self.node(from).name.clone();
        let reached = self.node(from).agent.written_at_look;
        let this = self.node_mut(to);
        let leads = matches!(this.agent.lease.state.view(), LeaseView::Held(_))
            || this.postgres.can_commit();
        let kept = &mut this.run_dir.failsafe;
        let is_its = kept.led_by.as_ref() == Some(&asker);
        if leads || asked < kept.known && !is_its {
            return true;
        }
        let before = kept.no_race.promise;
        let its = before.filter(|p| is_its || p.epoch == Some(asked));
        let reached = reached.or(its.and_then(|promise| promise.reached));
        let earlier = before.map_or(Moment(0), |p| p.until);
        kept.no_race.promise = Some(Promise {
            until: earlier.max(now + ttl),
            epoch: Some(asked),
            reached,
        });
        kept.note(asked, &asker, true);
        if self.net.reaches(Place::Node(to), Place::Node(from)) {
            let way = self.hop();
            self.put_in(way, Event::Consented { from, to, number });
        }
        true
    }

    pub(super) fn on_consented(
        &mut self,
        event: Event,
        from: NodeId,
        to: NodeId,
        number: u32,
    ) -> bool {
        if !self.node(from).agent.is_alive {
            return false;
        }
        if self.put_off(self.node(from).agent_sleeps_until(), event) {
            return true;
        }
        let name = self.node(to).name.clone();
        let asking = &mut self.node_mut(from).agent.consent.asking;
        if let Some(asking) = asking.as_mut().filter(|asking| asking.number == number) {
            asking.missing.retain(|missing| *missing != name);
            self.count_round(from);
        }
        true
    }

    fn count_round(&mut self, node: NodeId) {
        let consent = &mut self.node_mut(node).agent.consent;
        let is_full = |asking: &Asking| asking.missing.len() <= asking.spare;
        if !consent.asking.as_ref().is_some_and(is_full) {
            return;
        }
        let Some(asking) = consent.asking.take() else {
            return;
        };
        let me = self.node(node).name.clone();
        let standing = self.standing(node, &me);
        self.lapse(node);
        if !self.node(node).fence_looks_live(self.now) {
            return;
        }
        let agent = &mut self.node_mut(node).agent;
        let before = agent.lease.state.held();
        let state = &mut agent.lease.state;
        let counts = agent
            .consent
            .rounds
            .consented(state, &asking.round, asking.began, standing);
        let after = agent.lease.state.held();
        if !counts {
            return;
        }
        self.move_deadline(node);
        self.keep_authority(node);
        if after.map(|held| held.is_by_failsafe) != before.map(|held| held.is_by_failsafe) {
            tell!(self, Actor::Agent(node), "everybody consents: {after:?}");
            self.wake(node);
        }
    }

    /// The transaction of `PublishFailsafe`.
    pub(super) fn publish_failsafe(&self, node: NodeId) -> Option<Txn> {
        let (epoch, base, list) = self.list_to_write(node)?;
        let as_seen = match base {
            0 => Compare::Absent(FactKey::Failsafe),
            revision => Compare::Revision(FactKey::Failsafe, revision),
        };
        Some(Txn {
            when: vec![Compare::Revision(FactKey::Leader, epoch.revision), as_seen],
            then: vec![Write::Put(FactKey::Failsafe, Fact::Failsafe(list), 0)],
        })
    }

    /// What a release writes of the list.
    pub(super) fn empty_failsafe(&self, node: NodeId) -> Option<Write> {
        let is_wanted = self.node(node).agent.consent.rounds.list.may_name_anybody();
        let list = Arc::new(List::new());
        is_wanted.then_some(Write::Put(FactKey::Failsafe, Fact::Failsafe(list), 0))
    }

    fn list_to_write(&self, node: NodeId) -> Option<(LeaderEpoch, i64, Arc<List>)> {
        let agent = &self.node(node).agent;
        let view = agent.view.as_ref()?;
        let held = agent.lease.state.held()?;
        let list = Arc::new(wanted(view));
        Some((held.epoch, view.failsafe_revision, list))
    }

    /// Called before that transaction is sent: whether it was executed may never be known.
    pub(super) fn list_is_pending(&mut self, node: NodeId) {
        let Some((epoch, base, list)) = self.list_to_write(node) else {
            return;
        };
        let rounds = &mut self.node_mut(node).agent.consent.rounds;
        rounds.list.will_be(epoch, base, list);
        self.keep_authority(node);
    }

    /// The node's transaction wrote the leader key at `revision`: anew, or in place of its own.
    pub(super) fn key_was_written(&mut self, node: NodeId, action: &Action, revision: i64) {
        self.show_failsafe(node);
        let generation = self.store.head.generation;
        let this = self.node_mut(node);
        let rounds = &mut this.agent.consent.rounds;
        if *action != Action::ReassertLeader {
            let view = this.agent.view.as_ref();
            let seen = view.map_or(0, |view| view.failsafe_revision);
            rounds.list.stood(seen, revision);
        } else if let Some(held) = this.agent.lease.state.held() {
            let to = LeaderEpoch {
                generation,
                revision,
            };
            rounds.written_again(&held, to, &this.name);
            self.forget_what_was_sent(node, revision);
            self.leave_the_listed_alone(node);
        }
    }

    /// Breaks a rule, where that is asked for: the earlier key is no more, and what was written under it with it.
    fn forget_what_was_sent(&mut self, node: NodeId, revision: i64) {
        if self.rule != Some(Break::ListForgotten) {
            return;
        }
        let agent = &mut self.node_mut(node).agent;
        agent.consent.rounds.list = FailsafeList::default();
        if let Some(view) = &agent.view {
            let mut shown = shown(view);
            shown.at = revision;
            agent.consent.rounds.list.show(shown, None);
        }
    }

    /// Whether a request enters the node into the list that a fault waits for; its answer will be lost.
    pub(super) fn lists_the_awaited(&mut self, at: usize) -> bool {
        let Some(Listing::Awaited(alone)) = self.weather.listing else {
            return false;
        };
        let (request, name) = (&self.requests[at], &self.node(alone).name);
        let Ask::Commit(txn) = &request.ask else {
            return false;
        };
        let lists = |write: &Write| match write {
            Write::Put(_, Fact::Failsafe(list), _) => list.contains_key(name),
            Write::Put(..) | Write::Delete(_) => false,
        };
        let was_listed = self.store.head.failsafe.contains_key(name);
        if was_listed || !txn.then.iter().any(lists) {
            return false;
        }
        let leader = request.node;
        let until = self.now + UNSHOWN;
        let watch = &mut self.watches[usize::from(leader)];
        (watch.stalled_until, watch.lists_at) = (until, until);
        self.weather.listing = Some(Listing::Unknown { alone, leader });
        true
    }

    fn leave_the_listed_alone(&mut self, node: NodeId) {
        match self.weather.listing {
            Some(Listing::Unknown { alone, leader }) if leader == node && alone != node => {
                tell!(
                    self,
                    Actor::World,
                    "what it listed is left alone with the DCS"
                );
                self.weather.listing = Some(Listing::Alone(alone));
                self.leave_one_with_the_dcs(alone, true);
            }
            Some(_) | None => {}
        }
    }

    /// That fault ends.
    pub(super) fn listing_is_over(&mut self) {
        if let Some(Listing::Alone(alone)) = self.weather.listing.take() {
            self.leave_one_with_the_dcs(alone, false);
        }
    }

    /// It was refused, or nobody knows.
    pub(super) fn list_was_not_written(&mut self, node: NodeId, is_known: bool) {
        let Some((epoch, base, list)) = self.list_to_write(node) else {
            return;
        };
        let agent = &mut self.node_mut(node).agent;
        match is_known {
            true => agent.consent.rounds.list.was_refused(epoch, base, &list),
            false => agent.lease.state.hand_over_sent(),
        }
    }

    /// Everybody but one node is cut off from the DCS and from that node: the side with the leader may have
    /// nearly everybody's consent, and the other has the DCS.
    pub(super) fn leave_one_with_the_dcs(&mut self, alone: NodeId, cut: bool) {
        for node in (0..self.plan.members).filter(|node| *node != alone) {
            for other in [Place::Dcs, Place::Node(alone)] {
                let here = Place::Node(node);
                for (from, to) in [(here, other), (other, here)] {
                    self.net.change(from, to, cut, self.now);
                }
            }
        }
    }
}
