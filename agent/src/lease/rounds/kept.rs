//! What a leader needs to go on by rounds, on file in `run_dir` for an agent that is restarted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use trunkline_shared::cluster::MemberName;
use trunkline_shared::dcs::records::{epoch_from_text, failsafe_to_json};

use super::super::saved::replace;
use super::{Authority, List};

/// Where it is kept.
#[derive(Clone, Debug)]
pub(in crate::lease) struct SavedAuthority {
    path: PathBuf,
    /// What the keys of the cluster begin with.
    prefix: String,
}

impl SavedAuthority {
    pub(in crate::lease) fn new(path: &Path, prefix: &str) -> Self {
        Self {
            path: path.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    pub(in crate::lease) fn store(&self, authority: &Authority) -> io::Result<()> {
        let list: Value = serde_json::from_str(&failsafe_to_json(&authority.list))?;
        let ttl = u64::try_from(authority.ttl.as_millis()).unwrap_or(u64::MAX);
        let text = json!({
            "prefix": self.prefix,
            "epoch": authority.epoch.to_string(),
            "ttl_ms": ttl,
            "failsafe": list,
        });
        replace(&self.path, text.to_string().as_bytes())
    }

    pub(in crate::lease) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(in crate::lease) fn load(&self) -> Option<Authority> {
        let text = fs::read_to_string(&self.path).ok()?;
        let kept: Value = serde_json::from_str(&text).ok()?;
        if kept.get("prefix")?.as_str()? != self.prefix {
            return None;
        }
        let list = kept.get("failsafe")?.as_object()?;
        let list = list
            .iter()
            .map(|(name, url)| Some((MemberName::new(name), Arc::from(url.as_str()?))));
        Some(Authority {
            epoch: epoch_from_text(kept.get("epoch")?.as_str()?)?,
            ttl: Duration::from_millis(kept.get("ttl_ms")?.as_u64()?),
            list: list.collect::<Option<List>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::LeaderEpoch;

    use super::*;

    #[test]
    fn an_authority_reads_back_and_one_of_another_cluster_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority");
        let saved = SavedAuthority::new(&path, "/service/demo/");
        assert_eq!(saved.load(), None);
        let authority = Authority {
            epoch: LeaderEpoch {
                generation: 1,
                revision: 77,
            },
            ttl: Duration::from_secs(5),
            list: List::from([(MemberName::new("a"), Arc::from("http://a:8008/patroni"))]),
        };
        saved.store(&authority).unwrap();
        assert_eq!(saved.load(), Some(authority));
        assert_eq!(SavedAuthority::new(&path, "/service/other/").load(), None);
    }
}
