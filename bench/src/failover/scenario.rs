//! The scenarios and their bars: one each for what the project promises.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

use crate::load::history::Gaps;

/// What is done to the cluster while it is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// The operator moves leadership.
    Switchover,
    /// The leader's node freezes: agent, fence and PostgreSQL at once, then thaws.
    NodeFrozen,
    /// The leader's postmaster is killed.
    PostmasterKilled,
    /// The leader's agent is killed and started again a second later.
    AgentKilled,
    /// The leader's agent is told to end (SIGTERM), which hands leadership over, and started again.
    AgentTerminated,
    /// The router is killed and started again at once.
    RouterKilled,
    /// The leader's agent is stopped for three TTLs.
    AgentStopped,
    /// The leader's agent and fence are stopped: the watchdog's case.
    AgentAndFenceStopped,
    /// The leader's node is cut off, the etcd leader is elsewhere.
    Partition,
    /// The leader's node is cut off, the etcd leader with it.
    PartitionEtcdLeader,
    /// One etcd member, the leader of the store, is frozen, then killed.
    EtcdFrozenKilled,
    /// All etcd members are restarted, one after another.
    EtcdRolling,
    /// All etcd members are stopped, and started again after the outage.
    EtcdGone,
    /// The leader's node alone reaches no etcd for the outage.
    EtcdGoneFromLeader,
    /// All of etcd is stopped, and the leader's agent is killed and started again meanwhile.
    EtcdGoneAgentKilled,
    /// All of etcd is stopped, and a replica's agent is lost meanwhile: the leader must become read-only.
    EtcdGoneReplicaLost,
    /// All of etcd is stopped, emptied and started as a new store: the leader makes the keys anew.
    EtcdWiped,
    /// The same from a backup that was taken before a change of leader.
    EtcdRestored,
    /// Emptied while a member is lost, whose consent is missing: the operator accepts the store.
    EtcdAccepted,
    /// Another cluster's identity stands in it: the leader goes on by consent, and leads on when the operator accepts.
    EtcdAcceptedLed,
    /// Emptied while the cluster is paused: the operator accepts the store, and the leader goes on.
    EtcdAcceptedInPause,
    /// All machines lose power and etcd its data: the operator accepts the store, and the most advanced member leads.
    EtcdAcceptedAfterBlackout,
    /// All machines lose power, and etcd comes back from a backup of before a change of leader: nobody believes it.
    EtcdRestoredAfterBlackout,
    /// A minute of pgbench with a random fault every ten seconds.
    Mixed,
    /// Faults drawn by a seed, members and etcd alike, each healed before the next.
    RandomFaults,
    /// Failovers by faults drawn by a seed: each old leader streams again by itself.
    Rejoin,
    /// The leader is cut off while the cluster is paused, which is resumed before it is back.
    PauseCut,
    /// A logical slot's consumer lives through three failovers and a switchover.
    LogicalDecoding,
}

/// How long writes may pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// At most this long.
    AtMost(Duration),
    /// Not longer than in the quiet time before, plus 100 ms: "gap 0".
    Quiet,
    /// Whatever it takes: judged by its checks alone.
    ChecksAlone,
}

/// What "gap 0" grants beyond the longest quiet gap.
const GRANTED: Duration = Duration::from_millis(100);

impl Bar {
    /// What was missed, if anything.
    pub fn missed(self, gaps: Gaps, quiet: Gaps) -> Option<String> {
        match self {
            Bar::AtMost(limit) if gaps.anybody > limit => Some(format!(
                "nobody could write for {:?}, allowed are {limit:?}",
                gaps.anybody
            )),
            Bar::Quiet if gaps.anybody > quiet.anybody + GRANTED => Some(format!(
                "nobody could write for {:?}, quiet {:?}",
                gaps.anybody, quiet.anybody
            )),
            Bar::Quiet if gaps.one_writer > quiet.one_writer + GRANTED => Some(format!(
                "one writer waited {:?}, quiet {:?}",
                gaps.one_writer, quiet.one_writer
            )),
            Bar::AtMost(_) | Bar::Quiet | Bar::ChecksAlone => None,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::AtMost(limit) => write!(f, "<= {} ms", limit.as_millis()),
            Bar::Quiet => write!(f, "0 (quiet + {} ms)", GRANTED.as_millis()),
            Bar::ChecksAlone => write!(f, "checks"),
        }
    }
}

impl Scenario {
    /// Every scenario, in the order in which they are run.
    pub const ALL: [Scenario; 28] = [
        Scenario::Switchover,
        Scenario::NodeFrozen,
        Scenario::PostmasterKilled,
        Scenario::AgentKilled,
        Scenario::AgentTerminated,
        Scenario::RouterKilled,
        Scenario::AgentStopped,
        Scenario::AgentAndFenceStopped,
        Scenario::Partition,
        Scenario::PartitionEtcdLeader,
        Scenario::EtcdFrozenKilled,
        Scenario::EtcdRolling,
        Scenario::EtcdGone,
        Scenario::EtcdGoneFromLeader,
        Scenario::EtcdGoneAgentKilled,
        Scenario::EtcdGoneReplicaLost,
        Scenario::EtcdWiped,
        Scenario::EtcdRestored,
        Scenario::EtcdAccepted,
        Scenario::EtcdAcceptedLed,
        Scenario::EtcdAcceptedInPause,
        Scenario::EtcdAcceptedAfterBlackout,
        Scenario::EtcdRestoredAfterBlackout,
        Scenario::Mixed,
        Scenario::RandomFaults,
        Scenario::Rejoin,
        Scenario::PauseCut,
        Scenario::LogicalDecoding,
    ];

