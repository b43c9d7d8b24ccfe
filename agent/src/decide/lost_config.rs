//! The `config` key is gone: whoever leads writes it as it was (`patroni.md` 1, `patroni.dynamic.json`).

use super::decision::{Action, Decision};
use super::observation::{LeaseView, Observation};

/// Completes the decision of a leader that the DCS answers. Last, for nobody waits for it: every member goes by
/// what it remembers.
pub(super) fn note(seen: &Observation, mut decision: Decision) -> Decision {
    let LeaseView::Held(held) = &seen.lease else {
        return decision;
    };
    let is_answered = seen.is_dcs_fresh() && !held.is_by_failsafe && !held.is_key_missing;
    if seen.lost_config.is_some() && is_answered && !held.has_unresolved_hand_over {
        decision.actions.push(Action::RestoreConfig);
    }
    decision
}
