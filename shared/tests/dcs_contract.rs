//! One behaviour suite, run on the in-memory store and on a real etcd; what only several etcd members can
//! show is in `dcs_contract/etcd_faults.rs`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::{ClusterName, MemberName};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::memory::MemoryDcs;
use trunkline_shared::dcs::watch::follow;
use trunkline_shared::dcs::{Compare, Dcs, DcsError, Entry, Operation, Txn, Watch, WatchEvent};

#[path = "dcs_contract/etcd_access.rs"]
mod etcd_access;
#[path = "dcs_contract/etcd_cluster.rs"]
mod etcd_cluster;
#[path = "dcs_contract/etcd_faults.rs"]
mod etcd_faults;
#[path = "dcs_contract/silent_connections.rs"]
mod silent_connections;

use etcd_cluster::EtcdCluster;

/// How long anything that must come may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn put(key: &str, value: &str, lease: i64) -> Operation {
    Operation::Put {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        lease,
    }
}

fn get(key: &str) -> Operation {
    Operation::Get(key.to_owned())
}

fn txn(when: Vec<Compare>, then: Vec<Operation>, otherwise: Vec<Operation>) -> Txn {
    Txn {
        when,
        then,
        otherwise,
    }
}

async fn write(dcs: &dyn Dcs, key: &str, value: &str) -> i64 {
    let done = dcs
        .commit(&txn(vec![], vec![put(key, value, 0)], vec![]))
        .await
        .unwrap();
    assert!(done.succeeded);
    done.header.revision
}

/// Whether a transaction with this condition takes its first branch.
async fn holds(dcs: &dyn Dcs, compare: Compare) -> bool {
    dcs.commit(&txn(vec![compare], vec![], vec![]))
        .await
        .unwrap()
        .succeeded
}

/// The changes of the next event that is no mere progress.
async fn changes(watch: &mut dyn Watch) -> Result<Vec<(String, Option<Entry>)>, DcsError> {
    loop {
        let next = tokio::time::timeout(PATIENCE, watch.next());
        match next.await.expect("the watch says something")? {
            WatchEvent::Changes { changes, .. } => return Ok(changes),
            WatchEvent::Progress { .. } => {}
        }
    }
}

/// The next changes until `count` are there.
async fn collect(watch: &mut dyn Watch, count: usize) -> Vec<(String, Option<Entry>)> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(changes(watch).await.unwrap());
    }
    all
}

async fn conditions_hold_as_they_say(dcs: &dyn Dcs) {
    let key = || "/conditions/k".to_owned();
    let none = || "/conditions/none".to_owned();
    let lease = dcs.grant(Duration::from_secs(60)).await.unwrap().lease;
    let create = txn(
        vec![Compare::Absent(key())],
        vec![put(&key(), "one", lease)],
        vec![get(&key())],
    );
    let created = dcs.commit(&create).await.unwrap();
    assert!(created.succeeded && created.entries.is_empty());
    let again = dcs.commit(&create).await.unwrap();
    assert!(!again.succeeded);
    let found = &again.entries[..];
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].value[..], found[0].lease), (&b"one"[..], lease));
    assert_eq!(found[0].mod_revision, created.header.revision);

    let revision = created.header.revision;
    assert!(holds(dcs, Compare::ModRevision(key(), revision)).await);
    assert!(!holds(dcs, Compare::ModRevision(key(), revision - 1)).await);
    assert!(!holds(dcs, Compare::ModRevision(none(), 0)).await);
    assert!(holds(dcs, Compare::Value(key(), b"one".to_vec())).await);
    assert!(!holds(dcs, Compare::Value(key(), b"two".to_vec())).await);
    assert!(!holds(dcs, Compare::Value(none(), Vec::new())).await);
    assert!(holds(dcs, Compare::Lease(key(), lease)).await);
    assert!(!holds(dcs, Compare::Lease(key(), 0)).await);
    assert!(!holds(dcs, Compare::Lease(none(), 0)).await);
    assert!(holds(dcs, Compare::Absent(none())).await);

    // Writing without the lease takes the key off it.
    write(dcs, &key(), "two").await;
    assert!(holds(dcs, Compare::Lease(key(), 0)).await);
}

async fn keys_are_read_without_their_values(dcs: &dyn Dcs) {
    let last = write(dcs, "/keys/a", "one").await;
    write(dcs, "/keys/b", "two").await;
    let listing = dcs.read_keys("/keys/").await.unwrap();
    assert!(listing.header.revision > last);
    let found = listing.entries.iter();
    let found: Vec<_> = found
        .map(|entry| (entry.key.as_str(), entry.value.len()))
        .collect();
    assert_eq!(found, [("/keys/a", 0), ("/keys/b", 0)]);
    assert_eq!(listing.entries[0].mod_revision, last);
}

