//! The rows of the fault matrix: what is done, and what is to come of it. Pure.

/// One row, by the numbers of the matrix; 30 has two, since they are to end differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// 1
    Moves,
    /// 2
    MoveBesideTransaction,
    /// 3
    MoveToLagging,
    /// 4
    CandidateHurt,
    /// 5
    PostmasterKilled,
    /// 6
    BackendCrashed,
    /// 7
    PostmasterStopped,
    /// 8
    AgentStopped,
    /// 9
    AgentAndFenceStopped,
    /// 10
    NodeFrozen,
    /// 11
    AgentKilled,
    /// 12
    AgentCrashLoop,
    /// 13
    PowerOff,
    /// 14
    PowerOffWithEtcdLeader,
    /// 15
    PowerOffWithStandby,
    /// 16
    Partition,
    /// 17
    PartitionWithRouter,
    /// 18
    LeaderWithoutEtcd,
    /// 19
    LeaderWithoutStandbys,
    /// 20
    OneWayLoss,
    /// 21
    RouterWithoutEtcd,
    /// 22
    RouterWithoutLeader,
    /// 23
    FlappingLink,
    /// 24
    EtcdMemberDown,
    /// 25
    EtcdLeaderKilled,
    /// 26
    EtcdGone,
    /// 27
    EtcdGoneThenLeader,
    /// 28
    EtcdForgetful,
    /// 29
    LeaderKeyTampered,
    /// 30a
    DiskNearlyFull,
    /// 30b
    DisksFull,
    /// 31
    FsyncSlow,
    /// 32
    FsyncFails,
    /// 33
    DiskHangs,
    /// 34
    ReplayBlocked,
    /// 35
    ReplayBehind,
    /// 36
    CancelStorm,
    /// 37
    CommitsNotAwaited,
    /// 38
    StatementsInFlight,
    /// 39
    OldLeaderReturns,
    /// 40
    RewindKilled,
    /// 41
    PromotedByHand,
    /// 42
    TwoOfOneName,
    /// 43
    WallClockJumps,
    /// 44
    ClockRuns,
    /// 45
    Starved,
    /// 46
    WatchDead,
    /// 47
    RouterKilled,
    /// 48
    TenTimesTheClients,
    /// 49
    ThunderingHerd,
    /// 50
    SyncChurn,
}

impl Row {
    /// Every row, in the order of the matrix.
    pub const ALL: [Row; 51] = [
        Row::Moves,
        Row::MoveBesideTransaction,
        Row::MoveToLagging,
        Row::CandidateHurt,
        Row::PostmasterKilled,
        Row::BackendCrashed,
        Row::PostmasterStopped,
        Row::AgentStopped,
        Row::AgentAndFenceStopped,
        Row::NodeFrozen,
        Row::AgentKilled,
        Row::AgentCrashLoop,
        Row::PowerOff,
        Row::PowerOffWithEtcdLeader,
        Row::PowerOffWithStandby,
        Row::Partition,
        Row::PartitionWithRouter,
        Row::LeaderWithoutEtcd,
        Row::LeaderWithoutStandbys,
        Row::OneWayLoss,
        Row::RouterWithoutEtcd,
        Row::RouterWithoutLeader,
        Row::FlappingLink,
        Row::EtcdMemberDown,
        Row::EtcdLeaderKilled,
        Row::EtcdGone,
        Row::EtcdGoneThenLeader,
        Row::EtcdForgetful,
        Row::LeaderKeyTampered,
        Row::DiskNearlyFull,
        Row::DisksFull,
        Row::FsyncSlow,
        Row::FsyncFails,
        Row::DiskHangs,
        Row::ReplayBlocked,
        Row::ReplayBehind,
        Row::CancelStorm,
        Row::CommitsNotAwaited,
        Row::StatementsInFlight,
        Row::OldLeaderReturns,
        Row::RewindKilled,
        Row::PromotedByHand,
        Row::TwoOfOneName,
        Row::WallClockJumps,
        Row::ClockRuns,
        Row::Starved,
        Row::WatchDead,
        Row::RouterKilled,
        Row::TenTimesTheClients,
        Row::ThunderingHerd,
        Row::SyncChurn,
    ];

    /// Its number in the matrix, 1 to 50, and a letter where that has two rows here.
    pub fn label(self) -> String {
        match self {
            Row::DiskNearlyFull => "30a".to_owned(),
            Row::DisksFull => "30b".to_owned(),
            _ => {
                let place = self as usize + 1;
                let has_come = place > Row::DisksFull as usize;
                (place - usize::from(has_come)).to_string()
            }
        }
    }

