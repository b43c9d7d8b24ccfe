//! Where one batch of a client ends and the next begins.

use super::{Exchange, Expect};

impl Exchange {
    /// Whether something is outstanding, and what was sent last has ended a batch.
    pub fn has_ended_a_batch(&self) -> bool {
        self.queue.back().is_some_and(Expect::ends_a_batch)
    }

    /// Whether something is outstanding, and all of it is answered up to a ReadyForQuery whatever the client sends next: what
    /// was sent last has ended a batch. Never where data of COPY are on their way, since those may be waited for.
    pub fn is_answered_in_any_case(&self) -> bool {
        let has_copy = || self.queue.contains(&Expect::CopyEnd);
        self.has_ended_a_batch()
            && !self.is_copying
            && !self.is_skipping
            && !self.is_doubtful
            && !has_copy()
    }
}
