//! The world: everything that exists in one seed, and the loop that plays its events.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use trunkline_agent::decide::callbacks::Callback;
use trunkline_agent::decide::observation::{BootstrapKind, CrashPolicy, Me, WatchdogView};
use trunkline_shared::cluster::topology::{Fact, FactKey};
use trunkline_shared::cluster::{ClusterSettings, MemberName, SystemId, Tags};
use trunkline_shared::dcs::Header;

use super::breaks::Break;
use super::breaks::bugs::Before;
use super::clients::WriteSent;
use super::coverage::{Coverage, Ending};
use super::event::{Event, MS, NodeId, Queue, SECOND, Time};
use super::fake_postgres::{Branches, Data, Phase, Postgres};
use super::invariants::{Failure, Invariant, Ledger};
use super::network::{Network, Place};
use super::node::{Agent, Fence, Node, RunDir, Troubles, member_name, reserve};
use super::plan::{Origin, Plan};
use super::requests::{Request, Weather};
use super::routers::Router;
use super::slots;
use super::store::{Store, Txn, Write};
use super::story::Story;
use super::synchronous;

/// How long a watch is silent until it is given up and the store is listed: it is asked for a sign of life each second,
/// and has two to answer (`dcs::etcd`).
pub(super) const SILENCE_LIMIT: Time = 3 * SECOND;

/// A watcher's connection to the DCS; the agents' come first, then the routers'.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) boot: u32,
    /// A view on its way, and when it was asked for: an event was not.
    pub(super) coming: Option<(Arc<trunkline_shared::cluster::Topology>, Option<Time>)>,
    /// Who answered with it.
    pub(super) from: Header,
    pub(super) seen: i64,
    pub(super) stalled_until: Time,
    /// When it is given up for its silence, and the store is listed.
    pub(super) lists_at: Time,
    /// What the member of the store shows that it is connected to, where a bug believes one that has fallen behind.
    pub(super) behind: Option<Arc<trunkline_shared::cluster::Topology>>,
}

/// Everything that exists in one seed.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) queue: Queue,
    pub(super) rng: Rng,
    pub(super) plan: Plan,
    pub(super) nodes: Vec<Node>,
    pub(super) routers: Vec<Router>,
    pub(super) watches: Vec<Watch>,
    pub(super) store: Store,
    pub(super) net: Network,
    pub(super) weather: Weather,
    pub(super) requests: Vec<Request>,
    pub(super) writes: Vec<WriteSent>,
    pub(super) branches: Branches,
    pub(super) ledger: Ledger,
    pub(super) coverage: Coverage,
    pub(super) rule: Option<Break>,
    pub(super) story: Option<Story>,
    /// The invariants whose breach ends the world; any, if none is named.
    pub(super) awaited: &'static [Invariant],
    /// The first breach of another.
    pub(super) noted: Option<Failure>,
    pub(super) failure: Option<Failure>,
    /// Where everybody stood a while ago, where a bug compares that.
    pub(super) before: Before,
    pub(super) settings: Arc<ClusterSettings>,
    pub(super) is_calm: bool,
    pub(super) calm_since: Time,
    pub(super) ending: Option<Ending>,
    /// When an operator accepted the store last.
    pub(super) accepted_at: Time,
    pub(super) events: u64,
    pub(super) faults: u64,
    pub(super) version: Arc<str>,
    pub(super) unreadable: Arc<str>,
    pub(super) failed: Arc<str>,
}

/// The identity of the cluster that most worlds begin with.
pub(super) const SYSTEM_ID: u64 = 7_300_000_000_000_000_001;

