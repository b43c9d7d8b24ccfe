//! The task that keeps the names of the clusters of the namespace: list, and watch from the next revision on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::{Dcs, DcsError, WatchEvent};
use trunkline_shared::service::clock;

use super::Clusters;
use super::names::Names;

/// The first pause after a failure; a watch that worked is opened again at once.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Looks for clusters whose names begin with this, for ever.
pub async fn look(
    dcs: Arc<dyn Dcs>,
    namespace: String,
    beginning: String,
    clusters: Arc<Clusters>,
) {
    let mut backoff = Duration::ZERO;
    let mut said = None;
    loop {
        let mut has_seen = false;
        let seen = &mut has_seen;
        let Err(error) = round(&*dcs, &namespace, &beginning, &clusters, seen).await;
        let text = error.to_string();
        if has_seen {
            backoff = Duration::ZERO;
            said = None;
        }
        clusters.lose_sight(&text);
        // A watch ends now and then, and a DCS that is away says the same again and again.
        if !backoff.is_zero() && said.as_ref() != Some(&text) {
            warn!(%namespace, "which clusters there are cannot be seen: {text}");
            said = Some(text);
        }
        sleep(backoff).await;
        backoff = (backoff * 2).clamp(FIRST_BACKOFF, MAX_BACKOFF);
    }
}

/// One listing and the watch after it. `has_seen` is set once the listing is there.
async fn round(
    dcs: &dyn Dcs,
    namespace: &str,
    beginning: &str,
    clusters: &Clusters,
    has_seen: &mut bool,
) -> Result<Infallible, DcsError> {
    let prefix = format!("{}{beginning}", Keys::namespace(namespace));
    let listing = dcs.read_keys(&prefix).await?;
    let keys = listing.entries.into_iter().map(|entry| entry.key);
    let mut names = Names::new(namespace, keys);
    clusters.hear(names.all(), clock::now());
    let mut watch = dcs.watch(&prefix, listing.header.revision + 1).await?;
    *has_seen = true;
    loop {
        match watch.next().await? {
            WatchEvent::Progress { .. } => {}
            WatchEvent::Changes { changes, .. } => {
                let mut is_other = false;
                for (key, entry) in changes {
                    is_other |= names.change(key, entry.is_some());
                }
                if is_other {
                    clusters.hear(names.all(), clock::now());
                }
            }
        }
    }
}
