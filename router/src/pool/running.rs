//! What runs on the servers of a pool, told apart by whether it began before a planned change of leader was announced.
//! Pure.

use trunkline_shared::cluster::router::HoldStage;

/// Leases of clients that are not pinned: each is a transaction, or a statement, that a change of leader waits for.
#[derive(Debug, Default)]
pub struct Running {
    mark: u32,
    since_mark: usize,
    before_mark: usize,
}

/// When a lease began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun(u32);

/// How much runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Of what ran already when the last mark was set.
    pub before_mark: usize,
    /// In all.
    pub all: usize,
}

impl Running {
    /// One more.
    pub fn begin(&mut self) -> Begun {
        self.since_mark += 1;
        Begun(self.mark)
    }

    /// That one is over, or is not waited for any more; `None` is one that was not waited for.
    pub fn end(&mut self, begun: Option<Begun>) {
        let Some(Begun(mark)) = begun else {
            return;
        };
        let counted = match mark == self.mark {
            true => &mut self.since_mark,
            false => &mut self.before_mark,
        };
        *counted = counted.saturating_sub(1);
    }

    /// Whether something that is waited for is over, by what ran before it ended: all that began before the mark, or all.
    pub fn is_over_since(&self, before: Count) -> bool {
        let now = self.count();
        (now.before_mark == 0 && before.before_mark > 0) || (now.all == 0 && before.all > 0)
    }

    /// What runs now is told apart from what begins from here on.
    pub fn set_mark(&mut self) {
        self.mark = self.mark.wrapping_add(1);
        self.before_mark += std::mem::take(&mut self.since_mark);
    }

    /// How much runs.
    pub fn count(&self) -> Count {
        Count {
            before_mark: self.before_mark,
            all: self.before_mark + self.since_mark,
        }
    }
}

impl Count {
    /// What a stage of a planned change waits for.
    pub fn left(self, stage: HoldStage) -> usize {
        match stage {
            HoldStage::Transactions => self.before_mark,
            HoldStage::All => self.all,
        }
    }

    /// Both together.
    pub fn and(self, other: Count) -> Count {
        Count {
            before_mark: self.before_mark + other.before_mark,
            all: self.all + other.all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_a_mark_is_waited_for_whatever_begins_after_it() {
        let mut running = Running::default();
        let (first, second) = (running.begin(), running.begin());
        running.set_mark();
        let third = running.begin();
        assert_eq!(
            running.count(),
            Count {
                before_mark: 2,
                all: 3
            }
        );
        running.end(Some(third));
        running.end(Some(first));
        let last = Count {
            before_mark: 1,
            all: 1,
        };
        assert_eq!(running.count(), last);
        assert!(!running.is_over_since(last));
        // Another change, before the last one's are over.
        let fourth = running.begin();
        running.set_mark();
        assert_eq!(
            running.count(),
            Count {
                before_mark: 2,
                all: 2
            }
        );
        let fifth = running.begin();
        let before = running.count();
        running.end(Some(second));
        assert!(!running.is_over_since(before));
        running.end(Some(fourth));
        assert!(running.is_over_since(before));
        let last = running.count();
        running.end(Some(fifth));
        assert!(running.is_over_since(last));
        assert_eq!(running.count(), Count::default());
    }
}
