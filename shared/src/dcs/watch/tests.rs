use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::*;
use crate::cluster::topology::Initialize;
use crate::cluster::{ClusterName, SystemId};
use crate::dcs::memory::MemoryDcs;
use crate::dcs::{Committed, LeaseAnswer, LeaseId, Operation, Txn};

const PATIENCE: Duration = Duration::from_secs(20);

/// A store whose answers to reads are held back on the way while its watches go on.
#[derive(Clone)]
struct Slow {
    store: MemoryDcs,
    is_slow: Arc<AtomicBool>,
    /// One permit for every answer that is on its way.
    answered: Arc<Semaphore>,
    /// One permit for every answer that may arrive.
    may_arrive: Arc<Semaphore>,
}

#[async_trait]
impl Dcs for Slow {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        let listing = self.store.read(prefix).await;
        if self.is_slow.load(Ordering::SeqCst) {
            self.answered.add_permits(1);
            self.may_arrive.acquire().await.unwrap().forget();
        }
        listing
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        self.store.keep_alive(lease).await
    }
}

impl Slow {
    fn new() -> Self {
        Self {
            store: MemoryDcs::new(),
            is_slow: Arc::new(AtomicBool::new(false)),
            answered: Arc::new(Semaphore::new(0)),
            may_arrive: Arc::new(Semaphore::new(0)),
        }
    }

    async fn put(&self, key: FactKey, value: &str) -> Revision {
        let put = Operation::Put {
            key: keys().path(&key),
            value: value.as_bytes().to_vec(),
            lease: 0,
        };
        let txn = Txn {
            then: vec![put],
            ..Txn::default()
        };
        self.store.commit(&txn).await.unwrap().header.revision
    }
}

fn keys() -> Keys {
    Keys::new("service", &ClusterName::new("demo"))
}

async fn see(follow: &mut Follow, is_it: impl FnMut(&Arc<View>) -> bool) -> Arc<View> {
    let seen = tokio::time::timeout(PATIENCE, follow.views.wait_for(is_it)).await;
    seen.expect("it is seen in time").unwrap().clone()
}

#[tokio::test]
async fn an_answer_that_events_have_overtaken_is_asked_for_again_and_never_doubted() {
    let store = Slow::new();
    let sync = r#"{"leader":"a","sync_standby":"b"}"#;
    store.put(FactKey::Sync, sync).await;
    let begun = store.put(FactKey::Leader, "a").await;
    let mut follow = follow_from(Arc::new(store.clone()), keys(), Remembered::default());
    see(&mut follow, |view| view.is_complete).await;

    store.is_slow.store(true, Ordering::SeqCst);
    let refresh = follow.refresh.clone();
    let reading = tokio::spawn(async move { refresh.now().await });
    let on_its_way = tokio::time::timeout(PATIENCE, store.answered.acquire()).await;
    on_its_way.unwrap().unwrap().forget();
    // What the answer does not show yet: a later revision, a cluster, a generation, who may lead.
    store.put(FactKey::Sync, sync).await;
    store.put(FactKey::Generation, "3").await;
    store.put(FactKey::Initialize, "7").await;
    let last = store.put(FactKey::Leader, "b").await;
    see(&mut follow, |view| view.topology.revision >= last).await;
    store.is_slow.store(false, Ordering::SeqCst);
    let never_doubted = follow.views.clone();
    store.may_arrive.add_permits(1);

    let view = tokio::time::timeout(PATIENCE, reading).await.unwrap();
    let view = view.unwrap().expect("the store is believed");
    assert!(view.went_back.is_none() && view.belief.doubt.is_none());
    assert!(view.topology.revision >= last && last > begun);
    let leader = view.topology.leader.as_ref().unwrap();
    assert_eq!(
        (leader.member.as_str(), leader.epoch.generation),
        ("b", 3),
        "the view is not taken back"
    );
    assert!(view.read_at.is_some());
    assert!(never_doubted.borrow().belief.doubt.is_none());
}

