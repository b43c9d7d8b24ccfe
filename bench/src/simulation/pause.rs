//! What must hold while the cluster is paused.

use trunkline_agent::decide::observation::JobKind;
use trunkline_agent::decide::{Action, Decision, Reason};

use super::event::NodeId;
use super::invariants::Invariant;
use super::world::World;

impl World {
    /// `pause_means_pause`: called at every decision.
    pub(super) fn check_pause(&mut self, node: NodeId, decision: &Decision) {
        let agent = &self.node(node).agent;
        let Some(view) = &agent.decided_by else {
            return;
        };
        let is_paused = view.settings.as_ref().is_some_and(|s| s.is_paused);
        let is_asked_for = view.failover.is_some() || view.switchover.is_some();
        // The leader that a switchover stopped goes on as a replica.
        let was_asked_for = |action: &Action| {
            action.traits().job == Some(JobKind::Start) && agent.memory.switchover.is_some()
        };
        let mut disruptive = decision.actions.iter().filter(|action| {
            let traits = action.traits();
            traits.is_disruptive && !was_asked_for(action)
        });
        // What a fence that is gone would have ended, before it was announced that there is none.
        let is_announced = view.disarmed.contains(&self.node(node).name);
        let is_fences = decision.reason == Reason::LeaseAboutToExpire
            && !self.node(node).fence.is_alive
            && !is_announced;
        let is_left_alone = is_paused && !is_asked_for && !is_fences;
        let Some(action) = disruptive.next().filter(|_| is_left_alone) else {
            return;
        };
        let detail = format!(
            "{} is paused and does {} because of {}",
            self.node(node).name,
            action.word(),
            decision.reason
        );
        self.fail(Invariant::PauseMeansPause, detail);
    }
}
