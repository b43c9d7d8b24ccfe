//! The lease task: a thread with a runtime of its own that renews, and executes changes of authority.
//!
//! A renewal and a command may be in flight together. Each command that changed the key raises `changes`;
//! a renewal that began before does not count, because what it read may be what the command undid.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{LeaderEpoch, MemberName, Moment};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::{Committed, Dcs, DcsError, Header, LeaseId, Operation, Revision, Txn};
use trunkline_shared::service::clock;

use super::arming::Arming;
use super::brake::Brake;
use super::rounds::{Rounds, SavedAuthority, Shown, Speaker, Standing};
use super::saved::SavedLease;
use super::state::{KeyCheck, LeaseState, Renewal};
use super::{Command, LeaseHandle, LeaseStatus, WantedRecord};
use crate::decide::observation::{Held, Reached};

mod consent;
mod length;
mod orders;
mod record;
mod recreate;
mod word;

/// The pause after a renewal or a write of the member record that failed.
const RETRY: Duration = Duration::from_millis(200);

/// What the lease task needs to know.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// The keys of the cluster.
    pub keys: Keys,
    /// This member.
    pub me: MemberName,
    /// The length of lease to ask for, until `set_ttl`.
    pub ttl: Duration,
    /// Where the lease's number is kept: `<run_dir>/lease`.
    pub saved: std::path::PathBuf,
    /// Where is kept what an agent that is restarted needs to go on by rounds: `<run_dir>/authority`.
    pub authority: std::path::PathBuf,
    /// How this member asks the others.
    pub speaker: Speaker,
    /// What the program before, whose process this is, knew of the key: its epoch, and that nothing is under way.
    pub settled: Option<LeaderEpoch>,
    /// What is left unused of a lease for the watchdog: `WatchdogConfig::reserve`.
    pub reserve: Duration,
}

/// Starts the lease task. `connect` is called inside its runtime, so that its connections are its own; if it
/// gives none, the task ends.
pub fn spawn<F>(config: KeeperConfig, arming: Arc<Arming>, connect: F) -> io::Result<LeaseHandle>
where
    F: FnOnce() -> Option<Arc<dyn Dcs>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (commands, orders) = mpsc::channel(super::COMMANDS);
    let (record, wanted) = watch::channel(WantedRecord::default());
    let (failsafe, shown) = watch::channel(None);
    let (written, reached) = watch::channel(None);
    let (publish, status) = watch::channel(LeaseStatus::new(config.ttl));
    let brake = Arc::new(Brake::default());
    let held_by = brake.clone();
    thread::Builder::new()
        .name("lease".to_owned())
        .spawn(move || {
            let keeper = async move {
                if let Some(dcs) = connect() {
                    let keeper = Rc::new(Keeper::new(
                        config,
                        arming,
                        dcs,
                        publish,
                        (shown, reached),
                        held_by,
                    ));
                    keeper.run(orders, wanted).await;
                }
            };
            LocalSet::new().block_on(&runtime, keeper);
        })?;
    Ok(LeaseHandle {
        commands,
        record,
        failsafe,
        written,
        status,
        brake,
    })
}

/// The session lease.
#[derive(Clone, Copy, Debug)]
struct Session {
    lease: LeaseId,
    /// What was asked for; the store may grant more.
    asked: Duration,
    /// What the last answer granted.
    ttl: Duration,
    /// Before the last answered keep-alive was sent.
    sent: Moment,
    /// The raft term of its answer.
    term: u64,
}

struct Inner {
    state: LeaseState,
    session: Option<Session>,
    asked: Duration,
    /// A lease that the leader key may be moved to at any time: that was asked for, the outcome is unknown.
    moving: Option<Session>,
    changes: u64,
    /// The lease and revision of the member record written last.
    record: Option<(LeaseId, i64)>,
    trouble: Option<String>,
    /// What goes on beside the renewals while they fail.
    rounds: Rounds,
    /// Why the last round brought no consent, said once.
    refused: Option<String>,
    /// Why nothing is renewed, said once.
    held_back: Option<&'static str>,
}

struct Keeper {
    keys: Keys,
    me: MemberName,
    leader_key: String,
    saved: SavedLease,
    authority: SavedAuthority,
    speaker: Speaker,
    arming: Arc<Arming>,
    brake: Arc<Brake>,
    dcs: Arc<dyn Dcs>,
    publish: watch::Sender<LeaseStatus>,
    /// The failsafe list as the loop read it last.
    shown: watch::Receiver<Option<Shown>>,
    /// How far its primary has written, as the loop saw it last.
    reached: watch::Receiver<Option<Reached>>,
    renew_now: Notify,
    record_now: Notify,
    round_now: Notify,
    word_now: Notify,
    /// Held by whoever may replace the session lease.
    alone: Mutex<()>,
    inner: RefCell<Inner>,
}

