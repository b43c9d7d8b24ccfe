//! How often positions that hardly move are written to the DCS. Pure.
//!
//! PostgreSQL writes WAL while nobody uses it: autovacuum, checkpoints, snapshots of what runs. Each such move would
//! be a write of the leader's and one of every member's, to no reader's profit. What stands in the DCS lies less
//! than [`SMALL_MOVE`] bytes beside what was true when the writer last looked, so a lag that is counted from it is
//! wrong by less than that, and by what moved within a `loop_wait`. Where a candidate's loss is limited to a few of
//! these moves, the leader writes every one.

use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::topology::Status;
use trunkline_shared::cluster::{ClusterSettings, Lsn, Member, Moment, Topology};

/// A move of fewer bytes may wait: PostgreSQL's page, which is what the first change of a page after a checkpoint
/// takes at the least.
pub const SMALL_MOVE: u64 = 8192;

/// A limit of a candidate's loss that is fewer small moves than that is kept exactly: the leader writes every move.
const LIMIT_IN_MOVES: u64 = 16;

/// For how many `loop_wait`s a member's record stands while its positions move by less. A replica's own record makes
/// its lag look greater meanwhile, never smaller.
const RECORD_STANDS: u32 = 12;

/// The same of the leader's `status`, and at most a `ttl`: what is written within that is not counted by whoever
/// takes over from a leader that died, in Patroni neither.
const STATUS_STANDS: u32 = 3;

/// How long the leader's `status` stands before `new` may take its place; `None` if it need not.
pub(super) fn status_stands(
    old: &Status,
    new: &Status,
    settings: &ClusterSettings,
) -> Option<Duration> {
    let loop_wait = settings.loop_wait;
    let is_small = settings.maximum_lag_on_failover >= SMALL_MOVE * LIMIT_IN_MOVES
        && old.retain_slots == new.retain_slots
        && old.slots.keys().eq(new.slots.keys())
        && is_near(Some(old.optime), Some(new.optime))
        && old
            .slots
            .iter()
            .zip(&new.slots)
            .all(|((_, old), (_, new))| is_near(Some(*old), Some(*new)));
    (old != new).then(|| match is_small {
        true => (loop_wait * STATUS_STANDS).min(settings.ttl).max(loop_wait),
        false => loop_wait,
    })
}