impl World {
    pub(super) fn new(mut rng: Rng, plan: Plan, rule: Option<Break>, story: Option<Story>) -> Self {
        let mut settings = ClusterSettings {
            ttl: plan.ttl,
            loop_wait: plan.loop_wait,
            retry_timeout: plan.retry_timeout,
            maximum_lag_on_failover: plan.maximum_lag,
            primary_start_timeout: plan.start_timeout,
            use_pg_rewind: plan.use_pg_rewind,
            check_timeline: plan.drift[0] % 3 == 1,
            member_slots_ttl: Duration::from_secs(10),
            failsafe_mode: plan.failsafe_mode,
            slots: slots::configured(&plan),
            ..ClusterSettings::default()
        };
        synchronous::set(&mut settings, &plan);
        let settings = Arc::new(settings);
        let mut may_replace_data = rng.u8(..10) > 0;
        let crash_policy = match rng.u8(..4) {
            0 => CrashPolicy::Restart,
            1 => CrashPolicy::Failover,
            _ => CrashPolicy::Auto,
        };
        if plan.origin != Origin::Running {
            may_replace_data = true;
        }
        let nodes = (0..plan.members)
            .map(|id| new_node(&mut rng, &plan, id, crash_policy, may_replace_data))
            .collect();
        let watchers = usize::from(plan.members + plan.routers);
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            rng,
            routers: (0..plan.routers).map(|_| Router::default()).collect(),
            watches: (0..watchers).map(|_| Watch::default()).collect(),
            plan,
            nodes,
            store: Store::new(),
            net: Network::default(),
            weather: Weather::default(),
            requests: Vec::new(),
            writes: Vec::new(),
            branches: Branches::default(),
            ledger: Ledger::default(),
            coverage: Coverage::default(),
            rule,
            story,
            awaited: &[],
            noted: None,
            failure: None,
            before: Before::default(),
            settings,
            is_calm: false,
            calm_since: 0,
            ending: None,
            accepted_at: 0,
            events: 0,
            faults: 0,
            version: "1".into(),
            unreadable: "the data directory cannot be read".into(),
            failed: "made to fail".into(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        match self.plan.origin {
            Origin::Running | Origin::Cold => self.begin_with_a_cluster(),
            Origin::Adopted => self.begin_with_a_primary(),
            Origin::AdoptedStandby => self.begin_with_a_standby(),
            Origin::Fresh => {}
        }
        for node in 0..self.plan.members {
            let delay = self.rng.u64(..SECOND);
            self.nodes[usize::from(node)].agent.is_alive = false;
            let lease = self.nodes[usize::from(node)].run_dir.lease;
            self.now = if lease == 0 { delay } else { 0 };
            self.start_agent(node);
        }
        self.now = 0;
        for router in 0..self.plan.routers {
            self.start_watch(self.plan.members + router);
            self.put_in(50 * MS, Event::RouterTick { router });
        }
        self.fleet_begins();
        for client in 0..self.plan.clients {
            let offset = self.plan.write_every / u64::from(self.plan.clients) * u64::from(client);
            self.put_in(SECOND + offset, Event::Write { client });
        }
        self.put_in(500 * MS, Event::LeaseScan);
        for index in 0..self.plan.faults.len() {
            let at = self.plan.faults[index].at;
            self.queue.put(at, Event::Fault { index: index as u8 });
        }
        self.queue.put(self.plan.ends, Event::Calm);
    }

    fn begin_with_a_cluster(&mut self) {
        let root = self.branches.root();
        let writes = |key, fact| Write::Put(key, fact, 0);
        let mut txn = Txn {
            when: Vec::new(),
            then: vec![
                writes(
                    FactKey::Initialize,
                    Fact::Initialize(Some(SystemId(SYSTEM_ID))),
                ),
                writes(FactKey::Settings, Fact::Settings(self.settings.clone())),
                writes(FactKey::History, Fact::History(Arc::default())),
            ],
        };
        let first = synchronous::first_record(&self.plan, self.nodes[0].name.clone());
        txn.then.extend(first);
        self.store.commit(&txn);
        let is_running = self.plan.origin == Origin::Running;
        for (id, node) in self.nodes.iter_mut().enumerate() {
            let mut data = Data::new(SYSTEM_ID, root);
            if id > 0 {
                data.was_primary = false;
                data.upstream = Some(0);
            }
            node.postgres = Postgres::new(Some(data));
            if is_running {
                node.postgres.phase = match id {
                    0 => Phase::Primary,
                    _ => Phase::Replica { promotes: false },
                };
                if id == 0 {
                    node.postgres.slots = Arc::new(vec![slots::archives()]);
                }
            }
        }
        if !is_running {
            return;
        }
        for node in &mut self.nodes {
            node.run_dir.store.is_trusted = true;
        }
        let ttl = self.plan.ttl.as_nanos() as Time;
        let lease = self.store.grant(ttl, 0);
        let me = self.nodes[0].name.clone();
        self.store.commit(&Txn {
            when: Vec::new(),
            then: vec![Write::Put(FactKey::Leader, Fact::Leader(me), lease)],
        });
        let leader = &self.nodes[0];
        let of_lease = &leader.agent.lease.state;
        let deadline = of_lease.deadline(leader.clock(0), self.plan.ttl);
        self.nodes[0].run_dir = RunDir {
            deadline: Some(deadline),
            lease,
            ..self.nodes[0].run_dir.clone()
        };
        for node in 1..self.plan.members {
            self.put_in(MS, Event::Receiver { node, run: 0 });
        }
        let at = self.nodes[0].when(deadline);
        self.queue.put(at, Event::Fence { node: 0, fence: 0 });
    }

    /// A primary that no agent has ever kept; a replica of it may stand beside it.
    fn begin_with_a_primary(&mut self) {
        let root = self.branches.root();
        self.nodes[0].postgres = Postgres::new(Some(Data::new(SYSTEM_ID, root)));
        let is_running = self.rng.bool();
        if is_running {
            self.nodes[0].postgres.phase = Phase::Primary;
        }
        if self.rng.bool() {
            let mut data = Data::new(SYSTEM_ID, root);
            data.was_primary = false;
            data.upstream = Some(0);
            self.nodes[1].postgres = Postgres::new(Some(data));
        }
    }

    /// Plays events until the seed is over or an invariant is broken.
    pub(super) fn play(&mut self) {
        while let Some((at, event)) = self.queue.pop() {
            self.now = at;
            if self.happen(event) {
                self.events += 1;
                self.check();
            }
            if self.failure.is_some() || self.ending.is_some() {
                break;
            }
        }
        if let (None, Some(ending)) = (&self.failure, self.ending) {
            self.coverage.ending(ending);
        }
    }

    /// Whether the event was somebody's.
    fn happen(&mut self, event: Event) -> bool {
        match event {
            Event::Wake { node, boot } => self.on_wake(node, boot),
            Event::Decide { node, turn } => self.on_decide(event, node, turn),
            Event::PeerAsk { from, to, turn } => self.on_peer_ask(event, from, to, turn),
            Event::PeerAnswer { from, to, turn } => self.on_peer_answer(event, from, to, turn),
            Event::PeersLimit { node, turn } => self.on_peers_limit(event, node, turn),
            Event::Renew { node, boot } => self.on_renew(event, node, boot),
            Event::Word { node, boot } => self.on_word(event, node, boot),
            Event::Arrive { request } => self.on_arrive(request),
            Event::Answer { request } => self.on_answer(event, request),
            Event::Limit { request } => self.on_limit(event, request),
            Event::WatchView { watcher } => self.on_watch_view(event, watcher),
            Event::WatchProbe { watcher, boot } => self.on_watch_probe(event, watcher, boot),
            Event::WatchAlive {
                watcher,
                sent,
                revision,
            } => self.on_watch_alive(event, watcher, sent, revision),
            Event::LeaseScan => self.on_lease_scan(),
            Event::Phase { node, run } => self.on_phase(event, node, run),
            Event::Receiver { node, run } => self.on_receiver(event, node, run),
            Event::Ship { node, run } => self.on_ship(event, node, run),
            Event::Flushed { node, up, end, .. } => self.on_flushed(event, node, up, end),
            Event::Reload { node, run } => self.on_reload(event, node, run),
            Event::WaitCancelled { node, run, write } => {
                self.on_wait_cancelled(event, node, run, write)
            }
            Event::OrphansEnd { node, run } => self.on_orphans_end(event, node, run),
            Event::SeesExit { node, boot } => self.on_sees_exit(event, node, boot),
            Event::Killed { node, run } => self.on_killed(event, node, run),
            Event::JobDone { node, job } => self.on_job_done(event, node, job),
            Event::Fence { node, fence } => self.on_fence(event, node, fence),
            Event::FenceLook { node, boot } => self.on_fence_look(event, node, boot),
            Event::FenceStarted { node, fence } => self.on_fence_started(event, node, fence),
            Event::WatchdogEnds { node, left } => self.on_watchdog_ends(event, node, left),
            Event::PowerReturns { node } => self.on_power_returns(node),
            Event::Write { client } => self.on_write(client),
            Event::WriteArrives { write } => self.on_write_arrives(event, write),
            Event::WriteAnswered { write } => self.on_write_answered(write),
            Event::FleetRenews { router } => self.on_fleet_renews(router),
            Event::FleetLooks { router } => self.on_fleet_looks(router),
            Event::RouterTick { router } => self.on_router_tick(router),
            Event::Vouch {
                router,
                node,
                asked,
            } => self.on_vouch(event, router, node, asked),
            Event::Vouched { router, asked } => self.on_vouched(router, asked),
            Event::Consent { from, to, number } => self.on_consent(event, from, to, number),
            Event::Consented { from, to, number } => self.on_consented(event, from, to, number),
            Event::Fault { index } => self.on_fault(index),
            Event::Heal { index } => self.on_heal(index),
            Event::Calm => self.on_calm(),
            Event::Converged => self.on_converged(),
        }
    }

    pub(super) fn put_in(&mut self, delay: Time, event: Event) {
        self.queue.put(self.now + delay, event);
    }

    /// One way of a message.
    pub(super) fn hop(&mut self) -> Time {
        let base = self.plan.hop;
        base / 2 + self.rng.u64(..base)
    }

    pub(super) fn node(&self, node: NodeId) -> &Node {
        &self.nodes[usize::from(node)]
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[usize::from(node)]
    }

    pub(super) fn clock(&self, node: NodeId) -> trunkline_shared::cluster::Moment {
        self.node(node).clock(self.now)
    }

    pub(super) fn id_of(&self, name: &MemberName) -> Option<NodeId> {
        let index = self.nodes.iter().position(|n| n.name == *name)?;
        Some(index as NodeId)
    }

    /// Puts an event of a sleeping actor off until it wakes; whether it was put off.
    pub(super) fn put_off(&mut self, until: Time, event: Event) -> bool {
        let sleeps = until > self.now;
        if sleeps {
            self.queue.put(until, event);
        }
        sleeps
    }

    /// Where a watcher stands.
    pub(super) fn place_of(&self, watcher: u8) -> Place {
        match watcher.checked_sub(self.plan.members) {
            None => Place::Node(watcher),
            Some(router) => Place::Router(router),
        }
    }
}

fn new_node(
    rng: &mut Rng,
    plan: &Plan,
    id: NodeId,
    crash_policy: CrashPolicy,
    may_replace_data: bool,
) -> Node {
    let name = member_name(id);
    let address: Arc<str> = format!("10.0.0.{}:5432", id + 1).into();
    let tags = Tags {
        nofailover: id > 0 && rng.u8(..20) == 0,
        failover_priority: (rng.u8(..8) == 0)
            .then(|| rng.u32(..4))
            .filter(|p| id > 0 || *p > 0),
        // By a number that is drawn already: another draw would change every seed's history.
        clonefrom: plan.drift[usize::from(id)] % 3 == 0,
        ..Tags::default()
    };
    let me = Arc::new(Me {
        name: name.clone(),
        address: address.clone(),
        tags,
        crash_policy,
        may_replace_data,
        may_replace_unrewound: may_replace_data,
        use_pg_rewind: None,
        callbacks: Callback::ALL.into(),
        can_clone_without_leader: plan.drift[usize::from(id)] % 5 == 0,
        bootstrap: BootstrapKind::Initdb,
        has_pre_promote: plan.drift[usize::from(id)] % 4 == 0,
    });
    Node {
        name,
        api_url: format!("http://10.0.0.{}:8008/patroni", id + 1).into(),
        address,
        is_powered: true,
        waits_for_word: 0,
        frozen_until: 0,
        stood_still: (0, 0),
        offset: 100 * SECOND as i64 + rng.i64(0..1_000 * SECOND as i64),
        drift: plan.drift[usize::from(id)],
        agent: Agent::started(me, 0, reserve(watchdog(plan, id))),
        fence: Fence {
            is_alive: true,
            ..Fence::default()
        },
        run_dir: RunDir::default(),
        postgres: Postgres::new(None),
        troubles: Troubles::default(),
        watchdog: watchdog(plan, id),
        unguarded: 0,
    }
}

/// Every second world has watchdogs, all required; one in twenty of their members cannot open its own. By numbers
/// that are drawn already: another draw would change every seed's history.
fn watchdog(plan: &Plan, id: NodeId) -> WatchdogView {
    let lacks_it = id > 0 && (plan.stop_takes / MS + u64::from(id)).is_multiple_of(20);
    match ((plan.kill_takes / MS).is_multiple_of(2), lacks_it) {
        (false, _) => WatchdogView::NotRequired,
        (true, false) => WatchdogView::Ready,
        (true, true) => WatchdogView::Failed,
    }
}
