//! From one routing table to the next: what the DCS shows, what the probes say, what time it is. Pure; the
//! simulation drives exactly this function.
//!
//! Two properties hold at every step, and are what the scripts in `tests/transition` and the simulation
//! look for: the epoch of the writer never goes back, and a lane that was cut never comes back.

#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{
    Leader, LeaderEpoch, Member, MemberName, MemberRole, MemberState, Moment, Timeline, Topology,
};

use self::fitness::{has_data, is_in_recovery, strictly_unfit};
use self::verdict::{Bad, Verdict, verdict};
use super::routing_table::{
    Doubt, LaneId, LastLeader, NoWriter, Question, Reader, RoutingTable, Unfit, Writer,
};

mod candidate;
mod fitness;
mod hold;
mod verdict;

/// A view of the DCS older than this is doubted.
pub const VIEW_IS_FRESH_FOR: Duration = Duration::from_secs(2);
/// How long a vanished leader key is doubted before the first answer: the time of one question.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(60);
/// How long an old view alone is tolerated without an answer.
pub const SILENCE_TOLERATED: Duration = Duration::from_secs(1);
/// How long after a change of leader replicas are judged mildly.
pub const GRACE_AFTER_CHANGE: Duration = Duration::from_secs(30);
/// Over how long read sessions on a member that became leader are closed.
pub const SPREAD_OF_CLOSES: Duration = Duration::from_secs(30);

/// What the DCS shows, and how new that is.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The cluster at one revision.
    pub topology: &'a Topology,
    /// When the watch last proved that it lives.
    pub proven_at: Moment,
}

/// What a leader's agent answered when asked to vouch for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It accepts writes, surely until then (counted from sending the question).
    Writable {
        /// The end of what it promised.
        until: Moment,
    },
    /// It answered, and does not accept writes, or not for that epoch.
    Refused,
    /// It did not answer in time.
    Silent,
}

/// One question to a leader's agent and its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Testimony {
    /// The epoch asked about.
    pub epoch: LeaderEpoch,
    /// When the question was sent.
    pub asked_at: Moment,
    /// The outcome.
    pub answer: Answer,
}

/// What the router found out by itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Health {
    /// The last question's outcome.
    pub latest: Option<Testimony>,
    /// The last good answer: a later silence does not shorten it.
    pub vouch: Option<Testimony>,
    /// Members whose probes failed often enough.
    pub down: BTreeSet<MemberName>,
}

impl Health {
    /// Takes note of a testimony.
    pub fn hear(&mut self, testimony: Testimony) {
        match testimony.answer {
            Answer::Writable { .. } => self.vouch = Some(testimony),
            Answer::Refused => self.vouch = None,
            Answer::Silent => {}
        }
        self.latest = Some(testimony);
    }
}

/// The settings that bear on the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rules {
    /// `replicas.max_lag`, bytes; none is no limit.
    pub max_lag: Option<u64>,
    /// `switchover.hold_timeout`; none is no limit.
    pub hold_timeout: Option<Duration>,
}

/// Why a lane is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutCause {
    /// The member is not the leader any more, is not to be it after all, or nobody vouches that it is.
    LeaderChanged,
    /// The member is gone, or was made anew.
    MemberLost,
    /// The member stopped being a replica.
    BecameLeader,
}

/// What must be done beside publishing the new table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End every session of the lane.
    Cut {
        /// Which.
        lane: LaneId,
        /// Why.
        cause: CutCause,
        /// The event behind it; sessions are over 90 ms after it at the latest.
        since: Moment,
        /// Spread over this time instead; zero for all at once.
        spread: Duration,
    },
}

/// The next table, and what follows from the difference.
pub fn transition(
    old: &RoutingTable,
    view: Option<View<'_>>,
    health: &Health,
    rules: &Rules,
    now: Moment,
) -> (RoutingTable, Vec<Command>) {
    // A view older than one already acted upon is no view; the one it replaces still stands in the table.
    let view = view.filter(|v| {
        v.topology.generation > old.generation
            || (v.topology.generation == old.generation && v.topology.revision >= old.revision)
    });
    let mut step = Step {
        old,
        now,
        next: old.clone(),
        commands: Vec::new(),
    };
    step.next.look_again_at = None;
    step.next.question = None;
    if let Some(view) = view {
        step.next.revision = view.topology.revision;
        step.next.generation = view.topology.generation;
    }
    step.writer(view, health);
    step.hold(view.map(|view| view.topology), rules.hold_timeout);
    step.candidate(view.map(|view| view.topology));
    if let Some(view) = view {
        step.readers(view.topology, health, rules);
    } else {
        step.readers_without_view(health);
    }
    (step.next, step.commands)
}

