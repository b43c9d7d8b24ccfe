//! What this member knows of the DCS, kept in `run_dir` for an agent that is restarted: without it a DCS that was
//! emptied or restored meanwhile would look like any other (`ha.md` 8).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline_shared::cluster::store::Authority;
use trunkline_shared::cluster::topology::{Fact, FactKey};
use trunkline_shared::cluster::{MemberName, Moment, Topology};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::{Remembered, View};
use trunkline_shared::dcs::{Header, records};

use super::known_store::KnownStore;
use crate::decide::observation::{Doubt, Shown, StoreView};
use crate::lease::replace_file;

/// How far the proof that lies in the file may be behind.
const PROOF_LAG: Duration = Duration::from_secs(1);

/// Names of members, and the URLs of their agents.
type Members = BTreeMap<MemberName, Arc<str>>;

/// What an agent that starts finds of the cluster's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beside {
    /// There is anything in the data directory.
    pub has_data: bool,
    /// Names of other members lie beside it.
    pub knew_others: bool,
}

/// The file of this boot.
#[derive(Debug)]
pub struct StoreKept {
    path: PathBuf,
    keys: Keys,
    is_trusted: Arc<AtomicBool>,
    beside: Beside,
    /// Whom it lists, where nothing else here does any more.
    listed: Members,
    /// What lies there: how far the store was seen, whether it is doubted, whether it is trusted.
    written: Option<(Header, u64, bool, bool)>,
    /// When the store proved last that what is seen of it is the newest; the same as it lies there.
    proven_at: Option<Moment>,
    written_proof: Option<Moment>,
    /// Why it could not be written, said once.
    trouble: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    prefix: String,
    is_trusted: bool,
    /// Nanoseconds of the clock that begins with the boot.
    proven_at: Option<u64>,
    #[serde(flatten)]
    store: KnownStore,
    doubt: Option<String>,
    is_told: bool,
    #[serde(default)]
    told_of: Option<u64>,
}

impl StoreKept {
    /// Reads what an earlier agent of this boot left; what cannot be read is nothing. Where the data is gone the
    /// cluster's identity is forgotten, as one does who removes a cluster and makes it anew. That it is the same DCS is
    /// still known, and nothing is done by it before everybody who was listed is asked.
    pub fn open(path: &Path, keys: &Keys, beside: Beside) -> (Self, Remembered) {
        let found = std::fs::read_to_string(path).ok();
        let found = found.and_then(|text| serde_json::from_str::<Kept>(&text).ok());
        let mut kept = found.filter(|kept| kept.prefix == keys.prefix());
        let mut listed = Members::new();
        if let Some(kept) = kept.as_mut()
            && !beside.has_data
            && kept.doubt.is_none()
        {
            listed = kept.forget_identity(keys);
        }
        let is_trusted = kept.as_ref().is_some_and(|kept| kept.is_trusted);
        let this = Self {
            path: path.to_owned(),
            keys: keys.clone(),
            is_trusted: Arc::new(AtomicBool::new(is_trusted)),
            beside,
            listed,
            written: None,
            proven_at: kept.as_ref().and_then(|kept| kept.proven_at).map(Moment),
            written_proof: None,
            trouble: None,
        };
        (this, kept.map(Kept::remembered).unwrap_or_default())
    }

    /// Whom the file listed, and where their agents are, if the cluster's identity was forgotten.
    pub fn listed(&self) -> &BTreeMap<MemberName, Arc<str>> {
        &self.listed
    }

    /// Set once nobody speaks against the store.
    pub fn trust(&self) -> Arc<AtomicBool> {
        self.is_trusted.clone()
    }

    /// Whoever has not heard of the store for a ttl asks the others again: his lease ended meanwhile, and what
    /// happened since is not known here.
    fn prove(&mut self, view: &View) {
        let Some(at) = view.proven_at else {
            return;
        };
        let ttl = view.topology.settings_or_default().ttl;
        if self.proven_at.is_some_and(|before| at.since(before) > ttl) {
            self.is_trusted.store(false, Ordering::Relaxed);
        }
        self.proven_at = self.proven_at.max(Some(at));
    }