/// Who creates a leader key names the last claim of a timeline as it was seen, by revision or absence.
async fn whoever_missed_the_last_claim_creates_no_leader_key(dcs: &dyn Dcs) {
    let (leader, claim) = ("/claim/leader".to_owned(), "/claim/timeline".to_owned());
    let take = async |seen: i64| {
        let when = vec![
            Compare::Absent(leader.clone()),
            Compare::as_seen(claim.clone(), seen),
        ];
        let taking = txn(when, vec![put(&leader, "a", 0)], vec![get(&claim)]);
        dcs.commit(&taking).await.unwrap()
    };
    let free = txn(vec![], vec![Operation::Delete(leader.clone())], vec![]);
    assert!(!take(7).await.succeeded, "a claim that vanished");
    assert!(take(0).await.succeeded);
    dcs.commit(&free).await.unwrap();
    let first = write(dcs, &claim, "2").await;
    let refused = take(0).await;
    assert!(!refused.succeeded, "a claim never heard of");
    assert_eq!(refused.entries[0].mod_revision, first);
    let second = write(dcs, &claim, "3").await;
    assert!(!take(first).await.succeeded, "an older claim");
    assert!(take(second).await.succeeded);
}

async fn a_transaction_is_all_or_nothing(dcs: &dyn Dcs) {
    let both = txn(
        vec![
            Compare::Absent("/txn/a".to_owned()),
            Compare::Absent("/txn/b".to_owned()),
        ],
        vec![put("/txn/a", "1", 0), put("/txn/b", "1", 0), get("/txn/a")],
        vec![
            Operation::Delete("/txn/a".to_owned()),
            get("/txn/none"),
            get("/txn/b"),
        ],
    );
    let first = dcs.commit(&both).await.unwrap();
    assert!(first.succeeded);
    // Reads see the writes before them; both keys have one revision.
    assert_eq!(first.entries.len(), 1);
    let listing = dcs.read("/txn/").await.unwrap();
    let revisions: Vec<_> = listing.entries.iter().map(|e| e.mod_revision).collect();
    assert_eq!(revisions, [first.header.revision; 2]);

    let second = dcs.commit(&both).await.unwrap();
    assert!(!second.succeeded);
    assert_eq!(second.entries.len(), 1);
    assert_eq!(second.entries[0].key, "/txn/b");
    assert_eq!(dcs.read("/txn/").await.unwrap().entries.len(), 1);

    // Deleting what is not there changes nothing, and takes no revision.
    let before = dcs.read("/txn/").await.unwrap().header.revision;
    let nothing = txn(
        vec![],
        vec![Operation::Delete("/txn/none".to_owned())],
        vec![],
    );
    let done = dcs.commit(&nothing).await.unwrap();
    assert!(done.succeeded);
    assert_eq!(done.header.revision, before);

    let twice = txn(
        vec![],
        vec![put("/txn/x", "1", 0), put("/txn/x", "2", 0)],
        vec![],
    );
    let refused = dcs.commit(&twice).await;
    assert!(matches!(refused, Err(DcsError::Rejected(_))), "{refused:?}");
    assert_eq!(dcs.read("/txn/").await.unwrap().entries.len(), 1);
}

async fn a_prefix_shows_its_keys_and_no_others(dcs: &dyn Dcs) {
    write(dcs, "/prefix/demo/leader", "a").await;
    write(dcs, "/prefix/demo2/leader", "b").await;
    write(dcs, "/prefix/demo/config", "{}").await;
    let listing = dcs.read("/prefix/demo/").await.unwrap();
    let keys: Vec<_> = listing.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["/prefix/demo/config", "/prefix/demo/leader"]);
    let from = listing.header.revision + 1;
    let mut watch = dcs.watch("/prefix/demo/", from).await.unwrap();
    write(dcs, "/prefix/demo2/leader", "c").await;
    write(dcs, "/prefix/demo/leader", "c").await;
    let seen = changes(&mut *watch).await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0, "/prefix/demo/leader");
}

