//! The smallest history of each anomaly, clean ones, and drawn ones.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;

/// A transaction of a client of its own that overlaps all others of this kind.
fn during(status: Status, operations: &[Operation]) -> Transaction {
    at(0, 100, status, operations)
}

fn at(begin: u64, end: u64, status: Status, operations: &[Operation]) -> Transaction {
    Transaction {
        client: 0,
        begin: Moment(begin),
        end: Moment(end),
        status,
        operations: operations.to_vec(),
    }
}

fn ok(operations: &[Operation]) -> Transaction {
    during(Status::Ok, operations)
}

fn append(key: Key, value: Value) -> Operation {
    Operation::Append(key, value)
}

fn read(key: Key, list: &[Value]) -> Operation {
    Operation::Read(key, list.to_vec())
}

/// The names of what a level forbids in it, each once.
fn names(transactions: &[Transaction], level: Level) -> Vec<String> {
    let history = History {
        transactions: transactions.to_vec(),
    };
    let mut names: Vec<_> = anomalies(&history, level)
        .iter()
        .map(Anomaly::name)
        .collect();
    names.dedup();
    names
}

/// Holds a history against what must be found at each level: read committed, repeatable read, serializable.
fn finds(transactions: &[Transaction], expected: [&[&str]; 3]) {
    let levels = [
        Level::ReadCommitted,
        Level::RepeatableRead,
        Level::Serializable,
    ];
    for (level, expected) in levels.into_iter().zip(expected) {
        assert_eq!(names(transactions, level), expected, "{level:?}");
    }
}

fn finds_at_every_level(transactions: &[Transaction], name: &str) {
    finds(transactions, [&[name], &[name], &[name]]);
}

#[test]
fn two_that_appended_each_behind_the_other_are_g0() {
    finds_at_every_level(
        &[
            ok(&[append(1, 1), append(2, 1)]),
            ok(&[append(1, 2), append(2, 2)]),
            ok(&[read(1, &[1, 2])]),
            ok(&[read(2, &[2, 1])]),
        ],
        "G0",
    );
}

#[test]
fn a_value_of_one_that_failed_is_g1a() {
    finds_at_every_level(
        &[
            during(Status::Failed, &[append(1, 1)]),
            ok(&[read(1, &[1])]),
        ],
        "G1a",
    );
}

#[test]
fn a_value_before_the_last_of_its_transaction_is_g1b() {
    let writer = ok(&[append(1, 1), append(1, 2)]);
    let half = [writer.clone(), ok(&[read(1, &[1])])];
    let circle = ["G1b", "G-single"];
    finds(&half, [&["G1b"], &circle, &circle]);
    let whole = [writer, ok(&[read(1, &[1, 2])])];
    finds(&whole, [&[], &[], &[]]);
}

#[test]
fn two_that_read_each_others_values_are_g1c() {
    finds_at_every_level(
        &[
            ok(&[append(1, 1), read(2, &[1])]),
            ok(&[append(2, 1), read(1, &[1])]),
        ],
        "G1c",
    );
}

#[test]
fn one_that_saw_half_of_another_is_g_single() {
    finds(
        &[
            ok(&[append(1, 1), append(2, 1)]),
            ok(&[read(1, &[1]), read(2, &[])]),
            ok(&[read(2, &[1])]),
        ],
        [&[], &["G-single"], &["G-single"]],
    );
}

#[test]
fn a_list_that_grew_within_one_transaction_is_g_single() {
    finds(
        &[ok(&[append(1, 1)]), ok(&[read(1, &[]), read(1, &[1])])],
        [&[], &["G-single"], &["G-single"]],
    );
}

#[test]
fn two_readers_that_saw_two_writers_in_different_orders_are_no_snapshots() {
    finds(
        &[
            ok(&[append(1, 1)]),
            ok(&[append(2, 1)]),
            ok(&[read(1, &[1]), read(2, &[])]),
            ok(&[read(1, &[]), read(2, &[1])]),
        ],
        [&[], &["G-nonadjacent"], &["G-nonadjacent"]],
    );
}

#[test]
fn two_that_missed_each_others_values_are_g2_item() {
    finds(
        &[
            ok(&[read(1, &[]), append(2, 1)]),
            ok(&[read(2, &[]), append(1, 1)]),
            ok(&[read(1, &[1]), read(2, &[1])]),
        ],
        [&[], &[], &["G2-item"]],
    );
}

#[test]
fn one_that_does_not_see_its_own_value_is_internal() {
    finds_at_every_level(&[ok(&[append(1, 1), read(1, &[])])], "internal");
}

