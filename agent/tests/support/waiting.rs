//! Waiting for a condition, with a deadline.

use std::time::Duration;

use trunkline_shared::service::clock;

/// Longest wait for anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks every few milliseconds until `found` gives a value; what is `told` is said when it does not.
pub async fn wait_for<T>(
    what: &str,
    told: impl Fn() -> String,
    mut found: impl AsyncFnMut() -> Option<T>,
) -> T {
    let began = clock::now();
    loop {
        if let Some(value) = found().await {
            return value;
        }
        assert!(
            clock::now().since(began) < PATIENCE,
            "waited in vain for {what}\n{}",
            told()
        );
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
