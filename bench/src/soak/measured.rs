//! A cluster that is measured: what its leader's agent costs in a phase.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::report::Progress;
use crate::stack::member::{Member, Product, Timing};
use crate::stack::proc::ProcessId;
use crate::stack::{Layout, Plan, Stack, http};

/// The ports' checks ask for these paths in turn.
const PATHS: [&str; 3] = ["/primary", "/replica", "/readiness"];
/// How often memory is read.
const LOOK: Duration = Duration::from_secs(1);
/// After how many looks it is told how much time is left.
const TOLD_EVERY: usize = 15;
/// The bootstrap is over once the store's revision has stood still for so long, waited for at most that long.
const STANDS: Duration = Duration::from_secs(12);
const SETTLE_LIMIT: Duration = Duration::from_secs(120);
/// A bootstrap, or two clones.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(120);

/// What is put on a cluster, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What the phase is called.
    pub name: &'static str,
    /// How long it lasts.
    pub length: Duration,
    /// Health checks a second.
    pub checks: u32,
}

/// What one phase cost.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// What it is called.
    pub name: &'static str,
    /// The product.
    pub kept_by: String,
    /// How long it lasted.
    pub seconds: f64,
    /// Of the leader's agent.
    pub memory: Memory,
    /// Memory at the end of what runs beside the agent, the fence of Trunkline's say, in kB.
    pub memory_beside: u64,
    /// Of the leader's agent and what runs beside it, in per cent of a core.
    pub cpu: f64,
    /// Growth of the store's revision.
    pub revisions_per_10_s: f64,
    /// Health checks asked.
    pub checks: u64,
    /// Of these, those answered with neither 200 nor 503.
    pub failed_checks: u64,
}

impl Phase {
    /// Whether it is Trunkline's.
    pub fn is_ours(&self) -> bool {
        self.kept_by == Product::Trunkline.to_string()
    }
}

/// Resident memory in a phase, in kB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// At the first tenth's end: what is needed to settle is no growth.
    pub start: u64,
    /// Halfway.
    pub middle: u64,
    /// At the end.
    pub end: u64,
    /// The most from `start` on.
    pub most: u64,
}

impl Memory {
    fn of(seen: &[u64]) -> Memory {
        let settled = seen.get(seen.len() / 10..).unwrap_or_default();
        Memory {
            start: settled.first().copied().unwrap_or_default(),
            middle: seen.get(seen.len() / 2).copied().unwrap_or_default(),
            end: seen.last().copied().unwrap_or_default(),
            most: settled.iter().max().copied().unwrap_or_default(),
        }
    }

    /// How far it went above where it began.
    pub fn grown(&self) -> u64 {
        self.most.saturating_sub(self.start)
    }
}

/// One product's cluster.
#[derive(Debug)]
pub struct Measured {
    product: Product,
    stack: Stack,
    leader: usize,
}

impl Measured {
    /// Three members and nothing in front of them. `program`: what keeps them, if it is not ours.
    pub async fn start(
        product: Product,
        program: Option<&Path>,
        postgresql: Option<&Path>,
        progress: &Progress,
    ) -> Result<Measured> {
        let plan = Plan {
            timing: Timing {
                ttl: 30,
                loop_wait: 10,
                retry_timeout: 10,
                ..Timing::default()
            },
            postgresql: postgresql.map(Path::to_owned),
            ..Plan::new(Layout::Loopback)
        };
        let mut stack = Stack::with_etcd(&plan, progress).await?;
        progress.step(format!("a cluster kept by {product}"));
        let program = program.unwrap_or(&stack.programs.agent).to_owned();
        for index in 0..stack.members.len() {
            stack.members[index].start_as(product, &program)?;
            let leads = async |stack: &Stack| stack.leader().await.is_ok();
            stack.until("a leader", BOOTSTRAP_LIMIT, leads).await?;
        }
        stack.until_converged(BOOTSTRAP_LIMIT).await?;
        let leader = stack.leader().await?;
        Ok(Measured {
            product,
            stack,
            leader,
        })
    }