#[test]
fn one_that_sees_its_own_value_before_it_appends_it_is_internal() {
    finds_at_every_level(&[ok(&[read(1, &[1]), append(1, 1)])], "internal");
}

#[test]
fn values_of_one_transaction_in_another_order_than_it_appended_them_are_out_of_order() {
    finds_at_every_level(
        &[
            ok(&[append(1, 1), append(1, 2)]),
            ok(&[append(1, 3)]),
            ok(&[read(1, &[2, 1, 3])]),
        ],
        "incompatible order",
    );
}

#[test]
fn a_value_of_nobody_is_garbage() {
    finds_at_every_level(&[ok(&[read(1, &[7])])], "garbage read");
}

#[test]
fn an_acknowledged_value_that_no_later_read_shows_is_lost() {
    let writer = at(0, 10, Status::Ok, &[append(1, 1)]);
    let reader = |begin| at(begin, 30, Status::Ok, &[read(1, &[])]);
    let circle = ["G-single-realtime", "lost append"];
    finds(
        &[writer.clone(), reader(11)],
        [&["lost append"], &circle, &circle],
    );
    // The reader began before it was acknowledged.
    finds(&[writer, reader(10)], [&[], &[], &[]]);
    let unknown = at(0, 10, Status::Unknown, &[append(1, 1)]);
    finds(&[unknown, reader(11)], [&[], &[], &[]]);
}

#[test]
fn a_value_that_was_seen_and_is_gone_is_lost_and_its_list_out_of_order() {
    let transactions = [
        at(0, 10, Status::Ok, &[append(1, 1)]),
        at(0, 10, Status::Ok, &[append(1, 2)]),
        at(0, 11, Status::Ok, &[read(1, &[1])]),
        at(20, 30, Status::Ok, &[read(1, &[2])]),
    ];
    let both = ["lost append", "incompatible order"];
    finds(&transactions, [&both, &both, &both]);
}

#[test]
fn an_unknown_append_is_committed_once_somebody_saw_it() {
    let unknown = at(0, 10, Status::Unknown, &[append(1, 1), append(2, 1)]);
    let saw = at(5, 20, Status::Ok, &[read(1, &[1])]);
    let later = |list: &[Value]| at(21, 30, Status::Ok, &[read(2, list)]);
    finds(
        &[unknown.clone(), saw.clone(), later(&[1])],
        [&[], &[], &[]],
    );
    let circle = ["G-single-realtime", "lost append"];
    finds(
        &[unknown, saw, later(&[])],
        [&["lost append"], &circle, &circle],
    );
}

#[test]
fn a_value_that_is_there_twice_is_a_duplicate() {
    finds_at_every_level(
        &[ok(&[append(1, 1)]), ok(&[read(1, &[1, 1])])],
        "duplicate append",
    );
}

#[test]
fn two_reads_of_which_neither_begins_with_the_other_are_out_of_order() {
    finds_at_every_level(
        &[
            ok(&[append(1, 1)]),
            ok(&[append(1, 2)]),
            ok(&[read(1, &[1, 2])]),
            ok(&[read(1, &[2])]),
        ],
        "incompatible order",
    );
}

#[test]
fn a_read_without_what_was_acknowledged_before_it_is_stale() {
    let transactions = [
        at(0, 10, Status::Ok, &[append(1, 1)]),
        at(11, 20, Status::Ok, &[read(1, &[])]),
        at(21, 30, Status::Ok, &[read(1, &[1])]),
    ];
    let stale = ["stale read"];
    let circle = ["G-single-realtime", "stale read"];
    finds(&transactions, [&stale, &circle, &circle]);
}

#[test]
fn the_clock_makes_a_circle_of_what_would_else_be_an_order() {
    // The second began after the first had ended, and its value stands before.
    let transactions = [
        at(0, 10, Status::Ok, &[append(1, 1)]),
        at(11, 20, Status::Ok, &[append(1, 2)]),
        at(0, 30, Status::Ok, &[read(1, &[2, 1])]),
    ];
    finds_at_every_level(&transactions, "G0-realtime");
    let mut at_once = transactions.clone();
    at_once[1].begin = Moment(10);
    finds(&at_once, [&[], &[], &[]]);
}

#[test]
fn the_clock_forbids_a_serial_order_that_reads_alone_would_allow() {
    // By reads alone the order is third, first, second.
    let transactions = [
        at(0, 50, Status::Ok, &[read(1, &[]), append(2, 1)]),
        at(0, 10, Status::Ok, &[append(1, 1)]),
        at(20, 30, Status::Ok, &[read(2, &[])]),
        at(60, 70, Status::Ok, &[read(1, &[1]), read(2, &[1])]),
    ];
    finds(&transactions, [&[], &[], &["G2-item-realtime"]]);
}

