//! The cluster at one revision of the DCS, folded from what its keys hold. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::switchover::{ChangeParts, Drain};
use super::sync_state::SyncState;
use super::timeline::Ancestry;
use super::{
    ClusterSettings, Leader, LeaderEpoch, Lsn, Member, MemberName, RouterRecord, SystemId,
    Timeline, TimelineHistory,
};

/// Which key a fact stands under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FactKey {
    /// `initialize`
    Initialize,
    /// `config`
    Settings,
    /// `leader`
    Leader,
    /// `members/<name>`
    Member(MemberName),
    /// `status`
    Status,
    /// `failover`
    Failover,
    /// `sync`
    Sync,
    /// `history`
    History,
    /// `failsafe`
    Failsafe,
    /// `trunkline/generation`
    Generation,
    /// `trunkline/succeeds`
    Succeeds,
    /// `trunkline/timeline`
    Timeline,
    /// `trunkline/disarmed/<name>`
    Disarmed(MemberName),
    /// `trunkline/switchover`
    Switchover,
    /// `trunkline/history`
    Changes,
    /// `routers/<name>/<instance>`
    Router(Arc<str>),
}

/// What one key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The system identifier; `None` while the bootstrap runs.
    Initialize(Option<SystemId>),
    /// The dynamic configuration.
    Settings(Arc<ClusterSettings>),
    /// The leader's name.
    Leader(MemberName),
    /// A member's record. Its `lease` and `revision` are filled from the key when it is folded.
    Member(Arc<Member>),
    /// The last published position and slots.
    Status(Arc<Status>),
    /// An operator's request for a switchover or failover.
    Failover(FailoverRequest),
    /// Synchronous standbys.
    Sync(SyncState),
    /// Ancestry of the timelines.
    History(Arc<TimelineHistory>),
    /// Names of the members asked in failsafe mode, with their REST URLs.
    Failsafe(Arc<BTreeMap<MemberName, Arc<str>>>),
    /// First part of the epoch.
    Generation(u64),
    /// Identities of the stores that this one took the place of, the oldest first.
    Succeeds(Arc<[u64]>),
    /// The last timeline number that a leader claimed.
    Timeline(ClaimedTimeline),
    /// The epoch of the newest change of leader that is written down.
    Changes(Option<LeaderEpoch>),
    /// A paused leader that disarmed its fence.
    Disarmed,
    /// A planned change in progress.
    Switchover(Arc<SwitchoverRecord>),
    /// A router's record.
    Router(Arc<RouterRecord>),
    /// The value could not be read; says why.
    Unreadable(Arc<str>),
}

/// The `status` record.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// The leader's last published position (Patroni's `optime`).
    pub optime: Lsn,
    /// Positions of slots.
    pub slots: BTreeMap<String, Lsn>,
    /// Slots kept for vanished members.
    pub retain_slots: Vec<String>,
}

/// The `trunkline/timeline` record. A leader claims the number of its next timeline before it promotes:
/// PostgreSQL takes the next number it has not seen itself, so two members that never saw each other's
/// promotion would begin two timelines of one number, which neither PostgreSQL nor pg_rewind can tell
/// apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ClaimedTimeline {
    /// The number; 0 if none was ever claimed.
    pub timeline: Timeline,
    /// The timeline it forks from.
    pub parent: Timeline,
}

/// The `failover` record: a switchover if `leader` is named, else a failover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverRequest {
    /// The leader to change away from.
    pub leader: Option<MemberName>,
    /// The member to change to.
    pub candidate: Option<MemberName>,
    /// When, as ISO 8601 text, if scheduled.
    pub scheduled_at: Option<Arc<str>>,
    /// How long to wait for transactions, and what follows.
    pub drain: Drain,
    /// The mod revision of the record: identifies the request.
    pub revision: i64,
}

/// How far a planned change has come (`trunkline/switchover`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchoverStage {
    /// Nothing that opens a transaction block is dispatched by routers.
    HoldTransactions,
    /// Routers dispatch nothing new.
    HoldAll,
    /// The old leader has stopped; its last record begins at this position.
    Stopped {
        /// The shutdown checkpoint.
        shutdown_checkpoint: Lsn,
    },
    /// Called off: the old leader goes on.
    Resume,
}

/// The `trunkline/switchover` record. Routers hold by its stage, whoever the candidate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchoverRecord {
    /// The revision of the `failover` record that asked for it, or of its announcement. Restarts are told apart by
    /// numbers from 2^52 on, which no revision reaches.
    pub id: u64,
    /// The epoch that ends; that of a restart goes on.
    pub epoch: LeaderEpoch,
    /// The old leader.
    pub from: MemberName,
    /// The candidate; the leader itself where its PostgreSQL only restarts.
    pub to: MemberName,
    /// How far it has come.
    pub stage: SwitchoverStage,
    /// How long the parts took that are over, known once the old leader has stopped.
    pub parts: ChangeParts,
}

