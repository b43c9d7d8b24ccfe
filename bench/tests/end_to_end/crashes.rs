//! The leader is lost under clients: its postmaster is killed, or all of it goes while they read.

use trunkline_bench::crashes::{self, CrashesOptions};
use trunkline_bench::cuts::{self, CutsOptions};
use trunkline_bench::stack::member::Synchronous;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_error_of_a_crash_is_deserved_and_no_confirmed_write_is_lost() {
    let kept = crashes::is_safe(&CrashesOptions::short(Some(Synchronous::On))).await;
    assert!(
        kept.expect("the kills are carried through"),
        "an error that was not deserved, or a write that is lost or doubled"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fatal_stands_within_a_message_whatever_a_reader_was_taking() {
    let kept = cuts::is_safe(&CutsOptions::short()).await;
    assert!(
        kept.expect("the leaders are taken away"),
        "a stream that is not the protocol, or an answer that is not the table's"
    );
}
