//! The transaction that makes a cluster's keys anew in a store that is not the one that was known (`ha.md` 8): by
//! the agent that leads, and by the operator's command. Pure.

use trunkline_shared::cluster::topology::{Change, FactKey};
use trunkline_shared::cluster::{MemberName, Topology};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::Doubted;
use trunkline_shared::dcs::{Compare, Entry, Listing, Operation, records};

/// What decides who may lead, and by what. Whoever has written one of them since it was seen knows more.
pub const DECISIVE: [FactKey; 5] = [
    FactKey::Initialize,
    FactKey::Settings,
    FactKey::Sync,
    FactKey::Failsafe,
    FactKey::Timeline,
];

/// How many stores a new one names: whoever knew only an older one than these needs an operator.
const MOST_STORES: usize = 16;

/// What makes a store the one that took the place of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The generation from now on.
    pub generation: u64,
    /// The stores before it, the oldest first.
    pub stores: Vec<u64>,
}

impl Succession {
    /// Of stores in the order in which they were known; one that was never read (0) is none.
    pub fn new(generation: u64, known: impl IntoIterator<Item = u64>) -> Self {
        let mut stores: Vec<u64> = Vec::new();
        for store in known.into_iter().filter(|store| *store != 0) {
            stores.retain(|other| *other != store);
            stores.push(store);
        }
        let too_many = stores.len().saturating_sub(MOST_STORES);
        stores.drain(..too_many);
        Self { generation, stores }
    }
}

/// All keys of the cluster but the leader's, to be made anew in a store that is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recreation {
    /// The generation among them.
    pub generation: u64,
    /// What must stand there as it was seen.
    pub when: Vec<Compare>,
    /// What is written.
    pub then: Vec<Operation>,
}

/// A store as one listing shows it.
pub fn shown(keys: &Keys, listing: Listing) -> Doubted {
    let mut topology = Topology::default();
    for entry in &listing.entries {
        let key = keys.parse(&entry.key);
        let Some(key) = key.filter(|key| !records::is_absent(key, &entry.value)) else {
            continue;
        };
        topology.apply(&Change {
            fact: Some(records::parse(&key, &entry.value)),
            revision: entry.mod_revision,
            lease: entry.lease,
            key,
        });
    }
    topology.revision = listing.header.revision;
    Doubted { listing, topology }
}

/// The lease that the leader's key hangs on, 0 for none; `None` where nobody is named.
pub fn leader_lease(keys: &Keys, doubted: &Doubted) -> Option<i64> {
    doubted.topology.leader.as_ref()?;
    let path = keys.path(&FactKey::Leader);
    let mut entries = doubted.listing.entries.iter();
    entries
        .find(|entry| entry.key == path)
        .map(|entry| entry.lease)
}

/// The transaction that only says that this store is the one, and instead of which: somebody leads by it, and every
/// other key is as whoever leads has written it.
pub fn vouched(keys: &Keys, doubted: &Doubted, succession: &Succession) -> Recreation {
    let put = |key: FactKey, text: String| Operation::Put {
        key: keys.path(&key),
        value: text.into_bytes(),
        lease: 0,
    };
    Recreation {
        generation: succession.generation,
        when: vec![
            seen(keys, doubted, &FactKey::Leader),
            seen(keys, doubted, &FactKey::Generation),
        ],
        then: vec![
            put(FactKey::Generation, succession.generation.to_string()),
            put(
                FactKey::Succeeds,
                records::stores_to_json(&succession.stores),
            ),
        ],
    }
}

fn seen(keys: &Keys, doubted: &Doubted, key: &FactKey) -> Compare {
    let path = keys.path(key);
    let entries = &doubted.listing.entries;
    let found = entries.iter().find(|entry| entry.key == path);
    Compare::as_seen(path, found.map_or(0, |entry| entry.mod_revision))
}

