use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::memory::MemoryDcs;
use trunkline_shared::dcs::{Compare, Entry, LeaseAnswer, Listing, Watch};

use super::*;
use crate::decide::observation::{Held, LeaseView};
use crate::lease::{AsSeen, HandOver, LeaseError, state};

mod consent;
mod word;

const TTL: Duration = Duration::from_secs(5);
/// Longest wait for something that takes milliseconds.
const SOON: Duration = Duration::from_secs(10);

fn seen(claim: Revision) -> AsSeen {
    AsSeen {
        claim,
        ..AsSeen::default()
    }
}

struct Bench {
    dcs: Arc<MemoryDcs>,
    keys: Keys,
    dir: tempfile::TempDir,
    reserve: Duration,
}

impl Bench {
    fn new() -> Self {
        Self {
            dcs: Arc::new(MemoryDcs::new()),
            keys: Keys::new("service", &ClusterName::new("demo")),
            dir: tempfile::tempdir().unwrap(),
            reserve: Duration::ZERO,
        }
    }

    fn member(&self, name: &str) -> LeaseHandle {
        self.member_on(name, self.dcs.clone())
    }

    fn member_on(&self, name: &str, dcs: Arc<dyn Dcs>) -> LeaseHandle {
        let arming = Arming::new(None, Box::new(|_| Ok(())), Box::new(|| true));
        self.member_armed_by(name, dcs, TTL, Arc::new(arming))
    }

    fn member_armed_by(
        &self,
        name: &str,
        dcs: Arc<dyn Dcs>,
        ttl: Duration,
        arming: Arc<Arming>,
    ) -> LeaseHandle {
        let config = KeeperConfig {
            keys: self.keys.clone(),
            me: MemberName::new(name),
            ttl,
            saved: self.dir.path().join(name),
            authority: self.dir.path().join(format!("{name}.authority")),
            speaker: Speaker::default(),
            settled: None,
            reserve: self.reserve,
        };
        spawn(config, arming, move || Some(dcs)).unwrap()
    }

    async fn get(&self, key: &FactKey) -> Option<Entry> {
        let path = self.keys.path(key);
        let listing = self.dcs.read(self.keys.prefix()).await.unwrap();
        listing.entries.into_iter().find(|e| e.key == path)
    }
}

fn held(handle: &LeaseHandle) -> Held {
    match handle.status().borrow().view {
        LeaseView::Held(held) => held,
        LeaseView::NotHeld | LeaseView::Lost => panic!("not held"),
    }
}

async fn session(handle: &LeaseHandle) -> LeaseId {
    let mut status = handle.status();
    let granted = status.wait_for(|s| s.lease != 0);
    timeout(SOON, granted).await.unwrap().unwrap().lease
}

#[tokio::test]
async fn one_of_two_acquires_and_the_key_hangs_on_its_lease() {
    let bench = Bench::new();
    let (a, b) = (bench.member("a"), bench.member("b"));
    let revision = a.acquire(AsSeen::default()).await.unwrap();
    assert!(matches!(
        b.acquire(AsSeen::default()).await,
        Err(LeaseError::Refused { .. })
    ));
    let leader = bench.get(&FactKey::Leader).await.unwrap();
    assert_eq!(
        (leader.value.as_slice(), leader.mod_revision),
        (b"a".as_slice(), revision)
    );
    assert_eq!(leader.lease, session(&a).await);
    assert_eq!(held(&a).epoch.revision, revision);
    assert_eq!(b.status().borrow().view, LeaseView::NotHeld);
}

#[tokio::test]
async fn release_deletes_the_key_and_writes_the_status_in_one_transaction() {
    let bench = Bench::new();
    let a = bench.member("a");
    a.acquire(AsSeen::default()).await.unwrap();
    a.release(Some("{\"optime\":1}".to_owned()), false)
        .await
        .unwrap();
    assert_eq!(bench.get(&FactKey::Leader).await, None);
    assert!(bench.get(&FactKey::Status).await.is_some());
    assert_eq!(a.status().borrow().view, LeaseView::NotHeld);
    assert!(matches!(
        a.release(None, false).await,
        Err(LeaseError::NotHeld(_))
    ));
}

