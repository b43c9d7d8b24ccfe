//! What must hold after every event, each a function named for it, and what must come true once the
//! world is calm.

use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::decide::decision::{StartAs, Upstream};
use trunkline_agent::decide::observation::Observation;
use trunkline_agent::decide::{Action, Decision, PROMOTE_NEEDS};
use trunkline_agent::lease::state::margin;
use trunkline_agent::watchdog::PAST_DEADLINE;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{LeaderEpoch, MemberName, MemberRole, MemberState, Topology};

use super::event::{MS, NodeId, SECOND, Time};
use super::fake_postgres::{Data, Phase};
use super::plan::{Fault, FaultKind};
use super::routers::Lane;
use super::slots::Furthest;
use super::world::World;

mod authority;
mod belongings;
mod liveness;
mod loss;

use authority::Authority;

/// The invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// No two instances can commit at one time, where their nodes can enforce a deadline.
    AtMostOneWritablePrimary,
    /// An instance becomes writable only under its own key on a lease that lives, with its deadline ahead.
    PromotesOnlyWithALiveLease,
    /// Nobody is promoted who was told of a primary by a peer in the same turn.
    NoPromotionBesideAReachablePrimary,
    /// A local deadline lies before the end of the lease in the store.
    DeadlineWithinTheLease,
    /// Each epoch has one owner and each holder's only grow.
    EpochsOnlyGrow,
    /// When a leader gives its key up, its instance is dead or in recovery.
    ReleasedMeansDead,
    /// A router never sends a write to an instance that is in recovery, except within its belief.
    RouterNeverSendsWritesToAReplica,
    /// A router never sends or acknowledges writes of an epoch older than one it has seen.
    RouterNeverSendsWritesToAnOldEpoch,
    /// What a failover loses is bounded.
    LossWithinLimit,
    /// No commit that was acknowledged while commits wait for standbys is lost, unless an operator accepts it.
    NoAcknowledgedCommitLost,
    /// Clients never see what a restart in place made visible before standbys confirmed it.
    UnconfirmedStaysHidden,
    /// A clone or rewind never destroys the newest history.
    NoDataDestroyed,
    /// A planned change of leader loses no acknowledged commit, in whatever mode.
    ASwitchoverLosesNothing,
    /// Whatever is acknowledged is found by whomever the `sync` record lets lead next.
    TheRecordFindsEveryCommit,
    /// What a rewind leaves behind is a part of its source's history.
    ARewindLeavesOneHistory,
    /// No leader is stopped as deposed whose key stands, on a lease that lives.
    NobodyIsDeposedForNothing,
    /// In failsafe mode an outage of the DCS, and nothing else, ends nobody's leadership.
    AnOutageAloneDeposesNobody,
    /// Data of another cluster is neither started nor promoted.
    OneClusterIdentity,
    /// The slot of a member that was registered lately is kept.
    ASlotOutlivesItsMembersAbsence,
    /// After the deadline no server process lives longer than a kill takes.
    FenceKillsByTheDeadline,
    /// Every decision keeps the rules every decision keeps.
    DecisionsKeepTheirRules,
    /// A replica is pointed only at a leader that the DCS names.
    UpstreamKeptUntilNewLeader,
    /// A replica's copy of a slot is never moved past where a primary's slot of that name has been.
    ASlotNeverPassesItsPrimary,
    /// Nobody becomes writable who sees that the cluster is a standby.
    AStandbyClusterNeverWrites,
    /// In the end every possible primary has the permanent logical slot.
    LogicalSlotsAreEverywhere,
    /// In the end consumers of `failover` slots wait for everybody who may lead next.
    ConsumersWaitForStandbys,
    /// A slot of the configuration is never dropped.
    NoPermanentSlotDropped,
    /// A replica streams only the continuation of its own WAL.
    StreamsOnlyItsOwnHistory,
    /// While the cluster is paused nothing is done to PostgreSQL that no operator asked for by name.
    PauseMeansPause,
    /// No agent turns without end.
    TurnsAreBounded,
    /// No switchover begins before the time that it is scheduled for, or long after.
    NothingBeforeItsTime,
    /// No client of a registered router waits for an answer when PostgreSQL stops for a change that may be given up.
    APlannedStopCutsNobody,
    /// Once calm, no announced change stands and nobody is held.
    AChangeComesToItsEnd,
    /// Nobody leads for long whose disk hangs or is nearly full, if another can.
    AnIllDiskIsLeft,
    /// Once calm, somebody leads and writes are possible.
    ALeaderEmerges,
    /// Once calm, every member streams on the leader's timeline.
    EveryoneConverges,
}

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub invariant: Invariant,
    /// When, nanoseconds of true time.
    pub at: u64,
    /// What was seen.
    pub detail: String,
}

