//! What a seed is: the cluster's shape, its parameters, which faults exist in it and when they strike.

use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use trunkline_agent::config::{WatchdogConfig, WatchdogMode};
use trunkline_agent::watchdog::Order;
use trunkline_shared::cluster::settings::SynchronousMode;

use super::event::{MS, NodeId, SECOND, Time};
use super::fleet::Fleet;
use super::shrink::FaultSet;

/// Declares the kinds of faults with their words once.
macro_rules! fault_kinds {
    ($($variant:ident $word:literal)*) => {
        /// What may go wrong, and what an operator may do meanwhile.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum FaultKind { $($variant,)* }

        impl FaultKind {
            pub(super) const ALL: &'static [FaultKind] = &[$(FaultKind::$variant,)*];

            pub(super) fn word(self) -> &'static str {
                match self { $(FaultKind::$variant => $word,)* }
            }
        }
    };
}

fault_kinds! {
    PostmasterKilled "postmaster_killed"
    PostmasterHangs "postmaster_hangs"
    StopIsSlow "stop_is_slow"
    DataUnreadable "data_unreadable"
    DataForeign "data_foreign"
    DataLost "data_lost"
    AgentKilled "agent_killed"
    AgentPaused "agent_paused"
    AgentAndFencePaused "agent_and_fence_paused"
    NodeFrozen "node_frozen"
    NodePowerOff "node_power_off"
    FenceKilled "fence_killed"
    FenceFrozen "fence_frozen"
    NodeCutFromDcs "node_cut_from_dcs"
    NodeCutFromNode "node_cut_from_node"
    NodeIsolated "node_isolated"
    NodeHalfDeaf "node_half_deaf"
    OneLeftWithDcs "one_left_with_dcs"
    RouterCutFromDcs "router_cut_from_dcs"
    RouterCutFromNode "router_cut_from_node"
    DcsOutage "dcs_outage"
    DcsLeaderChange "dcs_leader_change"
    DcsDeposedLeader "dcs_deposed_leader"
    DcsSlow "dcs_slow"
    DcsLosesAnswers "dcs_loses_answers"
    DcsAnswersTwice "dcs_answers_twice"
    WatchStalls "watch_stalls"
    ListAnswerLost "list_answer_lost"
    ReplicationStalls "replication_stalls"
    CloneFails "clone_fails"
    RewindFails "rewind_fails"
    StartFails "start_fails"
    InitdbFails "initdb_fails"
    OperatorSwitchover "operator_switchover"
    OperatorSwitchoverNamed "operator_switchover_named"
    OperatorFailover "operator_failover"
    OperatorRestart "operator_restart"
    OperatorReinitialize "operator_reinitialize"
    OperatorPauses "operator_pauses"
    OperatorDemotes "operator_demotes"
    AgentToldToEnd "agent_told_to_end"
    DiskHangs "disk_hangs"
    DiskFills "disk_fills"
    ConfigDeleted "config_deleted"
    DcsWiped "dcs_wiped"
    DcsRestored "dcs_restored"
    WalRemoved "wal_removed"
    OperatorSchedules "operator_schedules"
    ReplayStalls "replay_stalls"
    WaitsCancelled "waits_cancelled"
    SyncSwitchedOff "sync_switched_off"
    ConfigGarbled "config_garbled"
    LeaderDataLost "leader_data_lost"
}

impl FaultKind {
    /// Whether every member goes on as it did, and hears the others: what strikes is the DCS, or the way to it, or whom
    /// nobody asks whether a leader may go on.
    pub(super) fn leaves_members_alone(self) -> bool {
        matches!(
            self,
            FaultKind::DcsOutage
                | FaultKind::DcsLeaderChange
                | FaultKind::DcsDeposedLeader
                | FaultKind::DcsSlow
                | FaultKind::DcsLosesAnswers
                | FaultKind::DcsAnswersTwice
                | FaultKind::NodeCutFromDcs
                | FaultKind::WatchStalls
                | FaultKind::RouterCutFromDcs
                | FaultKind::RouterCutFromNode
                | FaultKind::ReplicationStalls
                | FaultKind::ReplayStalls
                | FaultKind::WaitsCancelled
                | FaultKind::CloneFails
                | FaultKind::RewindFails
                | FaultKind::InitdbFails
        )
    }

