//! What each row promises under the conditions of a run: how long writes may pause, what clients may hear, whether
//! anything may be lost, and why a row cannot be run at all. Pure.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::row::Row;
use crate::failover::scenario::Bar;
use crate::stack::member::Synchronous;

/// How the clients come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Entrance {
    /// Servers shared by transaction
    Transaction,
    /// A server of one's own for a session
    Session,
    /// Bytes alone, through the write port
    Tcp,
}

/// What a run has.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Whether commits wait for standbys, and how.
    pub synchronous: Option<Synchronous>,
    /// How the clients come in.
    pub entrance: Entrance,
    /// The cluster's.
    pub ttl: Duration,
    /// Nodes can be cut apart, frozen and starved, and volumes mounted.
    pub is_root: bool,
    /// CPU time can be taken away here.
    pub can_starve: bool,
}

/// A planned change takes no longer.
const PLANNED: Duration = Duration::from_millis(500);
/// Transactions that stay open are waited for as long, and a change that ends then takes its time.
const GRACE: Duration = Duration::from_millis(5500);
/// A crash, mended in place or by a failover.
const CRASH: Duration = Duration::from_millis(1500);
/// What is granted beyond a ttl to whoever takes over.
const TAKES_OVER: Duration = Duration::from_secs(2);
/// The same where the leader of the store was lost, too.
const WITH_STORE: Duration = Duration::from_secs(5);
/// Until a standby streams that commits can wait for; nobody has promised less.
const AWAITED: Duration = Duration::from_secs(3);

/// What PostgreSQL itself says where there is no room.
const NO_ROOM: &str = "53100";
/// SQLSTATEs that the table of what clients are told has for a lost leader; the empty one is a session that was closed.
const POOLED: [&str; 4] = ["40001", "08007", "57P03", "57014"];
/// The same for those who have a server of their own; of 57P02 PostgreSQL itself tells them.
const OWN_SERVER: [&str; 6] = ["57P01", "08007", "57P03", "57014", "57P02", ""];

impl Row {
    /// How long nobody may be told that a write is committed.
    pub fn bar(self, conditions: &Conditions) -> Bar {
        let until_awaited = match conditions.synchronous {
            None => Duration::ZERO,
            Some(_) => AWAITED,
        };
        let beyond_ttl = |more: Duration| Bar::AtMost(conditions.ttl + more + until_awaited);
        match self {
            Row::Moves => Bar::AtMost(PLANNED),
            Row::MoveBesideTransaction => Bar::AtMost(GRACE),
            Row::PostmasterKilled
            | Row::BackendCrashed
            | Row::StatementsInFlight
            | Row::WatchDead
            | Row::DiskNearlyFull => Bar::AtMost(CRASH),
            Row::PowerOffWithEtcdLeader => beyond_ttl(WITH_STORE),
            Row::AgentKilled
            | Row::AgentCrashLoop
            | Row::LeaderWithoutEtcd
            | Row::RouterWithoutEtcd
            | Row::RouterWithoutLeader
            | Row::EtcdMemberDown
            | Row::EtcdLeaderKilled
            | Row::EtcdGone
            | Row::EtcdForgetful
            | Row::PromotedByHand
            | Row::RouterKilled
            | Row::TwoOfOneName
            | Row::WallClockJumps
            | Row::ClockRuns => Bar::Quiet,
            Row::LeaderWithoutStandbys => match conditions.synchronous {
                None => Bar::Quiet,
                Some(Synchronous::On) => beyond_ttl(TAKES_OVER),
                Some(Synchronous::Strict | Synchronous::Quorum) => Bar::ChecksAlone,
            },
            // Commits may wait for the very one that lags.
            Row::MoveToLagging => match conditions.synchronous {
                None => Bar::Quiet,
                Some(_) => beyond_ttl(TAKES_OVER),
            },
            Row::PowerOffWithStandby => match conditions.synchronous {
                None => beyond_ttl(TAKES_OVER),
                Some(_) => Bar::ChecksAlone,
            },
            Row::EtcdGoneThenLeader
            | Row::DisksFull
            | Row::ReplayBehind
            | Row::CancelStorm
            // The member of etcd on that node makes the store elect each time it is back.
            | Row::FlappingLink
            | Row::Starved => Bar::ChecksAlone,
            Row::CandidateHurt
            | Row::PostmasterStopped
            | Row::AgentStopped
            | Row::AgentAndFenceStopped
            | Row::NodeFrozen
            | Row::PowerOff
            | Row::Partition
            | Row::PartitionWithRouter
            | Row::OneWayLoss
            | Row::LeaderKeyTampered
            | Row::FsyncSlow
            | Row::FsyncFails
            | Row::DiskHangs
            | Row::ReplayBlocked
            | Row::CommitsNotAwaited
            | Row::OldLeaderReturns
            | Row::RewindKilled
            | Row::TenTimesTheClients
            | Row::ThunderingHerd
            | Row::SyncChurn => beyond_ttl(TAKES_OVER),
        }
    }

