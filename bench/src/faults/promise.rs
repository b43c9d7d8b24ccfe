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

/// What nodes have of their own, since a row needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nodes {
    /// Nothing: the files of members lie in one folder of the machine.
    Ordinary,
    /// A volume, which can be full.
    LimitedDisks,
    /// The same, and it can stand still.
    FreezableDisks,
    /// A wall clock.
    WallClocks,
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
    /// What a call of the kernel answers can be changed.
    pub can_fail_calls: bool,
    /// Wall clocks can be set apart.
    pub can_set_clocks: bool,
}

impl Conditions {
    /// A word or two for tables.
    pub fn mode(&self) -> String {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        let synchronous = match self.synchronous {
            None => "async".to_owned(),
            Some(mode) => name(mode.to_possible_value()),
        };
        format!("{synchronous}, {}", name(self.entrance.to_possible_value()))
    }
}

/// A planned change takes no longer (ha.md 13).
const PLANNED: Duration = Duration::from_millis(500);
/// Transactions that stay open are waited for as long, and a change that ends then takes its time.
const GRACE: Duration = Duration::from_millis(5500);
/// A change away from a disk that is nearly full (row 30 of the matrix).
const ROOM: Duration = Duration::from_secs(1);
/// A crash, mended in place or by a failover (ha.md 13).
const CRASH: Duration = Duration::from_secs(1);
/// What is granted beyond a ttl to whoever takes over (ha.md 13).
pub const TAKES_OVER: Duration = Duration::from_secs(2);
/// The same where the leader of the store was lost, too (ha.md 13).
pub const WITH_STORE: Duration = Duration::from_secs(5);
/// So long a leader waits for the end of a PostgreSQL that it has killed before it gives its lease up.
const KILL_HANGS: Duration = Duration::from_secs(6);
/// A leader key that was tampered with (row 29), and the second for which the harness leaves a foreign name in it.
const TAMPERED: Duration = Duration::from_secs(3);
/// Commits wait for another standby in less than this once their own is known to be gone (ha.md 10), and for the first of
/// a new leader: nobody who answers has more than it, so that nobody has to be rewound before.
const AWAITED: Duration = Duration::from_secs(1);
/// A standby that is silent is known to be gone after its walsender's timeout (ha.md 10, 12).
const SILENT: Duration = Duration::from_secs(5);
/// Without any other the mode that is not strict goes on alone after a loop_wait (ha.md 10), which is this here.
const ALONE: Duration = Duration::from_secs(1);

/// What PostgreSQL itself says where there is no room.
const NO_ROOM: &str = "53100";
/// The same where a disk fails, told with its last breath to who has that server alone.
const DISK_FAILS: &str = "58030";
/// SQLSTATEs that the table of what clients are told has for a lost leader; the empty one is a session that was closed.
const POOLED: [&str; 4] = ["40001", "08007", "57P03", "57014"];
/// The same for those who have a server of their own; of 57P02 PostgreSQL itself tells them.
const OWN_SERVER: [&str; 6] = ["57P01", "08007", "57P03", "57014", "57P02", ""];

/// What a row may do to those who write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// Nothing is lost under anybody, or everybody is held.
    None,
    /// Servers end as planned: those who have one of their own hear of it, and nothing is lost.
    Planned,
    /// A leader goes without a word.
    Sudden,
}

/// Whether the table of what clients are told has this for a lost leader.
fn is_of_table(code: &str, conditions: &Conditions) -> bool {
    match conditions.entrance {
        Entrance::Transaction => POOLED.contains(&code),
        Entrance::Session | Entrance::Tcp => OWN_SERVER.contains(&code),
    }
}

impl Row {
    fn harm(self) -> Harm {
        match self {
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
            | Row::PromotedByHand
            | Row::TwoOfOneName
            | Row::WallClockJumps
            | Row::ClockRuns
            | Row::RouterKilled => Harm::None,
            // The old backup is one of before a planned change.
            Row::EtcdForgetful
            | Row::Moves
            | Row::MoveBesideTransaction
            | Row::WatchDead
            | Row::DiskNearlyFull => Harm::Planned,
            Row::CandidateHurt
            | Row::PostmasterKilled
            | Row::BackendCrashed
            | Row::PostmasterStopped
            | Row::AgentStopped
            | Row::AgentAndFenceStopped
            | Row::NodeFrozen
            | Row::PowerOff
            | Row::PowerOffWithEtcdLeader
            | Row::PowerOffWithStandby
            | Row::Partition
            | Row::PartitionWithRouter
            | Row::OneWayLoss
            | Row::FlappingLink
            | Row::EtcdGoneThenLeader
            | Row::LeaderKeyTampered
            | Row::DisksFull
            | Row::FsyncSlow
            | Row::FsyncFails
            | Row::DiskHangs
            | Row::ReplayBlocked
            | Row::ReplayBehind
            | Row::CancelStorm
            | Row::CommitsNotAwaited
            | Row::StatementsInFlight
            | Row::OldLeaderReturns
            | Row::RewindKilled
            | Row::Starved
            | Row::TenTimesTheClients
            | Row::ThunderingHerd
            | Row::SyncChurn => Harm::Sudden,
        }
    }

