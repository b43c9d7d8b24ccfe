//! The cluster's configuration where the DCS has lost it: as this member saw it last, and keeps it beside its
//! data for an agent that is restarted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use trunkline_shared::cluster::topology::{FactKey, Initialize};
use trunkline_shared::cluster::{ClusterSettings, Topology};
use trunkline_shared::dcs::records;
use trunkline_shared::dcs::watch::View;

use crate::decide::Observation;
use crate::decide::observation::{JobView, Local};
use crate::postgres::dynamic_config;

/// Longest wait for the data directory's disk.
const WRITE_LIMIT: Duration = Duration::from_millis(500);

/// The configuration that this member knows.
#[derive(Debug, Default)]
pub struct ConfigKept {
    known: Option<Known>,
    /// What surely lies beside the data.
    written: Option<Arc<str>>,
    /// Why it could not be written, said once.
    trouble: Option<String>,
}

#[derive(Clone, Debug)]
struct Known {
    text: Arc<str>,
    settings: Arc<ClusterSettings>,
}

impl ConfigKept {
    /// What an earlier agent kept. What cannot be read is none.
    pub fn read(data_dir: &Path) -> Self {
        let known = match dynamic_config::read(data_dir) {
            Ok(text) => text.and_then(|text| {
                records::read_settings(&text)
                    .map_err(|error| tracing::warn!(%error, "patroni.dynamic.json is not used"))
                    .map(|read| Known {
                        text: text.into(),
                        settings: Arc::new(read.settings),
                    })
                    .ok()
            }),
            Err(error) => {
                tracing::warn!(%error, "patroni.dynamic.json is not used");
                None
            }
        };
        Self {
            known,
            ..Self::default()
        }
    }

    /// The settings as they were last.
    pub fn settings(&self) -> Option<&ClusterSettings> {
        self.known.as_ref().map(|known| known.settings.as_ref())
    }

    /// The data is about to be replaced.
    pub fn data_replaced(&mut self) {
        self.written = None;
    }

    /// The cluster with the settings that hold, and the text of the key if the DCS has lost it.
    pub fn lay_over(
        &mut self,
        view: &View,
        local: &Local,
        job: &JobView,
    ) -> (Arc<Topology>, Option<Arc<str>>) {
        let raw = view.raw_config();
        if let Some(settings) = &view.topology.settings {
            let is_readable = !view.unreadable.contains_key(&FactKey::Settings);
            if let Some(raw) = raw.filter(|_| is_readable) {
                self.known = Some(Known {
                    text: raw.text.clone(),
                    settings: settings.clone(),
                });
            }
            return (view.topology.clone(), None);
        }
        let is_made = job
            .running
            .as_ref()
            .is_some_and(|job| job.kind.replaces_data());
        let is_nobodys = view.topology.initialize == Initialize::Absent && !is_made;
        if *local == Local::Empty && is_nobodys {
            // What it was is nothing to whoever makes a cluster anew. One that is being made, or copied, is that.
            self.known = None;
        }
        let Some(known) = &self.known else {
            return (view.topology.clone(), None);
        };
        let topology = Topology {
            settings: Some(known.settings.clone()),
            ..Topology::clone(&view.topology)
        };
        // One that cannot be read is there: whoever broke it mends it.
        let lost = raw.is_none().then(|| known.text.clone());
        (Arc::new(topology), lost)
    }

    /// Brings the file up to date. Never while a job replaces the directory; one that only takes long, as a stop or
    /// a checkpoint may, would let a restarted agent go by what was before it.
    pub async fn keep(&mut self, data_dir: &Path, seen: &Observation) {
        let has_data = match &seen.local {
            Local::Stopped(_)
            | Local::Running(_)
            | Local::Starting { .. }
            | Local::Unresponsive { .. } => true,
            Local::Unknown(_) | Local::Empty | Local::Orphaned { .. } => false,
        };
        let job = seen.job.running.as_ref();
        let is_replaced = job.is_some_and(|job| job.kind.replaces_data());
        let text = self.known.as_ref().map(|known| known.text.clone());
        let Some(text) = text.filter(|_| has_data && !is_replaced) else {
            return;
        };
        if self.written.as_ref() == Some(&text) {
            return;
        }
        let (dir, wanted) = (data_dir.to_owned(), text.clone());
        let writing = move || match dynamic_config::read(&dir) {
            Ok(Some(found)) if *found == *wanted => Ok(()),
            Ok(_) | Err(_) => dynamic_config::write(&dir, &wanted),
        };
        let written = timeout(WRITE_LIMIT, tokio::task::spawn_blocking(writing)).await;
        let trouble = match written {
            Ok(Ok(Ok(()))) => {
                self.written = Some(text);
                None
            }
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the disk does not answer".to_owned()),
        };
        if let Some(why) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            tracing::warn!(
                why,
                "patroni.dynamic.json could not be written; a restarted agent does not know the configuration by it"
            );
        }
        self.trouble = trouble;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trunkline_shared::cluster::Moment;
    use trunkline_shared::dcs::watch::Raw;

