//! What was written against what was acknowledged. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::clients::Kind;
use crate::load::history::{History, Outcome, Write};

/// Rows of one write, as the last leader has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// In all.
    pub count: i64,
    /// Different ones.
    pub parts: i64,
}

/// What became of all writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Said to be committed.
    pub acknowledged: usize,
    /// Said to be committed, and not there or in part.
    pub lost: usize,
    /// There more often than written.
    pub doubled: usize,
    /// Not said to be committed, and there in part.
    pub torn: usize,
    /// Said not to be committed, and there.
    pub undead: usize,
}

impl Verdict {
    /// Both together.
    pub fn and(self, other: Verdict) -> Verdict {
        Verdict {
            acknowledged: self.acknowledged + other.acknowledged,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            torn: self.torn + other.torn,
            undead: self.undead + other.undead,
        }
    }

    /// Whether everything is as was said.
    pub fn is_true(&self) -> bool {
        self.lost + self.doubled + self.torn + self.undead == 0
    }
}

/// The writes that were said to be committed, and are not there or in part.
pub fn lost<'a>(history: &'a History, rows: &BTreeMap<(i32, i64), Rows>) -> Vec<&'a Write> {
    let is_lost = |write: &&Write| {
        let found = rows.get(&(write.writer, write.seq));
        let parts = found.map_or(0, |found| found.parts);
        write.outcome == Outcome::Acknowledged && parts < Kind::of(write.writer).parts()
    };
    history.writes.iter().filter(is_lost).collect()
}

/// Compares.
pub fn judge(history: &History, rows: &BTreeMap<(i32, i64), Rows>) -> Verdict {
    let mut verdict = Verdict {
        lost: lost(history, rows).len(),
        ..Verdict::default()
    };
    for write in &history.writes {
        let none = Rows { count: 0, parts: 0 };
        let found = *rows.get(&(write.writer, write.seq)).unwrap_or(&none);
        let whole = Kind::of(write.writer).parts();
        verdict.doubled += usize::from(found.count > found.parts);
        let is_part = found.parts > 0 && found.parts < whole;
        match write.outcome {
            Outcome::Acknowledged => verdict.acknowledged += 1,
            Outcome::Unknown => verdict.torn += usize::from(is_part),
            Outcome::Failed => verdict.undead += usize::from(found.parts > 0),
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::Moment;

    use super::*;

    #[test]
    fn each_write_is_held_against_its_rows() {
        let write = |writer, seq, outcome| Write {
            writer,
            seq,
            sent: Moment(0),
            done: Moment(0),
            outcome,
            position: 0,
        };
        let (said, unknown, failed) = (Outcome::Acknowledged, Outcome::Unknown, Outcome::Failed);
        // Client 0 writes one row at a time, client 2 two.
        let history = History {
            writes: vec![
                write(0, 1, said),
                write(0, 2, said),
                write(0, 3, said),
                write(2, 1, said),
                write(2, 2, said),
                write(2, 3, unknown),
                write(2, 4, unknown),
                write(0, 4, failed),
                write(0, 5, failed),
            ],
            cuts: Vec::new(),
        };
        let rows = |list: &[(i32, i64, i64, i64)]| -> BTreeMap<_, _> {
            list.iter()
                .map(|(client, seq, count, parts)| {
                    let (count, parts) = (*count, *parts);
                    ((*client, *seq), Rows { count, parts })
                })
                .collect()
        };
        let good = rows(&[
            (0, 1, 1, 1),
            (0, 2, 1, 1),
            (0, 3, 1, 1),
            (2, 1, 2, 2),
            (2, 2, 2, 2),
        ]);
        let verdict = judge(&history, &good);
        assert!(verdict.is_true() && verdict.acknowledged == 5);
        let bad = rows(&[
            (0, 1, 2, 1),
            (0, 2, 1, 1),
            (2, 1, 1, 1),
            (2, 2, 2, 2),
            (2, 3, 1, 1),
            (0, 5, 1, 1),
        ]);
        let expected = Verdict {
            acknowledged: 5,
            lost: 2,
            doubled: 1,
            torn: 1,
            undead: 1,
        };
        assert_eq!(judge(&history, &bad), expected);
    }
}
