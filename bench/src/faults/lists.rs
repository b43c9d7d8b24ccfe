//! What transactions on lists, and sessions on the read port, showed while a row ran. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::check::list_append::parted::{Parted, part};
use crate::check::list_append::{History, Level, Status, Transaction, anomalies};
use crate::failover::sequence::Inflicted;
use crate::serial::replicas::{self, Look};

/// The level of every transaction on lists.
pub const LEVEL: Level = Level::Serializable;
/// A standby that streams has what was committed this long ago.
const BEHIND: Duration = Duration::from_secs(1);
/// So many anomalies are told with their story.
const TOLD: usize = 3;

/// What the clients of the lists saw.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Their transactions, the final read last.
    pub history: History,
    /// Sessions on the read ports.
    pub looks: Vec<Look>,
}

/// How much was judged, and what was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Transactions on lists that committed.
    pub transactions: usize,
    /// Of these, those that went with a leader.
    pub transactions_lost: usize,
    /// Sessions on the read ports.
    pub looks: usize,
}

/// Judges them; what may not be, a line each. Where a row may lose writes, transactions may be lost with them: those
/// that were acknowledged around a change of timeline.
pub fn judge(lists: &Lists, inflicted: &[Inflicted], may_lose: bool) -> (Counts, Vec<String>) {
    let parted = match may_lose {
        true => part(&lists.history),
        false => Parted {
            kept: lists.history.clone(),
            lost: Vec::new(),
        },
    };
    let counts = Counts {
        transactions: committed(&lists.history),
        transactions_lost: parted.lost.len(),
        looks: lists.looks.len(),
    };
    let mut missed = forbidden(&parted.kept);
    missed.extend(lost_beside_changes(&parted, inflicted));
    missed.extend(on_replicas(lists, &parted));
    // The final read is no client's.
    if committed(&parted.kept) < 2 {
        missed.push("no transaction on lists committed: nothing is shown".to_owned());
    }
    (counts, missed)
}

fn committed(history: &History) -> usize {
    let all = history.transactions.iter();
    all.filter(|one| one.status == Status::Ok).count()
}

fn forbidden(history: &History) -> Vec<String> {
    let found = anomalies(history, LEVEL);
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for one in &found {
        *names.entry(one.name()).or_default() += 1;
    }
    let mut missed = Vec::new();
    if !names.is_empty() {
        missed.push(format!("transactions on lists show {names:?}"));
    }
    let told = found.iter().take(TOLD);
    missed.extend(told.map(|one| format!("{}: {}", one.name(), one.story.join("; "))));
    missed
}

/// Each that is lost went with the leader of one change: it was committed no longer before the fault than a standby is
/// behind, and begun before the cluster was whole again.
fn lost_beside_changes(parted: &Parted, inflicted: &[Inflicted]) -> Option<String> {
    let changes = || inflicted.iter().filter(|one| one.fork.is_some());
    let went_along = |one: &&Transaction| {
        changes().any(|change| {
            let whole = change.whole.unwrap_or(change.healed);
            one.end + BEHIND >= change.began && one.begin < whole
        })
    };
    let others = parted.lost.iter().filter(|one| !went_along(one)).count();
    (others > 0)
        .then(|| format!("{others} transactions on lists are lost, and no leader went with them"))
}

/// A replica may have had what a leader lost.
fn on_replicas(lists: &Lists, parted: &Parted) -> Vec<String> {
    let mut history = parted.kept.clone();
    let unknown = parted.lost.iter().cloned().map(|mut one| {
        one.status = Status::Unknown;
        one
    });
    history.transactions.extend(unknown);
    let mut faults = replicas::judge(&history, &lists.looks, None);
    let more = faults.len().saturating_sub(TOLD);
    faults.truncate(TOLD);
    faults.extend((more > 0).then(|| format!("and {more} more such looks")));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::list_append::Operation;
    use trunkline_shared::cluster::Moment;

    fn transaction(begin: u64, operations: &[Operation]) -> Transaction {
        Transaction {
            client: i32::try_from(begin).unwrap(),
            begin: Moment(begin),
            end: Moment(begin + 5),
            status: Status::Ok,
            operations: operations.to_vec(),
        }
    }

    /// One appended 1, another one 2, which a leader lost.
    fn lists() -> Lists {
        Lists {
            history: History {
                transactions: vec![
                    transaction(10, &[Operation::Append(1, 1)]),
                    transaction(20, &[Operation::Append(1, 2)]),
                    transaction(90, &[Operation::Read(1, vec![1])]),
                ],
            },
            looks: vec![Look {
                began: Moment(30),
                server: "b".to_owned(),
                is_replica: true,
                lists: BTreeMap::from([(1, vec![1, 2])]),
            }],
        }
    }

    fn change(whole: u64) -> Inflicted {
        Inflicted {
            what: "a fault".to_owned(),
            on: "n1".to_owned(),
            on_leader: true,
            began: Moment(15),
            healed: Moment(16),
            whole: Some(Moment(whole)),
            before: ("n1".to_owned(), 1),
            after: Some(("n2".to_owned(), 2)),
            fork: Some(0),
        }
    }

    #[test]
    fn what_a_leader_lost_may_be_lost_where_the_row_says_so_and_a_replica_may_have_had_it() {
        let (counts, missed) = judge(&lists(), &[change(40)], true);
        assert_eq!(missed, Vec::<String>::new());
        assert_eq!((counts.transactions, counts.transactions_lost), (3, 1));
        let (_, missed) = judge(&lists(), &[change(40)], false);
        assert!(missed[0].contains("lost append"), "{missed:?}");
    }

    #[test]
    fn nothing_is_lost_without_a_change_of_timeline_before_it() {
        for inflicted in [vec![], vec![change(18)]] {
            let (_, missed) = judge(&lists(), &inflicted, true);
            assert_eq!(missed.len(), 1, "{missed:?}");
        }
    }

    #[test]
    fn what_was_committed_long_before_a_fault_does_not_go_with_its_leader() {
        let second = 1_000_000_000;
        let late = Inflicted {
            began: Moment(2 * second),
            healed: Moment(2 * second + 1),
            ..change(3 * second)
        };
        let (_, missed) = judge(&lists(), &[late], true);
        assert_eq!(missed.len(), 1, "{missed:?}");
    }

    #[test]
    fn a_replica_shows_nothing_that_never_was() {
        let mut lists = lists();
        lists.looks[0].lists = BTreeMap::from([(1, vec![7])]);
        let (_, missed) = judge(&lists, &[change(40)], true);
        assert_eq!(missed.len(), 1, "{missed:?}");
    }

    #[test]
    fn lists_that_nobody_wrote_show_nothing() {
        let (_, missed) = judge(&Lists::default(), &[], true);
        assert_eq!(missed.len(), 1);
    }
}