/// What the loop has seen: the failsafe list, and how far its primary has written.
type Seen = (
    watch::Receiver<Option<Shown>>,
    watch::Receiver<Option<Reached>>,
);

/// What a linearizable read of the leader key found.
struct Looked {
    found: KeyCheck,
    header: Header,
    /// The generation, and the key's revision; 0 where there is no key.
    generation: u64,
    revision: Revision,
    /// Whom the key names, on which lease.
    holder: Option<(String, LeaseId)>,
}

impl Keeper {
    fn new(
        config: KeeperConfig,
        arming: Arc<Arming>,
        dcs: Arc<dyn Dcs>,
        publish: watch::Sender<LeaseStatus>,
        (shown, reached): Seen,
        brake: Arc<Brake>,
    ) -> Self {
        let leader_key = config.keys.path(&FactKey::Leader);
        let authority = SavedAuthority::new(&config.authority, config.keys.prefix());
        let standing = Standing {
            me: &config.me,
            ttl: config.ttl,
            now: clock::now(),
            armed_until: arming.deadline(),
        };
        let rounds = Rounds::begin(authority.load(), standing);
        // The cluster's length of lease, before its settings can be read.
        let asked = rounds.found_ttl().unwrap_or(config.ttl);
        Self {
            saved: SavedLease::new(config.saved, config.keys.prefix()),
            authority,
            speaker: config.speaker,
            keys: config.keys,
            me: config.me,
            leader_key,
            arming,
            brake,
            dcs,
            publish,
            shown,
            reached,
            renew_now: Notify::new(),
            record_now: Notify::new(),
            round_now: Notify::new(),
            word_now: Notify::new(),
            alone: Mutex::new(()),
            inner: RefCell::new(Inner {
                state: LeaseState::of_successor(config.settled).reserving(config.reserve),
                session: None,
                asked,
                moving: None,
                changes: 0,
                record: None,
                trouble: None,
                rounds,
                refused: None,
                held_back: None,
            }),
        }
    }

    async fn run(
        self: Rc<Self>,
        orders: mpsc::Receiver<Command>,
        wanted: watch::Receiver<WantedRecord>,
    ) {
        // What the agent before left is shown before the store is asked, which may not answer.
        self.publish();
        let mut tasks = JoinSet::new();
        tasks.spawn_local(self.clone().consent_loop());
        tasks.spawn_local(self.clone().word_loop(wanted.clone()));
        if let Some(lease) = self.saved.load() {
            self.take_up(lease).await;
        }
        tasks.spawn_local(self.clone().renew_loop());
        tasks.spawn_local(self.clone().record_loop(wanted));
        // Ends when the last handle is dropped; the loops end with it.
        self.command_loop(orders).await;
        tasks.abort_all();
    }

    async fn command_loop(&self, mut orders: mpsc::Receiver<Command>) {
        while let Some(Command { order, answer }) = orders.recv().await {
            // Whoever gave up waiting decides anew from what it sees next; an order that was not begun would
            // be executed in a situation it was not made for.
            if answer.is_closed() {
                continue;
            }
            let outcome = self.execute(order).await;
            self.publish();
            // The caller may have given up meanwhile; what was done is in the published state.
            let _ = answer.send(outcome);
        }
    }

