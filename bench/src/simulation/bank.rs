//! The bank: bugs that the tools of this field have had, each planted here by a switch, and how many seeds the
//! simulation needs until the harm that such a bug does breaks the invariant that forbids it.
//!
//! That other invariants notice a bug sooner does not count: a history is played on until its own harm is seen.

use serde::Serialize;

use super::{Break, Bug, Coverage, Failure, Invariant, Options, play};
use crate::report;

/// How a bug of the bank is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// By this switch.
    By(Break),
    /// Nothing here could be broken to have it; why.
    Nowhere(&'static str),
}

/// A bug of the bank.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its number in the list that the project keeps.
    pub number: u8,
    /// Whose it was, and where it is told.
    pub seen_in: &'static str,
    /// What happened.
    pub bug: &'static str,
    /// How it is planted here.
    pub planted: Planted,
}

const fn known(number: u8, seen_in: &'static str, bug: &'static str, planted: Planted) -> Known {
    Known {
        number,
        seen_in,
        bug,
        planted,
    }
}

const fn bug(bug: Bug) -> Planted {
    Planted::By(Break::Historical(bug))
}

/// All of them.
pub const BANK: [Known; 27] = [
    known(
        1,
        "Patroni #308, #316",
        "whether to demote is decided by another, stale read",
        bug(Bug::StaleReadTrusted),
    ),
    known(
        2,
        "Patroni 3.0",
        "an agent hangs, wakes up and wins the race as stale primary",
        Planted::By(Break::ClaimIgnored),
    ),
    known(
        3,
        "Patroni",
        "replicas do not notice that the old primary still runs",
        Planted::By(Break::NoPeerCheck),
    ),
    known(
        4,
        "Patroni 4.1.4",
        "the watchdog is disarmed before every process has ended",
        bug(Bug::DisarmedEarly),
    ),
    known(
        5,
        "CloudNativePG #11280, #11518",
        "an isolated primary is asked to stop instead of killed",
        bug(Bug::FencedGently),
    ),
    known(
        6,
        "Patroni, etcd3",
        "a watch was cancelled, and the view it left is kept",
        bug(Bug::CancelUnheard),
    ),
    known(
        7,
        "Patroni #3318",
        "a stale etcd member answers, and a leader is demoted for nothing",
        bug(Bug::StaleMemberBelieved),
    ),
    known(
        8,
        "Patroni #3572, #3407",
        "an error of etcd is no outage, so that failsafe mode is not entered",
        bug(Bug::OutageUnrecognized),
    ),
    known(
        9,
        "Patroni 3.1",
        "failsafe mode outlives a promotion, and the new primary demotes itself",
        Planted::Nowhere(
            "there is no such state: a promise names the time at which it ends, and a leader's right to lead does not \
             ask for it",
        ),
    ),
    known(
        10,
        "Patroni",
        "an asynchronous member wins a switchover without a target",
        Planted::By(Break::PromoteOutsideSync),
    ),
    known(
        11,
        "Patroni",
        "the key is released although the named candidate lacks the last record",
        bug(Bug::AnybodyConfirms),
    ),
    known(
        12,
        "Patroni 4.0",
        "a synchronous node joins and leaves, and /sync is ahead of PostgreSQL",
        Planted::By(Break::SyncRecordBeforeGuc),
    ),
    known(
        13,
        "CloudNativePG #1688, #7481",
        "a promotion without R + W > N",
        Planted::By(Break::VotesShortByOne),
    ),
    known(
        14,
        "several",
        "positions are compared while WAL still arrives",
        bug(Bug::PositionsFromBefore),
    ),
    known(
        15,
        "Multigres",
        "replay that stands still is taken for complete",
        bug(Bug::ReplayCompared),
    ),
    known(
        16,
        "Patroni #2073, #2124, #3367",
        "a rewind before the checkpoint after the promotion",
        bug(Bug::RewoundTooEarly),
    ),
    known(
        17,
        "Patroni 2.1",
        "a hole in the history makes a rewind seem unnecessary",
        bug(Bug::HistoryUnread),
    ),
    known(
        18,
        "Patroni 4.1",
        "the same leader begins another timeline, and replicas do not look again",
        bug(Bug::LeaderNameCompared),
    ),
    known(
        19,
        "Patroni",
        "the former leader's slot is dropped when its record expires with it",
        bug(Bug::SlotsOfTheLiving),
    ),
    known(
        20,
        "Patroni",
        "a member is not who it seems: here data of another cluster",
        bug(Bug::IdentityUnread),
    ),
    known(
        21,
        "etcd #12528, #15247, PR 20615",
        "a deposed etcd leader answers keep-alives that renew nothing",
        bug(Bug::KeepAliveTrusted),
    ),
    known(
        22,
        "Patroni #1412",
        "a commit whose wait for standbys was cancelled is acknowledged",
        bug(Bug::CancelledWaitRelayed),
    ),
    known(
        23,
        "stolon #514",
        "a restart in place shows commits that nobody has confirmed",
        Planted::By(Break::OpenAtOnce),
    ),
    known(
        24,
        "pg_auto_failover",
        "a missing transition, and nobody leads any more",
        bug(Bug::LeaseNeverGivenUp),
    ),
    known(
        25,
        "GitLab",
        "failovers again and again while the DCS is slow",
        bug(Bug::NoPatience),
    ),
    known(
        26,
        "several",
        "the deadline counts from the answer of a keep-alive",
        Planted::By(Break::DeadlineFromAnswer),
    ),
    known(
        27,
        "several",
        "what was held goes to a primary that is none yet",
        bug(Bug::PromotingWritten),
    ),
];

