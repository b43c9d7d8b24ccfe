//! Transactions on lists, through a pooled listener, while the leader is lost or moves, and reads on the read port.

use trunkline_bench::serial::fault::Fault;
use trunkline_bench::serial::{self, SerialOptions};

async fn stays_serializable(fault: Fault) {
    let kept = serial::run(&SerialOptions::short(fault)).await;
    assert!(
        kept.expect("the run is carried through"),
        "something that SERIALIZABLE forbids, or a replica showed what never was"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_stay_serializable_when_the_leader_is_killed() {
    stays_serializable(Fault::KillNode).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_session_goes_to_a_replica_that_lags_beyond_the_limit() {
    stays_serializable(Fault::LagReplica).await;
}