#[tokio::test]
async fn what_was_decided_of_an_older_generation_does_not_doubt_the_grown_one() {
    let store = Slow::new();
    store.put(FactKey::Initialize, "7").await;
    let mut follow = follow_from(Arc::new(store.clone()), keys(), Remembered::default());
    see(&mut follow, |view| view.is_complete).await;
    store.put(FactKey::Generation, "1").await;
    see(&mut follow, |view| view.belief.generation == 1).await;

    let told = Told {
        generation: 1,
        cluster_id: None,
    };
    let late = follow.refresh.doubt("b knows more".into(), told, 0).await;
    late.unwrap();
    let view = follow.refresh.now().await.unwrap();
    assert!(view.went_back.is_none() && !view.belief.is_told);

    let in_time = follow.refresh.doubt("b knows more".into(), told, 1).await;
    in_time.unwrap();
    see(&mut follow, |view| view.went_back.is_some()).await;
    store.put(FactKey::Generation, "2").await;
    let view = see(&mut follow, |view| view.went_back.is_none()).await;
    assert_eq!((view.belief.generation, view.belief.is_told), (2, false));
}

#[tokio::test]
async fn a_cluster_that_was_removed_with_a_grown_generation_may_be_made_anew() {
    let store = Slow::new();
    store.put(FactKey::Initialize, "7").await;
    let mut follow = follow(Arc::new(store.clone()), keys());
    see(&mut follow, |view| view.belief.system.is_some()).await;

    let removal = Txn {
        then: vec![
            Operation::Put {
                key: keys().path(&FactKey::Generation),
                value: b"1".to_vec(),
                lease: 0,
            },
            Operation::Delete(keys().path(&FactKey::Initialize)),
        ],
        ..Txn::default()
    };
    store.commit(&removal).await.unwrap();
    see(&mut follow, |view| view.belief.generation == 1).await;
    store.put(FactKey::Initialize, "9").await;
    let is_made = |view: &Arc<View>| view.topology.initialize == Initialize::Done(SystemId(9));
    see(&mut follow, is_made).await;
    let view = follow.refresh.now().await.unwrap();
    assert_eq!(view.went_back, None);
    assert_eq!(view.belief.system, Some(SystemId(9)));
}

#[tokio::test]
async fn what_a_router_reports_wakes_nobody_and_the_stage_that_it_holds_does() {
    let store = Slow::new();
    let key = || FactKey::Router("r1/7".into());
    let record = |sessions: u64, epoch: u64, stage: Option<&str>| {
        let said = stage.map_or("null".to_owned(), |stage| {
            format!(r#"{{"id":1,"stage":"{stage}"}}"#)
        });
        format!(
            r#"{{"http_url":"http://r1:8010","hold_timeout":1,"epoch":"0.{epoch}","switchover":{said},"writer_sessions":{sessions}}}"#
        )
    };
    let mut follow = follow(Arc::new(store.clone()), keys());
    see(&mut follow, |view| view.is_complete).await;
    store.put(key(), &record(1, 5, None)).await;
    see(&mut follow, |view| !view.topology.routers.is_empty()).await;
    let switchover = r#"{"id":1,"epoch":"0.6","from":"a","to":"b","stage":"hold_all"}"#;
    for is_planned in [false, true] {
        if is_planned {
            let announced = store.put(FactKey::Switchover, switchover).await;
            see(&mut follow, |view| view.topology.revision >= announced).await;
        }
        follow.views.mark_unchanged();
        store.put(key(), &record(2, 5, None)).await;
        let reported = store.put(key(), &record(3, 6, None)).await;
        // Folded all the same, which only a look without waiting can tell.
        let is_folded = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while follow.views.borrow().topology.revision < reported {
                looks.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, is_folded).await.unwrap();
        assert!(!follow.views.has_changed().unwrap());
        let own = follow.views.borrow().topology.routers["r1/7"].clone();
        let applied = own.epoch.map(|epoch| epoch.revision);
        assert_eq!((own.writer_sessions, applied), (3, Some(6)));
    }
    store.put(key(), &record(3, 6, Some("hold_all"))).await;
    let has_said = |view: &Arc<View>| view.topology.routers["r1/7"].acknowledged.is_some();
    see(&mut follow, has_said).await;
    store.commit(&delete(key())).await.unwrap();
    see(&mut follow, |view| view.topology.routers.is_empty()).await;
}

fn delete(key: FactKey) -> Txn {
    Txn {
        then: vec![Operation::Delete(keys().path(&key))],
        ..Txn::default()
    }
}