#[tokio::test]
async fn a_hand_over_moves_the_key_to_the_candidate_who_proves_it() {
    let bench = Bench::new();
    let (a, b) = (bench.member("a"), bench.member("b"));
    a.acquire(AsSeen::default()).await.unwrap();
    b.put_member("{}".to_owned());
    let lease = session(&b).await;
    let path = FactKey::Member(MemberName::new("b"));
    let record = timeout(SOON, async {
        loop {
            if let Some(record) = bench.get(&path).await {
                return record;
            }
            tokio::task::yield_now().await;
        }
    });
    let record = record.await.unwrap();
    let mut order = HandOver {
        to: MemberName::new("b"),
        lease,
        record_revision: record.mod_revision + 1,
        status: "{}".to_owned(),
    };
    assert!(matches!(
        a.hand_over(order.clone()).await,
        Err(LeaseError::Refused { .. })
    ));
    assert!(!held(&a).has_unresolved_hand_over, "refused is known");
    order.record_revision = record.mod_revision;
    a.hand_over(order).await.unwrap();
    assert_eq!(a.status().borrow().view, LeaseView::NotHeld);
    b.confirm(lease).await.unwrap();
    assert_eq!(
        held(&b).epoch.revision,
        bench.get(&FactKey::Leader).await.unwrap().mod_revision
    );
}

#[tokio::test]
async fn a_restarted_agent_goes_on_with_its_lease_and_proves_its_key() {
    let bench = Bench::new();
    let before = bench.member("a");
    let epoch = before.acquire(AsSeen::default()).await.unwrap();
    let lease = session(&before).await;
    drop(before);
    let after = bench.member("a");
    assert_eq!(session(&after).await, lease);
    assert_eq!(after.status().borrow().view, LeaseView::NotHeld, "unproved");
    assert_eq!(after.confirm(lease).await.unwrap(), epoch);
}