#[test]
fn what_a_failed_transaction_read_proves_nothing() {
    finds(
        &[
            ok(&[append(1, 1), append(2, 1)]),
            during(Status::Failed, &[read(1, &[1]), read(2, &[])]),
            during(Status::Unknown, &[read(1, &[]), read(1, &[1])]),
            ok(&[read(1, &[1]), read(2, &[1])]),
        ],
        [&[], &[], &[]],
    );
}

#[test]
fn a_circle_is_told_in_a_line_per_step() {
    let history = History {
        transactions: vec![
            at(0, 2_000_000_000, Status::Ok, &[append(1, 1), append(2, 1)]),
            ok(&[read(1, &[1]), read(2, &[])]),
            ok(&[read(2, &[1])]),
        ],
    };
    let found = anomalies(&history, Level::Serializable);
    let told = [
        "T1 (client 0, 0.000 s to 0.000 s) read key 2 without 1, which T0 (client 0, 0.000 s to 2.000 s) appended",
        "T0 (client 0, 0.000 s to 2.000 s) appended 1 to key 1, and T1 (client 0, 0.000 s to 0.000 s) read it",
    ];
    let stories: Vec<_> = found.iter().map(|one| one.story.clone()).collect();
    assert_eq!(stories, [told]);
}

const KEYS: i32 = 4;
const SEEDS: u64 = 300;
/// Small histories that are tried by brute force.
const SMALL: u64 = 3_000;
/// When the last one begins.
const FINAL: Moment = Moment(10_000);

/// Transactions one after another in an order that is drawn, each for a while before and behind its moment: some fail and
/// leave nothing, of some nobody knows. The last one reads everything.
fn serial(rng: &mut Rng, most: u64) -> History {
    let mut lists = BTreeMap::<Key, Vec<Value>>::new();
    let mut transactions = Vec::new();
    let mut next = 0;
    for moment in 1..=rng.u64(2..=most) {
        let (status, is_committed) = match rng.u8(..10) {
            0 => (Status::Failed, false),
            1 => (Status::Unknown, false),
            2 => (Status::Unknown, true),
            _ => (Status::Ok, true),
        };
        let mut after = lists.clone();
        let mut operations = Vec::new();
        for _ in 0..rng.usize(1..5) {
            let key = rng.i32(0..KEYS);
            let list = after.entry(key).or_default();
            if rng.bool() {
                next += 1;
                list.push(next);
                operations.push(append(key, next));
            } else {
                operations.push(read(key, list));
            }
        }
        if is_committed {
            lists = after;
        }
        let (begin, end) = (
            moment * 10 - rng.u64(..40).min(moment * 10),
            moment * 10 + rng.u64(..40),
        );
        transactions.push(at(begin, end, status, &operations));
    }
    let all: Vec<_> = (0..KEYS)
        .map(|key| read(key, lists.get(&key).map_or(&[][..], Vec::as_slice)))
        .collect();
    let end = FINAL.0 + 1;
    transactions.push(at(FINAL.0, end, Status::Ok, &all));
    rng.shuffle(&mut transactions);
    History { transactions }
}

#[test]
fn what_was_done_one_after_another_is_clean() {
    for seed in 0..SEEDS {
        let history = serial(&mut Rng::with_seed(seed), 60);
        assert_eq!(anomalies(&history, Level::Serializable), [], "seed {seed}");
    }
}

/// Changes one read of a transaction that was told to be committed, by a rule that knows whether it is the final one and
/// which values were acknowledged; whether there was one that the rule could change.
fn spoil(
    history: &mut History,
    rng: &mut Rng,
    rule: impl Fn(bool, &mut Vec<Value>, &BTreeSet<Value>) -> bool,
) -> bool {
    let told = history
        .transactions
        .iter()
        .filter(|one| one.status == Status::Ok);
    let values = told
        .flat_map(|one| &one.operations)
        .filter_map(|operation| match operation {
            Operation::Append(_, value) => Some(*value),
            Operation::Read(..) => None,
        });
    let acknowledged: BTreeSet<Value> = values.collect();
    let mut places: Vec<usize> = (0..history.transactions.len()).collect();
    rng.shuffle(&mut places);
    places.into_iter().any(|place| {
        let one = &mut history.transactions[place];
        let is_final = one.begin == FINAL;
        one.status == Status::Ok
            && one.operations.iter_mut().any(|operation| match operation {
                Operation::Read(_, list) => rule(is_final, list, &acknowledged),
                Operation::Append(..) => false,
            })
    })
}

