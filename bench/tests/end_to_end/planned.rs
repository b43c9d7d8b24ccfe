//! Planned changes of leader, with a second router that dies or freezes in the middle.

use trunkline_bench::switchover::{self, SwitchoverOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_router_that_lives_do_not_notice_a_planned_change() {
    let met = switchover::run(&SwitchoverOptions::short()).await;
    assert!(
        met.expect("the changes are made"),
        "an error, or a write that is lost or doubled"
    );
}
