//! The task that keeps one cluster's routing table: it watches the DCS, asks the last leader when in
//! doubt, probes the members, lets [`transition`] decide, and publishes.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};
use trunkline_shared::cluster::topology::Routers;
use trunkline_shared::cluster::{ClusterName, Moment};
use trunkline_shared::dcs::watch::{Follow, View as DcsView};
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;

use crate::drain::Progress;
use crate::lanes::Lanes;
use crate::metrics::ClusterMetrics;
use crate::topology::health::{PROBE_INTERVAL, Streaks};
use crate::topology::resolver::Resolver;
use crate::topology::routing_table::{LaneId, RoutingTable, Writer};
use crate::topology::state_file::StateFile;
use crate::topology::transition::{Answer, Health, Rules, Testimony, View, transition};

pub mod health;
pub mod resolver;
pub mod routing_table;
pub mod state_file;
pub mod transition;
pub mod witness;

/// Between two questions to the last leader's agent.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// The same after a miss.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The shortest time between two forced reads of the DCS, however often they are asked for.
const REFRESH_EVERY: Duration = Duration::from_millis(100);
/// So many bits of a lane's number count the lanes of one cluster; those above are the cluster's number.
const LANE_BITS: u32 = 40;
/// The longest sleep: whatever was missed is noticed then.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What sessions see: the table, where its addresses lead, and the number of both. It is replaced as a whole, so that on
/// whatever thread nobody who has seen a hold goes by an older table, nor the other way round.
#[derive(Debug, Default)]
pub struct Published {
    /// The table.
    pub table: RoutingTable,
    /// Larger than that of every value before it; of the first one, which knows nothing, 0.
    pub version: u64,
    addresses: BTreeMap<Arc<str>, Vec<SocketAddr>>,
}

impl Published {
    /// Where an address of the table leads; empty while its name has not been resolved.
    pub fn places(&self, address: &Arc<str>) -> Vec<SocketAddr> {
        match address.parse() {
            Ok(literal) => vec![literal],
            Err(_) => self.addresses.get(address).cloned().unwrap_or_default(),
        }
    }

    /// Whether a planned change of leader holds what goes to this lane: that of the leader, and no other.
    pub fn holds(&self, lane: LaneId) -> bool {
        let led = self.table.last.as_ref().and_then(|last| last.lane);
        self.table.hold.is_some() && led == Some(lane)
    }
}

/// One cluster, as the sessions and the HTTP endpoint share it.
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Tells it from others, of the same name too, that this process follows or has followed.
    pub number: u64,
    /// Its sessions.
    pub lanes: Arc<Lanes>,
    /// Clients of it that wait for a writer or a replica.
    pub held: AtomicUsize,
    /// How far a planned change of leader has come here.
    pub progress: watch::Sender<Progress>,
    published: ArcSwap<Published>,
    /// The version that those who wait have heard of.
    changes: watch::Sender<u64>,
    /// Why the DCS cannot be followed at present.
    trouble: ArcSwap<Option<Arc<str>>>,
    wants_refresh: Notify,
    /// The routers that are registered for it.
    routers: ArcSwap<Routers>,
}

impl Cluster {
    /// A cluster of which nothing is known.
    pub fn new(name: ClusterName) -> Self {
        Self::numbered(name, 0)
    }

    /// The same for one of many, of which each has a number of its own.
    pub fn numbered(name: ClusterName, number: u64) -> Self {
        Self {
            name,
            number,
            lanes: Arc::default(),
            held: AtomicUsize::new(0),
            progress: watch::Sender::default(),
            published: ArcSwap::default(),
            changes: watch::Sender::new(0),
            trouble: ArcSwap::default(),
            wants_refresh: Notify::new(),
            routers: ArcSwap::default(),
        }
    }

    /// The table as it is now.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Whether a planned change of leader holds what goes to this lane now. Looked at per batch, not per transaction only.
    pub fn holds(&self, lane: LaneId) -> bool {
        self.published.load().holds(lane)
    }

    /// Changes with every new table, and with every address that leads elsewhere.
    pub fn version(&self) -> u64 {
        self.published.load().version
    }

