//! Planned changes of leader, in whose middle a second router, or the candidate, dies or hangs; restarts of the leader, and
//! rolling restarts.

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_change_whose_candidate_is_hurt_loses_nothing() {
    let met = switchover::run(&SwitchoverOptions::short_with_candidate()).await;
    assert!(
        met.expect("the changes come to an end"),
        "a write that is lost or doubled, an error that nobody deserved, or no leader"
    );
}
