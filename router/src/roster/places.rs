//! Which places are counted apart, on all cores alike. Clients choose names: a place is counted apart from the moment
//! that a server has let somebody in there, and for as long as it is used or nobody else needs its room. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trunkline_shared::cluster::Moment;

use super::Place;
use crate::metrics::pools::MAX_LABEL_SETS;

/// Counted apart are so many places. All others are counted as one whose names are [`super::OTHER`].
pub const MAX_PLACES: usize = 4096;
/// A place that had no client for so long gives its room to others, once there are more places than the metrics have
/// labels for: PgBouncer's `autodb_idle_timeout`. What was done there is counted as done elsewhere from then on.
pub const UNUSED_AFTER: Duration = Duration::from_secs(3600);

/// A place's right to be counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its number, below [`MAX_PLACES`]: the first ones have labels of their own in the metrics.
    pub number: usize,
    /// Different for each that was ever given out: a place that comes again gets another one.
    serial: u64,
}

impl Ticket {
    /// That of all places that are counted as one.
    pub const OTHER: Ticket = Ticket {
        number: MAX_PLACES,
        serial: 0,
    };
}

/// Those that are counted apart.
#[derive(Debug, Default)]
pub struct Places {
    /// With the moment at which they were known to be used last.
    known: BTreeMap<Place, (Ticket, Moment)>,
    /// Numbers below the next one that were given away again.
    free: BTreeSet<usize>,
    next: usize,
    given_out: u64,
    /// Before this nobody loses its number: it is not looked for any.
    look_at: Moment,
}

impl Places {
    /// None.
    pub const fn new() -> Self {
        Self {
            known: BTreeMap::new(),
            free: BTreeSet::new(),
            next: 0,
            given_out: 0,
            look_at: Moment(0),
        }
    }

    /// The ticket of a place that is counted apart. It is used now.
    pub fn seen(&mut self, place: &Place, now: Moment) -> Option<Ticket> {
        let (ticket, seen_at) = self.known.get_mut(place)?;
        *seen_at = now;
        Some(*ticket)
    }

    /// The same of a place that a server was reached at, which is counted apart from here on if there is room.
    pub fn enter(&mut self, place: &Place, now: Moment) -> Option<Ticket> {
        if let Some(ticket) = self.seen(place, now) {
            return Some(ticket);
        }
        if self.known.len() >= MAX_LABEL_SETS && now >= self.look_at {
            let free = &mut self.free;
            self.known.retain(|_, (ticket, seen_at)| {
                let is_used = now.since(*seen_at) < UNUSED_AFTER;
                is_used || !free.insert(ticket.number)
            });
            let oldest = self.known.values().map(|(_, seen_at)| *seen_at).min();
            self.look_at = oldest.unwrap_or(now) + UNUSED_AFTER;
        }
        let number = self.free_number()?;
        self.given_out += 1;
        let ticket = Ticket {
            number,
            serial: self.given_out,
        };
        self.known.insert(place.clone(), (ticket, now));
        Some(ticket)
    }

    /// The least that nobody has.
    fn free_number(&mut self) -> Option<usize> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        (self.next < MAX_PLACES).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Whether this is the place's ticket still.
    pub fn has(&self, place: &Place, ticket: Ticket) -> bool {
        self.known.get(place).is_some_and(|(own, _)| *own == ticket)
    }

    /// Scope, database and user of each.
    pub fn pools(&self) -> BTreeSet<[&str; 3]> {
        let places = self.known.keys();
        places
            .map(|place| [&*place.scope, &*place.database, &*place.user])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(7_000_000_000);

    fn place(number: usize) -> Place {
        Place {
            scope: "demo".into(),
            database: format!("d{number}").into(),
            user: "app".into(),
            listener: "[::]:1".into(),
        }
    }

    fn numbers(places: &mut Places, of: std::ops::Range<usize>, now: Moment) -> Vec<usize> {
        let entered = of.map(|number| places.enter(&place(number), now));
        entered
            .map(|ticket| ticket.map_or(MAX_PLACES, |own| own.number))
            .collect()
    }

    #[test]
    fn a_place_keeps_its_number_and_the_last_ones_have_none() {
        let mut places = Places::new();
        assert_eq!(places.seen(&place(0), NOW), None);
        let first = numbers(&mut places, 0..MAX_PLACES, NOW);
        assert!(first.into_iter().eq(0..MAX_PLACES));
        assert_eq!(places.enter(&place(MAX_PLACES), NOW), None);
        assert_eq!(numbers(&mut places, 7..8, NOW), [7]);
    }

    #[test]
    fn what_nobody_uses_gives_its_number_away_once_there_is_need() {
        let mut places = Places::new();
        numbers(&mut places, 0..MAX_LABEL_SETS - 1, NOW);
        let before = places.seen(&place(3), NOW).unwrap();
        let later = NOW + UNUSED_AFTER;
        // There are labels for one more: nothing is forgotten.
        let last = MAX_LABEL_SETS - 1;
        assert_eq!(numbers(&mut places, last..last + 1, later), [last]);
        assert!(places.has(&place(3), before));
        // Somebody has been there.
        places.seen(&place(0), later);
        assert_eq!(numbers(&mut places, 1000..1002, later), [1, 2]);
        assert!(!places.has(&place(3), before));
        let again = places.enter(&place(3), later).unwrap();
        assert!(again != before && places.has(&place(3), again));
        assert_eq!(numbers(&mut places, last..last + 1, later), [last]);
        assert!(places.pools().contains(&["demo", "d0", "app"]));
    }
}
