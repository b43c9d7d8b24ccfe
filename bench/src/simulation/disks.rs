//! Disks that hang or fill up under the leader, and that it is left.

use trunkline_agent::decide::decision::Lapse;
use trunkline_agent::decide::observation::{HealthView, Local, RunningRole, WatchdogView};
use trunkline_shared::cluster::SystemId;

use super::act::Went;
use super::event::{NodeId, SECOND, Time};
use super::fake_postgres::Phase;
use super::invariants::Invariant;
use super::plan::{Fault, FaultKind, Origin};
use super::world::World;

/// How long a leader whose disk is ill may go on, beside three ttl: a kill that is given up, a race, a promotion.
pub(super) const LEFT_WITHIN: Time = 14 * SECOND;
/// How long what another fault has left behind may matter, beside three ttl.
const SETTLES: Time = 5 * SECOND;

impl World {
    pub(super) fn host_is_ill(&mut self, fault: Fault, until: Time) -> bool {
        if fault.kind == FaultKind::WalRemoved {
            return self.remove_wal(fault.other);
        }
        let now = self.now;
        let troubles = &mut self.node_mut(fault.node).troubles;
        if fault.kind == FaultKind::DiskFills {
            troubles.disk_is_full = until.max(troubles.disk_is_full);
            return true;
        }
        if troubles.disk_hangs <= now {
            troubles.disk_hung_at = now;
        }
        troubles.disk_hangs = until.max(troubles.disk_hangs);
        true
    }

    /// What the agent's write probe finds.
    pub(super) fn health_view(&self, node: NodeId) -> HealthView {
        let this = self.node(node);
        let hangs = this.troubles.disk_hangs > self.now;
        HealthView {
            writes_since: hangs.then(|| this.clock(this.troubles.disk_hung_at)),
            is_nearly_full: this.troubles.disk_is_full > self.now,
            postmaster_stopped_since: None,
        }
    }

    /// The brake of the lease task.
    pub(super) fn let_lease_lapse(&mut self, node: NodeId, lapse: Lapse) -> Went {
        match lapse {
            Lapse::KillHangs => {
                let until = self.clock(node) + self.plan.ttl;
                let lease = &mut self.node_mut(node).agent.lease;
                lease.lapses_until = lease.lapses_until.max(until);
            }
            // Every decision says it anew.
            Lapse::NoFence => {}
        }
        Went::Done
    }

    /// A killed instance whose processes wait for the disk: its postmaster is gone, they are not.
    pub(super) fn stuck_on_disk(&self, node: NodeId) -> Option<Local> {
        let this = self.node(node);
        let is_stuck = this.postgres.kill_pending && this.troubles.disk_hangs > self.now;
        let data = this.postgres.data.as_ref().filter(|_| is_stuck)?;
        Some(Local::Orphaned {
            was_primary: data.was_primary || this.postgres.phase == Phase::Primary,
            system_id: Some(SystemId(data.system_id)),
        })
    }

    /// The fault ends: where nothing else went wrong meanwhile, somebody else leads by now.
    pub(super) fn disk_is_well(&mut self, fault: Fault) {
        self.wake(fault.node);
        let limit = self.plan.ttl.as_nanos() as Time * 3 + LEFT_WITHIN;
        let settles = SETTLES + 3 * self.plan.ttl.as_nanos() as Time;
        // What was over long before, or comes only now, does not matter.
        let others = self.plan.faults.iter().any(|other| {
            let is_it = other.at == fault.at && other.kind == fault.kind;
            !is_it && other.at <= self.now && other.at + other.lasts + settles > fault.at
        });
        // Where the cluster is still being made, nobody could take over for most of that time.
        let is_new = self.plan.origin != Origin::Running;
        if fault.lasts < limit || others || is_new || self.is_calm {
            return;
        }
        let leader = self.store.leader().and_then(|(name, _)| self.id_of(name));
        if leader != Some(fault.node) {
            return;
        }
        let able = (0..self.plan.members).find(|id| *id != fault.node && self.could_lead(*id));
        if let Some(able) = able {
            let detail = format!(
                "{} still leads on its ill disk, and {} could",
                self.node(fault.node).name,
                self.node(able).name
            );
            self.fail(Invariant::AnIllDiskIsLeft, detail);
        }
    }

    /// Whether it streams and may lead.
    pub(super) fn could_lead(&self, node: NodeId) -> bool {
        let this = self.node(node);
        let streams = match self.local(node) {
            Local::Running(running) => match running.role {
                RunningRole::Replica { is_streaming, .. } => is_streaming,
                RunningRole::Primary { .. } => false,
            },
            Local::Unknown(_)
            | Local::Empty
            | Local::Stopped(_)
            | Local::Starting { .. }
            | Local::Unresponsive { .. }
            | Local::Orphaned { .. } => false,
        };
        let may_lead = this.agent.me.tags.may_lead() && this.watchdog != WatchdogView::Failed;
        this.is_powered && this.agent.is_alive && streams && may_lead
    }
}
