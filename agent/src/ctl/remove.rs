//! `remove`: deletes everything that the DCS holds of a cluster, after patronictl's three questions. No data and no
//! server is touched; agents that still run register the cluster anew.
//!
//! One key stays: `trunkline/generation`, one higher. Agents and routers that remember the cluster believe no DCS that
//! lost it, and this says that it was taken away on purpose (`ha.md` 8): another one may be made under its name.

use trunkline_shared::cluster::topology::{Fact, FactKey};
use trunkline_shared::cluster::{ClusterName, MemberName};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::{Dcs, DcsError, Operation, Txn, records};

use super::arguments::Remove;
use super::terminal::Terminal;
use super::{CtlError, Session, list};

/// What is to be typed.
const AWARE: &str = "Yes I am aware";

/// Keys deleted in one transaction; etcd takes 128 operations.
const AT_ONCE: usize = 100;

/// `trunkline remove`
pub(super) async fn remove(session: &Session, asked: &Remove) -> Result<(), CtlError> {
    let (_follow, view) = session.known().await?;
    let topology = &view.topology;
    let shape = list::Shape {
        format: asked.format,
        ..list::Shape::PLAIN
    };
    let table = list::render(&session.cluster, topology, shape);
    session.terminal.print(&table)?;
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    ask(&session.cluster, leader, &session.terminal).await?;
    session.terminal.goes_on(
        "keys of the cluster are being deleted; some may be gone: run it again, or not at all",
    );
    let deleted = delete_all(session.dcs.as_ref(), &session.keys).await?;
    if deleted == 0 {
        let why = format!("the DCS holds nothing of a cluster {}", session.cluster);
        return Err(CtlError::Failed(why));
    }
    let cluster = &session.cluster;
    let text = format!("Success: {deleted} keys of cluster {cluster} were deleted");
    session.terminal.success(&text)
}

/// Only who types all of it means it.
async fn ask(
    cluster: &ClusterName,
    leader: Option<&MemberName>,
    terminal: &Terminal,
) -> Result<(), CtlError> {
    let refuse = |why: String| Err(CtlError::Failed(format!("{why}: nothing was deleted")));
    let question = "Please confirm the cluster name to remove";
    if terminal.demand(question).await? != cluster.as_str() {
        return refuse("Cluster names specified do not match".to_owned());
    }
    let question = format!(
        "You are about to remove all information in DCS for {cluster}, please type: \"{AWARE}\""
    );
    if terminal.demand(&question).await? != AWARE {
        return refuse(format!("You did not exactly type \"{AWARE}\""));
    }
    let Some(leader) = leader else {
        return Ok(());
    };
    let question = "This cluster currently is healthy. Please specify the leader name to continue";
    if terminal.demand(question).await? != leader.as_str() {
        return refuse("You did not specify the current leader of the cluster".to_owned());
    }
    Ok(())
}