    /// Whether it is not among those of which a seed takes some.
    fn is_drawn_apart(self) -> bool {
        matches!(
            self,
            FaultKind::OperatorDemotes
                | FaultKind::ListAnswerLost
                | FaultKind::DiskHangs
                | FaultKind::DiskFills
                | FaultKind::ConfigDeleted
                | FaultKind::DcsWiped
                | FaultKind::DcsRestored
                | FaultKind::WalRemoved
                | FaultKind::OperatorSchedules
                | FaultKind::ReplayStalls
                | FaultKind::WaitsCancelled
                | FaultKind::SyncSwitchedOff
                | FaultKind::ConfigGarbled
                | FaultKind::LeaderDataLost
        )
    }
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) at: Time,
    pub(super) lasts: Time,
    pub(super) kind: FaultKind,
    pub(super) node: NodeId,
    pub(super) other: NodeId,
    /// Strikes whoever leads then instead of `node`.
    pub(super) hits_leader: bool,
}

/// How the world begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A running cluster whose agents start.
    Running,
    /// A running cluster whose nodes were all switched off.
    Cold,
    /// Nothing exists.
    Fresh,
    /// A primary without a cluster, and empty members; a replica too in some.
    Adopted,
    /// The same of a standby cluster, whose configuration is there: members that follow the remote; one of them may be a
    /// primary all the same.
    AdoptedStandby,
}

/// The parameters of one seed.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) members: u8,
    pub(super) routers: u8,
    pub(super) clients: u8,
    pub(super) origin: Origin,
    pub(super) ttl: Duration,
    pub(super) loop_wait: Duration,
    pub(super) retry_timeout: Duration,
    pub(super) maximum_lag: u64,
    pub(super) use_pg_rewind: bool,
    pub(super) start_timeout: Duration,
    pub(super) failsafe_mode: Option<bool>,
    /// Bytes of WAL of one commit.
    pub(super) commit_bytes: u64,
    /// From one write of a client to its next.
    pub(super) write_every: Time,
    /// Half of a round trip at the least.
    pub(super) hop: Time,
    pub(super) kill_takes: Time,
    pub(super) recovery_takes: Time,
    pub(super) promote_takes: Time,
    pub(super) stop_takes: Time,
    pub(super) clone_takes: Time,
    pub(super) rewind_takes: Time,
    pub(super) replay_lag: Time,
    pub(super) orphans_live: Time,
    /// Clock rate errors of the nodes, parts per million.
    pub(super) drift: [i64; 5],
    pub(super) synchronous_mode: SynchronousMode,
    pub(super) is_strict: bool,
    pub(super) synchronous_node_count: u32,
    /// Everybody loses power once, and commits wait for one standby.
    pub(super) is_blackout: bool,
    /// A permanent logical slot is configured.
    pub(super) has_logical_slot: bool,
    /// PostgreSQL itself keeps that slot on standbys.
    pub(super) keeps_slots: bool,
    pub(super) faults: Vec<Fault>,
    /// The number of each among those that were drawn, where some are left out.
    pub(super) numbers: Vec<u8>,
    pub(super) fleet: Fleet,
    pub(super) ends: Time,
}

