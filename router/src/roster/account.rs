//! What the sessions of one place are counted in, on one core: apart once a server has let somebody in there, and
//! together with all other places until then.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use trunkline_shared::service::clock;

use super::places::Ticket;
use super::{PLACES, Place, locked, own_tally, tally_of_others};
use crate::tally::Tally;

/// The numbers of a place.
pub struct Account {
    place: Arc<Place>,
    others: Arc<Tally>,
    /// Its own ones; `None` where there is no room for them. Empty until a server was reached.
    own: OnceLock<Option<(Ticket, Arc<Tally>)>>,
}

impl Account {
    /// Opens one of this core.
    pub fn open(place: &Arc<Place>) -> Self {
        let account = Self {
            place: place.clone(),
            others: tally_of_others(),
            own: OnceLock::new(),
        };
        let known = locked(&PLACES).seen(place, clock::now());
        if let Some(ticket) = known {
            account.settle(Some(ticket));
        }
        account
    }

    /// A server of this place has let somebody in.
    pub fn is_real(&self) {
        if self.own.get().is_none() {
            let ticket = locked(&PLACES).enter(&self.place, clock::now());
            self.settle(ticket);
        }
    }

    /// Whether it is good for one more session. One that was not used for long may have lost its room; one for which there
    /// was none is opened anew, and asks again.
    pub fn is_good(&self) -> bool {
        let known = locked(&PLACES).seen(&self.place, clock::now());
        match self.own.get() {
            Some(Some((ticket, _))) => known == Some(*ticket),
            Some(None) => false,
            None => known.is_none(),
        }
    }

    fn settle(&self, ticket: Option<Ticket>) {
        let own = ticket.map(|ticket| (ticket, own_tally(&self.place, ticket)));
        // Whoever came first stays.
        let _ = self.own.set(own);
    }
}

impl Deref for Account {
    type Target = Tally;

    fn deref(&self) -> &Tally {
        match self.own.get() {
            Some(Some((_, own))) => own,
            Some(None) | None => &self.others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::{OTHER, view};

    fn queries(database: &str) -> Option<u64> {
        let tallies = view().tallies.into_iter();
        let mut own = tallies.filter(|(place, ..)| *place.database == *database);
        own.next().map(|(_, _, totals)| totals.queries)
    }

    #[test]
    fn a_place_is_counted_apart_once_a_server_was_reached_there() {
        const NAME: &str = "a_place_of_this_test";
        let place = Arc::new(Place {
            scope: "demo".into(),
            database: NAME.into(),
            user: "app".into(),
            listener: "[::]:1".into(),
        });
        let of_others = queries(OTHER).unwrap_or_default();
        let account = Account::open(&place);
        account.queries.add(1);
        assert_eq!(queries(NAME), None);
        assert_eq!(queries(OTHER), Some(of_others + 1));
        assert!(account.is_good());
        let another = Account::open(&place);
        account.is_real();
        account.queries.add(2);
        // What was opened before is opened anew.
        assert!(account.is_good() && !another.is_good());
        Account::open(&place).queries.add(4);
        assert_eq!(queries(NAME), Some(6));
        assert_eq!(queries(OTHER), Some(of_others + 1));
    }

    #[test]
    fn a_place_for_which_there_was_no_room_is_counted_apart_once_there_is() {
        const NAME: &str = "a_place_without_room";
        let place = Arc::new(Place {
            scope: "demo".into(),
            database: NAME.into(),
            user: "app".into(),
            listener: "[::]:2".into(),
        });
        let refused = Account::open(&place);
        refused.settle(None);
        // Sessions that go on are counted where they were; the next one asks again.
        assert!(!refused.is_good());
        let next = Account::open(&place);
        next.is_real();
        next.queries.add(1);
        refused.is_real();
        refused.queries.add(1);
        assert!(next.is_good() && !refused.is_good());
        assert_eq!(queries(NAME), Some(1));
    }
}
