//! Planned changes of leader, with a second router that dies or freezes in the middle, restarts of the leader, and rolling restarts.

use trunkline_bench::switchover::{self, SwitchoverOptions, Way};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_router_that_lives_do_not_notice_a_planned_change() {
    let met = switchover::run(&SwitchoverOptions::short()).await;
    assert!(
        met.expect("the changes are made"),
        "an error, or a write that is lost or doubled"
    );
}

async fn nobody_notices(way: Way) {
    let met = switchover::run(&SwitchoverOptions::short_by(way)).await;
    assert!(
        met.expect("it is done each time"),
        "an error, or a write that is lost or doubled"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_a_restart_of_the_leader() {
    nobody_notices(Way::Restart).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_a_rolling_restart_for_a_parameter() {
    nobody_notices(Way::Apply).await;
}