/// What the invariants remember.
#[derive(Default)]
pub(super) struct Ledger {
    /// Owners of the epochs, and since when.
    owners: Vec<(LeaderEpoch, NodeId, Time)>,
    /// Claims to make a cluster in a store that has lost its revisions: in which one, by which epoch, whose.
    claims: Vec<(u32, LeaderEpoch, NodeId)>,
    /// What the rest of the invariants remembers.
    pub(super) authority: Authority,
    /// The turn of each node in which a peer said that it is primary.
    primaries_seen: [u32; 5],
    /// The newest branch that acknowledged something, or was promoted last.
    pub(super) line: u32,
    /// When the DCS last showed each node as the running primary that holds the key.
    pub(super) recorded_primary: [Time; 5],
    shown_primary: Option<NodeId>,
    /// An operator accepted loss at that time.
    pub(super) loss_accepted: bool,
    /// An operator has switched synchronous mode off: from then on losses are bounded, not excluded.
    pub(super) synchronous_was_ended: bool,
    /// Who was promoted, onto which branch, while the store showed no key of it.
    keyless: Option<(NodeId, u32)>,
    /// When the cluster ceased to follow another.
    pub(super) standby_ended: Time,
    /// Whom that operator named.
    pub(super) named: Option<MemberName>,
    /// The store and the key that an operator's choice held, before its promotion, when something else was asked.
    pub(super) led_by_choice: Option<(u32, i64)>,
    pub(super) fences_fired: u32,
    /// How far primaries' slots have come.
    pub(super) slots: Furthest,
    /// Whom `/sync` names as the leader since an operator's choice let it lead: it alone leads on by that record, also
    /// once the request is dropped and its first promotion was given up.
    recorded_by_choice: Option<NodeId>,
    /// The revision of `/sync` when the store changed last.
    recorded_at: i64,
}

impl Ledger {
    pub(super) fn primary_was_seen(&mut self, by: NodeId, turn: u32) {
        self.primaries_seen[usize::from(by)] = turn;
    }

    pub(super) fn note_slot(&mut self, name: &Arc<str>, position: u64) {
        match self.slots.get_mut(name) {
            Some(furthest) => *furthest = position.max(*furthest),
            None => {
                self.slots.insert(name.clone(), position);
            }
        }
    }

    pub(super) fn fence_fired(&mut self, _node: NodeId) {
        self.fences_fired += 1;
    }
}

/// How long a node has to restore order after nothing on it could.
const GRACE: Time = 1500 * MS;
/// What a kill at the deadline may take.
pub(super) const KILL_LIMIT: Time = 260 * MS;
/// Turns in ten seconds that are more than events can explain.
const TURNS_LIMIT: u32 = 3000;

impl World {
    pub(super) fn fail(&mut self, invariant: Invariant, detail: String) {
        let failure = Failure {
            invariant,
            at: self.now,
            detail,
        };
        match self.awaited.is_empty() || self.awaited.contains(&invariant) {
            true => self.failure.get_or_insert(failure),
            false => self.noted.get_or_insert(failure),
        };
    }

