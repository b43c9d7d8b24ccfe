//! Events to successive [`Topology`] values: list, fold, watch from the next revision on, and list again
//! after any gap.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::belief::Belief;
use super::keys::Keys;
use super::{Dcs, DcsError, Entry, Header, Listing, Revision, Watch, WatchEvent};
use crate::cluster::store::Told;
use crate::cluster::topology::{Fact, FactKey};
use crate::cluster::{Moment, Topology};
use crate::service::clock;

mod fold;
mod judge;
mod kept;

use fold::{Built, change, fold_one, is_a_mere_report, keep_old};

/// The first pause after a failure; the first attempt after a watch that worked has none.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// How often a store that is not believed is looked at: it may have been accepted.
const DOUBT_PAUSE: Duration = Duration::from_millis(200);

/// How many callers may wait for a fresh read at a time; all of them share it.
const MAX_REFRESHES: usize = 64;

/// A value as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The text.
    pub text: Arc<str>,
    /// The mod revision of the key, for a compare-and-write.
    pub revision: Revision,
    /// The lease it hangs on, 0 if none.
    pub lease: i64,
}

/// What is known of the cluster.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The cluster at one revision. Empty until [`View::is_complete`].
    pub topology: Arc<Topology>,
    /// The texts of the keys whose parsed form is not everything: settings, history and changes.
    pub raw: Arc<BTreeMap<FactKey, Raw>>,
    /// The keys whose values could not be read, and why.
    pub unreadable: Arc<BTreeMap<FactKey, Arc<str>>>,
    /// Who answered the last listing.
    pub header: Header,
    /// When the last linearizable read that this includes was sent; `None` before the first.
    pub read_at: Option<Moment>,
    /// When the last question was sent that was answered: a listing, or a request for progress. The receipt
    /// of an event never counts, since an event may wait in a socket for as long as its reader is frozen.
    /// Progress proves that the watch lives, not that the view is the newest: only [`View::read_at`] does,
    /// for that moment.
    pub proven_at: Option<Moment>,
    /// Whether the cluster was listed at least once.
    pub is_complete: bool,
    /// Why the view cannot be kept up to date at present; `None` while the watch lives.
    pub last_error: Option<Arc<str>>,
    /// The store answers with less than is known, or is another one, and no grown generation vouches for it
    /// (`ha.md` 8). The topology is the one from before.
    pub went_back: Option<Arc<str>>,
    /// What that store shows, while it is not believed.
    pub doubted: Option<Arc<Doubted>>,
    /// What is known of the store that is believed.
    pub belief: Belief,
}

/// What a store shows that is not believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubted {
    /// Its keys.
    pub listing: Listing,
    /// The cluster by them.
    pub topology: Topology,
}

/// What an earlier process knew of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// Of the store.
    pub belief: Belief,
    /// The keys that matter, as they stood.
    pub entries: Vec<Entry>,
}

impl View {
    /// The `config` key as it stands, for a compare-and-write.
    pub fn raw_config(&self) -> Option<&Raw> {
        self.raw.get(&FactKey::Settings)
    }
}

/// Asks something of the follower.
#[derive(Clone, Debug)]
pub struct Refresh {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Read(Answer),
    Doubt {
        why: Arc<str>,
        told: Told,
        decided_at: u64,
    },
}

impl Refresh {
    /// A view that includes a read sent after this call.
    ///
    /// # Errors
    /// What the read met with; [`DcsError::Unreachable`] too when following has ended.
    pub async fn now(&self) -> Result<Arc<View>, DcsError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Read(answer)).await?;
        answered.await.map_err(|_| ended())?
    }

    /// Others know more than the store shows: it is not believed until its generation is higher than theirs. It
    /// was decided while `decided_at` was the highest generation known; of a store that showed a higher one
    /// meanwhile it says nothing, and is ignored.
    ///
    /// # Errors
    /// [`DcsError::Unreachable`] when following has ended.
    pub async fn doubt(&self, why: Arc<str>, told: Told, decided_at: u64) -> Result<(), DcsError> {
        self.send(Request::Doubt {
            why,
            told,
            decided_at,
        })
        .await
    }

    async fn send(&self, request: Request) -> Result<(), DcsError> {
        self.requests.send(request).await.map_err(|_| ended())
    }
}

