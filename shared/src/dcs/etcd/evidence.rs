//! What became of a write whose first copy was never answered.
//!
//! When a write was sent twice and the second copy's conditions did not hold, the first copy may have been
//! executed, or somebody else was faster. The keys it would have written tell: the second copy reads them
//! in the same transaction. If they hold what was asked for under our own lease, nobody else can have
//! written it. If they hold it without a lease, two members with the same request cannot be told apart.

use super::race::Finish;
use crate::dcs::{Committed, DcsError, Entry, Operation, Txn};

/// The transaction with reads of what it writes, for the case that its conditions do not hold.
pub(super) fn with_evidence(txn: &Txn) -> Txn {
    let mut sent = txn.clone();
    if !txn.when.is_empty() {
        sent.otherwise
            .extend(written(txn).map(|key| Operation::Get(key.to_owned())));
    }
    sent
}

fn written(txn: &Txn) -> impl Iterator<Item = &str> {
    txn.then.iter().filter_map(|step| match step {
        Operation::Put { key, .. } | Operation::Delete(key) => Some(key.as_str()),
        Operation::Get(_) => None,
    })
}

/// The answer to `txn`, from the answer to what was sent for it.
pub(super) fn judge(txn: &Txn, finish: Finish<Committed>) -> Result<Committed, DcsError> {
    let mut answer = finish.answer;
    if answer.succeeded || txn.when.is_empty() {
        return Ok(answer);
    }
    let evidence = split_evidence(txn, &mut answer.entries);
    if !finish.has_copies {
        return Ok(answer);
    }
    let unknown = |why: &str| DcsError::UnknownOutcome {
        endpoint: finish.endpoint.clone(),
        why: why.to_owned(),
    };
    let reads = txn
        .then
        .iter()
        .any(|step| matches!(step, Operation::Get(_)));
    match state(txn, &evidence) {
        State::NotAsWanted => Ok(answer),
        State::AsWanted => Err(unknown(
            "the keys are as wanted, but who wrote them cannot be told",
        )),
        State::Ours(_) if reads => Err(unknown("executed, but what it read is lost")),
        State::Ours(revision) => {
            answer.header.revision = revision;
            Ok(Committed {
                succeeded: true,
                entries: Vec::new(),
                ..answer
            })
        }
    }
}

/// Takes the evidence off the entries: it was read last, and only of keys that exist.
fn split_evidence(txn: &Txn, entries: &mut Vec<Entry>) -> Vec<Entry> {
    let asked = txn.otherwise.iter().filter(|step| match step {
        Operation::Get(key) => entries.iter().any(|entry| entry.key == *key),
        Operation::Put { .. } | Operation::Delete(_) => false,
    });
    let own = asked.count().min(entries.len());
    entries.split_off(own)
}

enum State {
    /// Some key is not as the transaction would have left it.
    NotAsWanted,
    /// All keys are, but nothing says who wrote them.
    AsWanted,
    /// All keys are, and one hangs on the lease that the transaction named.
    Ours(i64),
}

fn state(txn: &Txn, evidence: &[Entry]) -> State {
    let mut ours = None;
    for step in &txn.then {
        match step {
            Operation::Get(_) => {}
            Operation::Delete(key) => {
                if evidence.iter().any(|entry| entry.key == *key) {
                    return State::NotAsWanted;
                }
            }
            Operation::Put { key, value, lease } => {
                let is_written = |entry: &&Entry| {
                    entry.key == *key && entry.value == *value && entry.lease == *lease
                };
                let Some(found) = evidence.iter().find(is_written) else {
                    return State::NotAsWanted;
                };
                if *lease != 0 {
                    ours = Some(found.mod_revision);
                }
            }
        }
    }
    ours.map_or(State::AsWanted, State::Ours)
}
