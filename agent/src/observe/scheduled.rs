//! When the switchover that the DCS shows is to happen.

use std::time::Duration;

use trunkline_shared::dcs::watch::View;
use trunkline_shared::service::clock;

use crate::decide::observation::Due;

/// The wall clock counts for what people schedule, and for nothing else.
pub(super) fn due(view: &View) -> Option<Due> {
    let at = view.topology.failover.as_ref()?.scheduled_at.as_ref()?;
    let Some(due) = clock::WallTime::parse(at) else {
        return Some(Due::Unreadable);
    };
    let left = due.0.saturating_sub(clock::wall_clock().0);
    let span = Duration::from_micros(left.unsigned_abs());
    Some(if left > 0 {
        Due::In(span)
    } else {
        Due::Ago(span)
    })
}
