//! Keeps the leader lease alive and publishes until when this member may act as leader.
//!
//! The lease has a thread, a runtime and a connection to the store of its own, so that nothing the agent
//! does can starve a renewal. [`state`] is the arithmetic; [`keeper`] renews and executes the few changes
//! of authority, each one transaction; [`arming`] joins the deadline to the fence; [`rounds`] ask the other
//! members while the store does not answer, and [`promise`] is what they gave.

pub mod arming;
pub mod brake;
pub mod keeper;
pub mod promise;
pub mod rounds;
mod saved;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use trunkline_shared::cluster::{LeaderEpoch, MemberName, Moment};
use trunkline_shared::dcs::{DcsError, LeaseId, Revision};
use trunkline_shared::service::clock;

use crate::decide::observation::{LeaseView, Reached};
use crate::recreation::Recreation;
use brake::Brake;
use rounds::{List, Shown};
pub(crate) use saved::replace as replace_file;

/// How many commands may wait; the tick sends one at a time, so more is a defect.
const COMMANDS: usize = 8;

/// What the lease task publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The right to lead.
    pub view: LeaseView,
    /// Under which epoch the agent before led, while this one has not found out whether it still does.
    pub left_behind: Option<LeaderEpoch>,
    /// The session lease, on which the member record hangs; 0 while there is none.
    pub lease: LeaseId,
    /// What the store granted for it.
    pub ttl: Duration,
    /// When the last renewal that was answered was sent.
    pub renewed_at: Option<Moment>,
    /// Why the last renewal failed, while it does.
    pub trouble: Option<String>,
}

impl LeaseStatus {
    /// Nothing is held yet.
    pub fn new(ttl: Duration) -> Self {
        Self {
            view: LeaseView::NotHeld,
            left_behind: None,
            lease: 0,
            ttl,
            renewed_at: None,
            trouble: None,
        }
    }
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// A condition of the transaction did not hold. Look again.
    #[error("the DCS refused to {what}: {why}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// What was found instead.
        why: String,
    },
    /// Only the holder of the leader key may do this. Look again.
    #[error("cannot {0}: the leader key is not held")]
    NotHeld(&'static str),
    /// There is no session lease yet. Retry.
    #[error("cannot {0}: the DCS has granted no lease yet")]
    NoLease(&'static str),
    /// The store failed, or the outcome is not known.
    #[error(transparent)]
    Dcs(#[from] DcsError),
    /// The lease task has ended.
    #[error("the lease task has ended")]
    Ended,
}

/// A hand-over of the leader key to a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The candidate.
    pub to: MemberName,
    /// Its lease.
    pub lease: LeaseId,
    /// The revision of its record in which it said that it is ready.
    pub record_revision: i64,
    /// The `status` record to write along.
    pub status: String,
}

/// What decides who may lead, as it was seen: the revisions of the records, 0 where there was none. Whoever
/// slept through a promotion, is waited for by commits no more, or was taken out of the list of a leader that goes
/// on without the DCS, must not lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsSeen {
    /// Of the last claimed timeline.
    pub claim: Revision,
    /// Of the synchronous standbys.
    pub sync: Revision,
    /// Of the failsafe list.
    pub failsafe: Revision,
}

#[derive(Debug)]
enum Order {
    Acquire(AsSeen),
    ClaimBootstrap {
        seen: AsSeen,
        config: Option<String>,
    },
    Confirm(LeaseId),
    Reassert,
    Release {
        status: Option<String>,
        ends_bootstrap: bool,
    },
    HandOver(HandOver),
    SetTtl(Duration),
    PublishFailsafe {
        base: Revision,
        list: Arc<List>,
    },
    RemoveMember,
    Recreate {
        keys: Recreation,
        record: Option<String>,
    },
}

#[derive(Debug)]
struct Command {
    order: Order,
    answer: oneshot::Sender<Result<Revision, LeaseError>>,
}

/// The record this member wants to show; a new `version` writes it again even if the text is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct WantedRecord {
    version: u64,
    json: Option<String>,
}

/// What the agent holds of the lease task. The task ends when the last one is dropped. Each command is
/// answered with the revision from which on the store shows it, 0 if there is nothing to show.
#[derive(Clone, Debug)]
pub struct LeaseHandle {
    commands: mpsc::Sender<Command>,
    record: watch::Sender<WantedRecord>,
    failsafe: watch::Sender<Option<Shown>>,
    written: watch::Sender<Option<Reached>>,
    status: watch::Receiver<LeaseStatus>,
    brake: Arc<Brake>,
}

