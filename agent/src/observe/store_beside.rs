//! How far this member saw the DCS, kept beside its data: after a blackout `run_dir` is empty everywhere, and a copy
//! of the DCS from before it would look like any other to all (`ha.md` 8). It is never more than was seen, so data
//! that is put back with an older file says less, and nothing wrong.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{Lsn, MemberName, Moment, Topology};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::{Remembered, View};

use super::known_store::KnownStore;
use crate::decide::Observation;
use crate::decide::observation::Local;
use crate::postgres::{PostgresError, dynamic_config};

/// How far the bare revision may be behind. What decides who may lead is written as it changes, and so is that this
/// member lacks too much of what was published.
const REVISION_LAG: Duration = Duration::from_secs(30);

/// The file, and what surely lies in it.
#[derive(Debug)]
pub struct StoreBeside {
    keys: Keys,
    name: MemberName,
    /// The identity of the DCS that an earlier agent saw, if it left a file.
    found: Option<u64>,
    written: Option<(Kept, Moment)>,
    /// A write that the disk has not taken yet.
    writing: Option<Writing>,
}

/// What is being written, and since when.
#[derive(Debug)]
struct Writing {
    task: JoinHandle<Result<(), PostgresError>>,
    kept: Kept,
    since: Moment,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Whose file it is: one that came with copied data is another's.
    name: String,
    prefix: String,
    #[serde(flatten)]
    store: KnownStore,
    /// The last position in it.
    #[serde(skip)]
    optime: Lsn,
}

impl StoreBeside {
    /// Reads what an earlier agent of this member left; what cannot be read is nothing.
    pub fn open(data_dir: &Path, keys: &Keys, name: &MemberName) -> (Self, Remembered) {
        let text = dynamic_config::read_store(data_dir).unwrap_or_default();
        let found = serde_json::from_str::<Kept>(&text.unwrap_or_default()).ok();
        let found = found.filter(|kept| kept.prefix == keys.prefix() && kept.name == name.as_str());
        let this = Self {
            keys: keys.clone(),
            name: name.clone(),
            found: found.as_ref().map(|kept| kept.store.cluster_id),
            written: None,
            writing: None,
        };
        (
            this,
            found
                .map(|kept| kept.store.remembered())
                .unwrap_or_default(),
        )
    }

    /// Whether this member tells what it has seen itself, in this boot or before: a doubt, or how far the DCS was that
    /// it has not met again yet. Then its word counts, although it has asked nobody.
    pub fn speaks(&self, view: &View) -> bool {
        let is_remembered = !view.is_complete && self.found == Some(view.belief.seen.cluster_id);
        let is_own = is_remembered || view.went_back.is_some();
        self.found.is_some() && is_own && !view.belief.is_told
    }

    /// The data is about to be replaced.
    pub fn data_replaced(&mut self) {
        self.written = None;
    }

    /// Brings the file up to date with the believed DCS. Never while a job works on the directory, and without
    /// waiting for the disk: a turn may be what PostgreSQL's end hangs on.
    pub async fn keep(&mut self, data_dir: &Path, seen: &Observation, view: &View) {
        self.end_of_write().await;
        let has_data = matches!(seen.local, Local::Stopped(_) | Local::Running(_));
        let is_believed = seen.is_dcs_fresh() && !seen.store.is_unproved;
        let is_idle = seen.job.running.is_none() && self.writing.is_none();
        if !has_data || !is_believed || !is_idle || view.went_back.is_some() {
            return;
        }
        let now = Kept::of(view, &self.keys, &self.name);
        if !self.is_due(&now, (&seen.local, &view.topology), seen.now) {
            return;
        }
        let Ok(text) = serde_json::to_string(&now) else {
            return;
        };
        let dir = data_dir.to_owned();
        let task = tokio::task::spawn_blocking(move || dynamic_config::write_store(&dir, &text));
        self.writing = Some(Writing {
            task,
            kept: now,
            since: seen.now,
        });
    }

