//! Operators' requests of this member alone: shown to the decisions until taken up, then answered.

use std::time::Duration;

use tokio::sync::oneshot;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::settings::SettingsKeeper;
use crate::act::ActError;
use crate::api::{LocalOutcome, LocalRequest};
use crate::decide::observation::{self, JobKind, Local, Observation};
use crate::decide::{Decision, Reason};

/// How long a request waits for a situation that fits it.
const TAKE_LIMIT: Duration = Duration::from_secs(30);

/// How long what was taken up may take: nothing else is asked of this member meanwhile, and the API answers no later.
const DONE_LIMIT: Duration = Duration::from_secs(3600);

/// The answer to `force` while another job runs.
const CANNOT_FORCE: &str = "another long job runs on this member, and this version does not cut it off for \
     force; ask again when \"trunkline list\" shows the member running";

#[derive(Debug)]
struct Pending {
    kind: observation::LocalRequest,
    /// The request wants a running job to be cut off.
    is_forced: bool,
    answer: oneshot::Sender<LocalOutcome>,
    since: Moment,
    taken_at: Option<Moment>,
}

/// At most one request in progress.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pending: Option<Pending>,
}

impl Requests {
    /// Takes a request from the API.
    pub(super) fn take(&mut self, request: LocalRequest, settings: &mut SettingsKeeper) {
        let (kind, is_forced, answer) = match request {
            LocalRequest::Restart { drain, answer } => {
                (observation::LocalRequest::Restart(drain), false, answer)
            }
            LocalRequest::Reinitialize { force, answer } => {
                (observation::LocalRequest::Reinitialize, force, answer)
            }
            LocalRequest::Reload { answer } => {
                settings.reload(answer);
                return;
            }
        };
        if self.pending.is_some() {
            let why = "another request of this member is in progress".to_owned();
            say(answer, LocalOutcome::Refused(why));
            return;
        }
        self.pending = Some(Pending {
            kind,
            is_forced,
            answer,
            since: clock::now(),
            taken_at: None,
        });
    }

    /// Whether none is in progress.
    pub(super) fn are_done(&self) -> bool {
        self.pending.is_none()
    }

    /// The request that decisions are to see.
    pub(super) fn shown(&self) -> Option<observation::LocalRequest> {
        let pending = self.pending.as_ref().filter(|p| p.taken_at.is_none())?;
        Some(pending.kind.clone())
    }

    /// Answers what this turn took up, refused, or finished. `failed` is what kept its actions from being done.
    pub(super) fn answer(
        &mut self,
        seen: &Observation,
        decision: &Decision,
        failed: Option<&ActError>,
    ) {
        let Some(pending) = &mut self.pending else {
            return;
        };
        if decision.is_request_taken && pending.taken_at.is_none() {
            pending.taken_at = Some(seen.now);
        }
        let is_restart = matches!(pending.kind, observation::LocalRequest::Restart(_));
        let planned = decision.memory.switchover.as_ref();
        let leads = matches!(seen.lease, observation::LeaseView::Held(_));
        let is_begun = leads && planned.is_some_and(|change| change.is_restart);
        let outcome = match pending.taken_at {
            Some(_) if decision.is_request_taken && decision.reason == Reason::RequestRefused => {
                Some(LocalOutcome::Refused(decision.detail.to_string()))
            }
            Some(_) if decision.is_request_taken && decision.reason == Reason::RestartGivenUp => {
                let why = decision.reason.sentence();
                Some(LocalOutcome::Refused(format!(
                    "{why} ({})",
                    decision.detail
                )))
            }
            Some(at) if at == seen.now && failed.is_some() => {
                let why = failed.map(ToString::to_string).unwrap_or_default();
                Some(LocalOutcome::Failed(format!("it was not begun: {why}")))
            }
            Some(at) if seen.now.since(at) >= DONE_LIMIT => Some(LocalOutcome::Failed(format!(
                "it is not over after {DONE_LIMIT:?}: {}",
                decision.reason.sentence()
            ))),
            Some(_) if !is_restart => Some(LocalOutcome::Done("reinitialize started".to_owned())),
            Some(at) => restarted(seen, at),
            None if pending.is_forced && works_on_the_data(seen) => {
                Some(LocalOutcome::Unsupported(CANNOT_FORCE.to_owned()))
            }
            // The limits of its steps are those of the rules.
            None if is_restart && is_begun => None,
            None if seen.now.since(pending.since) >= TAKE_LIMIT => {
                Some(LocalOutcome::Refused(decision.reason.sentence().to_owned()))
            }
            None => None,
        };
        if let Some(outcome) = outcome
            && let Some(pending) = self.pending.take()
        {
            say(pending.answer, outcome);
        }
    }
}

/// Whether a job runs that `force` would have to cut off. Stopping is what a new copy begins with.
fn works_on_the_data(seen: &Observation) -> bool {
    let running = seen.job.running.as_ref();
    running.is_some_and(|job| !job.kind.is_stop())
}

/// How a restart that was taken up at `at` ended, if it has.
fn restarted(seen: &Observation, at: Moment) -> Option<LocalOutcome> {
    if seen.job.running.is_some() || seen.now == at {
        return None;
    }
    let job = seen.job.finished.as_ref()?;
    match (&seen.local, &job.error) {
        (_, Some(why)) => Some(LocalOutcome::Failed(why.to_string())),
        (Local::Running(_), None) if job.kind == JobKind::Start => {
            Some(LocalOutcome::Done("restarted successfully".to_owned()))
        }
        _ => None,
    }
}

/// The asker may have gone; then nobody needs the answer.
fn say(answer: oneshot::Sender<LocalOutcome>, outcome: LocalOutcome) {
    let _ = answer.send(outcome);
}
