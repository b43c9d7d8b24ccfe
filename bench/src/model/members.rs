//! Members of one cluster beside their store: what each has, holds and is about, and what is true of all.
//!
//! An agent looks, and its actions follow one by one: those that only it can see in the same breath, each other one
//! whenever it likes, so that it may hang before any of them. Time goes by in two steps a lease, and only for leases that
//! nobody renews: of agents that are dead or do not reach the store.

use std::time::Duration;

use super::look::MEMBERS;
use super::right::{Right, Scale};

pub(super) mod act;
pub(super) mod happen;
pub(super) mod planned;
pub(super) mod router;
pub(super) mod shown;
pub(super) mod turn;

/// What of a lease counts is a tick, and its margin is another.
pub(super) const SCALE: Scale = Scale {
    tick: Duration::from_millis(700),
    ttl: Duration::from_millis(1200),
};
/// The length of a lease, in ticks.
pub(super) const LEASE: u8 = 2;
/// So many actions has a turn at the most.
pub(super) const ACTS: usize = 5;
/// So many timelines are begun at the most, after the first.
pub(super) const FORKS: usize = 3;
/// Whoever lacks more of what was published does not run.
pub(super) const LIMIT: u8 = 0;

/// How far somebody's WAL reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Wal {
    pub(super) timeline: u8,
    pub(super) at: u8,
}

/// An instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Postgres {
    Replica,
    /// It was told to, and will by itself.
    Promoting(u8),
    Primary,
    /// A primary that was told to stop for its successor.
    Stopping,
    Stopped {
        was_primary: bool,
        is_clean: bool,
    },
}

impl Postgres {
    pub(super) fn may_write(self) -> bool {
        matches!(
            self,
            Postgres::Primary | Postgres::Stopping | Postgres::Promoting(_)
        )
    }
}

/// One action, as far as it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Act {
    Nothing,
    /// The claim and the `sync` record that were seen.
    Acquire {
        claimed: u8,
        sync: u8,
    },
    Confirm,
    Reassert,
    Release {
        epoch: u8,
    },
    Claim {
        timeline: u8,
        parent: u8,
        seen: u8,
        epoch: u8,
    },
    /// Nobody else may lead after this member.
    WriteSync {
        seen: u8,
        epoch: u8,
    },
    RecordHistory {
        epoch: u8,
    },
    Publish {
        at: u8,
        epoch: u8,
    },
    Arm,
    Disarm,
    Promote(u8),
    StartReplica,
    StartPrimary,
    Stop {
        is_immediate: bool,
    },
    Rewind(u8),
    /// The planned stop of a hand-over.
    StopToHandOver,
    /// The change has come to this stage.
    Announce {
        stage: Stage,
        to: u8,
        epoch: u8,
    },
    HandOver {
        to: u8,
        at: u8,
        epoch: u8,
    },
    ClearChange {
        epoch: u8,
    },
    DropRequest,
}

impl Act {
    /// Whether somebody else can see it, or it rests on what may have changed since the look.
    pub(super) fn is_shared(self) -> bool {
        match self {
            Act::Acquire { .. }
            | Act::Release { .. }
            | Act::Claim { .. }
            | Act::WriteSync { .. }
            | Act::Promote(_)
            | Act::Announce { .. }
            | Act::HandOver { .. }
            | Act::StartPrimary => true,
            Act::Nothing
            | Act::Confirm
            | Act::Reassert
            | Act::RecordHistory { .. }
            | Act::Publish { .. }
            | Act::Arm
            | Act::Disarm
            | Act::StartReplica
            | Act::Stop { .. }
            | Act::StopToHandOver
            | Act::ClearChange { .. }
            | Act::DropRequest
            | Act::Rewind(_) => false,
        }
    }

    /// Whether it is nothing without the store.
    pub(super) fn needs_store(self) -> bool {
        let is_short = matches!(
            self,
            Act::Confirm
                | Act::Reassert
                | Act::RecordHistory { .. }
                | Act::Publish { .. }
                | Act::ClearChange { .. }
                | Act::DropRequest
        );
        is_short || self.is_write()
    }

