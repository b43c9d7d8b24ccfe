//! The rows of a long run: each of them comes, in an order that is drawn, and in modes that are drawn. Pure.

use fastrand::Rng;

use super::promise::{Conditions, Entrance};
use super::row::Row;
use crate::stack::member::Synchronous;

/// So many rows are run before the mode of the cluster is drawn again, since another mode means another cluster.
const ROWS_OF_A_MODE: usize = 8;
/// How commits wait for standbys, as often as it is to be drawn.
const MODES: [Option<Synchronous>; 5] = [
    None,
    Some(Synchronous::On),
    None,
    Some(Synchronous::Strict),
    Some(Synchronous::Quorum),
];
/// The same for the ways in.
const ENTRANCES: [Entrance; 4] = [
    Entrance::Transaction,
    Entrance::Transaction,
    Entrance::Session,
    Entrance::Tcp,
];

/// Draws rows.
#[derive(Clone, Debug)]
pub struct Draw {
    random: Rng,
    rows: Vec<Row>,
    /// What is to come before any row comes again.
    deck: Vec<Row>,
    /// Rows until the next mode.
    left: usize,
    conditions: Conditions,
    /// Whether the modes are drawn, too, and the ways in.
    draws: (bool, bool),
}

impl Draw {
    /// Of these rows, by this number. What was asked for stays as it is.
    pub fn new(
        rows: &[Row],
        conditions: Conditions,
        synchronous: Option<Synchronous>,
        entrance: Option<Entrance>,
        seed: u64,
    ) -> Draw {
        Draw {
            random: Rng::with_seed(seed),
            rows: rows.to_vec(),
            deck: Vec::new(),
            left: 0,
            conditions,
            draws: (synchronous.is_none(), entrance.is_none()),
        }
    }

    /// Whether a row can be run in any of the modes that may be drawn.
    pub fn can_come(&self, row: Row) -> bool {
        let modes = match self.draws.0 {
            true => &MODES[..],
            false => &[self.conditions.synchronous],
        };
        let entrances = match self.draws.1 {
            true => &ENTRANCES[..],
            false => &[self.conditions.entrance],
        };
        modes.iter().any(|synchronous| {
            entrances.iter().any(|entrance| {
                let conditions = Conditions {
                    synchronous: *synchronous,
                    entrance: *entrance,
                    ..self.conditions
                };
                row.obstacle(&conditions).is_none()
            })
        })
    }

    /// The next row, what it is run with, and the number by which its steps are drawn. None if no row can come.
    pub fn row(&mut self) -> Option<(Row, Conditions, u64)> {
        if !self.rows.iter().any(|row| self.can_come(*row)) {
            return None;
        }
        loop {
            if self.left == 0 {
                self.left = ROWS_OF_A_MODE;
                if self.draws.0 {
                    self.conditions.synchronous = MODES[self.random.usize(..MODES.len())];
                }
            }
            if self.draws.1 {
                self.conditions.entrance = ENTRANCES[self.random.usize(..ENTRANCES.len())];
            }
            if let Some(row) = self.of_deck() {
                self.left -= 1;
                return Some((row, self.conditions, self.random.u64(..)));
            }
            self.left = 0;
        }
    }

    /// The first that can be run in this mode; of the rows anew, if no other one is to come before.
    fn of_deck(&mut self) -> Option<Row> {
        let fits = |row: &Row| row.obstacle(&self.conditions).is_none();
        if !self.deck.iter().any(fits) {
            let mut more = self.rows.clone();
            more.retain(|row| !self.deck.contains(row));
            self.random.shuffle(&mut more);
            self.deck.extend(more);
        }
        let place = self.deck.iter().position(fits)?;
        Some(self.deck.remove(place))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    fn conditions() -> Conditions {
        Conditions {
            synchronous: None,
            entrance: Entrance::Transaction,
            ttl: Duration::from_secs(5),
            is_root: true,
            can_starve: true,
            can_fail_calls: true,
            can_set_clocks: true,
        }
    }

    fn drawn(draw: &mut Draw, count: usize) -> Vec<(Row, Conditions, u64)> {
        (0..count).filter_map(|_| draw.row()).collect()
    }

    #[test]
    fn every_row_comes_before_long_and_only_where_it_can_be_run() {
        let mut draw = Draw::new(&Row::ALL, conditions(), None, None, 7);
        let all = drawn(&mut draw, 200);
        let rows: BTreeSet<_> = all.iter().map(|(row, ..)| *row).collect();
        let possible = Row::ALL.iter().filter(|row| draw.can_come(**row)).count();
        assert_eq!((rows.len(), possible), (50, 50));
        assert!(
            all.iter()
                .all(|(row, with, _)| row.obstacle(with).is_none())
        );
        let modes: BTreeSet<_> = all.iter().map(|(_, with, _)| with.mode()).collect();
        assert_eq!(modes.len(), 4 * 3);
        let of_first: Vec<_> = all[..ROWS_OF_A_MODE].iter().map(|one| one.1).collect();
        assert!(
            of_first
                .iter()
                .all(|one| one.synchronous == of_first[0].synchronous)
        );
    }

    #[test]
    fn what_was_asked_for_is_not_drawn_and_a_number_draws_the_same_again() {
        let asked = Conditions {
            synchronous: Some(Synchronous::Strict),
            ..conditions()
        };
        let draw = |seed| {
            let with = (asked.synchronous, Some(asked.entrance));
            let mut draw = Draw::new(&Row::ALL, asked, with.0, with.1, seed);
            drawn(&mut draw, 60)
        };
        let all = draw(7);
        assert!(
            all.iter()
                .all(|(_, with, _)| with.mode() == "strict, transaction")
        );
        let rows = |all: &[(Row, Conditions, u64)]| -> Vec<_> {
            all.iter().map(|(row, _, seed)| (*row, *seed)).collect()
        };
        assert_eq!(rows(&all), rows(&draw(7)));
        assert_ne!(rows(&all), rows(&draw(8)));
    }

    #[test]
    fn rows_that_never_can_be_run_are_not_waited_for() {
        let mut draw = Draw::new(&[Row::ClockRuns], conditions(), None, None, 7);
        assert_eq!(drawn(&mut draw, 3).len(), 0);
        let mut draw = Draw::new(&[Row::CancelStorm], conditions(), None, None, 7);
        assert_eq!(drawn(&mut draw, 3).len(), 3);
        let tcp = Some(Entrance::Tcp);
        let through_tcp = Conditions {
            entrance: Entrance::Tcp,
            ..conditions()
        };
        let mut draw = Draw::new(&[Row::CancelStorm], through_tcp, None, tcp, 7);
        assert_eq!(drawn(&mut draw, 3).len(), 0, "PostgreSQL's own answer");
        let mut draw = Draw::new(&[Row::TenTimesTheClients], conditions(), None, None, 7);
        assert_eq!(
            drawn(&mut draw, 9).len(),
            9,
            "whatever entrance was drawn before"
        );
    }
}
