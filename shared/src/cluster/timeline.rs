//! Timelines and the history that joins them.

use std::fmt;

use super::Lsn;

/// A PostgreSQL timeline number. It grows with each promotion, but it is not an epoch: a server can
/// raise its timeline alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tl{}", self.0)
    }
}

/// One line of a history: `timeline` ended at `end`, where the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineEnd {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// The switch point: first byte that does not belong to `timeline`.
    pub end: Lsn,
}

/// The ancestry of the newest timeline, oldest first, as in PostgreSQL's `.history` files and
/// Patroni's `history` key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TimelineHistory {
    ends: Vec<TimelineEnd>,
}

/// Where a member's WAL stands towards a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ancestry {
    /// The position lies on the history: following needs no rewind.
    Ancestor,
    /// The position lies beyond the point where the history left that timeline.
    Diverged {
        /// Where the histories parted.
        fork: Lsn,
    },
    /// The history does not mention the timeline; nothing can be said yet.
    Unknown,
}

impl TimelineHistory {
    /// A history from its lines; they are put in order of their timelines.
    pub fn new(mut ends: Vec<TimelineEnd>) -> Self {
        ends.sort_by_key(|e| e.timeline);
        ends.dedup_by_key(|e| e.timeline);
        Self { ends }
    }

    /// The lines, oldest first.
    pub fn ends(&self) -> &[TimelineEnd] {
        &self.ends
    }

    /// Where `timeline` ended, if it is an ancestor.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        self.ends
            .iter()
            .find(|e| e.timeline == timeline)
            .map(|e| e.end)
    }

    /// Up to where each timeline from `from` on is shared with `of`, which is newer than all of them: no further than any
    /// later one that led to it.
    pub fn shared_ends(&self, from: Timeline, of: Timeline) -> Vec<TimelineEnd> {
        let between = |e: &&TimelineEnd| e.timeline >= from && e.timeline < of;
        let ends = self.ends.iter().filter(between);
        let shared = |e: &TimelineEnd| {
            let later = self.ends.iter().filter(|l| l.timeline >= e.timeline);
            let end = later.filter(|l| l.timeline < of).map(|l| l.end).min();
            TimelineEnd {
                timeline: e.timeline,
                end: end.unwrap_or(e.end),
            }
        };
        ends.map(shared).collect()
    }

    /// The newest timeline that has ended, if any.
    pub fn last_ended(&self) -> Option<Timeline> {
        self.ends.last().map(|e| e.timeline)
    }

    /// Whether WAL that ends at `position` on `timeline` is part of the history of `of`.
    ///
    /// The end of a timeline belongs to both sides: a standby that received exactly up to the switch
    /// point follows without a rewind (PostgreSQL manual, 27.2.2 and pg_rewind).
    pub fn ancestry(&self, timeline: Timeline, position: Lsn, of: Timeline) -> Ancestry {
        if timeline == of {
            return Ancestry::Ancestor;
        }
        if timeline > of {
            let fork = self.end_of(of).unwrap_or(Lsn(0));
            return Ancestry::Diverged { fork };
        }
        // A member may be promoted while it still replays an earlier timeline than the one it goes to: all
        // that lies beyond that position is not shared, whatever line it stands in.
        let later = self.ends.iter().filter(|e| e.timeline >= timeline);
        let shared = later.map(|e| e.end).min();
        match self.end_of(timeline).and(shared) {
            // Later timelines are listed and this one is not: the history went past it, from the last one
            // listed before.
            None if self.last_ended().is_some_and(|last| last > timeline) => {
                let before = self.ends.iter().rev().find(|e| e.timeline < timeline);
                let fork = before.map_or(Lsn(0), |e| e.end);
                Ancestry::Diverged { fork }
            }
            None => Ancestry::Unknown,
            Some(end) if position <= end => Ancestry::Ancestor,
            Some(fork) => Ancestry::Diverged { fork },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> TimelineHistory {
        let end = |t, l| TimelineEnd {
            timeline: Timeline(t),
            end: Lsn(l),
        };
        TimelineHistory::new(vec![end(2, 200), end(1, 100)])
    }

    #[test]
    fn a_timeline_is_shared_up_to_its_end_or_that_of_an_earlier_position_from_which_a_later_one_began()
     {
        let end = |t, l| TimelineEnd {
            timeline: Timeline(t),
            end: Lsn(l),
        };
        let all = TimelineHistory::new(vec![end(1, 100), end(2, 250), end(3, 200), end(5, 900)]);
        let shared = |from, of| all.shared_ends(Timeline(from), Timeline(of));
        assert_eq!(shared(1, 4), [end(1, 100), end(2, 200), end(3, 200)]);
        assert_eq!(shared(2, 3), [end(2, 250)]);
        assert_eq!(shared(4, 4), []);
    }

    #[test]
    fn a_position_up_to_the_switch_point_is_an_ancestor() {
        let of = Timeline(3);
        assert_eq!(
            history().ancestry(Timeline(1), Lsn(100), of),
            Ancestry::Ancestor
        );
        assert_eq!(
            history().ancestry(Timeline(1), Lsn(101), of),
            Ancestry::Diverged { fork: Lsn(100) }
        );
        assert_eq!(
            history().ancestry(Timeline(2), Lsn(150), of),
            Ancestry::Ancestor
        );
        assert_eq!(
            history().ancestry(Timeline(3), Lsn(9000), of),
            Ancestry::Ancestor
        );
    }

    #[test]
    fn a_timeline_that_the_history_left_out_has_diverged() {
        let end = |t, l| TimelineEnd {
            timeline: Timeline(t),
            end: Lsn(l),
        };
        let history = TimelineHistory::new(vec![end(1, 100), end(3, 300)]);
        assert_eq!(
            history.ancestry(Timeline(2), Lsn(50), Timeline(4)),
            Ancestry::Diverged { fork: Lsn(100) }
        );
        assert_eq!(
            history.ancestry(Timeline(4), Lsn(50), Timeline(5)),
            Ancestry::Unknown
        );
    }

    #[test]
    fn a_later_timeline_that_ended_earlier_limits_what_is_shared() {
        let end = |t, l| TimelineEnd {
            timeline: Timeline(t),
            end: Lsn(l),
        };
        let history = TimelineHistory::new(vec![end(1, 100), end(2, 80)]);
        assert_eq!(
            history.ancestry(Timeline(1), Lsn(90), Timeline(3)),
            Ancestry::Diverged { fork: Lsn(80) }
        );
    }

    #[test]
    fn a_newer_timeline_than_the_leaders_has_diverged_and_an_unlisted_one_is_unknown() {
        assert_eq!(
            history().ancestry(Timeline(4), Lsn(1), Timeline(2)),
            Ancestry::Diverged { fork: Lsn(200) }
        );
        assert_eq!(
            TimelineHistory::default().ancestry(Timeline(1), Lsn(1), Timeline(2)),
            Ancestry::Unknown
        );
    }
}
