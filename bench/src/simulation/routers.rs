//! The routers: a watched view, the question to the last leader's agent, and the real `transition`.

use std::sync::Arc;

use trunkline_router::topology::routing_table::{RoutingTable, Writer};
use trunkline_router::topology::transition::{
    Answer, Command, Health, Rules, Testimony, View, transition,
};
use trunkline_shared::cluster::{LeaderEpoch, Moment, Topology};
use trunkline_shared::dcs::belief::Belief;

use super::breaks::{Break, Bug};
use super::event::{Event, MS, NodeId, SECOND, Time};
use super::fleet::Registered;
use super::network::Place;
use super::story::{Actor, tell};
use super::world::World;

/// The longest sleep of a router.
const LOOK_EVERY: Time = SECOND;
/// Between two questions to the last leader's agent, and after a miss.
const ASK_EVERY: Time = 500 * MS;
const ASK_AGAIN_AFTER: Time = 100 * MS;
/// How long an agent has to answer.
const ANSWER_TIME: Time = 50 * MS;
/// What a router's clock shows at the beginning of the world: it is another than the nodes'.
const BOOTED: Time = 1_000 * SECOND;

/// Where writes go, and by which right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) node: NodeId,
    pub(super) epoch: LeaderEpoch,
    pub(super) number: u64,
}

/// A question under way.
#[derive(Clone, Copy)]
struct Asking {
    epoch: LeaderEpoch,
    at: Time,
    /// The answer, and when it arrives.
    answer: Option<(Answer, Time)>,
}

/// A router.
#[derive(Default)]
pub(super) struct Router {
    pub(super) view: Option<Arc<Topology>>,
    /// What is known of the store.
    pub(super) belief: Belief,
    /// When the view was last proved the newest.
    pub(super) proved: Time,
    pub(super) writer: Option<Lane>,
    /// The highest epoch it has sent a write under.
    pub(super) sent: LeaderEpoch,
    table: RoutingTable,
    health: Health,
    /// What it is in the fleet.
    pub(super) fleet: Registered,
    /// The lanes that were cut.
    cut: Vec<u64>,
    asking: Option<Asking>,
    asked: u32,
    ask_at: Time,
    tick_at: Time,
}

fn moment(at: Time) -> Moment {
    Moment(at + BOOTED)
}

impl Router {
    /// Whether sessions of that lane were ended.
    pub(super) fn has_cut(&self, lane: Lane) -> bool {
        self.cut.contains(&lane.number)
    }

    /// Whether it has seen more than the store shows: another one, or a later leader.
    pub(super) fn saw_more(&self, shown: &Topology) -> bool {
        let seen = self.table.highest_epoch;
        let is_later = shown.epoch().is_some_and(|shown| Some(shown) < seen);
        self.belief.doubt.is_some() || is_later
    }

    /// What a new process knows.
    pub(super) fn start_again(&mut self) {
        self.belief = Belief::default();
        self.view = None;
        self.table.highest_epoch = None;
        self.table.revision = 0;
        self.sent = LeaderEpoch::default();
    }
}

impl World {
    pub(super) fn router_sees(&mut self, router: u8, view: Arc<Topology>, asked: Option<Time>) {
        let now = self.now;
        let believes = self.rule.is_some_and(|rule| rule.believes_old_views());
        let this = &mut self.routers[usize::from(router)];
        this.view = Some(view);
        // A router that believes anything believes that it is new, too.
        let asked = if believes { Some(now) } else { asked };
        this.proved = this.proved.max(asked.unwrap_or(0));
        self.router_steps(router);
    }

    pub(super) fn on_router_tick(&mut self, router: u8) -> bool {
        let this = &self.routers[usize::from(router)];
        if this.tick_at != self.now && this.tick_at != 0 {
            return false;
        }
        self.router_steps(router);
        true
    }

    pub(super) fn router_steps(&mut self, router: u8) {
        let now = self.now;
        let forgets = self
            .rule
            .is_some_and(|rule| rule.believes_old_views() || rule == Break::LostMemoryBelieved);
        let this = &mut self.routers[usize::from(router)];
        if forgets {
            this.table.highest_epoch = None;
            this.table.revision = 0;
        }
        let shown = this.view.as_ref().map(|topology| View {
            topology,
            proven_at: match this.belief.doubt {
                None => moment(this.proved),
                Some(_) => Moment::default(),
            },
        });
        let rules = Rules::default();
        let (next, commands) = transition(&this.table, shown, &this.health, &rules, moment(now));
        this.table = next;
        for Command::Cut { lane, .. } in commands {
            this.cut.push(lane.0);
        }
        self.take_writer(router);
        self.hold_steps(router);
        self.ask_leader(router);
        let this = &mut self.routers[usize::from(router)];
        let mut at = now + LOOK_EVERY;
        if let Some(again) = this.table.look_again_at {
            at = at.min(again.0.saturating_sub(BOOTED).max(now) + MS);
        }
        if this.table.question.is_some() && this.asking.is_none() {
            at = at.min(this.ask_at.max(now + MS));
        }
        if this.tick_at <= now || at < this.tick_at {
            this.tick_at = at;
            self.queue.put(at, Event::RouterTick { router });
        }
    }

