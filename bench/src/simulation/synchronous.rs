//! Commits that wait: whom they wait for, what the standbys have told, and when a client hears of them.

use std::sync::Arc;

use trunkline_agent::decide::observation::{CommitsView, JobKind, Local, SenderView};
use trunkline_agent::decide::sync_standbys::SyncNames;
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::topology::{Fact, FactKey, Initialize};
use trunkline_shared::cluster::{ClusterSettings, Lsn, MemberName};

use super::event::{Event, MS, NodeId, SECOND, Time};
use super::invariants::Invariant;
use super::network::Place;
use super::plan::Plan;
use super::store::Write;
use super::story::{Actor, tell};
use super::world::World;

pub(super) mod broken;

/// A sender that hears nothing for so long ends (`wal_sender_timeout` of the members).
const SENDER_TIMEOUT: Time = 5 * SECOND;
/// How long clients wait for standbys where they lose patience.
const PATIENCE: Time = 400 * MS;
/// The longest until a changed setting is taken up.
const RELOAD_TAKES: Time = 30 * MS;
/// The longest that the checkpointer syncs files, and takes nothing up.
const SYNC_TAKES: Time = 10 * SECOND;

/// What a server knows of one that receives from it.
#[derive(Clone, Copy, Default)]
pub(super) struct Told {
    flushed: u64,
    at: Time,
}

/// How a server's commits wait.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) in_force: SyncNames,
    /// Until then the checkpointer has not told the sessions that commits wait for somebody.
    untold_until: Time,
    /// Clients are not let in.
    pub(super) is_closed: bool,
    /// The end of the last recovery in place, while it is not known that standbys have it.
    unconfirmed: Option<u64>,
    /// The end of the first recovery in place since clients were let in last: none of them wrote anything after it.
    hidden: Option<u64>,
    told: [Told; 5],
    /// Commits that wait: their write and the position after them.
    commits: Vec<(u32, u64)>,
}

/// The settings of a plan's mode.
pub(super) fn set(settings: &mut ClusterSettings, plan: &Plan) {
    settings.synchronous_mode = plan.synchronous_mode;
    settings.is_synchronous_mode_strict = plan.is_strict;
    settings.synchronous_node_count = plan.synchronous_node_count;
}

/// What a leader that keeps a synchronous cluster has written before the world begins.
pub(super) fn first_record(plan: &Plan, leader: MemberName) -> Option<Write> {
    let sync = SyncState {
        leader: Some(leader),
        ..SyncState::default()
    };
    let is_on = plan.synchronous_mode != SynchronousMode::Off;
    is_on.then_some(Write::Put(FactKey::Sync, Fact::Sync(sync), 0))
}

impl World {
    /// The agent writes whom commits are to wait for; the server takes it up a moment later.
    pub(super) fn set_sync_names(&mut self, node: NodeId, names: Option<SyncNames>) -> bool {
        let Some(data) = &mut self.node_mut(node).postgres.data else {
            return false;
        };
        data.sync_names = names;
        let run = self.node(node).postgres.run;
        let takes = self.rng.u64(MS..RELOAD_TAKES);
        self.put_in(takes, Event::Reload { node, run });
        true
    }

    pub(super) fn on_reload(&mut self, event: Event, node: NodeId, run: u32) -> bool {
        let this = self.node(node);
        if this.postgres.run != run {
            return false;
        }
        if self.put_off(this.frozen_until.max(this.postgres.hung_until), event) {
            return true;
        }
        let waited = self.node(node).postgres.waiting.in_force != SyncNames::Nobody;
        if !waited && (self.is_checkpointing(node) || self.rng.bool()) {
            let untold_until = self.now + self.rng.u64(MS..SYNC_TAKES);
            self.node_mut(node).postgres.waiting.untold_until = untold_until;
        }
        self.take_up_names(node);
        true
    }

    /// A checkpoint that the agent asked for is made in haste: settings wait.
    fn is_checkpointing(&self, node: NodeId) -> bool {
        let job = &self.node(node).agent.job.running;
        job.as_ref()
            .is_some_and(|job| job.kind == JobKind::Checkpoint)
    }

    /// What the file says is in force.
    pub(super) fn take_up_names(&mut self, node: NodeId) {
        let postgres = &mut self.node_mut(node).postgres;
        let names = postgres.data.as_ref().and_then(|d| d.sync_names.clone());
        postgres.waiting.in_force = names.unwrap_or_default();
        self.release_commits(node);
    }

    /// The server is gone, or no primary any more: nobody hears of what waited.
    pub(super) fn forget_waiting(&mut self, node: NodeId) {
        let waiting = &mut self.node_mut(node).postgres.waiting;
        waiting.commits.clear();
        waiting.untold_until = 0;
        waiting.told = Default::default();
        waiting.is_closed = false;
        waiting.unconfirmed = None;
    }