    fn is_due(&self, now: &Kept, (local, shown): (&Local, &Topology), at: Moment) -> bool {
        match &self.written {
            None => true,
            Some((written, _)) if local.is_behind_unrecorded(shown, written.optime) => true,
            Some((written, since)) if written.decides(&self.keys) == now.decides(&self.keys) => {
                written.store.revision < now.store.revision && at.since(*since) > REVISION_LAG
            }
            Some(_) => true,
        }
    }

    async fn end_of_write(&mut self) {
        let Some(Writing { task, kept, since }) =
            self.writing.take_if(|writing| writing.task.is_finished())
        else {
            return;
        };
        match task.await {
            Ok(Ok(())) => self.written = Some((kept, since)),
            Ok(Err(error)) => tracing::debug!(%error, "trunkline.dcs.json was not written"),
            Err(error) => tracing::debug!(%error, "trunkline.dcs.json was not written"),
        }
    }
}

impl Kept {
    fn of(view: &View, keys: &Keys, name: &MemberName) -> Self {
        Self {
            name: name.to_string(),
            prefix: keys.prefix().to_owned(),
            store: KnownStore::of(view, keys),
            optime: view.topology.status.optime,
        }
    }

    /// All but the revision and the position, which grow with every write.
    fn decides(&self, keys: &Keys) -> Self {
        let status = keys.path(&FactKey::Status);
        let mut kept = self.clone();
        kept.store.revision = 0;
        kept.optime = Lsn(0);
        kept.store.entries.retain(|entry| entry.key != status);
        kept
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trunkline_shared::cluster::sync_state::SyncState;
    use trunkline_shared::cluster::timeline::TimelineEnd;
    use trunkline_shared::cluster::topology::{ClaimedTimeline, Initialize};
    use trunkline_shared::cluster::{ClusterName, SystemId, Timeline, TimelineHistory};
    use trunkline_shared::dcs::belief::Belief;
    use trunkline_shared::dcs::{Header, Revision};

    use super::*;
    use crate::decide::observation::Stopped;

    fn view(revision: Revision, sync: Revision) -> View {
        let topology = Topology {
            initialize: Initialize::Done(SystemId(7)),
            sync: Some(SyncState {
                leader: Some(MemberName::new("a")),
                standbys: vec![MemberName::new("b")],
                quorum: 0,
                revision: sync,
            }),
            ..Topology::default()
        };
        View {
            topology: Arc::new(topology),
            belief: Belief {
                seen: Header {
                    cluster_id: 9,
                    revision,
                    term: 4,
                },
                generation: 2,
                system: Some(SystemId(7)),
                ..Belief::default()
            },
            ..View::default()
        }
    }

    #[test]
    fn after_a_blackout_a_member_knows_how_far_it_saw_the_dcs_and_no_other_member_does() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        let keys = Keys::new("service", &ClusterName::new("demo"));
        let (a, b) = (MemberName::new("a"), MemberName::new("b"));
        let open = |keys: &Keys, name| StoreBeside::open(dir.path(), keys, name).1;
        assert_eq!(open(&keys, &a).belief, Belief::default());
        let kept = Kept::of(&view(100, 90), &keys, &a);
        let text = serde_json::to_string(&kept).unwrap();
        dynamic_config::write_store(dir.path(), &text).unwrap();

        let (beside, remembered) = StoreBeside::open(dir.path(), &keys, &a);
        assert_eq!(remembered.belief, view(100, 90).belief);
        let path = keys.path(&FactKey::Sync);
        let sync = remembered.entries.iter().find(|entry| entry.key == path);
        assert_eq!(sync.unwrap().mod_revision, 90);
        let mut doubted = view(100, 90);
        assert!(beside.speaks(&doubted), "the DCS was not met yet");
        doubted.belief.seen.cluster_id = 8;
        assert!(!beside.speaks(&doubted), "that is not what lies here");
        doubted.is_complete = true;
        assert!(!beside.speaks(&doubted));
        doubted.went_back = Some("it went back".into());
        assert!(beside.speaks(&doubted));
        doubted.belief.is_told = true;
        assert!(!beside.speaks(&doubted), "that is others' word");

        assert_eq!(open(&keys, &b).belief, Belief::default(), "copied by hand");
        let other = Keys::new("service", &ClusterName::new("other"));
        assert_eq!(open(&other, &a).belief, Belief::default());
        dynamic_config::forget(dir.path()).unwrap();
        assert_eq!(open(&keys, &a).belief, Belief::default());
    }