    async fn renew_loop(self: Rc<Self>) {
        loop {
            let began = clock::now();
            self.inner.borrow_mut().state.lapsed(began);
            if self.is_held_back() {
                self.publish();
                tokio::time::sleep(RETRY.min(self.interval())).await;
                continue;
            }
            let outcome = self.renew().await;
            if outcome.is_err() {
                self.store_is_silent();
                if self.dcs.is_doubted() {
                    self.word_now.notify_one();
                }
            }
            let pause = match &outcome {
                Ok(()) => {
                    let ttl = self.shorter_ttl();
                    self.inner.borrow().state.rest(began, clock::now(), ttl)
                }
                Err(_) => RETRY.min(self.interval()),
            };
            if outcome.is_ok() && self.inner.borrow().trouble.is_some() {
                // The store may have been accepted anew meanwhile, without this member's record.
                self.record_now.notify_one();
            }
            self.note(outcome.err());
            self.publish();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.renew_now.notified() => {}
            }
        }
    }

    /// Whether the lease is to end although the store would renew it; said once.
    pub(super) fn is_held_back(&self) -> bool {
        let held_back = self.brake.why(clock::now(), self.shorter_ttl());
        let mut inner = self.inner.borrow_mut();
        if let Some(why) = held_back.filter(|_| inner.held_back != held_back) {
            tracing::error!(
                why,
                "the lease is renewed no more, so that another member takes over"
            );
        }
        inner.held_back = held_back;
        held_back.is_some()
    }

    /// Remembers the trouble and says so once, when it begins and when it ends.
    fn note(&self, error: Option<DcsError>) {
        let mut inner = self.inner.borrow_mut();
        match (&inner.trouble, &error) {
            (None, Some(error)) => {
                tracing::warn!(%error, "the lease could not be renewed; retrying")
            }
            (Some(_), None) => tracing::info!("the lease is renewed again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        inner.trouble = error.map(|e| e.to_string());
    }

    fn held(&self) -> Option<Held> {
        self.inner.borrow().state.held()
    }

    /// Goes on with the lease of the agent before, if it still lives.
    async fn take_up(&self, lease: LeaseId) {
        let sent = clock::now();
        let answer = self.limited(self.dcs.keep_alive(lease)).await;
        if let Err(DcsError::LeaseGone(_)) = answer {
            return;
        }
        tracing::info!(
            lease = format!("{lease:x}"),
            "going on with the lease of the agent before"
        );
        let asked = self.inner.borrow().asked;
        let session = match answer {
            Ok(answer) => Session {
                lease,
                asked,
                ttl: answer.ttl,
                sent,
                term: answer.header.term,
            },
            // The key may hang on it still: another lease would make it look like somebody else's.
            Err(error) => {
                tracing::warn!(%error, "the DCS does not answer yet");
                self.store_is_silent();
                Session {
                    lease,
                    asked,
                    ttl: asked,
                    sent: Moment::default(),
                    term: 0,
                }
            }
        };
        self.inner.borrow_mut().session = Some(session);
    }

    /// One renewal at a time: two that find the lease gone would take two new ones, and a key taken on the
    /// first would be lost with the second.
    async fn renew(&self) -> Result<(), DcsError> {
        let _alone = self.alone.lock().await;
        let Some(session) = self.session() else {
            return self.grant().await;
        };
        let changes = self.inner.borrow().changes;
        let sent = clock::now();
        let answer = match self.limited(self.dcs.keep_alive(session.lease)).await {
            Ok(answer) => answer,
            Err(DcsError::LeaseGone(_)) => return self.replace_gone(session.lease).await,
            Err(error) => return Err(error),
        };
        {
            let mut inner = self.inner.borrow_mut();
            if let Some(current) = inner.session.as_mut().filter(|s| s.lease == session.lease) {
                current.sent = sent;
                current.ttl = answer.ttl;
                current.term = answer.header.term;
            }
        }
        if self.inner.borrow().state.held().is_some() {
            self.renew_moving().await?;
            self.check(session.lease, changes).await?;
        } else {
            self.inner.borrow_mut().rounds.store_spoke(sent, true);
        }
        Ok(())
    }

    /// The second half of a renewal: reads the key and counts, unless a command came between.
    async fn check(&self, lease: LeaseId, changes: u64) -> Result<(), DcsError> {
        let looked = self.limited(self.look(lease)).await?;
        if looked.found == KeyCheck::Other && self.has_moved(&looked) {
            return Ok(());
        }
        let mut inner = self.inner.borrow_mut();
        let Some(session) = inner.session.filter(|s| s.lease == lease) else {
            return Ok(());
        };
        let moving = inner.moving;
        let is_of_one_term = moving.is_none_or(|m| m.term == looked.header.term);
        let may_move_on = is_of_one_term && self.arming.may_move_on();
        // Only the yes is held back: somebody else's key is a definite no whatever the fence does.
        let is_yes = matches!(looked.found, KeyCheck::Mine(_));
        if inner.changes != changes || is_yes && !may_move_on {
            return Ok(());
        }
        inner.state.renewed(Renewal {
            sent: session.sent,
            ttl: session.ttl,
            keep_alive_term: session.term,
            check_term: looked.header.term,
            found: looked.found,
        });
        if let Some(moving) = moving {
            let most = inner.state.deadline(moving.sent, moving.ttl);
            inner.state.capped(most);
        }
        let is_definite = is_of_one_term && looked.header.term == session.term
            || matches!(looked.found, KeyCheck::Missing | KeyCheck::Other);
        inner.rounds.store_spoke(session.sent, is_definite);
        let held = inner.state.held();
        drop(inner);
        if let Some(held) = held {
            self.move_fence(held.deadline);
        }
        Ok(())
    }

    fn move_fence(&self, deadline: Moment) {
        if let Err(error) = self.arming.keep(deadline) {
            tracing::error!(%error, "the fence's deadline could not be written; it will fire");
        }
    }

    /// A linearizable read of the leader key.
    async fn look(&self, lease: LeaseId) -> Result<Looked, DcsError> {
        let txn = Txn {
            then: self.reads(),
            ..Txn::default()
        };
        let committed = self.dcs.commit(&txn).await?;
        Ok(self.looked(&committed, lease))
    }

    fn reads(&self) -> Vec<Operation> {
        vec![
            Operation::Get(self.leader_key.clone()),
            Operation::Get(self.keys.path(&FactKey::Generation)),
        ]
    }

    fn looked(&self, committed: &Committed, lease: LeaseId) -> Looked {
        let leader = committed.entries.iter().find(|e| e.key == self.leader_key);
        let generation = self.generation(committed);
        let found = match leader {
            None => KeyCheck::Missing,
            Some(e) if e.value == self.me.as_str().as_bytes() && e.lease == lease => {
                KeyCheck::Mine(LeaderEpoch {
                    generation,
                    revision: e.mod_revision,
                })
            }
            Some(_) => KeyCheck::Other,
        };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Looked {
            found,
            header: committed.header,
            generation,
            revision: leader.map_or(0, |e| e.mod_revision),
            holder: leader.map(|e| (text(&e.value), e.lease)),
        }
    }

    fn generation(&self, committed: &Committed) -> u64 {
        let path = self.keys.path(&FactKey::Generation);
        let entry = committed.entries.iter().find(|e| e.key == path);
        entry
            .and_then(|e| std::str::from_utf8(&e.value).ok()?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// The lease ended in the store. The leader key, if it was held, went with it.
    async fn replace_gone(&self, lease: LeaseId) -> Result<(), DcsError> {
        if self.session().is_some_and(|s| s.lease != lease) {
            return Ok(());
        }
        // A store without its memory knows no lease at all, and nothing may be asked of it.
        self.limited(self.look(lease)).await?;
        tracing::warn!(
            lease = format!("{lease:x}"),
            "the lease ended in the DCS; taking a new one"
        );
        self.inner.borrow_mut().session = None;
        self.grant().await?;
        let (changes, session) = (self.inner.borrow().changes, self.session());
        match session {
            Some(session) if self.inner.borrow().state.held().is_some() => {
                self.check(session.lease, changes).await
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn grant(&self) -> Result<(), DcsError> {
        let asked = self.inner.borrow().asked;
        let sent = clock::now();
        let answer = self.limited(self.dcs.grant(asked)).await?;
        if let Err(error) = self.saved.store(answer.lease) {
            tracing::warn!(%error, "the lease's number could not be kept; a restart takes a new lease");
        }
        self.inner.borrow_mut().session = Some(Session {
            lease: answer.lease,
            asked,
            ttl: answer.ttl,
            sent,
            term: answer.header.term,
        });
        self.publish();
        self.record_now.notify_one();
        Ok(())
    }

    async fn limited<T>(
        &self,
        request: impl Future<Output = Result<T, DcsError>>,
    ) -> Result<T, DcsError> {
        let limit = self.limit();
        timeout(limit, request).await.unwrap_or_else(|_| {
            Err(DcsError::UnknownOutcome {
                endpoint: "all".to_owned(),
                why: format!("no answer within {limit:?}"),
            })
        })
    }

    fn session(&self) -> Option<Session> {
        self.inner.borrow().session
    }

    /// Publishes; wakes the readers only if more changed than the time of the last renewal. Nobody sees a
    /// leadership while the file for a restart still speaks of an earlier one.
    fn publish(&self) {
        self.keep_authority_or_say();
        let inner = self.inner.borrow();
        let new = LeaseStatus {
            view: inner.state.view().clone(),
            left_behind: inner.rounds.left_behind(inner.state.view()),
            lease: inner.session.map_or(0, |s| s.lease),
            ttl: inner.session.map_or(inner.asked, |s| s.ttl),
            renewed_at: inner.session.map(|s| s.sent),
            trouble: inner.trouble.clone(),
        };
        self.publish.send_if_modified(|old| {
            let is_news = old.lease != new.lease
                || old.trouble.is_some() != new.trouble.is_some()
                || without_deadline(old) != without_deadline(&new);
            *old = new;
            is_news
        });
    }
}

/// What of a status is news beside the lease's number: everything but the deadline's advance.
fn without_deadline(status: &LeaseStatus) -> Option<(LeaderEpoch, bool, bool, bool)> {
    use crate::decide::observation::LeaseView;
    match &status.view {
        LeaseView::Held(held) => Some((
            held.epoch,
            held.is_key_missing,
            held.has_unresolved_hand_over,
            held.is_by_failsafe,
        )),
        LeaseView::NotHeld => None,
        // No epoch is negative, so this differs from every held lease and from none.
        LeaseView::Lost => Some((
            LeaderEpoch {
                generation: 0,
                revision: -1,
            },
            false,
            false,
            false,
        )),
    }
}

#[cfg(test)]
mod tests;
