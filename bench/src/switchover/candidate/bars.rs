//! How a change whose candidate was hurt is to end. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::harm::Harm;

/// The longest stall while nobody but the old leader can lead, or where the candidate's agent lives.
const SHORT: Duration = Duration::from_secs(2);

/// What is added where etcd loses its leader with the candidate's node: its election. The new leader also counts every
/// lease anew from there, and the switchover cannot be called off before (reliability: row 14 beside 13 of the matrix).
const ELECTION: Duration = Duration::from_secs(2);

/// What clients of a pool are told when the leader dies under them, and what they began cannot go on.
const DESERVED: [&str; 5] = ["40001", "08007", "57P01", "57P02", "57P03"];

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The old leader goes on; the key never left it.
    RolledBack,
    /// The member that was hurt leads.
    MovedToIt,
    /// Somebody else leads, and it never did.
    Another,
    /// It got the key, and somebody else leads now.
    PassedOn,
    /// Nobody led before it was healed: it had the key, and by the record of the synchronous mode nobody else may lead.
    OnlyIt,
    /// Nobody led before it was healed.
    Nobody,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 6] = [
        Outcome::RolledBack,
        Outcome::MovedToIt,
        Outcome::Another,
        Outcome::PassedOn,
        Outcome::OnlyIt,
        Outcome::Nobody,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::RolledBack => "rolled back",
            Outcome::MovedToIt => "moved to it",
            Outcome::Another => "another",
            Outcome::PassedOn => "passed on",
            Outcome::OnlyIt => "only it may",
            Outcome::Nobody => "NOBODY",
        }
    }
}

/// What a change is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What happened to the candidate.
    pub harm: Harm,
    /// Whether it got the key, before that or after.
    pub has_key_moved: bool,
    /// Whether etcd elected a leader meanwhile, since its own was cut off with the candidate.
    pub has_store_elected: bool,
    pub outcome: Outcome,
    /// The longest time without an acknowledged write.
    pub stall: Duration,
    /// Errors of clients by SQLSTATE.
    pub errors: &'a BTreeMap<String, usize>,
    /// Whether the operator was told that the change was made.
    pub is_told_done: bool,
}

/// The longest stall that is allowed.
pub fn longest_stall(facts: &Facts<'_>, ttl: Duration) -> Duration {
    let limit = match facts.has_key_moved && !facts.harm.leaves_agent() {
        true => ttl + SHORT,
        false => SHORT,
    };
    match facts.has_store_elected {
        true => limit + ELECTION,
        false => limit,
    }
}

/// What was missed. Times are left out where the machine's speed is not to be judged.
pub fn missed(facts: &Facts<'_>, ttl: Duration, judges_times: bool) -> Vec<String> {
    let mut missed = Vec::new();
    let limit = longest_stall(facts, ttl);
    if judges_times && facts.stall > limit {
        missed.push(format!("stall above {} ms", limit.as_millis()));
    }
    let is_deserved = |code: &str| facts.has_key_moved && DESERVED.contains(&code);
    let wrong = facts.errors.keys().filter(|code| !is_deserved(code));
    let wrong: Vec<_> = wrong.map(|code| format!("\"{code}\"")).collect();
    if !wrong.is_empty() {
        missed.push(format!("undeserved errors {}", wrong.join(" ")));
    }
    match facts.outcome {
        Outcome::OnlyIt | Outcome::Nobody => {
            missed.push("nobody led before it was healed".to_owned());
        }
        Outcome::RolledBack if facts.is_told_done => {
            missed.push("the command said that it was done".to_owned());
        }
        Outcome::RolledBack | Outcome::MovedToIt | Outcome::Another | Outcome::PassedOn => {}
    }
    missed
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn errors(codes: &[&str]) -> BTreeMap<String, usize> {
        codes.iter().map(|code| ((*code).to_owned(), 1)).collect()
    }

    fn rolled_back(errors: &BTreeMap<String, usize>) -> Facts<'_> {
        Facts {
            harm: Harm::KillNode,
            has_key_moved: false,
            has_store_elected: false,
            outcome: Outcome::RolledBack,
            stall: Duration::from_millis(1900),
            errors,
            is_told_done: false,
        }
    }

    #[test]
    fn only_a_lease_that_nobody_can_give_back_is_waited_for() {
        let none = errors(&[]);
        let limit = |harm, has_key_moved, has_store_elected| {
            let facts = Facts {
                harm,
                has_key_moved,
                has_store_elected,
                ..rolled_back(&none)
            };
            longest_stall(&facts, TTL)
        };
        assert_eq!(limit(Harm::KillAgent, false, false), SHORT);
        assert_eq!(limit(Harm::KillPostgres, true, false), SHORT);
        assert_eq!(limit(Harm::KillAgent, true, false), TTL + SHORT);
        assert_eq!(limit(Harm::CutNode, true, true), TTL + SHORT + ELECTION);
    }

    #[test]
    fn each_bar_is_missed_by_what_breaks_it() {
        let none = errors(&[]);
        let good = rolled_back(&none);
        let is_met = |facts: Facts<'_>| missed(&facts, TTL, true).is_empty();
        assert!(is_met(good));
        let slow = Facts {
            stall: Duration::from_millis(2100),
            ..good
        };
        assert!(!is_met(slow) && missed(&slow, TTL, false).is_empty());
        assert!(is_met(Facts {
            has_key_moved: true,
            outcome: Outcome::PassedOn,
            ..slow
        }));
        let deserved = errors(&["40001", "08007"]);
        let hurt = Facts {
            errors: &deserved,
            ..good
        };
        assert!(!is_met(hurt));
        assert!(is_met(Facts {
            has_key_moved: true,
            ..hurt
        }));
        let cut = errors(&["40001", ""]);
        assert!(!is_met(Facts {
            has_key_moved: true,
            errors: &cut,
            ..good
        }));
        assert!(!is_met(Facts {
            is_told_done: true,
            ..good
        }));
        assert!(!is_met(Facts {
            outcome: Outcome::Nobody,
            ..good
        }));
    }
}
