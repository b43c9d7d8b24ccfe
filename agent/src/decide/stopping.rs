//! What is true of every stop and restart, whichever rule decided it: how long it may take, and that a restart
//! is not over before PostgreSQL runs again.

use std::time::Duration;

use trunkline_shared::cluster::settings::SynchronousMode;

use super::decision::{Action, Decision, Reason, StopMode};
use super::observation::{Local, Observation};

/// Completes a decision.
pub(super) fn note(seen: &Observation, mut decision: Decision) -> Decision {
    let stops = |a: &Action| {
        matches!(
            a,
            Action::Stop(StopMode::Planned | StopMode::HandOver | StopMode::Fast)
        )
    };
    if decision.actions.iter().any(stops) {
        decision.stop_limit = limit(seen);
    }
    if decision.memory.is_restarting
        && let Some(restart) = &mut decision.memory.last_restart
    {
        restart.seen = seen.now;
    }
    let is_stopping = decision.reason == Reason::RestartRequested
        || seen.job.running.as_ref().is_some_and(|j| j.kind.is_stop());
    let is_up = matches!(seen.local, Local::Running(_));
    if decision.reason == Reason::RestartRequested && decision.is_request_taken {
        decision.memory.is_restarting = true;
    } else if is_up && !is_stopping {
        decision.memory.is_restarting = false;
    }
    decision
}

/// Patroni's `primary_stop_timeout`: for a primary, and only where commits wait for others, because ending it
/// by force is harmless there.
fn limit(seen: &Observation) -> Option<Duration> {
    let settings = seen.settings();
    let limit = settings.primary_stop_timeout;
    let is_bound =
        seen.local.may_accept_writes() && settings.synchronous_mode != SynchronousMode::Off;
    (is_bound && !limit.is_zero()).then_some(limit)
}
