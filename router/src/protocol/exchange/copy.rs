//! Where the data of a COPY begins and ends.

use super::{Exchange, Expect};

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
        let inside = |asked: &Expect| asked.may_be_inside_copy();
        let mut behind = self.queue.iter().skip(1).take_while(|asked| inside(asked));
        let end = behind.position(|asked| *asked == Expect::CopyEnd);
        if let Some(end) = end {
            self.queue.remove(end + 1);
        }
    }
}
