//! Events to successive [`Topology`] values: list, fold, watch from the next revision on, and list again
//! after any gap.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::keys::Keys;
use super::{Dcs, DcsError, Entry, Header, Listing, Revision, Watch, WatchEvent};
use crate::cluster::topology::{Fact, FactKey};
use crate::cluster::{Moment, Topology};
use crate::service::clock;

mod fold;

use fold::{Built, change, fold_one, keep_old};

/// The first pause after a failure; the first attempt after a watch that worked has none.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

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
    /// The texts of the keys whose parsed form is not everything: settings, history, changes and routers.
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
}

impl View {
    /// The `config` key as it stands, for a compare-and-write.
    pub fn raw_config(&self) -> Option<&Raw> {
        self.raw.get(&FactKey::Settings)
    }

    /// The registered routers: `<name>/<instance>` and the record.
    pub fn routers(&self) -> impl Iterator<Item = (&Arc<str>, &Raw)> {
        self.raw.iter().filter_map(|(key, raw)| match key {
            FactKey::Router(name) => Some((name, raw)),
            _ => None,
        })
    }
}

/// Asks for a linearizable read now.
#[derive(Clone, Debug)]
pub struct Refresh {
    requests: mpsc::Sender<oneshot::Sender<Result<Arc<View>, DcsError>>>,
}

impl Refresh {
    /// A view that includes a read sent after this call.
    ///
    /// # Errors
    /// What the read met with; [`DcsError::Unreachable`] too when following has ended.
    pub async fn now(&self) -> Result<Arc<View>, DcsError> {
        let (answer, answered) = oneshot::channel();
        let ended = || DcsError::Unreachable {
            tried: "none".to_owned(),
            why: "the cluster is not followed any more".to_owned(),
        };
        self.requests.send(answer).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
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
    let (sender, views) = watch::channel(Arc::new(View::default()));
    let (requests, receiver) = mpsc::channel(MAX_REFRESHES);
    let mut follower = Follower {
        dcs,
        keys,
        views: sender.clone(),
        requests: receiver,
        waiting: Vec::new(),
    };
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
type Read = Pin<Box<dyn Future<Output = (Moment, Result<Listing, DcsError>)> + Send>>;

struct Follower {
    dcs: Arc<dyn Dcs>,
    keys: Keys,
    views: watch::Sender<Arc<View>>,
    requests: mpsc::Receiver<Answer>,
    /// Who waits for the read that is running.
    waiting: Vec<Answer>,
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
            let (sent, listed) = self.read().await;
            let listed = match listed {
                Ok(listing) => self.take_listing(sent, listing).await.map(|_| ()),
                Err(DcsError::WentBack(why)) => self.take_went_back(why).await,
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

    /// Waits before the next attempt, unless somebody asks for a read.
    async fn pause(&mut self, backoff: Duration) {
        tokio::select! {
            () = sleep(backoff) => {}
            Some(request) = self.requests.recv() => self.waiting.push(request),
        }
    }

    fn read(&self) -> Read {
        let (dcs, prefix) = (self.dcs.clone(), self.keys.prefix().to_owned());
        Box::pin(async move {
            let sent = clock::now();
            (sent, dcs.read(&prefix).await)
        })
    }

    fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    fn collect_requests(&mut self) {
        while let Ok(request) = self.requests.try_recv() {
            self.waiting.push(request);
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
                    Ok(WatchEvent::Changes { revision, changes }) => self.fold(revision, changes),
                    Ok(WatchEvent::Progress { asked, .. }) => self.note_alive(Some(asked)),
                    // A watch that lived is opened again at once; a second failure is paused after.
                    Err(error) => {
                        self.note_error(&error);
                        return Ok(Next::List);
                    }
                },
                (sent, listed) = reading => {
                    read = None;
                    let is_changed = match listed {
                        Ok(listing) => self.take_listing(sent, listing).await,
                        Err(error) => Err(error),
                    };
                    match is_changed {
                        Ok(is_changed) => {
                            self.answer(Ok(self.view()));
                            if is_changed {
                                return Ok(Next::Rewatch);
                            }
                        }
                        Err(error @ DcsError::WentBack(_)) => {
                            self.answer(Err(error));
                            return Ok(Next::List);
                        }
                        Err(error) => self.answer(Err(error)),
                    }
                }
                Some(request) = self.requests.recv(), if !is_reading => {
                    self.waiting.push(request);
                    self.collect_requests();
                    read = Some(self.read());
                }
            }
        }
    }

    /// Makes the view from a listing; whether it shows anything else than the view before.
    async fn take_listing(&self, sent: Moment, listing: Listing) -> Result<bool, DcsError> {
        let old = self.view();
        let is_other = old.header.cluster_id != listing.header.cluster_id;
        if old.is_complete && (is_other || listing.header.revision < old.topology.revision) {
            self.went_back(
                format!(
                    "cluster {:x} at revision {} answers, but {:x} at {} was seen",
                    listing.header.cluster_id,
                    listing.header.revision,
                    old.header.cluster_id,
                    old.topology.revision
                ),
                sent,
                listing,
            )?;
            return Ok(true);
        }
        Ok(self.install(sent, &listing))
    }

    /// The client refused to believe the store: look whether somebody vouches for it.
    async fn take_went_back(&self, why: String) -> Result<(), DcsError> {
        let sent = clock::now();
        let listing = self.dcs.read_anew(self.keys.prefix()).await?;
        self.went_back(why, sent, listing)
    }

    /// Takes a store that went back only if its generation grew.
    fn went_back(&self, why: String, sent: Moment, listing: Listing) -> Result<(), DcsError> {
        let known = self.view().topology.generation;
        let (topology, _, _) = self.build(&Topology::default(), &listing);
        if topology.generation > known {
            tracing::warn!(
                known,
                generation = topology.generation,
                "the DCS was accepted anew"
            );
            self.dcs.accept(&listing.header);
            self.views.send_modify(|view| {
                *view = Arc::new(View::default());
            });
            self.install(sent, &listing);
            return Ok(());
        }
        self.views.send_if_modified(|view| {
            let is_new = view.went_back.as_deref() != Some(why.as_str());
            if is_new {
                Arc::make_mut(view).went_back = Some(why.as_str().into());
            }
            is_new
        });
        Err(DcsError::WentBack(why))
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
        self.views.send_modify(|view| {
            let view = Arc::make_mut(view);
            let topology = Arc::make_mut(&mut view.topology);
            let raw = Arc::make_mut(&mut view.raw);
            let unreadable = Arc::make_mut(&mut view.unreadable);
            for (path, entry) in &changes {
                if let Some(key) = self.keys.parse(path) {
                    let at = entry.as_ref().map_or(topology.revision, |e| e.mod_revision);
                    let change = change(key, entry.as_ref(), at);
                    fold_one(topology, raw, unreadable, &change, entry.as_ref());
                }
            }
            topology.revision = topology.revision.max(revision);
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
