//! The server processes that lived when a fault began are gone by the deadline.

use std::collections::BTreeSet;
use std::time::Duration;

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::stack::proc::ProcessId;

const LOOK: Duration = Duration::from_millis(10);

/// How long it took, from `since`, until the last of these processes had ended; nothing if some still live
/// at the end of `limit`.
pub async fn all_ended(
    servers: &BTreeSet<ProcessId>,
    since: Moment,
    limit: Duration,
) -> Option<Duration> {
    let deadline = since + limit;
    loop {
        let now = clock::now();
        if servers.iter().all(|id| !id.is_alive()) {
            return Some(now.since(since));
        }
        if now >= deadline {
            return None;
        }
        tokio::time::sleep(LOOK).await;
    }
}