    #[test]
    fn what_decides_who_may_lead_is_written_as_it_changes_and_the_bare_revision_now_and_then() {
        let keys = Keys::new("service", &ClusterName::new("demo"));
        let name = MemberName::new("a");
        let kept = |revision, sync| Kept::of(&view(revision, sync), &keys, &name);
        let dir = tempfile::tempdir().unwrap();
        let (mut beside, _) = StoreBeside::open(dir.path(), &keys, &name);
        let at = |seconds| Moment(0) + Duration::from_secs(seconds);
        let due_by = |beside: &StoreBeside, view: &View, seconds| {
            let now = Kept::of(view, &keys, &name);
            beside.is_due(&now, (&Local::Empty, &view.topology), at(seconds))
        };
        let due = |beside: &StoreBeside, revision, sync, seconds| {
            due_by(beside, &view(revision, sync), seconds)
        };
        assert!(due(&beside, 100, 90, 100));
        beside.written = Some((kept(100, 90), at(100)));
        assert!(!due(&beside, 120, 90, 110));
        assert!(due(&beside, 120, 90, 131));
        assert!(!due(&beside, 100, 90, 131), "nothing is new");
        assert!(due(&beside, 120, 120, 101));
        let mut moved = view(120, 90);
        Arc::make_mut(&mut Arc::make_mut(&mut moved.topology).status).optime = Lsn(5);
        assert!(!due_by(&beside, &moved, 110));
        beside.data_replaced();
        assert!(due(&beside, 120, 90, 110));
    }

    #[test]
    fn that_it_lacks_too_much_is_written_while_it_would_not_show() {
        let local = Local::Stopped(Stopped {
            system_id: SystemId(7),
            timeline: Timeline(1),
            checkpoint: Lsn(4_000_000),
            redo: Lsn(4_000_000),
            position: Lsn(5_000_000),
            is_clean: true,
            was_primary: false,
            is_half_rewound: false,
            crashed_at: None,
        });
        let keys = Keys::new("service", &ClusterName::new("demo"));
        let name = MemberName::new("a");
        let shows = |optime: u64| {
            let mut view = view(100, 90);
            let topology = Arc::make_mut(&mut view.topology);
            Arc::make_mut(&mut topology.status).optime = Lsn(optime);
            view
        };
        let dir = tempfile::tempdir().unwrap();
        let (mut beside, _) = StoreBeside::open(dir.path(), &keys, &name);
        let mut overtaken = |published: u64, kept: u64| {
            beside.written = Some((Kept::of(&shows(kept), &keys, &name), Moment(0)));
            let view = shows(published);
            let now = Kept::of(&view, &keys, &name);
            beside.is_due(&now, (&local, &view.topology), Moment(0))
        };
        let limit = 1_048_576;
        assert!(!overtaken(5_000_000 + limit, 0), "it may lead");
        assert!(overtaken(5_000_001 + limit, 0));
        assert!(overtaken(9_000_000, 5_000_000 + limit));
        assert!(!overtaken(9_000_000, 5_000_001 + limit), "that says enough");
        // What it wrote beyond the point where the newest history left its own is nobody's.
        let mut view = shows(4_500_000);
        let topology = Arc::make_mut(&mut view.topology);
        topology.claimed = ClaimedTimeline {
            timeline: Timeline(2),
            parent: Timeline(1),
        };
        let ended = TimelineEnd {
            timeline: Timeline(1),
            end: Lsn(3_000_000),
        };
        topology.history = Arc::new(TimelineHistory::new(vec![ended]));
        assert!(local.is_behind_unrecorded(&view.topology, Lsn(3_500_000)));
    }
}
