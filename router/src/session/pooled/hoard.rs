//! What clients may make the process hold of texts that have not come to their end, in total.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::client_side::WHOLE;

/// A text up to this long is waited for in any case, bytes.
pub(super) const SHORT: usize = 64 * 1024;
/// So many clients at a time may be in the middle of a longer one: 256 MiB, at [`WHOLE`] each.
const MAX_LONG: usize = 256;

static LONG: AtomicUsize = AtomicUsize::new(0);

/// The right of one client to have a long text waited for; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Hoard(());

impl Hoard {
    /// Whether a text of so many bytes can be waited for to its end; takes the right to it. Without it the text goes on
    /// as it comes, and its client keeps the server.
    pub(super) fn is_room(held: &mut Option<Hoard>, total: usize) -> bool {
        if total <= SHORT || held.is_some() {
            return true;
        }
        let taken = LONG.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < MAX_LONG).then_some(count + 1)
        });
        if taken.is_ok() {
            *held = Some(Hoard(()));
        }
        taken.is_ok()
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        LONG.fetch_sub(1, Ordering::Relaxed);
    }
}

// What is said above of MiB.
const _: () = assert!(MAX_LONG * WHOLE == 256 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_long_texts_than_fit_are_waited_for() {
        let mut all: Vec<Option<Hoard>> = (0..MAX_LONG).map(|_| None).collect();
        assert!(all.iter_mut().all(|held| Hoard::is_room(held, WHOLE)));
        assert!(Hoard::is_room(&mut None, SHORT) && !Hoard::is_room(&mut None, SHORT + 1));
        assert!(all.iter_mut().all(|held| Hoard::is_room(held, WHOLE)));
        all.pop();
        assert!(Hoard::is_room(&mut None, WHOLE));
    }
}
