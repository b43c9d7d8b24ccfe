//! The keys of a cluster that outlive its leader and the registrations of its members.

use super::View;
use crate::cluster::topology::{ClaimedTimeline, FactKey, Initialize};
use crate::dcs::keys::Keys;
use crate::dcs::{Entry, Revision, records};

impl View {
    /// The keys that make a cluster what it is, as they were believed last: all but those of the leader and the
    /// members, who write their own, and the requests of operators, which were for another moment.
    pub fn lasting_keys(&self, keys: &Keys) -> Vec<Entry> {
        let topology = &self.topology;
        let mut found = Vec::new();
        let mut add = |key: FactKey, value: Option<String>, mod_revision: Revision| {
            found.extend(value.map(|value| Entry {
                key: keys.path(&key),
                value: value.into_bytes(),
                mod_revision,
                lease: 0,
            }));
        };
        let initialize = match topology.initialize {
            Initialize::Done(id) => Some(records::initialize_to_text(Some(id))),
            Initialize::Absent | Initialize::Running => None,
        };
        add(FactKey::Initialize, initialize, 0);
        let raw = |key: &FactKey| self.raw.get(key).map(|raw| raw.text.to_string());
        add(FactKey::Settings, raw(&FactKey::Settings), 0);
        let sync = topology.sync.as_ref();
        let revision = sync.map_or(0, |sync| sync.revision);
        add(FactKey::Sync, sync.map(records::sync_to_json), revision);
        let failsafe = topology.failsafe_revision;
        let list = (failsafe > 0).then(|| records::failsafe_to_json(&topology.failsafe));
        add(FactKey::Failsafe, list, failsafe);
        let stores = &topology.succeeds;
        let list = (!stores.is_empty()).then(|| records::stores_to_json(stores));
        add(FactKey::Succeeds, list, 0);
        let claimed = topology.claimed;
        let claim =
            (claimed != ClaimedTimeline::default()).then(|| records::claimed_to_json(claimed));
        add(FactKey::Timeline, claim, topology.claim_revision());
        // One that was written before the last claim is another timeline's: its leader writes its own.
        let history = raw(&FactKey::History).filter(|_| !topology.is_history_behind);
        add(FactKey::History, history, topology.claim_and_history.1);
        let status = &topology.status;
        let is_known = status.optime.0 > 0;
        add(
            FactKey::Status,
            is_known.then(|| records::status_to_json(status)),
            0,
        );
        add(FactKey::Changes, raw(&FactKey::Changes), 0);
        // Whoever paused with a disarmed fence may be a primary still, whatever became of the store.
        for name in &topology.disarmed {
            add(FactKey::Disarmed(name.clone()), Some(String::new()), 0);
        }
        found
    }
}
