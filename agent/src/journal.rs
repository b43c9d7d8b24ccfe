//! The last turns of this agent: what was seen, what was decided, what became of it.
//!
//! What was seen is kept as the lines of a script, so that any turn can be decided again elsewhere
//! ([`replay`]), and an incident becomes a test by copying it into a file.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::decide::decision::{Action, Reason};
use crate::decide::script::print::to_script;
use crate::decide::script::{Scene, ScriptError};
use crate::decide::{Decision, Memory, Observation, decide};

/// The version of the lines; a reader refuses others.
pub const VERSION: u32 = 1;

/// How many turns are kept.
pub const KEPT: usize = 256;

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// [`VERSION`] of who wrote it.
    pub version: u32,
    /// When, by the wall clock, as RFC 3339 text.
    pub time: String,
    /// Why the turn ran.
    pub wake: String,
    /// The situation's word.
    pub situation: String,
    /// The reason's word.
    pub reason: String,
    /// Its detail, empty if there is none.
    pub detail: String,
    /// The actions, in their order.
    pub actions: Vec<String>,
    /// When the next turn was to run at the latest, milliseconds.
    pub next_ms: u64,
    /// Why an action failed.
    pub failed: Option<String>,
    /// What was seen and remembered, as the lines of a script.
    pub scene: String,
}

impl Entry {
    /// A turn to be kept.
    pub fn new(
        time: String,
        wake: &str,
        seen: &Observation,
        memory: &Memory,
        decision: &Decision,
        failed: Option<String>,
    ) -> Self {
        Self {
            version: VERSION,
            time,
            wake: wake.to_owned(),
            situation: decision.situation.word().to_owned(),
            reason: decision.reason.word().to_owned(),
            detail: decision.detail.to_string(),
            actions: decision.actions.iter().map(|a| format!("{a:?}")).collect(),
            next_ms: u64::try_from(decision.next.within.as_millis()).unwrap_or(u64::MAX),
            failed,
            scene: to_script(seen, memory),
        }
    }

    /// Whether nothing was done that the turn before, for the same reason, had not done. A leader tells how far
    /// it is once in `loop_wait`: that alone is nothing.
    fn repeats(&self, before: &Entry) -> bool {
        let is_routine = |entry: &Entry| {
            let mut actions = entry.actions.iter();
            actions.all(|action| action.starts_with("PublishStatus("))
        };
        self.reason == before.reason
            && is_routine(self)
            && is_routine(before)
            && self.failed == before.failed
    }
}

/// The ring of the last turns.
#[derive(Debug, Default)]
pub struct Journal {
    turns: Mutex<VecDeque<Entry>>,
}

impl Journal {
    /// Keeps a turn. Of a row of turns that did nothing for one reason, the first and the last are kept.
    pub fn push(&self, entry: Entry) {
        let mut turns = self.turns();
        let mut last = turns.iter().rev();
        let is_third = match (last.next(), last.next()) {
            (Some(last), Some(before)) => entry.repeats(last) && last.repeats(before),
            _ => false,
        };
        if is_third || turns.len() >= KEPT {
            let gone = if is_third {
                turns.pop_back()
            } else {
                turns.pop_front()
            };
            drop(gone);
        }
        turns.push_back(entry);
    }

    /// The turns as JSON, one in a line, oldest first.
    pub fn lines(&self) -> String {
        let turns = self.turns();
        let lines = turns.iter().filter_map(|e| serde_json::to_string(e).ok());
        lines.fold(String::new(), |mut all, line| {
            all.push_str(&line);
            all.push('\n');
            all
        })
    }

    /// Why this agent, as leader, dropped the request for a change of leader of this revision; `None` if none of
    /// the turns kept has.
    pub fn why_dropped(&self, revision: i64) -> Option<String> {
        let dropped = format!("{:?}", Action::DropFailoverRequest { revision });
        let turns = self.turns();
        let turn = turns.iter().rfind(|turn| turn.actions.contains(&dropped))?;
        let sentence = Reason::from_word(&turn.reason)?.sentence();
        Some(match turn.detail.as_str() {
            "" => sentence.to_owned(),
            detail => format!("{sentence} ({detail})"),
        })
    }

    fn turns(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides a kept turn again.
///
/// # Errors
/// If its lines are not of this version's form.
pub fn replay(entry: &Entry) -> Result<Decision, ScriptError> {
    let mut scene = Scene::default();
    for line in entry.scene.lines() {
        scene.take_text(line)?;
    }
    Ok(decide(&scene.seen, &scene.memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn() -> Entry {
        let scene = Scene::default();
        let decision = decide(&scene.seen, &scene.memory);
        let time = "2026-01-01T00:00:00.000000+00:00".to_owned();
        Entry::new(time, "timer", &scene.seen, &scene.memory, &decision, None)
    }

    #[test]
    fn a_kept_turn_reads_back_and_decides_the_same() {
        let journal = Journal::default();
        journal.push(turn());
        let line = journal.lines();
        let read: Entry = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(read, turn());
        let again = replay(&read).unwrap();
        assert_eq!(again.reason.word(), read.reason);
    }

    #[test]
    fn of_turns_that_did_nothing_the_first_and_the_last_are_kept() {
        let journal = Journal::default();
        for second in 0..5 {
            let time = format!("{second}");
            let actions = Vec::new();
            journal.push(Entry {
                time,
                actions,
                ..turn()
            });
        }
        let times: Vec<_> = journal.turns().iter().map(|t| t.time.clone()).collect();
        assert_eq!(times, ["0", "4"]);
        for second in 0..2 * KEPT {
            let reason = format!("{second}");
            journal.push(Entry { reason, ..turn() });
        }
        assert_eq!(journal.turns().len(), KEPT);
    }
    #[test]
    fn why_a_request_was_dropped_is_told_of_that_request() {
        let journal = Journal::default();
        let drops = |revision, detail: &str| Entry {
            reason: Reason::SwitchoverRefused.word().to_owned(),
            detail: detail.to_owned(),
            actions: vec![format!("{:?}", Action::DropFailoverRequest { revision })],
            ..turn()
        };
        journal.push(drops(7, "b lacks 9 bytes"));
        journal.push(drops(17, ""));
        journal.push(turn());
        let refused = Reason::SwitchoverRefused.sentence();
        let told = format!("{refused} (b lacks 9 bytes)");
        assert_eq!(journal.why_dropped(7), Some(told));
        assert_eq!(journal.why_dropped(17).as_deref(), Some(refused));
        assert_eq!(journal.why_dropped(1), None);
    }
}
