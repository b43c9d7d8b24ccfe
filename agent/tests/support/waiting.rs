//! Waiting for a condition, with a deadline.

use std::time::Duration;

use trunkline_shared::service::clock;

/// Longest wait for anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(3);

/// Looks until `found` gives a value; what is `told` is said when it does not.
pub async fn wait_for<T>(
    what: &str,
    told: impl Fn() -> String,
    mut found: impl AsyncFnMut() -> Option<T>,
) -> T {
    let began = clock::now();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        if let Some(value) = found().await {
            return value;
        }
        assert!(
            clock::now().since(began) < PATIENCE,
            "waited in vain for {what}\n{}",
            told()
        );
    }
}
