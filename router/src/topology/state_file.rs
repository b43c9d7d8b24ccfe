//! The last leader of each cluster, kept over a restart: places to ask while the DCS does not answer, and
//! never more than that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;
use trunkline_shared::cluster::{ClusterName, LeaderEpoch, MemberName, Timeline};

use super::routing_table::LastLeader;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    member: String,
    generation: u64,
    revision: i64,
    address: String,
    api_url: String,
    timeline: Option<u32>,
    is_trunkline: bool,
}

/// The file, or nothing where none is configured.
#[derive(Debug, Default)]
pub struct StateFile {
    file: Option<PathBuf>,
    kept: Mutex<BTreeMap<String, Kept>>,
}

impl StateFile {
    /// Reads the file. One that cannot be read is as good as none: it is only a help.
    pub fn open(file: Option<&Path>) -> Self {
        let kept = match file.map(std::fs::read) {
            Some(Ok(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!("the state file cannot be read and is begun anew: {error}");
                BTreeMap::new()
            }),
            Some(Err(_)) | None => BTreeMap::new(),
        };
        Self {
            file: file.map(Path::to_owned),
            kept: Mutex::new(kept),
        }
    }

    /// The last confirmed leader of a cluster.
    pub fn last_leader(&self, cluster: &ClusterName) -> Option<LastLeader> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get(cluster.as_str())?;
        Some(LastLeader {
            member: MemberName::new(&kept.member),
            epoch: LeaderEpoch {
                generation: kept.generation,
                revision: kept.revision,
            },
            address: Arc::from(kept.address.as_str()),
            api_url: Arc::from(kept.api_url.as_str()),
            timeline: kept.timeline.map(Timeline),
            is_trunkline: kept.is_trunkline,
            is_confirmed: true,
            lane: None,
        })
    }

    /// The clusters of which something is kept.
    pub fn clusters(&self) -> Vec<ClusterName> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.keys().map(|name| ClusterName::new(name)).collect()
    }

    /// Forgets a cluster that is not there any more.
    pub fn forget(&self, cluster: &ClusterName) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.remove(cluster.as_str()).is_some()
            && let Some(file) = &self.file
        {
            put(file, &kept);
        }
    }

    /// Keeps the last leader of a cluster, if the DCS confirmed it under its epoch.
    pub fn keep(&self, cluster: &ClusterName, last: Option<&LastLeader>) {
        let last = last.filter(|last| last.is_confirmed);
        let (Some(file), Some(last)) = (&self.file, last) else {
            return;
        };
        let new = Kept {
            member: last.member.to_string(),
            generation: last.epoch.generation,
            revision: last.epoch.revision,
            address: last.address.to_string(),
            api_url: last.api_url.to_string(),
            timeline: last.timeline.map(|t| t.0),
            is_trunkline: last.is_trunkline,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.get(cluster.as_str()) == Some(&new) {
            return;
        }
        kept.insert(cluster.to_string(), new);
        put(file, &kept);
    }
}

fn put(file: &Path, kept: &BTreeMap<String, Kept>) {
    if let Err(error) = write(file, kept) {
        let file = file.display();
        warn!(%file, "the state file cannot be written: {error}");
    }
}

/// Beside it first, then over it: a reader sees the old file or the new one.
fn write(file: &Path, kept: &BTreeMap<String, Kept>) -> std::io::Result<()> {
    let text = serde_json::to_vec_pretty(kept)?;
    let beside = file.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let demo = ClusterName::new("demo");
        let last = LastLeader {
            member: MemberName::new("a"),
            epoch: LeaderEpoch {
                generation: 1,
                revision: 42,
            },
            address: "10.0.0.1:5432".into(),
            api_url: "http://10.0.0.1:8008/patroni".into(),
            timeline: Some(Timeline(3)),
            is_trunkline: true,
            is_confirmed: true,
            lane: None,
        };
        let file = StateFile::open(Some(&path));
        assert_eq!(file.last_leader(&demo), None);
        file.keep(&demo, Some(&last));
        let again = StateFile::open(Some(&path));
        assert_eq!(again.last_leader(&demo), Some(last));
        assert_eq!(again.clusters(), std::slice::from_ref(&demo));
        again.forget(&demo);
        assert!(StateFile::open(Some(&path)).clusters().is_empty());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(StateFile::open(Some(&path)).last_leader(&demo), None);
    }
}
