//! A server in somebody's hands, and a place in the queue for one.

use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::alone::Home;
use super::local::Outcome;
use super::running::Begun;
use super::state::{ServerId, WaiterId};
use super::{NoServer, POOLS, PoolId};
use crate::server::{Cancelled, Server};

/// A server in somebody's hands. One that is dropped is closed; [`Lease::checkin`] gives it back.
pub struct Lease {
    /// Present until it is given back.
    pub(super) server: Option<Box<Server>>,
    pub(super) home: Home,
    /// Whether a planned change of leader waits for it, and since when.
    pub(super) begun: Option<Begun>,
    /// When it was taken: nobody who keeps times needs to read the clock again.
    pub since: Moment,
}

impl Lease {
    /// The client keeps it for as long as it stays: no planned change of leader waits for that.
    pub fn keep(&mut self) {
        if let (Some((pool, _)), Some(begun)) = (self.home.pool(), self.begun.take()) {
            POOLS.with_borrow_mut(|pools| pools.end(pool, begun));
        }
    }

    /// Gives it back. It must stand between two transactions with nothing outstanding and nothing unread. One that
    /// is its client's alone is closed.
    pub fn checkin(self) {
        self.checkin_at(clock::now());
    }

    /// The same by a clock that was read a moment ago.
    pub fn checkin_at(mut self, now: Moment) {
        let Some((pool, id)) = self.home.pool() else {
            return;
        };
        let Some(mut server) = self.server.take() else {
            return;
        };
        match server.cancel.take() {
            None => checkin(pool, id, (self.begun, now), server),
            Some(cancel) => {
                let begun = self.begun;
                tokio::spawn(async move {
                    // One that may still come must not reach the next client.
                    server.is_spoiled |= !matches!(cancel.await, Ok(Cancelled::Over));
                    checkin(pool, id, (begun, clock::now()), server);
                });
            }
        }
    }
}

fn checkin(pool: PoolId, id: ServerId, (begun, now): (Option<Begun>, Moment), server: Box<Server>) {
    POOLS.with_borrow_mut(|pools| pools.checkin(pool, id, (begun, now), server));
}

impl Deref for Lease {
    type Target = Server;

    #[expect(
        clippy::expect_used,
        reason = "only checkin and drop take it out, and both consume"
    )]
    fn deref(&self) -> &Server {
        self.server.as_ref().expect("a lease holds its server")
    }
}

impl DerefMut for Lease {
    #[expect(
        clippy::expect_used,
        reason = "only checkin and drop take it out, and both consume"
    )]
    fn deref_mut(&mut self) -> &mut Server {
        self.server.as_mut().expect("a lease holds its server")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.close();
            let begun = self.begun;
            let Some((pool, id)) = self.home.pool() else {
                return;
            };
            // While the thread ends there are no pools any more.
            let _ = POOLS.try_with(|pools| {
                if let Ok(mut pools) = pools.try_borrow_mut() {
                    pools.lost(pool, id, begun);
                }
            });
        }
    }
}

/// A place in a queue.
pub struct Ticket {
    pub(super) pool: PoolId,
    pub(super) waiter: WaiterId,
}

impl Ticket {
    /// Waits for the server.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<Result<Lease, NoServer>> {
        POOLS.with_borrow_mut(|pools| {
            let Some(pool) = pools.get(self.pool) else {
                return Poll::Ready(Err(NoServer::PoolClosed));
            };
            match pool.waiters.remove(&self.waiter) {
                Some(Outcome::Granted(lease)) => Poll::Ready(Ok(lease)),
                Some(Outcome::Refused(why)) => Poll::Ready(Err(why)),
                Some(Outcome::Waiting(_)) => {
                    let waiting = Outcome::Waiting(cx.waker().clone());
                    pool.waiters.insert(self.waiter, waiting);
                    Poll::Pending
                }
                None => Poll::Ready(Err(NoServer::PoolClosed)),
            }
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let unused = POOLS.try_with(|pools| {
            let mut pools = pools.try_borrow_mut().ok()?;
            let pool = pools.get(self.pool)?;
            pool.state.leave(self.waiter);
            pool.waiters.remove(&self.waiter)
        });
        // Granted and not fetched: the next one's. Not while the pools are borrowed.
        if let Ok(Some(Outcome::Granted(lease))) = unused {
            lease.checkin();
        }
    }
}