    /// Replaces what sessions see. Only the keeper does, so no version is lost. Lanes are open before anybody is led there.
    fn publish(&self, table: RoutingTable, addresses: BTreeMap<Arc<str>, Vec<SocketAddr>>) {
        self.lanes.open(&table);
        self.published.store(Arc::new(Published {
            version: self.version() + 1,
            table,
            addresses,
        }));
    }

    /// Wakes those who wait for what was published last.
    fn tell_those_who_wait(&self) {
        self.changes.send_replace(self.version());
    }

    /// Wakes at every new version.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until writes go to this lane.
    pub async fn until_writer(&self, lane: LaneId) {
        let mut changes = self.changes();
        while !self.published().table.is_writer(lane) {
            if changes.changed().await.is_err() {
                // There will be no other table.
                return std::future::pending().await;
            }
        }
    }

    /// Why the DCS cannot be followed at present, if so.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.trouble.load().as_ref().clone()
    }

    /// The routers that are registered for it, this one included, by `<name>/<instance>`. Their counts may be those of
    /// a second ago.
    pub fn routers(&self) -> Routers {
        self.routers.load().as_ref().clone()
    }

    /// Asks for a read of the DCS now; many requests make one read.
    pub fn refresh(&self) {
        self.wants_refresh.notify_one();
    }
}

type Asking = Pin<Box<dyn Future<Output = Testimony> + Send>>;

/// The task's own state.
pub struct Keeper {
    cluster: Arc<Cluster>,
    follow: Follow,
    rules: watch::Receiver<Rules>,
    state_file: Arc<StateFile>,
    client: HttpClient,
    metrics: ClusterMetrics,
    health: Health,
    streaks: Streaks,
    resolver: Resolver,
    table: RoutingTable,
    asking: Option<Asking>,
    ask_at: Instant,
    probes: mpsc::Receiver<health::Report>,
    probing: mpsc::Sender<health::Report>,
    probe_at: Instant,
    refresh_at: Instant,
}

/// What woke the task.
enum Wake {
    View,
    Rules,
    Time,
    Testimony(Testimony),
    Probes(health::Report),
    Resolved,
    Refresh,
    Over,
}

impl Keeper {
    /// Takes up a cluster; what the state file knows of it is where questions go before the DCS answers.
    pub fn new(
        cluster: Arc<Cluster>,
        follow: Follow,
        rules: watch::Receiver<Rules>,
        state_file: Arc<StateFile>,
        client: HttpClient,
    ) -> Self {
        let mut table = RoutingTable::remembering(state_file.last_leader(&cluster.name));
        // A cluster that is followed again has none of the lanes it had before.
        table.next_lane += cluster.number << LANE_BITS;
        let (probing, probes) = mpsc::channel(1);
        let now = in_time(Duration::ZERO);
        Self {
            metrics: ClusterMetrics::new(cluster.name.as_str()),
            cluster,
            follow,
            rules,
            state_file,
            client,
            health: Health::default(),
            streaks: Streaks::default(),
            resolver: Resolver::default(),
            table,
            asking: None,
            ask_at: now,
            probes,
            probing,
            probe_at: now,
            refresh_at: now,
        }
    }

    /// Keeps the table until the process ends. Returns, with the cluster's name, only if the follower of the
    /// DCS has ended: the table would never change again, so the process must not go on.
    pub async fn run(mut self) -> ClusterName {
        loop {
            self.step();
            match self.wait().await {
                Wake::View | Wake::Rules | Wake::Time | Wake::Resolved => {}
                Wake::Testimony(testimony) => {
                    self.asking = None;
                    let pause = match testimony.answer {
                        Answer::Writable { .. } | Answer::Refused => ASK_EVERY,
                        Answer::Silent => ASK_AGAIN_AFTER,
                    };
                    self.ask_at = in_time(pause);
                    self.health.hear(testimony);
                }
                Wake::Probes(report) => self.streaks.take(report, &mut self.health.down),
                Wake::Refresh => self.refresh(),
                Wake::Over => return self.cluster.name.clone(),
            }
        }
    }