/// What the leader's own record says about its accepting writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    /// It does, and said so under this epoch.
    Confirmed,
    /// It did, before this epoch began.
    Before,
    /// It does not, now; its PostgreSQL is the same.
    NotNow,
    /// It does not: it is in recovery, or without data.
    No,
    /// It leads a standby cluster.
    StandbyLeader,
    /// It has no record.
    Nothing,
}

fn said(topology: &Topology, leader: &Leader) -> Said {
    let Some(record) = topology.members.get(&leader.member) else {
        return Said::Nothing;
    };
    match (record.role, record.state) {
        (MemberRole::StandbyLeader, _) => Said::StandbyLeader,
        (MemberRole::Primary, MemberState::Running) => {
            let is_later = record.revision >= leader.epoch.revision;
            match record.trunkline.as_ref().and_then(|t| t.epoch) {
                Some(stamped) if stamped == leader.epoch => Said::Confirmed,
                // A write that its sender had given up may come late.
                Some(_) => Said::Before,
                None if is_later => Said::Confirmed,
                None => Said::Before,
            }
        }
        (MemberRole::Primary, _) => Said::NotNow,
        (
            MemberRole::Replica
            | MemberRole::Demoted
            | MemberRole::Uninitialized
            | MemberRole::Promoted,
            _,
        ) => Said::No,
    }
}

struct Step<'a> {
    old: &'a RoutingTable,
    now: Moment,
    next: RoutingTable,
    commands: Vec<Command>,
}

