//! What a run showed, and whether that was promised.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::{Course, SerialOptions, replicas};
use crate::check::list_append::{Anomaly, History, Level, Operation, Status, anomalies};
use crate::report::{self, say};

/// So many anomalies are told in full, and so many faults of replicas.
const TOLD: usize = 5;

/// One anomaly as it is written.
#[derive(Debug, Serialize)]
struct Found {
    name: String,
    story: Vec<String>,
}

/// How often what was done, by transactions that committed, or that did not.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    committed: usize,
    failed: usize,
    unknown: usize,
    /// Of those that committed.
    appends: usize,
    reads: usize,
    /// Transactions of clients that committed and had begun after the fault was over.
    committed_afterwards: usize,
}

/// What a run showed.
#[derive(Debug, Serialize)]
pub struct Results {
    machine: String,
    /// What was under the clients: the fault's name, or `control`.
    under: String,
    level: String,
    clients: i32,
    seed: u64,
    #[serde(flatten)]
    counts: Counts,
    /// The longest time without a transaction that committed.
    gap_ms: f64,
    /// Errors by SQLSTATE.
    errors: BTreeMap<String, usize>,
    /// What the level forbids.
    forbidden: Vec<Found>,
    /// What it permits, by name.
    permitted: BTreeMap<String, usize>,
    /// Sessions on the read port, and those of them that a primary answered.
    looks: usize,
    looks_at_primary: usize,
    /// Their errors by SQLSTATE.
    look_errors: BTreeMap<String, usize>,
    /// What replicas showed and may not show.
    replica_faults: Vec<String>,
    judged_ms: f64,
}

impl Results {
    /// Judges it.
    pub fn judge(options: &SerialOptions, seed: u64, course: Course) -> Results {
        let history = &course.seen.history;
        let began = clock::now();
        let forbidden = anomalies(history, options.level);
        let permitted = permitted(history, options.level);
        let judged = clock::now().since(began);
        let found = |one: &Anomaly| Found {
            name: one.name(),
            story: one.story.clone(),
        };
        let level = options.level.to_possible_value();
        let looks = &course.looks.all;
        Results {
            machine: report::machine(),
            under: match options.control {
                true => "control".to_owned(),
                false => options.fault.name(),
            },
            level: level.map_or_else(String::new, |value| value.get_name().to_owned()),
            clients: options.clients,
            seed,
            counts: counts(history, course.fault_over),
            gap_ms: gap(history).as_secs_f64() * 1e3,
            forbidden: forbidden.iter().map(found).collect(),
            permitted,
            looks: looks.len(),
            looks_at_primary: looks.iter().filter(|look| !look.is_replica).count(),
            replica_faults: replicas::judge(history, looks, course.lagging.as_ref()),
            look_errors: course.looks.errors,
            errors: course.seen.errors,
            judged_ms: judged.as_secs_f64() * 1e3,
        }
    }

    /// Prints it; whether it is as promised.
    pub fn tell(&self) -> bool {
        self.tell_table();
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for one in &self.forbidden {
            *names.entry(&one.name).or_default() += 1;
        }
        if !names.is_empty() {
            say(format!("FAULT forbidden by the level: {names:?}"));
        }
        for one in self.forbidden.iter().take(TOLD) {
            say(format!("{}:", one.name));
            for line in &one.story {
                say(format!("    {line}"));
            }
        }
        for fault in self.replica_faults.iter().take(TOLD) {
            say(format!("FAULT {fault}"));
        }
        let flows = self.counts.committed_afterwards > 0;
        if !flows {
            say("FAULT no transaction committed after the fault");
        }
        let is_met = self.forbidden.is_empty() && self.replica_faults.is_empty() && flows;
        say(format!(
            "{}: nothing that {} forbids, no state on replicas that never was, commits after the fault",
            if is_met { "met" } else { "MISSED" },
            self.level
        ));
        is_met
    }