    /// The rows that a word of the command line names: a number, with its letter or without.
    pub fn named(word: &str) -> Result<Vec<Row>, String> {
        let is_meant = |row: &Row| {
            let label = row.label();
            label == word || label.trim_end_matches(['a', 'b']) == word
        };
        let rows: Vec<_> = Row::ALL.into_iter().filter(is_meant).collect();
        match rows.is_empty() {
            true => Err(format!(
                "{word:?} is no row: they are 1 to 50, see `trunkline-bench faults --list`"
            )),
            false => Ok(rows),
        }
    }

    /// What is done. P is the member that leads, A and B are the others, r1 and r2 the routers.
    pub fn fault(self) -> &'static str {
        match self {
            Row::Moves => "planned changes back to back",
            Row::MoveBesideTransaction => "planned change, a transaction stays open",
            Row::MoveToLagging => "planned change to who lags",
            Row::CandidateHurt => "the candidate dies or hangs midway",
            Row::PostmasterKilled => "SIGKILL postmaster",
            Row::BackendCrashed => "SIGSEGV one backend",
            Row::PostmasterStopped => "SIGSTOP postmaster",
            Row::AgentStopped => "SIGSTOP agent, three ttl",
            Row::AgentAndFenceStopped => "SIGSTOP agent and fence",
            Row::NodeFrozen => "freeze P's node, two ttl",
            Row::AgentKilled => "SIGKILL agent, back in 1 s",
            Row::AgentCrashLoop => "agent killed again and again",
            Row::PowerOff => "power off P, silently",
            Row::PowerOffWithEtcdLeader => "power off P with etcd's leader",
            Row::PowerOffWithStandby => "power off P and a (sync) standby",
            Row::Partition => "P apart from all others",
            Row::PartitionWithRouter => "P and r1 apart from all others",
            Row::LeaderWithoutEtcd => "P reaches no etcd",
            Row::LeaderWithoutStandbys => "P apart from its standbys",
            Row::OneWayLoss => "P -> A, P -> B, P -> r1 lost in turn",
            Row::RouterWithoutEtcd => "r1 reaches no etcd",
            Row::RouterWithoutLeader => "r1 apart from P",
            Row::FlappingLink => "P's link 1 s down, 1 s up",
            Row::EtcdMemberDown => "etcd's leader frozen, then killed",
            Row::EtcdLeaderKilled => "etcd's leader killed again and again",
            Row::EtcdGone => "all of etcd down",
            Row::EtcdGoneThenLeader => "all of etcd down, then P dies",
            Row::EtcdForgetful => "etcd wiped; an old backup",
            Row::LeaderKeyTampered => "leader key deleted, overwritten, lease revoked",
            Row::DiskNearlyFull => "P's disk nearly full",
            Row::DisksFull => "all disks full",
            Row::FsyncSlow => "P's disk stands still for more than a ttl at a time",
            Row::FsyncFails => "fsync fails on P",
            Row::DiskHangs => "P's disk hangs until another leads",
            Row::ReplayBlocked => "replay held by queries, then P dies",
            Row::ReplayBehind => "replay far behind, then P dies",
            Row::CancelStorm => "cancels while commits wait",
            Row::CommitsNotAwaited => "synchronous_commit=off, then P dies",
            Row::StatementsInFlight => "statements of all kinds at the kill",
            Row::OldLeaderReturns => "the old leader returns, diverged",
            Row::RewindKilled => "pg_rewind killed; its source killed",
            Row::PromotedByHand => "pg_promote on a standby",
            Row::TwoOfOneName => "two members of one name",
            Row::WallClockJumps => "wall clock an hour back and ahead, P's and A's",
            Row::ClockRuns => "P's clock runs 5 % fast",
            Row::Starved => "2 % of a core for P, A, etcd, r1 in turn",
            Row::WatchDead => "r1's etcd connections go silent, planned change",
            Row::RouterKilled => "r1 killed, started again",
            Row::TenTimesTheClients => "ten times the clients while all are held",
            Row::ThunderingHerd => "all sessions come back at once",
            Row::SyncChurn => "standby leaves each 200 ms during 5 and 13",
        }
    }

    /// What is to come of it.
    pub fn expected(self) -> &'static str {
        match self {
            Row::Moves => "no error",
            Row::MoveBesideTransaction => "given up, or that one hears 40001",
            Row::MoveToLagging => "refused, nobody is held",
            Row::CandidateHurt => "P goes on or another leads",
            Row::PostmasterKilled | Row::BackendCrashed => "restart or failover",
            Row::PostmasterStopped => "killed after a ttl, then as SIGKILL",
            Row::AgentStopped => "fenced by the deadline, another leads",
            Row::AgentAndFenceStopped => "no ack of P once another leads",
            Row::NodeFrozen => "another leads; thawed, P serves nobody",
            Row::AgentKilled | Row::AgentCrashLoop => "nothing",
            Row::PowerOff | Row::PowerOffWithEtcdLeader => "another leads",
            Row::PowerOffWithStandby => "sync: nobody until it is back",
            Row::Partition => "P fenced, another leads",
            Row::PartitionWithRouter => "no ack by r1 once another leads",
            Row::LeaderWithoutEtcd => "goes on by consent",
            Row::LeaderWithoutStandbys => "strict: waits; on: goes on alone",
            Row::OneWayLoss => "at most one change each",
            Row::RouterWithoutEtcd => "goes on by P's own promise",
            Row::RouterWithoutLeader => "r2 notices nothing, P leads on",
            Row::FlappingLink => "at most one change",
            Row::EtcdMemberDown | Row::EtcdLeaderKilled => "nothing",
            Row::EtcdGone => "goes on by consent",
            Row::EtcdGoneThenLeader => "nobody until etcd is back",
            Row::EtcdForgetful => "goes on, keys made anew",
            Row::LeaderKeyTampered => "one leader again, never two",
            Row::DiskNearlyFull => "planned change before it is full",
            Row::DisksFull => "stands still, back once there is room",
            Row::FsyncSlow => "leadership given up",
            Row::FsyncFails => "another leads",
            Row::DiskHangs => "another leads",
            Row::ReplayBlocked => "promotion ends the queries",
            Row::ReplayBehind => "as long as the replay takes",
            Row::CancelStorm => "no ack without a standby",
            Row::CommitsNotAwaited => "losses of those clients alone",
            Row::StatementsInFlight => "each error deserved",
            Row::OldLeaderReturns => "rewound, serves nobody before",
            Row::RewindKilled => "rewound or cloned anew",
            Row::PromotedByHand => "fenced, rewound, never routed to",
            Row::TwoOfOneName => "the second refuses to start",
            Row::WallClockJumps | Row::ClockRuns => "nothing",
            Row::Starved => "at most one change each",
            Row::WatchDead => "r1 finds other connections within 5 s",
            Row::RouterKilled => "clients of r2 notice nothing",
            Row::TenTimesTheClients => "held, then served; memory bounded",
            Row::ThunderingHerd => "all served within 1 s of the first",
            Row::SyncChurn => "/sync never names who is not waited for",
        }
    }

    /// Who is there beside the clients that every row has.
    pub fn besides(self) -> &'static str {
        match self {
            Row::MoveBesideTransaction => "an open transaction",
            Row::AgentAndFenceStopped | Row::NodeFrozen => "idle sessions",
            Row::ReplayBlocked => "queries on A and B",
            Row::ReplayBehind => "128 MB of rows",
            Row::CancelStorm => "8 that are cancelled",
            Row::CommitsNotAwaited => "3 that wait for nothing",
            Row::TenTimesTheClients => "160 more",
            Row::ThunderingHerd => "80 sessions of the write port",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_bear_the_numbers_of_the_matrix() {
        let labels: Vec<_> = Row::ALL.iter().map(|row| row.label()).collect();
        let mut expected: Vec<_> = (1..=50).map(|number| number.to_string()).collect();
        expected.splice(29..30, ["30a".to_owned(), "30b".to_owned()]);
        assert_eq!(labels, expected);
        assert_eq!(Row::SyncChurn.label(), "50");
    }

    #[test]
    fn a_number_names_its_rows_and_nothing_else() {
        assert_eq!(Row::named("5"), Ok(vec![Row::PostmasterKilled]));
        assert_eq!(
            Row::named("30"),
            Ok(vec![Row::DiskNearlyFull, Row::DisksFull])
        );
        assert_eq!(Row::named("30b"), Ok(vec![Row::DisksFull]));
        for word in ["0", "51", "", "a", "5a"] {
            assert!(Row::named(word).is_err(), "{word}");
        }
    }
}
