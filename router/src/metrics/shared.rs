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

/// What the last look saw.
pub struct Shared {
    cores: Arc<[Handle]>,
    last: Mutex<Option<(Moment, Arc<str>)>>,
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
        self.text_at(&mut last, clock::now()).await
    }

    async fn text_at(
        &self,
        last: &mut Option<(Moment, Arc<str>)>,
        now: Moment,
    ) -> Result<Arc<str>, Silent> {
        if let Some((at, text)) = last
            && now.since(*at) < SHARED_FOR
        {
            return Ok(text.clone());
        }
        let text: Arc<str> = pools::render(&gather(&self.cores).await?).into();
        *last = Some((now, text.clone()));
        Ok(text)
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
