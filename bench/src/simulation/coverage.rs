//! What the seeds reached: a count of every situation, action, reason, job and kind of fault.

use std::fmt;

use trunkline_agent::decide::observation::JobKind;
use trunkline_agent::decide::{Action, Reason, Situation};

use super::plan::FaultKind;

/// Counts over many seeds.
#[derive(Clone, Debug)]
pub struct Coverage {
    situations: Vec<u64>,
    actions: Vec<u64>,
    reasons: Vec<u64>,
    jobs: Vec<u64>,
    faults: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            situations: vec![0; Situation::ALL.len()],
            actions: vec![0; Action::WORDS.len()],
            reasons: vec![0; Reason::ALL.len()],
            jobs: vec![0; JobKind::ALL.len()],
            faults: vec![0; FaultKind::ALL.len()],
        }
    }
}

/// Reasons that this world cannot reach yet, each with why.
pub const UNREACHED: &[(&str, &str)] = &[
    (
        "kept_data_without_cluster",
        "what every simulated member keeps of the DCS beside its data doubts an empty one first; a script holds the rule",
    ),
    (
        "data_is_newer",
        "what lies beside the data of who was there doubts an older copy first; a script holds the rule",
    ),
    (
        "store_of_another",
        "one of ten thousand histories comes to it: seed 18532, which the tests play",
    ),
    (
        "delete_sync",
        "no seed switches synchronous_mode off; a script shows the order",
    ),
    (
        "clear_sync_names",
        "no seed switches synchronous_mode off; a script shows the order",
    ),
    (
        "lease_expired",
        "the lease task lets a lease lapse before every look, so no look shows an expired one",
    ),
    (
        "standby_cluster",
        "no world has a standby section and no cluster",
    ),
    (
        "standby_without_identity",
        "no hand deletes the identity of a simulated cluster; a script holds the rule",
    ),
    (
        "adopting_standby",
        "no hand deletes the identity of a simulated cluster; a script holds the rule",
    ),
    (
        "standby_config_gone",
        "no hand deletes the configuration of a simulated cluster; a script holds the rule",
    ),
    (
        "config_unreadable",
        "no hand writes into a simulated configuration what is no JSON; a script holds the rule",
    ),
    (
        "rules_fail",
        "only a defect in the rules makes it so, and a seed ends with the first",
    ),
    (
        "wal_still_arrives",
        "every member of this world is one of Trunkline; a script holds the rule",
    ),
    (
        "remove_disarmed_of",
        "every member of this world is one of Trunkline; a script holds the rule",
    ),
    (
        "switch_failsafe_on",
        "the leader waits ten minutes before, and a seed lasts one; a script holds the rule",
    ),
    (
        "stale_primary",
        "a primary that slept through a promotion meets its own deadline or the other's key first in nearly \
         every seed; scripts hold the rule",
    ),
    (
        "primary_without_lease",
        "needs a primary that was never armed when the DCS fails in the milliseconds before its adoption",
    ),
];

/// What is reached no more often in many seeds may be missed by as many others.
const NOW_AND_THEN: u64 = 20;

impl Coverage {
    pub(super) fn situation(&mut self, situation: Situation) {
        self.situations[situation as usize] += 1;
    }

    pub(super) fn action(&mut self, action: &Action) {
        let word = action.word();
        // That every word is listed is checked where the scripts run.
        let place = Action::WORDS.iter().position(|known| *known == word);
        if let Some(place) = place {
            self.actions[place] += 1;
        }
    }

    pub(super) fn reason(&mut self, reason: Reason) {
        self.reasons[reason as usize] += 1;
    }

    pub(super) fn job(&mut self, job: JobKind) {
        self.jobs[job as usize] += 1;
    }

    pub(super) fn fault(&mut self, fault: FaultKind) {
        self.faults[fault as usize] += 1;
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: &Coverage) {
        for (mine, theirs) in [
            (&mut self.situations, &other.situations),
            (&mut self.actions, &other.actions),
            (&mut self.reasons, &other.reasons),
            (&mut self.jobs, &other.jobs),
            (&mut self.faults, &other.faults),
        ] {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += theirs;
            }
        }
    }

    /// Every counted thing: its list, its name, its count.
    pub fn rows(&self) -> Vec<(&'static str, &'static str, u64)> {
        let situations = Situation::ALL
            .iter()
            .map(|s| s.word())
            .zip(&self.situations);
        let actions = Action::WORDS.iter().copied().zip(&self.actions);
        let reasons = Reason::ALL.iter().map(|r| r.word()).zip(&self.reasons);
        let jobs = JobKind::ALL.iter().map(|j| j.name()).zip(&self.jobs);
        let faults = FaultKind::ALL.iter().map(|f| f.word()).zip(&self.faults);
        let mut rows = Vec::new();
        rows.extend(situations.map(|(name, count)| ("situation", name, *count)));
        rows.extend(actions.map(|(name, count)| ("action", name, *count)));
        rows.extend(reasons.map(|(name, count)| ("reason", name, *count)));
        rows.extend(jobs.map(|(name, count)| ("job", name, *count)));
        rows.extend(faults.map(|(name, count)| ("fault", name, *count)));
        rows
    }

    /// What is excused in [`UNREACHED`] and was reached all the same, and more than now and then.
    pub fn reached_though_excused(&self) -> Vec<&'static str> {
        let is_excused = |name: &str| UNREACHED.iter().any(|(unreached, _)| *unreached == name);
        let reached = self.rows().into_iter();
        reached
            .filter(|(_, name, count)| *count > NOW_AND_THEN && is_excused(name))
            .map(|(_, name, _)| name)
            .collect()
    }

    /// How much of each list was reached, in one line.
    pub fn summary(&self) -> String {
        let rows = self.rows();
        let lists = ["situation", "action", "reason", "job", "fault"];
        let lists = lists.map(|list| {
            let of_it = || rows.iter().filter(move |(of, ..)| *of == list);
            let reached = of_it().filter(|(.., count)| *count > 0).count();
            format!("{reached} of {} {list}s", of_it().count())
        });
        format!(
            "reached {}; {} are excused",
            lists.join(", "),
            UNREACHED.len()
        )
    }

    /// What was never reached and is not excused in [`UNREACHED`].
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        self.rows()
            .into_iter()
            .filter(|(_, name, count)| {
                *count == 0 && !UNREACHED.iter().any(|(unreached, _)| unreached == name)
            })
            .map(|(list, name, _)| (list, name))
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (list, name, count) in self.rows() {
            writeln!(f, "{list:>10}  {name:<32} {count:>12}")?;
        }
        Ok(())
    }
}
