//! The routers' half of a planned change: they register, hold, wait for what runs, and say so. In half of the worlds
//! no router registers, as before there were any that did.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use trunkline_agent::decide::decision::StopMode;
use trunkline_agent::decide::observation::{DcsView, Observation};
use trunkline_shared::cluster::RouterRecord;
use trunkline_shared::cluster::router::{Acknowledged, HoldStage};
use trunkline_shared::cluster::switchover::{Drain, OnTimeout};
use trunkline_shared::cluster::topology::{Fact, FactKey, SwitchoverStage};

use super::event::{Event, MS, NodeId, SECOND, Time};
use super::invariants::Invariant;
use super::network::Place;
use super::plan::Plan;
use super::store::{Txn, Write};
use super::story::{Actor, tell};
use super::world::World;

/// A router's lease, and how often it renews it.
const LEASE: Time = 2 * SECOND;
const RENEW_EVERY: Time = SECOND / 2;
/// How long a router holds its clients.
const HOLD_TIMEOUT: Time = 10 * SECOND;
/// For so long after it registered an agent may not know of a router, beside `retry_timeout`.
const UNKNOWN_FOR: Time = SECOND;

/// How a router of this world behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It does not register.
    Absent,
    /// It acknowledges once it may.
    Prompt,
    /// It does so this much later.
    Late(Time),
    /// It never does.
    Mute,
    /// Its process dies when it is to hold, and is back this much later.
    Dies(Time),
    /// It loses the DCS when it is to hold, for so long.
    LosesDcs(Time),
}

/// What the routers of a world and its operator do, by a source of numbers of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fleet {
    pub(super) manners: [Manner; 2],
    /// How long every second client's transaction lasts.
    pub(super) transaction: Time,
    pub(super) drain: Drain,
}

impl Plan {
    /// Draws nothing from the numbers of the others.
    pub(super) fn fleet(rng: &Rng) -> Fleet {
        let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0xF1EE7);
        let is_registered = own.bool();
        let mut manner = || match (is_registered, own.u8(..10)) {
            (false, _) => Manner::Absent,
            (true, 0..5) => Manner::Prompt,
            (true, 5) => Manner::Late(own.u64(..8 * SECOND)),
            (true, 6) => Manner::Mute,
            (true, 7) => Manner::Dies(own.u64(MS..10 * SECOND)),
            (true, 8) => Manner::LosesDcs(own.u64(MS..10 * SECOND)),
            (true, _) => Manner::Absent,
        };
        let manners = [manner(), manner()];
        Fleet {
            manners,
            transaction: [0, 20 * MS, 300 * MS, 6 * SECOND][own.usize(..4)],
            drain: Drain {
                timeout: [None, Some(500), Some(2_000), Some(8_000)][own.usize(..4)]
                    .map(Duration::from_millis),
                on_timeout: [None, None, Some(OnTimeout::Terminate)][own.usize(..3)],
            },
        }
    }
}

/// What a router holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    pub(super) id: u64,
    stage: HoldStage,
    /// Since when it has held anything for this change, and for this stage.
    since: Time,
    stage_since: Time,
}

/// A router as one of the fleet.
#[derive(Default)]
pub(super) struct Registered {
    lease: i64,
    since: Time,
    pub(super) hold: Option<Hold>,
    acknowledged: Option<Acknowledged>,
    /// Its writes that are not answered yet.
    pub(super) open: Vec<u32>,
    /// Neither lives nor reaches the DCS before these times.
    dead_until: Time,
    dumb_until: Time,
    /// The change in which it misbehaved: once is enough.
    misbehaved: u64,
}

impl World {
    /// How long the operator of this world lets a change wait.
    pub(super) fn drain_asked(&self) -> Drain {
        self.plan.fleet.drain
    }

    fn manner(&self, router: u8) -> Manner {
        self.plan.fleet.manners[usize::from(router)]
    }

    fn registered(&mut self, router: u8) -> &mut Registered {
        &mut self.routers[usize::from(router)].fleet
    }

    fn fleet_key(router: u8) -> FactKey {
        FactKey::Router(Arc::from(format!("r{router}/1")))
    }

    pub(super) fn fleet_begins(&mut self) {
        for router in 0..self.plan.routers {
            if self.manner(router) != Manner::Absent {
                self.put_in(100 * MS, Event::FleetRenews { router });
            }
        }
    }

    /// Whether its process runs.
    pub(super) fn router_lives(&self, router: u8) -> bool {
        self.routers[usize::from(router)].fleet.dead_until <= self.now
    }

    pub(super) fn on_fleet_renews(&mut self, router: u8) -> bool {
        self.put_in(RENEW_EVERY, Event::FleetRenews { router });
        self.hold_steps(router);
        self.write_fleet(router);
        true
    }

