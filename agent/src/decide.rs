//! What this member does next: one pure function from an observation to a decision.
//!
//! The situation is found first ([`situation`]); each situation's rules stand in a file of its own,
//! ordered from most dangerous to least: the first that applies returns. Nothing below this module does
//! I/O, reads a clock or draws randomness: same observation, same decision.
#![deny(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

pub mod announce;
mod authority_gone;
pub mod decision;
pub mod memory;
pub mod observation;
pub mod situation;

pub use decision::{Action, Decision, Detail, NextTick, NextWhy, Reason};
pub use memory::Memory;
pub use observation::Observation;
pub use situation::Situation;

/// How long before the lease's deadline the agent stops PostgreSQL itself; the fence is the backstop
/// (`ha.md` 3).
pub const STOP_AHEAD: Duration = Duration::from_millis(300);

/// The lease must hold for more than this when a promotion or a start as primary begins (`ha.md` 5.1).
pub const PROMOTE_NEEDS: Duration = Duration::from_millis(500);

/// What to do next. Total: every observation has a decision.
pub fn decide(seen: &Observation, memory: &Memory) -> Decision {
    let turn = Turn::new(seen, memory);
    match Situation::of(seen, memory) {
        Situation::AuthorityGone => authority_gone::decide(seen, memory),
        Situation::JobRunning
        | Situation::ForeignData
        | Situation::ShuttingDown
        | Situation::Maintenance
        | Situation::NoData
        | Situation::HoldingLease
        | Situation::DcsUnreachable
        | Situation::Unregistered
        | Situation::Following
        | Situation::NoLeader => turn.routine(Reason::JobInProgress),
    }
}

/// A decision being made: what the situation files build their answer with.
struct Turn<'a> {
    seen: &'a Observation,
    decision: Decision,
}

impl<'a> Turn<'a> {
    fn new(seen: &'a Observation, memory: &Memory) -> Self {
        let situation = Situation::of(seen, memory);
        let memory = Memory {
            wants_peers: false,
            ..memory.clone()
        };
        Self {
            seen,
            decision: Decision {
                situation,
                reason: Reason::Following,
                detail: Detail::None,
                actions: Vec::new(),
                next: NextTick {
                    within: Duration::ZERO,
                    why: NextWhy::Routine,
                },
                memory,
                is_request_taken: false,
            },
        }
    }

    fn act(mut self, action: Action) -> Self {
        self.decision.actions.push(action);
        self
    }

    fn detail(mut self, detail: Detail) -> Self {
        self.decision.detail = detail;
        self
    }

    fn remember(mut self, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.decision.memory);
        self
    }

    fn request_taken(mut self) -> Self {
        self.decision.is_request_taken = true;
        self
    }

    /// The actions show their result at once: look again as soon as they are done.
    fn now(self, reason: Reason) -> Decision {
        self.finish(reason, Duration::ZERO, NextWhy::SeeResult)
    }

    /// Nothing more until something happens, `loop_wait` at the longest.
    fn routine(self, reason: Reason) -> Decision {
        let within = self.seen.settings().loop_wait;
        self.finish(reason, within, NextWhy::Routine)
    }

    /// Look again after `within`, `loop_wait` at the longest.
    fn within(self, reason: Reason, within: Duration) -> Decision {
        let within = within.min(self.seen.settings().loop_wait);
        self.finish(reason, within, NextWhy::Limit)
    }

    fn finish(mut self, reason: Reason, within: Duration, why: NextWhy) -> Decision {
        self.decision.reason = reason;
        self.decision.next = NextTick { within, why };
        // While a lease is held, its own deadline is never slept through.
        if let observation::LeaseView::Held(held) = &self.seen.lease {
            let left = self.seen.now.until(held.deadline.before(STOP_AHEAD));
            if left < within {
                self.decision.next = NextTick {
                    within: left,
                    why: NextWhy::LeaseDeadline,
                };
            }
        }
        self.decision
    }
}

impl Observation {
    /// The cluster's settings, or the defaults while they are unknown.
    pub fn settings(&self) -> std::sync::Arc<trunkline_shared::cluster::ClusterSettings> {
        self.topology()
            .map(|t| t.settings_or_default())
            .unwrap_or_default()
    }
}
