//! How far this router has come with a planned change of leader: whether what it holds is held on every core, and
//! whether what ran before is over. Only then may the leader's agent go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::pool;
use crate::pool::running::Count;
use crate::topology::Cluster;
use crate::topology::routing_table::{Hold, HoldStage, LaneId};

/// Between two looks at what still runs. There are looks only while a change is under way.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What the fleet's record says of a planned change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The change and the stage that this router holds and has drained.
    pub acknowledged: Option<(u64, HoldStage)>,
    /// Transactions and statements of clients that are not pinned, on the leader.
    pub running: usize,
    /// Clients that wait.
    pub held: usize,
}

/// Follows the changes of one cluster for as long as the process lives.
pub async fn follow(cluster: Arc<Cluster>, cores: Arc<[Handle]>) {
    let told = &cluster.progress;
    let mut changes = cluster.changes();
    let (mut marked, mut drained) = (None, None);
    loop {
        let hold = cluster.published().table.hold;
        match hold {
            None => {
                (marked, drained) = (None, None);
                told.send_if_modified(|known| {
                    let was = std::mem::take(known);
                    was != Progress::default()
                });
            }
            // Another change of the table: what was drained is held, and stays so.
            Some(hold) if drained == Some(hold) => {}
            Some(hold) => {
                let is_drained = drain(&cluster, &cores, hold, &mut marked).await;
                drained = is_drained.then_some(hold);
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Looks until what this stage waits for is over, or something else is announced. Whether it is over.
async fn drain(cluster: &Cluster, cores: &[Handle], hold: Hold, marked: &mut Option<u64>) -> bool {
    let (began, told) = (Instant::now(), &cluster.progress);
    if hold.stage == HoldStage::Transactions && *marked != Some(hold.switchover) {
        *marked = Some(hold.switchover);
        if let Some(lane) = lane(cluster) {
            on_cores(cores, cluster, move |name| pool::set_mark(name, lane.0)).await;
        }
    }
    while cluster.published().table.hold == Some(hold) {
        let running = running(cluster, cores).await;
        let left = match hold.stage {
            HoldStage::Transactions => running.before_mark,
            HoldStage::All => running.all,
        };
        let is_drained = left == 0;
        let held = cluster.held.load(Ordering::Relaxed);
        if is_drained {
            let (name, took) = (&cluster.name, began.elapsed());
            let (id, stage) = (hold.switchover, hold.stage);
            info!(cluster = %name, switchover = id, ?stage, ?took, held, "drained");
        }
        told.send_if_modified(|known| {
            let before = known.acknowledged.map(|(id, _)| id);
            let acknowledged = match is_drained {
                true => Some((hold.switchover, hold.stage)),
                // What was said of an earlier stage still holds.
                false if before == Some(hold.switchover) => known.acknowledged,
                false => None,
            };
            let next = Progress {
                acknowledged,
                running: running.all,
                held,
            };
            std::mem::replace(known, next) != next
        });
        if is_drained {
            return true;
        }
        sleep(LOOK_EVERY).await;
    }
    false
}

/// The lane of the leader that is to be left.
fn lane(cluster: &Cluster) -> Option<LaneId> {
    let published = cluster.published();
    published.table.last.as_ref().and_then(|last| last.lane)
}

/// What runs on the leader, on all cores. Each is asked in a turn of its own: a session that had not seen the hold yet
/// has taken its server before, and is counted.
async fn running(cluster: &Cluster, cores: &[Handle]) -> Count {
    let Some(lane) = lane(cluster) else {
        return Count::default();
    };
    let counts = on_cores(cores, cluster, move |name| pool::running(name, lane.0)).await;
    counts.into_iter().fold(Count::default(), Count::and)
}

async fn on_cores<T: Send + 'static>(
    cores: &[Handle],
    cluster: &Cluster,
    asked: impl Fn(&str) -> T + Copy + Send + 'static,
) -> Vec<T> {
    let asking: Vec<_> = cores
        .iter()
        .map(|core| {
            let name = cluster.name.clone();
            core.spawn(async move { asked(name.as_str()) })
        })
        .collect();
    let mut answers = Vec::with_capacity(asking.len());
    for answer in asking {
        // A core ends only with the process.
        answers.extend(answer.await);
    }
    answers
}
