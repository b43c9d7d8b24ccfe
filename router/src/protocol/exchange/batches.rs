//! Where one batch of a client ends and the next begins, and what becomes of those that are not answered.

use super::{Exchange, Expect, Fate, Place, Status};

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

    /// Whether nothing of the client's is outstanding, though an answer to the router may be, or one of a COPY that failed.
    pub(super) fn is_nobodys(&self) -> bool {
        let is_probe = |asked: &Expect| *asked == Expect::Probe;
        self.is_ready && self.queue.iter().all(is_probe)
    }

    /// How many requests wait for their ReadyForQuery, and whether a batch is open after the last of them.
    pub fn unanswered(&self) -> (usize, bool) {
        let ends = self.queue.iter().filter(|asked| asked.ends_a_batch());
        let count = ends.count();
        let is_open = !self.is_nobodys() && !self.has_ended_a_batch();
        (count, is_open)
    }

    /// Whether a transaction may be open that has failed with an earlier batch: PostgreSQL refuses in it what it answers
    /// otherwise.
    pub fn may_have_failed(&self) -> bool {
        match self.status {
            Status::Failed => true,
            _ if self.sent == self.done => false,
            Status::Transaction => true,
            Status::Idle => {
                let has_begun =
                    matches!(self.place, Place::Begun | Place::Supposed | Place::Unknown);
                has_begun || self.is_uncertain(self.opened_in)
            }
        }
    }

    /// What becomes of what was asked, if the server is lost now.
    pub fn fate(&self) -> Fate {
        if self.is_nobodys() {
            return match self.status {
                Status::Idle => Fate::Nothing,
                Status::Transaction | Status::Failed => Fate::Undone,
            };
        }
        match self.queue.iter().fold(self.place, Place::behind) {
            Place::Begun | Place::Supposed | Place::Inside => Fate::Undone,
            Place::GivenUp if self.gives_up() => Fate::GivenUp,
            Place::Outside | Place::GivenUp | Place::Unknown => Fate::Unknown,
        }
    }
}