    fn tell_table(&self) {
        let Counts {
            committed,
            failed,
            unknown,
            appends,
            reads,
            ..
        } = self.counts;
        let cells = [
            ("under", self.under.clone()),
            ("level", self.level.clone()),
            ("committed", committed.to_string()),
            ("failed", failed.to_string()),
            ("unknown", unknown.to_string()),
            ("appends", appends.to_string()),
            ("reads", reads.to_string()),
            ("gap ms", format!("{:.0}", self.gap_ms)),
            ("on replicas", self.looks.to_string()),
            ("forbidden", self.forbidden.len().to_string()),
            (
                "permitted",
                self.permitted.values().sum::<usize>().to_string(),
            ),
        ];
        let head = cells.each_ref().map(|(name, _)| *name);
        let row = cells.map(|(_, cell)| cell).to_vec();
        say(report::table(&head, &[row]));
        for (what, counts) in [
            ("errors by SQLSTATE", &self.errors),
            ("errors on the read port", &self.look_errors),
            ("permitted by the level", &self.permitted),
        ] {
            if !counts.is_empty() {
                say(format!("{what}: {counts:?}"));
            }
        }
        if self.looks_at_primary > 0 {
            let count = self.looks_at_primary;
            say(format!(
                "{count} sessions on the read port were answered by a primary"
            ));
        }
        say(format!(
            "{} clients, seed {}, judged in {:.0} ms; {}",
            self.clients, self.seed, self.judged_ms, self.machine
        ));
    }
}

/// What the strictest level forbids and this one does not, by name.
fn permitted(history: &History, level: Level) -> BTreeMap<String, usize> {
    let mut permitted = BTreeMap::new();
    if level < Level::Serializable {
        let all = anomalies(history, Level::Serializable);
        for one in all.iter().filter(|one| !one.is_forbidden(level)) {
            *permitted.entry(one.name()).or_default() += 1;
        }
    }
    permitted
}

/// The last transaction is the final read and no client's.
fn counts(history: &History, fault_over: Moment) -> Counts {
    let mut counts = Counts::default();
    let clients = history.transactions.len().saturating_sub(1);
    for (place, one) in history.transactions.iter().enumerate() {
        match one.status {
            Status::Ok => {
                counts.committed += 1;
                let is_later = place < clients && one.begin > fault_over;
                counts.committed_afterwards += usize::from(is_later);
                for operation in &one.operations {
                    match operation {
                        Operation::Append(..) => counts.appends += 1,
                        Operation::Read(..) => counts.reads += 1,
                    }
                }
            }
            Status::Failed => counts.failed += 1,
            Status::Unknown => counts.unknown += 1,
        }
    }
    counts
}

/// The longest time between two ends of transactions that committed.
fn gap(history: &History) -> Duration {
    let committed = history.transactions.iter();
    let committed = committed.filter(|one| one.status == Status::Ok);
    let mut ends: Vec<_> = committed.map(|one| one.end).collect();
    ends.sort_unstable();
    let gaps = ends.windows(2).map(|pair| pair[1].since(pair[0]));
    gaps.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::list_append::Transaction;

    #[test]
    fn the_final_read_is_no_sign_that_clients_go_on() {
        let transaction = |begin, status, operations: &[Operation]| Transaction {
            client: 0,
            begin: Moment(begin),
            end: Moment(begin + 5),
            status,
            operations: operations.to_vec(),
        };
        let append = Operation::Append(1, 1);
        let read = Operation::Read(1, vec![1]);
        let mut history = History {
            transactions: vec![
                transaction(0, Status::Ok, &[append.clone(), read.clone()]),
                transaction(20, Status::Failed, std::slice::from_ref(&append)),
                transaction(20, Status::Unknown, &[append]),
                transaction(90, Status::Ok, &[read.clone(), read]),
            ],
        };
        let told = counts(&history, Moment(10));
        let expected = Counts {
            committed: 2,
            failed: 1,
            unknown: 1,
            appends: 1,
            reads: 3,
            committed_afterwards: 0,
        };
        assert_eq!(told, expected);
        assert_eq!(gap(&history), Duration::from_nanos(90));
        history.transactions[1].status = Status::Ok;
        assert_eq!(counts(&history, Moment(10)).committed_afterwards, 1);
    }
}
