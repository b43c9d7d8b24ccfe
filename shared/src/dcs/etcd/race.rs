//! One operation over several endpoints, within one budget.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::endpoint::{Endpoint, Endpoints};
use super::failure::Failure;
use crate::dcs::{DcsError, Operation, Txn};

/// The longest to wait before the next endpoint is asked too.
const MAX_HEDGE: Duration = Duration::from_millis(300);

/// The same for requests that write: sending them again needs more patience, since it costs certainty.
const MAX_WRITE_HEDGE: Duration = Duration::from_millis(500);

/// The longest that one attempt may take, where others are possible: a follower of a dead etcd leader keeps
/// a request for seconds before it says so.
const MAX_ATTEMPT: Duration = Duration::from_secs(2);

/// The pause after every endpoint failed, before the next round.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// One attempt at one endpoint.
pub(super) type Attempt<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;

/// An attempt under way, with the endpoint it belongs to.
type Running<T> = Pin<Box<dyn Future<Output = (usize, Result<T, Failure>)> + Send>>;

/// How an operation may be spread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    budget: Duration,
    hedge: Duration,
    attempt: Duration,
    is_repeatable: bool,
    is_write: bool,
}

/// An answer, and whether other copies of the request may have been executed.
pub(super) struct Finish<T> {
    pub(super) answer: T,
    pub(super) endpoint: String,
    pub(super) has_copies: bool,
}

impl Plan {
    /// For operations that may be executed any number of times.
    pub(super) fn repeatable(budget: Duration) -> Self {
        Self {
            budget,
            hedge: (budget / 6).min(MAX_HEDGE),
            attempt: (budget / 3).min(MAX_ATTEMPT),
            is_repeatable: true,
            is_write: false,
        }
    }

    /// For a transaction. One that writes may be sent again if its other branch does not write: the copies
    /// of a put or a delete do the same thing, and what the conditions still allow is what was asked for.
    pub(super) fn of_txn(budget: Duration, txn: &Txn) -> Self {
        let is_read_only = |steps: &[Operation]| {
            steps.iter().all(|step| match step {
                Operation::Get(_) => true,
                Operation::Put { .. } | Operation::Delete(_) => false,
            })
        };
        if is_read_only(&txn.then) && is_read_only(&txn.otherwise) {
            return Self::repeatable(budget);
        }
        let is_repeatable = txn.when.is_empty() || is_read_only(&txn.otherwise);
        Self {
            hedge: (budget / 4).min(MAX_WRITE_HEDGE),
            attempt: if is_repeatable {
                (budget / 3).min(MAX_ATTEMPT)
            } else {
                budget
            },
            is_repeatable,
            is_write: true,
            budget,
        }
    }
}

struct Race<'a, T> {
    endpoints: &'a Endpoints,
    plan: Plan,
    order: Vec<usize>,
    request: &'a (dyn Fn(Arc<Endpoint>) -> Attempt<T> + Sync),
    running: FuturesUnordered<Running<T>>,
    in_flight: Vec<usize>,
    started: usize,
    /// Attempts that may have been executed without an answer.
    lost: Option<(usize, String)>,
    /// The endpoints of another store, or of one without its memory, each with what it said.
    went_back: Vec<(usize, String)>,
    gone: u32,
    /// The last cause that an attempt named, else that it was not answered.
    last_failure: Option<String>,
}

/// Asks the endpoints in their order until one answers.
pub(super) async fn race<T: Send + 'static>(
    endpoints: &Endpoints,
    plan: Plan,
    request: &(dyn Fn(Arc<Endpoint>) -> Attempt<T> + Sync),
) -> Result<Finish<T>, DcsError> {
    let mut race = Race {
        endpoints,
        plan,
        order: endpoints.order(),
        request,
        running: FuturesUnordered::new(),
        in_flight: Vec::new(),
        started: 0,
        lost: None,
        went_back: Vec::new(),
        gone: 0,
        last_failure: None,
    };
    race.run().await
}

impl<T: Send + 'static> Race<'_, T> {
    async fn run(&mut self) -> Result<Finish<T>, DcsError> {
        let deadline = Instant::now() + self.plan.budget;
        self.start();
        let mut next_start = Instant::now() + self.plan.hedge;
        loop {
            let may_start = self.may_start();
            tokio::select! {
                biased;
                Some((index, result)) = self.running.next(), if !self.running.is_empty() => {
                    self.in_flight.retain(|other| *other != index);
                    match result {
                        Ok(answer) => return Ok(self.finish(index, answer)),
                        Err(failure) => next_start = Instant::now() + self.fail(index, failure)?,
                    }
                }
                () = sleep_until(deadline) => return Err(self.give_up()),
                () = sleep_until(next_start), if may_start => {
                    self.start();
                    next_start = Instant::now() + self.plan.hedge;
                }
            }
        }
    }

    /// Whether another attempt may be made now: a request that must not be repeated is never in two hands.
    fn may_start(&self) -> bool {
        self.in_flight.len() < self.endpoints.len()
            && (self.plan.is_repeatable || self.in_flight.is_empty())
    }