    /// Whether it is a write to the store of which the agent may never hear.
    pub(super) fn is_write(self) -> bool {
        matches!(
            self,
            Act::Acquire { .. }
                | Act::Release { .. }
                | Act::Claim { .. }
                | Act::WriteSync { .. }
                | Act::Announce { .. }
                | Act::HandOver { .. }
        )
    }
}

/// What an agent remembers that its rules go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Remembers {
    /// The next look asks the others.
    pub(super) asks: bool,
    /// The key, if it is held, was not won by this agent.
    pub(super) is_unchecked: bool,
    /// It has given the key up and lets others run.
    pub(super) stands_back: bool,
    /// The planned change.
    pub(super) change: Option<Change>,
}

/// A planned change, as a member has followed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Change {
    pub(super) stage: Option<Stage>,
    /// Every limit of its stage is over.
    pub(super) is_over_time: bool,
    pub(super) was_streaming: bool,
    pub(super) is_rolled_back: bool,
}

/// How far a planned change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    HoldTransactions,
    HoldAll,
    /// The last record ends here.
    Stopped(u8),
}

/// The record of a planned change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Announced {
    pub(super) stage: Stage,
    pub(super) from: u8,
    pub(super) to: u8,
    pub(super) epoch: u8,
    pub(super) revision: u8,
}

/// What a router holds, or has said to hold, of which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Held {
    pub(super) is_all: bool,
    pub(super) epoch: u8,
    pub(super) revision: u8,
}

/// The one router of a cluster whose leader is to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Router {
    pub(super) holds: Option<Held>,
    /// The hold of this epoch has ended by its time.
    pub(super) outlived: Option<u8>,
    /// It has said of this record that it holds everything.
    pub(super) said_all: u8,
}

impl Remembers {
    pub(super) const NOTHING: Remembers = Remembers {
        asks: false,
        is_unchecked: false,
        stands_back: false,
        change: None,
    };
}

/// One member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Member {
    pub(super) postgres: Postgres,
    pub(super) wal: Wal,
    pub(super) right: Right,
    /// Ticks until its fence fires.
    pub(super) armed: Option<u8>,
    pub(super) is_agent_alive: bool,
    /// It does not reach the store, and sees it as it was.
    pub(super) is_cut: bool,
    pub(super) remembers: Remembers,
    /// What is left of its turn.
    pub(super) acts: [Act; ACTS],
    /// A write that nobody waits for any more.
    pub(super) late: Option<Act>,
    /// Its record says that it has everything up to here of the leader that stopped for it.
    pub(super) ready: Option<u8>,
}

impl Member {
    pub(super) fn is_idle(&self) -> bool {
        self.acts[0] == Act::Nothing
    }

    /// The instance has ended.
    pub(super) fn end(&mut self, is_clean: bool) {
        let was_primary = match self.postgres {
            Postgres::Primary | Postgres::Stopping => true,
            Postgres::Stopped { .. } => return,
            Postgres::Replica | Postgres::Promoting(_) => false,
        };
        self.postgres = Postgres::Stopped {
            was_primary,
            is_clean: is_clean && !self.postgres.may_write(),
        };
    }
}

/// The `sync` record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Recorded {
    pub(super) leader: u8,
    /// A bit for each.
    pub(super) standbys: u8,
    pub(super) revision: u8,
}