    fn take_writer(&mut self, router: u8) {
        let at = usize::from(router);
        let before = self.routers[at].writer;
        let after = match &self.routers[at].table.writer {
            Writer::Known {
                member,
                epoch,
                lane,
                ..
            } => self.id_of(member).map(|node| Lane {
                node,
                epoch: *epoch,
                number: lane.0,
            }),
            Writer::Promoting { member, epoch } if self.has_bug(Bug::PromotingWritten) => {
                self.id_of(member).map(|node| Lane {
                    node,
                    epoch: *epoch,
                    number: u64::MAX,
                })
            }
            Writer::Promoting { .. } | Writer::None { .. } => None,
        };
        if before == after {
            return;
        }
        self.routers[at].writer = after;
        if self.story.is_some() {
            let writer = self.routers[at].table.writer.clone();
            tell!(self, Actor::Router(router), "{writer:?}");
        }
        self.check_router(router, before, after);
    }

    /// Asks the doubted leader's agent, one question at a time.
    fn ask_leader(&mut self, router: u8) {
        let now = self.now;
        let this = &mut self.routers[usize::from(router)];
        let Some(question) = this.table.question.clone() else {
            this.asking = None;
            this.ask_at = now;
            return;
        };
        if this.asking.is_some() || this.ask_at > now {
            return;
        }
        this.asked += 1;
        this.asking = Some(Asking {
            epoch: question.epoch,
            at: now,
            answer: None,
        });
        let asked = this.asked;
        self.put_in(ANSWER_TIME, Event::Vouched { router, asked });
        let Some(node) = self.id_of(&question.member) else {
            return;
        };
        if self.net.reaches(Place::Router(router), Place::Node(node)) {
            let way = self.hop();
            self.put_in(
                way,
                Event::Vouch {
                    router,
                    node,
                    asked,
                },
            );
        }
    }

    pub(super) fn on_vouch(&mut self, event: Event, router: u8, node: NodeId, asked: u32) -> bool {
        let this = self.node(node);
        if !this.is_powered || !this.agent.is_alive {
            return false;
        }
        let sleeps = this.agent_sleeps_until();
        if self.put_off(sleeps, event) {
            return true;
        }
        if !self.net.reaches(Place::Node(node), Place::Router(router)) {
            return true;
        }
        let epoch = self
            .node(node)
            .agent
            .lease
            .state
            .held()
            .map(|held| held.epoch);
        let can_commit = self.node(node).postgres.can_commit();
        let left = self
            .lease_left(node)
            .filter(|left| can_commit && !left.is_zero());
        let arrives = self.now + self.hop();
        let this = &mut self.routers[usize::from(router)];
        if this.asked != asked {
            return true;
        }
        if let Some(asking) = &mut this.asking {
            let answer = match left.filter(|_| epoch >= Some(asking.epoch)) {
                Some(left) => Answer::Writable {
                    until: moment(asking.at) + left,
                },
                None => Answer::Refused,
            };
            asking.answer = Some((answer, arrives));
            self.queue.put(arrives, Event::Vouched { router, asked });
        }
        true
    }

    pub(super) fn on_vouched(&mut self, router: u8, asked: u32) -> bool {
        let now = self.now;
        let this = &mut self.routers[usize::from(router)];
        let Some(asking) = this.asking.filter(|_| this.asked == asked) else {
            return false;
        };
        let answer = asking.answer.filter(|(_, arrives)| *arrives <= now);
        let answer = answer.map_or(Answer::Silent, |(answer, _)| answer);
        this.asking = None;
        this.ask_at = now
            + match answer {
                Answer::Writable { .. } | Answer::Refused => ASK_EVERY,
                Answer::Silent => ASK_AGAIN_AFTER,
            };
        this.health.hear(Testimony {
            epoch: asking.epoch,
            asked_at: moment(asking.at),
            answer,
        });
        self.router_steps(router);
        true
    }
}