    /// Brings the file up to date.
    pub fn keep(&mut self, view: &View) {
        self.prove(view);
        let belief = &view.belief;
        let is_trusted = self.is_trusted.load(Ordering::Relaxed);
        let now = (
            belief.seen,
            belief.generation,
            belief.doubt.is_some(),
            is_trusted,
        );
        let is_proof_old = match (self.proven_at, self.written_proof) {
            (Some(at), Some(written)) => at.since(written) > PROOF_LAG,
            (at, written) => at != written,
        };
        if belief.seen == Header::default() || self.written == Some(now) && !is_proof_old {
            return;
        }
        let trouble = match self.write(view, is_trusted) {
            Ok(()) => {
                self.written = Some(now);
                self.written_proof = self.proven_at;
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            tracing::warn!(
                why,
                "what is known of the DCS could not be kept; a restarted agent does not know it"
            );
        }
        self.trouble = trouble;
    }

    fn write(&self, view: &View, is_trusted: bool) -> io::Result<()> {
        let belief = &view.belief;
        let kept = Kept {
            prefix: self.keys.prefix().to_owned(),
            is_trusted,
            proven_at: self.proven_at.map(|at| at.0),
            store: KnownStore::of(view, &self.keys),
            doubt: belief.doubt.as_deref().map(str::to_owned),
            is_told: belief.is_told,
            told_of: belief.told_of,
        };
        replace_file(&self.path, &serde_json::to_vec(&kept)?)
    }

    /// The store as decisions see it; `topology` is the cluster as it was believed last.
    pub fn view(&self, view: &View, topology: &Arc<Topology>) -> StoreView {
        let belief = &view.belief;
        StoreView {
            cluster_id: belief.seen.cluster_id,
            revision: belief.seen.revision,
            generation: belief.generation,
            authority: Authority::of(&view.topology),
            knew_others: self.beside.knew_others,
            is_unproved: !self.is_trusted.load(Ordering::Relaxed),
            doubt: view.went_back.as_ref().map(|why| Doubt {
                why: why.clone(),
                before: topology.clone(),
                shown: view.doubted.as_ref().map(|doubted| Shown {
                    generation: doubted.topology.generation,
                    leader: doubted.topology.leader.as_ref().map(|l| l.member.clone()),
                    initialize: doubted.topology.initialize,
                }),
            }),
        }
    }
}

impl Kept {
    /// Which cluster it was, and its keys; who was listed in it is told.
    fn forget_identity(&mut self, keys: &Keys) -> Members {
        self.store.system = None;
        self.is_trusted = false;
        let path = keys.path(&FactKey::Failsafe);
        let entries = std::mem::take(&mut self.store.entries);
        let list = entries.iter().find(|entry| entry.key == path);
        let list = list.map(|entry| records::parse(&FactKey::Failsafe, entry.value.as_bytes()));
        match list {
            Some(Fact::Failsafe(list)) => list.as_ref().clone(),
            Some(_) | None => Members::new(),
        }
    }

