//! What is left in a store that is not believed.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A store that is not believed as soon as that is said.
struct Doubted {
    dcs: Arc<MemoryDcs>,
    is_doubted: Arc<AtomicBool>,
    /// How many transactions were tried although it is doubted.
    tried: watch::Sender<usize>,
}

impl Doubted {
    fn check(&self) -> Result<(), DcsError> {
        match self.is_doubted() {
            true => Err(DcsError::WentBack("made to be doubted".to_owned())),
            false => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl Dcs for Doubted {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.check()?;
        self.dcs.read(prefix).await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        self.check()?;
        self.dcs.commit(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        self.check()?;
        self.dcs.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.check()?;
        self.dcs.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        self.check()?;
        self.dcs.keep_alive(lease).await
    }

    async fn grant_anew(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.dcs.grant(ttl).await
    }

    async fn commit_anew(&self, txn: &Txn) -> Result<Committed, DcsError> {
        let outcome = self.dcs.commit(txn).await;
        self.tried.send_modify(|tried| *tried += 1);
        outcome
    }

    fn is_doubted(&self) -> bool {
        self.is_doubted.load(Ordering::SeqCst)
    }
}

const RECORD: &str = "{\"state\":\"running\"}";

/// A member that has shown its record, the switch by which the store is doubted, and what it tries then.
async fn registered(bench: &Bench) -> (LeaseHandle, Arc<AtomicBool>, watch::Receiver<usize>) {
    let is_doubted = Arc::new(AtomicBool::new(false));
    let (tried, tries) = watch::channel(0);
    let dcs = Doubted {
        dcs: bench.dcs.clone(),
        is_doubted: is_doubted.clone(),
        tried,
    };
    let member = bench.member_on("a", Arc::new(dcs));
    member.put_member(RECORD.to_owned());
    record(bench).await;
    (member, is_doubted, tries)
}

/// The member's record, once it is there.
async fn record(bench: &Bench) -> Entry {
    let found = async {
        loop {
            if let Some(entry) = bench.get(&FactKey::Member(MemberName::new("a"))).await {
                return entry;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, found).await.unwrap()
}

async fn initialize(bench: &Bench, value: &str) {
    let txn = Txn {
        then: vec![orders::put(bench.keys.path(&FactKey::Initialize), value, 0)],
        ..Txn::default()
    };
    bench.dcs.commit(&txn).await.unwrap();
}

#[tokio::test]
async fn in_a_store_without_a_cluster_the_record_is_left_on_a_lease_of_its_own() {
    for is_claimed in [false, true] {
        let bench = Bench::new();
        let (_member, is_doubted, mut tries) = registered(&bench).await;
        if is_claimed {
            initialize(&bench, "").await;
        }
        let before = record(&bench).await;
        is_doubted.store(true, Ordering::SeqCst);
        let needed = 1 + usize::from(is_claimed);
        let tried = tries.wait_for(|tried| *tried == needed);
        timeout(SOON, tried).await.unwrap().unwrap();
        let word = record(&bench).await;
        assert_eq!(word.value, RECORD.as_bytes());
        assert!(word.mod_revision > before.mod_revision);
        assert!(word.lease != before.lease && word.lease != 0);
    }
}

#[tokio::test]
async fn in_a_store_that_shows_a_cluster_nothing_is_left() {
    let bench = Bench::new();
    let (_member, is_doubted, mut tries) = registered(&bench).await;
    initialize(&bench, "7300000000000000001").await;
    let before = record(&bench).await;
    is_doubted.store(true, Ordering::SeqCst);
    let tried = tries.wait_for(|tried| *tried == 2);
    timeout(SOON, tried).await.unwrap().unwrap();
    assert_eq!(record(&bench).await, before);
}