fn ended() -> DcsError {
    DcsError::Unreachable {
        tried: "none".to_owned(),
        why: "the cluster is not followed any more".to_owned(),
    }
}

/// A followed cluster.
#[derive(Debug)]
pub struct Follow {
    /// The newest view. Receivers are woken when the topology or an error changes, not by mere signs of
    /// life.
    pub views: watch::Receiver<Arc<View>>,
    /// Forces a read.
    pub refresh: Refresh,
}

/// Follows a cluster in a task of its own, until every receiver of the views is dropped.
pub fn follow(dcs: Arc<dyn Dcs>, keys: Keys) -> Follow {
    begin(dcs, keys, Remembered::default(), false)
}

/// The same for who leads or may lead: it goes on with what an earlier process knew, and once the store is not
/// believed nothing more is asked of it through `dcs`.
pub fn follow_from(dcs: Arc<dyn Dcs>, keys: Keys, remembered: Remembered) -> Follow {
    begin(dcs, keys, remembered, true)
}

fn begin(dcs: Arc<dyn Dcs>, keys: Keys, remembered: Remembered, guards: bool) -> Follow {
    let (sender, views) = watch::channel(Arc::new(View::default()));
    let (requests, receiver) = mpsc::channel(MAX_REFRESHES);
    let mut follower = Follower {
        dcs,
        keys,
        views: sender.clone(),
        requests: receiver,
        waiting: Vec::new(),
        guards,
    };
    follower.remember(remembered);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = follower.run() => {}
        }
    });
    Follow {
        views,
        refresh: Refresh { requests },
    }
}

type Answer = oneshot::Sender<Result<Arc<View>, DcsError>>;
type Read = Pin<Box<dyn Future<Output = (Asked, Result<Listing, DcsError>)> + Send>>;

/// The beginning of a read.
#[derive(Clone, Debug)]
struct Asked {
    at: Moment,
    /// What was known then. An event of a later revision may come before the answer, on another stream or from
    /// another endpoint: the answer owes only what was known when it was asked for.
    belief: Belief,
    /// The cluster as it was believed then.
    known: Arc<Topology>,
}

/// What a believed listing did to the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// It shows something else than the view did.
    Changed,
    /// It shows the same.
    Unchanged,
    /// Events of later revisions came before it: it would take the view back.
    Overtaken,
}

struct Follower {
    dcs: Arc<dyn Dcs>,
    keys: Keys,
    views: watch::Sender<Arc<View>>,
    requests: mpsc::Receiver<Request>,
    /// Who waits for the read that is running.
    waiting: Vec<Answer>,
    /// Whether the store is asked for nothing else once it is not believed.
    guards: bool,
}

/// What a followed watch ended with.
enum Next {
    /// The listing moved on: watch from its revision.
    Rewatch,
    /// List again.
    List,
}

