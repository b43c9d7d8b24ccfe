//! Drawn sessions, broken ones among them, through the router.

use trunkline_bench::pools::wire_fuzz::{self, WireFuzzOptions};

/// Those of this seed name their statements as the router does, leave COPY by a Sync, and prepare in transactions that
/// have failed.
const SEED: u64 = 5;
const SESSIONS: u64 = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_answered_in_every_mode_as_by_postgresql_itself() {
    let led = wire_fuzz::run(&WireFuzzOptions::short(SEED, SESSIONS)).await;
    assert!(
        led.expect("the sessions are led"),
        "the router has answered otherwise than PostgreSQL; what was said stands above"
    );
}
