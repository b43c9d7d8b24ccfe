//! The clusters that this router follows: those that its file names, and those under the namespace that a pattern of
//! the file names. The only way to a cluster by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};
use trunkline_shared::cluster::{ClusterName, Moment};

use crate::config::databases::{MAX_CLUSTERS, Scopes};
use crate::listener::limits::Counted;
use crate::topology::Cluster;

pub mod following;
pub mod names;
pub mod namespace;

/// A cluster that only a pattern names is not followed any more when its keys have been gone for so long, and nobody
/// uses it.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

/// All of them, as listeners, sessions and the HTTP endpoint share them.
pub struct Clusters {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

/// What is known of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Nothing yet, or why not.
    Never(Option<Arc<str>>),
    /// Which clusters there are.
    Clear,
    /// Which clusters there were, and why no more is known.
    Lost(Arc<str>),
}

/// A cluster, for as long as somebody uses it.
pub struct Followed {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// It is followed until this is dropped, at least.
    pub used: Counted,
}

/// Why a cluster is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFollowed {
    /// The DCS holds nothing of it, or nothing names it any more.
    Unknown,
    /// Nobody knows whether there is such a one: the DCS is silent.
    Unseen,
    /// So many are followed already.
    TooMany(usize),
}

/// A cluster that is not followed any more.
pub struct Retired {
    /// Which.
    pub cluster: Arc<Cluster>,
    /// Its keys are gone, too.
    pub is_gone: bool,
}

struct Known {
    cluster: Arc<Cluster>,
    users: Arc<AtomicUsize>,
    /// Since when its keys are gone.
    gone_since: Option<Moment>,
}

struct State {
    /// Of the file, with the scopes of the ports that are open.
    scopes: Scopes,
    /// The scopes of the ports that are open: they change by a restart only.
    of_ports: BTreeSet<ClusterName>,
    known: BTreeMap<ClusterName, Known>,
    sight: Sight,
    /// The clusters of the namespace that a pattern names.
    there: BTreeSet<ClusterName>,
    /// Those of them for which there is no room.
    left_out: BTreeSet<ClusterName>,
    next_number: u64,
    /// Everything could be routed once; what comes later holds up nobody else.
    has_been_ready: bool,
}

impl Clusters {
    /// Those that a file names. `of_ports` are the scopes of its ports, `remembered` the clusters that an earlier
    /// process followed: of them it takes those that a pattern names.
    pub fn new(
        scopes: Scopes,
        of_ports: BTreeSet<ClusterName>,
        remembered: impl IntoIterator<Item = ClusterName>,
    ) -> Self {
        let mut state = State {
            scopes: Scopes::default(),
            of_ports,
            known: BTreeMap::new(),
            sight: Sight::Never(None),
            there: remembered.into_iter().collect(),
            left_out: BTreeSet::new(),
            next_number: 0,
            has_been_ready: false,
        };
        state.want(scopes);
        Self {
            state: Mutex::new(state),
            changes: watch::Sender::new(0),
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.locked());
        self.changes.send_modify(|count| *count += 1);
        changed
    }

    /// Wakes when a cluster comes or goes, and when more or less is known of the namespace.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes up the clusters that a new file names. One that it names no more stays until nobody uses it.
    pub fn want(&self, scopes: Scopes) {
        self.change(|state| state.want(scopes));
    }

    /// Takes up what the DCS shows: the names of all clusters that a pattern may name.
    pub fn hear(&self, names: impl IntoIterator<Item = ClusterName>, now: Moment) {
        self.change(|state| state.hear(names.into_iter().collect(), now));
    }

    /// The DCS cannot be asked, and why.
    pub fn lose_sight(&self, why: &str) {
        self.change(|state| {
            state.sight = match state.sight {
                Sight::Never(_) => Sight::Never(Some(why.into())),
                Sight::Clear | Sight::Lost(_) => Sight::Lost(why.into()),
            };
        });
    }

    /// Lets go of those that nobody uses and nothing names any more.
    pub fn sweep(&self, now: Moment) -> Vec<Retired> {
        let mut state = self.locked();
        let retired = state.sweep(now);
        if !retired.is_empty() {
            // Others have waited for the room.
            state.admit();
            drop(state);
            self.changes.send_modify(|count| *count += 1);
        }
        retired
    }

    /// A cluster, to be used.
    ///
    /// # Errors
    /// It is not followed.
    pub fn find(&self, name: &ClusterName) -> Result<Followed, NotFollowed> {
        let state = self.locked();
        let Some(known) = state.known.get(name) else {
            return Err(match state.sight {
                _ if state.left_out.contains(name) => NotFollowed::TooMany(state.known.len()),
                _ if !state.scopes.include(name) => NotFollowed::Unknown,
                Sight::Clear => NotFollowed::Unknown,
                Sight::Never(_) | Sight::Lost(_) => NotFollowed::Unseen,
            });
        };
        Ok(Followed {
            cluster: known.cluster.clone(),
            used: Counted::new(&known.users),
        })
    }