    /// A commit is written: it is answered once those it waits for have it.
    pub(super) fn commit_waits(&mut self, node: NodeId, write: u32, end: u64) {
        if self.now < self.node(node).postgres.waiting.untold_until {
            self.check_record(node, &SyncNames::Nobody);
            return self.answer_write(node, write);
        }
        let waiting = &mut self.node_mut(node).postgres.waiting;
        waiting.commits.push((write, end));
        self.release_commits(node);
        if self.now < self.weather.impatient_until {
            let run = self.node(node).postgres.run;
            self.put_in(PATIENCE, Event::WaitCancelled { node, run, write });
        }
    }

    /// Its client cancels a commit that still waits: it is answered at once, and nobody has it but this server.
    pub(super) fn on_wait_cancelled(
        &mut self,
        event: Event,
        node: NodeId,
        run: u32,
        write: u32,
    ) -> bool {
        let this = self.node(node);
        if this.postgres.run != run {
            return false;
        }
        if self.put_off(this.frozen_until.max(this.postgres.hung_until), event) {
            return true;
        }
        let router = Place::Router(self.writes[write as usize].router);
        let commits = &self.node(node).postgres.waiting.commits;
        let waits = commits.iter().any(|(waiting, _)| *waiting == write);
        if !waits || !self.net.reaches(router, Place::Node(node)) {
            return false;
        }
        let commits = &mut self.node_mut(node).postgres.waiting.commits;
        commits.retain(|(waiting, _)| *waiting != write);
        self.writes[write as usize].is_unconfirmed = true;
        self.answer_write(node, write);
        true
    }

    fn release_commits(&mut self, node: NodeId) {
        let members = self.plan.members;
        let waiting = &self.node(node).postgres.waiting;
        if waiting.commits.is_empty() {
            return;
        }
        let (names, needed) = waiting.in_force.waited_for();
        let ids: Vec<usize> = (0..members)
            .filter(|id| names.contains(&self.node(*id).name))
            .map(usize::from)
            .collect();
        let waiting = &mut self.node_mut(node).postgres.waiting;
        let is_released = |end: u64| match &waiting.in_force {
            SyncNames::Blocked => false,
            _ => {
                ids.iter()
                    .filter(|id| waiting.told[**id].flushed >= end)
                    .count()
                    >= needed
            }
        };
        let released: Vec<(u32, u64)> = waiting
            .commits
            .iter()
            .copied()
            .filter(|(_, end)| is_released(*end))
            .collect();
        waiting.commits.retain(|commit| !released.contains(commit));
        if !released.is_empty() {
            let names = self.node(node).postgres.waiting.in_force.clone();
            self.check_record(node, &names);
        }
        for (write, _) in released {
            self.answer_write(node, write);
        }
    }

    /// A standby connects: it says how far it has flushed.
    pub(super) fn standby_connects(&mut self, node: NodeId, up: NodeId) {
        let flushed = self.node(node).postgres.data.as_ref().map_or(0, |d| d.end);
        let at = self.now;
        let waiting = &mut self.node_mut(up).postgres.waiting;
        waiting.told[usize::from(node)] = Told { flushed, at };
        self.release_commits(up);
        self.note_confirmed(up);
        self.wake(up);
    }

    /// A standby tells its upstream how far it has flushed.
    pub(super) fn tell_flushed(&mut self, node: NodeId, up: NodeId) {
        let end = self.node(node).postgres.data.as_ref().map_or(0, |d| d.end);
        let run = self.node(up).postgres.run;
        let way = self.hop();
        self.put_in(way, Event::Flushed { node, up, run, end });
    }

    pub(super) fn on_flushed(&mut self, event: Event, node: NodeId, up: NodeId, end: u64) -> bool {
        let Event::Flushed { run, .. } = event else {
            return false;
        };
        let there = self.node(up);
        if there.postgres.run != run || !self.node(node).postgres.is_streaming {
            return false;
        }
        if self.put_off(there.frozen_until.max(there.postgres.hung_until), event) {
            return true;
        }
        if !self.net.reaches(Place::Node(node), Place::Node(up)) {
            // TCP sends it again while the connection lives.
            self.put_in(200 * MS, event);
            return true;
        }
        let at = self.now;
        let told = &mut self.node_mut(up).postgres.waiting.told[usize::from(node)];
        told.flushed = told.flushed.max(end);
        told.at = at;
        self.release_commits(up);
        self.note_confirmed(up);
        true
    }

