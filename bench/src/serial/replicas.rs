//! Readers on the read port, a session for each look, and whether each saw what replicas may show: a state that the lists
//! had, and none of a replica that the router knows to lag too far.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio_postgres::{Config, NoTls};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::check::list_append::{History, Key, Operation, Status, Value};
use crate::load::writers::code_of;

/// A look that takes longer is given up: longer than any hold of the router.
const LIMIT: Duration = Duration::from_secs(20);
/// Who answers.
const WHO: &str = "SELECT pg_is_in_recovery(), host(inet_server_addr())";
/// The lists in use.
const LISTS: &str = "SELECT key, v FROM lists ORDER BY key DESC LIMIT 8";

/// One session on the read port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// When it was asked for.
    pub began: Moment,
    /// The address of the server.
    pub server: String,
    /// Whether that was a replica.
    pub is_replica: bool,
    /// What the lists were.
    pub lists: BTreeMap<Key, Vec<Value>>,
}

/// What the readers saw.
#[derive(Debug, Default)]
pub struct Looks {
    /// Every session that was answered.
    pub all: Vec<Look>,
    /// Errors by SQLSTATE.
    pub errors: BTreeMap<String, usize>,
}

/// A replica that lagged beyond the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lagging {
    /// Its address.
    pub server: String,
    /// Since when the router knew, and until when it was so at least.
    pub known: (Moment, Moment),
}

/// The readers of one run.
pub struct Readers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Looks>>,
}

impl Readers {
    /// Starts this many, with this pause between two looks.
    pub fn start(config: &Config, count: usize, pace: Duration) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..count).map(|_| tokio::spawn(live(config.clone(), stop.clone(), pace)));
        let tasks = tasks.collect();
        Readers { stop, tasks }
    }

    /// Ends them and returns what they saw.
    pub async fn finish(self) -> Result<Looks> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Looks::default();
        for task in self.tasks {
            let looks = task.await?;
            all.all.extend(looks.all);
            for (code, count) in looks.errors {
                *all.errors.entry(code).or_default() += count;
            }
        }
        Ok(all)
    }
}

async fn live(config: Config, stop: Arc<AtomicBool>, pace: Duration) -> Looks {
    let mut looks = Looks::default();
    while !stop.load(Ordering::Relaxed) {
        let code = match tokio::time::timeout(LIMIT, look(&config)).await {
            Ok(Ok(look)) => {
                looks.all.push(look);
                None
            }
            Ok(Err(error)) => Some(code_of(&error)),
            Err(_) => Some("timeout".to_owned()),
        };
        if let Some(code) = code {
            *looks.errors.entry(code).or_default() += 1;
        }
        tokio::time::sleep(pace).await;
    }
    looks
}

async fn look(config: &Config) -> Result<Look, tokio_postgres::Error> {
    let mut look = Look {
        began: clock::now(),
        ..Look::default()
    };
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    let who = client.query_one(WHO, &[]).await?;
    (look.is_replica, look.server) = (who.get(0), who.get(1));
    for row in client.query(LISTS, &[]).await? {
        look.lists.insert(row.get(0), row.get(1));
    }
    Ok(look)
}

/// What replicas may not have shown, a line each. A list may end with values of which nobody knows whether they were
/// committed: a replica that does not take part in commits may have had them, and lost them with the leader.
pub fn judge(history: &History, looks: &[Look], lagging: Option<&Lagging>) -> Vec<String> {
    let last = history.transactions.iter().max_by_key(|one| one.begin);
    let operations = last.iter().flat_map(|one| &one.operations);
    let lists: BTreeMap<Key, &[Value]> = operations
        .filter_map(|operation| match operation {
            Operation::Read(key, list) => Some((*key, list.as_slice())),
            Operation::Append(..) => None,
        })
        .collect();
    let unknown = history.transactions.iter();
    let unknown = unknown.filter(|one| one.status == Status::Unknown);
    let open: BTreeSet<Value> = unknown
        .flat_map(|one| &one.operations)
        .filter_map(|operation| match operation {
            Operation::Append(_, value) => Some(*value),
            Operation::Read(..) => None,
        })
        .collect();
    let mut faults = Vec::new();
    for look in looks {
        for (key, list) in &look.lists {
            let whole = lists.get(key).copied().unwrap_or_default();
            let same = list
                .iter()
                .zip(whole)
                .take_while(|(one, other)| one == other);
            let rest = &list[same.count()..];
            if let Some(value) = rest.iter().find(|value| !open.contains(value)) {
                faults.push(format!(
                    "{} showed {value} in list {key}, which is not there in the end",
                    look.server
                ));
            }
        }
        if let Some(lagging) = lagging
            && lagging.server == look.server
            && (lagging.known.0..lagging.known.1).contains(&look.began)
        {
            faults.push(format!(
                "a session went to {}, which the router knew to lag beyond its limit",
                look.server
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::list_append::Transaction;

    fn transaction(begin: u64, status: Status, operations: &[Operation]) -> Transaction {
        Transaction {
            client: 0,
            begin: Moment(begin),
            end: Moment(begin + 1),
            status,
            operations: operations.to_vec(),
        }
    }

    fn history() -> History {
        History {
            transactions: vec![
                transaction(100, Status::Ok, &[Operation::Read(1, vec![1, 2, 3])]),
                transaction(0, Status::Unknown, &[Operation::Append(1, 7)]),
                transaction(0, Status::Failed, &[Operation::Append(1, 8)]),
            ],
        }
    }

    fn faults(list: &[Value], lagging: Option<&Lagging>) -> usize {
        let look = Look {
            began: Moment(10),
            server: "b".to_owned(),
            is_replica: true,
            lists: BTreeMap::from([(1, list.to_vec())]),
        };
        judge(&history(), &[look], lagging).len()
    }

    #[test]
    fn a_replica_shows_what_a_list_was_and_perhaps_what_nobody_knows_of() {
        for list in [&[][..], &[1, 2], &[1, 2, 3], &[1, 2, 7]] {
            assert_eq!(faults(list, None), 0, "{list:?}");
        }
        for list in [&[2][..], &[1, 3], &[1, 2, 8], &[1, 2, 3, 4]] {
            assert_eq!(faults(list, None), 1, "{list:?}");
        }
    }

    #[test]
    fn no_session_begins_on_a_replica_that_is_known_to_lag() {
        let lagging = |server: &str, from, to| Lagging {
            server: server.to_owned(),
            known: (Moment(from), Moment(to)),
        };
        assert_eq!(faults(&[1], Some(&lagging("b", 10, 11))), 1);
        assert_eq!(faults(&[1], Some(&lagging("a", 10, 11))), 0);
        assert_eq!(faults(&[1], Some(&lagging("b", 11, 20))), 0);
        assert_eq!(faults(&[1], Some(&lagging("b", 5, 10))), 0);
    }
}
