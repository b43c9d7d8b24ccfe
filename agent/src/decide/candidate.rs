//! May this member be promoted; which member is best.
//!
//! Members stand in the order (timeline, position, priority, replayed, name): the most advanced history
//! wins, and only among equals does anybody's wish count (`ha.md` 5.3).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use trunkline_shared::cluster::timeline::Ancestry;
use trunkline_shared::cluster::topology::FailoverRequest;
use trunkline_shared::cluster::{ClusterSettings, Lsn, MemberName, Timeline, Topology};

use super::decision::{Detail, Reason};
use super::failsafe;
use super::observation::{
    Local, Looked, Observation, PeerAnswer, PeerView, Peers, Running, RunningRole, WatchdogView,
};
use super::store::{self, Word};
use super::sync_standbys::election;

/// A candidate with more than this to replay would not be ready soon after its leader has stopped.
const REPLAY_LIMIT: u64 = 64 * 1024 * 1024;

/// How far a member stands; greater is better.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Standing<'a> {
    timeline: Timeline,
    position: Lsn,
    priority: u32,
    replayed: Lsn,
    name: Reverse<&'a MemberName>,
}

/// The answers, if the peers were asked.
pub(super) fn answers(seen: &Observation) -> Option<&BTreeMap<MemberName, PeerAnswer>> {
    match &seen.peers {
        Peers::NotAsked => None,
        Peers::Asked(answers) => Some(answers),
    }
}

fn views(
    answers: &BTreeMap<MemberName, PeerAnswer>,
) -> impl Iterator<Item = (&MemberName, &PeerView)> {
    answers.iter().filter_map(|(name, answer)| match answer {
        PeerAnswer::Answered(view) => Some((name, view)),
        PeerAnswer::Unreachable => None,
    })
}

/// Whether no peer is silent.
pub(super) fn all_answer(answers: &BTreeMap<MemberName, PeerAnswer>) -> bool {
    answers.values().all(|answer| match answer {
        PeerAnswer::Answered(_) => true,
        PeerAnswer::Unreachable => false,
    })
}

/// Whether a peer answers that could lead as far as it and its tags go.
pub(super) fn somebody_could_lead(answers: &BTreeMap<MemberName, PeerAnswer>) -> bool {
    views(answers).any(|(_, view)| is_able(view))
}

/// A peer that answered that its PostgreSQL is not in recovery.
pub(super) fn living_primary(seen: &Observation) -> Option<MemberName> {
    let mut views = views(answers(seen)?);
    views
        .find(|(_, view)| view.is_primary)
        .map(|(name, _)| name.clone())
}

/// A running replica that its tags allow to lead.
fn is_able(view: &PeerView) -> bool {
    view.is_running && !view.is_primary && view.may_lead
}

fn standing<'a>(name: &'a MemberName, view: &PeerView) -> Standing<'a> {
    Standing {
        timeline: view.timeline.unwrap_or_default(),
        position: view.position,
        priority: view.priority,
        replayed: view.replayed,
        name: Reverse(name),
    }
}

fn own_standing(seen: &Observation) -> Option<Standing<'_>> {
    let Local::Running(Running { timeline, role, .. }) = &seen.local else {
        return None;
    };
    let RunningRole::Replica {
        received, replayed, ..
    } = role
    else {
        return None;
    };
    Some(Standing {
        timeline: *timeline,
        position: *received.max(replayed),
        priority: seen.me.tags.priority(),
        replayed: *replayed,
        name: Reverse(&seen.me.name),
    })
}

/// Why a member does not run, and what belongs to it.
pub(super) type Refusal = (Reason, Detail);

/// What the guards of the race look at.
struct Race<'a> {
    seen: &'a Observation,
    topology: &'a Topology,
    answers: &'a BTreeMap<MemberName, PeerAnswer>,
    own: Standing<'a>,
    /// The operator's request, and whether it names this member.
    request: Option<&'a FailoverRequest>,
    is_named: bool,
}

