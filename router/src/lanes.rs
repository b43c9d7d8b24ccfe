//! Which sessions are on which lane, and the way to end them all at once.
//!
//! A session takes a seat on its lane before it connects to the member, and looks at its seat whenever it
//! is polled: one load from memory of its own, no lock. Cutting a lane marks every seat and wakes the
//! sessions; nobody can take a seat on a lane that was cut, so no session slips through between the
//! choice of a member and the connection to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tracing::info;
use trunkline_shared::cluster::Moment;

use crate::route::balance::Load;
use crate::topology::routing_table::{LaneId, RoutingTable};
use crate::topology::transition::{Command, CutCause};

/// A session is over this long after the event that ended its lane.
pub const CUT_WITHIN: Duration = Duration::from_millis(90);

/// Why a session is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its lane was cut.
    Lane(CutCause),
    /// The router stops.
    RouterStops,
}

/// The end of one session, as it was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Why.
    pub ending: Ending,
    /// The event behind it.
    pub since: Moment,
    /// When it must be over.
    pub deadline: Moment,
}

struct Slot {
    is_cut: AtomicBool,
    notice: OnceLock<Notice>,
    waker: Mutex<Option<Waker>>,
    /// The core that the session lives on; none outside of a runtime.
    core: Option<Handle>,
}

impl Slot {
    /// Takes the session its right to go on, from its next step.
    fn mark(&self, notice: Notice) {
        if self.notice.set(notice).is_ok() {
            self.is_cut.store(true, Ordering::Release);
        }
    }

    /// Lets a marked session take that step now.
    fn wake(&self) {
        if let Some(waker) = locked(&self.waker).take() {
            waker.wake();
        }
    }

    fn end(&self, notice: Notice) {
        self.mark(notice);
        self.wake();
    }
}

/// Ends many sessions: all are marked first; then each core wakes its own, for to wake a task from another
/// thread costs a system call each.
fn end_together<'a>(slots: impl Iterator<Item = &'a Arc<Slot>>, notice: Notice) {
    let mut cores: Vec<(&Handle, Vec<Arc<Slot>>)> = Vec::new();
    for slot in slots {
        slot.mark(notice);
        let Some(own) = &slot.core else {
            slot.wake();
            continue;
        };
        match cores.iter_mut().find(|(core, _)| core.id() == own.id()) {
            Some((_, slots)) => slots.push(slot.clone()),
            None => cores.push((own, vec![slot.clone()])),
        }
    }
    for (core, slots) in cores {
        core.spawn(async move { slots.iter().for_each(|slot| slot.wake()) });
    }
}

#[derive(Default)]
struct Lane {
    seats: BTreeMap<u64, Arc<Slot>>,
    taken_since_start: u64,
}

/// The lanes of one cluster.
#[derive(Default)]
pub struct Lanes {
    lanes: Mutex<BTreeMap<LaneId, Lane>>,
    /// Sessions of lanes that are closed over a while.
    leaving: Mutex<BTreeMap<u64, Arc<Slot>>>,
    next_seat: AtomicU64,
    open: AtomicUsize,
}

/// A session's place on a lane; leaves it when dropped.
pub struct Seat {
    lanes: Arc<Lanes>,
    lane: LaneId,
    number: u64,
    slot: Arc<Slot>,
}