impl LeaseHandle {
    /// What is held now; `changed` wakes on every change but a mere renewal.
    pub fn status(&self) -> watch::Receiver<LeaseStatus> {
        self.status.clone()
    }

    /// Creates the leader key if it is absent and nothing has changed that decides who may lead.
    pub async fn acquire(&self, as_seen: AsSeen) -> Result<Revision, LeaseError> {
        self.send(Order::Acquire(as_seen)).await
    }

    /// The failsafe list as the DCS shows it: what rounds go by.
    pub fn show_failsafe(&self, shown: Shown) {
        self.failsafe.send_if_modified(|known| {
            // That time has passed since is no news.
            let at = |known: &Shown| Shown {
                at: shown.at,
                ..known.clone()
            };
            let is_news = known.as_ref().map(at).as_ref() != Some(&shown);
            *known = Some(shown);
            is_news
        });
    }

    /// How far the primary here has written: whoever is asked for its consent is told.
    pub fn show_reached(&self, reached: Option<Reached>) {
        self.written.send_replace(reached);
    }

    /// Writes this list in place of the one at `base`. Whoever is in it is asked from now on, too, whatever
    /// becomes of the write.
    pub async fn publish_failsafe(
        &self,
        base: Revision,
        list: Arc<List>,
    ) -> Result<Revision, LeaseError> {
        self.send(Order::PublishFailsafe { base, list }).await
    }

    /// Creates `initialize` (empty) and `leader` on the lease, and `config` if given, if the first two are
    /// absent; `seen` as for [`Self::acquire`].
    pub async fn claim_bootstrap(
        &self,
        seen: AsSeen,
        config: Option<String>,
    ) -> Result<Revision, LeaseError> {
        self.send(Order::ClaimBootstrap { seen, config }).await
    }

    /// The leader key names this member on `lease`: adopts that lease and proves it by a counted renewal.
    pub async fn confirm(&self, lease: LeaseId) -> Result<Revision, LeaseError> {
        self.send(Order::Confirm(lease)).await
    }

    /// Writes the own leader key again.
    pub async fn reassert(&self) -> Result<Revision, LeaseError> {
        self.send(Order::Reassert).await
    }

    /// Deletes the own leader key, and writes `status` if given. With `ends_bootstrap` the claim to make the
    /// cluster goes with it: `initialize`, if it is empty and on this lease.
    pub async fn release(
        &self,
        status: Option<String>,
        ends_bootstrap: bool,
    ) -> Result<Revision, LeaseError> {
        self.send(Order::Release {
            status,
            ends_bootstrap,
        })
        .await
    }

    /// Moves the own leader key to a candidate.
    pub async fn hand_over(&self, hand_over: HandOver) -> Result<Revision, LeaseError> {
        self.send(Order::HandOver(hand_over)).await
    }

    /// Makes the cluster's keys anew, the leader's on a new lease among them, in a store that is not believed.
    pub async fn recreate(&self, keys: Recreation) -> Result<Revision, LeaseError> {
        let record = self.record.borrow().json.clone();
        self.send(Order::Recreate { keys, record }).await
    }

    /// The length of the lease changed.
    pub async fn set_ttl(&self, ttl: Duration) -> Result<Revision, LeaseError> {
        self.send(Order::SetTtl(ttl)).await
    }

    /// Shows this member record from now on; it is written again whenever the lease changes.
    pub fn put_member(&self, json: String) {
        self.record.send_modify(|wanted| {
            wanted.version += 1;
            wanted.json = Some(json);
        });
    }

    /// Renewals cease for a ttl from now: the lease ends, and whoever can takes over.
    pub fn let_lapse(&self, ttl: Duration) {
        self.brake.pull(clock::now() + ttl);
    }

    /// Whether renewals cease because no fence can be had.
    pub fn is_without_fence(&self, is_without: bool) {
        self.brake.is_without_fence(is_without);
    }

    /// A turn of the loop begins. One that does not end is found by the lease task.
    pub fn turn_begins(&self) {
        self.brake.turn_begins(clock::now());
    }

    /// The turn has ended.
    pub fn turn_ends(&self) {
        self.brake.turn_ends();
    }

    /// Deletes the member record if it is still the one written last.
    pub async fn remove_member(&self) -> Result<Revision, LeaseError> {
        self.record.send_modify(|wanted| wanted.json = None);
        self.send(Order::RemoveMember).await
    }

    async fn send(&self, order: Order) -> Result<Revision, LeaseError> {
        let (answer, outcome) = oneshot::channel();
        self.commands
            .send(Command { order, answer })
            .await
            .map_err(|_| LeaseError::Ended)?;
        outcome.await.map_err(|_| LeaseError::Ended)?
    }
}
