//! The metrics of pools for however many ask for them, and however often: the endpoint asks nobody who he is, and each
//! look at the cores takes their time.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::pools;
use crate::admin::gather::{Silent, gather};

/// Who asks within this time after a look at the cores is told what that saw.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// When it was looked last, and what that saw; that a core was silent, too.
type Last = (Moment, Result<Arc<str>, Silent>);

/// What the last look saw.
pub struct Shared {
    cores: Arc<[Handle]>,
    last: Mutex<Option<Last>>,
}

impl Shared {
    /// Of these cores.
    pub fn new(cores: Arc<[Handle]>) -> Self {
        Self {
            cores,
            last: Mutex::new(None),
        }
    }

    /// The text, a second old at most. Who comes during a look waits for it.
    ///
    /// # Errors
    /// A core does not answer.
    pub async fn text(&self) -> Result<Arc<str>, Silent> {
        let mut last = self.last.lock().await;
        let began = clock::now();
        let text = self.text_at(&mut last, began).await;
        // Counted from its end: those who have waited for a silent core do not ask it again one after another.
        if let Some((at, _)) = &mut *last
            && *at == began
        {
            *at = clock::now();
        }
        text
    }

    async fn text_at(&self, last: &mut Option<Last>, now: Moment) -> Result<Arc<str>, Silent> {
        if let Some((at, text)) = last
            && now.since(*at) < SHARED_FOR
        {
            return text.clone();
        }
        let seen = gather(&self.cores).await;
        let text = seen.map(|seen| Arc::from(pools::render(&seen)));
        *last = Some((now, text.clone()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster;

    #[tokio::test]
    async fn who_asks_soon_after_another_is_told_the_same_and_later_something_new() {
        let shared = Shared::new(Arc::from([Handle::current()]));
        let mut last = None;
        let mut closed = async |now| {
            let text = shared.text_at(&mut last, now).await.unwrap();
            let lines = text
                .lines()
                .filter(|line| line.contains("reason=\"a_test\""));
            lines.count()
        };
        let now = Moment(7_000_000_000);
        assert_eq!(closed(now).await, 0);
        roster::closed(["demo", "app", "app"], "a_test");
        let soon = now + SHARED_FOR.saturating_sub(Duration::from_nanos(1));
        assert_eq!(closed(soon).await, 0);
        assert_eq!(closed(now + SHARED_FOR).await, 1);
    }
}