#[tokio::test]
async fn a_key_of_somebody_else_is_a_definite_no_and_a_missing_one_is_not() {
    let bench = Bench::new();
    let a = bench.member("a");
    a.acquire(AsSeen::default()).await.unwrap();
    let leader = bench.keys.path(&FactKey::Leader);
    let delete = Txn {
        then: vec![Operation::Delete(leader.clone())],
        ..Txn::default()
    };
    bench.dcs.commit(&delete).await.unwrap();
    let mut status = a.status();
    let missing = status.wait_for(|s| matches!(s.view, LeaseView::Held(h) if h.is_key_missing));
    timeout(SOON, missing).await.unwrap().unwrap();
    let put = Txn {
        when: vec![Compare::Absent(leader.clone())],
        then: vec![Operation::Put {
            key: leader,
            value: b"b".to_vec(),
            lease: 0,
        }],
        ..Txn::default()
    };
    bench.dcs.commit(&put).await.unwrap();
    let lost = status.wait_for(|s| s.view == LeaseView::Lost);
    timeout(SOON, lost).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_longer_ttl_takes_a_new_lease_and_moves_the_key_onto_it() {
    let bench = Bench::new();
    let a = bench.member("a");
    let first = a.acquire(AsSeen::default()).await.unwrap();
    let old = session(&a).await;
    a.set_ttl(TTL * 2).await.unwrap();
    let leader = bench.get(&FactKey::Leader).await.unwrap();
    assert_ne!(leader.lease, old);
    assert!(held(&a).epoch.revision > first);
    assert_eq!(a.status().borrow().ttl, TTL * 2);
}

#[tokio::test]
async fn a_lease_that_ended_is_replaced_once_and_the_key_stands_on_the_new_one() {
    let bench = Bench::new();
    let a = bench.member("a");
    let old = session(&a).await;
    for _ in 0..20 {
        bench.dcs.end_lease(session(&a).await);
        // The command finds the lease gone together with the next renewal.
        let taking = async { while a.acquire(AsSeen::default()).await.is_err() {} };
        timeout(SOON, taking).await.unwrap();
        let leader = bench.get(&FactKey::Leader).await.unwrap();
        assert_eq!(leader.lease, session(&a).await);
        a.release(None, false).await.unwrap();
    }
    assert_ne!(session(&a).await, old);
}

#[tokio::test]
async fn a_free_key_is_not_taken_by_who_missed_the_last_claim() {
    let bench = Bench::new();
    let a = bench.member("a");
    let put = Txn {
        then: vec![Operation::Put {
            key: bench.keys.path(&FactKey::Timeline),
            value: b"{\"timeline\":3,\"parent\":2}".to_vec(),
            lease: 0,
        }],
        ..Txn::default()
    };
    let claim = bench.dcs.commit(&put).await.unwrap().header.revision;
    for known in [0, claim - 1] {
        let refused = a.acquire(seen(known)).await;
        assert!(
            matches!(refused, Err(LeaseError::Refused { .. })),
            "{refused:?}"
        );
        let refused = a.claim_bootstrap(seen(known), None).await;
        assert!(
            matches!(refused, Err(LeaseError::Refused { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(bench.get(&FactKey::Leader).await, None);
    a.acquire(seen(claim)).await.unwrap();
}

/// The store, with one transaction in its answer lost: executed or not.
struct Lossy {
    dcs: Arc<MemoryDcs>,
    loses: std::sync::Mutex<Option<bool>>,
    /// Told of a write of [`STUCK`], which is never answered.
    stuck: Notify,
    /// That write, not executed yet.
    on_the_way: std::sync::Mutex<Option<Txn>>,
}

/// A value whose write gets stuck.
const STUCK: &str = "stuck";

impl Lossy {
    fn new(dcs: &Arc<MemoryDcs>) -> Arc<Self> {
        Arc::new(Self {
            dcs: dcs.clone(),
            loses: std::sync::Mutex::new(None),
            stuck: Notify::new(),
            on_the_way: std::sync::Mutex::new(None),
        })
    }
}

#[async_trait::async_trait]
impl Dcs for Lossy {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.dcs.read(prefix).await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        let is_stuck = |operation: &Operation| matches!(operation, Operation::Put { value, .. } if value == STUCK.as_bytes());
        if txn.then.iter().any(is_stuck) {
            *self.on_the_way.lock().unwrap() = Some(txn.clone());
            self.stuck.notify_one();
            std::future::pending::<()>().await;
        }
        let lost = if txn.when.is_empty() {
            None
        } else {
            self.loses.lock().unwrap().take()
        };
        let Some(is_executed) = lost else {
            return self.dcs.commit(txn).await;
        };
        if is_executed {
            self.dcs.commit(txn).await?;
        }
        Err(DcsError::UnknownOutcome {
            endpoint: "memory".to_owned(),
            why: "made to lose the answer".to_owned(),
        })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        self.dcs.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.dcs.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        self.dcs.keep_alive(lease).await
    }
}

#[tokio::test]
async fn a_move_onto_another_lease_survives_a_lost_answer_without_a_moment_unheld() {
    for is_executed in [true, false] {
        let bench = Bench::new();
        let lossy = Lossy::new(&bench.dcs);
        let a = bench.member_on("a", lossy.clone());
        a.acquire(AsSeen::default()).await.unwrap();
        let old = session(&a).await;
        *lossy.loses.lock().unwrap() = Some(is_executed);
        let first = a.set_ttl(TTL * 2).await;
        assert_eq!(first.is_ok(), is_executed, "{first:?}");
        held(&a);
        if !is_executed {
            assert_eq!(session(&a).await, old, "renewed where the key stands");
            a.set_ttl(TTL * 2).await.unwrap();
        }
        let leader = bench.get(&FactKey::Leader).await.unwrap();
        assert_eq!(leader.lease, session(&a).await);
        assert_eq!(leader.mod_revision, held(&a).epoch.revision);
        assert_ne!(leader.lease, old);
    }
}

#[tokio::test]
async fn a_move_onto_a_shorter_lease_leaves_no_later_deadline_whatever_becomes_of_its_answer() {
    let bench = Bench::new();
    let lossy = Lossy::new(&bench.dcs);
    let arming = Arc::new(Arming::new(None, Box::new(|_| Ok(())), Box::new(|| true)));
    let a = bench.member_armed_by("a", lossy.clone(), TTL * 12, arming.clone());
    a.acquire(AsSeen::default()).await.unwrap();
    arming.arm(held(&a).deadline).unwrap();
    assert!(clock::now().until(held(&a).deadline) > TTL * 10);

    *lossy.loses.lock().unwrap() = Some(false);
    let moved = a.set_ttl(TTL).await;
    assert!(moved.is_err(), "{moved:?}");
    let now = clock::now();
    assert!(now.until(held(&a).deadline) <= TTL, "the agent's own");
    assert!(now.until(arming.deadline().unwrap()) <= TTL, "the fence's");

    a.set_ttl(TTL).await.unwrap();
    assert!(clock::now().until(held(&a).deadline) <= TTL);
    // A renewal may lie between the two looks.
    let same = async {
        while arming.deadline() != Some(held(&a).deadline) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, same).await.unwrap();
}

#[tokio::test]
async fn an_armed_deadline_does_not_move_on_without_a_live_fence() {
    let bench = Bench::new();
    let is_live = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = is_live.clone();
    let is_watched = Box::new(move || seen.load(std::sync::atomic::Ordering::Relaxed));
    let arming = Arc::new(Arming::new(None, Box::new(|_| Ok(())), is_watched));
    let a = bench.member_armed_by("a", bench.dcs.clone(), TTL, arming.clone());
    a.acquire(AsSeen::default()).await.unwrap();
    arming.arm(held(&a).deadline).unwrap();
    let lease = session(&a).await;
    a.confirm(lease).await.unwrap();
    is_live.store(false, std::sync::atomic::Ordering::Relaxed);
    // A renewal that was under way may still count; none that begins from here on does.
    a.confirm(lease).await.unwrap();
    let stands = held(&a).deadline;
    a.confirm(lease).await.unwrap();
    assert_eq!(held(&a).deadline, stands);
    assert_eq!(arming.deadline(), Some(stands));
    // Nor does a key that is written again.
    let _ = a.reassert().await;
    assert_eq!(held(&a).deadline, stands);
    assert_eq!(arming.deadline(), Some(stands));

    // A definite no needs no fence to be believed.
    let put = Operation::Put {
        key: bench.keys.path(&FactKey::Leader),
        value: b"b".to_vec(),
        lease: 0,
    };
    let txn = Txn {
        then: vec![put],
        ..Txn::default()
    };
    bench.dcs.commit(&txn).await.unwrap();
    assert!(a.confirm(lease).await.is_err());
    assert_eq!(a.status().borrow().view, LeaseView::Lost);
}

#[tokio::test]
async fn a_lease_that_is_let_go_or_whose_loop_stands_still_lapses() {
    let ttl = Duration::from_secs(1);
    for stops in [
        (|handle: &LeaseHandle| handle.let_lapse(SOON)) as fn(&LeaseHandle),
        |handle| handle.is_without_fence(true),
        LeaseHandle::turn_begins,
    ] {
        let bench = Bench::new();
        let arming = Arming::new(None, Box::new(|_| Ok(())), Box::new(|| true));
        let a = bench.member_armed_by("a", bench.dcs.clone(), ttl, Arc::new(arming));
        let lease = session(&a).await;
        a.acquire(AsSeen::default()).await.unwrap();
        stops(&a);
        let mut status = a.status();
        let lapsed = status.wait_for(|s| s.view == LeaseView::NotHeld);
        timeout(SOON, lapsed).await.unwrap().unwrap();
        let renewed = status.borrow().renewed_at;
        assert!(renewed.is_some_and(|at| clock::now().since(at) < ttl * 3));
        assert_eq!(status.borrow().lease, lease, "nothing new is asked for");
    }
}

#[tokio::test]
async fn a_record_does_not_wait_for_the_answer_to_the_one_before_and_is_not_overwritten_by_it() {
    let bench = Bench::new();
    let lossy = Lossy::new(&bench.dcs);
    let arming = Arming::new(None, Box::new(|_| Ok(())), Box::new(|| true));
    // An answer is waited for up to two fifths of that.
    let a = bench.member_armed_by("a", lossy.clone(), SOON * 10, Arc::new(arming));
    a.put_member(STUCK.to_owned());
    timeout(SOON, lossy.stuck.notified()).await.unwrap();
    a.put_member("newer".to_owned());
    let path = FactKey::Member(MemberName::new("a"));
    let written = async {
        while bench.get(&path).await.is_none_or(|e| e.value != b"newer") {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, written).await.unwrap();
    let late = lossy.on_the_way.lock().unwrap().take().unwrap();
    assert!(!bench.dcs.commit(&late).await.unwrap().succeeded);
    assert_eq!(bench.get(&path).await.unwrap().value, b"newer");
}

#[tokio::test]
async fn what_a_watchdog_needs_of_a_lease_is_left_unused() {
    let reserve = Duration::from_secs(1);
    let bench = Bench {
        reserve,
        ..Bench::new()
    };
    let a = bench.member("a");
    a.acquire(AsSeen::default()).await.unwrap();
    let most = TTL - state::margin(TTL) - reserve;
    assert!(held(&a).deadline <= clock::now() + most);
}