fn is_found_when(rule: impl Fn(bool, &mut Vec<Value>, &BTreeSet<Value>) -> bool) {
    let mut spoilt = 0;
    for seed in 0..SEEDS {
        let mut rng = Rng::with_seed(seed);
        let mut history = serial(&mut rng, 60);
        if spoil(&mut history, &mut rng, &rule) {
            spoilt += 1;
            let found = anomalies(&history, Level::ReadCommitted);
            assert_ne!(found, [], "seed {seed}: {history:?}");
        }
    }
    assert!(
        spoilt > SEEDS / 2,
        "only {spoilt} histories could be changed"
    );
}

#[test]
fn a_read_with_two_values_swapped_is_found() {
    is_found_when(|is_final, list, _| {
        let length = list.len();
        let can_be = !is_final && length >= 2;
        if can_be {
            list.swap(length - 1, length - 2);
        }
        can_be
    });
}

#[test]
fn a_final_read_without_an_acknowledged_value_is_found() {
    is_found_when(|is_final, list, acknowledged| {
        let place = list.iter().rposition(|value| acknowledged.contains(value));
        let place = place.filter(|_| is_final);
        place.is_some_and(|place| acknowledged.contains(&list.remove(place)))
    });
}

#[test]
fn a_final_read_with_a_value_too_many_is_found() {
    is_found_when(|is_final, list, _| {
        list.extend(is_final.then_some(1_000_000));
        is_final
    });
}

/// Whether the transactions that were told to be committed, and some of those of which nobody knows, can be put one after
/// another, in the order of real time, so that each reads what those before it left: tried by brute force.
fn has_serial_order(history: &History) -> bool {
    let all = history.transactions.iter();
    let left: Vec<_> = all.filter(|one| one.status != Status::Failed).collect();
    can_go_on(&left, &BTreeMap::new())
}

fn can_go_on(left: &[&Transaction], lists: &BTreeMap<Key, Vec<Value>>) -> bool {
    left.iter().all(|one| one.status == Status::Unknown)
        || left.iter().enumerate().any(|(place, one)| {
            let must_wait =
                |other: &&Transaction| other.status == Status::Ok && other.end < one.begin;
            let mut after = lists.clone();
            let fits = |operation: &Operation| match operation {
                Operation::Append(key, value) => {
                    after.entry(*key).or_default().push(*value);
                    true
                }
                Operation::Read(key, list) => after.entry(*key).or_default() == list,
            };
            if left.iter().any(must_wait) || !one.operations.iter().all(fits) {
                return false;
            }
            let mut rest = left.to_vec();
            rest.remove(place);
            can_go_on(&rest, &after)
        })
}

/// Makes a read of anybody the beginning of another read of the same list, or swaps its last values.
fn change_a_read(history: &mut History, rng: &mut Rng) {
    let reads = history.transactions.iter().flat_map(|one| &one.operations);
    let reads: Vec<_> = reads
        .filter_map(|operation| match operation {
            Operation::Read(key, list) => Some((*key, list.clone())),
            Operation::Append(..) => None,
        })
        .collect();
    let place = rng.usize(..reads.len());
    let key = reads[place].0;
    let of_key: Vec<_> = reads.iter().filter(|read| read.0 == key).collect();
    let mut list = of_key[rng.usize(..of_key.len())].1.clone();
    list.truncate(rng.usize(..=list.len()));
    let length = list.len();
    if length >= 2 && rng.u8(..4) == 0 {
        list.swap(length - 1, length - 2);
    }
    let operations = history
        .transactions
        .iter_mut()
        .flat_map(|one| &mut one.operations);
    let mut reads = operations.filter_map(|operation| match operation {
        Operation::Read(_, list) => Some(list),
        Operation::Append(..) => None,
    });
    if let Some(changed) = reads.nth(place) {
        *changed = list;
    }
}

#[test]
fn a_small_history_is_clean_exactly_if_a_serial_order_explains_it() {
    let mut explained = 0;
    for seed in 0..SMALL {
        let mut rng = Rng::with_seed(seed);
        let mut history = serial(&mut rng, 6);
        for _ in 0..rng.u8(1..4) {
            change_a_read(&mut history, &mut rng);
        }
        let has_order = has_serial_order(&history);
        explained += u64::from(has_order);
        let found = anomalies(&history, Level::Serializable);
        assert_eq!(
            found.is_empty(),
            has_order,
            "seed {seed}: {found:#?} in {history:#?}"
        );
    }
    assert!(
        explained > SMALL / 20 && explained < SMALL * 19 / 20,
        "{explained}"
    );
}