async fn a_watch_replays_from_an_old_revision(dcs: &dyn Dcs) {
    let first = write(dcs, "/replay/a", "1").await;
    write(dcs, "/replay/b", "2").await;
    let delete = txn(
        vec![],
        vec![Operation::Delete("/replay/a".to_owned())],
        vec![],
    );
    dcs.commit(&delete).await.unwrap();
    let mut watch = dcs.watch("/replay/", first).await.unwrap();
    let seen = collect(&mut *watch, 3).await;
    let shape: Vec<_> = seen
        .iter()
        .map(|(key, entry)| (key.as_str(), entry.as_ref().map(|e| e.value.clone())))
        .collect();
    let expected = [
        ("/replay/a", Some(b"1".to_vec())),
        ("/replay/b", Some(b"2".to_vec())),
        ("/replay/a", None),
    ];
    assert_eq!(shape, expected);
}

async fn a_lease_that_ends_takes_its_keys_along(dcs: &dyn Dcs) {
    let granted = dcs.grant(Duration::from_secs(2)).await.unwrap();
    assert!(granted.ttl >= Duration::from_secs(2));
    let kept = dcs.grant(Duration::from_secs(2)).await.unwrap().lease;
    let steps = vec![
        put("/lease/short", "a", granted.lease),
        put("/lease/kept", "b", kept),
    ];
    let done = dcs.commit(&txn(vec![], steps, vec![])).await.unwrap();
    let mut watch = dcs
        .watch("/lease/", done.header.revision + 1)
        .await
        .unwrap();
    let renew = async {
        let mut beats = tokio::time::interval(Duration::from_millis(300));
        loop {
            beats.tick().await;
            dcs.keep_alive(kept).await.unwrap();
        }
    };
    let seen = tokio::select! {
        seen = changes(&mut *watch) => seen.unwrap(),
        () = renew => unreachable!("renewing never ends"),
    };
    assert_eq!(seen, [("/lease/short".to_owned(), None)]);
    let left = dcs.read("/lease/").await.unwrap().entries;
    assert_eq!(
        left.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(),
        ["/lease/kept"]
    );

    let gone = granted.lease;
    assert_eq!(dcs.keep_alive(gone).await, Err(DcsError::LeaseGone(gone)));
    let late = txn(vec![], vec![put("/lease/late", "x", gone)], vec![]);
    assert_eq!(dcs.commit(&late).await, Err(DcsError::LeaseGone(gone)));
    assert_eq!(
        dcs.keep_alive(12_345).await,
        Err(DcsError::LeaseGone(12_345))
    );
}