    /// Whether this may be told to a client in it.
    pub fn may_hear(self, code: &str, conditions: &Conditions) -> bool {
        let (is_pooled, of_table) = match conditions.entrance {
            Entrance::Transaction => (true, &POOLED[..]),
            Entrance::Session | Entrance::Tcp => (false, &OWN_SERVER[..]),
        };
        let is_of_disk = self == Row::DisksFull && code == NO_ROOM;
        is_of_disk
            || of_table.contains(&code)
                && match self {
                    // Nothing is lost under anybody, or everything is held.
                    Row::MoveToLagging
                    | Row::AgentKilled
                    | Row::AgentCrashLoop
                    | Row::LeaderWithoutEtcd
                    | Row::LeaderWithoutStandbys
                    | Row::RouterWithoutEtcd
                    | Row::RouterWithoutLeader
                    | Row::EtcdMemberDown
                    | Row::EtcdLeaderKilled
                    | Row::EtcdGone
                    | Row::EtcdForgetful
                    | Row::PromotedByHand
                    | Row::RouterKilled
                    | Row::WallClockJumps
                    | Row::ClockRuns
                    | Row::TwoOfOneName => false,
                    // A server that goes takes along who is on it alone.
                    Row::Moves
                    | Row::MoveBesideTransaction
                    | Row::WatchDead
                    | Row::DiskNearlyFull => !is_pooled,
                    _ => true,
                }
    }

    /// Whether acknowledged writes may be lost: the leader's end is sudden and commits wait for nobody.
    pub fn may_lose(self, conditions: &Conditions) -> bool {
        let is_mild = matches!(
            self,
            Row::Moves
                | Row::MoveBesideTransaction
                | Row::MoveToLagging
                | Row::AgentKilled
                | Row::AgentCrashLoop
                | Row::LeaderWithoutEtcd
                | Row::LeaderWithoutStandbys
                | Row::RouterWithoutEtcd
                | Row::RouterWithoutLeader
                | Row::EtcdMemberDown
                | Row::EtcdLeaderKilled
                | Row::EtcdGone
                | Row::EtcdForgetful
                | Row::DiskNearlyFull
                | Row::PromotedByHand
                | Row::TwoOfOneName
                | Row::WallClockJumps
                | Row::ClockRuns
                | Row::WatchDead
                | Row::RouterKilled
        );
        !is_mild && conditions.synchronous.is_none()
    }

    /// Whether the first router is what the fault is about: its clients are not held against the bar then.
    pub fn hurts_router(self) -> bool {
        matches!(
            self,
            Row::PartitionWithRouter
                | Row::OneWayLoss
                | Row::RouterWithoutLeader
                | Row::Starved
                | Row::WatchDead
                | Row::RouterKilled
        )
    }

    /// Whether one fault of it may change the leader once at the most.
    pub fn must_not_flap(self) -> bool {
        matches!(self, Row::OneWayLoss | Row::FlappingLink | Row::Starved)
    }

    /// Whether each member's files are to lie on a volume of their own, which can be full.
    pub fn wants_volumes(self) -> bool {
        matches!(self, Row::DiskNearlyFull | Row::DisksFull)
    }

