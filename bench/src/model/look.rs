//! What the models show to the real rules where it makes no difference: three registered members, a store that
//! answers, nothing under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::observation::{
    BootstrapKind, CommitsView, CrashPolicy, DcsView, FenceView, HealthView, JobView, LeaseView,
    Local, Looked, Me, NoRace, Observation, PeerStore, PeerView, Peers, Running, RunningRole,
    StoreView, SynchronizedSlots, WatchdogView,
};
use trunkline_shared::cluster::member::{Member, TrunklineFields};
use trunkline_shared::cluster::store::Authority;
use trunkline_shared::cluster::topology::{Initialize, Status};
use trunkline_shared::cluster::{
    ClusterSettings, LeaderEpoch, Lsn, MemberName, MemberRole, MemberState, Moment, SystemId, Tags,
    Timeline, Topology,
};

/// The length of every lease.
pub(super) const TTL: Duration = Duration::from_secs(2);
/// When every look is made: only distances from it matter.
pub(super) const NOW: Moment = Moment(1_000_000_000_000);
/// How many members are registered.
pub(super) const MEMBERS: usize = 3;
/// The revision of a member's record that was written once.
const FIRST_RECORD: i64 = 100;
/// The revision that every view shows: none is older than another as far as the store's memory goes.
const REVISION: i64 = 1000;
/// The position that was published last.
const PUBLISHED: Lsn = Lsn(1_000_000);
pub(super) const SYSTEM: SystemId = SystemId(1);

/// The epoch of this number.
pub(super) fn epoch(number: u8) -> LeaderEpoch {
    LeaderEpoch {
        generation: 0,
        revision: i64::from(number),
    }
}

pub(super) fn number(who: usize) -> u8 {
    u8::try_from(who).unwrap_or(u8::MAX)
}

pub(super) fn name(who: u8) -> MemberName {
    MemberName::new(["n1", "n2", "n3"][usize::from(who)])
}

/// A member as its file makes it: nothing set.
pub(super) fn plain_me(who: u8) -> Me {
    Me {
        name: name(who),
        address: address(who),
        tags: Tags::default(),
        crash_policy: CrashPolicy::Auto,
        may_replace_data: true,
        may_replace_unrewound: true,
        use_pg_rewind: None,
        callbacks: BTreeSet::new(),
        can_clone_without_leader: false,
        bootstrap: BootstrapKind::Initdb,
        has_pre_promote: false,
    }
}

/// The settings of every model: a lease of two seconds, nothing else to do but to lead.
pub(super) fn settings() -> ClusterSettings {
    ClusterSettings {
        ttl: TTL,
        loop_wait: Duration::from_secs(1),
        retry_timeout: Duration::from_secs(1),
        failsafe_mode: Some(false),
        use_slots: false,
        ..ClusterSettings::default()
    }
}

pub(super) fn address(who: u8) -> Arc<str> {
    Arc::from(format!("{}:5432", name(who)))
}

/// The record of a running replica.
pub(super) fn plain_record(who: u8) -> Member {
    Member {
        name: name(who),
        address: address(who),
        proxy_address: None,
        api_url: Arc::from(format!("http://{}:8008/patroni", name(who))),
        role: MemberRole::Replica,
        state: MemberState::Running,
        timeline: None,
        position: None,
        received: None,
        replayed: None,
        is_streaming: None,
        tags: Tags::default(),
        is_checkpointed_after_promote: true,
        has_pending_restart: false,
        pending_restart: BTreeMap::new(),
        scheduled_restart: None,
        is_paused: false,
        version: Arc::from("1"),
        lease: i64::from(who) + 1,
        revision: FIRST_RECORD,
        trunkline: Some(TrunklineFields::default()),
    }
}

/// A cluster that was made, with all three registered.
pub(super) fn plain_topology(settings: &Arc<ClusterSettings>) -> Topology {
    let members = (0..number(MEMBERS)).map(|who| (name(who), Arc::new(plain_record(who))));
    Topology {
        revision: REVISION,
        initialize: Initialize::Done(SYSTEM),
        settings: Some(settings.clone()),
        members: members.collect(),
        status: Arc::new(Status {
            optime: PUBLISHED,
            ..Status::default()
        }),
        ..Topology::default()
    }
}

/// A look of `me` at a store that is known and answers, with a live fence and nothing under way.
pub(super) fn plain_look(me: Arc<Me>, topology: Topology, local: Local) -> Observation {
    Observation {
        now: NOW,
        me,
        dcs: DcsView::Known {
            topology: Arc::new(topology),
            age: Duration::ZERO,
        },
        store: StoreView {
            cluster_id: 1,
            revision: REVISION,
            knew_others: true,
            ..StoreView::default()
        },
        lost_config: None,
        lease: LeaseView::NotHeld,
        local,
        peers: Peers::NotAsked,
        job: JobView::default(),
        request: None,
        fence: FenceView {
            is_live: true,
            armed_until: None,
            watchdog: WatchdogView::NotRequired,
        },
        health: HealthView::default(),
        no_race: NoRace::default(),
        is_shutting_down: false,
        is_bootstrap_unfinished: false,
        scheduled: None,
        chance: 0,
    }
}

/// A running instance of this role.
pub(super) fn running(timeline: u8, role: RunningRole, commits: CommitsView) -> Running {
    Running {
        system_id: SYSTEM,
        timeline: Timeline(u32::from(timeline)),
        role,
        slots: Arc::default(),
        has_pending_restart: false,
        major: 17,
        synchronized: SynchronizedSlots::NotOurs,
        is_wal_gone: false,
        has_read_all: true,
        is_promoting: false,
        commits,
    }
}

/// A running replica that streams.
pub(super) fn replica(at: Lsn) -> RunningRole {
    RunningRole::Replica {
        received: at,
        replayed: at,
        upstream: None,
        is_streaming: true,
    }
}

/// What a peer says whose PostgreSQL runs.
pub(super) fn plain_answer(timeline: u8, at: Lsn) -> PeerView {
    PeerView {
        is_running: true,
        is_primary: false,
        timeline: Some(Timeline(u32::from(timeline))),
        position: at,
        replayed: at,
        is_streaming: Some(true),
        is_replay_paused: false,
        may_lead: true,
        priority: 1,
        is_nearly_full: false,
        store: Some(PeerStore {
            cluster_id: 1,
            revision: REVISION,
            generation: 0,
            authority: Authority::default(),
            is_doubted: false,
            is_fresh: true,
            is_unproved: false,
        }),
        has_read_all: true,
        looked: Looked::InTurn(None),
    }
}
