//! How long a client may say nothing, between two transactions or within one, and wait for an answer: PgBouncer's
//! `client_idle_timeout`, `idle_transaction_timeout` and `query_timeout`. Where none of them is set nothing is done here
//! and no clock is read.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::{Pooled, Turn};
use crate::config::pooling::PoolConfig;
use crate::error::SessionError;
use crate::protocol::exchange::Status;
use crate::session::carry_over::look::PinReason;

/// What a client is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between two transactions.
    Idle,
    /// In one, with nothing asked.
    InTransaction,
    /// An answer is to come.
    Asking,
    /// It copies data in, or replicates, and takes its time.
    Copying,
}

/// Since when a client is at what it is at.
#[derive(Debug)]
pub(super) struct Stay {
    phase: Phase,
    /// How many answers were complete when it began.
    answers: u64,
    since: Moment,
    timer: Pin<Box<Sleep>>,
    /// When the timer fires. That may be early: it is set anew only where it would be late.
    fires: Moment,
}

impl PoolConfig {
    fn limit(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Idle => self.client_idle_timeout,
            Phase::InTransaction => self.idle_transaction_timeout,
            Phase::Asking => self.query_timeout,
            Phase::Copying => Duration::ZERO,
        }
    }
}

impl Stay {
    fn begin(phase: Phase, answers: u64) -> Self {
        let now = clock::now();
        Self {
            phase,
            answers,
            since: now,
            timer: Box::pin(sleep_until(Instant::now())),
            fires: now,
        }
    }

    /// Whether it has lasted this long; if not, the task is woken when it has.
    fn poll(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.since + limit;
        loop {
            if self.fires > due {
                self.set(due);
            }
            match self.timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if clock::now() >= due => return Poll::Ready(()),
                Poll::Ready(()) => self.set(due),
            }
        }
    }

    fn set(&mut self, due: Moment) {
        let left = clock::now().until(due);
        self.timer.as_mut().reset(Instant::now() + left);
        self.fires = due;
    }
}

impl Pooled {
    fn phase(&self) -> Phase {
        match &self.server {
            Some(server) if server.exchange.is_copying() => Phase::Copying,
            Some(server) if server.exchange.is_owed_an_answer() => match self.pinned {
                Some(PinReason::Replication) => Phase::Copying,
                Some(_) | None => Phase::Asking,
            },
            Some(server) if !server.exchange.is_quiet() => Phase::InTransaction,
            Some(server) if server.exchange.status() != Status::Idle => Phase::InTransaction,
            None if self.stranded.is_some() => Phase::InTransaction,
            Some(_) | None => Phase::Idle,
        }
    }

    /// Whether the client's time is over; if not, the task is woken when it is.
    pub(super) fn poll_timeouts(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let pool = &self.door.terms.pool;
        let all = [Phase::Idle, Phase::InTransaction, Phase::Asking];
        if all.iter().all(|phase| pool.limit(*phase).is_zero()) {
            return Poll::Pending;
        }
        let (phase, answers) = (self.phase(), self.answers);
        let stay = match &mut self.stay {
            Some(stay) => stay,
            none => none.insert(Box::new(Stay::begin(phase, answers))),
        };
        if (stay.phase, stay.answers) != (phase, answers) {
            (stay.phase, stay.answers) = (phase, answers);
            stay.since = clock::now();
        }
        let limit = self.door.terms.pool.limit(phase);
        if limit.is_zero() || stay.poll(limit, cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Turn::Over(self.out_of_time(phase, limit)))
    }

    fn out_of_time(&self, phase: Phase, limit: Duration) -> SessionError {
        match (phase, &self.server) {
            (Phase::Idle, _) => SessionError::IdleTooLong(limit),
            (Phase::InTransaction, _) => SessionError::IdleInTransaction(limit),
            (Phase::Asking | Phase::Copying, None) => SessionError::QueryTooSlow {
                limit,
                has_outstanding: false,
            },
            (Phase::Asking | Phase::Copying, Some(server)) => {
                // Nobody waits for the answer any more: it need not be computed to its end.
                if server.cancel.is_none() {
                    let (way, key) = (server.way.clone(), server.key.clone());
                    crate::server::abandoned::cancel_abandoned(way, key);
                }
                SessionError::QueryTooSlow {
                    limit,
                    has_outstanding: server.exchange.fate().has_outstanding(),
                }
            }
        }
    }
}
