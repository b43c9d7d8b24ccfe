//! The session lease on file in `run_dir`, so that a restarted agent goes on with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use trunkline_shared::dcs::LeaseId;

/// The file that keeps the number of the session lease.
#[derive(Clone, Debug)]
pub(super) struct SavedLease {
    path: PathBuf,
    /// What the keys of the cluster begin with: a lease of another cluster is not taken up.
    prefix: String,
}

impl SavedLease {
    pub(super) fn new(path: PathBuf, prefix: &str) -> Self {
        Self {
            path,
            prefix: prefix.to_owned(),
        }
    }

    /// The lease of the agent before, if it left one for this cluster.
    pub(super) fn load(&self) -> Option<LeaseId> {
        let text = fs::read_to_string(&self.path).ok()?;
        let (lease, prefix) = text.trim_end().split_once(' ')?;
        (prefix == self.prefix).then_some(lease.parse().ok()?)
    }

    pub(super) fn store(&self, lease: LeaseId) -> io::Result<()> {
        replace(&self.path, format!("{lease} {}\n", self.prefix).as_bytes())
    }
}

/// Writes a file so that a reader sees the old or the new content, never a part.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_of_another_cluster_is_not_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lease");
        let saved = SavedLease::new(path.clone(), "/service/demo/");
        assert_eq!(saved.load(), None);
        saved.store(0x7abc).unwrap();
        assert_eq!(saved.load(), Some(0x7abc));
        assert_eq!(SavedLease::new(path, "/service/other/").load(), None);
    }
}
