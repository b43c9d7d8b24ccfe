//! The registered routers while a planned change holds their clients: who has not drained yet, and how that is told.

use std::time::Duration;

use trunkline_shared::cluster::router::{Acknowledged, HoldStage};
use trunkline_shared::cluster::topology::SwitchoverRecord;
use trunkline_shared::cluster::{RouterRecord, Topology};

use super::decision::Detail;

/// So many routers are named at the most where something waits for them.
const MOST_NAMED: usize = 3;

/// A registered router, by its name.
type Named<'a> = (&'a str, &'a RouterRecord);

/// The registered routers that have not said of this very record that they hold, and that everything which ran before has
/// ended. One whose lease is over holds nobody up: it is not registered any more.
pub(super) fn unacknowledged<'a>(
    topology: &'a Topology,
    record: &SwitchoverRecord,
    stage: HoldStage,
) -> Vec<Named<'a>> {
    // A request that is carried out a second time has its number, and what was said of the first time is over.
    let revision = topology.switchover_revision;
    let is_of_it = |said: &Acknowledged| {
        (said.switchover, said.epoch, said.revision) == (record.id, record.epoch, revision)
    };
    let has = |router: &RouterRecord| {
        let said = router.acknowledged.filter(is_of_it);
        said.is_some_and(|said| match (stage, said.stage) {
            (HoldStage::Transactions, HoldStage::Transactions | HoldStage::All)
            | (HoldStage::All, HoldStage::All) => true,
            (HoldStage::All, HoldStage::Transactions) => false,
        })
    };
    let routers = topology.routers.iter();
    let routers = routers.filter(|(_, router)| !has(router));
    routers.map(|(name, router)| (&**name, &**router)).collect()
}

/// Who is waited for, for people.
pub(super) fn awaited(missing: &[Named<'_>]) -> Detail {
    match missing.is_empty() {
        true => Detail::None,
        false => Detail::Text(named(missing).into()),
    }
}

/// Why a hold is given up after `limit`.
pub(super) fn not_in_time(missing: &[Named<'_>], limit: Duration) -> Detail {
    let text = match missing.is_empty() {
        true => format!("this member's agent was held up itself for longer than {limit:?}"),
        false => format!("not drained within {limit:?}: {}", named(missing)),
    };
    Detail::Text(text.into())
}

fn named(routers: &[Named<'_>]) -> String {
    let one = |(name, router): &Named<'_>| {
        let open = router.writer_sessions;
        format!("router {name} with {open} open writer sessions")
    };
    let mut names: Vec<String> = routers.iter().take(MOST_NAMED).map(one).collect();
    if let Some(more) = routers
        .len()
        .checked_sub(MOST_NAMED)
        .filter(|more| *more > 0)
    {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}
