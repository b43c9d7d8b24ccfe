//! What must come true once the world is calm.

use super::{Invariant, MS, NodeId, Phase, SECOND, Time, World};
use crate::simulation::coverage::Ending;
use crate::simulation::event::Event;
use crate::simulation::plan::{Fault, FaultKind};

/// How long a calm world has to converge, beside some lease lengths.
const CONVERGE_LIMIT: Time = 60 * SECOND;

impl World {
    pub(in crate::simulation) fn on_converged(&mut self) -> bool {
        let waited = self.now - self.calm_since;
        // Who lacks WAL waits as long as that for the archive before it is copied anew.
        let is_removed = |fault: &Fault| fault.kind == FaultKind::WalRemoved;
        let times = if self.plan.faults.iter().any(is_removed) {
            6
        } else {
            3
        };
        let limit = CONVERGE_LIMIT + times * self.plan.ttl.as_nanos() as Time;
        self.end_standby();
        self.operator_accepts(waited);
        self.operator_names_a_leader(waited);
        match self.everyone_converged() {
            Ok(()) => self.ending = Some(Ending::Converged),
            Err(_) if self.has_given_itself_up() => self.ending = Some(Ending::CopiesLost),
            Err((invariant, detail)) if waited >= limit => {
                self.fail(invariant, detail);
                // A patient run goes on past what others notice, but not past the end of time.
                self.ending = Some(Ending::Converged);
            }
            Err(_) => self.put_in(500 * MS, Event::Converged),
        }
        true
    }

    fn everyone_converged(&self) -> Result<(), (Invariant, String)> {
        let leader = self
            .a_leader_emerged()
            .map_err(|detail| (Invariant::ALeaderEmerges, detail))?;
        let branch = self
            .node(leader)
            .postgres
            .data
            .as_ref()
            .map(|data| data.branch);
        self.slots_are_in_place(leader)?;
        self.changes_are_over()?;
        for (index, node) in self.nodes.iter().enumerate() {
            let is_fine = index == usize::from(leader)
                || (matches!(node.postgres.phase, Phase::Replica { promotes: false })
                    && node.postgres.is_streaming
                    && node.postgres.data.as_ref().map(|data| data.branch) == branch);
            if !is_fine {
                let detail = format!(
                    "{} does not stream from {}",
                    node.name,
                    self.node(leader).name
                );
                return Err((Invariant::EveryoneConverges, detail));
            }
        }
        Ok(())
    }

    fn a_leader_emerged(&self) -> Result<NodeId, String> {
        let Some((name, _)) = self.store.leader() else {
            return Err("nobody holds the leader key".into());
        };
        let id = self.id_of(name).unwrap_or_default();
        if self.node(id).postgres.phase != Phase::Primary {
            return Err(format!("{name} holds the leader key and is no primary"));
        }
        for (index, router) in self.routers.iter().enumerate() {
            if router.writer.is_none_or(|lane| lane.node != id) {
                return Err(format!("router {index} does not write to {name}"));
            }
        }
        Ok(id)
    }
}
