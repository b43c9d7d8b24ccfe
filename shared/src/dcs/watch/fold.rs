//! One key's text into the view.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Raw;
use crate::cluster::Topology;
use crate::cluster::topology::{Change, Fact, FactKey};
use crate::dcs::{Entry, Revision, records};

pub(super) type Built = (
    Topology,
    BTreeMap<FactKey, Raw>,
    BTreeMap<FactKey, Arc<str>>,
);

pub(super) fn change(key: FactKey, entry: Option<&Entry>, revision: Revision) -> Change {
    let fact = entry
        .filter(|entry| !records::is_absent(&key, &entry.value))
        .map(|entry| records::parse(&key, &entry.value));
    Change {
        fact,
        revision,
        lease: entry.map_or(0, |entry| entry.lease),
        key,
    }
}

pub(super) fn fold_one(
    topology: &mut Topology,
    raw: &mut BTreeMap<FactKey, Raw>,
    unreadable: &mut BTreeMap<FactKey, Arc<str>>,
    change: &Change,
    entry: Option<&Entry>,
) {
    topology.apply(change);
    let key = &change.key;
    match &change.fact {
        Some(Fact::Unreadable(why)) => {
            tracing::warn!(?key, %why, "a record cannot be read");
            unreadable.insert(key.clone(), why.clone());
        }
        _ => {
            unreadable.remove(key);
        }
    }
    let keeps_text = matches!(key, FactKey::Settings | FactKey::History | FactKey::Changes);
    if !keeps_text {
        return;
    }
    match entry {
        None => {
            raw.remove(key);
        }
        Some(entry) => {
            let text = String::from_utf8_lossy(&entry.value).as_ref().into();
            let found = Raw {
                text,
                revision: entry.mod_revision,
                lease: entry.lease,
            };
            raw.insert(key.clone(), found);
        }
    }
}

/// Whether the change only tells anew what a router does: how many sessions it has, by which epoch it routes. Nobody
/// waits for that, and every router tells it every few seconds, in a planned change far more often; whoever names the
/// numbers looks them up.
pub(super) fn is_a_mere_report(topology: &Topology, change: &Change) -> bool {
    let (FactKey::Router(name), Some(Fact::Router(new))) = (&change.key, &change.fact) else {
        return false;
    };
    let old = topology.routers.get(name);
    old.is_some_and(|old| old.is_same_to_who_waits(new))
}

/// Where a value cannot be read, the last good one stands, as when it is folded from an event.
pub(super) fn keep_old(topology: &mut Topology, old: &Topology, key: &FactKey) {
    match key {
        FactKey::Initialize => topology.initialize = old.initialize,
        FactKey::Settings => topology.settings.clone_from(&old.settings),
        FactKey::Status => topology.status = old.status.clone(),
        FactKey::Sync => topology.sync.clone_from(&old.sync),
        FactKey::Failsafe => topology.failsafe = old.failsafe.clone(),
        FactKey::Generation => topology.generation = old.generation,
        FactKey::Succeeds => topology.succeeds = old.succeeds.clone(),
        FactKey::Timeline => topology.keep_claim_of(old),
        FactKey::Switchover => {
            topology.switchover.clone_from(&old.switchover);
            topology.switchover_revision = old.switchover_revision;
        }
        FactKey::Changes => topology.last_change = old.last_change,
        FactKey::Leader
        | FactKey::Member(_)
        | FactKey::Failover
        | FactKey::History
        | FactKey::Disarmed(_)
        | FactKey::Router(_) => {}
    }
}