/// What the store shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Store {
    /// Who leads, in which epoch.
    pub(super) key: Option<(u8, u8)>,
    /// The last claimed timeline, and its parent; 0 before the first.
    pub(super) claimed: (u8, u8),
    /// The newest timeline whose ancestry is written down.
    pub(super) recorded: u8,
    pub(super) published: Wal,
    pub(super) sync: Option<Recorded>,
    /// An operator asks for a change from n1 to n2.
    pub(super) is_asked: bool,
    pub(super) change: Option<Announced>,
    /// What the router's record says.
    pub(super) said: Option<Held>,
}

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    pub(super) store: Store,
    /// What those see that do not reach it any more.
    pub(super) behind: Store,
    /// Ticks that the key's lease has left.
    pub(super) key_left: u8,
    /// The last epoch.
    pub(super) epoch: u8,
    /// From which timeline, and where, those after the first were begun.
    pub(super) forks: [Option<(u8, u8)>; FORKS],
    pub(super) members: [Member; MEMBERS],
    /// How far commits are acknowledged that wait for standbys.
    pub(super) acknowledged: Option<Wal>,
    /// The router, where there is one.
    pub(super) router: Option<Router>,
    /// How often a change was announced.
    pub(super) announced: u8,
    pub(super) faults: u8,
    pub(super) flaws: Flaws,
}

/// What went wrong on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Flaws {
    /// A member ran that was behind one whose answer it had.
    pub(super) is_behind: bool,
    /// What was acknowledged, or more than the limit of what was published, is lost.
    pub(super) is_lost: bool,
    pub(super) is_unknown: bool,
    /// A leader stopped for its successor while clients were not held.
    pub(super) is_unheld: bool,
}

impl State {
    pub(super) fn member(&mut self, who: u8) -> &mut Member {
        &mut self.members[usize::from(who)]
    }

    /// Without what nobody sees: only who is cut off sees the store as it was.
    pub(super) fn canonical(mut self) -> Self {
        if !self.members.iter().any(|member| member.is_cut) {
            self.behind = self.store;
        }
        self
    }

    /// Where `timeline` was begun.
    pub(super) fn fork(&self, timeline: u8) -> Option<(u8, u8)> {
        let at = usize::from(timeline).checked_sub(2)?;
        self.forks.get(at).copied().flatten()
    }

    /// How far the line of `wal` goes on `timeline`: to its end, or to where it left it.
    pub(super) fn reach(&self, wal: Wal, timeline: u8) -> Option<u8> {
        let mut at = wal;
        while at.timeline > timeline {
            let (parent, end) = self.fork(at.timeline)?;
            at = Wal {
                timeline: parent,
                at: end,
            };
        }
        (at.timeline == timeline).then_some(at.at)
    }

    /// Whether everything of `part` is in `whole`.
    pub(super) fn holds(&self, whole: Wal, part: Wal) -> bool {
        self.reach(whole, part.timeline)
            .is_some_and(|at| part.at <= at)
    }

    /// How far the two are the same.
    pub(super) fn shared(&self, one: Wal, other: Wal) -> u8 {
        let mut timeline = one.timeline.min(other.timeline);
        while timeline > 1
            && (self.reach(one, timeline).is_none() || self.reach(other, timeline).is_none())
        {
            timeline -= 1;
        }
        let one = self.reach(one, timeline).unwrap_or(0);
        one.min(self.reach(other, timeline).unwrap_or(0))
    }

    /// Whether what `replica` has is part of what `primary` has, and so it receives the rest.
    pub(super) fn may_receive(&self, replica: u8, primary: u8) -> bool {
        let replica = &self.members[usize::from(replica)];
        let from = &self.members[usize::from(primary)];
        replica.postgres == Postgres::Replica && self.holds(from.wal, replica.wal)
    }

    /// How many accept writes.
    pub(super) fn writable(&self) -> usize {
        let members = self.members.iter();
        let writable = members
            .filter(|member| matches!(member.postgres, Postgres::Primary | Postgres::Stopping));
        writable.count()
    }

    /// The member that leads by its own key and may write.
    pub(super) fn leads(&self, who: u8) -> bool {
        let member = &self.members[usize::from(who)];
        let epoch = match member.right {
            Right::Mine {
                epoch,
                is_missing: false,
                ..
            } => epoch,
            Right::Mine { .. } | Right::No | Right::Lost => return false,
        };
        member.postgres == Postgres::Primary && self.store.key == Some((who, epoch))
    }
}