    /// The cluster of a port, which is followed for as long as the process lives.
    pub fn own(&self, name: &ClusterName) -> Option<Arc<Cluster>> {
        let state = self.locked();
        let known = state.known.get(name)?;
        state.of_ports.contains(name).then(|| known.cluster.clone())
    }

    /// All that are followed, by their names.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let state = self.locked();
        let all = state.known.values().map(|known| known.cluster.clone());
        all.collect()
    }

    /// What the names of clusters begin with that the patterns name; `None` without a pattern.
    pub fn beginning(&self) -> Option<String> {
        self.locked().scopes.beginning().map(str::to_owned)
    }

    /// What is known of the namespace, and which of its clusters are left out; `None` without a pattern.
    pub fn namespace(&self) -> Option<(Sight, Vec<ClusterName>)> {
        let state = self.locked();
        let has_patterns = !state.scopes.patterns.is_empty();
        let left_out = state.left_out.iter().cloned().collect();
        has_patterns.then(|| (state.sight.clone(), left_out))
    }

    /// What is missing before sessions can be routed; `None` if nothing is, or once nothing was.
    pub fn cannot_route_yet(&self) -> Option<String> {
        let mut state = self.locked();
        let missing = state.missing();
        state.has_been_ready |= missing.is_none();
        missing
    }
}

impl State {
    fn want(&mut self, mut scopes: Scopes) {
        scopes.named.extend(self.of_ports.iter().cloned());
        if scopes.beginning() != self.scopes.beginning() {
            // What begins otherwise was not looked for.
            self.sight = Sight::Never(None);
        }
        self.scopes = scopes;
        self.admit();
    }

    fn hear(&mut self, names: BTreeSet<ClusterName>, now: Moment) {
        self.there = names;
        self.sight = Sight::Clear;
        for (name, known) in &mut self.known {
            known.gone_since = match self.there.contains(name) {
                true => None,
                false => known.gone_since.or(Some(now)),
            };
        }
        self.admit();
    }

    /// Takes up what is named and not followed. What a pattern names must find room.
    fn admit(&mut self) {
        for name in self.scopes.named.clone() {
            self.follow(name);
        }
        let before = std::mem::take(&mut self.left_out);
        for name in self.there.clone() {
            let is_meant = self
                .scopes
                .patterns
                .iter()
                .any(|p| p.matches(name.as_str()));
            if !is_meant || self.known.contains_key(&name) {
                continue;
            }
            if self.known.len() < MAX_CLUSTERS {
                self.follow(name);
            } else {
                self.left_out.insert(name);
            }
        }
        for cluster in self.left_out.difference(&before) {
            warn!(%cluster, "not followed: this router follows {} clusters already", self.known.len());
        }
    }

    fn follow(&mut self, name: ClusterName) {
        if self.known.contains_key(&name) {
            return;
        }
        info!(cluster = %name, "is followed");
        let number = self.next_number;
        self.next_number += 1;
        let known = Known {
            cluster: Arc::new(Cluster::numbered(name.clone(), number)),
            users: Arc::default(),
            gone_since: None,
        };
        self.known.insert(name, known);
    }

    fn sweep(&mut self, now: Moment) -> Vec<Retired> {
        let mut retired = Vec::new();
        let (scopes, sight) = (&self.scopes, &self.sight);
        self.known.retain(|name, known| {
            let gone_for = known.gone_since.map(|since| now.since(since));
            let is_gone =
                *sight == Sight::Clear && gone_for.is_some_and(|gone| gone >= FORGET_AFTER);
            let is_wanted = scopes.named.contains(name) || (scopes.include(name) && !is_gone);
            // Nobody comes to use it meanwhile: that takes the same lock.
            if is_wanted || known.users.load(Ordering::Relaxed) > 0 {
                return true;
            }
            info!(cluster = %name, is_gone, "is not followed any more");
            retired.push(Retired {
                cluster: known.cluster.clone(),
                is_gone,
            });
            false
        });
        retired
    }

    fn missing(&self) -> Option<String> {
        if self.has_been_ready {
            return None;
        }
        let unknown = self.known.values().find(|known| {
            let published = known.cluster.published();
            published.table.revision == 0 && !published.table.has_writer()
        });
        if let Some(unknown) = unknown {
            let cluster = &unknown.cluster.name;
            return Some(format!(
                "the DCS has not answered yet for cluster {cluster}"
            ));
        }
        let is_named = |name: &ClusterName| self.scopes.named.contains(name);
        let remembers = !self.known.keys().all(is_named);
        match &self.sight {
            Sight::Never(why) if !self.scopes.patterns.is_empty() && !remembers => {
                let why = why.as_ref().map_or(String::new(), |why| format!(": {why}"));
                Some(format!(
                    "the DCS has not told yet which clusters there are{why}"
                ))
            }
            Sight::Never(_) | Sight::Clear | Sight::Lost(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
