//! The events of the simulated world and the queue that orders them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// True time of the world, nanoseconds from its beginning.
pub(super) type Time = u64;

/// A node: a machine with an agent, a fence and PostgreSQL.
pub(super) type NodeId = u8;

/// A millisecond of true time.
pub(super) const MS: Time = 1_000_000;
/// A second of true time.
pub(super) const SECOND: Time = 1_000_000_000;

/// Something that happens. `boot`, `turn` and `run` say which life of an actor it belongs to: an event
/// of an earlier life is nobody's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// An agent looks, if it does not already.
    Wake { node: NodeId, boot: u32 },
    /// The look of a turn is complete.
    Decide { node: NodeId, turn: u32 },
    /// A question to another agent arrives.
    PeerAsk { from: NodeId, to: NodeId, turn: u32 },
    /// Its answer arrives.
    PeerAnswer { from: NodeId, to: NodeId, turn: u32 },
    /// The time for peers' answers is over.
    PeersLimit { node: NodeId, turn: u32 },
    /// The lease task looks at its clock.
    Renew { node: NodeId, boot: u32 },
    /// The lease task leaves word in a store that is not believed.
    Word { node: NodeId, boot: u32 },
    /// A request reaches the DCS.
    Arrive { request: u32 },
    /// An answer of the DCS reaches the agent.
    Answer { request: u32 },
    /// The agent waits for this answer no longer.
    Limit { request: u32 },
    /// A watcher's next view arrives.
    WatchView { watcher: u8 },
    /// A watcher asks for a sign of life.
    WatchProbe { watcher: u8, boot: u32 },
    /// The sign of life asked for at `sent` arrives: the store was at `revision` then.
    WatchAlive {
        watcher: u8,
        sent: Time,
        revision: u32,
    },
    /// The DCS looks for leases that have ended.
    LeaseScan,
    /// PostgreSQL's phase of this life ends: started, stopped, promoted.
    Phase { node: NodeId, run: u32 },
    /// A replica's WAL receiver connects, or looks whether it still is.
    Receiver { node: NodeId, run: u32 },
    /// WAL arrives at a replica.
    Ship { node: NodeId, run: u32 },
    /// A standby's word of how far it has flushed arrives.
    Flushed {
        node: NodeId,
        up: NodeId,
        run: u32,
        end: u64,
    },
    /// A client has waited for standbys for long enough.
    WaitCancelled { node: NodeId, run: u32, write: u32 },
    /// A changed setting is taken up.
    Reload { node: NodeId, run: u32 },
    /// The backends that outlived their postmaster end by themselves.
    OrphansEnd { node: NodeId, run: u32 },
    /// The agent sees its postmaster's end.
    SeesExit { node: NodeId, boot: u32 },
    /// A kill is complete: no server process is left.
    Killed { node: NodeId, run: u32 },
    /// A long job ends.
    JobDone { node: NodeId, job: u32 },
    /// The fence's timer.
    Fence { node: NodeId, fence: u32 },
    /// The agent looks whether its fence lives.
    FenceLook { node: NodeId, boot: u32 },
    /// A new fence lives.
    FenceStarted { node: NodeId, fence: u32 },
    /// The watchdog has counted to its end since the fence stopped running.
    WatchdogEnds { node: NodeId, left: u32 },
    /// A machine that was reset has started again.
    PowerReturns { node: NodeId },
    /// A client writes through its router.
    Write { client: u8 },
    /// The write arrives at PostgreSQL.
    WriteArrives { write: u32 },
    /// PostgreSQL's answer passes the router.
    WriteAnswered { write: u32 },
    /// A router renews its registration.
    FleetRenews { router: u8 },
    /// A router looks whether it may acknowledge that it holds.
    FleetLooks { router: u8 },
    /// A router looks at its clock.
    RouterTick { router: u8 },
    /// A router's question reaches an agent.
    Vouch {
        router: u8,
        node: NodeId,
        asked: u32,
    },
    /// Its answer reaches the router.
    Vouched { router: u8, asked: u32 },
    /// A leader that the DCS does not answer asks for consent.
    Consent {
        from: NodeId,
        to: NodeId,
        number: u32,
    },
    /// The consent arrives.
    Consented {
        from: NodeId,
        to: NodeId,
        number: u32,
    },
    /// A fault begins.
    Fault { index: u8 },
    /// A fault ends.
    Heal { index: u8 },
    /// All faults end.
    Calm,
    /// Whether the calm world has converged.
    Converged,
}

struct Entry {
    at: Time,
    seq: u32,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest: [`BinaryHeap`] gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// Events in the order of their time; those of one time in the order they were put.
#[derive(Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Entry>,
    seq: u32,
}

impl Queue {
    pub(super) fn put(&mut self, at: Time, event: Event) {
        self.seq += 1;
        self.heap.push(Entry {
            at,
            seq: self.seq,
            event,
        });
    }

    pub(super) fn pop(&mut self) -> Option<(Time, Event)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}
