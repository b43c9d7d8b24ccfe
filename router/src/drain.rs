//! How far this router has come with a planned change of leader: whether what it holds is held on every core, and
//! whether what ran before is over. Only then may the leader's agent go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::info;
use trunkline_shared::cluster::router::Acknowledged;

use crate::pool;
use crate::pool::running::Count;
use crate::topology::Cluster;
use crate::topology::routing_table::{Hold, HoldStage, LaneId};

/// How often the counts are looked at while something runs that a change waits for. Its end is told by the pools.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// What the fleet's record says of a planned change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The change and the stage that this router holds and has drained.
    pub acknowledged: Option<Acknowledged>,
    /// Transactions and statements of clients that are not pinned, on the leader.
    pub running: usize,
    /// Clients that wait.
    pub held: usize,
}

/// What this router has come to in a change.
#[derive(Default)]
struct State {
    /// The record by which what ran before was told apart from what begins.
    marked: Option<Hold>,
    /// What is drained, and stays so: it is held.
    drained: Option<Hold>,
    /// Since when the last stage is drained.
    began: Option<(Hold, Instant)>,
}

/// Follows the changes of one cluster for as long as the process lives.
pub async fn follow(cluster: Arc<Cluster>, cores: Arc<[Handle]>) {
    let mut changes = cluster.changes();
    let mut state = State::default();
    let ended = Arc::new(Notify::new());
    loop {
        changes.mark_unchanged();
        let published = cluster.published();
        let is_waiting = match published.table.hold {
            None => {
                state = State::default();
                cluster.progress.send_if_modified(|known| {
                    let was = std::mem::take(known);
                    was != Progress::default()
                });
                false
            }
            // Another change of the table.
            Some(hold) if state.drained == Some(hold) => false,
            Some(hold) => {
                let lane = published.table.last.as_ref().and_then(|last| last.lane);
                !drain(&cluster, &cores, (hold, lane), &mut state, &ended).await
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = ended.notified(), if is_waiting => {}
            () = sleep(COUNT_EVERY), if is_waiting => {}
        }
    }
}

/// Looks whether what this stage waits for, on the lane of the leader that is to be left, is over, and tells it. Without
/// that lane nothing runs there.
async fn drain(
    cluster: &Cluster,
    cores: &[Handle],
    (hold, lane): (Hold, Option<LaneId>),
    state: &mut State,
    ended: &Arc<Notify>,
) -> bool {
    if state.began.is_none_or(|(known, _)| known != hold) {
        state.began = Some((hold, Instant::now()));
    }
    if hold.stage == HoldStage::Transactions && state.marked != Some(hold) {
        state.marked = Some(hold);
        if let Some(lane) = lane {
            on_cores(cores, cluster, move |name| pool::set_mark(name, lane.0)).await;
        }
    }
    let running = match lane {
        Some(lane) => running(cluster, cores, (lane, hold.stage), ended).await,
        None => Count::default(),
    };
    let left = running.left(hold.stage);
    // What was counted is good only for what is held still.
    let is_drained = left == 0 && cluster.published().table.hold == Some(hold);
    let held = cluster.held.load(Ordering::Relaxed);
    if is_drained {
        let (name, took) = (&cluster.name, state.began.map(|(_, began)| began.elapsed()));
        let (id, stage) = (hold.switchover, hold.stage);
        info!(cluster = %name, switchover = id, ?stage, ?took, held, "drained");
        state.drained = Some(hold);
    }
    cluster.progress.send_if_modified(|known| {
        let acknowledged = match is_drained {
            true => Some(Acknowledged {
                switchover: hold.switchover,
                epoch: hold.epoch,
                revision: hold.revision,
                stage: hold.stage,
            }),
            // What was said of an earlier stage still holds.
            false => known
                .acknowledged
                .filter(|said| (said.switchover, said.epoch) == (hold.switchover, hold.epoch)),
        };
        let next = Progress {
            acknowledged,
            running: running.all,
            held,
        };
        std::mem::replace(known, next) != next
    });
    is_drained
}

/// What runs on the leader, on all cores. Each is asked in a turn of its own: a session that had not seen the hold yet
/// has taken its server before, and is counted; one that looks after that turn sees what was published before it.
async fn running(
    cluster: &Cluster,
    cores: &[Handle],
    (lane, stage): (LaneId, HoldStage),
    ended: &Arc<Notify>,
) -> Count {
    let ended = ended.clone();
    let counts = on_cores(cores, cluster, move |name| {
        pool::running(name, lane.0, stage, &ended)
    });
    let counts = counts.await;
    counts.into_iter().fold(Count::default(), Count::and)
}

async fn on_cores<T: Send + 'static>(
    cores: &[Handle],
    cluster: &Cluster,
    asked: impl Fn(&str) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let asking: Vec<_> = cores
        .iter()
        .map(|core| {
            let (name, asked) = (cluster.name.clone(), asked.clone());
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
