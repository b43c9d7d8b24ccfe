//! What clients may make the process hold of texts that have not come to their end, in total.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::client_side::WHOLE;

/// A text up to this long is waited for in any case, bytes.
pub(super) const SHORT: usize = 64 * 1024;
/// So many clients at a time may be in the middle of a longer one: 256 MiB, at [`WHOLE`] each.
const MAX_LONG: usize = 256;

/// How long the rest of such a text may take: who sends it more slowly is not waited for, so that none who sends a
/// beginning and no more keeps the others out.
const REST_TIME: Duration = Duration::from_secs(10);

static LONG: AtomicUsize = AtomicUsize::new(0);

/// The right of one client to have a long text waited for; given back when its time is over, or when it is dropped.
#[derive(Debug)]
pub(super) struct Hoard(Box<Right>);

#[derive(Debug)]
enum Right {
    /// Until this is over.
    Held(Taken, Pin<Box<Sleep>>),
    /// The text goes on as it comes.
    Over,
}

/// One of [`MAX_LONG`].
#[derive(Debug)]
struct Taken(());

impl Hoard {
    /// Whether a text of so many bytes can be waited for to its end; takes the right to it. Without it the text goes on
    /// as it comes, and its client keeps the server.
    pub(super) fn is_room(held: &mut Option<Hoard>, total: usize) -> bool {
        Self::is_room_for(held, total, REST_TIME)
    }

    fn is_room_for(held: &mut Option<Hoard>, total: usize, time: Duration) -> bool {
        match held {
            _ if total <= SHORT => true,
            Some(hoard) => matches!(*hoard.0, Right::Held(..)),
            None => {
                let taken = LONG.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    (count < MAX_LONG).then_some(count + 1)
                });
                if taken.is_ok() {
                    *held = Some(Hoard(Box::new(Right::Held(
                        Taken(()),
                        Box::pin(sleep(time)),
                    ))));
                }
                taken.is_ok()
            }
        }
    }

    /// Whether the time has just come to an end, and the text is to be looked at again as one that is not waited for; if
    /// it has not, the task is woken when it has.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Right::Held(_, timer) = &mut *self.0 else {
            return false;
        };
        let is_over = timer.as_mut().poll(cx).is_ready();
        if is_over {
            *self.0 = Right::Over;
        }
        is_over
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        LONG.fetch_sub(1, Ordering::Relaxed);
    }
}

// What is said above of MiB.
const _: () = assert!(MAX_LONG * WHOLE == 256 << 20);

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn no_more_long_texts_than_fit_are_waited_for_and_none_for_ever() {
        let mut all: Vec<Option<Hoard>> = (0..MAX_LONG).map(|_| None).collect();
        assert!(all.iter_mut().all(|held| Hoard::is_room(held, WHOLE)));
        assert!(Hoard::is_room(&mut None, SHORT) && !Hoard::is_room(&mut None, SHORT + 1));
        assert!(all.iter_mut().all(|held| Hoard::is_room(held, WHOLE)));
        all.pop();
        let mut slow = None;
        assert!(Hoard::is_room_for(&mut slow, WHOLE, Duration::ZERO));
        assert!(!Hoard::is_room(&mut None, WHOLE));
        poll_fn(
            |cx| match slow.as_mut().is_some_and(|own| own.poll_over(cx)) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            },
        )
        .await;
        assert!(!Hoard::is_room(&mut slow, WHOLE) && Hoard::is_room(&mut slow, SHORT));
        assert!(Hoard::is_room(&mut None, WHOLE));
    }
}
