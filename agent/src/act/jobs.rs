//! At most one long job and its status.

use std::pin::Pin;
use std::sync::Arc;

use tokio::task::{JoinError, JoinHandle};
use trunkline_shared::cluster::MemberName;
use trunkline_shared::service::clock;

use crate::decide::observation::{FinishedJob, JobKind, JobView, RunningJob, SourceTrouble};

/// What a job does. Dropping it ends its child process.
pub type Work = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// How a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The sentence for log and journal.
    pub why: String,
    /// It was the source's fault, and nothing was touched yet.
    pub trouble: Option<SourceTrouble>,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, trouble: None }
    }
}

/// The long job in progress, and how the last one ended.
#[derive(Debug, Default)]
pub struct Jobs {
    running: Option<(RunningJob, JoinHandle<Result<(), Failure>>)>,
    finished: Option<FinishedJob>,
    /// What was said last of a failure; the same is not said again and again.
    said: Option<(JobKind, String)>,
}

/// There is a job in progress: cancel it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the job {} is still in progress", .0.name())]
pub struct JobRuns(pub JobKind);

impl Jobs {
    /// An agent that was killed left a rewind unfinished: only a clone mends that.
    pub fn after_interrupted_rewind() -> Self {
        Self {
            finished: Some(FinishedJob {
                kind: JobKind::Rewind,
                at: clock::now(),
                error: Some(Arc::from("interrupted by the end of the agent")),
                trouble: None,
                source: None,
            }),
            ..Self::default()
        }
    }

    /// Starts a job; the outcome of the one before is forgotten.
    pub fn start(
        &mut self,
        kind: JobKind,
        source: Option<MemberName>,
        work: Work,
    ) -> Result<(), JobRuns> {
        if let Some((running, _)) = &self.running {
            return Err(JobRuns(running.kind));
        }
        let job = RunningJob {
            kind,
            since: clock::now(),
            source,
        };
        if self.said.as_ref().is_none_or(|(said, _)| *said != kind) {
            tracing::info!(job = kind.name(), "job begins");
        }
        self.finished = None;
        self.running = Some((job, tokio::spawn(work)));
        Ok(())
    }

    /// Waits for the job in progress to end; for ever if there is none. Cancel-safe.
    pub async fn ended(&mut self) {
        let Some((_, task)) = &mut self.running else {
            return std::future::pending().await;
        };
        let outcome = task.await;
        self.finish(outcome);
    }

    /// Ends the job in progress and waits until its child process was signalled.
    pub async fn cancel(&mut self) {
        if let Some((_, task)) = &mut self.running {
            task.abort();
            let outcome = task.await;
            self.finish(outcome);
        }
    }

    /// What decisions may see.
    pub fn view(&self) -> JobView {
        JobView {
            running: self.running.as_ref().map(|(job, _)| job.clone()),
            finished: self.finished.clone(),
        }
    }

    /// The postmaster that the last job started ended before it was ready: the start has failed after all.
    pub fn start_failed(&mut self, why: String) {
        self.say_failed(JobKind::Start, &why);
        self.finished = Some(FinishedJob {
            kind: JobKind::Start,
            at: clock::now(),
            error: Some(Arc::from(why.as_str())),
            trouble: None,
            source: None,
        });
    }

    /// The instance answers: whatever failed before is over.
    pub fn start_succeeded(&mut self) {
        if self
            .said
            .as_ref()
            .is_some_and(|(said, _)| *said == JobKind::Start)
        {
            self.said = None;
        }
    }

    fn say_failed(&mut self, kind: JobKind, why: &str) {
        let new = (kind, why.to_owned());
        if self.said.as_ref() != Some(&new) {
            tracing::warn!(job = kind.name(), why, "job failed");
        }
        self.said = Some(new);
    }

    fn finish(&mut self, outcome: Result<Result<(), Failure>, JoinError>) {
        let Some((job, _)) = self.running.take() else {
            return;
        };
        let at = clock::now();
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(error) if error.is_cancelled() => Some(Failure::from("cancelled".to_owned())),
            Err(error) => Some(Failure::from(format!("defect: {error}"))),
        };
        let took = at.since(job.since);
        match &error {
            None => {
                tracing::info!(job = job.kind.name(), ?took, "job done");
                if self
                    .said
                    .as_ref()
                    .is_some_and(|(said, _)| *said != JobKind::Start)
                {
                    self.said = None;
                }
            }
            Some(failure) => self.say_failed(job.kind, &failure.why),
        }
        self.finished = Some(FinishedJob {
            kind: job.kind,
            at,
            trouble: error.as_ref().and_then(|failure| failure.trouble),
            error: error.map(|failure| Arc::from(failure.why)),
            source: job.source,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_job_at_a_time_and_its_outcome_is_kept_until_the_next() {
        let mut jobs = Jobs::default();
        let fails = || Box::pin(async { Err(Failure::from("no space".to_owned())) });
        jobs.start(JobKind::Clone, Some(MemberName::new("a")), fails())
            .unwrap();
        assert_eq!(
            jobs.start(JobKind::Stop, None, fails()),
            Err(JobRuns(JobKind::Clone))
        );
        jobs.ended().await;
        let finished = jobs.view().finished.unwrap();
        assert_eq!(finished.error.as_deref(), Some("no space"));
        let endless = Box::pin(std::future::pending());
        jobs.start(JobKind::Rewind, None, endless).unwrap();
        assert_eq!(jobs.view().finished, None);
        jobs.cancel().await;
        let view = jobs.view();
        assert_eq!(
            (view.running, view.finished.unwrap().kind),
            (None, JobKind::Rewind)
        );
    }
}