    fn remembered(self) -> Remembered {
        let mut remembered = self.store.remembered();
        remembered.belief.doubt = self.doubt.map(Arc::from);
        remembered.belief.is_told = self.is_told;
        remembered.belief.told_of = self.told_of;
        remembered
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::SystemId;
    use trunkline_shared::cluster::sync_state::SyncState;
    use trunkline_shared::cluster::topology::{ClaimedTimeline, Initialize};
    use trunkline_shared::cluster::{ClusterName, Lsn, Timeline};
    use trunkline_shared::dcs::belief::Belief;
    use trunkline_shared::dcs::belief::Verdict;

    use super::*;

    fn view() -> View {
        let mut topology = Topology {
            initialize: Initialize::Done(SystemId(7)),
            generation: 2,
            claimed: ClaimedTimeline {
                timeline: Timeline(3),
                parent: Timeline(2),
            },
            claim_and_history: (80, 81),
            sync: Some(SyncState {
                leader: Some(MemberName::new("a")),
                standbys: vec![MemberName::new("b")],
                quorum: 0,
                revision: 90,
            }),
            ..Topology::default()
        };
        Arc::make_mut(&mut topology.status).optime = Lsn(5);
        View {
            topology: Arc::new(topology),
            belief: Belief {
                seen: Header {
                    cluster_id: 9,
                    revision: 100,
                    term: 4,
                },
                generation: 2,
                system: Some(SystemId(7)),
                doubt: Some("gone".into()),
                is_told: true,
                told_of: Some(8),
            },
            ..View::default()
        }
    }

    const WITH_DATA: Beside = Beside {
        has_data: true,
        knew_others: false,
    };

    #[test]
    fn without_data_the_identity_is_forgotten_unless_the_store_is_doubted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let keys = Keys::new("service", &ClusterName::new("demo"));
        let mut view = view();
        view.belief.doubt = None;
        view.belief.is_told = false;
        let b = (MemberName::new("b"), Arc::from("http://b:8008/patroni"));
        let topology = Arc::make_mut(&mut view.topology);
        topology.failsafe = Arc::new(Members::from([b.clone()]));
        topology.failsafe_revision = 95;
        let (mut kept, _) = StoreKept::open(&path, &keys, WITH_DATA);
        kept.trust().store(true, Ordering::Relaxed);
        kept.keep(&view);

        let (again, remembered) = StoreKept::open(&path, &keys, WITH_DATA);
        assert_eq!(remembered.belief, view.belief);
        assert!(again.listed().is_empty());

        let without = Beside {
            has_data: false,
            ..WITH_DATA
        };
        let (bare, remembered) = StoreKept::open(&path, &keys, without);
        assert_eq!(remembered.belief.system, None);
        assert_eq!(remembered.belief.seen, view.belief.seen);
        assert_eq!(remembered.belief.generation, view.belief.generation);
        assert!(remembered.entries.is_empty());
        assert!(bare.view(&view, &Arc::default()).is_unproved);
        assert_eq!(*bare.listed(), Members::from([b]));
        // The same store without the cluster is then believed, an older copy of it is not.
        let empty = Topology {
            generation: view.belief.generation,
            ..Topology::default()
        };
        let weigh = |header| {
            remembered
                .belief
                .weigh(header, &empty, &Topology::default())
        };
        assert_eq!(weigh(view.belief.seen), Verdict::Believed);
        let older = Header {
            revision: 99,
            ..view.belief.seen
        };
        assert!(matches!(weigh(older), Verdict::WentBack(_)));

        view.belief.doubt = Some("gone".into());
        let (mut kept, _) = StoreKept::open(&path, &keys, WITH_DATA);
        kept.keep(&view);
        let (_, remembered) = StoreKept::open(&path, &keys, without);
        assert_eq!(remembered.belief, view.belief, "a doubt stands");
    }

    #[test]
    fn a_restarted_agent_knows_the_store_its_doubt_and_who_may_lead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let keys = Keys::new("service", &ClusterName::new("demo"));
        let (mut kept, remembered) = StoreKept::open(&path, &keys, WITH_DATA);
        assert_eq!(remembered.belief, Belief::default());
        assert!(kept.view(&View::default(), &Arc::default()).is_unproved);
        kept.keep(&View::default());
        assert!(!path.exists(), "nothing is known yet");
        kept.trust().store(true, Ordering::Relaxed);
        kept.keep(&view());
        let (again, remembered) = StoreKept::open(&path, &keys, WITH_DATA);
        assert!(!again.view(&view(), &Arc::default()).is_unproved);
        assert_eq!(remembered.belief, view().belief);
        let of = |key: FactKey| {
            let path = keys.path(&key);
            remembered.entries.iter().find(|entry| entry.key == path)
        };
        assert_eq!(of(FactKey::Sync).unwrap().mod_revision, 90);
        assert_eq!(of(FactKey::Timeline).unwrap().mod_revision, 80);
        assert_eq!(of(FactKey::Initialize).unwrap().value, b"7");
        assert!(of(FactKey::Leader).is_none() && of(FactKey::Failover).is_none());
        let told_at = |seconds| {
            Arc::new(View {
                proven_at: Some(Moment(0) + Duration::from_secs(seconds)),
                ..view()
            })
        };
        kept.keep(&told_at(1000));
        let (mut late, _) = StoreKept::open(&path, &keys, WITH_DATA);
        late.keep(&told_at(1025));
        assert!(late.trust().load(Ordering::Relaxed), "within a ttl");
        let (mut late, _) = StoreKept::open(&path, &keys, WITH_DATA);
        late.keep(&told_at(1060));
        assert!(!late.trust().load(Ordering::Relaxed), "a ttl is 30 s");
        let other = Keys::new("service", &ClusterName::new("other"));
        assert_eq!(
            StoreKept::open(&path, &other, WITH_DATA).1.belief,
            Belief::default()
        );
    }
}