impl SwitchoverRecord {
    /// Whether the leader stays: its PostgreSQL restarts.
    pub fn is_restart(&self) -> bool {
        self.from == self.to
    }

    /// The revision at which the request has to stand for this to be announced, if it comes of `request`. Once PostgreSQL
    /// stops the change goes on without it.
    pub fn request_to_stand(&self, request: Option<&FailoverRequest>) -> Option<i64> {
        let is_before_stop = match self.stage {
            SwitchoverStage::HoldTransactions | SwitchoverStage::HoldAll => true,
            SwitchoverStage::Stopped { .. } | SwitchoverStage::Resume => false,
        };
        let revision = request.filter(|_| is_before_stop)?.revision;
        (u64::try_from(revision) == Ok(self.id)).then_some(revision)
    }
}

/// The `initialize` key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Initialize {
    /// No such key: the cluster was never made, or the DCS lost its memory.
    #[default]
    Absent,
    /// A bootstrap runs.
    Running,
    /// Made, with this system identifier.
    Done(SystemId),
}

/// One key's change: `fact` is `None` where the key was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: FactKey,
    /// What it holds now.
    pub fact: Option<Fact>,
    /// The mod revision of the change.
    pub revision: i64,
    /// The lease the key hangs on, 0 if none.
    pub lease: i64,
}

/// The whole cluster at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Topology {
    /// The revision of the DCS that this shows.
    pub revision: i64,
    /// Whether, and as what, the cluster was made.
    pub initialize: Initialize,
    /// The dynamic configuration, if the key exists.
    pub settings: Option<Arc<ClusterSettings>>,
    /// The key exists and is no JSON object; `settings` are then the last that could be read, if any could.
    pub is_config_unreadable: bool,
    /// Who leads.
    pub leader: Option<Leader>,
    /// The registered members.
    pub members: BTreeMap<MemberName, Arc<Member>>,
    /// The last published position.
    pub status: Arc<Status>,
    /// A request for a change of leader.
    pub failover: Option<FailoverRequest>,
    /// Synchronous standbys.
    pub sync: Option<SyncState>,
    /// Ancestry of timelines.
    pub history: Arc<TimelineHistory>,
    /// The failsafe list.
    pub failsafe: Arc<BTreeMap<MemberName, Arc<str>>>,
    /// The mod revision of its key, 0 if there is none: what whoever creates a leader key compares, so that
    /// nobody leads who is not in the newest list.
    pub failsafe_revision: i64,
    /// First part of the epoch.
    pub generation: u64,
    /// Identities of the stores that this one took the place of when the generation grew, the oldest first.
    pub succeeds: Arc<[u64]>,
    /// The last claimed timeline.
    pub claimed: ClaimedTimeline,
    /// The history was written before that claim, so it is another timeline's.
    pub is_history_behind: bool,
    /// The revisions of the last claim and of the history: the younger of the two tells which is behind,
    /// whichever of their keys is read first.
    pub claim_and_history: (i64, i64),
    /// Members that paused with a disarmed fence.
    pub disarmed: BTreeSet<MemberName>,
    /// A planned change in progress.
    pub switchover: Option<Arc<SwitchoverRecord>>,
    /// The mod revision of its record, which tells it from an earlier one of the same request; 0 if there never was one.
    pub switchover_revision: i64,
    /// The registered routers, by `<name>/<instance>`.
    pub routers: Routers,
    /// The epoch of the newest change of leader that is written down.
    pub last_change: Option<LeaderEpoch>,
}

/// Routers by `<name>/<instance>`; shared, since a fleet may be large and changes seldom.
pub type Routers = Arc<BTreeMap<Arc<str>, Arc<RouterRecord>>>;

impl Topology {
    /// Whether the leader key names this member, as it was written in this epoch or later.
    pub fn shows_leader(&self, member: &MemberName, epoch: LeaderEpoch) -> bool {
        let leader = self.leader.as_ref();
        leader.is_some_and(|leader| leader.member == *member && leader.epoch >= epoch)
    }

    /// The settings, or Patroni's defaults where the key is absent.
    pub fn settings_or_default(&self) -> Arc<ClusterSettings> {
        self.settings.clone().unwrap_or_default()
    }

    /// Whether the cluster has a dynamic configuration and nobody here knows what it says: not whether it is paused,
    /// nor whether it is a standby cluster.
    pub fn is_config_unknown(&self) -> bool {
        self.is_config_unreadable && self.settings.is_none()
    }

    /// The leader's own record, if it is registered.
    pub fn leader_member(&self) -> Option<&Arc<Member>> {
        self.members.get(&self.leader.as_ref()?.member)
    }