/// A bug that was caught.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caught {
    /// The seeds that were played, the last of which broke the invariant.
    pub seeds: u64,
    /// Which invariant, of those that are to.
    pub invariant: String,
    /// What was broken first in that seed, if something else was.
    pub before: Option<String>,
}

/// What the search for one bug came to.
#[derive(Clone, Debug, Serialize)]
pub struct Searched {
    /// The bug's number.
    pub number: u8,
    /// Whose it was.
    pub seen_in: &'static str,
    /// What happened.
    pub bug: &'static str,
    /// The switch; none where it cannot be planted.
    pub switch: Option<&'static str>,
    /// Why it cannot.
    pub nowhere: Option<&'static str>,
    /// One for every starting point; nothing where the seeds did not suffice.
    pub found: Vec<Option<Caught>>,
}

/// Where and for how long bugs are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// The first seed of the first starting point.
    pub from: u64,
    /// How many seeds are played from each starting point at the most.
    pub seeds: u64,
    /// How many starting points there are.
    pub starts: u64,
    /// How many threads take turns at them.
    pub threads: u64,
}

/// From one starting point to the next.
const APART: u64 = 1_000_000;

impl Known {
    /// Looks for it from every starting point.
    pub fn search(&self, search: Search, shape: Options) -> Searched {
        let (rule, nowhere) = match self.planted {
            Planted::By(rule) => (Some(rule), None),
            Planted::Nowhere(why) => (None, Some(why)),
        };
        let options = Options {
            rule,
            is_patient: true,
            ..shape
        };
        let starts = match rule {
            Some(_) => search.starts,
            None => 0,
        };
        let found = in_threads(search, starts, |from| {
            let (seeds, failure, before) = first(from, search.seeds, options)?;
            Some(Caught {
                seeds,
                invariant: name(failure.invariant),
                before: before.map(|failure| name(failure.invariant)),
            })
        });
        Searched {
            number: self.number,
            seen_in: self.seen_in,
            bug: self.bug,
            switch: rule.map(Break::word),
            nowhere,
            found,
        }
    }
}