    use crate::decide::observation::{JobKind, RunningJob};

    use super::*;

    fn view(text: Option<&str>) -> View {
        let read = text.and_then(|text| records::read_settings(text).ok());
        let settings = read.map(|read| read.settings);
        let raw = text.map(|text| Raw {
            text: text.into(),
            revision: 5,
            lease: 0,
        });
        View {
            topology: Arc::new(Topology {
                settings: settings.map(Arc::new),
                ..Topology::default()
            }),
            raw: Arc::new(
                raw.map(|raw| (FactKey::Settings, raw))
                    .into_iter()
                    .collect(),
            ),
            unreadable: Arc::new(BTreeMap::new()),
            is_complete: true,
            ..View::default()
        }
    }

    const CONFIG: &str = r#"{"ttl":7,"standby_cluster":{"host":"other"}}"#;

    #[test]
    fn a_lost_configuration_is_as_it_was_and_an_unreadable_one_is_not_lost() {
        let mut kept = ConfigKept::default();
        let data = Local::Unknown("not read yet".into());
        assert_eq!(
            kept.lay_over(&view(None), &data, &JobView::default())
                .0
                .settings,
            None
        );
        kept.lay_over(&view(Some(CONFIG)), &data, &JobView::default());
        let (topology, lost) = kept.lay_over(&view(None), &data, &JobView::default());
        let settings = topology.settings_or_default();
        assert_eq!(settings.ttl, Duration::from_secs(7));
        assert!(settings.standby_cluster.is_some());
        assert_eq!(lost.as_deref(), Some(CONFIG));
        let (topology, lost) = kept.lay_over(&view(Some("{")), &data, &JobView::default());
        assert!(topology.settings.is_some() && lost.is_none());
        // Without data it was another cluster's.
        assert_eq!(
            kept.lay_over(&view(None), &Local::Empty, &JobView::default())
                .0
                .settings,
            None
        );
        assert_eq!(
            kept.lay_over(&view(None), &data, &JobView::default())
                .0
                .settings,
            None
        );
    }

    #[test]
    fn a_configuration_that_is_lost_while_the_cluster_is_made_is_kept() {
        let mut kept = ConfigKept::default();
        let idle = JobView::default();
        kept.lay_over(&view(Some(CONFIG)), &Local::Empty, &idle);
        let mut made = view(None);
        made.topology = Arc::new(Topology {
            initialize: Initialize::Running,
            ..Topology::default()
        });
        let (topology, lost) = kept.lay_over(&made, &Local::Empty, &idle);
        assert!(topology.settings_or_default().standby_cluster.is_some());
        assert_eq!(lost.as_deref(), Some(CONFIG));
        // The claim was lost, and the copy that was begun under it goes on.
        let copying = JobView {
            running: Some(RunningJob {
                kind: JobKind::Clone,
                since: Moment(0),
                source: None,
            }),
            finished: None,
        };
        let (topology, _) = kept.lay_over(&view(None), &Local::Empty, &copying);
        assert!(topology.settings_or_default().standby_cluster.is_some());
        let (topology, _) = kept.lay_over(&view(None), &Local::Empty, &idle);
        assert_eq!(topology.settings, None);
    }

    #[test]
    fn an_agent_that_is_restarted_reads_what_it_kept_and_no_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ConfigKept::read(dir.path()).settings().is_none());
        assert!(dynamic_config::write(dir.path(), CONFIG).is_err());
        assert!(!dynamic_config::path(dir.path()).exists());
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        dynamic_config::write(dir.path(), CONFIG).unwrap();
        let kept = ConfigKept::read(dir.path());
        assert_eq!(kept.settings().unwrap().ttl, Duration::from_secs(7));
        let slip = r#"{"ttl": "often", "pause": true}"#;
        dynamic_config::write(dir.path(), slip).unwrap();
        assert!(ConfigKept::read(dir.path()).settings().unwrap().is_paused);
        dynamic_config::write(dir.path(), "{").unwrap();
        assert!(ConfigKept::read(dir.path()).settings().is_none());
    }
}