impl Follower {
    async fn run(&mut self) {
        let mut backoff = Duration::ZERO;
        loop {
            self.collect_requests();
            let (asked, listed) = self.read().await;
            let listed = match listed {
                Ok(listing) => self.take_listing(&asked, listing).map(|_| ()),
                Err(DcsError::WentBack(why)) => self.look_anew(&why).await,
                Err(error) => Err(error),
            };
            let result = match listed {
                Ok(()) => {
                    self.answer(Ok(self.view()));
                    self.watch().await
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => backoff = Duration::ZERO,
                Err(error) => {
                    self.note_error(&error);
                    self.answer(Err(error));
                    self.pause(backoff).await;
                    backoff = (backoff * 2).clamp(FIRST_BACKOFF, MAX_BACKOFF);
                }
            }
        }
    }

    /// Waits before the next attempt, unless somebody asks for something.
    async fn pause(&mut self, backoff: Duration) {
        let is_doubted = self.views.borrow().went_back.is_some();
        let pause = if is_doubted { DOUBT_PAUSE } else { backoff };
        tokio::select! {
            () = sleep(pause) => {}
            Some(request) = self.requests.recv() => self.take_request(request),
        }
    }

    fn take_request(&mut self, request: Request) {
        match request {
            Request::Read(answer) => self.waiting.push(answer),
            Request::Doubt {
                why,
                told,
                decided_at,
            } => {
                if self.views.borrow().belief.generation <= decided_at {
                    self.begin_doubt(&why, Some(told));
                }
            }
        }
    }

    fn read(&self) -> Read {
        let (dcs, prefix) = (self.dcs.clone(), self.keys.prefix().to_owned());
        let asked = self.asked();
        Box::pin(async move { (asked, dcs.read(&prefix).await) })
    }

    fn asked(&self) -> Asked {
        let view = self.views.borrow();
        Asked {
            at: clock::now(),
            belief: view.belief.clone(),
            known: view.topology.clone(),
        }
    }

    fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    fn collect_requests(&mut self) {
        while let Ok(request) = self.requests.try_recv() {
            self.take_request(request);
        }
    }

    fn answer(&mut self, result: Result<Arc<View>, DcsError>) {
        for waiting in self.waiting.drain(..) {
            // Whoever asked may have stopped waiting.
            let _ = waiting.send(result.clone());
        }
    }

    /// Watches until the watch ends; `Ok` after one that worked for a while.
    async fn watch(&mut self) -> Result<(), DcsError> {
        loop {
            let from = self.view().topology.revision + 1;
            let mut watch = self.dcs.watch(self.keys.prefix(), from).await?;
            self.note_alive(None);
            match self.follow_watch(&mut *watch).await? {
                Next::Rewatch => {}
                Next::List => return Ok(()),
            }
        }
    }

    async fn follow_watch(&mut self, watch: &mut dyn Watch) -> Result<Next, DcsError> {
        let mut read: Option<Read> = None;
        loop {
            let is_reading = read.is_some();
            let reading = async {
                match read.as_mut() {
                    Some(read) => read.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = watch.next() => match event {
                    // Whether it is still the cluster's store the whole of it tells.
                    Ok(WatchEvent::Changes { changes, .. }) if self.loses_identity(&changes) => {
                        return Ok(Next::List);
                    }
                    Ok(WatchEvent::Changes { revision, changes }) => self.fold(revision, changes),
                    // Another client of this process found it out; the whole of the store tells.
                    Ok(WatchEvent::Progress { .. }) if self.dcs.is_doubted() => {
                        return Ok(Next::List);
                    }
                    Ok(WatchEvent::Progress { asked, .. }) => self.note_alive(Some(asked)),
                    // A watch that lived is opened again at once; a second failure is paused after.
                    Err(error) => {
                        self.note_error(&error);
                        return Ok(Next::List);
                    }
                },
                (asked, listed) = reading => {
                    read = None;
                    match listed.and_then(|listing| self.take_listing(&asked, listing)) {
                        Ok(Taken::Unchanged) => self.answer(Ok(self.view())),
                        Ok(Taken::Changed) => {
                            self.answer(Ok(self.view()));
                            return Ok(Next::Rewatch);
                        }
                        // Read once more, beside no watch. Whoever waits goes on waiting.
                        Ok(Taken::Overtaken) => return Ok(Next::List),
                        Err(error @ DcsError::WentBack(_)) => {
                            self.answer(Err(error));
                            return Ok(Next::List);
                        }
                        Err(error) => self.answer(Err(error)),
                    }
                }
                Some(request) = self.requests.recv(), if !is_reading => {
                    self.take_request(request);
                    self.collect_requests();
                    if self.views.borrow().went_back.is_some() {
                        return Ok(Next::List);
                    }
                    read = Some(self.read());
                }
            }
        }
    }

    /// What an earlier process knew. Complete is the view only once the store was read.
    fn remember(&self, remembered: Remembered) {
        let Remembered { belief, entries } = remembered;
        let listing = Listing {
            header: belief.seen,
            entries,
        };
        let (topology, raw, _) = self.build(&Topology::default(), &listing);
        self.views.send_modify(|view| {
            let view = Arc::make_mut(view);
            view.topology = Arc::new(topology);
            view.raw = Arc::new(raw);
            view.went_back.clone_from(&belief.doubt);
            view.belief = belief;
        });
    }

    fn install(&self, sent: Moment, listing: &Listing) -> bool {
        let old = self.view();
        let (mut topology, raw, unreadable) = self.build(&old.topology, listing);
        let revision = topology.revision;
        topology.revision = old.topology.revision;
        let is_changed = !old.is_complete || topology != *old.topology || raw != *old.raw;
        topology.revision = revision;
        self.views.send_if_modified(|view| {
            let view = Arc::make_mut(view);
            let is_worth_waking = is_changed || view.went_back.is_some();
            if is_changed {
                view.topology = Arc::new(topology);
                view.raw = Arc::new(raw);
                view.unreadable = Arc::new(unreadable);
                view.is_complete = true;
            }
            view.header = listing.header;
            view.went_back = None;
            view.doubted = None;
            let topology = view.topology.clone();
            view.belief.take(listing.header, &topology);
            view.read_at = Some(sent);
            view.proven_at = view.proven_at.max(Some(sent));
            is_worth_waking
        });
        is_changed
    }

    fn build(&self, old: &Topology, listing: &Listing) -> Built {
        // A history that vanished is still the history of the timelines that exist.
        let mut topology = Topology {
            history: old.history.clone(),
            ..Topology::default()
        };
        let (mut raw, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for entry in &listing.entries {
            if let Some(key) = self.keys.parse(&entry.key) {
                let change = change(key, Some(entry), entry.mod_revision);
                if matches!(change.fact, Some(Fact::Unreadable(_))) {
                    keep_old(&mut topology, old, &change.key);
                }
                fold_one(
                    &mut topology,
                    &mut raw,
                    &mut unreadable,
                    &change,
                    Some(entry),
                );
            }
        }
        topology.revision = listing.header.revision;
        (topology, raw, unreadable)
    }

    fn fold(&self, revision: Revision, changes: Vec<(String, Option<Entry>)>) {
        self.views.send_if_modified(|view| {
            let view = Arc::make_mut(view);
            let topology = Arc::make_mut(&mut view.topology);
            let raw = Arc::make_mut(&mut view.raw);
            let mut are_reports = !changes.is_empty();
            let unreadable = Arc::make_mut(&mut view.unreadable);
            for (path, entry) in &changes {
                if let Some(key) = self.keys.parse(path) {
                    let at = entry.as_ref().map_or(topology.revision, |e| e.mod_revision);
                    let change = change(key, entry.as_ref(), at);
                    are_reports &= is_a_mere_report(topology, &change);
                    fold_one(topology, raw, unreadable, &change, entry.as_ref());
                } else {
                    are_reports = false;
                }
            }
            topology.revision = topology.revision.max(revision);
            let header = Header {
                revision,
                ..view.belief.seen
            };
            view.belief.take(header, topology);
            !are_reports
        });
    }

    /// The watch lives; the answer that shows it was asked for at `asked`.
    fn note_alive(&self, asked: Option<Moment>) {
        self.views.send_if_modified(|view| {
            let view = Arc::make_mut(view);
            view.proven_at = view.proven_at.max(asked);
            view.last_error.take().is_some()
        });
    }

    fn note_error(&self, error: &DcsError) {
        let text = error.to_string();
        let is_new = self.views.send_if_modified(|view| {
            let is_new = view.last_error.as_deref() != Some(text.as_str());
            if is_new {
                Arc::make_mut(view).last_error = Some(text.as_str().into());
            }
            is_new
        });
        if is_new {
            tracing::warn!(prefix = self.keys.prefix(), error = %text, "following the cluster");
        }
    }
}

#[cfg(test)]
mod tests;
