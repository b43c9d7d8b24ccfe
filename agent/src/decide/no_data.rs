//! There is no data here: initialise, clone, or wait.

use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Member, MemberName, MemberState, Topology};

use super::decision::{Action, Decision, Detail, Reason, Upstream};
use super::memory::Memory;
use super::observation::{JobKind, LeaseView, Local, Observation, WatchdogView};
use super::sync_standbys::keeping;
use super::{RETRY_PAUSE, Turn, following, standby_cluster, upstream};

pub(super) fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory).disarm_if_harmless();
    let Some(topology) = seen.topology().filter(|_| seen.is_dcs_fresh()) else {
        return turn.routine(Reason::DcsUnknown);
    };
    let turn = turn.withdraw_announcement();
    if let LeaseView::Held(held) = &seen.lease {
        return match held.is_key_missing || topology.shows_leader(&seen.me.name, held.epoch) {
            true => as_leader(turn, topology),
            // The view is of before the claim, and so is what it says of `initialize`.
            false => turn.within(Reason::ClaimingBootstrap, RETRY_PAUSE),
        };
    }
    if topology
        .leader
        .as_ref()
        .is_some_and(|leader| leader.member == seen.me.name)
    {
        return following::confirm(turn);
    }
    // A cluster that is being made has no roles to copy it with before its identity is recorded.
    if topology.leader.is_some() && topology.initialize != Initialize::Running {
        return clone_from_leader(turn, topology);
    }
    match topology.initialize {
        Initialize::Done(_) => without_leader(turn, topology),
        Initialize::Running => turn.routine(Reason::WaitingForBootstrap),
        Initialize::Absent => {
            if let Some(until) = memory.stands_back_until.filter(|until| *until > seen.now) {
                return turn.within(Reason::StandingBack, seen.now.until(until));
            }
            if let Some(member) = who_has_data(seen, topology) {
                let turn = turn.detail(Detail::Member(member.clone()));
                return turn.routine(Reason::DataElsewhere);
            }
            if !seen.fence.is_live {
                return turn.routine(Reason::FenceNotLive);
            }
            // Whoever makes a cluster leads it; nobody leads a standby cluster as primary.
            let will_lead = seen.settings().standby_cluster.is_none();
            if will_lead && seen.fence.watchdog == WatchdogView::Failed {
                return turn.routine(Reason::WatchdogNotReady);
            }
            turn.act(Action::ClaimBootstrap)
                .now(Reason::ClaimingBootstrap)
        }
    }
}

/// Whether this member would make a cluster if another one, which is registered, had no data: that one may know that the
/// DCS lost the cluster.
pub(super) fn is_beside_data(seen: &Observation) -> bool {
    let is_empty = seen.local == Local::Empty && seen.lease == LeaseView::NotHeld;
    let topology = seen.topology().filter(|_| is_empty);
    topology.is_some_and(|topology| {
        let is_unmade = topology.initialize == Initialize::Absent && topology.leader.is_none();
        is_unmade && who_has_data(seen, topology).is_some()
    })
}

/// A registered member that has data: the cluster exists, and the DCS has lost it, or it is about to be
/// adopted. Whoever made another one beside it would cost it its leader (`ha.md` 8).
pub(super) fn who_has_data<'a>(
    seen: &Observation,
    topology: &'a Topology,
) -> Option<&'a MemberName> {
    let others = topology.members.values();
    others
        .filter(|member| member.name != seen.me.name)
        .find(|member| {
            let fields = member.trunkline.as_ref();
            let says = fields.is_some_and(|fields| fields.system_id.is_some());
            says || member.state == MemberState::Running
        })
        .map(|member| &member.name)
}