/// Looks from each starting point, in their order.
fn in_threads(
    search: Search,
    starts: u64,
    look: impl Fn(u64) -> Option<Caught> + Sync,
) -> Vec<Option<Caught>> {
    let threads = search.threads.clamp(1, 64);
    let mut found: Vec<(u64, Option<Caught>)> = Vec::new();
    std::thread::scope(|scope| {
        let look = &look;
        let workers = (0..threads).map(|thread| {
            let own = (0..starts).filter(move |start| start % threads == thread);
            let from = move |start| search.from + start * APART;
            scope.spawn(move || {
                own.map(|start| (start, look(from(start))))
                    .collect::<Vec<_>>()
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            match worker.join() {
                Ok(one) => found.extend(one),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    found.sort_by_key(|(start, _)| *start);
    found.into_iter().map(|(_, caught)| caught).collect()
}

/// The first seed in which a rule's own invariant is broken: how many were played, and what was broken before it.
fn first(from: u64, seeds: u64, options: Options) -> Option<(u64, Failure, Option<Failure>)> {
    let mut coverage = Coverage::default();
    (from..from + seeds).find_map(|seed| {
        let outcome = play(seed, options, &mut coverage, false);
        let failure = outcome.failure?;
        Some((seed - from + 1, failure, outcome.noted))
    })
}

fn name(invariant: Invariant) -> String {
    format!("{invariant:?}")
}

impl Searched {
    /// Whether it counts: it can be planted.
    pub fn counts(&self) -> bool {
        self.switch.is_some()
    }

    /// Whether it was caught from every starting point.
    pub fn is_caught(&self) -> bool {
        self.counts() && self.found.iter().all(Option::is_some)
    }

    /// The seeds that the starting point in the middle needed; nothing if those played did not suffice there.
    pub fn median(&self) -> Option<u64> {
        let missed = |found: &Option<Caught>| found.as_ref().map_or(u64::MAX, |found| found.seeds);
        let seeds: Vec<u64> = self.found.iter().map(missed).collect();
        report::median(&seeds).filter(|seeds| *seeds < u64::MAX)
    }

    /// Its line of the table.
    pub fn row(&self) -> Vec<String> {
        let mut by: Vec<&str> = Vec::new();
        for found in self.found.iter().flatten() {
            if !by.contains(&found.invariant.as_str()) {
                by.push(&found.invariant);
            }
        }
        let seeds = self.found.iter().flatten().map(|found| found.seeds);
        let caught = seeds.clone().count();
        let verdict = match (self.counts(), self.is_caught()) {
            (false, _) => "not counted".to_owned(),
            (true, true) => "caught".to_owned(),
            (true, false) => format!(
                "MISSED from {} of {}",
                self.found.len() - caught,
                self.found.len()
            ),
        };
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            self.number.to_string(),
            self.seen_in.to_owned(),
            self.bug.to_owned(),
            self.switch.unwrap_or("-").to_owned(),
            by.join(", "),
            dash(self.median().map(|seeds| seeds.to_string())),
            dash(seeds.max().map(|seeds| seeds.to_string())),
            verdict,
        ]
    }
}

/// The head of that table.
pub const HEAD: [&str; 8] = [
    "#",
    "seen in",
    "bug",
    "switch",
    "noticed by",
    "seeds, median",
    "most",
    "verdict",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::noticed_by;

    #[test]
    fn every_bug_stands_once_in_its_order_and_every_switch_plants_one() {
        let numbers: Vec<u8> = BANK.iter().map(|known| known.number).collect();
        assert_eq!(numbers, (1..=27).collect::<Vec<u8>>());
        let planted = BANK.iter().filter(|known| match known.planted {
            Planted::By(rule) => !noticed_by(rule).is_empty(),
            Planted::Nowhere(why) => why.len() < 20,
        });
        assert!(planted.count() >= 25);
        for (rule, word) in Break::ALL {
            let is_planted = BANK.iter().any(|known| known.planted == Planted::By(rule));
            let is_historical = matches!(rule, Break::Historical(_));
            assert!(is_planted || !is_historical, "{word} plants no bug");
        }
    }

    #[test]
    fn a_bug_that_was_missed_once_is_not_caught_and_counts_as_the_longest_search() {
        let found = |seeds| {
            Some(Caught {
                seeds,
                invariant: "ALeaderEmerges".to_owned(),
                before: None,
            })
        };
        let mut searched = Searched {
            number: 1,
            seen_in: "somewhere",
            bug: "something",
            switch: Some("word"),
            nowhere: None,
            found: vec![found(9), None, found(2)],
        };
        assert_eq!((searched.median(), searched.is_caught()), (Some(9), false));
        searched.found[1] = found(4);
        assert_eq!((searched.median(), searched.is_caught()), (Some(4), true));
        assert_eq!(searched.row()[5..].join(" "), "4 9 caught");
        searched.switch = None;
        assert!(!searched.is_caught());
    }
}