    fn step(&mut self) {
        let view = self.follow.views.borrow_and_update().clone();
        self.cluster.trouble.store(Arc::new(trouble(&view)));
        let routers = view.topology.routers.clone();
        self.cluster.routers.store(Arc::new(routers));
        let now = clock::now();
        let rules = *self.rules.borrow_and_update();
        let shown = shown(&view);
        let (next, commands) = transition(&self.table, shown, &self.health, &rules, now);
        let is_changed = next != self.table;
        let before = std::mem::replace(&mut self.table, next);
        self.resolver.want(&self.table);
        let has_resolved = self.resolver.take_news();
        let is_news = is_changed || has_resolved;
        if is_news {
            let addresses = self.resolver.known().clone();
            self.cluster.publish(self.table.clone(), addresses);
        }
        for departures in self.cluster.lanes.obey(&commands) {
            tokio::spawn(departures.run(clock::now));
        }
        // Who waits is woken once what is cut is cut, and for an address as well: it may be all that was missing.
        if is_news {
            self.cluster.tell_those_who_wait();
        }
        if is_changed {
            self.tell(&before);
        }
        self.ask();
        self.probe();
    }

    /// Logs, counts and keeps what changed; not on the way of the cut, which has happened by now.
    fn tell(&mut self, before: &RoutingTable) {
        let (cluster, table) = (&self.cluster.name, &self.table);
        if table.writer != before.writer {
            match &table.writer {
                Writer::Known {
                    member,
                    epoch,
                    address,
                    ..
                } => {
                    info!(%cluster, %member, %epoch, %address, "writes go to this member");
                    self.metrics.changes.increment(1);
                    self.metrics.epoch.set(epoch.revision as f64);
                }
                Writer::Promoting { member, epoch } => {
                    info!(%cluster, %member, %epoch, "holding writes: the leader does not accept them yet");
                }
                Writer::None { why } => warn!(%cluster, "holding writes: {why}"),
            }
        }
        for (member, reader) in &table.readers {
            let was = before.readers.get(member).map(|r| &r.unfit);
            if was != Some(&reader.unfit) {
                match &reader.unfit {
                    Some(why) => info!(%cluster, %member, "gets no new read sessions: it {why}"),
                    None => info!(%cluster, %member, "is fit for reads"),
                }
            }
        }
        self.metrics
            .writer_known
            .set(f64::from(u8::from(table.has_writer())));
        let fit = table.readers.values().filter(|r| r.unfit.is_none()).count();
        self.metrics.readers_fit.set(fit as f64);
        if table.has_writer() {
            self.state_file.keep(cluster, table.last.as_ref());
        }
    }

    fn ask(&mut self) {
        let Some(question) = &self.table.question else {
            self.asking = None;
            self.ask_at = in_time(Duration::ZERO);
            return;
        };
        if self.asking.is_none() && self.ask_at <= in_time(Duration::ZERO) {
            self.asking = Some(Box::pin(witness::ask(
                question.clone(),
                self.client.clone(),
            )));
        }
    }

    fn probe(&mut self) {
        if self.probe_at <= in_time(Duration::ZERO) {
            self.probe_at = in_time(PROBE_INTERVAL);
            let members = self
                .table
                .readers
                .iter()
                .map(|(name, reader)| {
                    let places = self.cluster.published.load().places(&reader.address);
                    (name.clone(), places)
                })
                .collect();
            tokio::spawn(health::probe_all(members, self.probing.clone()));
        }
    }

    fn refresh(&mut self) {
        let now = in_time(Duration::ZERO);
        if self.refresh_at <= now {
            self.refresh_at = now + REFRESH_EVERY;
            let refresh = self.follow.refresh.clone();
            // The answer comes as a view, if it shows anything new.
            tokio::spawn(async move { refresh.now().await });
        }
    }