/// The claim to make the cluster is held, or data vanished under a leader.
fn as_leader(turn: Turn<'_>, topology: &Topology) -> Decision {
    let seen = turn.seen;
    let back = seen.now + seen.settings().ttl;
    let release = Action::ReleaseLeader { position: None };
    if topology.initialize != Initialize::Running {
        return turn
            .remember(|memory| memory.stands_back_until = Some(back))
            .act(release)
            .now(Reason::LeaderWithoutData);
    }
    if let Some(member) = who_has_data(seen, topology) {
        // It has come since the claim was made.
        let member = Detail::Member(member.clone());
        return turn
            .remember(|memory| memory.stands_back_until = Some(back))
            .detail(member)
            .act(release)
            .now(Reason::DataElsewhere);
    }
    // What failed before this claim was made, long ago then, is tried again.
    let lately = |kind| turn.failure_of(kind).filter(|_| turn.failed_lately(kind));
    let failed = turn.decision.memory.bootstrap_failed.clone();
    let failed = failed.or_else(|| lately(JobKind::Initialize));
    let section = seen.settings().standby_cluster.clone();
    let failed = failed.or_else(|| lately(JobKind::Clone).filter(|_| section.is_some()));
    if let Some(why) = failed {
        return turn
            .remember(|memory| {
                memory.stands_back_until = Some(back);
                memory.bootstrap_failed = None;
            })
            .detail(Detail::Text(why))
            .act(release)
            .now(Reason::BootstrapFailed);
    }
    if let Some(section) = &section {
        let from = standby_cluster::remote(section);
        return standby_cluster::copy(turn, topology, from, Reason::Bootstrapping);
    }
    let turn = match standby_cluster::unless_config_gone(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    if topology.settings.is_none() {
        // The claim wrote it: it was deleted since, and may have said that this is a standby cluster.
        let why = Arc::from("the key config was deleted while the cluster was being made");
        return turn
            .remember(|memory| memory.stands_back_until = Some(back))
            .detail(Detail::Text(why))
            .act(release)
            .now(Reason::BootstrapFailed);
    }
    turn.act(Action::Initialize).routine(Reason::Bootstrapping)
}

fn clone_from_leader(turn: Turn<'_>, topology: &Topology) -> Decision {
    let Some(leader) = following::confirmed_leader(topology) else {
        return turn.routine(Reason::WaitingForPrimaryToClone);
    };
    let turn = match keeping::before_replacing(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    let Some(from) = clone_source(&turn, topology, leader) else {
        return turn.after_failure(JobKind::Clone);
    };
    let turn = turn.from(&from);
    keeping::replace(turn, topology, Action::Clone(from)).routine(Reason::Cloning)
}

/// A backup may be all there is; what it makes is a replica, which runs for leader by the rules of any other.
fn without_leader(turn: Turn<'_>, topology: &Topology) -> Decision {
    if !turn.seen.me.can_clone_without_leader {
        return turn.routine(Reason::WaitingForPrimaryToClone);
    }
    let turn = match keeping::before_replacing(turn, topology) {
        ControlFlow::Break(decision) => return decision,
        ControlFlow::Continue(turn) => turn,
    };
    if turn.failed_lately(JobKind::Clone) {
        return turn.after_failure(JobKind::Clone);
    }
    keeping::replace(turn, topology, Action::CloneWithoutLeader)
        .routine(Reason::CloningWithoutLeader)
}

/// Whose data is copied: a running replica tagged `clonefrom`, one of several by chance, else the leader.
/// The leader is asked at once after such a replica failed; `None` while the leader itself failed lately.
pub(super) fn clone_source(
    turn: &Turn<'_>,
    topology: &Topology,
    leader: &Member,
) -> Option<Upstream> {
    let failed = turn.failed_lately(JobKind::Clone);
    let finished = turn.seen.job.finished.as_ref();
    let failed_from = finished.and_then(|job| job.source.as_ref());
    if failed && failed_from.is_none_or(|source| *source == leader.name) {
        return None;
    }
    let offered: Vec<&Member> = topology
        .members
        .values()
        .map(|member| &**member)
        .filter(|member| member.tags.clonefrom && member.name != leader.name)
        .filter(|member| member.name != turn.seen.me.name && member.is_streaming == Some(true))
        .collect();
    let drawn = usize::try_from(turn.seen.chance).unwrap_or(0) % offered.len().max(1);
    let source = offered.get(drawn).filter(|_| !failed);
    let source = source.copied().unwrap_or(leader);
    Some(upstream::source(turn.seen, topology, leader, source))
}
