//! Whom this member knew, kept beside its data: after a reboot a DCS that was restored or emptied names nobody who
//! could speak against it (`ha.md` 8).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::dcs::records::failsafe_to_json;

use crate::decide::Observation;
use crate::decide::observation::Local;
use crate::postgres::dynamic_config;

/// Longest wait for the data directory's disk.
const WRITE_LIMIT: Duration = Duration::from_millis(500);

/// Names of members, and the URLs of their agents.
type Members = BTreeMap<MemberName, Arc<str>>;

/// What surely lies beside the data.
#[derive(Debug, Default)]
pub struct MembersKept {
    written: Option<Members>,
}

/// What an earlier agent kept. What cannot be read is nobody.
pub fn read(data_dir: &Path) -> Members {
    let text = dynamic_config::read_members(data_dir).unwrap_or_default();
    let text = text.unwrap_or_default();
    let found: BTreeMap<String, String> = serde_json::from_str(&text).unwrap_or_default();
    let found = found.into_iter();
    found
        .map(|(name, url)| (MemberName::new(&name), Arc::from(url)))
        .collect()
}

impl MembersKept {
    /// The data is about to be replaced.
    pub fn data_replaced(&mut self) {
        self.written = None;
    }

    /// Brings the file up to date with whom the believed DCS names. Never while a job works on the directory.
    pub async fn keep(&mut self, data_dir: &Path, seen: &Observation, whom: Members) {
        let has_data = matches!(seen.local, Local::Stopped(_) | Local::Running(_));
        let is_known = whom.is_empty() || self.written.as_ref() == Some(&whom);
        if !has_data || !seen.has_believed_dcs() || is_known || seen.job.running.is_some() {
            return;
        }
        let (dir, text) = (data_dir.to_owned(), failsafe_to_json(&whom));
        let writing = move || dynamic_config::write_members(&dir, &text);
        let written = timeout(WRITE_LIMIT, tokio::task::spawn_blocking(writing)).await;
        match written {
            Ok(Ok(Ok(()))) => self.written = Some(whom),
            Ok(Ok(Err(error))) => tracing::debug!(%error, "trunkline.members.json was not written"),
            Ok(Err(_)) | Err(_) => tracing::debug!("trunkline.members.json: the disk is silent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_an_agent_knew_is_read_back_and_forgotten_with_copied_data() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        assert!(read(dir.path()).is_empty());
        let known = Members::from([(MemberName::new("b"), Arc::from("http://b:8008/patroni"))]);
        dynamic_config::write_members(dir.path(), &failsafe_to_json(&known)).unwrap();
        assert_eq!(read(dir.path()), known);
        dynamic_config::forget(dir.path()).unwrap();
        assert!(read(dir.path()).is_empty());
    }
}
