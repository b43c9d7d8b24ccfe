//! The leader's postmaster is killed under clients of a pooled listener.

use trunkline_bench::crashes::{self, CrashesOptions};
use trunkline_bench::stack::member::Synchronous;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_error_of_a_crash_is_deserved_and_no_confirmed_write_is_lost() {
    let kept = crashes::is_safe(&CrashesOptions::short(Some(Synchronous::On))).await;
    assert!(
        kept.expect("the kills are carried through"),
        "an error that was not deserved, or a write that is lost or doubled"
    );
}