async fn follows_a_cluster(dcs: Arc<dyn Dcs>) {
    let keys = Keys::new("service", &ClusterName::new("demo"));
    let mut follow = follow(dcs.clone(), keys.clone());
    let leader = write(&*dcs, "/service/demo/leader", "a").await;
    let seen = tokio::time::timeout(
        PATIENCE,
        follow.views.wait_for(|view| view.topology.leader.is_some()),
    );
    let view = seen.await.expect("the leader is seen").unwrap().clone();
    let found = view.topology.leader.clone().unwrap();
    assert_eq!(
        (found.member, found.epoch.revision),
        (MemberName::new("a"), leader)
    );

    let written = write(&*dcs, "/service/demo/config", r#"{"ttl":7}"#).await;
    let router = r#"{"http_url":"http://r1:8010","hold_timeout":1}"#;
    write(&*dcs, "/service/demo/routers/r1/7", router).await;
    let view = follow.refresh.now().await.unwrap();
    assert_eq!(view.topology.settings_or_default().ttl.as_secs(), 7);
    let raw = view.raw_config().unwrap();
    assert_eq!((&*raw.text, raw.revision), (r#"{"ttl":7}"#, written));
    assert!(view.topology.routers.contains_key("r1/7"));
    assert!(view.is_complete && view.read_at.is_some() && view.went_back.is_none());

    // The last good settings stand while the text is unusable, and the view says so.
    write(&*dcs, "/service/demo/config", "no JSON").await;
    let view = follow.refresh.now().await.unwrap();
    assert_eq!(view.topology.settings_or_default().ttl.as_secs(), 7);
    assert!(view.topology.is_config_unreadable);
    assert_eq!(view.unreadable.len(), 1);

    let delete = txn(
        vec![],
        vec![Operation::Delete("/service/demo/leader".to_owned())],
        vec![],
    );
    let revision = dcs.commit(&delete).await.unwrap().header.revision;
    let gone = follow.views.wait_for(|view| view.topology.leader.is_none());
    let view = tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the end is seen");
    assert!(view.unwrap().topology.revision >= revision);
}

async fn everything(dcs: Arc<dyn Dcs>) {
    conditions_hold_as_they_say(&*dcs).await;
    whoever_missed_the_last_claim_creates_no_leader_key(&*dcs).await;
    a_transaction_is_all_or_nothing(&*dcs).await;
    a_prefix_shows_its_keys_and_no_others(&*dcs).await;
    keys_are_read_without_their_values(&*dcs).await;
    a_watch_replays_from_an_old_revision(&*dcs).await;
    a_lease_that_ends_takes_its_keys_along(&*dcs).await;
    follows_a_cluster(dcs).await;
}

/// A compacted revision can be neither watched from nor waited for; `compact` forgets up to one.
async fn compaction_is_said(dcs: &dyn Dcs, compact: impl AsyncFn(i64)) {
    let first = write(dcs, "/compact/k", "1").await;
    write(dcs, "/compact/k", "2").await;
    let last = write(dcs, "/compact/k", "3").await;
    compact(last).await;
    let refused = match dcs.watch("/compact/", first).await {
        Err(error) => error,
        Ok(mut watch) => changes(&mut *watch).await.unwrap_err(),
    };
    assert!(matches!(refused, DcsError::Compacted(_)), "{refused:?}");
    let mut watch = dcs.watch("/compact/", last + 1).await.unwrap();
    write(dcs, "/compact/k", "4").await;
    assert_eq!(changes(&mut *watch).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    let memory = MemoryDcs::new();
    everything(Arc::new(memory.clone())).await;
    compaction_is_said(&memory, async |revision| memory.compact(revision)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_contract() {
    let cluster = EtcdCluster::start(1);
    let dcs = cluster.client(etcd_cluster::START_LIMIT, PATIENCE);
    everything(Arc::new(dcs.clone())).await;
    let mut direct = cluster.direct(0).await;
    let compact = async |revision| {
        direct.clone().compact(revision, None).await.unwrap();
    };
    compaction_is_said(&dcs, compact).await;
    // etcd's own defragmentation stops the world for a moment, and nothing else.
    direct.defragment().await.unwrap();
    dcs.read("/").await.unwrap();
}

#[tokio::test]
async fn a_store_that_lost_its_memory_is_not_believed_until_its_generation_grew() {
    let memory = MemoryDcs::new();
    let dcs: Arc<dyn Dcs> = Arc::new(memory.clone());
    for n in 0..10 {
        write(&*dcs, "/service/demo/leader", &format!("m{n}")).await;
    }
    let mut follow = follow(dcs.clone(), Keys::new("service", &ClusterName::new("demo")));
    let complete = follow.views.wait_for(|view| view.is_complete);
    tokio::time::timeout(PATIENCE, complete)
        .await
        .unwrap()
        .unwrap();

    memory.lose_memory();
    let noticed = follow.refresh.now().await;
    assert!(matches!(noticed, Err(DcsError::WentBack(_))), "{noticed:?}");
    let went_back = follow.views.wait_for(|view| view.went_back.is_some());
    let view = tokio::time::timeout(PATIENCE, went_back)
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(
        view.topology.leader.as_ref().unwrap().member,
        MemberName::new("m9")
    );

    write(&*dcs, "/service/demo/trunkline/generation", "1").await;
    write(&*dcs, "/service/demo/leader", "new").await;
    let accepted = follow.views.wait_for(|view| {
        let leader = view.topology.leader.as_ref();
        leader.is_some_and(|leader| leader.epoch.generation == 1)
    });
    let view = tokio::time::timeout(PATIENCE, accepted)
        .await
        .unwrap()
        .unwrap();
    assert!(view.went_back.is_none());
}

#[tokio::test]
async fn a_followed_view_says_why_it_is_not_up_to_date_and_recovers() {
    let memory = MemoryDcs::new();
    let dcs: Arc<dyn Dcs> = Arc::new(memory.clone());
    write(&*dcs, "/service/demo/leader", "a").await;
    let mut follow = follow(dcs.clone(), Keys::new("service", &ClusterName::new("demo")));
    let live = follow
        .views
        .wait_for(|view| view.is_complete && view.last_error.is_none());
    tokio::time::timeout(PATIENCE, live).await.unwrap().unwrap();

    memory.set_reachable(false);
    let failed = follow.views.wait_for(|view| view.last_error.is_some());
    let view = tokio::time::timeout(PATIENCE, failed)
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert!(view.topology.leader.is_some(), "the last view stands");

    memory.set_reachable(true);
    write(&*dcs, "/service/demo/leader", "b").await;
    let recovered = follow.views.wait_for(|view| {
        let leader = view
            .topology
            .leader
            .as_ref()
            .map(|leader| leader.member.as_str());
        view.last_error.is_none() && leader == Some("b")
    });
    tokio::time::timeout(PATIENCE, recovered)
        .await
        .unwrap()
        .unwrap();
}
