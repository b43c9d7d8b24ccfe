//! The DCS is not the one that was known: nobody is promoted, and who leads by the consent of all makes the keys
//! anew, with a higher generation (`ha.md` 8).

use std::collections::BTreeSet;
use std::time::Duration;

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{MemberName, Topology};

use super::decision::{Action, Decision, Detail, NextWhy, Reason};
use super::observation::{LeaseView, Local, Observation, PeerAnswer, Peers, RunningRole};
use super::store::{Doubt, Shown};

/// How soon the others are asked again while one of them does not consent.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Completes what was decided without the DCS.
pub(super) fn note(seen: &Observation, mut decision: Decision) -> Decision {
    let Some(doubt) = &seen.store.doubt else {
        return decision;
    };
    if is_idle(decision.reason) {
        decision.reason = Reason::StoreWentBack;
        decision.detail = Detail::Text(doubt.why.clone());
    }
    if !leads_by_consent(seen) || is_done(seen) {
        return decision;
    }
    match consents(seen, doubt) {
        Ok(generation) => {
            decision.actions = vec![Action::RecreateKeys { generation }];
            decision.reason = Reason::RecreatingKeys;
            decision.detail = Detail::None;
            decision.next.within = Duration::ZERO;
            decision.next.why = NextWhy::SeeResult;
        }
        Err((reason, detail)) => {
            decision.memory.wants_peers = true;
            decision.reason = reason;
            decision.detail = detail;
            let is_first = reason == Reason::AskingPeers;
            let pause = if is_first { Duration::ZERO } else { ASK_AGAIN };
            if pause < decision.next.within {
                decision.next.within = pause;
                decision.next.why = NextWhy::Limit;
            }
        }
    }
    decision
}

/// What is said of a DCS that does not answer.
fn is_idle(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::DcsUnknown
            | Reason::FollowingWithoutDcs
            | Reason::StartingInRecovery
            | Reason::WaitingForLeader
            | Reason::KeepingLeaseWithoutDcs
            | Reason::HoldingByFailsafe
    )
}

/// The keys were made anew a moment ago, and the view does not show it yet.
fn is_done(seen: &Observation) -> bool {
    matches!(&seen.lease, LeaseView::Held(held) if held.epoch.generation > seen.store.generation)
}

/// A running primary behind an armed fence that goes on because everybody who is listed promised not to run.
fn leads_by_consent(seen: &Observation) -> bool {
    let is_primary = matches!(&seen.local, Local::Running(running)
        if matches!(running.role, RunningRole::Primary { .. }));
    let is_held = matches!(&seen.lease, LeaseView::Held(held)
        if held.is_by_failsafe && held.deadline > seen.now);
    let is_idle = seen.job.running.is_none() && !seen.is_shutting_down;
    is_primary && is_held && is_idle && seen.fence.is_armed() && !seen.is_automation_off()
}

/// The new generation, if every member that was known lets this one make the keys anew; or who does not, and why.
fn consents(seen: &Observation, doubt: &Doubt) -> Result<u64, (Reason, Detail)> {
    let Some(shown) = &doubt.shown else {
        return Err((Reason::StoreWentBack, Detail::Text(doubt.why.clone())));
    };
    let known = known_members(&doubt.before, &seen.me.name);
    is_nobody_elses(seen, &doubt.before, shown, &known)?;
    let Peers::Asked(answers) = &seen.peers else {
        return Err((Reason::AskingPeers, Detail::None));
    };
    let mut generation = seen.store.generation.max(shown.generation);
    for (name, answer) in answers.iter() {
        if let PeerAnswer::Answered(view) = answer {
            generation = generation.max(view.store.map_or(0, |store| store.generation));
        }
        if known.contains(name) && !lets(answer) {
            let detail = Detail::Member(name.clone());
            return Err((Reason::RecreationLacksConsent, detail));
        }
    }
    match known.iter().find(|name| !answers.contains_key(*name)) {
        Some(missing) => Err((
            Reason::RecreationLacksConsent,
            Detail::Member(missing.clone()),
        )),
        None => Ok(generation + 1),
    }
}

fn known_members(before: &Topology, me: &MemberName) -> BTreeSet<MemberName> {
    let listed = before.failsafe.keys().chain(before.members.keys());
    listed.filter(|name| *name != me).cloned().collect()
}

/// Another cluster's keys are not overwritten, nor those of a leader who was not asked.
fn is_nobody_elses(
    seen: &Observation,
    before: &Topology,
    shown: &Shown,
    known: &BTreeSet<MemberName>,
) -> Result<(), (Reason, Detail)> {
    let is_other = match (shown.initialize, before.initialize) {
        (Initialize::Done(theirs), Initialize::Done(ours)) => theirs != ours,
        (Initialize::Running, _) => true,
        (Initialize::Done(_), Initialize::Absent | Initialize::Running)
        | (Initialize::Absent, _) => false,
    };
    let is_strange = |name: &&MemberName| **name != seen.me.name && !known.contains(*name);
    let stranger = shown.leader.as_ref().filter(is_strange);
    match (is_other, stranger) {
        (false, None) => Ok(()),
        (_, Some(name)) => Err((Reason::StoreOfAnother, Detail::Member(name.clone()))),
        (true, None) => Err((Reason::StoreOfAnother, Detail::None)),
    }
}

/// A member that sees the DCS answer and finds nothing wrong with it may be led by it.
fn lets(answer: &PeerAnswer) -> bool {
    match answer {
        PeerAnswer::Unreachable => false,
        PeerAnswer::Answered(view) => {
            let store = view.store;
            !view.is_primary && store.is_some_and(|store| store.is_doubted || !store.is_fresh)
        }
    }
}
