//! What a router says of itself, and when it says it anew. Pure.

use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::router::Acknowledged;
use trunkline_shared::cluster::{LeaderEpoch, Moment, RouterRecord};

/// How often the counts are written anew while nothing else changes.
pub const COUNTS_EVERY: Duration = Duration::from_secs(10);
/// The same during a planned change: somebody looks at them.
pub const COUNTS_EVERY_IN_A_CHANGE: Duration = Duration::from_millis(100);

/// The pause after a record could not be written; doubled at each failure, for an agent may wait for what it says.
pub const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What is the same for every cluster.
#[derive(Clone, Debug)]
pub struct Own {
    /// `<name>/<instance>`.
    pub key: Arc<str>,
    /// The version of the program.
    pub version: Arc<str>,
    /// Its HTTP endpoint as others reach it.
    pub http_url: Arc<str>,
    /// The number in the cancel keys of its clients, if it gives any out.
    pub cancel_number: Option<u16>,
}

/// How the process stands towards one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// The epoch of the writer that sessions go to now.
    pub epoch: Option<LeaderEpoch>,
    /// The stage of a planned change that is held and drained.
    pub acknowledged: Option<Acknowledged>,
    /// Sessions on the writer.
    pub writer_sessions: u64,
    /// Clients that are held for lack of a leader.
    pub held_clients: u64,
    /// The shortest `hold_timeout` of its listeners.
    pub hold_timeout: Duration,
}

/// A record that stands in the DCS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// It.
    pub record: RouterRecord,
    /// The lease it hangs on.
    pub lease: i64,
    /// When it was written.
    pub at: Moment,
}

/// The record to be written. Without a writer the epoch applied last still is the one applied.
pub fn record(own: &Own, standing: &Standing, before: Option<LeaderEpoch>) -> RouterRecord {
    RouterRecord {
        version: own.version.clone(),
        http_url: own.http_url.clone(),
        hold_timeout: standing.hold_timeout,
        epoch: standing.epoch.or(before),
        acknowledged: standing.acknowledged,
        writer_sessions: standing.writer_sessions,
        held_clients: standing.held_clients,
        cancel_number: own.cancel_number,
    }
}

/// How long the record may wait to be written, or to be looked at again; zero: now.
pub fn wait(written: Option<&Written>, lease: i64, wanted: &RouterRecord, now: Moment) -> Duration {
    let Some(written) = written.filter(|written| written.lease == lease) else {
        return Duration::ZERO;
    };
    if !written.record.is_same_but_for_counts(wanted) {
        return Duration::ZERO;
    }
    let every = match wanted.acknowledged {
        Some(_) => COUNTS_EVERY_IN_A_CHANGE,
        None => COUNTS_EVERY,
    };
    match written.record == *wanted {
        true => every,
        false => now.until(written.at + every),
    }
}

/// The pause after so many failures in a row, none longer than the last.
pub fn pause_after(failures: u32, longest: Duration) -> Duration {
    let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(doubled).min(longest)
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::router::HoldStage;

    use super::*;

    const NOW: Moment = Moment(1_000_000_000_000);

    fn own() -> Own {
        Own {
            key: "r1/7-00000001".into(),
            version: "0.1.0".into(),
            http_url: "http://r1:8010".into(),
            cancel_number: Some(5),
        }
    }

    fn epoch(revision: i64) -> LeaderEpoch {
        LeaderEpoch {
            generation: 1,
            revision,
        }
    }

    fn standing() -> Standing {
        Standing {
            epoch: Some(epoch(42)),
            acknowledged: None,
            writer_sessions: 3,
            held_clients: 0,
            hold_timeout: Duration::from_secs(10),
        }
    }

    fn written(standing: &Standing, at: Moment) -> Written {
        Written {
            record: record(&own(), standing, None),
            lease: 9,
            at,
        }
    }

    fn wait_for(written: &Written, standing: &Standing) -> Duration {
        let wanted = record(&own(), standing, written.record.epoch);
        wait(Some(written), 9, &wanted, NOW)
    }

    fn at_stage(stage: HoldStage) -> Standing {
        let acknowledged = Some(Acknowledged {
            switchover: 1,
            epoch: epoch(42),
            revision: 50,
            stage,
        });
        Standing {
            acknowledged,
            ..standing()
        }
    }

    #[test]
    fn a_record_that_does_not_stand_under_the_lease_is_written_now() {
        let wanted = record(&own(), &standing(), None);
        assert_eq!(wait(None, 9, &wanted, NOW), Duration::ZERO);
        let written = written(&standing(), NOW);
        assert_eq!(wait(Some(&written), 10, &wanted, NOW), Duration::ZERO);
        assert_eq!(wait(Some(&written), 9, &wanted, NOW), COUNTS_EVERY);
    }

    #[test]
    fn an_epoch_a_stage_and_a_setting_are_told_at_once() {
        let written = written(&standing(), NOW);
        let newer = Standing {
            epoch: Some(epoch(43)),
            ..standing()
        };
        let shorter = Standing {
            hold_timeout: Duration::from_secs(1),
            ..standing()
        };
        for changed in [newer, shorter, at_stage(HoldStage::Transactions)] {
            assert_eq!(wait_for(&written, &changed), Duration::ZERO, "{changed:?}");
        }
    }

    #[test]
    fn counts_wait_for_ten_seconds_and_in_a_planned_change_for_a_tenth_of_one() {
        let busier = |standing: Standing| Standing {
            held_clients: 7,
            ..standing
        };
        let second = Duration::from_secs(1);
        let old = written(&standing(), NOW - second);
        assert_eq!(wait_for(&old, &busier(standing())), COUNTS_EVERY - second);
        let older = written(&standing(), NOW - COUNTS_EVERY);
        assert_eq!(wait_for(&older, &busier(standing())), Duration::ZERO);
        for stage in [HoldStage::Transactions, HoldStage::All] {
            let fresh = written(&at_stage(stage), NOW);
            let waits = wait_for(&fresh, &busier(at_stage(stage)));
            assert_eq!(waits, COUNTS_EVERY_IN_A_CHANGE);
        }
        let over = written(&at_stage(HoldStage::All), NOW);
        assert_eq!(wait_for(&over, &standing()), Duration::ZERO);
    }

    #[test]
    fn a_write_that_failed_is_tried_again_soon_and_then_less_often() {
        let longest = Duration::from_millis(500);
        let pauses = [1, 2, 3, 4, 5, 99].map(|failures| pause_after(failures, longest));
        let expected = [50, 100, 200, 400, 500, 500].map(Duration::from_millis);
        assert_eq!(pauses, expected);
    }

    #[test]
    fn without_a_writer_the_last_epoch_stays_the_one_applied() {
        let written = written(&standing(), NOW);
        let leaderless = Standing {
            epoch: None,
            ..standing()
        };
        let next = record(&own(), &leaderless, written.record.epoch);
        assert_eq!(next.epoch, Some(epoch(42)));
        assert_eq!(wait_for(&written, &leaderless), COUNTS_EVERY);
    }
}