    pub(super) fn on_fleet_looks(&mut self, router: u8) -> bool {
        self.hold_steps(router);
        true
    }

    /// Its record, on a lease that lives. What is written arrives at once; it was on its way before.
    fn write_fleet(&mut self, router: u8) {
        let now = self.now;
        let is_cut = !self.net.connects(Place::Router(router), Place::Dcs);
        let this = &self.routers[usize::from(router)].fleet;
        let is_away = this.dead_until > now || this.dumb_until > now;
        if is_cut || is_away || self.store.down_until > now {
            return;
        }
        let (lease, acknowledged) = (this.lease, this.acknowledged);
        if lease == 0 || !self.store.keep_alive(lease, now) {
            let lease = self.store.grant(LEASE, now);
            let this = self.registered(router);
            this.lease = lease;
            this.since = now;
        }
        let key = Self::fleet_key(router);
        let FactKey::Router(name) = &key else { return };
        let record = RouterRecord {
            version: self.version.clone(),
            http_url: Arc::from(""),
            hold_timeout: Duration::from_nanos(HOLD_TIMEOUT),
            epoch: None,
            acknowledged,
            writer_sessions: 0,
            held_clients: 0,
            cancel_number: None,
        };
        let stands = self.store.head.routers.get(name);
        if stands.is_some_and(|stands| **stands == record) {
            return;
        }
        let lease = self.registered(router).lease;
        let put = Write::Put(key, Fact::Router(Arc::new(record)), lease);
        let txn = Txn {
            when: Vec::new(),
            then: vec![put],
        };
        let before = self.store.leader().map(|(_, key)| key.revision);
        if self.store.commit(&txn).is_some() {
            self.dcs_changed(None, before);
        }
    }

    /// Begins to hold, acknowledges, or lets go, by what the router sees.
    pub(super) fn hold_steps(&mut self, router: u8) {
        let now = self.now;
        let this = &self.routers[usize::from(router)];
        let asked = this.view.as_ref().and_then(|view| view.switchover.clone());
        let revision = this
            .view
            .as_ref()
            .map_or(0, |view| view.switchover_revision);
        let wanted = asked.as_ref().and_then(|record| match record.stage {
            SwitchoverStage::HoldTransactions => Some(HoldStage::Transactions),
            SwitchoverStage::HoldAll | SwitchoverStage::Stopped { .. } => Some(HoldStage::All),
            SwitchoverStage::Resume => None,
        });
        let epoch = this.writer.map(|lane| lane.epoch);
        let is_over = asked.as_ref().is_none_or(|r| epoch > Some(r.epoch));
        let begun = this.fleet.hold;
        let (Some(record), Some(stage), false) = (asked, wanted, is_over) else {
            self.registered(router).hold = None;
            return;
        };
        let same = begun.filter(|hold| hold.id == record.id);
        let since = same.map_or(now, |hold| hold.since);
        let stage_since = same
            .filter(|hold| hold.stage == stage)
            .map_or(now, |hold| hold.stage_since);
        self.registered(router).hold = Some(Hold {
            id: record.id,
            stage,
            since,
            stage_since,
        });
        self.misbehave(router, record.id);
        let said = Acknowledged {
            switchover: record.id,
            epoch: record.epoch,
            revision,
            stage,
        };
        self.acknowledge(router, said, stage_since);
    }

    fn misbehave(&mut self, router: u8, id: u64) {
        let now = self.now;
        let manner = self.manner(router);
        let is_calm = self.is_calm;
        let this = self.registered(router);
        if this.misbehaved == id || is_calm {
            return;
        }
        this.misbehaved = id;
        match manner {
            Manner::Dies(lasts) => {
                this.dead_until = now + lasts;
                this.open.clear();
                this.hold = None;
                this.acknowledged = None;
            }
            Manner::LosesDcs(lasts) => this.dumb_until = now + lasts,
            Manner::Absent | Manner::Prompt | Manner::Late(_) | Manner::Mute => {}
        }
    }

    fn acknowledge(&mut self, router: u8, said: Acknowledged, since: Time) {
        let now = self.now;
        let delay = match (self.manner(router), self.is_calm) {
            (Manner::Absent, _) => return,
            (Manner::Mute, false) => return,
            (Manner::Late(delay), false) => delay,
            (
                Manner::Prompt
                | Manner::Late(_)
                | Manner::Mute
                | Manner::Dies(_)
                | Manner::LosesDcs(_),
                _,
            ) => 0,
        };
        let Acknowledged {
            switchover: id,
            stage,
            ..
        } = said;
        if !self.router_lives(router) || self.registered(router).acknowledged == Some(said) {
            return;
        }
        if since + delay > now {
            self.put_in(since + delay - now, Event::FleetLooks { router });
            return;
        }
        if !self.has_drained(router, stage) {
            self.put_in(10 * MS, Event::FleetLooks { router });
            return;
        }
        self.registered(router).acknowledged = Some(said);
        tell!(self, Actor::Router(router), "acknowledges {id} {stage:?}");
        self.write_fleet(router);
    }