    async fn wait(&mut self) -> Wake {
        let next_look = self.table.look_again_at.map_or(LOOK_EVERY, |at| {
            // A timer may end early by its own resolution; a step too soon would only look again.
            clock::now().until(at).min(LOOK_EVERY) + Duration::from_millis(1)
        });
        let has_question = self.table.question.is_some() && self.asking.is_none();
        let asking = async {
            match self.asking.as_mut() {
                Some(asking) => asking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = self.follow.views.changed() => {
                if changed.is_err() { Wake::Over } else { Wake::View }
            }
            testimony = asking => Wake::Testimony(testimony),
            Ok(()) = self.rules.changed() => Wake::Rules,
            Some(report) = self.probes.recv() => Wake::Probes(report),
            () = self.resolver.resolved() => Wake::Resolved,
            () = self.cluster.wants_refresh.notified() => Wake::Refresh,
            () = sleep_until(self.ask_at), if has_question => Wake::Time,
            () = sleep_until(self.probe_at) => Wake::Time,
            () = sleep(next_look) => Wake::Time,
        }
    }
}

fn in_time(pause: Duration) -> Instant {
    Instant::now() + pause
}

fn trouble(view: &DcsView) -> Option<Arc<str>> {
    view.went_back.clone().or_else(|| view.last_error.clone())
}

/// What of the DCS's view may be acted upon. A store that went back proves nothing by being alive.
fn shown(view: &DcsView) -> Option<View<'_>> {
    let proven_at = view.proven_at.filter(|_| view.is_complete)?;
    Some(View {
        topology: &view.topology,
        proven_at: if view.went_back.is_some() {
            Moment::default()
        } else {
            proven_at
        },
    })
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::{LeaderEpoch, MemberName};
    use trunkline_shared::dcs::keys::Keys;
    use trunkline_shared::dcs::memory::MemoryDcs;
    use trunkline_shared::dcs::watch::follow;

    use super::routing_table::{Hold, HoldStage, LastLeader};
    use super::*;

    #[tokio::test]
    async fn a_keeper_whose_follower_has_ended_names_its_cluster() {
        let name = ClusterName::new("demo");
        let followed = follow(Arc::new(MemoryDcs::new()), Keys::new("service", &name));
        let (sender, views) = watch::channel(Arc::default());
        drop(sender);
        let follow = Follow { views, ..followed };
        let (_rules, heard) = watch::channel(Rules::default());
        let cluster = Arc::new(Cluster::new(name.clone()));
        let keeper = Keeper::new(
            cluster,
            follow,
            heard,
            Arc::default(),
            HttpClient::default(),
        );
        assert_eq!(keeper.run().await, name);
    }

    #[test]
    fn a_table_its_hold_and_its_version_are_seen_together_on_every_thread() {
        const VERSIONS: u64 = 20_000;
        const LANE: LaneId = LaneId(1);
        let epoch = LeaderEpoch {
            generation: 1,
            revision: 1,
        };
        let cluster = Arc::new(Cluster::new(ClusterName::new("demo")));
        // Of an even version the table holds, and its revision is the version.
        let table = |version: u64| RoutingTable {
            revision: i64::try_from(version).unwrap(),
            last: Some(LastLeader {
                member: MemberName::new("a"),
                epoch,
                address: "".into(),
                api_url: "".into(),
                timeline: None,
                is_trunkline: true,
                is_confirmed: true,
                lane: Some(LANE),
            }),
            hold: version.is_multiple_of(2).then_some(Hold {
                switchover: 1,
                epoch,
                revision: 1,
                stage: HoldStage::All,
                since: Moment::default(),
            }),
            ..RoutingTable::default()
        };
        let look = |cluster: Arc<Cluster>| {
            let mut last = 0;
            while last < VERSIONS {
                let seen = cluster.published();
                assert!(seen.version >= last && cluster.version() >= seen.version);
                if seen.version > 0 {
                    assert_eq!(u64::try_from(seen.table.revision), Ok(seen.version));
                    assert_eq!(seen.holds(LANE), seen.version.is_multiple_of(2));
                    assert!(!seen.holds(LaneId(2)));
                }
                last = seen.version;
            }
        };
        let looking = [1, 2].map(|_| {
            let cluster = cluster.clone();
            std::thread::spawn(move || look(cluster))
        });
        for version in 1..=VERSIONS {
            cluster.publish(table(version), BTreeMap::new());
            cluster.tell_those_who_wait();
            assert_eq!(*cluster.changes().borrow(), version);
        }
        for thread in looking {
            thread.join().unwrap();
        }
    }
}