fn is_near(old: Option<Lsn>, new: Option<Lsn>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.0.abs_diff(new.0) < SMALL_MOVE,
        (None, None) => true,
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// The member record as it was written last.
#[derive(Clone, Debug)]
pub struct WrittenRecord {
    member: Member,
    at: Moment,
    /// Nothing but positions was news in it.
    was_for_positions: bool,
}

impl WrittenRecord {
    /// What is to be written now, if anything: at once where others act on the change, else once per `loop_wait`,
    /// and for moves that need not be known at once after several. `shown` is the believed DCS: where it shows
    /// another record than the last, that is written again.
    pub fn next(
        before: Option<&WrittenRecord>,
        member: &Member,
        (now, loop_wait): (Moment, Duration),
        shown: Option<&Topology>,
    ) -> Option<WrittenRecord> {
        let moved = |was_for_positions| WrittenRecord {
            member: member.clone(),
            at: now,
            was_for_positions,
        };
        let Some(before) = before else {
            return Some(moved(false));
        };
        let old = &before.member;
        if without_news(old) != without_news(member) {
            return Some(moved(false));
        }
        let age = now.since(before.at);
        let is_lost = shown.is_some_and(|shown| before.is_lost(shown.members.get(&member.name)));
        if age < loop_wait || (old == member && !is_lost) {
            return None;
        }
        let is_news = is_lost || without_positions(old) != without_positions(member);
        // The first small move after other news is told like any other: it may be what somebody waits for.
        let may_wait = !is_news && before.was_for_positions && need_not_be_known(old, member);
        (!may_wait || age >= loop_wait * RECORD_STANDS).then(|| moved(!is_news))
    }

    /// Whether what the DCS shows says other than this what others act on.
    fn is_lost(&self, shown: Option<&Arc<Member>>) -> bool {
        let says = |member: &Member| {
            let epoch = member.trunkline.as_ref().and_then(|fields| fields.epoch);
            (member.role, member.state, member.timeline, epoch)
        };
        shown.is_none_or(|shown| says(shown) != says(&self.member))
    }
}

/// Whether the positions moved so that no reader needs to know at once: hardly, or they are the leader's, who writes
/// `position` into `status`. Who leads a standby cluster replays like any replica.
fn need_not_be_known(old: &Member, new: &Member) -> bool {
    let leads = new
        .trunkline
        .as_ref()
        .is_some_and(|fields| fields.epoch.is_some());
    let replays = new.received.is_some() || new.replayed.is_some();
    let both_known = old.position.is_some() && new.position.is_some();
    let stands_in_status = leads && !replays && both_known;
    (stands_in_status || is_near(old.position, new.position))
        && is_near(old.received, new.received)
        && is_near(old.replayed, new.replayed)
}

/// A record without what changes all the time and nobody acts on at once.
fn without_news(member: &Member) -> Member {
    let mut member = without_positions(member);
    if let Some(fields) = &mut member.trunkline {
        fields.reason = None;
        fields.detail = None;
        // Ready or not is what counts; how far it has replayed since does not.
        if let Some(ready) = &mut fields.ready {
            ready.replayed = Lsn::default();
        }
    }
    member
}

fn without_positions(member: &Member) -> Member {
    Member {
        position: None,
        received: None,
        replayed: None,
        ..member.clone()
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::{LeaderEpoch, MemberName, MemberRole};
    use trunkline_shared::dcs::records::member_from_json;

    use super::*;

    const LOOP_WAIT: Duration = Duration::from_secs(10);

    fn replica(at: u64) -> Member {
        let text = format!(
            r#"{{"conn_url":"postgres://h:5432/postgres","state":"running","role":"replica",
                "xlog_location":{at},"receive_lsn":{at},"replay_lsn":{at},"trunkline":{{}}}}"#
        );
        member_from_json(&MemberName::new("b"), &text).unwrap()
    }

    fn leader(at: u64) -> Member {
        let mut member = replica(at);
        (member.received, member.replayed) = (None, None);
        member.trunkline.as_mut().unwrap().epoch = Some(LeaderEpoch::default());
        member
    }

    /// Writes what is due of a course of records, one in each `loop_wait`; which of them were.
    fn written(course: impl IntoIterator<Item = Member>) -> Vec<usize> {
        let mut record: Option<WrittenRecord> = None;
        let mut written = Vec::new();
        for (turn, member) in course.into_iter().enumerate() {
            let now = Moment::default() + LOOP_WAIT * u32::try_from(turn).unwrap();
            if let Some(next) =
                WrittenRecord::next(record.as_ref(), &member, (now, LOOP_WAIT), None)
            {
                record = Some(next);
                written.push(turn);
            }
        }
        written
    }

    #[test]
    fn a_trickle_is_written_now_and_then() {
        let course = (0..40).map(|turn| replica(1_000_000 + turn * 100));
        assert_eq!(written(course), [0, 1, 13, 25, 37]);
    }

    #[test]
    fn what_moved_by_a_page_is_written_once_in_loop_wait() {
        let course = (0..5).map(|turn| replica(1_000_000 + turn * SMALL_MOVE));
        assert_eq!(written(course), [0, 1, 2, 3, 4]);
        // Many small moves are a great one.
        let course = (0..12).map(|turn| replica(1_000_000 + turn * SMALL_MOVE / 4));
        assert_eq!(written(course), [0, 1, 5, 9]);
    }

    #[test]
    fn a_replica_that_stops_replaying_shows_it() {
        let course = (0..4).map(|turn| Member {
            replayed: Some(Lsn(1_000_000)),
            ..replica(1_000_000 + turn * SMALL_MOVE)
        });
        assert_eq!(written(course), [0, 1, 2, 3]);
    }

    #[test]
    fn the_leaders_own_position_stands_in_status_already() {
        let course = (0..16).map(|turn| leader(1_000_000 + turn * 10 * SMALL_MOVE));
        assert_eq!(written(course), [0, 1, 13]);
        let appears = [
            leader(1),
            Member {
                position: None,
                ..leader(1)
            },
            leader(1),
        ];
        assert_eq!(written(appears), [0, 1, 2]);
    }

    #[test]
    fn who_leads_a_standby_cluster_shows_how_far_it_has_replayed() {
        let course = (0..4).map(|turn| Member {
            received: Some(Lsn(9_000_000)),
            replayed: Some(Lsn(1_000_000 + turn * 10 * SMALL_MOVE)),
            ..leader(9_000_000)
        });
        assert_eq!(written(course), [0, 1, 2, 3]);
    }

    #[test]
    fn after_other_news_the_first_small_move_is_told() {
        let restarted = (0..6).map(|turn| Member {
            is_streaming: Some(turn >= 3),
            ..replica(1_000_000 + turn * 100)
        });
        assert_eq!(written(restarted), [0, 1, 3, 4]);
    }

    #[test]
    fn a_record_that_is_gone_or_another_is_written_again_though_nothing_moved() {
        let first = WrittenRecord::next(None, &replica(1), (Moment::default(), LOOP_WAIT), None);
        let later = Moment::default() + LOOP_WAIT;
        let again = |shown: Option<Member>| {
            let mut topology = Topology::default();
            if let Some(member) = shown {
                topology.members.insert(member.name.clone(), member.into());
            }
            let times = (later, LOOP_WAIT);
            WrittenRecord::next(first.as_ref(), &replica(1), times, Some(&topology)).is_some()
        };
        assert!(again(None));
        assert!(!again(Some(replica(1))));
        // A write of before that came late.
        assert!(again(Some(Member {
            role: MemberRole::Promoted,
            ..replica(1)
        })));
    }

    #[test]
    fn status_waits_for_small_moves_of_positions_alone() {
        let settings = ClusterSettings::default();
        let at = |optime, slot| Status {
            optime: Lsn(optime),
            slots: [("b".to_owned(), Lsn(slot))].into(),
            retain_slots: Vec::new(),
        };
        let old = at(1_000_000, 1_000_000);
        let stands = |new: &Status, settings: &ClusterSettings| status_stands(&old, new, settings);
        let (soon, later) = (settings.loop_wait, settings.loop_wait * STATUS_STANDS);
        assert_eq!(stands(&old, &settings), None);
        assert_eq!(stands(&at(1_008_191, 1_000_100), &settings), Some(later));
        assert_eq!(stands(&at(1_008_192, 1_000_100), &settings), Some(soon));
        assert_eq!(stands(&at(1_000_100, 1_008_192), &settings), Some(soon));
        let mut other = at(1_000_100, 1_000_100);
        other.retain_slots.push("b".to_owned());
        assert_eq!(stands(&other, &settings), Some(soon));
        other = at(1_000_100, 1_000_100);
        other.slots.insert("c".to_owned(), Lsn(1));
        assert_eq!(stands(&other, &settings), Some(soon));
        // Never longer than the lease, nor where a loss that small counts.
        let short = ClusterSettings {
            ttl: settings.loop_wait * 2,
            ..settings.clone()
        };
        assert_eq!(stands(&at(1_000_100, 1_000_100), &short), Some(soon * 2));
        let strict = ClusterSettings {
            maximum_lag_on_failover: SMALL_MOVE * LIMIT_IN_MOVES - 1,
            ..settings
        };
        assert_eq!(stands(&at(1_000_100, 1_000_100), &strict), Some(soon));
    }
}
