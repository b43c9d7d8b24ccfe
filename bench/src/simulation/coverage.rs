//! What the seeds reached: a count of every situation, action, reason, job, kind of fault and way to end.

use std::fmt;

use trunkline_agent::decide::observation::JobKind;
use trunkline_agent::decide::{Action, Reason, Situation};

use super::plan::FaultKind;

/// How a history ends in which nothing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Somebody leads, and everybody else follows.
    Converged,
    /// A standby cluster has no whole copy left: it is made anew from the cluster that it follows.
    CopiesLost,
    /// A member leads by an old copy of the store, and nobody whom it could hear had seen more of the one before:
    /// what comes of that is beyond what is promised.
    OldCopyUntold,
}

impl Ending {
    const ALL: [Self; 3] = [Self::Converged, Self::CopiesLost, Self::OldCopyUntold];

    fn word(self) -> &'static str {
        match self {
            Self::Converged => "converged",
            Self::CopiesLost => "copies_lost",
            Self::OldCopyUntold => "old_copy_untold",
        }
    }
}

/// Counts over many seeds.
#[derive(Clone, Debug)]
pub struct Coverage {
    situations: Vec<u64>,
    actions: Vec<u64>,
    reasons: Vec<u64>,
    jobs: Vec<u64>,
    faults: Vec<u64>,
    endings: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            situations: vec![0; Situation::ALL.len()],
            actions: vec![0; Action::WORDS.len()],
            reasons: vec![0; Reason::ALL.len()],
            jobs: vec![0; JobKind::ALL.len()],
            faults: vec![0; FaultKind::ALL.len()],
            endings: vec![0; Ending::ALL.len()],
        }
    }
}

/// What this world cannot reach, each with why.
pub const UNREACHED: &[(&str, &str)] = &[
    (
        "data_is_newer",
        "what lies beside the data of who was there doubts an older copy first; a script holds the rule",
    ),
    (
        "lease_expired",
        "the lease task lets a lease lapse before every look, so no look shows an expired one",
    ),
    (
        "standby_config_gone",
        "whoever saw that it is a standby cluster remembers the configuration; a script holds the rule",
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
];

/// What few histories reach, each with a seed of three members that does: the tests play those.
pub const RARE: &[(&str, u64)] = &[
    ("store_of_another", 1_207_996),
    ("stale_primary", 1_205_304),
    ("primary_without_lease", 1_200_073),
    ("kept_data_without_cluster", 1_217_871),
    ("old_copy_untold", 98_656_098),
];

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

    pub(super) fn ending(&mut self, ending: Ending) {
        self.endings[ending as usize] += 1;
    }

    /// In how many histories an old copy of the store was followed, and nobody could tell: nothing is judged from then on.
    pub fn unjudged(&self) -> u64 {
        self.endings[Ending::OldCopyUntold as usize]
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: &Coverage) {
        for (mine, theirs) in [
            (&mut self.situations, &other.situations),
            (&mut self.actions, &other.actions),
            (&mut self.reasons, &other.reasons),
            (&mut self.jobs, &other.jobs),
            (&mut self.faults, &other.faults),
            (&mut self.endings, &other.endings),
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
        let endings = Ending::ALL.iter().map(|e| e.word()).zip(&self.endings);
        let mut rows = Vec::new();
        rows.extend(situations.map(|(name, count)| ("situation", name, *count)));
        rows.extend(actions.map(|(name, count)| ("action", name, *count)));
        rows.extend(reasons.map(|(name, count)| ("reason", name, *count)));
        rows.extend(jobs.map(|(name, count)| ("job", name, *count)));
        rows.extend(faults.map(|(name, count)| ("fault", name, *count)));
        rows.extend(endings.map(|(name, count)| ("ending", name, *count)));
        rows
    }

    /// What is excused in [`UNREACHED`] and was reached all the same.
    pub fn reached_though_excused(&self) -> Vec<&'static str> {
        let excused = UNREACHED.iter().map(|(name, _)| *name);
        excused.filter(|name| self.has_reached(name)).collect()
    }

    /// Whether what bears this name was reached.
    pub fn has_reached(&self, name: &str) -> bool {
        let mut rows = self.rows().into_iter();
        rows.any(|(_, of, count)| of == name && count > 0)
    }

    /// How much of each list was reached, in one line.
    pub fn summary(&self) -> String {
        let rows = self.rows();
        let lists = ["situation", "action", "reason", "job", "fault", "ending"];
        let lists = lists.map(|list| {
            let of_it = || rows.iter().filter(move |(of, ..)| *of == list);
            let reached = of_it().filter(|(.., count)| *count > 0).count();
            format!("{reached} of {} {list}s", of_it().count())
        });
        format!(
            "reached {}; {} cannot be, and {} are rare; {} not judged to their end",
            lists.join(", "),
            UNREACHED.len(),
            RARE.len(),
            self.unjudged()
        )
    }

    /// What was never reached and is neither excused in [`UNREACHED`] nor known to be [`RARE`].
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        self.rows()
            .into_iter()
            .filter(|(_, name, count)| {
                let mut excused = UNREACHED.iter().map(|(of, _)| of);
                let mut rare = RARE.iter().map(|(of, _)| of);
                *count == 0 && !excused.any(|of| of == name) && !rare.any(|of| of == name)
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