    /// The current epoch, if there is a leader.
    pub fn epoch(&self) -> Option<LeaderEpoch> {
        self.leader.as_ref().map(|l| l.epoch)
    }

    /// The mod revision of the last claim, 0 if its key does not exist: what whoever creates a leader key
    /// compares, so that nobody leads again who slept through a promotion.
    pub fn claim_revision(&self) -> i64 {
        self.claim_and_history.0
    }

    /// The timeline from which `timeline` forked, as far as it is known: numbers that were claimed and
    /// never came to be are left out of the ancestry.
    pub fn parent_of(&self, timeline: Timeline) -> Timeline {
        if self.claimed.timeline == timeline {
            return self.claimed.parent;
        }
        Timeline(timeline.0.saturating_sub(1))
    }

    /// The newest timeline whose history is written down; 1 before the first promotion.
    pub fn newest_timeline(&self) -> Timeline {
        let claimed = self.claimed.timeline;
        let recorded = self.history.last_ended().map_or(1, |ended| ended.0 + 1);
        if claimed.0 > recorded && self.has_history_of(claimed) {
            return claimed;
        }
        Timeline(recorded)
    }

    /// Whether the history of `timeline` is written down.
    pub fn has_history_of(&self, timeline: Timeline) -> bool {
        let parent = self.parent_of(timeline);
        if self.is_history_behind && self.claimed.timeline == timeline {
            // The parent may be listed with the end that another promotion gave it.
            return parent == Timeline(0);
        }
        parent == Timeline(0) || self.history.end_of(parent).is_some()
    }

    /// Whether the timelines are those of another cluster, which raises its own numbers.
    fn follows_a_remote(&self) -> bool {
        let settings = self.settings.as_ref();
        settings.is_some_and(|settings| settings.standby_cluster.is_some())
    }

    /// Where WAL that ends at `position` on `timeline` stands towards the timeline `of`.
    pub fn ancestry(&self, timeline: Timeline, position: Lsn, of: Timeline) -> Ancestry {
        let parent = self.parent_of(of);
        if timeline < of && self.claimed.timeline == of && !self.has_history_of(of) {
            // What is written down is the history of another timeline.
            return Ancestry::Unknown;
        }
        if timeline > of && timeline <= self.claimed.timeline && !self.follows_a_remote() {
            // The cluster raised that number: it is `of` that is told late.
            return Ancestry::Unknown;
        }
        // A leader may have claimed from an older number than it had replayed: its control file names a timeline late. What
        // the history lists that it wrote since was followed.
        let is_listed = !self.is_history_behind && self.history.end_of(timeline).is_some();
        if timeline < of && timeline > parent && !is_listed {
            // A number between the two is a promotion that the cluster did not follow.
            return self
                .history
                .end_of(parent)
                .map_or(Ancestry::Unknown, |fork| Ancestry::Diverged { fork });
        }
        self.history.ancestry(timeline, position, of)
    }

    /// Folds one change in; the caller gives them in the order of their revisions. A value that cannot be
    /// read leaves the last good one standing where the cluster could not go on without it, and counts as
    /// absent elsewhere.
    pub fn apply(&mut self, change: &Change) {
        self.revision = self.revision.max(change.revision);
        match &change.fact {
            Some(fact) => self.put(change, fact),
            None => self.delete(&change.key),
        }
    }

    fn put(&mut self, change: &Change, fact: &Fact) {
        let revision = change.revision;
        match fact {
            Fact::Initialize(id) => {
                self.initialize = id.map_or(Initialize::Running, Initialize::Done);
            }
            Fact::Settings(settings) => self.set_settings(Some(settings.clone())),
            Fact::Leader(member) => {
                let epoch = LeaderEpoch {
                    generation: self.generation,
                    revision,
                };
                self.leader = Some(Leader {
                    member: member.clone(),
                    epoch,
                    lease: change.lease,
                });
            }
            Fact::Member(member) => {
                let mut member = member.clone();
                if member.lease != change.lease || member.revision != revision {
                    let own = Arc::make_mut(&mut member);
                    own.lease = change.lease;
                    own.revision = revision;
                }
                self.members.insert(member.name.clone(), member);
            }
            Fact::Status(status) => self.status = status.clone(),
            Fact::Failover(request) => {
                self.failover = Some(FailoverRequest {
                    revision,
                    ..request.clone()
                });
            }
            Fact::Sync(sync) => {
                self.sync = Some(SyncState {
                    revision,
                    ..sync.clone()
                })
            }
            Fact::History(history) => self.set_history(history, revision),
            Fact::Failsafe(failsafe) => self.set_failsafe(failsafe.clone(), revision),
            Fact::Generation(generation) => self.set_generation(*generation),
            Fact::Succeeds(stores) => self.succeeds = stores.clone(),
            Fact::Timeline(claimed) => self.set_claimed(*claimed, revision),
            Fact::Changes(epoch) => self.last_change = *epoch,
            Fact::Disarmed => {
                if let FactKey::Disarmed(name) = &change.key {
                    self.disarmed.insert(name.clone());
                }
            }
            Fact::Switchover(record) => {
                self.switchover = Some(record.clone());
                self.switchover_revision = revision;
            }
            Fact::Router(record) => {
                if let FactKey::Router(name) = &change.key {
                    Arc::make_mut(&mut self.routers).insert(name.clone(), record.clone());
                }
            }
            Fact::Unreadable(_) => self.put_unreadable(&change.key, revision),
        }
    }