    /// How long nobody may be told that a write is committed.
    pub fn bar(self, conditions: &Conditions) -> Bar {
        let is_awaited = conditions.synchronous.is_some();
        let until_awaited = match conditions.synchronous {
            None => Duration::ZERO,
            Some(Synchronous::On) => ALONE,
            Some(Synchronous::Strict | Synchronous::Quorum) => AWAITED,
        };
        let beyond_ttl = |more: Duration| Bar::AtMost(conditions.ttl + more + until_awaited);
        match self {
            // A router that says nothing is waited for while single statements of the others go on (router.md 4).
            Row::Moves | Row::WatchDead => Bar::AtMost(PLANNED),
            Row::MoveBesideTransaction => Bar::AtMost(GRACE),
            Row::DiskNearlyFull => Bar::AtMost(ROOM),
            Row::LeaderKeyTampered => Bar::AtMost(TAMPERED + until_awaited),
            // Sessions that are open go on until a stopped postmaster is killed.
            Row::PostmasterKilled
            | Row::BackendCrashed
            | Row::PostmasterStopped
            | Row::StatementsInFlight => Bar::AtMost(CRASH + until_awaited),
            // Without standbys that confirm commits the first crash is mended in place, on the disk that fails again: a
            // second crash, or a start that fails, is the end of that (ha.md 9). Each of the two may take what one may.
            Row::FsyncFails if !is_awaited => Bar::AtMost(CRASH * 2),
            Row::FsyncFails => Bar::AtMost(CRASH + until_awaited),
            Row::PowerOffWithEtcdLeader => beyond_ttl(WITH_STORE),
            // No page promises how soon: a write is waited for a ttl, the kill of who hangs for some seconds, and then the
            // lease ends as that of a lost node.
            Row::DiskHangs => beyond_ttl(conditions.ttl + KILL_HANGS + TAKES_OVER),
            Row::LeaderWithoutStandbys => match conditions.synchronous {
                None => Bar::Quiet,
                Some(Synchronous::On) => Bar::AtMost(SILENT + AWAITED + ALONE),
                // They wait until a standby is back: that is what was asked for.
                Some(Synchronous::Strict | Synchronous::Quorum) => Bar::ChecksAlone,
            },
            // Commits may wait for the very one that does not receive.
            Row::MoveToLagging if is_awaited => Bar::AtMost(SILENT + AWAITED),
            // Nobody may lead before the standby is back.
            Row::PowerOffWithStandby if is_awaited => Bar::ChecksAlone,
            // Nobody may lead before the store is back; from then on the row itself counts.
            Row::EtcdGoneThenLeader
            // Nobody can write, or replay takes what it takes, or waits for standbys: that is the row.
            | Row::DisksFull
            | Row::ReplayBehind
            | Row::CancelStorm
            // The matrix bounds how often leadership may move, and no pause: each second without the link is one, and
            // the member of etcd on that node makes the store elect each time it is back.
            | Row::FlappingLink
            // The same: who has a fiftieth of a core may be slow.
            | Row::Starved => Bar::ChecksAlone,
            row if row.harm() == Harm::None => Bar::Quiet,
            _ => beyond_ttl(TAKES_OVER),
        }
    }

    /// Whether this may be told to a client in it.
    pub fn may_hear(self, code: &str, conditions: &Conditions) -> bool {
        let is_of_disk = match (self, conditions.entrance) {
            (Row::DisksFull, _) => code == NO_ROOM,
            (Row::FsyncFails, Entrance::Session | Entrance::Tcp) => code == DISK_FAILS,
            _ => false,
        };
        let is_told = match (self.harm(), conditions.entrance) {
            (Harm::None, _) | (Harm::Planned, Entrance::Transaction) => false,
            // A server that goes takes along who is on it alone.
            (Harm::Planned, Entrance::Session | Entrance::Tcp) | (Harm::Sudden, _) => true,
        };
        is_of_disk || is_told && is_of_table(code, conditions)
    }

