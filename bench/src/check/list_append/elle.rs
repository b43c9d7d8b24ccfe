//! A history as Jepsen's Elle and its kin read it: JSON lines, an event each. So others can judge the same run.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use trunkline_shared::cluster::Moment;

use super::{History, Operation, Status, Transaction};

/// The invocations and completions in the order of the clock. A process whose outcome is unknown never goes on: its client
/// is another process from then on.
pub fn lines(history: &History) -> String {
    // At one moment completions come first: that a client ends one and begins the next is no overlap.
    let mut events: Vec<(Moment, bool, usize)> = Vec::new();
    for (place, one) in history.transactions.iter().enumerate() {
        events.push((one.begin, true, place));
        events.push((one.end, false, place));
    }
    events.sort_unstable_by_key(|(at, is_begin, place)| (*at, *is_begin, *place));
    let mut processes: BTreeMap<i32, u64> = BTreeMap::new();
    let mut next = 0;
    let mut text = String::new();
    for (index, (at, is_begin, place)) in events.into_iter().enumerate() {
        let one = &history.transactions[place];
        let process = *processes.entry(one.client).or_insert_with(|| {
            next += 1;
            next
        });
        let kind = match (is_begin, one.status) {
            (true, _) => "invoke",
            (false, Status::Ok) => "ok",
            (false, Status::Failed) => "fail",
            (false, Status::Unknown) => {
                processes.remove(&one.client);
                "info"
            }
        };
        let value = value(one, kind == "ok");
        let event = json!({
            "index": index, "time": at.0, "process": process, "type": kind, "f": "txn", "value": value,
        });
        text += &format!("{event}\n");
    }
    text
}

/// The steps; what was read only where it counts.
fn value(one: &Transaction, is_ok: bool) -> Vec<Json> {
    let step = |operation: &Operation| match operation {
        Operation::Append(key, value) => json!(["append", key, value]),
        Operation::Read(key, list) if is_ok => json!(["r", key, list]),
        Operation::Read(key, _) => json!(["r", key, null]),
    };
    one.operations.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_goes_on_as_another_process_after_an_unknown_outcome() {
        let transaction = |begin, end, status| Transaction {
            client: 3,
            begin: Moment(begin),
            end: Moment(end),
            status,
            operations: vec![Operation::Append(1, 7), Operation::Read(1, vec![7])],
        };
        let history = History {
            transactions: vec![
                transaction(5, 6, Status::Ok),
                transaction(1, 5, Status::Unknown),
            ],
        };
        let text = lines(&history);
        let events: Vec<Json> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let told: Vec<_> = events
            .iter()
            .map(|event| {
                (
                    event["type"].as_str().unwrap(),
                    event["process"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(told, [("invoke", 1), ("info", 1), ("invoke", 2), ("ok", 2)]);
        assert_eq!(events[3]["value"], json!([["append", 1, 7], ["r", 1, [7]]]));
        assert_eq!(
            events[1]["value"],
            json!([["append", 1, 7], ["r", 1, null]])
        );
    }
}
