//! What the clients saw, stamped by the harness's one clock, and the gaps in it.

use std::time::Duration;

use trunkline_shared::cluster::Moment;

/// What a client knows about its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server said that it is committed.
    Acknowledged,
    /// The connection ended, or 08007 came, before the answer.
    Unknown,
    /// The server said that it is not committed.
    Failed,
}

/// One write of one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The writer's number.
    pub writer: i32,
    /// Its number among the writer's writes.
    pub seq: i64,
    /// When it was sent.
    pub sent: Moment,
    /// When its outcome was known.
    pub done: Moment,
    /// What became of it.
    pub outcome: Outcome,
    /// The WAL position the server named when it wrote the row, 0 if it named none.
    pub position: u64,
}

/// The end of a client's connection, or a connection that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The client's number.
    pub client: i32,
    /// When.
    pub at: Moment,
    /// The SQLSTATE it was told, empty if the connection just ended.
    pub code: String,
}

/// Everything the clients of one run saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The writes of all writers.
    pub writes: Vec<Write>,
    /// The ends of connections.
    pub cuts: Vec<Cut>,
}

/// The longest times without an acknowledged write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Without one by anybody.
    pub anybody: Duration,
    /// Without one by the writer that waited longest.
    pub one_writer: Duration,
}

impl History {
    /// The longest gaps that touch the time between two moments.
    pub fn gaps(&self, from: Moment, to: Moment) -> Gaps {
        let acknowledged = |writer: Option<i32>| {
            let mut stamps: Vec<_> = self
                .writes
                .iter()
                .filter(|write| write.outcome == Outcome::Acknowledged)
                .filter(|write| writer.is_none_or(|writer| writer == write.writer))
                .map(|write| write.done)
                .collect();
            stamps.sort();
            stamps
        };
        let mut writers: Vec<_> = self.writes.iter().map(|write| write.writer).collect();
        writers.sort_unstable();
        writers.dedup();
        let each = writers
            .into_iter()
            .map(|writer| longest(&acknowledged(Some(writer)), from, to));
        Gaps {
            anybody: longest(&acknowledged(None), from, to),
            one_writer: each.max().unwrap_or(to.since(from)),
        }
    }
}

/// The longest pause between two stamps that ends in `from..=to`: one that began earlier counts whole, one
/// that goes on at `to` counts up to there.
pub fn longest(stamps: &[Moment], from: Moment, to: Moment) -> Duration {
    let before = stamps
        .iter()
        .rev()
        .find(|stamp| **stamp <= from)
        .copied()
        .unwrap_or(from);
    let inside = stamps
        .iter()
        .copied()
        .filter(|stamp| *stamp > from && *stamp < to);
    let mut last = before;
    let mut longest = Duration::ZERO;
    for stamp in inside.chain([to]) {
        longest = longest.max(stamp.since(last));
        last = stamp;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    fn write(writer: i32, ms: u64, outcome: Outcome) -> Write {
        Write {
            writer,
            seq: 0,
            sent: at(ms),
            done: at(ms),
            outcome,
            position: 0,
        }
    }

    #[test]
    fn the_gap_over_all_and_the_gap_of_one_writer_differ() {
        let writes = vec![
            write(1, 0, Outcome::Acknowledged),
            write(2, 10, Outcome::Acknowledged),
            write(1, 20, Outcome::Unknown),
            write(2, 50, Outcome::Acknowledged),
            write(1, 90, Outcome::Acknowledged),
        ];
        let gaps = History {
            writes,
            cuts: Vec::new(),
        }
        .gaps(at(0), at(90));
        assert_eq!(gaps.anybody, Duration::from_millis(40));
        assert_eq!(gaps.one_writer, Duration::from_millis(90));
    }

    #[test]
    fn a_gap_that_began_before_the_window_counts_whole() {
        let stamps = [at(0), at(100), at(110)];
        assert_eq!(
            longest(&stamps, at(50), at(110)),
            Duration::from_millis(100)
        );
    }

    #[test]
    fn a_gap_that_goes_on_after_the_window_counts_up_to_its_end() {
        let stamps = [at(0), at(100), at(900)];
        assert_eq!(longest(&stamps, at(0), at(150)), Duration::from_millis(100));
    }

    #[test]
    fn no_write_at_all_is_a_gap_of_the_whole_window() {
        assert_eq!(longest(&[], at(50), at(110)), Duration::from_millis(60));
    }
}
