//! A history of which a leader took a part with it. Where commits wait for nobody, what it acknowledged last may be lost,
//! and others may have read that before it was: those transactions lived on a branch that nobody followed, and what is
//! left must be as its level promises.

use std::collections::{BTreeMap, BTreeSet};

use super::{History, Key, Operation, Status, Transaction, Value};

/// A history in two parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parted {
    /// The transactions of which nothing speaks against the lists as they are in the end.
    pub kept: History,
    /// Those that appended or read a value that was committed, as far as its client knows, and is not there in the end.
    pub lost: Vec<Transaction>,
}

/// Parts a history by its last transaction, which read all lists. A value of a transaction that failed, or of nobody,
/// takes no reader along: that one stays, and is found as what it is.
pub fn part(history: &History) -> Parted {
    let last = history.transactions.iter().max_by_key(|one| one.begin);
    let mut there: BTreeMap<Key, BTreeSet<Value>> = BTreeMap::new();
    for operation in last.iter().flat_map(|one| &one.operations) {
        if let Operation::Read(key, list) = operation {
            there.entry(*key).or_default().extend(list);
        }
    }
    let is_there = |key: &Key, value: &Value| there.get(key).is_some_and(|all| all.contains(value));
    let mut lost: BTreeSet<(Key, Value)> = BTreeSet::new();
    for one in &history.transactions {
        for operation in &one.operations {
            if let Operation::Append(key, value) = operation
                && one.status != Status::Failed
                && !is_there(key, value)
            {
                lost.insert((*key, *value));
            }
        }
    }
    let is_of_branch = |one: &&Transaction| {
        one.operations.iter().any(|operation| match operation {
            Operation::Append(key, value) => {
                one.status == Status::Ok && lost.contains(&(*key, *value))
            }
            Operation::Read(key, list) => list.iter().any(|value| lost.contains(&(*key, *value))),
        })
    };
    let (branch, kept) = history.transactions.iter().partition(is_of_branch);
    let owned = |part: Vec<&Transaction>| part.into_iter().cloned().collect();
    Parted {
        kept: History {
            transactions: owned(kept),
        },
        lost: owned(branch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::list_append::{Kind, Level, anomalies};
    use trunkline_shared::cluster::Moment;

    fn transaction(begin: u64, status: Status, operations: &[Operation]) -> Transaction {
        Transaction {
            client: i32::try_from(begin).unwrap(),
            begin: Moment(begin),
            end: Moment(begin + 5),
            status,
            operations: operations.to_vec(),
        }
    }

    fn append(value: Value) -> Operation {
        Operation::Append(1, value)
    }

    fn read(list: &[Value]) -> Operation {
        Operation::Read(1, list.to_vec())
    }

    fn history(transactions: Vec<Transaction>) -> History {
        History { transactions }
    }

    #[test]
    fn who_made_or_read_what_is_not_there_lived_on_a_branch_and_the_rest_is_sound() {
        let all = history(vec![
            transaction(10, Status::Ok, &[append(1)]),
            transaction(20, Status::Ok, &[append(2)]),
            transaction(30, Status::Ok, &[read(&[1, 2])]),
            transaction(40, Status::Ok, &[read(&[1]), append(3)]),
            transaction(50, Status::Ok, &[read(&[1, 3])]),
        ]);
        assert!(!anomalies(&all, Level::Serializable).is_empty());
        let parted = part(&all);
        let begins: Vec<_> = parted.lost.iter().map(|one| one.begin.0).collect();
        assert_eq!(begins, [20, 30]);
        assert_eq!(anomalies(&parted.kept, Level::Serializable), Vec::new());
    }

    #[test]
    fn what_failed_or_was_made_by_nobody_takes_no_reader_along() {
        let all = history(vec![
            transaction(10, Status::Failed, &[append(1)]),
            transaction(20, Status::Ok, &[read(&[1])]),
            transaction(30, Status::Ok, &[read(&[9])]),
            transaction(40, Status::Ok, &[read(&[])]),
        ]);
        let parted = part(&all);
        assert!(parted.lost.is_empty());
        let found = anomalies(&parted.kept, Level::Serializable);
        let kinds: BTreeSet<_> = found.iter().map(|one| one.kind).collect();
        assert!(kinds.contains(&Kind::G1a) && kinds.contains(&Kind::GarbageRead));
    }

    #[test]
    fn a_transaction_of_which_a_half_is_there_is_found() {
        let all = history(vec![
            transaction(10, Status::Ok, &[append(1), append(2)]),
            transaction(20, Status::Ok, &[read(&[1])]),
        ]);
        let parted = part(&all);
        assert_eq!(parted.lost.len(), 1);
        assert!(!anomalies(&parted.kept, Level::Serializable).is_empty());
    }

    #[test]
    fn what_nobody_knows_of_and_is_not_there_stays() {
        let all = history(vec![
            transaction(10, Status::Unknown, &[append(1)]),
            transaction(20, Status::Ok, &[read(&[])]),
        ]);
        assert_eq!(part(&all).kept, all);
    }
}
