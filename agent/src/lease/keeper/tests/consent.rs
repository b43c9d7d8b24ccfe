//! Rounds of the real lease task, against members that answer over HTTP.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::*;
use crate::lease::rounds::{List, Shown};

/// Long enough for a loaded machine, short enough to be waited out.
const SHORT: Duration = Duration::from_secs(3);

/// The revision of a state that is newer than every write of these tests.
const AT: Revision = 1_000;

/// The store; silent when told so.
struct Mute {
    dcs: Arc<MemoryDcs>,
    is_silent: AtomicBool,
    /// The answer to the next transaction, which is executed, is lost.
    loses_one: AtomicBool,
    /// Told of each question it does not answer.
    asked: Notify,
}

impl Mute {
    fn speak(&self) -> Result<&MemoryDcs, DcsError> {
        if self.is_silent.load(Ordering::SeqCst) {
            self.asked.notify_one();
            return Err(silence());
        }
        Ok(&self.dcs)
    }
}

fn silence() -> DcsError {
    DcsError::UnknownOutcome {
        endpoint: "memory".to_owned(),
        why: "made to be silent".to_owned(),
    }
}

#[async_trait::async_trait]
impl Dcs for Mute {
    async fn read(&self, prefix: &str) -> Result<Listing, DcsError> {
        self.speak()?.read(prefix).await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, DcsError> {
        let committed = self.speak()?.commit(txn).await;
        let is_of_the_list = !txn.then.iter().all(|op| matches!(op, Operation::Get(_)));
        if is_of_the_list && self.loses_one.swap(false, Ordering::SeqCst) {
            return Err(silence());
        }
        committed
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, DcsError> {
        self.speak()?.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DcsError> {
        self.speak()?.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, DcsError> {
        self.speak()?.keep_alive(lease).await
    }
}

/// A member that consents to everything while it is told to.
async fn member(consents: Arc<AtomicBool>) -> Arc<str> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).await;
            let (status, body) = match consents.load(Ordering::SeqCst) {
                true => ("200 OK", "Accepted"),
                false => ("500 Internal Server Error", "Running as a leader"),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Arc::from(format!("http://{address}/patroni"))
}

async fn until(handle: &LeaseHandle, mut is_so: impl FnMut(&LeaseView) -> bool) {
    let mut status = handle.status();
    let waiting = async {
        while !is_so(&status.borrow().view) {
            // A moved deadline alone wakes nobody.
            let _ = timeout(Duration::from_millis(50), status.changed()).await;
        }
    };
    timeout(SOON, waiting).await.unwrap();
}

fn by_failsafe(view: &LeaseView) -> Option<Held> {
    match view {
        LeaseView::Held(held) => Some(*held).filter(|held| held.is_by_failsafe),
        LeaseView::NotHeld | LeaseView::Lost => None,
    }
}

#[tokio::test]
async fn a_leader_goes_on_by_the_consent_of_all_and_so_does_its_restarted_agent() {
    let bench = Bench::new();
    let dcs = Arc::new(Mute {
        dcs: bench.dcs.clone(),
        is_silent: AtomicBool::new(false),
        loses_one: AtomicBool::new(false),
        asked: Notify::new(),
    });
    let consents = Arc::new(AtomicBool::new(true));
    let list: Arc<List> = Arc::new(List::from([
        (MemberName::new("a"), Arc::from("")),
        (MemberName::new("b"), member(consents.clone()).await),
    ]));
    let armed = |found| Arc::new(Arming::new(found, Box::new(|_| Ok(())), Box::new(|| true)));
    let arming = armed(None);
    let a = bench.member_armed_by("a", dcs.clone(), SHORT, arming.clone());
    a.acquire(AsSeen::default()).await.unwrap();
    a.show_failsafe(Shown {
        list: Arc::default(),
        revision: 0,
        at: AT,
        is_on: true,
    });
    let revision = a.publish_failsafe(0, list.clone()).await.unwrap();
    a.show_failsafe(Shown {
        list,
        revision,
        at: AT,
        is_on: true,
    });
    arming.arm(held(&a).deadline).unwrap();
    let before = held(&a);
    let nobody: Arc<List> = Arc::default();
    dcs.is_silent.store(true, Ordering::SeqCst);
    // Well beyond what the last renewal allowed.
    until(&a, |view| {
        by_failsafe(view).is_some_and(|held| held.deadline > before.deadline + SHORT / 2)
    })
    .await;
    assert_eq!(held(&a).epoch, before.epoch);
    // Whoever a list adds now has consented to nothing: none is sent before a renewal.
    let sent = a.publish_failsafe(revision, nobody).await;
    assert!(matches!(sent, Err(LeaseError::Refused { .. })), "{sent:?}");
    drop(a);

    let again = armed(arming.deadline());
    let a = bench.member_armed_by("a", dcs.clone(), SHORT, again.clone());
    until(&a, |view| {
        by_failsafe(view)
            .is_some_and(|held| held.epoch == before.epoch && held.has_unresolved_hand_over)
    })
    .await;
    consents.store(false, Ordering::SeqCst);
    until(&a, |view| *view == LeaseView::NotHeld).await;
    drop(a);

    // Its deadline has passed: the next agent does not go on.
    consents.store(true, Ordering::SeqCst);
    let a = bench.member_armed_by("a", dcs.clone(), SHORT, armed(again.deadline()));
    for _ in 0..3 {
        timeout(SOON, dcs.asked.notified()).await.unwrap();
    }
    assert_eq!(a.status().borrow().view, LeaseView::NotHeld);
}

/// The fourth member, d, is listed by a write whose answer is lost, and the own key is written again, or
/// moved onto another lease, before anything of it is shown.
#[tokio::test]
async fn who_was_listed_without_an_answer_is_asked_after_the_key_was_written_again() {
    for moves in [false, true] {
        let bench = Bench::new();
        let dcs = Arc::new(Mute {
            dcs: bench.dcs.clone(),
            is_silent: AtomicBool::new(false),
            loses_one: AtomicBool::new(false),
            asked: Notify::new(),
        });
        let of_d = Arc::new(AtomicBool::new(false));
        let few = List::from([
            (MemberName::new("a"), Arc::from("")),
            (
                MemberName::new("b"),
                member(Arc::new(AtomicBool::new(true))).await,
            ),
        ]);
        let mut all = few.clone();
        all.insert(MemberName::new("d"), member(of_d.clone()).await);
        let (few, all) = (Arc::new(few), Arc::new(all));
        let arming = Arc::new(Arming::new(None, Box::new(|_| Ok(())), Box::new(|| true)));
        let a = bench.member_armed_by("a", dcs.clone(), SHORT, arming.clone());
        let epoch = a.acquire(AsSeen::default()).await.unwrap();
        let show = |list: &Arc<List>, revision, at| {
            a.show_failsafe(Shown {
                list: list.clone(),
                revision,
                at,
                is_on: true,
            });
        };
        show(&Arc::default(), 0, epoch);
        let base = a.publish_failsafe(0, few.clone()).await.unwrap();
        show(&few, base, base);
        dcs.loses_one.store(true, Ordering::SeqCst);
        let sent = a.publish_failsafe(base, all.clone()).await;
        assert!(matches!(sent, Err(LeaseError::Dcs(_))), "{sent:?}");
        let listed = bench.get(&FactKey::Failsafe).await.unwrap().mod_revision;
        assert!(listed > base, "it was executed");
        let again = match moves {
            false => a.reassert().await.unwrap(),
            true => a.set_ttl(SHORT + Duration::from_secs(1)).await.unwrap(),
        };
        assert!(again > listed);
        let sent = a.publish_failsafe(base, all.clone()).await;
        assert!(matches!(sent, Err(LeaseError::Refused { .. })), "{sent:?}");
        arming.arm(held(&a).deadline).unwrap();
        dcs.is_silent.store(true, Ordering::SeqCst);
        // d has promised nothing, and the DCS would let it run.
        until(&a, |view| {
            assert_eq!(by_failsafe(view), None);
            *view == LeaseView::NotHeld
        })
        .await;
    }
}

#[tokio::test]
async fn without_an_armed_fence_nobody_is_asked_to_stand_back() {
    let bench = Bench::new();
    let dcs = Arc::new(Mute {
        dcs: bench.dcs.clone(),
        is_silent: AtomicBool::new(false),
        loses_one: AtomicBool::new(false),
        asked: Notify::new(),
    });
    let list: Arc<List> = Arc::new(List::from([
        (MemberName::new("a"), Arc::from("")),
        (
            MemberName::new("b"),
            member(Arc::new(AtomicBool::new(true))).await,
        ),
    ]));
    let arming = Arc::new(Arming::new(None, Box::new(|_| Ok(())), Box::new(|| true)));
    let a = bench.member_armed_by("a", dcs.clone(), SHORT, arming);
    a.acquire(AsSeen::default()).await.unwrap();
    a.show_failsafe(Shown {
        list,
        revision: 7,
        at: AT,
        is_on: true,
    });
    dcs.is_silent.store(true, Ordering::SeqCst);
    until(&a, |view| *view == LeaseView::NotHeld).await;
}

#[tokio::test]
async fn who_gives_its_key_up_empties_the_failsafe_list() {
    let bench = Bench::new();
    let a = bench.member("a");
    a.acquire(AsSeen::default()).await.unwrap();
    a.release(None, false).await.unwrap();
    assert_eq!(bench.get(&FactKey::Failsafe).await, None, "there was none");

    a.acquire(AsSeen::default()).await.unwrap();
    let list = List::from([(MemberName::new("a"), Arc::from("http://a:8008/patroni"))]);
    let list = Arc::new(list);
    a.show_failsafe(Shown {
        list: Arc::default(),
        revision: 0,
        at: AT,
        is_on: true,
    });
    let listed = a.publish_failsafe(0, list.clone()).await.unwrap();
    a.show_failsafe(Shown {
        list,
        revision: listed,
        at: AT,
        is_on: true,
    });
    a.release(None, false).await.unwrap();
    let left = bench.get(&FactKey::Failsafe).await.unwrap();
    // It is never deleted: what was written without an answer must not fit a later state.
    assert_eq!(left.value, b"{}");
    assert!(left.mod_revision > listed);
}
