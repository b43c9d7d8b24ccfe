//! What is known of the store that holds a cluster, and told of it (`ha.md` 8).

use serde::{Deserialize, Serialize};

use super::Topology;

/// What others say of the store who know more than it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The highest generation that they speak against.
    pub generation: u64,
    /// The identity of the store that they know.
    pub cluster_id: Option<u64>,
}

/// When the keys that decide who may lead were written: their mod revisions, 0 for one that is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Authority {
    /// `sync`.
    pub sync: i64,
    /// `trunkline/timeline`.
    pub timeline: i64,
    /// `failsafe`.
    pub failsafe: i64,
}

impl Authority {
    /// As the cluster shows it.
    pub fn of(topology: &Topology) -> Self {
        Self {
            sync: topology.sync.as_ref().map_or(0, |sync| sync.revision),
            timeline: topology.claim_revision(),
            failsafe: topology.failsafe_revision,
        }
    }

    /// The key that was written later than it is shown here, with both revisions: in one store that never changes
    /// back, however far the revision of an old copy has grown with everybody's writes. A key that is absent may have
    /// been deleted.
    pub fn older_than(&self, known: &Self) -> Option<(&'static str, i64, i64)> {
        let mut keys = self.beside(known).into_iter();
        keys.find(|(_, shown, known)| *shown > 0 && shown < known)
    }

    /// Each key, with the revision that is shown here and the one that is known.
    pub fn beside(&self, known: &Self) -> [(&'static str, i64, i64); 3] {
        [
            ("sync", self.sync, known.sync),
            ("trunkline/timeline", self.timeline, known.timeline),
            ("failsafe", self.failsafe, known.failsafe),
        ]
    }
}