    /// Why it cannot be run, if it cannot.
    pub fn obstacle(self, conditions: &Conditions) -> Option<&'static str> {
        let needs_root = !conditions.is_root;
        match self {
            Row::FsyncSlow | Row::FsyncFails | Row::DiskHangs => Some(
                "needs a file system that delays or fails by a program (FUSE); the agent's own tests hang a disk",
            ),
            Row::WallClockJumps => {
                Some("the wall clock is the whole machine's; the simulation has clocks that differ")
            }
            Row::ClockRuns => {
                Some("no clock of the kernel runs faster for one node; the simulation has it")
            }
            Row::CancelStorm if conditions.synchronous != Some(Synchronous::Strict) => {
                Some("commits wait for ever only with --sync strict")
            }
            Row::SyncChurn if conditions.synchronous.is_none() => {
                Some("there is a /sync only with --sync")
            }
            Row::Starved if !conditions.can_starve => {
                Some("needs the CPU controller of the first version of cgroups")
            }
            Row::PartitionWithRouter
            | Row::Partition
            | Row::LeaderWithoutEtcd
            | Row::LeaderWithoutStandbys
            | Row::OneWayLoss
            | Row::RouterWithoutEtcd
            | Row::RouterWithoutLeader
            | Row::FlappingLink
            | Row::PowerOff
            | Row::PowerOffWithEtcdLeader
            | Row::DiskNearlyFull
            | Row::DisksFull
            | Row::CancelStorm
            | Row::Starved
            | Row::WatchDead
                if needs_root =>
            {
                Some("needs root: namespaces, cgroups or mounts")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(synchronous: Option<Synchronous>, entrance: Entrance) -> Conditions {
        Conditions {
            synchronous,
            entrance,
            ttl: Duration::from_secs(5),
            is_root: true,
            can_starve: true,
        }
    }

    #[test]
    fn who_waits_for_standbys_loses_nothing_whatever_is_done() {
        for mode in [Synchronous::On, Synchronous::Strict, Synchronous::Quorum] {
            let conditions = conditions(Some(mode), Entrance::Transaction);
            assert!(!Row::ALL.iter().any(|row| row.may_lose(&conditions)));
        }
        let alone = conditions(None, Entrance::Transaction);
        assert!(Row::PowerOff.may_lose(&alone) && !Row::Moves.may_lose(&alone));
    }

    #[test]
    fn where_nothing_may_pause_nobody_may_hear_anything() {
        let pooled = conditions(None, Entrance::Transaction);
        for row in Row::ALL {
            let is_quiet = row.bar(&pooled) == Bar::Quiet;
            assert!(
                !is_quiet || !row.may_hear("40001", &pooled),
                "{}",
                row.label()
            );
        }
    }

    #[test]
    fn a_planned_change_is_heard_only_by_those_who_have_a_server_of_their_own() {
        let hears = |entrance| Row::Moves.may_hear("57P01", &conditions(None, entrance));
        assert!(!hears(Entrance::Transaction));
        assert!(hears(Entrance::Session) && hears(Entrance::Tcp));
        let pooled = conditions(None, Entrance::Transaction);
        assert!(!Row::PowerOff.may_hear("57P01", &pooled));
        assert!(Row::PowerOff.may_hear("08007", &pooled));
        assert!(!Row::PowerOff.may_hear("25006", &pooled));
    }

    #[test]
    fn what_cannot_be_done_here_says_why() {
        let root = conditions(None, Entrance::Transaction);
        let nobody = Conditions {
            is_root: false,
            can_starve: false,
            ..root
        };
        let left = |conditions: &Conditions| {
            let can = |row: &&Row| row.obstacle(conditions).is_none();
            Row::ALL.iter().filter(can).count()
        };
        assert_eq!(left(&root), 44);
        let strict = conditions(Some(Synchronous::Strict), Entrance::Transaction);
        assert_eq!(left(&strict), 46);
        assert!(Row::PostmasterKilled.obstacle(&nobody).is_none());
        assert!(Row::Partition.obstacle(&nobody).is_some());
    }
}