    /// Waits until nobody has written to the store for a while.
    pub async fn settle(&self) -> Result<()> {
        let began = clock::now();
        let mut looks = tokio::time::interval(LOOK);
        let (mut last, mut since) = (self.revision().await?, began);
        while clock::now().since(since) < STANDS {
            if clock::now().since(began) > SETTLE_LIMIT {
                bail!(
                    "{} wrote to the store for {SETTLE_LIMIT:?} without a pause of {STANDS:?}",
                    self.product
                );
            }
            looks.tick().await;
            let revision = self.revision().await?;
            if revision != last {
                (last, since) = (revision, clock::now());
            }
        }
        Ok(())
    }

    /// Whether who led at the start leads now.
    pub async fn leads_still(&self) -> Result<bool> {
        Ok(self.stack.leader().await? == self.leader)
    }

    async fn revision(&self) -> Result<u64> {
        self.stack.etcd[0].revision().await
    }

    fn member(&self) -> &Member {
        &self.stack.members[self.leader]
    }

    /// One phase.
    pub async fn measure(&self, load: Load, progress: &Progress) -> Result<Phase> {
        let agent = self.member().agent()?;
        let addresses: Vec<_> = self.stack.members.iter().map(|m| &m.address).collect();
        let used = || cpu_of(agent, &self.member().beside_agent());
        let (revision, cpu, began) = (self.revision().await?, used()?, clock::now());
        let until = began + load.length;
        let memory = self.watch_memory(agent, (load, until), progress);
        let (seen, (checks, failed_checks)) =
            tokio::join!(memory, check(&addresses, load.checks, until));
        let seconds = clock::now().since(began).as_secs_f64();
        let (seen, cpu) = (seen?, used()?.saturating_sub(cpu));
        let revisions = self.revision().await? - revision;
        let beside = self.member().beside_agent();
        Ok(Phase {
            name: load.name,
            kept_by: self.product.to_string(),
            seconds,
            memory: Memory::of(&seen),
            memory_beside: beside.iter().filter_map(|id| id.memory_kb()).sum(),
            cpu: cpu as f64 / 1e4 / seconds,
            revisions_per_10_s: revisions as f64 * 10.0 / seconds,
            checks,
            failed_checks,
        })
    }

    async fn watch_memory(
        &self,
        agent: ProcessId,
        (load, until): (Load, Moment),
        progress: &Progress,
    ) -> Result<Vec<u64>> {
        let mut looks = tokio::time::interval(LOOK);
        let mut seen = Vec::new();
        while clock::now() < until {
            looks.tick().await;
            let now = agent.memory_kb();
            seen.push(
                now.with_context(|| format!("the leader's agent ({}) has ended", self.product))?,
            );
            if seen.len() % TOLD_EVERY == 1 {
                let left = until.since(clock::now()).as_secs_f64();
                progress.step(format!("{}, {}: {left:.0} s left", load.name, self.product));
            }
        }
        Ok(seen)
    }
}

/// CPU time so far of the agent, of the children that it has waited for, and of what runs beside it, in microseconds.
fn cpu_of(agent: ProcessId, beside: &[ProcessId]) -> Result<u64> {
    let with_children = agent.cpu_us_with_children();
    let own = with_children.context("the leader's agent has ended")?;
    Ok(own + beside.iter().filter_map(|id| id.cpu_us()).sum::<u64>())
}

/// Asks the members in turn, as load balancers do, and counts what was not answered with 200 or 503.
async fn check(addresses: &[&String], per_second: u32, until: Moment) -> (u64, u64) {
    let (mut asked, mut failed) = (0_u64, 0);
    if per_second == 0 {
        return (asked, failed);
    }
    let mut beats = tokio::time::interval(Duration::from_secs(1) / per_second);
    for turn in 0_usize.. {
        beats.tick().await;
        if clock::now() >= until {
            break;
        }
        let address = addresses[turn % addresses.len()];
        let path = PATHS[turn / addresses.len() % PATHS.len()];
        let answer = http::get(&format!("{address}:8008"), path).await;
        asked += 1;
        failed += u64::from(!matches!(answer, Ok((200 | 503, _))));
    }
    (asked, failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_to_settle_is_no_growth() {
        let mut seen: Vec<u64> = (1..=100).collect();
        seen[60] = 1_000;
        let memory = Memory::of(&seen);
        let wanted = Memory {
            start: 11,
            middle: 51,
            end: 100,
            most: 1_000,
        };
        assert_eq!((memory, memory.grown()), (wanted, 989));
        assert_eq!(Memory::of(&[]), Memory::default());
    }
}
