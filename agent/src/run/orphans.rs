//! Ends of processes that nobody waits for: orphans, where the agent is the first process of a container, and
//! children of the program that this process was before it re-executed itself, the fence among them.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, waitid};

/// How often it is looked. An end that is seen twice is nobody's: who waits for a process hears of its end within
/// milliseconds.
const LOOK: Duration = Duration::from_secs(5);

/// Takes the exit status of processes that have ended and that nobody waits for, until the agent ends.
pub(super) async fn reap() {
    let mut seen = BTreeSet::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        seen = reap_known(&seen);
    }
}

/// Takes the ends of `seen`, and returns which others there are now.
fn reap_known(seen: &BTreeSet<i32>) -> BTreeSet<i32> {
    // One question to the kernel tells that there is none, as nearly always.
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if !matches!(waitid(WaitId::All, peek), Ok(Some(_))) {
        return BTreeSet::new();
    }
    let (known, new): (BTreeSet<i32>, BTreeSet<i32>) =
        ended_children().partition(|pid| seen.contains(pid));
    for pid in known.into_iter().filter_map(Pid::from_raw) {
        let take = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // Whoever waits for it after all was faster.
        let _ = waitid(WaitId::Pid(pid), take);
        tracing::debug!(pid = pid.as_raw_pid(), "an orphan has ended");
    }
    new
}

/// Children of this process that have ended and whose exit status nobody has taken.
fn ended_children() -> impl Iterator<Item = i32> {
    let own = getpid().as_raw_pid().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name stands in brackets and may hold anything.
        let mut words = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (words.next()?, words.next()?);
        (state == "Z" && parent == own).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the test is about a child that nobody waits for"
    )]
    fn an_end_is_taken_at_the_second_look() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = rustix::process::pidfd_open(
            Pid::from_raw(pid).unwrap(),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
        let first = reap_known(&BTreeSet::new());
        assert!(first.contains(&pid));
        // Only this one: other tests of the process have children of their own.
        reap_known(&BTreeSet::from([pid]));
        assert!(!ended_children().any(|other| other == pid));
        assert!(child.wait().is_err());
    }
}
