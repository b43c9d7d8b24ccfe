//! Whether a doubted leader still leads, by what its own agent said. Pure.

use std::time::Duration;

use trunkline_shared::cluster::{LeaderEpoch, Moment};

use super::{ANSWER_WITHIN, Answer, Health, SILENCE_TOLERATED};
use crate::topology::routing_table::Doubt;

/// Why a doubted leader is not one any more.
pub(super) enum Bad {
    /// It said so.
    Refused,
    /// It did not answer in time.
    Silent,
}

/// What to make of a doubted leader.
pub(super) enum Verdict {
    /// It vouches for itself until then.
    Good { until: Moment },
    /// It has until then to answer.
    Waiting { until: Moment },
    /// It does not lead any more, as far as the router may believe.
    Bad(Bad),
}

/// What to make of a doubted leader. A good answer holds for as long as it promised, whatever is heard
/// after it but a refusal.
pub(super) fn verdict(
    why: Doubt,
    since: Moment,
    epoch: LeaderEpoch,
    can_be_asked: bool,
    health: &Health,
    now: Moment,
) -> Verdict {
    let latest = health
        .latest
        .filter(|t| t.epoch == epoch && t.asked_at >= since);
    if latest.is_some_and(|t| t.answer == Answer::Refused) {
        return Verdict::Bad(Bad::Refused);
    }
    if let Some(vouch) = health.vouch.filter(|t| t.epoch == epoch)
        && let Answer::Writable { until } = vouch.answer
    {
        if now < until {
            return Verdict::Good { until };
        }
        if vouch.asked_at >= since {
            return Verdict::Bad(Bad::Silent);
        }
    }
    let patience = match why {
        Doubt::KeyGone if latest.is_some() || !can_be_asked => Duration::ZERO,
        Doubt::KeyGone => ANSWER_WITHIN,
        Doubt::ViewOld => SILENCE_TOLERATED,
    };
    let until = since + patience;
    if now < until {
        Verdict::Waiting { until }
    } else {
        Verdict::Bad(Bad::Silent)
    }
}