/// How many members and how long, where the caller wants it fixed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) members: Option<u8>,
    pub(super) lasts: Time,
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn draw(rng: &mut Rng, shape: Shape) -> Self {
        let members = match shape.members {
            Some(members) => members,
            None => 3 + rng.u8(..3) * rng.u8(..2) - rng.u8(..2) * rng.u8(..2),
        };
        let members = members.clamp(2, 5);
        let ttl = Duration::from_secs([2, 3, 5, 5, 5, 8, 10, 20, 30][rng.usize(..9)]);
        let mut drift = [0; 5];
        if rng.bool() {
            drift = std::array::from_fn(|_| rng.i64(-5_000..=5_000));
        }
        let mut plan = Plan {
            members,
            routers: 1 + rng.u8(..2),
            clients: 2,
            origin: origin(rng),
            ttl,
            loop_wait: ttl / 5,
            retry_timeout: ttl * 2 / 5,
            maximum_lag: [0, 65_536, 1 << 20, 1 << 20, 1 << 20, 64 << 20][rng.usize(..6)],
            use_pg_rewind: rng.u8(..4) > 0,
            start_timeout: [0, 3, 10, 300][rng.usize(..4)] * Duration::from_secs(1),
            failsafe_mode: [None, Some(false), Some(true), Some(true)][rng.usize(..4)],
            commit_bytes: [200, 200, 8_000, 100_000, 8_000_000][rng.usize(..5)],
            write_every: SECOND / 3,
            hop: MS / 10 * rng.u64(2..40),
            kill_takes: MS * rng.u64(10..200),
            recovery_takes: MS * [50, 300, 2_000, 10_000][rng.usize(..4)],
            promote_takes: MS * rng.u64(20..400),
            stop_takes: MS * rng.u64(20..400),
            clone_takes: MS * rng.u64(500..6_000),
            rewind_takes: MS * rng.u64(200..2_000),
            replay_lag: MS * [0, 2, 50, 1_000][rng.usize(..4)],
            orphans_live: MS * rng.u64(10..8_000),
            drift,
            synchronous_mode: SynchronousMode::Off,
            is_strict: false,
            synchronous_node_count: 1,
            is_blackout: false,
            has_logical_slot: false,
            keeps_slots: false,
            faults: Vec::new(),
            numbers: Vec::new(),
            fleet: Plan::fleet(rng),
            ends: shape.lasts,
        };
        plan.draw_faults(rng);
        plan.draw_synchronous(&mut rng.clone());
        plan.draw_together(rng);
        plan.draw_lost_disk(rng);
        plan.draw_hands(rng);
        plan
    }

    /// Leaves faults out, by their number; whatever else was drawn stays.
    pub(super) fn leave_out(&mut self, without: FaultSet) {
        let drawn = std::mem::take(&mut self.faults).into_iter().zip(0..);
        let kept = drawn.filter(|(_, number)| !without.contains(*number));
        (self.faults, self.numbers) = kept.unzip();
    }

    /// The number of a fault that is left, in the order of their times.
    pub(super) fn number_of(&self, at: usize) -> u8 {
        self.numbers.get(at).copied().unwrap_or_default()
    }

    /// What was drawn, and what strikes when, for people.
    pub(super) fn text(&self) -> String {
        let faults = self.faults.iter().enumerate().map(|(at, fault)| {
            format!(
                "fault {:>2}  {:<24} on {} at {:>7.3} s for {:>6} ms{}\n",
                self.number_of(at),
                fault.kind.word(),
                super::story::node_name(fault.node),
                fault.at as f64 / SECOND as f64,
                fault.lasts / MS,
                if fault.hits_leader {
                    ", or who led"
                } else {
                    ""
                },
            )
        });
        let faults: String = faults.collect();
        let world = Plan {
            faults: Vec::new(),
            numbers: Vec::new(),
            ..self.clone()
        };
        format!("{world:#?}\n{faults}")
    }

    fn draw_synchronous(&mut self, rng: &mut Rng) {
        self.synchronous_mode = match rng.u8(..8) {
            0..4 => SynchronousMode::Off,
            4..6 => SynchronousMode::On,
            _ => SynchronousMode::Quorum,
        };
        self.is_strict = rng.u8(..3) == 0;
        self.synchronous_node_count = 1 + u32::from(rng.u8(..4) == 0);
        if self.is_blackout {
            self.synchronous_mode = SynchronousMode::On;
            self.synchronous_node_count = 1;
        }
    }

    /// How many seconds a watchdog counts without a ping, where there is time for it.
    pub(super) fn watchdog_counts(&self) -> u32 {
        let config = WatchdogConfig {
            mode: WatchdogMode::Required,
            device: PathBuf::new(),
            safety_margin: Some(Duration::from_secs(5)),
        };
        Order::new(&config, self.ttl).seconds()
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let mut kinds: Vec<FaultKind> = Vec::new();
        while kinds.is_empty() {
            let share = rng.u8(1..6);
            let drawn = FaultKind::ALL.iter().filter(|kind| !kind.is_drawn_apart());
            kinds.extend(drawn.filter(|_| rng.u8(..12) < share));
        }
        let count = 2 + rng.u64(..7);
        for _ in 0..count {
            let lasts = match rng.u8(..4) {
                0 => rng.u64(MS * 50..SECOND),
                1 => rng.u64(SECOND..5 * SECOND),
                2 => rng.u64(SECOND..self.ends / 4),
                _ => rng.u64(SECOND..self.ends / 2),
            };
            let node = rng.u8(..self.members);
            self.faults.push(Fault {
                at: rng.u64(2 * SECOND..self.ends - 4 * SECOND),
                lasts,
                kind: kinds[rng.usize(..kinds.len())],
                node,
                other: (node + 1 + rng.u8(..self.members - 1)) % self.members,
                hits_leader: rng.u8(..3) > 0,
            });
        }
        self.draw_apart(rng);
        self.draw_disk(rng);
        let config = super::lost_config::draw(rng, &self.faults, self.ends);
        self.faults.extend(config);
        self.draw_late(rng);
        self.draw_lost_memory(rng);
        self.draw_lost_list(rng);
        let replay = super::replay::draw(rng, self);
        self.faults.extend(replay);
        self.faults.sort_by_key(|fault| fault.at);
    }

    /// A cluster in so many becomes another one's standby for a while. By a source of its own, so that what
    /// else strikes, and when, is the same with it and without.
    fn draw_apart(&mut self, rng: &Rng) {
        let mut own = Rng::with_seed(rng.clone().u64(..));
        let mut slots = Rng::with_seed(own.clone().u64(..));
        self.has_logical_slot = slots.u8(..10) == 0;
        self.keeps_slots = self.has_logical_slot && slots.bool();
        if own.u8(..10) > 0 {
            return;
        }
        self.faults.push(Fault {
            at: own.u64(2 * SECOND..self.ends - 4 * SECOND),
            lasts: own.u64(SECOND..self.ends / 2),
            kind: FaultKind::OperatorDemotes,
            node: 0,
            other: 1,
            hits_leader: false,
        });
    }
}