    fn put_unreadable(&mut self, key: &FactKey, revision: i64) {
        match key {
            FactKey::Leader | FactKey::Member(_) | FactKey::Failover | FactKey::Router(_) => {
                self.delete(key);
            }
            // Whoever leads next writes it anew, and proves with its revision to have seen it so.
            FactKey::Timeline => self.set_claimed(self.claimed, revision),
            FactKey::Failsafe => self.failsafe_revision = revision,
            FactKey::Settings => self.is_config_unreadable = true,
            FactKey::Initialize
            | FactKey::Status
            | FactKey::Sync
            | FactKey::History
            | FactKey::Generation
            | FactKey::Succeeds
            | FactKey::Disarmed(_)
            | FactKey::Switchover
            | FactKey::Changes => {}
        }
    }

    fn delete(&mut self, key: &FactKey) {
        match key {
            FactKey::Initialize => self.initialize = Initialize::Absent,
            FactKey::Settings => self.set_settings(None),
            FactKey::Leader => self.leader = None,
            FactKey::Member(name) => {
                self.members.remove(name);
            }
            FactKey::Status => self.status = Arc::default(),
            FactKey::Failover => self.failover = None,
            FactKey::Sync => self.sync = None,
            FactKey::Failsafe => self.set_failsafe(Arc::default(), 0),
            FactKey::Generation => self.set_generation(0),
            FactKey::Succeeds => self.succeeds = Arc::default(),
            FactKey::Disarmed(name) => {
                self.disarmed.remove(name);
            }
            FactKey::Switchover => self.switchover = None,
            // A claim and a history that vanished are still those of the timelines that exist.
            FactKey::Timeline => self.claim_and_history.0 = 0,
            FactKey::Router(name) => {
                if self.routers.contains_key(name) {
                    Arc::make_mut(&mut self.routers).remove(name);
                }
            }
            FactKey::Changes => self.last_change = None,
            FactKey::History => {}
        }
    }

    fn set_settings(&mut self, settings: Option<Arc<ClusterSettings>>) {
        self.settings = settings;
        self.is_config_unreadable = false;
    }

    fn set_failsafe(&mut self, list: Arc<BTreeMap<MemberName, Arc<str>>>, revision: i64) {
        self.failsafe = list;
        self.failsafe_revision = revision;
    }

    fn set_history(&mut self, history: &Arc<TimelineHistory>, revision: i64) {
        self.history = history.clone();
        self.claim_and_history.1 = revision;
        self.weigh_history();
    }

    fn set_claimed(&mut self, claimed: ClaimedTimeline, revision: i64) {
        self.claimed = claimed;
        self.claim_and_history.0 = revision;
        self.weigh_history();
    }

    fn weigh_history(&mut self) {
        let (claim, history) = self.claim_and_history;
        self.is_history_behind = claim > history;
    }

    /// Takes over the number of a claim that could be read before and cannot now.
    pub fn keep_claim_of(&mut self, old: &Topology) {
        self.claimed = old.claimed;
    }

    fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
        if let Some(leader) = &mut self.leader {
            leader.epoch.generation = generation;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_makes_an_older_history_old_in_whichever_order_they_are_read() {
        let claim = Change {
            key: FactKey::Timeline,
            fact: Some(Fact::Timeline(ClaimedTimeline {
                timeline: Timeline(3),
                parent: Timeline(2),
            })),
            revision: 10,
            lease: 0,
        };
        let history = |revision| Change {
            key: FactKey::History,
            fact: Some(Fact::History(Arc::default())),
            revision,
            lease: 0,
        };
        for (changes, is_behind) in [
            ([claim.clone(), history(11)], false),
            ([history(11), claim.clone()], false),
            ([claim.clone(), history(9)], true),
            ([history(9), claim.clone()], true),
        ] {
            let mut topology = Topology::default();
            changes.iter().for_each(|change| topology.apply(change));
            assert_eq!(topology.is_history_behind, is_behind, "{changes:?}");
        }
    }
}
