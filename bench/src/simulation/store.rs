//! The simulated DCS: linearizable keys with revisions, leases and compare-and-write, in true time.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_shared::cluster::topology::{Change, ClaimedTimeline, Fact, FactKey, Initialize};
use trunkline_shared::cluster::{ClusterSettings, MemberName, Topology};

use super::event::Time;

/// A condition of a transaction.
#[derive(Clone, Debug)]
pub(super) enum Compare {
    Absent(FactKey),
    Revision(FactKey, i64),
    /// The generation is this one; 0 where there is none.
    Generation(u64),
    /// The last claimed timeline is this one.
    Claimed(ClaimedTimeline),
    /// The settings are as they were seen.
    Settings(Arc<ClusterSettings>),
    /// Nobody has written this key since.
    Unchanged(FactKey, i64),
    /// A cluster is being made.
    Unmade,
}

/// A write of a transaction.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Put(FactKey, Fact, i64),
    Delete(FactKey),
}

/// One transaction: nothing is done unless all conditions hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Txn {
    pub(super) when: Vec<Compare>,
    pub(super) then: Vec<Write>,
}

#[derive(Clone)]
struct Entry {
    revision: i64,
    lease: i64,
}

#[derive(Clone)]
struct Lease {
    id: i64,
    ttl: Time,
    ends: Time,
}

/// What the leader key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaderKey {
    pub(super) revision: i64,
    pub(super) lease: i64,
}

/// The store.
pub(super) struct Store {
    keys: BTreeMap<FactKey, Entry>,
    leases: Vec<Lease>,
    next_lease: i64,
    /// The raft term.
    pub(super) term: u64,
    /// Nobody answers until then.
    pub(super) down_until: Time,
    /// Until then an old raft leader answers keep-alives without renewing anything.
    pub(super) deposed_until: Time,
    /// The cluster at the newest revision.
    pub(super) head: Arc<Topology>,
    /// The configuration that was deleted last.
    pub(super) lost_config: Option<Arc<ClusterSettings>>,
    /// Everything was lost while nobody but the operator knew the configuration.
    pub(super) is_config_forgotten: bool,
    /// Earlier views, for answers from a member of the store that has fallen behind.
    pub(super) earlier: Vec<Arc<Topology>>,
    /// The identity that it shows.
    pub(super) cluster_id: u64,
    /// How often it was replaced by another one: connections to the one before are over.
    pub(super) incarnation: u32,
    /// Somebody who knows has written since then that it is the cluster's.
    pub(super) is_vouched: bool,
    /// What the cluster was when that was lost.
    lost: Arc<Topology>,
    /// Copies for the day it is lost.
    copies: Vec<Copied>,
}

/// A copy of everything that the store held.
struct Copied {
    keys: BTreeMap<FactKey, Entry>,
    leases: Vec<Lease>,
    head: Arc<Topology>,
}

/// How many copies are kept.
const COPIES: usize = 12;

/// How many earlier views are kept.
const EARLIER: usize = 64;

impl Store {
    pub(super) fn new() -> Self {
        Self {
            keys: BTreeMap::new(),
            leases: Vec::new(),
            next_lease: 0x70,
            term: 2,
            down_until: 0,
            deposed_until: 0,
            head: Arc::default(),
            lost_config: None,
            is_config_forgotten: false,
            earlier: Vec::new(),
            cluster_id: 1,
            incarnation: 0,
            is_vouched: true,
            lost: Arc::default(),
            copies: Vec::new(),
        }
    }

    /// Keeps a copy of everything.
    pub(super) fn copy(&mut self) {
        if self.copies.len() == COPIES {
            self.copies.remove(0);
        }
        self.copies.push(Copied {
            keys: self.keys.clone(),
            leases: self.leases.clone(),
            head: self.head.clone(),
        });
    }

    pub(super) fn copies(&self) -> usize {
        self.copies.len()
    }

    /// Goes back to a copy; every lease in it begins anew. Whether there was one.
    pub(super) fn restore(&mut self, number: usize, now: Time) -> bool {
        if number >= self.copies.len() {
            return false;
        }
        let copy = self.copies.swap_remove(number);
        self.note_lost();
        self.copies.clear();
        self.keys = copy.keys;
        self.leases = copy.leases;
        self.head = copy.head;
        for lease in &mut self.leases {
            lease.ends = now + lease.ttl;
        }
        self.begin_anew();
        true
    }

    /// Loses everything.
    pub(super) fn wipe(&mut self) {
        self.note_lost();
        self.keys.clear();
        self.leases.clear();
        self.head = Arc::default();
        self.begin_anew();
    }

    fn note_lost(&mut self) {
        if self.is_vouched {
            self.lost = self.head.clone();
        }
    }

    /// The cluster as it truly is: nobody who knows it changes it in a store that is not vouched for.
    pub(super) fn cluster(&self) -> &Arc<Topology> {
        match self.is_vouched {
            true => &self.head,
            false => &self.lost,
        }
    }