/// How long an ill disk stays so at the least: long enough to be left by then.
const ILL_DISK: Time = super::disks::LEFT_WITHIN + SECOND;

impl Plan {
    /// In a few worlds the leader's disk hangs or fills up, in half of those as the only trouble. By a source of
    /// its own, as above.
    fn draw_disk(&mut self, rng: &Rng) {
        let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0xd15c);
        if own.u8(..20) > 0 {
            return;
        }
        if own.bool() {
            self.faults.clear();
        }
        let lasts = self.ttl.as_nanos() as Time * 3 + ILL_DISK;
        let kind = match own.bool() {
            true => FaultKind::DiskHangs,
            false => FaultKind::DiskFills,
        };
        self.faults.push(Fault {
            at: own.u64(8 * SECOND..12 * SECOND),
            lasts,
            kind,
            node: 0,
            other: 1,
            hits_leader: true,
        });
    }
}

impl Plan {
    /// In a few worlds a replica's WAL is removed by its leader, or an operator schedules a switchover.
    fn draw_late(&mut self, rng: &Rng) {
        let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0x1a7e);
        let kind = match own.u8(..20) {
            0 => FaultKind::WalRemoved,
            1 | 2 => FaultKind::OperatorSchedules,
            _ => return,
        };
        self.faults.push(Fault {
            at: own.u64(8 * SECOND..12 * SECOND),
            lasts: own.u64(SECOND..15 * SECOND),
            kind,
            node: own.u8(..self.members),
            other: own.u8(..self.members),
            hits_leader: false,
        });
    }
}

impl Plan {
    /// In a few worlds the leader lists a member that comes back, never learns of it, writes its key again and is cut
    /// off: the one it listed is left alone with the DCS. Nothing else strikes there.
    fn draw_lost_list(&mut self, rng: &Rng) {
        let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0x1157);
        let is_soon = self.ttl <= Duration::from_secs(5);
        if own.u8(..25) > 0 || !is_soon || self.members < 3 || self.failsafe_mode != Some(true) {
            return;
        }
        let ttl = self.ttl.as_nanos() as Time;
        let alone = own.u8(..self.members);
        let fault = Fault {
            at: own.u64(8 * SECOND..12 * SECOND),
            lasts: 2 * ttl + SECOND,
            kind: FaultKind::NodePowerOff,
            node: alone,
            other: (alone + 1) % self.members,
            hits_leader: false,
        };
        let lost = Fault {
            at: fault.at + MS,
            lasts: 5 * ttl + 15 * SECOND,
            kind: FaultKind::ListAnswerLost,
            node: (alone + 1) % self.members,
            other: alone,
            ..fault
        };
        self.faults = vec![fault, lost];
    }
}

fn origin(rng: &mut Rng) -> Origin {
    match rng.u8(..20) {
        0 | 1 => Origin::Fresh,
        // By a source of its own, so that everything else is drawn the same.
        2 => match Rng::with_seed(rng.clone().u64(..) ^ 0xAD0).u8(..4) {
            0 => Origin::AdoptedStandby,
            _ => Origin::Adopted,
        },
        3 => Origin::Cold,
        _ => Origin::Running,
    }
}