/// Lets this member run or says why it does not.
type Guard = fn(&Race<'_>) -> Result<(), Refusal>;

/// The first refusal stands. An operator's request lets a guard pass only where the guard itself says so.
const GUARDS: &[Guard] = &[
    has_watchdog,
    no_peer_is_primary,
    no_peer_knows_more,
    no_other_is_named,
    tags_allow,
    sync_allows,
    knows_newest_timeline,
    loses_little,
    nobody_is_better,
    keeps_its_promises,
];

/// Whether this running replica may take the lease now; the reason why not otherwise. The peers must have
/// been asked.
pub(super) fn may_run(
    seen: &Observation,
    topology: &Topology,
    answers: &BTreeMap<MemberName, PeerAnswer>,
) -> Result<(), Refusal> {
    let own = own_standing(seen).ok_or((Reason::WaitingForStart, Detail::None))?;
    // What is scheduled for later names nobody yet.
    let request = topology.failover.as_ref();
    let request = request.filter(|r| r.scheduled_at.is_none() && !has_lapsed(topology, r));
    let is_named = request.is_some_and(|r| r.candidate.as_ref() == Some(&seen.me.name));
    let race = Race {
        seen,
        topology,
        answers,
        own,
        request,
        is_named,
    };
    GUARDS.iter().try_for_each(|guard| guard(&race))
}

/// Whether a failover was asked for before somebody was promoted, or tried to be: it was fulfilled and its candidate
/// ended before it could remove it, or it came to nothing. The operator did not know of what was acknowledged since, so it
/// accepts no loss of that.
pub(super) fn has_lapsed(topology: &Topology, request: &FailoverRequest) -> bool {
    let (claim, history) = topology.claim_and_history;
    let is_failover = request.leader.is_none() && request.scheduled_at.is_none();
    is_failover && request.revision < claim.max(history)
}

impl Race<'_> {
    /// An operator who names the successor of a leader that is gone accepts its loss; a switchover, which
    /// names the leader too, does not.
    fn request_accepts_loss(&self) -> bool {
        self.request.is_some_and(|r| r.leader.is_none())
    }

    fn furthest(&self) -> Lsn {
        self.furthest_from(self.own.timeline)
    }

    /// As far as is known to whoever stands on this timeline.
    fn furthest_from(&self, timeline: Timeline) -> Lsn {
        let known = furthest(self.topology, self.answers, timeline);
        known.max(told(self.seen, self.topology, timeline).unwrap_or_default())
    }

    /// Whether another member, which answered, has every acknowledged commit; this one may vote for it.
    fn sync_lets(&self, name: &MemberName, view: &PeerView) -> bool {
        let own = (&self.seen.me.name, (self.own.timeline, self.own.position));
        let voters = votes(self.topology, self.answers).chain([own]);
        election::allows(self.topology, name, reach(view), voters).is_ok()
    }

    fn lag_limit(&self) -> u64 {
        self.topology.settings_or_default().maximum_lag_on_failover
    }
}

/// Without the device it is told to have, it would give the lease up right after having taken it. Who leads a standby
/// cluster is never armed.
fn has_watchdog(race: &Race<'_>) -> Result<(), Refusal> {
    if race
        .topology
        .settings_or_default()
        .standby_cluster
        .is_some()
    {
        return Ok(());
    }
    match race.seen.fence.watchdog {
        WatchdogView::NotRequired | WatchdogView::Ready => Ok(()),
        WatchdogView::Failed => Err((Reason::WatchdogNotReady, Detail::None)),
    }
}

/// Two primaries would be worse than none (`ha.md` 5.2).
fn no_peer_is_primary(race: &Race<'_>) -> Result<(), Refusal> {
    match views(race.answers).find(|(_, view)| view.is_primary) {
        Some((name, _)) => Err((Reason::PeerIsPrimary, Detail::Member(name.clone()))),
        None => Ok(()),
    }
}

/// A store that lost its memory elects nobody, whatever it shows (`ha.md` 8).
fn no_peer_knows_more(race: &Race<'_>) -> Result<(), Refusal> {
    peer_knows_more(race.seen)
}

/// Whether a peer speaks against the store that this member would lead by.
pub(super) fn peer_knows_more(seen: &Observation) -> Result<(), Refusal> {
    match store::loudest(seen) {
        (Word::Agrees, _) | (_, None) => Ok(()),
        // Who hears it too is ahead by a moment.
        (Word::IsAhead, Some((_, other))) if other.is_fresh => Ok(()),
        (Word::IsAhead | Word::Contradicts, Some((name, _))) => {
            Err((Reason::PeerKnowsMore, Detail::Member(name)))
        }
    }
}