/// Sessions to be ended one after another.
pub struct Departures {
    slots: Vec<Arc<Slot>>,
    cause: CutCause,
    spread: Duration,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps stay whole whatever panics around them: every change is one insert or one remove.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lanes {
    /// Opens the lanes that the table names. Called before the table is published.
    pub fn open(&self, table: &RoutingTable) {
        let mut lanes = locked(&self.lanes);
        for lane in table.lanes() {
            lanes.entry(lane).or_default();
        }
    }

    /// Cuts what the commands name. Returns those sessions that are to be closed over a while, for
    /// [`Departures::run`].
    pub fn obey(&self, commands: &[Command]) -> Vec<Departures> {
        let mut departures = Vec::new();
        for command in commands {
            let Command::Cut {
                lane,
                cause,
                since,
                spread,
            } = *command;
            let Some(cut) = locked(&self.lanes).remove(&lane) else {
                continue;
            };
            if spread.is_zero() {
                let notice = Notice {
                    ending: Ending::Lane(cause),
                    since,
                    deadline: since + CUT_WITHIN,
                };
                end_together(cut.seats.values(), notice);
                info!(sessions = cut.seats.len(), ?cause, "sessions are ended");
            } else {
                let slots = cut.seats.values().cloned().collect();
                locked(&self.leaving).extend(cut.seats);
                departures.push(Departures {
                    slots,
                    cause,
                    spread,
                });
            }
        }
        departures
    }

    /// Ends every session: the router stops.
    pub fn end_all(&self, now: Moment) {
        let notice = Notice {
            ending: Ending::RouterStops,
            since: now,
            deadline: now + CUT_WITHIN,
        };
        for lane in locked(&self.lanes).values() {
            end_together(lane.seats.values(), notice);
        }
        end_together(locked(&self.leaving).values(), notice);
    }

    /// Ends what is left on every lane, and takes no seat any more: the cluster is not followed.
    pub fn close(&self, now: Moment) {
        let closed = std::mem::take(&mut *locked(&self.lanes));
        let notice = Notice {
            ending: Ending::Lane(CutCause::MemberLost),
            since: now,
            deadline: now + CUT_WITHIN,
        };
        let left = closed.values().flat_map(|lane| lane.seats.values());
        end_together(left, notice);
        end_together(locked(&self.leaving).values(), notice);
    }

    /// A seat on the lane; `None` if the lane was cut, so that the session must be routed again.
    pub fn take_seat(self: &Arc<Self>, lane: LaneId) -> Option<Seat> {
        let number = self.next_seat.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot {
            is_cut: AtomicBool::new(false),
            notice: OnceLock::new(),
            waker: Mutex::default(),
            core: Handle::try_current().ok(),
        });
        let mut lanes = locked(&self.lanes);
        let seats = lanes.get_mut(&lane)?;
        seats.seats.insert(number, slot.clone());
        seats.taken_since_start += 1;
        self.open.fetch_add(1, Ordering::Relaxed);
        Some(Seat {
            lanes: self.clone(),
            lane,
            number,
            slot,
        })
    }

    /// Whether it was opened and not cut yet.
    pub fn is_open(&self, lane: LaneId) -> bool {
        locked(&self.lanes).contains_key(&lane)
    }

    /// How busy a lane is.
    pub fn load(&self, lane: LaneId) -> Load {
        locked(&self.lanes)
            .get(&lane)
            .map_or_else(Load::default, |l| Load {
                open: l.seats.len(),
                since_start: l.taken_since_start,
            })
    }

    /// Sessions on all lanes.
    pub fn open_sessions(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Seat {
    /// The order to end, if it was given.
    pub fn notice(&self) -> Option<Notice> {
        if self.slot.is_cut.load(Ordering::Acquire) {
            self.slot.notice.get().copied()
        } else {
            None
        }
    }

    /// Leaves the task's waker for the one who cuts the lane. The order may have come just before, so
    /// [`Seat::notice`] is looked at after this.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = locked(&self.slot.waker);
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Waits for the order to end.
    pub async fn ended(&self) -> Notice {
        std::future::poll_fn(|cx| {
            self.register(cx);
            self.notice().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let was_there = locked(&self.lanes.lanes)
            .get_mut(&self.lane)
            .and_then(|lane| lane.seats.remove(&self.number))
            .is_some();
        if !was_there {
            locked(&self.lanes.leaving).remove(&self.number);
        }
        self.lanes.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Departures {
    /// Ends the sessions one after another, evenly over the time given. `now` reads the clock.
    pub async fn run(self, now: fn() -> Moment) {
        let count = u32::try_from(self.slots.len()).unwrap_or(u32::MAX).max(1);
        let step = self.spread / count;
        for slot in self.slots {
            tokio::time::sleep(step).await;
            let since = now();
            slot.end(Notice {
                ending: Ending::Lane(self.cause),
                since,
                deadline: since + CUT_WITHIN,
            });
        }
    }
}