    /// The invariants that time or any event may break.
    pub(super) fn check(&mut self) {
        let now = self.now;
        let mut writable = None;
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            if !node.is_guarded(now) {
                node.unguarded = now;
                continue;
            }
            if !node.postgres.can_commit() {
                self.ledger.authority.is_harmless(index);
                continue;
            }
            // What was sent SIGKILL runs no more, whatever the kernel keeps of it until the disk answers.
            let is_stuck = node.postgres.kill_pending && node.troubles.disk_hangs + MS > now;
            if is_stuck {
                continue;
            }
            let is_in_grace = node.unguarded != 0 && now < node.unguarded + GRACE;
            if is_in_grace {
                continue;
            }
            self.fence_kills_by_the_deadline(index);
            if let Some(other) = writable {
                self.at_most_one_writable_primary(index, other);
            }
            writable = Some(index);
        }
    }

    fn at_most_one_writable_primary(&mut self, one: usize, other: usize) {
        // One goes on by everybody's consent, and whom an old copy of the store does not show as unlisted leads by that.
        let (one_id, other_id) = (one as NodeId, other as NodeId);
        let is_copys = |this: &mut Self, by: NodeId, beside: NodeId| {
            let held = this.node(beside).agent.lease.state.held();
            let is_by_failsafe = held.is_some_and(|held| held.is_by_failsafe);
            let is_later = this.holds_by_an_earlier_store(beside);
            is_by_failsafe
                && is_later
                && !this.holds_by_an_earlier_store(by)
                && this.is_by_an_old_copy(by)
        };
        if is_copys(self, one_id, other_id) || is_copys(self, other_id, one_id) {
            return;
        }
        let detail = format!(
            "{} and {} can both commit",
            self.nodes[other].name, self.nodes[one].name
        );
        self.fail(Invariant::AtMostOneWritablePrimary, detail);
    }

    fn fence_kills_by_the_deadline(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(deadline) = self.deadline_of(index) else {
            return;
        };
        // One that starts or thaws after the deadline kills from then on.
        let runs_since = node.fence.frozen_until.max(node.fence.started);
        let is_left = !node.fence.is_alive || runs_since + KILL_LIMIT > self.now;
        if is_left && self.store.cluster().disarmed.contains(&node.name) {
            // It is announced to be without one, and nobody is elected.
            return;
        }
        let limit = match is_left {
            // A machine is reset before its lease ends, and its own clocks may differ by half a percent.
            true => {
                let reserve = node.reserve().min(self.plan.ttl * 3 / 10);
                let pinged = node.fence.is_pinged_late.then_some(PAST_DEADLINE);
                deadline + margin(self.plan.ttl) + reserve + pinged.unwrap_or_default()
            }
            false => deadline + Duration::from_nanos(KILL_LIMIT),
        };
        let clock = node.clock(self.now);
        if clock > limit {
            let name = &node.name;
            let detail = format!("{name} can commit at {clock:?}, after its deadline {deadline:?}");
            self.fail(Invariant::FenceKillsByTheDeadline, detail);
        }
    }

    /// `promotes_only_with_a_live_lease` and `no_promotion_beside_a_reachable_primary`: called at the
    /// signal that makes an instance writable.
    pub(super) fn check_promotion(&mut self, node: NodeId) {
        self.check_standby(node);
        let name = self.node(node).name.clone();
        let key = self.store.leader().filter(|(leader, _)| **leader == name);
        let lease = key.and_then(|(_, key)| self.store.lease_ends(key.lease));
        let has_time = self
            .lease_left(node)
            .is_some_and(|left| left > PROMOTE_NEEDS);
        // Who goes on by the consent of all may start again what crashed, though the key has ended.
        let held = self.node(node).agent.lease.state.held();
        let is_by_failsafe = held.is_some_and(|held| held.is_by_failsafe);
        // A store that has just lost its memory has lost the lease, too, and elects nobody else by then.
        let is_excused = is_by_failsafe || self.holds_by_an_earlier_store(node);
        if lease.is_none() && !is_excused || !has_time {
            self.fail(
                Invariant::PromotesOnlyWithALiveLease,
                format!(
                    "{name} becomes writable; in the DCS {:?}, deadline ahead {has_time}",
                    self.store.leader()
                ),
            );
        }
    }

    /// `deadline_within_the_lease` and `epochs_only_grow`: called when a lease task's state has moved.
    pub(super) fn note_epoch(&mut self, node: NodeId) {
        let Some(held) = self.node(node).agent.lease.state.held() else {
            return;
        };
        // Who claims in a store that has lost its revisions to make a cluster leads none before its identity is
        // recorded, and gives the claim up once somebody says that there is one: it counts among the claims of that
        // store alone.
        let is_made = self.store.head.initialize != Initialize::Running;
        let is_claim = !self.store.is_vouched && !is_made;
        if is_claim && self.holds_by_an_earlier_store(node) {
            return;
        }
        let is_one_owners = match is_claim {
            true => self.note_claim((self.store.incarnation, held.epoch, node)),
            false => self.note_owner(node, held.epoch),
        };
        if !is_one_owners {
            return;
        }
        let name = &self.node(node).name;
        let key = self.store.leader().filter(|(leader, _)| *leader == name);
        let ends = key.and_then(|(_, key)| self.store.lease_ends(key.lease));
        let deadline = self.node(node).when(held.deadline);
        let is_by_lease = !held.is_by_failsafe;
        if is_by_lease && ends.is_some_and(|ends| deadline + self.plan.kill_takes > ends) {
            let over = (deadline + self.plan.kill_takes).saturating_sub(ends.unwrap_or_default());
            let detail = format!(
                "{name}'s deadline is {} ms nearer to the end of its lease than it may be: {held:?}",
                over / MS
            );
            self.fail(Invariant::DeadlineWithinTheLease, detail);
        }
    }

    /// While the record of a primary stands beside its key, routers cannot know better.
    pub(super) fn note_recorded_primary(&mut self) {
        if let Some(primary) = self.ledger.shown_primary {
            self.ledger.recorded_primary[usize::from(primary)] = self.now;
        }
        let shown = self.store.head.leader_member().filter(|record| {
            record.role == MemberRole::Primary && record.state == MemberState::Running
        });
        let shown = shown.map(|record| record.name.clone());
        self.ledger.shown_primary = shown.and_then(|name| self.id_of(&name));
    }

    /// `released_means_dead`: called when a transaction of `by` changed the store.
    pub(super) fn leader_key_changed(&mut self, by: Option<NodeId>, before: Option<i64>) {
        self.note_recorded_primary();
        self.note_members();
        self.note_record(by);
        let after = self
            .store
            .leader()
            .map(|(name, key)| (name.clone(), key.revision));
        if before == after.as_ref().map(|(_, revision)| *revision) {
            return;
        }
        self.note_move(by, before);
        let Some(by) = by else {
            return;
        };
        let stays = after.is_some_and(|(name, _)| name == self.node(by).name);
        if stays {
            self.check_late_loss(by);
        }
        if before.is_some() && !stays && self.node(by).postgres.can_commit() {
            let detail = format!("{} gave its key up and can commit", self.node(by).name);
            self.fail(Invariant::ReleasedMeansDead, detail);
        }
    }

    /// `decisions_keep_their_rules`, `turns_are_bounded` and `no_promotion_beside_a_reachable_primary`.
    pub(super) fn check_decision(&mut self, node: NodeId, seen: &Observation, decision: &Decision) {
        let left = match seen.lease {
            trunkline_agent::decide::observation::LeaseView::Held(held) => {
                Some(seen.now.until(held.deadline))
            }
            _ => None,
        };
        if let Some(rule) = decision.broken_rule(seen, left) {
            self.fail(
                Invariant::DecisionsKeepTheirRules,
                format!("{}: {rule:?} by {}", self.node(node).name, decision.reason),
            );
        }
        self.check_pause(node, decision);
        self.check_deposed(node, decision);
        self.check_outage(node, decision);
        self.check_schedule(node, decision);
        let agent = &self.node(node).agent;
        let takes = decision.actions.iter().any(|action| {
            matches!(
                action,
                Action::AcquireLeader
                    | Action::Promote(_)
                    | Action::Start(StartAs::Primary | StartAs::PrimaryClosed)
            )
        });
        let is_told = self.ledger.primaries_seen[usize::from(node)] == agent.turn && agent.turn > 0;
        if takes && is_told {
            self.fail(
                Invariant::NoPromotionBesideAReachablePrimary,
                format!(
                    "{} goes on with {} although a peer is primary",
                    self.node(node).name,
                    decision.reason
                ),
            );
        }
        if self.node(node).agent.turns > TURNS_LIMIT {
            self.fail(
                Invariant::TurnsAreBounded,
                format!(
                    "{} turns without end: {}",
                    self.node(node).name,
                    decision.reason
                ),
            );
        }
    }

    /// `upstream_kept_until_new_leader`.
    pub(super) fn check_upstream(&mut self, node: NodeId, upstream: Option<&Upstream>) {
        let Some(upstream) = upstream else {
            return;
        };
        let agent = &self.node(node).agent;
        let view: Option<&Arc<Topology>> = agent.view.as_ref();
        // A section that is removed while the decision is being carried out is missed by the next one.
        let mut views = view.into_iter().chain(&agent.decided_by);
        let is_standby = views.any(|v| v.settings_or_default().standby_cluster.is_some());
        if upstream.member.is_none() && is_standby {
            return;
        }
        let leads = view.is_some_and(|v| {
            v.leader
                .as_ref()
                .is_some_and(|l| Some(&l.member) == upstream.member.as_ref())
        });
        if !leads || Some(&self.node(node).name) == upstream.member.as_ref() {
            self.fail(
                Invariant::UpstreamKeptUntilNewLeader,
                format!(
                    "{} is pointed at {:?}, which does not lead",
                    self.node(node).name,
                    upstream.member
                ),
            );
        }
    }

    /// `router_never_sends_writes_to_an_old_epoch`, for a table.
    pub(super) fn check_router(&mut self, router: u8, before: Option<Lane>, after: Option<Lane>) {
        if let (Some(before), Some(after)) = (before, after)
            && after.epoch < before.epoch
        {
            let detail = format!("router {router} goes back from {before:?} to {after:?}");
            self.fail(Invariant::RouterNeverSendsWritesToAnOldEpoch, detail);
        }
    }

    /// `router_never_sends_writes_to_an_old_epoch`, for a write.
    pub(super) fn check_sent(&mut self, router: u8, lane: Lane) {
        let sent = &mut self.routers[usize::from(router)].sent;
        if lane.epoch < *sent {
            let detail = format!(
                "router {router} sends a write of epoch {} after {sent}",
                lane.epoch
            );
            return self.fail(Invariant::RouterNeverSendsWritesToAnOldEpoch, detail);
        }
        *sent = lane.epoch;
    }
}
