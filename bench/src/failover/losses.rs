//! What each fault of a list cost: its gap, the rows lost by it, and the bound on them in bytes of WAL.
//!
//! Without synchronous replication a failover may lose `maximum_lag_on_failover` bytes and what the old leader
//! wrote between the fault and its end. Both are measured here by the WAL positions that the server named with
//! each row, against the place where the new leader's history left the old one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use trunkline_shared::cluster::Moment;

use super::sequence::Inflicted;
use crate::load::history::{History, Outcome, Write};

/// In the unit of a [`Moment`].
const SECOND: u64 = 1_000_000_000;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultLine {
    /// Its number in the list.
    pub number: usize,
    /// What was done.
    pub fault: String,
    /// To whom.
    pub on: String,
    /// How long, in milliseconds.
    pub lasted_ms: u64,
    /// Leader and timeline before.
    pub before: String,
    /// Leader and timeline afterwards.
    pub after: String,
    /// The longest time without an acknowledged write, in milliseconds.
    pub gap_ms: u64,
    /// From the end of the fault until one led and all streamed, in milliseconds.
    pub whole_ms: Option<u64>,
    /// Acknowledged rows that are not there.
    pub lost_rows: usize,
    /// From the place where the histories part to the last of them, in bytes of WAL.
    pub lost_bytes: u64,
    /// What the old leader had acknowledged at the fault beyond that place, in bytes of WAL.
    pub behind_bytes: u64,
    /// What the old leader still acknowledged from the fault on, in bytes of WAL.
    pub written_bytes: u64,
}

/// All lines, and what broke the bound of asynchronous replication.
pub fn assess(
    inflicted: &[Inflicted],
    history: &History,
    lost: &[(i32, i64)],
    maximum_lag: u64,
) -> (Vec<FaultLine>, Vec<String>) {
    let mut acknowledged: Vec<&Write> = history
        .writes
        .iter()
        .filter(|write| write.outcome == Outcome::Acknowledged)
        .collect();
    acknowledged.sort_by_key(|write| write.done);
    let lost = by_fault(inflicted, &acknowledged, lost);
    let (mut lines, mut faults) = (Vec::new(), Vec::new());
    for (index, one) in inflicted.iter().enumerate() {
        let rows = lost.get(&index).map_or(&[][..], Vec::as_slice);
        let line = line(index, one, &acknowledged, rows);
        let bound = maximum_lag + line.written_bytes;
        if line.behind_bytes > maximum_lag || line.lost_bytes > bound {
            faults.push(format!(
                "fault {}: {} bytes of WAL with acknowledged rows are lost, {} of them written before the fault; \
                 allowed are {maximum_lag} and the {} written after it",
                line.number, line.lost_bytes, line.behind_bytes, line.written_bytes
            ));
        }
        lines.push(line);
    }
    (lines, faults)
}

/// A lost row belongs to the first change of timeline that was complete after its acknowledgement.
fn by_fault<'a>(
    inflicted: &[Inflicted],
    acknowledged: &[&'a Write],
    lost: &[(i32, i64)],
) -> BTreeMap<usize, Vec<&'a Write>> {
    let lost: std::collections::BTreeSet<_> = lost.iter().copied().collect();
    let mut rows: BTreeMap<usize, Vec<&Write>> = BTreeMap::new();
    let is_lost = |write: &&&Write| lost.contains(&(write.writer, write.seq));
    for write in acknowledged.iter().filter(is_lost) {
        let index = inflicted
            .iter()
            .position(|one| one.fork.is_some() && one.whole.is_none_or(|whole| whole >= write.done))
            .unwrap_or(inflicted.len().saturating_sub(1));
        rows.entry(index).or_default().push(write);
    }
    rows
}

fn line(index: usize, one: &Inflicted, acknowledged: &[&Write], lost: &[&Write]) -> FaultLine {
    let end = one.whole.unwrap_or(one.healed);
    let gap = longest(acknowledged, one.began, end);
    let highest = |from: Moment, to: Moment| {
        let inside = acknowledged.partition_point(|write| write.done < from)
            ..acknowledged.partition_point(|write| write.done <= to);
        let inside = acknowledged.get(inside).unwrap_or(&[]);
        inside.iter().map(|write| write.position).max()
    };
    // What was acknowledged in the second before is what the leader had: eight writers leave no such pause.
    let at_fault = highest(Moment(one.began.0.saturating_sub(SECOND)), one.began).unwrap_or(0);
    let at_end = highest(one.began, gap.0).unwrap_or(at_fault).max(at_fault);
    let beyond_fork = |position: u64| {
        one.fork
            .filter(|_| !lost.is_empty())
            .map_or(0, |fork| position.saturating_sub(fork))
    };
    let name = |(leader, timeline): &(String, u64)| format!("{leader} t{timeline}");
    FaultLine {
        number: index + 1,
        fault: one.what.clone(),
        on: match one.on_leader {
            true => format!("{} (leads)", one.on),
            false => one.on.clone(),
        },
        lasted_ms: ms(one.healed.since(one.began)),
        before: name(&one.before),
        after: one.after.as_ref().map_or_else(|| "-".to_owned(), name),
        gap_ms: ms(gap.1),
        whole_ms: one.whole.map(|whole| ms(whole.since(one.healed))),
        lost_rows: lost.len(),
        lost_bytes: lost
            .iter()
            .map(|write| beyond_fork(write.position))
            .max()
            .unwrap_or(0),
        behind_bytes: beyond_fork(at_fault),
        written_bytes: match one.fork {
            Some(_) => at_end - at_fault,
            None => 0,
        },
    }
}