    fn has_drained(&mut self, router: u8, stage: HoldStage) -> bool {
        let open = std::mem::take(&mut self.registered(router).open);
        let open: Vec<u32> = open
            .into_iter()
            .filter(|write| self.is_open(router, *write))
            .collect();
        let is_held = |write: &u32| match stage {
            HoldStage::Transactions => self.writes[*write as usize].is_transaction,
            HoldStage::All => true,
        };
        let has = !open.iter().any(is_held);
        self.registered(router).open = open;
        has
    }

    /// Whether its client still waits: the connection ends with the server, or when the router cuts it.
    fn is_open(&self, router: u8, write: u32) -> bool {
        let sent = &self.writes[write as usize];
        let node = self.node(sent.lane.node);
        let lives = node.is_powered && node.postgres.run == sent.run;
        lives && !sent.is_answered && !self.routers[usize::from(router)].has_cut(sent.lane)
    }

    /// Whether a router sends a client's write on now.
    pub(super) fn dispatches(&self, router: u8, is_transaction: bool) -> bool {
        if !self.router_lives(router) {
            return false;
        }
        let Some(hold) = self.routers[usize::from(router)].fleet.hold else {
            return true;
        };
        // Nobody is held for longer.
        let is_too_long = self.now > hold.since + HOLD_TIMEOUT;
        is_too_long || (hold.stage == HoldStage::Transactions && !is_transaction)
    }

    /// `a_planned_stop_cuts_nobody`: called when an agent begins to stop PostgreSQL for its successor, or to restart it. Where
    /// the operator would rather have none of it, no client of a registered router waits for an answer.
    pub(super) fn check_planned_stop(&mut self, node: NodeId, mode: StopMode) {
        if mode != StopMode::HandOver {
            return;
        }
        let agent = &self.node(node).agent;
        let view = agent.view.as_ref();
        let record = view.and_then(|view| view.switchover.as_ref());
        let drain = match record.is_some_and(|record| record.is_restart()) {
            true => Some(self.plan.fleet.drain),
            false => view
                .and_then(|view| view.failover.as_ref())
                .filter(|request| request.leader.is_some())
                .map(|request| request.drain),
        };
        let spares = drain.is_some_and(|drain| drain.on_timeout != Some(OnTimeout::Terminate));
        if !spares || agent.is_shutting_down {
            return;
        }
        for router in 0..self.plan.routers {
            let Some(write) = self.cut_by_a_stop(node, router) else {
                continue;
            };
            let detail = format!(
                "{} stops as planned and router {router} waits for write {write}",
                self.node(node).name
            );
            self.fail(Invariant::APlannedStopCutsNobody, detail);
        }
    }

    fn cut_by_a_stop(&self, node: NodeId, router: u8) -> Option<u32> {
        let FactKey::Router(name) = Self::fleet_key(router) else {
            return None;
        };
        let this = &self.routers[usize::from(router)].fleet;
        let known_from = this.since + UNKNOWN_FOR + self.plan.retry_timeout.as_nanos() as Time;
        let is_known = self.store.head.routers.contains_key(&name) && known_from < self.now;
        // One that misses its view, or holds clients no longer, is told by the stop itself.
        let holds = this
            .hold
            .is_some_and(|hold| self.now <= hold.since + HOLD_TIMEOUT);
        let is_blind = this.dead_until > self.now || this.dumb_until > self.now;
        if !is_known || is_blind || !holds && this.acknowledged.is_some() {
            return None;
        }
        let mut open = this.open.iter().copied();
        open.find(|write| {
            let is_here = self.writes[*write as usize].lane.node == node;
            is_here && self.is_open(router, *write)
        })
    }

    /// `a_change_comes_to_its_end`: in a calm world no announcement stands and nobody is held.
    pub(super) fn changes_are_over(&self) -> Result<(), (Invariant, String)> {
        if let Some(record) = &self.store.head.switchover {
            let detail = format!("the announcement of switchover {} still stands", record.id);
            return Err((Invariant::AChangeComesToItsEnd, detail));
        }
        let held = self
            .routers
            .iter()
            .position(|router| router.fleet.hold.is_some());
        match held {
            Some(router) => {
                let detail = format!("router {router} still holds its clients");
                Err((Invariant::AChangeComesToItsEnd, detail))
            }
            None => Ok(()),
        }
    }
}

/// What an agent would see if no router had registered.
pub(super) fn forget_routers(seen: &mut Observation) {
    if let DcsView::Known { topology, .. } = &mut seen.dcs
        && !topology.routers.is_empty()
    {
        Arc::make_mut(topology).routers = Arc::default();
    }
}