impl Step<'_> {
    fn new_lane(&mut self) -> LaneId {
        let lane = LaneId(self.next.next_lane);
        self.next.next_lane += 1;
        lane
    }

    fn look_again_at(&mut self, at: Moment) {
        let sooner = self.next.look_again_at.is_none_or(|known| at < known);
        if sooner {
            self.next.look_again_at = Some(at);
        }
    }

    fn cut(&mut self, lane: LaneId, cause: CutCause, since: Moment, spread: Duration) {
        self.commands.push(Command::Cut {
            lane,
            cause,
            since,
            spread,
        });
    }

    /// Ends the write sessions of the last leader, if there are any.
    fn cut_writer(&mut self, since: Moment) {
        if let Some(lane) = self.next.last.as_mut().and_then(|last| last.lane.take()) {
            self.cut(lane, CutCause::LeaderChanged, since, Duration::ZERO);
        }
    }

    fn writer(&mut self, view: Option<View<'_>>, health: &Health) {
        let Some(view) = view else {
            return self.doubt(Doubt::ViewOld, health);
        };
        let Some(leader) = &view.topology.leader else {
            if self.next.last.is_some() {
                return self.doubt(Doubt::KeyGone, health);
            }
            self.next.writer = Writer::None {
                why: NoWriter::NoLeaderKey,
            };
            return;
        };
        if let Some(seen) = self.next.highest_epoch
            && leader.epoch < seen
        {
            self.doubt(Doubt::KeyGone, health);
            if !self.next.has_writer() {
                self.next.writer = Writer::None {
                    why: NoWriter::EpochWentBack {
                        shown: leader.epoch,
                        seen,
                    },
                };
            }
            return;
        }
        self.next.highest_epoch = Some(leader.epoch);
        let stale_at = view.proven_at + VIEW_IS_FRESH_FOR;
        let is_fresh = self.now < stale_at;
        self.holder(view.topology, leader, is_fresh);
        if is_fresh {
            self.next.doubt = None;
            self.look_again_at(stale_at);
        } else {
            self.doubt(Doubt::ViewOld, health);
        }
    }

    /// A member holds the key: is it the writer? An old view opens nothing; what is open under it stays
    /// until the doubt is settled.
    fn holder(&mut self, topology: &Topology, leader: &Leader, is_fresh: bool) {
        let said = said(topology, leader);
        let is_same = self
            .next
            .last
            .as_ref()
            .is_some_and(|last| last.member == leader.member);
        if !is_same {
            self.cut_writer(self.now);
        }
        if said == Said::StandbyLeader {
            self.cut_writer(self.now);
            self.next.last = None;
            self.next.writer = Writer::None {
                why: NoWriter::StandbyCluster {
                    leader: leader.member.clone(),
                },
            };
            return;
        }
        self.remember(topology.members.get(&leader.member), leader, is_same);
        if let Some(last) = &mut self.next.last {
            match said {
                Said::Confirmed => last.is_confirmed = true,
                Said::No | Said::StandbyLeader => last.is_confirmed = false,
                Said::Before | Said::NotNow | Said::Nothing => {}
            }
        }
        let has_lane = self.next.last.as_ref().is_some_and(|l| l.lane.is_some());
        let is_writer = match said {
            // What is committed before the cluster has an identity would be lost to whoever makes another one.
            Said::Confirmed => has_lane || is_fresh && has_identity(topology),
            // The holder of the key is the only member that may be promoted, so what is open to it stays
            // good while its record has not caught up with a key it took again.
            Said::Before | Said::Nothing => has_lane,
            Said::NotNow | Said::No | Said::StandbyLeader => false,
        };
        if said == Said::No {
            self.cut_writer(self.now);
        }
        if is_writer {
            self.confirm();
        } else {
            self.next.writer = Writer::Promoting {
                member: leader.member.clone(),
                epoch: leader.epoch,
            };
        }
    }

    /// Keeps what is known of the holder of the key; a lane survives only on the same timeline at the same
    /// address.
    fn remember(&mut self, record: Option<&Arc<Member>>, leader: &Leader, is_same: bool) {
        let known = self.next.last.take().filter(|_| is_same);
        let mut last = LastLeader {
            member: leader.member.clone(),
            epoch: leader.epoch,
            address: known
                .as_ref()
                .map(|k| k.address.clone())
                .unwrap_or_default(),
            api_url: known
                .as_ref()
                .map(|k| k.api_url.clone())
                .unwrap_or_default(),
            timeline: known.as_ref().and_then(|k| k.timeline),
            is_trunkline: known.as_ref().is_some_and(|k| k.is_trunkline),
            is_confirmed: known
                .as_ref()
                .is_some_and(|k| k.is_confirmed && k.epoch == leader.epoch),
            lane: known.as_ref().and_then(|k| k.lane),
        };
        let mut is_moved = false;
        if let Some(record) = record {
            is_moved = last.lane.is_some()
                && (last.address != record.address || differ(last.timeline, record.timeline));
            last.address = record.address.clone();
            last.api_url = record.api_url.clone();
            last.timeline = record.timeline.or(last.timeline);
            last.is_trunkline = record.is_trunkline();
        }
        self.next.last = Some(last);
        if is_moved {
            self.cut_writer(self.now);
        }
    }

    /// The last leader is the writer.
    fn confirm(&mut self) {
        let lane = match self.next.last.as_ref().and_then(|l| l.lane) {
            Some(lane) => lane,
            None => {
                // The first leader that a router ever sees is no change.
                if self.old.is_informed() {
                    self.next.changed_at = Some(self.now);
                }
                match self.lane_made_ahead() {
                    Some(lane) => lane,
                    None => self.new_lane(),
                }
            }
        };
        if let Some(last) = &mut self.next.last {
            last.lane = Some(lane);
            self.next.writer = Writer::Known {
                member: last.member.clone(),
                epoch: last.epoch,
                address: last.address.clone(),
                lane,
            };
        }
    }

    /// The last leader's right is in doubt: it goes on only while its own agent vouches for it.
    fn doubt(&mut self, why: Doubt, health: &Health) {
        let Some(last) = self.next.last.clone() else {
            return;
        };
        let since = match self.old.doubt {
            Some((known, since)) if known == why => since,
            Some(_) | None => self.now,
        };
        self.next.doubt = Some((why, since));
        self.next.question = (!last.api_url.is_empty()).then(|| Question {
            member: last.member.clone(),
            epoch: last.epoch,
            api_url: last.api_url.clone(),
            is_trunkline: last.is_trunkline,
        });
        let can_be_asked = self.next.question.is_some();
        match verdict(why, since, last.epoch, can_be_asked, health, self.now) {
            Verdict::Good { until } => {
                self.look_again_at(until);
                self.go_on(why, &last);
            }
            Verdict::Waiting { until } => self.look_again_at(until),
            Verdict::Bad(bad) => {
                let event = match why {
                    Doubt::KeyGone => since,
                    Doubt::ViewOld => self.now,
                };
                self.cut_writer(event);
                let last = last.member;
                self.next.writer = Writer::None {
                    why: match (bad, why) {
                        (Bad::Refused, _) => NoWriter::LeaderStepsDown { last },
                        (Bad::Silent, Doubt::KeyGone) => NoWriter::NoLeaderKey,
                        (Bad::Silent, Doubt::ViewOld) => NoWriter::DcsSilent { last },
                    },
                };
            }
        }
    }

    /// The doubted leader vouches for itself. That keeps what is open to it. It opens something only where
    /// the DCS is silent and had confirmed that leader under that very epoch (before it fell silent, or
    /// before this router started): no answer makes a leader of a member that no record confirmed.
    fn go_on(&mut self, why: Doubt, last: &LastLeader) {
        let may_open = match why {
            Doubt::ViewOld => last.is_confirmed,
            Doubt::KeyGone => false,
        };
        if last.lane.is_some() || may_open {
            self.confirm();
        } else if why == Doubt::KeyGone {
            self.next.writer = Writer::None {
                why: NoWriter::NoLeaderKey,
            };
        }
    }

    fn readers(&mut self, topology: &Topology, health: &Health, rules: &Rules) {
        let is_mild = self.is_mild();
        let current = self.current_timeline();
        let leader = self.next.last.as_ref().map(|l| l.member.clone());
        let old = std::mem::take(&mut self.next.readers);
        let mut readers = BTreeMap::new();
        for (name, member) in &topology.members {
            let known = old.get(name);
            let is_leader = self.next.has_writer() && leader.as_ref() == Some(name);
            let lane = self.reader_lane(known, member, is_leader);
            let mut unfit = strictly_unfit(member, topology, current, rules);
            let may_stay = known.is_some_and(|k| k.unfit.is_none())
                && is_in_recovery(member)
                && member.state == MemberState::Running
                && !member.tags.noloadbalance;
            if unfit.is_some() && is_mild && may_stay {
                unfit = None;
            }
            if unfit.is_none() && health.down.contains(name) {
                unfit = Some(Unfit::NotAnswering);
            }
            let reader = Reader {
                address: member.address.clone(),
                lane,
                is_in_recovery: is_in_recovery(member),
                has_data: has_data(member),
                unfit,
            };
            readers.insert(name.clone(), reader);
        }
        for (name, reader) in &old {
            if !readers.contains_key(name) {
                self.cut(reader.lane, CutCause::MemberLost, self.now, Duration::ZERO);
            }
        }
        self.next.readers = readers;
    }

    /// The lane of a member's read sessions: a new one when the member is new, moved, was made anew, or
    /// stopped being in recovery.
    fn reader_lane(&mut self, known: Option<&Reader>, member: &Member, is_leader: bool) -> LaneId {
        let Some(known) = known else {
            return self.new_lane();
        };
        let is_lost = known.address != member.address || (known.has_data && !has_data(member));
        if is_lost {
            self.cut(known.lane, CutCause::MemberLost, self.now, Duration::ZERO);
            self.new_lane()
        } else if known.is_in_recovery && (is_leader || !is_in_recovery(member)) {
            let spread = SPREAD_OF_CLOSES;
            self.cut(known.lane, CutCause::BecameLeader, self.now, spread);
            self.new_lane()
        } else {
            known.lane
        }
    }

    /// The DCS shows nothing new: readers stay as they are, only probes still take them out.
    fn readers_without_view(&mut self, health: &Health) {
        for (name, reader) in &mut self.next.readers {
            let is_down = health.down.contains(name);
            match (&reader.unfit, is_down) {
                (None, true) => reader.unfit = Some(Unfit::NotAnswering),
                (Some(Unfit::NotAnswering), false) => reader.unfit = None,
                (None | Some(_), _) => {}
            }
        }
    }

    /// Without a confirmed leader, and for a while after a change, a member that was fit stays fit.
    fn is_mild(&mut self) -> bool {
        if !self.next.has_writer() {
            return true;
        }
        let Some(changed_at) = self.next.changed_at else {
            return false;
        };
        let until = changed_at + GRACE_AFTER_CHANGE;
        if self.now < until {
            self.look_again_at(until);
        }
        self.now < until
    }

    fn current_timeline(&self) -> Option<Timeline> {
        match &self.next.writer {
            Writer::Known { .. } => self.next.last.as_ref().and_then(|l| l.timeline),
            Writer::Promoting { .. } | Writer::None { .. } => None,
        }
    }
}

fn has_identity(topology: &Topology) -> bool {
    match topology.initialize {
        Initialize::Done(_) => true,
        Initialize::Absent | Initialize::Running => false,
    }
}

fn differ(a: Option<Timeline>, b: Option<Timeline>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}