    /// Whether acknowledged writes may be lost: the leader's end is sudden and commits wait for nobody.
    pub fn may_lose(self, conditions: &Conditions) -> bool {
        self.harm() == Harm::Sudden && conditions.synchronous.is_none()
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

    /// What its nodes must have.
    pub fn nodes(self) -> Nodes {
        match self {
            Row::DiskNearlyFull | Row::DisksFull => Nodes::LimitedDisks,
            Row::FsyncSlow | Row::DiskHangs => Nodes::FreezableDisks,
            Row::WallClockJumps => Nodes::WallClocks,
            _ => Nodes::Ordinary,
        }
    }

    /// Why it cannot be run, if it cannot.
    pub fn obstacle(self, conditions: &Conditions) -> Option<&'static str> {
        let needs_root = !conditions.is_root;
        match self {
            Row::FsyncFails if !conditions.can_fail_calls => {
                Some("needs the program strace (Debian package strace)")
            }
            Row::WallClockJumps if !conditions.can_set_clocks => {
                Some("needs the library libfaketime (Debian package faketime)")
            }
            Row::ClockRuns => Some(
                "the agent reads its clock from the kernel itself, which libfaketime does not reach; the simulation has it",
            ),
            Row::CancelStorm if conditions.synchronous != Some(Synchronous::Strict) => {
                Some("commits wait for ever only with --sync strict")
            }
            Row::CancelStorm if conditions.entrance == Entrance::Tcp => Some(
                "bytes pass as they are with --entrance tcp: PostgreSQL itself acknowledges a commit whose wait was cancelled",
            ),
            Row::SyncChurn if conditions.synchronous.is_none() => {
                Some("there is a /sync only with --sync")
            }
            // Those of the row would lose their servers to those who came in between, and wait for the end of their sessions.
            Row::TenTimesTheClients if conditions.entrance != Entrance::Transaction => Some(
                "all of ten times the clients would keep a server each, of the 20 of a pool or of max_connections",
            ),
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
            | Row::FsyncSlow
            | Row::FsyncFails
            | Row::DiskHangs
            | Row::CancelStorm
            | Row::Starved
            | Row::WatchDead
                if needs_root =>
            {
                Some("needs root: namespaces, cgroups, mounts or traced processes")
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
            can_fail_calls: true,
            can_set_clocks: true,
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
    fn who_waits_for_standbys_is_granted_the_time_until_another_can_be_waited_for() {
        let limit = |row: Row, mode| {
            row.bar(&conditions(mode, Entrance::Transaction))
                .to_string()
        };
        assert_eq!(limit(Row::PowerOff, None), "<= 7000 ms");
        assert_eq!(
            limit(Row::PowerOff, Some(Synchronous::Strict)),
            "<= 8000 ms"
        );
        assert_eq!(limit(Row::PostmasterStopped, None), "<= 1000 ms");
        assert_eq!(limit(Row::FsyncFails, None), "<= 2000 ms");
        assert_eq!(
            limit(Row::FsyncFails, Some(Synchronous::Strict)),
            "<= 2000 ms"
        );
        assert_eq!(
            limit(Row::LeaderWithoutStandbys, Some(Synchronous::On)),
            "<= 7000 ms"
        );
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
        let own_server = conditions(None, Entrance::Tcp);
        assert!(Row::FsyncFails.may_hear("58030", &own_server));
        assert!(!Row::FsyncFails.may_hear("58030", &pooled));
    }

    #[test]
    fn what_cannot_be_done_here_says_why() {
        let root = conditions(None, Entrance::Transaction);
        let nobody = Conditions {
            is_root: false,
            can_starve: false,
            can_fail_calls: false,
            can_set_clocks: false,
            ..root
        };
        let left = |conditions: &Conditions| {
            let can = |row: &&Row| row.obstacle(conditions).is_none();
            Row::ALL.iter().filter(can).count()
        };
        assert_eq!(left(&root), 48);
        let strict = conditions(Some(Synchronous::Strict), Entrance::Transaction);
        assert_eq!(left(&strict), 50);
        assert!(Row::PostmasterKilled.obstacle(&nobody).is_none());
        assert!(Row::Partition.obstacle(&nobody).is_some());
        let needs = |row: Row, package: &str| {
            let why = row.obstacle(&nobody).unwrap_or_default();
            why.contains(&format!("Debian package {package}"))
        };
        assert!(needs(Row::FsyncFails, "strace") && needs(Row::WallClockJumps, "faketime"));
    }
}