    fn begin_anew(&mut self) {
        self.term = 2;
        self.incarnation += 1;
        self.is_vouched = false;
        self.deposed_until = 0;
        let is_lost = self.lost.settings.is_none();
        self.is_config_forgotten |= self.lost_config.take().is_some() && is_lost;
        self.earlier.clear();
    }

    pub(super) fn revision(&self) -> i64 {
        self.head.revision
    }

    /// The leader key, with the member it names.
    pub(super) fn leader(&self) -> Option<(&MemberName, LeaderKey)> {
        let leader = self.head.leader.as_ref()?;
        let key = LeaderKey {
            revision: leader.epoch.revision,
            lease: leader.lease,
        };
        Some((&leader.member, key))
    }

    pub(super) fn grant(&mut self, ttl: Time, now: Time) -> i64 {
        self.next_lease += 1;
        let id = self.next_lease;
        self.leases.push(Lease {
            id,
            ttl,
            ends: now + ttl,
        });
        id
    }

    /// Renews a lease for its whole length; `false` if it does not exist any more.
    pub(super) fn keep_alive(&mut self, id: i64, now: Time) -> bool {
        match self.leases.iter_mut().find(|l| l.id == id) {
            Some(lease) => {
                lease.ends = now + lease.ttl;
                true
            }
            None => false,
        }
    }

    /// When a lease ends unless it is renewed.
    pub(super) fn lease_ends(&self, id: i64) -> Option<Time> {
        self.leases.iter().find(|l| l.id == id).map(|l| l.ends)
    }

    /// A new raft leader: every lease begins anew, as etcd's lessor does on promotion.
    pub(super) fn leader_changes(&mut self, now: Time) {
        self.term += 1;
        for lease in &mut self.leases {
            lease.ends = now + lease.ttl;
        }
    }

    /// Executes a transaction; the revision of its writes, or `None` if a condition did not hold.
    pub(super) fn commit(&mut self, txn: &Txn) -> Option<i64> {
        let holds = txn.when.iter().all(|compare| match compare {
            Compare::Claimed(claimed) => self.head.claimed == *claimed,
            Compare::Settings(seen) => self.head.settings.as_ref() == Some(seen),
            Compare::Generation(generation) => self.head.generation == *generation,
            Compare::Unchanged(key, since) => {
                self.keys.get(key).is_none_or(|e| e.revision <= *since)
            }
            Compare::Unmade => self.head.initialize == Initialize::Running,
            Compare::Absent(key) => !self.keys.contains_key(key),
            Compare::Revision(key, revision) => {
                self.keys.get(key).is_some_and(|e| e.revision == *revision)
            }
        });
        let leases_live = txn.then.iter().all(|write| match write {
            Write::Put(_, _, lease) => *lease == 0 || self.lease_ends(*lease).is_some(),
            Write::Delete(_) => true,
        });
        if !holds || !leases_live {
            return None;
        }
        self.keep_earlier();
        let revision = self.revision() + 1;
        for write in &txn.then {
            self.write(write, revision);
        }
        Some(revision)
    }

    fn keep_earlier(&mut self) {
        if self.earlier.len() == EARLIER {
            self.earlier.drain(..EARLIER / 2);
        }
        self.earlier.push(self.head.clone());
    }

    fn write(&mut self, write: &Write, revision: i64) {
        let change = match write {
            Write::Put(key, fact, lease) => {
                self.is_vouched |= *key == FactKey::Generation;
                let entry = Entry {
                    revision,
                    lease: *lease,
                };
                self.keys.insert(key.clone(), entry);
                Change {
                    key: key.clone(),
                    fact: Some(fact.clone()),
                    revision,
                    lease: *lease,
                }
            }
            Write::Delete(key) => {
                if self.keys.remove(key).is_none() {
                    return;
                }
                Change {
                    key: key.clone(),
                    fact: None,
                    revision,
                    lease: 0,
                }
            }
        };
        Arc::make_mut(&mut self.head).apply(&change);
    }

    /// Ends the leases whose time is over and removes what hung on them. Whether anything changed.
    pub(super) fn expire(&mut self, now: Time) -> bool {
        let mut changed = false;
        let mut index = 0;
        while index < self.leases.len() {
            if self.leases[index].ends > now {
                index += 1;
                continue;
            }
            let id = self.leases.swap_remove(index).id;
            let gone: Vec<FactKey> = self
                .keys
                .iter()
                .filter(|(_, entry)| entry.lease == id)
                .map(|(key, _)| key.clone())
                .collect();
            if gone.is_empty() {
                continue;
            }
            changed = true;
            self.keep_earlier();
            let revision = self.revision() + 1;
            for key in gone {
                self.write(&Write::Delete(key), revision);
            }
        }
        changed
    }
}