/// Whoever consented to another's going on without the DCS keeps to it, whatever an operator asks.
fn keeps_its_promises(race: &Race<'_>) -> Result<(), Refusal> {
    failsafe::lets_run(race.seen, race.topology)
}

/// The operator's candidate goes first while it answers and can run.
fn no_other_is_named(race: &Race<'_>) -> Result<(), Refusal> {
    let candidate = race.request.and_then(|r| r.candidate.as_ref());
    let Some(candidate) = candidate.filter(|_| !race.is_named) else {
        return Ok(());
    };
    // A switchover does not accept loss, so its candidate may be unable to run for ever.
    let own = shared_position(race.topology, race.own.timeline, race.own.position);
    let limit = race.lag_limit();
    let can_run = |view: &PeerView| {
        // As it measures itself.
        let has_record = election::record_in_force(race.topology).is_some();
        let is_near = view.timeline.is_some_and(|timeline| {
            let own = Some(own).filter(|_| race.own.timeline >= timeline);
            let furthest = race.furthest_from(timeline);
            let kept = shared_position(race.topology, timeline, view.position);
            has_record || kept.bytes_behind(furthest.max(own.unwrap_or_default())) <= limit
        });
        let may = is_near && race.sync_lets(candidate, view) && is_on_newest(race, view.timeline);
        is_able(view) && (race.request_accepts_loss() || may)
    };
    let answers_for_it = views(race.answers).any(|(name, view)| name == candidate && can_run(view));
    let may = failsafe::may_be_chosen(race.topology, candidate);
    if answers_for_it && may && race.topology.members.contains_key(candidate) {
        return Err((Reason::CandidateNamed, Detail::Member(candidate.clone())));
    }
    Ok(())
}

fn tags_allow(race: &Race<'_>) -> Result<(), Refusal> {
    if race.is_named || race.seen.me.tags.may_lead() {
        return Ok(());
    }
    Err((Reason::NotEligible, Detail::None))
}

/// Nothing acknowledged is lost where the cluster replicates synchronously (`patroni.md` 2.2).
fn sync_allows(race: &Race<'_>) -> Result<(), Refusal> {
    if race.is_named && race.request_accepts_loss() {
        return Ok(());
    }
    let own = (race.own.timeline, race.own.position);
    election::allows(
        race.topology,
        &race.seen.me.name,
        own,
        votes(race.topology, race.answers),
    )
}

/// How far the others reach, by words that cannot be of less than they have: what a stopped server has is not in them,
/// what one that has just started has is only in part, and what one received from the last leader after its last look
/// is not.
fn votes<'a>(
    topology: &'a Topology,
    answers: &'a BTreeMap<MemberName, PeerAnswer>,
) -> impl Iterator<Item = (&'a MemberName, election::Reach)> {
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    let is_late = move |view: &PeerView| match &view.looked {
        Looked::Asked | Looked::InTurn(None) => true,
        Looked::InTurn(Some(seen)) => leader == Some(seen),
    };
    views(answers)
        .filter(|(_, view)| view.is_running && !view.is_primary)
        .filter(move |(_, view)| view.timeline.is_some() && view.has_read_all && is_late(view))
        .map(|(name, view)| (name, reach(view)))
}

fn reach(view: &PeerView) -> election::Reach {
    (view.timeline.unwrap_or_default(), view.position)
}

/// `check_timeline`: nobody is promoted who has not reached the newest timeline the cluster knows of.
fn knows_newest_timeline(race: &Race<'_>) -> Result<(), Refusal> {
    let is_accepted = race.is_named && race.request_accepts_loss();
    if is_accepted || is_on_newest(race, Some(race.own.timeline)) {
        return Ok(());
    }
    let detail = Detail::Timelines(race.own.timeline, race.topology.newest_timeline());
    Err((Reason::BehindNewestTimeline, detail))
}

fn is_on_newest(race: &Race<'_>, timeline: Option<Timeline>) -> bool {
    let is_checked = race.topology.settings_or_default().check_timeline;
    !is_checked || timeline >= Some(race.topology.newest_timeline())
}

