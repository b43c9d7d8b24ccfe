//! The rules themselves fail, turn after turn: leadership goes to a member whose rules may not (`ha.md` 1).
//!
//! Nothing here calls the rules that failed.

use super::Turn;
use super::candidate;
use super::decision::{Action, Decision, Reason, StopMode};
use super::memory::Memory;
use super::observation::{LeaseView, Local, Observation};

/// So many turns in a row must fail.
pub const PANICS: u32 = 3;

/// What a leader does instead of a turn: once another member answers that could lead, PostgreSQL stops and the
/// lease is given up. Without one it goes on leading: nobody would be served better.
pub fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory);
    if !matches!(seen.lease, LeaseView::Held(_)) || seen.is_automation_off() {
        return turn.routine(Reason::RulesFail);
    }
    if seen.job.running.is_some() {
        return turn.routine(Reason::JobInProgress);
    }
    let position = match &seen.local {
        Local::Stopped(stopped) => stopped.is_clean.then_some(stopped.checkpoint),
        Local::Empty => None,
        Local::Running(_) if !seen.local.may_accept_writes() => None,
        Local::Running(_) | Local::Starting { .. } => {
            let Some(answers) = candidate::answers(seen) else {
                return turn.ask_peers();
            };
            if !candidate::somebody_could_lead(answers) {
                return turn.routine(Reason::RulesFail);
            }
            return turn
                .act(Action::Stop(StopMode::Planned))
                .routine(Reason::RulesFail);
        }
        Local::Unknown(_) | Local::Unresponsive { .. } | Local::Orphaned { .. } => {
            return turn
                .act(Action::Stop(StopMode::Immediate))
                .routine(Reason::RulesFail);
        }
    };
    let back = seen.now + seen.settings().ttl;
    turn.remember(|memory| memory.stands_back_until = Some(back))
        .act(Action::DisarmFence)
        .act(Action::ReleaseLeader { position })
        .now(Reason::RulesFail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::script::Scene;

    #[test]
    fn a_leader_whose_rules_fail_leaves_only_for_a_member_that_could_lead() {
        let mut scene = Scene::default();
        let mut says = |lines: &[&str]| {
            lines.iter().for_each(|line| scene.take_text(line).unwrap());
            let decision = decide(&scene.seen, &scene.memory);
            let words = decision.actions.iter().map(Action::word);
            let words: Vec<_> = words.collect();
            (words.join(" "), decision.memory.wants_peers)
        };
        let leads = [
            "leader a",
            "lease held",
            "local running primary position=0/5",
        ];
        assert_eq!(says(&leads), (String::new(), true));
        assert_eq!(
            says(&["peers b=unreachable c=replica@1@0/5@nofailover"]).0,
            ""
        );
        assert_eq!(says(&["peers b=replica@1@0/5"]).0, "stop");
        let stopped =
            "local stopped primary clean system_id=7 tl=1 checkpoint=0/5 redo=0/5 position=0/5";
        assert_eq!(says(&[stopped]).0, "disarm_fence release_leader");
        assert_eq!(says(&["lease none"]).0, "");
    }
}