    fn start(&mut self) {
        let count = self.order.len();
        let next = (0..count)
            .filter_map(|n| self.order.get((self.started + n) % count).copied())
            .find(|index| !self.in_flight.contains(index));
        let Some(index) = next else {
            return;
        };
        self.started += 1;
        self.in_flight.push(index);
        let limit = self.plan.attempt;
        let attempt = (self.request)(self.endpoints.at(index).clone());
        self.running.push(Box::pin(async move {
            let result = timeout(limit, attempt).await;
            let silent = || Failure::Unknown(format!("no answer within {limit:?}"));
            (index, result.unwrap_or_else(|_| Err(silent())))
        }));
    }

    fn finish(&mut self, index: usize, answer: T) -> Finish<T> {
        let was_first = self.order.first() == Some(&index);
        self.endpoints.answered(index, was_first);
        for silent in &self.in_flight {
            // Whoever was asked before the winner and has not answered yet is slow at best.
            if !was_first {
                self.endpoints.slower(*silent);
            }
        }
        Finish {
            answer,
            endpoint: self.endpoints.at(index).url.clone(),
            has_copies: self.plan.is_write && (self.lost.is_some() || !self.in_flight.is_empty()),
        }
    }

    /// Takes a failure in; how long to wait before the next attempt, or the error that ends the race.
    fn fail(&mut self, index: usize, failure: Failure) -> Result<Duration, DcsError> {
        let round_pause = if self.started >= self.order.len() {
            ROUND_PAUSE
        } else {
            Duration::ZERO
        };
        match failure {
            Failure::NotExecuted(why) => {
                self.endpoints.failed(index, &why);
                self.last_failure = Some(why);
            }
            Failure::Unknown(why) => {
                self.endpoints.failed(index, &why);
                self.last_failure.get_or_insert_with(|| why.clone());
                if self.plan.is_write && !self.plan.is_repeatable {
                    return Err(self.unknown(index, why));
                }
                self.lost = Some((index, why));
            }
            Failure::LeaseGone(lease) => {
                self.gone += 1;
                if self.gone > 1 {
                    return Err(self.definite(index, DcsError::LeaseGone(lease)));
                }
                return Ok(ROUND_PAUSE);
            }
            Failure::WentBack(why) => {
                self.endpoints.failed(index, &why);
                if !self.went_back.iter().any(|(other, _)| *other == index) {
                    self.went_back.push((index, why.clone()));
                }
                self.last_failure = Some(why);
            }
            Failure::Final(error) => return Err(self.definite(index, error)),
        }
        match self.whole_store_went_back() {
            Some(why) => Err(self.definite(index, DcsError::WentBack(why))),
            None => Ok(round_pause),
        }
    }

    /// Why no endpoint is of the store that was known: each was asked, none is believed, and more than half of
    /// them say something else; the others are down.
    fn whole_store_went_back(&self) -> Option<String> {
        let is_round_over = self.started >= self.order.len() && self.in_flight.is_empty();
        let is_most = self.went_back.len() * 2 > self.endpoints.len();
        let is_all = self.went_back.len() == self.endpoints.len();
        let (_, why) = self.went_back.last()?;
        (is_all || is_most && is_round_over).then(|| why.clone())
    }

    /// A definite error of one copy says nothing of another whose answer never came.
    fn definite(&self, index: usize, error: DcsError) -> DcsError {
        if self.plan.is_write && (self.lost.is_some() || !self.in_flight.is_empty()) {
            return self.unknown(index, format!("{error}; an earlier copy was not answered"));
        }
        error
    }

    fn unknown(&self, index: usize, why: String) -> DcsError {
        DcsError::UnknownOutcome {
            endpoint: self.endpoints.at(index).url.clone(),
            why,
        }
    }

    fn give_up(&mut self) -> DcsError {
        let budget = self.plan.budget;
        if self.plan.is_write {
            if let Some((index, why)) = self.lost.take() {
                return self.unknown(index, why);
            }
            if let Some(index) = self.in_flight.first() {
                return self.unknown(*index, format!("no answer within {budget:?}"));
            }
        }
        let tried: Vec<_> = self
            .order
            .iter()
            .take(self.started)
            .map(|index| self.endpoints.at(*index).url.as_str())
            .collect();
        DcsError::Unreachable {
            tried: tried.join(", "),
            // Of a cause that is known more can be learned than of an attempt that was under way at the end.
            why: self
                .last_failure
                .take()
                .unwrap_or_else(|| format!("no answer within {budget:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::dcs::etcd::EtcdConfig;

    #[tokio::test]
    async fn a_cause_is_told_although_a_later_attempt_was_under_way_at_the_end() {
        let config = serde_json::json!({"hosts": "127.0.0.1:1"});
        let config: EtcdConfig = serde_json::from_value(config).unwrap();
        let endpoints = Endpoints::new(&config).unwrap();
        let has_failed = Arc::new(AtomicBool::new(false));
        let request = |_: Arc<Endpoint>| -> Attempt<()> {
            match has_failed.swap(true, Ordering::Relaxed) {
                false => Box::pin(async { Err(Failure::NotExecuted("a certificate".into())) }),
                true => Box::pin(std::future::pending()),
            }
        };
        let plan = Plan::repeatable(Duration::from_millis(200));
        let error = race(&endpoints, plan, &request).await.err().unwrap();
        assert!(error.to_string().ends_with("a certificate"), "{error}");
    }
}
