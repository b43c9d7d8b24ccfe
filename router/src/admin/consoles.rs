//! The sessions of the console: a bounded number, of which one that does nothing gives way to a newcomer. So neither
//! forgotten sessions nor those of exporters keep an administrator out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use trunkline_shared::cluster::Moment;

use crate::config::admin::Role;

/// Sessions at once, on all ports.
pub const MAX_CONSOLES: usize = 32;
/// Of them those of `stats_users`: the others are for `admin_users`.
pub const MAX_LOOKING: usize = 28;

/// What is known of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sitting {
    role: Role,
    /// `None` while it carries a command out, or sends what that came to.
    idle_since: Option<Moment>,
}

/// The one of these that gives way to a newcomer of this role, where there is no place for it: the one that is idle
/// longest, and of those who only look before any other. Who only looks takes no place from who may do more. Pure.
fn gives_way(sittings: &[(u32, Sitting)], newcomer: Role) -> Option<u32> {
    let may_go = |it: &&(u32, Sitting)| newcomer == Role::Admin || it.1.role == newcomer;
    let idle = sittings.iter().filter(may_go).filter_map(|(id, it)| {
        let since = it.idle_since?;
        Some((it.role == Role::Admin, since, *id))
    });
    idle.min().map(|(_, _, id)| id)
}

/// Whether there is a place for a newcomer of this role. Pure.
fn has_place(sittings: &[(u32, Sitting)], newcomer: Role) -> bool {
    let looking = sittings.iter().filter(|(_, it)| it.role != Role::Admin);
    let is_free = sittings.len() < MAX_CONSOLES;
    is_free && (newcomer == Role::Admin || looking.count() < MAX_LOOKING)
}

#[derive(Debug)]
struct Entry {
    sitting: Sitting,
    leaves: CancellationToken,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Consoles(Mutex<BTreeMap<u32, Entry>>);

impl Consoles {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<u32, Entry>> {
        // The map stays whole whatever panics around it: every change is one insert, one remove or one store.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for one more session, under the number of its client. `None`: all others are busy, or may do more.
    pub fn sit_down(self: &Arc<Self>, id: u32, role: Role, now: Moment) -> Option<Seat> {
        let mut all = self.locked();
        let sittings: Vec<_> = all.iter().map(|(id, it)| (*id, it.sitting)).collect();
        if !has_place(&sittings, role) {
            let leaves = gives_way(&sittings, role)?;
            if let Some(entry) = all.remove(&leaves) {
                entry.leaves.cancel();
            }
        }
        let entry = Entry {
            sitting: Sitting {
                role,
                idle_since: Some(now),
            },
            leaves: CancellationToken::new(),
        };
        let leaves = entry.leaves.clone();
        all.insert(id, entry);
        Some(Seat {
            all: self.clone(),
            id,
            leaves,
        })
    }
}

/// A session's seat, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    all: Arc<Consoles>,
    id: u32,
    leaves: CancellationToken,
}

impl Seat {
    /// Since when the session waits for a command; `None` while it carries one out.
    pub fn is_idle(&self, since: Option<Moment>) {
        if let Some(entry) = self.all.locked().get_mut(&self.id) {
            entry.sitting.idle_since = since;
        }
    }

    /// Ends when it has given way to another session.
    pub async fn gives_way(&self) {
        self.leaves.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // One that gave way is not among them any more. Numbers are not used twice for long.
        self.all.locked().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sitting(role: Role, idle_since: Option<u64>) -> Sitting {
        Sitting {
            role,
            idle_since: idle_since.map(Moment),
        }
    }

    #[test]
    fn who_is_idle_longest_gives_way_and_never_one_who_may_do_more() {
        let all = [
            (1, sitting(Role::Admin, Some(5))),
            (2, sitting(Role::Stats, Some(9))),
            (3, sitting(Role::Stats, Some(7))),
            (4, sitting(Role::Stats, None)),
            (5, sitting(Role::Admin, Some(4))),
        ];
        assert_eq!(gives_way(&all, Role::Admin), Some(3));
        assert_eq!(gives_way(&all, Role::Stats), Some(3));
        let admins = [all[0], all[3], all[4]];
        assert_eq!(gives_way(&admins, Role::Admin), Some(5));
        assert_eq!(gives_way(&admins, Role::Stats), None);
    }

    #[test]
    fn some_places_are_for_administrators_and_a_seat_comes_back() {
        let consoles = Arc::<Consoles>::default();
        let numbers = 0..u32::try_from(MAX_LOOKING).unwrap();
        let seats: Vec<Seat> = numbers
            .map(|id| consoles.sit_down(id, Role::Stats, Moment(1)).unwrap())
            .collect();
        seats.iter().for_each(|seat| seat.is_idle(None));
        assert!(consoles.sit_down(100, Role::Stats, Moment(2)).is_none());
        let admin = consoles.sit_down(101, Role::Admin, Moment(2)).unwrap();
        seats[3].is_idle(Some(Moment(3)));
        let newcomer = consoles.sit_down(102, Role::Stats, Moment(4)).unwrap();
        assert!(seats[3].leaves.is_cancelled() && !admin.leaves.is_cancelled());
        drop(seats);
        drop((admin, newcomer));
        assert!(consoles.locked().is_empty());
    }
}