/// `maximum_lag_on_failover` (`ha.md` 5.3). Where every acknowledged commit is known to be here, what is
/// missing was never acknowledged.
fn loses_little(race: &Race<'_>) -> Result<(), Refusal> {
    if election::record_in_force(race.topology).is_some() {
        return Ok(());
    }
    let kept = shared_position(race.topology, race.own.timeline, race.own.position);
    let loss = kept.bytes_behind(race.furthest());
    let is_accepted = race.is_named && race.request_accepts_loss();
    if is_accepted || loss <= race.lag_limit() {
        return Ok(());
    }
    Err((Reason::TooFarBehind, Detail::Bytes(loss)))
}

/// The most advanced runs; a member that is not registered has no DCS to take the lease from and is not
/// waited for.
fn nobody_is_better(race: &Race<'_>) -> Result<(), Refusal> {
    if race.is_named {
        return Ok(());
    }
    let sync = election::record_in_force(race.topology);
    // Who may not run is not waited for; a former leader's surplus was never acknowledged.
    let is_rival = |name: &MemberName, view: &PeerView| {
        sync.is_none_or(|sync| sync.leader.as_ref() != Some(name) && race.sync_lets(name, view))
    };
    let better = views(race.answers)
        .filter(|(name, view)| is_able(view) && race.topology.members.contains_key(*name))
        .filter(|(name, view)| is_rival(name, view))
        .filter(|(name, _)| failsafe::may_be_chosen(race.topology, name))
        .map(|(name, view)| standing(name, view))
        .filter(|other| *other > race.own)
        .max();
    match better {
        Some(other) => {
            let name = other.name.0.clone();
            Err((Reason::BetterCandidate, Detail::Member(name)))
        }
        None => Ok(()),
    }
}

/// How much of this member's WAL the cluster's newest history shares: what it wrote beyond the point where
/// that history left its timeline is nobody's, and makes up for nothing.
pub(super) fn shared_position(topology: &Topology, timeline: Timeline, position: Lsn) -> Lsn {
    match topology.ancestry(timeline, position, topology.newest_timeline()) {
        Ancestry::Diverged { fork } if timeline < topology.newest_timeline() => position.min(fork),
        Ancestry::Diverged { .. } | Ancestry::Ancestor | Ancestry::Unknown => position,
    }
}

/// The furthest position known of the history: the last published one, or that of a reachable member
/// that is not on an older timeline.
fn furthest(
    topology: &Topology,
    answers: &BTreeMap<MemberName, PeerAnswer>,
    timeline: Timeline,
) -> Lsn {
    views(answers)
        .filter(|(_, view)| view.timeline.is_none_or(|t| t >= timeline))
        .map(|(_, view)| match view.timeline {
            Some(timeline) => shared_position(topology, timeline, view.position),
            None => view.position,
        })
        .fold(topology.status.optime, Lsn::max)
}

/// How far a leader had written when it asked this member for its consent: it could not publish that. Who stands on a later
/// timeline, or knows of one, does not go by it: what was promoted since goes on from somewhere else.
fn told(seen: &Observation, topology: &Topology, from: Timeline) -> Option<Lsn> {
    let (timeline, position) = seen.no_race.promise?.reached?;
    (timeline >= from.max(topology.newest_timeline())).then_some(position)
}

/// Whether a member answers that it has the record at this position, whole or in part: everything before it is
/// surely there.
pub(super) fn has_received(seen: &Observation, name: &MemberName, record: Lsn) -> bool {
    let answer = answers(seen).and_then(|answers| answers.get(name));
    match answer {
        Some(PeerAnswer::Answered(view)) => view.is_running && view.position > record,
        Some(PeerAnswer::Unreachable) | None => false,
    }
}

/// Why a running replica will not have everything soon after its leader has stopped.
fn cannot_catch_up(view: &PeerView) -> Option<&'static str> {
    if view.is_replay_paused {
        return Some("does not replay: its replay is paused");
    }
    (view.is_streaming == Some(false)).then_some("does not stream")
}