/// The transaction that makes the keys anew, but for the leader's: what it compares, and what it writes. The records
/// of the members that `keeps` names stay: they believe this store, and would not put theirs again at once.
pub fn transaction(
    keys: &Keys,
    doubted: &Doubted,
    wanted: Vec<Entry>,
    succession: &Succession,
    keeps: impl Fn(&MemberName) -> bool,
) -> Recreation {
    let Recreation {
        mut when, mut then, ..
    } = vouched(keys, doubted, succession);
    let succeeds = keys.path(&FactKey::Succeeds);
    let wanted: Vec<Entry> = wanted.into_iter().filter(|e| e.key != succeeds).collect();
    when.extend(DECISIVE.iter().map(|key| seen(keys, doubted, key)));
    let is_written = |path: &str| wanted.iter().any(|entry| entry.key == path);
    // What an old copy holds beside it was for another moment: a request of an operator, a member's state.
    let left = doubted.listing.entries.iter().filter(|entry| {
        let key = keys.parse(&entry.key);
        let is_ours = key.as_ref().is_some_and(|key| match key {
            FactKey::Leader | FactKey::Generation | FactKey::Succeeds | FactKey::Router(_) => false,
            FactKey::Member(name) => !keeps(name),
            FactKey::Initialize
            | FactKey::Settings
            | FactKey::Status
            | FactKey::Failover
            | FactKey::Sync
            | FactKey::History
            | FactKey::Failsafe
            | FactKey::Timeline
            | FactKey::Disarmed(_)
            | FactKey::Switchover
            | FactKey::Changes => true,
        });
        is_ours && !is_written(&entry.key)
    });
    then.extend(left.map(|entry| Operation::Delete(entry.key.clone())));
    then.extend(wanted.iter().map(|entry| Operation::Put {
        key: entry.key.clone(),
        value: entry.value.clone(),
        lease: 0,
    }));
    Recreation {
        generation: succession.generation,
        when,
        then,
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::ClusterName;

    use super::*;

    #[test]
    fn the_stores_before_it_are_named_once_and_the_newest_of_too_many() {
        let stores = |known: &[u64]| Succession::new(1, known.iter().copied()).stores;
        assert_eq!(stores(&[1, 0, 2, 1, 0]), [2, 1]);
        let many: Vec<u64> = (1..=MOST_STORES as u64 + 3).collect();
        assert_eq!(stores(&many), many[3..]);
    }

    #[test]
    fn what_an_old_copy_holds_is_replaced_or_deleted_and_routers_stay() {
        let keys = Keys::new("service", &ClusterName::new("demo"));
        let entry = |key: FactKey, value: &str, mod_revision| Entry {
            key: keys.path(&key),
            value: value.as_bytes().to_vec(),
            mod_revision,
            lease: 0,
        };
        let doubted = Doubted {
            listing: Listing {
                entries: vec![
                    entry(FactKey::Leader, "old", 40),
                    entry(FactKey::Settings, r#"{"pause":true}"#, 41),
                    entry(FactKey::Failover, r#"{"member":"c"}"#, 42),
                    entry(FactKey::Router("r1/1".into()), "{}", 43),
                    entry(FactKey::Disarmed(MemberName::new("c")), "", 44),
                    entry(FactKey::Member(MemberName::new("a")), "{}", 45),
                    entry(FactKey::Member(MemberName::new("b")), "{}", 46),
                ],
                ..Listing::default()
            },
            topology: Topology::default(),
        };
        let wanted = vec![
            entry(FactKey::Settings, r#"{"ttl":5}"#, 0),
            entry(FactKey::Succeeds, r#"{"stores":["1"]}"#, 0),
        ];
        let succession = Succession::new(3, [1, 2]);
        let keeps = |name: &MemberName| name.as_str() == "b";
        let order = transaction(&keys, &doubted, wanted, &succession, keeps);
        assert_eq!(
            order.when,
            [
                Compare::ModRevision(keys.path(&FactKey::Leader), 40),
                Compare::Absent(keys.path(&FactKey::Generation)),
                Compare::Absent(keys.path(&FactKey::Initialize)),
                Compare::ModRevision(keys.path(&FactKey::Settings), 41),
                Compare::Absent(keys.path(&FactKey::Sync)),
                Compare::Absent(keys.path(&FactKey::Failsafe)),
                Compare::Absent(keys.path(&FactKey::Timeline)),
            ]
        );
        let put = |key: FactKey, value: &str| Operation::Put {
            key: keys.path(&key),
            value: value.as_bytes().to_vec(),
            lease: 0,
        };
        let delete = |key: FactKey| Operation::Delete(keys.path(&key));
        assert_eq!(
            order.then,
            [
                put(FactKey::Generation, "3"),
                put(FactKey::Succeeds, r#"{"stores":["1","2"]}"#),
                delete(FactKey::Failover),
                delete(FactKey::Disarmed(MemberName::new("c"))),
                delete(FactKey::Member(MemberName::new("a"))),
                put(FactKey::Settings, r#"{"ttl":5}"#),
            ]
        );
    }
}