    /// Is it run only when it is named? These last many minutes.
    pub fn is_long(self) -> bool {
        matches!(
            self,
            Scenario::RandomFaults
                | Scenario::Rejoin
                | Scenario::EtcdGone
                | Scenario::EtcdGoneFromLeader
                | Scenario::EtcdGoneAgentKilled
                | Scenario::EtcdGoneReplicaLost
                | Scenario::EtcdWiped
                | Scenario::EtcdRestored
                | Scenario::EtcdAccepted
                | Scenario::EtcdAcceptedLed
                | Scenario::EtcdAcceptedInPause
                | Scenario::EtcdAcceptedAfterBlackout
                | Scenario::EtcdRestoredAfterBlackout
                | Scenario::LogicalDecoding
        )
    }

    /// Does it need nodes that can be cut apart?
    pub fn needs_namespaces(self) -> bool {
        matches!(
            self,
            Scenario::Partition
                | Scenario::PartitionEtcdLeader
                | Scenario::PauseCut
                | Scenario::EtcdGoneFromLeader
        )
    }

    /// Its bar under this TTL.
    pub fn bar(self, ttl: Duration) -> Bar {
        match self {
            Scenario::Switchover => Bar::AtMost(Duration::from_secs(1)),
            Scenario::PostmasterKilled => Bar::AtMost(Duration::from_millis(1500)),
            Scenario::AgentKilled
            | Scenario::EtcdFrozenKilled
            | Scenario::EtcdRolling
            | Scenario::EtcdGone
            | Scenario::EtcdGoneFromLeader
            | Scenario::EtcdGoneAgentKilled
            | Scenario::EtcdWiped
            | Scenario::EtcdRestored
            | Scenario::EtcdAcceptedLed => Bar::Quiet,
            Scenario::NodeFrozen
            | Scenario::AgentStopped
            | Scenario::AgentAndFenceStopped
            | Scenario::Partition => Bar::AtMost(ttl + Duration::from_secs(2)),
            Scenario::PartitionEtcdLeader => Bar::AtMost(ttl + Duration::from_secs(5)),
            Scenario::AgentTerminated
            | Scenario::RouterKilled
            | Scenario::EtcdGoneReplicaLost
            | Scenario::EtcdAccepted
            | Scenario::EtcdAcceptedInPause
            | Scenario::EtcdAcceptedAfterBlackout
            | Scenario::EtcdRestoredAfterBlackout
            | Scenario::Mixed
            | Scenario::RandomFaults
            | Scenario::Rejoin
            | Scenario::PauseCut
            | Scenario::LogicalDecoding => Bar::ChecksAlone,
        }
    }

    /// May acknowledged rows be lost, since replication is asynchronous and the leader's end sudden?
    pub fn may_lose(self) -> bool {
        match self {
            Scenario::NodeFrozen
            | Scenario::PostmasterKilled
            | Scenario::AgentStopped
            | Scenario::AgentAndFenceStopped
            | Scenario::Partition
            | Scenario::PartitionEtcdLeader
            | Scenario::EtcdGoneReplicaLost
            | Scenario::Mixed
            | Scenario::RandomFaults
            | Scenario::Rejoin
            | Scenario::LogicalDecoding => true,
            Scenario::Switchover
            | Scenario::AgentKilled
            | Scenario::AgentTerminated
            | Scenario::RouterKilled
            | Scenario::EtcdFrozenKilled
            | Scenario::EtcdRolling
            | Scenario::EtcdGone
            | Scenario::EtcdGoneFromLeader
            | Scenario::EtcdGoneAgentKilled
            | Scenario::EtcdWiped
            | Scenario::EtcdRestored
            | Scenario::EtcdAccepted
            | Scenario::EtcdAcceptedLed
            | Scenario::EtcdAcceptedInPause
            | Scenario::EtcdAcceptedAfterBlackout
            | Scenario::EtcdRestoredAfterBlackout
            | Scenario::PauseCut => false,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(anybody: u64, one_writer: u64) -> Gaps {
        let millis = Duration::from_millis;
        Gaps {
            anybody: millis(anybody),
            one_writer: millis(one_writer),
        }
    }

    #[test]
    fn gap_zero_means_no_more_than_quiet_plus_a_tenth_of_a_second() {
        assert_eq!(Bar::Quiet.missed(gaps(110, 150), gaps(10, 50)), None);
        assert!(Bar::Quiet.missed(gaps(111, 150), gaps(10, 50)).is_some());
        assert!(Bar::Quiet.missed(gaps(110, 151), gaps(10, 50)).is_some());
    }

    #[test]
    fn every_scenario_is_in_the_list_once() {
        assert_eq!(Scenario::ALL.as_slice(), Scenario::value_variants());
    }
}
