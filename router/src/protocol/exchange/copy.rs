//! Where the data of a COPY begins and ends, and what it makes of a Sync.

use super::{Exchange, Expect, Verdict};

impl Exchange {
    /// Copied data begins: the server ignores every Sync until the data ends, or another message makes it fail.
    pub(super) fn swallow(&mut self) {
        self.has_copied = true;
        let before = self.queue.len();
        let (mut is_inside, mut has_ended, mut at) = (true, false, 0);
        self.queue.retain(|expect| {
            at += 1;
            if at == 1 || !is_inside {
                return true;
            }
            has_ended |= *expect == Expect::CopyEnd;
            is_inside = !has_ended && expect.may_be_inside_copy();
            !(is_inside && *expect == Expect::Sync)
        });
        self.is_copying = is_inside;
        self.swallowed = before - self.queue.len();
        // They are no batches.
        self.done += self.swallowed as u64;
    }

    /// A COPY of a query is over, of which there may be more.
    pub(super) fn forget_copy_end(&mut self) {
        if !std::mem::take(&mut self.has_copied) {
            return;
        }
        let behind = self.queue.iter().skip(1);
        let mut behind = behind.take_while(|asked| asked.may_be_inside_copy());
        let end = behind.position(|asked| *asked == Expect::CopyEnd);
        if let Some(end) = end {
            self.queue.remove(end + 1);
        }
    }

    /// Whether nothing is outstanding but, perhaps, answers to Syncs of a COPY that has failed: a [`Expect::Probe`] tells.
    pub fn is_in_doubt(&self) -> bool {
        self.is_doubtful && self.is_ready && self.queue.is_empty()
    }

    /// The probe is answered: no answer to a Sync inside COPY comes any more.
    pub(super) fn end_doubt(&mut self) -> Verdict {
        self.queue.pop_front();
        (self.swallowed, self.is_doubtful) = (0, false);
        Verdict::Hide
    }

    /// Whether a COPY is to be answered inside which a Sync was sent: what it makes of that decides what belongs to the answers that
    /// follow.
    pub fn is_copy_uncertain(&self) -> bool {
        let has_sync = self.swallowed > 0 || self.has_sync_in_copy;
        has_sync && !self.is_copying && self.done < self.sent
    }
}
