//! A fence that stays away: nobody may write by this member's key, so the key is to end.

use std::time::Duration;

use trunkline_shared::cluster::Topology;

use super::decision::{Action, Decision, Lapse, NextWhy};
use super::observation::{JobKind, LeaseView, Observation};

/// A fence that ended is replaced in a moment, and one that hangs is noticed after a second. What lasts longer, such as a
/// limit on processes, waits for somebody who mends the host.
const STAYS_AWAY: Duration = Duration::from_secs(5);

/// How soon it is looked at again while the lease is let lapse: with a fence that is there by then its member leads on.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Completes a decision: a member that the leader key names, that cannot write, and whose fence is not replaced lets its
/// lease end. The store would renew it for ever, and nobody would lead.
pub(super) fn note(seen: &Observation, mut decision: Decision) -> Decision {
    let memory = &mut decision.memory;
    if seen.fence.is_live {
        memory.fence_gone_since = None;
        return decision;
    }
    let since = *memory.fence_gone_since.get_or_insert(seen.now);
    let needs_it = seen
        .topology()
        .is_some_and(|topology| is_to_write(seen, topology));
    let gives_up = |action: &Action| matches!(action, Action::ReleaseLeader { .. });
    let is_settled = seen.is_shutting_down || decision.actions.iter().any(gives_up);
    if !needs_it || is_settled || seen.local.may_accept_writes() || seen.is_automation_off() {
        return decision;
    }
    let left = STAYS_AWAY.saturating_sub(seen.now.since(since));
    let within = match left.is_zero() {
        true => {
            // What comes before it may fail.
            let lapse = Action::LetLeaseLapse(Lapse::NoFence);
            decision.actions.insert(0, lapse);
            LOOK_AGAIN
        }
        false => left,
    };
    if within < decision.next.within {
        decision.next.within = within;
        decision.next.why = NextWhy::Limit;
    }
    decision
}

/// Whether the key names this member, and asks it to lead what is written to, or to make it. A standby leader is never
/// armed, and what makes a cluster's data needs no fence before it is started.
fn is_to_write(seen: &Observation, topology: &Topology) -> bool {
    let is_held = matches!(seen.lease, LeaseView::Held(_));
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    let job = seen.job.running.as_ref();
    let is_filled = job.is_some_and(|job| job.kind == JobKind::Initialize);
    let is_standby = seen.settings().standby_cluster.is_some();
    (is_held || leader == Some(&seen.me.name)) && !is_standby && !is_filled
}