/// How the next leader comes to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Succession {
    /// After a clean stop, with everything: it is to be a synchronous standby only so that it has little to
    /// catch up with, as Patroni demands it for a switchover.
    Planned,
    /// The same, where it is better to wait for a long replay than not to change at all.
    Urgent,
    /// The same as planned, where an operator asked for a failover to a member that need not be synchronous.
    ByOperator,
    /// With what it has.
    AfterCrash,
}

/// How far a running primary knows a standby that streams from it to have come. What the standby answers is as old as its
/// last turn, in which a busy primary may write more than `maximum_lag_on_failover`.
fn sent_to(seen: &Observation, name: &MemberName) -> Option<Lsn> {
    let Local::Running(running) = &seen.local else {
        return None;
    };
    let mut senders = running.commits.senders.iter();
    let sender = senders.find(|sender| sender.is_streaming && sender.name == *name)?;
    Some(sender.flushed)
}

/// The member that is to lead after this one, or who lacks what. To one of ours the key moves by a transaction
/// that compares what it confirmed, so among those that fit ours go before Patroni's.
pub(super) fn successor(
    seen: &Observation,
    topology: &Topology,
    settings: &ClusterSettings,
    named: Option<&MemberName>,
    how: Succession,
) -> Result<MemberName, Detail> {
    let Some(answers) = answers(seen) else {
        return Err(Detail::None);
    };
    let position = seen.local.position().unwrap_or(topology.status.optime);
    let timeline = seen.local.timeline();
    let mut lacking = named.cloned().map_or(Detail::None, Detail::Member);
    let mut best: Option<(bool, Standing<'_>)> = None;
    for (name, view) in views(answers) {
        if named.is_some_and(|n| n != name) || !is_able(view) {
            continue;
        }
        let Some(record) = topology.members.get(name) else {
            continue;
        };
        let promotes = settings.standby_cluster.is_none();
        if how != Succession::AfterCrash
            && promotes
            && let Some(why) = cannot_catch_up(view)
        {
            lacking = Detail::Text(format!("{name} {why}").into());
            continue;
        }
        let backlog = view.replayed.bytes_behind(position);
        let is_replay_short = match how {
            Succession::Planned | Succession::ByOperator => backlog <= REPLAY_LIMIT,
            Succession::Urgent | Succession::AfterCrash => true,
        };
        if promotes && !is_replay_short {
            lacking = Detail::Text(format!("{name} has {backlog} bytes to replay").into());
            continue;
        }
        let confirmed = sent_to(seen, name).filter(|_| how != Succession::AfterCrash);
        let behind = view
            .position
            .max(confirmed.unwrap_or_default())
            .bytes_behind(position);
        let sync = election::record_in_force(topology);
        let has_acknowledged = sync.is_some() && how == Succession::AfterCrash;
        if behind > settings.maximum_lag_on_failover && !has_acknowledged {
            lacking = Detail::Lacks(name.clone(), behind);
            continue;
        }
        let may = match how {
            Succession::ByOperator => true,
            Succession::Planned | Succession::Urgent => {
                sync.is_none_or(|sync| sync.standbys.contains(name))
            }
            Succession::AfterCrash => {
                election::allows(topology, name, reach(view), votes(topology, answers)).is_ok()
            }
        };
        if !may {
            lacking = Detail::NotSynchronous(name.clone());
            continue;
        }
        if timeline.is_none() || view.timeline == timeline {
            best = best.max(Some((record.is_trunkline(), standing(name, view))));
        }
    }
    best.map(|(_, standing)| standing.name.0.clone())
        .ok_or(lacking)
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::switchover::Drain;

    use super::*;

    #[test]
    fn a_failover_lapses_by_a_claim_or_a_history_after_it_and_a_switchover_never() {
        let lapses = |leader: Option<&str>, claim_and_history| {
            let request = FailoverRequest {
                leader: leader.map(MemberName::new),
                candidate: Some(MemberName::new("b")),
                scheduled_at: None,
                drain: Drain::default(),
                revision: 20,
            };
            let topology = Topology {
                claim_and_history,
                ..Topology::default()
            };
            has_lapsed(&topology, &request)
        };
        assert!(!lapses(None, (10, 19)));
        assert!(
            lapses(None, (21, 0)) && lapses(None, (10, 21)),
            "Patroni claims nothing"
        );
        assert!(!lapses(Some("a"), (21, 22)));
    }
}