/// Deletes every key below the cluster's folder but for its generation, which grows; how many there were.
async fn delete_all(dcs: &dyn Dcs, keys: &Keys) -> Result<usize, DcsError> {
    let mut found = dcs.read(keys.prefix()).await?.entries;
    let path = keys.path(&FactKey::Generation);
    let left = found.iter().position(|entry| entry.key == path);
    let left = left.map(|at| found.remove(at));
    if found.is_empty() {
        return Ok(0);
    }
    let known = left.map(|entry| records::parse(&FactKey::Generation, &entry.value));
    let known = match known {
        Some(Fact::Generation(known)) => known,
        Some(_) | None => 0,
    };
    // The identity goes in the transaction that says so, or those who watch would take it for a loss. So do all keys
    // of which there is one each.
    found.sort_by_key(|entry| match keys.parse(&entry.key) {
        Some(FactKey::Initialize) => 0,
        Some(FactKey::Member(_) | FactKey::Router(_) | FactKey::Disarmed(_)) | None => 2,
        Some(_) => 1,
    });
    let mut grown = Some(Operation::Put {
        key: path,
        value: (known + 1).to_string().into_bytes(),
        lease: 0,
    });
    for some in found.chunks(AT_ONCE) {
        let deletes = some
            .iter()
            .map(|entry| Operation::Delete(entry.key.clone()));
        let txn = Txn {
            then: grown.take().into_iter().chain(deletes).collect(),
            ..Txn::default()
        };
        dcs.commit(&txn).await?;
    }
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use trunkline_shared::dcs::WatchEvent;
    use trunkline_shared::dcs::memory::MemoryDcs;

    use super::*;

    async fn answered(leader: Option<&str>, answers: &[&str]) -> Result<(), String> {
        let leader = leader.map(MemberName::new);
        let terminal = Terminal::scripted(answers);
        let asked = ask(&ClusterName::new("demo"), leader.as_ref(), &terminal).await;
        asked.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn nothing_is_removed_unless_name_awareness_and_leader_are_typed() {
        assert_eq!(answered(Some("n1"), &["demo", AWARE, "n1"]).await, Ok(()));
        assert_eq!(answered(None, &["demo", AWARE]).await, Ok(()));
        for answers in [
            &["demo2"][..],
            &["demo", "yes I am aware"],
            &["demo", AWARE, "n2"],
        ] {
            let refused = answered(Some("n1"), answers).await.unwrap_err();
            assert!(refused.contains("nothing was"), "{refused}");
        }
        let unasked = answered(Some("n1"), &["demo", AWARE]).await.unwrap_err();
        assert!(unasked.contains("no terminal"), "{unasked}");
    }

    #[tokio::test]
    async fn the_keys_of_one_cluster_are_deleted_and_its_generation_says_so() {
        let dcs = MemoryDcs::new();
        let keys = |name: &str| Keys::new("service", &ClusterName::new(name));
        let put = |key: String| Operation::Put {
            key,
            value: b"{}".to_vec(),
            lease: 0,
        };
        let (mine, other) = (keys("demo"), keys("demo2"));
        let mut puts = vec![
            Operation::Put {
                key: mine.path(&FactKey::Generation),
                value: b"4".to_vec(),
                lease: 0,
            },
            put(mine.path(&FactKey::Initialize)),
            put(mine.path(&FactKey::Settings)),
            put(other.path(&FactKey::Settings)),
        ];
        for number in 0..120 {
            let member = FactKey::Member(MemberName::new(&format!("n{number}")));
            puts.push(put(mine.path(&member)));
        }
        let txn = Txn {
            then: puts,
            ..Txn::default()
        };
        dcs.commit(&txn).await.unwrap();
        let before = dcs.read(mine.prefix()).await.unwrap().header.revision;
        let mut watch = dcs.watch(mine.prefix(), before + 1).await.unwrap();
        assert_eq!(delete_all(&dcs, &mine).await.unwrap(), 122);
        let left = dcs.read(mine.prefix()).await.unwrap().entries;
        let left = left.iter().map(|entry| (&*entry.key, &*entry.value));
        let generation = mine.path(&FactKey::Generation);
        assert_eq!(left.collect::<Vec<_>>(), [(&*generation, &b"5"[..])]);
        let Ok(WatchEvent::Changes { changes, .. }) = watch.next().await else {
            panic!("changes are seen");
        };
        let at = |key: &FactKey| {
            let path = mine.path(key);
            let found = changes.iter().position(|(key, _)| *key == path);
            found.expect("it changed")
        };
        assert_eq!(at(&FactKey::Generation), 0);
        assert_eq!(at(&FactKey::Initialize), 1, "before anything else");
        assert_eq!(delete_all(&dcs, &mine).await.unwrap(), 0, "nothing is left");
        assert_eq!(dcs.read(other.prefix()).await.unwrap().entries.len(), 1);
    }
}