/// The longest pause that ends in `from..=to`: its beginning and its length.
fn longest(acknowledged: &[&Write], from: Moment, to: Moment) -> (Moment, Duration) {
    let first = acknowledged.partition_point(|write| write.done <= from);
    let mut last = first
        .checked_sub(1)
        .and_then(|index| acknowledged.get(index))
        .map_or(from, |write| write.done);
    let mut longest = (last, Duration::ZERO);
    let inside = acknowledged.get(first..).unwrap_or(&[]).iter();
    let stamps = inside.map(|write| write.done).take_while(|done| *done < to);
    for stamp in stamps.chain([to]) {
        if stamp.since(last) > longest.1 {
            longest = (last, stamp.since(last));
        }
        last = stamp;
    }
    longest
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The table people see.
pub fn table(lines: &[FaultLine]) -> String {
    let head = [
        "no",
        "fault",
        "on",
        "lasted ms",
        "leader before",
        "after",
        "gap ms",
        "whole ms",
        "rows lost",
        "bytes lost",
        "written meanwhile",
    ];
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.number.to_string(),
                line.fault.clone(),
                line.on.clone(),
                line.lasted_ms.to_string(),
                line.before.clone(),
                line.after.clone(),
                line.gap_ms.to_string(),
                line.whole_ms.map_or("late".to_owned(), |ms| ms.to_string()),
                line.lost_rows.to_string(),
                line.lost_bytes.to_string(),
                line.written_bytes.to_string(),
            ]
        })
        .collect();
    crate::report::table(&head, &rows)
}

/// What the whole list shows.
pub fn summary(lines: &[FaultLine]) -> String {
    let gaps = lines.iter().map(|line| line.gap_ms).collect();
    let whole = lines.iter().filter_map(|line| line.whole_ms).collect();
    let failovers = lines.iter().filter(|line| line.before != line.after);
    format!(
        "{} faults, {} changes of leader or timeline, {} not whole in time; gaps: {}; whole again: {}",
        lines.len(),
        failovers.count(),
        lines.iter().filter(|line| line.whole_ms.is_none()).count(),
        quantiles(gaps),
        quantiles(whole)
    )
}

/// Half of the values, 99 of 100 of them and all of them are at most this: each named, in milliseconds.
fn quantiles(mut values: Vec<u64>) -> String {
    values.sort_unstable();
    let at = |percent: usize| {
        let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
        values.get(rank).copied().unwrap_or(0)
    };
    format!(
        "p50 {} ms, p99 {} ms, longest {} ms",
        at(50),
        at(99),
        at(100)
    )
}

#[cfg(test)]
mod tests {
    use super::super::drawn::Kind;
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    fn write(seq: i64, ms: u64, position: u64) -> Write {
        Write {
            writer: 0,
            seq,
            sent: at(ms),
            done: at(ms),
            outcome: Outcome::Acknowledged,
            position,
        }
    }

    fn failover(began: u64, whole: u64, fork: u64) -> Inflicted {
        Inflicted {
            what: Kind::MemberKilled.to_string(),
            on: "n1".to_owned(),
            on_leader: true,
            began: at(began),
            healed: at(whole - 10),
            whole: Some(at(whole)),
            before: ("n1".to_owned(), 1),
            after: Some(("n2".to_owned(), 2)),
            fork: Some(fork),
        }
    }

    fn history(writes: Vec<Write>) -> History {
        History {
            writes,
            cuts: Vec::new(),
        }
    }

    #[test]
    fn rows_written_after_the_fault_are_within_the_bound_whatever_their_bytes() {
        let writes = vec![write(1, 90, 1000), write(2, 110, 9000), write(3, 500, 1500)];
        let list = [failover(100, 600, 1000)];
        let (lines, faults) = assess(&list, &history(writes), &[(0, 2)], 100);
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(
            (
                lines[0].lost_bytes,
                lines[0].behind_bytes,
                lines[0].written_bytes
            ),
            (8000, 0, 8000)
        );
        assert_eq!(lines[0].gap_ms, 390);
    }

    #[test]
    fn rows_acknowledged_before_the_fault_count_against_maximum_lag() {
        let writes = vec![write(1, 80, 2000), write(2, 90, 2100), write(3, 500, 1500)];
        let list = [failover(100, 600, 1000)];
        let lost = [(0, 1), (0, 2)];
        let (lines, faults) = assess(&list, &history(writes.clone()), &lost, 1100);
        assert_eq!((faults, lines[0].behind_bytes), (Vec::new(), 1100));
        let (_, faults) = assess(&list, &history(writes), &lost, 1099);
        assert_eq!(faults.len(), 1);
    }

    #[test]
    fn a_lost_row_belongs_to_the_failover_that_came_after_it() {
        let writes = vec![write(1, 90, 1000), write(2, 690, 2000)];
        let list = [failover(100, 600, 1000), failover(700, 900, 1900)];
        let (lines, _) = assess(&list, &history(writes), &[(0, 2)], 100);
        assert_eq!((lines[0].lost_rows, lines[1].lost_rows), (0, 1));
    }

    #[test]
    fn quantiles_name_values_that_were_measured() {
        let text = quantiles((1..=30).collect());
        assert_eq!(text, "p50 15 ms, p99 30 ms, longest 30 ms");
    }
}