    /// Adds to what the agent sees of its instance who receives from it.
    pub(super) fn with_commits(&self, node: NodeId, mut local: Local) -> Local {
        let Local::Running(running) = &mut local else {
            return local;
        };
        let postgres = &self.node(node).postgres;
        let is_connected = |id: &NodeId| {
            let there = &self.node(*id).postgres;
            let told = postgres.waiting.told[usize::from(*id)];
            *id != node
                && there.is_streaming
                && there.data.as_ref().and_then(|data| data.upstream) == Some(node)
                && told.at != 0
                && self.now <= told.at + SENDER_TIMEOUT
        };
        let senders = (0..self.plan.members).filter(is_connected);
        let senders = senders.map(|id| SenderView {
            name: self.node(id).name.clone(),
            is_streaming: true,
            flushed: Lsn(postgres.waiting.told[usize::from(id)].flushed),
        });
        running.commits = CommitsView {
            senders: Arc::new(senders.collect()),
            in_force: postgres.waiting.in_force.clone(),
            is_checkpointer_busy: self.now < postgres.waiting.untold_until
                || self.is_checkpointing(node),
            own: postgres.data.as_ref().and_then(|d| d.sync_names.clone()),
            is_access_closed: postgres.waiting.is_closed,
        };
        local
    }

    /// A primary comes back in place: whatever it wrote is there, though nobody may have confirmed it.
    pub(super) fn recovered_in_place(&mut self, node: NodeId, is_closed: bool) {
        let cluster = self.store.cluster();
        let is_made = matches!(cluster.initialize, Initialize::Done(_));
        let recorded = cluster.sync.as_ref();
        let has_standby = recorded.is_some_and(|sync| !sync.standbys.is_empty());
        // Where nobody else may lead, nothing that becomes visible can be lost.
        // What was written while no commit waited shows at once, also where the mode was switched on during the start.
        let is_awaited = !self.node(node).postgres.starts_unawaited;
        let matters = is_made && is_awaited && (has_standby || self.plan.is_strict);
        let postgres = &mut self.node_mut(node).postgres;
        let end = postgres.data.as_ref().map(|data| data.end);
        let end = postgres.waiting.hidden.or(end);
        postgres.waiting.is_closed = is_closed;
        postgres.waiting.hidden = end.filter(|_| is_closed);
        postgres.waiting.unconfirmed = end.filter(|_| matters);
    }

    /// It follows another, or is promoted: what it has, others may have written.
    pub(super) fn is_not_in_place(&mut self, node: NodeId) {
        self.node_mut(node).postgres.waiting.hidden = None;
    }

    pub(super) fn let_clients_in(&mut self, node: NodeId) {
        let waiting = &mut self.node_mut(node).postgres.waiting;
        waiting.is_closed = false;
        waiting.hidden = None;
        tell!(self, Actor::Postgres(node), "lets clients in");
        self.note_confirmed(node);
    }

    /// Once those whom commits waited for at some moment had everything, it stays confirmed: whom they wait for
    /// later is nothing that this start had to wait for.
    fn note_confirmed(&mut self, node: NodeId) {
        if self.lack(node).is_none() {
            self.node_mut(node).postgres.waiting.unconfirmed = None;
        }
    }

    /// `unconfirmed_stays_hidden`: a client is served by what a recovery made visible.
    pub(super) fn check_hidden(&mut self, node: NodeId) {
        if let Some(lack) = self.lack(node) {
            let detail = format!("{} serves clients after {lack}", self.node(node).name);
            return self.fail(Invariant::UnconfirmedStaysHidden, detail);
        }
        self.node_mut(node).postgres.waiting.unconfirmed = None;
    }

    /// What the standbys that commits wait for lack of the last recovery in place.
    fn lack(&self, node: NodeId) -> Option<String> {
        let postgres = &self.node(node).postgres;
        let (Some(end), Some(data)) = (postgres.waiting.unconfirmed, &postgres.data) else {
            return None;
        };
        let (names, needed) = match (&postgres.waiting.in_force, self.commits_are_to_wait()) {
            (SyncNames::Blocked, true) => (Default::default(), 1),
            (names, true) => names.waited_for(),
            (_, false) => (Default::default(), 0),
        };
        let has_all = |id: &NodeId| {
            let there = self.node(*id).postgres.data.as_ref();
            let shared =
                there.and_then(|d| self.branches.shared_until(d.branch, d.end, data.branch));
            names.contains(&self.node(*id).name) && shared.is_some_and(|shared| shared >= end)
        };
        let have_all = (0..self.plan.members).filter(has_all).count();
        (have_all < needed)
            .then(|| format!("a recovery up to {end}, which {have_all} of {needed} standbys have"))
    }

    /// Whether the settings of now want commits to wait, or, where the store shows none, the plan does.
    pub(super) fn commits_are_to_wait(&self) -> bool {
        let settings = self.store.head.settings.as_ref();
        settings.map_or_else(
            || self.is_synchronous(),
            |settings| settings.synchronous_mode != SynchronousMode::Off,
        )
    }

    /// Whether all commits of this seed have waited for standbys.
    pub(super) fn is_synchronous(&self) -> bool {
        self.plan.synchronous_mode != SynchronousMode::Off && !self.ledger.synchronous_was_ended
    }
}
