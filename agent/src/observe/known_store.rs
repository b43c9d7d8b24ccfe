//! What is kept of the DCS wherever it is kept: how far it was seen, and the keys that last.

use serde::{Deserialize, Serialize};
use trunkline_shared::cluster::SystemId;
use trunkline_shared::dcs::belief::Belief;
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::{Remembered, View};
use trunkline_shared::dcs::{Entry, Header, Revision};

/// The DCS as it was believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownStore {
    pub(super) cluster_id: u64,
    pub(super) revision: Revision,
    term: u64,
    generation: u64,
    pub(super) system: Option<u64>,
    pub(super) entries: Vec<KeptEntry>,
}

/// One of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptEntry {
    pub(super) key: String,
    pub(super) value: String,
    revision: Revision,
}

impl KnownStore {
    pub(super) fn of(view: &View, keys: &Keys) -> Self {
        let belief = &view.belief;
        let entries = view.lasting_keys(keys).into_iter();
        let entries = entries.map(|entry| KeptEntry {
            value: String::from_utf8_lossy(&entry.value).into_owned(),
            key: entry.key,
            revision: entry.mod_revision,
        });
        Self {
            cluster_id: belief.seen.cluster_id,
            revision: belief.seen.revision,
            term: belief.seen.term,
            generation: belief.generation,
            system: belief.system.map(|system| system.0),
            entries: entries.collect(),
        }
    }

    /// As it is given to the one who reads the DCS. It is not doubted.
    pub(super) fn remembered(self) -> Remembered {
        let entries = self.entries.into_iter().map(|entry| Entry {
            key: entry.key,
            value: entry.value.into_bytes(),
            mod_revision: entry.revision,
            lease: 0,
        });
        Remembered {
            entries: entries.collect(),
            belief: Belief {
                seen: Header {
                    cluster_id: self.cluster_id,
                    revision: self.revision,
                    term: self.term,
                },
                generation: self.generation,
                system: self.system.map(SystemId),
                doubt: None,
                is_told: false,
                told_of: None,
            },
        }
    }
}
