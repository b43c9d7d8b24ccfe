//! CPU time taken away from processes, by the controller of the first version of cgroups.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::stack::namespaces::{self, CPU_CGROUPS};
use crate::stack::proc::ProcessId;

/// Whether this machine lets CPU time be limited.
pub fn can_starve() -> bool {
    Path::new(CPU_CGROUPS).join("cpu.cfs_quota_us").exists()
}

/// Processes that get little CPU time until they are fed again.
#[derive(Debug)]
#[must_use = "who starves is to be fed"]
pub struct Starved {
    group: PathBuf,
}

/// Lets these processes, and those that they start, have so many hundredths of one core together.
pub fn starve(number: u8, processes: &[ProcessId], hundredths: u32) -> Result<Starved> {
    let group = Path::new(CPU_CGROUPS).join(namespaces::name(number, "starved"));
    fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
    // Of a tenth of a second each, as the kernel has it by default.
    fs::write(group.join("cpu.cfs_period_us"), "100000")?;
    let quota = (hundredths * 1000).to_string();
    fs::write(group.join("cpu.cfs_quota_us"), quota).context("cannot limit CPU time")?;
    for process in processes {
        // One that has ended meanwhile needs none.
        fs::write(group.join("cgroup.procs"), process.pid.to_string()).ok();
    }
    Ok(Starved { group })
}

impl Starved {
    /// Lets everybody have as much as there is.
    pub fn feed(self) -> Result<()> {
        let all = Path::new(CPU_CGROUPS).join("cgroup.procs");
        fs::write(self.group.join("cpu.cfs_quota_us"), "-1")?;
        for pid in fs::read_to_string(self.group.join("cgroup.procs"))?.lines() {
            fs::write(&all, pid).ok();
        }
        // One that a process has made meanwhile keeps it; it has all the time there is, too.
        fs::remove_dir(&self.group).ok();
        Ok(())
    }
}
